"""What is given away, as rows: tasks, counts and numbers, whatever stands in one batch with what."""

import asyncio
import datetime as dt
from collections.abc import Callable
from contextlib import AsyncExitStack

import msgspec
import pytest

import zart
from tests.support.claims import first_claim
from tests.support.executions import Bench, Held
from tests.support.running import fast, query, worker_for
from zart import Client, durable, step
from zart._engine.entries import Claim, Completed, Key, Order, StepEnded, StepWork, Suspended
from zart._engine.lanes import lane_of

pytestmark = pytest.mark.stores_plain(reason="gives the journal records by itself, as they are")

_PARENT = 1_000_000
"""The task of who gives away: numbers that are given out begin far below."""


def giver(held: Held) -> Claim:
    return first_claim(held.id, held.run_id, dt.datetime.now(dt.UTC), task_id=held.task_id, lane=1)


def give(bench: Bench, parent: Held, name: str) -> "asyncio.Future[object]":
    work = StepWork(function="f", lane=1, input=b"{}")
    return bench.write(
        parent, name, "waiting", key=Key("", name, 1, "step"), work=work, giver=giver(parent), attempts=0
    )


async def take(bench: Bench, parent: Held, name: str) -> Held:
    """Hold the task of a scheduled step, as a claim does."""
    held = Held(0)
    held.id, held.run_id = parent.id, parent.run_id
    held.task_id = await bench.value(
        "UPDATE zart_tasks SET state = 'running', owner = %s, epoch = 1, started_at = zart_now()"
        " WHERE step_name = %s AND run_id = %s RETURNING id",
        bench.worker_id,
        name,
        parent.run_id,
    )
    return held


def finish(bench: Bench, parent: Held, held: Held, name: str) -> "asyncio.Future[object]":
    ended = StepEnded(key=Key("", name, 1, "step"), state="completed", result=b'"done"')
    return bench.end(held, ended, parent_task=parent.task_id)


async def test_work_is_a_row_that_a_worker_can_claim(dsn: str) -> None:
    """A scheduled step has its entry and its task, which says whose it is, in one statement."""
    async with Bench(dsn) as bench:
        (parent,) = await bench.hold([_PARENT])
        assert await give(bench, parent, "a") is None
        rows = await bench.rows(
            "SELECT t.execution_id, t.run_id, t.state, t.parent_task, t.step_name, t.step_function, s.state, s.seq"
            " FROM zart_tasks t JOIN zart_steps s ON s.task_id = t.id"
        )
        assert rows == [(parent.id, parent.run_id, "ready", _PARENT, "a", "f", "waiting", None)]


async def test_the_same_work_is_given_away_once(dsn: str) -> None:
    """Two activations give the same call away: the second hears that it has lost, and there is one task."""
    async with Bench(dsn) as bench:
        (parent,) = await bench.hold([_PARENT])
        assert await give(bench, parent, "a") is None
        assert type(await give(bench, parent, "a")).__name__ == "Lost"
        assert await bench.value("SELECT count(*) FROM zart_tasks WHERE step_name IS NOT NULL") == 1


async def test_the_end_of_a_step_tells_its_giver(dsn: str) -> None:
    """In one statement: the result without a number, the task gone, the count, and the body ready."""
    async with Bench(dsn) as bench:
        (parent,) = await bench.hold([_PARENT])
        await asyncio.gather(*(give(bench, parent, name) for name in "ab"))
        await bench.end(parent, Suspended(seen=0, wake_at=None, waiting_for=None, wake_at_done=2))
        for name, state in (("a", "waiting"), ("b", "ready")):
            assert await finish(bench, parent, await take(bench, parent, name), name) is None
            assert await bench.value("SELECT state FROM zart_tasks WHERE parent_task IS NULL") == state
        assert await bench.rows("SELECT done FROM zart_tasks") == [(2,)]
        assert await bench.rows("SELECT name, state, seq, result::text FROM zart_steps ORDER BY name") == [
            ("a", "completed", None, '"done"'),
            ("b", "completed", None, '"done"'),
        ]


async def test_a_suspension_and_the_ends_that_it_waits_for_in_one_batch(dsn: str) -> None:
    """The parent's suspension and all its steps' ends meet in one statement: the parent wakes."""
    async with Bench(dsn) as bench:
        (parent,) = await bench.hold([_PARENT])
        await asyncio.gather(*(give(bench, parent, name) for name in "abc"))
        held = [(name, await take(bench, parent, name)) for name in "abc"]
        ends = [finish(bench, parent, each, name) for name, each in held[:2]]
        suspended = bench.end(parent, Suspended(seen=0, wake_at=None, waiting_for=None, wake_at_done=3))
        ends += [finish(bench, parent, each, name) for name, each in held[2:]]
        assert await asyncio.gather(*ends, suspended) == [None] * 4
        assert await bench.rows("SELECT id, state, done FROM zart_tasks") == [(_PARENT, "ready", 3)]


