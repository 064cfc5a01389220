"""The engine's named points: the table says all of them, and a point costs next to nothing."""

import ast
from collections import Counter
from pathlib import Path

import pytest

from zart._engine import points

ENGINE = Path(points.__file__).parent


def _named() -> Counter[str]:
    """The names that the engine's code gives to points."""
    names: Counter[str] = Counter()
    for module in ENGINE.glob("*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            last = node.args[-1] if node.args else None
            if not isinstance(last, ast.Constant):
                continue
            if node.func.id == "reach":
                names[last.value] += 1
            elif node.func.id == "_Send":
                names.update(f"{last.value}.{moment}" for moment in ("begin", "sent", "answered"))
    return names


def test_every_point_is_in_the_table_and_every_name_of_the_table_is_a_point() -> None:
    assert set(_named()) == set(points.POINTS)


def test_the_listener_hears_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    monkeypatch.setattr(points, "listener", heard.append)
    points.reach("claim.begin")
    assert heard == ["claim.begin"]


def test_nobody_listens_by_default() -> None:
    assert points.listener is None
    points.reach("claim.begin")
