"""Workers and clients on a real database, in the process of the test.

What a step does is noted in a list of the test's own, outside the database: so it shows what ran, whatever was
recorded. Nothing here sleeps for a fixed time: tests wait for a state (`until`), or move durable time
(`shift_clock`).
"""

import asyncio
import datetime as dt
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import psycopg

from zart import Client, Registry, Worker, WorkerConfig
from zart.durable import Durable

T = TypeVar("T")


def fast(**fields: Any) -> WorkerConfig:
    """A worker that notices everything soon."""
    return WorkerConfig(
        **{
            "poll_interval": "20ms",
            "shutdown_timeout": "2s",
            "orphan_timeout": "3s",
            "heartbeat_interval": "100ms",
            **fields,
        }
    )


def forgetful(**fields: Any) -> WorkerConfig:
    """The same, and it keeps no body that waits in memory: each goes on by a replay."""
    return fast(**{"max_parked_bodies": 0, **fields})


def worker_for(
    dsn: str,
    *durables: Durable[..., Any],
    config: WorkerConfig | None = None,
    always_suspend: bool = False,
    lifespan: Any = None,
) -> Worker:
    worker = Worker(dsn, Registry(*durables, lifespan=lifespan), config or fast())
    if always_suspend:
        worker._always_suspend = True
    return worker


@asynccontextmanager
async def working(
    dsn: str,
    *durables: Durable[..., Any],
    config: WorkerConfig | None = None,
    always_suspend: bool = False,
    lifespan: Any = None,
) -> AsyncIterator[Client]:
    """A worker that runs `durables`, and a client. With `always_suspend` every record is replayed."""
    worker = worker_for(dsn, *durables, config=config, always_suspend=always_suspend, lifespan=lifespan)
    async with Client(dsn) as client, worker:
        yield client


async def until(
    condition: Callable[[], T | Awaitable[T]], what: str = "what the test waits for", *, within: float = 15
) -> T:
    """Until it is true; returns its value."""
    value: Any = None
    try:
        async with asyncio.timeout(within):
            while True:
                value = condition()
                if inspect.isawaitable(value):
                    value = await value
                if value:
                    return value
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(
            f"{what} did not come about within {within} s; the last look gave {value!r}"
        ) from None


async def until_status(client: Client, id: str, *statuses: str, within: float = 15) -> None:
    """Until an execution has one of these statuses."""

    async def reached() -> bool:
        return (await client.status(id)).status in statuses

    await until(reached, f"status {' or '.join(statuses)} of {id!r}", within=within)


async def until_record(client: Client, id: str, key: str, *states: str, within: float = 15) -> None:
    """Until a call of an execution is recorded in one of these states (default: in any)."""

    async def recorded() -> bool:
        records = (await client.history(id)).records
        return any(record.key == key and (not states or record.state in states) for record in records)

    await until(recorded, f"record {key!r} of {id!r}", within=within)


async def query(dsn: str, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """What a statement gives, on a connection of its own."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        cursor = await connection.execute(statement.encode(), parameters or None)
        return await cursor.fetchall() if cursor.description else []


async def shift_clock(dsn: str, by: dt.timedelta) -> None:
    """Move durable time forward, and have idle workers look."""
    ((now,),) = await query(dsn, "SELECT zart_now() - statement_timestamp()")
    offset = now + by
    await query(
        dsn,
        "CREATE OR REPLACE FUNCTION zart_now() RETURNS timestamptz LANGUAGE sql STABLE AS "
        f"'SELECT pg_catalog.statement_timestamp() + interval ''{offset.total_seconds()} seconds'''",
    )
    await stir(dsn)


async def stir(dsn: str) -> None:
    """Have idle workers look for work."""
    await query(dsn, "SELECT pg_notify('zart_work_' || substr(md5('public'), 1, 12), '')")


ANNOUNCING = """
    SELECT pg_advisory_lock(('x' || substr(md5('zart_work_public'), 1, 8))::bit(32)::int,
        ((extract(epoch FROM clock_timestamp()) * 20)::bigint + moment & 2147483647)::int)
    FROM generate_series(-20, 800) AS moment
"""
"""For forty seconds, or until the session ends, an announcement of work is on its way: no other one is sent."""

BURY = """
    WITH rows AS MATERIALIZED (
        SELECT worker_id, writer FROM zart_workers ORDER BY worker_id, writer FOR UPDATE
    )
    DELETE FROM zart_workers w USING rows WHERE w.worker_id = rows.worker_id AND w.writer = rows.writer
"""
"""Deletes the rows of all workers, in the order in which a heartbeat locks them."""


async def bury_workers(dsn: str) -> None:
    """Take every worker for dead, as the reaper does: their fences go, and others take their work over."""
    await query(dsn, BURY)


async def nothing_left(dsn: str) -> None:
    """Nobody has anything to do any more, and nobody is to be told anything."""
    assert await query(dsn, "SELECT id, execution_id, step_name FROM zart_tasks") == []
    assert await query(dsn, "SELECT id FROM zart_wakeups") == []


@asynccontextmanager
async def hurrying(dsn: str) -> AsyncIterator[None]:
    """Durable time jumps to the next sleeper's time whenever nothing else is left to do."""

    async def hurry() -> None:
        while True:
            await asyncio.sleep(0.02)
            rows = await query(
                dsn,
                "SELECT min(wake_at) - zart_now() FROM zart_tasks "
                # Whoever waits for what it has given away goes on when that does.
                "HAVING bool_and(state = 'waiting' AND (wake_at IS NOT NULL OR wake_at_done IS NOT NULL"
                " OR step_name IS NOT NULL))",
            )
            if rows and rows[0][0] is not None and rows[0][0] > dt.timedelta():
                await shift_clock(dsn, rows[0][0])

    task = asyncio.create_task(hurry())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()
