"""The journal writer: groups, order, verdicts, endings. What faults do to it is in test_journal_faults.py."""

import asyncio
import contextlib
import datetime as dt
import uuid

import psycopg
import pytest

from tests.support.executions import Bench, Held, failed_attempt
from zart._engine.entries import (
    Blocked,
    BodyRetry,
    Cancelled,
    Completed,
    Failed,
    Key,
    Lost,
    Released,
    Suspended,
)
from zart._postgres.listener import done_channel
from zart.errors import SerializationError

pytestmark = pytest.mark.stores_plain(reason="gives the journal records by itself, as they are")

HOUR = dt.timedelta(hours=1)


async def test_what_gathers_while_a_statement_is_in_flight_shares_the_next_one(dsn):
    """A lone record goes at once; a hundred that come meanwhile are one transaction, not a hundred."""
    async with Bench(dsn) as bench:
        held = await bench.hold(range(1, 102))
        first = bench.write(held[0], "alone")
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # the writer has begun
        rest = [bench.write(each, "together") for each in held[1:]]
        assert await asyncio.gather(first, *rest) == [None] * 101
        sizes = await bench.rows("SELECT count(*) FROM zart_steps GROUP BY xmin::text ORDER BY 1")
        assert sum(size for (size,) in sizes) == 101
        assert len(sizes) <= 3
        assert bench.times
        assert all(time.tzinfo is not None for time in bench.times)


async def test_an_entry_is_stored_as_it_was_handed_over(dsn):
    """Every field comes back; the result keeps its bytes."""
    now = dt.datetime(2026, 3, 1, 12, 30, 15, 123456, tzinfo=dt.UTC)
    async with Bench(dsn) as bench:
        (held,) = await bench.hold([1])
        key = Key("2/1/", 'a "name", {with} % signs \\ 🎈', 3, "capture")
        assert await bench.write(
            held, "", key=key, digest=b"\x00\xff", arguments="[1]", result=b'{"z":1, "a":1e16}', attempts=2,
            started_at=now, finished_at=now + HOUR, until=now - HOUR,
        ) is None  # fmt: skip
        (row,) = await bench.rows(
            "SELECT path, name, occurrence, kind, seq, state, digest, arguments, result::text, failure,"
            " attempts, started_at, finished_at, until FROM zart_steps"
        )
        assert row == (
            *key, 1, "completed", b"\x00\xff", "[1]", '{"z":1, "a":1e16}', None, 2,
            now, now + HOUR, now - HOUR,
        )  # fmt: skip


async def test_a_start_and_its_result_fold_into_the_result(dsn):
    """Two records for one row: 'running' and the result in one batch, then in two."""
    async with Bench(dsn) as bench:
        one, other = await bench.hold([1, 2])
        now = dt.datetime.now(dt.UTC)
        both = [bench.write(one, "step", "running", digest=b"d", started_at=now), bench.write(one, "step")]
        assert await asyncio.gather(*both) == [None, None]
        assert await bench.write(other, "step", "running", digest=b"d", started_at=now) is None
        assert await bench.write(other, "step") is None
        rows = await bench.rows("SELECT state, result::text, seq, digest, started_at FROM zart_steps")
        assert rows == [("completed", "1", 1, b"d", now)] * 2


async def test_nothing_is_acknowledged_before_its_commit(dsn):
    """A record and an ending that wait for a lock are told of when they are on disk, and not before."""
    async with Bench(dsn) as bench:
        one, other = await bench.hold([1, 2])
        async with await psycopg.AsyncConnection.connect(dsn) as blocker:
            await blocker.execute(
                "INSERT INTO zart_steps (run_id, path, name, occurrence, kind, state)"
                " VALUES (%s, '', 'step', 1, 'step', 'completed')",
                (one.run_id,),
            )
            told = bench.write(one, "step")
            await bench.blocked(1)
            assert not told.done()
            await blocker.rollback()
            assert await told is None
            await blocker.execute("SELECT FROM zart_tasks WHERE id = 2 FOR UPDATE")
            told = bench.end(other, Completed(result=b"1"))
            await bench.blocked(1)
            assert not told.done()
            await blocker.rollback()
        assert await told is None


