"""A scheduled step, at the worker that runs it.

It is an activation whose body is one step: the same attempts, limits, delays and suspensions as of a step that its body
runs inline. What differs is the end: what came of it goes into the journal of the run that gave it away, without a
number, and its task is gone in the same statement. It is not blocked either: whatever keeps it from running is its
failure, which the body that scheduled it may catch.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from zart._engine import telling
from zart._engine.activation import Activation
from zart._engine.branch import Branch
from zart._engine.entries import CancelRequest, Change, Claim, Ending, Entry, Key, Record, StepEnded
from zart._engine.host import Host
from zart._engine.parking import DurableFuture
from zart._engine.parts import Part
from zart._engine.points import reach
from zart.calls import DurableSpec, StepSpec
from zart.codec import ANY, Codec
from zart.context import place
from zart.errors import ExecutionCancelled, PayloadError, SerializationError
from zart.failures import KnownExceptions, exception_to_json
from zart.retry import Retry
from zart.step_input import read_input
from zart.telemetry.hub import hub

_ANYTHING = Codec(ANY)
_ZART_ONLY = KnownExceptions()


def spec_of(name: str, step: StepSpec) -> DurableSpec:
    """A step as the body of an activation."""
    return DurableSpec(
        name=name,
        version=None,
        queue="",
        priority=0,
        fn=step.fn,
        takes_payload=False,
        payload=_ANYTHING,
        result=step.result,
        retry=Retry.none(),
        timeout=None,
        on_failure=None,
        known=_ZART_ONLY,
    )


class ScheduledStep(Activation):
    """See the module."""

    __slots__ = ("_step", "_submitted", "key")

    cancels = Part(lambda step: _StepCancels(step))  # type: ignore[assignment]  # noqa: PLW0108 (it comes below)

    def __init__(self, claim: Claim, name: str, step: StepSpec, host: Host) -> None:
        super().__init__(claim, spec_of(name, step), host)
        assert claim.step is not None  # noqa: S101 (that is what makes it one)
        self._step = step
        self.key: Key = claim.step
        self._submitted: Entry | None = None

    @property
    def _what(self) -> str:
        return f"execution {self.claim.execution_id!r}: scheduled step {self.key}"

    def start(self) -> None:
        try:
            call, durable = read_input(
                self.claim.payload, self._step, self.spec.name, self.key.name, self._what
            )
        except PayloadError as error:
            self.fail(error)
            return
        function = self.spec.name
        self.spec = msgspec.structs.replace(self.spec, name=durable)  # what `zart.context()` tells
        if hub.listening:
            telling.claimed(self, step=function)
        self.replay.end()
        if self.closed:
            return
        branch = Branch(self, self.key.path, self.claim.started_at)
        context = self.host.base_context.copy()
        context.run(place.set, branch)
        coroutine = self.steps.run(branch, self.key, call, None, None)
        self.root = asyncio.Task(coroutine, loop=self.loop, context=context)
        self.track(self.root)

    def fail(self, error: Exception) -> None:
        """It cannot be run: that is its failure."""
        self.end(self._failed(error))

    def block(self, error: Exception, what: str = "error") -> None:  # noqa: ARG002
        self.fail(error)

    def _failed(self, error: Exception) -> StepEnded:
        return StepEnded(
            key=self.key, state="failed", failure=exception_to_json(error, step=self.key.name), attempts=1
        )

    def submit(
        self,
        entry: Entry,
        *,
        future: DurableFuture | None = None,
        deliver: Callable[[Record], None] | None = None,  # noqa: ARG002
    ) -> DurableFuture:
        """What came of it is its ending. The entry's `done` is told when that is committed."""
        self._submitted = entry
        assert entry.state in ("completed", "failed")  # noqa: S101 (nothing else is submitted by a step)
        self.end(
            StepEnded(
                key=self.key,
                state=entry.state,
                result=entry.result,
                failure=entry.failure,
                attempts=entry.attempts,
                started_at=entry.started_at,
            )
        )
        never = future or self.future()
        if not never.done():
            never.cancel()
        return never

    def _ended(self, change: Change, error: Exception | None) -> None:
        super()._ended(change, error)
        entry = self._submitted
        if entry is not None and entry.done is not None and not isinstance(error, SerializationError):
            entry.done(entry, error)

    def over(self, root: "asyncio.Task[Any]") -> None:
        """It has ended without anything to submit: by a cancel."""
        error = None if root.cancelled() else root.exception()
        if isinstance(error, Exception):
            self.fail(error)
            return
        request = self.cancels.requested or CancelRequest(None, None)
        told = f"{self._what} was cancelled" + (f" by {request.author}" if request.author else "")
        told += f": {request.reason}" if request.reason else ""
        cancelled = ExecutionCancelled(told, execution_id=self.claim.execution_id, reason=request.reason)
        failure = exception_to_json(cancelled, step=self.key.name)
        self.end(StepEnded(key=self.key, state="cancelled", failure=failure))

    def refused(self, error: SerializationError) -> Ending:
        return self._failed(error)


class _StepCancels:
    """A scheduled step has no log: its cancel is delivered as soon as it is known, and only its end is written."""

    timed_out = False

    def __init__(self, step: ScheduledStep) -> None:
        self._step = step
        self.requested: CancelRequest | None = step.claim.cancel
        self._delivered = False

    def request(self, cancel: CancelRequest | None) -> None:
        if self.requested is None:
            self.requested = cancel
        self.deliver()

    def go_live(self) -> None:
        if self.requested is not None:
            self._step.loop.call_soon(self.deliver, context=self._step.host.base_context)

    def forget_deadline(self) -> None:
        pass

    def deliver(self) -> None:
        root = self._step.root
        if self.requested is not None and not self._delivered and root is not None and not root.done():
            self._delivered = True
            reach("cancel.delivering")
            root.cancel()
            reach("cancel.delivered")
