"""A standby takes over that was behind, and the workers live on: what the database has forgotten is done again.

The standby hears nothing from a moment on that each test chooses. What is confirmed after it is gone with the primary,
and the worker of before is the one that goes on. Its lease is long: nobody takes its work by that.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import zart
from tests.chaos import failover
from tests.support.running import fast, query, until, until_status
from zart import Client, Registry, Worker, durable, step

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

ran: list[str] = []
gates: dict[str, asyncio.Event] = {}


async def _run(name: str) -> None:
    ran.append(name)
    if name in gates:
        await gates[name].wait()


@step("note-{name}")
async def note(name: str) -> str:
    await _run(name)
    return name


@step("write-{name}", transaction=True)
async def write(name: str) -> str:
    await _run(name)
    await zart.connection().execute("INSERT INTO written VALUES (%s)", [name])
    return name


@step("stumble-{name}", retry="fixed(3, 1s)")
async def stumble(name: str) -> str:
    await _run(name)
    if ran.count(name) == 1:
        raise RuntimeError("the first time")
    return name


STEPS = {"n": note, "w": write, "s": stumble}


@durable("noted")
async def noted(names: list[str]) -> list[str]:
    """The steps of these names, of the sort that the first letter says."""
    return [await STEPS[name[0]](name) for name in names]


class Place:
    """A primary and its standby, a client, and one worker for all of it."""

    def __init__(self, servers: failover.Pair, client: Client) -> None:
        self.servers = servers
        self.client = client

    async def standby_falls_behind(self) -> None:
        await self.servers.until_caught_up()
        self.servers.fall_behind()

    async def fail_over(self) -> None:
        await asyncio.to_thread(self.servers.kill_primary)
        await self.servers.promote()

    async def ask(self, statement: str, *parameters: object) -> list[tuple[object, ...]]:
        return await query(self.servers.address(self.servers.primary), statement, *parameters)

    async def until_running(self, name: str, times: int = 1) -> None:
        await until(lambda: ran.count(name) == times, f"run {times} of {name}")

    async def numbers(self) -> list[object]:
        return [number for (number,) in await self.ask("SELECT seq FROM zart_steps ORDER BY seq")]


@pytest.fixture
async def place(open_directory: Path) -> AsyncIterator[Place]:
    ran.clear()
    gates.clear()
    gates.update({name: asyncio.Event() for name in ("n2", "n3", "w2", "s2")})
    async with failover.pair(open_directory) as servers:
        await zart.migrate(servers.dsn)
        await servers.ask("CREATE TABLE written (name text)")
        config = fast(orphan_timeout="10m", max_parked_bodies=0)
        async with Client(servers.dsn) as client, Worker(servers.dsn, Registry(noted), config):
            yield Place(servers, client)


async def test_a_forgotten_record_is_made_again(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """The step runs once more; no record comes behind a gap."""
    handle = await place.client.start(noted, ["n1", "n2", "n3"], id="x")
    await place.until_running("n2")
    await place.standby_falls_behind()
    gates["n2"].set()
    await place.until_running("n3")
    await place.fail_over()
    gates["n3"].set()
    assert await handle.result() == ["n1", "n2", "n3"]
    assert (ran.count("n1"), ran.count("n2")) == (1, 2)
    assert await place.numbers() == [1, 2, 3]
    assert "the database has forgotten what it had confirmed (the record of step note-n2#1" in caplog.text


async def test_an_execution_whose_end_was_forgotten_ends_again(place: Place) -> None:
    """It is nobody's by then, although the worker that had ended it lives, and holds nothing that would be missed."""
    handle = await place.client.start(noted, ["n1", "n2"], id="x")
    await place.until_running("n2")
    await place.standby_falls_behind()
    gates["n2"].set()
    assert await handle.result() == ["n1", "n2"]
    await place.fail_over()
    await place.until_running("n2", 2)
    await until_status(place.client, "x", "completed")
    assert await place.numbers() == [1, 2]


async def test_a_forgotten_claim_is_given_up(place: Place) -> None:
    """What it runs under that claim is not recorded, and runs once more under one that counts."""
    handle = await place.client.start(noted, ["s2"], id="x")
    gates["s2"].set()
    await until_status(place.client, "x", "waiting")
    gates["s2"].clear()
    await place.standby_falls_behind()
    await place.until_running("s2", 2)
    await place.fail_over()
    await place.until_running("s2", 3)
    gates["s2"].set()
    assert await handle.result() == ["s2"]
    assert await place.ask("SELECT count(*) FROM zart_step_attempts") == [(1,)]


async def test_what_a_step_had_written_and_was_forgotten_is_written_again(place: Place) -> None:
    """In the moment of the fail-over the record of a step in a transaction is the last that was confirmed, on a
    connection of its own. It and the writes are gone together, and both are made again."""
    handle = await place.client.start(noted, ["n1", "w2", "n3"], id="x")
    await place.until_running("w2")
    await place.standby_falls_behind()
    gates["w2"].set()
    await place.until_running("n3")
    await place.fail_over()
    gates["n3"].set()
    assert await handle.result() == ["n1", "w2", "n3"]
    assert ran.count("w2") == 2
    assert await place.ask("SELECT name FROM written") == [("w2",)]


async def test_a_standby_that_has_everything_changes_nothing(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """Steps that run meanwhile keep their results, and nothing runs twice."""
    handles = [
        await place.client.start(noted, names, id=names[-1])
        for names in (["n1", "n2"], ["n4", "w5", "n3"], ["n6"])
    ]
    assert await handles[2].result() == ["n6"]
    await place.until_running("n2")
    await place.until_running("n3")
    await place.servers.until_caught_up()
    await place.fail_over()
    gates["n2"].set()
    gates["n3"].set()
    assert await handles[0].result() == ["n1", "n2"]
    assert await handles[1].result() == ["n4", "w5", "n3"]
    assert sorted(ran) == ["n1", "n2", "n3", "n4", "n6", "w5"]
    assert "the database has forgotten" not in caplog.text
