"""Digests: the same for the same meaning, whoever asks, and another one for another."""

import dataclasses
import datetime as dt
import enum
import inspect
import logging
import math
import os
import pathlib
import subprocess
import sys
import uuid
from collections.abc import Callable
from decimal import Decimal
from typing import Any, NamedTuple

import attrs
import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zart import custom_types
from zart.codec import register_type
from zart.digest import ALGORITHM, PREVIEW_BYTES, Arguments, Digest, payload_digest
from zart.errors import UsageError


def digest_of(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Digest:
    return Arguments(inspect.signature(fn)).digest(args, kwargs)


def one(value: Any) -> Any:
    """The function that most tests take digests for."""


def charge(card: str, amount: int = 100, *, currency: str = "EUR") -> None:
    """A function with defaults."""


def spread(first: int, *rest: int, **options: int) -> None:
    """A function that takes anything."""


def test_the_shape() -> None:
    """13 bytes, the algorithm's number first, and the canonical arguments as text."""
    digest = digest_of(charge, "visa", currency="USD")
    assert len(digest.value) == 13
    assert digest.value[0] == ALGORITHM == 1
    assert digest.preview == '{"card":"visa","currency":"USD"}'


def test_a_golden_digest() -> None:
    """Digests are stored for years: the rules of algorithm 1 must never give another one."""
    digest = digest_of(charge, {"b": [1, 2.5, None], "a": dt.date(2030, 1, 2)}, Decimal("1.50"))
    assert digest.preview == '{"amount":"1.50","card":{"a":"2030-01-02","b":[1,2.5,null]}}'
    assert digest.value.hex() == "017ef71720834a8be56b070332"


def test_how_the_call_is_written_does_not_matter() -> None:
    """By position or by name, with a default written out or left away: one digest."""
    plain = digest_of(charge, "visa")
    assert plain == digest_of(charge, card="visa") == digest_of(charge, "visa", 100, currency="EUR")
    assert plain == digest_of(charge, currency="EUR", amount=100, card="visa")
    assert plain != digest_of(charge, "visa", 101) != digest_of(charge, "visa", currency="101")
    assert digest_of(spread, 1) == digest_of(lambda first: None, 1)
    assert digest_of(spread, 1, 2, a=3) != digest_of(spread, 1, 2) != digest_of(spread, 1)


def test_values_of_other_types_differ() -> None:
    """1, 1.0, True and "1" are four arguments."""
    digests = {digest_of(one, value).value for value in (1, 1.0, True, "1", None, "null", [1], {"1": 1})}
    assert len(digests) == 8
    assert digest_of(charge, "visa", True) != digest_of(charge, "visa", 1)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((), {}), ((1, 2, 3), {}), ((1,), {"card": 2}), ((1,), {"other": 1}), ((), {"amount": 1})],
)
def test_a_call_that_does_not_fit_is_a_usage_error(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """It is what Python itself would say, with the parameters."""
    with pytest.raises(UsageError, match=r"does not fit the function's parameters \(card"):
        Arguments(inspect.signature(charge)).digest(args, kwargs)


def test_the_instance_of_a_method_counts_by_its_type() -> None:
    """Another instance of the class is the same; an instance of another class is not."""

    class Shop:
        def __init__(self, city: str) -> None:
            self.city = city

        def charge(self, card: str) -> None: ...

    class Branch(Shop): ...

    arguments = Arguments(inspect.signature(Shop.charge))
    digest = arguments.digest((Shop("Bonn"), "visa"), {}, bound=1)
    assert digest == arguments.digest((Shop("Rome"), "visa"), {}, bound=1)
    assert digest != arguments.digest((Shop("Bonn"), "amex"), {}, bound=1)
    assert digest != arguments.digest((Branch("Bonn"), "visa"), {}, bound=1)


# ---------------------------------------------------------------- compatible deploys


class StructOne(msgspec.Struct):
    user: int
    tags: set[str]


class StructTwo(msgspec.Struct):
    tags: set[str]
    plan: str = "free"
    user: int = 0
    extra: list[int] = []
    inner: "StructTwo | None" = None
    labels: dict[str, str] = msgspec.field(default_factory=lambda: {"a": "b"})


@dataclasses.dataclass
class DataOne:
    user: int
    tags: set[str]


@dataclasses.dataclass(kw_only=True)
class DataTwo:
    plan: str = "free"
    tags: set[str]
    user: int = 0
    extra: list[int] = dataclasses.field(default_factory=list)


@attrs.define
class AttrsOne:
    user: int
    tags: set[str]


@attrs.define(kw_only=True)
class AttrsTwo:
    extra: list[int] = attrs.Factory(list)
    tags: set[str]
    user: int
    copy: int = attrs.Factory(lambda self: self.user + 1, takes_self=True)


class ModelOne(pydantic.BaseModel):
    user: int
    tags: set[str]


class ModelTwo(pydantic.BaseModel):
    tags: set[str]
    extra: list[int] = []
    labels: dict[str, str] = pydantic.Field(default_factory=lambda: {"a": "b"})
    user: int = pydantic.Field(default=0, alias="userId")
    model_config = pydantic.ConfigDict(populate_by_name=True)


class TupleOne(NamedTuple):
    user: int
    tags: set[str]


class TupleTwo(NamedTuple):
    user: int
    tags: set[str]
    plan: str = "free"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (StructOne, StructTwo),
        (DataOne, DataTwo),
        (AttrsOne, AttrsTwo),
        (ModelOne, ModelTwo),
        (TupleOne, TupleTwo),
        (StructOne, DataTwo),
    ],
)
def test_a_new_field_with_a_default_and_another_order_change_nothing(old: Any, new: Any) -> None:
    """A compatible deploy under running executions blocks none of them, at any depth."""
    before = old(user=7, tags={"a", "b"})
    after = new(user=7, tags={"b", "a"})
    assert digest_of(one, before) == digest_of(one, after)
    assert digest_of(one, {"all": [before]}) == digest_of(one, {"all": (after,)})
    assert payload_digest(before) == payload_digest(after)
    assert digest_of(one, before) != digest_of(one, new(user=8, tags={"a", "b"}))
    assert digest_of(one, before) != digest_of(one, new(user=7, tags={"a"}))


