"""Scheduled steps: each is work of its own, done by any worker; the body waits for their handles."""

import asyncio
import datetime as dt
from contextlib import AsyncExitStack

import pytest

import zart
from tests.support.running import (
    bury_workers,
    fast,
    nothing_left,
    query,
    shift_clock,
    until,
    until_record,
    until_status,
    worker_for,
    working,
)
from zart import Client, durable, step

ran: list[object] = []
gates: dict[str, asyncio.Event] = {}


@pytest.fixture(autouse=True)
def _fresh() -> None:
    ran.clear()
    gates.clear()


@step("double")
async def double(number: int) -> int:
    ran.append(number)
    return number * 2


@durable("fan-out")
async def fan_out(width: int) -> list[int]:
    doubled = await zart.wait_all(*[zart.schedule_step(double, number) for number in range(width)])
    more = await zart.wait_all(*[zart.schedule_step(double, number) for number in doubled])
    return [await double(number) for number in more]


async def test_fan_outs_follow_each_other_and_plain_steps_follow_them(dsn: str) -> None:
    """Steps are scheduled, waited for, and scheduled again; each is recorded once and runs once."""
    async with working(dsn, fan_out) as client:
        assert await client.start_and_wait(fan_out, 6) == [8 * n for n in range(6)]
    assert len(ran) == 18
    await nothing_left(dsn)


async def test_two_hundred_scheduled_steps_on_three_workers_of_which_one_is_lost(dsn: str) -> None:
    """All are done, each recorded once, although a worker is taken for dead in the middle."""
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(Client(dsn))
        for _ in range(3):
            await stack.enter_async_context(worker_for(dsn, fan_out, config=fast(max_concurrent_tasks=10)))
        handle = await client.start(fan_out, 200, id="wide")
        await until(lambda: len(ran) > 60)
        await query(
            dsn, "DELETE FROM zart_workers WHERE worker_id = (SELECT min(worker_id) FROM zart_workers)"
        )
        assert await handle.result(timeout="60s") == [8 * n for n in range(200)]
        rows = await query(
            dsn, "SELECT count(*), count(DISTINCT (path, name, occurrence)), count(seq) FROM zart_steps"
        )
        assert rows == [(600, 600, 600)]
    await nothing_left(dsn)


@step("shaky", retry="exponential(3, 10ms)")
async def shaky(name: str) -> str:
    ran.append(name)
    if ran.count(name) < 3:
        raise ConnectionError(name)
    return name


@step("broken", retry="fixed(1, 1ms)")
async def broken(name: str) -> str:
    ran.append(name)
    raise LookupError(name)


@step("slow", timeout="20ms")
async def slow() -> None:
    await asyncio.sleep(60)


@durable("failing")
async def failing() -> list[str]:
    told: list[str] = []
    handles = [zart.schedule_step(shaky, "a"), zart.schedule_step(broken, "b")]
    late = zart.schedule_step(slow)
    for handle in handles:
        try:
            told.append(await handle)
        except LookupError as error:
            told.append(f"{error.args[0]} was not found")
    try:
        await late
    except zart.StepTimeout as error:
        told.append(type(error).__name__)
    values = await zart.wait_all(*handles, return_exceptions=True)
    told.append(", ".join(type(value).__name__ for value in values))
    return told


@pytest.mark.parametrize("always_suspend", [False, True])
async def test_retries_time_limits_and_errors_are_as_in_an_inline_step(
    dsn: str, always_suspend: bool
) -> None:
    """A scheduled step is tried again, cut at its limit, and raises what it raised, in the body that awaits it."""
    async with working(dsn, failing, always_suspend=always_suspend) as client:
        assert await client.start_and_wait(failing, id="f") == [
            "a",
            "b was not found",
            "StepTimeout",
            "str, LookupError",
        ]
        history = await client.history("f")
    assert {record.name: record.attempts for record in history.records if record.kind == "step"} == {
        "shaky": 3,
        "broken": 2,
        "slow": 1,
    }
    assert sum("attempt 1 of 'shaky' failed: ConnectionError" in note for note in history.notes) == 1
    assert ran.count("a") == 3
    assert ran.count("b") == 2
    await nothing_left(dsn)


@step("gated")
async def gated(name: str) -> str:
    ran.append(name)
    await gates.setdefault(name, asyncio.Event()).wait()
    return name


@durable("unawaited")
async def unawaited() -> str:
    zart.schedule_step(gated, "left")
    return "returned"


async def test_a_step_that_nobody_awaits_ends_before_the_execution(dsn: str) -> None:
    """Scheduled and never awaited: it runs, is listed, and the outcome comes after it."""
    async with working(dsn, unawaited) as client:
        handle = await client.start(unawaited, id="u")
        await until(lambda: ran == ["left"])
        await until_status(client, "u", "waiting")
        status = await client.status("u")
        assert status.waiting_for == "step gated"
        gates["left"].set()
        assert await handle.result(timeout="10s") == "returned"
        assert [(r.key, r.state) for r in (await client.history("u")).records] == [("gated", "completed")]
    assert ran == ["left"]
    await nothing_left(dsn)


