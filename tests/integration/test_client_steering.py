"""Offering events, looking, cancelling and resuming with a Client."""

import datetime as dt
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

import zart
from tests.support.clients import Approval, Approved, Order, fail, finish, rows, ship, sweep
from zart import (
    Client,
    ExecutionCancelled,
    ExecutionFinished,
    ExecutionNotFound,
    NonDeterminismError,
    SerializationError,
    UsageError,
)


@pytest.fixture
async def client(dsn: str) -> AsyncIterator[Client]:
    async with Client(dsn, author="ann") as opened:
        yield opened


def park(dsn: str, id: str) -> None:
    """Make it an execution that ran and waits."""
    rows(
        dsn,
        "UPDATE zart_tasks SET state = 'waiting', started_at = zart_now(), waiting_for = 'approved' "
        "WHERE execution_id = %s",
        (id,),
    )


# ---------------------------------------------------------------- events


async def test_event_wakes_at_once(client: Client, dsn: str) -> None:
    """An event is stored, and a waiting execution is ready at once; its signal says that there is news."""
    await client.start(ship, Order(1), id="a")
    park(dsn, "a")
    assert await client.offer_event("a", Approved, Approval("bob"))
    assert rows(dsn, "SELECT name, payload FROM zart_events") == [("approved", {"by": "bob"})]
    assert rows(dsn, "SELECT state, signal FROM zart_tasks") == [("ready", 1)]
    assert await client.offer_event("a", "plain", {"x": [1, None]})
    assert await client.offer_event("a", "nothing")
    assert rows(dsn, "SELECT payload FROM zart_events ORDER BY id OFFSET 1") == [
        ({"x": [1, None]},),
        (None,),
    ]


async def test_event_before_the_start_time(client: Client, dsn: str) -> None:
    """An event for an execution that is not due yet is kept; it does not start it early."""
    await client.start(ship, Order(1), id="a", delay="1h")
    assert await client.offer_event("a", "early")
    assert rows(dsn, "SELECT state, signal FROM zart_tasks") == [("waiting", 1)]


async def test_event_during_a_body_retry(client: Client, dsn: str) -> None:
    """An event does not shorten the pause before a body is run again."""
    await client.start(ship, Order(1), id="a")
    park(dsn, "a")
    rows(dsn, "UPDATE zart_tasks SET not_before = now() + interval '1 hour'")
    assert await client.offer_event("a", "early")
    assert rows(dsn, "SELECT state, signal FROM zart_tasks") == [("waiting", 1)]


async def test_event_dedup(client: Client, dsn: str) -> None:
    """An event of a dedup key is added once, also after the end."""
    await client.start(ship, Order(1), id="a")
    assert await client.offer_event("a", "paid", 1, dedup="stripe-1")
    assert not await client.offer_event("a", "paid", 1, dedup="stripe-1")
    assert await client.offer_event("a", "paid", 1)
    assert await client.offer_event("a", "paid", 1)
    assert rows(dsn, "SELECT count(*) FROM zart_events") == [(3,)]
    finish(dsn, "a")
    assert not await client.offer_event("a", "paid", 1, dedup="stripe-1")


async def test_event_refused(client: Client, dsn: str) -> None:
    """An event for an unknown execution, for one that has ended, or with a payload that does not fit."""
    with pytest.raises(ExecutionNotFound, match="'nobody'"):
        await client.offer_event("nobody", "x")
    await client.start(ship, Order(1), id="a")
    with pytest.raises(SerializationError, match="payload of event 'approved'"):
        await client.offer_event("a", Approved, {"by": 7})  # type: ignore[call-overload]
    with pytest.raises(UsageError, match="name of an event"):
        await client.offer_event("a", "x" * 300)
    with pytest.raises(UsageError, match="dedup"):
        await client.offer_event("a", "x", dedup="")
    finish(dsn, "a")
    with pytest.raises(ExecutionFinished, match=r"'a' has ended \(completed\)") as caught:
        await client.offer_event("a", "x")
    assert caught.value.execution_id == "a"
    assert rows(dsn, "SELECT count(*) FROM zart_events") == [(0,)]


async def test_event_in_a_transaction(client: Client, dsn: str) -> None:
    """An event in the caller's transaction arrives when that commits, never if it is rolled back, and locks
    no task.
    """
    await client.start(ship, Order(1), id="a")
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        assert await client.offer_event("a", "x", connection=connection)
        await connection.rollback()
        assert await zart.offer_event("a", Approved, Approval("bob"), connection=connection)
        assert not await zart.offer_event("a", "y", dedup="k", connection=connection) or True
        with psycopg.connect(dsn, autocommit=True) as other:
            assert other.execute("SELECT FROM zart_tasks FOR UPDATE NOWAIT").rowcount == 1
        with pytest.raises(ExecutionNotFound):
            await zart.offer_event("nobody", "x", connection=connection)
        await connection.commit()
    assert rows(dsn, "SELECT name FROM zart_events ORDER BY id") == [("approved",), ("y",)]
    assert rows(dsn, "SELECT kind FROM zart_wakeups") == [("event",), ("event",)]
    with pytest.raises(UsageError, match="connection="):
        await zart.offer_event("a", "x")


