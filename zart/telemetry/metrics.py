"""Prometheus metrics, made of the events (extra `prometheus`).

Labels are bounded: function, queue and step are names from the code, never rendered ones, and each has at most
`labels.MOST_VALUES` values. How full the workers are is looked up when somebody asks.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

from zart.distribution import install_hint
from zart.errors import UsageError
from zart.telemetry import events
from zart.telemetry.hub import Load, Subscription, hub
from zart.telemetry.labels import Labels

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric


_SHORT: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_LONG: Final = (0.01, 0.1, 1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 86400, 7 * 86400, 30 * 86400)
_COMMITS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
_RECORDS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
_BYTES: Final = (256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304)

COUNTERS: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "zart_executions_started": (
        "Executions that clients of this process have started.",
        ("function", "queue"),
    ),
    "zart_executions_ended": (
        "Executions that have ended: completed, failed or cancelled.",
        ("function", "queue", "outcome"),
    ),
    "zart_executions_suspended": ("Times that an execution began to wait.", ("function", "queue")),
    "zart_executions_blocked": ("Times that an execution was blocked.", ("function", "queue")),
    "zart_executions_lost": (
        "Executions that went on elsewhere while they were held.",
        ("function", "queue"),
    ),
    "zart_body_retries": ("Bodies that have failed and run again.", ("function", "queue")),
    "zart_scheduled_steps_ended": ("Scheduled steps that have ended.", ("step", "outcome")),
    "zart_step_retries": (
        "Attempts of steps that have failed and are followed by another.",
        ("function", "step"),
    ),
    "zart_events_delivered": ("Events that a wait has got.", ("function",)),
    "zart_claimed": ("Executions and scheduled steps that were claimed.", ("function", "queue", "how")),
    "zart_takeovers": ("Executions and scheduled steps that were taken over from dead workers.", ()),
    "zart_fences_lost": ("Times that this process was taken for dead.", ()),
    "zart_heartbeats_late": ("Leases that could not be renewed in time.", ()),
}
"""Name, without the `_total` that Prometheus adds: what it says, and its labels."""

HISTOGRAMS: Final[dict[str, tuple[str, tuple[str, ...], tuple[float, ...]]]] = {
    "zart_step_seconds": (
        "How long attempts of steps take: returned, failed or abandoned.",
        ("function", "step", "outcome"),
        _SHORT,
    ),
    "zart_execution_seconds": (
        "From when an execution is due to its end.",
        ("function", "queue", "outcome"),
        _LONG,
    ),
    "zart_claim_latency_seconds": (
        "From when an execution is due to its first claim.",
        ("function", "queue"),
        _SHORT,
    ),
    "zart_claim_seconds": ("How long a claim takes.", (), _COMMITS),
    "zart_journal_batch_records": ("Records in one commit of the journal.", (), _RECORDS),
    "zart_journal_batch_bytes": ("Bytes of users in one commit of the journal.", (), _BYTES),
    "zart_journal_commit_seconds": ("How long a commit of the journal takes.", (), _COMMITS),
}
"""Name: what it says, its labels, and its buckets."""

GAUGES: Final[dict[str, tuple[str, Callable[[Load], int]]]] = {
    "zart_worker_slots": ("Executions that may run at a time in this process.", lambda load: load.slots),
    "zart_worker_held": ("Executions that this process holds.", lambda load: load.held),
    "zart_worker_waiting": ("Those of them that only wait, and take no slot.", lambda load: load.waiting),
    "zart_worker_parked": (
        "Bodies of suspended executions that are kept in memory.",
        lambda load: load.parked,
    ),
}
HOOK_TROUBLE: Final = "zart_telemetry_trouble"
TROUBLE_LABELS: Final = ("hook", "event", "kind")
TROUBLE_SAYS: Final = "Telemetry hooks that have raised, were slow, or dropped events."


class Metrics:
    """The hook, and the collector of what is looked up when somebody asks."""

    def __init__(self, registry: "CollectorRegistry") -> None:
        from prometheus_client import Counter, Histogram  # noqa: PLC0415 (the extra `prometheus` brings it)

        self._counters: dict[str, tuple[Counter, Labels]] = {
            name: (Counter(name, told, labels, registry=registry), Labels(*labels))
            for name, (told, labels) in COUNTERS.items()
        }
        self._histograms: dict[str, tuple[Histogram, Labels]] = {
            name: (Histogram(name, told, labels, buckets=buckets, registry=registry), Labels(*labels))
            for name, (told, labels, buckets) in HISTOGRAMS.items()
        }
        self._collector = _Collector()
        registry.register(self._collector)
        self._registry = registry

    def unregister(self) -> None:
        for metric, _ in (*self._counters.values(), *self._histograms.values()):
            self._registry.unregister(metric)
        self._registry.unregister(self._collector)

    def __call__(self, event: events.TelemetryEvent) -> None:
        tell = _HANDLERS.get(type(event))
        if tell is not None:
            tell(self, event)

    def count(self, name: str, *values: str, by: float = 1) -> None:
        counter, labels = self._counters[name]
        (counter.labels(*labels.bounded(*values)) if values else counter).inc(by)

    def observe(self, name: str, value: float, *values: str) -> None:
        histogram, labels = self._histograms[name]
        (histogram.labels(*labels.bounded(*values)) if values else histogram).observe(value)


# ---------------------------------------------------------------- what each event says


def _started(metrics: Metrics, event: events.ExecutionStarted) -> None:
    metrics.count("zart_executions_started", event.function, event.queue)


def _claimed(metrics: Metrics, event: events.ExecutionClaimed) -> None:
    segment = event.segment
    metrics.count("zart_claimed", segment.function, segment.queue, event.how)
    if event.waited is not None and segment.step is None:
        metrics.observe("zart_claim_latency_seconds", max(event.waited, 0), segment.function, segment.queue)


def _ended(metrics: Metrics, event: events.ExecutionEnded) -> None:
    values = event.segment.function, event.segment.queue, event.outcome
    metrics.count("zart_executions_ended", *values)
    metrics.observe("zart_execution_seconds", max(event.age, 0), *values)


def _counts(name: str) -> Callable[[Metrics, events.SegmentOver], None]:
    def count(metrics: Metrics, event: events.SegmentOver) -> None:
        metrics.count(name, event.segment.function, event.segment.queue)

    return count


def _scheduled_ended(metrics: Metrics, event: events.ScheduledStepEnded) -> None:
    metrics.count("zart_scheduled_steps_ended", event.segment.step or "", event.outcome)


def _step_ended(metrics: Metrics, event: events.StepEnded) -> None:
    values = event.segment.function, event.step.step, event.outcome
    metrics.observe("zart_step_seconds", event.seconds, *values)


def _step_retried(metrics: Metrics, event: events.StepRetried) -> None:
    metrics.count("zart_step_retries", event.segment.function, event.step)


def _delivered(metrics: Metrics, event: events.EventDelivered) -> None:
    metrics.count("zart_events_delivered", event.segment.function)


def _fenced(metrics: Metrics, _event: events.WorkerFenced) -> None:
    metrics.count("zart_fences_lost")


def _late(metrics: Metrics, _event: events.HeartbeatLate) -> None:
    metrics.count("zart_heartbeats_late")


def _claim_made(metrics: Metrics, event: events.ClaimMade) -> None:
    metrics.observe("zart_claim_seconds", event.seconds)


def _committed(metrics: Metrics, event: events.BatchCommitted) -> None:
    metrics.observe("zart_journal_batch_records", event.records)
    metrics.observe("zart_journal_batch_bytes", event.bytes)
    metrics.observe("zart_journal_commit_seconds", event.seconds)


def _taken_over(metrics: Metrics, event: events.TakenOver) -> None:
    metrics.count("zart_takeovers", by=len(event.executions))


_HANDLERS: Final[dict[type[events.TelemetryEvent], Callable[[Metrics, Any], None]]] = {
    events.ExecutionStarted: _started,
    events.ExecutionClaimed: _claimed,
    events.ExecutionEnded: _ended,
    events.ExecutionSuspended: _counts("zart_executions_suspended"),
    events.ExecutionBlocked: _counts("zart_executions_blocked"),
    events.ExecutionLost: _counts("zart_executions_lost"),
    events.BodyRetried: _counts("zart_body_retries"),
    events.ScheduledStepEnded: _scheduled_ended,
    events.StepEnded: _step_ended,
    events.StepRetried: _step_retried,
    events.EventDelivered: _delivered,
    events.WorkerFenced: _fenced,
    events.HeartbeatLate: _late,
    events.ClaimMade: _claim_made,
    events.BatchCommitted: _committed,
    events.TakenOver: _taken_over,
}


class _Collector:
    """What is looked up when somebody asks."""

    def collect(self) -> "Iterator[Metric]":
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily  # noqa: PLC0415

        loads = [load() for load in list(hub.loads.values())]
        for name, (told, read) in GAUGES.items():
            yield GaugeMetricFamily(name, told, value=sum(map(read, loads)))
        trouble = CounterMetricFamily(
            HOOK_TROUBLE,
            TROUBLE_SAYS,
            labels=TROUBLE_LABELS,
        )
        for what, count in hub.troubles.items():
            trouble.add_metric(what, count)
        yield trouble

    def describe(self) -> "Iterable[Metric]":
        """Nothing: what is collected has fixed names, and to look them up now would be too early."""
        return ()


# ---------------------------------------------------------------- switching it on

_on: dict[int, Subscription] = {}
"""By the identity of the registry."""


def prometheus(registry: "CollectorRegistry | None" = None) -> Subscription:
    """Keep metrics of this process in `registry`, by default `prometheus_client.REGISTRY`; twice is harmless.

    Raises UsageError, with the command that installs it, when prometheus_client is not there.
    """
    registry = registry or _default_registry()
    known = _on.get(id(registry))
    if known is not None:
        return known
    metrics = Metrics(registry)
    subscription = _on[id(registry)] = hub.subscribe(metrics)
    subscription.on_close(metrics.unregister)
    subscription.on_close(lambda: _on.pop(id(registry)))
    return subscription


def exposition(registry: "CollectorRegistry | None" = None) -> tuple[str, bytes]:
    """What a scrape gets: the content type, and the metrics of this process as text. Begins to keep them if need be.

    With several processes each has its own.
    """
    prometheus(registry)
    from prometheus_client import CONTENT_TYPE_LATEST, generate_latest  # noqa: PLC0415

    return CONTENT_TYPE_LATEST, generate_latest(registry or _default_registry())


def kept_metrics() -> str:
    """The metrics of this process as text, where they are kept in prometheus_client's own registry; else nothing."""
    registry = sys.modules.get("prometheus_client")
    if registry is None or id(registry.REGISTRY) not in _on:
        return ""
    return exposition()[1].decode()


def serve_metrics(port: int, *, address: str = "127.0.0.1") -> Callable[[], None]:
    """Answer scrapes at `http://address:port/metrics`, from a thread of its own. Returns what ends that.

    Raises OSError when the port is taken.
    """
    prometheus()
    from prometheus_client import start_http_server  # noqa: PLC0415

    server, thread = start_http_server(port, address)

    def end() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return end


def _default_registry() -> "CollectorRegistry":
    try:
        import prometheus_client  # noqa: PLC0415 (the extra `prometheus` brings it)
    except ImportError as missing:
        raise UsageError(
            f"metrics for Prometheus need prometheus_client: {install_hint('prometheus')}"
        ) from missing
    return prometheus_client.REGISTRY
