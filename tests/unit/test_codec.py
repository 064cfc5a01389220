"""The codec: what survives is stored as it is, and what does not is refused by name."""

import asyncio
import collections
import datetime as dt
import enum
import json
import math
import reprlib
import uuid
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, NamedTuple, NoReturn, TypedDict, TypeVar

import attrs
import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zart import custom_types
from zart.codec import ANY, MAX_BYTES, MAX_DEPTH, Codec, register_type
from zart.errors import PayloadError, SerializationError, UsageError

WHAT = "the result of step 'charge'"
T = TypeVar("T")


def shown(part: object) -> str:
    """A short id for a test's parameter, the same in each process: no address, no order of a set."""
    told = "" if isinstance(part, int) and part > 2**90 else reprlib.repr(part)
    return type(part).__name__ if " object " in told or told.startswith("<") or "t({" in told else told


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Price(msgspec.Struct):
    amount: Decimal
    currency: str = "EUR"


class Page(msgspec.Struct, Generic[T]):
    items: list[T]
    next: str | None = None


class Cat(msgspec.Struct, tag=True):
    name: str


class Dog(msgspec.Struct, tag=True):
    name: str


@dataclass
class Address:
    street: str
    since: dt.date
    tags: frozenset[str] = field(default_factory=frozenset)


@attrs.define
class Box:
    width: int
    label: bytes = b""


class Point(NamedTuple):
    x: int
    y: float = 0.0


class Options(TypedDict, total=False):
    retries: int


class Item(pydantic.BaseModel):
    price: Decimal
    bought: dt.datetime | None = None


class Order(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True)
    number: int = pydantic.Field(alias="orderNumber")
    items: list[Item] = []
    when: dt.date = dt.date(2030, 1, 1)

    @pydantic.computed_field
    def count(self) -> int:
        return len(self.items)


class Reading(pydantic.BaseModel):
    value: float


class Basket(msgspec.Struct):
    orders: list[Order]
    by_name: dict[str, Item | None] = {}


NOW = dt.datetime(2030, 5, 6, 7, 8, 9, 123456, tzinfo=dt.UTC)
ORDER = Order(orderNumber=7, items=[Item(price=Decimal("1.10"), bought=NOW)])

TYPED: list[tuple[Any, Any]] = [
    (None, None),
    (bool, True),
    (int, 2**80),
    (str, 'quotes " and \\u0000 and emoji 🦀'),
    (float, 1e16),
    (float, -0.0),
    (bytes, b"\x00\xff"),
    (dt.datetime, NOW),
    (dt.date, NOW.date()),
    (dt.time, dt.time(1, 2, 3)),
    (dt.timedelta, dt.timedelta(days=2, microseconds=5)),
    (uuid.UUID, uuid.UUID(int=5)),
    (Decimal, Decimal("1.10")),
    (Colour, Colour.RED),
    (Level, Level.HIGH),
    (Literal["a", 1], 1),
    (Price, Price(Decimal("9.99"))),
    (Page[Price], Page([Price(Decimal(1))], "x")),
    (Cat | Dog, Dog("Rex")),
    (Address, Address("Main St", dt.date(2020, 1, 1), frozenset({"a", "b"}))),
    (Box, Box(3, b"x")),
    (Point, Point(1, 2.0)),
    (Options, {"retries": 3}),
    (tuple[int, str], (1, "a")),
    (tuple[int, ...], (1, 2)),
    (dict[str, list[tuple[int, Price]]], {"a": [(1, Price(Decimal(2)))]}),
    (dict[int, str], {1: "a"}),
    (dict[Colour, dt.date], {Colour.RED: dt.date(2020, 1, 1)}),
    (Price | None, None),
    (Annotated[int, msgspec.Meta(ge=0)], 3),
    (Item, Item(price=Decimal("1.10"), bought=NOW)),
    (Order, ORDER),
    (list[Order], [ORDER]),
    (Order | None, ORDER),
    (Basket, Basket([ORDER], {"a": None, "b": ORDER.items[0]})),
]


