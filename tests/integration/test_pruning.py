"""Pruning: what ended long ago goes, in whole or down to its id; what has not ended, or is still needed, stays."""

import asyncio
import datetime as dt
import itertools
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
from psycopg import errors

import zart
from tests.support import modes
from tests.support.backlog import Backlog, execution_of, load
from tests.support.clients import Order, fail, finish, rows, ship
from tests.support.running import fast, query, shift_clock, until, until_status, working
from zart import (
    Client,
    ExecutionConflict,
    ExecutionNotFound,
    ExecutionPruned,
    Pruned,
    UsageError,
    durable,
    step,
)
from zart._engine import retention as duty
from zart._engine.registration import Registration
from zart._postgres import pruning

pytestmark = pytest.mark.stores_plain(reason="writes backlogs by itself")

DAY = dt.timedelta(days=1)
TABLES = (
    "zart_executions",
    "zart_tasks",
    "zart_steps",
    "zart_step_attempts",
    "zart_events",
    "zart_history",
    "zart_execution_runs",
    "zart_recorded_steps",
)


@step("charge", retry="fixed(1, 1ms)")
async def charge(number: int) -> int:
    if zart.step_context().step_attempt == 1:
        raise ValueError("not yet")
    return number


@durable("order")
async def order(number: int) -> int:
    await charge(number)
    return await zart.wait_for_event("paid", int)


@durable("loop")
async def loop(rounds: int) -> str:
    await charge(rounds)
    if rounds:
        zart.continue_as_new(rounds - 1)
    return "done"


@durable("child")
async def child(number: int) -> int:
    return number


@durable("parent")
async def parent(number: int) -> int:
    first = await zart.start_child(child, number, id="child-1")
    return first + await zart.wait_for_event("go", int)


@step("slow")
async def slow() -> None:
    await asyncio.Event().wait()


@durable("giver")
async def giver() -> None:
    await zart.schedule_step(slow)


@pytest.fixture
async def client(dsn: str) -> AsyncIterator[Client]:
    async with Client(dsn, author="ann") as opened:
        yield opened


async def left(dsn: str) -> dict[str, int]:
    """How many rows there are, by table."""
    counts = {}
    for table in TABLES:
        ((counts[table],),) = await query(dsn, f"SELECT count(*) FROM {table}")
    return {table: count for table, count in counts.items() if count}


def ended(dsn: str, id: str, age: dt.timedelta) -> None:
    """Move the end of an execution, and its start, to the past."""
    rows(
        dsn,
        "UPDATE zart_executions SET created_at = zart_now() - %(age)s - interval '1 s',"
        " finished_at = zart_now() - %(age)s WHERE id = %(id)s",
        {"id": id, "age": age},
    )


# ---------------------------------------------------------------- in whole


async def test_what_ended_long_ago_goes_with_all_that_belongs_to_it(dsn: str) -> None:
    """Its journal, its failed attempts, its events, its history, the run before; and its id is free."""
    async with working(dsn, order, loop) as client:
        await client.start(order, 7, id="a")
        await client.offer_event("a", "paid", 1)
        await client.offer_event("a", "ignored", 2)
        assert await client.handle(order, "a").result(timeout=10) == 1
        await client.start(loop, 2, id="b")
        assert await client.handle(loop, "b").result(timeout=10) == "done"
    async with Client(dsn) as client:
        await query(
            dsn, "INSERT INTO zart_history (execution_id, what) SELECT id, 'a note' FROM zart_executions"
        )
        await query(
            dsn,
            "INSERT INTO zart_recorded_steps (run_id, path, name, occurrence, kind, epoch, attempt)"
            " SELECT run_id, '', 'own', 1, 'step', 1, 1 FROM zart_executions",
        )
        assert set(await left(dsn)) == set(TABLES) - {"zart_tasks"}
        assert await client.prune(older_than="1d") == Pruned(deleted=0, emptied=0, records=0)
        await shift_clock(dsn, DAY + dt.timedelta(minutes=1))
        told = await client.prune(older_than="1d", dry_run=True)
        assert (told.deleted, told.emptied) == (2, 0)
        assert len(await left(dsn)) == len(TABLES) - 1
        pruned = await client.prune(older_than="1d")
        assert (pruned.deleted, pruned.emptied) == (2, 0)
        assert (
            pruned.records == 4
        )  # charge and its wait; charge in the run that was the last, and in the one before
        assert await left(dsn) == {}
        with pytest.raises(ExecutionNotFound):
            await client.status("a")
        assert (await client.start(order, 8, id="a")).created


