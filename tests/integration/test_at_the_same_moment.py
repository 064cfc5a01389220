"""What happens to an execution while something else is under way: the rare orders of things."""

import asyncio
import datetime as dt
from typing import Any

import psycopg
import pytest

from tests.support.executions import Bench, failed_attempt
from tests.support.floor import HOUR, Floor
from zart import Client
from zart._engine.entries import Blocked, Key, Lost, Suspended

BLOCKED = Blocked(failure=b'{"type": "NonDeterminismError", "message": "no"}', what="non-determinism")


@pytest.mark.parametrize("how", ["by force", "while blocked", "while blocked, from SQL"])
async def test_a_cancelled_execution_shows_when_it_first_ran(dsn: str, how: str) -> None:
    """Also when no worker has written its end."""
    async with Floor(dsn) as floor, Client(dsn) as client:
        await floor.start("e")
        hand = await floor.hand()
        (claim,) = await hand.claim_all()
        if how != "by force":
            await floor.database.execute("UPDATE zart_tasks SET state = 'blocked', owner = NULL")
        if how.endswith("SQL"):
            await floor.database.execute("SELECT zart_cancel('e')")
            await hand.tick(0)
        else:
            assert await client.cancel("e", force=how == "by force")
        rows = await floor.rows("SELECT status, started_at FROM zart_v_executions")
        assert rows == [("cancelled", claim.started_at)]


@pytest.mark.parametrize("how", ["client", "SQL"])
@pytest.mark.stores_plain(reason="writes records and failures by itself")
async def test_nothing_is_under_way_in_a_blocked_execution_that_was_cancelled(dsn: str, how: str) -> None:
    """Its calls that were under way have ended with it, whichever way the cancel came."""
    async with Floor(dsn) as floor, Client(dsn) as client:
        await floor.start("e")
        hand = await floor.hand()
        (claim,) = await hand.claim_all()
        await floor.record(claim, "slow")
        await floor.database.execute("UPDATE zart_steps SET state = 'running', seq = NULL")
        await floor.database.execute("UPDATE zart_tasks SET state = 'blocked', owner = NULL")
        if how == "SQL":
            await floor.database.execute("SELECT zart_cancel('e')")
            await hand.tick(0)
        else:
            assert await client.cancel("e")
        rows = await floor.rows("SELECT s.state, v.status FROM zart_steps s, zart_v_executions v")
        assert rows == [("cancelled", "cancelled")]


@pytest.mark.stores_plain(reason="writes records and failures by itself")
async def test_what_is_blocked_while_it_is_being_cancelled_is_cancelled(dsn: str) -> None:
    """Whoever asked would wait for ever: nobody resumes what is to end."""
    async with Bench(dsn) as bench:
        (held,) = await bench.hold([2], cancel_at=dt.datetime.now(dt.UTC))
        bench.write(held, "slow", "running")
        assert await bench.end(held, BLOCKED) is None
        rows = await bench.rows("SELECT id, status FROM zart_executions ORDER BY id")
        assert rows == [("execution-2", "cancelled")]
        assert await bench.value("SELECT count(*) FROM zart_tasks") == 0
        assert await bench.value("SELECT state FROM zart_steps") == "cancelled"


@pytest.mark.stores_plain(reason="writes records and failures by itself")
async def test_an_event_whose_key_is_held_back_by_others_holds_nobody_up(dsn: str) -> None:
    """A program offers an event with the key of one in an open transaction: it waits for that. The execution does not
    wait for it, nor does any other whose records go the same way."""
    async with Bench(dsn) as bench, Client(dsn) as client:
        held, other = await bench.hold([1, 2])
        async with await psycopg.AsyncConnection.connect(dsn) as person:
            await person.execute("SELECT zart_offer_event(%s, 'go', '1', 'key')", (held.id,))
            offer = asyncio.create_task(client.offer_event(held.id, "go", 1, dedup="key"))
            await bench.blocked(1)
            parked = bench.end(held, Suspended(seen=0, wake_at=None, waiting_for=None))
            async with asyncio.timeout(5):
                assert await parked is None
                assert await bench.write(other, "step") is None
            assert not offer.done()
        assert await offer is False


async def test_an_event_is_seen_by_a_suspension_that_comes_at_the_same_moment(dsn: str) -> None:
    """Whichever is first: the execution is not left asleep with it."""
    async with Bench(dsn) as bench, Client(dsn) as client:
        (held,) = await bench.hold([1])
        async with await psycopg.AsyncConnection.connect(dsn) as person:
            await person.execute("SELECT FROM zart_tasks FOR UPDATE")
            parked = bench.end(held, Suspended(seen=0, wake_at=None, waiting_for=None))
            offer = asyncio.create_task(client.offer_event(held.id, "go", 1))
            await bench.blocked(2)
        assert await parked is None
        assert await offer
        assert await bench.rows("SELECT state, signal FROM zart_tasks") == [("ready", 1)]


async def test_a_suspension_sent_once_more_brings_nothing_back(dsn: str) -> None:
    """Its answer was lost; until it is sent again, another worker has gone on and had the body run anew. The time limit
    of the first attempt must not stand there again."""
    async with Bench(dsn) as bench:
        (held,) = await bench.hold([1])
        timer = Key("", "limit", 1, "timer")
        sent: list[Any] = []
        sender = bench.journal._lane.sender
        write = sender._write

        async def remember(direct: Any, part: Any) -> Any:
            sent.append(part)
            return await write(direct, part)

        sender._write = remember  # type: ignore[method-assign]
        bench.write(held, "limit", "waiting", key=timer)
        assert await bench.end(held, Suspended(seen=0, wake_at=None, waiting_for=None)) is None
        (part,) = sent
        await bench.database.execute("DELETE FROM zart_steps")
        await bench.database.execute(
            "UPDATE zart_tasks SET state = 'ready', attempt = 2, floor = 1, token = NULL"
        )
        reply = await write(await sender._line.open(), part)
        assert reply.lost == {record.token for record in part.records()}
        assert await bench.value("SELECT count(*) FROM zart_steps") == 0


async def test_a_record_goes_with_the_ending_that_is_refused(dsn: str) -> None:
    """An execution that was ended by force: its worker has not heard of it and parks it with a deadline."""
    async with Bench(dsn) as bench, Client(dsn) as client:
        (held,) = await bench.hold([1])
        assert await client.cancel(held.id, force=True)
        deadline = bench.write(held, "nap", "waiting", failed_attempt=failed_attempt("nap"))
        now = dt.datetime.now(dt.UTC)
        ending = bench.end(held, Suspended(seen=0, wake_at=now + HOUR, waiting_for=None))
        assert isinstance(await deadline, Lost)
        assert isinstance(await ending, Lost)
        assert await bench.value("SELECT count(*) FROM zart_steps") == 0
        assert await bench.value("SELECT count(*) FROM zart_step_attempts") == 0
