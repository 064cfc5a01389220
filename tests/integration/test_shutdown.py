"""How a worker, or a registration of it, ends: what runs is cut or finished, the rest is given back and announced,
whatever the database does.
"""

import asyncio
import time
from typing import Any

import psycopg
import pytest
from psycopg import sql

from tests.support.executions import Bench
from tests.support.proxy import Proxy
from tests.support.running import bury_workers, fast, query, until, worker_for, working
from zart import Client, durable, step
from zart._engine.entries import Released
from zart._engine.lease import Lease
from zart._postgres.listener import work_channel

LATER_IS_IDLE = (
    "SELECT 1 FROM zart_workers WHERE idle AND worker_id > (SELECT min(worker_id) FROM zart_workers)"
)

turns: list[str] = []
QUICK = fast(shutdown_timeout="50ms", orphan_timeout="60s", heartbeat_interval="1s")


@pytest.fixture(autouse=True)
def _no_turns() -> None:
    turns.clear()


@step("spin")
async def spin() -> None:
    """Never waits for the same thing for long."""
    try:
        while True:
            turns.append("turn")
            await asyncio.sleep(0.0005)
    finally:
        turns.append("cut")


@durable("spins")
async def spins() -> None:
    await spin()


@durable("passes")
async def passes() -> str:
    return "passed"


async def test_a_step_that_goes_on_is_cut(dsn: str) -> None:
    """A step that is given back is cancelled even if it did not stand still, and has ended when the worker has."""
    async with Client(dsn) as client:
        async with worker_for(dsn, spins, config=QUICK):
            await client.start(spins, id="e")
            await until(lambda: turns)
        assert turns[-1] == "cut"
        assert await query(dsn, "SELECT state, recoveries FROM zart_tasks") == [("ready", 0)]


@pytest.mark.usefixtures("notified")
async def test_what_is_given_back_is_announced(dsn: str) -> None:
    """An idle worker goes on at once with what another gives back at its shutdown."""
    async with Client(dsn) as client:
        first = worker_for(dsn, spins, config=QUICK)
        async with first:
            await client.start(spins, id="e")
            await until(lambda: turns)
            async with worker_for(dsn, spins, config=fast(shutdown_timeout="50ms", poll_interval="20s")):
                await until(lambda: query(dsn, LATER_IS_IDLE))
                # Its last look of a series is long over: from now on only a notification wakes it soon.
                began = time.monotonic()
                await until(lambda: time.monotonic() - began > 0.4)
                first.stop()
                await until(lambda: "cut" in turns)
                cut = len(turns)
                stopped = time.monotonic()
                await until(lambda: len(turns) > cut)
                assert time.monotonic() - stopped < 0.5


@pytest.mark.slow
async def test_a_stop_while_the_database_is_away(dsn: str) -> None:
    """A worker that is told to stop ends within seconds, although nothing can be written any more."""
    async with Proxy(dsn) as proxy, Client(dsn) as client:
        async with worker_for(proxy.dsn, spins, config=QUICK):
            await client.start(spins, id="e")
            await until(lambda: turns)
            proxy.refusing = True
            proxy.cut()
            began = time.monotonic()
        assert time.monotonic() - began < 12
        assert turns[-1] == "cut"


async def test_drain_waits_for_the_announcement(dsn: str, direct_dsn: str) -> None:
    """The journal is drained only when the others have been told of what was given back."""
    async with (
        Proxy(dsn) as proxy,
        Bench(dsn, through=proxy.dsn) as bench,
        await psycopg.AsyncConnection.connect(direct_dsn, autocommit=True) as ears,
    ):
        await ears.execute(sql.SQL("LISTEN {}").format(sql.Identifier(work_channel("public"))))
        await bench.database.execute("UPDATE zart_workers SET idle = true")
        (held,) = await bench.hold([1])
        given_back = bench.end(held, Released())
        given_back.add_done_callback(lambda _: proxy.stall())
        draining = asyncio.create_task(bench.journal.drain())
        assert await given_back is None
        for _ in range(20):
            await asyncio.sleep(0)
        assert not draining.done()
        proxy.resume()
        await draining
        assert [told.channel async for told in ears.notifies(timeout=5, stop_after=1)]


async def test_a_registration_that_breaks_off(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that was taken for dead registers again, however often the connection breaks off over it."""
    register, breaks = Lease.register, [1, 2, 3]

    async def break_off(*arguments: Any, **options: Any) -> Lease:
        if breaks:
            breaks.pop()
            raise psycopg.OperationalError("server closed the connection unexpectedly")
        return await register(*arguments, **options)

    async with working(dsn, passes) as client:
        assert await client.start_and_wait(passes, timeout="5s") == "passed"
        monkeypatch.setattr(Lease, "register", break_off)
        await bury_workers(dsn)
        await until(lambda: not breaks)
        assert await client.start_and_wait(passes, timeout="5s") == "passed"
