"""What Zart tells of executions, steps and workers while they happen."""

import asyncio
import datetime as dt
import logging
from collections.abc import Iterator

import psycopg
import pytest

import zart
from tests.support.listening import Heard, listening
from tests.support.running import (
    bury_workers,
    fast,
    forgetful,
    query,
    shift_clock,
    until,
    until_status,
    worker_for,
    working,
)
from zart import Client, durable, step, telemetry
from zart.telemetry import (
    BatchCommitted,
    BodyRetried,
    ClaimMade,
    EventDelivered,
    ExecutionBlocked,
    ExecutionClaimed,
    ExecutionEnded,
    ExecutionLost,
    ExecutionStarted,
    ExecutionSuspended,
    ScheduledStepEnded,
    StepBegan,
    StepEnded,
    StepRetried,
    TakenOver,
    TelemetryEvent,
    WorkerFenced,
    WorkerStarted,
    WorkerStopped,
)

pytestmark = pytest.mark.not_in("twice", reason="each body comes to its end twice there")

SECRET = "4556-7375"


@pytest.fixture
def heard() -> Iterator[Heard]:
    with listening() as listener:
        yield listener


@step("charge-{order}", retry="fixed(1, 10ms)")
async def charge(order: str, card: str) -> str:
    if zart.step_context().step_attempt == 1:
        raise ConnectionError("the bank did not answer")
    return card


@step("ship")
def ship(order: str) -> str:
    return order


@durable("buy")
async def buy(card: str) -> str:
    order = zart.execution_id()
    paid = await charge(order, card)
    confirmed = await zart.wait_for_event("confirmed", str)
    await ship(order)
    return paid + confirmed


@step("look")
async def look(number: int) -> int:
    if number < 0:
        raise ValueError(number)
    return number


@durable("fan-out")
async def fan_out(numbers: list[int]) -> int:
    handles = [zart.schedule_step(look, number) for number in numbers]
    return sum(await zart.wait_all(*handles))


@durable("fails", max_retries=1)
async def fails() -> None:
    raise LookupError("nothing there")


@durable("waits")
async def waits() -> None:
    await zart.wait_for_event("never")


_gates: list[asyncio.Event] = []


@pytest.fixture(autouse=True)
def gate() -> asyncio.Event:
    """What `hold` waits for."""
    _gates[:] = [asyncio.Event()]
    return _gates[0]


@step("hold")
async def hold() -> None:
    await _gates[0].wait()


@durable("holds")
async def holds() -> None:
    await hold()


@durable("counts")
async def counts(number: int) -> int:
    if number:
        zart.continue_as_new(number - 1)
    return number


@pytest.mark.not_in("suspending", reason="each record ends a segment there")
async def test_a_life_from_start_to_end(dsn: str, heard: Heard) -> None:
    """Started, claimed, an attempt that fails and one that does not, waiting, the event, and the end, in that order."""
    async with working(dsn, buy, config=forgetful()) as client:
        handle = await client.start(buy, SECRET, id="order")
        await until_status(client, "order", "waiting")
        await client.offer_event("order", "confirmed", SECRET)
        assert await handle.result() == SECRET + SECRET
        assert not (await client.start(buy, SECRET, id="order")).created  # nothing new: nothing is told
        await until(lambda: heard.of(ExecutionEnded), "the end")
    told = heard.names("order")
    told.remove("ExecutionStarted")  # the worker may be quicker than the answer to whoever started it
    assert told == [
        *("ExecutionClaimed", "StepBegan", "StepEnded", "StepRetried", "StepBegan", "StepEnded"),
        "ExecutionSuspended",
        *("ExecutionClaimed", "EventDelivered", "StepBegan", "StepEnded", "ExecutionEnded"),
    ]
    started, first = heard.of(ExecutionStarted)[0], heard.of(ExecutionClaimed)[0]
    assert started == ExecutionStarted(execution_id="order", function="buy", version=None, queue="default")
    assert (first.segment.function, first.segment.queue, first.segment.claims) == ("buy", "default", 1)
    assert [claimed.how for claimed in heard.of(ExecutionClaimed)] == ["first", "replay"]
    assert first.waited is not None
    assert first.waited >= 0
    failed, worked, shipped = heard.of(StepEnded)
    assert (failed.step.step, failed.step.name, failed.step.attempt) == ("charge-{order}", "charge-order", 1)
    assert failed.step.function == f"{__name__}.charge"
    assert failed.outcome == "failed"
    assert failed.error is not None
    assert (failed.error.type, failed.error.message) == ("ConnectionError", "the bank did not answer")
    assert "in charge" in failed.error.stack
    assert "the bank did not answer\n" not in failed.error.stack
    assert (worked.step.attempt, worked.outcome, worked.error) == (2, "returned", None)
    assert (shipped.step.step, shipped.step.threaded) == ("ship", True)
    assert [event.step.number for event in heard.of(StepBegan)] == [
        event.step.number for event in heard.of(StepEnded)
    ]
    (retried,) = heard.of(StepRetried)
    assert (retried.step, retried.attempt, retried.delay) == ("charge-{order}", 1, 0.01)
    assert heard.of(EventDelivered)[0].event == "confirmed"
    assert "confirmed" in (heard.of(ExecutionSuspended)[0].waiting_for or "")
    (ended,) = heard.of(ExecutionEnded)
    assert (ended.outcome, ended.error) == ("completed", None)
    assert ended.age > ended.seconds > 0
    segments = [event.segment for event in heard.of(ExecutionClaimed)]
    assert heard.of(ExecutionSuspended)[0].segment is segments[0]
    assert ended.segment is segments[1]