async def test_a_final_record_is_never_written_over(dsn):
    """A record of another activation stands: ours is lost, those beside it are not."""
    async with Bench(dsn) as bench:
        one, other = await bench.hold([1, 2])
        await bench.database.execute(
            "INSERT INTO zart_steps (run_id, path, name, occurrence, kind, seq, state, result, token)"
            " VALUES (%s, '', 'step', 1, 'step', 1, 'completed', '\"theirs\"', 5)",
            (one.run_id,),
        )
        ours, beside = (
            bench.write(one, "step", result=b'"ours"'),
            bench.write(other, "step", result=b'"ours"'),
        )
        assert isinstance(await ours, Lost)
        assert await beside is None
        assert await bench.rows("SELECT result::text FROM zart_steps ORDER BY run_id") == [
            ('"theirs"',),
            ('"ours"',),
        ]
        assert bench.fenced == 0


async def test_one_poison_record_among_five_hundred_fails_alone(dsn):
    """Behaviour: 499 commit, one step fails by name; whatever the poison is, and several at once."""
    poisons = {
        7: {"result": b'"\x00"'},
        99: {"result": b'"\xff"'},
        250: {"result": b"{"},
        333: {"key": Key("", "lone \ud800", 1, "step")},
        499: {"key": Key("", "nul \x00", 1, "step")},
        400: {"attempts": 1 << 40},
    }
    async with Bench(dsn) as bench:
        held = await bench.hold(range(500))
        verdicts = await asyncio.gather(
            *(bench.write(each, f"step-{n}", **poisons.get(n, {})) for n, each in enumerate(held))
        )
        failed = {n: verdict for n, verdict in enumerate(verdicts) if verdict is not None}
        assert failed.keys() == poisons.keys()
        for n, error in failed.items():
            assert isinstance(error, SerializationError)
            assert ("lone" if n == 333 else "nul" if n == 499 else f"'step-{n}'") in str(error)
        assert await bench.value("SELECT count(*) FROM zart_steps") == 494


async def test_a_poison_result_leaves_the_record_that_it_folded_away(dsn):
    async with Bench(dsn) as bench:
        (held,) = await bench.hold([1])
        started, ended = bench.write(held, "step", "running"), bench.write(held, "step", result=b"{")
        assert await started is None
        assert isinstance(await ended, SerializationError)
        assert await bench.rows("SELECT state FROM zart_steps") == [("running",)]


async def test_a_poison_outcome_fails_alone(dsn):
    async with Bench(dsn) as bench:
        held = await bench.hold(range(1, 10))
        verdicts = [bench.end(each, Completed(result=b"{" if each.task_id == 5 else b"1")) for each in held]
        told = await asyncio.gather(*verdicts)
        assert [n for n, error in enumerate(told, 1) if error is not None] == [5]
        assert isinstance(told[4], SerializationError)
        assert "'execution-5'" in str(told[4])
        assert await bench.rows("SELECT id FROM zart_tasks") == [(5,)]


async def test_big_records_do_not_hold_up_others_and_keep_their_place(dsn):
    """200 records of 300 kB travel apart; each execution's records are committed in the order handed over."""
    async with Bench(dsn) as bench:
        held = await bench.hold(range(1, 101))
        verdicts = []
        for each in held:
            verdicts += [bench.write(each, "before")]
            verdicts += [bench.write(each, f"big-{n}", result=b'"%s"' % (b"x" * 300_000)) for n in range(2)]
            verdicts += [bench.write(each, "after"), bench.write(each, "last")]
        (other,) = await bench.hold([1000])
        small = [bench.write(other, f"small-{n}") for n in range(10)]
        assert await asyncio.gather(*small) == [None] * 10
        assert sum(verdict.done() for verdict in verdicts) < len(verdicts)
        assert await asyncio.gather(*verdicts) == [None] * 500
        for each in held:
            names = [record.key.name for record in bench.order if record.run_id == each.run_id]
            assert names == ["before", "big-0", "big-1", "after", "last"]
        assert bench.opened == 2
        # One statement carries 4 MiB at most: thirteen of these records.
        (largest, *_), *_ = await bench.rows(
            "SELECT count(*) FROM zart_steps WHERE name ~ 'big' GROUP BY xmin::text ORDER BY 1 DESC"
        )
        assert largest <= 14


