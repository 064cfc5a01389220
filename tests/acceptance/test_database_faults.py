"""Databases that restart, break connections off or are not there yet, under real worker processes."""

import asyncio
import signal
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import anyio
import psycopg
import pytest

import zart
from tests.acceptance.apps.counting import NAMES, ask, ask_others, count, counted, through_a_restart
from tests.support import modes
from tests.support.crashing import crash_server
from tests.support.processes import Crew
from tests.support.running import query, until, until_record
from tests.support.server import SETTINGS
from zart import Client, ResultTimeout
from zart._postgres import embedded

APP = "tests.acceptance.apps.counting:registry"
OTHERS = "tests.acceptance.apps.counting:others"
LONG = {"orphan_timeout": "60s", "heartbeat_interval": "1s"}
"""Nobody is taken for dead in the time of a test."""


class Fragile:
    """A server of the test's own, to be stopped at will."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.server = embedded.start(directory, settings=SETTINGS)
        self.dsn = self.server.dsn()

    def stop(self) -> None:
        """Stop it as at a power cut: no connection is served any longer, nothing is flushed."""
        crash_server(self.directory)

    def start(self) -> None:
        self.server = embedded.start(self.directory, settings=SETTINGS)


@pytest.fixture
def directory(open_directory: Path) -> Iterator[Path]:
    """One that a server may live in; it is stopped at the end."""
    yield open_directory
    with suppress(embedded.EmbeddedServerError):
        found = embedded.running(open_directory)
        if found is not None:
            found.stop()


@pytest.fixture
def fragile(directory: Path) -> Fragile:
    server = Fragile(directory)
    anyio.run(zart.migrate, server.dsn)
    return server


async def check_counted(dsn: str, ids: list[str], handles: list[zart.ExecutionHandle[list[int]]]) -> None:
    """All results are exact, and every step is recorded exactly once."""
    for number, handle in enumerate(handles):
        assert await handle.result(timeout="40s") == counted(number)
    recorded = await query(
        dsn,
        "SELECT execution_id, name, state, attempts FROM zart_v_steps WHERE kind = 'step'",
    )
    assert Counter(recorded) == Counter((id, name, "completed", 1) for id in ids for name in NAMES)


# ------------------------------------------------------------ servers that go away


@pytest.mark.slow
async def test_a_restart_in_the_middle_of_a_step(fragile: Fragile, tmp_path: Path) -> None:
    """Postgres goes away in the middle of a step and comes back after it has ended: nothing fails, nothing is run
    again, and the worker goes on by itself."""
    async with Crew(fragile.dsn, tmp_path) as crew:
        worker = await crew.worker(APP, **LONG)
        async with Client(fragile.dsn) as client:
            await client.start(through_a_restart, id="e")
            await crew.until_done("e", "hold begins")
        await anyio.to_thread.run_sync(fragile.stop)
        crew.open("hold")
        await crew.until_done("e", "hold")
        await worker.until_logged("the journal could not write")
        await anyio.to_thread.run_sync(fragile.start)
        async with Client(fragile.dsn) as client:
            assert await client.wait_completion("e", timeout="20s") == [1, worker.pid, 2]
            assert await client.start_and_wait(ask, timeout="15s") == worker.pid
        did = [what for what, _ in crew.did("e")]
        assert did == ["add-1", "hold begins", "hold", "add-2"]
        assert worker.exit_code is None
        assert "Traceback" not in worker.log


@pytest.mark.slow
async def test_restarts_and_broken_connections_under_load(fragile: Fragile, tmp_path: Path) -> None:
    """Backends are terminated again and again and Postgres is restarted while 50 executions run: all results are
    exact, every step is recorded once, the workers reconnect unaided."""
    ids = [f"e{number}" for number in range(50)]
    async with Crew(fragile.dsn, tmp_path) as crew:
        workers = await crew.pair(APP, **LONG)
        async with Client(fragile.dsn) as client:
            handles = [await client.start(count, number, id=id) for number, id in enumerate(ids)]
            for _ in range(8):
                seen = len(crew.effects())
                terminate = (
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE pid <> pg_backend_pid() AND application_name LIKE 'zart%'"
                )
                await query(fragile.dsn, terminate)
                await until(lambda s=seen: len(crew.effects()) > s)  # type: ignore[misc]
            assert len(crew.effects()) < len(ids) * len(NAMES)
            await anyio.to_thread.run_sync(fragile.stop)
            await anyio.to_thread.run_sync(fragile.start)
            await check_counted(fragile.dsn, ids, handles)
        assert [worker.exit_code for worker in workers] == [None, None]
        await until(lambda: all("listens for notifications again" in worker.log for worker in workers))
        done = Counter((e.execution, e.what) for e in crew.effects())
        if modes.current() == "suspending":  # the record of one branch cuts the others off there
            done = Counter(set(done))
        assert done == Counter((id, name) for id in ids for name in NAMES)
        for worker in workers:
            worker.send(signal.SIGTERM)
        assert [await worker.until_ended() for worker in workers] == [0, 0]


@pytest.mark.slow
async def test_workers_that_lose_their_leases_under_load(fragile: Fragile, tmp_path: Path) -> None:
    """A server that is away for longer than the orphan timeout: whoever was taken for dead registers again, and all
    results are exact."""
    ids = [f"e{number}" for number in range(20)]
    async with Crew(fragile.dsn, tmp_path) as crew:
        workers = await crew.pair(APP, orphan_timeout="600ms", heartbeat_interval="100ms")
        async with Client(fragile.dsn) as client:
            handles = [await client.start(count, number, id=id) for number, id in enumerate(ids)]
            for _ in range(2):
                seen = len(crew.effects())
                await until(lambda s=seen: len(crew.effects()) >= min(s + 20, 180))  # type: ignore[misc]
                await anyio.to_thread.run_sync(fragile.stop)
                stopped = time.monotonic()
                await until(lambda t=stopped: time.monotonic() - t > 0.7)  # type: ignore[misc]
                await anyio.to_thread.run_sync(fragile.start)
            await check_counted(fragile.dsn, ids, handles)
        assert [worker.exit_code for worker in workers] == [None, None]


@pytest.mark.slow
async def test_told_to_end_while_the_database_is_away(fragile: Fragile, tmp_path: Path) -> None:
    """SIGTERM while Postgres is away: the worker ends within seconds, and another goes on when there is one again."""
    async with Crew(fragile.dsn, tmp_path) as crew:
        worker = await crew.worker(APP, shutdown_timeout="300ms")
        async with Client(fragile.dsn) as client:
            await client.start(through_a_restart, id="e")
            await crew.until_done("e", "hold begins")
        await anyio.to_thread.run_sync(fragile.stop)
        worker.send(signal.SIGTERM)
        assert await worker.until_ended(within=20) == 0
        assert "Traceback" not in worker.log
        await anyio.to_thread.run_sync(fragile.start)
        second = await crew.worker(APP)
        crew.open("hold")
        async with Client(fragile.dsn) as client:
            assert await client.wait_completion("e", timeout="15s") == [1, second.pid, 2]


# ------------------------------------------------------------ servers that are not there


@pytest.mark.slow
async def test_a_worker_that_starts_before_its_database(fragile: Fragile, tmp_path: Path) -> None:
    """A worker that is started while its database still starts waits for it."""
    fragile.stop()
    async with Crew(fragile.dsn, tmp_path) as crew:
        worker = crew.begin(APP)
        await anyio.to_thread.run_sync(fragile.start)
        await worker.until_logged(r"worker \d+ runs")


@pytest.mark.slow
async def test_a_worker_without_a_database_gives_up(tmp_path: Path) -> None:
    """Where no database answers, a worker says so in one line after a few seconds, and ends with 1."""
    nowhere = f"postgresql://someone:sesame@/somewhere?host={tmp_path}&port=5432"
    async with Crew(nowhere, tmp_path) as crew:
        worker = crew.begin(APP)
        assert await worker.until_ended(within=20) == 1
        lines = [line for line in worker.log.splitlines() if "payloads are encrypted" not in line]
        assert len(lines) == 1
        assert lines[0].startswith("zart: no connection to postgresql://someone:***@/somewhere")
        assert "within 5 s" in lines[0]


# ------------------------------------------------------------ notifications


@pytest.mark.slow
@pytest.mark.usefixtures("notified")
async def test_results_are_quick(dsn: str, crew: Crew) -> None:
    """`result()` wakes within 50 ms of the execution's end: the median of eleven."""
    await crew.worker(APP, **LONG)
    delays = []
    async with Client(dsn) as client:
        waits = client._outcomes._waits
        for number in range(11):
            handle = await client.start(through_a_restart, id=f"e{number}")
            waiting = asyncio.create_task(handle.result(timeout="10s"))
            await until_record(client, handle.id, "add-1", "completed")
            # By then the poll alone would take some 200 ms.
            await until(lambda i=handle.id: i in waits and waits[i].marked and waits[i].interval > 0.3)
            crew.open("hold")
            await waiting
            woken = time.time()
            finished = (await client.status(handle.id)).finished_at
            assert finished is not None
            delays.append(woken - finished.timestamp())
            (crew.directory / "hold.open").unlink()
    assert statistics.median(delays) < 0.05


