"""What the API says: one Struct for each answer, and what of it needs the scope `payloads`.

With `read` alone a caller sees which executions there are, how they stand and where they failed. What people's data
may be part of, the results, the texts and traces of failures, what steps tell of their progress, and what follows the
colon of a note, is left out of the answer.
"""

import datetime as dt
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, final

import msgspec

from zart import Execution, Failure, History, Record, Run, Stats, WorkerStatus

Status = Literal["scheduled", "running", "waiting", "paused", "blocked", "completed", "failed", "cancelled"]

_ID: Final = msgspec.Meta(examples=["order-4711"])
_RUN: Final = msgspec.Meta(examples=["01981f6e-9c1a-7d61-8f5a-0c2f6f0a1b2c"])
_NAME: Final = msgspec.Meta(examples=["onboarding"])
Time = Annotated[dt.datetime, msgspec.Meta(tz=True, examples=["2026-11-24T14:02:11.352000Z"])]
"""With its time zone."""
_PAYLOADS: Final = "Only with the scope `payloads`."


@final
class FailureView(msgspec.Struct, frozen=True, kw_only=True):
    """What ended a step or an execution."""

    type: Annotated[str, msgspec.Meta(examples=["myapp.billing.CardDeclined"])]
    step: Annotated[
        str | None,
        msgspec.Meta(description="The step that it came from; null: the body itself.", examples=["charge"]),
    ]
    attempts: Annotated[int, msgspec.Meta(examples=[3])]
    message: Annotated[
        str | msgspec.UnsetType, msgspec.Meta(description=_PAYLOADS, examples=["no such card"])
    ] = msgspec.UNSET
    traceback: Annotated[str | msgspec.UnsetType, msgspec.Meta(description=_PAYLOADS)] = msgspec.UNSET


@final
class ExecutionView(msgspec.Struct, frozen=True, kw_only=True):
    """An execution as it was when it was asked for."""

    id: Annotated[str, _ID]
    name: Annotated[str, _NAME]
    status: Status
    run_id: Annotated[str, _RUN]
    waiting_for: Annotated[
        str | None,
        msgspec.Meta(description="In words for people.", examples=["event 'email-verified'"]),
    ]
    cancelling: Annotated[bool, msgspec.Meta(description="It was asked to end, and has not ended yet.")]
    served: Annotated[bool, msgspec.Meta(description="A live worker has registered its function.")]
    queue: Annotated[str, msgspec.Meta(examples=["default"])]
    priority: Annotated[int, msgspec.Meta(examples=[0])]
    version: str | None
    failure: FailureView | None
    created_at: Time
    finished_at: Time | None


@final
class Page(msgspec.Struct, frozen=True, kw_only=True):
    """Executions, the newest first."""

    executions: list[ExecutionView]
    next: Annotated[
        str | None,
        msgspec.Meta(
            description="The path of the next page; null: this is the last one. The header Link has it too.",
            examples=["/api/v1/executions?status=failed&after=order-4711"],
        ),
    ]


