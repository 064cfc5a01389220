"""Scheduled steps at the edges: retries, deploys and cancels that meet work which is under way."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import psycopg
import pytest

import zart
from tests.integration.test_giving_away import give
from tests.support.executions import Bench
from tests.support.running import (
    fast,
    forgetful,
    query,
    until,
    until_record,
    until_status,
    worker_for,
    working,
)
from zart import Client, durable, step
from zart.codec import Codec

HASTY = fast(shutdown_timeout="50ms")
"""A worker that gives back at once what it is to leave under way."""

ran: list[object] = []
gates: dict[str, asyncio.Event] = {}
handles: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def _fresh() -> None:
    ran.clear()
    gates.clear()
    handles.clear()


def gate(name: str) -> asyncio.Event:
    return gates.setdefault(name, asyncio.Event())


@step("gated")
async def gated(name: str) -> str:
    ran.append(name)
    await gate(name).wait()
    ran.append(f"{name} done")
    return name


@step("fails-once")
async def fails_once(number: int) -> int:
    ran.append(number)
    if number == 2 and ran.count(2) == 1:
        raise ConnectionError("once")
    return number


@durable("one-by-one", max_retries="fixed(1, 10ms)")
async def one_by_one(width: int) -> list[int]:
    return await zart.map(fails_once, range(width), limit=1)


async def test_a_limited_map_goes_on_after_an_item_has_failed_the_body(dsn: str) -> None:
    """The failed item runs afresh; whom it has let go in the first attempt is not held back in the second."""
    async with working(dsn, one_by_one) as client:
        handle = await client.start(one_by_one, 5)
        assert await handle.result(timeout="15s") == [0, 1, 2, 3, 4]
    assert sorted(map(str, ran)) == ["0", "1", "2", "2", "3", "4"]


@durable("grows")
async def grows_before() -> list[str]:
    return await zart.map(gated, ["a", "b", "c", "d"], limit=2)


@durable("grows")
async def grows_after() -> list[str]:
    return await zart.map(gated, ["a", "b", "c", "d", "e", "f"], limit=2)


async def test_a_limited_map_goes_on_when_a_deploy_has_appended_items(dsn: str) -> None:
    """Items that were given away before know nobody to let go: the new ones do not wait for them."""
    async with working(dsn, grows_before, config=HASTY) as client:
        await client.start(grows_before, id="g")
        await until(lambda: len(ran) == 2)
        await until_status(client, "g", "waiting")
    async with working(dsn, grows_after) as client:
        for name in "abcdef":
            gate(name).set()
        assert await client.handle(grows_after, "g").result(timeout="15s") == list("abcdef")


@durable("wide")
async def wide(width: int) -> list[str]:
    return await zart.map(gated, [f"item-{n}" for n in range(width)], limit=3)


async def test_no_held_back_step_begins_when_a_limited_map_is_cancelled(dsn: str) -> None:
    """The end of a step that is cancelled lets nobody go."""
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(Client(dsn))
        for _ in range(3):
            await stack.enter_async_context(worker_for(dsn, wide, config=fast(max_concurrent_tasks=20)))
        handle = await client.start(wide, 60, id="w")
        await until(lambda: len(ran) == 3)
        await client.cancel("w")
        with pytest.raises(zart.ExecutionCancelled):
            await handle.result(timeout="15s")
    assert sorted(map(str, ran)) == ["item-0", "item-1", "item-2"]


async def test_the_cancel_of_a_map_takes_its_last_items_first(dsn: str) -> None:
    """In however many parts it is applied: who is held back is told before whoever would let it go."""
    async with working(dsn, wide, config=HASTY) as client:
        await client.start(wide, 8, id="w")
        await until(lambda: len(ran) == 3)
        await until_status(client, "w", "waiting")
    async with Client(dsn) as client:
        await client.cancel("w")
        told = await query(
            dsn,
            "SELECT t.step_occurrence FROM zart_wakeups w JOIN zart_tasks t ON t.id = w.task_id"
            " WHERE w.kind = 'cancel' ORDER BY w.id",
        )
    assert [place for (place,) in told] == [8, 7, 6, 5, 4, 3, 2, 1]


@durable("cleans-up")
async def cleans_up() -> None:
    try:
        await zart.wait_for_event("never")
    finally:
        first = zart.schedule_step(gated, "first")
        second = zart.schedule_step(gated, "second")
        await first
        ran.append("half")
        await second


async def test_what_a_cancelled_body_gives_away_to_clean_up_outlives_its_replays(dsn: str) -> None:
    """The cancel that a replay delivers again means what was under way at the time, and nothing later."""
    async with working(dsn, cleans_up, config=forgetful()) as client:
        handle = await client.start(cleans_up, id="c")
        await until_status(client, "c", "waiting")
        await client.cancel("c")
        await until(lambda: {"first", "second"} <= set(ran))
        await until_status(client, "c", "waiting")
        gate("first").set()
        await until(lambda: "half" in ran)
        await until_status(client, "c", "waiting")
        await until(lambda: _no_news(dsn))
        assert await query(dsn, "SELECT cancel_at FROM zart_tasks WHERE step_occurrence = 2") == [(None,)]
        gate("second").set()
        with pytest.raises(zart.ExecutionCancelled):
            await handle.result(timeout="15s")
    assert ran.count("second") == ran.count("second done") == 1


async def _no_news(dsn: str) -> bool:
    return not await query(dsn, "SELECT 1 FROM zart_wakeups")


async def test_nothing_is_given_away_after_a_forced_cancel(dsn: str) -> None:
    """A worker that has not heard of it yet gives a step away: it is told that it has lost, and no task is left."""
    async with Bench(dsn) as bench, Client(dsn) as client:
        (parent,) = await bench.hold([1_000_000])
        await client.cancel(parent.id, force=True)
        assert type(await give(bench, parent, "late")).__name__ == "Lost"
        assert await bench.rows("SELECT id FROM zart_tasks") == []
        assert await bench.rows("SELECT name FROM zart_steps") == []


@pytest.mark.stores_plain(reason="gives the journal records by itself, as they are")
async def test_a_forced_cancel_reaches_what_is_given_away_while_it_waits(dsn: str) -> None:
    """It waits for the worker that gives a step away, so it has looked before that step was there."""
    async with Bench(dsn) as bench, Client(dsn) as client:
        (parent,) = await bench.hold([1_000_000])
        async with await psycopg.AsyncConnection.connect(dsn) as other:
            await other.execute(
                "INSERT INTO zart_steps (run_id, path, name, occurrence, kind, state)"
                " VALUES (%s, '', 'late', 1, 'step', 'waiting')",
                (parent.run_id,),
            )
            given = give(bench, parent, "late")
            await bench.blocked(1)
            cancelling = asyncio.create_task(client.cancel(parent.id, force=True))
            await bench.blocked(2)
            await other.rollback()
        assert await given is None
        assert await cancelling
        assert await bench.rows(
            "SELECT t.step_name, w.kind FROM zart_wakeups w JOIN zart_tasks t ON t.id = w.task_id"
        ) == [("late", "cancel")]


@step("renamed")
async def renamed(name: str) -> str:
    ran.append(f"renamed {name}")
    return name


@step("plain")
async def plain() -> None:
    ran.append("plain")


@durable("changes")
async def with_its_old_name() -> str:
    handle = zart.schedule_step(gated, "a")
    await zart.wait_for_event("first")
    await zart.wait_for_event("second")
    await plain()
    await zart.wait_for_event("end")
    return await handle


@durable("changes")
async def with_another_name() -> str:
    handle = zart.schedule_step(renamed, "a")
    await zart.wait_for_event("first")
    await zart.wait_for_event("second")
    await plain()
    await zart.wait_for_event("end")
    return await handle


@durable("changes")
async def without_it() -> str:
    await zart.wait_for_event("first")
    await zart.wait_for_event("second")
    await plain()
    await zart.wait_for_event("end")
    return "without it"


async def _scheduled(dsn: str, client: Client, *, ended: bool) -> None:
    """An execution of the old code, which has scheduled its step and gone on."""
    await client.start(with_its_old_name, id="x")
    await until(lambda: ran == ["a"])
    if ended:
        gate("a").set()
        await until_record(client, "x", "gated", "completed")
    await client.offer_event("x", "first")
    if ended:  # and its end has a place in the log, before the calls that follow
        await until(lambda: query(dsn, "SELECT 1 FROM zart_steps WHERE name = 'gated' AND seq IS NOT NULL"))
    await client.offer_event("x", "second")
    await until_record(client, "x", "plain", "completed")
    await until_status(client, "x", "waiting")


@pytest.mark.parametrize("ended", [False, True], ids=["under-way", "ended"])
async def test_a_scheduled_step_that_was_renamed_is_a_contradiction(dsn: str, ended: bool) -> None:
    """The execution is blocked, whether the step has ended or not, and the step is not done under both names."""
    async with working(dsn, with_its_old_name, config=HASTY) as client:
        await _scheduled(dsn, client, ended=ended)
    async with working(dsn, with_another_name, config=HASTY) as client:
        await client.offer_event("x", "end")
        await until_status(client, "x", "blocked")
        assert "the code asks for step renamed" in str((await client.status("x")).failure)
    assert "renamed a" not in ran


async def test_a_scheduled_step_may_be_taken_out_of_the_code(dsn: str) -> None:
    """Nothing is scheduled in its place: that is no contradiction. The execution ends after what is under way."""
    async with working(dsn, with_its_old_name, config=HASTY) as client:
        await _scheduled(dsn, client, ended=False)
    async with working(dsn, without_it) as client:
        await client.offer_event("x", "end")
        gate("a").set()
        assert await client.handle(without_it, "x").result(timeout="15s") == "without it"


@durable("cannot-be-stored")
async def cannot_be_stored() -> str:
    return "poison"


@durable("can-be-stored")
async def can_be_stored() -> str:
    return "fine"


@pytest.mark.not_in("encrypted", reason="an encrypted outcome can be stored whatever it is")
async def test_an_outcome_that_the_database_refuses_frees_its_slot(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The execution fails by name, and the worker's only slot goes to the next one."""
    store = Codec.store

    def stored(self: Codec, value: Any, what: str) -> tuple[bytes, Any]:
        data, decoded = store(self, value, what)
        return (b"{" if value == "poison" else data), decoded

    monkeypatch.setattr(Codec, "store", stored)
    config = fast(max_concurrent_tasks=1)
    async with working(dsn, cannot_be_stored, can_be_stored, config=config) as client:
        with pytest.raises(zart.ExecutionFailed, match="cannot be stored"):
            await (await client.start(cannot_be_stored)).result(timeout="15s")
        assert await (await client.start(can_be_stored)).result(timeout="15s") == "fine"


@durable("makes-a-handle")
async def makes_a_handle() -> None:
    handles["foreign"] = zart.schedule_step(gated, "foreign")
    await zart.wait_for_event("never")


@durable("takes-a-handle")
async def takes_a_handle(every: bool) -> str:
    wait = zart.wait_all if every else zart.wait_any
    try:
        await wait(handles["foreign"])
    except zart.UsageError as error:
        return str(error)
    return "taken"


@pytest.mark.parametrize("every", [False, True], ids=["wait_any", "wait_all"])
async def test_a_handle_of_another_execution_is_refused(dsn: str, every: bool) -> None:
    """Waiting for it would be waiting for what this execution never hears of."""
    async with working(dsn, makes_a_handle, takes_a_handle, config=HASTY) as client:
        await client.start(makes_a_handle)
        await until(lambda: handles)
        handle = await client.start(takes_a_handle, every)
        assert "belongs to another body" in await handle.result(timeout="15s")
