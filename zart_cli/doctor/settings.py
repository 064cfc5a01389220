"""The server and its settings."""

from collections.abc import Sequence
from typing import Final

from zart_cli.doctor.check import Check, Patient, Row
from zart_cli.doctor.finding import Finding, error, ok, warning

_OLDEST: Final = 140_000
_MANY_CONNECTIONS: Final = 0.8
_TIMEOUTS: Final = (
    "statement_timeout",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "transaction_timeout",
)


def judge_server(rows: Sequence[Row], patient: Patient) -> list[Finding]:
    """Its version, and whether it takes writes."""
    ((version, number, standby, database, role),) = rows
    if number < _OLDEST:
        return [
            error("server", f"PostgreSQL {version} at {patient.where}", "Zart needs PostgreSQL 14 or newer")
        ]
    if standby:
        return [
            error(
                "server",
                f"{patient.where} is a standby: it takes no writes",
                "give the address of the primary; several hosts and target_session_attrs=read-write in the DSN find it",
            )
        ]
    return [ok("server", f"PostgreSQL {version}, database {database}, as {role}")]


def _by_name(rows: Sequence[Row]) -> dict[str, str]:
    return {str(name): str(value) for name, value in rows}


def judge_isolation(rows: Sequence[Row], patient: Patient) -> list[Finding]:
    """Under any other one statements would decide from stale rows: workers and clients refuse to start."""
    isolation = _by_name(rows)["default_transaction_isolation"]
    if isolation != "read committed":
        return [
            error(
                "isolation",
                f"default_transaction_isolation is '{isolation}' for this role and database: workers do not start",
                "ALTER ROLE ... (or DATABASE) SET default_transaction_isolation = 'read committed', then connect anew",
            )
        ]
    return [ok("isolation", "read committed")]


def judge_writable(rows: Sequence[Row], patient: Patient) -> list[Finding]:
    """Whether transactions may write unless they say so."""
    if _by_name(rows)["default_transaction_read_only"] == "on":
        return [
            error(
                "writable",
                "default_transaction_read_only is on for this role or database: nothing can be recorded",
                "ALTER ROLE ... RESET default_transaction_read_only (or ALTER DATABASE), or use another role",
            )
        ]
    return [ok("writable", "transactions may write")]


def judge_durability(rows: Sequence[Row], patient: Patient) -> list[Finding]:
    """What a crash of the server would lose."""
    settings = _by_name(rows)
    found = [
        error(
            "durability",
            f"{name} is off: a crash of the server can destroy the database",
            f"ALTER SYSTEM SET {name} = on, then SELECT pg_reload_conf()",
        )
        for name in ("fsync", "full_page_writes")
        if settings[name] == "off"
    ]
    if settings["synchronous_commit"] == "off":
        found.append(
            warning(
                "durability",
                "synchronous_commit is off: after a crash of the server, steps that were recorded last run again",
                "ALTER ROLE ... SET synchronous_commit = on (or ALTER DATABASE), unless that is meant",
            )
        )
    return found or [ok("durability", "what is committed survives a crash of the server")]


def judge_timeouts(rows: Sequence[Row], patient: Patient) -> list[Finding]:
    """Limits that cut Zart's own connections off."""
    settings = _by_name(rows)
    found = [
        warning(
            "timeouts",
            f"{name} is {settings[name]}: {_CUT[name]}",
            f"ALTER ROLE ... SET {name} = 0 for the role of workers and clients",
        )
        for name in _TIMEOUTS
        if settings.get(name) not in (None, "0")
    ]
    return found or [ok("timeouts", "none cuts a statement or a session off")]


_CUT: Final = {
    "statement_timeout": "statements that take longer are cut and sent again",
    "lock_timeout": "statements that wait for longer are cut and sent again",
    "idle_in_transaction_session_timeout": "a step with transaction=True that computes for longer fails",
    "idle_session_timeout": "the connections that listen are closed again and again",
    "transaction_timeout": "a step with transaction=True that takes longer fails",
}


def judge_autovacuum(rows: Sequence[Row], patient: Patient) -> list[Finding]:
    """Without it the tables of live work grow for ever, since every claim leaves a dead row."""
    off = [name for name in ("autovacuum", "track_counts") if _by_name(rows)[name] == "off"]
    if off:
        return [
            error(
                "autovacuum",
                f"{' and '.join(off)} is off: every claim leaves a dead row, and nobody takes them away",
                f"ALTER SYSTEM SET {off[0]} = on, then SELECT pg_reload_conf()",
            )
        ]
    return [ok("autovacuum", "on")]


def judge_connections(rows: Sequence[Row], patient: Patient) -> list[Finding]:
    """How many are left."""
    ((used, most),) = rows
    told = f"{used} of {most} connections are in use"
    if used > most * _MANY_CONNECTIONS:
        return [
            warning(
                "connections",
                told,
                "raise max_connections, put a pooler in between, or run fewer workers: each uses about seven",
            )
        ]
    return [ok("connections", told)]


_SETTINGS: Final = ("doctor", "settings")


def _of(*names: str) -> dict[str, list[str]]:
    return {"names": list(names)}


CHECKS: Final = (
    Check("server", ("doctor", "standing"), judge_server),
    Check("isolation", _SETTINGS, judge_isolation, _of("default_transaction_isolation")),
    Check("writable", _SETTINGS, judge_writable, _of("default_transaction_read_only")),
    Check("durability", _SETTINGS, judge_durability, _of("fsync", "full_page_writes", "synchronous_commit")),
    Check("timeouts", _SETTINGS, judge_timeouts, _of(*_TIMEOUTS)),
    Check("autovacuum", _SETTINGS, judge_autovacuum, _of("autovacuum", "track_counts")),
    Check("connections", ("doctor", "connections"), judge_connections),
)
