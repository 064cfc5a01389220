"""Values through every door: what is taken comes back as it was, and what is refused fails by name, alone."""

import asyncio
import contextlib
import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import zart
from tests.fuzz.examples import attempt, examples
from tests.fuzz.stage import ENDS, Stage
from tests.fuzz.strategies import cycle, deep, json_texts, texts, values
from tests.support.databases import Databases
from zart import ExecutionFailed, durable, step
from zart.codec import ANY, Codec
from zart.digest import payload_digest
from zart.errors import Failure, ZartError
from zart.failures import KnownExceptions, exception_from_json, exception_to_json, failure_from_json
from zart.twins import compare_trees

pytestmark = pytest.mark.filterwarnings(
    "ignore:Do not use the `random` module inside strategies"  # the worker beside the tests does
)

held: dict[str, Any] = {}
"""What a step is to return or raise: values that no argument could carry."""


@step("give")
async def give(name: str) -> Any:
    value = held[name]
    if isinstance(value, BaseException):
        raise value
    return value


@step("look")
async def look(value: Any) -> str:
    return type(value).__name__


@durable("carrier")
async def carrier(name: str) -> str:
    """Takes a value through every place of a body that stores one; says where it was refused."""
    refused: list[str] = []
    value = held[name]
    for place, action in (
        ("result", lambda: give(name)),
        ("argument", lambda: look(value)),
        ("capture", lambda: zart.capture("value", lambda: value)),
    ):
        try:
            await action()
        except zart.SerializationError:
            refused.append(place)
    try:
        zart.set_data(value)
    except (zart.SerializationError, zart.UsageError):
        refused.append("data")
    return ",".join(refused)


@durable("thrower")
async def thrower(name: str) -> None:
    await give(name)


@durable("taker")
async def taker(data: Any) -> Any:
    return await zart.wait_for_event("value")


@pytest.fixture(scope="module")
def carriers(databases: Databases, template: str) -> Iterator[Stage]:
    with (
        databases.database(template) as name,
        Stage(databases.address(name), carrier, thrower, taker) as running,
    ):
        yield running


@examples(300)
@given(values)
def test_a_codec_gives_back_what_it_takes(value: Any) -> None:
    """To the type, and on the first run as on a replay; all else is refused."""
    codec = Codec(ANY)
    stored, _ = attempt(codec.store, value, "it")
    if stored is not None:
        data, twin = stored
        again = codec.load(data, "it")
        assert compare_trees(value, twin) is None
        assert compare_trees(twin, again) is None
        assert b"\\u0000" not in data.replace(b"\\\\", b"")
        assert len(data) <= 1 << 20
        assert payload_digest(again) == payload_digest(twin)


@examples(25)
@given(values)
@example("\0")
@example(10**4299)
def test_a_body_may_meet_any_value(carriers: Stage, value: Any) -> None:
    """As a result, an argument, a capture, its data: refused where it cannot be, and the execution goes on."""
    held["value"] = value
    refused = carriers.call(carriers.client.start_and_wait, carrier, "value", timeout="20s")
    stored, _ = attempt(Codec(ANY).store, value, "it")
    assert ("result" in refused) == (stored is None)
    assert carriers.quiet() == []


@examples(40)
@given(values)
def test_a_client_sends_any_value_or_refuses_it(carriers: Stage, value: Any) -> None:
    """As an input and as an event; what arrives is what JSON makes of it."""

    async def send() -> Any:
        try:
            handle = await carriers.client.start(taker, value)
        except ZartError:
            handle = await carriers.client.start(taker, None)
        try:
            await carriers.client.offer_event(handle.id, "value", value)
            sent = True
        except ZartError:
            await carriers.client.offer_event(handle.id, "value", "refused")
            sent = False
        with contextlib.suppress(ExecutionFailed):
            assert (await handle.result(timeout="20s") == "refused") == (not sent) or value == "refused"

    carriers.run(send)


