"""Versions of a durable function: side by side, each execution stays with its own."""

from typing import Any

import pytest

import zart
from tests.support.running import bury_workers, query, until, until_status, working
from zart import durable, step

effects: list[str] = []


@pytest.fixture(autouse=True)
def _no_effects() -> None:
    effects.clear()


@step("note")
async def note(label: str) -> str:
    effects.append(label)
    return label


def version(number: str | None) -> zart.Durable[[], list[str]]:
    @durable("checkout", version=number)
    async def checkout() -> list[str]:
        first = await note(f"{number} begins")
        await zart.wait_for_event("go")
        return [first, await note(f"{number} ends")]

    return checkout


FIRST, SECOND, THIRD = version(None), version("2"), version("3")


async def outcome(client: zart.Client, id: str) -> Any:
    await client.offer_event(id, "go")
    return await client.wait_completion(id, timeout="10s")


async def test_versions_side_by_side_in_one_registry(dsn: str) -> None:
    """A start by its object takes its version; by name or from SQL it takes `version`, else none."""
    async with working(dsn, FIRST, SECOND) as client:
        await client.start(FIRST, id="first")
        await client.start(SECOND, id="second")
        await client.start("checkout", id="by-name")
        await client.start("checkout", id="by-name-2", version="2")
        await query(dsn, "SELECT zart_start('checkout', id => 'sql')")
        await query(dsn, "SELECT zart_start('checkout', id => 'sql-2', version => '2')")
        async with await zart_connection(dsn) as connection:
            await zart.start(SECOND, id="transaction-2", connection=connection)
        for id in ("first", "by-name", "sql"):
            assert await outcome(client, id) == ["None begins", "None ends"]
            assert (await client.status(id)).version is None
        for id in ("second", "by-name-2", "sql-2", "transaction-2"):
            assert await outcome(client, id) == ["2 begins", "2 ends"]
            assert (await client.status(id)).version == "2"


async def zart_connection(dsn: str) -> Any:
    import psycopg

    return await psycopg.AsyncConnection.connect(dsn, autocommit=True)


async def test_an_execution_stays_with_its_version(dsn: str) -> None:
    """Over deaths of its worker and beside workers of other versions: these leave it where it is."""
    async with working(dsn, FIRST) as client:
        await client.start(FIRST, id="x")
        await until_status(client, "x", "waiting")
    async with working(dsn, SECOND) as client:
        await client.offer_event("x", "go")
        await client.start(SECOND, id="y")
        assert await outcome(client, "y") == ["2 begins", "2 ends"]
        status = await client.status("x")
        assert (status.status, status.version, status.served) == ("running", None, False)
        assert dict((await client.stats()).unserved) == {"checkout": 1}
        async with working(dsn, FIRST, THIRD):
            await bury_workers(dsn)
            assert await client.wait_completion("x", timeout="10s") == ["None begins", "None ends"]
    assert effects == ["None begins", "2 begins", "2 ends", "None ends"]


async def test_a_version_that_nobody_has_registered_is_shown_as_unserved(dsn: str) -> None:
    """Whether it is ready or waits; a worker that has it takes it up."""
    async with working(dsn, SECOND) as client:
        await client.start(SECOND, id="waits")
        await until_status(client, "waits", "waiting")
        assert (await client.status("waits")).served
    async with working(dsn, FIRST) as client:
        await client.start(SECOND, id="ready")
        shown = {execution.id: execution.served async for execution in client.executions(name="checkout")}
        assert shown == {"waits": False, "ready": False}
        assert dict((await client.stats()).unserved) == {"checkout version 2": 1}
        async with working(dsn, SECOND):
            await until(lambda: served(client, "ready"))
            assert await outcome(client, "ready") == ["2 begins", "2 ends"]
            assert await outcome(client, "waits") == ["2 begins", "2 ends"]


async def served(client: zart.Client, id: str) -> bool:
    return (await client.status(id)).served


async def test_a_start_that_comes_again_after_a_deploy(dsn: str) -> None:
    """An id stands for one function and one input: the version that the newer code would start is not asked for."""
    async with working(dsn, FIRST, SECOND) as client:
        await client.start(FIRST, id="x")
        again = await client.start(SECOND, id="x")
        assert not again.created
        assert (await again.status()).version is None
        assert await outcome(client, "x") == ["None begins", "None ends"]


async def test_a_version_goes_with_a_name(dsn: str) -> None:
    """A durable function has its own."""
    async with zart.Client(dsn) as client:
        with pytest.raises(zart.UsageError, match="has its own"):
            await client.start(SECOND, id="x", version="3")  # type: ignore[call-overload]
