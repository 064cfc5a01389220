"""The parts of an activation: each is made when it is first asked for.

Most executions call some steps and return. They never sleep, give nothing away, open no saga and are not cancelled, so
they need not pay for what these take. What an activation does for every entry looks into `made` first, where a part
that nobody has asked for is not.

Parts refer back to their activation. Such a cycle is work for the collector, and an activation is many objects. So once
nothing of the body is left, `made` is emptied. Whoever still holds a place in that body, such as a task of a library,
may ask all the same: the part is made anew, and tells as before that the activation is closed.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from zart._engine.recording import Recording

P = TypeVar("P")


class Part(Generic[P]):
    """An attribute of `Activation`, or of what it extends: `make` makes it of the activation, once."""

    __slots__ = ("_make", "_name")

    def __init__(self, make: "Callable[[Any], P]") -> None:
        self._make = make
        self._name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, activation: "Recording", owner: object = None) -> P:
        made = activation.made
        part: P | None = made.get(self._name)
        if part is None:
            part = made[self._name] = self._make(activation)
        return part
