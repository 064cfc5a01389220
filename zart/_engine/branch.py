"""A branch of a body: the place that durable calls are made from.

The body itself is the branch with the empty path; each task that it starts is a branch below the one that started it.
A call's key is drawn from its branch, so it does not depend on what other branches do. Here the public names become
durable calls: each asks the log first, and only what has no record runs.
"""

import asyncio
import datetime as dt
import functools
import hashlib
import inspect
import math
import random
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from zart._engine.entries import Key, Kind, Record
from zart.calls import StepCall, StepSpec
from zart.codec import ANY, Codec
from zart.digest import Arguments
from zart.durations import format_duration
from zart.errors import EventTimeout, PayloadError, Suspended, UsageError
from zart.failures import KnownExceptions, exception_from_json, exception_to_json
from zart.retry import Retry
from zart.state import Context, StepContext

if TYPE_CHECKING:
    from zart._engine.activation import Activation

T = TypeVar("T")


@functools.cache
def _codec_of(kind: type[Any]) -> Codec:
    """How a value without an annotation is stored: by its own type where that has a form of its own."""
    return Codec(ANY if kind in _PLAIN else kind, allow_sets=True)


_PLAIN = frozenset((type(None), bool, int, float, str, list, dict, tuple))
_NO_ARGUMENTS = Arguments(inspect.Signature())
_ZART_ONLY = KnownExceptions()