@final
class RecordView(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a history."""

    key: Annotated[
        str, msgspec.Meta(description="Its place in the body: what retry-step takes.", examples=["charge#2"])
    ]
    kind: Annotated[str, msgspec.Meta(examples=["step"])]
    name: Annotated[str, msgspec.Meta(examples=["charge"])]
    state: Annotated[str, msgspec.Meta(examples=["completed"])]
    attempts: Annotated[int, msgspec.Meta(examples=[1])]
    started_at: Time | None
    finished_at: Time | None
    until: Annotated[
        Time | None,
        msgspec.Meta(description="When a sleep, a time limit or the next attempt is due."),
    ]
    failure: FailureView | None
    child_id: Annotated[str | None, msgspec.Meta(description="Of a child: its execution.")]
    progress: Annotated[
        Any, msgspec.Meta(description=f"What the step has told of itself last. {_PAYLOADS}")
    ] = msgspec.UNSET


@final
class HistoryView(msgspec.Struct, frozen=True, kw_only=True):
    """What an execution did in one of its runs."""

    execution: ExecutionView
    run_id: Annotated[str, _RUN]
    runs: Annotated[list[str], msgspec.Meta(description="Every run that is kept, the oldest first.")]
    records: list[RecordView]
    notes: Annotated[
        list[str],
        msgspec.Meta(
            description="What else happened, and who did what; the reasons and texts after the first colon only "
            "with the scope `payloads`.",
            examples=[["2026-11-24 14:02:11.352Z resume by ann: the card is valid again"]],
        ),
    ]


@final
class RunView(msgspec.Struct, frozen=True, kw_only=True):
    """One run of an execution."""

    run_id: Annotated[str, _RUN]
    status: Annotated[
        str,
        msgspec.Meta(
            description="How the execution stood when the run gave way, `continued` when it began anew by "
            "itself; of the run of today, how it stands.",
            examples=["failed"],
        ),
    ]
    started_at: Time
    ended_at: Annotated[Time | None, msgspec.Meta(description="When it gave way to the next one.")]
    failure: FailureView | None


@final
class Runs(msgspec.Struct, frozen=True, kw_only=True):
    """The runs of an execution."""

    execution_id: Annotated[str, _ID]
    run_id: Annotated[str, msgspec.Meta(description="The run of today.", examples=_RUN.examples)]
    runs: Annotated[list[RunView], msgspec.Meta(description="Every run that is kept, the oldest first.")]


@final
class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How an execution ended, or how it stands."""

    execution_id: Annotated[str, _ID]
    status: Status
    failure: FailureView | None = None
    result: Annotated[Any, msgspec.Meta(description=f"Of one that has completed. {_PAYLOADS}")] = (
        msgspec.UNSET
    )


@final
class Started(msgspec.Struct, frozen=True, kw_only=True):
    """An execution that was started, or that existed."""

    id: Annotated[str, _ID]
    created: Annotated[bool, msgspec.Meta(description="False: it existed before.")]


@final
class Offered(msgspec.Struct, frozen=True, kw_only=True):
    """An event that was taken."""

    added: Annotated[
        bool, msgspec.Meta(description="False: one with this Idempotency-Key was offered before.")
    ]


@final
class Changed(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a request to change something."""

    changed: Annotated[bool, msgspec.Meta(description="False: there was nothing to change.")]


@final
class Restarted(msgspec.Struct, frozen=True, kw_only=True):
    """The new run of an execution."""

    run_id: Annotated[str, _RUN]


@final
class RerunView(msgspec.Struct, frozen=True, kw_only=True):
    """The new run of an execution, and what of it may be out of date."""

    run_id: Annotated[str, _RUN]
    stale: Annotated[
        list[str],
        msgspec.Meta(
            description="Records that were kept, though they may rest on one that is run again.",
            examples=[["send-receipt"]],
        ),
    ]


@final
class PauseView(msgspec.Struct, frozen=True, kw_only=True):
    """A rule that holds executions or steps back."""

    id: Annotated[str, msgspec.Meta(examples=["p-17"])]
    execution_id: str | None
    name: Annotated[str | None, _NAME]
    step: Annotated[str | None, msgspec.Meta(examples=["charge-*"])]
    reason: Annotated[str | None, msgspec.Meta(examples=["the bank is down"])]
    author: Annotated[str, msgspec.Meta(examples=["ann"])]
    expires_at: Time | None


@final
class Pauses(msgspec.Struct, frozen=True, kw_only=True):
    """All rules that stand."""

    pauses: list[PauseView]


@final
class Paused(msgspec.Struct, frozen=True, kw_only=True):
    """A rule that was made."""

    id: Annotated[str, msgspec.Meta(examples=["p-17"])]


@final
class StatsView(msgspec.Struct, frozen=True, kw_only=True):
    """How much there is of what."""

    by_status: Annotated[Mapping[str, int], msgspec.Meta(examples=[{"waiting": 12, "completed": 4711}])]
    unserved: Annotated[
        Mapping[str, int],
        msgspec.Meta(description="Ready work that no live worker has registered, by function name."),
    ]
    workers: Annotated[int, msgspec.Meta(description="Workers whose lease stands.", examples=[2])]


@final
class WorkerView(msgspec.Struct, frozen=True, kw_only=True):
    """A worker."""

    id: int
    host: Annotated[str, msgspec.Meta(examples=["web-2"])]
    pid: int
    alive: Annotated[bool, msgspec.Meta(description="Its lease stands.")]
    idle: Annotated[bool, msgspec.Meta(description="It waits to be told of work.")]
    started_at: Time
    heartbeat_at: Time
    held: Annotated[int, msgspec.Meta(description="Executions and scheduled steps that it runs.")]
    functions: Annotated[list[str], msgspec.Meta(examples=[["onboarding"]])]
    steps: Annotated[list[str], msgspec.Meta(description="Those that it does when they are scheduled.")]
    queues: list[str]


@final
class Workers(msgspec.Struct, frozen=True, kw_only=True):
    """All of them."""

    workers: list[WorkerView]


@final
class PrunedView(msgspec.Struct, frozen=True, kw_only=True):
    """What is gone, or would be."""

    deleted: Annotated[
        int, msgspec.Meta(description="Executions with all that belongs to them.", examples=[120])
    ]
    emptied: Annotated[
        int, msgspec.Meta(description="Executions of which only the id is kept.", examples=[0])
    ]
    records: Annotated[int, msgspec.Meta(description="Records of their calls.", examples=[640])]


@final
class Health(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the service can be used."""

    status: Literal["ok", "unavailable"]
    reason: Annotated[
        str | msgspec.UnsetType,
        msgspec.Meta(description="What is the matter.", examples=["the database does not answer"]),
    ] = msgspec.UNSET


# ---------------------------------------------------------------- from what the client returns


def view_failure(failure: Failure | None, *, payloads: bool) -> FailureView | None:
    if failure is None:
        return None
    return FailureView(
        type=failure.type,
        step=failure.step,
        attempts=failure.attempts,
        message=failure.message if payloads else msgspec.UNSET,
        traceback=failure.traceback if payloads else msgspec.UNSET,
    )


def view_execution(execution: Execution, *, payloads: bool) -> ExecutionView:
    return ExecutionView(
        id=execution.id,
        name=execution.name,
        status=execution.status,
        run_id=execution.run_id,
        waiting_for=execution.waiting_for,
        cancelling=execution.cancelling,
        served=execution.served,
        queue=execution.queue,
        priority=execution.priority,
        version=execution.version,
        failure=view_failure(execution.failure, payloads=payloads),
        created_at=execution.created_at,
        finished_at=execution.finished_at,
    )


def view_record(record: Record, *, payloads: bool) -> RecordView:
    shown = payloads and record.progress is not None
    return RecordView(
        key=record.key,
        kind=record.kind,
        name=record.name,
        state=record.state,
        attempts=record.attempts,
        started_at=record.started_at,
        finished_at=record.finished_at,
        until=record.until,
        failure=view_failure(record.failure, payloads=payloads),
        child_id=record.child_id,
        progress=msgspec.Raw((record.progress or "null").encode()) if shown else msgspec.UNSET,
    )


def view_run(run: Run, *, payloads: bool) -> RunView:
    return RunView(
        run_id=run.run_id,
        status=run.status,
        started_at=run.started_at,
        ended_at=run.ended_at,
        failure=view_failure(run.failure, payloads=payloads),
    )


def view_worker(worker: WorkerStatus) -> WorkerView:
    return WorkerView(**msgspec.structs.asdict(worker))


def view_history(history: History, *, payloads: bool) -> HistoryView:
    return HistoryView(
        execution=view_execution(history.execution, payloads=payloads),
        run_id=history.run_id,
        runs=history.runs,
        records=[view_record(record, payloads=payloads) for record in history.records],
        notes=history.notes if payloads else [_before_the_colon(note) for note in history.notes],
    )


def view_stats(stats: Stats) -> StatsView:
    return StatsView(by_status=stats.by_status, unserved=stats.unserved, workers=stats.workers)


def _before_the_colon(note: str) -> str:
    """A note without what people or their data have to say: that follows ": ", whatever the note is of."""
    return note.partition(": ")[0]
