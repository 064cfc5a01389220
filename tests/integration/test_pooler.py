"""Behind PgBouncer in transaction mode: what a session would keep is done without, and found out by itself."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import conninfo

import zart
from tests.support.databases import Databases
from tests.support.pooler import find_pgbouncer, pgbouncer
from tests.support.running import fast, until_status, working
from tests.support.server import Server
from zart import Client, durable, step
from zart._postgres import connections
from zart._postgres.pooler import through_pooler

pytestmark = pytest.mark.skipif(find_pgbouncer() is None, reason="PgBouncer is not installed")


@pytest.fixture(scope="module")
def pooler(server: Server) -> Iterator[str]:
    """A PgBouncer with two connections to each database."""
    with pgbouncer(server.dsn, default_pool_size="2") as address:
        yield address


@pytest.fixture
def pooled(pooler: str, dsn: str) -> str:
    """The test's database through it."""
    return conninfo.make_conninfo(pooler, dbname=str(conninfo.conninfo_to_dict(dsn)["dbname"]))


@pytest.fixture(autouse=True)
def _automatic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZART_PREPARED", raising=False)


async def test_a_pooler_is_noticed(pooled: str, direct_dsn: str) -> None:
    """The process that answers is not the one that was announced."""
    for dsn, expected in (pooled, True), (direct_dsn, False):
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            assert await through_pooler(connection) is expected


async def check_threshold(dsn: str, expected: int | None) -> None:
    """A single connection and those of a pool prepare statements so."""
    async with await connections.connect(dsn, application_name="test") as connection:
        assert connection.prepare_threshold == expected
    pool = connections.make_pool(dsn, application_name="test")
    await pool.open()
    async with pool.connection() as connection:
        assert connection.prepare_threshold == expected
    await pool.close()


@pytest.mark.parametrize(("setting", "expected"), [(None, None), ("auto", None), ("on", 2), ("off", None)])
async def test_prepared_statements_behind_a_pooler(
    pooled: str, monkeypatch: pytest.MonkeyPatch, setting: str | None, expected: int | None
) -> None:
    """There are none unless ZART_PREPARED says that the pooler can keep them."""
    if setting is not None:
        monkeypatch.setenv("ZART_PREPARED", setting)
    await check_threshold(pooled, expected)


@pytest.mark.parametrize(("setting", "expected"), [(None, 2), ("auto", 2), ("on", 2), ("off", None)])
async def test_prepared_statements_without_a_pooler(
    direct_dsn: str, monkeypatch: pytest.MonkeyPatch, setting: str | None, expected: int | None
) -> None:
    """They are used unless ZART_PREPARED says otherwise."""
    if setting is not None:
        monkeypatch.setenv("ZART_PREPARED", setting)
    await check_threshold(direct_dsn, expected)


@step("twice")
async def twice(number: int) -> int:
    return number * 2


@durable("pooled")
async def pooled_body(count: int) -> list[int]:
    out = [await twice(number) for number in range(count)]
    await zart.sleep("700ms")
    out.append(await zart.wait_for_event("more", int))
    return out


@pytest.mark.parametrize("direct", [False, True], ids=["no other way", "with ZART_DIRECT_URL"])
async def test_many_executions_over_two_sessions(
    pooled: str,
    direct_dsn: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    direct: bool,
) -> None:
    """Client and worker share two sessions, which change hands at every statement: steps, sleeps and events come out as
    they should, and nobody complains of a statement. It is said once that nobody can listen, and how that is mended."""
    if direct:
        monkeypatch.setenv("ZART_DIRECT_URL", direct_dsn)
    with caplog.at_level(logging.INFO, logger="zart"):
        async with working(pooled, pooled_body, config=fast(poll_interval="50ms")) as client:
            handles = await client.start_many(pooled_body, {f"p{number}": number % 7 for number in range(50)})
            for handle in handles:
                await client.offer_event(handle.id, "more", 1000)
            for number, handle in enumerate(handles):
                expected = [2 * each for each in range(number % 7)]
                assert await handle.result(timeout="30s") == [*expected, 1000]
            await until_status(client, "p0", "completed")
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []
    told = [record for record in caplog.records if "ZART_DIRECT_URL" in record.getMessage()]
    assert len(told) == (0 if direct else 2)  # the worker's, and the client's own


async def test_migrating_through_a_pooler(databases: Databases, pooler: str) -> None:
    """Tables are made through it, once, however often it is asked for: the lock is a transaction's."""
    import anyio

    with databases.database() as name:
        address = conninfo.make_conninfo(pooler, dbname=name)
        async with anyio.create_task_group() as group:
            for _ in range(6):
                group.start_soon(zart.migrate, address)
        async with Client(address) as client:
            assert (await client.stats()).workers == 0


def test_the_command_line_through_a_pooler(pooled: str, empty_dsn: str, pooler: str, tmp_path: Path) -> None:
    """`zart migrate` and the commands that read work as they do without."""
    from tests.support.command import Command

    empty = conninfo.make_conninfo(pooler, dbname=str(conninfo.conninfo_to_dict(empty_dsn)["dbname"]))
    for address in empty, pooled:
        zart_command = Command(tmp_path, address)
        assert zart_command("migrate").returncode == 0
        assert zart_command("migrate", "--check").returncode == 0
        assert zart_command("stats", "--json").returncode == 0
    assert os.environ.get("ZART_DIRECT_URL") is None
