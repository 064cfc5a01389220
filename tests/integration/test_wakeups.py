"""News for live work: inserted by anybody's transaction, applied by workers, never lost, never in the way."""

import asyncio
import contextlib
import json

from tests.support.floor import HOUR, Floor
from tests.support.running import ANNOUNCING
from zart._engine.entries import CancelRequest
from zart._postgres.listener import done_channel, work_channel


async def test_an_open_transaction_that_offers_an_event_delays_nobody(dsn):
    """psql holds `BEGIN; SELECT zart_offer_event(…)` open: all executions go on, the one it is for too, and
    it can be suspended, claimed and taken over meanwhile. After the commit the event is there at once.
    """
    async with Floor(dsn) as floor:
        await floor.start("target", "other", "third")
        hand = await floor.hand()
        target, other, third = await hand.claim_all()
        await floor.park(other)
        session = await floor.connect()
        async with session.transaction():
            await session.execute("SELECT zart_offer_event('target', 'n', '1')")
            async with asyncio.timeout(5):
                assert await floor.park(target) == ["waiting"]
                await floor.offer("other", "n")
                (woken,) = await hand.claim_all()
                assert woken.execution_id == "other"
                await floor.database.execute("SELECT FROM zart_workers FOR UPDATE")
                assert (await hand.tick(watching=[third])).news == []
        (claim,) = await hand.claim_all()
        assert claim.execution_id == "target"
        assert [event.payload for event in claim.events] == ["1"]


async def test_an_event_between_the_claim_and_the_suspension_is_not_lost(dsn):
    """The wake-up is applied while the execution is held: its suspension is refused, the row is ready."""
    async with Floor(dsn) as floor:
        await floor.start("e")
        hand = await floor.hand()
        (claim,) = await hand.claim_all()
        await floor.offer("e", "n")
        await hand.tick(0)
        assert await floor.park(claim) == ["ready"]
        (claim,) = await hand.claim_all()
        assert len(claim.events) == 1


async def test_no_wake_up_is_lost_in_a_crowd(dsn, server_log):
    """Four sessions offer six events to each of 60 executions, while two workers claim and suspend them: each
    sees all of its events in the end, and no deadlock was needed for it.
    """
    async with Floor(dsn) as floor:
        await floor.start_many(60)
        hands = [await floor.hand(), await floor.hand()]
        open_ones = {f"e{number}" for number in range(1, 61)}

        async def offer(share: int) -> None:
            session = await floor.connect()
            for round_ in range(6):
                for number in range(1 + share, 61, 4):
                    await session.execute("SELECT zart_offer_event(%s, 'n', %s)", (f"e{number}", str(round_)))

        async def work(hand) -> None:
            while open_ones:
                for claim in (await hand.tick(15)).claims:
                    if len(claim.events) == 6:
                        assert [event.payload for event in claim.events] == ["0", "1", "2", "3", "4", "5"]
                        open_ones.discard(claim.execution_id)
                        await floor.database.execute("DELETE FROM zart_tasks WHERE id = %s", (claim.task_id,))
                    else:
                        await floor.park(claim)

        async with asyncio.timeout(40):
            await asyncio.gather(*(offer(share) for share in range(4)), *map(work, hands))
        assert "deadlock" not in server_log()


async def test_a_wake_up_is_left_while_its_task_is_locked(dsn):
    """It is neither waited for nor dropped; the tick says when to ask again."""
    async with Floor(dsn) as floor:
        await floor.start("locked", "free")
        hand = await floor.hand()
        await floor.park(*await hand.claim_all())
        holder = await floor.connect()
        async with holder.transaction():
            await holder.execute("SELECT FROM zart_tasks WHERE execution_id = 'locked' FOR UPDATE")
            await floor.offer("locked", "n")
            await floor.offer("free", "n")
            async with asyncio.timeout(5):
                (claim,) = await hand.claim_all()
                assert claim.execution_id == "free"
                tick = await hand.tick()
            assert (tick.claims, tick.busy) == ([], False)
            assert tick.next_due is not None
            assert (tick.next_due - tick.now).total_seconds() < 0.1
        assert [claim.execution_id for claim in await hand.claim_all()] == ["locked"]


async def test_a_wake_up_of_what_has_ended_is_dropped(dsn):
    """The task is gone: nothing is left behind."""
    async with Floor(dsn) as floor:
        await floor.start("e")
        await floor.offer("e", "n")
        await floor.database.execute("DELETE FROM zart_tasks")
        hand = await floor.hand()
        await hand.claim_all()
        assert await floor.value("SELECT count(*) FROM zart_wakeups") == 0


