"""What waits, and for what."""

import datetime as dt
from collections.abc import Sequence
from typing import Final

from zart.client.reading import unreadable_failure
from zart.encryption import Payloads, Place
from zart.errors import PayloadError, PayloadUnreadable
from zart.failures import failure_from_json
from zart_cli.doctor.check import Check, Patient, Row
from zart_cli.doctor.finding import Finding, error, info, ok, warning
from zart_cli.lanes import Ready, counted, lane_name
from zart_cli.tables import describe
from zart_cli.times import short_duration

_SHOWN: Final = 5
_LIMIT: Final = 1024 * 1024
_NEAR: Final = 0.75


def judge_ready(rows: Sequence[Row], patient: Patient) -> list[Finding]:
    """How long the oldest ready work waits that somebody serves."""
    lanes = [Ready(*row) for row in rows]
    waiting = [lane for lane in lanes if lane.served and lane.oldest is not None]
    if not waiting:
        count = sum(lane.tasks for lane in lanes if lane.served)
        return [ok("oldest ready", f"{count:,} ready" if count else "nothing that is served waits")]
    oldest = max(waiting, key=lambda lane: lane.oldest or dt.timedelta())
    age = oldest.oldest or dt.timedelta()
    told = f"{oldest.told} for {short_duration(age)}, of {counted(oldest.tasks)} ready"
    if age >= patient.old_after:
        return [
            warning(
                "oldest ready",
                f"{told}: its workers do not keep up",
                "run more workers, or raise --max-concurrent-tasks; `zart top` shows whether they are busy",
            )
        ]
    return [ok("oldest ready", told)]


def judge_unserved(rows: Sequence[Row], patient: Patient) -> list[Finding]:
    """Ready work that no living worker has registered."""
    found = [
        error(
            "unregistered names",
            f"{counted(lane.tasks)} executions of {lane.told} are ready, and no living worker has registered it"
            if not lane.is_step
            else f"{counted(lane.tasks)} calls of {lane.told} are ready, and no living worker has registered it",
            "start a worker whose registry has it under this name, version and queue; or cancel them: "
            f"zart list --name {lane.name} --status scheduled",
        )
        for lane in (Ready(*row) for row in rows)
        if not lane.served
    ]
    return found or [ok("unregistered names", "all that is ready is served by a living worker")]


def judge_registered(rows: Sequence[Row], patient: Patient) -> list[Finding]:
    """With an app: live work of functions and steps that its registry does not have."""
    if patient.registry is None:
        return []
    known = {(name, version) for name, version in patient.registry.durables}
    steps = set(patient.registry.steps)
    missing: dict[str, None] = {}
    for queue, name, version, is_step, *_ in rows:
        if (name not in steps) if is_step else ((name, version) not in known):
            missing[lane_name(queue, name, version, is_step=is_step)] = None
    if missing:
        return [
            warning(
                "names of the app",
                f"live work of {', '.join(missing)} is not in this app's registry",
                "register it beside what took its place until that work has ended, or leave it to another app's worker "
                "(docs/how-to/change-running-code.md)",
            )
        ]
    return [ok("names of the app", "all live work that was looked at is registered")]


def judge_versions(rows: Sequence[Row], patient: Patient) -> list[Finding]:
    """Functions of which several versions are at work."""
    versions: dict[str, list[str]] = {}
    for _, name, version, is_step, *_ in rows:
        told = "none" if version is None else version
        if not is_step and told not in versions.setdefault(name, []):
            versions[name].append(told)
    several = [f"{name} ({', '.join(sorted(found))})" for name, found in versions.items() if len(found) > 1]
    if several:
        return [
            info(
                "versions",
                f"several at work: {', '.join(several)}",
                "keep each registered until its executions have ended",
            )
        ]
    return [ok("versions", "each function is at work in one version")]


def judge_blocked(rows: Sequence[Row], patient: Patient) -> list[Finding]:
    """Executions that wait for a person."""
    if not rows:
        return [ok("blocked", "none")]
    shown = ", ".join(
        f"{execution} ({_reason(execution, failure, patient.payloads)})"
        for execution, _, failure, _ in rows[:_SHOWN]
    )
    return [
        warning(
            "blocked",
            f"{rows[0][3]:,} wait for a person: {shown}",
            "zart show ID says why; mend the cause, then zart resume ID",
        )
    ]


def _reason(execution: str, failure: str | None, payloads: Payloads) -> str:
    if failure is None:
        return "no reason stored"
    try:
        return describe(failure_from_json(payloads.decrypt(failure, Place(execution, "failure"))))
    except PayloadUnreadable as unreadable:
        return describe(unreadable_failure(unreadable, told=False))
    except PayloadError:
        return "a reason that cannot be read"


def judge_retrying(rows: Sequence[Row], patient: Patient) -> list[Finding]:
    """Steps that fail again and again."""
    long = [row for row in rows if row[3] is not None and row[3] >= patient.old_after]
    if not long:
        return [ok("retrying", "no step that was looked at has failed for long")]
    shown = ", ".join(
        f"{key} of {execution} ({attempts} attempts)" for execution, key, attempts, _ in long[:_SHOWN]
    )
    return [
        warning(
            "retrying",
            f"failing for {short_duration(long[0][3])} and more: {shown}",
            "zart show ID has the errors; mend what the step calls, or cancel",
        )
    ]


def judge_large(rows: Sequence[Row], patient: Patient) -> list[Finding]:
    """Payloads and results that come near to the limit."""
    near = [row for row in rows if row[-1] is not None and row[-1] > _NEAR * _LIMIT]
    if not near:
        return []
    shown = ", ".join(
        f"{' of '.join(map(str, row[:-1]))}: {row[-1] / 1024:,.0f} KiB" for row in near[:_SHOWN]
    )
    return [
        warning(
            "payload sizes",
            f"near the limit of {_LIMIT // 1024:,} KiB: {shown}",
            "store large data elsewhere and pass a reference: over the limit a step fails",
        )
    ]


def judge_large_steps(rows: Sequence[Row], patient: Patient) -> list[Finding]:
    """The same of results of steps; says so when nothing is near."""
    return judge_large(rows, patient) or [
        ok("payload sizes", "none of the step results looked at is near the limit")
    ]


_MANY: Final = {"limit": _SHOWN}
CHECKS: Final = (
    Check("oldest ready", ("overview", "ready"), judge_ready),
    Check("unregistered names", ("overview", "ready"), judge_unserved),
    Check("names of the app", ("overview", "live"), judge_registered),
    Check("versions", ("overview", "live"), judge_versions),
    Check("blocked", ("overview", "blocked"), judge_blocked, _MANY),
    Check("retrying", ("overview", "retrying"), judge_retrying, _MANY),
    Check("payload sizes", ("doctor", "large_executions"), judge_large),
    Check("payload sizes", ("doctor", "large_steps"), judge_large_steps),
)
