"""OpenTelemetry traces, made of the events (extra `otel`).

A span cannot stay open while an execution waits for two days and goes on in another process. So there is one span for
each *segment*, a worker's hold on an execution from a claim until it ends, waits or is given back, and below it one for
each attempt of a step that runs. What is replayed has no span. All segments of an execution are children of what its
starter was in when it started it: that context is stored with the execution, and handed on to children.

    POST /orders                        the starter's span
    ├── run order                       on one worker: claimed, then it waits for an event
    │   ├── step charge
    │   └── step charge                 the second attempt
    └── run order                       on another one, two days later
        └── step ship

An execution whose starter had no span has a trace of its own, whose id is drawn from its run: so all workers find the
same one, and ask the sampler with the same question. Its segments then have a parent that nobody has recorded.

The span of an attempt is the current one while the step's code runs, so what that code does is below it; the span of a
segment is the current one in a body.
"""

import hashlib
from contextvars import Token
from typing import TYPE_CHECKING, Any, Final

from zart.distribution import install_hint
from zart.errors import UsageError
from zart.telemetry import events
from zart.telemetry.hub import Subscription, hub

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, TracerProvider

SEGMENT_ATTRIBUTES: Final = {
    "zart.execution.id": "the execution",
    "zart.run.id": "its run",
    "zart.function": "the durable function's name",
    "zart.function.version": "its version, if it has one",
    "zart.queue": "the queue",
    "zart.attempt": "of the body, from 1",
    "zart.claims": "how often it was claimed so far",
    "zart.recoveries": "takeovers in a row since it has last recorded anything",
    "zart.claimed": "`first`, `replay` or `kept`: for the first time, after a replay, or from memory",
    "zart.waited": "seconds since it was due, at the first claim",
    "zart.worker": "the number of the worker",
    "zart.step": "of a scheduled step: its name as it was decorated",
    "zart.outcome": (
        "how it ended: `completed`, `failed`, `cancelled`, `suspended`, `blocked`, `retried`, `continued`, "
        "`released`, `lost`"
    ),
    "zart.waiting_for": "of a segment that was suspended: what for",
    "error.type": "the class of what it failed of",
}
"""Attributes of the span of a segment, and what each says."""
STEP_ATTRIBUTES: Final = {
    "zart.execution.id": "the execution",
    "zart.step": "the step's name as it was decorated",
    "zart.step.name": "the name of this call",
    "zart.attempt": "of the step, from 1",
    "zart.outcome": "`returned`, `failed`, or `abandoned` when it was cancelled or given back",
    "code.function.name": "the function behind it",
    "error.type": "the class of what it raised",
}
"""Attributes of the span of an attempt, and what each says."""

_WIDTH: Final = 24
"""Bytes: an id of a trace, and one of a span."""


