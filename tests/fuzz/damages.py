"""What a hand can do to a row: each damage is one statement about the execution `%(id)s`, or its records.

The victims are parked at the event "go" when it happens: `first` is recorded as completed, `fragile` as failed, a time
limit and the wait are under way, and an event is buffered.
"""

from typing import NamedTuple

STAYS = (
    # It is not due any more, or not before the year 9000.
    "tasks: not_before",
    "tasks: due_at",
    "tasks: wake_at",
    # No worker asks for such work; `zart list` says so.
    "tasks: lane",
    "tasks: recoveries = -",
    # Somebody has said that it runs: it does until `zart cancel --force`.
    "tasks: state = 'running'",
    "tasks: held by nobody",
    # Half of the execution is gone, and nothing is left to end.
    "tasks: execution_id",
    "executions: task_id",
    "executions: status",
    # The event has never come.
    "events: name",
    "events: consumed_at",
    "events: gone",
    "wakeups: task_id",
    "wakeups: gone",
)
"""Damages after which an execution may stand where it is."""


class Damage(NamedTuple):
    name: str
    statement: str


_NUMBERS = ("-2147483648", "-1", "0", "2147483646", "2147483647")
_TIMES = (
    "NULL",
    "'infinity'",
    "'-infinity'",
    "'4713-01-01 BC'",
    "'294276-12-31'",
    "'0001-01-01'",
    "'9999-12-31 23:59:59'",
)
_SHAPES = (
    "NULL",
    "'null'",
    "'[]'",
    "'{}'",
    "'\"text\"'",
    "'1e999'",
    "'-0.0'",
    "'1' || repeat('0', 5000)",
    "repeat('[', 3000) || repeat(']', 3000)",
    '\'{"number": "x"}\'',
    "'\"\\u0000\"'",
    "'\"\\ud800\"'",
    '\'{"a": 1, "a": 2}\'',
    "'{\"type\": 5}'",
    '\'{"type": "ValueError", "args": [{"$kind": "tuple"}]}\'',
    '\'{"type": "zart.errors.StepTimeout", "state": {"limit": 3}}\'',
    '\'{"type": "zart.errors.RetryAfter"}\'',
    '\'{"type": "UnicodeDecodeError", "args": [1]}\'',
    '\'{"type": "ExceptionGroup", "members": [{"type": "SystemExit"}]}\'',
    '\'{"type": "os.system", "args": ["touch /tmp/canary"]}\'',
)
_TEXTS = (
    "''",
    "'other'",
    "'%%s'",
    "'{}'",
    "repeat('x', 300000)",
    "chr(1)",
    "'a/b#2~c'",
    "'; DROP TABLE canary; --'",
)
_REQUESTS = (
    '\'[["", "fragile", 1, "step"]]\'',
    '\'[["", "first", 1, "step"], ["", "nobody", 7, "wait"]]\'',
    '\'[["on_failure/", "first", -1, "cancel"]]\'',
    '\'[["", "fragile", 1, "frobnicated"]]\'',
    "'[[]]'",
)
"""What a person may have wanted done again."""
_STATES = ("'running'", "'waiting'", "'completed'", "'failed'", "'cancelled'", "'frobnicated'")
_TASK = "execution_id = %(id)s"
_EXECUTION = "id = %(id)s"
_OF_RUN = "run_id = (SELECT run_id FROM zart_executions WHERE id = %(id)s)"
_ADD = "INSERT INTO zart_steps (run_id, path, name, occurrence, kind, seq, state, result)"
_RUN = "FROM zart_executions WHERE id = %(id)s"
_RECORDS = ("first", "fragile", "go", "timeout")


def _set(table: str, column: str, values: tuple[str, ...], where: str, cast: str = "") -> list[Damage]:
    label = where.rpartition("name = ")[2].strip("'") if "name = " in where else ""
    return [
        Damage(
            f"{table}{f' {label}' if label else ''}: {column} = {value[:60]}",
            f"UPDATE zart_{table} SET {column} = ({value}){cast} WHERE {where}",
        )
        for value in values
    ]


