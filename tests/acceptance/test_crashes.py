"""Workers that are killed, stopped, told to end, or whose event loop is blocked: real processes, real signals."""

import asyncio
import signal
import time

import pytest

from tests.acceptance.apps.crashing import (
    blocking,
    cut_off,
    deadly,
    handed_over,
    innocent,
    retries,
    sleeps,
    threaded,
    three_steps,
)
from tests.support.processes import Crew, WorkerProcess
from tests.support.running import query, until, until_record, until_status
from zart import Client, ExecutionBlocked

APP = "tests.acceptance.apps.crashing"
LONG = {"orphan_timeout": "60s", "heartbeat_interval": "1s"}
"""Nobody is taken for dead in the time of a test."""


async def takeovers(dsn: str, execution: str) -> int:
    ((count,),) = await query(
        dsn, "SELECT count(*) FROM zart_history WHERE execution_id = %s AND what = 'takeover'", execution
    )
    return int(count)


async def nothing_is_owned_by_the_dead(dsn: str) -> bool:
    owned = "SELECT t.owner FROM zart_tasks t WHERE t.owner IS NOT NULL"
    living = "SELECT 1 FROM zart_workers w WHERE w.worker_id = t.owner"
    return not await query(dsn, f"{owned} AND NOT EXISTS ({living})")


def by_pid(workers: tuple[WorkerProcess, WorkerProcess], pid: int) -> tuple[WorkerProcess, WorkerProcess]:
    """That one, and the other."""
    one, two = workers
    return (one, two) if one.pid == pid else (two, one)


# ------------------------------------------------------------ killed


@pytest.mark.slow
@pytest.mark.not_in("suspending", reason="another worker may go on after each record, so who dies is open")
async def test_killed_after_two_steps_of_three(dsn: str, crew: Crew) -> None:
    """Kill -9 after step 2 of 3; another worker takes over: steps 1 and 2 ran once in all, step 3 on the other."""
    workers = await crew.pair(APP)
    async with Client(dsn) as client:
        handle = await client.start(three_steps, id="e")
        await until_record(client, "e", "two", "completed")
        victim, other = by_pid(workers, crew.effects()[0].pid)
        victim.kill()
        crew.open("three")
        assert await handle.result(timeout="15s") == ["ONE", "TWO", other.pid]
    done = [effect for effect in crew.did("e") if not effect[0].endswith("begins")]
    assert done == [("one", victim.pid), ("two", victim.pid), ("three", other.pid)]
    assert await takeovers(dsn, "e") == 1


