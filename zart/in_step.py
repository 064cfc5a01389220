"""The place of code in a step: no durable call is possible there, since a step is run, not replayed."""

# ruff: noqa: ARG002

import datetime as dt
import random
import uuid
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, NoReturn, TypeVar

import msgspec
import psycopg

from zart.calls import ChildCall, StepCall, Transaction
from zart.codec import Codec, codec_of
from zart.context import Place, Undos
from zart.errors import UsageError
from zart.handles import Pending
from zart.state import Context, StepContext

T = TypeVar("T")


class Inside(msgspec.Struct, eq=False, kw_only=True):
    """What the code of one attempt has to do with the engine, beside what it returns."""

    transaction: Transaction = False
    scheduled: bool = False
    """It runs apart from the body that has scheduled it."""
    connection: psycopg.AsyncConnection[Any] | None = None
    """On which its transaction is open, in an `async def`."""
    sync_connection: psycopg.Connection[Any] | None = None
    """The same in a plain `def`."""
    schema: str = "public"
    """Where the tables are that `connection` leads to."""
    data: bytes | None = None
    """What it has set with `set_data`: a part of its record."""
    progress: bytes | None = None
    """What was told last, by this attempt or an earlier one."""
    on_progress: Callable[[], None] | None = None
    """Called with each progress, on whatever thread."""


