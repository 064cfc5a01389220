"""What faults do to the journal: connections that break at the worst moment, a server that is away.

No execution fails of it, nothing is written twice, and nothing is believed lost that was committed.
"""

import asyncio
import datetime as dt

import psycopg
import pytest

from tests.support.executions import Bench, failed_attempt
from tests.support.proxy import Proxy
from zart._engine.entries import BodyRetry, Completed, Key, Lost, Suspended
from zart.errors import SerializationError

pytestmark = pytest.mark.stores_plain(reason="gives the journal records by itself, as they are")

HOUR = dt.timedelta(hours=1)


async def test_entries_whose_commit_is_in_doubt_are_read_back(dsn):
    """The answer is lost after the commit: sent again, they count as written, and nothing is doubled."""
    async with Proxy(dsn) as proxy, Bench(dsn, through=proxy.dsn) as bench:
        one, other = await bench.hold([1, 2])
        await bench.write(one, "before")
        event = await bench.value(
            "INSERT INTO zart_events (execution_id, name, payload) VALUES (%s, 'e', '1') RETURNING id", one.id
        )
        proxy.lose_answers(2)
        told = [
            bench.write(one, "step"),
            bench.write(one, "wait", event_id=event, result=None),
            bench.write(other, "retried", "running", attempts=2, failed_attempt=failed_attempt("retried")),
            bench.write(other, "reset", clears_recoveries=True),
        ]
        assert await asyncio.gather(*told) == [None] * 4
        assert proxy.lost == 2
        assert proxy.opened == 3
        assert await bench.value("SELECT count(*) FROM zart_steps") == 5
        assert await bench.value("SELECT count(*) FROM zart_step_attempts") == 1
        assert await bench.rows("SELECT result::text FROM zart_steps WHERE name = 'wait'") == [("1",)]


async def test_endings_whose_commit_is_in_doubt_are_read_back(dsn):
    """Sent again they match no task, which looks like a lost claim; the token tells that it was us."""
    async with Proxy(dsn) as proxy, Bench(dsn, through=proxy.dsn) as bench:
        ended, parked, retried, foreign = await bench.hold([1, 2, 3, 4])
        for each in (ended, parked, retried, foreign):
            await bench.write(each, "before")
        await bench.database.execute("UPDATE zart_tasks SET owner = 2 WHERE id = 4")
        proxy.lose_answers(1)
        told = [
            bench.end(ended, Completed(result=b"1"), notes=(("warning", "once"),)),
            bench.end(parked, Suspended(seen=0, wake_at=None, waiting_for="x")),
            bench.end(
                retried,
                BodyRetry(
                    attempt=2,
                    not_before=dt.datetime.now(dt.UTC) + HOUR,
                    floor=1,
                    afresh=(failed_attempt("before"),),
                ),
            ),
            bench.end(foreign, Completed(result=b"1")),
        ]
        *ours, lost = await asyncio.gather(*told)
        assert ours == [None] * 3
        assert isinstance(lost, Lost)
        assert proxy.lost == 1
        assert await bench.value("SELECT status FROM zart_executions WHERE id = %s", ended.id) == "completed"
        assert await bench.rows("SELECT id, state, attempt FROM zart_tasks ORDER BY id") == [
            (2, "waiting", 1), (3, "waiting", 2), (4, "running", 1),
        ]  # fmt: skip
        assert await bench.value("SELECT count(*) FROM zart_history") == 1
        assert await bench.value("SELECT count(*) FROM zart_step_attempts") == 1


async def test_a_request_that_never_arrived_is_sent_again(dsn):
    async with Proxy(dsn) as proxy, Bench(dsn, through=proxy.dsn) as bench:
        held = await bench.hold(range(1, 51))
        await bench.write(held[0], "before")
        proxy.lose_requests(2)
        told = [bench.write(each, "step") for each in held]
        assert await asyncio.gather(*told) == [None] * 50
        assert await bench.value("SELECT count(*) FROM zart_steps") == 51


