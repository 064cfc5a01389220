"""What telemetry is told of executions: the events, made of what an activation knows.

Nothing in here runs unless somebody listens: whoever calls it asks `hub.listening` first. It changes nothing, and it
raises nothing that a hook raises.
"""

import datetime as dt
import itertools
import time
import traceback
from contextvars import Context
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from zart._engine.branch import Branch
from zart._engine.entries import (
    Blocked,
    BodyRetry,
    Cancelled,
    Claim,
    Completed,
    ContinuedAsNew,
    Ending,
    Failed,
    Key,
    Paused,
    Released,
    StepEnded,
    Suspended,
)
from zart._engine.step_attempts import Running, attempt
from zart.calls import DurableSpec, StepCall
from zart.errors import PayloadError
from zart.failures import failure_from_json
from zart.telemetry import events
from zart.telemetry.events import Raised, Segment, SegmentOver, StepAttempt
from zart.telemetry.hub import hub

if TYPE_CHECKING:
    from zart._engine.activation import Activation
    from zart._engine.steps import Steps

_numbers = itertools.count(1)


# ---------------------------------------------------------------- segments


class Told(msgspec.Struct, eq=False):
    """What was told of one activation."""

    segment: Segment
    is_over: bool = False
    context: Context | None = None
    """In which the body runs, for those who trace it."""


def claimed(activation: "Activation", *, step: str | None = None) -> None:
    """The activation begins; `step` is the step's name as it was decorated, if it is a scheduled one."""
    claim = activation.claim
    activation.told = Told(_segment(activation, step))
    first = claim.epoch == 1
    waited = (claim.now - claim.due_at).total_seconds() if first else None
    how: Literal["first", "replay"] = "first" if first else "replay"
    hub.tell(events.ExecutionClaimed(segment=activation.told.segment, how=how, waited=waited))


def goes_on(activation: "Activation", suspension: Ending, claim: Claim) -> None:
    """A body that was kept goes on under another claim. Its suspension may not have been acknowledged so far."""
    over(activation, suspension)
    context = activation.told.context if activation.told is not None else None
    activation.told = Told(_segment(activation, None, claim))
    hub.tell(events.ExecutionClaimed(segment=activation.told.segment, how="kept", waited=None))
    if context is not None:
        enter(activation, context)


def enter(activation: "Activation", context: Context) -> None:
    """The activation's body is about to run in this context."""
    if hub.tracing is not None:
        told = _told(activation)
        told.context = context
        context.run(hub.enter, told.segment)


def trace_context_for_children(activation: "Activation") -> str | None:
    """What is stored with executions that this one starts, for those who trace them."""
    return hub.trace_context_of(_told(activation).segment) if hub.tracing is not None else None


def over(activation: "Activation", ending: Ending | None) -> None:
    """The segment has ended so; None: the execution is lost. Told once."""
    told = _told(activation)
    if not told.is_over:
        told.is_over = True
        hub.tell(_over(told.segment, ending, activation.claim.due_at, activation.host.now()))


def never_begun(claim: Claim, spec: DurableSpec, queue: str, ending: Ending) -> None:
    """A claim has ended before anything was run for it."""
    hub.tell(_over(_segment_of(claim, spec, queue, None), ending, claim.due_at, claim.now))


def _told(activation: "Activation") -> Told:
    """What was told; something also when nobody listened as it began."""
    if activation.told is None:
        step = activation.claim.step
        activation.told = Told(_segment(activation, None if step is None else step.name))
    return activation.told


def _segment(activation: "Activation", step: str | None, claim: Claim | None = None) -> Segment:
    claim = claim or activation.claim
    return _segment_of(claim, activation.spec, activation.host.queue(claim), step)


def _segment_of(claim: Claim, spec: DurableSpec, queue: str, step: str | None) -> Segment:
    return Segment(
        number=next(_numbers),
        worker=claim.registration,
        execution_id=claim.execution_id,
        run_id=str(claim.run_id),
        function=spec.name,
        version=spec.version,
        queue=queue,
        attempt=claim.attempt,
        claims=claim.epoch,
        recoveries=claim.recoveries,
        step=step,
        trace_context=claim.trace_context,
        began=time.perf_counter(),
    )