async def test_a_cancel_before_the_first_claim_ends_the_execution_at_once(dsn, direct_dsn):
    """No body has run, so there is nothing to unwind; also while it is delayed. Who waits for it is told."""
    async with Floor(dsn) as floor:
        await floor.start("queued", "bystander")
        await floor.database.execute(
            "SELECT zart_start('f', id => 'delayed', run_at => now() + interval '1h')"
        )
        await floor.database.execute("UPDATE zart_executions SET awaited = true WHERE id = 'delayed'")
        ears = await floor.connect(direct_dsn)
        await ears.execute(f"LISTEN {done_channel('public')}")
        for execution in ("queued", "delayed"):
            await floor.database.execute("SELECT zart_cancel(%s, 'not wanted')", (execution,))
            await floor.offer(execution, "n")
        hand = await floor.hand()
        assert [claim.execution_id for claim in (await hand.tick(0)).claims] == []
        assert list(await floor.states()) == ["bystander"]
        rows = await floor.rows(
            "SELECT id, failure FROM zart_executions WHERE status = 'cancelled' AND finished_at IS NOT NULL"
            " ORDER BY id"
        )
        assert [execution for execution, _ in rows] == ["delayed", "queued"]
        assert "not wanted" in json.dumps(rows[0][1])
        notes = await floor.rows(
            "SELECT execution_id, note FROM zart_history WHERE what = 'cancelled' ORDER BY 1"
        )
        assert notes == [("delayed", "not wanted"), ("queued", "not wanted")]
        assert await floor.value("SELECT count(*) FROM zart_wakeups") == 0
        async with contextlib.aclosing(ears.notifies(timeout=10, stop_after=1)) as heard:
            assert [notification.payload async for notification in heard] == ["delayed"]


async def test_a_blocked_execution_is_cancelled_at_once(dsn):
    """Its body is not running and cannot run."""
    async with Floor(dsn) as floor:
        await floor.start("e")
        hand = await floor.hand()
        await hand.claim_all()
        await floor.database.execute("UPDATE zart_tasks SET state = 'blocked', owner = NULL")
        await floor.database.execute("SELECT zart_cancel('e')")
        await hand.tick(0)
        assert await floor.states() == {}
        assert await floor.value("SELECT status FROM zart_executions") == "cancelled"


async def test_the_first_cancel_wins(dsn):
    """A waiting execution is woken by it, with that one's reason."""
    async with Floor(dsn) as floor:
        await floor.start("e")
        hand = await floor.hand()
        (claim,) = await hand.claim_all()
        await floor.park(claim, wake_at=claim.now + HOUR)
        for reason in ("first", "second"):
            await floor.database.execute(
                "INSERT INTO zart_wakeups (task_id, kind, reason, author) VALUES (%s, 'cancel', %s, 'ann')",
                (claim.task_id, reason),
            )
        (claim,) = await hand.claim_all()
        assert claim.cancel == CancelRequest("first", "ann")
        await floor.database.execute(
            "INSERT INTO zart_wakeups (task_id, kind, reason) VALUES (%s, 'cancel', 'third')",
            (claim.task_id,),
        )
        await hand.tick(0)
        (news,) = (await hand.tick(0, watching=[claim])).news
        assert news.cancel == CancelRequest("first", "ann")


async def test_an_event_shortens_neither_a_delay_nor_the_pause_before_a_retry(dsn):
    """It is kept for later; a cancel does not wait for the retry."""
    async with Floor(dsn) as floor:
        await floor.start("retries")
        hand = await floor.hand()
        (claim,) = await hand.claim_all()
        await floor.park(claim, wake_at=claim.now + HOUR)
        await floor.database.execute("UPDATE zart_tasks SET not_before = wake_at")
        await floor.database.execute(
            "SELECT zart_start('f', id => 'delayed', run_at => now() + interval '1h')"
        )
        await floor.offer("retries", "n")
        await floor.offer("delayed", "n")
        assert await hand.claim_all() == []
        assert await floor.value("SELECT count(*) FROM zart_wakeups") == 0
        await floor.database.execute("SELECT zart_cancel('retries')")
        (claim,) = await hand.claim_all()
        assert claim.execution_id == "retries"
        await floor.move_clock(HOUR * 2)
        (claim,) = await hand.claim_all()
        assert claim.execution_id == "delayed"


