"""Fail-overs, a full disk, clocks that are wrong: each with a database server of its own.

`python -m tests.chaos.failover`, `.forgetting`, `.full_disk` and `.clocks` do the same for longer.
"""

import asyncio
import os
from pathlib import Path

import pytest

import zart
from tests.chaos import clocks, failover, forgetting, full_disk
from tests.chaos.effects import PLACE_VARIABLE
from tests.support.running import fast, query, until
from zart import Client, ExecutionNotFound, Registry, Worker, durable, step

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
SEED = 1


@pytest.fixture
def place(open_directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where servers live, and steps note what they do."""
    monkeypatch.setenv(PLACE_VARIABLE, str(open_directory))
    return open_directory


async def test_a_fail_over_to_a_synchronous_standby(place: Path) -> None:
    """The primary is killed under load and its standby promoted: workers and clients go on by themselves, and nothing
    that was acknowledged is missing, or recorded twice."""
    figures = await failover.run(place, seconds=5, seed=SEED)
    assert figures["violations"] == []
    assert figures["fail-overs"] == 1
    assert figures["executions"] > 40


async def test_a_fail_over_to_a_standby_that_was_behind(place: Path) -> None:
    """Under workers that live on: everything that was started before the standby fell behind ends as it should."""
    figures = await forgetting.run(place, seconds=1, seed=SEED)
    assert figures["violations"] == []
    assert figures["workers that were told"] > 0


@pytest.mark.skipif(os.geteuid() != 0, reason="a small file system is mounted for it, which is root's right")
async def test_a_full_disk(place: Path) -> None:
    """The server's disk is full for some seconds: nothing fails of it, and all goes on when there is space again."""
    figures = await full_disk.run(place, seconds=5, seed=SEED)
    if "skipped" in figures:
        pytest.skip(figures["skipped"])
    assert figures["violations"] == []
    assert sum(figures["refused space"].values()) > 0


async def test_clocks_of_workers_and_the_durable_clock(place: Path) -> None:
    """The workers' clocks jump by hours, and nothing comes of it; durable time jumps by a year, and those who sleep for
    300 days wake up, while no worker is taken for dead."""
    wrong = await asyncio.to_thread(clocks.library, place)
    figures = await clocks.workers_and_durable(place, wrong, seconds=6, seed=SEED)
    assert figures["violations"] == []


ran: list[str] = []


@step("{name}")
async def note(name: str) -> str:
    ran.append(name)
    return name


@durable("noted")
async def noted(number: int) -> list[str]:
    first = await note(f"first-{number}")
    await zart.wait_for_event("go")
    second = await note(f"second-{number}")
    await zart.wait_for_event("go")
    return [first, second]


async def test_what_an_asynchronous_fail_over_loses(place: Path) -> None:
    """The standby was behind when the primary and its workers died. What was acknowledged since then is as if it had
    not been: a start is unknown and may be sent again, a recorded step runs again. What came before stays."""
    ran.clear()
    async with failover.pair(place) as servers:
        await zart.migrate(servers.dsn)
        async with Client(servers.dsn) as client:
            async with Worker(servers.dsn, Registry(noted), fast()):
                ended = await client.start(noted, 1, id="ended")
                for number in range(2):
                    await client.offer_event("ended", "go", dedup=f"{number}")
                assert await ended.result() == ["first-1", "second-1"]
                await client.start(noted, 2, id="under-way")
                await until(lambda: "first-2" in ran, "the first step")
                await until(lambda: _records(servers, "first-2"), "its record")
                await servers.until_caught_up()
                servers.fall_behind()
                await client.offer_event("under-way", "go", dedup="0")
                await until(lambda: _records(servers, "second-2"), "the record of the second step")
                await client.start(noted, 3, id="lost")
            await asyncio.to_thread(servers.kill_primary)
            await servers.promote()

            with pytest.raises(ExecutionNotFound):
                await client.status("lost")
            assert (await client.start(noted, 3, id="lost")).created
            assert await client.handle(noted, "ended").result() == ["first-1", "second-1"]
            async with Worker(servers.dsn, Registry(noted), fast()):
                for id in ("under-way", "lost"):
                    for number in range(2):
                        await client.offer_event(id, "go", dedup=f"{number}")
                assert await client.handle(noted, "under-way").result() == ["first-2", "second-2"]
                assert await client.handle(noted, "lost").result() == ["first-3", "second-3"]
    assert ran.count("first-2") == 1, "its record was on the standby"
    assert ran.count("second-2") == 2, "its record was not"


async def _records(servers: failover.Pair, name: str) -> bool:
    statement = "SELECT count(*) FROM zart_steps WHERE name = %s AND state = 'completed'"
    return (await query(servers.address(servers.primary), statement, name)) == [(1,)]
