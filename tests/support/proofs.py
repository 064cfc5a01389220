"""Test ids that documents and mutations name, looked up in the sources: nothing is imported or collected."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]


@cache
def tests_of(file: str) -> dict[str, bool]:
    """The tests in a file, those of a class as `Class::test`; true for those that have parameters."""
    path = ROOT / file
    found: dict[str, bool] = {}
    for node in ast.parse(path.read_text()).body if path.is_file() else ():
        if isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            for member in node.body:
                if isinstance(member, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    found |= {f"{node.name}::{name}": given for name, given in _test(member).items()}
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            found |= _test(node)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id  # `TestModel = Model.TestCase`, as Hypothesis has it
            if name.startswith("Test") and ast.unparse(node.value).endswith(".TestCase"):
                found[f"{name}::runTest"] = False
    return found


def is_there(test: str) -> bool:
    """Whether `tests/…::test_name` exists. In brackets only parameters that stand in its file."""
    file, _, name = test.partition("::")
    plain, bracket, given = name.partition("[")
    if plain not in tests_of(file):
        return False
    if not bracket:
        return True
    source = (ROOT / file).read_text()
    return tests_of(file)[plain] and all(part in source for part in given.rstrip("]").split("-"))


def _test(node: ast.FunctionDef | ast.AsyncFunctionDef) -> dict[str, bool]:
    return {node.name: bool(node.decorator_list)} if node.name.startswith("test") else {}