@durable("race")
async def race() -> list[str]:
    handles = [zart.schedule_step(gated, name) for name in ("a", "b")]
    winner = await zart.wait_any(*handles)
    first = await winner
    await double(1)
    return [first, *(await zart.wait_all(*handles))]


async def test_the_winner_stays_the_winner_on_replay(dsn: str) -> None:
    """wait_any returns the handle that ended first, and the same one when the body is replayed later."""
    async with working(dsn, race) as client:
        handle = await client.start(race, id="r")
        await until(lambda: sorted(map(str, ran)) == ["a", "b"])
        gates["b"].set()
        await until_record(client, "r", "double", "completed")
        gates["a"].set()
        assert await handle.result(timeout="10s") == ["b", "a", "b"]
    await nothing_left(dsn)


@durable("mixed-race")
async def mixed_race(limit: str) -> str:
    event = zart.event("answer", str)
    timer = zart.timer(limit)
    winner = await zart.wait_any(event, timer)
    if winner is event:
        return f"event {await event}"
    assert await event.cancel()
    assert not await timer.cancel()
    return f"timer, then {await zart.wait_for_event('answer', str)}"


@pytest.mark.parametrize("always_suspend", [False, True])
async def test_events_and_timers_have_handles_too(dsn: str, always_suspend: bool) -> None:
    """A race of an event and a timer; what loses is cancelled, and its event goes to the next who waits."""
    async with working(dsn, mixed_race, always_suspend=always_suspend) as client:
        first = await client.start(mixed_race, "1h", id="event")
        await client.offer_event("event", "answer", "yes")
        assert await first.result(timeout="10s") == "event yes"
        second = await client.start(mixed_race, "1ms", id="timer")
        await until_record(client, "timer", "timer", "completed")
        await client.offer_event("timer", "answer", "late")
        assert await second.result(timeout="10s") == "timer, then late"
    await nothing_left(dsn)


@durable("mapped")
async def mapped(width: int) -> list[str]:
    return await zart.map(limited, [f"item-{n}" for n in range(width)], limit=3)


running: list[int] = []


@step("limited-{name}")
async def limited(name: str) -> str:
    running.append(1)
    ran.append(len(running))
    await asyncio.sleep(0.001)
    running.pop()
    return name.upper()


async def test_a_map_keeps_its_limit_and_its_order(dsn: str) -> None:
    """Never more than `limit` at once, on several workers; the values come in the order of the items."""
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(Client(dsn))
        for _ in range(2):
            await stack.enter_async_context(worker_for(dsn, mapped))
        assert await client.start_and_wait(mapped, 40) == [f"ITEM-{n}" for n in range(40)]
    assert len(ran) == 40
    assert max(int(str(n)) for n in ran) <= 3
    await nothing_left(dsn)


@durable("cancels-one")
async def cancels_one() -> list[object]:
    handles = [zart.schedule_step(gated, "kept"), zart.schedule_step(gated, "dropped")]
    await zart.wait_for_event("now")
    told: list[object] = [await handles[1].cancel()]
    try:
        await handles[1]
    except zart.ExecutionCancelled as error:
        told.append(type(error).__name__)
    told.append(await handles[1].cancel())
    told.append(await handles[0])
    return told


async def test_a_handle_cancels_its_step(dsn: str) -> None:
    """A running step is cancelled promptly through its handle; the others go on."""
    async with working(dsn, cancels_one) as client:
        handle = await client.start(cancels_one, id="c")
        await until(lambda: len(ran) == 2)
        await client.offer_event("c", "now")
        await until_record(client, "c", "gated#2", "cancelled")
        gates["kept"].set()
        assert await handle.result(timeout="10s") == [True, "ExecutionCancelled", False, "kept"]
    await nothing_left(dsn)


async def test_a_cancelled_execution_takes_its_steps_along(dsn: str) -> None:
    """Steps that run are cancelled, steps that have not begun never run; the outcome comes after them."""
    async with working(dsn, fan_in, config=fast(max_concurrent_tasks=3)) as client:
        handle = await client.start(fan_in, 6, id="x")
        await until(lambda: len(ran) == 3)
        await client.cancel("x", reason="enough")
        with pytest.raises(zart.ExecutionCancelled):
            await handle.result(timeout="10s")
        states = {record.state for record in (await client.history("x")).records if record.kind == "step"}
    assert states == {"cancelled"}
    assert len(ran) == 3
    await nothing_left(dsn)


@durable("fan-in")
async def fan_in(width: int) -> list[str]:
    return await zart.map(gated, [f"g{n}" for n in range(width)])


async def test_a_step_that_is_not_registered_is_refused_at_the_call(dsn: str) -> None:
    """What no other worker could find is not given away."""
    async with working(dsn, spontaneous) as client:
        with pytest.raises(zart.ExecutionFailed, match="not registered"):
            await client.start_and_wait(spontaneous)
    await nothing_left(dsn)


