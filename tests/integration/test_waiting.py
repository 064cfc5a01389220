"""Sleeps, events, time limits: they outlast workers, hold nothing meanwhile, and behave as in ordinary code."""

import asyncio
import contextlib
import datetime as dt
import threading
import time
from typing import Any

import anyio
import psycopg
import pytest

import zart
from tests.support import modes
from tests.support.running import (
    bury_workers,
    fast,
    forgetful,
    query,
    shift_clock,
    until,
    until_record,
    until_status,
    working,
)
from zart import durable, step
from zart._engine.claimer import Claimer
from zart._engine.claiming import Claiming
from zart._engine.holding import Holding

effects: list[Any] = []
HOUR = dt.timedelta(hours=1)


@pytest.fixture(autouse=True)
def _no_effects() -> None:
    effects.clear()


@step("work")
async def work(label: str) -> str:
    effects.append(label)
    return label.upper()


async def count(client: zart.Client, status: str) -> int:
    return (await client.stats()).by_status.get(status, 0)


# ------------------------------------------------------------ sleeping


@durable("sleeper")
async def sleeper(seconds: float) -> str:
    await work("before")
    await zart.sleep(seconds)
    return await work("after")


async def test_a_sleep_outlasts_its_worker(dsn: str) -> None:
    """Sleep, the worker dies in the middle, another starts later: it wakes at its time, not later."""
    start = time.monotonic()
    async with working(dsn, sleeper) as client:
        handle = await client.start(sleeper, 1.5, id="s")
        await until_status(client, "s", "waiting")
        ((due,),) = await query(dsn, "SELECT until FROM zart_steps WHERE kind = 'timer'")
        await bury_workers(dsn)
    assert time.monotonic() - start < 1.5
    async with working(dsn, sleeper) as client:
        assert await client.handle(sleeper, handle.id).result(timeout="5s") == "AFTER"
        ((woken,),) = await query(dsn, "SELECT finished_at FROM zart_steps WHERE kind = 'timer'")
    assert dt.timedelta() <= woken - due < dt.timedelta(seconds=0.5)
    assert effects == ["before", "after"]


async def test_a_years_sleep(dsn: str) -> None:
    """A year's sleep is fine: not a second before its end, and at its end at once."""
    year = 365 * 24 * 3600.0
    async with working(dsn, sleeper) as client:
        handle = await client.start(sleeper, year, id="s")
        await until_status(client, "s", "waiting")
        await shift_clock(dsn, dt.timedelta(seconds=year - 30))
        with pytest.raises(zart.ResultTimeout):
            await handle.result(timeout="300ms")
        assert (await handle.status()).status == "waiting"
        await shift_clock(dsn, dt.timedelta(seconds=31))
        assert await handle.result(timeout="5s") == "AFTER"
    assert effects == ["before", "after"]


async def test_sleep_until(dsn: str) -> None:
    @durable("until")
    async def sleeps_until(when: dt.datetime) -> bool:
        await zart.sleep_until(when)
        await zart.sleep_until(dt.datetime(2001, 1, 1, tzinfo=dt.UTC))  # past: at once
        return zart.now() >= when

    async with working(dsn, sleeps_until) as client:
        when = dt.datetime.now(dt.UTC) + 5 * HOUR
        handle = await client.start(sleeps_until, when, id="u")
        await until_status(client, "u", "waiting")
        await shift_clock(dsn, 5 * HOUR)
        assert await handle.result(timeout="5s") is True


async def test_many_sleepers_wake_without_a_stampede(dsn: str) -> None:
    """1,500 sleepers wake at one moment: never more at once than there are slots, and all of them wake."""
    running = peak = 0

    @step("awake")
    async def awake() -> None:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0)
        running -= 1

    @durable("herd")
    async def herd(number: int) -> None:
        await zart.sleep("1h")
        await awake()

    async with working(dsn, herd, config=fast(max_concurrent_tasks=50)) as client:
        handles = await client.start_many(herd, {f"h-{number}": number for number in range(1500)})
        await until(lambda: _all(client, "waiting", 1500), within=30)
        await shift_clock(dsn, HOUR)
        await asyncio.gather(*(handle.result(timeout="30s") for handle in handles))
        assert 1 <= peak <= 50
        ((claims,),) = await query(dsn, "SELECT count(*) FROM zart_history WHERE what = 'takeover'")
        assert claims == 0


