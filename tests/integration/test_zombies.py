"""Workers that are not as dead as they seem, and holds that are not as new: what the one sends never meets what the
other does."""

import asyncio
import contextlib
import datetime as dt
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

import zart
from tests.support.floor import Floor, Hand
from tests.support.running import fast, query, shift_clock, until, until_status, working
from zart import durable, step
from zart._engine.entries import Change, Claim, Completed, Ending, Entry, Key, Lost, Released
from zart._engine.reaper import reap
from zart._engine.writer import Journal

pytestmark = pytest.mark.stores_plain(reason="writes records and ends by itself")


class Pen:
    """The journal of a hand."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def write(self, claim: Claim, name: str) -> "asyncio.Future[Exception | None]":
        """A completed step; the future gets the verdict."""
        verdict: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        entry = Entry(
            run_id=claim.run_id,
            task_id=claim.task_id,
            key=Key("", name, 1, "step"),
            state="completed",
            seq=1,
            result=b"1",
            done=lambda _entry, error: verdict.set_result(error),
        )
        self._journal.write(entry)
        return verdict

    def end(self, claim: Claim, ending: Ending) -> "asyncio.Future[Exception | None]":
        verdict: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        change = Change(
            task_id=claim.task_id,
            execution_id=claim.execution_id,
            run_id=claim.run_id,
            epoch=claim.epoch,
            ending=ending,
            done=lambda _change, error: verdict.set_result(error),
        )
        self._journal.end(change)
        return verdict


@contextlib.asynccontextmanager
async def pen_of(dsn: str, hand: Hand) -> AsyncIterator[Pen]:
    async def connect() -> psycopg.AsyncConnection[Any]:
        return await psycopg.AsyncConnection.connect(dsn, autocommit=True)

    journal = Journal(
        connect,
        "public",
        hand.id,
        on_now=lambda _now: None,
        on_fenced=lambda: None,
        on_schema_error=lambda _error: None,
    )
    running = asyncio.create_task(journal.run())
    try:
        yield Pen(journal)
    finally:
        await journal.close()
        await running


async def test_a_record_in_flight_is_in_the_history_of_who_takes_over(dsn: str) -> None:
    """A worker's record is under way while it is taken for dead: either it is refused, or whoever goes on has it."""
    async with Floor(dsn) as floor:
        await floor.start("e")
        zombie, other = await floor.hand(), await floor.hand()
        (claim,) = await zombie.claim_all()
        holder = await floor.connect()
        async with pen_of(dsn, zombie) as pen:
            async with holder.transaction(force_rollback=True):
                await holder.execute(
                    "INSERT INTO zart_steps (run_id, path, name, occurrence, kind, state)"
                    " VALUES (%s, '', 'slow', 1, 'step', 'completed')",
                    (claim.run_id,),
                )
                told = pen.write(claim, "slow")
                await floor.until(
                    "SELECT EXISTS (SELECT FROM pg_stat_activity"
                    " WHERE datname = current_database() AND wait_event_type = 'Lock')"
                )
                await floor.database.execute(
                    "UPDATE zart_workers SET expires_at = clock_timestamp() - interval '1s'"
                    " WHERE worker_id = %s",
                    (zombie.id,),
                )
                async with asyncio.timeout(5):  # the reaper waits for nobody
                    await reap(floor.database, "public")
                taken = await other.claim_all(suspect=True)
            verdict = await told
        await reap(floor.database, "public")
        taken += await other.claim_all(suspect=True)
        (going_on,) = taken
        assert [entry.key.name for entry in going_on.entries] == (["slow"] if verdict is None else [])


async def test_what_another_claimed_a_moment_ago_is_not_claimed(dsn: str) -> None:
    """While a claim waits for its fence, another worker takes what it had its eyes on: it goes away empty-handed."""
    async with Floor(dsn) as floor:
        await floor.start("e")
        late, early = await floor.hand(), await floor.hand()
        holder = await floor.connect()
        backend = (await late.claimer._line.open()).backend
        async with holder.transaction():
            await holder.execute("SELECT FROM zart_workers WHERE worker_id = %s FOR UPDATE", (late.id,))
            waiting = asyncio.create_task(late.tick())
            await floor.until_locked_out(backend)
            assert [claim.execution_id for claim in await early.claim_all()] == ["e"]
        assert (await waiting).claims == []
        assert await floor.value("SELECT owner FROM zart_tasks") == early.id


