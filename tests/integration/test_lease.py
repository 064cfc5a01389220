"""Leases: registered, kept from a thread, lost and given up."""

import asyncio
import datetime as dt
import logging
import threading
import time

import psycopg
import pytest

from tests.support.floor import HOUR, Floor
from zart._engine.lease import Lease, resolve_lanes
from zart._engine.reaper import reap

SECOND = dt.timedelta(seconds=1)


class Kept:
    """A lease with a heartbeat, and what it has called."""

    def __init__(self, floor: Floor, lease: Lease) -> None:
        self.lease = lease
        self.fenced = asyncio.Event()
        self.other_server = asyncio.Event()
        self.wedged = threading.Event()
        self.connections: list[psycopg.Connection] = []
        self._dsn = floor.dsn

    def dial(self) -> psycopg.Connection:
        self.connections.append(psycopg.connect(self._dsn, autocommit=True))
        return self.connections[-1]

    def keep(self, *, wedge: dt.timedelta = HOUR) -> None:
        self.lease.keep(
            self.dial,
            interval=SECOND * 0.05,
            wedge_timeout=wedge,
            on_fenced=self.fenced.set,
            on_wedged=self.wedged.set,
            on_other_server=self.other_server.set,
        )


async def kept(floor: Floor, *, orphan_timeout: dt.timedelta = HOUR, wedge: dt.timedelta = HOUR) -> Kept:
    made = Kept(floor, (await floor.hand(orphan_timeout=orphan_timeout)).lease)
    made.keep(wedge=wedge)
    return made


async def test_a_registration_has_a_row_for_each_writer_and_an_id_of_its_own(dsn):
    """What it says of itself is there to be read; after it has left, its id is not used again."""
    async with Floor(dsn) as floor:
        lease = await Lease.register(
            floor._dial, "public", lanes=[3, 1], orphan_timeout=HOUR, writers=2, host="here", pid=7
        )
        rows = await floor.rows(
            "SELECT worker_id, writer, host, pid, lanes, idle FROM zart_workers ORDER BY writer"
        )
        assert rows == [(lease.worker_id, writer, "here", 7, [3, 1], False) for writer in (0, 1)]
        assert lease.fresh
        await lease.close(floor._dial)
        assert await floor.rows("SELECT FROM zart_workers") == []
        again = await Lease.register(floor._dial, "public", lanes=[], orphan_timeout=HOUR)
        assert again.worker_id > lease.worker_id


async def test_the_heartbeat_goes_on_while_the_loop_is_blocked(dsn, caplog):
    """Longer than the orphan timeout: nobody takes over, and the log names the line."""
    async with Floor(dsn) as floor:
        await floor.start("e")
        worker = await kept(floor, orphan_timeout=SECOND * 0.8)
        with psycopg.connect(dsn, autocommit=True) as plain:
            start = time.monotonic()
            while time.monotonic() - start < 1.6:  # blocks the loop for twice the orphan timeout
                ((standing,),) = plain.execute(
                    "SELECT bool_and(expires_at > clock_timestamp()) FROM zart_workers WHERE worker_id = %s",
                    (worker.lease.worker_id,),
                ).fetchall()
                assert standing
        assert worker.lease.fresh
        assert await reap(floor.database, "public") == []
        assert not worker.lease.fenced
        assert "test_lease.py:" in caplog.text
        assert "blocked for" in caplog.text


async def test_a_worker_whose_rows_are_gone_is_told(dsn):
    """On the event loop, at the next heartbeat; it is no longer fresh."""
    async with Floor(dsn) as floor:
        worker = await kept(floor)
        await floor.database.execute("DELETE FROM zart_workers")
        async with asyncio.timeout(10):
            await worker.fenced.wait()
        assert worker.lease.fenced
        assert not worker.lease.fresh


async def test_a_heartbeat_tells_of_another_server(dsn):
    """One that was started at another time; and not of the one that has answered before."""
    async with Floor(dsn) as floor:
        worker = Kept(floor, (await floor.hand(orphan_timeout=HOUR)).lease)
        worker.lease.server -= SECOND
        worker.keep()
        async with asyncio.timeout(10):
            await worker.other_server.wait()
        worker.other_server.clear()
        told = await floor.value("SELECT max(heartbeat_at) FROM zart_workers")
        await floor.until("SELECT bool_and(heartbeat_at > %s) FROM zart_workers", told)
        assert not worker.other_server.is_set()


async def test_a_worker_that_cannot_renew_knows_before_others_take_over(dsn):
    """Its rows are locked, so no heartbeat passes: it stops being fresh while its lease still stands."""
    async with Floor(dsn) as floor:
        worker = await kept(floor, orphan_timeout=SECOND * 2)
        holder = await floor.connect()
        async with holder.transaction():
            await holder.execute("SELECT FROM zart_workers FOR UPDATE")
            async with asyncio.timeout(10):
                while worker.lease.fresh:  # noqa: ASYNC110 (a property of time)
                    await asyncio.sleep(0.01)
            assert await floor.value("SELECT bool_and(expires_at > clock_timestamp()) FROM zart_workers")
        async with asyncio.timeout(10):
            while not worker.lease.fresh:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert not worker.lease.fenced


