"""Children at the edges: chosen ids that are not there yet or not free, retries of the body, and detached children."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
import pytest

import zart
from tests.support.running import forgetful, query, until, until_record, until_status, working
from zart import durable, step
from zart._engine import points

ran: list[object] = []
reached: list[str] = []


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(points, "listener", reached.append)
    ran.clear()
    reached.clear()


@asynccontextmanager
async def id_held(dsn: str, id: str) -> AsyncIterator[psycopg.AsyncConnection]:
    """Somebody's open transaction has an execution of this id: nobody can tell whether it is free."""
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        await connection.execute("SELECT zart_start('brief', id => %s::text)", (id,))
        yield connection
        await connection.rollback()


@durable("brief")
async def brief() -> str:
    return zart.execution_id()


@durable("lasting")
async def lasting() -> str:
    await zart.wait_for_event("end")
    return "ended"


@durable("gives-and-ends")
async def gives_and_ends(detached: bool) -> str:
    zart.start_child(brief, id="chosen", detached=detached)
    return "done"


@pytest.mark.parametrize("detached", [False, True])
async def test_a_named_child_that_nobody_awaits_is_started(dsn: str, detached: bool) -> None:
    """The body ends before the child is there: it is started all the same, and only then the parent ends."""
    async with working(dsn, gives_and_ends, brief) as client:
        async with id_held(dsn, "chosen"):
            handle = await client.start(gives_and_ends, detached)
            await until(lambda: "body.outlived" in reached)
        assert await handle.result(timeout="15s") == "done"
        assert await client.handle(brief, "chosen").result(timeout="15s") == "chosen"


async def test_a_parent_ends_although_its_child_is_refused_after_the_body(dsn: str) -> None:
    """Nobody is left to be told of the conflict; the outcome that has waited is written."""
    async with working(dsn, gives_and_ends, brief) as client:
        async with id_held(dsn, "chosen") as other:
            handle = await client.start(gives_and_ends, False)
            await until(lambda: "body.outlived" in reached)
            await other.commit()
        assert await handle.result(timeout="15s") == "done"


@durable("broken")
async def broken() -> None:
    raise ConnectionError("broken")


@durable("tries-again", max_retries="fixed(1, 10ms)")
async def tries_again() -> str:
    try:
        await zart.start_child(broken, id="chosen")
    except zart.ExecutionConflict:
        return "taken"
    return "?"


async def test_a_named_child_that_is_tried_afresh_is_a_conflict(dsn: str) -> None:
    """Its failed execution has the id: the next attempt of the body is told, and does not wait for ever."""
    async with working(dsn, tries_again, broken) as client:
        handle = await client.start(tries_again)
        assert await handle.result(timeout="15s") == "taken"
    assert await query(dsn, "SELECT id FROM zart_executions WHERE name = 'broken'") == [("chosen",)]


@step("fails-once")
async def fails_once() -> None:
    ran.append("failed")
    if ran.count("failed") == 1:
        raise ConnectionError("once")


@durable("tells-the-id", max_retries="fixed(1, 10ms)")
async def tells_the_id() -> list[str]:
    child = zart.start_child(brief)
    await fails_once()
    return [child.id, await child]


async def test_a_child_keeps_its_id_in_later_attempts_of_the_body(dsn: str) -> None:
    """The second attempt attaches to the child of the first one, and its handle tells that one's id."""
    async with working(dsn, tells_the_id, brief) as client:
        handle = await client.start(tells_the_id)
        told, own = await handle.result(timeout="15s")
    assert ran == ["failed", "failed"]
    assert told == own


@durable("changes-its-mind")
async def changes_its_mind() -> str:
    child = zart.start_child(lasting, id="chosen")
    told = await child.cancel()
    try:
        await child
    except zart.ExecutionCancelled:
        return f"cancelled: {told}"
    return "?"


async def test_a_cancel_reaches_a_named_child_that_is_still_being_started(dsn: str) -> None:
    """The handle is cancelled before the child is there: it is told as soon as it is."""
    async with working(dsn, changes_its_mind, lasting) as client:
        async with id_held(dsn, "chosen"):
            handle = await client.start(changes_its_mind, id="c")
            await until_record(client, "c", "cancel child lasting")
        assert await handle.result(timeout="15s") == "cancelled: True"
        assert (await client.status("chosen")).status == "cancelled"