class Traces:
    """The hook. `messages`: the texts of exceptions are a part of the spans, too."""

    def __init__(self, provider: "TracerProvider | None", *, messages: bool) -> None:
        from opentelemetry import context, trace  # noqa: PLC0415 (the extra `otel` brings it)
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

        self._context = context
        self._trace = trace
        self._propagator = TraceContextTextMapPropagator()
        self._provider = provider
        self._tracer = trace.get_tracer("zart", tracer_provider=provider)
        self._messages = messages
        self._segments: dict[int, Span] = {}
        self._steps: dict[int, tuple[Span, Token[Context]]] = {}

    def __call__(self, event: events.TelemetryEvent) -> None:
        if isinstance(event, events.StepBegan):
            self._begin_step(event)
        elif isinstance(event, events.StepEnded):
            self._end_step(event)
        elif isinstance(event, events.ExecutionClaimed):
            self._begin(event)
        elif isinstance(event, events.SegmentOver):
            self._end(event)

    def close(self) -> None:
        """End what is open."""
        for span in [*self._segments.values(), *(span for span, _ in self._steps.values())]:
            span.end()
        self._segments.clear()
        self._steps.clear()

    # ------------------------------------------------------------ segments

    def _begin(self, event: events.ExecutionClaimed) -> None:
        segment = event.segment
        attributes: dict[str, Any] = {
            "zart.execution.id": segment.execution_id,
            "zart.run.id": segment.run_id,
            "zart.function": segment.function,
            "zart.queue": segment.queue,
            "zart.attempt": segment.attempt,
            "zart.claims": segment.claims,
            "zart.recoveries": segment.recoveries,
            "zart.claimed": event.how,
            "zart.worker": segment.worker,
        }
        if segment.version is not None:
            attributes["zart.function.version"] = segment.version
        if segment.step is not None:
            attributes["zart.step"] = segment.step
        if event.waited is not None:
            attributes["zart.waited"] = event.waited
        self._segments[segment.number] = self._tracer.start_span(
            f"run {segment.step or segment.function}",
            context=self._parent(segment),
            kind=self._trace.SpanKind.CONSUMER,
            attributes=attributes,
        )

    def _end(self, event: events.SegmentOver) -> None:
        span = self._segments.pop(event.segment.number, None)
        if span is None:  # it began before anybody listened
            return
        outcome, error = _outcome(event)
        span.set_attribute("zart.outcome", outcome)
        if isinstance(event, events.ExecutionSuspended) and event.waiting_for is not None:
            span.set_attribute("zart.waiting_for", event.waiting_for)
        if outcome in ("failed", "blocked", "retried"):
            self._fail(span, error)
        span.end()

    # ------------------------------------------------------------ steps

    def _begin_step(self, event: events.StepBegan) -> None:
        step = event.step
        span = self._tracer.start_span(
            f"step {step.step}",
            context=self._inside(event.segment),
            attributes={
                "zart.execution.id": event.segment.execution_id,
                "zart.step": step.step,
                "zart.step.name": step.name,
                "zart.attempt": step.attempt,
                "code.function.name": step.function,
            },
        )
        self._steps[step.number] = span, self._context.attach(self._trace.set_span_in_context(span))

    def _end_step(self, event: events.StepEnded) -> None:
        begun = self._steps.pop(event.step.number, None)
        if begun is None:
            return
        span, token = begun
        self._context.detach(token)
        span.set_attribute("zart.outcome", event.outcome)
        if event.outcome == "failed":
            self._fail(span, event.error)
        span.end()

    def _fail(self, span: "Span", error: events.Raised | None) -> None:
        kind = error.type if error is not None else "_OTHER"  # the convention's word for what is not known
        span.set_attribute("error.type", kind)
        told = f"{kind}: {error.message}" if error is not None and self._messages else kind
        span.set_status(self._trace.StatusCode.ERROR, told)
        if error is None:
            return
        attributes = {"exception.type": kind}
        if error.stack:
            attributes["exception.stacktrace"] = f"{error.stack}{told}\n"
        if self._messages:
            attributes["exception.message"] = error.message
        span.add_event("exception", attributes)

    # ------------------------------------------------------------ contexts

    def enter(self, segment: events.Segment) -> None:
        """Make the span of a segment the current one, in the context of its body."""
        span = self._segments.get(segment.number)
        if span is not None:
            self._context.attach(self._trace.set_span_in_context(span))

    def current(self) -> str | None:
        """The context of the running code, to be stored."""
        return self._stored(None)

    def of_segment(self, segment: events.Segment) -> str | None:
        """The context for what is started in a segment."""
        return self._stored(self._inside(segment))

    def ids(self) -> tuple[str, str] | None:
        """Of the current trace and span."""
        current = self._trace.get_current_span().get_span_context()
        if not current.is_valid:
            return None
        return self._trace.format_trace_id(current.trace_id), self._trace.format_span_id(current.span_id)

    def _inside(self, segment: events.Segment) -> "Context":
        span = self._segments.get(segment.number)
        if span is None:
            return self._parent(segment)
        return self._trace.set_span_in_context(span, self._context.Context())

    def _stored(self, context: "Context | None") -> str | None:
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, context)
        return " ".join(carrier[name] for name in ("traceparent", "tracestate") if name in carrier) or None

    def _parent(self, segment: events.Segment) -> "Context":
        nothing = self._context.Context()  # not what the worker itself was started in
        if segment.trace_context is not None:
            traceparent, _, tracestate = segment.trace_context.partition(" ")
            carrier = {"traceparent": traceparent, **({"tracestate": tracestate} if tracestate else {})}
            given = self._propagator.extract(carrier, nothing)
            if self._trace.get_current_span(given).get_span_context().is_valid:
                return given
        return self._trace.set_span_in_context(self._trace.NonRecordingSpan(self._drawn(segment)), nothing)

    def _drawn(self, segment: events.Segment) -> Any:
        """The context of an execution whose starter had none: the same for all workers, drawn from its run."""
        trace = self._trace
        drawn = hashlib.blake2b(segment.run_id.encode(), digest_size=_WIDTH, person=b"zart trace").digest()
        trace_id, span_id = int.from_bytes(drawn[:16], "big") or 1, int.from_bytes(drawn[16:], "big") or 1
        flags = trace.TraceFlags.SAMPLED if self._samples(trace_id, segment) else trace.TraceFlags.DEFAULT
        return trace.SpanContext(trace_id, span_id, is_remote=True, trace_flags=trace.TraceFlags(flags))

    def _samples(self, trace_id: int, segment: events.Segment) -> bool:
        """Whether a trace that begins here is to be recorded: the provider's sampler says so, where it has one.

        A sampler is often told to follow the parent, and the parent here is nobody who has asked one.
        """
        sampler = getattr(self._provider or self._trace.get_tracer_provider(), "sampler", None)
        if sampler is None:
            return True
        name = f"run {segment.step or segment.function}"
        result = sampler.should_sample(None, trace_id, name, kind=self._trace.SpanKind.CONSUMER)
        return bool(result.decision.is_sampled())