def test_a_field_that_is_not_its_default_counts() -> None:
    """What the new field is for makes a difference."""
    base = StructTwo(tags=set())
    changed = [
        StructTwo(tags=set(), plan="pro"),
        StructTwo(tags=set(), extra=[1]),
        StructTwo(tags=set(), inner=base),
        StructTwo(tags=set(), labels={}),
    ]
    assert len({digest_of(one, value).value for value in (base, *changed)}) == 5


def test_members_of_a_union_differ_by_their_tag() -> None:
    """Two Structs with the same fields are told apart where their tags do it."""

    class Cat(msgspec.Struct, tag=True):
        name: str

    class Dog(msgspec.Struct, tag=True):
        name: str

    assert digest_of(one, Cat("Rex")) != digest_of(one, Dog("Rex"))


def test_defaults_that_cannot_be_compared_or_made_count() -> None:
    """A default that raises when it is made or compared is no default."""

    class Odd:
        def __eq__(self, other: object) -> bool:
            raise RuntimeError

        __hash__ = None  # type: ignore[assignment]

    def fail() -> int:
        raise RuntimeError

    @dataclasses.dataclass
    class Data:
        odd: Any = dataclasses.field(default_factory=Odd)
        number: int = dataclasses.field(default_factory=fail)

    assert digest_of(one, Data(number=3)).preview.startswith('{"value":{"number":3,"odd":"<')


# ---------------------------------------------------------------- what JSON does not say


class Colour(enum.Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "preview"),
    [
        (object(), '"<builtins.object>"'),
        (logging.getLogger("shop"), '"<logging.Logger>"'),
        (pathlib.PurePosixPath, '"<builtins.type>"'),
        (iter([1]), '"<builtins.list_iterator>"'),
        ([object(), 1], '["<builtins.object>",1]'),
        (math.nan, '"<nan>"'),
        (-math.inf, '"<-inf>"'),
        ("a\0b", r'"a\u0000b"'),
        ("\ud800", r'"\\ud800"'),
        ({"\udfff": "\ud800"}, r'{"\\udfff":"\\ud800"}'),
        ({3, 1, 2}, "[1,2,3]"),
        (frozenset({"b", "a"}), '["a","b"]'),
        ({1: "a", (1, 2): "b", None: "c"}, '{"1":"a","[1,2]":"b","null":"c"}'),
        ({1: "a", "1": "b"}, '{"1":"a","1#":"b"}'),
        ({"b": 1, "a": 2}, '{"a":2,"b":1}'),
        (Colour.RED, '"red"'),
        (b"\x00\xff", '"AP8="'),
        (bytearray(b"\x00\xff"), '"AP8="'),
        (uuid.UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
        (2**80, "1208925819614629174706176"),
        (pydantic.SecretStr("secret"), '"<pydantic.types.SecretStr>"'),
    ],
    ids=lambda part: ascii(part)[:30].partition(" at 0x")[0].partition("({'")[0],
)
def test_every_value_has_a_digest(value: Any, preview: str) -> None:
    """What cannot be encoded counts by its type's name; nothing raises, and Postgres takes the text."""
    digest = digest_of(one, value)
    assert digest.preview == f'{{"value":{preview}}}'
    assert "\0" not in digest.preview
    assert digest.preview.encode()