async def _all(client: zart.Client, status: str, number: int) -> bool:
    return await count(client, status) == number


# ------------------------------------------------------------ events


@durable("collector")
async def collector(number: int) -> list[Any]:
    await work("first")
    return [await zart.wait_for_event("item") for _ in range(number)]


async def test_events_before_the_body_first_ran(dsn: str) -> None:
    """Events offered before the body first ran, and in a burst: none lost, order kept, each consumed once."""
    async with zart.Client(dsn) as client:
        await client.start(collector, 60, id="c")
        for number in range(60):
            assert await client.offer_event("c", "item", number) is True
    async with working(dsn, collector) as client:
        assert await client.handle(collector, "c").result(timeout="30s") == list(range(60))
        assert await query(dsn, "SELECT count(*) FROM zart_events WHERE consumed_at IS NULL") == [(0,)]


async def test_events_while_it_waits_and_runs(dsn: str) -> None:
    """Events that arrive while the body runs, waits and is being suspended: none lost, order kept."""
    async with working(dsn, collector) as client:
        handle = await client.start(collector, 40, id="c")
        for number in range(40):
            await client.offer_event("c", "item", number)
            if number % 10 == 0:
                await until_status(client, "c", "waiting")
        assert await handle.result(timeout="5s") == list(range(40))


async def test_an_event_offered_twice(dsn: str) -> None:
    """With a dedup key the second offer adds nothing; the wait gets it once."""
    async with working(dsn, collector) as client:
        handle = await client.start(collector, 2, id="c")
        assert await client.offer_event("c", "item", "one", dedup="k1") is True
        await until(lambda: effects)
        assert await client.offer_event("c", "item", "again", dedup="k1") is False
        await until_status(client, "c", "waiting")
        assert await client.offer_event("c", "item", "again", dedup="k1") is False
        assert await client.offer_event("c", "item", "two", dedup="k2") is True
        assert await handle.result(timeout="5s") == ["one", "two"]


async def test_events_over_takeovers_are_consumed_once(dsn: str) -> None:
    """Workers are taken for dead between the events of a burst: each is consumed once, in order."""
    async with working(dsn, collector) as client:
        handle = await client.start(collector, 30, id="c")
        for number in range(30):
            await client.offer_event("c", "item", number)
            if number % 7 == 3:
                await bury_workers(dsn)
        assert await handle.result(timeout="10s") == list(range(30))


@pytest.mark.not_in("suspending", "twice", reason="counts how often the body runs")
async def test_a_misfit_event_is_consumed_and_raises(dsn: str) -> None:
    """A payload that does not fit is consumed and raises PayloadError at the wait, also on replay."""

    @durable("typed")
    async def typed() -> list[Any]:
        out: list[Any] = []
        for _ in range(2):
            try:
                out.append(await zart.wait_for_event("n", int))
            except zart.PayloadError as error:
                out.append(type(error).__name__)
        effects.append(list(out))
        await zart.wait_for_event("go")
        return out

    async with working(dsn, typed, config=forgetful()) as client:
        handle = await client.start(typed, id="t")
        await client.offer_event("t", "n", "text")
        await client.offer_event("t", "n", 7)
        await until(lambda: effects)  # it may have waited for either of them
        await until_status(client, "t", "waiting")
        await client.offer_event("t", "go")
        assert await handle.result(timeout="5s") == ["PayloadError", 7]
        assert effects == [["PayloadError", 7]] * 2


@durable("race")
async def race(limit: float) -> str:
    try:
        won = await zart.wait_for_event("e", str, timeout=limit)
    except zart.EventTimeout:
        won = "late"
    effects.append((zart.execution_id(), won))
    await work(won)
    await zart.wait_for_event("go")
    return won


async def test_event_against_timeout(dsn: str) -> None:
    """Event and timeout race: one side wins, replay keeps the winner, the body may catch the timeout and go on."""
    ids = [f"r-{number}" for number in range(40)]
    async with working(dsn, race) as client:
        handles = [await client.start(race, 0.02 + number * 0.005, id=id) for number, id in enumerate(ids)]
        for id in ids:
            await client.offer_event(id, "e", "event")
        for id in ids:
            await until(lambda id=id: any(effect[0] == id for effect in effects))
            await client.offer_event(id, "go")
        results = [await handle.result(timeout="10s") for handle in handles]
        for id, result in zip(ids, results, strict=True):
            assert {effect[1] for effect in effects if effect[0] == id} == {result}
        assert set(results) <= {"late", "event"}


