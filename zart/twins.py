"""Compares a value with its twin, which was encoded and decoded again without knowing any type.

A comparison answers None, or the first place where the two differ, in value or in type. It may be of the
whole tree, or only of places within containers whose annotation leaves them open.
"""

# Trees of anything are walked here: what isinstance finds in them has members of unknown types.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from collections.abc import Callable, Iterable
from typing import Any, Final, final

from zart.custom_types import step_into, type_name

Link = tuple[object, "Link"] | None
"""A path from a node of a tree up to its root."""


@final
class Difference:
    """A place where the twin is not what the value is."""

    __slots__ = ("path", "twin", "value")

    def __init__(self, value: object, twin: object, link: Link = None, end: str = "") -> None:
        self.value: object = value
        self.twin: object = twin
        self.path: str = end
        while link is not None:
            key, link = link
            self.below(key)

    def below(self, key: object) -> "Difference":
        """The same difference, seen from one level higher."""
        self.path = step_into(key) + self.path
        return self

    def told(self, annotation: str) -> str:
        """What would change, and what to do about it; `annotation` is what left the type open.

        The value itself is not told: errors are stored and logged, and what people store is nobody's business.
        """
        kind = type(self.value)
        if isinstance(self.value, (set, frozenset)):
            remedy = "return a sorted list"
        elif annotation == "Any":
            remedy = "annotate its type, so that zart knows what to read back"
        else:
            remedy = f"name the type in the annotation, where {annotation} leaves it open"
        twin = "changed" if kind is type(self.twin) else f"as {type_name(type(self.twin))}"
        return f"at ${self.path} a {type_name(kind)} would come back {twin}. To mend it, {remedy}"


Comparison = Callable[[Any, Any], Difference | None]

_A_KEY: Final = " (a key)"
_STEADY: Final = frozenset({str, int, bool, type(None)})
"""What JSON cannot change: when the type is the same, so is the value."""


def compare_trees(value: Any, twin: Any) -> Difference | None:
    """Compare two trees in value and in every type; how deep they are does not matter."""
    waiting: list[tuple[Any, Any, Link]] = [(value, twin, None)]
    while waiting:
        one, other, link = waiting.pop()
        kind: Any = type(one)
        if kind is not type(other):
            return Difference(one, other, link)
        if kind is dict:
            if len(one) != len(other):  # two keys became one
                return Difference(one, other, link)
            members = zip(one.items(), other.values(), strict=True)
            for (key, member), twin_member in members:
                if type(key) is not str or key not in other:
                    return Difference(key, str(key), link, _A_KEY)
                if type(member) not in _STEADY or type(member) is not type(twin_member):
                    waiting.append((member, twin_member, (key, link)))
        elif kind is list:
            for index, (member, twin_member) in enumerate(zip(one, other, strict=True)):
                if type(member) not in _STEADY or type(member) is not type(twin_member):
                    waiting.append((member, twin_member, (index, link)))
        elif one != other:
            return Difference(one, other, link)
    return None


def compare_members(inner: Comparison) -> Comparison:
    """A comparison of dicts or sequences by their keys and members only, not by their own types."""

    def compare(value: Any, twin: Any) -> Difference | None:
        if not isinstance(twin, dict):
            return _compare_each(range(len(twin)), value, twin, inner)
        if not isinstance(value, dict):
            return None
        for key, twin_key in zip(value, twin, strict=False):
            if key != twin_key:
                return Difference(key, twin_key, None, _A_KEY)
        return _compare_each(twin, value.values(), twin.values(), inner)

    return compare


def _compare_each(
    keys: Iterable[object], members: Iterable[Any], twins: Iterable[Any], inner: Comparison
) -> Difference | None:
    for key, member, twin in zip(keys, members, twins, strict=False):
        if (found := inner(member, twin)) is not None:
            return found.below(key)
    return None
