"""Metrics for Prometheus: what is counted, and that nothing can make them grow without end."""

import builtins
import functools
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from zart import UsageError, telemetry
from zart.telemetry import events
from zart.telemetry.events import Segment, StepAttempt
from zart.telemetry.hub import Load, hub
from zart.telemetry.labels import MOST_VALUES, OTHER, Labels
from zart.telemetry.metrics import COUNTERS, GAUGES, HISTOGRAMS


@pytest.fixture
def registry() -> Iterator[CollectorRegistry]:
    """With the metrics of this process."""
    made = CollectorRegistry()
    with telemetry.prometheus(made):
        yield made


def segment(function: str = "order", step: str | None = None) -> Segment:
    return Segment(
        number=1,
        worker=1,
        execution_id="x",
        run_id="r",
        function=function,
        version=None,
        queue="default",
        attempt=1,
        claims=1,
        recoveries=0,
        step=step,
        began=0.0,
    )


def attempt(step: str, name: str) -> StepAttempt:
    return StepAttempt(number=1, step=step, name=name, function="f", attempt=1, threaded=False)


def ended(step: str, name: str = "rendered") -> events.StepEnded:
    return events.StepEnded(
        segment=segment(), step=attempt(step, name), outcome="returned", seconds=0.2, error=None
    )


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, labels)


def test_the_first_values_of_a_label_stay_and_all_others_are_other() -> None:
    """Each label has its own; a value that is known is known for good."""
    labels = Labels("function", "step", most=2)
    assert labels.bounded("a", "x") == ("a", "x")
    assert labels.bounded("b", "y") == ("b", "y")
    assert labels.bounded("c", "x") == (OTHER, "x")
    assert labels.bounded("a", "z") == ("a", OTHER)
    assert labels.bounded("c", "z") == (OTHER, OTHER)
    assert labels.bounded("b", "y") == ("b", "y")


def test_steps_with_names_made_on_the_fly_cannot_fill_the_memory(registry: CollectorRegistry) -> None:
    """A thousand inline steps with names of their own are a hundred series and one for the rest; nothing is lost."""
    for number in range(1000):
        hub.tell(ended(f"fetch page {number}"))
    labels = {"function": "order", "outcome": "returned"}
    assert value(registry, "zart_step_seconds_count", step="fetch page 7", **labels) == 1
    assert value(registry, "zart_step_seconds_count", step="fetch page 700", **labels) is None
    assert value(registry, "zart_step_seconds_count", step=OTHER, **labels) == 1000 - MOST_VALUES
    series = [
        sample
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "zart_step_seconds_count"
    ]
    assert len(series) == MOST_VALUES + 1


def test_a_template_is_one_series_whatever_it_renders(registry: CollectorRegistry) -> None:
    """The label is the name as it was decorated."""
    for number in range(10):
        hub.tell(ended("charge-{order.id}", f"charge-{number}"))
    labels = {"function": "order", "step": "charge-{order.id}", "outcome": "returned"}
    assert value(registry, "zart_step_seconds_count", **labels) == 10
    assert value(registry, "zart_step_seconds_sum", **labels) == pytest.approx(2)
    assert value(registry, "zart_step_seconds_bucket", le="0.1", **labels) == 0
    assert value(registry, "zart_step_seconds_bucket", le="0.25", **labels) == 10


ONE_OF_EACH: list[events.TelemetryEvent] = [
    events.ExecutionStarted(execution_id="x", function="order", version=None, queue="default"),
    events.ExecutionClaimed(segment=segment(), how="first", waited=0.5),
    events.ExecutionEnded(segment=segment(), seconds=1, outcome="completed", age=3, error=None),
    events.ExecutionSuspended(segment=segment(), seconds=1, waiting_for=None),
    events.ExecutionBlocked(segment=segment(), seconds=1, reason="crash-loop", error=events.Raised(type="E")),
    events.BodyRetried(segment=segment(), seconds=1, delay=1, error=None),
    events.ExecutionLost(segment=segment(), seconds=1),
    events.ScheduledStepEnded(segment=segment(step="look"), seconds=1, outcome="failed", error=None),
    ended("look"),
    events.StepRetried(segment=segment(), step="look", name="look", attempt=1, delay=1),
    events.EventDelivered(segment=segment(), event="paid"),
    events.WorkerFenced(worker=1),
    events.HeartbeatLate(worker=1, since=3),
    events.ClaimMade(worker=1, taken=3, seconds=0.003),
    events.BatchCommitted(worker=1, records=7, bytes=900, seconds=0.004),
    events.TakenOver(executions=("a", "b"), workers=1),
]