@pytest.mark.parametrize("buffered", [True, False])
async def test_a_buffered_event_wins_over_a_due_timeout(dsn: str, buffered: bool) -> None:
    """Both there when the worker looks: the event wins. No event: the timeout is raised, once, also on replay."""
    async with working(dsn, race, config=forgetful()) as client:
        handle = await client.start(race, 3600, id="r")
        await until_status(client, "r", "waiting")
    async with zart.Client(dsn) as client:
        await shift_clock(dsn, 2 * HOUR)
        if buffered:
            await client.offer_event("r", "e", "event")
    async with working(dsn, race, config=forgetful()) as client:
        await until(lambda: effects)
        await until_status(client, "r", "waiting")
        if not buffered:
            await client.offer_event("r", "e", "too late for this wait")
        await client.offer_event("r", "go")
        won = "event" if buffered else "late"
        assert await client.handle(race, handle.id).result(timeout="5s") == won
    assert effects[:2] == [("r", won), won]
    assert set(effects[2:]) == {("r", won)}


@pytest.mark.not_in("suspending", "twice", reason="counts how often the body runs")
async def test_waits_for_one_name_are_served_in_call_order(dsn: str) -> None:
    """Two waits for one name in two branches: the first call gets the first event, live and on replay."""

    @durable("both-wait")
    async def both_wait() -> list[Any]:
        async def listen(label: str) -> str:
            got = await zart.wait_for_event("item", str)
            return await work(f"{label}-{got}")

        out = await asyncio.gather(listen("a"), listen("b"), listen("c"))
        effects.append(list(out))
        await zart.wait_for_event("go")
        return list(out)

    async with working(dsn, both_wait, config=forgetful()) as client:
        handle = await client.start(both_wait, id="b")
        await until_status(client, "b", "waiting")
        for payload in ("1", "2", "3"):
            await client.offer_event("b", "item", payload)
        await until_record(client, "b", "go", "waiting")
        await client.offer_event("b", "go")
        assert await handle.result(timeout="5s") == ["A-1", "B-2", "C-3"]
    assert [effect for effect in effects if isinstance(effect, list)] == [["A-1", "B-2", "C-3"]] * 2


@pytest.mark.parametrize("always_suspend", [False, True])
async def test_an_event_for_a_wait_that_was_cancelled(
    dsn: str, monkeypatch: pytest.MonkeyPatch, always_suspend: bool
) -> None:
    """A step ends and an event arrives in one batch, and the body then cancels the wait, as it does after
    FIRST_COMPLETED: the event is not lost, the next wait has it, also on replay."""
    gate = asyncio.Event()

    @step("gated")
    async def gated() -> str:
        await gate.wait()
        return "stepped"

    @durable("first-of-two")
    async def first_of_two() -> list[str]:
        both = [asyncio.create_task(gated()), asyncio.create_task(zart.wait_for_event("item", str))]
        done, pending = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        out = [task.result() for task in done]
        out.append(await zart.wait_for_event("item", str))
        effects.append(list(out))
        out.append(await zart.wait_for_event("item", str))
        return out

    held_back: list[Any] = []
    write = Holding.write

    def in_one_batch(self: Holding, entry: Any) -> None:
        if entry.seq in (1, 2):
            held_back.append(entry)
            if len(held_back) == 2:
                for each in held_back:
                    write(self, each)
        else:
            write(self, entry)

    monkeypatch.setattr(Holding, "write", in_one_batch)
    async with working(dsn, first_of_two, always_suspend=always_suspend) as client:
        handle = await client.start(first_of_two, id="f")
        await until_record(client, "f", "item", "waiting")
        gate.set()
        await until(lambda: held_back)
        await client.offer_event("f", "item", "one")
        await until_record(client, "f", "item#3", "waiting")
        await bury_workers(dsn)
        await client.offer_event("f", "item", "two")
        assert await handle.result(timeout="5s") == ["stepped", "one", "two"]
    assert set(map(tuple, effects)) == {("stepped", "one")}
    assert len(held_back) == 2