async def test_no_event_holds_what_users_store(dsn: str, heard: Heard) -> None:
    """Neither arguments nor results, payloads, or payloads of events."""
    async with working(dsn, buy) as client:
        handle = await client.start(buy, SECRET, id="order")
        await client.offer_event("order", "confirmed", SECRET)
        await handle.result()
    assert len(heard.about("order")) >= 8
    assert SECRET not in repr(heard.events)


@pytest.mark.not_in("suspending", "unparked", reason="no body is kept there")
async def test_a_body_that_is_kept_goes_on_without_a_replay(dsn: str, heard: Heard) -> None:
    """It has waited all the same: one segment ends, another one begins."""
    async with working(dsn, buy) as client:
        handle = await client.start(buy, "card", id="order")
        await until(lambda: heard.of(ExecutionSuspended), "the suspension")
        await client.offer_event("order", "confirmed", "yes")
        await handle.result()
        await until(lambda: heard.of(ExecutionEnded), "the end")
    assert [event.how for event in heard.of(ExecutionClaimed)] == ["first", "kept"]
    assert [event.segment.claims for event in heard.of(ExecutionClaimed)] == [1, 2]
    assert len(heard.of(ExecutionSuspended)) == 1


async def test_what_is_replayed_is_not_told(dsn: str, heard: Heard) -> None:
    """A step that is recorded is not run again, so no attempt of it begins."""
    async with working(dsn, buy, config=forgetful(), always_suspend=True) as client:
        handle = await client.start(buy, "card", id="order")
        await client.offer_event("order", "confirmed", "yes")
        await handle.result()
    assert len(heard.of(ExecutionClaimed)) > 2
    assert [(event.step.step, event.step.attempt) for event in heard.of(StepBegan)] == [
        ("charge-{order}", 1),
        ("charge-{order}", 2),
        ("ship", 1),
    ]


async def test_scheduled_steps_have_segments_of_their_own(dsn: str, heard: Heard) -> None:
    """Each is claimed, run and ended for itself; it belongs to the durable function that has scheduled it."""
    async with working(dsn, fan_out) as client:
        assert await client.start_and_wait(fan_out, [1, 2]) == 3
        with pytest.raises(zart.ExecutionFailed):
            await client.start_and_wait(fan_out, [-1])
        await until(lambda: len(heard.of(ScheduledStepEnded)) == 3, "the ends of the steps")
    ends = heard.of(ScheduledStepEnded)
    assert sorted(end.outcome for end in ends) == ["completed", "completed", "failed"]
    assert {(end.segment.function, end.segment.step) for end in ends} == {("fan-out", "look")}
    (failed,) = [end for end in ends if end.outcome == "failed"]
    assert failed.error is not None
    assert failed.error.type == "ValueError"


