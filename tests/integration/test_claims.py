"""Claims: what a worker gets, in which order, with which history, and what cannot go wrong with it."""

import asyncio
import time

import psycopg
import pytest

from tests.support.floor import HOUR, YEAR, Floor
from tests.support.proxy import Proxy
from zart._engine.entries import CancelRequest, Key, StoredEvent

pytestmark = pytest.mark.stores_plain(reason="writes histories by itself")


async def test_a_worker_claims_only_what_it_has_registered(dsn):
    """Work of other functions, and of other versions of the same function, is left where it is."""
    async with Floor(dsn) as floor:
        await floor.start("mine")
        await floor.start("theirs", name="g")
        await floor.database.execute("SELECT zart_start('f', id => 'newer', version => '2')")
        await floor.database.execute("SELECT zart_start('f', id => 'elsewhere', queue => 'slow')")
        hand = await floor.hand("f")
        assert [claim.execution_id for claim in await hand.claim_all()] == ["mine"]
        assert await floor.states() == {
            "mine": "running", "theirs": "ready", "newer": "ready", "elsewhere": "ready",
        }  # fmt: skip
        assert not (await hand.claimer.peek()).work


async def test_the_lowest_priority_number_goes_first_then_the_oldest(dsn):
    """Over all lanes of a worker, and never more than it asked for."""
    async with Floor(dsn) as floor:
        await floor.start("late", priority=5)
        await floor.start("first", "second")
        await floor.start("other", name="g")
        await floor.start("urgent", name="g", priority=-1)
        hand = await floor.hand("f", "g")
        tick = await hand.tick(3)
        assert [claim.execution_id for claim in tick.claims] == ["urgent", "first", "second"]
        assert tick.busy
        tick = await hand.tick(3)
        assert [claim.execution_id for claim in tick.claims] == ["other", "late"]
        tick = await hand.tick(3)
        assert (tick.claims, tick.busy) == ([], False)


async def test_a_claim_brings_all_that_a_replay_needs(dsn):
    """Payload, log in order with what is under way last, buffered events in order, counters, durable time."""
    async with Floor(dsn) as floor:
        await floor.start("e", payload='{"a": 1e2}')
        hand = await floor.hand()
        (first,) = await hand.claim_all()
        assert (first.epoch, first.signal, first.attempt, first.floor, first.recoveries) == (1, 0, 1, 0, 0)
        assert (first.entries, first.events, first.cancel, first.accept_arguments) == ([], [], None, False)
        assert first.registration == hand.id
        assert first.payload is not None
        assert first.due_at <= first.started_at == first.now
        await floor.record(first, "b", "a", result='{"z":1,"a":1e16}')
        await floor.database.execute(
            "INSERT INTO zart_steps (run_id, path, name, occurrence, kind, state, digest, arguments)"
            " VALUES (%s, '1/', 'c', 2, 'step', 'running', 'x', '[1]')",
            (first.run_id,),
        )
        for payload in ("1", "2"):
            await floor.offer("e", "news", payload)
        await floor.park(first)
        (second,) = await hand.claim_all()
        assert [(entry.key, entry.seq, entry.state) for entry in second.entries] == [
            (Key("", "b", 1, "step"), 1, "completed"),
            (Key("", "a", 1, "step"), 2, "completed"),
            (Key("1/", "c", 2, "step"), None, "running"),
        ]
        assert second.entries[0].result == '{"z":1,"a":1e16}'
        assert (second.entries[2].digest, second.entries[2].arguments) == (b"x", "[1]")
        assert [(event.name, event.payload) for event in second.events] == [("news", "1"), ("news", "2")]
        assert (second.epoch, second.signal, second.started_at) == (2, 1, first.started_at)


async def test_a_claim_outlives_a_crash_of_the_server(dsn):
    """It is on disk before the worker hears of it: otherwise two living workers could hold one execution."""
    async with Floor(dsn) as floor:
        hand = await floor.hand()
        for number in range(10):
            await floor.start(f"e-{number}")
            before = await floor.value("SELECT pg_current_wal_insert_lsn()::text")
            assert len((await hand.tick(1)).claims) == 1
            assert await floor.value(f"SELECT pg_current_wal_flush_lsn() > '{before}'")