async def test_the_time_of_its_end_counts(client: Client, dsn: str) -> None:
    """Not that of its start: what was begun a year ago and ended today stays; a moment decides."""
    for id, age in (("young", "1 hour"), ("old", "1 day 1 second"), ("near", "23 hours 59 minutes")):
        await client.start(ship, Order(1), id=id)
        finish(dsn, id)
        rows(
            dsn,
            "UPDATE zart_executions SET created_at = zart_now() - interval '1 year',"
            f" finished_at = zart_now() - interval '{age}' WHERE id = '{id}'",
        )
    assert (await client.prune(older_than="1d")).deleted == 1
    assert sorted([execution.id async for execution in client.executions()]) == ["near", "young"]


async def test_only_the_statuses_asked_for(client: Client, dsn: str) -> None:
    """What failed may be kept while what completed goes."""
    for id in ("completed", "failed", "cancelled"):
        await client.start(ship, Order(1), id=id)
    finish(dsn, "completed")
    fail(dsn, "failed", ValueError("no"))
    await client.cancel("cancelled")
    await shift_clock(dsn, 2 * DAY)
    assert (await client.prune(older_than="1d", statuses=["completed", "cancelled"])).deleted == 2
    assert [execution.id async for execution in client.executions()] == ["failed"]
    assert (await client.prune(older_than="1d")).deleted == 1


async def test_what_lives_is_never_pruned(client: Client, dsn: str) -> None:
    """Whatever its age, and in whatever state: ready, waiting, blocked."""
    for id in ("ready", "waiting", "blocked"):
        await client.start(ship, Order(1), id=id)
    rows(
        dsn, "UPDATE zart_tasks SET state = 'waiting', started_at = zart_now() WHERE execution_id = 'waiting'"
    )
    fail(dsn, "blocked", ValueError("no"), status="blocked")
    await shift_clock(dsn, 400 * DAY)
    assert await client.prune(older_than="1d") == Pruned(deleted=0, emptied=0, records=0)
    assert (await left(dsn))["zart_tasks"] == 3


async def test_a_child_may_go_before_its_parent(dsn: str) -> None:
    """The parent's journal has what came of it: replayed without the child, the parent goes on with that."""
    async with working(dsn, parent, child, config=fast(max_parked_bodies=0)) as client:
        await client.start(parent, 5, id="p")
        await until_status(client, "p", "waiting")
        await until(lambda: query(dsn, "SELECT 1 FROM zart_steps WHERE name = 'go'"))
        ended(dsn, "child-1", 2 * DAY)
        assert (await client.prune(older_than="1d")).deleted == 1
        with pytest.raises(ExecutionNotFound):
            await client.status("child-1")
        await client.offer_event("p", "go", 30)
        assert await client.handle(parent, "p").result(timeout=10) == 35


async def test_a_child_stays_whose_end_its_parent_has_not_heard_of(client: Client, dsn: str) -> None:
    """The call in the parent's journal is open: whatever the reason, what could still be read is kept."""
    await client.start(ship, Order(1), id="c")
    finish(dsn, "c")
    ended(dsn, "c", 2 * DAY)
    rows(
        dsn,
        "UPDATE zart_executions SET parent_id = 'p', parent_run = run_id, parent_path = '', parent_name = 'ship',"
        " parent_occurrence = 1",
    )
    rows(
        dsn,
        "INSERT INTO zart_steps (run_id, path, name, occurrence, kind, state)"
        " SELECT run_id, '', 'ship', 1, 'child', 'waiting' FROM zart_executions",
    )
    for dry_run in (True, False):
        assert (await client.prune(older_than="1d", dry_run=dry_run)).deleted == 0
    rows(dsn, "UPDATE zart_steps SET state = 'completed'")
    assert (await client.prune(older_than="1d")).deleted == 1