async def test_no_time_to_wait(dsn: str) -> None:
    """With a timeout of zero a buffered event is taken, and none raises at once; a sleep of zero goes on."""

    @durable("impatient")
    async def impatient() -> list[Any]:
        out: list[Any] = []
        for _ in range(3):
            await zart.sleep(0)
            try:
                out.append(await zart.wait_for_event("item", timeout=0))
            except zart.EventTimeout:
                out.append("none")
        return out

    async with zart.Client(dsn) as client:
        await client.start(impatient, id="i")
        await client.offer_event("i", "item", 1)
        await client.offer_event("i", "item", 2)
    async with working(dsn, impatient) as client:
        assert await client.handle(impatient, "i").result(timeout="5s") == [1, 2, "none"]


async def test_events_to_nobody(dsn: str) -> None:
    """Event to an unknown execution: not found; to a finished one: a clear refusal."""
    async with working(dsn, collector) as client:
        with pytest.raises(zart.ExecutionNotFound, match="'nobody'"):
            await client.offer_event("nobody", "item", 1)
        await client.start_and_wait(collector, 0, id="done", timeout="5s")
        with pytest.raises(zart.ExecutionFinished, match="'done'"):
            await client.offer_event("done", "item", 1)


async def test_an_event_in_the_callers_transaction(dsn: str) -> None:
    """Offered inside the caller's transaction: rolled back, nothing; committed, it arrives. The same from SQL."""
    async with working(dsn, collector) as client:
        handle = await client.start(collector, 2, id="c")
        await until_status(client, "c", "waiting")
        async with await psycopg.AsyncConnection.connect(dsn) as connection:
            for payload, commit in (("no", False), ("python", True)):
                await client.offer_event("c", "item", payload, connection=connection)
                await (connection.commit() if commit else connection.rollback())
            for payload, commit in (('"no"', False), ('"sql"', True)):
                await connection.execute("SELECT zart_offer_event('c', 'item', %s::jsonb)", (payload,))
                await (connection.commit() if commit else connection.rollback())
        assert await handle.result(timeout="5s") == ["python", "sql"]


async def test_an_open_transaction_delays_nobody_else(dsn: str) -> None:
    """psql holds `BEGIN; SELECT zart_offer_event(…)` open: no other execution is late; after commit it arrives."""
    async with working(dsn, collector) as client:
        held = await client.start(collector, 1, id="held")
        await until_status(client, "held", "waiting")
        async with await psycopg.AsyncConnection.connect(dsn) as connection:
            await connection.execute("SELECT zart_offer_event('held', 'item', '1')")
            for number in range(20):
                other = await client.start(collector, 1, id=f"other-{number}")
                await client.offer_event(other.id, "item", number)
                assert await other.result(timeout="2s") == [number]
            # The held one itself can be steered meanwhile.
            await client.offer_event("held", "item", "from the client")
            assert await held.result(timeout="2s") == ["from the client"]
            again = await client.start(collector, 1, id="again")
            await until_status(client, "again", "waiting")
            await connection.rollback()
            await connection.execute("SELECT zart_offer_event('again', 'item', '2')")
            await until_status(client, "again", "waiting")
            await connection.commit()
            started = time.monotonic()
            assert await again.result(timeout="5s") == [2]
            assert time.monotonic() - started < 1


# ------------------------------------------------------------ what a wait holds


async def test_waiting_holds_nothing(dsn: str) -> None:
    """With max_concurrent_tasks=1, 1,000 waiting executions and one runnable: the runnable runs at once; a waiting
    one holds no slot, connection or thread."""

    @durable("quick")
    async def quick() -> str:
        return await work("quick")

    @durable("patient")
    async def patient(number: int) -> None:
        await zart.wait_for_event("never")

    connections = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    async with working(dsn, quick, patient) as client:
        await client.start_many(patient, {f"p-{number}": number for number in range(1000)})
        await until(lambda: _all(client, "waiting", 1000), within=40)
        assert await client.start_and_wait(quick, timeout="5s") == "QUICK"
        ((many,),), threads = await query(dsn, connections), threading.active_count()
    async with working(dsn, quick, patient, config=fast(max_concurrent_tasks=1)) as client:
        for number in range(30):
            await client.offer_event(f"p-{number}", "other")  # they look, and wait again
        started = time.monotonic()
        assert await client.start_and_wait(quick, timeout="5s") == "QUICK"
        assert time.monotonic() - started < 2
        await until(lambda: _all(client, "waiting", 1000))
        assert many < 20
        assert threads < 20