@durable("waits-for-named")
async def waits_for_named() -> str:
    return await zart.start_child(lasting, id="chosen")


async def test_the_cancel_of_a_parent_reaches_a_named_child_that_is_still_being_started(dsn: str) -> None:
    """The parent's end waits for the child, and the child does not go on without it."""
    async with working(dsn, waits_for_named, lasting) as client:
        async with id_held(dsn, "chosen"):
            handle = await client.start(waits_for_named, id="c")
            await until(lambda: "child.begin" in reached)
            await client.cancel("c")
            await until_record(client, "c", "cancel")
        with pytest.raises(zart.ExecutionCancelled):
            await handle.result(timeout="15s")
        assert (await client.status("chosen")).status == "cancelled"


async def test_no_named_child_goes_on_after_a_forced_cancel(dsn: str) -> None:
    """The id becomes free when the parent is no more: the child is not started, or cancelled with its start."""
    async with working(dsn, waits_for_named, lasting) as client:
        async with id_held(dsn, "chosen"):
            await client.start(waits_for_named, id="c")
            await until(lambda: "child.begin" in reached)
            await client.cancel("c", force=True)
        await until(lambda: "child.committed" in reached)
        await until(lambda: _all_cancelled(dsn))
        assert await query(dsn, "SELECT id FROM zart_tasks") == []


async def _all_cancelled(dsn: str) -> bool:
    return not await query(dsn, "SELECT 1 FROM zart_executions WHERE status <> 'cancelled'")


async def clean(_data: None, _failure: zart.Failure) -> None:
    await zart.wait_for_event("cleaned")


@durable("leaves-behind", on_failure=clean)
async def leaves_behind() -> None:
    zart.start_child(lasting, id="left", detached=True)
    await zart.wait_for_event("fail")
    raise LookupError("no")


@pytest.mark.parametrize("cancels", [False, True], ids=["ends", "cancelled"])
async def test_a_detached_child_stays_detached_when_only_on_failure_is_replayed(
    dsn: str, cancels: bool
) -> None:
    """The code that started it does not run again: it is still neither waited for nor cancelled."""
    async with working(dsn, leaves_behind, lasting, config=forgetful()) as client:
        handle = await client.start(leaves_behind, id="l")
        await client.offer_event("l", "fail")
        await until_status(client, "l", "waiting")
        await until(lambda: _waits_for_cleaning(dsn))
        await (client.cancel("l") if cancels else client.offer_event("l", "cleaned"))
        with pytest.raises(zart.ExecutionCancelled if cancels else zart.ExecutionFailed):
            await handle.result(timeout="15s")
        await client.offer_event("left", "end")
        assert await client.handle(lasting, "left").result(timeout="15s") == "ended"


async def _waits_for_cleaning(dsn: str) -> bool:
    rows = await query(
        dsn, "SELECT waiting_for FROM zart_tasks WHERE execution_id = 'l' AND state = 'waiting'"
    )
    return bool(rows) and "cleaned" in rows[0][0]


@durable("outlived")
async def outlived() -> None:
    zart.start_child(lasting, id="left", detached=True)
    await zart.wait_for_event("return")


@pytest.mark.parametrize("how", ["returns", "cancelled", "forced"])
async def test_the_record_of_a_detached_child_ends_as_the_child_does(dsn: str, how: str) -> None:
    """The end of its parent does not end it: the parent's journal shows it under way, and then what came of it."""
    async with working(dsn, outlived, lasting) as client:
        await client.start(outlived, id="p")
        await until_status(client, "p", "waiting")
        await until_status(client, "left", "waiting")
        if how == "returns":
            await client.offer_event("p", "return")
        else:
            await client.cancel("p", force=how == "forced")
        await until_status(client, "p", "completed", "cancelled")
        assert await _record(dsn) == [("waiting", None)]
        await client.offer_event("left", "end")
        await until_status(client, "left", "completed")
        assert await _record(dsn) == [("completed", "ended")]


async def _record(dsn: str) -> list[tuple[object, ...]]:
    return await query(dsn, "SELECT state, result FROM zart_steps WHERE kind = 'child'")