def _over(segment: Segment, ending: Ending | None, due_at: dt.datetime, now: dt.datetime) -> SegmentOver:
    common: dict[str, Any] = {"segment": segment, "seconds": time.perf_counter() - segment.began}
    age = (now - due_at).total_seconds()
    match ending:
        case None:
            return events.ExecutionLost(**common)
        case Completed():
            return events.ExecutionEnded(**common, outcome="completed", age=age, error=None)
        case Failed():
            return events.ExecutionEnded(**common, outcome="failed", age=age, error=_stored(ending.failure))
        case Cancelled():
            return events.ExecutionEnded(
                **common, outcome="cancelled", age=age, error=_stored(ending.failure)
            )
        case Suspended() | Paused():
            return events.ExecutionSuspended(**common, waiting_for=ending.waiting_for)
        case Blocked():
            return events.ExecutionBlocked(**common, reason=ending.what, error=_stored(ending.failure))
        case BodyRetry():
            delay = max((ending.not_before - now).total_seconds(), 0)
            return events.BodyRetried(**common, delay=delay, error=_behind(ending))
        case ContinuedAsNew():
            return events.ExecutionContinued(**common)
        case Released():
            return events.ExecutionReleased(**common)
        case StepEnded():
            error = None if ending.failure is None else _stored(ending.failure)
            return events.ScheduledStepEnded(**common, outcome=ending.state, error=error)


def _behind(ending: BodyRetry) -> Raised | None:
    """The failure of a record that is tried afresh, if one was behind the body's."""
    failures = [attempt.failure for attempt in ending.afresh if attempt.failure is not None]
    return _stored(failures[0]) if failures else None


def _stored(failure: bytes) -> Raised:
    try:
        known = failure_from_json(failure)
    except PayloadError:  # a row that somebody has edited
        return Raised(type="?")
    return Raised(type=known.type, message=known.message)


# ---------------------------------------------------------------- steps and waits


async def told_attempt(
    steps: "Steps", branch: Branch, step: Running, call: StepCall
) -> tuple[Any, bytes | None, Exception | None]:
    """One attempt of a step, as `step_attempts.attempt` makes it; telemetry is told when it begins and when it ends."""
    segment = _told(branch.activation).segment
    fn = call.spec.fn
    about = StepAttempt(
        number=next(_numbers),
        step=call.template or call.name,
        name=step.key.name,
        function=f"{getattr(fn, '__module__', '?')}.{getattr(fn, '__qualname__', type(fn).__qualname__)}",
        attempt=step.attempt,
        threaded=call.spec.threaded,
    )
    hub.tell(events.StepBegan(segment=segment, step=about))
    outcome: Literal["returned", "failed", "abandoned"] = "abandoned"
    raised: Raised | None = None
    began = time.perf_counter()
    try:
        tried = await attempt(steps, branch, step, call)
        outcome = "returned" if tried[2] is None else "failed"
        raised = None if tried[2] is None else _raised(tried[2])
        return tried
    finally:
        seconds = time.perf_counter() - began
        hub.tell(
            events.StepEnded(segment=segment, step=about, outcome=outcome, seconds=seconds, error=raised)
        )


def retried(branch: Branch, call: StepCall, key: Key, attempt: int, delay: float) -> None:
    """An attempt has failed, and another one follows."""
    hub.tell(
        events.StepRetried(
            segment=_told(branch.activation).segment,
            step=call.template or call.name,
            name=key.name,
            attempt=attempt,
            delay=max(delay, 0),
        )
    )


def delivered(activation: "Activation", event: str) -> None:
    """A wait has got an event."""
    hub.tell(events.EventDelivered(segment=_told(activation).segment, event=event))


def _raised(error: BaseException) -> Raised:
    cls = type(error)
    name = cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    try:
        message = str(error)
    except Exception:  # noqa: BLE001 (a class of the user's own, whose text fails)
        message = ""
    return Raised(
        type=name, message=message, stack="".join(traceback.format_tb(_theirs(error.__traceback__)))
    )


def _theirs(frames: TracebackType | None) -> TracebackType | None:
    """From the user's first frame on, if there is one."""
    here = frames
    while here is not None and str(here.tb_frame.f_globals.get("__name__", "")).startswith("zart."):
        here = here.tb_next
    return here or frames
