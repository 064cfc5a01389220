"""Durable functions on the Postgres you already have.

A durable function is plain async Python that survives crashes, restarts and deploys. Each awaited step of it
is recorded once and never run again after it succeeded; a wait of two days holds nothing but a row.

    import msgspec

    import zart
    from zart import durable, step


    class OnboardingData(msgspec.Struct):
        user_id: str
        email: str


    class Verified(msgspec.Struct):
        at: str


    EmailVerified = zart.Event("email-verified", Verified)


    @step("send-email", retry="exponential(3, 2s)")
    async def send_email(email: str) -> None:
        print("welcome", email)


    @step("setup-billing", timeout="30s")
    async def setup_billing(email: str) -> str:
        return f"customer of {email}"


    @durable("onboarding", max_retries=3, timeout="50h")
    async def onboarding(data: OnboardingData) -> str:
        await send_email(data.email)
        customer_id = await setup_billing(data.email)
        await zart.wait_for_event(EmailVerified, timeout="48h")
        return customer_id


    registry = zart.Registry(onboarding)  # zart worker --app myapp:registry
"""

from zart.client import Client, ExecutionHandle, offer_event, start
from zart.codec import register_type
from zart.config import WorkerConfig
from zart.durable import Durable, durable
from zart.durations import Duration
from zart.encryption import PayloadCodec, PayloadKeys
from zart.errors import (
    EventTimeout,
    ExecutionBlocked,
    ExecutionCancelled,
    ExecutionConflict,
    ExecutionFailed,
    ExecutionFinished,
    ExecutionNotFound,
    ExecutionPruned,
    ExecutionTimeout,
    Failure,
    NonDeterminismError,
    NonRetryable,
    NotDurableWarning,
    PayloadError,
    PayloadUnreadable,
    ResultTimeout,
    RetryAfter,
    SchemaError,
    SerializationError,
    StepFailed,
    StepInterrupted,
    StepStuck,
    StepTimeout,
    UsageError,
    ZartError,
)
from zart.handles import ChildHandle, EventHandle, Handle, StepHandle, TimerHandle
from zart.migrate import migrate
from zart.primitives import (
    Event,
    capture,
    connection,
    context,
    continue_as_new,
    data,
    event,
    execution_id,
    last_progress,
    map,  # noqa: A004
    now,
    patched,
    progress,
    random,
    resource,
    saga,
    schedule_step,
    set_data,
    sleep,
    sleep_until,
    start_child,
    step_context,
    suspending,
    timeout,
    timer,
    uuid4,
    wait_all,
    wait_any,
    wait_for_event,
)
from zart.registry import Registry
from zart.retry import Retry
from zart.saga import Saga
from zart.state import (
    Context,
    Execution,
    History,
    PauseRule,
    Pruned,
    Record,
    Rerun,
    Run,
    Stats,
    StepContext,
    WorkerStatus,
)
from zart.step import AsyncStep, BoundStep, Step, SyncStep, step
from zart.worker import Worker

__all__ = [
    "AsyncStep",
    "BoundStep",
    "ChildHandle",
    "Client",
    "Context",
    "Durable",
    "Duration",
    "Event",
    "EventHandle",
    "EventTimeout",
    "Execution",
    "ExecutionBlocked",
    "ExecutionCancelled",
    "ExecutionConflict",
    "ExecutionFailed",
    "ExecutionFinished",
    "ExecutionHandle",
    "ExecutionNotFound",
    "ExecutionPruned",
    "ExecutionTimeout",
    "Failure",
    "Handle",
    "History",
    "NonDeterminismError",
    "NonRetryable",
    "NotDurableWarning",
    "PauseRule",
    "PayloadCodec",
    "PayloadError",
    "PayloadKeys",
    "PayloadUnreadable",
    "Pruned",
    "Record",
    "Registry",
    "Rerun",
    "ResultTimeout",
    "Retry",
    "RetryAfter",
    "Run",
    "Saga",
    "SchemaError",
    "SerializationError",
    "Stats",
    "Step",
    "StepContext",
    "StepFailed",
    "StepHandle",
    "StepInterrupted",
    "StepStuck",
    "StepTimeout",
    "SyncStep",
    "TimerHandle",
    "UsageError",
    "Worker",
    "WorkerConfig",
    "WorkerStatus",
    "ZartError",
    "capture",
    "connection",
    "context",
    "continue_as_new",
    "data",
    "durable",
    "event",
    "execution_id",
    "last_progress",
    "map",
    "migrate",
    "now",
    "offer_event",
    "patched",
    "progress",
    "random",
    "register_type",
    "resource",
    "saga",
    "schedule_step",
    "set_data",
    "sleep",
    "sleep_until",
    "start",
    "start_child",
    "step",
    "step_context",
    "suspending",
    "timeout",
    "timer",
    "uuid4",
    "wait_all",
    "wait_any",
    "wait_for_event",
]
