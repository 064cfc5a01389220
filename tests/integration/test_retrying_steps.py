"""`retry_step`: a step that failed for good gets a new budget, inside the run that it failed in."""

import asyncio
import datetime as dt
from typing import Any

import pytest
from psycopg.types.json import Jsonb

import zart
from tests.support.executions import Bench
from tests.support.running import (
    fast,
    forgetful,
    query,
    shift_clock,
    until,
    until_record,
    until_status,
    working,
)
from zart import Client, ExecutionFinished, ExecutionNotFound, UsageError, durable, step
from zart._engine.entries import Completed, ContinuedAsNew, Failed

effects: list[str] = []
broken: set[str] = set()
gates: dict[str, asyncio.Event] = {}


@pytest.fixture(autouse=True)
def _anew() -> None:
    effects.clear()
    broken.clear()
    gates.clear()


@step("do", retry="fixed(1, 1ms)")
async def do(what: str) -> str:
    effects.append(what)
    if what in broken:
        raise ConnectionError(f"{what} is out of order")
    return what


@step("hold")
async def hold(what: str) -> str:
    effects.append(what)
    await gates.setdefault(what, asyncio.Event()).wait()
    return what


@durable("order")
async def order() -> list[str]:
    return [await do("reserve"), await do.named("charge")("charge"), await do.named("ship")("ship")]


async def failed(client: Client, fn: Any, id: str) -> None:
    await client.start(fn, id=id)
    await until_status(client, id, "failed")


async def test_it_is_tried_again_and_the_run_goes_on(dsn: str) -> None:
    """The failed step runs again with all its attempts, the steps before it do not, and the run is the same."""
    broken.add("charge")
    async with working(dsn, order) as client:
        await failed(client, order, "x")
        run = (await client.status("x")).run_id
        assert effects == ["reserve", "charge", "charge"]
        broken.clear()
        assert await client.retry_step("x", "charge", reason="the bank is back")
        assert await client.wait_completion("x", timeout="20s") == ["reserve", "charge", "ship"]
        assert effects == ["reserve", "charge", "charge", "charge", "ship"]
        history = await client.history("x")
    assert history.run_id == run
    assert [(record.key, record.state, record.attempts) for record in history.records] == [
        ("do", "completed", 1),
        ("charge", "completed", 1),
        ("ship", "completed", 1),
    ]
    told = "\n".join(history.notes)
    assert "retry of 'charge' by " in told
    assert "the bank is back" in told
    assert told.count(": ConnectionError: charge is out of order") == 2


async def test_as_often_as_it_fails(dsn: str) -> None:
    broken.add("charge")
    async with working(dsn, order) as client:
        await failed(client, order, "x")
        for _ in range(2):
            assert await client.retry_step("x", "charge")
            await until_status(client, "x", "failed")
        broken.clear()
        assert await client.retry_step("x", "charge")
        assert await client.wait_completion("x", timeout="20s") == ["reserve", "charge", "ship"]
    assert effects.count("charge") == 7
    assert effects.count("reserve") == 1


@step("count")
async def count() -> str:
    return await do.fn(f"at {zart.context().attempt}")


@durable("counting", max_retries="fixed(1, 1ms)")
async def counting(retry: str) -> str:
    if zart.context().attempt == 1:
        raise RuntimeError("of its own: nothing that is recorded is behind this")
    return await count.with_options(retry=retry)()


@pytest.mark.parametrize("retry", ["none", "fixed(1, 1ms)"])
async def test_the_body_counts_its_attempts_on(dsn: str, retry: str) -> None:
    """What is replayed is of the attempt that failed, whatever failed in it; what is done again is of the next one."""
    broken.add("at 2")
    async with working(dsn, counting) as client:
        await client.start(counting, retry, id="x")
        await until_status(client, "x", "failed")
        assert await client.retry_step("x", "count")
        assert await client.wait_completion("x", timeout="20s") == "at 3"


async def after_failure(failure: zart.Failure) -> None:
    await do.named("apologise")("apologise")


async def _apologise(_data: None, failure: zart.Failure) -> None:
    await after_failure(failure)


@durable("careful", on_failure=_apologise)
async def careful() -> str:
    return await do.named("charge")("charge")


