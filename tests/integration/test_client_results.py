"""Waiting for the end of executions with a Client."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from tests.support.clients import Order, fail, finish, rows, ship, sweep
from zart import (
    Client,
    ExecutionBlocked,
    ExecutionCancelled,
    ExecutionFailed,
    ExecutionNotFound,
    ExecutionTimeout,
    Failure,
    NonDeterminismError,
    PayloadError,
    ResultTimeout,
    UsageError,
    ZartError,
)


@pytest.fixture
async def client(dsn: str) -> AsyncIterator[Client]:
    async with Client(dsn) as opened:
        yield opened


async def until(check: Any) -> None:
    """Wait for a state of the database."""
    async with asyncio.timeout(20):
        while not await asyncio.to_thread(check):  # noqa: ASYNC110 (the database has no events)
            await asyncio.sleep(0.01)


def listening(dsn: str) -> bool:
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
        "AND application_name = 'zart client listener' AND query LIKE 'LISTEN%%'"
    )
    return rows(dsn, query) != [(0,)]


def awaited(dsn: str, id: str) -> bool:
    return rows(dsn, "SELECT awaited FROM zart_executions WHERE id = %s", (id,)) == [(True,)]


@pytest.mark.usefixtures("notified")
async def test_result_comes_by_notification(client: Client, dsn: str) -> None:
    """A result that takes its time is delivered within 50 ms of the end, by a notification."""
    waiting = []
    for name in ("a", "b", "c", "d"):
        handle = await client.start(ship, Order(1), id=name)
        waiting.append((name, asyncio.create_task(handle.result(timeout=30))))
        await until(lambda name=name: listening(dsn) and awaited(dsn, name))
    await asyncio.sleep(1.5)  # by now their polls are up to a second apart
    took = []
    for name, result in waiting:
        await asyncio.to_thread(finish, dsn, name, '"shipped"')
        begin = time.perf_counter()
        assert await result == "shipped"
        took.append(time.perf_counter() - begin)
    assert sorted(took)[1] < 0.05  # of four, since others may use this machine too


async def test_result_comes_by_polling(client: Client, dsn: str) -> None:
    """Without a notification the result comes with a poll, a second later at most."""
    handle = await client.start(ship, Order(1), id="a")
    waiting = asyncio.create_task(handle.result(timeout=30))
    await until(lambda: awaited(dsn, "a"))
    await asyncio.to_thread(finish, dsn, "a", '"shipped 1"', notify=False)
    begin = time.perf_counter()
    assert await waiting == "shipped 1"
    assert time.perf_counter() - begin < 2


@pytest.mark.usefixtures("notified")
async def test_result_while_the_listener_is_gone(client: Client, dsn: str, direct_dsn: str) -> None:
    """With its LISTEN connection terminated a client goes on waiting, and finds the end."""
    handle = await client.start(ship, Order(1), id="a")
    waiting = asyncio.create_task(handle.result(timeout=30))
    await until(lambda: listening(dsn))
    rows(
        direct_dsn,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND application_name LIKE 'zart client%%'",
    )
    await asyncio.to_thread(finish, direct_dsn, "a")
    assert await waiting == "done"
    await client.start(ship, Order(2), id="b")
    await until(lambda: listening(dsn))


@pytest.mark.stores_plain(reason="writes results by itself")
async def test_many_wait_at_once(client: Client, dsn: str) -> None:
    """Hundreds of waits share one connection and one poll, and several may wait for the same execution."""
    handles = await client.start_many(ship, {f"n-{number}": Order(number) for number in range(300)})
    waiting = [asyncio.create_task(handle.result(timeout=50)) for handle in handles for _ in range(2)]
    await until(lambda: rows(dsn, "SELECT count(*) FROM zart_executions WHERE awaited") == [(300,)])
    rows(dsn, "UPDATE zart_executions SET status = 'completed', result = to_json(id), finished_at = now()")
    assert await asyncio.gather(*waiting) == [handle.id for handle in handles for _ in range(2)]


async def test_result_timeout(client: Client, dsn: str) -> None:
    """The caller's patience ends with ResultTimeout; the execution goes on, and asking again is harmless."""
    handle = await client.start(ship, Order(1), id="a")
    with pytest.raises(ResultTimeout, match=r"'a' has not ended within 50ms") as caught:
        await handle.result(timeout="50ms")
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.execution_id == "a"
    finish(dsn, "a")
    assert await handle.result(timeout=0) == "done"
    with pytest.raises(UsageError, match="timeout"):
        await handle.result(timeout=-1)


async def test_failed(client: Client, dsn: str) -> None:
    """A failed execution raises ExecutionFailed, never the user's class."""
    handle = await client.start(ship, Order(1), id="a")
    fail(dsn, "a", ValueError("no such card"))
    with pytest.raises(ExecutionFailed, match=r"'a' failed: .*ValueError: no such card") as caught:
        await handle.result()
    assert not isinstance(caught.value, (ValueError, ExecutionTimeout))
    assert caught.value.failure.message == "no such card"
    assert caught.value.execution_id == "a"
    failure = (await client.status("a")).failure
    assert failure is not None
    assert failure.message == "no such card"


async def test_timed_out(client: Client, dsn: str) -> None:
    """An execution that reached its own limit raises ExecutionTimeout."""
    await client.start(ship, Order(1), id="a")
    about = Failure(
        type="TimeoutError", message="ship did not finish within 2s", step=None, attempts=1, traceback=""
    )
    fail(dsn, "a", ExecutionTimeout(about, execution_id="a"))
    with pytest.raises(ExecutionTimeout, match="ship did not finish within 2s"):
        await client.handle(ship, "a").result()