@pytest.mark.parametrize(("annotation", "value"), TYPED, ids=shown)
def test_equal_and_of_the_same_type_at_once_and_after_a_replay(annotation: Any, value: Any) -> None:
    """What the body receives on the first run and on replay equals the value, and so does its type."""
    codec = Codec(annotation)
    data, first = codec.store(value, WHAT)
    replayed = codec.load(data.decode(), WHAT)
    assert (first, replayed, codec.load(codec.encode(value, WHAT), WHAT)) == (value, value, value)
    assert type(first) is type(replayed) is type(value)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), inner)
    ),
    max_leaves=20,
)


@given(json_values)
def test_json_survives_without_an_annotation(value: Any) -> None:
    """Whatever JSON can say needs no annotation, and keeps its order of keys."""
    data, first = Codec(ANY).store(value, WHAT)
    assert json.dumps(first) == json.dumps(value) == json.dumps(Codec(Any).load(data, WHAT))


@given(
    json_values,
    st.sampled_from(
        [
            (1, 2),
            b"x",
            NOW,
            Colour.RED,
            Level.HIGH,
            Price(Decimal(1)),
            Point(1),
            {3: "a"},
            {True},
            frozenset(),
            collections.OrderedDict(a=1),
            ORDER,
            Decimal(1),
            uuid.UUID(int=1),
        ]
    ),
)
def test_without_an_annotation_types_that_json_loses_are_refused(around: Any, lost: Any) -> None:
    """A tuple, date, enum or class would come back as something else: refused, wherever it hides."""
    for value in (lost, {"a": [around, {"b": lost}]}, [lost, around]):
        with pytest.raises(SerializationError, match="would not be the same after a replay") as caught:
            Codec(ANY).store(value, WHAT)
        assert caught.value.what == WHAT
        assert WHAT in str(caught.value)


def test_the_text_says_where_it_is_and_what_to_do() -> None:
    """The error names the step, the place, the change and the remedy."""
    with pytest.raises(SerializationError) as caught:
        Codec(ANY).store({"user": {"seen": [None, NOW.date()]}}, WHAT)
    assert str(caught.value) == (
        "the result of step 'charge' would not be the same after a replay: at $.user.seen[1] a datetime.date would "
        "come back as str. To mend it, annotate its type, so that zart knows what to read back"
    )
    with pytest.raises(SerializationError, match="return a sorted list"):
        Codec(ANY).store({"a": {1, 2}}, WHAT)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (ANY, {"card": b"4242424242"}),
        (int, "4242424242"),
        (Item, {"price": "4242424242x"}),
        (ANY, "4242424242\0"),
    ],
)
def test_errors_do_not_tell_the_value(annotation: Any, value: Any) -> None:
    """Errors are logged and stored; what people store is not to be read there."""
    with pytest.raises(SerializationError) as caught:
        Codec(annotation).store(value, WHAT)
    assert "4242" not in str(caught.value)


@pytest.mark.parametrize(
    ("annotation", "fine", "lost"),
    [
        (dict[str, Any], {"a": [1, None]}, {"a": (1,)}),
        (dict[str, Any] | None, None, {"a": NOW}),
        (list[dict[str, Any]], [{"a": {}}], [{"a": b""}]),
        (dict, {"a": 1}, {1: 2}),
        (list, [1], [Colour.RED]),
        (tuple[Any, ...], (1, "a"), ((1,),)),
        (Annotated[dict[str, object], "about"], {}, {"a": Price(Decimal(1))}),
        (dict[int, Any], {1: "a"}, {1: NOW}),
        (dict[str, Any] | list[Any], [1], [(1,)]),
    ],
)
def test_where_an_annotation_says_any_the_same_holds(annotation: Any, fine: Any, lost: Any) -> None:
    """`dict[str, Any]` leaves its values open, so they must survive by themselves."""
    codec = Codec(annotation)
    assert codec.store(fine, WHAT)[1] == fine
    with pytest.raises(SerializationError, match="would not be the same after a replay"):
        codec.store(lost, WHAT)