async def test_what_on_failure_did_is_set_aside(dsn: str) -> None:
    """The failure is gone: the body goes on as if there had been none, and a later one is handled again."""
    broken.add("charge")
    async with working(dsn, careful) as client:
        await failed(client, careful, "x")
        assert await client.retry_step("x", "charge")
        await until_status(client, "x", "failed")
        assert effects == ["charge", "charge", "apologise"] * 2
        broken.clear()
        assert await client.retry_step("x", "charge")
        assert await client.wait_completion("x", timeout="20s") == "charge"
        records = (await client.history("x")).records
    assert [record.key for record in records] == ["charge"]


@durable("fan-out")
async def fan_out() -> list[str]:
    handles = [zart.schedule_step(do.named(f"part-{number}"), f"part-{number}") for number in range(5)]
    return list(await zart.wait_all(*handles))


async def test_one_of_a_fan_out(dsn: str) -> None:
    """Of scheduled steps only the one that failed runs again."""
    broken.add("part-3")
    async with working(dsn, fan_out) as client:
        await failed(client, fan_out, "x")
        await until_record(client, "x", "part-4", "completed")
        broken.clear()
        assert await client.retry_step("x", "part-3")
        assert await client.wait_completion("x", timeout="20s") == [f"part-{number}" for number in range(5)]
    assert sorted(effects) == ["part-0", "part-1", "part-2", "part-3", "part-3", "part-3", "part-4"]


@durable("group")
async def group() -> list[str]:
    async with asyncio.TaskGroup() as tasks:
        parts = [tasks.create_task(do.named(f"part-{number}")(f"part-{number}")) for number in range(5)]
    return [part.result() for part in parts]


async def test_all_that_left_the_body_together(dsn: str) -> None:
    """So are failures that left it in the same group, and those that came when it had failed: it would fail of them."""
    broken.update({"part-1", "part-3"})
    async with working(dsn, group) as client:
        await failed(client, group, "x")
        broken.clear()
        assert await client.retry_step("x", "part-1")
        assert await client.wait_completion("x", timeout="20s") == [f"part-{number}" for number in range(5)]
    assert effects.count("part-0") == 1


@durable("forgiving")
async def forgiving() -> str:
    try:
        return await do.named("charge")("charge")
    except ConnectionError:
        return f"by hand: {await zart.wait_for_event('paid', str)}"


@pytest.mark.parametrize("config", [fast(), forgetful()], ids=["kept in memory", "replayed"])
async def test_one_that_the_body_has_caught_and_waits(dsn: str, config: zart.WorkerConfig) -> None:
    """A suspended execution whose body has caught the failure comes to the same call again, which works now."""
    broken.add("charge")
    async with working(dsn, forgiving, config=config) as client:
        await client.start(forgiving, id="x")
        await until_status(client, "x", "waiting")
        broken.clear()
        assert await client.retry_step("x", "charge")
        assert await client.wait_completion("x", timeout="20s") == "charge"


@durable("two-branches")
async def two_branches() -> list[str]:
    async def charge() -> str:
        try:
            return await do.named("charge")("charge")
        except ConnectionError:
            return f"by hand: {await zart.wait_for_event('paid', str)}"

    return list(await asyncio.gather(charge(), hold("long")))


@pytest.mark.not_in("suspending", reason="the failed record cuts the other branch off there")
async def test_while_another_branch_is_in_a_step(dsn: str) -> None:
    """What runs is let finish and is recorded; then the execution is taken up again with the failed step."""
    broken.add("charge")
    async with working(dsn, two_branches) as client:
        await client.start(two_branches, id="x")
        await until_record(client, "x", "1/charge", "failed")
        await until(lambda: "long" in effects)
        broken.clear()
        assert await client.retry_step("x", "1/charge")
        ((repair,),) = await query(dsn, "SELECT repair FROM zart_tasks")
        assert repair == [["1/", "charge", 1, "step"]]
        gates["long"].set()
        assert await client.wait_completion("x", timeout="20s") == ["charge", "long"]
    assert effects.count("long") == 1


@durable("plain-await")
async def plain_await() -> str:
    try:
        return await do.named("charge")("charge")
    except ConnectionError:
        await gates.setdefault("outside", asyncio.Event()).wait()
        return "never"