async def test_a_big_record_waits_for_those_before_it(dsn):
    """At no time are two records of one execution in flight on two connections."""
    async with Bench(dsn) as bench:
        held, other = await bench.hold([1, 2], recoveries=1)
        async with await psycopg.AsyncConnection.connect(dsn) as blocker:
            await blocker.execute("SELECT FROM zart_tasks WHERE id = 1 FOR UPDATE")
            before = bench.write(held, "before", clears_recoveries=True)
            await bench.blocked(1)
            big = bench.write(held, "big", result=b'"%s"' % (b"x" * 100_000))
            # Another execution's big record passes meanwhile, so the second connection would be free for ours.
            assert await bench.write(other, "big", result=b'"%s"' % (b"x" * 100_000)) is None
            assert await bench.rows("SELECT run_id, name FROM zart_steps") == [(other.run_id, "big")]
            await blocker.commit()
        assert await asyncio.gather(before, big) == [None, None]
        assert [record.key.name for record in bench.order] == ["big", "before", "big"]


async def test_small_records_need_one_connection(dsn):
    async with Bench(dsn) as bench:
        (held,) = await bench.hold([1])
        await bench.write(held, "step")
        assert bench.opened == 1


async def test_a_batch_has_at_most_a_thousand_records(dsn):
    async with Bench(dsn) as bench:
        (held,) = await bench.hold([1])
        verdicts = [bench.write(held, f"step-{n}") for n in range(2500)]
        assert await asyncio.gather(*verdicts) == [None] * 2500
        ((largest,), *_) = await bench.rows(
            "SELECT count(*) FROM zart_steps GROUP BY xmin::text ORDER BY 1 DESC"
        )
        assert largest == 1000


async def test_plans_for_small_tables_are_made_anew(dsn):
    """A plan made while a table was tiny reads all of it; it must not stay when the table has grown."""
    async with Bench(dsn) as bench:
        (first,) = await bench.hold([1_000_000])
        await bench.database.execute("VACUUM ANALYZE")
        for n in range(20):
            assert await bench.write(first, f"step-{n}", clears_recoveries=True) is None
        await bench.database.execute(
            "WITH many AS (SELECT n, gen_random_uuid() run FROM generate_series(1000, 20999) n), started AS ("
            " INSERT INTO zart_executions (id, name, queue, priority, run_id, task_id)"
            " SELECT 'filler-' || n, 'f', 'default', 0, run, n FROM many)"
            " INSERT INTO zart_tasks (id, execution_id, run_id, lane, priority, state, due_at)"
            " SELECT n, 'filler-' || n, run, 1, 0, 'ready', zart_now() FROM many"
        )
        for each in await bench.hold(range(1, 301)):
            assert await bench.end(each, Completed(result=b"1")) is None
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as database:
        tables = "zart_tasks", "zart_executions", "zart_steps"
        cursor = await database.execute(
            "SELECT relname, seq_tup_read FROM pg_stat_user_tables WHERE relname = ANY (%s)", (list(tables),)
        )
        read = dict(await cursor.fetchall())
    # 320 statements; each that reads a whole table reads 20,000 rows.
    assert all(read[table] < 320 * 20_000 / 4 for table in tables), read


# ---------------------------------------------------------------- endings


@pytest.mark.parametrize(
    ("ending", "status", "result", "failure"),
    [
        (Completed(result=b'{"a":1}'), "completed", '{"a":1}', None),
        (Failed(failure=b'{"type":"E"}'), "failed", None, '{"type":"E"}'),
        (Cancelled(failure=b'{"type":"C"}'), "cancelled", None, '{"type":"C"}'),
    ],
)
async def test_an_outcome_ends_the_execution_and_what_was_under_way(dsn, ending, status, result, failure):
    async with Bench(dsn) as bench:
        one, other = await bench.hold([1, 2])
        for held in (one, other):
            await bench.write(held, "left", "running")
            await bench.write(held, "wait", "waiting", until=dt.datetime.now(dt.UTC) + HOUR)
            await bench.write(held, "done")
        started = await bench.value("SELECT started_at FROM zart_tasks WHERE id = 1")
        last = bench.write(one, "last")
        told = bench.end(one, ending, notes=(("warning", "first"), ("warning", "second")))
        assert await asyncio.gather(last, told) == [None, None]
        rows = await bench.rows(
            "SELECT status, result::text, failure::text, started_at FROM zart_executions WHERE id = %s",
            one.id,
        )
        assert rows == [(status, result, failure, started)]
        assert await bench.value("SELECT finished_at IS NOT NULL FROM zart_executions WHERE id = %s", one.id)
        assert await bench.rows("SELECT id FROM zart_tasks") == [(2,)]
        states = "SELECT name, state FROM zart_steps WHERE run_id = %s ORDER BY name"
        assert await bench.rows(states, one.run_id) == [
            ("done", "completed"), ("last", "completed"), ("left", "cancelled"), ("wait", "cancelled"),
        ]  # fmt: skip
        assert await bench.rows(states, other.run_id) == [
            ("done", "completed"), ("left", "running"), ("wait", "waiting"),
        ]  # fmt: skip
        notes = await bench.rows("SELECT execution_id, run_id, what, note FROM zart_history ORDER BY id")
        assert notes == [(one.id, one.run_id, "warning", "first"), (one.id, one.run_id, "warning", "second")]


