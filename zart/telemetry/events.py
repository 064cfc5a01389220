"""What Zart tells of its work while it does it.

This one set of events is what logs, metrics, traces and hooks of your own are made of. An event is told right after
what it is about; where that is written to the database, after its commit. In none of them is an argument, a payload, a
result, or the payload of an event.

    ExecutionStarted                    by a client
    ExecutionClaimed                    a segment begins; it ends with one of these:
        ExecutionEnded                  completed, failed or cancelled
        ExecutionSuspended              it waits
        ExecutionBlocked                somebody must look at it
        BodyRetried                     its body has failed and runs again
        ExecutionContinued              it begins anew, with a history of its own
        ExecutionReleased               given back at a shutdown
        ExecutionLost                   it goes on elsewhere, or was ended from outside
        ScheduledStepEnded              of a segment that is a scheduled step
    StepBegan, StepEnded, StepRetried   attempts; a step that is replayed has none
    EventDelivered                      a wait has got its event
    WorkerStarted, WorkerStopped, WorkerFenced, HeartbeatLate
    ClaimMade, BatchCommitted, TakenOver
"""

from typing import Literal, final

import msgspec

Outcome = Literal["completed", "failed", "cancelled"]


@final
class Raised(msgspec.Struct, frozen=True, kw_only=True):
    """An exception. Its message is not shown by `repr`: whoever raised it may quote in it what it was about."""

    type: str
    """The class's full name."""
    message: str = ""
    stack: str = ""
    """Where it was raised: the frames, without any message. Empty where that is not known."""

    def __repr__(self) -> str:
        return f"Raised(type={self.type!r})"


@final
class Segment(msgspec.Struct, frozen=True, kw_only=True):
    """One worker's hold on one execution: from a claim until it ends, waits or is given back.

    Scheduled steps are held by themselves: then `step` is the step's name as it was decorated, and what is said of
    an execution is said of the step.
    """

    number: int
    """In this process: the same in all events of a segment."""
    worker: int
    execution_id: str
    run_id: str
    function: str
    version: str | None
    queue: str
    attempt: int
    """Of the body."""
    claims: int
    """How often it was claimed so far, this time included."""
    recoveries: int
    """Takeovers in a row since it has last recorded anything."""
    step: str | None = None
    trace_context: str | None = None
    """What its starter has handed on: a W3C traceparent, and after a space the tracestate if there is one."""
    began: float
    """In seconds of `time.perf_counter()`."""