async def test_a_run_stays_of_which_a_scheduled_step_is_still_done(dsn: str) -> None:
    """Its worker reads there what it was given; after that it goes."""
    async with working(dsn, giver) as client:
        await client.start(giver, id="g")
        await until(
            lambda: query(dsn, "SELECT 1 FROM zart_tasks WHERE step_name = 'slow' AND state = 'running'")
        )
        await client.cancel("g", force=True)
        ended(dsn, "g", 2 * DAY)
        ((held,),) = await query(dsn, "SELECT count(*) FROM zart_tasks")
        if held:  # its cancel may have arrived already
            rows(dsn, "UPDATE zart_tasks SET cancel_at = NULL")
    rows(
        dsn,
        "INSERT INTO zart_tasks (id, execution_id, run_id, lane, priority, state, due_at, step_name)"
        " SELECT s.task_id, 'g', s.run_id, 1, 0, 'ready', zart_now(), s.name FROM zart_steps s WHERE s.kind = 'step'"
        " ON CONFLICT (id) DO NOTHING",
    )
    async with Client(dsn) as client:
        for dry_run in (True, False):
            assert (await client.prune(older_than="1d", dry_run=dry_run)).deleted == 0
        rows(dsn, "DELETE FROM zart_tasks")
        assert (await client.prune(older_than="1d")).deleted == 1


# ---------------------------------------------------------------- down to the id


async def test_ids_stay_for_longer(client: Client, dsn: str) -> None:
    """Payload, result, failure, steps, attempts, events and history go first, the id later."""
    for id in ("done", "lost"):
        await client.start(ship, Order(1), id=id)
        await client.offer_event(id, "ignored", 1)
    finish(dsn, "done", '"shipped 1"')
    fail(dsn, "lost", ValueError("no"))
    await shift_clock(dsn, 2 * DAY)
    assert await client.prune(older_than="1d", keep_ids="10d", dry_run=True) == Pruned(
        deleted=0, emptied=2, records=0
    )
    assert (await client.prune(older_than="1d", keep_ids="10d")).emptied == 2
    assert await left(dsn) == {"zart_executions": 2}
    assert rows(dsn, "SELECT payload, result, failure FROM zart_executions") == [(None, None, None)] * 2
    assert await client.prune(older_than="1d", keep_ids="10d") == Pruned(deleted=0, emptied=0, records=0)
    assert (await client.status("done")).status == "completed"
    history = await client.history("lost")
    assert history.execution.status == "failed"
    assert history.records == []
    (note,) = history.notes
    assert note.endswith("pruned: only its id is kept")
    await shift_clock(dsn, 9 * DAY)
    assert await client.prune(older_than="1d", keep_ids="10d") == Pruned(deleted=2, emptied=0, records=0)
    assert await left(dsn) == {}


async def test_a_start_that_is_sent_again_finds_the_id(client: Client, dsn: str) -> None:
    """The same function with equal input is the execution that ended, and nothing runs; other input is a conflict."""
    await client.start(ship, Order(1), id="a")
    finish(dsn, "a")
    await shift_clock(dsn, 2 * DAY)
    await client.prune(older_than="1d", keep_ids="10d")
    assert not (await client.start(ship, Order(1), id="a")).created
    assert not (await client.start("ship", {"number": 1, "note": ""}, id="a")).created
    with pytest.raises(ExecutionConflict, match="another input"):
        await client.start(ship, Order(2), id="a")
    with pytest.raises(ExecutionConflict, match="another input"):
        await client.start("ship", {"number": 2, "note": ""}, id="a")
    assert [handle.created for handle in await client.start_many(ship, {"a": Order(1)})] == [False]
    assert await left(dsn) == {"zart_executions": 1}


@pytest.mark.parametrize("payload", ['{"number": 1, "b": [1.5, null]}', None])
async def test_what_was_started_from_sql_is_found_from_sql(
    client: Client, dsn: str, payload: str | None
) -> None:
    """There is no digest: the hash of the payload that is gone says whether two are equal, in whatever order."""
    start = "SELECT zart_start('f', 'a', %s::jsonb)"
    rows(dsn, start, (payload,))
    finish(dsn, "a")
    await shift_clock(dsn, 2 * DAY)
    assert (await client.prune(older_than="1d", keep_ids="10d")).emptied == 1
    assert rows(dsn, start, (payload,)) == [("a",)]
    if payload is not None:
        assert rows(dsn, start, ('{"b": [1.5, null],   "number": 1}',)) == [("a",)]
        if modes.current() != "encrypted":  # Python sends no plain input that SQL could hash
            assert not (await client.start("f", {"b": [1.5, None], "number": 1}, id="a")).created
    with pytest.raises(errors.UniqueViolation, match="another payload"):
        rows(dsn, start, ('{"number": 2}',))
    assert await left(dsn) == {"zart_executions": 1}