async def test_only_an_idle_worker_is_notified(dsn, direct_dsn):
    """Without one nobody pays for it. The choice is made at the commit, not when the caller's insert ran."""
    async with Floor(dsn) as floor:
        hand = await floor.hand()
        ears = await floor.connect(direct_dsn)
        await ears.execute(f"LISTEN {work_channel('public')}")
        caller = await floor.connect()
        await floor.start("unheard")
        async with caller.transaction():
            await caller.execute("SELECT zart_start('f', id => 'heard')")
            await hand.claimer.set_idle(True)
        async with contextlib.aclosing(ears.notifies(timeout=10, stop_after=1)) as heard:
            assert [notification.payload async for notification in heard] == [""]
        async with contextlib.aclosing(ears.notifies(timeout=0.1)) as heard:
            assert [notification.payload async for notification in heard] == []
        await hand.claimer.set_idle(False)
        await floor.offer("heard", "n")
        async with contextlib.aclosing(ears.notifies(timeout=0.1)) as heard:
            assert [notification.payload async for notification in heard] == []


async def heard_by(ears, *, within: float) -> int:
    """How many notifications come within so many seconds; at most one is waited for."""
    async with contextlib.aclosing(ears.notifies(timeout=within, stop_after=1)) as heard:
        return len([notification async for notification in heard])


async def test_work_is_announced_to_those_who_have_registered_its_function(dsn, direct_dsn):
    """An idle worker hears nothing of others' work, so that costs nobody anything. Of news for it, it does: whoever
    comes first applies them.
    """
    async with Floor(dsn) as floor:
        hand = await floor.hand("f", "also")
        await hand.claimer.set_idle(True)
        ears = await floor.connect(direct_dsn)
        await ears.execute(f"LISTEN {work_channel('public')}")
        await floor.start("others", name="g")
        await floor.database.execute("SELECT zart_start('f', id => 'elsewhere', queue => 'q')")
        await floor.database.execute("SELECT zart_start('f', id => 'later', version => '2')")
        assert await heard_by(ears, within=0.1) == 0
        await floor.start("own", name="also")
        assert await heard_by(ears, within=10) == 1
        await floor.offer("others", "n")
        assert await heard_by(ears, within=10) == 1


async def test_one_announcement_at_a_time_is_on_its_way(dsn, direct_dsn):
    """Whoever commits meanwhile sends none, and waits for nobody."""
    async with Floor(dsn) as floor:
        await (await floor.hand()).claimer.set_idle(True)
        ears = await floor.connect(direct_dsn)
        await ears.execute(f"LISTEN {work_channel('public')}")
        announcing = await floor.connect(direct_dsn)
        await announcing.execute(ANNOUNCING)
        async with asyncio.timeout(5):
            await floor.start("meanwhile")
            await floor.offer("meanwhile", "n")
        assert await heard_by(ears, within=0.1) == 0
        await announcing.execute("SELECT pg_advisory_unlock_all()")
        await floor.start("afterwards")
        assert await heard_by(ears, within=10) == 1


async def test_a_transaction_that_stays_open_keeps_nobody_from_announcing(dsn, direct_dsn):
    """It has its constraints checked early, and so is announcing for as long as it stays open."""
    async with Floor(dsn) as floor:
        await (await floor.hand()).claimer.set_idle(True)
        ears = await floor.connect(direct_dsn)
        await ears.execute(f"LISTEN {work_channel('public')}")
        held_open = await floor.connect()
        async with held_open.transaction():
            await held_open.execute("SELECT zart_start('f', id => 'open')")
            await held_open.execute("SET CONSTRAINTS ALL IMMEDIATE")
            await floor.until(
                "SELECT clock_timestamp() > %s + interval '0.1s'", await floor.value("SELECT now()")
            )
            await floor.start("afterwards")
            assert await heard_by(ears, within=10) == 1


async def test_a_worker_without_room_passes_the_word_on(dsn, direct_dsn):
    """It promotes more than it can take: idle workers hear of it."""
    async with Floor(dsn) as floor:
        await floor.start_many(3)
        busy, idle = await floor.hand(), await floor.hand()
        claims = await busy.claim_all()
        await floor.park(*claims, wake_at=claims[0].now)
        await idle.claimer.set_idle(True)
        ears = await floor.connect(direct_dsn)
        await ears.execute(f"LISTEN {work_channel('public')}")
        await busy.tick(0)
        async with contextlib.aclosing(ears.notifies(timeout=10, stop_after=1)) as heard:
            assert [notification.payload async for notification in heard] == [""]
