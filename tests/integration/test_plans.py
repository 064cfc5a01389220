"""Every named statement can be planned, and those that are asked all the time use their index at a million rows.

An index on the execution's way is worth what it is used for: each of them is dropped here once, and missed.
"""

import datetime as dt
from collections.abc import Iterator
from typing import Any, Final

import psycopg
import pytest

from tests.support.backlog import Backlog, Loaded, execution_of, load, run_of
from tests.support.databases import Databases
from tests.support.plans import MODES, Mode, Plan, Planner, names
from zart import Client

MILLION: Final = Backlog(finished=200_000, sleeping=200_000, ready=600_000)
LARGE: Final = 10_000
"""Rows of a table that is never to be read as a whole."""
DEAR: Final = 30_000
"""PostgreSQL compiles a plan each time it is run when it is thought to cost more than 100,000 (`jit_above_cost`). What
grows with the crowd costs that with three times as many."""
PAGES: Final = 4_000
"""More than any of them touches for its rows; tasks, executions and steps have three times as many."""
HELD: Final = 100

# What each uses of the large tables' indexes, and maybe more. It may read the small tables as it likes.
HOT: Final[dict[tuple[str, str], set[str]]] = {
    # taking work, and hearing of it
    ("claim", "claim"): {
        *("zart_tasks_ready", "zart_tasks_cancelling", "zart_tasks_pkey", "zart_executions_pkey"),
        "zart_steps_pkey",
    },
    ("claim", "load_payloads"): {"zart_tasks_pkey", "zart_executions_pkey", "zart_execution_runs_pkey"},
    ("claim", "load_steps"): {"zart_steps_pkey"},
    ("claim", "load_scheduled"): {"zart_tasks_pkey", "zart_steps_pkey"},
    ("claim", "load_arrived"): {"zart_tasks_pkey", "zart_steps_arrived"},
    ("claim", "load_page"): {"zart_steps_pkey"},
    ("claim", "load_events"): {"zart_events_buffered"},
    ("claim", "read_inbox"): {"zart_tasks_pkey"},
    ("claim", "look"): {"zart_wakeups_pkey", "zart_tasks_sleeping"},
    ("claim", "peek"): {
        *("zart_tasks_ready", "zart_tasks_cancelling", "zart_wakeups_pkey", "zart_tasks_sleeping")
    },
    ("claim", "give_back"): {"zart_tasks_held"},
    # the journal
    ("journal", "record"): {"zart_steps_pkey"},
    ("journal", "record_one"): {"zart_steps_pkey"},
    ("journal", "record_and_end"): {
        *("zart_tasks_pkey", "zart_executions_pkey", "zart_steps_pkey", "zart_events_pkey")
    },
    ("journal", "finish"): {"zart_tasks_pkey", "zart_executions_pkey", "zart_steps_pkey"},
    ("journal", "record_and_finish"): {"zart_tasks_pkey", "zart_executions_pkey", "zart_steps_pkey"},
    ("journal", "start_child"): {"zart_tasks_pkey", "zart_executions_pkey"},
    ("journal", "find_child"): {"zart_executions_pkey", "zart_steps_pkey"},
    ("journal", "begin_anew"): {
        *("zart_tasks_pkey", "zart_executions_pkey", "zart_steps_pkey", "zart_execution_runs_execution"),
        *("zart_step_attempts_run", "zart_events_consumed", "zart_history_execution"),
    },
    ("journal", "read_back"): {"zart_tasks_pkey", "zart_executions_pkey", "zart_steps_pkey"},
    ("transactions", "record"): {"zart_steps_pkey"},
    ("transactions", "record_beside"): {"zart_recorded_steps_pkey"},
    ("transactions", "read_own"): {"zart_recorded_steps_pkey"},
    # news
    ("wakeups", "read_cancels"): {"zart_wakeups_cancels", "zart_tasks_pkey"},
    ("wakeups", "apply_wakeups"): {
        *("zart_wakeups_pkey", "zart_tasks_pkey", "zart_executions_pkey", "zart_steps_pkey")
    },
    ("wakeups", "promote"): {"zart_tasks_sleeping", "zart_tasks_pkey"},
    # rules that hold executions back
    ("pauses", "pause"): {"zart_tasks_pkey", "zart_executions_pkey"},
    ("pauses", "unpause"): {"zart_executions_pkey"},
    ("pauses", "end_expired"): {"zart_executions_pkey"},
    ("pauses", "free"): {"zart_tasks_paused", "zart_tasks_pkey"},
    ("pauses", "park"): {"zart_tasks_pkey", "zart_steps_pkey"},
    # leases
    ("workers", "orphaned"): {"zart_tasks_held"},
    ("workers", "take_over"): {"zart_tasks_held", "zart_tasks_pkey"},
    # clients
    ("client", "start"): {"zart_executions_pkey"},
    ("client", "start_many"): {"zart_executions_pkey"},
    ("client", "compare"): {"zart_executions_pkey"},
    ("client", "await_ends"): {"zart_executions_pkey", "zart_tasks_pkey"},
    ("client", "ended"): {"zart_executions_pkey", "zart_tasks_pkey"},
    ("client", "offer_event"): {"zart_executions_pkey", "zart_tasks_pkey", "zart_events_dedup"},
    ("client", "offer_event_in_transaction"): {"zart_executions_pkey", "zart_events_dedup"},
    ("client", "status"): {"zart_executions_pkey", "zart_tasks_pkey"},
    ("client", "page"): {"zart_executions_created", "zart_tasks_pkey"},
    ("client", "records"): {"zart_steps_pkey", "zart_executions_pkey"},
    ("client", "attempts"): {"zart_step_attempts_run"},
    ("client", "notes"): {"zart_history_execution"},
    ("client", "runs"): {"zart_execution_runs_execution"},
    ("client", "each_run"): {"zart_execution_runs_execution", "zart_executions_pkey", "zart_tasks_pkey"},
    ("client", "cancel"): {"zart_tasks_pkey", "zart_executions_pkey", "zart_steps_pkey"},
    ("client", "cancel_below"): {
        *("zart_executions_pkey", "zart_steps_pkey", "zart_tasks_pkey", "zart_wakeups_cancels")
    },
    ("client", "workers"): {"zart_tasks_held"},
    # pruning
    ("retention", "prune"): {
        *("zart_executions_created", "zart_executions_pkey", "zart_steps_pkey", "zart_tasks_pkey"),
        *("zart_execution_runs_execution", "zart_step_attempts_run", "zart_recorded_steps_pkey"),
        *("zart_events_consumed", "zart_events_buffered", "zart_history_execution"),
    },
    ("retention", "count_prunable"): {
        *("zart_executions_created", "zart_steps_pkey", "zart_tasks_pkey", "zart_execution_runs_execution")
    },
    # what people look at again and again
    ("overview", "ready"): {"zart_tasks_ready", "zart_tasks_pkey", "zart_executions_pkey"},
    ("overview", "retrying"): {
        *("zart_tasks_held", "zart_tasks_sleeping", "zart_step_attempts_run", "zart_steps_pkey")
    },
    ("doctor", "orphans"): {"zart_tasks_held"},
    ("doctor", "wakeups"): {"zart_wakeups_pkey"},
}