@final
class StepAttempt(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt of a step."""

    number: int
    """In this process: the same when it begins and when it ends."""
    step: str
    """The name as it was decorated, such as "charge-{order.id}": there are as many as there are steps in the code."""
    name: str
    """The name of this call, such as "charge-4711"."""
    function: str
    """The function behind it, with its module."""
    attempt: int
    threaded: bool
    """A plain `def`, which runs in a thread."""


class TelemetryEvent(msgspec.Struct, frozen=True, kw_only=True):
    """The base of all events."""


# ---------------------------------------------------------------- executions


@final
class ExecutionStarted(TelemetryEvent, frozen=True, kw_only=True):
    """A client has started an execution that did not exist. With `connection=`: the caller may still roll it back."""

    execution_id: str
    function: str
    version: str | None
    queue: str


@final
class ExecutionClaimed(TelemetryEvent, frozen=True, kw_only=True):
    """A worker has taken an execution: a segment begins."""

    segment: Segment
    how: Literal["first", "replay", "kept"]
    """For the first time; to go on after a replay; to go on with a body that was kept in memory."""
    waited: float | None
    """Seconds since it was due; None when it was claimed before."""


class SegmentOver(TelemetryEvent, frozen=True, kw_only=True):
    """The base of what ends a segment."""

    segment: Segment
    seconds: float
    """Since the claim."""


@final
class ExecutionEnded(SegmentOver, frozen=True, kw_only=True):
    """An execution has ended."""

    outcome: Outcome
    age: float
    """Seconds since it was due."""
    error: Raised | None


@final
class ExecutionSuspended(SegmentOver, frozen=True, kw_only=True):
    """An execution waits; whoever claims it when that is over goes on."""

    waiting_for: str | None
    """For people: names of events and steps, and times."""


@final
class ExecutionBlocked(SegmentOver, frozen=True, kw_only=True):
    """An execution cannot go on by itself."""

    reason: str
    """Such as "non-determinism" or "crash-loop"."""
    error: Raised


@final
class BodyRetried(SegmentOver, frozen=True, kw_only=True):
    """A body has failed, and runs again after a while."""

    delay: float
    error: Raised | None


@final
class ExecutionContinued(SegmentOver, frozen=True, kw_only=True):
    """A body has called `zart.continue_as_new`."""


@final
class ExecutionReleased(SegmentOver, frozen=True, kw_only=True):
    """An execution was given back for another worker to go on with."""


@final
class ExecutionLost(SegmentOver, frozen=True, kw_only=True):
    """An execution is not this worker's any more: others have taken it over, or ended it from outside."""


@final
class ScheduledStepEnded(SegmentOver, frozen=True, kw_only=True):
    """A scheduled step has come to its end."""

    outcome: Outcome
    error: Raised | None


# ---------------------------------------------------------------- steps and waits


@final
class StepBegan(TelemetryEvent, frozen=True, kw_only=True):
    """An attempt of a step begins. The code of the step runs in the same context."""

    segment: Segment
    step: StepAttempt


@final
class StepEnded(TelemetryEvent, frozen=True, kw_only=True):
    """The function of a step has returned or raised. Nothing of that is recorded so far."""

    segment: Segment
    step: StepAttempt
    outcome: Literal["returned", "failed", "abandoned"]
    """Abandoned: it was cancelled, or its execution was given back."""
    seconds: float
    error: Raised | None


@final
class StepRetried(TelemetryEvent, frozen=True, kw_only=True):
    """An attempt has failed, and the next one waits for its time."""

    segment: Segment
    step: str
    """As in `StepAttempt`."""
    name: str
    attempt: int
    """The one that has failed."""
    delay: float


@final
class EventDelivered(TelemetryEvent, frozen=True, kw_only=True):
    """A wait of a body has got its event, which the next commit consumes."""

    segment: Segment
    event: str
    """The event's name."""


# ---------------------------------------------------------------- workers


@final
class WorkerStarted(TelemetryEvent, frozen=True, kw_only=True):
    """A worker has registered, and begins to claim. One that was fenced registers anew, under another number."""

    worker: int
    functions: tuple[str, ...]
    slots: int


@final
class WorkerStopped(TelemetryEvent, frozen=True, kw_only=True):
    """A registration has ended: the worker was stopped, or fenced, or cannot write."""

    worker: int


@final
class WorkerFenced(TelemetryEvent, frozen=True, kw_only=True):
    """A worker was taken for dead: what it held goes on elsewhere."""

    worker: int


@final
class HeartbeatLate(TelemetryEvent, frozen=True, kw_only=True):
    """A lease could not be renewed, or only long after its time. Told in the heartbeat's thread."""

    worker: int
    since: float
    """Seconds since it was renewed last."""


@final
class ClaimMade(TelemetryEvent, frozen=True, kw_only=True):
    """A worker has asked for work."""

    worker: int
    taken: int
    seconds: float


@final
class BatchCommitted(TelemetryEvent, frozen=True, kw_only=True):
    """The journal has committed records of one or many executions together."""

    worker: int
    records: int
    bytes: int
    """Of what users have stored."""
    seconds: float


@final
class TakenOver(TelemetryEvent, frozen=True, kw_only=True):
    """What dead workers held is free for others."""

    executions: tuple[str, ...]
    """Ids; of an execution as often as parts of it were held: its body, and its scheduled steps."""
    workers: int
