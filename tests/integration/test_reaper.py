"""Takeovers: all that a dead worker held goes on, nothing of a living one does."""

import asyncio
import datetime as dt
import itertools
from contextlib import asynccontextmanager

import psycopg
import pytest

from tests.support.floor import HOUR, YEAR, Floor, Hand
from zart._engine.reaper import reap
from zart._postgres.direct import Statement
from zart._postgres.queries import load


async def expire(floor: Floor, *hands: Hand) -> None:
    await floor.database.execute(
        "UPDATE zart_workers SET expires_at = clock_timestamp() - interval '1s' WHERE worker_id = ANY(%s)",
        ([hand.id for hand in hands],),
    )


async def test_what_a_dead_worker_held_is_claimed_by_others(dsn):
    """Ready again, counted as a takeover, with a row of history; a living worker keeps what it has."""
    async with Floor(dsn) as floor:
        await floor.start("a", "b", "c", "d")
        dead, alive = await floor.hand(), await floor.hand()
        assert len((await dead.tick(2)).claims) == 2
        assert len((await alive.tick(1)).claims) == 1
        assert await reap(floor.database, "public") == []
        await expire(floor, dead)
        assert sorted(await reap(floor.database, "public")) == ["a", "b"]
        rows = await floor.rows("SELECT execution_id, state, recoveries, owner FROM zart_tasks ORDER BY id")
        assert rows == [
            ("a", "ready", 1, None),
            ("b", "ready", 1, None),
            ("c", "running", 0, alive.id),
            ("d", "ready", 0, None),
        ]
        notes = await floor.rows("SELECT execution_id, what, note FROM zart_history ORDER BY execution_id")
        assert [(execution, what) for execution, what, _ in notes] == [("a", "takeover"), ("b", "takeover")]
        assert f"worker {dead.id}" in notes[0][2]
        assert await floor.rows("SELECT DISTINCT worker_id FROM zart_workers") == [(alive.id,)]
        assert await reap(floor.database, "public") == []
        (claim,) = (await alive.tick(1, suspect=True)).claims
        assert (claim.execution_id, claim.recoveries, claim.epoch) == ("a", 1, 2)


async def test_owners_without_a_row_are_swept(dsn):
    """Whoever deleted their rows died before it freed their work."""
    async with Floor(dsn) as floor:
        await floor.start("a")
        gone = await floor.hand()
        await gone.claim_all()
        await floor.database.execute("DELETE FROM zart_workers")
        assert await reap(floor.database, "public") == ["a"]


@asynccontextmanager
async def transaction(direct):
    """What is sent in between is committed together."""
    await direct.rows(Statement(b"BEGIN"), {})
    yield
    await direct.rows(Statement(b"COMMIT"), {})


async def test_a_claim_in_flight_while_its_worker_is_reaped_leaves_nothing_behind(dsn):
    """The reaper neither waits for it nor misses it: once the claim has committed, the next round frees it."""
    async with Floor(dsn) as floor:
        await floor.start("before", "in flight")
        zombie = await floor.hand()
        assert len((await zombie.tick(1)).claims) == 1
        direct = await zombie.claimer._line.open()
        async with transaction(direct):
            assert await zombie.claimer._claim(direct, 1, suspect=False) == (True, True)
            await expire(
                floor, zombie
            )  # a claim in flight holds its fence FOR KEY SHARE: heartbeats still pass
            async with asyncio.timeout(5):
                assert await reap(floor.database, "public") == []
        assert sorted(await reap(floor.database, "public")) == ["before", "in flight"]
        assert (await zombie.tick(1)).fenced
        assert await floor.rows("SELECT FROM zart_tasks WHERE owner IS NOT NULL") == []


ONE_STATEMENT = """
WITH dead AS (DELETE FROM zart_workers WHERE expires_at < clock_timestamp() RETURNING worker_id)
UPDATE zart_tasks t SET state = 'ready', owner = NULL FROM dead WHERE t.owner = dead.worker_id
"""