@pytest.mark.parametrize("strange", ["epoch", "run", "owner", "gone"])
async def test_an_ending_must_match_owner_epoch_and_run(dsn, strange):
    """Executions are lost singly, too: what a superseded activation says changes nothing."""
    async with Bench(dsn) as bench:
        (held,) = await bench.hold([1])
        change = {
            "epoch": "UPDATE zart_tasks SET epoch = 2",
            "run": f"UPDATE zart_tasks SET run_id = '{uuid.uuid4()}'",
            "owner": "UPDATE zart_tasks SET owner = 2",
            "gone": "DELETE FROM zart_tasks",
        }[strange]
        await bench.database.execute(change)
        before = await bench.rows("SELECT * FROM zart_tasks")
        for ending in (
            Completed(result=b"1"),
            Suspended(seen=0, wake_at=None, waiting_for=None),
            BodyRetry(attempt=2, not_before=dt.datetime.now(dt.UTC), floor=1, afresh=()),
            Blocked(failure=b"{}", what="crash-loop"),
            Released(),
        ):
            assert isinstance(await bench.end(held, ending, notes=(("warning", "no"),)), Lost)
        assert await bench.rows("SELECT * FROM zart_tasks") == before
        assert await bench.rows("SELECT status, failure FROM zart_executions") == [("scheduled", None)]
        assert await bench.rows("SELECT * FROM zart_history") == []


async def test_a_suspension_parks_unless_there_is_news(dsn):
    """The counter on the row decides: an event that came between reading and parking makes it ready again."""
    until = dt.datetime.now(dt.UTC) + HOUR
    async with Bench(dsn) as bench:
        quiet, news, due = await bench.hold([1, 2, 3], signal=4)
        await bench.database.execute("UPDATE zart_tasks SET signal = 5 WHERE id = 2")
        waits = [bench.write(each, "wait", "waiting", until=until) for each in (quiet, news, due)]
        parked = [
            bench.end(quiet, Suspended(seen=4, wake_at=until, waiting_for="event paid")),
            bench.end(news, Suspended(seen=4, wake_at=until, waiting_for="event paid")),
            bench.end(due, Suspended(seen=4, wake_at=until - 2 * HOUR, waiting_for="event paid")),
        ]
        assert await asyncio.gather(*waits, *parked) == [None] * 6
        rows = await bench.rows(
            "SELECT state, wake_at, waiting_for, owner, batch FROM zart_tasks ORDER BY id"
        )
        assert rows[0] == ("waiting", until, "event paid", None, None)
        assert [row[0] for row in rows[1:]] == ["ready", "ready"]
        assert [row[3] for row in rows[1:]] == [None, None]


async def test_a_suspension_behind_a_lock_sees_what_the_holder_did(dsn):
    """The statement waits for the row; when it goes on, the signal of its snapshot is history."""
    async with Bench(dsn) as bench:
        one, other = await bench.hold([1, 2])
        async with await psycopg.AsyncConnection.connect(dsn) as offerer:
            await offerer.execute("UPDATE zart_tasks SET signal = signal + 1 WHERE id = 1")
            parked = [
                bench.end(each, Suspended(seen=0, wake_at=None, waiting_for="x")) for each in (one, other)
            ]
            await bench.blocked(1)
            await offerer.commit()
        assert await asyncio.gather(*parked) == [None, None]
        assert await bench.rows("SELECT state FROM zart_tasks ORDER BY id") == [("ready",), ("waiting",)]