def test_an_iterator_is_not_used_up() -> None:
    """Taking a digest reads nothing that can be read once only."""
    numbers = iter([1, 2])
    digest_of(one, numbers)
    assert list(numbers) == [1, 2]


def test_cycles_depth_and_huge_numbers() -> None:
    """A value without an end has a digest, the same one wherever the stack happens to be."""
    cycle: list[Any] = []
    cycle.append(cycle)
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"a": deep}

    def further_down(levels: int) -> Digest:
        return further_down(levels - 1) if levels else digest_of(spread, 1, a=cycle, b=deep)

    assert further_down(0) == further_down(300)
    assert digest_of(one, 10**5000) != digest_of(one, 10**5001)


def test_a_registered_type_counts_by_what_it_is_encoded_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where register_type says how to write a type, its values differ."""

    class Money:
        def __init__(self, cents: int) -> None:
            self.cents = cents

    monkeypatch.setattr(custom_types, "_registered", {})
    assert digest_of(one, Money(1)) == digest_of(one, Money(2))
    register_type(Money, encode=lambda money: money.cents, decode=Money)
    assert digest_of(one, Money(1)) != digest_of(one, Money(2))


def test_the_preview_ends_at_a_whole_character() -> None:
    """At most 500 bytes, never half a character; what is cut off counts in the digest."""
    long = digest_of(one, "é" * 1000)
    assert PREVIEW_BYTES - 1 <= len(long.preview.encode()) <= PREVIEW_BYTES
    assert long.preview.endswith("é")
    assert long.value != digest_of(one, "é" * 1001).value


_PROGRAM = """
import inspect
from zart.digest import Arguments, payload_digest
value = {"tags": {"alpha", "beta", "gamma", 3, None, ("x", 1)}, "b": frozenset("words"), "a": 1}
print(Arguments(inspect.signature(lambda v: 0)).digest((value,), {}).value.hex(), payload_digest(value).hex())
"""


def test_another_process_gives_the_same() -> None:
    """The order of sets and the seed of hashes differ from process to process; digests do not."""

    def run(seed: str) -> str:
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        return subprocess.run(
            [sys.executable, "-c", _PROGRAM], env=environment, check=True, capture_output=True, text=True
        ).stdout

    assert run("1") == run("2") != ""


# ---------------------------------------------------------------- payloads


def test_payloads_are_equal_as_postgres_sees_them() -> None:
    """1 is 1.0, keys have no order; a list has."""
    assert payload_digest({"a": 1, "b": [1.0, 1e16]}) == payload_digest({"b": [1, 10**16], "a": 1.0})
    assert payload_digest(-0.0) == payload_digest(0)
    assert payload_digest([1, 2]) != payload_digest([2, 1])
    assert payload_digest(1.5) != payload_digest(1)
    assert payload_digest(True) != payload_digest(1)
    assert payload_digest(None) != payload_digest("null") != payload_digest({})


def test_a_payload_given_as_a_dict_equals_the_struct() -> None:
    """Whoever starts by name sends plain data, and means the same execution."""
    assert payload_digest({"user": 7, "tags": ["a"]}) == payload_digest(StructOne(7, {"a"}))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def reordered(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: reordered(value[key]) for key in reversed(value)}
    return [reordered(item) for item in value] if isinstance(value, list) else value


@given(json_values)
def test_any_json_has_one_digest(value: Any) -> None:
    """Another order of keys is the same; wrapped in a list it is another value."""
    assert digest_of(one, value) == digest_of(one, reordered(value))
    assert payload_digest(value) == payload_digest(reordered(value)) != payload_digest([value])
    assert len(digest_of(one, value).preview.encode()) <= PREVIEW_BYTES
