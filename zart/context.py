"""Where the running code stands: in a durable body, in a step, or outside of both.

One context variable holds the place. A place answers what the public names ask of it: a body's place makes durable
calls of them, a step's place and the outside refuse what makes no sense there. This module knows the question only,
never who answers, so that decorators and primitives depend on nothing of the engine.
"""

import datetime as dt
import random
import uuid
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from typing import Any, Final, NoReturn, Protocol, TypeVar

import msgspec

from zart.calls import ChildCall, StepCall
from zart.codec import Codec
from zart.handles import Pending
from zart.state import Context, StepContext

T = TypeVar("T")


UNCHANGED: Final[Any] = msgspec.UNSET
"""In place of the input with which a body begins anew: the one that it was given."""


class Undos(Protocol):
    """What is to be undone if a block of a body fails."""

    def add(self, call: StepCall, /) -> None:
        """Register the call of an undo step."""
        ...

    def enter(self) -> None:
        """The block begins."""
        ...

    def leave(self, error: BaseException | None, /) -> Coroutine[Any, Any, None]:
        """The block has ended, of this error or well: undo it if it has failed."""
        ...

    def compensate(self) -> Coroutine[Any, Any, None]:
        """Undo what was registered, once."""
        ...


class Place(Protocol):
    """What code may ask of the place where it runs. Methods raise `UsageError` where the question makes no sense."""

    def call_step(self, call: StepCall, /) -> Coroutine[Any, Any, Any]:
        """A coroutine for one step call; its occurrence is taken now, not when it is awaited."""
        ...

    def call_durable(self, call: ChildCall, /) -> Coroutine[Any, Any, Any]:
        """A coroutine for a call of a durable function."""
        ...

    def schedule_step(self, call: StepCall, /) -> Pending:
        """Give a step to whatever worker is free."""
        ...

    def map(
        self, calls: Sequence[StepCall], limit: int | None, /, *, return_exceptions: bool
    ) -> Coroutine[Any, Any, list[Any]]:
        """Schedule steps, at most `limit` of them at once, and wait for all."""
        ...

    def start_child(self, call: ChildCall, /) -> Pending: ...
    def event(self, name: str, codec: Codec, /) -> Pending: ...
    def timer(self, duration: dt.timedelta, /) -> Pending: ...
    def wait_all(
        self, pendings: Sequence[Any], /, *, return_exceptions: bool
    ) -> Coroutine[Any, Any, list[Any]]: ...
    def wait_any(self, pendings: Sequence[Any], /) -> Coroutine[Any, Any, int]:
        """Which of them is over, by its position."""
        ...

    def sleep(self, duration: dt.timedelta, /) -> Coroutine[Any, Any, None]: ...
    def sleep_until(self, when: dt.datetime, /) -> Coroutine[Any, Any, None]: ...
    def wait_for_event(
        self, name: str, codec: Codec, timeout: dt.timedelta | None, /
    ) -> Coroutine[Any, Any, Any]: ...
    def timeout(self, duration: dt.timedelta, /) -> AbstractAsyncContextManager[None]: ...
    def saga(self) -> Undos: ...
    def capture(self, name: str, fn: Callable[[], Any], codec: Codec, /) -> Coroutine[Any, Any, Any]: ...
    def data(self, codec: Codec, default: Any, /) -> Any: ...
    def set_data(self, value: object, /) -> None: ...
    def now(self) -> dt.datetime: ...
    def uuid4(self) -> uuid.UUID: ...
    def random(self) -> random.Random: ...
    def patched(self, change_id: str, /) -> bool: ...
    def continue_as_new(self, data: object, /) -> NoReturn: ...
    def suspending(self) -> bool: ...
    def execution_id(self) -> str: ...
    def context(self) -> Context: ...
    def step_context(self) -> StepContext: ...
    def resource(self, type: type[T], /) -> T: ...


place: ContextVar[Place | None] = ContextVar("zart_place", default=None)
"""The place of the running code; None outside of any execution."""