async def test_a_reaper_of_one_statement_would_leave_them_to_the_dead(dsn):
    """The form that must not be: it waits for the claim in flight, and then does not see what that took."""
    async with Floor(dsn) as floor:
        await floor.start("in flight")
        zombie = await floor.hand()
        direct = await zombie.claimer._line.open()
        naive = await floor.connect()
        async with transaction(direct):
            await zombie.claimer._claim(direct, 1, suspect=False)
            await expire(floor, zombie)
            waiting = asyncio.create_task(naive.execute(ONE_STATEMENT))
            await floor.until_locked_out(naive.info.backend_pid)
        await waiting
        assert await floor.rows("SELECT FROM zart_workers") == []
        assert await floor.value("SELECT owner FROM zart_tasks") == zombie.id
        assert await reap(floor.database, "public") == ["in flight"]  # the sweep mends even that


async def test_a_worker_is_reaped_whole_or_not_at_all(dsn, direct_dsn, caplog):
    """A client that was stopped inside a transaction holds one of four rows: nothing is freed, nobody waits, and
    the log names the session. When it is gone, so is the worker.
    """
    async with Floor(dsn) as floor:
        await floor.start("a")
        stuck, other = await floor.hand(), await floor.hand()
        await stuck.tick(1)
        await expire(floor, stuck, other)
        with psycopg.connect(direct_dsn, application_name="stuck client") as client:
            client.execute(
                "SELECT FROM zart_workers WHERE worker_id = %s AND writer = 2 FOR KEY SHARE", (stuck.id,)
            )
            async with asyncio.timeout(5):
                assert await reap(floor.database, "public") == []
            assert await floor.rows("SELECT worker_id, writer FROM zart_workers ORDER BY writer") == [
                (stuck.id, writer) for writer in range(4)
            ]
            assert f"session {client.info.backend_pid} (stuck client, idle in transaction" in caplog.text
        assert await reap(floor.database, "public") == ["a"]


async def test_a_heartbeat_that_comes_in_time_is_seen(dsn):
    """It commits while the reaper looks: the row's newest version decides."""
    async with Floor(dsn) as floor:
        hand = await floor.hand()
        await expire(floor, hand)
        statement = load("workers", "public")["heartbeat"]
        with psycopg.connect(dsn, autocommit=True) as heart:
            assert heart.execute(statement, {"worker": hand.id, "lease": HOUR}).fetchall()
        await reap(floor.database, "public")
        assert await floor.value("SELECT count(*) FROM zart_workers") == 4


async def test_what_is_blocked_stays_blocked(dsn):
    """A takeover does not resume what waits for a person."""
    async with Floor(dsn) as floor:
        await floor.start("a")
        hand = await floor.hand()
        await hand.tick(1)
        await floor.database.execute("UPDATE zart_tasks SET state = 'blocked', owner = NULL")
        await expire(floor, hand)
        await reap(floor.database, "public")
        assert await floor.rows("SELECT state, owner FROM zart_tasks") == [("blocked", None)]


@pytest.mark.parametrize("by", [YEAR, -YEAR])
async def test_a_moved_durable_clock_reaps_nobody(dsn, by):
    """Leases live by the real clock: a year on or back, the heartbeat passes and the reaper finds nothing."""
    async with Floor(dsn) as floor:
        await floor.start("a")
        hand = await floor.hand(orphan_timeout=dt.timedelta(minutes=1))
        await hand.tick(1)
        await floor.move_clock(by)
        with psycopg.connect(dsn, autocommit=True) as heart:
            assert hand.lease.beat(heart)
        assert await reap(floor.database, "public") == []
        assert await floor.states() == {"a": "running"}


async def test_reapers_that_run_at_once_share_the_work(dsn, server_log):
    """Four of them: each execution is taken over once, and there is no deadlock."""
    async with Floor(dsn) as floor:
        await floor.start_many(200)
        hands = [await floor.hand() for _ in range(8)]
        for hand in hands:
            await hand.tick(25)
        await expire(floor, *hands)
        sessions = [await floor.connect() for _ in range(4)]
        freed = await asyncio.gather(*(reap(session, "public") for session in sessions))
        assert sorted(itertools.chain.from_iterable(freed)) == sorted(
            f"e{number}" for number in range(1, 201)
        )
        assert await floor.value("SELECT max(recoveries) FROM zart_tasks") == 1
        assert "deadlock" not in server_log()