async def test_cancelled(client: Client, dsn: str) -> None:
    """A cancelled execution raises ExecutionCancelled with the reason."""
    handle = await client.start(ship, Order(1), id="a")
    waiting = asyncio.create_task(handle.result(timeout=30))
    await until(lambda: awaited(dsn, "a"))
    assert await client.cancel("a", reason="changed my mind")
    with pytest.raises(ExecutionCancelled, match="changed my mind") as caught:
        await waiting
    assert (caught.value.reason, caught.value.execution_id) == ("changed my mind", "a")


async def test_blocked(client: Client, dsn: str) -> None:
    """A blocked execution raises ExecutionBlocked as soon as that is seen, and names the command."""
    handle = await client.start(ship, Order(1), id="a")
    waiting = asyncio.create_task(handle.result(timeout=30))
    await until(lambda: awaited(dsn, "a"))
    fail(dsn, "a", NonDeterminismError("the body asks for x"), "blocked")
    with pytest.raises(ExecutionBlocked, match=r"the body asks for x.*zart resume a") as caught:
        await waiting
    assert "NonDeterminismError" in caught.value.failure.type


async def test_unknown(client: Client) -> None:
    """Waiting for an id that nobody started raises ExecutionNotFound."""
    with pytest.raises(ExecutionNotFound, match="no execution 'nobody'"):
        await client.handle(ship, "nobody").result()
    with pytest.raises(LookupError):
        await client.wait_completion("nobody")


async def test_result_type(client: Client, dsn: str) -> None:
    """A result is decoded as the function's annotation, or as the type asked for."""
    await client.start(sweep, id="nothing")
    finish(dsn, "nothing", "null")
    assert await client.handle(sweep, "nothing").result() is None
    await client.start("ship", {"number": 1}, id="order")
    finish(dsn, "order", '{"number": 4}')
    assert await client.wait_completion("order") == {"number": 4}
    assert await client.wait_completion("order", type=Order) == Order(4)
    assert await client.wait_completion("order", type=dict[str, int]) == {"number": 4}
    with pytest.raises(PayloadError, match="result of execution 'order'"):
        await client.handle(ship, "order").result()


async def test_start_and_wait(client: Client, dsn: str) -> None:
    """Start and wait in one call; the same id again gives the stored result."""
    waiting = asyncio.create_task(client.start_and_wait(ship, Order(1), id="a", timeout=30))
    await until(lambda: awaited(dsn, "a"))
    await asyncio.to_thread(finish, dsn, "a", '"shipped"')
    assert await waiting == "shipped"
    assert await client.start_and_wait(ship, Order(1), id="a") == "shipped"


@pytest.mark.usefixtures("notified")
async def test_closing_ends_the_waits(dsn: str) -> None:
    """Whoever waits when the Client is closed gets an error instead of waiting for ever."""
    async with Client(dsn) as client:
        handle = await client.start(ship, Order(1), id="a")
        waiting = asyncio.create_task(handle.result())
        await until(lambda: awaited(dsn, "a"))
        await until(lambda: listening(dsn))
    with pytest.raises(ZartError, match="closed"):
        await waiting
    with pytest.raises(UsageError, match="not open"):
        await handle.result()


@pytest.mark.stores_plain(reason="writes results by itself")
async def test_many_results_at_once(client: Client, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever awaits thousands of results at once asks for all of them together, not for each on a connection."""
    statements: list[str] = []
    query = client._database.query

    async def counting(statement: str, *arguments: Any) -> Any:
        statements.append(statement)
        return await query(statement, *arguments)

    handles = await client.start_many(ship, {str(number): Order(number) for number in range(2000)})
    monkeypatch.setattr(client._database, "query", counting)
    results = asyncio.gather(*(handle.result(timeout=30) for handle in handles))
    await until(lambda: rows(dsn, "SELECT count(*) FROM zart_executions WHERE NOT awaited") == [(0,)])
    assert statements.count("await_ends") <= 5
    await asyncio.to_thread(
        rows,
        dsn,
        "WITH gone AS (DELETE FROM zart_tasks RETURNING execution_id) "
        "UPDATE zart_executions e SET status = 'completed', result = to_json(e.id), finished_at = now() FROM gone "
        "WHERE gone.execution_id = e.id RETURNING e.id",
    )
    assert await results == [str(number) for number in range(2000)]


async def test_marking_waits_for_no_lock(client: Client, dsn: str) -> None:
    """An execution whose row somebody holds delays no other wait, and is marked once it is free."""
    handles = await client.start_many(ship, {"held": Order(1), "free": Order(2)})
    async with await psycopg.AsyncConnection.connect(dsn) as other:
        await other.execute("UPDATE zart_executions SET priority = priority WHERE id = 'held'")
        results = asyncio.gather(*(handle.result(timeout=30) for handle in handles))
        await until(lambda: awaited(dsn, "free"))
        assert not awaited(dsn, "held")
    await until(lambda: awaited(dsn, "held"))
    results.cancel()


async def test_every_call_looks_once(client: Client, dsn: str) -> None:
    """However short its timeout, a call sees an end that nobody was notified of, also beside other waits."""
    handle = await client.start(ship, Order(1), id="a")
    others = [asyncio.create_task(handle.result(timeout=30)) for _ in range(3)]
    await until(lambda: awaited(dsn, "a"))
    for _ in range(20):
        with pytest.raises(ResultTimeout):
            await handle.result(timeout=0)
    assert len(client._outcomes._due) < 40
    await asyncio.to_thread(finish, dsn, "a", notify=False)
    assert await handle.result(timeout=0) == "done"
    assert await asyncio.gather(*others) == ["done"] * 3
