"""A client, SQL and a worker together."""

import asyncio
import time
from collections.abc import AsyncIterator

import psycopg
import pytest

import zart
from tests.support.clients import Approval, Approved, rows
from zart import (
    Client,
    ExecutionCancelled,
    ExecutionFailed,
    ExecutionTimeout,
    Registry,
    Worker,
    durable,
    step,
)


@step("double")
async def double(number: int) -> int:
    return number * 2


@durable("doubled")
async def doubled(number: int) -> int:
    return await double(number)


@durable("approval")
async def approval(number: int) -> str:
    doubled_number = await double(number)
    approved = await zart.wait_for_event(Approved, timeout="1h")
    return f"{doubled_number} by {approved.by}"


@durable("hasty", timeout="200ms")
async def hasty(number: int) -> None:
    await zart.wait_for_event("never")


@durable("picky")
async def picky(data: Approval) -> str:
    return data.by


_client: Client | None = None


@step("start-another")
async def start_another(number: int) -> int:
    assert _client is not None
    handle = await _client.start(doubled, number, id=f"another-{number}")
    return await handle.result(timeout=20)


@durable("parent")
async def parent(number: int) -> int:
    return await start_another(number) + await start_another(number + 1)


@pytest.fixture
async def client(dsn: str) -> AsyncIterator[Client]:
    global _client
    async with Client(dsn) as _client, Worker(dsn, Registry(doubled, approval, hasty, picky, parent)):
        yield _client


async def until_waiting(client: Client, id: str) -> None:
    async with asyncio.timeout(20):
        while (await client.status(id)).status != "waiting":  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_start_and_wait(client: Client) -> None:
    """A started execution is run by the worker, and its result comes back decoded."""
    assert await client.start_and_wait(doubled, 21, timeout=20) == 42


async def test_delayed_start(client: Client) -> None:
    """A delayed execution runs when it is due, not before."""
    begin = time.monotonic()
    handle = await client.start(doubled, 1, delay="600ms")
    assert await handle.result(timeout=20) == 2
    assert time.monotonic() - begin >= 0.6


async def test_time_limit_of_a_start(client: Client) -> None:
    """A start may give its execution another time limit than the function has, or none."""
    handle = await client.start(approval.with_options(timeout="300ms"), 1, id="short")
    with pytest.raises(ExecutionTimeout, match="300ms"):
        await handle.result(timeout=20)
    await client.start(hasty, 1, id="hasty")
    await client.start(hasty.with_options(timeout=None), 1, id="patient")
    with pytest.raises(ExecutionTimeout, match="200ms"):
        await client.handle(hasty, "hasty").result(timeout=20)
    assert (await client.status("patient")).status in ("running", "waiting")


async def test_all_by_sql(client: Client, dsn: str) -> None:
    """An execution that SQL started and sent an event is like any other."""
    rows(dsn, "SELECT zart_start('approval', 'sql', '4')")
    rows(dsn, """SELECT zart_offer_event('sql', 'approved', '{"by": "ann"}')""")
    assert await client.wait_completion("sql", timeout=20) == "8 by ann"
    assert rows(dsn, "SELECT status, result FROM zart_v_executions") == [("completed", "8 by ann")]
    assert rows(dsn, "SELECT key, state FROM zart_v_steps ORDER BY seq") == [
        ("double", "completed"),
        ("approved", "completed"),
    ]


async def test_payload_by_sql_that_does_not_fit(client: Client, dsn: str) -> None:
    """A payload that does not fit fails the execution, with the field's path."""
    rows(dsn, """SELECT zart_start('picky', 'sql', '{"by": 7}')""")
    with pytest.raises(ExecutionFailed, match=r"\$\.by"):
        await client.wait_completion("sql", timeout=20)


async def test_event_in_an_open_transaction(client: Client, dsn: str) -> None:
    """An event that a transaction keeps open delays no other execution, and arrives once it has committed."""
    await client.start(approval, 1, id="held")
    await client.start(approval, 2, id="free")
    await until_waiting(client, "held")
    await until_waiting(client, "free")
    async with await psycopg.AsyncConnection.connect(dsn) as mine:
        await mine.execute("""SELECT zart_offer_event('held', 'approved', '{"by": "psql"}')""")
        await client.offer_event("free", Approved, Approval("ann"))
        assert await client.handle(approval, "free").result(timeout=20) == "4 by ann"
        assert await client.start_and_wait(doubled, 3, timeout=20) == 6
        await client.offer_event("held", "other", None)
        assert (await client.status("held")).status in ("waiting", "running")
        await mine.commit()
    assert await client.handle(approval, "held").result(timeout=20) == "2 by psql"


async def test_cancel_by_sql(client: Client, dsn: str) -> None:
    """A cancel by SQL reaches a waiting execution; its reason is told."""
    handle = await client.start(approval, 1, id="a")
    await until_waiting(client, "a")
    rows(dsn, "SELECT zart_cancel('a', 'closed the shop')")
    with pytest.raises(ExecutionCancelled, match="closed the shop") as caught:
        await handle.result(timeout=20)
    assert caught.value.reason == "closed the shop"
    assert any("cancel requested" in note for note in (await client.history("a")).notes)


async def test_cancel_by_client(client: Client) -> None:
    """A cancel reaches a waiting execution; afterwards it is harmless."""
    handle = await client.start(approval, 1, id="a")
    await until_waiting(client, "a")
    assert await client.cancel("a", reason="enough")
    with pytest.raises(ExecutionCancelled, match="enough"):
        await handle.result(timeout=20)
    assert not await client.cancel("a")


async def test_cancel_by_force_of_a_waiting_execution(client: Client) -> None:
    """A cancel by force ends it at once, and the worker carries on with others."""
    await client.start(approval, 1, id="a")
    await until_waiting(client, "a")
    assert await client.cancel("a", force=True)
    with pytest.raises(ExecutionCancelled):
        await client.handle(approval, "a").result(timeout=20)
    assert await client.start_and_wait(doubled, 1, timeout=20) == 2


async def test_client_in_a_step(client: Client) -> None:
    """A step may use a client, also to wait for what it started; what the client runs beside is nobody's branch."""
    assert await client.start_and_wait(parent, 10, timeout=30) == 42
    assert (await client.history("another-10")).records[0].key == "double"


async def test_served(client: Client) -> None:
    """What a live worker has registered is served, other work is shown as unserved."""
    await client.start("nobody-has-this", id="lost")
    await client.start(approval, 1, id="a")
    assert not (await client.status("lost")).served
    assert (await client.status("a")).served
    stats = await client.stats()
    assert stats.unserved == {"nobody-has-this": 1}
    assert stats.workers == 1
