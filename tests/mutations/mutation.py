"""What a mutation is: some text of a file, and what it becomes."""

import re
from dataclasses import dataclass
from pathlib import Path

_STATEMENT = re.compile(r"^-- name: (\w+)[ \t]*$", re.MULTILINE)


class Rotten(Exception):
    """The old text is not there exactly once: the code has moved on, and the mutation must follow."""


@dataclass(frozen=True, kw_only=True)
class Edit:
    """One replacement. `under` limits it to the named statement of a file of SQL."""

    file: str
    old: str
    new: str
    under: str | None = None

    def apply(self, root: Path) -> None:
        """Change the file below `root`. Raises Rotten."""
        path = root / self.file
        path.write_text(self.of(path.read_text()))

    def of(self, text: str) -> str:
        """The text of the file, changed. Raises Rotten."""
        begin, end = self._range(text)
        part = text[begin:end]
        found = part.count(self.old)
        if found != 1:
            place = f"{self.file}, {self.under}" if self.under else self.file
            raise Rotten(f"{place}: found {found} times instead of once: {self.old!r}")
        return text[:begin] + part.replace(self.old, self.new) + text[end:]

    def _range(self, text: str) -> tuple[int, int]:
        if self.under is None:
            return 0, len(text)
        headings = [(found[1], found.end()) for found in _STATEMENT.finditer(text)]
        for number, (name, begin) in enumerate(headings):
            if name == self.under:
                end = (
                    text.rfind("-- name:", begin, headings[number + 1][1])
                    if headings[number + 1 :]
                    else len(text)
                )
                return begin, end
        raise Rotten(f"{self.file}: there is no statement {self.under!r}")


@dataclass(frozen=True, kw_only=True)
class Mutation:
    """`breaks` is the sentence that no longer holds; each of `tests` must fail then."""

    name: str
    breaks: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]
    works: str | None = "tests/integration/test_client_with_worker.py::test_start_and_wait"
    """A test that must still pass: what breaks everything would be noticed by any test, and proves nothing.
    None where nothing could pass."""

    @property
    def all_tests(self) -> list[str]:
        """Those that must pass and those that must fail."""
        return [*([self.works] if self.works else []), *self.tests]

    def apply(self, root: Path) -> None:
        """Break the tree below `root`. Raises Rotten."""
        for edit in self.edits:
            edit.apply(root)