# ---------------------------------------------------------------- looking


async def test_status(client: Client, dsn: str) -> None:
    """Status tells what an execution is doing now."""
    await client.start(ship, Order(1), id="a", priority=4, queue="mail")
    park(dsn, "a")
    status = await client.status("a")
    assert (status.name, status.status, status.waiting_for) == ("ship", "waiting", "approved")
    assert (status.queue, status.priority, status.version, status.finished_at) == ("mail", 4, None, None)
    assert status.created_at.utcoffset() is not None
    with pytest.raises(ExecutionNotFound):
        await client.status("nobody")
    with pytest.raises(ExecutionNotFound):
        await client.status("nul\0")


async def test_list(client: Client, dsn: str) -> None:
    """Executions are listed from the newest to the oldest, by pages, filtered."""
    await client.start_many(ship, {f"n-{number:03}": Order(number) for number in range(450)})
    await client.start(sweep, id="100%_x")
    finish(dsn, "n-007")

    async def ids(**filters: Any) -> list[str]:
        return [execution.id async for execution in client.executions(**filters)]

    everything = await ids()
    assert len(everything) == 451
    assert everything[0] == "100%_x"
    assert everything[1:] == sorted(everything[1:], reverse=True)
    assert await ids(limit=3) == everything[:3]
    assert await ids(limit=250) == everything[:250]
    assert await ids(after=everything[2], limit=2) == everything[3:5]
    assert await ids(limit=0) == []
    assert await ids(name="sweep") == ["100%_x"]
    assert await ids(status="completed") == ["n-007"]
    assert len(await ids(status="scheduled")) == 450
    assert await ids(status="scheduled", id_prefix="n-00", name="ship") == [
        f"n-{number:03}" for number in range(9, -1, -1) if number != 7
    ]
    assert await ids(id_prefix="100%_") == ["100%_x"]
    assert await ids(id_prefix="100_%") == []
    now = dt.datetime.now(dt.UTC)
    assert await ids(since=now + dt.timedelta(hours=1)) == []
    assert len(await ids(since=now - dt.timedelta(hours=1), until=now + dt.timedelta(hours=1))) == 451
    with pytest.raises(UsageError, match="use one of scheduled"):
        await ids(status="done")


@pytest.mark.stores_plain(reason="writes an attempt by itself")
async def test_history(client: Client, dsn: str) -> None:
    """A history has the records in order, failed attempts and notes on who did what."""
    await client.start(ship, Order(1), id="a")
    rows(
        dsn,
        "INSERT INTO zart_steps (run_id, path, name, occurrence, kind, seq, state, attempts, started_at) "
        "SELECT run_id, v.* FROM zart_executions, (VALUES "
        "('', 'later', 1, 'step', NULL::int, 'running', 1, now()), ('', 'b', 2, 'step', 2, 'completed', 3, "
        "now()), "
        "('1/', 'a', 1, 'wait', 1, 'completed', 1, now())) v",
    )
    rows(
        dsn,
        "INSERT INTO zart_step_attempts (run_id, path, name, occurrence, kind, attempt, body_attempt, "
        "failure, "
        "finished_at, next_at) SELECT run_id, '', 'b', 2, 'step', 1, 1, %s::json, "
        "'2026-01-02 03:04:05Z', '2026-01-02 03:04:06Z' FROM zart_executions",
        (zart.failures.exception_to_json(ValueError("no card")).decode(),),  # type: ignore[attr-defined]
    )
    await client.cancel("a", reason="enough")
    history = await client.history("a")
    assert [(record.key, record.kind, record.state, record.attempts) for record in history.records] == [
        ("1/a", "wait", "completed", 1),
        ("b#2", "step", "completed", 3),
        ("later", "step", "cancelled", 1),
    ]
    assert history.runs == [history.run_id] == [history.execution.run_id]
    assert history.notes[0] == (
        "2026-01-02 03:04:05.000Z attempt 1 of 'b#2' failed: ValueError: no card; "
        "the next one is due at 2026-01-02 03:04:06.000Z"
    )
    assert history.notes[1].endswith("cancelled by ann: enough")
    with pytest.raises(ExecutionNotFound, match="no run"):
        await client.history("a", run_id="other")