async def test_a_big_record_in_doubt_keeps_its_place(dsn):
    async with Proxy(dsn) as proxy, Bench(dsn, through=proxy.dsn) as bench:
        (held,) = await bench.hold([1])
        await bench.write(held, "first-big", result=b'"%s"' % (b"x" * 80_000))
        proxy.lose_answers(1)
        told = [
            bench.write(held, "big", result=b'"%s"' % (b"x" * 80_000)),
            bench.write(held, "after"),
            bench.end(held, Completed(result=b"1")),
        ]
        assert await asyncio.gather(*told) == [None] * 3
        names = [record.key.name for record in bench.order[:-1]]
        assert names == ["first-big", "big", "after"]


async def test_a_straggler_does_not_undo_what_came_after_it(dsn):
    """A try that is stuck behind a lock while its connection breaks must not win when it wakes."""
    async with Proxy(dsn) as proxy, Bench(dsn, through=proxy.dsn) as bench:
        (held,) = await bench.hold([1], recoveries=1)
        await bench.write(held, "step", "running", attempts=1)
        async with await psycopg.AsyncConnection.connect(dsn) as blocker:
            await blocker.execute("SELECT FROM zart_tasks WHERE id = 1 FOR UPDATE")
            first = bench.write(
                held,
                "step",
                "running",
                attempts=2,
                clears_recoveries=True,
                failed_attempt=failed_attempt("step"),
            )
            await bench.blocked(1)
            proxy.cut()
            await bench.blocked(2)  # the second try, behind the first
            await blocker.commit()
        assert await first is None
        assert await bench.write(held, "step", "running", attempts=3) is None
        assert await bench.rows("SELECT attempts FROM zart_steps") == [(3,)]
        assert await bench.value("SELECT count(*) FROM zart_step_attempts") == 1


async def test_a_server_that_is_away_fails_nothing(dsn):
    """Behaviour: the database goes away in the middle; records wait, and are written when it is back."""
    async with Proxy(dsn) as proxy, Bench(dsn, through=proxy.dsn) as bench:
        held = await bench.hold(range(1, 21))
        await bench.write(held[0], "before")
        proxy.refusing = True
        proxy.cut()
        told = [bench.write(each, "step") for each in held]
        told.append(bench.write(held[0], "big", result=b'"%s"' % (b"x" * 80_000)))
        tries = bench.opened
        while bench.opened < tries + 4:  # noqa: ASYNC110 (the journal's own pauses)
            await asyncio.sleep(0.01)
        assert not any(verdict.done() for verdict in told)
        proxy.refusing = False
        assert await asyncio.gather(*told) == [None] * 21


async def test_a_connection_without_answers_is_given_up(dsn):
    """A network that swallows everything looks like a slow server, but not for ever."""
    async with Proxy(dsn) as proxy, Bench(dsn, through=proxy.dsn, patience=0.3) as bench:
        (held,) = await bench.hold([1])
        await bench.write(held, "before")
        proxy.stall()
        told = bench.write(held, "step")
        await proxy.wait_opened(1)
        while bench.opened < 2:  # noqa: ASYNC110 (the journal's own patience)
            await asyncio.sleep(0.01)
        proxy.resume()
        assert await told is None


async def test_terminated_backends_fail_nothing(dsn, direct_dsn):
    """Backends are terminated again and again under load: everything is written once, in order."""
    async with Bench(direct_dsn, through=dsn) as bench:
        held = await bench.hold(range(1, 21))

        async def work(each) -> None:
            for n in range(40):
                assert await bench.write(each, f"step-{n}") is None
            assert await bench.end(each, Completed(result=b"1")) is None

        working = asyncio.gather(*(work(each) for each in held))
        while bench.opened < 6:
            await bench.database.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            assert not working.done(), "all was written before its connection was lost five times"
        await working
        assert await bench.value("SELECT count(*) FROM zart_steps") == 800
        assert await bench.value("SELECT count(*) FROM zart_executions WHERE status = 'completed'") == 20