class Branch:
    """One line of control in a body. It implements `zart.context.Place`."""

    __slots__ = ("_children", "_counts", "_draws", "activation", "adopted", "heard_at", "path")

    def __init__(
        self, activation: "Activation", path: str, heard_at: dt.datetime, *, adopted: bool = True
    ) -> None:
        self.activation = activation
        self.path = path
        self.heard_at = heard_at
        """When the last input that this branch has seen came to be: its `zart.now()`."""
        self.adopted = adopted
        """False for a task that a library started, until it makes a durable call."""
        self._counts: dict[tuple[str, Kind], int] = {}
        self._children: dict[str, int] = {}
        self._draws = 0

    # ------------------------------------------------------------ identity

    def key(self, name: str, kind: Kind) -> Key:
        """The identity of the call that is being made now."""
        seen = (name, kind)
        count = self._counts.get(seen, 0) + 1
        self._counts[seen] = count
        return Key(self.path, name, count, kind)

    def child(self, library: str | None = None) -> "Branch":
        """The branch of a task that this one starts; `library` is the name of a coroutine that is not the user's."""
        number = self._children.get(library or "", 0) + 1
        self._children[library or ""] = number
        label = f"{library}.{number}" if library else str(number)
        return Branch(self.activation, f"{self.path}{label}/", self.heard_at, adopted=library is None)

    # ------------------------------------------------------------ the log

    async def recorded(
        self, key: Key, digest: bytes | None = None, call: StepCall | None = None
    ) -> Record | None:
        """The record of a call, once its turn has come; None when there is none and the call may run."""
        activation = self.activation
        if activation.closed:
            await activation.refuse_call(key)
        if not self.adopted:
            self.adopted = True
            activation.adopt(asyncio.current_task())
        if activation.anyio_deadlines and anyio.current_effective_deadline() != math.inf:
            raise UsageError(
                f"execution {activation.claim.execution_id!r}, {key}: a durable call under a deadline of anyio "
                "(fail_after, move_on_after) cannot be replayed; use `async with zart.timeout(…)` instead"
            )
        record = activation.log.ask(key)
        if (
            record is not None
            and digest is not None
            and record.digest is not None
            and digest != record.digest
        ):
            activation.compare(record, call)
        if record is None or record.seq is None:
            if activation.replaying:
                await self.parked(activation.gate(key, digest))
            else:
                activation.refuse_contradiction(key, digest)
            activation.busy()
            return None
        if not activation.is_turn_of(record):
            record = await self.parked(activation.turn(record))
        self.heard(record)
        return record

    async def parked(self, future: "asyncio.Future[Any]") -> Any:
        """Wait for what the engine will deliver; a cancellation by the engine's unwinding is a suspension.

        What was closed between the last thing that this call waited for and this one delivers nothing any more.
        """
        activation = self.activation
        if activation.closed and not future.done():
            raise activation.suspend(asyncio.current_task())
        try:
            return await future
        except asyncio.CancelledError:
            if activation.closed:
                raise activation.suspend(asyncio.current_task()) from None
            raise

    def heard(self, record: Record) -> None:
        if record.finished_at is not None:
            self.heard_at = record.finished_at

    # ------------------------------------------------------------ steps

    def call_step(self, call: StepCall, /) -> Coroutine[Any, Any, Any]:
        return self._step(call, self.key(call.name, "step"))

    async def _step(self, call: StepCall, key: Key) -> Any:
        spec = call.spec
        digest, preview = None, None
        if spec.check_args != "off":
            digest, preview = spec.arguments.digest(call.args, call.kwargs, call.bound)
        record = await self.recorded(key, digest, call)
        if record is None:
            return await self.activation.steps.run(self, key, call, digest, preview)
        return self.value_of(record, spec)

    def value_of(self, record: Record, spec: StepSpec) -> Any:
        """What a recorded step returned; raises what it raised."""
        what = f"{record.key.kind} {record.key}"
        try:
            if record.state != "failed":
                return spec.result.load(record.result or "null", f"the recorded result of {what}")
            error = exception_from_json(record.failure or "", spec.known, f"the recorded failure of {what}")
        except PayloadError as misfit:
            # The step's annotation has changed, or somebody has edited the row: not the body's failure.
            self.activation.block(misfit, "misfit")
            raise Suspended from None
        raise self.activation.raised(error, record)

    def call_durable(
        self,
        name: str,
        fn: Callable[..., Any],
        args: tuple[Any, ...],  # noqa: ARG002
        /,
    ) -> Coroutine[Any, Any, Any]:
        raise UsageError(
            f"execution {self.activation.claim.execution_id!r} calls the durable function {name!r}: child executions "
            f"are not there yet; `await {getattr(fn, '__name__', name)}.fn(…)` runs it as a part of this body"
        )

    def capture(self, name: str, fn: Callable[[], Any], codec: Codec, /) -> Coroutine[Any, Any, Any]:
        async def take() -> Any:
            value = fn()
            return await value if inspect.isawaitable(value) else value

        spec = StepSpec(
            fn=take,
            threaded=False,
            retry=Retry.none(),
            timeout=None,
            timeout_scope="attempt",
            check_args="off",
            result=codec,
            arguments=_NO_ARGUMENTS,
            known=KnownExceptions(module_globals=getattr(fn, "__globals__", None)),
        )
        return self._step(StepCall(spec, name, (), {}), self.key(name, "capture"))

    # ------------------------------------------------------------ waits

    def sleep(self, duration: dt.timedelta, /) -> Coroutine[Any, Any, None]:
        return self._sleep(self.key("sleep", "timer"), lambda: self.activation.host.now() + duration)

    def sleep_until(self, when: dt.datetime, /) -> Coroutine[Any, Any, None]:
        return self._sleep(self.key("sleep", "timer"), lambda: when)

    async def _sleep(self, key: Key, until: Callable[[], dt.datetime]) -> None:
        if await self.recorded(key) is None:
            stored = self.activation.log.by_key.get(key)
            when = stored.until if stored is not None and stored.until is not None else until()
            self.heard(await self.activation.waits.sleep(self, key, when))

    def wait_for_event(
        self, name: str, codec: Codec, timeout: dt.timedelta | None, /
    ) -> Coroutine[Any, Any, Any]:
        return self._wait_for_event(self.key(name, "wait"), codec, timeout)

    async def _wait_for_event(self, key: Key, codec: Codec, timeout: dt.timedelta | None) -> Any:
        record = await self.recorded(key)
        if record is None:
            stored = self.activation.log.by_key.get(key)
            until = stored.until if stored is not None else None
            if until is None and timeout is not None:
                until = self.activation.host.now() + timeout
            record = await self.activation.waits.event(
                self, key, until, lambda: exception_to_json(self._too_late(key, timeout))
            )
            self.heard(record)
        try:
            if record.state == "failed":
                raise exception_from_json(record.failure or "", _ZART_ONLY)
            return codec.load(record.result or "null", f"the payload of event {key.name!r}")
        except Exception as error:
            self.activation.raised(error, record)
            raise

    def _too_late(self, key: Key, timeout: dt.timedelta | None) -> EventTimeout:
        told = f" within {format_duration(timeout)}" if timeout is not None else ""
        return EventTimeout(
            f"execution {self.activation.claim.execution_id!r}: no event {key.name!r} arrived{told}",
            event=key.name,
            limit=timeout,
        )

    def timeout(self, duration: dt.timedelta, /) -> AbstractAsyncContextManager[None]:
        return DurableTimeout(duration)

    # ------------------------------------------------------------ values

    def data(self, codec: Codec, default: Any, /) -> Any:
        stored = self.activation.data
        return default if stored is None else codec.load(stored, "the data of the execution")

    def set_data(self, value: Any, /) -> None:
        self.activation.data, _ = _codec_of(value.__class__).store(value, "the data of the execution")

    def now(self) -> dt.datetime:
        return self.heard_at

    def uuid4(self) -> uuid.UUID:
        return uuid.UUID(bytes=self._draw(16), version=4)

    def random(self) -> random.Random:
        return random.Random(self._draw(32))  # noqa: S311 (it is to be repeatable, not secret)

    def _draw(self, size: int) -> bytes:
        """Bytes that depend on the run, the branch and how often it has drawn: the same at each replay."""
        self._draws += 1
        drawn = hashlib.blake2b(
            f"{self.path}\0{self._draws}".encode(), key=self.activation.claim.run_id.bytes
        )
        return drawn.digest()[:size]

    def suspending(self) -> bool:
        return self.activation.closed

    def execution_id(self) -> str:
        return self.activation.claim.execution_id

    def context(self) -> Context:
        claim = self.activation.claim
        return Context(
            execution_id=claim.execution_id,
            run_id=str(claim.run_id),
            name=self.activation.spec.name,
            attempt=claim.attempt,
            started_at=claim.started_at,
            is_replaying=self.activation.replaying,
        )

    def step_context(self) -> StepContext:
        raise UsageError(
            f"execution {self.activation.claim.execution_id!r}: zart.step_context() is for code in a step; "
            "in a body use zart.context()"
        )

    def resource(self, type: type[T], /) -> T:
        for resource in self.activation.host.resources:
            if isinstance(resource, type):
                return resource
        held = (
            ", ".join(_name(resource.__class__) for resource in self.activation.host.resources) or "nothing"
        )
        raise UsageError(
            f"execution {self.activation.claim.execution_id!r} asks for a resource of type {_name(type)}, "
            f"but Registry(lifespan=…) opened {held}"
        )


class DurableTimeout(AbstractAsyncContextManager[None]):
    """`async with zart.timeout(…)`: asyncio's own, whose timer the engine makes durable since a body sets it."""

    def __init__(self, duration: dt.timedelta) -> None:
        self._timeout = asyncio.timeout(duration.total_seconds())

    def __aenter__(self) -> Awaitable[None]:  # type: ignore[override]
        return self._enter()

    async def _enter(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(
        self, t: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None, /
    ) -> None:
        await self._timeout.__aexit__(t, e, tb)


def _name(kind: type[Any]) -> str:
    return kind.__qualname__