async def test_a_body_that_swallows_everything_stops_nobody(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A loop around a wait that catches BaseException cannot be unwound: it is left hanging, the worker goes on, the
    execution is suspended and completes later."""
    tries, over = 0, False

    @durable("stubborn")
    async def stubborn() -> str:
        nonlocal tries
        while True:
            try:
                return await zart.wait_for_event("go", str)
            except BaseException:
                tries += 1
                if over:
                    raise

    @durable("quick")
    async def quick() -> str:
        return await work("quick")

    async with working(dsn, stubborn, quick, config=forgetful()) as client:
        handle = await client.start(stubborn, id="stubborn")
        await until_status(client, "stubborn", "waiting")
        assert await client.start_and_wait(quick, timeout="5s") == "QUICK"
        assert 100 < tries < 200
        assert "it is left hanging" in caplog.text
        await client.offer_event("stubborn", "go", "now")
        assert await handle.result(timeout="5s") == "now"
        over = True


async def test_resident_executions_hold_no_slot(dsn: str) -> None:
    """The same where the waiting body cannot be suspended, since a branch of it waits for a queue."""

    @durable("quick-too")
    async def quick_too() -> str:
        return await work("quick")

    @durable("resident")
    async def resident(number: int) -> Any:
        queue: asyncio.Queue[Any] = asyncio.Queue()

        async def listen() -> None:
            await queue.put(await zart.wait_for_event("item"))

        listener = asyncio.create_task(listen())
        out = await queue.get()
        await listener
        return out

    async with working(dsn, quick_too, resident, config=fast(max_concurrent_tasks=1)) as client:
        handles = await client.start_many(resident, {f"p-{number}": number for number in range(20)})
        for handle in handles:
            await until_record(client, handle.id, "1/item", "waiting")
        assert await client.start_and_wait(quick_too, timeout="2s") == "QUICK"
        for number, handle in enumerate(handles):
            await client.offer_event(handle.id, "item", number)
        assert [await handle.result(timeout="5s") for handle in handles] == list(range(20))


# ------------------------------------------------------------ ordinary constructs

log: list[str] = []


async def waited(label: str) -> Any:
    """A durable wait between two durable steps."""
    await work(f"{label}-1")
    payload = await zart.wait_for_event(f"go-{label}")
    return await work(f"{label}-{payload}")


@durable("except-exception")
async def except_exception() -> Any:
    try:
        return await waited("a")
    except Exception as error:
        log.append(f"swallowed {error!r}")
        return "swallowed"


class Resource:
    async def __aenter__(self) -> "Resource":
        await work("open")
        return self

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> bool:
        if not zart.suspending():
            log.append(f"closed with {kind}")
        await work("close")
        return kind is not None and issubclass(kind, Exception)


@durable("async-with")
async def async_with() -> Any:
    async with Resource():
        return await waited("a")


@durable("suppress")
async def suppressed() -> Any:
    with contextlib.suppress(Exception):
        return await waited("a")
    log.append("suppressed")
    return "suppressed"


@durable("task-group")
async def task_group() -> Any:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(waited(label)) for label in "ab"]
    return [task.result() for task in tasks]


@durable("gather")
async def gather() -> Any:
    return list(await asyncio.gather(waited("a"), waited("b"), return_exceptions=True))


@durable("shield")
async def shield() -> Any:
    return await asyncio.shield(waited("a"))


@durable("queue")
async def queue() -> Any:
    items: asyncio.Queue[Any] = asyncio.Queue()

    async def produce() -> None:
        await items.put(await waited("a"))

    producer = asyncio.create_task(produce())
    got = await items.get()
    await producer
    return got


@durable("anyio-scope")
async def anyio_scope() -> Any:
    with anyio.CancelScope() as scope:
        result = await waited("a")
    return [result, scope.cancelled_caught]


@durable("anyio-shield")
async def anyio_shield() -> Any:
    with anyio.CancelScope(shield=True):
        return await waited("a")


@durable("anyio-group")
async def anyio_group() -> Any:
    out: list[Any] = []

    async def branch(label: str) -> None:
        out.append(await waited(label))

    async with anyio.create_task_group() as group:
        group.start_soon(branch, "a")
        group.start_soon(branch, "b")
    return sorted(out)


@durable("except-cancelled")
async def except_cancelled() -> Any:
    try:
        return await waited("a")
    except asyncio.CancelledError:
        log.append("CancelledError")
        raise


@durable("asyncio-wait")
async def asyncio_wait() -> Any:
    tasks = [asyncio.create_task(waited(label)) for label in "ab"]
    done, pending = await asyncio.wait(tasks)
    return [sorted(task.result() for task in done), len(pending)]


@durable("wait-for")
async def wait_for() -> Any:
    return await asyncio.wait_for(waited("a"), 7200)


@durable("finally")
async def with_finally() -> Any:
    try:
        return await waited("a")
    finally:
        await work("cleanup")


@durable("generator")
async def generator() -> Any:
    async def items() -> Any:
        try:
            for label in "ab":
                yield await waited(label)
        finally:
            if not zart.suspending():
                log.append("generator closed")

    async with contextlib.aclosing(items()) as source:
        return [item async for item in source]


@durable("bare-except")
async def bare_except() -> Any:
    try:
        return await waited("a")
    except:  # noqa: E722
        if not zart.suspending():
            log.append("bare")
        return "swallowed"


ONE, TWO = "A-NOW", ["A-NOW", "B-NOW"]
CONSTRUCTS: list[tuple[Any, Any, list[str]]] = [
    (except_exception, ONE, []),
    (async_with, ONE, ["closed with None"]),
    (suppressed, ONE, []),
    (task_group, TWO, []),
    (gather, TWO, []),
    (shield, ONE, []),
    (queue, ONE, []),
    (anyio_scope, [ONE, False], []),
    (anyio_shield, ONE, []),
    (anyio_group, TWO, []),
    (except_cancelled, ONE, []),
    (asyncio_wait, [TWO, 0], []),
    (wait_for, ONE, []),
    (with_finally, ONE, []),
    (generator, TWO, ["generator closed"]),
    (bare_except, ONE, []),
]
RESIDENT = {shield, queue}
"""Whether they are parked cannot be told, so they stay in memory."""


@pytest.mark.parametrize("always_suspend", [False, True], ids=["plain", "always"])
@pytest.mark.parametrize(
    ("body", "expected", "logged"), CONSTRUCTS, ids=[construct[0].name for construct in CONSTRUCTS]
)
async def test_constructs_around_a_wait(
    dsn: str, body: Any, expected: Any, logged: list[str], always_suspend: bool
) -> None:
    """Around any durable wait they behave as in ordinary code; `except CancelledError` never sees a suspension;
    durable calls in `finally` run once, at the real end."""
    log.clear()  # with `always`, a body is replayed in the middle of its end, and notes it again
    async with working(dsn, body, always_suspend=always_suspend) as client:
        handle = await client.start(body, id="x")
        labels = "ab" if expected in (TWO, [TWO, 0]) else "a"
        for label in labels:
            await until(lambda label=label: f"{label}-1" in effects)
            if body not in RESIDENT:
                await until_status(client, "x", "waiting")
            await client.offer_event("x", f"go-{label}", "now")
        assert await handle.result(timeout="10s") == expected
    if always_suspend or modes.current() in ("suspending", "twice"):
        assert set(log) == set(logged)
    else:
        assert log == logged
    assert len(effects) == len(set(effects)), "a step ran twice"
    assert ("cleanup" in effects) == (body is with_finally)
    if body is with_finally:
        assert effects[-1] == "cleanup"


@pytest.mark.parametrize("body", [shield, queue], ids=lambda body: body.name)
async def test_resident_bodies_over_a_takeover(dsn: str, body: Any) -> None:
    """A body that cannot be suspended goes on elsewhere after its worker's death, and nothing runs twice."""
    async with working(dsn, body) as client:
        handle = await client.start(body, id="x")
        await until(lambda: effects)
        await until_record(client, "x", "1/work", "completed")
        await bury_workers(dsn)
        await client.offer_event("x", "go-a", "now")
        assert await handle.result(timeout="10s") == ONE
    assert effects == ["a-1", "a-now"]


# ------------------------------------------------------------ moved clocks, limits


async def test_a_shifted_clock_fires_timers_and_reaps_nobody(dsn: str) -> None:
    """The durable clock shifted by a year: timers fire, no worker is reaped."""
    async with working(dsn, sleeper) as client:
        handles = [await client.start(sleeper, 30 * 24 * 3600.0) for _ in range(5)]
        await until(lambda: _all(client, "waiting", 5))
        workers = await query(dsn, "SELECT DISTINCT worker_id FROM zart_workers")
        await shift_clock(dsn, dt.timedelta(days=365))
        for handle in handles:
            assert await handle.result(timeout="5s") == "AFTER"
        beat = "SELECT max(heartbeat_at) FROM zart_workers"
        ((shifted,),) = await query(dsn, beat)
        await until(lambda: query(dsn, f"{beat} HAVING max(heartbeat_at) > %s", shifted))
        assert await query(dsn, "SELECT DISTINCT worker_id FROM zart_workers") == workers
        assert await query(dsn, "SELECT count(*) FROM zart_history WHERE what = 'takeover'") == [(0,)]


@durable("limited")
async def limited() -> list[str]:
    out = []
    try:
        async with zart.timeout("2h"):
            out.append(await work("in time"))
            await zart.wait_for_event("never")
    except TimeoutError:
        out.append(await work("too late"))
    effects.append(len(out))
    await zart.wait_for_event("go")
    return out


async def test_a_durable_time_limit(dsn: str) -> None:
    """A time limit of two hours around an event wait, on a moved clock: fires once, replay keeps it, no slot is held
    meanwhile."""
    async with working(dsn, limited, sleeper, config=fast(max_concurrent_tasks=1)) as client:
        handle = await client.start(limited, id="l")
        await until_status(client, "l", "waiting")
        assert await client.start_and_wait(sleeper, 0, timeout="5s") == "AFTER"
        await shift_clock(dsn, dt.timedelta(minutes=119))
        with pytest.raises(zart.ResultTimeout):
            await handle.result(timeout="200ms")
        assert "too late" not in effects
        await shift_clock(dsn, dt.timedelta(minutes=2))
        await until(lambda: 2 in effects)
        await until_status(client, "l", "waiting")
        await shift_clock(dsn, 10 * HOUR)
        await client.offer_event("l", "go")
        assert await handle.result(timeout="5s") == ["IN TIME", "TOO LATE"]
        fired = [
            r for r in (await client.history("l")).records if r.name == "timeout" and r.state == "completed"
        ]
        assert len(fired) == 1
    assert [effect for effect in effects if effect in ("in time", "too late")] == ["in time", "too late"]


async def test_a_time_limit_that_is_left_in_time(dsn: str) -> None:
    """A limit that was left before it fired never fires, also when a replay comes after its time."""

    @durable("in-time")
    async def in_time() -> str:
        async with zart.timeout("1h"):
            first = await zart.wait_for_event("first", str)
        await zart.wait_for_event("go")
        return first + await work("!")

    async with working(dsn, in_time) as client:
        handle = await client.start(in_time, id="i")
        await until_status(client, "i", "waiting")
        await client.offer_event("i", "first", "ok")
        await until_record(client, "i", "go", "waiting")
        await until_status(client, "i", "waiting")
        await shift_clock(dsn, 5 * HOUR)
        await client.offer_event("i", "go")
        assert await handle.result(timeout="5s") == "ok!"


# ------------------------------------------------------------ waiting and running at once


async def test_steps_go_on_beside_a_sleeping_branch(dsn: str) -> None:
    """`gather(step_a(), …)` followed by more steps, beside a branch asleep for an hour: goes on at once."""

    @durable("beside")
    async def beside() -> list[Any]:
        async def steps() -> str:
            first = await asyncio.gather(work("a"), work("b"))
            return "".join([*first, await work("c"), await work("d")])

        async def sleeps() -> str:
            await zart.sleep("1h")
            return await work("slept")

        return list(await asyncio.gather(steps(), sleeps()))

    async with working(dsn, beside) as client:
        handle = await client.start(beside, id="b")
        await until(lambda: "d" in effects, within=3)
        await until_status(client, "b", "waiting")
        await shift_clock(dsn, HOUR)
        assert await handle.result(timeout="5s") == ["ABCD", "SLEPT"]
        assert sorted(effects) == ["a", "b", "c", "d", "slept"]


@pytest.mark.not_in("suspending", "twice", reason="counts what the body itself does")
async def test_a_plain_await_beside_a_sleep(dsn: str) -> None:
    """A plain HTTP call in one branch beside a durable sleep in another: it is not cut, and the body completes."""

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        effects.append("asked")
        await answer.wait()
        writer.write(b"pong\n")
        writer.close()

    answer = asyncio.Event()
    server = await asyncio.start_server(respond, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]

    @durable("plain")
    async def plain() -> list[str]:
        async def call() -> str:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"ping\n")
            got = (await reader.readline()).decode().strip()
            writer.close()
            return await work(got)

        async def sleeps() -> str:
            await zart.sleep("300ms")
            return await work("slept")

        return list(await asyncio.gather(call(), sleeps()))

    async with working(dsn, plain) as client:
        handle = await client.start(plain)
        await until(lambda: "slept" in effects)
        answer.set()
        assert await handle.result(timeout="5s") == ["PONG", "SLEPT"]
    server.close()
    assert effects == ["asked", "slept", "pong"]


