"""Steps that run at most once, and steps that run for long: what is known of them while they do."""

import asyncio
import threading
from typing import Any

import pytest

import zart
from tests.support.running import (
    bury_workers,
    fast,
    query,
    until,
    until_record,
    until_status,
    worker_for,
    working,
)
from zart import durable, step

ran: list[str] = []
gates: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    ran.clear()
    gates.clear()


async def through(gate: str) -> None:
    ran.append(gate)
    await until(lambda: gates.get(gate), within=60)


# ---------------------------------------------------------------- at most once


@step("charge", at_most_once=True)
async def charge(amount: int) -> str:
    ran.append("charge")
    if gates.get("hold"):
        await through("charge")
    if amount < 0:
        raise ValueError("less than nothing")
    return f"charged {amount}"


@step("look-up")
async def look_up() -> str:
    ran.append("look-up")
    return "nothing was charged"


@durable("buy", max_retries=2)
async def buy(amount: int) -> str:
    try:
        return await charge(amount)
    except zart.StepInterrupted as interrupted:
        return f"{interrupted.step}: {await look_up()}"


@pytest.mark.parametrize("always_suspend", [False, True], ids=["live", "replayed after each record"])
async def test_it_runs_and_is_recorded(dsn, always_suspend):
    """That it is started is recorded first; after that it is a step like any other."""
    async with working(dsn, buy, always_suspend=always_suspend) as client:
        assert await client.start_and_wait(buy, 7, id="b", timeout="30s") == "charged 7"
    assert ran == ["charge"]
    assert await query(dsn, "SELECT state, seq, attempts FROM zart_v_steps") == [("completed", 1, 1)]


async def test_that_it_is_started_is_committed_before_it_runs(dsn):
    """The function finds its own record, and people see it."""
    seen: list[Any] = []

    @step("looks", at_most_once=True)
    async def looks() -> None:
        seen.extend(await query(dsn, "SELECT state, attempts FROM zart_v_steps"))

    @durable("looking")
    async def looking() -> None:
        await looks()

    async with working(dsn, looking) as client:
        await client.start_and_wait(looking, id="l", timeout="30s")
    assert seen == [("started", 1)]


async def test_an_interrupted_one_is_never_run_again(dsn):
    """Its worker is taken for dead in the middle: the next one raises StepInterrupted in the body, which goes on."""
    gates["hold"] = True
    async with working(dsn, buy) as client:
        await client.start(buy, 7, id="b")
        await until(lambda: "charge" in ran)
        gates["hold"] = False
        await bury_workers(dsn)
        result = await client.wait_completion("b", timeout="30s")
        history = await client.history("b")
    assert result == "charge: nothing was charged"
    assert ran.count("look-up") == 1
    assert ran[:2] == ["charge", "charge"]  # the second is the gate that it went into, in the same attempt
    assert [(record.name, record.state) for record in history.records] == [
        ("charge", "failed"),
        ("look-up", "completed"),
    ]
    failure = history.records[0].failure
    assert failure is not None
    assert "which runs at most once, was started at" in failure.message


@durable("buy-blindly", max_retries="fixed(2, 1ms)")
async def buy_blindly(amount: int) -> str:
    ran.append("body")
    return await charge(amount)


async def test_a_failure_that_leaves_the_body_does_not_run_it_again(dsn):
    """The body runs again, by its own retries, and gets the same failure from the record each time."""
    async with working(dsn, buy_blindly) as client:
        handle = await client.start(buy_blindly, -1, id="b")
        with pytest.raises(zart.ExecutionFailed, match="less than nothing"):
            await handle.result(timeout="30s")
    assert ran.count("charge") == 1
    assert ran.count("body") >= 3  # a replay runs it, too


async def test_a_shutdown_waits_for_it(dsn):
    """Long past its limit, since nobody could run it again; then its record is written and the rest given back."""
    gates["hold"] = True
    async with zart.Client(dsn) as client:
        worker = worker_for(dsn, buy, config=fast(shutdown_timeout="50ms"))
        async with worker:
            await client.start(buy, 7, id="b")
            await until(lambda: ran == ["charge", "charge"])
            worker.stop()
            await asyncio.sleep(0.5)  # ten times the limit
            assert (await client.history("b")).records[0].state == "started"
            gates["charge"] = True
        assert (await client.history("b")).records[0].state == "completed"
        async with worker_for(dsn, buy):
            assert await client.wait_completion("b", timeout="30s") == "charged 7"
    assert ran == ["charge", "charge"]


@step("beside")
async def beside() -> str:
    ran.append("beside")
    return "beside"


