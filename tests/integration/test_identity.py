"""A call keeps its identity: in loops, in branches, over replays, takeovers, deploys, and with every type of value."""

import asyncio
import dataclasses
import datetime as dt
import enum
import time
import uuid
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import attrs
import msgspec
import pydantic
import pytest

import zart
from tests.support.running import (
    bury_workers,
    fast,
    forgetful,
    query,
    stir,
    until,
    until_record,
    until_status,
    working,
)
from zart import durable, step
from zart._engine.claimer import Claimer

effects: list[Any] = []


@pytest.fixture(autouse=True)
def _no_effects() -> None:
    effects.clear()


@step("work")
async def work(label: str, hops: int = 0) -> str:
    for _ in range(hops):
        await asyncio.sleep(0)
    effects.append(label)
    return label.upper()


@step("fails")
async def fails(label: str) -> str:
    effects.append(label)
    raise LookupError(label)


async def keys_of(client: zart.Client, id: str) -> list[str]:
    return [record.key for record in (await client.history(id)).records]


# ------------------------------------------------------------ loops, failures


@durable("loop")
async def loop() -> list[str]:
    out = [await work(str(number)) for number in range(5)]
    await zart.wait_for_event("go")
    return out


@pytest.mark.parametrize("always_suspend", [False, True])
async def test_a_step_in_a_loop(dsn: str, always_suspend: bool) -> None:
    """Same step called in a loop: one record per iteration, in order, the same on every replay."""
    async with working(dsn, loop, always_suspend=always_suspend) as client:
        handle = await client.start(loop, id="loop")
        await until_status(client, "loop", "waiting")
        before = await keys_of(client, "loop")
        await client.offer_event("loop", "go")
        assert await handle.result(timeout="5s") == ["0", "1", "2", "3", "4"]
        assert before[:5] == ["work", "work#2", "work#3", "work#4", "work#5"]
        assert await keys_of(client, "loop") == before
        assert effects == ["0", "1", "2", "3", "4"]


@durable("catches")
async def catches() -> list[str]:
    out = [await work("before")]
    try:
        await fails("x")
    except LookupError as error:
        out.append(f"{type(error).__name__} {error}")
    out.append(await work("after"))
    await zart.wait_for_event("go")
    out.append(await work("last"))
    return out


async def test_a_caught_failure_is_replayed(dsn: str) -> None:
    """The body catches a step's failure and goes on; crash; replay: same class and message, not run again."""
    async with working(dsn, catches) as client:
        handle = await client.start(catches, id="catches")
        await until_status(client, "catches", "waiting")
        await bury_workers(dsn)
        await client.offer_event("catches", "go")
        assert await handle.result(timeout="5s") == ["BEFORE", "LookupError x", "AFTER", "LAST"]
        assert effects == ["before", "x", "after", "last"]


# ------------------------------------------------------------ deploys


def deployed(*calls: Callable[[], Any]) -> zart.Durable[[], list[str]]:
    """A version of one function: these calls, with a wait after the second."""

    @durable("deployed")
    async def body() -> list[str]:
        out = []
        for number, call in enumerate(calls):
            if number == 3:
                await zart.wait_for_event("go")
            out.append(await call())
        return out

    return body


def a() -> Any:
    return work.named("a")("a")


def b() -> Any:
    return work.named("b")("b")


def c() -> Any:
    return work.named("c")("c")


def d() -> Any:
    return work.named("d")("d")


def new() -> Any:
    return work.named("new")("new")


OLD = deployed(a, b, c, d)
RENAMED = deployed(a, new, c, d)
INSERTED = deployed(a, new, b, c, d)


async def recorded_by_old(dsn: str) -> list[tuple[Any, ...]]:
    """An execution of OLD that waits before its last step; returns its records."""
    async with working(dsn, OLD) as client:
        await client.start(OLD, id="x")
        await until_status(client, "x", "waiting")
    assert effects == ["a", "b", "c"]
    return await query(dsn, "SELECT * FROM zart_steps WHERE state = 'completed' ORDER BY seq")


