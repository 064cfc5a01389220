"""A client while the database or the way to it is in trouble."""

import os
import time
from collections.abc import AsyncIterator

import psycopg
import pytest
from psycopg import conninfo

import zart
from tests.support.clients import Order, finish, rows, ship
from tests.support.proxy import Proxy
from zart import Client, SchemaError, UsageError
from zart._postgres.connections import DatabaseUnreachable


@pytest.fixture
async def proxy(dsn: str) -> AsyncIterator[Proxy]:
    async with Proxy(dsn) as running:
        yield running


async def test_start_whose_answer_was_lost(proxy: Proxy, dsn: str) -> None:
    """A start that was committed while its answer was lost is sent again: one execution, and `created` is
    true.
    """
    async with Client(proxy.dsn) as client:
        await client.start(ship, Order(0))
        proxy.lose_answers(1)
        handle = await client.start(ship, Order(1), id="a")
        assert handle.created
        proxy.lose_requests(1)
        assert (await client.start(ship, Order(2), id="b")).created
        proxy.lose_answers(1)
        handles = await client.start_many(ship, {"c": Order(3), "d": Order(4)})
        assert all(handle.created for handle in handles)
    assert proxy.lost == 3
    assert rows(dsn, "SELECT count(*) FROM zart_tasks") == [(5,)]


@pytest.mark.parametrize("after", range(4))
async def test_start_whose_answer_was_lost_wherever(proxy: Proxy, dsn: str, after: int) -> None:
    """Whichever answer is lost, to the statement's preparation or to the start itself, it is known as one's own."""
    async with Client(proxy.dsn) as client:
        for number in range(3):
            assert (await client.start(ship, Order(number), id=f"before-{number}")).created
        proxy.lose_answers(1, after=after)
        for number in range(5):
            assert (await client.start(ship, Order(number), id=f"after-{number}")).created
    assert proxy.lost == 1
    assert rows(dsn, "SELECT count(*) FROM zart_tasks") == [(8,)]


async def test_event_whose_answer_was_lost(proxy: Proxy, dsn: str) -> None:
    """An event that was committed while its answer was lost is sent again, and is there once."""
    async with Client(proxy.dsn) as client:
        await client.start(ship, Order(1), id="a")
        proxy.lose_answers(1)
        assert await client.offer_event("a", "paid", 1)
    assert proxy.lost == 1
    assert rows(dsn, "SELECT count(*) FROM zart_events") == [(1,)]
    assert rows(dsn, "SELECT signal FROM zart_tasks") == [(1,)]


async def test_waiting_through_lost_connections(proxy: Proxy, dsn: str) -> None:
    """A wait for a result outlives the connections that it was begun on."""
    async with Client(proxy.dsn) as client:
        handle = await client.start(ship, Order(1), id="a")
        with pytest.raises(zart.ResultTimeout):
            await handle.result(timeout=0.05)
        proxy.cut()
        finish(dsn, "a")
        assert await handle.result(timeout=20) == "done"


async def test_nobody_listens_at_the_address() -> None:
    """An address where nobody answers is an error of one line after a bounded time, and the password is
    masked.
    """
    begin = time.monotonic()
    with pytest.raises(DatabaseUnreachable) as caught:
        async with Client("postgresql://ann:secret@127.0.0.1:1/shop"):
            pass
    assert 2 < time.monotonic() - begin < 15
    text = str(caught.value)
    assert "secret" not in text
    assert "\n" not in text
    assert "127.0.0.1" in text
    assert isinstance(caught.value, ConnectionError)


async def test_unknown_database_fails_at_once(dsn: str) -> None:
    """A database that does not exist will not appear by waiting."""
    begin = time.monotonic()
    with pytest.raises(DatabaseUnreachable, match='database "nowhere" does not exist'):
        async with Client(conninfo.make_conninfo(dsn, dbname="nowhere")):
            pass
    assert time.monotonic() - begin < 2


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("default_transaction_isolation=repeatable\\ read", "'repeatable read'"),
        ("default_transaction_isolation=serializable", "'serializable'"),
        ("default_transaction_read_only=on", "read-only"),
    ],
)
async def test_settings_that_break_it(direct_dsn: str, setting: str, text: str) -> None:
    """A database whose settings would break what Zart promises is refused by name."""
    with pytest.raises(UsageError, match=text):
        async with Client(conninfo.make_conninfo(direct_dsn, options=f"-c{setting}")):
            pass


async def test_settings_that_are_worth_a_warning(direct_dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    """A setting that costs speed or safety is a line in the log."""
    options = "-csynchronous_commit=off -cstatement_timeout=5s -clock_timeout=3s"
    async with Client(conninfo.make_conninfo(direct_dsn, options=options)) as client:
        assert (await client.start(ship, Order(1))).created
    for name in ("synchronous_commit", "statement_timeout = 5s", "lock_timeout = 3s"):
        assert name in caplog.text


async def test_without_prepared_statements(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """ZART_PREPARED=off does without prepared statements."""
    monkeypatch.setenv("ZART_PREPARED", "off")
    async with Client(dsn) as client:
        for number in range(5):
            await client.start(ship, Order(number))
        rows_ = await client._database.query("count_workers", {})
        assert rows_ == [(0,)]
        pool = client._database._pool
        assert pool is not None
        async with pool.connection() as connection:
            cursor = await connection.execute("SELECT count(*) FROM pg_prepared_statements")
            assert await cursor.fetchone() == (0,)
    monkeypatch.setenv("ZART_PREPARED", "perhaps")
    with pytest.raises(UsageError, match="ZART_PREPARED"):
        async with Client(dsn):
            pass


async def test_dsn_from_the_environment(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a DSN the environment names the database; a driver's name in the scheme does not matter."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/other")
    monkeypatch.setenv("ZART_DATABASE_URL", dsn.replace("postgresql://", "postgresql+asyncpg://"))
    async with Client() as client:
        assert (await client.stats()).workers == 0
        assert client.address == dsn


async def test_role_without_rights(direct_dsn: str) -> None:
    """A role that may not write is told so, by the table's name."""
    role = f"zart_test_guest_{os.getpid()}"
    with psycopg.connect(direct_dsn, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN")
        try:
            async with Client(conninfo.make_conninfo(direct_dsn, user=role)) as client:
                with pytest.raises(SchemaError, match=r"role may not do that.*permission denied for"):
                    await client.start(ship, Order(1))
        finally:
            connection.execute(f"DROP ROLE {role}")


async def test_open_twice(dsn: str) -> None:
    """A Client is opened once, and may be opened again after it was closed."""
    client = Client(dsn)
    async with client:
        with pytest.raises(UsageError, match="open already"):
            async with client:
                pass
        await client.stats()
    async with client:
        await client.stats()