@pytest.mark.slow
async def test_a_record_that_breaks_the_connection_each_time_is_refused_in_the_end(dsn):
    """A server that answers but breaks off at this record eight times, over seconds: the record is to blame."""
    async with Proxy(dsn) as proxy, Bench(dsn, through=proxy.dsn) as bench:
        (held,) = await bench.hold([1])
        await bench.write(held, "before")
        proxy.lose_requests(8)
        assert isinstance(await bench.write(held, "step"), SerializationError)
        assert await bench.write(held, "next") is None
        assert await bench.rows("SELECT name FROM zart_steps ORDER BY seq") == [("before",), ("next",)]


async def test_a_record_is_not_blamed_for_connections_that_break_by_themselves(dsn):
    """A server that is restarted again and again: the record is written in the end, and its execution goes on."""
    async with Proxy(dsn) as proxy, Bench(dsn, through=proxy.dsn) as bench:
        (held,) = await bench.hold([1])
        await bench.write(held, "before")
        proxy.lose_requests(5)
        assert await bench.write(held, "step") is None
        assert await bench.rows("SELECT name FROM zart_steps ORDER BY seq") == [("before",), ("step",)]


@pytest.mark.slow
async def test_a_record_that_was_committed_is_not_refused_however_often_the_answer_is_lost(dsn):
    async with Proxy(dsn) as proxy, Bench(dsn, through=proxy.dsn) as bench:
        (held,) = await bench.hold([1])
        await bench.write(held, "before")
        proxy.lose_answers(8)
        assert await bench.write(held, "step") is None
        proxy.lose_answers(8)
        assert await bench.end(held, Completed(result=b"1")) is None


@pytest.mark.parametrize(
    "damage", ["ALTER TABLE zart_steps RENAME TO elsewhere", "ALTER TABLE zart_steps DROP result CASCADE"]
)
async def test_wrong_tables_stop_the_journal(dsn, damage):
    """Nothing can be written any more: the worker hears what is wrong, and no execution is failed for it."""
    async with Bench(dsn) as bench:
        one, other = await bench.hold([1, 2])
        await bench.write(one, "before")
        await bench.database.execute(damage)
        told = [
            bench.write(one, "step"),
            bench.write(other, "step"),
            bench.end(other, Completed(result=b"1")),
        ]
        assert all(isinstance(verdict, Lost) for verdict in await asyncio.gather(*told))
        await bench.running
        (error,) = bench.schema_errors
        assert "zart_steps" in str(error) or "result" in str(error)
        assert bench.fenced == 0
        assert await bench.value("SELECT count(*) FROM zart_tasks") == 2


async def test_prepared_statements_can_be_off(dsn):
    async with Bench(dsn, prepare=False) as bench:
        held = await bench.hold(range(1, 6))
        for n in range(10):
            assert await asyncio.gather(*(bench.write(each, f"step-{n}") for each in held)) == [None] * 5


async def test_a_receiver_that_raises_hurts_nobody(dsn, caplog):
    """A verdict that cannot be delivered is logged; the journal goes on."""
    async with Bench(dsn) as bench:
        (held,) = await bench.hold([1])

        def broken(entry, error):
            raise RuntimeError("receiver is broken")

        from zart._engine.entries import Entry

        bench.journal.write(
            Entry(
                run_id=held.run_id, key=Key("", "x", 1, "step"), state="completed", done=broken, result=b"1"
            )
        )
        assert await bench.write(held, "step") is None
        await bench.journal.drain()
        assert "receiver is broken" in caplog.text


async def test_drain_waits_for_all_and_close_for_nothing(dsn):
    async with Proxy(dsn) as proxy, Bench(dsn, through=proxy.dsn) as bench:
        held = await bench.hold(range(1, 101))
        told = [bench.write(each, "step") for each in held]
        told += [bench.write(each, "big", result=b'"%s"' % (b"x" * 70_000)) for each in held[:10]]
        await bench.journal.drain()
        assert all(verdict.done() for verdict in told)
        proxy.refusing = True
        proxy.cut()
        late = bench.write(held[0], "late")
        draining = asyncio.create_task(bench.journal.drain())
        await asyncio.sleep(0)
        await bench.journal.close()
        await bench.running
        await draining
        assert not late.done()
