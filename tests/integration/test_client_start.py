"""Starting executions with a Client."""

import asyncio
import datetime as dt
from collections.abc import AsyncIterator

import msgspec
import psycopg
import pytest

import zart
from zart import Client, durable


class Order(msgspec.Struct):
    number: int
    note: str = ""


@durable("ship")
async def ship(order: Order) -> str:
    return f"shipped {order.number}"


@durable("sweep")
async def sweep() -> None:
    return None


@pytest.fixture
async def client(dsn: str) -> AsyncIterator[Client]:
    async with Client(dsn) as opened:
        yield opened


def rows(dsn: str, query: str) -> list[tuple]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        return connection.execute(query).fetchall()


async def test_start_makes_one_execution_and_its_task(client: Client, dsn: str) -> None:
    """A start is one execution and one ready task, in the function's queue."""
    handle = await client.start(ship, Order(7), id="order-7")
    assert handle.id == "order-7"
    assert handle.created
    assert rows(dsn, "SELECT id, name, queue, status, payload::text FROM zart_executions") == [
        ("order-7", "ship", "default", "scheduled", '{"number":7,"note":""}')
    ]
    assert rows(dsn, "SELECT execution_id, state FROM zart_tasks") == [("order-7", "ready")]
    status = await handle.status()
    assert (status.status, status.served, status.cancelling) == ("scheduled", False, False)