async def test_a_first_claim_has_its_input_and_hears_of_early_events(dsn):
    """Short and long inputs are the same to it; an event that was offered before is news, or comes with the claim."""
    async with Floor(dsn) as floor:
        long = '"' + "x" * 5000 + '"'
        await floor.start("short", payload="7")
        await floor.start("long", payload=long)
        await floor.database.execute("SELECT zart_start('f', id => 'none')")
        for execution in ("short", "long"):
            await floor.offer(execution, "early")
        hand = await floor.hand()
        claims = {claim.execution_id: claim for claim in (await hand.tick()).claims}
        assert {execution: claim.payload for execution, claim in claims.items()} == {
            "short": "7", "long": long, "none": None,
        }  # fmt: skip
        seen = {claims[execution].task_id for execution in ("short", "long")}
        news = (await hand.tick(watching=list(claims.values()))).news
        assert {each.task_id for each in news} == seen
        assert all([event.name for event in each.events] == ["early"] for each in news)


NAIVE = """
WITH fence AS MATERIALIZED (
    SELECT worker_id FROM zart_workers WHERE worker_id = %(worker)s AND writer = 0 FOR KEY SHARE
), fit AS MATERIALIZED (
    SELECT id FROM zart_tasks WHERE EXISTS (SELECT FROM fence) AND state = 'ready' AND lane = %(lane)s
    ORDER BY priority, id LIMIT 10 FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE zart_tasks t SET state = 'running', owner = %(worker)s, epoch = epoch + 1 FROM fit WHERE t.id = fit.id
RETURNING t.epoch, (SELECT count(*) FROM zart_steps s WHERE s.run_id = t.run_id)
"""


async def test_a_history_is_complete_though_another_worker_parked_in_between(dsn):
    """While a claim waits for its fence, another worker claims, records and gives back. The history has that
    record; read by the claim's own statement, as the naive form does, it is missing.
    """
    for naive in (False, True):
        async with Floor(dsn) as floor:
            await floor.start(f"naive {naive}")
            late, early = await floor.hand(), await floor.hand()
            holder = await floor.connect()
            watched = await floor.connect()
            backend = watched.info.backend_pid if naive else (await late.claimer._line.open()).backend
            async with holder.transaction():
                await holder.execute("SELECT FROM zart_workers WHERE worker_id = %s FOR UPDATE", (late.id,))
                if naive:
                    lane = await floor.value("SELECT lane FROM zart_tasks")
                    waiting = asyncio.create_task(watched.execute(NAIVE, {"worker": late.id, "lane": lane}))
                else:
                    waiting = asyncio.create_task(late.tick())
                await floor.until_locked_out(backend)
                (claim,) = await early.claim_all()
                await floor.record(claim, "done meanwhile")
                await floor.database.execute("UPDATE zart_tasks SET signal = signal + 1")
                assert await floor.park(claim) == ["ready"]
            outcome = await waiting
            if naive:
                assert await outcome.fetchall() == [(2, 0)]  # claimed, without the record that is there
            else:
                (claim,) = outcome.claims
                assert claim.epoch == 2
                assert [entry.key.name for entry in claim.entries] == ["done meanwhile"]
            await floor.database.execute("DELETE FROM zart_tasks")


async def test_six_claimers_never_see_half_a_history_nor_a_deadlock(dsn, server_log):
    """Each claims, records one step and gives back, while wake-ups come in for everybody: a claim of epoch n
    has n - 1 steps, always.
    """
    async with Floor(dsn) as floor:
        await floor.start_many(40)
        hands = [await floor.hand() for _ in range(6)]
        claims = 0

        async def work(hand):
            nonlocal claims
            own = await floor.connect()
            while claims < 1500:
                tick = await hand.tick(20)
                for claim in tick.claims:
                    assert len(claim.entries) == claim.epoch - 1
                claims += len(tick.claims)
                tasks = [claim.task_id for claim in tick.claims]
                await own.execute(
                    "INSERT INTO zart_steps (run_id, path, name, occurrence, kind, seq, state)"
                    " SELECT run_id, '', 's', epoch, 'step', epoch, 'completed'"
                    " FROM zart_tasks WHERE id = ANY(%s)",
                    (tasks,),
                )
                await own.execute(
                    "WITH l AS MATERIALIZED"
                    " (SELECT id FROM zart_tasks WHERE id = ANY(%s) ORDER BY id FOR NO KEY UPDATE)"
                    " UPDATE zart_tasks t SET owner = NULL, wake_at = zart_now(),"
                    " state = CASE WHEN t.id %% 2 = 0 THEN 'ready' ELSE 'waiting' END"
                    " FROM l WHERE t.id = l.id",
                    (tasks,),
                )
                await own.execute(
                    "INSERT INTO zart_wakeups (task_id, kind) SELECT id, 'event' FROM zart_tasks"
                )

        await asyncio.gather(*map(work, hands))
        assert claims >= 1500
        assert "deadlock" not in server_log()


