"""What an execution can be, and what a reader sees of one.

`TRANSITIONS` is the state machine: nothing writes a status that it does not allow. Its picture:

    scheduled ──▶ running ◀──▶ waiting
        │            │            │
        │            ├────────────┴──▶ completed | failed | cancelled   (the end of the run)
        │            └──▶ blocked ──▶ running                           (resumed by a person)
        └──▶ cancelled | failed                                         (ended before its first claim)

A person may begin another run from any of them (`restart`, `rerun`): then it is `scheduled`. So it is when a step is
retried after a failure, in the same run.

`paused` stands beside all three live states: it holds an execution where it is, and lets it go on from there. One
that is blocked is `paused` when it is resumed under a rule, and so is one that is repaired under a rule.
"""

import datetime as dt
from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final, Literal, final

import msgspec

from zart.errors import Failure


class ExecutionStatus(StrEnum):
    """What an execution is doing, in one word."""

    SCHEDULED = "scheduled"
    """Not claimed by any worker so far, or not due."""
    RUNNING = "running"
    """Claimed at least once, and not parked; it may be between two workers."""
    WAITING = "waiting"
    """Parked in a sleep, in an event wait, or until others end; it holds no slot, connection or thread."""
    PAUSED = "paused"
    """Held back by a person's rule."""
    BLOCKED = "blocked"
    """Cannot go on until a person acts; nothing is lost."""
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINAL_STATUSES: Final = frozenset(
    {ExecutionStatus.COMPLETED, ExecutionStatus.FAILED, ExecutionStatus.CANCELLED}
)
"""What has reached one of these stays so, unless a person repairs it."""

TRANSITIONS: Final[Mapping[ExecutionStatus, frozenset[ExecutionStatus]]] = MappingProxyType(
    {
        ExecutionStatus.SCHEDULED: frozenset(
            {
                ExecutionStatus.RUNNING,
                ExecutionStatus.PAUSED,
                ExecutionStatus.FAILED,
                ExecutionStatus.CANCELLED,
            }
        ),
        ExecutionStatus.RUNNING: FINAL_STATUSES
        | {
            ExecutionStatus.SCHEDULED,
            ExecutionStatus.WAITING,
            ExecutionStatus.PAUSED,
            ExecutionStatus.BLOCKED,
        },
        ExecutionStatus.WAITING: frozenset(
            {
                ExecutionStatus.SCHEDULED,
                ExecutionStatus.RUNNING,
                ExecutionStatus.PAUSED,
                ExecutionStatus.FAILED,
                ExecutionStatus.CANCELLED,
            }
        ),
        ExecutionStatus.PAUSED: frozenset(
            {
                ExecutionStatus.SCHEDULED,
                ExecutionStatus.RUNNING,
                ExecutionStatus.WAITING,
                ExecutionStatus.FAILED,
                ExecutionStatus.CANCELLED,
            }
        ),
        ExecutionStatus.BLOCKED: frozenset(
            {
                ExecutionStatus.SCHEDULED,
                ExecutionStatus.RUNNING,
                ExecutionStatus.PAUSED,
                ExecutionStatus.CANCELLED,
            }
        ),
        ExecutionStatus.COMPLETED: frozenset({ExecutionStatus.SCHEDULED, ExecutionStatus.PAUSED}),
        ExecutionStatus.FAILED: frozenset({ExecutionStatus.SCHEDULED, ExecutionStatus.PAUSED}),
        ExecutionStatus.CANCELLED: frozenset({ExecutionStatus.SCHEDULED, ExecutionStatus.PAUSED}),
    }
)
"""The one table of allowed changes: from a status to those that may follow it."""

TASK_TRANSITIONS: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "none": frozenset({"ready", "waiting"}),
        "ready": frozenset({"running", "paused", "none"}),
        "running": frozenset({"ready", "waiting", "paused", "blocked", "none"}),
        "waiting": frozenset({"ready", "paused", "none"}),
        "paused": frozenset({"ready", "waiting", "none"}),
        "blocked": frozenset({"ready", "none"}),
    }
)
"""The same for the row of live work behind an execution; `none` is the absence of one."""


@final
class Context(msgspec.Struct, frozen=True, kw_only=True):
    """The execution that the running code belongs to."""

    execution_id: str
    run_id: str
    name: str
    """The durable function's name."""
    attempt: int
    """1 for the first run of the body, one more after each retry of it."""
    started_at: dt.datetime
    """When the run was first claimed, in database time."""
    is_replaying: bool
    """Whether recorded results are being handed out again. Use it for logging only, never to decide."""