def _tasks() -> list[Damage]:
    damages: list[Damage] = []
    for column in ("epoch", "signal", "attempt", "floor", "recoveries", "priority"):
        damages += _set("tasks", column, _NUMBERS, _TASK)
    for column in ("wake_at", "not_before", "due_at", "started_at", "cancel_at"):
        damages += _set("tasks", column, _TIMES, _TASK, "::timestamptz")
    damages += _set(
        "tasks", "state", ("'ready'", "'running'", "'waiting'", "'blocked'", "'frobnicated'", "NULL"), _TASK
    )
    damages += _set(
        "tasks",
        "time_limit",
        ("'-1 day'", "'178000000 years'", "'-178000000 years'", "'0'"),
        _TASK,
        "::interval",
    )
    damages += _set(
        "tasks",
        "lane",
        ("-1", "2147483647", "NULL", "(SELECT id FROM zart_lanes WHERE name = 'innocent')"),
        _TASK,
    )
    damages += _set("tasks", "repair", (*_SHAPES, *_REQUESTS), _TASK, "::jsonb")
    damages += _set("tasks", "run_id", ("'00000000-0000-0000-0000-000000000000'",), _TASK, "::uuid")
    damages += _set("tasks", "execution_id", ("'nobody'",), _TASK)
    for column in ("owner", "batch", "token"):
        damages += _set("tasks", column, ("-1", "0", "9223372036854775807"), _TASK)
    for column in ("waiting_for", "cancel_reason", "cancel_author"):
        damages += _set("tasks", column, _TEXTS, _TASK)
    damages.append(
        Damage(
            "tasks: held by nobody", f"UPDATE zart_tasks SET state = 'running', owner = NULL WHERE {_TASK}"
        )
    )
    damages.append(
        Damage(
            "tasks: held by the dead",
            f"UPDATE zart_tasks SET state = 'running', owner = 987654321, recoveries = 2147483647 WHERE {_TASK}",
        )
    )
    damages.append(
        Damage(
            "tasks: cancelled for ever",
            f"UPDATE zart_tasks SET cancel_at = 'infinity', state = 'ready' WHERE {_TASK}",
        )
    )
    return damages


def _executions() -> list[Damage]:
    damages: list[Damage] = []
    damages += _set("executions", "payload", _SHAPES, _EXECUTION, "::json")
    damages += _set("executions", "result", _SHAPES, _EXECUTION, "::json")
    damages += _set("executions", "failure", _SHAPES, _EXECUTION, "::json")
    damages += _set("executions", "name", _TEXTS, _EXECUTION)
    damages += _set("executions", "queue", _TEXTS, _EXECUTION)
    damages += _set("executions", "version", _TEXTS, _EXECUTION)
    damages += _set(
        "executions",
        "status",
        ("'completed'", "'failed'", "'cancelled'", "'frobnicated'", "NULL"),
        _EXECUTION,
    )
    damages += _set("executions", "run_id", ("'00000000-0000-0000-0000-000000000000'",), _EXECUTION, "::uuid")
    damages += _set("executions", "task_id", ("-1", "0"), _EXECUTION)
    damages += _set("executions", "priority", _NUMBERS, _EXECUTION)
    damages += _set("executions", "digest", ("NULL", "''", "'\\x63'", "'\\x01'"), _EXECUTION, "::bytea")
    damages += _set("executions", "attempt", _NUMBERS, _EXECUTION)
    damages += _set("executions", "token", ("-1", "9223372036854775807"), _EXECUTION)
    for column in ("created_at", "started_at", "finished_at"):
        damages += _set("executions", column, _TIMES, _EXECUTION, "::timestamptz")
    return damages


