"""Somebody who listens to telemetry: events, and spans."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Sampler

from zart import telemetry

E = TypeVar("E", bound=telemetry.TelemetryEvent)


class Heard:
    """All events since it began to listen, in order."""

    def __init__(self) -> None:
        self.events: list[telemetry.TelemetryEvent] = []

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]

    def about(self, execution_id: str) -> list[telemetry.TelemetryEvent]:
        """Those of one execution."""
        return [event for event in self.events if _execution(event) == execution_id]

    def names(self, execution_id: str) -> list[str]:
        """The kinds of those, in order."""
        return [type(event).__name__ for event in self.about(execution_id)]


def _execution(event: Any) -> str | None:
    segment = getattr(event, "segment", None)
    return getattr(event, "execution_id", None) if segment is None else segment.execution_id


@contextmanager
def listening() -> Iterator[Heard]:
    heard = Heard()
    with telemetry.subscribe(heard.events.append):
        yield heard


class Spans:
    """What has been exported so far, and the provider that it came from."""

    def __init__(self, sampler: Sampler | None) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=sampler)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("a test")

    def all(self) -> list[ReadableSpan]:
        """In the order in which they began."""
        return sorted(self._exporter.get_finished_spans(), key=lambda span: span.start_time or 0)

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.all() if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span


@contextmanager
def tracing(sampler: Sampler | None = None, *, messages: bool = False) -> Iterator[Spans]:
    """OpenTelemetry is on, in this process."""
    spans = Spans(sampler)
    with telemetry.opentelemetry(spans.provider, messages=messages):
        yield spans


def tree(spans: list[ReadableSpan]) -> str:
    """The spans as people see them: one line each, below their parents, with what they say of themselves."""
    known = {span.context.span_id for span in spans if span.context is not None}
    lines: list[str] = []

    def show(parent: int | None, depth: int) -> None:
        for span in spans:
            above = span.parent.span_id if span.parent is not None else None
            if (above if above in known else None) == parent and span.context is not None:
                said = span.attributes or {}
                told = [said.get(f"zart.{name}") for name in ("claimed", "attempt", "outcome")]
                lines.append("  " * depth + " ".join([span.name, *(str(each) for each in told if each)]))
                show(span.context.span_id, depth + 1)

    show(None, 0)
    return "\n".join(lines)