@pytest.mark.parametrize("changed", [RENAMED, INSERTED], ids=["renamed", "inserted"])
async def test_changed_code_blocks_and_runs_nothing(dsn: str, changed: zart.Durable[[], list[str]]) -> None:
    """A step renamed or inserted: names both, blocked, the new one was not run; mended and resumed it completes."""
    records = await recorded_by_old(dsn)
    async with working(dsn, changed) as client:
        await client.offer_event("x", "go")
        with pytest.raises(zart.ExecutionBlocked) as caught:
            await client.handle(changed, "x").result(timeout="5s")
        assert caught.value.failure.type.endswith("NonDeterminismError")
        assert " new" in caught.value.failure.message
        assert " b " in caught.value.failure.message
        assert (await client.status("x")).status == "blocked"
        assert effects == ["a", "b", "c"]
        assert await query(dsn, "SELECT * FROM zart_steps WHERE state = 'completed' ORDER BY seq") == records
    async with working(dsn, OLD) as client:
        assert (await client.status("x")).status == "blocked"
        assert await client.resume("x", reason="mended")
        assert await client.handle(OLD, "x").result(timeout="5s") == ["A", "B", "C", "D"]
        assert effects == ["a", "b", "c", "d"]


async def test_changed_arguments_block_until_they_are_accepted(dsn: str) -> None:
    """A recorded step with other arguments: blocked, nothing run; `resume(accept_arguments=True)` lets it complete."""
    await recorded_by_old(dsn)
    other = deployed(a, lambda: work.named("b")("other"), c, d)
    async with working(dsn, other) as client:
        await client.offer_event("x", "go")
        with pytest.raises(zart.ExecutionBlocked, match="'other'|\"b\"|'b'") as caught:
            await client.handle(other, "x").result(timeout="5s")
        assert "accept" in caught.value.failure.message
        assert effects == ["a", "b", "c"]
        assert await client.resume("x")
        with pytest.raises(zart.ExecutionBlocked):
            await client.handle(other, "x").result(timeout="5s")
        assert await client.resume("x", accept_arguments=True)
        assert await client.handle(other, "x").result(timeout="5s") == ["A", "B", "C", "D"]
        assert effects == ["a", "b", "c", "d"]


async def test_a_call_that_is_gone_is_a_warning(dsn: str) -> None:
    """A recorded step that the code no longer calls, with later recorded ones after it: completes, with a warning."""
    await recorded_by_old(dsn)

    @durable("deployed")
    async def removed() -> list[str]:
        out = [await a(), await c()]
        await zart.wait_for_event("go")
        return [*out, await d()]

    async with working(dsn, removed) as client:
        await client.offer_event("x", "go")
        assert await client.handle(removed, "x").result(timeout="5s") == ["A", "C", "D"]
        assert any("step b" in note for note in (await client.history("x")).notes)
        assert effects == ["a", "b", "c", "d"]


async def test_last_calls_that_are_gone_are_a_warning(dsn: str) -> None:
    """A recorded step that the code no longer calls, with nothing new in its place: completes, with a warning."""
    await recorded_by_old(dsn)

    @durable("deployed")
    async def shorter() -> list[str]:
        return [await a(), await b()]

    async with working(dsn, shorter) as client:
        await client.offer_event("x", "go")
        assert await client.handle(shorter, "x").result(timeout="5s") == ["A", "B"]
        assert any("step c" in note for note in (await client.history("x")).notes)


# ------------------------------------------------------------ values


class Point(msgspec.Struct):
    x: int
    y: float = 0.5


@dataclasses.dataclass
class Address:
    street: str
    since: dt.date


@attrs.define
class Parcel:
    weight: Decimal
    tags: list[str]


class Customer(pydantic.BaseModel):
    name: str
    born: dt.datetime
    extra: dict[str, Decimal] = {}


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Nested(msgspec.Struct):
    points: dict[str, list[Point]]
    address: Address | None
    customer: Customer
    when: tuple[dt.datetime, dt.timedelta]


_NOW = dt.datetime(2024, 2, 29, 12, 30, 1, 123456, tzinfo=dt.UTC)
_CUSTOMER = Customer(name="Ann", born=_NOW, extra={"a": Decimal("1.10")})
VALUES: list[tuple[str, Any, Any]] = [
    ("struct", Point, Point(3, 1e16)),
    ("dataclass", Address, Address("Way 1", dt.date(2020, 1, 2))),
    ("attrs", Parcel, Parcel(Decimal("2.50"), ["a", "b"])),
    ("pydantic", Customer, _CUSTOMER),
    ("enum", Colour, Colour.BLUE),
    ("datetime", dt.datetime, _NOW),
    ("decimal", Decimal, Decimal("0.10")),
    ("uuid", uuid.UUID, uuid.UUID(int=77)),
    ("bytes", bytes, b"\x00\xff\x10"),
    ("tuple", tuple[int, str], (1, "one")),
    ("dict", dict[str, list[Point]], {"zeta": [Point(1)], "a": [Point(2), Point(3)]}),
    ("int-keys", dict[int, float], {2: -0.0, 1: 1e22}),
    ("optional", Point | None, None),
    (
        "nested",
        Nested,
        Nested(
            {"p": [Point(1), Point(2)]},
            Address("Way 2", dt.date(2021, 3, 4)),
            _CUSTOMER,
            (_NOW, dt.timedelta(1)),
        ),
    ),
]