async def test_a_failing_body(dsn: str, heard: Heard) -> None:
    """It is retried, then it fails; both are told with what it failed of."""
    async with working(dsn, fails) as client:
        handle = await client.start(fails, id="x")
        await until_status(client, "x", "waiting", "scheduled", "running")
        await until(lambda: heard.of(BodyRetried), "the retry")
        await shift_clock(dsn, dt.timedelta(seconds=5))
        with pytest.raises(zart.ExecutionFailed):
            await handle.result(timeout="15s")
        await until(lambda: heard.of(ExecutionEnded), "the end")
    assert 0 < heard.of(BodyRetried)[0].delay <= 1  # counted from the commit
    (ended,) = heard.of(ExecutionEnded)
    assert (ended.outcome, ended.segment.attempt) == ("failed", 2)
    assert ended.error is not None
    assert (ended.error.type, ended.error.message) == ("LookupError", "nothing there")


async def test_a_cancelled_one(dsn: str, heard: Heard) -> None:
    """Its end says so."""
    async with working(dsn, waits) as client:
        await client.start(waits, id="x")
        await until_status(client, "x", "waiting")
        await client.cancel("x")
        await until_status(client, "x", "cancelled")
        await until(lambda: heard.of(ExecutionEnded), "the end")
    assert heard.of(ExecutionEnded)[0].outcome == "cancelled"


async def test_a_blocked_one(dsn: str, heard: Heard) -> None:
    """With the reason, also of one that nobody has run since it ends every process."""
    async with Client(dsn) as client:
        await client.start(waits, id="poison")
        await query(dsn, "UPDATE zart_tasks SET recoveries = 5, started_at = now(), epoch = 5")
        async with worker_for(dsn, waits, config=fast(max_recoveries=3)):
            await until_status(client, "poison", "blocked")
    (blocked,) = heard.of(ExecutionBlocked)
    assert (blocked.segment.execution_id, blocked.reason) == ("poison", "crash-loop")


async def test_one_that_begins_anew(dsn: str, heard: Heard) -> None:
    """Each run but the last one ends so."""
    async with working(dsn, counts) as client:
        assert await client.start_and_wait(counts, 2, id="x") == 0
        await until(lambda: heard.of(ExecutionEnded), "the end")
    assert heard.names("x").count("ExecutionContinued") == 2
    assert len({event.segment.run_id for event in heard.of(ExecutionClaimed)}) == 3


async def test_a_shutdown_gives_back(dsn: str, heard: Heard) -> None:
    """What runs is released, the worker has stopped, and the attempt was abandoned."""
    async with Client(dsn) as client, worker_for(dsn, holds, config=fast(shutdown_timeout="50ms")):
        await client.start(holds, id="x")
        await until(lambda: heard.of(StepBegan), "the step")
    assert "ExecutionReleased" in heard.names("x")
    assert [event.outcome for event in heard.of(StepEnded)] == ["abandoned"]
    (started,) = heard.of(WorkerStarted)
    assert started.functions == ("holds",)
    assert started.slots == 100
    assert [event.worker for event in heard.of(WorkerStopped)] == [started.worker]
    assert heard.events[-1] is heard.of(WorkerStopped)[0]


async def test_a_worker_that_is_taken_for_dead(dsn: str, heard: Heard, gate: asyncio.Event) -> None:
    """What it held is lost, it was fenced, and it works on under another number; whoever takes over says so."""
    async with working(dsn, holds) as client:
        await client.start(holds, id="x")
        await until(lambda: heard.of(StepBegan), "the step")
        await bury_workers(dsn)
        await until(lambda: len(heard.of(WorkerStarted)) == 2, "the second registration")
        await until(lambda: len(heard.of(StepBegan)) == 2, "the step's second attempt")
        gate.set()
        await until(lambda: heard.of(ExecutionEnded), "the end")
        await until(
            lambda: heard.of(TakenOver), "the takeover, which is told when the claim may be under way"
        )
    first, second = (event.worker for event in heard.of(WorkerStarted))
    assert [event.worker for event in heard.of(WorkerFenced)] == [first]
    assert [event.segment.worker for event in heard.of(ExecutionLost)] == [first]
    assert [event.executions for event in heard.of(TakenOver)] == [("x",)]
    assert [event.segment.recoveries for event in heard.of(ExecutionClaimed)][:2] == [0, 1]
    assert heard.of(ExecutionEnded)[0].segment.worker == second


