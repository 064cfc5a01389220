"""Connections that have landed on a server that takes no writes, as after a fail-over to another one."""

import asyncio

import psycopg
import pytest
from psycopg import sql

from tests.support.proxy import Proxy
from tests.support.running import fast, query, until, working
from zart import durable, step


@step("double")
async def double(number: int) -> int:
    return number * 2


@durable("doubled")
async def doubled(number: int) -> int:
    return await double(number)


@pytest.mark.not_in("pgbouncer", reason="a pooler's session bears the name of whoever used it last")
async def test_a_connection_that_takes_no_writes_is_given_up(dsn: str) -> None:
    """Every connection is broken, and those that follow are read-only for good; a moment later new ones would not be.
    Workers and clients come by new ones, and nothing fails."""

    administrator = psycopg.connect(dsn, autocommit=True)
    database = sql.Identifier(administrator.info.dbname)

    async def landed(application: str) -> bool:
        """Whether these are connected again, and have been told that they cannot write."""
        rows = await query(
            dsn,
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = %s "
            "AND state = 'idle' AND query <> ''",
            application,
        )
        return bool(rows[0][0])

    with administrator:
        async with (
            Proxy(dsn) as proxy,
            working(proxy.dsn, doubled, config=fast(orphan_timeout="1m")) as client,
        ):
            assert await (await client.start(doubled, 1)).result(timeout="10s") == 2
            administrator.execute(
                sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(database)
            )
            proxy.cut()
            start = asyncio.create_task(client.start(doubled, 2, id="meanwhile"))
            await until(lambda: landed("zart worker"), "that the worker is connected again")
            await until(lambda: landed("zart client"), "that the client is connected again")
            administrator.execute(
                sql.SQL("ALTER DATABASE {} RESET default_transaction_read_only").format(database)
            )
            async with asyncio.timeout(15):
                assert await (await start).result() == 4
                assert await (await client.start(doubled, 3)).result() == 6