@pytest.mark.parametrize("ending", [Completed(result=b"1"), Released()], ids=["completed", "released"])
async def test_an_earlier_hold_of_the_same_worker_ends_nothing(dsn: str, ending: Ending) -> None:
    """A worker gave an execution back and has claimed it again: what its first hold still says changes nothing."""
    async with Floor(dsn) as floor:
        await floor.start("e")
        hand = await floor.hand()
        async with pen_of(dsn, hand) as pen:
            (first,) = await hand.claim_all()
            assert await pen.end(first, Released()) is None
            (second,) = await hand.claim_all()
            assert isinstance(await pen.end(first, ending), Lost)
            assert await floor.states() == {"e": "running"}
            assert await pen.end(second, Completed(result=b"1")) is None


begun: list[str] = []


async def test_a_worker_holds_one_suspect_at_a_time(dsn: str) -> None:
    """Of executions whose workers have died again and again a worker runs one at a time, others beside it as ever."""
    begun.clear()
    gate = asyncio.Event()

    @step("linger")
    async def linger(name: str) -> None:
        begun.append(name)
        await gate.wait()

    @durable("suspicious")
    async def suspicious(name: str) -> None:
        await linger(name)

    @durable("innocent")
    async def innocent() -> str:
        return "done"

    async with zart.Client(dsn) as client:
        handles = [await client.start(suspicious, name, id=name) for name in ("a", "b")]
        await query(dsn, "UPDATE zart_tasks SET recoveries = 2, epoch = 3, started_at = zart_now()")
    async with working(dsn, suspicious, innocent, config=fast(max_recoveries=5)) as client:
        await until(lambda: begun)
        for _ in range(3):
            assert await (await client.start(innocent)).result(timeout="10s") == "done"
        assert begun == ["a"]
        gate.set()
        for handle in handles:
            await client.handle(suspicious, handle.id).result(timeout="10s")
    assert begun == ["a", "b"]


async def test_a_suspect_that_waits_with_nothing_committed_is_still_one(dsn: str) -> None:
    """What it has sent off would be lost with the process, and count against it: until it is committed no other
    suspect comes in, though the body of the first is suspended already."""
    begun.clear()

    @durable("suspicious")
    async def suspicious(name: str) -> None:
        begun.append(name)
        await zart.wait_for_event("go")

    @durable("innocent")
    async def innocent(name: str) -> None:
        begun.append(name)

    async with Floor(dsn) as floor, zart.Client(dsn) as client:
        for name in ("a", "b"):
            await client.start(suspicious, name, id=name)
        await query(dsn, "UPDATE zart_tasks SET recoveries = 2, epoch = 3, started_at = zart_now()")
        holder = await floor.connect()
        await holder.execute("BEGIN")
        await holder.execute(
            "INSERT INTO zart_steps (run_id, path, name, occurrence, kind, state)"
            " SELECT run_id, '', 'go', 1, 'wait', 'completed' FROM zart_executions"
        )
        async with working(dsn, suspicious, innocent, config=fast(max_recoveries=5)):
            await floor.until(
                "SELECT EXISTS (SELECT FROM pg_stat_activity"
                " WHERE datname = current_database() AND wait_event_type = 'Lock')"
            )
            for name in ("c", "d"):  # the worker looks for work twice more
                await client.start(innocent, name, id=name)
                await until(lambda told=name: told in begun)  # type: ignore[misc]
            assert begun == ["a", "c", "d"]
            await holder.execute("ROLLBACK")
            await until(lambda: "b" in begun)


async def test_a_time_limit_does_not_begin_anew_with_another_worker(dsn: str) -> None:
    """An execution's limit counts from when it was due, however often it is claimed again in between."""

    @durable("limited", timeout="1h")
    async def limited() -> None:
        while True:
            await zart.wait_for_event("more")

    async with working(dsn, limited) as client:
        handle = await client.start(limited, id="l")
        for number in range(3):
            await until_status(client, "l", "waiting")
            await shift_clock(dsn, dt.timedelta(minutes=19))
            await client.offer_event("l", "more")
            await until(
                lambda told=number + 1: query(  # type: ignore[misc]
                    dsn, "SELECT 1 FROM zart_steps WHERE occurrence = %s AND state = 'completed'", told
                )
            )
        await until_status(client, "l", "waiting")
        await shift_clock(dsn, dt.timedelta(minutes=4))
        with pytest.raises(zart.ExecutionTimeout, match="within 1h"):
            await handle.result(timeout="10s")