def _outcome(event: events.SegmentOver) -> tuple[str, events.Raised | None]:
    match event:
        case events.ExecutionEnded() | events.ScheduledStepEnded():
            return event.outcome, event.error
        case events.ExecutionBlocked():
            return "blocked", event.error
        case events.BodyRetried():
            return "retried", event.error
        case _:
            return _OTHER_OUTCOMES[type(event)], None


_OTHER_OUTCOMES: Final[dict[type[events.SegmentOver], str]] = {
    events.ExecutionSuspended: "suspended",
    events.ExecutionContinued: "continued",
    events.ExecutionReleased: "released",
    events.ExecutionLost: "lost",
}

# ---------------------------------------------------------------- switching it on

_on: list[Subscription] = []


def opentelemetry(
    tracer_provider: "TracerProvider | None" = None, /, *, messages: bool = False
) -> Subscription:
    """Make spans of what this process does, and hand the trace context of whoever starts an execution on to it.

    They go to `tracer_provider`, by default to the global one, whenever that is set. With `messages` the texts of
    exceptions go into the spans; they often quote what the code was about, which is why they do not otherwise. Call it
    in processes that start executions, and in workers. Twice is harmless: the first call counts until its subscription
    is closed. Raises UsageError, with the command that installs it, when OpenTelemetry is not there.
    """
    if _on:
        return _on[0]
    try:
        traces = Traces(tracer_provider, messages=messages)
    except ImportError as missing:
        raise UsageError(f"traces need OpenTelemetry: {install_hint('otel')}") from missing
    subscription = hub.subscribe(traces)
    _on.append(subscription)
    hub.tracing = traces

    def off() -> None:
        hub.tracing = None
        traces.close()
        _on.remove(subscription)

    subscription.on_close(off)
    return subscription