async def test_a_claim_passes_over_what_is_locked(dsn):
    """It waits for nobody, and takes what comes next."""
    async with Floor(dsn) as floor:
        await floor.start("locked", "free")
        hand = await floor.hand()
        holder = await floor.connect()
        async with holder.transaction():
            await holder.execute("SELECT FROM zart_tasks WHERE execution_id = 'locked' FOR UPDATE")
            async with asyncio.timeout(5):
                assert [claim.execution_id for claim in (await hand.tick(1)).claims] == ["free"]
        assert [claim.execution_id for claim in (await hand.tick(1)).claims] == ["locked"]


async def test_a_fenced_worker_claims_nothing(dsn):
    """Its row is gone: the tick says so, takes nothing, and calls what it held lost."""
    async with Floor(dsn) as floor:
        await floor.start_many(3)
        hand = await floor.hand()
        tick = await hand.tick(1)
        assert not tick.fenced
        await floor.database.execute("DELETE FROM zart_workers")
        await floor.database.execute("UPDATE zart_tasks SET owner = NULL, state = 'ready'")
        after = await hand.tick(1, watching=tick.claims)
        assert after.fenced
        assert after.claims == []
        assert set((await floor.states()).values()) == {"ready"}
        assert [(news.task_id, news.lost) for news in after.news] == [(tick.claims[0].task_id, True)]
        assert (await hand.tick(0)).fenced


async def test_one_suspect_at_a_time_and_only_when_asked(dsn):
    """Those taken over twice without progress come singly, the one taken over least often first."""
    async with Floor(dsn) as floor:
        await floor.start("poison", "once", "fine", "twice")
        for execution, count in (("poison", 3), ("once", 1), ("twice", 2)):
            await floor.database.execute(
                "UPDATE zart_tasks SET recoveries = %s WHERE execution_id = %s", (count, execution)
            )
        hand = await floor.hand()
        assert [claim.execution_id for claim in await hand.claim_all()] == ["once", "fine"]
        assert not (await hand.claimer.peek(suspect=False)).work
        assert (await hand.claimer.peek()).work
        for expected in ("twice", "poison"):
            tick = await hand.tick(100, suspect=True)
            assert [claim.execution_id for claim in tick.claims] == [expected]


async def test_a_claim_whose_answer_was_lost_is_given_back(dsn):
    """The connection breaks after the commit: nobody was told, and the next tick frees it and claims anew."""
    async with Floor(dsn) as floor, Proxy(dsn) as proxy:
        await floor.start("e")

        async def connect():
            return await psycopg.AsyncConnection.connect(proxy.dsn, autocommit=True)

        hand = await floor.hand(connect=connect)
        await hand.claimer.peek()
        proxy.lose_answers(1)
        with pytest.raises(psycopg.OperationalError):
            await hand.tick()
        await floor.until("SELECT state = 'running' FROM zart_tasks")
        (claim,) = (await hand.tick()).claims
        assert claim.epoch == 2
        assert claim.recoveries == 0


async def test_a_load_that_fails_is_gone_on_with(dsn):
    """The connection is lost between the claim and the history: the next tick hands out the same claim, which
    counts against its limit.
    """
    async with Floor(dsn) as floor:
        await floor.start("e", "another")
        await floor.claimed_before()
        hand = await floor.hand()
        await hand.claimer.peek()
        backend = (await hand.claimer._line.open()).backend
        holder = await floor.connect()
        async with holder.transaction():
            await holder.execute("LOCK TABLE zart_events")
            waiting = asyncio.create_task(hand.tick(1))
            await floor.end_locked_out(backend)
            with pytest.raises(psycopg.OperationalError):
                await waiting
        assert hand.claimer.pending == 1
        (claim,) = (await hand.tick(1)).claims
        assert (claim.execution_id, claim.epoch) == ("e", 2)