async def test_a_body_retry_moves_the_records_to_try_afresh(dsn):
    now = dt.datetime.now(dt.UTC)
    async with Bench(dsn) as bench:
        (held,) = await bench.hold([1])
        await bench.write(held, "kept")
        # In flight together: the retry waits for the entry that it takes away.
        told = [
            bench.write(held, "broken", "failed", seq=2, failure=b"{}"),
            bench.end(
                held,
                BodyRetry(attempt=2, not_before=now + HOUR, floor=2, afresh=(failed_attempt("broken", 3),)),
                notes=(("body-retry", "broken failed"),),
            ),
        ]
        assert await asyncio.gather(*told) == [None, None]
        assert await bench.rows("SELECT name FROM zart_steps") == [("kept",)]
        assert await bench.rows(
            "SELECT run_id, name, attempt, body_attempt, failure::text FROM zart_step_attempts"
        ) == [(held.run_id, "broken", 3, 1, '{"type": "E"}')]
        assert await bench.rows(
            "SELECT state, attempt, floor, not_before, wake_at, owner FROM zart_tasks"
        ) == [("waiting", 2, 2, now + HOUR, now + HOUR, None)]


async def test_a_block_is_kept_with_its_reason(dsn):
    async with Bench(dsn) as bench:
        (held,) = await bench.hold([1])
        assert await bench.end(held, Blocked(failure=b'{"type":"N"}', what="non-determinism")) is None
        assert await bench.rows("SELECT state, owner, wake_at FROM zart_tasks") == [("blocked", None, None)]
        assert await bench.rows("SELECT status, failure::text, finished_at FROM zart_executions") == [
            ("scheduled", '{"type":"N"}', None)
        ]
        assert await bench.rows("SELECT execution_id, what, note FROM zart_history") == [
            (held.id, "blocked", "non-determinism")
        ]


async def test_a_release_burns_nothing(dsn):
    async with Bench(dsn) as bench:
        (held,) = await bench.hold([1], attempt=2, recoveries=1)
        assert await bench.end(held, Released()) is None
        assert await bench.rows("SELECT state, owner, batch, attempt, recoveries, epoch FROM zart_tasks") == [
            ("ready", None, None, 2, 1, 1)
        ]


async def test_the_first_record_after_a_takeover_resets_the_recoveries(dsn):
    """Alone, beside others, and together with an ending of the same task: one change of its row."""
    async with Bench(dsn) as bench:
        one, other, third = await bench.hold([1, 2, 3], recoveries=2)
        told = [
            bench.write(one, "a", clears_recoveries=True),
            bench.write(one, "b"),
            bench.write(other, "a", clears_recoveries=True),
            bench.end(other, Suspended(seen=0, wake_at=None, waiting_for=None)),
            bench.write(third, "a"),
        ]
        assert await asyncio.gather(*told) == [None] * 5
        rows = await bench.rows("SELECT recoveries, state, owner FROM zart_tasks ORDER BY id")
        assert rows == [(0, "running", 1), (0, "waiting", None), (2, "running", 1)]


async def test_a_failed_attempt_is_stored_with_its_entry(dsn):
    """In the same statement, and only if that entry is written."""
    async with Bench(dsn) as bench:
        (held,) = await bench.hold([1])
        for number in (1, 2):
            told = bench.write(
                held, "step", "running", attempts=number, failed_attempt=failed_attempt("step", number)
            )
            assert await told is None
        assert await bench.write(held, "step", attempts=3) is None
        late = bench.write(held, "step", "running", attempts=4, failed_attempt=failed_attempt("step", 4))
        assert isinstance(await late, Lost)
        assert await bench.rows("SELECT name, attempt FROM zart_step_attempts ORDER BY id") == [
            ("step", 1),
            ("step", 2),
        ]


# ---------------------------------------------------------------- events, news


async def offer(bench: Bench, held: Held, payload: str | None) -> int:
    return await bench.value(
        "INSERT INTO zart_events (execution_id, name, payload) VALUES (%s, 'paid', %s) RETURNING id",
        held.id,
        payload,
    )


async def test_a_wait_consumes_its_event(dsn):
    async with Bench(dsn) as bench:
        (held,) = await bench.hold([1])
        first, second = await offer(bench, held, '{"n": 1}'), await offer(bench, held, '{"n": 2}')
        key = Key("", "paid", 1, "wait")
        assert await bench.write(held, "", key=key, event_id=first, result=None) is None
        assert await bench.rows("SELECT result::text FROM zart_steps") == [('{"n": 1}',)]
        assert await bench.rows("SELECT id FROM zart_events WHERE consumed_at IS NULL") == [(second,)]


