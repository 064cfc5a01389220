"""A branch of a body: the place that durable calls are made from.

The body itself is the branch with the empty path; each task that it starts is a branch below the one that started it.
A call's key is drawn from its branch, so it does not depend on what other branches do. Here the public names become
durable calls: each asks the log first, and only what has no record runs.
"""

import asyncio
import datetime as dt
import hashlib
import inspect
import math
import random
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import anyio
import psycopg

from zart._engine import sagas
from zart._engine.contradictions import refuse_arguments, refuse_contradiction
from zart._engine.delegated import Pending
from zart._engine.entries import Key, Kind, Record, StoredEntry
from zart._engine.sagas import Undos
from zart.annotations import Parameters
from zart.calls import ChildCall, StepCall, StepSpec
from zart.codec import Codec, codec_of
from zart.digest import Arguments
from zart.durations import format_duration
from zart.errors import EventTimeout, PayloadError, Suspended, UsageError
from zart.failures import KnownExceptions, exception_from_json, exception_to_json
from zart.retry import Retry
from zart.state import Context, StepContext

if TYPE_CHECKING:
    from zart._engine.activation import Activation

T = TypeVar("T")


_NO_ARGUMENTS = Arguments(inspect.Signature())
_NO_PARAMETERS = Parameters(lambda: None, inspect.Signature(), "a capture")
_ZART_ONLY = KnownExceptions()