@pytest.mark.parametrize(("kind", "value"), [row[1:] for row in VALUES], ids=[row[0] for row in VALUES])
async def test_values_come_back_as_they_were(dsn: str, kind: Any, value: Any) -> None:
    """As payload, step result and event: equal and of the same type on the first run and on replay."""
    seen: list[tuple[Any, ...]] = []

    @step("echo")
    async def echo(given: kind) -> kind:
        effects.append(given)
        return value

    @durable("typed")
    async def typed(payload: kind) -> kind:
        stepped = await echo(payload)
        seen.append((payload, stepped))
        event = await zart.wait_for_event("value", kind)
        seen.append((payload, stepped, event))
        await zart.wait_for_event("go")
        return event

    async with working(dsn, typed, config=forgetful()) as client:
        handle = await client.start(typed, value, id="typed")
        await until_status(client, "typed", "waiting")
        await client.offer_event("typed", zart.Event("value", kind), value)
        await until(lambda: len(seen) >= 3)
        await until_status(client, "typed", "waiting")
        await client.offer_event("typed", "go")
        result = await handle.result(timeout="5s")
    assert len(effects) == 1
    assert [len(row) for row in seen][:2] == [2, 2]
    assert [len(row) for row in seen].count(
        3
    ) >= 2  # what a row holds is compared below, each time that the body ran
    for got in [result, *effects, *(item for row in seen for item in row)]:
        assert type(got) is type(value)
        assert got == value
        if isinstance(value, dict):
            assert repr(got) == repr(value)  # the order of keys and the sign of zero, too


def deep() -> Any:
    value: Any = []
    for _ in range(600):
        value = [value]
    return value


UNSTORABLE: list[tuple[str, Any, Callable[[], Any], str]] = [
    ("nan", float, lambda: float("nan"), "NaN"),
    ("tuple", Any, lambda: (1, 2), "tuple"),
    ("set", Any, lambda: {1, 2}, "set"),
    ("datetime", Any, lambda: _NOW, "datetime"),
    ("object", Any, object, "object"),
    ("nul", str, lambda: "a\0b", "NUL"),
    ("surrogate", str, lambda: "a\ud800b", "surrogate"),
    ("deep", Any, deep, "deep"),
    ("big", str, lambda: "x" * (2 * 1024 * 1024), "1,048,576"),
]


@pytest.mark.parametrize(
    ("kind", "make", "told"), [r[1:] for r in UNSTORABLE], ids=[r[0] for r in UNSTORABLE]
)
async def test_a_value_that_cannot_be_stored(dsn: str, kind: Any, make: Callable[[], Any], told: str) -> None:
    """A step returns what cannot be stored: an error that names the step and the fix, never a hang; others go on."""

    @step("strange", retry="fixed(3, 1h)")
    async def strange() -> kind:
        return make()

    @durable("stores")
    async def stores(catch: bool) -> str:
        try:
            await strange()
        except zart.SerializationError:
            if not catch:
                raise
        return await work("after")

    async with working(dsn, stores) as client:
        first = await client.start(stores, False)
        second = await client.start(stores, True)
        with pytest.raises(zart.ExecutionFailed) as caught:
            await first.result(timeout="5s")
        failure = caught.value.failure
        assert failure.type.endswith("SerializationError")
        assert "strange" in failure.message
        assert told.lower() in failure.message.lower()
        assert len(failure.message) < 2000
        assert await second.result(timeout="5s") == "AFTER"


@pytest.mark.parametrize(
    ("kind", "make"),
    [r[1:3] for r in UNSTORABLE if r[0] != "object"],
    ids=[r[0] for r in UNSTORABLE if r[0] != "object"],
)
async def test_a_result_of_the_body_that_cannot_be_stored(
    dsn: str, kind: Any, make: Callable[[], Any]
) -> None:
    """A body returns what cannot be stored: the execution fails by name, never a hang."""

    @durable("returns")
    async def returns() -> kind:
        await work("a")
        return make()

    async with working(dsn, returns) as client:
        with pytest.raises(zart.ExecutionFailed, match="returns"):
            await client.start_and_wait(returns, timeout="5s")