async def test_claims_and_commits_are_told(dsn: str, heard: Heard) -> None:
    """How much was taken, how much was committed, and how long it took."""
    async with working(dsn, fan_out) as client:
        await client.start_and_wait(fan_out, [1, 2, 3])
        await until(lambda: heard.of(ExecutionEnded), "the end")
    assert sum(event.taken for event in heard.of(ClaimMade)) == len(heard.of(ExecutionClaimed))
    commits = heard.of(BatchCommitted)
    assert sum(event.records for event in commits) >= 7
    assert sum(event.bytes for event in commits) >= len(b'{"of":"fan-out","args":[1]}') * 3
    assert all(event.seconds > 0 for event in commits)
    (worker,) = {event.worker for event in [*commits, *heard.of(ClaimMade)]}
    assert worker == heard.of(WorkerStarted)[0].worker


async def test_starts_of_all_kinds_are_told(dsn: str, heard: Heard) -> None:
    """One by one, many at once, and in a transaction of the caller's; never one that existed."""
    async with Client(dsn) as client:
        await client.start(waits, id="one")
        await client.start(counts, 1)
        await client.start_many(counts, {"a": 1, "b": 2})
        await client.start_many(counts, {"b": 2, "c": 3})
        async with await psycopg.AsyncConnection.connect(dsn) as connection:
            await zart.start(counts, 1, id="inside", connection=connection)
            await zart.start(counts, 1, id="inside", connection=connection)
    ids = [event.execution_id for event in heard.of(ExecutionStarted)]
    assert [id for id in ids if "-" not in id] == ["one", "a", "b", "c", "inside"]
    assert len(ids) == 6


def _fails(event: TelemetryEvent) -> None:
    raise RuntimeError(type(event).__name__)


async def test_a_hook_that_always_fails_changes_nothing(dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    """Everything is as it would be: results, retries, waits. Each kind of event is said once in the log."""
    caplog.set_level(logging.ERROR, "zart.telemetry")
    with telemetry.subscribe(_fails), listening() as heard:
        async with working(dsn, buy, fan_out) as client:
            handle = await client.start(buy, "card", id="order")
            await client.offer_event("order", "confirmed", "yes")
            assert await handle.result() == "cardyes"
            assert await client.start_and_wait(fan_out, [1, 2]) == 3
    kinds = {type(event).__name__ for event in heard.events}
    said = [record.getMessage() for record in caplog.records if "_fails" in record.getMessage()]
    assert len(said) <= len(kinds)
    assert any("StepEnded" in line for line in said)


async def test_a_late_heartbeat_is_told(dsn: str, heard: Heard) -> None:
    """A lease that cannot be renewed, since its row is locked, is told once it is."""
    async with working(dsn, waits, config=fast(heartbeat_interval="50ms")) as client:
        await client.start(waits, id="x")
        async with await psycopg.AsyncConnection.connect(dsn) as locking:
            await locking.execute("SELECT FROM zart_workers ORDER BY worker_id, writer FOR UPDATE")
            await asyncio.sleep(0.3)
        await until(lambda: heard.of(telemetry.HeartbeatLate), "the late heartbeat")
    late = heard.of(telemetry.HeartbeatLate)[0]
    assert late.since >= 0.1
    assert late.worker == heard.of(WorkerStarted)[0].worker


async def test_lines_of_zart_about_an_execution_carry_its_id(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Although they are written outside of its body."""
    caplog.set_level(logging.INFO)
    async with working(dsn, waits) as client:
        await client.start(waits, id="x")
        await until(lambda: "x waits for" in caplog.text, "the line")
    (line,) = [record for record in caplog.records if record.getMessage().startswith("x waits for")]
    assert line.zart_execution_id == "x"  # type: ignore[attr-defined]


async def test_a_step_that_is_recorded_is_told_before_its_execution_ends(dsn: str, heard: Heard) -> None:
    """Events of one execution come in the order in which things happen, of many at a time, too."""
    async with working(dsn, fan_out) as client:
        handles = [await client.start(fan_out, [number], id=f"x{number}") for number in range(20)]
        for handle in handles:
            await handle.result()
        await until(lambda: len(heard.of(ExecutionEnded)) == 20, "the ends")
    for number in range(20):
        names = heard.names(f"x{number}")
        assert names.index("StepEnded") < names.index("ScheduledStepEnded") < names.index("ExecutionEnded")