async def test_in_a_plain_await(dsn: str) -> None:
    """A body that waits for something outside of Zart, and so is held, is given back at once."""
    broken.add("charge")
    async with working(dsn, plain_await) as client:
        await client.start(plain_await, id="x")
        await until(lambda: "outside" in gates)
        broken.clear()
        assert await client.retry_step("x", "charge")
        assert await client.wait_completion("x", timeout="20s") == "charge"


@durable("child")
async def child() -> str:
    return await do.named("charge")("charge")


@durable("parent")
async def parent() -> list[str]:
    return [await do("before"), await child()]


async def test_a_child_that_failed(dsn: str) -> None:
    """For its parent a child is a call like any other: retried, it is another execution, under another id."""
    broken.add("charge")
    async with working(dsn, parent, child) as client:
        await failed(client, parent, "x")
        first = next(
            record.child_id for record in (await client.history("x")).records if record.kind == "child"
        )
        broken.clear()
        assert await client.retry_step("x", "child")
        assert await client.wait_completion("x", timeout="20s") == ["before", "charge"]
        second = next(
            record.child_id for record in (await client.history("x")).records if record.kind == "child"
        )
        assert first is not None
        assert (await client.status(first)).status == "failed"
    assert second != first
    assert effects.count("before") == 1


@durable("trip")
async def trip() -> str:
    async with zart.saga() as saga:
        saga.add(do.named("cancel-hotel"), "cancel hotel")
        await do.named("hotel")("hotel")
        return await do.named("flight")("flight")


async def test_what_a_saga_has_undone_is_done_again(dsn: str) -> None:
    broken.add("flight")
    async with working(dsn, trip) as client:
        await failed(client, trip, "x")
        assert effects == ["hotel", "flight", "flight", "cancel hotel"]
        broken.clear()
        assert await client.retry_step("x", "flight")
        assert await client.wait_completion("x", timeout="20s") == "flight"
    assert effects[4:] == ["hotel", "flight"]


@durable("limited", timeout="300ms")
async def limited() -> str:
    try:
        await do.named("charge")("charge")
    except ConnectionError:
        await zart.wait_for_event("never")
    return "done"


async def test_after_a_time_limit(dsn: str) -> None:
    """The limit that passed is set aside with the failed step, and counts anew."""
    broken.add("charge")
    async with working(dsn, limited) as client:
        await failed(client, limited, "x")
        broken.clear()
        assert await client.retry_step("x", "charge")
        assert await client.wait_completion("x", timeout="20s") == "done"


@step("note-key")
async def note_key(what: str) -> None:
    effects.append(f"{what} {zart.step_context().idempotency_key}")


async def _handle(_data: None, failure: zart.Failure) -> None:
    await note_key("handled")


@durable("handled", on_failure=_handle)
async def handled() -> str:
    await note_key("kept")
    return await do.named("charge")("charge")


@durable("cleaned", timeout="1h")
async def cleaned() -> str:
    try:
        await do.named("charge")("charge")
    except ConnectionError:
        try:
            await zart.wait_for_event("never")
        finally:
            if not zart.suspending():
                await note_key("cleaned")
    return "charge"