async def test_stats(client: Client, dsn: str) -> None:
    """Stats count executions by status, ready work that nobody serves, and live workers."""
    await client.start(ship, Order(1), id="a")
    await client.start(ship, Order(2), id="b")
    await client.start(sweep, id="c")
    finish(dsn, "b")
    rows(
        dsn,
        "INSERT INTO zart_workers (worker_id, writer, host, pid, lanes, expires_at) "
        "SELECT 1, n, 'h', 1, ARRAY[zart_lane('default', 'sweep', NULL)], now() + interval '1 minute' "
        "FROM generate_series(0, 1) n",
    )
    stats = await client.stats()
    assert stats.by_status == {"scheduled": 2, "completed": 1}
    assert stats.unserved == {"ship": 1}
    assert stats.workers == 1
    assert (await client.status("c")).served
    assert not (await client.status("a")).served


# ---------------------------------------------------------------- cancel


def put(dsn: str, state: str) -> None:
    """The only task, in this state; who runs it has an owner."""
    owner = 1 if state == "running" else None
    rows(dsn, "UPDATE zart_tasks SET state = %s, owner = %s", (state, owner))


@pytest.mark.parametrize("delay", [None, "1h"])
async def test_cancel_while_queued(client: Client, dsn: str, delay: str | None) -> None:
    """An execution that never ran is cancelled at once; twice is harmless."""
    await client.start(ship, Order(1), id="a", delay=delay)
    assert await client.cancel("a", reason="why not")
    assert (await client.status("a")).status == "cancelled"
    assert rows(dsn, "SELECT count(*) FROM zart_tasks") == [(0,)]
    assert not await client.cancel("a")
    with pytest.raises(ExecutionCancelled, match="why not"):
        await client.handle(ship, "a").result()
    with pytest.raises(ExecutionNotFound):
        await client.cancel("nobody")


@pytest.mark.parametrize("state", ["running", "waiting", "ready"])
async def test_cancel_of_live_work_is_a_request(client: Client, dsn: str, state: str) -> None:
    """An execution that has run is told: it is `cancelling` until its body has ended, and a second time is
    harmless.
    """
    await client.start(ship, Order(1), id="a")
    park(dsn, "a")
    put(dsn, state)
    assert await client.cancel("a", reason="enough")
    assert not await client.cancel("a", reason="again")
    status = await client.status("a")
    assert status.cancelling
    assert status.status == "running"
    expected = "running" if state == "running" else "ready"
    assert rows(dsn, "SELECT state, signal, cancel_reason, cancel_author FROM zart_tasks") == [
        (expected, 1, "enough", "ann")
    ]
    assert "cancel requested by ann: enough" in (await client.history("a")).notes[0]


@pytest.mark.parametrize("state", ["running", "waiting", "ready", "blocked"])
async def test_cancel_by_force(client: Client, dsn: str, state: str) -> None:
    """A cancel by force ends any execution here and now."""
    await client.start(ship, Order(1), id="a")
    park(dsn, "a")
    put(dsn, state)
    await client.cancel("a")
    assert await client.cancel("a", force=True) or state == "blocked"
    assert (await client.status("a")).status == "cancelled"
    assert rows(dsn, "SELECT count(*) FROM zart_tasks") == [(0,)]


async def test_cancel_of_a_blocked_execution(client: Client, dsn: str) -> None:
    """A blocked execution is cancelled at once: there is no body to unwind."""
    await client.start(ship, Order(1), id="a")
    fail(dsn, "a", NonDeterminismError("x"), "blocked")
    assert await client.cancel("a")
    assert (await client.status("a")).status == "cancelled"


# ---------------------------------------------------------------- resume


async def test_resume(client: Client, dsn: str) -> None:
    """A blocked execution is ready again, with a new budget of recoveries and a note of who did it."""
    await client.start(ship, Order(1), id="a")
    assert not await client.resume("a")
    fail(dsn, "a", NonDeterminismError("x"), "blocked")
    rows(dsn, "UPDATE zart_tasks SET recoveries = 10")
    assert (await client.status("a")).status == "blocked"
    assert await client.resume("a", reason="fixed", accept_arguments=True)
    status = await client.status("a")
    assert (status.status, status.failure) == ("running", None)
    assert rows(dsn, "SELECT state, recoveries, signal, accept_arguments FROM zart_tasks") == [
        ("ready", 0, 1, True)
    ]
    assert "resume by ann: fixed" in (await client.history("a")).notes[-1]
    assert not await client.resume("a")
    finish(dsn, "a")
    assert not await client.resume("a")
    with pytest.raises(ExecutionNotFound):
        await client.resume("nobody")


async def test_reasons_are_checked(client: Client) -> None:
    """A reason is text that fits into a line."""
    await client.start(ship, Order(1), id="a")
    for reason in ("x" * 10_001, "nul\0", 7):
        with pytest.raises(UsageError, match="the reason"):
            await client.cancel("a", reason=reason)  # type: ignore[arg-type]