@durable("spontaneous")
async def spontaneous() -> int:
    made = step("made")(lambda: 1)
    return await zart.schedule_step(made)


async def test_arguments_come_as_they_went(dsn: str) -> None:
    """Each argument travels as its parameter says, options of the call along with it."""
    when = dt.datetime(2030, 1, 2, tzinfo=dt.UTC)
    async with working(dsn, typed) as client:
        assert await client.start_and_wait(typed, when) == "2030-01-02 (1, 2) {'a': 3} True"


@step("typed")
async def typed_step(when: dt.datetime, pair: tuple[int, int], /, *, flag: bool = False, **rest: int) -> str:
    assert isinstance(when, dt.datetime)
    return f"{when:%Y-%m-%d} {pair} {rest} {flag}"


@durable("typed")
async def typed(when: dt.datetime) -> str:
    varied = typed_step.with_options(retry="fixed(1, 1ms)", timeout="5s").named("typed-under-another-name")
    return await zart.schedule_step(varied, when, (1, 2), flag=True, a=3)


async def test_a_worker_that_dies_in_the_first_attempt_burns_no_other(dsn: str) -> None:
    """The attempt is made again, and it is the first one still."""
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(Client(dsn))
        await stack.enter_async_context(worker_for(dsn, counts_attempts))
        handle = await client.start(counts_attempts)
        await until(lambda: ran == [1])
        await bury_workers(dsn)
        await until(lambda: ran == [1, 1])
        gates["attempt"].set()
        assert await handle.result(timeout="10s") == 1


@step("numbered-attempt", retry="fixed(3, 1ms)")
async def numbered_attempt() -> int:
    ran.append(zart.step_context().step_attempt)
    await gates.setdefault("attempt", asyncio.Event()).wait()
    return zart.step_context().step_attempt


@durable("counts-attempts")
async def counts_attempts() -> int:
    return await zart.schedule_step(numbered_attempt)


@durable("one-away")
async def one_away() -> str:
    try:
        return await zart.schedule_step(gated, "away")
    except zart.ZartError as error:
        return f"{type(error).__name__}: {error}"


async def given_away(dsn: str, client: Client) -> None:
    """An execution whose scheduled step nobody has claimed so far: its worker is gone."""
    async with worker_for(dsn, one_away, config=fast(max_concurrent_tasks=1)):
        await client.start(one_away, id="x")
        await until(lambda: ran == ["away"])
    assert await query(dsn, "SELECT state FROM zart_tasks WHERE step_name IS NOT NULL") == [("ready",)]


async def test_a_step_whose_workers_die_again_and_again_fails(dsn: str) -> None:
    """It is not blocked for ever: the body that scheduled it is told, and may go on."""
    async with Client(dsn) as client:
        await given_away(dsn, client)
        await query(dsn, "UPDATE zart_tasks SET recoveries = 99 WHERE step_name IS NOT NULL")
        async with worker_for(dsn, one_away):
            told = await client.handle(one_away, "x").result(timeout="10s")
    assert told.startswith("ZartError: scheduled step gated of 'x' was taken over 99 times in a row")
    await nothing_left(dsn)


@pytest.mark.parametrize(
    "damage", ["null", "7", '{"args": 5}', '{"args": ["a", "b"]}', '{"kwargs": {"x": 1}}']
)
@pytest.mark.stores_plain(reason="edits an input by itself")
async def test_a_stored_call_that_somebody_has_edited_fails_by_name(dsn: str, damage: str) -> None:
    """Neither the worker nor the execution is lost over it."""
    async with Client(dsn) as client:
        await given_away(dsn, client)
        await query(dsn, "UPDATE zart_steps SET input = %s::json WHERE name = 'gated'", damage)
        async with worker_for(dsn, one_away):
            told = await client.handle(one_away, "x").result(timeout="10s")
    assert told.startswith("PayloadError: ")
    assert "'x': scheduled step gated" in told
    await nothing_left(dsn)


@durable("limits-its-patience")
async def limits_its_patience() -> list[str]:
    handles = [zart.schedule_step(gated, name) for name in ("a", "b")]
    try:
        async with zart.timeout("2h"):
            await asyncio.gather(*handles)
    except TimeoutError:
        return ["too late", *(await zart.wait_all(*handles))]
    return ["in time"]


async def test_a_time_limit_around_handles(dsn: str) -> None:
    """The wait is cut at its limit, durably; what was waited for goes on, and can be waited for again."""
    async with working(dsn, limits_its_patience) as client:
        handle = await client.start(limits_its_patience, id="l")
        await until(lambda: len(ran) == 2)
        await until_status(client, "l", "waiting")
        await shift_clock(dsn, dt.timedelta(hours=3))
        await until_record(client, "l", "timeout", "completed")
        for gate in gates.values():
            gate.set()
        assert await handle.result(timeout="10s") == ["too late", "a", "b"]
    await nothing_left(dsn)