async def test_the_result_of_what_was_pruned_is_an_error_that_says_so(client: Client, dsn: str) -> None:
    """Not None: neither for a handle nor by the id, and for whoever asked before."""
    for id in ("done", "lost"):
        await client.start(ship, Order(1), id=id)
    finish(dsn, "done")
    fail(dsn, "lost", ValueError("no"))
    await shift_clock(dsn, 2 * DAY)
    await client.prune(older_than="1d", keep_ids="10d")
    for id, status in (("done", "completed"), ("lost", "failed")):
        with pytest.raises(ExecutionPruned, match=f"'{id}' has ended \\({status}\\).*pruned") as caught:
            await client.wait_completion(id, timeout=5)
        assert caught.value.execution_id == id
    with pytest.raises(ExecutionPruned):
        await client.handle(ship, "done").result()


async def test_what_was_pruned_cannot_be_repaired_and_its_id_can_be_made_free(
    client: Client, dsn: str
) -> None:
    """Neither its input nor its records are there to go on with; whoever asks hears that, and nothing is changed."""
    await client.start(ship, Order(1), id="lost")
    fail(dsn, "lost", ValueError("no"))
    await shift_clock(dsn, 2 * DAY)
    await client.prune(older_than="1d", keep_ids="10d")
    for repair in (
        client.restart("lost"),
        client.restart("lost", {"number": 2}),
        client.rerun("lost", steps=["charge"]),
        client.retry_step("lost", "charge"),
    ):
        with pytest.raises(ExecutionPruned, match="'lost' has failed, and .* was pruned") as caught:
            await repair
        assert caught.value.execution_id == "lost"
    assert (await client.status("lost")).status == "failed"
    assert await client.delete("lost")
    assert (await client.start(ship, Order(1), id="lost")).created


async def test_a_payload_that_no_jsonb_holds_is_pruned_like_others(client: Client, dsn: str) -> None:
    """A hand has written it; one such row must not keep the rest."""
    for id in ("a", "b"):
        await client.start(ship, Order(1), id=id)
        finish(dsn, id)
    rows(dsn, r"""UPDATE zart_executions SET payload = '"\u0000"', digest = NULL WHERE id = 'a'""")
    await shift_clock(dsn, 2 * DAY)
    assert (await client.prune(older_than="1d", keep_ids="10d")).emptied == 2


@pytest.mark.parametrize(
    "edit",
    ["status = 'scheduled', finished_at = NULL", "payload = '1'", "result = '1'", "failure = '{}'"],
)
async def test_the_tables_refuse_that_it_comes_back(client: Client, dsn: str, edit: str) -> None:
    """Nothing runs with an input that is gone, and a row that says it is pruned is."""
    await client.start(ship, Order(1), id="a")
    finish(dsn, "a")
    await shift_clock(dsn, 2 * DAY)
    await client.prune(older_than="1d", keep_ids="10d")
    with pytest.raises(errors.CheckViolation):
        rows(dsn, f"UPDATE zart_executions SET {edit}")


# ---------------------------------------------------------------- interrupted, and together


def backlog(dsn: str, finished: int) -> None:
    with psycopg.connect(dsn) as connection:
        load(connection, Backlog(finished=finished, ready=100), names=["f"])


async def whole(dsn: str) -> int:
    """How many finished executions there are, each with its one record; no record is without its execution."""
    ((executions, records, orphans),) = await query(
        dsn,
        "SELECT (SELECT count(*) FROM zart_executions WHERE status <> 'scheduled'), (SELECT count(*) FROM zart_steps),"
        " (SELECT count(*) FROM zart_steps s WHERE NOT EXISTS ("
        "SELECT FROM zart_executions e WHERE e.run_id = s.run_id))",
    )
    assert (records, orphans) == (executions, 0)
    return int(executions)