@final
class StepContext(msgspec.Struct, frozen=True, kw_only=True):
    """The attempt of a step that the running code belongs to."""

    execution_id: str
    step_name: str
    step_attempt: int
    """1 for the first attempt."""
    idempotency_key: str
    """The same for every attempt of this step: give it to services that drop repeated requests."""
    token: str
    """What a transaction of your own gives to `zart_record_step`."""


@final
class Execution(msgspec.Struct, frozen=True, kw_only=True):
    """An execution as it was when it was asked for."""

    id: str
    name: str
    status: Literal[
        "scheduled", "running", "waiting", "paused", "blocked", "completed", "failed", "cancelled"
    ]
    run_id: str
    waiting_for: str | None
    """What a waiting execution waits for, or which rule holds a paused one back, in words for people."""
    cancelling: bool
    """A cancellation was asked for, and the body has not ended yet."""
    served: bool
    """A live worker has registered it."""
    queue: str
    priority: int
    version: str | None
    failure: Failure | None
    created_at: dt.datetime
    finished_at: dt.datetime | None


@final
class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One line of an execution's history."""

    key: str
    """Where in the body it belongs, in a form for people: "charge", "charge#2", "1/charge"."""
    kind: Literal["step", "capture", "wait", "child", "timer", "cancel"]
    name: str
    state: Literal["started", "running", "waiting", "completed", "failed", "cancelled"]
    attempts: int
    started_at: dt.datetime | None
    finished_at: dt.datetime | None
    until: dt.datetime | None
    """When a sleep, a time limit or the next attempt is due."""
    failure: Failure | None
    child_id: str | None = None
    """Of a child: its execution id."""
    progress: str | None = None
    """What a step has told with `zart.progress` last, as JSON."""


@final
class History(msgspec.Struct, frozen=True, kw_only=True):
    """What an execution did in one of its runs."""

    execution: Execution
    run_id: str
    runs: list[str]
    """Every run of the execution, the oldest first."""
    records: list[Record]
    notes: list[str]
    """What else happened: takeovers, warnings, blocks, and who did what and why."""


@final
class Pruned(msgspec.Struct, frozen=True, kw_only=True):
    """What pruning took away, or would take away."""

    deleted: int
    """Executions that are gone."""
    emptied: int
    """Executions of which the id alone is left."""
    records: int
    """Records of steps, waits and the like that went with both."""


@final
class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A worker as others see it: by the row that it keeps while it lives."""

    id: int
    host: str
    pid: int
    alive: bool
    """Its lease stands. One that does not live any more is shown until another one has taken its work over."""
    idle: bool
    """It waits to be told of work."""
    started_at: dt.datetime
    heartbeat_at: dt.datetime
    """When it was heard of last, by the database's clock."""
    held: int
    """Executions and scheduled steps that it runs."""
    functions: list[str]
    """Durable functions that it serves, such as "order" or "order version 2"."""
    steps: list[str]
    """Steps that it does when they are scheduled."""
    queues: list[str]


@final
class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """How much there is of what."""

    by_status: Mapping[str, int]
    unserved: Mapping[str, int]
    """Ready work that no live worker has registered, by function name."""
    workers: int
    """Workers whose lease stands."""


@final
class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One run of an execution: the one that is on, or one that gave way to another."""

    run_id: str
    status: str
    """How the execution stood when this run gave way, `continued` when it began anew by itself. Of the run that is on,
    or was the last, how it stands."""
    started_at: dt.datetime
    ended_at: dt.datetime | None
    """When it gave way to the next one; None for the last."""
    failure: Failure | None


@final
class Rerun(msgspec.Struct, frozen=True, kw_only=True):
    """What `rerun` has begun."""

    run_id: str
    stale: list[str]
    """Keys of results that are kept and came after one that is done again: they may rest on what that gave."""


@final
class PauseRule(msgspec.Struct, frozen=True, kw_only=True):
    """A rule that holds back what all that it gives is true of."""

    id: str
    execution_id: str | None
    name: str | None
    """Of a durable function."""
    step: str | None
    """A pattern over the names of steps."""
    reason: str | None
    author: str
    expires_at: dt.datetime | None