class InStep:
    """A `Place`: it answers what a step may ask and refuses the rest, saying what to do instead.

    What belongs to the execution is asked of `outer`, the place of the body that called the step; what
    belongs to the attempt, of `step_context`, a function since few steps want to know it.
    """

    __slots__ = ("_outer", "_step_context", "inside")

    def __init__(
        self, outer: Place, step_context: Callable[[], StepContext], inside: Inside | None = None
    ) -> None:
        self.inside: Inside = Inside() if inside is None else inside
        self._outer = outer
        self._step_context = step_context

    def call_step(self, call: StepCall, /) -> Coroutine[Any, Any, Any]:
        function: str = getattr(call.spec.fn, "__name__", "it")
        raise UsageError(
            f"the step {call.name!r} is called in {self._here()}: a step is recorded as one, with nothing "
            "recorded "
            f"inside. Call both from the durable body, or the plain function: {function}.fn(...)"
        )

    def call_durable(self, call: ChildCall, /) -> Coroutine[Any, Any, Any]:
        raise UsageError(
            f"the durable function {call.spec.name!r} is called in {self._here()}: start it with a Client, or call "
            f"the plain function: {getattr(call.spec.fn, '__name__', 'it')}.fn(...)"
        )

    def schedule_step(self, call: StepCall, /) -> Pending:
        self._refuse("zart.schedule_step", "schedule it in the body")

    def map(
        self, calls: Sequence[StepCall], limit: int | None, /, *, return_exceptions: bool
    ) -> Coroutine[Any, Any, list[Any]]:
        self._refuse("zart.map", "call it in the body")

    def start_child(self, call: ChildCall, /) -> Pending:
        self._refuse(
            "zart.start_child", "start it in the body, or with a Client if it is to stand for itself"
        )

    def event(self, name: str, codec: Codec, /) -> Pending:
        self._refuse("zart.event", "wait in the body, and give the payload to the step as an argument")

    def timer(self, duration: dt.timedelta, /) -> Pending:
        self._refuse("zart.timer", "use it in the body, or asyncio.sleep for a short pause")

    def wait_all(
        self, pendings: Sequence[Any], /, *, return_exceptions: bool
    ) -> Coroutine[Any, Any, list[Any]]:
        self._refuse("zart.wait_all", "wait in the body")

    def wait_any(self, pendings: Sequence[Any], /) -> Coroutine[Any, Any, int]:
        self._refuse("zart.wait_any", "wait in the body")

    def sleep(self, duration: dt.timedelta, /) -> Coroutine[Any, Any, None]:
        self._refuse(
            "zart.sleep", "sleep in the body between two steps, or use asyncio.sleep for a short pause"
        )

    def sleep_until(self, when: dt.datetime, /) -> Coroutine[Any, Any, None]:
        self._refuse("zart.sleep_until", "sleep in the body between two steps")

    def wait_for_event(
        self, name: str, codec: Codec, timeout: dt.timedelta | None, /
    ) -> Coroutine[Any, Any, Any]:
        self._refuse(
            "zart.wait_for_event", "wait in the body, and give the payload to the step as an argument"
        )

    def timeout(self, duration: dt.timedelta, /) -> AbstractAsyncContextManager[None]:
        self._refuse("zart.timeout", "use asyncio.timeout in the step, or @step(timeout=...)")

    def saga(self) -> Undos:
        self._refuse("zart.saga", "open the saga in the body, around the steps that it is to undo")

    def capture(self, name: str, fn: Callable[[], Any], codec: Codec, /) -> Coroutine[Any, Any, Any]:
        self._refuse(
            "zart.capture", "call the function plainly: all that the step returns is recorded with it"
        )

    def data(self, codec: Codec, default: Any, /) -> Any:
        self._refuse("zart.data", "read it in the body, and give it to the step as an argument")

    def set_data(self, value: Any, /) -> None:
        if self.inside.transaction is not True:
            self._refuse(
                "zart.set_data",
                "return the value from the step, and set it in the body; a step with transaction=True may set it",
            )
        if self.inside.scheduled:
            self._refuse(
                "zart.set_data",
                "a scheduled step runs apart from the body: return the value, and set it there",
            )
        self.inside.data, _ = codec_of(value.__class__).store(value, "the data of the execution")

    def now(self) -> dt.datetime:
        return dt.datetime.now(dt.UTC)

    def uuid4(self) -> uuid.UUID:
        return uuid.uuid4()

    def random(self) -> random.Random:
        return random.Random()  # noqa: S311 (as asked for: random numbers, not secrets)

    def patched(self, change_id: str, /) -> bool:
        self._refuse("zart.patched", "ask in the body, and give the answer to the step as an argument")

    def continue_as_new(self, data: object, /) -> NoReturn:
        self._refuse("zart.continue_as_new", "return from the step, and begin anew in the body")

    def suspending(self) -> bool:
        return False

    def execution_id(self) -> str:
        return self._outer.execution_id()

    def context(self) -> Context:
        return self._outer.context()

    def step_context(self) -> StepContext:
        return self._step_context()

    def resource(self, type: type[T], /) -> T:
        return self._outer.resource(type)

    def connection(self) -> psycopg.AsyncConnection[Any]:
        if self.inside.connection is None:
            self._refuse_connection(
                "zart.connection()", "zart.sync.connection()", self.inside.sync_connection
            )
        return self.inside.connection

    def sync_connection(self) -> psycopg.Connection[Any]:
        if self.inside.sync_connection is None:
            self._refuse_connection("zart.sync.connection()", "zart.connection()", self.inside.connection)
        return self.inside.sync_connection

    def progress(self, value: Any, /) -> None:
        self.inside.progress, _ = codec_of(value.__class__).store(
            value, f"the progress of step {self._step_context().step_name!r}"
        )
        tell = self.inside.on_progress  # gone once the attempt is over, which a thread may outlive
        if tell is not None:
            tell()

    def last_progress(self, codec: Codec, /) -> Any:
        told = self.inside.progress
        if told is None:
            return None
        return codec.load(told, f"the progress of step {self._step_context().step_name!r}")

    def _refuse_connection(self, called: str, other: str, has_other: object) -> NoReturn:
        if has_other is not None:
            kind = "a plain def" if called == "zart.connection()" else "an async def"
            told = f"it is {kind}: use {other}"
        elif self.inside.transaction is True:
            told = "there is no database here: give zart.testing.run a replacement, steps={...}"
        elif self.inside.transaction == "own":
            told = 'with transaction="own" the transaction is one of your own; with transaction=True it is Zart\'s'
        else:
            told = "only a step with transaction=True has a transaction of Zart's: write @step(..., transaction=True)"
        raise UsageError(f"{called} is called in {self._here()}: {told}")

    def _here(self) -> str:
        known = self._step_context()
        return f"the step {known.step_name!r} of execution {known.execution_id!r}"

    def _refuse(self, called: str, instead: str) -> NoReturn:
        raise UsageError(
            f"{called} is called in {self._here()}, and a step is not resumed in its middle: {instead}"
        )