async def test_a_lost_connection_is_opened_again(direct_dsn, caplog):
    """The heartbeat says so once, and goes on by itself."""
    caplog.set_level(logging.INFO, "zart.worker")
    async with Floor(direct_dsn) as floor:
        worker = await kept(floor)
        await floor.until("SELECT bool_and(heartbeat_at > started_at) FROM zart_workers")
        (first,) = worker.connections
        await floor.database.execute("SELECT pg_terminate_backend(%s)", (first.info.backend_pid,))
        now = await floor.value("SELECT clock_timestamp()")
        await floor.until(
            "SELECT bool_and(heartbeat_at > %s::timestamptz + interval '0.2s') FROM zart_workers", now
        )
        assert caplog.text.count("could not renew") == 1
        assert caplog.text.count("renews its lease again") == 1
        assert worker.lease.fresh


async def test_a_wedged_loop_loses_its_lease(dsn, caplog):
    """Past the limit the stacks are logged, the heartbeat ends and the worker is told from the thread; then others
    take over.
    """
    async with Floor(dsn) as floor:
        await floor.start("e")
        worker = await kept(floor, orphan_timeout=SECOND, wedge=SECOND * 0.5)
        assert worker.wedged.wait(20)  # blocks the loop until it is given up
        assert "is given up" in caplog.text
        await worker.lease.stop()
        await floor.until("SELECT bool_and(expires_at < clock_timestamp()) FROM zart_workers")
        await reap(floor.database, "public")
        assert await floor.rows("SELECT FROM zart_workers") == []


async def test_workers_that_start_together_agree_on_the_lanes(dsn, server_log):
    """Eight of them, with the same new functions in different order: the same lanes, no deadlock."""
    async with Floor(dsn) as floor:
        functions = [("default", f"f{number}", version) for number in range(20) for version in (None, "2")]

        async def resolve(turn: int):
            session = await floor.connect()
            return await resolve_lanes(session, "public", functions[turn:] + functions[:turn])

        answers = await asyncio.gather(*(resolve(turn * 5) for turn in range(8)))
        assert all(answer == answers[0] for answer in answers)
        assert sorted(answers[0].values(), key=str) == sorted(functions, key=str)
        assert "deadlock" not in server_log()
        assert await resolve_lanes(floor.database, "public", []) == {}


STOPPABLE = """
import asyncio, datetime, psycopg, sys
from zart._engine.lease import Lease
dsn, second = sys.argv[1], datetime.timedelta(seconds=1)
async def main():
    async def connect():
        return await psycopg.AsyncConnection.connect(dsn, autocommit=True)
    lease = await Lease.register(connect, "public", lanes=[], orphan_timeout=second)
    told = asyncio.Event()
    lease.keep(lambda: psycopg.connect(dsn, autocommit=True), interval=second / 10, wedge_timeout=second * 60,
               on_fenced=told.set, on_wedged=lambda: None)
    print(lease.worker_id, flush=True)
    await told.wait()
    print("fenced", lease.fresh, flush=True)
    await lease.stop()
asyncio.run(main())
"""


async def test_a_stopped_process_finds_out_when_it_goes_on(dsn):
    """SIGSTOP for longer than the orphan timeout, a takeover, SIGCONT: it is fenced, not fresh, and says so."""
    import signal
    import sys

    async with Floor(dsn) as floor:
        await floor.start("e")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", STOPPABLE, dsn, stdout=asyncio.subprocess.PIPE
        )
        try:
            assert process.stdout is not None
            worker = int(await process.stdout.readline())
            await floor.database.execute("UPDATE zart_tasks SET state = 'running', owner = %s", (worker,))
            process.send_signal(signal.SIGSTOP)
            await floor.until("SELECT bool_and(expires_at < clock_timestamp()) FROM zart_workers")
            assert await reap(floor.database, "public") == ["e"]
            process.send_signal(signal.SIGCONT)
            assert await process.stdout.readline() == b"fenced False\n"
            assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


@pytest.mark.parametrize("orphan_timeout", [SECOND * 0.2])
async def test_freshness_ends_by_itself(dsn, orphan_timeout):
    """Without a heartbeat it lasts for four fifths of the lease."""
    async with Floor(dsn) as floor:
        lease = (await floor.hand(orphan_timeout=orphan_timeout)).lease
        await floor.until("SELECT bool_and(expires_at < clock_timestamp()) FROM zart_workers")
        assert not lease.fresh
        assert not lease.fenced
