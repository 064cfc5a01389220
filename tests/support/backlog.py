"""Work by the million: rows as starts, claims and steps leave them, made in the server by a few statements.

    with psycopg.connect(dsn) as connection:
        load(connection, Backlog(ready=1_000_000), lanes=["f"])

An execution's number says all of it: `execution_of(7)`, `run_of(7)`, and its task's id is the number itself. Nothing is
notified, and no trigger runs. The tables' statistics are those that autovacuum would have written: they are analysed
at the end.
"""

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

import msgspec
import psycopg
from psycopg import sql

TABLES: Final = (
    "zart_executions",
    "zart_tasks",
    "zart_steps",
    "zart_step_attempts",
    "zart_events",
    "zart_history",
)
"""Those that a load fills."""

_EXECUTIONS: Final = """
    INSERT INTO zart_executions (id, name, queue, priority, status, run_id, task_id, payload, digest, result,
        created_at, started_at, finished_at)
    SELECT 'e' || lpad(g::text, 9, '0'), (%(names)s::text[])[1 + g %% cardinality(%(names)s::text[])], 'default', 0,
        CASE WHEN %(ended)s THEN 'completed' ELSE 'scheduled' END, lpad(to_hex(g), 32, '0')::uuid, g,
        json_build_object('number', g), decode(lpad(to_hex(g), 26, '0'), 'hex'),
        CASE WHEN %(ended)s THEN json_build_object('number', g) END,
        made.at, CASE WHEN %(ended)s THEN made.at END, CASE WHEN %(ended)s THEN made.at + interval '1 s' END
    FROM generate_series(%(first)s::bigint, %(last)s::bigint) g
        CROSS JOIN LATERAL (SELECT %(now)s::timestamptz - (%(end)s - g) * interval '1 ms' AS at) made
"""
_TASKS: Final = """
    INSERT INTO zart_tasks (id, execution_id, run_id, lane, priority, state, wake_at, due_at, started_at, epoch,
        waiting_for)
    SELECT g, 'e' || lpad(g::text, 9, '0'), lpad(to_hex(g), 32, '0')::uuid,
        (%(lanes)s::bigint[])[1 + g %% cardinality(%(lanes)s::bigint[])], 0,
        CASE WHEN %(sleeping)s THEN 'waiting' ELSE 'ready' END,
        CASE WHEN %(sleeping)s THEN made.at + interval '30 days' END, made.at,
        CASE WHEN %(sleeping)s THEN made.at END, %(sleeping)s::int, CASE WHEN %(sleeping)s THEN 'a sleep' END
    FROM generate_series(%(first)s::bigint, %(last)s::bigint) g
        CROSS JOIN LATERAL (SELECT %(now)s::timestamptz - (%(end)s - g) * interval '1 ms' AS at) made
"""
_STEPS: Final = """
    INSERT INTO zart_steps (run_id, path, name, occurrence, kind, seq, state, digest, arguments, result, started_at,
        finished_at, until, token)
    SELECT lpad(to_hex(g), 32, '0')::uuid, '', CASE WHEN %(sleeping)s THEN 'sleep' ELSE 'step' END, 1,
        CASE WHEN %(sleeping)s THEN 'timer' ELSE 'step' END, CASE WHEN NOT %(sleeping)s THEN 1 END,
        CASE WHEN %(sleeping)s THEN 'waiting' ELSE 'completed' END, decode(lpad(to_hex(g), 26, '0'), 'hex'),
        json_build_object('number', g), CASE WHEN NOT %(sleeping)s THEN json_build_object('number', g) END, %(now)s,
        CASE WHEN NOT %(sleeping)s THEN %(now)s::timestamptz END,
        CASE WHEN %(sleeping)s THEN %(now)s::timestamptz + interval '30 days' END, g
    FROM generate_series(%(first)s::bigint, %(last)s::bigint) g
"""


class Backlog(msgspec.Struct, kw_only=True, frozen=True):
    """How much of what."""

    finished: int = 0
    """Executions that have completed, each with one record in the journal."""
    sleeping: int = 0
    """Executions that wait for a time that is a month away; its timer is their only record."""
    ready: int = 0
    """Executions that were started and never claimed: the newest."""

    @property
    def executions(self) -> int:
        return self.finished + self.sleeping + self.ready


class Loaded(msgspec.Struct, kw_only=True, frozen=True):
    """The numbers of the executions that were made, as half-open ranges."""

    finished: range
    sleeping: range
    ready: range


def execution_of(number: int) -> str:
    return f"e{number:09}"


def run_of(number: int) -> UUID:
    return UUID(int=number)


def load(connection: psycopg.Connection[Any], backlog: Backlog, *, names: Sequence[str]) -> Loaded:
    """Adds a backlog of these functions, to each as much as to the others. The role must be a superuser's.

    Into tables that are empty it goes without being logged, where the server's `wal_level` is `minimal`.
    """
    connection.autocommit = False
    with connection.transaction():
        # No trigger: a notification for each of a million rows would be a million of them.
        connection.execute("SET LOCAL session_replication_role = replica")
        connection.execute("SET LOCAL maintenance_work_mem = '256MB'")
        begin = _value(connection, "SELECT coalesce(max(task_id), 0) + 1 FROM zart_executions")
        if begin == 1:
            connection.execute(sql.SQL("TRUNCATE {}").format(sql.SQL(", ").join(map(sql.Identifier, TABLES))))
        lanes = [_value(connection, "SELECT zart_lane('default', %s, NULL)", name) for name in names]
        end = begin + backlog.executions
        common = {"names": list(names), "lanes": lanes, "end": end, "now": _value(connection, "SELECT now()")}
        ranges = {}
        for state in ("finished", "sleeping", "ready"):
            count = getattr(backlog, state)
            ranges[state] = range(begin, begin + count)
            values = {**common, "first": begin, "last": begin + count - 1, "ended": state == "finished"}
            values["sleeping"] = state == "sleeping"
            begin += count
            if count:
                connection.execute(_EXECUTIONS, values)
                if state != "finished":
                    connection.execute(_TASKS, values)
                if state != "ready":
                    connection.execute(_STEPS, values)
        connection.execute("SELECT setval('zart_task_ids', %s)", (end + 1000,))
    analyse(connection)
    return Loaded(**ranges)


def analyse(connection: psycopg.Connection[Any]) -> None:
    """What autovacuum does within a minute: statistics, and the visibility map."""
    connection.autocommit = True
    connection.execute(sql.SQL("VACUUM ANALYZE {}").format(sql.SQL(", ").join(map(sql.Identifier, TABLES))))


def _value(connection: psycopg.Connection[Any], query: str, *arguments: Any) -> Any:
    row = connection.execute(query, arguments).fetchone()
    assert row is not None
    return row[0]