async def test_claims_are_not_lost_with_what_a_tick_does_after_them(dsn):
    """The connection is lost while wake-ups are applied, after the histories were read: the claims come again."""
    async with Floor(dsn) as floor:
        await floor.start("claimed", "told")
        hand = await floor.hand()
        await hand.claimer.peek()
        await floor.offer("told", "n")
        backend = (await hand.claimer._line.open()).backend
        holder = await floor.connect()
        async with holder.transaction():
            await holder.execute("LOCK TABLE zart_history")
            waiting = asyncio.create_task(hand.tick(1))
            await floor.end_locked_out(backend)
            with pytest.raises(psycopg.OperationalError):
                await waiting
        assert hand.claimer.pending == 1
        claims = await hand.claim_all()
        assert [(claim.execution_id, claim.epoch) for claim in claims] == [("claimed", 1), ("told", 1)]


async def test_release_gives_back_what_was_not_handed_out(dsn):
    """A worker that stops in the middle of a load leaves nothing behind."""
    async with Floor(dsn) as floor:
        await floor.start_many(3)
        await floor.claimed_before()
        hand = await floor.hand()
        await hand.claimer.peek()
        holder = await floor.connect()
        async with holder.transaction():
            await holder.execute("LOCK TABLE zart_events")
            waiting = asyncio.create_task(hand.tick())
            await floor.until_locked_out((await hand.claimer._line.open()).backend)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        await hand.claimer.release()
        assert set((await floor.states()).values()) == {"ready"}
        assert await floor.value("SELECT max(recoveries) FROM zart_tasks") == 0


async def test_a_long_history_comes_in_pages_and_holds_up_nobody(dsn):
    """The others are handed out at once; the long one when it is complete, in log order."""
    async with Floor(dsn) as floor:
        await floor.start("long", "short")
        hand = await floor.hand()
        long, _ = await hand.claim_all()
        names = [f"step {number}" for number in range(300)]
        await floor.record(long, *names, result='"' + "x" * 100 + '"')
        await floor.database.execute("UPDATE zart_tasks SET state = 'ready', owner = NULL")
        small = await floor.hand(history_bytes=20_000)
        tick = await small.tick()
        assert [claim.execution_id for claim in tick.claims] == ["short"]
        assert tick.busy
        assert small.claimer.pending == 1
        pages = 1
        while not (tick := await small.tick()).claims:
            assert tick.busy
            pages += 1
        assert pages > 2
        (claim,) = tick.claims
        assert [entry.key.name for entry in claim.entries] == names
        assert [entry.seq for entry in claim.entries] == list(range(1, 301))
        assert small.claimer.pending == 0


async def test_the_inbox_tells_what_is_new_and_nothing_else(dsn):
    """Events with their signal, a cancel with its reason, what was lost; the same signal is no news."""
    async with Floor(dsn) as floor:
        await floor.start("events", "cancelled", "taken", "quiet")
        hand = await floor.hand()
        claims = await hand.claim_all()
        assert (await hand.tick(watching=claims)).news == []
        await floor.offer("events", "n", "7")
        await floor.database.execute("SELECT zart_cancel('cancelled', 'enough')")
        await floor.database.execute("UPDATE zart_tasks SET epoch = epoch + 1 WHERE execution_id = 'taken'")
        assert (await hand.tick(watching=[])).busy  # applies the wake-ups
        news = {each.task_id: each for each in (await hand.tick(watching=claims)).news}
        events, cancelled, taken, quiet = (news.get(claim.task_id) for claim in claims)
        assert events is not None
        assert cancelled is not None
        assert taken is not None
        assert events.events == [StoredEvent(events.events[0].id, "n", "7")]
        assert (events.signal, events.cancel, events.lost) == (1, None, False)
        author = await floor.value("SELECT session_user::text")
        assert (cancelled.cancel, cancelled.lost) == (CancelRequest("enough", author), False)
        assert taken.lost
        assert quiet is None