async def test_an_event_is_consumed_once(dsn):
    """A wait whose event is another's is lost, and its record is not written."""
    async with Bench(dsn) as bench:
        one, other = await bench.hold([1, 2])
        event = await offer(bench, one, "1")
        await bench.database.execute("UPDATE zart_events SET consumed_at = now()")
        told = [bench.write(one, "wait", event_id=event, result=None), bench.write(other, "step")]
        lost, kept = await asyncio.gather(*told)
        assert isinstance(lost, Lost)
        assert kept is None
        assert await bench.rows("SELECT name FROM zart_steps") == [("step",)]


async def test_who_does_not_hold_the_execution_consumes_nothing(dsn):
    async with Bench(dsn) as bench:
        (held,) = await bench.hold([1])
        event = await offer(bench, held, "1")
        await bench.database.execute("UPDATE zart_tasks SET owner = 2")
        assert isinstance(await bench.write(held, "wait", event_id=event, result=None), Lost)
        assert await bench.value("SELECT consumed_at FROM zart_events") is None


async def test_an_awaited_end_is_announced_after_the_commit(dsn, direct_dsn):
    async with Bench(direct_dsn, through=dsn) as bench:
        one, other = await bench.hold([1, 2])
        await bench.database.execute("UPDATE zart_executions SET awaited = true WHERE id = %s", (other.id,))
        await bench.database.execute(f'LISTEN "{done_channel("public")}"')
        told = [bench.end(each, Completed(result=b"1")) for each in (one, other)]
        async for note in bench.database.notifies(timeout=10, stop_after=1):
            assert note.payload == other.id
        assert await asyncio.gather(*told) == [None, None]


# ---------------------------------------------------------------- the fence


async def test_without_its_fence_the_journal_writes_nothing_more(dsn):
    """Whatever is pending and whatever comes later is lost, and the worker is told once."""
    async with Bench(dsn) as bench:
        held = await bench.hold(range(1, 51))
        assert await bench.write(held[0], "before") is None
        await bench.database.execute("DELETE FROM zart_workers WHERE worker_id = 1")
        told = [bench.write(each, "step") for each in held]
        told += [bench.write(each, "big", result=b'"%s"' % (b"x" * 100_000)) for each in held[:5]]
        told += [bench.end(each, Completed(result=b"1")) for each in held]
        verdicts = await asyncio.gather(*told)
        assert all(isinstance(verdict, Lost) for verdict in verdicts)
        await bench.running
        assert isinstance(await bench.write(held[0], "later"), Lost)
        await bench.journal.drain()
        assert bench.fenced == 1
        assert await bench.rows("SELECT name FROM zart_steps") == [("before",)]
        assert await bench.value("SELECT count(*) FROM zart_tasks WHERE owner = 1") == 50


async def test_entries_and_the_ends_of_others_share_a_commit(dsn, direct_dsn):
    """What most batches of a busy worker hold. An end that is somebody else's to write changes nothing, and takes
    nobody along; without the fence none of it is written."""
    async with (
        Bench(dsn) as bench,
        await psycopg.AsyncConnection.connect(direct_dsn, autocommit=True) as ears,
    ):
        one, two, lost, late, last = await bench.hold([1, 2, 3, 4, 5])
        await bench.database.execute("UPDATE zart_tasks SET epoch = 2 WHERE id = 3")
        await bench.database.execute("UPDATE zart_executions SET awaited = true WHERE id = 'execution-2'")
        await ears.execute(f'LISTEN "{done_channel("public")}"')
        told = [bench.write(one, "first"), bench.end(two, Completed(result=b"2"))]
        told += [bench.end(lost, Completed(result=b"3")), bench.write(one, "second")]
        first, ended, refused, second = await asyncio.gather(*told)
        assert (first, ended, second) == (None, None, None)
        assert isinstance(refused, Lost)
        assert await bench.rows("SELECT name, seq FROM zart_steps ORDER BY seq") == [
            ("first", 1),
            ("second", 2),
        ]
        assert await bench.rows("SELECT id FROM zart_tasks ORDER BY id") == [(1,), (3,), (4,), (5,)]
        assert await bench.rows(
            "SELECT id, result::text FROM zart_executions WHERE status = 'completed'"
        ) == [("execution-2", "2")]
        commits = (
            "SELECT xmin::text FROM zart_steps UNION SELECT xmin::text FROM zart_executions WHERE status"
        )
        assert len(await bench.rows(f"{commits} = 'completed'")) == 1
        (note,) = [note async for note in ears.notifies(timeout=10, stop_after=1)]
        assert note.payload == "execution-2"
        await bench.database.execute("DELETE FROM zart_workers WHERE worker_id = 1")
        told = [bench.write(late, "never"), bench.end(last, Completed(result=b"5"))]
        assert [type(verdict) for verdict in await asyncio.gather(*told)] == [Lost, Lost]
        assert await bench.value("SELECT count(*) FROM zart_steps") == 2
        assert await bench.value("SELECT count(*) FROM zart_tasks") == 4