# What may read a large table as a whole, and why that is so.
WHOLE: Final[dict[tuple[str, str], str]] = {
    ("client", "live_page"): "a page of one status: of a million that live it sorts those that have it",
    ("client", "count_by_status"): "counts everything, for whoever asks for statistics",
    (
        "client",
        "unserved",
    ): "counts all that nobody serves; lanes that are served cost it one step in the index each",
    ("overview", "live"): "reads 400 pages of it, whatever there is",
    ("overview", "blocked"): "reads all live work, for whoever looks: an index would be kept by every claim",
    ("doctor", "large_executions"): "reads 400 pages of it, whatever there is",
    ("doctor", "large_steps"): "reads 400 pages of it, whatever there is",
}
# It is never prepared: see below.
ONLY_CUSTOM: Final = {("client", "page")}

every_statement = pytest.mark.parametrize(
    ("file", "name"), names(), ids=[f"{file}-{name}" for file, name in names()]
)


@pytest.fixture(scope="module")
def new(databases: Databases, template: str) -> Iterator[Planner]:
    """Plans in a database that was migrated a moment ago."""
    with (
        databases.database(template) as name,
        psycopg.connect(databases.direct(name), autocommit=True) as connection,
    ):
        yield Planner(connection)


class Crowd:
    """A database with a million executions, and parameters that fit it."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection
        self.loaded = load(connection, MILLION, names=["f", "g"])
        with connection.transaction():
            fill(connection, self.loaded)
        connection.execute("VACUUM ANALYZE")
        self.planner = Planner(connection)
        self.values = parameters(self.loaded.ready, self._value("SELECT zart_lane('default', 'f', NULL)"))
        rows = connection.execute(
            "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
            " AND reltuples > %s",
            (LARGE,),
        )
        self.large = {relation for (relation,) in rows}

    def _value(self, query: str) -> Any:
        row = self.connection.execute(query).fetchone()  # type: ignore[call-overload]
        assert row is not None
        return row[0]

    def plan(self, file: str, name: str, mode: Mode, *, run: bool = False) -> Plan:
        return self.planner.plan(file, name, self.values | SPECIAL.get((file, name), {}), mode, run=run)

    def complaints(self, file: str, name: str, mode: Mode) -> list[str]:
        """What is wrong with the plan of a statement."""
        try:
            plan = self.plan(file, name, mode)
        except psycopg.Error as error:
            return [f"{file}/{name} cannot be planned: {error}"]
        scans = [scan for scan in plan.scans if scan.relation in self.large]
        told = [str(scan) for scan in scans if scan.index is None]
        missed = HOT.get((file, name), set()) - {scan.index for scan in scans}
        told += [f"does not use {index}" for index in sorted(missed)]
        if plan.root["Total Cost"] > DEAR:
            told.append(f"is thought to cost {plan.root['Total Cost']:.0f}, and would be compiled each time")
        return [f"{file}/{name}, {mode} plan: {what}" for what in told]


@pytest.fixture(scope="module")
def crowd(databases: Databases, template: str) -> Iterator[Crowd]:
    with (
        databases.database(template) as name,
        psycopg.connect(databases.direct(name), autocommit=True) as connection,
    ):
        yield Crowd(connection)


def fill(connection: psycopg.Connection[Any], loaded: Loaded) -> None:
    """Rows of the other tables, more than are ever to be read one by one; and some work that worker 1 holds."""
    sleeping, ready = loaded.sleeping, loaded.ready
    connection.execute("SET LOCAL session_replication_role = replica")
    for statement in (
        (
            "INSERT INTO zart_workers (worker_id, writer, host, pid, lanes, expires_at)"
            " SELECT worker, writer, 'host', 1, ARRAY[zart_lane('default', 'f', NULL)],"
            " clock_timestamp() + interval '1 day'"
            " FROM generate_series(1, 5) worker, generate_series(0, 3) writer"
        ),
        (
            f"UPDATE zart_tasks SET state = 'running', owner = 1, batch = 7, epoch = 1, started_at = now()"
            f" WHERE id >= {ready.start} AND id < {ready.start + HELD}"
        ),
        f"UPDATE zart_tasks SET recoveries = 1 + id % 2 WHERE id >= {ready.stop - 50}",
        f"UPDATE zart_tasks SET cancel_at = now() WHERE id BETWEEN {ready.stop - 2000} AND {ready.stop - 1000}",
        (
            f"UPDATE zart_tasks SET state = 'paused', paused_by = 'rule ' || id % 20"
            f" WHERE id BETWEEN {sleeping.stop - 20_000} AND {sleeping.stop - 1}"
        ),
        (
            "INSERT INTO zart_pause_rules (id, execution_id, author) SELECT 'rule ' || n, 'e' || n, 'ann'"
            " FROM generate_series(0, 18) n"
        ),
        (
            f"INSERT INTO zart_events (execution_id, name, payload, dedup) SELECT execution_id, 'news', '1', 'd' || id"
            f" FROM zart_tasks WHERE id BETWEEN {sleeping.start} AND {sleeping.start + 50_000}"
        ),
        (
            "INSERT INTO zart_events (execution_id, name, payload, consumed_at) SELECT id, 'news', '1', now()"
            " FROM zart_executions WHERE task_id <= 50000"
        ),
        (
            f"INSERT INTO zart_wakeups (task_id, kind) SELECT id, 'event' FROM zart_tasks"
            f" WHERE id BETWEEN {sleeping.start} AND {sleeping.start + 20_000}"
        ),
        (
            "INSERT INTO zart_step_attempts (run_id, path, name, occurrence, kind, attempt, body_attempt)"
            " SELECT run_id, path, name, occurrence, kind, 1, 1 FROM zart_steps LIMIT 20000"
        ),
        (
            "INSERT INTO zart_history (execution_id, run_id, what) SELECT id, run_id, 'takeover' FROM zart_executions"
            " LIMIT 20000"
        ),
        (
            "INSERT INTO zart_execution_runs (run_id, execution_id, started_at) SELECT run_id, id, now()"
            " FROM zart_executions LIMIT 20000"
        ),
        (
            "INSERT INTO zart_recorded_steps (run_id, path, name, occurrence, kind, epoch, attempt)"
            " SELECT run_id, path, name, occurrence, kind, 1, 1 FROM zart_steps LIMIT 20000"
        ),
        (
            f"UPDATE zart_executions SET parent_id = '{execution_of(1)}', parent_run = '{run_of(1)}', parent_path = '',"
            f" parent_name = 'step', parent_occurrence = 1 WHERE task_id >= {ready.stop - 1000}"
        ),
    ):
        connection.execute(statement)  # type: ignore[call-overload]


def parameters(ready: range, lane: int) -> dict[str, Any]:
    """By name, for all statements: worker 1 and twenty executions that it holds."""
    numbers = list(range(ready.start, ready.start + 20))
    first, twenty = numbers[0], len(numbers)
    ids, runs, now = [execution_of(n) for n in numbers], [run_of(n) for n in numbers], dt.datetime.now(dt.UTC)
    tokens = [(1 << 40) + n for n in numbers]
    none = [None] * twenty
    return {
        "worker": 1,
        "writer": 1,
        "lanes": [lane],
        "passing": [lane],
        "rule": "rule 1",
        "rules": ["rule 1"] * twenty,
        "limit": twenty,
        "suspects": 1,
        "suspect": True,
        "short": 2000,
        "batch": 500,
        "batches": [7],
        "owners": [1],
        "rows": 100,
        "id": ids[0],
        "ids": ids,
        "execution": ids[0],
        "executions": ids,
        "task": first,
        "tasks": numbers,
        "parent_task": first,
        "run_id": runs[0],
        "run": runs[0],
        "runs": runs,
        "epochs": [1] * twenty,
        "signals": [0] * twenty,
        "dones": [0] * twenty,
        "token": tokens[0],
        "tokens": tokens,
        "path": "",
        "paths": [""] * twenty,
        "name": "step",
        "names": ["step"] * twenty,
        "kind": "step",
        "call": "step",
        "occurrence": 1,
        "occurrences": [1] * twenty,
        "kinds": ["step"] * twenty,
        "seq": 1,
        "seqs": [1] * twenty,
        "state": "completed",
        "states": ["completed"] * twenty,
        "attempts": [1] * twenty,
        "arguments": ["{}"] * twenty,
        "results": ["1"] * twenty,
        "failures": none,
        "digests": none,
        "started": [now] * twenty,
        "finished": [now] * twenty,
        "untils": none,
        "progresses": none,
        "event": "news",
        "dedup": "news",
        "awaited": [False] * twenty,
        "task_ids": numbers,
        "task_executions": ids,
        "task_runs": runs,
        "task_tokens": tokens,
        "endings": ["completed"] * twenty,
        "task_results": ["1"] * twenty,
        "task_failures": none,
        "epoch": 1,
        "attempt": 1,
        "clears": [False] * twenty,
        "priority": 0,
        "queue": "default",
        "version": None,
    }


NEW: Final = [f"new{number}" for number in range(20)]
LATER: Final = dt.datetime.now(dt.UTC) + dt.timedelta(days=1)
PRUNED: Final = {
    "statuses": ["completed"],
    "before": LATER,
    "ids_before": LATER,
    "after_at": LATER - dt.timedelta(days=2),
    "after_id": "",
}
SPECIAL: Final[dict[tuple[str, str], dict[str, Any]]] = {
    ("pauses", "pause"): {"step": None, "rule": "new", "author": "ann"},
    ("pauses", "free"): {"batch": 20},
    ("claim", "claim"): {"batch": 8},
    ("claim", "load_page"): {"kind": "a"},
    ("client", "start"): {"id": NEW[0]},
    ("client", "start_many"): {"ids": NEW, "run_ids": [run_of(n) for n in range(20)], "payloads": ["1"] * 20},
    ("client", "page"): {"name": None, "limit": 200},
    ("client", "live_page"): {"name": None, "status": "running", "limit": 200},
    ("retention", "prune"): {**PRUNED, "batch": 20, "records": 10_000},
    ("retention", "count_prunable"): PRUNED,
    ("overview", "blocked"): {"limit": 5},
    ("overview", "retrying"): {"limit": 5},
    ("wakeups", "apply_wakeups"): {"batch": 20},
    ("wakeups", "promote"): {"batch": 20},
    ("journal", "start_child"): {"id": NEW[0], "child_run": run_of(7), "lane": 1, "detached": False},
}


@every_statement
def test_every_statement_can_be_planned(new: Planner, file: str, name: str) -> None:
    """Against the tables as the migrations leave them."""
    assert new.plan(file, name, {}, "generic").root


NOT_KEPT: Final = {
    # planned anew as the count of them grows
    *(
        ("journal", name)
        for name in ("record_and_end", "finish", "record_and_finish", "begin_anew", "read_back")
    ),
    *(("claim", "claim"), ("wakeups", "apply_wakeups"), ("pauses", "park")),
    # seldom asked, and on connections that prepare nothing before its sixth time
    *(("workers", "orphaned"), ("workers", "take_over"), ("client", "page"), ("pauses", "pause")),
    # for people, and for a round once an hour
    *(("retention", name) for name in ("prune", "count_prunable")),
    *(("overview", name) for name in ("ready", "retrying")),
    *(("client", "workers"), ("doctor", "orphans"), ("doctor", "wakeups")),
    # What marks the awaited is kept, and reads all executions of a new database, for a minute at most. It is sent for a
    # result that somebody asks for later than at the start.
    ("client", "await_ends"),
}
SMALL: Final = {"zart_workers", "zart_lanes", "zart_pause_rules", "zart_pause_changes"}
"""As many rows as there are workers, functions, or rules of people."""
kept = [statement for statement in HOT if statement not in NOT_KEPT]


@pytest.mark.parametrize(("file", "name"), kept, ids=[f"{file}-{name}" for file, name in kept])
def test_a_plan_that_is_made_in_a_new_database_may_be_kept(new: Planner, file: str, name: str) -> None:
    """A worker's statements are planned before there is anything in the tables, and these plans stay for a while."""
    whole = [scan for scan in new.plan(file, name, {}, "generic").scans if scan.index is None]
    assert {scan.relation for scan in whole} <= SMALL