@pytest.mark.parametrize(
    "message", ["a\0b", "a\ud800b", "x" * (2 * 1024 * 1024)], ids=["nul", "surrogate", "big"]
)
async def test_an_exception_that_cannot_be_stored_as_it_is(dsn: str, message: str) -> None:
    """An exception's text that the database would refuse still fails the step, and the body may catch it."""

    @step("raises")
    async def raises() -> None:
        raise ValueError(message)

    @durable("catches-strange")
    async def catches_strange(catch: bool) -> str:
        try:
            await raises()
        except ValueError:
            if not catch:
                raise
            return await work("caught")
        return "not raised"

    async with working(dsn, catches_strange) as client:
        caught, failed = await client.start(catches_strange, True), await client.start(catches_strange, False)
        assert await caught.result(timeout="5s") == "CAUGHT"
        with pytest.raises(zart.ExecutionFailed):
            await failed.result(timeout="5s")


@durable("derived")
async def derived() -> list[Any]:
    zart.set_data({"n": 1})
    out: list[Any] = [zart.now().isoformat(), str(zart.uuid4()), zart.random().random()]
    out.append(await zart.capture("clock", time.monotonic))
    await work("a")
    zart.set_data({"n": 2, "who": zart.execution_id()})
    out += [zart.now().isoformat(), str(zart.uuid4()), zart.data(dict[str, Any])]
    await zart.sleep("10ms")
    out += [zart.now().isoformat(), zart.context().run_id, zart.context().started_at.isoformat()]
    effects.append(list(out))
    await zart.wait_for_event("go")
    return out


@pytest.mark.parametrize("always_suspend", [False, True])
async def test_derived_values(dsn: str, always_suspend: bool) -> None:
    """The time, random values, captures and data that a body sees are the same on the first run and on replay."""
    async with working(dsn, derived, always_suspend=always_suspend) as client:
        first, second = await client.start(derived, id="one"), await client.start(derived, id="two")
        for id in ("one", "two"):
            await until_record(client, id, "go", "waiting")
            await client.offer_event(id, "go")
        results = [await first.result(timeout="5s"), await second.result(timeout="5s")]
    assert results[0][1:3] != results[1][1:3]
    for seen in (effect for effect in effects if effect != "a"):
        assert seen in results


@durable("long")
async def long(number: int) -> int:
    total = 0
    for _ in range(number):
        total += len(await filler())
    effects.append(total)
    await zart.wait_for_event("go")
    return total


@step("filler")
async def filler() -> str:
    effects.append("ran")
    return "x" * 20_000


@pytest.mark.not_in("suspending", reason="each of 900 records would have all of a long history replayed")
async def test_a_long_history(dsn: str) -> None:
    """A history of many megabytes is replayed whole, beside others, and no recorded step runs again."""
    async with working(dsn, long) as client:
        handles = [await client.start(long, number, id=f"l{number}") for number in (900, 1, 2)]
        for handle in handles:  # what is encrypted does not compress: megabytes are written then
            await until_status(client, handle.id, "waiting", within=60)
            await bury_workers(dsn)
        ran = effects.count("ran")
        for handle in handles:
            await client.offer_event(handle.id, "go")
        assert [await handle.result(timeout="40s") for handle in handles] == [18_000_000, 20_000, 40_000]
        assert effects.count("ran") == ran == 903


# ------------------------------------------------------------ branches


@durable("five")
async def five() -> list[str]:
    async def one(label: str, hops: int) -> str:
        return await work.named(f"step-{label}")(label, hops)

    first = await asyncio.gather(*(one(label, 10 - number * 2) for number, label in enumerate("abcde")))
    second = await asyncio.gather(*(work(label, 10 - number * 2) for number, label in enumerate("fghij")))
    return [*first, *second]


async def test_gather_gives_each_call_its_own_value(dsn: str) -> None:
    """Five different steps finishing in another order, resumed again and again: each call gets its own value."""
    async with working(dsn, five, always_suspend=True) as client:
        assert await client.start_and_wait(five, timeout="10s") == list("ABCDEFGHIJ")
        assert sorted(effects[:1]) <= ["e"]


async def test_gather_over_takeovers(dsn: str) -> None:
    """The same with workers that are taken for dead in the middle, again and again."""
    held = asyncio.Event()

    @step("slow-{label}")
    async def slow(label: str) -> str:
        if label in "bd" and not held.is_set():
            effects.append("hangs")
            await asyncio.Event().wait()
        effects.append(label)
        return label.upper()

    @durable("five-slow")
    async def five_slow() -> list[str]:
        return list(await asyncio.gather(*(slow(label) for label in "abcde")))

    async with working(dsn, five_slow) as client:
        handle = await client.start(five_slow)
        for round in range(1, 4):
            await until(lambda at=round: effects.count("hangs") >= 2 * at)
            for label in "ace":
                await until_record(client, handle.id, f"slow-{label}", "completed")
            if round == 3:
                held.set()
            await bury_workers(dsn)
        assert await handle.result(timeout="10s") == list("ABCDE")
    assert sorted(effect for effect in effects if effect != "hangs") == list("abcde")