async def test_the_reaper_waits_for_a_statement_in_flight(dsn):
    """The delete of the fence row is the lock: it is had when nothing of the worker is under way any more."""
    async with Bench(dsn) as bench:
        (held,) = await bench.hold([1])
        async with (
            await psycopg.AsyncConnection.connect(dsn) as blocker,
            await psycopg.AsyncConnection.connect(dsn, autocommit=True) as reaper,
        ):
            await blocker.execute("SELECT FROM zart_tasks WHERE id = 1 FOR UPDATE")
            told = bench.write(held, "step", clears_recoveries=True)
            await bench.blocked(1)
            reaping = asyncio.create_task(reaper.execute("DELETE FROM zart_workers WHERE worker_id = 1"))
            await bench.blocked(2)
            assert not reaping.done()
            await blocker.commit()
            await reaping
            assert await told is None
        assert isinstance(await bench.write(held, "next"), Lost)


# ---------------------------------------------------------------- many writers


async def test_six_writers_of_the_same_tasks_do_not_deadlock(dsn, server_log):
    """Each statement locks its tasks by id first, whatever their order in the batch."""
    async with contextlib.AsyncExitStack() as stack:
        benches = [await stack.enter_async_context(Bench(dsn, worker_id=n)) for n in range(1, 7)]
        held = await benches[0].hold(range(1, 41))
        told = []
        for turn in range(60):
            for bench in benches:
                # Different orders of the same forty tasks.
                step = 7 + bench.worker_id
                order = sorted(held, key=lambda each: (each.task_id * step + turn * 13) % 41)
                told += [
                    bench.write(each, f"{bench.worker_id}-{turn}", clears_recoveries=True)
                    for each in order[:20]
                ]
            await asyncio.sleep(0.001)
        assert set(await asyncio.gather(*told)) == {None}
    assert "deadlock detected" not in server_log()


async def test_a_writer_makes_hardly_any_multixacts(dsn):
    """A fence row that two connections lock would cost a multixact for each batch; each has its own."""
    async with Bench(dsn) as bench:
        held = await bench.hold(range(1, 9))
        before = await next_multixact(bench)

        async def work(each: Held) -> None:
            for n in range(300):
                payload = b'"%s"' % (b"x" * 70_000) if each.task_id < 3 else b"1"
                assert await bench.write(each, f"step-{n}", result=payload) is None

        async def beat() -> None:
            while True:
                await bench.database.execute(
                    "UPDATE zart_workers SET heartbeat_at = clock_timestamp() WHERE worker_id = 1"
                )
                await asyncio.sleep(0.05)

        beating = asyncio.create_task(beat())
        await asyncio.gather(*(work(each) for each in held))
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)
        batches = await bench.value("SELECT count(DISTINCT xmin::text) FROM zart_steps")
        assert batches >= 400
        assert await next_multixact(bench) - before < batches / 10


async def test_batches_beside_a_big_record_make_no_multixacts(dsn):
    """A big record is under way, with its fence row locked: what the other connection commits locks another one."""
    async with Bench(dsn) as bench, await psycopg.AsyncConnection.connect(dsn) as stranger:
        big, small = await bench.hold([1, 2])
        await stranger.execute(
            "INSERT INTO zart_steps (run_id, path, name, occurrence, kind, state)"
            " VALUES (%s, '', 'big', 1, 'step', 'running')",
            (big.run_id,),
        )
        under_way = bench.write(big, "big", result=b'"%s"' % (b"x" * 70_000))
        await bench.blocked(1)
        before = await next_multixact(bench)
        for n in range(100):
            assert await bench.write(small, f"step-{n}") is None
        assert await next_multixact(bench) - before < 10
        await stranger.rollback()
        assert await under_way is None


async def next_multixact(bench: Bench) -> int:
    await bench.database.execute("CHECKPOINT")
    return int(await bench.value("SELECT next_multixact_id FROM pg_control_checkpoint()"))