def _steps() -> list[Damage]:
    damages: list[Damage] = []
    for name in _RECORDS:
        where = f"{_OF_RUN} AND name = '{name}'"
        for column in ("seq", "attempts", "occurrence"):
            damages += _set("steps", column, ("NULL", *_NUMBERS, "1", "2"), where)
        for column in ("started_at", "finished_at", "until"):
            damages += _set("steps", column, _TIMES, where, "::timestamptz")
        damages += _set("steps", "state", _STATES, where)
        damages += _set(
            "steps", "kind", ("'step'", "'capture'", "'wait'", "'timer'", "'cancel'", "'frobnicated'"), where
        )
        damages += _set("steps", "name", _TEXTS, where)
        damages += _set("steps", "path", ("'1/'", "'on_failure/'", "'%%s'", "'x/y/z/'"), where)
        damages += _set("steps", "result", _SHAPES, where, "::json")
        damages += _set("steps", "failure", _SHAPES, where, "::json")
        damages += _set(
            "steps",
            "digest",
            ("NULL", "''", "'\\x63ffffffffffffffffffffffff'", "'\\x01'", "repeat('x', 1000)::bytea"),
            where,
            "::bytea",
        )
        damages += _set("steps", "arguments", _TEXTS, where)
        damages += _set("steps", "token", ("-1", "9223372036854775807"), where)
        damages.append(Damage(f"steps {name}: gone", f"DELETE FROM zart_steps WHERE {where}"))
        damages.append(
            Damage(
                f"steps {name}: copied as another",
                "INSERT INTO zart_steps SELECT run_id, path, 'copy of ' || name, occurrence, kind, 99, 'completed',"
                " digest, arguments, result, failure, attempts, started_at, finished_at, until, token"
                f" FROM zart_steps WHERE {where}",
            )
        )
    damages.append(Damage("steps: all gone", f"DELETE FROM zart_steps WHERE {_OF_RUN}"))
    for shape in _SHAPES:
        damages.append(
            Damage(
                f"steps: a cancel of {shape[:50]}",
                f"{_ADD} SELECT run_id, '', 'cancel', 1, 'cancel', 50, 'completed', ({shape})::json {_RUN}",
            )
        )
        damages.append(
            Damage(
                f"steps: a second body of {shape[:50]}",
                f"{_ADD} SELECT run_id, 'on_failure/', 'failure', 1, 'capture', 50, 'completed', ({shape})::json"
                f" {_RUN}",
            )
        )
    return damages


def _others() -> list[Damage]:
    damages: list[Damage] = []
    event = "execution_id = %(id)s"
    damages += _set("events", "payload", _SHAPES, event, "::json")
    damages += _set("events", "name", _TEXTS, event)
    damages += _set("events", "dedup", ("NULL", *_TEXTS), event)
    for column in ("created_at", "consumed_at"):
        damages += _set("events", column, _TIMES, event, "::timestamptz")
    damages.append(Damage("events: gone", f"DELETE FROM zart_events WHERE {event}"))
    damages += _set("step_attempts", "failure", _SHAPES, _OF_RUN, "::json")
    for column in ("started_at", "finished_at", "next_at"):
        damages += _set("step_attempts", column, _TIMES, _OF_RUN, "::timestamptz")
    wakeup = "task_id = (SELECT task_id FROM zart_executions WHERE id = %(id)s)"
    damages += _set("wakeups", "kind", ("'cancel'", "'frobnicated'"), wakeup)
    damages += _set("wakeups", "task_id", ("-1", "9223372036854775807"), wakeup)
    damages += _set("wakeups", "reason", _TEXTS, wakeup)
    damages += _set("wakeups", "execution_id", ("NULL", *_TEXTS), wakeup)
    damages += _set("wakeups", "created_at", _TIMES, wakeup, "::timestamptz")
    damages.append(Damage("wakeups: gone", f"DELETE FROM zart_wakeups WHERE {wakeup}"))
    damages.append(
        Damage(
            "history: no time",
            "INSERT INTO zart_history (execution_id, at, what, note)"
            " VALUES (%(id)s, 'infinity', repeat('x', 100000), chr(27))",
        )
    )
    return damages


DAMAGES = [*_tasks(), *_executions(), *_steps(), *_others()]
