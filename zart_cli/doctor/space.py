"""What keeps dead rows from being taken away, and what runs out."""

import datetime as dt
from collections.abc import Sequence
from typing import Final

from zart_cli.doctor.check import Check, Patient, Row
from zart_cli.doctor.finding import Finding, error, info, ok, warning
from zart_cli.times import short_duration

_HOT: Final = frozenset({"zart_tasks", "zart_wakeups", "zart_workers"})
"""Tables of live work: each claim looks at them."""
_DEAD_AT_LEAST: Final = 50_000
_OLD_HORIZON: Final = 1_000_000
"""Transactions."""
_OLD_IDS, _OLDEST_IDS = 600_000_000, 1_500_000_000
"""The server refuses work at 2,147 million; by itself it begins to tidy up at 200, of groups at 400."""


def judge_transactions(rows: Sequence[Row], patient: Patient) -> list[Finding]:
    """Transactions that are open for long: no row that died since then can be taken away."""
    found: list[Finding] = []
    for pid, application, role, state, age, holds in rows:
        if age is None or age < patient.old_after:
            continue
        who = f"session {pid} ({application or 'no name'}, role {role})"
        told = f"{who} is in a transaction for {short_duration(age)}, {state}"
        if holds:
            told += ", and keeps every row that died since then"
        found.append(
            warning(
                "old snapshots",
                told,
                f"end it: SELECT pg_terminate_backend({pid}); idle_in_transaction_session_timeout ends such by itself",
            )
        )
    return found or [ok("old snapshots", "no transaction is open for long")]


def judge_prepared(rows: Sequence[Row], patient: Patient) -> list[Finding]:
    """Two-phase transactions that nobody has ended: they outlive their session, and restarts."""
    found = [
        warning(
            "prepared transactions",
            f"{gid!r} of {owner} was prepared {short_duration(age)} ago, and keeps its locks and old rows",
            f"COMMIT PREPARED or ROLLBACK PREPARED {_literal(gid)}",
        )
        for gid, owner, age in rows
        if age >= patient.old_after
    ]
    return found or [ok("prepared transactions", "none is old")]


def _literal(text: str) -> str:
    quoted = text.replace("'", "''")
    return f"'{quoted}'"


def judge_horizons(rows: Sequence[Row], patient: Patient) -> list[Finding]:
    """Replication slots and standbys that keep old rows here."""
    found = [
        warning(
            "replication",
            f"{who} ({'in use' if active else 'not in use'}) keeps rows that died within {age:,} transactions",
            "a slot that nobody uses: SELECT pg_drop_replication_slot(...); a standby: end its long queries, or turn "
            "hot_standby_feedback off there",
        )
        for who, active, age in rows
        if age is not None and age >= _OLD_HORIZON
    ]
    return found or [ok("replication", "no slot or standby keeps old rows")]


def judge_tables(rows: Sequence[Row], patient: Patient) -> list[Finding]:
    """Dead rows, and when somebody took them away last."""
    found: list[Finding] = []
    for name, live, dead, size, vacuumed in rows:
        worst = 5 if name in _HOT else 1
        if dead >= _DEAD_AT_LEAST and dead > worst * live:
            found.append(
                warning(
                    "dead rows",
                    f"{name}: {dead:,} dead beside {live:,} live, {size / 2**20:,.0f} MiB, {_vacuumed(vacuumed)}",
                    f"find what keeps them (`old snapshots`), then VACUUM {name}; if nothing does, autovacuum is slow",
                )
            )
    if found:
        return found
    dead = sum(row[2] for row in rows)
    return [ok("dead rows", f"{dead:,} in all tables")]


def _vacuumed(age: dt.timedelta | None) -> str:
    return "never vacuumed" if age is None else f"vacuumed {short_duration(age)} ago"


def judge_ages(rows: Sequence[Row], patient: Patient) -> list[Finding]:
    """How near the database is to where the server refuses work to protect it."""
    ((transactions, groups),) = rows
    found: list[Finding] = []
    for what, age in (("transaction ids", transactions), ("ids of lock groups", groups)):
        if age >= _OLD_IDS:
            make = error if age >= _OLDEST_IDS else warning
            found.append(
                make(
                    "transaction ids",
                    f"{age:,} {what} are in use, of 2,147 million before the server refuses work",
                    "VACUUM FREEZE the oldest tables, and find what keeps autovacuum from it: `old snapshots`, "
                    "`prepared transactions`, `replication`",
                )
            )
    return found or [ok("transaction ids", f"{transactions:,} in use, and {groups:,} of lock groups")]


def judge_notification_queue(rows: Sequence[Row], patient: Patient) -> list[Finding]:
    """How full the server's queue is: at a half Zart notifies nobody any more, and workers find work by looking."""
    ((usage,),) = rows
    told = f"{usage:.0%} full"
    if usage >= 0.5:
        return [
            error(
                "notification queue",
                f"{told}: nobody is notified any more, and other programs' commits may soon fail",
                "a session that listens is stuck in a transaction: end it (`old snapshots` names it)",
            )
        ]
    if usage >= 0.05:
        return [
            warning(
                "notification queue",
                told,
                "a session that listens reads too slowly, or is in a long transaction: `old snapshots` names it",
            )
        ]
    return [ok("notification queue", told)]


def judge_history(rows: Sequence[Row], patient: Patient) -> list[Finding]:
    """How much there is of what has ended."""
    rows_of = {name: (live, size) for name, live, _, size, _ in rows}
    count, _ = rows_of.get("zart_executions", (0, 0))
    size = sum(size for _, size in rows_of.values())
    told = f"about {count:,} executions, tables of {size / 2**20:,.0f} MiB"
    if count >= 10_000_000:
        return [info("history", told, "zart prune --older-than 30d, or a worker with --retention 30d")]
    return [ok("history", told)]


CHECKS: Final = (
    Check("old snapshots", ("doctor", "transactions"), judge_transactions),
    Check("prepared transactions", ("doctor", "prepared"), judge_prepared),
    Check("replication", ("doctor", "horizons"), judge_horizons),
    Check("dead rows", ("doctor", "tables"), judge_tables),
    Check("history", ("doctor", "tables"), judge_history),
    Check("transaction ids", ("doctor", "ages"), judge_ages),
    Check("notification queue", ("doctor", "notification_queue"), judge_notification_queue),
)