@durable("both")
async def both() -> list[str]:
    return list(await asyncio.gather(charge(1), beside()))


async def test_a_record_beside_it_does_not_give_it_up(dsn):
    """While a worker stops, executions are given back at their next record; not in the middle of such a step."""
    gates["hold"] = True
    async with zart.Client(dsn) as client:
        worker = worker_for(dsn, both, always_suspend=True)
        async with worker:
            await client.start(both, id="b")
            try:
                await until(lambda: "beside" in ran)
                worker.stop()
            finally:
                gates["charge"] = True
        async with worker_for(dsn, both):
            assert await client.wait_completion("b", timeout="30s") == ["charged 1", "beside"]
    assert ran.count("charge") == 2  # once, and its gate


@durable("buy-elsewhere", max_retries="fixed(1, 1ms)")
async def buy_elsewhere(amount: int) -> str:
    ran.append("body")
    return await zart.schedule_step(charge, amount)


async def test_a_scheduled_one_is_never_run_again_either(dsn):
    """Neither by who takes it over, nor by a retry of the body: the failure stands."""
    gates["hold"] = True
    async with working(dsn, buy_elsewhere) as client:
        handle = await client.start(buy_elsewhere, 7, id="b")
        await until(lambda: ran.count("charge") == 2)  # itself, and its gate
        await bury_workers(dsn)
        with pytest.raises(zart.ExecutionFailed, match="which runs at most once, was started at"):
            await handle.result(timeout="30s")
    assert ran.count("charge") == 2


@pytest.mark.parametrize(
    "options",
    [{"retry": "fixed(1, 1s)"}, {"transaction": True}, {"transaction": "own"}],
)
def test_it_goes_with_neither_retries_nor_a_transaction(options):
    """Refused where it is decorated, and where it is varied."""
    with pytest.raises(zart.UsageError, match=r"test_long_steps.*at_most_once and .* contradict each other"):
        step("charge", at_most_once=True, **options)(look_up.fn)
    with pytest.raises(zart.UsageError, match="contradict each other"):
        charge.with_options(retry="fixed(1, 1s)")
    charge.with_options(timeout="1s", retry=None)


@pytest.mark.parametrize(("option", "value"), [("at_most_once", "yes"), ("transaction", "mine")])
def test_other_values_are_refused(option, value):
    with pytest.raises(zart.UsageError, match=f"{option} is '{value}', but it must be one of"):
        step("x", **{option: value})(look_up.fn)


# ---------------------------------------------------------------- progress


@step("copy", retry="fixed(2, 1ms)")
async def copy(rows: int) -> list[int | None]:
    begun_at = zart.last_progress(int)
    ran.append(f"from {begun_at}")
    for row in range(begun_at or 0, rows):
        if row == 3 and begun_at is None:
            raise ConnectionError("the other side is away")
        zart.progress(row + 1)
    return [begun_at, zart.last_progress(int)]


@step("copy-in-a-thread", retry="fixed(2, 1ms)")
def copy_in_a_thread(rows: int) -> list[int | None]:
    return copy_again(rows)


def copy_again(rows: int) -> list[int | None]:
    begun_at = zart.last_progress(int)
    for row in range(begun_at or 0, rows):
        if row == 3 and begun_at is None:
            raise ConnectionError("the other side is away")
        zart.progress(row + 1)
    return [begun_at, zart.last_progress(int)]


@durable("copying")
async def copying(rows: int) -> list[list[int | None]]:
    return [await copy(rows), await copy_in_a_thread(rows)]


@pytest.mark.parametrize("always_suspend", [False, True], ids=["live", "replayed after each record"])
async def test_progress_is_kept_for_the_next_attempt(dsn, always_suspend):
    """In an `async def` and in a plain `def`: the last one before a failure is never lost, however fast they came."""
    async with working(dsn, copying, always_suspend=always_suspend) as client:
        assert await client.start_and_wait(copying, 5, id="c", timeout="30s") == [[3, 5], [3, 5]]
    assert ran == ["from None", "from 3"]
    assert await query(dsn, "SELECT progress FROM zart_v_steps ORDER BY seq") == [(5,), (5,)]


@step("hour")
async def hour() -> str:
    zart.progress({"page": zart.last_progress(dict[str, int])["page"] + 1 if zart.last_progress(Any) else 1})
    await through("hour")
    return str(zart.last_progress(Any))


@step("hour-in-a-thread")
def hour_in_a_thread() -> None:
    zart.progress("in a thread")
    ran.append("thread")
    gates["event"].wait(30)


