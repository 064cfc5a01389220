"""Names with fields: what they reach, what they refuse, and when."""

import enum
import inspect
import uuid
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from zart.errors import UsageError
from zart.template import NameTemplate

WHAT = "step charge (shop.py:3)"


class Order(msgspec.Struct):
    id: str
    lines: list[str] = []
    _secret: str = ""


class Kind(enum.StrEnum):
    FAST = "fast"


def charge(order: Any, amount: int = 5, *, currency: str = "EUR") -> None:
    """The function whose names are rendered here."""


def positional(order: Any, /, *rest: Any, **options: Any) -> None:
    """One with everything that a name cannot reach."""


def template(text: str, fn: Callable[..., Any] = charge) -> NameTemplate:
    return NameTemplate(text, inspect.signature(fn), WHAT)


@pytest.mark.parametrize(
    ("text", "args", "kwargs", "name"),
    [
        ("charge-{order}", ("a",), {}, "charge-a"),
        ("charge-{order.id}", (Order("7"),), {}, "charge-7"),
        ("charge-{order.id}-{amount}-{currency}", (Order("7"),), {}, "charge-7-5-EUR"),
        ("{order[id]}/{order[lines][0]}", ({"id": 3, "lines": ["x"]},), {}, "3/x"),
        ("{order.lines[1]}", (Order("7", ["x", "y"]),), {}, "y"),
        ("{amount:05d}", ("a", 42), {}, "00042"),
        ("{amount}", (), {"order": 1, "amount": 8}, "8"),
        ("{{{order}}}", ("a",), {}, "{a}"),
        ("{order}", (uuid.UUID(int=1),), {}, "00000000-0000-0000-0000-000000000001"),
        ("{order}", (Kind.FAST,), {}, "fast"),
        ("{order}", (None,), {}, "None"),
    ],
)
def test_a_name_takes_values_from_the_call(text: str, args: Any, kwargs: Any, name: str) -> None:
    """Parameters, by position, by name or by default, their attributes and their items."""
    assert template(text).fixed() is None
    assert template(text).render(args, kwargs) == name


def test_a_name_without_fields_is_fixed() -> None:
    """It is checked at once, and the same for every call."""
    assert template("charge").fixed() == "charge"
    assert template("a {{b}}").fixed() == "a {b}"
    with pytest.raises(UsageError, match=r"step charge \(shop.py:3\): the name is empty"):
        template("").fixed()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{unknown}", r"'unknown', which is no parameter of the function; it has order, amount, currency"),
        ("{order!r}", r"\{order!r\}"),
        ("{order:{amount}}", "cannot be"),
        ("{}", "cannot be"),
        ("{0}", "cannot be"),
        ("{order.id()}", "cannot be"),
        ("{order.}", "cannot be"),
        ("{order[a][}", "no template|cannot be"),
        ("{order", "no template"),
        ("order}", "no template"),
        ("{order._secret}", "begins with an underscore"),
        ("{order.__class__}", "begins with an underscore"),
        ("{order.id.__init__.__globals__}", "begins with an underscore"),
    ],
)
def test_a_field_that_cannot_be_is_refused_at_decoration(text: str, told: str) -> None:
    """With the step's name and what is accepted; nothing private is within reach."""
    with pytest.raises(UsageError, match=told) as caught:
        template(text)
    assert str(caught.value).startswith(WHAT)


@pytest.mark.parametrize("text", ["{rest}", "{options}", "{options[a]}"])
def test_variable_arguments_are_out_of_reach(text: str) -> None:
    """*args and **kwargs have no fixed place."""
    with pytest.raises(UsageError, match="it has order"):
        template(text, positional)


@pytest.mark.parametrize(
    ("text", "args", "told"),
    [
        ("{order}", (), "lacks the argument 'order'"),
        ("{order.id}", ({},), "AttributeError"),
        ("{order[id]}", ({},), "KeyError"),
        ("{order[0]}", ([],), "IndexError"),
        ("{order:d}", ("a",), "ValueError"),
        ("{order}", ({1, 2},), "order of a set"),
        ("{order}", (object(),), "address in memory"),
        ("{order}", ("a\nb",), "control character"),
        ("{order}", ("",), "is empty"),
    ],
)
def test_a_value_that_makes_no_name_is_refused_at_the_call(text: str, args: Any, told: str) -> None:
    """Missing, without a fixed text, or with signs that no name may have."""
    with pytest.raises(UsageError, match=told) as caught:
        template(text).render(args, {})
    assert str(caught.value).startswith(WHAT)


def test_a_positional_only_parameter_is_not_taken_by_name() -> None:
    """A key of **kwargs that happens to be called like it is something else."""
    with pytest.raises(UsageError, match="lacks the argument"):
        template("{order}", positional).render((), {"order": 1})


def test_a_long_name_is_shortened() -> None:
    """Rendered names over 200 bytes keep their beginning and a hash."""
    name = template("charge-{order}").render(("x" * 500,), {})
    assert name.startswith("charge-xxx")
    assert len(name) < 200