def test_each_metric_has_an_event_that_moves_it(registry: CollectorRegistry) -> None:
    """None of them is made up, and one of each event is counted once, with the value that it carries."""
    for event in ONE_OF_EACH:
        hub.tell(event)
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in registry.collect()
        for sample in family.samples
    }
    told = {name: amount for (name, _), amount in samples.items()}
    for name in COUNTERS:
        assert told[f"{name}_total"] == (2 if name == "zart_takeovers" else 1), name
    for name in HISTOGRAMS:
        assert told[f"{name}_count"] == 1, name
    assert told["zart_execution_seconds_sum"] == 3
    assert told["zart_claim_latency_seconds_sum"] == 0.5
    assert told["zart_claim_seconds_sum"] == pytest.approx(0.003)
    assert told["zart_journal_batch_records_sum"] == 7
    assert told["zart_journal_batch_bytes_sum"] == 900
    assert told["zart_journal_commit_seconds_sum"] == pytest.approx(0.004)


def test_how_full_the_workers_are_is_looked_up(registry: CollectorRegistry) -> None:
    """All workers of the process together, at the moment of the scrape."""
    loads = {-1: Load(slots=10, held=3, waiting=2, parked=5), -2: Load(slots=20, held=1, waiting=0, parked=0)}
    hub.loads.update({number: functools.partial(loads.__getitem__, number) for number in loads})
    try:
        assert value(registry, "zart_worker_slots") == 30
        assert value(registry, "zart_worker_held") == 4
        assert value(registry, "zart_worker_waiting") == 2
        assert value(registry, "zart_worker_parked") == 5
        loads[-1] = Load(slots=10, held=9, waiting=2, parked=5)
        assert value(registry, "zart_worker_held") == 10
    finally:
        for number in loads:
            del hub.loads[number]
    assert [value(registry, name) for name in GAUGES] == [0, 0, 0, 0]


def test_trouble_with_hooks_is_a_metric(registry: CollectorRegistry) -> None:
    """By hook, event and kind."""

    def breaks(_event: object) -> None:
        raise ValueError

    with telemetry.subscribe(breaks) as subscription:
        hub.tell(events.WorkerStopped(worker=1))
        hub.tell(events.WorkerStopped(worker=1))
    labels = {"hook": subscription.name, "event": "WorkerStopped", "kind": "raised"}
    assert value(registry, "zart_telemetry_trouble_total", **labels) == 2


def test_what_a_scrape_gets() -> None:
    """The content type and the text, which Prometheus can read; it begins to keep metrics if nobody has before."""
    made = CollectorRegistry()
    try:
        kind, text = telemetry.exposition(made)
        assert kind.startswith("text/plain")
        hub.tell(events.WorkerFenced(worker=1))
        _, text = telemetry.exposition(made)
        families = {family.name: family for family in text_string_to_metric_families(text.decode())}
        assert families["zart_fences_lost"].samples[0].value == 1
        assert set(COUNTERS) | set(HISTOGRAMS) | set(GAUGES) <= set(families)
    finally:
        telemetry.prometheus(made).close()


def test_closing_takes_the_metrics_out(registry: CollectorRegistry) -> None:
    """Twice on is once on; off is off, and it can be switched on again."""
    assert telemetry.prometheus(registry) is telemetry.prometheus(registry)
    telemetry.prometheus(registry).close()
    assert list(registry.collect()) == []
    hub.tell(events.WorkerFenced(worker=1))
    with telemetry.prometheus(registry):
        assert value(registry, "zart_fences_lost_total") == 0


@pytest.mark.parametrize(
    ("missing", "switch", "extra"),
    [
        ("prometheus_client", telemetry.prometheus, "prometheus"),
        ("prometheus_client", telemetry.exposition, "prometheus"),
        ("opentelemetry", telemetry.opentelemetry, "otel"),
    ],
)
def test_what_is_not_installed_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, missing: str, switch: Any, extra: str
) -> None:
    """An extra is imported when it is used, and nobody else is told of it."""
    real = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == missing:
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UsageError, match=rf"pip install 'zart-durable\[{extra}\]'"):
        switch()
    assert not hub.listening