class Branch:
    """One line of control in a body. It implements `zart.context.Place`."""

    __slots__ = ("_children", "_counts", "_draws", "_sagas", "activation", "adopted", "heard_at", "path")

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
        self._sagas = 0

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

    def path_of_saga(self) -> str:
        """The path of what is noted of the saga that is being opened now; no branch can have it."""
        self._sagas += 1
        return f"{self.path}saga:{self._sagas}/"

    # ------------------------------------------------------------ the log

    async def recorded(
        self, key: Key, digest: bytes | None = None, call: StepCall | None = None
    ) -> Record | None:
        """The record of a call, once its turn has come; None when there is none and the call may run."""
        activation = self.activation
        await self.check_call(key)
        record = self._compared(key, digest, call)
        if record is not None and record.seq is None and record.given_away:
            # The code calls inline what it has scheduled before: it is under way, or has ended elsewhere.
            return await activation.delegated.attach(self, key)
        if record is None or record.seq is None:
            if activation.replaying:
                await self.parked(activation.replay.gate(key, digest))
            else:
                refuse_contradiction(activation, key, digest)
            activation.busy()
            return None
        replay = activation.replay
        if not replay.is_turn_of(record):
            record = await self.parked(replay.turn(record))
        self.heard(record)
        return record

    def goes_on_at_once(self, key: Key, digest: bytes | None) -> bool:
        """The short way of `recorded`: whether the body is live and this call has no record, so that it may run.

        When not, nothing is decided.
        """
        activation = self.activation
        if activation.replaying or activation.closed or activation.dormant is not None:
            return False
        if not self.adopted or activation.anyio_deadlines or key in activation.log.by_key:
            return False
        activation.log.ask(key)
        refuse_contradiction(activation, key, digest)
        activation.busy()
        return True

    async def check_call(self, key: Key) -> None:
        """Refuse a durable call where none can be, and make its task a part of the body."""
        activation = self.activation
        activation.forget()
        if activation.closed:
            await activation.unwinding.refuse_call(key)
        self._adopt()
        if activation.anyio_deadlines and anyio.current_effective_deadline() != math.inf:
            raise UsageError(
                f"execution {activation.claim.execution_id!r}, {key}: a durable call under a deadline of anyio "
                "(fail_after, move_on_after) cannot be replayed; use `async with zart.timeout(…)` instead"
            )

    def asked(
        self, key: Key, digest: bytes | None = None, call: StepCall | None = None
    ) -> StoredEntry | None:
        """The record of a call that goes on by itself: nobody waits for its turn here."""
        self.activation.forget()
        if self.activation.closed:
            raise Suspended
        self._adopt()
        return self._compared(key, digest, call)

    def _adopt(self) -> None:
        if not self.adopted:
            self.adopted = True
            self.activation.adopt(asyncio.current_task())

    def _compared(self, key: Key, digest: bytes | None, call: StepCall | None) -> StoredEntry | None:
        record = self.activation.log.ask(key)
        if (
            record is not None
            and digest is not None
            and record.digest is not None
            and digest != record.digest
        ):
            refuse_arguments(self.activation, record, call)
        return record

    async def parked(self, future: "asyncio.Future[Any]") -> Any:
        """Wait for what the engine will deliver; a cancellation by the engine's unwinding is a suspension.

        What was closed between the last thing that this call waited for and this one delivers nothing any more.
        """
        activation = self.activation
        if activation.closed and not future.done():
            raise activation.unwinding.suspend(asyncio.current_task())
        try:
            return await future
        except asyncio.CancelledError:
            if activation.closed:
                raise activation.unwinding.suspend(asyncio.current_task()) from None
            raise

    def heard(self, record: Record) -> None:
        if record.data is not None:  # set by a step in its transaction
            self.activation.data = record.data.encode() if isinstance(record.data, str) else record.data
        if record.finished_at is not None:
            self.heard_at = record.finished_at

    # ------------------------------------------------------------ steps

    def call_step(self, call: StepCall, /) -> Coroutine[Any, Any, Any]:
        key, within = self.key(call.name, "step"), sagas.around()
        if call.spec.plain and not within:
            return self.activation.steps.run_plain(self, key, call)
        return self._step(call, key, within)

    def undo(self, call: StepCall, undoes: Undos, /) -> Coroutine[Any, Any, Any]:
        """Call an undo step of a saga that this branch has opened."""
        return self._step(call, self.key(call.name, "step"), undoes.within, undoes)

    async def _step(
        self, call: StepCall, key: Key, within: tuple[Undos, ...] = (), undoes: Undos | None = None
    ) -> Any:
        digest, preview = call.digest()
        if within:
            known = self.activation.log.by_key.get(key)
            if known is not None:
                sagas.note(within, key, known)
        record = await self.recorded(key, digest, call)
        if record is None:
            return await self.activation.steps.run(
                self, key, call, digest, preview, within=within, undoes=undoes
            )
        return self.value_of(record, call.spec)

    def value_of(self, record: Record, spec: StepSpec) -> Any:
        """What a recorded step returned; raises what it raised."""
        # One that runs at most once is never tried afresh: whatever becomes of the body, it does not run again.
        return self.outcome_of(record, spec.result, spec.known, afresh=not spec.at_most_once)

    def outcome_of(
        self, record: Record, result: Codec, known: KnownExceptions, *, afresh: bool = True
    ) -> Any:
        """What a recorded call returned; raises what it raised. `afresh`: for which it may be made once more."""
        what = f"{record.key.kind} {record.key}"
        try:
            if record.state == "completed":
                return result.load(record.result or "null", f"the recorded result of {what}")
            error = exception_from_json(record.failure or "", known, f"the recorded failure of {what}")
        except PayloadError as misfit:
            # The step's annotation has changed, or somebody has edited the row: not the body's failure.
            self.activation.block(misfit, "misfit")
            raise Suspended from None
        raise self.activation.raised(error, record) if afresh else error

    # ------------------------------------------------------------ what is given away

    def call_durable(self, call: ChildCall, /) -> Coroutine[Any, Any, Any]:
        return self._child(call, self.key(call.spec.name, "child"))

    async def _child(self, call: ChildCall, key: Key) -> Any:
        return await self.activation.delegated.child(self, call, key).wait()

    def start_child(self, call: ChildCall, /) -> Pending:
        return self.activation.delegated.child(self, call, self.key(call.spec.name, "child"))

    def schedule_step(self, call: StepCall, /) -> Pending:
        return self.activation.delegated.schedule(self, call)

    def map(
        self, calls: Sequence[StepCall], limit: int | None, /, *, return_exceptions: bool
    ) -> Coroutine[Any, Any, list[Any]]:
        return self._wait_all(
            self.activation.delegated.schedule_all(self, calls, limit), return_exceptions=return_exceptions
        )

    def event(self, name: str, codec: Codec, /) -> Pending:
        activation, key = self.activation, self.key(name, "wait")

        def read(record: Record) -> Any:
            try:
                return codec.load(record.result or "null", f"the payload of event {name!r}")
            except PayloadError as error:
                raise activation.raised(error, record) from None

        pending = Pending(activation.delegated, key, read)

        def deliver(record: Record) -> None:
            if pending.cancelled:
                activation.waits.give_back(record)
            else:
                pending.deliver(record)

        def begin() -> None:
            if not pending.cancelled:
                pending.wait_of = activation.waits.expect(key, deliver)

        self._begin(key, deliver, begin)
        return pending

    def timer(self, duration: dt.timedelta, /) -> Pending:
        activation, key = self.activation, self.key("timer", "timer")
        pending = Pending(activation.delegated, key, lambda _record: None)

        def deliver(record: Record) -> None:
            if not pending.cancelled:
                pending.deliver(record)

        def begin() -> None:
            if not pending.cancelled:
                until = self._until(key) or activation.host.now() + duration
                pending.wait_of = activation.waits.timer(key, until, deliver)

        self._begin(key, deliver, begin)
        return pending

    def _begin(self, key: Key, deliver: Callable[[Record], None], begin: Callable[[], None]) -> None:
        """Begin a wait of the body's own that goes on by itself."""
        record = self.asked(key)
        if record is not None and record.seq is not None:
            self.activation.replay.on_turn(record, deliver)
        else:
            self.activation.replay.when_live(key, None, begin)

    def wait_all(
        self, pendings: Sequence[Pending], /, *, return_exceptions: bool
    ) -> Coroutine[Any, Any, list[Any]]:
        return self._wait_all(pendings, return_exceptions=return_exceptions)

    async def _wait_all(self, pendings: Sequence[Pending], *, return_exceptions: bool) -> list[Any]:
        await self.activation.delegated.join(self, pendings, every=True)
        values: list[Any] = []
        for pending in pendings:
            try:
                values.append(pending.value())
            except Exception as error:
                if not return_exceptions:
                    raise
                values.append(error)
        return values

    async def wait_any(self, pendings: Sequence[Pending], /) -> int:
        await self.activation.delegated.join(self, pendings, every=False)
        over = [place for place, pending in enumerate(pendings) if pending.over]
        return min(over, key=lambda place: pendings[place].place)

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
            parameters=_NO_PARAMETERS,
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
            self.heard(await self.activation.waits.sleep(self, key, self._until(key) or until()))

    def wait_for_event(
        self, name: str, codec: Codec, timeout: dt.timedelta | None, /
    ) -> Coroutine[Any, Any, Any]:
        return self._wait_for_event(self.key(name, "wait"), codec, timeout)

    async def _wait_for_event(self, key: Key, codec: Codec, timeout: dt.timedelta | None) -> Any:
        record = await self.recorded(key)
        if record is None:
            until = self._until(key)
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

    def _until(self, key: Key) -> dt.datetime | None:
        """When a wait that is under way is over, as an earlier activation has recorded."""
        stored = self.activation.log.by_key.get(key)
        return None if stored is None else stored.until

    def _too_late(self, key: Key, timeout: dt.timedelta | None) -> EventTimeout:
        told = f" within {format_duration(timeout)}" if timeout is not None else ""
        return EventTimeout(
            f"execution {self.activation.claim.execution_id!r}: no event {key.name!r} arrived{told}",
            event=key.name,
            limit=timeout,
        )

    def timeout(self, duration: dt.timedelta, /) -> AbstractAsyncContextManager[None]:
        return DurableTimeout(duration)

    def saga(self) -> Undos:
        return self.activation.sagas.open(self)

    # ------------------------------------------------------------ values

    def data(self, codec: Codec, default: Any, /) -> Any:
        stored = self.activation.data
        return default if stored is None else codec.load(stored, "the data of the execution")

    def set_data(self, value: Any, /) -> None:
        self.activation.data, _ = codec_of(value.__class__).store(value, "the data of the execution")

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

    def patched(self, change_id: str, /) -> bool:
        return self.activation.patches.answer(change_id)

    def continue_as_new(self, data: object, /) -> NoReturn:
        self.activation.phase.continue_as_new(data)

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

    def connection(self) -> "psycopg.AsyncConnection[Any]":
        self._refuse_for_steps("zart.connection()", "in a step with transaction=True")

    def sync_connection(self) -> "psycopg.Connection[Any]":
        self._refuse_for_steps("zart.sync.connection()", "in a plain def step with transaction=True")

    def progress(self, value: object, /) -> None:  # noqa: ARG002
        self._refuse_for_steps("zart.progress", "in a step; what a body has done is recorded anyway")

    def last_progress(self, codec: Codec, /) -> Any:  # noqa: ARG002
        self._refuse_for_steps("zart.last_progress", "in the step that told it")

    def _refuse_for_steps(self, called: str, where: str) -> NoReturn:
        raise UsageError(
            f"execution {self.activation.claim.execution_id!r}: {called} is called in its body, which is replayed: "
            f"call it {where}"
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