@pytest.mark.slow
@pytest.mark.not_in("suspending", reason="another worker may go on after each record, so who dies is open")
async def test_killed_between_the_effect_and_its_record(dsn: str, crew: Crew) -> None:
    """Killed between a step's effect and its commit: that step runs again, earlier ones do not."""
    workers = await crew.pair(APP)
    async with Client(dsn) as client:
        assert await (await client.start(cut_off, id="e")).result(timeout="15s") == ["ONE", "TWO", "THREE"]
    victim, other = by_pid(workers, crew.effects()[0].pid)
    assert victim.exit_code == -signal.SIGKILL
    assert crew.did("e") == [
        ("one", victim.pid),
        ("two", victim.pid),
        ("two", other.pid),
        ("three", other.pid),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("beside", [False, True], ids=["suspended", "held"])
async def test_the_remainder_of_a_retry(dsn: str, crew: Crew, beside: bool) -> None:
    """A worker that takes over waits for the remainder of a retry's delay only, and counts the attempts on."""
    workers = await crew.pair(APP)
    async with Client(dsn) as client:
        handle = await client.start(retries, beside, id="e")
        attempt = await crew.until_done("e", "attempt")
        first, second = by_pid(workers, attempt.pid)
        if beside:
            await crew.until_done("e", "beside begins")
            await until_record(client, "e", "unsteady", "waiting")
        else:
            await until_status(client, "e", "waiting")
        first.kill()
        again = await crew.until_done("e", "attempt", times=2)
        crew.open("beside")
        assert await handle.result(timeout="15s") == "steady"
        third = await crew.until_done("e", "attempt", times=3)
        assert [again.pid, third.pid] == [second.pid, second.pid]
        # A delay that began anew with the takeover would end more than 3.5 s after the first attempt when it was held.
        assert 1.99 <= again.at - attempt.at < 3.4
        assert 1.99 <= third.at - again.at < 5.0
        record = next(record for record in (await client.history("e")).records if record.name == "unsteady")
        assert (record.state, record.attempts) == ("completed", 3)
    failed = await query(dsn, "SELECT attempt FROM zart_step_attempts ORDER BY attempt")
    assert failed == [(1,), (2,)]


@pytest.mark.slow
async def test_a_sleep_outlasts_a_killed_worker(dsn: str, crew: Crew) -> None:
    """Sleep 3 s, the worker is killed at once, another starts in between: it wakes at 3 s."""
    first = await crew.worker(APP)
    async with Client(dsn) as client:
        handle = await client.start(sleeps, 3, id="e")
        await until_status(client, "e", "waiting")
        first.kill()
        second = await crew.worker(APP)
        ready_at = time.time()
        assert await handle.result(timeout="15s") == "AFTER"
    before, after = crew.effects("e")
    assert (before.pid, after.pid) == (first.pid, second.pid)
    assert after.at - before.at >= 3.0
    assert after.at < max(before.at + 3.0, ready_at) + 1.5


async def supervise(crew: Crew, over: asyncio.Event, **options: str) -> None:
    """Start a worker again whenever it has died, as systemd or Kubernetes do."""
    while not over.is_set():
        worker = crew.begin(APP, **options)
        await until(lambda w=worker: w.exit_code is not None or over.is_set(), within=60)  # type: ignore[misc]


@pytest.mark.slow
async def test_a_deadly_execution(dsn: str, crew: Crew) -> None:
    """A handler that kills the process each time is blocked after `max_recoveries`; others go on unaffected; `resume`
    gives it a new budget."""
    over = asyncio.Event()
    async with Client(dsn) as client, asyncio.TaskGroup() as group:
        for number in range(5):
            await client.start(innocent, 0.8, id=f"innocent-{number}")
        handle = await client.start(deadly, id="deadly")
        options = {"orphan_timeout": "1s", "heartbeat_interval": "100ms", "max_recoveries": "2"}
        group.create_task(supervise(crew, over, **options))
        try:
            with pytest.raises(ExecutionBlocked, match="taken over 3 times in a row"):
                await handle.result(timeout="30s")
            assert len(crew.effects("deadly")) == 3
            for number in range(5):
                result = await client.wait_completion(f"innocent-{number}", timeout="20s")
                assert result == ["FIRST", "long", "LAST"]
            assert (await client.status("deadly")).status == "blocked"

            assert await client.resume("deadly", reason="another look")
            await crew.until_done("deadly", "kill", times=4)
            crew.open("mended")  # the fourth may have been killed before: then there is a fifth
            assert await handle.result(timeout="20s") == "lived"
        finally:
            over.set()
    assert await nothing_is_owned_by_the_dead(dsn)


# ------------------------------------------------------------ told to end


@pytest.mark.slow
async def test_told_to_end_with_running_steps(dsn: str, crew: Crew) -> None:
    """SIGTERM with running steps: no new claims; what ends in time is recorded, the rest is handed over at once, no
    attempt is burned, and the exit code is 0."""
    first = await crew.worker(APP, **LONG, shutdown_timeout="1s")
    async with Client(dsn) as client:
        soon = await client.start(handed_over, "soon", id="soon")
        never = await client.start(handed_over, "never", id="never")
        await crew.until_done("soon", "soon begins")
        await crew.until_done("never", "never begins")
        second = await crew.worker(APP, **LONG)

        first.send(signal.SIGTERM)
        told = time.monotonic()
        await first.until_logged("SIGTERM")
        late = await client.start(handed_over, "late", id="late")
        await crew.until_done("late", "late begins")
        crew.open("soon")
        # "soon" is handed over when its step has ended, while the first worker still waits for the other one.
        assert await soon.result(timeout="10s") == [first.pid, "AFTER SOON"]
        assert first.exit_code is None
        assert await first.until_ended() == 0
        assert time.monotonic() - told < 6.0
        await crew.until_done("never", "never begins", times=2)

        crew.open("never")
        crew.open("late")
        assert await never.result(timeout="10s") == [second.pid, "AFTER NEVER"]
        assert await late.result(timeout="10s") == [second.pid, "AFTER LATE"]
        for id in ("soon", "never", "late"):
            assert [record.attempts for record in (await client.history(id)).records] == [1, 1]
    assert crew.did("soon") == [
        ("soon begins", first.pid),
        ("soon", first.pid),
        ("after soon", second.pid),
    ]
    assert {pid for _, pid in crew.did("late")} == {second.pid}
    assert await query(dsn, "SELECT 1 FROM zart_history WHERE what = 'takeover'") == []
    assert await query(dsn, "SELECT 1 FROM zart_step_attempts") == []
    assert "Traceback" not in first.log


@pytest.mark.slow
async def test_told_to_end_with_a_thread_that_does_not(dsn: str, crew: Crew) -> None:
    """A plain `def` step cannot be cut: at SIGTERM its execution is handed over and the process ends all the same."""
    first = await crew.worker(APP, **LONG, shutdown_timeout="300ms")
    async with Client(dsn) as client:
        handle = await client.start(threaded, id="e")
        await crew.until_done("e", "thread")
        first.send(signal.SIGTERM)
        assert await first.until_ended(within=5) == 0
        second = await crew.worker(APP, **LONG)
        await handle.result(timeout="10s")
    assert crew.did("e") == [("thread", first.pid), ("thread", second.pid)]


# ------------------------------------------------------------ stopped, and blocked


@pytest.mark.slow
async def test_stopped_and_continued(dsn: str, crew: Crew) -> None:
    """A worker is stopped for longer than the orphan timeout, then continued: its writes are refused, its executions
    went on elsewhere, it says so and carries on claiming."""
    first = await crew.worker(APP)
    async with Client(dsn) as client:
        handle = await client.start(three_steps, id="e")
        await crew.until_done("e", "three begins")
        second = await crew.worker(APP)
        first.send(signal.SIGSTOP)
        await crew.until_done("e", "three begins", times=2)
        crew.open("three")
        assert await handle.result(timeout="10s") == ["ONE", "TWO", second.pid]
        second.send(signal.SIGTERM)
        assert await second.until_ended() == 0

        first.send(signal.SIGCONT)
        await crew.until_done("e", "three", times=2)  # it ends its step, like any zombie
        await first.until_logged("taken for dead")
        await first.until_logged(r"worker \d+ runs", times=2)
        assert await client.start_and_wait(three_steps, id="next", timeout="10s") == [
            "ONE",
            "TWO",
            first.pid,
        ]
        records = await query(dsn, "SELECT result FROM zart_steps WHERE name = 'three' ORDER BY seq")
        assert sorted(records) == sorted([(first.pid,), (second.pid,)])
        assert await handle.result() == ["ONE", "TWO", second.pid]
    assert await nothing_is_owned_by_the_dead(dsn)
    assert first.exit_code is None


@pytest.mark.slow
async def test_a_blocked_event_loop_keeps_its_work(dsn: str, crew: Crew) -> None:
    """A step that blocks the event loop for longer than the orphan timeout is not taken over; the line that blocks is
    in the log."""
    first = await crew.worker(APP, orphan_timeout="1s", heartbeat_interval="100ms")
    async with Client(dsn) as client:
        handle = await client.start(blocking, 2.5, id="e")
        await crew.until_done("e", "block")
        second = await crew.worker(APP, orphan_timeout="1s", heartbeat_interval="100ms")
        assert await handle.result(timeout="10s") == first.pid
    assert crew.did("e") == [("block", first.pid)]
    assert await takeovers(dsn, "e") == 0
    await first.until_logged(r"blocked for \d\.\d s at \S*crashing\.py:\d+ in block\.")
    await first.until_logged("the event loop runs again")
    assert "stopped answering" not in second.log


@pytest.mark.slow
async def test_a_wedged_worker_ends(dsn: str, crew: Crew) -> None:
    """An event loop that is blocked past `wedge_timeout` ends the process, with all stacks in the log; others take
    over."""
    first = await crew.worker(APP, orphan_timeout="1s", heartbeat_interval="100ms", wedge_timeout="1s")
    async with Client(dsn) as client:
        handle = await client.start(blocking, 60, id="e")
        await crew.until_done("e", "block")
        second = await crew.worker(APP)
        assert await first.until_ended(within=10) == 70
        assert await handle.result(timeout="10s") == second.pid
    assert "is given up" in first.log
    assert "time.sleep(seconds)" in first.log
    assert crew.did("e") == [("block", first.pid), ("block", second.pid)]
