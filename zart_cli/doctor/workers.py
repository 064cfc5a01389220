"""Who works, who has died, and what is left of those."""

from collections.abc import Sequence
from typing import Final

from zart_cli.doctor.check import Check, Patient, Row
from zart_cli.doctor.finding import Finding, error, info, ok, warning
from zart_cli.times import short_duration

_START: Final = "start one: zart worker --app MODULE:REGISTRY"


def judge_workers(rows: Sequence[Row], patient: Patient) -> list[Finding]:
    """Whether any lives, and those that do not, with what they hold."""
    living = [row for row in rows if row[3]]
    dead = [row for row in rows if not row[3]]
    found: list[Finding] = []
    if living:
        told = f"{len(living)} live, {sum(row[7] for row in living)} executions and scheduled steps run"
        found.append(ok("workers", told))
    else:
        found.append(warning("workers", "none lives: what is started waits", _START))
    for number, host, pid, _, _, _, _, held, _ in dead:
        told = f"worker {number} ({host}, process {pid}) does not answer any more, and holds {held}"
        if not living:
            found.append(
                error(
                    "dead workers",
                    f"{told}; no worker lives that could take it over",
                    f"{_START}; it takes over within its --orphan-timeout",
                )
            )
        else:
            found.append(
                warning(
                    "dead workers",
                    f"{told}; another one takes it over at its next heartbeat",
                    "look again in a minute; if it stays, a session holds its row: see `held rows`",
                )
            )
    return found if dead else [*found, ok("dead workers", "none")]


def judge_stuck(rows: Sequence[Row], patient: Patient) -> list[Finding]:
    """Dead workers whose rows somebody's transaction locks."""
    found: list[Finding] = []
    for worker, host, pid, backend, state, application, _ in rows:
        if backend is not None:
            found.append(
                error(
                    "held rows",
                    f"dead worker {worker} ({host}, process {pid}) cannot be taken over: session {backend} "
                    f"({application or 'no name'}, {state}) locks its row",
                    f"SELECT pg_terminate_backend({backend})",
                )
            )
    return found or [ok("held rows", "no transaction stands in the way of a takeover")]


def judge_orphans(rows: Sequence[Row], patient: Patient) -> list[Finding]:
    """Work that names a holder who is gone."""
    count = sum(tasks for _, tasks in rows)
    if count:
        return [
            warning(
                "tasks without owner",
                f"{count} executions or scheduled steps are held by workers that are gone "
                f"({', '.join(str(owner) for owner, _ in rows[:5])})",
                f"any worker that lives frees them within seconds; if there is none, {_START}",
            )
        ]
    return [ok("tasks without owner", "none")]


def judge_wakeups(rows: Sequence[Row], patient: Patient) -> list[Finding]:
    """News that were committed, and that no worker has applied."""
    ((count, age),) = rows
    if not count or age is None:
        return [ok("wake-ups", "none waits to be applied")]
    told = f"{count:,} wait to be applied, the oldest for {short_duration(age)}"
    if age >= patient.old_after:
        return [
            error(
                "wake-ups",
                f"{told}: events and cancels do not arrive",
                f"workers apply them; if none lives, {_START}. If some do, look at their logs, and at `old snapshots`",
            )
        ]
    return [info("wake-ups", told)]


CHECKS: Final = (
    Check("workers", ("client", "workers"), judge_workers),
    Check("held rows", ("workers", "stuck"), judge_stuck),
    Check("tasks without owner", ("doctor", "orphans"), judge_orphans),
    Check("wake-ups", ("doctor", "wakeups"), judge_wakeups),
)