def deep(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


def circular() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (math.nan, "NaN or an infinity"),
        ([1.0, -math.inf], r"at \$\[1\] is NaN"),
        ({"a": None, "b": {"c": math.inf}}, r"at \$.b.c is NaN"),
        (Point(1, math.nan), "NaN"),
        (Reading(value=math.nan), "NaN"),
        ("a\0b", "NUL"),
        ({"\0": 1}, "NUL"),
        ("\\\0", "NUL"),
        ("\ud800", "surrogate"),
        ({"a": ["\udfff"]}, "surrogate"),
        (deep(MAX_DEPTH + 1), "nested"),
        (deep(10_000), "nested"),
        (circular(), "contains itself"),
        ("x" * MAX_BYTES, "1,048,578 bytes"),
        (10**5000, "4300 digits"),
        (object(), "register_type"),
        (asyncio.Queue, "does not know how to write"),
        (iter([1]), "does not know how to write"),
    ],
    ids=shown,
)
@pytest.mark.parametrize("how", ["store", "encode"])
def test_what_cannot_be_stored_is_refused_by_name(value: Any, text: str, how: str) -> None:
    """NaN, NUL, half surrogates, depth, size and foreign objects: an error that names the step and the fix."""
    with pytest.raises(SerializationError, match=text) as caught:
        getattr(Codec(ANY), how)(value, WHAT)
    assert caught.value.what == WHAT
    assert str(caught.value).startswith(WHAT)


@pytest.mark.parametrize(
    "value",
    [
        "null",
        "\\u0000 and \\ud800, written out",
        "[" * 2000,
        ['"]', '["'] * 2000,
        [None] * 2000,
        deep(MAX_DEPTH),
        [[]] * 2000,
        "\x01\x7f",
        "x" * (MAX_BYTES - 2),
        1.7976931348623157e308,
    ],
    ids=shown,
)
def test_what_only_looks_like_trouble_is_stored(value: Any) -> None:
    """Text about nulls and escapes, many brackets and the largest allowed values are fine."""
    data, first = Codec(ANY).store(value, WHAT)
    assert first == value == Codec(ANY).load(data, WHAT)


def test_a_value_that_does_not_fit_its_annotation_is_refused() -> None:
    """A step that returns something else than it says fails by name, with the field."""
    with pytest.raises(
        SerializationError, match=r"does not fit its annotation int: Expected `int`, got `str` at \$"
    ):
        Codec(int).store("3", WHAT)
    with pytest.raises(SerializationError, match=r"at \$\[0\]"):
        Codec(list[Price]).store([3], WHAT)
    assert Codec(float).store(1, WHAT)[1] == 1.0


@pytest.mark.parametrize(
    ("annotation", "data", "path"),
    [
        (int, '"a"', "$"),
        (Page[Price], '{"items": [{"amount": "1"}, {"amount": []}]}', "$.items[1].amount"),
        (Page[Price], '{"items": [{}]}', "$.items[0]"),
        (Order, '{"orderNumber": 1, "items": [{"price": "x"}]}', "$.items[0].price"),
        (Basket, '{"orders": [{"number": 1}, {"number": "1"}]}', "$.orders[1].number"),
        (Basket, '{"orders": [{"number": 1, "other": 1}]}', "$.orders[0].other"),
        (list[Order], '[{"number": 1, "items": [1]}]', "$[0].items[0]"),
        (dict[str, int], '{"a b": "x"}', "$[...]"),
        (ANY, '{"a": ', None),
        (Price, "", None),
        (str, '"\udfff"', None),
        (ANY, "[" * 5000, None),
    ],
)
def test_stored_data_that_does_not_fit_names_the_field(annotation: Any, data: str, path: str | None) -> None:
    """A payload of another shape is a PayloadError with the field's path."""
    with pytest.raises(PayloadError) as caught:
        Codec(annotation).load(data, "the payload of execution 'a'")
    assert caught.value.path == path
    assert str(caught.value).startswith("the payload of execution 'a'")
    assert path is None or str(caught.value).endswith(f" at {path}")