async def test_interrupted_anywhere_it_goes_on(client: Client, dsn: str, direct_dsn: str) -> None:
    """A batch fails in its middle, and nothing of it is gone; a walk is left, and the next one takes the rest."""
    backlog(direct_dsn, 1000)
    await shift_clock(dsn, 2 * DAY)
    await query(
        dsn,
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN RAISE EXCEPTION USING ERRCODE = ''23514''; END'",
    )
    await query(
        dsn,
        "CREATE TRIGGER fail BEFORE DELETE ON zart_steps FOR EACH ROW"
        " WHEN (OLD.run_id = lpad(to_hex(250), 32, '0')::uuid) EXECUTE FUNCTION fail()",
    )
    seen: list[Pruned] = []
    with pytest.raises(errors.CheckViolation):
        await client.prune(older_than="1d", batch=100, on_batch=seen.append)
    assert [pruned.deleted for pruned in seen] == [100, 200]
    assert await whole(dsn) == 800
    await query(dsn, "DROP TRIGGER fail ON zart_steps")

    class Enough(Exception):
        pass

    def stop(pruned: Pruned) -> None:
        raise Enough

    with pytest.raises(Enough):
        await client.prune(older_than="1d", batch=100, on_batch=stop)
    assert await whole(dsn) == 700
    assert (await client.prune(older_than="1d", batch=100)).deleted == 700
    assert await left(dsn) == {"zart_executions": 100, "zart_tasks": 100}


async def test_many_pruners_at_once_take_each_execution_once(
    client: Client, dsn: str, direct_dsn: str
) -> None:
    """Nobody waits for another, and together they leave nothing."""
    backlog(direct_dsn, 2000)
    await shift_clock(dsn, 2 * DAY)
    pruned = await asyncio.gather(*(client.prune(older_than="1d", batch=50) for _ in range(6)))
    assert sum(one.deleted for one in pruned) == 2000 - await whole(dsn)
    assert (await client.prune(older_than="1d")).deleted == await whole(dsn) or await whole(dsn) == 0
    assert await left(dsn) == {"zart_executions": 100, "zart_tasks": 100}


async def test_what_somebody_has_locked_is_passed(client: Client, dsn: str, direct_dsn: str) -> None:
    """A transaction that stays open holds up nothing but the execution that it has locked."""
    backlog(direct_dsn, 10)
    await shift_clock(dsn, 2 * DAY)
    with psycopg.connect(direct_dsn) as other:
        other.execute("SELECT FROM zart_executions WHERE id = %s FOR UPDATE", (execution_of(3),))
        async with asyncio.timeout(5):
            assert (await client.prune(older_than="1d")).deleted == 9
    assert (await client.prune(older_than="1d")).deleted == 1


async def test_a_long_history_fills_a_batch_alone(client: Client, dsn: str, direct_dsn: str) -> None:
    """A transaction ends with the execution that has brought its records to ten thousand."""
    backlog(direct_dsn, 4)
    await query(
        dsn,
        "INSERT INTO zart_steps (run_id, path, name, occurrence, kind, seq, state)"
        " SELECT lpad('2', 32, '0')::uuid, '', 'more', g, 'step', g + 1, 'completed' FROM generate_series(1, 20000) g",
    )
    await shift_clock(dsn, 2 * DAY)
    seen: list[Pruned] = []
    await client.prune(older_than="1d", on_batch=seen.append)
    assert [pruned.deleted for pruned in seen] == [2, 4]
    assert [pruned.records for pruned in seen] == [20002, 20004]


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ({"older_than": "soon"}, "older_than is 'soon'"),
        ({"older_than": "1d", "statuses": ["running"]}, "never pruned"),
        ({"older_than": "1d", "statuses": []}, "statuses is"),
        ({"older_than": "1d", "statuses": "completed"}, "statuses is"),
        ({"older_than": "2d", "keep_ids": "1d"}, "keep_ids is 24h, shorter than older_than \\(48h\\)"),
        ({"older_than": "1d", "batch": 0}, "batch is 0"),
        ({"older_than": "1d", "batch": 1001}, "batch is 1001"),
    ],
)
async def test_what_cannot_be_meant_is_refused(client: Client, wanted: dict[str, Any], told: str) -> None:
    """Before anything is asked of the database."""
    with pytest.raises(UsageError, match=told):
        await client.prune(**wanted)