@pytest.mark.slow
def test_statements_use_their_indexes_at_a_million_rows(crowd: Crowd) -> None:
    """No large table is read as a whole, by the plan for any values or by one for these."""
    told = []
    for file, name in names():
        if (file, name) not in WHOLE:
            for mode in MODES:
                if mode == "custom" or (file, name) not in ONLY_CUSTOM:
                    told += crowd.complaints(file, name, mode)
    assert told == []


@pytest.mark.slow
def test_statements_touch_few_pages_at_a_million_rows(crowd: Crowd) -> None:
    """What an index is asked for may still be most of it: so they are run, and undone."""
    told = {}
    for file, name in HOT:
        pages = crowd.plan(file, name, "custom", run=True).pages
        if pages > PAGES:
            told[f"{file}/{name}"] = pages
    assert told == {}


@pytest.mark.stores_plain(reason="writes a backlog by itself")
async def test_a_page_is_planned_for_its_filters(direct_dsn: str) -> None:
    """However often one was asked for: prepared, the plan for any filters would be taken as long as there are not too
    many executions, and that one sorts all of them."""
    with psycopg.connect(direct_dsn) as connection:
        load(connection, Backlog(ready=5_000), names=["f"])
    async with Client(direct_dsn) as client:
        for _ in range(10):
            newest = [execution.id async for execution in client.executions(limit=100)]
            assert newest == [execution_of(5_000 - place) for place in range(100)]
            waiting = [execution.id async for execution in client.executions(status="waiting", limit=100)]
            assert waiting == []
        pool = client._database._pool
        assert pool is not None
        for _ in range(10):
            async with pool.connection() as used:
                cursor = await used.execute(
                    "SELECT statement FROM pg_prepared_statements WHERE statement LIKE '%zart_v_executions%'",
                    prepare=False,
                )
                assert await cursor.fetchall() == []


@pytest.mark.slow
def test_each_index_is_missed(crowd: Crowd) -> None:
    """Without it one of these statements is told of: the checks notice, and the index earns its place."""
    indexes = {index for used in HOT.values() for index in used}
    tables = crowd.connection.execute(
        "SELECT indexname, tablename FROM pg_indexes WHERE schemaname = 'public' AND tablename = ANY (%s)",
        (list(crowd.large),),
    ).fetchall()
    assert {name for name, _ in tables} - indexes <= UNASKED
    for index, table in tables:
        if index in UNASKED:
            continue
        drop = f"DROP INDEX {index}"
        if index.endswith("_pkey"):
            drop = f"ALTER TABLE {table} DROP CONSTRAINT {index}"
        users = [statement for statement, used in HOT.items() if index in used]
        with crowd.connection.transaction(force_rollback=True):
            crowd.connection.execute(drop)  # type: ignore[call-overload]
            told = [crowd.complaints(file, name, "custom") for file, name in users]
        assert all(told), f"{index} is not missed"


UNASKED: Final = {"zart_step_attempts_pkey", "zart_history_pkey"}
"""They say what a row is, for people and for replication; nobody looks a row up by them."""