@pytest.mark.parametrize("fn", [handled, cleaned], ids=["on_failure", "cleanup"])
async def test_what_is_set_aside_is_done_again_under_another_key(dsn: str, fn: Any) -> None:
    """It was done: a service that drops what it has seen would drop the second time, which is another one."""
    broken.add("charge")

    async def failed_again() -> None:
        if fn is cleaned:  # it waits until its time is over
            await until_status(client, "x", "waiting")
            await shift_clock(dsn, dt.timedelta(hours=2))
        await until_status(client, "x", "failed")

    async with working(dsn, fn) as client:
        await client.start(fn, id="x")
        await failed_again()
        assert await client.retry_step("x", "charge")
        await failed_again()
        broken.clear()
        assert await client.retry_step("x", "charge")
        assert await client.wait_completion("x", timeout="20s") == "charge"
    keys = [effect for effect in effects if effect.startswith(fn.name)]
    assert len(keys) == len(set(keys)) == 2


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "with records"])
@pytest.mark.parametrize(
    "ending",
    [Completed(result=b"1"), Failed(failure=b"{}"), ContinuedAsNew(payload=b"2")],
    ids=lambda ending: type(ending).__name__,
)
@pytest.mark.stores_plain(reason="gives the journal records by itself, as they are")
async def test_an_end_that_comes_after_the_request_is_none(dsn: str, ending: Any, beside: bool) -> None:
    """The body ends before its worker has heard of the request: the execution is given back, and what was asked for is
    done, whatever else its worker writes at that moment."""
    async with Bench(dsn) as bench:
        asked = [["", "charge", 1, "step"]]
        one, other = await bench.hold([1, 2])
        await bench.database.execute("UPDATE zart_tasks SET repair = %s WHERE id = 1", (Jsonb(asked),))
        verdicts = [bench.end(one, ending)]
        if beside:
            verdicts += [bench.write(other, "step"), bench.end(other, Completed(result=b"1"))]
        assert [await verdict for verdict in verdicts] == [None] * len(verdicts)
        rows = await bench.rows("SELECT run_id, state, owner, repair FROM zart_tasks WHERE id = 1")
        assert rows == [(one.run_id, "ready", None, asked)]
        assert await bench.value("SELECT status FROM zart_executions WHERE id = %s", one.id) == "scheduled"
        assert await bench.value("SELECT count(*) FROM zart_execution_runs") == 0


async def test_a_cancel_comes_before_what_was_asked_for(dsn: str) -> None:
    async with Bench(dsn) as bench:
        (held,) = await bench.hold([1], cancel_at=dt.datetime.now(dt.UTC), repair="[]")
        assert await bench.end(held, Completed(result=b"1")) is None
        assert await bench.rows("SELECT status FROM zart_executions") == [("cancelled",)]


async def test_one_that_was_asked_for_before_the_body_was_blocked(dsn: str) -> None:
    """Asked for once more when the code is mended, it goes on: no other command is needed."""
    broken.add("charge")
    async with working(dsn, forgiving, config=forgetful()) as client:
        await client.start(forgiving, id="x")
        await until_status(client, "x", "waiting")
        broken.clear()
        # As if it had been blocked between the request and the replay that would have met it.
        asked = """UPDATE zart_tasks SET repair = '[["", "charge", 1, "step"]]', state = 'blocked'"""
        await query(dsn, asked)
        assert (await client.status("x")).status == "blocked"
        assert await client.retry_step("x", "charge")
        assert await client.wait_completion("x", timeout="20s") == "charge"


# ------------------------------------------------------------ what is refused


async def test_what_cannot_be_retried(dsn: str) -> None:
    async with working(dsn, order, forgiving) as client:
        await client.start_and_wait(order, id="done", timeout="20s")
        with pytest.raises(
            ExecutionFinished, match="'done' has completed: no step of this run can be retried"
        ):
            await client.retry_step("done", "charge")
        with pytest.raises(ExecutionNotFound):
            await client.retry_step("nobody", "charge")
        broken.add("charge")
        await failed(client, order, "x")
        with pytest.raises(UsageError, match="'x' has no record 'chrage'; there is do, charge"):
            await client.retry_step("x", "chrage")
        assert not await client.retry_step("x", "do")
        assert (await client.status("x")).status == "failed"
        await client.start(forgiving, id="cancelled")
        await until_status(client, "cancelled", "waiting")
        await client.cancel("cancelled")
        await until_status(client, "cancelled", "cancelled")
        with pytest.raises(ExecutionFinished, match="has been cancelled"):
            await client.retry_step("cancelled", "charge")


async def test_a_request_that_somebody_has_edited(dsn: str) -> None:
    """The execution is held and says so; once the row is mended it goes on."""
    broken.add("charge")
    async with working(dsn, forgiving) as client:
        await client.start(forgiving, id="x")
        await until_status(client, "x", "waiting")
        await query(dsn, "UPDATE zart_tasks SET repair = '{\"a\": 1}', state = 'ready', signal = signal + 1")
        await until_status(client, "x", "blocked")
        failure = (await client.status("x")).failure
        assert failure is not None
        assert "Set `repair` of its row in zart_tasks to null" in failure.message
        await query(dsn, "UPDATE zart_tasks SET repair = NULL")
        assert await client.resume("x")
        await client.offer_event("x", "paid", "cash")
        assert await client.wait_completion("x", timeout="20s") == "by hand: cash"
