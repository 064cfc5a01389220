"""How a worker ends: what runs is cut or finished, the rest is given back and announced, whatever the database does."""

import asyncio
import time

import pytest

from tests.support.proxy import Proxy
from tests.support.running import fast, query, until, worker_for
from zart import Client, durable, step

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


async def test_a_step_that_goes_on_is_cut(dsn: str) -> None:
    """A step that is given back is cancelled even if it did not stand still, and has ended when the worker has."""
    async with Client(dsn) as client:
        async with worker_for(dsn, spins, config=QUICK):
            await client.start(spins, id="e")
            await until(lambda: turns)
        assert turns[-1] == "cut"
        assert await query(dsn, "SELECT state, recoveries FROM zart_tasks") == [("ready", 0)]


async def test_what_is_given_back_is_announced(dsn: str) -> None:
    """An idle worker goes on at once with what another gives back at its shutdown."""
    async with Client(dsn) as client:
        first = worker_for(dsn, spins, config=QUICK)
        async with first:
            await client.start(spins, id="e")
            await until(lambda: turns)
            async with worker_for(dsn, spins, config=fast(shutdown_timeout="50ms", poll_interval="20s")):
                await until(lambda: query(dsn, "SELECT 1 FROM zart_workers WHERE idle AND worker_id = 2"))
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