async def test_who_was_taken_for_dead_records_nothing(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that was taken for dead in the middle of a step comes to its end: its result is refused, and the one
    of the worker that took over is the result."""
    ends = {1: asyncio.Event(), 2: asyncio.Event()}

    @step("contested")
    async def contested() -> int:
        effects.append("began")
        number = len(effects)
        await ends[number].wait()
        return number

    @durable("contest")
    async def contest() -> int:
        got = await contested()
        await zart.wait_for_event("go")
        return got

    slow = fast(heartbeat_interval="1s")  # so that it notices only when it writes
    async with working(dsn, contest, config=slow) as client:
        handle = await client.start(contest, id="c")
        await until(lambda: effects)
        ((first,),) = await query(dsn, "SELECT DISTINCT worker_id FROM zart_workers")
        look = Claimer.tick

        async def deaf_look(self: Claimer, **options: Any) -> Any:
            if self._worker == first:
                await asyncio.Event().wait()
            return await look(self, **options)

        monkeypatch.setattr(Claimer, "tick", deaf_look)
        await stir(dsn)
        async with working(dsn, contest):
            await query(dsn, "DELETE FROM zart_workers WHERE worker_id = %s", first)
            await until(lambda: len(effects) == 2)
            ends[1].set()
            await until(lambda: query(dsn, "SELECT 1 FROM zart_workers HAVING count(DISTINCT worker_id) = 2"))
            assert await query(dsn, "SELECT 1 FROM zart_steps WHERE state = 'completed'") == []
            ends[2].set()
            await until_record(client, "c", "contested", "completed")
            await client.offer_event("c", "go")
            assert await handle.result(timeout="5s") == 2


@durable("chains")
async def chains() -> list[list[str]]:
    async def chain(label: str) -> list[str]:
        out = []
        for number in range(4):
            out.append(await work(f"{label}{number}", 3 if label == "a" else 1))
            await zart.sleep("20ms" if label == "a" else "10ms")
        return out

    return list(await asyncio.gather(chain("a"), chain("b")))


@pytest.mark.parametrize("always_suspend", [False, True])
async def test_chains_never_swap(dsn: str, always_suspend: bool) -> None:
    """Two concurrent chains of steps, suspended in the middle: never swap."""
    async with working(dsn, chains, always_suspend=always_suspend) as client:
        assert await client.start_and_wait(chains, timeout="10s") == [
            ["A0", "A1", "A2", "A3"],
            ["B0", "B1", "B2", "B3"],
        ]


# ------------------------------------------------------------ a field is added


def version(order: type) -> zart.Durable[..., list[str]]:
    @step("ship")
    async def ship(given: order, note: str = "") -> str:
        effects.append(given.number)
        return f"{given.number}"

    @durable("ship-order")
    async def ship_order(given: order) -> list[str]:
        first = await ship(given)
        await zart.wait_for_event("go")
        return [first, await ship(given)]

    return ship_order


class OrderBefore(msgspec.Struct):
    number: int


class OrderAfter(msgspec.Struct):
    number: int
    plan: str = "free"
    tags: list[str] = []


async def test_a_field_with_a_default_is_added(dsn: str) -> None:
    """A field with a default is added to what steps take, under running executions: none is blocked; a start that is
    delivered again finds its execution."""
    before, after = version(OrderBefore), version(OrderAfter)
    ids = [f"order-{number}" for number in range(200)]
    async with working(dsn, before) as client:
        await client.start_many(before, {id: OrderBefore(number) for number, id in enumerate(ids)})

        async def waiting() -> bool:
            return (await client.stats()).by_status.get("waiting") == 200

        await until(waiting)
    async with working(dsn, after) as client:
        again = await client.start(after, OrderAfter(7), id="order-7")
        assert again.created is False
        with pytest.raises(zart.ExecutionConflict):
            await client.start(after, OrderAfter(7, plan="paid"), id="order-7")
        for id in ids:
            await client.offer_event(id, "go")
        for number, id in enumerate(ids):
            assert await client.handle(after, id).result(timeout="10s") == [f"{number}", f"{number}"]
    assert len(effects) == 400