@durable("hours")
async def hours() -> str:
    return await hour()


async def test_progress_survives_the_worker(dsn):
    """The first is written at once: another worker that takes over begins with it."""
    async with working(dsn, hours) as client:
        await client.start(hours, id="h")
        await until_record(client, "h", "hour", "running")
        assert await query(dsn, "SELECT state, progress FROM zart_v_steps") == [("running", {"page": 1})]
        await bury_workers(dsn)
        gates["hour"] = True
        assert await client.wait_completion("h", timeout="30s") == "{'page': 2}"


@durable("hours-elsewhere")
async def hours_elsewhere() -> str:
    return await zart.schedule_step(hour)


async def test_progress_of_a_scheduled_step(dsn):
    """It survives its worker as well."""
    async with working(dsn, hours_elsewhere) as client:
        await client.start(hours_elsewhere, id="h")
        await until_record(client, "h", "hour", "running")
        await bury_workers(dsn)
        gates["hour"] = True
        assert await client.wait_completion("h", timeout="30s") == "{'page': 2}"


async def test_progress_costs_about_one_write_a_second(dsn):
    """A thousand of them in a row: the first is written, and the last one with what becomes of the step."""
    written: list[Any] = []

    @step("busy")
    async def busy() -> None:
        for number in range(1000):
            zart.progress(number)
            if number % 100 == 0:
                await asyncio.sleep(0.02)
                written.extend(await query(dsn, "SELECT progress, token FROM zart_steps"))

    @durable("busily")
    async def busily() -> None:
        await busy()

    async with working(dsn, busily) as client:
        await client.start_and_wait(busily, id="b", timeout="30s")
    assert len(set(written)) <= 2
    assert written[0][0] is not None
    assert await query(dsn, "SELECT progress FROM zart_v_steps") == [(999,)]


async def test_progress_that_cannot_be_stored_fails_where_it_is_told(dsn):
    """With the step's name, and not later for somebody else."""

    @step("bad")
    async def bad() -> None:
        zart.progress(float("nan"))

    @durable("badly")
    async def badly() -> None:
        await bad()

    async with working(dsn, badly) as client:
        handle = await client.start(badly, id="b")
        with pytest.raises(zart.ExecutionFailed, match="the progress of step 'bad'"):
            await handle.result(timeout="30s")


async def test_where_progress_may_be_told(dsn):
    """In a step; a body is refused by name, and outside it does nothing."""

    @durable("tells")
    async def tells() -> list[str]:
        told: list[str] = []
        for call in (lambda: zart.progress(1), lambda: zart.last_progress(int)):
            try:
                call()
            except zart.UsageError as error:
                told.append(str(error))
        return told

    async with working(dsn, tells) as client:
        told = await client.start_and_wait(tells, id="t", timeout="30s")
    assert ["call it in a" in text for text in told] == [True, False]
    assert "in the step that told it" in told[1]
    zart.progress(1)
    assert zart.last_progress(int) is None


# ---------------------------------------------------------------- long steps and cancels


@durable("thread-hours")
async def thread_hours() -> None:
    await hour_in_a_thread()


@pytest.mark.parametrize("fn", [hours, thread_hours], ids=["async def", "plain def"])
async def test_a_step_of_an_hour_is_cancelled_at_once(dsn, fn):
    """A cancel reaches it within a moment, whatever it waits for; a thread is left to itself."""
    gates["event"] = threading.Event()
    try:
        async with working(dsn, fn, config=fast(poll_interval="10s")) as client:
            await client.start(fn, id="h")
            await until(lambda: ran)
            begun = asyncio.get_running_loop().time()
            assert await client.cancel("h", reason="enough")
            await until_status(client, "h", "cancelled")
            took = asyncio.get_running_loop().time() - begun
            gates["event"].set()
    finally:
        gates["event"].set()
    assert took < 5  # an idle worker would look after ten seconds
    assert await query(dsn, "SELECT name, state FROM zart_v_steps WHERE kind = 'step'") == [
        (fn.name.replace("hours", "hour") if fn is hours else "hour-in-a-thread", "cancelled")
    ]


async def test_what_is_known_of_a_long_step(dsn):
    """The history has its progress, for `zart show`."""
    async with working(dsn, hours) as client:
        await client.start(hours, id="h")
        await until_record(client, "h", "hour", "running")
        history = await client.history("h")
        gates["hour"] = True
        await client.wait_completion("h", timeout="30s")
    assert [(record.state, record.progress) for record in history.records] == [("running", '{"page":1}')]
