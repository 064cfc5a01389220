"""The page of guarantees keeps its word: each promise names tests, and they are there."""

import re

import pytest

from tests.support.documents import ROOT
from tests.support.proofs import is_there

PAGE = ROOT / "docs/explanation/guarantees.md"
_TEST = re.compile(r"`(tests/[^`]+)`")


def entries(heading: str) -> dict[str, str]:
    """The entries (`### …`) below the headings that begin like this, with their text."""
    sections = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)
    wanted = [section for section in sections if section.startswith(heading)]
    parts = [part for section in wanted for part in re.split(r"^### ", section, flags=re.MULTILINE)[1:]]
    return {title: text for title, _, text in (part.partition("\n") for part in parts)}


@pytest.mark.parametrize("promise", entries("Promised"))
def test_each_promise_names_a_test_that_proves_it(promise: str) -> None:
    """A sentence that nobody has tried to break is a hope."""
    told = entries("Promised")[promise]
    assert "Shown by `tests/" in told
    assert _TEST.findall(told)


def test_the_tests_that_it_names_are_there() -> None:
    """A test that was renamed or removed takes its promise with it, or the page follows."""
    named = _TEST.findall(PAGE.read_text())
    assert len(named) > 50
    assert [test for test in named if not is_there(test)] == []


def test_each_test_is_named_once_for_a_promise() -> None:
    """A list is not made longer by saying something twice."""
    for promise, told in (entries("Promised") | entries("Not promised")).items():
        named = _TEST.findall(told)
        assert len(named) == len(set(named)), promise


def test_what_is_not_promised_stands_there_too() -> None:
    """Whoever decides whether to trust Zart needs both halves."""
    assert len(entries("Not promised")) >= 8


@pytest.mark.parametrize("document", ["README.md", "docs/explanation/how-it-works.md"])
def test_readers_are_led_to_it(document: str) -> None:
    """From the front page and from the explanation of how it works."""
    text = (ROOT / document).read_text()
    targets = {
        ((ROOT / document).parent / target).resolve() for target in re.findall(r"\]\(([^)#\s]+)", text)
    }
    assert PAGE in targets


def test_ids_are_looked_up_in_the_sources() -> None:
    """A test that is missing is missed, and so are parameters of a test that has none."""
    here = "tests/unit/test_guarantees.py"
    assert is_there(f"{here}::test_the_tests_that_it_names_are_there")
    assert is_there(f"{here}::test_readers_are_led_to_it[README.md]")
    assert not is_there(f"{here}::test_readers_are_led_to_it[nowhere.md" + "x]")
    assert not is_there(f"{here}::test_ids_are_looked_up_in_the_sources[README.md]")
    assert not is_there(f"{here}::test_nothing")
    assert not is_there("tests/unit/test_nowhere.py::test_the_tests_that_it_names_are_there")