async def test_what_arrived_gets_its_number_once(dsn: str) -> None:
    """A number goes to a row that has ended and has none; sent again it changes nothing."""
    async with Bench(dsn) as bench:
        (parent,) = await bench.hold([_PARENT])
        await give(bench, parent, "a")
        key = Key("", "a", 1, "step")
        early = bench.write(parent, "a", "completed", key=key, result=None, seq=1, numbers=True)
        assert type(await early).__name__ == "Lost"
        await finish(bench, parent, await take(bench, parent, "a"), "a")
        assert await bench.write(parent, "a", "completed", key=key, result=None, seq=2, numbers=True) is None
        again = bench.write(parent, "a", "completed", key=key, result=None, seq=3, numbers=True)
        assert type(await again).__name__ == "Lost"
        assert await bench.rows("SELECT seq, result::text FROM zart_steps") == [(2, '"done"')]


async def test_an_order_reaches_what_is_given_away_in_the_same_batch(dsn: str) -> None:
    """Scheduled and cancelled at once: the cancel finds the task."""
    async with Bench(dsn) as bench:
        (parent,) = await bench.hold([_PARENT])
        given = give(bench, parent, "a")
        order = Order(Key("", "a", 1, "step"), "changed my mind", "a test")
        asked = bench.write(parent, "cancel a", key=Key("", "cancel a", 1, "capture"), orders=(order,))
        assert await asyncio.gather(given, asked) == [None, None]
        assert await bench.rows(
            "SELECT w.kind, w.reason FROM zart_wakeups w JOIN zart_tasks t ON t.id = w.task_id WHERE t.step_name = 'a'"
        ) == [("cancel", "changed my mind")]


async def test_an_end_under_a_lost_claim_writes_nothing(dsn: str) -> None:
    """Somebody else holds the step meanwhile: neither its result nor the count is written."""
    async with Bench(dsn) as bench:
        (parent,) = await bench.hold([_PARENT])
        await give(bench, parent, "a")
        held = await take(bench, parent, "a")
        await bench.rows("UPDATE zart_tasks SET epoch = 2 WHERE id = %s RETURNING 1", held.task_id)
        assert type(await finish(bench, parent, held, "a")).__name__ == "Lost"
        assert await bench.rows("SELECT state FROM zart_steps") == [("waiting",)]
        assert await bench.value("SELECT done FROM zart_tasks WHERE parent_task IS NULL") == 0


async def test_lanes_are_the_same_in_python_and_in_sql(dsn: str) -> None:
    """Who gives work away and who starts it from SQL mean the same lane."""
    for function in (("default", "order", None), ("mail ✉", "send", "2"), ("q", "\x1estep\x1ef", None)):
        assert await query(dsn, "SELECT zart_lane(%s, %s, %s)", *function) == [(lane_of(*function),)]


class Job(msgspec.Struct):
    depth: int
    width: int


@step("count-one")
async def count_one() -> int:
    return 1


@durable("bush")
async def bush(job: Job) -> int:
    steps = [zart.schedule_step(count_one) for _ in range(job.width)]
    children = [
        zart.start_child(bush, Job(job.depth - 1, job.width)) for _ in range(job.width if job.depth else 0)
    ]
    return sum(await zart.wait_all(*steps, *children))


async def test_six_workers_with_parents_and_children_in_all_batches_do_not_deadlock(
    dsn: str, server_log: Callable[[], str]
) -> None:
    """Parents and children end on six workers, in batches of all sorts; the server's log tells of no deadlock."""
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(Client(dsn))
        for _ in range(6):
            await stack.enter_async_context(worker_for(dsn, bush, config=fast(max_concurrent_tasks=20)))
        handles = await client.start_many(bush, {f"b{n}": Job(2, 4) for n in range(8)})
        expected = 4 + 16 + 64
        assert [await handle.result(timeout="60s") for handle in handles] == [expected] * 8
    assert "deadlock" not in server_log()
    assert await query(dsn, "SELECT count(*) FROM zart_tasks") == [(0,)]


async def test_a_child_that_ends_tells_its_parent_in_the_same_statement(dsn: str) -> None:
    """The outcome of a child, its parent's record of it, and the parent's wake-up are one commit."""
    async with Bench(dsn) as bench:
        parent, child = await bench.hold([_PARENT, _PARENT + 1])
        await bench.database.execute(
            "UPDATE zart_executions SET parent_id = 'its parent', parent_run = %s, parent_path = '',"
            " parent_name = 'c', parent_occurrence = 1 WHERE id = %s",
            (parent.run_id, child.id),
        )
        await bench.database.execute(
            "UPDATE zart_tasks SET parent_task = %s WHERE id = %s", (_PARENT, child.task_id)
        )
        await bench.database.execute(
            "INSERT INTO zart_steps (run_id, path, name, occurrence, kind, state, task_id)"
            " VALUES (%s, '', 'c', 1, 'child', 'waiting', %s)",
            (parent.run_id, child.task_id),
        )
        await bench.end(parent, Suspended(seen=0, wake_at=None, waiting_for=None, wake_at_done=1))
        assert await bench.end(child, Completed(result=b"7"), parent_task=_PARENT) is None
        assert await bench.rows("SELECT id, state, done FROM zart_tasks") == [(_PARENT, "ready", 1)]
        assert await bench.rows("SELECT state, result::text, seq FROM zart_steps") == [
            ("completed", "7", None)
        ]