def test_pydantic_models_take_names_and_aliases() -> None:
    """Input that a person wrote with aliases fits, and so does what zart wrote itself."""
    codec = Codec(Order)
    assert codec.load('{"orderNumber": 7}', "payload") == codec.load('{"number": 7}', "payload")
    assert json.loads(codec.encode(ORDER, WHAT)).keys() == {"number", "items", "when"}


def test_a_secret_that_would_be_lost_is_refused() -> None:
    """pydantic dumps secrets as asterisks: that must not replace the secret unnoticed."""

    class Login(pydantic.BaseModel):
        user: str
        password: pydantic.SecretStr = pydantic.SecretStr("")

    class Account(pydantic.BaseModel):
        login: Login

    codec = Codec(Account)
    assert codec.store(Account(login=Login(user="a")), WHAT)[1].login.user == "a"
    with pytest.raises(SerializationError, match="secret"):
        codec.store(Account(login=Login(user="a", password=pydantic.SecretStr("x"))), WHAT)


class Money:
    def __init__(self, cents: int) -> None:
        self.cents = cents

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Money) and self.cents == other.cents

    __hash__ = None  # type: ignore[assignment]


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(custom_types, "_registered", {})


@pytest.mark.usefixtures("registered")
def test_further_types_can_be_taught() -> None:
    """register_type makes a type storable, alone and nested; before that it is refused when the codec is made."""
    with pytest.raises(UsageError, match=r"register_type\(Money, encode=\.\.\., decode=\.\.\.\)"):
        Codec(Money)
    register_type(Money, encode=lambda money: {"cents": money.cents}, decode=lambda raw: Money(raw["cents"]))
    assert Codec(Money).store(Money(3), WHAT) == (b'{"cents":3}', Money(3))
    assert Codec(dict[str, list[Money]]).store({"a": [Money(3)]}, WHAT)[1] == {"a": [Money(3)]}
    with pytest.raises(PayloadError, match="cents") as caught:
        Codec(list[Money]).load("[{}]", "payload")
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("kind", [int, Price, Address, dt.date, object, Colour, "text", list[int]])
def test_types_that_are_stored_already_cannot_be_taught(kind: Any) -> None:
    """A hook that would never be called is refused."""
    with pytest.raises(UsageError, match="register_type"):
        register_type(kind, encode=str, decode=str)


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (set[int], "return a sorted list"),
        (frozenset, "return a sorted list"),
        (dict[str, list[set[int]]], "return a sorted list"),
        (Money, "zart does not know"),
        (list[Money | None], "zart does not know"),
        (collections.abc.Iterator[int], r"Use list\[...\]"),
        (complex, "register_type"),
        (Price | Address, "cannot be stored"),
        (Order | Item, "custom type"),
        (list["Unresolved"], "Unresolved"),  # type: ignore[name-defined]  # noqa: F821
        (3, "cannot be stored"),
    ],
    ids=str,
)
def test_an_annotation_that_cannot_be_kept_is_refused_at_once(annotation: Any, text: str) -> None:
    """Not when the first value comes, but when the function is defined."""
    with pytest.raises(UsageError, match=text) as caught:
        Codec(annotation, "step 'charge' (shop.py:3)")
    assert str(caught.value).startswith("step 'charge' (shop.py:3): ")


def test_sets_may_come_in() -> None:
    """A payload may hold sets where the caller of the codec allows them; fields of classes always may."""
    assert Codec(set[int], allow_sets=True).load("[1, 2]", "payload") == {1, 2}
    assert Codec(Address).store(TYPED[19][1], WHAT)[1] == TYPED[19][1]


@pytest.mark.parametrize("annotation", [ANY, Any, object, NoReturn, TypeVar("X")])
def test_annotations_that_say_nothing(annotation: Any) -> None:
    """They are the same as none."""
    assert Codec(annotation).store({"a": [1]}, WHAT) == (b'{"a":[1]}', {"a": [1]})
    assert Codec(annotation).load("[1]", WHAT) == [1]


def test_the_decoded_value_is_a_fresh_one() -> None:
    """Changing what a body received does not change what the step kept."""
    kept = {"a": [1]}
    _, first = Codec(dict[str, list[int]]).store(kept, WHAT)
    first["a"].append(2)
    assert kept == {"a": [1]}