@pytest.mark.slow
async def test_the_backlog_of_others_costs_a_claim_nothing(dsn):
    """With 100,000 ready rows of a lane nobody serves in front, claims and empty polls take about as long."""
    async with Floor(dsn) as floor:
        hand = await floor.hand()

        async def measure(prefix: str) -> tuple[float, float]:
            await floor.database.execute(
                "SELECT zart_start('f', id => %s || g, priority => 1) FROM generate_series(1, 400) g",
                (prefix,),
            )
            await floor.database.execute("ANALYZE")
            full, empty = [], []
            for _ in range(8):
                start = time.perf_counter()
                assert len((await hand.tick(50, suspect=True)).claims) == 50
                full.append(time.perf_counter() - start)
            for _ in range(8):
                start = time.perf_counter()
                assert not (await hand.tick(50, suspect=True)).claims
                empty.append(time.perf_counter() - start)
            return min(full), min(empty)

        alone = await measure("a")
        await floor.database.execute(
            "INSERT INTO zart_tasks (id, execution_id, run_id, lane, priority, state, due_at)"
            " SELECT 1000000 + g, 'x' || g, gen_random_uuid(), 999, 0, 'ready', zart_now()"
            " FROM generate_series(1, 100000) g"
        )
        crowded = await measure("b")
        for before, after in zip(alone, crowded, strict=True):
            assert after < 4 * before + 0.01


async def test_the_durable_clock_moves_sleepers_and_nothing_else(dsn):
    """A year later by durable time, the sleeper is promoted and claimed; the worker's lease stands."""
    async with Floor(dsn) as floor:
        await floor.start("e")
        hand = await floor.hand()
        (claim,) = await hand.claim_all()
        wake_at = claim.now + YEAR - HOUR
        await floor.park(claim, wake_at=wake_at)
        tick = await hand.tick()
        assert (tick.claims, tick.next_due, tick.busy) == ([], wake_at, False)
        assert (await hand.claimer.peek()).next_due == wake_at
        await floor.move_clock(YEAR)
        (claim,) = await hand.claim_all()
        assert claim.now > wake_at
        assert claim.started_at < wake_at


async def test_ten_thousand_sleepers_wake_without_a_stampede(dsn):
    """All are due at once: two workers take them in batches, each once, and no more than they ask for."""
    async with Floor(dsn) as floor:
        await floor.database.execute(
            "WITH e AS (INSERT INTO zart_executions (id, name, queue, priority, run_id, task_id)"
            "   SELECT 'e' || g, 'f', 'default', 0, gen_random_uuid(), g FROM generate_series(1, 10000) g"
            "   RETURNING id, run_id, task_id)"
            " INSERT INTO zart_tasks (id, execution_id, run_id, lane, priority, state, due_at, wake_at)"
            " SELECT task_id, id, run_id, zart_lane('default', 'f', NULL), 0, 'waiting', zart_now(),"
            " zart_now() FROM e"
        )
        hands = [await floor.hand(), await floor.hand()]
        claimed: list[int] = []

        async def work(hand):
            while len(claimed) < 10_000:
                tick = await hand.tick(100)
                assert len(tick.claims) <= 100
                claimed.extend(claim.task_id for claim in tick.claims)

        async with asyncio.timeout(50):
            await asyncio.gather(*map(work, hands))
        assert len(claimed) == len(set(claimed)) == 10_000


async def test_nothing_that_a_tick_locks_outlives_its_statement(dsn):
    """A worker that is stopped while it loads holds no lock: others go on with the same rows."""
    async with Floor(dsn) as floor:
        await floor.start("mine", "waits")
        hand = await floor.hand()
        (_, waits) = await hand.claim_all()
        await floor.park(waits)
        await floor.start("next")
        await floor.claimed_before()
        holder = await floor.connect()
        stopped = await floor.hand()
        await stopped.claimer.peek()
        async with holder.transaction():
            await holder.execute("LOCK TABLE zart_events")
            loading = asyncio.create_task(stopped.tick())
            await floor.until_locked_out((await stopped.claimer._line.open()).backend)
            async with asyncio.timeout(5):
                await floor.database.execute("UPDATE zart_tasks SET signal = signal + 1")
                await floor.database.execute("SELECT FROM zart_workers FOR UPDATE")
        (claim,) = (await loading).claims
        assert claim.execution_id == "next"


def test_every_statement_can_be_pasted_into_psql():
    """Each named statement is there under its name, and none has lost its text to a comment."""
    from zart._postgres.queries import load

    for file, names in {
        "claim": {
            "claim", "load_payloads", "load_steps", "load_page", "load_events", "read_inbox", "look", "peek",
            "give_back", "load_scheduled", "load_arrived",
        },
        "wakeups": {"read_cancels", "apply_wakeups", "promote", "notify", "notify_idle"},
    }.items():  # fmt: skip
        statements = load(file, 'we"ird')
        assert set(statements) == names
        assert all(b'"we""ird"' in text or b"pg_notify" in text for text in statements.values())