@examples(60)
@given(json_texts)
def test_sql_takes_any_json_or_refuses_it(carriers: Stage, text: str) -> None:
    """What PostgreSQL takes for jsonb is an input and an event; the execution ends in a state that says why."""
    try:
        ((id,),) = carriers.rows("SELECT zart_start('taker', payload => %s::text::jsonb)", (text,))
        carriers.rows("SELECT zart_offer_event(%s, 'value', %s::text::jsonb)", (id, text))
    except (
        psycopg.DataError,
        psycopg.errors.ProgramLimitExceeded,
        psycopg.OperationalError,
        UnicodeEncodeError,
    ):
        return
    assert carriers.until_ended(id) in ENDS
    carriers.call(carriers.client.history, id)
    carriers.rows(
        "SELECT payload::text, result::text, failure::text FROM zart_v_executions WHERE id = %s", (id,)
    )


# ---------------------------------------------------------------- exceptions


class Speechless(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Endless(Exception):
    def __str__(self) -> str:
        return str(self)


class Loaded(Exception):
    def __init__(self, value: Any) -> None:
        super().__init__(value, [value], {"value": value})
        self.__dict__.update({"value": value, "self": self, "\0": 1, "\ud800": 2, "args": 3, "__dict__": 4})


class Lying(Exception):
    @property
    def args(self) -> Any:  # type: ignore[override]
        raise RuntimeError("no arguments")


def nested(levels: int) -> Exception:
    error: Exception = ValueError("innermost")
    for _ in range(levels):
        error = ExceptionGroup("group", [error])
    return error


def chained(levels: int) -> Exception:
    error = ValueError(0)
    for number in range(levels):
        outer = ValueError(number)
        outer.__cause__ = error
        error = outer
    return error


def ring() -> Exception:
    one, other = ValueError(1), ValueError(2)
    one.__cause__, other.__cause__ = other, one
    return one


exceptions = st.one_of(
    st.builds(Loaded, values),
    st.builds(ValueError, values),
    st.builds(OSError, values, values),
    st.builds(KeyError, values),
    st.builds(nested, st.sampled_from([1, 30, 1000])),
    st.builds(chained, st.sampled_from([1, 1000])),
    st.builds(ring),
    st.sampled_from(
        [Speechless(), Endless(), Lying("x"), ValueError("x" * (1 << 19)), ValueError(*range(5000))]
    ),
    st.builds(lambda text: type("x" * 3000, (Exception,), {"__module__": text})(text), texts),
)


@examples(60)
@given(exceptions)
def test_any_exception_is_stored_and_made_again(error: Exception) -> None:
    """Within bounds, and as JSON that PostgreSQL takes."""
    try:
        raise error
    except Exception as raised:
        data = exception_to_json(raised, step="step", attempts=2)
    assert len(data) < 1 << 20
    json.loads(data)
    assert b"\\u0000" not in data
    assert isinstance(failure_from_json(data), Failure)
    made = exception_from_json(data, KnownExceptions(module_globals=globals()))
    assert isinstance(made, Exception)


@examples(25)
@given(exceptions)
def test_a_step_may_raise_anything(carriers: Stage, error: Exception) -> None:
    """Its execution fails with what can be told of it."""
    held["error"] = error
    with pytest.raises(ExecutionFailed) as failed:
        carriers.call(carriers.client.start_and_wait, thrower, "error", timeout="20s")
    assert failed.value.failure.type
    assert str(failed.value)
    assert carriers.quiet() == []


def test_others_go_on_beside_all_of_that(carriers: Stage) -> None:
    """A hundred bad results at once, and an innocent among them; no codec takes any of the values."""
    bad = [
        deep(10_000),
        "\0",
        "\ud800",
        float("nan"),
        10**5000,
        cycle(),
        {1, 2},
        "x" * (2 << 20),
        Speechless(),
        nested(50),
    ]
    for value in bad[:8]:
        assert attempt(Codec(ANY).store, value, "it")[0] is None
    held.update({f"bad {number}": bad[number % len(bad)] for number in range(100)})

    async def run() -> None:
        handles = [await carriers.client.start(thrower, f"bad {number}") for number in range(100)]
        results = await asyncio.gather(
            *(handle.result(timeout="30s") for handle in handles), return_exceptions=True
        )
        assert {type(result) for result in results} == {ExecutionFailed}

    carriers.run(run)
    carriers.check()
    assert carriers.quiet() == []
