"""What `zart top` and `zart workers` read from a real database."""

import asyncio
import datetime as dt

import psycopg
import pytest
from psycopg import errors

import zart
from tests.support.backlog import Backlog, load
from tests.support.running import fast, query, until, working
from zart import Client, durable, step
from zart._postgres import connections
from zart_cli.top.reading import Frame, read_frame


@step("fragile", retry="fixed(100, 1h)")
async def fragile() -> None:
    raise ValueError("no")


@durable("order", version="2", queue="mail")
async def order() -> int:
    return await zart.wait_for_event("paid", int)


@durable("long")
async def long() -> None:
    await zart.sleep("30d")


@durable("failing")
async def failing() -> None:
    await fragile()


async def frame_of(dsn: str, before: Frame | None = None) -> Frame:
    connection = await connections.connect(dsn, application_name="test")
    async with connection:
        return await read_frame(connection, "public", before.counters if before else None)


async def test_workers_are_seen_with_what_they_serve_and_hold(dsn: str) -> None:
    """By their rows; one whose lease has ended is dead until somebody takes its work over."""
    async with working(dsn, order, long, config=fast()) as client:
        (seen,) = await client.workers()
        assert seen.alive
        assert seen.held == 0
        assert seen.functions == ["long", "order version 2"]
        assert seen.queues == ["default", "mail"]
        assert abs(seen.heartbeat_at - dt.datetime.now(dt.UTC)) < dt.timedelta(seconds=30)
    async with Client(dsn) as client:
        assert await client.workers() == []
        await query(
            dsn,
            "INSERT INTO zart_workers (worker_id, writer, host, pid, lanes, expires_at) VALUES (7, 0, 'h', 5, '{}',"
            " clock_timestamp() - interval '1 s')",
        )
        await client.start(long, id="held")
        await query(dsn, "UPDATE zart_tasks SET state = 'running', owner = 7")
        (seen,) = await client.workers()
        assert (seen.id, seen.alive, seen.held, seen.functions) == (7, False, 1, [])


async def test_a_frame_tells_what_is_ready_runs_waits_and_sleeps(dsn: str) -> None:
    """By function, version and queue; and what nobody serves, or is blocked."""
    async with working(dsn, order, long) as client:
        for number in range(3):
            await client.start(order, id=f"o-{number}")
        await client.start(long, id="l")
        await until(
            lambda: query(dsn, "SELECT 1 FROM zart_tasks WHERE state = 'waiting' HAVING count(*) = 4")
        )
        await client.start("unknown", id="u")
        await query(dsn, "UPDATE zart_tasks SET state = 'blocked' WHERE execution_id = 'o-0'")
        frame = await frame_of(dsn)
        assert not frame.estimated
        assert [worker.alive for worker in frame.workers] == [True]
        lanes = {lane.name: lane for lane in frame.lanes}
        assert lanes["order version 2 in queue mail"].waiting == 2
        assert lanes["long"].sleeping == 1
        assert (lanes["unknown"].ready, lanes["unknown"].served) == (1, False)
        assert lanes["unknown"].oldest is not None
        assert frame.stuck == ["no worker serves unknown: 1 ready", "o-0 (order) is blocked: zart show o-0"]


async def test_a_step_that_fails_again_and_again_is_told(dsn: str) -> None:
    """Three attempts and more of what is still tried."""
    async with working(dsn, failing) as client:
        await client.start(failing, id="f")
        await until(lambda: query(dsn, "SELECT 1 FROM zart_tasks WHERE state = 'waiting'"))
        assert (await frame_of(dsn)).stuck == []
        await query(
            dsn,
            "INSERT INTO zart_step_attempts (run_id, path, name, occurrence, kind, attempt, body_attempt, finished_at)"
            " SELECT run_id, path, name, occurrence, kind, n, 1, now() FROM zart_steps, generate_series(2, 5) n",
        )
        assert (await frame_of(dsn)).stuck == ["step fragile of f fails again and again: 5 attempts"]


async def test_rates_come_from_what_the_server_counts(dsn: str, direct_dsn: str) -> None:
    """What was started and recorded between two frames, per second."""
    first = await frame_of(dsn)
    assert first.rates is None
    with psycopg.connect(direct_dsn, autocommit=True) as hand:
        hand.execute("SELECT zart_start('f', id => 'e' || g) FROM generate_series(1, 50) g")

    async def counted() -> Frame | None:
        frame = await frame_of(dsn, first)
        return frame if frame.rates is not None and frame.rates.started > 0 else None

    second = await until(counted)
    assert second is not None
    seconds = (second.counters.at - first.counters.at).total_seconds()
    assert second.rates is not None
    assert second.rates.started * seconds == pytest.approx(50)


@pytest.mark.stores_plain(reason="writes a backlog by itself")
async def test_much_is_estimated_and_costs_no_more(dsn: str, direct_dsn: str) -> None:
    """Of a hundred thousand that wait a part is read, and tells nearly the truth; counts of what is ready end."""
    with psycopg.connect(direct_dsn) as connection:
        load(connection, Backlog(sleeping=100_000, ready=6_000), names=["f"])
    async with asyncio.timeout(20):
        frame = await frame_of(dsn)
    assert frame.estimated
    (lane,) = frame.lanes
    assert lane.ready == 2001
    assert 60_000 < lane.sleeping < 140_000


async def test_it_works_where_nothing_may_be_written(dsn: str, direct_dsn: str) -> None:
    """In a session that only reads, as on a standby."""
    address = psycopg.conninfo.make_conninfo(direct_dsn, options="-c default_transaction_read_only=on")
    with psycopg.connect(address, autocommit=True) as hand, pytest.raises(errors.ReadOnlySqlTransaction):
        hand.execute("SELECT zart_start('f')")
    frame = await frame_of(address)
    assert frame.workers == []
