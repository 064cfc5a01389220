"""The documents, and the code in them.

A fenced block is marked in its first line: ```python test``` is run without a database, ```python database``` with one,
and plain ```python``` must only compile. The blocks of one document share a module, as they do in a reader's head, so
those of a document that has a `database` block are run once more when that one is.
"""

import ast
import inspect
import re
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(r"^```(?P<mark>[^\n]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: `mark` is what its first line says, `line` the number of its first line of code."""

    document: Path
    mark: str
    line: int
    code: str


def blocks(document: Path) -> list[Block]:
    text = document.read_text()
    return [
        Block(document, found["mark"].strip(), text.count("\n", 0, found.start("code")) + 1, found["code"])
        for found in _FENCE.finditer(text)
    ]


def name(document: Path) -> str:
    return str(document.relative_to(ROOT))


@contextmanager
def module_of(document: Path) -> Iterator[types.ModuleType]:
    """A module that the code of a document is run in; annotations are looked up in it."""
    module = types.ModuleType("document_" + re.sub(r"\W", "_", name(document)))
    sys.modules[module.__name__] = module
    try:
        yield module
    finally:
        del sys.modules[module.__name__]


async def run(block: Block, module: types.ModuleType) -> None:
    """Run a block, and after it the tests that it defines. Tracebacks show the document's own lines."""
    before = set(vars(module))
    tree = ast.parse(block.code, filename=str(block.document))
    ast.increment_lineno(tree, block.line - 1)
    code = compile(tree, str(block.document), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    made = eval(code, vars(module))  # a coroutine if the block awaits something, as in a notebook
    if inspect.iscoroutine(made):
        await made
    for added in [name for name in vars(module) if name.startswith("test_") and name not in before]:
        await getattr(module, added)()
