"""A client's own connection: one statement that hangs delays no other, and nothing is left behind."""

import asyncio

import psycopg
import pytest

from tests.support.clients import Order, rows, ship
from zart import Client

INSERT = "SELECT zart_start('ship', id => 'held', payload => '{\"number\": 1}')"
WAITING = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
)


async def until_locked_out(dsn: str) -> None:
    async with asyncio.timeout(15):
        while rows(dsn, WAITING) == [(0,)]:  # noqa: ASYNC110 (a database sets no event)
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_start_that_waits_for_somebodys_transaction_delays_no_other(
    dsn: str, cancelled: bool
) -> None:
    """Whether its caller goes on waiting or not: others start meanwhile, and it starts in its time or never."""
    async with Client(dsn) as client, await psycopg.AsyncConnection.connect(dsn) as somebody:
        await client.start(ship, Order(0), id="before")
        await somebody.execute(INSERT)
        waiting = asyncio.create_task(client.start(ship, Order(1), id="held", on_conflict="return"))
        await until_locked_out(dsn)
        if cancelled:
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        async with asyncio.timeout(10):
            for number in range(3):
                assert (await client.start(ship, Order(number))).created
        await somebody.rollback()
        if not cancelled:
            assert (await waiting).created
        assert (await client.start(ship, Order(5), id="after")).created


async def test_two_statements_at_a_time_need_no_pool(dsn: str) -> None:
    """A start is sent at once although another one waits, on the second of the client's own connections."""
    async with Client(dsn) as client, await psycopg.AsyncConnection.connect(dsn) as somebody:
        await client.start(ship, Order(0), id="before")
        await somebody.execute(INSERT)
        waiting = asyncio.create_task(client.start(ship, Order(1), id="held", on_conflict="return"))
        await until_locked_out(dsn)
        assert (await client.start(ship, Order(2))).created
        pool = client._database._pool
        assert pool is not None
        assert not pool.get_stats().get("requests_num")
        await somebody.rollback()
        assert (await waiting).created