@pytest.mark.slow
async def test_results_without_notifications(dsn: str, crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no LISTEN connection can be had, `result()` finds the end within its poll of at most a second."""
    await crew.worker(APP, **LONG)
    monkeypatch.setenv("ZART_DIRECT_URL", f"postgresql://nobody@/nothing?host={crew.directory}")
    delays = []
    async with Client(dsn) as client:
        for number in range(3):
            handle = await client.start(through_a_restart, id=f"e{number}")
            with pytest.raises(ResultTimeout):
                await handle.result(timeout="300ms")
            waiting = asyncio.create_task(handle.result(timeout="10s"))
            await crew.until_done(handle.id, "hold begins")
            crew.open("hold")
            await waiting
            woken = time.time()
            finished = (await client.status(handle.id)).finished_at
            assert finished is not None
            delays.append(woken - finished.timestamp())
            (crew.directory / "hold.open").unlink()
    assert max(delays) < 1.3


# ------------------------------------------------------------ claims


@pytest.mark.slow
async def test_a_worker_claims_what_it_has_registered(dsn: str, crew: Crew) -> None:
    """A worker claims only what it has registered; work that nobody has registered waits, and is shown as such in its
    log, in `stats` and by `status`."""
    worker = await crew.worker(APP)
    async with Client(dsn) as client:
        others = [await client.start(ask_others, id=f"other-{number}") for number in range(3)]
        assert await client.start_and_wait(ask, timeout="10s") == worker.pid
        await worker.until_logged(
            r"3 executions of ask-others in queue 'default' are ready, and no worker .* has registered it"
        )
        assert dict((await client.stats()).unserved) == {"ask-others": 3}
        execution = await others[0].status()
        assert (execution.status, execution.served) == ("scheduled", False)
        assert crew.did("other-0") == []

        second = await crew.worker(OTHERS)
        for handle in others:
            assert await handle.result(timeout="10s") == second.pid
        assert dict((await client.stats()).unserved) == {}
        assert await client.start_and_wait(ask, timeout="10s") == worker.pid


@pytest.mark.slow
async def test_a_zombies_claim_in_flight(dsn: str, crew: Crew) -> None:
    """A worker is stopped while its claim is in flight, and reaped after the claim was committed: nothing stays owned
    by the dead, and the work is done by another."""
    first = await crew.worker(APP)
    (dead,) = first.worker_ids
    async with Client(dsn) as client, await psycopg.AsyncConnection.connect(dsn) as blocker:
        for attempt in range(5):
            await until(lambda: query(dsn, CLAIMER_AT_REST), "a worker that looks for work no more")
            # Whoever holds the fence's row holds up the claim, in the server.
            lock = "SELECT FROM zart_workers WHERE worker_id = %s AND writer = 0 FOR UPDATE"
            await blocker.execute(lock, (dead,))
            handle = await client.start(ask, id=f"e{attempt}")
            started = (await handle.status()).created_at
            ((began,),) = await until(lambda: query(dsn, CLAIM_THAT_WAITS), "a claim that waits")
            if began > started:
                break
            await blocker.rollback()  # that one could not see the new work: it looked before
            await handle.result(timeout="10s")
        assert began > started
        first.send(signal.SIGSTOP)
        before = len(crew.effects())
        await blocker.rollback()
        owned = "SELECT 1 FROM zart_tasks WHERE owner = %s"
        await until(lambda: query(dsn, owned, dead), "the claim of a stopped worker")
        second = await crew.worker(APP)
        assert await handle.result(timeout="15s") == second.pid
        assert await no_fence_of(dsn, dead)
        first.send(signal.SIGCONT)
        await first.until_logged("taken for dead")
        await first.until_logged(r"worker \d+ runs", times=2)
        assert crew.did(handle.id) == [("answer", second.pid)]
        assert len(crew.effects()) == before + 1
        assert await query(dsn, "SELECT id FROM zart_tasks") == []


# Of a statement the server shows the first kilobyte.
CLAIMER_AT_REST = """
    SELECT 1 FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'zart worker' AND state = 'idle'
        AND query LIKE 'SELECT EXISTS (%t.recoveries <= 1%' AND state_change < clock_timestamp() - interval '300 ms'
"""
CLAIM_THAT_WAITS = """
    SELECT query_start FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock'
        AND query LIKE '%FOR KEY SHARE%' AND query LIKE '%suspect AS MATERIALIZED%'
"""


async def no_fence_of(dsn: str, worker: int) -> bool:
    return not await query(dsn, "SELECT 1 FROM zart_workers WHERE worker_id = %s", worker)