@pytest.mark.parametrize("what", ["event", "cancel"])
@pytest.mark.not_in("suspending", reason="the event is replayed at once, which cuts the step beside it")
async def test_news_while_a_step_runs(dsn: str, what: str) -> None:
    """`gather` of a step of ten minutes and an event wait: the event is delivered while the step runs; so is a
    cancel."""
    finish = asyncio.Event()

    @step("ten-minutes")
    async def ten_minutes() -> str:
        effects.append("began")
        await finish.wait()
        return "finished"

    @durable("both")
    async def both() -> list[Any]:
        async def listen() -> Any:
            return await work(await zart.wait_for_event("item"))

        return list(await asyncio.gather(ten_minutes(), listen()))

    async with working(dsn, both) as client:
        handle = await client.start(both, id="b")
        await until(lambda: effects)
        if what == "cancel":
            await client.cancel("b")
            with pytest.raises(zart.ExecutionCancelled):
                await handle.result(timeout="5s")
        else:
            await client.offer_event("b", "item", "hello")
            await until(lambda: "hello" in effects, within=5)
            finish.set()
            assert await handle.result(timeout="5s") == ["finished", "HELLO"]
            assert effects == ["began", "hello"]


@pytest.mark.usefixtures("notified")
@pytest.mark.parametrize("what", ["event", "cancel"])
async def test_news_of_a_held_execution_come_at_once(
    dsn: str, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """An idle worker that holds an execution hears of its events and of a cancel by a notification, not at its next
    look."""

    @durable("held")
    async def held() -> str:
        listener = asyncio.create_task(zart.wait_for_event("item", str))
        queue: asyncio.Queue[str] = asyncio.Queue()
        listener.add_done_callback(lambda done: queue.put_nowait(done.result()))
        return await queue.get()

    pauses: list[float] = []
    pause = Claiming._pause

    def noted_pause(self: Claiming, *given: Any) -> float:
        pauses.append(pause(self, *given))
        return pauses[-1]

    monkeypatch.setattr(Claiming, "_pause", noted_pause)
    async with working(dsn, held, config=fast(poll_interval="30s")) as client:
        handle = await client.start(held, id="h")
        await until_record(client, "h", "item", "waiting")
        await until(lambda: pauses and pauses[-1] > 1)  # it relies on notifications now
        started = time.monotonic()
        if what == "event":
            await client.offer_event("h", "item", "news")
            assert await handle.result(timeout="5s") == "news"
        else:
            await client.cancel("h")
            with pytest.raises(zart.ExecutionCancelled):
                await handle.result(timeout="5s")
        assert time.monotonic() - started < 0.5


async def test_a_suspension_that_missed_news_is_refused(dsn: str) -> None:
    """News that arrive between the last look and the suspension: the execution is not left asleep with them."""

    @durable("ping")
    async def ping(number: int) -> int:
        return await zart.wait_for_event("item", int)

    async with working(dsn, ping) as client:
        for round in range(15):
            ids = [f"p-{round}-{number}" for number in range(10)]
            handles = await client.start_many(ping, dict.fromkeys(ids, 1))
            await asyncio.gather(*(client.offer_event(id, "item", 7) for id in ids))
            for handle in handles:
                assert await handle.result(timeout="5s") == 7


async def test_suspended_and_claimed_again_within_one_look(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look of the worker during which an execution is suspended, and that claims it again: it is held, not lost."""
    gate = asyncio.Event()

    @durable("gated")
    async def gated() -> int:
        await gate.wait()
        return await zart.wait_for_event("item", int)

    look = Claimer.tick

    async def late_look(self: Claimer, **options: Any) -> Any:
        if options["watching"] and not gate.is_set():
            async with zart.Client(dsn) as other:
                await other.offer_event("g", "item", 7)
            gate.set()
            await until(lambda: query(dsn, "SELECT 1 FROM zart_tasks WHERE state = 'ready'"))
        return await look(self, **options)

    async with working(dsn, gated) as client:
        monkeypatch.setattr(Claimer, "tick", late_look)
        handle = await client.start(gated, id="g")
        assert await handle.result(timeout="5s") == 7
