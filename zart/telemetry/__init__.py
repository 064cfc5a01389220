"""Logs, metrics, traces, and hooks of your own: what Zart tells of its work while it does it.

    zart.telemetry.opentelemetry()          # spans, to the global tracer provider
    zart.telemetry.prometheus()             # metrics, in prometheus_client's default registry
    handler.addFilter(zart.telemetry.LogContext())    # execution and step on each line of a log
    zart.telemetry.subscribe(print)         # every event, to a function of yours

All of it is of one process, and is switched on there before its clients and workers begin. `zart worker` does it with
`--otel`, `--metrics-port` and `--log-format json`.
"""

from zart.telemetry.events import (
    BatchCommitted,
    BodyRetried,
    ClaimMade,
    EventDelivered,
    ExecutionBlocked,
    ExecutionClaimed,
    ExecutionContinued,
    ExecutionEnded,
    ExecutionLost,
    ExecutionReleased,
    ExecutionStarted,
    ExecutionSuspended,
    HeartbeatLate,
    Raised,
    ScheduledStepEnded,
    Segment,
    SegmentOver,
    StepAttempt,
    StepBegan,
    StepEnded,
    StepRetried,
    TakenOver,
    TelemetryEvent,
    WorkerFenced,
    WorkerStarted,
    WorkerStopped,
)
from zart.telemetry.hub import Subscription, subscribe
from zart.telemetry.logs import JsonFormatter, LogContext
from zart.telemetry.metrics import exposition, kept_metrics, prometheus, serve_metrics
from zart.telemetry.traces import opentelemetry

__all__ = [
    "BatchCommitted",
    "BodyRetried",
    "ClaimMade",
    "EventDelivered",
    "ExecutionBlocked",
    "ExecutionClaimed",
    "ExecutionContinued",
    "ExecutionEnded",
    "ExecutionLost",
    "ExecutionReleased",
    "ExecutionStarted",
    "ExecutionSuspended",
    "HeartbeatLate",
    "JsonFormatter",
    "LogContext",
    "Raised",
    "ScheduledStepEnded",
    "Segment",
    "SegmentOver",
    "StepAttempt",
    "StepBegan",
    "StepEnded",
    "StepRetried",
    "Subscription",
    "TakenOver",
    "TelemetryEvent",
    "WorkerFenced",
    "WorkerStarted",
    "WorkerStopped",
    "exposition",
    "kept_metrics",
    "opentelemetry",
    "prometheus",
    "serve_metrics",
    "subscribe",
]