# ---------------------------------------------------------------- as a worker's duty


async def test_a_worker_prunes_by_itself(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `retention`, soon after it starts; and down to the ids with `keep_ids`."""
    monkeypatch.setattr(duty, "_FIRST_LOOK", 0.01)
    async with Client(dsn) as client:
        for id in ("old", "older"):
            await client.start(ship, Order(1), id=id)
            finish(dsn, id)
        await client.start(ship, Order(1), id="young")
        finish(dsn, "young")
        ended(dsn, "old", 2 * DAY)
        ended(dsn, "older", 20 * DAY)
    async with working(dsn, child, config=fast(retention="1d", keep_ids="10d")):
        await until(lambda: query(dsn, "SELECT 1 FROM zart_executions HAVING count(*) = 2"))
        assert await query(dsn, "SELECT id, pruned_at IS NOT NULL FROM zart_executions ORDER BY id") == [
            ("old", True),
            ("young", False),
        ]


async def test_one_worker_prunes_for_all(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose turn it is says the database: within an hour nobody else prunes, and after it somebody does."""
    monkeypatch.setattr(duty, "_FIRST_LOOK", 0.01)
    monkeypatch.setattr(duty, "_LOOKS_EVERY", 0.01)
    walks: list[object] = []
    begin = pruning.prune

    def counting(*args: Any, **options: Any) -> Any:
        walks.append(args)
        return begin(*args, **options)

    monkeypatch.setattr(duty, "prune", counting)
    config = fast(retention="1d")
    async with working(dsn, child, config=config), working(dsn, child, config=config):
        await until(lambda: walks)
        ((due,),) = await query(
            dsn, "SELECT due_at - clock_timestamp() FROM zart_duties WHERE name = 'retention'"
        )
        assert dt.timedelta(minutes=59) < due <= dt.timedelta(hours=1)
        for _ in range(20):
            await query(dsn, "SELECT 1")
        assert len(walks) == 1
        await query(dsn, "UPDATE zart_duties SET due_at = clock_timestamp()")
        await until(lambda: len(walks) == 2)


async def test_trouble_while_pruning_leaves_the_worker_alone(
    dsn: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It says so, goes on with its work, and tries again."""
    monkeypatch.setattr(duty, "_FIRST_LOOK", 0.01)
    monkeypatch.setattr(duty, "_LOOKS_EVERY", 0.01)
    await query(dsn, "ALTER TABLE zart_duties RENAME TO hidden")
    async with working(dsn, child, config=fast(retention="1d")) as client:
        await until(lambda: "could not prune" in caplog.text)
        assert await client.start_and_wait(child, 3) == 3
        await query(dsn, "ALTER TABLE hidden RENAME TO zart_duties")
        await until(lambda: query(dsn, "SELECT 1 FROM zart_duties"))


def test_without_retention_nobody_looks() -> None:
    """A worker that was not told to prune has no such duty."""
    for config, count in ((fast(), 0), (fast(retention="1d"), 1)):
        registration = object.__new__(Registration)
        registration._config = config
        registration._schema = "public"
        duties = list(registration._retention_duty())
        for _, running in duties:
            running.close()
        assert len(duties) == count


# ---------------------------------------------------------------- much of it


@pytest.mark.slow
async def test_a_hundred_thousand(client: Client, dsn: str, direct_dsn: str) -> None:
    """They go in less than a minute, in batches of a fraction of a second; as many young ones are passed."""
    loop = asyncio.get_running_loop()
    backlog(direct_dsn, 200_000)
    await query(
        dsn,
        "UPDATE zart_executions SET created_at = created_at - interval '2 days',"
        " finished_at = finished_at - interval '2 days' WHERE task_id <= 100000",
    )
    times = [loop.time()]
    pruned = await client.prune(older_than="1d", on_batch=lambda _: times.append(loop.time()))
    assert pruned == Pruned(deleted=100_000, emptied=0, records=100_000)
    assert times[-1] - times[0] < 60
    longest = max(after - before for before, after in itertools.pairwise(times))
    assert longest < 2
    assert await left(dsn) == {"zart_executions": 100_100, "zart_tasks": 100, "zart_steps": 100_000}
