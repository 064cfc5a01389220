"""What a durable body calls: waits, time, randomness and what it is part of.

Each name asks the place where it is called. A durable body's place answers durably; a step's place answers or
refuses (`in_step`); outside of both, what has a plain meaning has that, and the rest is refused here.

The waits are asynchronous functions, to people and to tools, but a call of one acts at once and hands on the
place's own coroutine: its position among its like is taken when it is called, not when it is awaited, and
nothing of ours stands between a task and the coroutine that the engine recognises.
"""

import datetime as dt
import random as _random
import uuid as _uuid
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, NoReturn, Protocol, TypeVar, cast, overload

from typing_extensions import TypeForm

from zart.annotations import codec_for, result_codec, where
from zart.codec import ANY, Codec
from zart.context import Place, place
from zart.coroutine_function import CoroutineFunction
from zart.durations import Duration, parse_duration
from zart.errors import UsageError
from zart.names import check_name
from zart.state import Context, StepContext

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


class _AtOnce(CoroutineFunction):
    """What `declared`, an async function without a body, says it is, doing what `action` does at the call."""

    def __init__(self, declared: Callable[..., Any], action: Callable[..., Any]) -> None:
        self._pass_for(declared)
        self._action = action

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._action(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<function zart.{self.__name__}>"


class _Decorator(Protocol):
    def __call__(self, declared: F, /) -> F: ...


def _at_once(action: Callable[..., Coroutine[Any, Any, Any]]) -> _Decorator:
    """Let `action` be called where the decorated async function is: see the module's docstring."""

    def decorate(declared: F, /) -> F:
        return cast("F", _AtOnce(declared, action))

    return decorate


class Event(Generic[T]):
    """A typed name that sender and receiver share: `Approved = zart.Event("approved", Decision)`.

    `name` has 1 to 200 bytes; without a type any payload is taken as it is. Raises UsageError for a name or a
    type that cannot be.
    """

    name: str
    codec: Codec
    """How payloads are written and read."""

    @overload
    def __init__(self: "Event[Any]", name: str, /) -> None: ...
    @overload
    def __init__(self, name: str, type: TypeForm[T], /) -> None: ...
    def __init__(self, name: str, type: Any = ANY, /) -> None:
        self.name = check_name(name, "the name of an event")
        self.codec = codec_for(type, f"the event {name!r}", allow_sets=True)

    def __repr__(self) -> str:
        return f"zart.Event({self.name!r})"


def _sleep(duration: Duration, /) -> Coroutine[Any, Any, None]:
    length = parse_duration(duration, what="the duration of zart.sleep")
    return _body("zart.sleep").sleep(length)


@_at_once(_sleep)
async def sleep(duration: Duration, /) -> None:
    """Wait for a length of time, up to years: nothing is held meanwhile, and a crash does not start it anew.

    Only in a durable body. Raises UsageError for what is no duration.
    """


def _sleep_until(when: dt.datetime, /) -> Coroutine[Any, Any, None]:
    if not isinstance(when, dt.datetime):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(
            f"zart.sleep_until takes a datetime with a time zone, not {when!r}; for a duration use zart.sleep"
        )
    if when.utcoffset() is None:
        raise UsageError(
            f"zart.sleep_until was given {when.isoformat()}, which has no time zone, so that it would depend "
            "on the worker's: use datetime(..., tzinfo=UTC)"
        )
    return _body("zart.sleep_until").sleep_until(when)


@_at_once(_sleep_until)
async def sleep_until(when: dt.datetime, /) -> None:
    """Wait until a time, which must have a time zone; one that has passed is over at once.

    Only in a durable body.
    """


def _wait_for_event(
    name: str | Event[Any], type: Any = ANY, *, timeout: Duration | None = None
) -> Coroutine[Any, Any, Any]:
    if isinstance(name, Event):
        if type is not ANY:
            raise UsageError(
                f"zart.wait_for_event({name!r}) has its type from the event: leave out the second one"
            )
        called, codec = name.name, name.codec
    else:
        called = check_name(name, "the name of an event")
        codec = codec_for(type, f"the event {called!r}", allow_sets=True)
    limit = None if timeout is None else parse_duration(timeout, what=f"timeout of the event {called!r}")
    return _body("zart.wait_for_event").wait_for_event(called, codec, limit)


@overload
async def wait_for_event(event: Event[T], /, *, timeout: Duration | None = None) -> T: ...
@overload
async def wait_for_event(name: str, /, *, timeout: Duration | None = None) -> Any: ...
@overload
async def wait_for_event(name: str, type: TypeForm[T], *, timeout: Duration | None = None) -> T: ...
@_at_once(_wait_for_event)
async def wait_for_event(name: str | Event[Any], type: Any = ANY, *, timeout: Duration | None = None) -> Any:
    """Wait for the next event of a name and return its payload, decoded as the event's type.

    Events are kept from the execution's start, first in first out, each for one wait. Only in a durable body.
    Raises EventTimeout when none came within `timeout` (default: no limit), and PayloadError when the payload
    does not fit; the event is consumed then.
    """


def _capture(name: str, fn: Callable[[], Any], /, *, type: Any = ANY) -> Coroutine[Any, Any, Any]:
    what = f"zart.capture({check_name(name, 'the name of a capture')!r})"
    if not callable(fn):
        raise UsageError(f"{what} takes a function without parameters, not {fn!r}: write lambda: ...")
    codec = result_codec(fn, f"{what} of {where(fn)}") if type is ANY else codec_for(type, what)
    return _body("zart.capture").capture(name, fn, codec)


@overload
async def capture(
    name: str, fn: Callable[[], Coroutine[Any, Any, T]], /, *, type: TypeForm[T] = ...
) -> T: ...
@overload
async def capture(name: str, fn: Callable[[], T], /, *, type: TypeForm[T] = ...) -> T: ...
@_at_once(_capture)
async def capture(name: str, fn: Callable[[], Any], /, *, type: Any = ANY) -> Any:
    """Run something small and not deterministic once, on the event loop, and record what it gave.

    `type` is what the value is read back as; default: what `fn` is annotated to return, else any value that
    survives JSON as it is. For work that takes time, fails or should be retried use a step. Only in a durable
    body.
    """


def timeout(duration: Duration, /) -> AbstractAsyncContextManager[None]:
    """Limit a block of a durable body: `async with zart.timeout("2h"): ...` raises TimeoutError when it is
    over.

    The limit is durable: it counts on while the execution waits or its worker is gone, and which side won is
    recorded. Only in a durable body.
    """
    length = parse_duration(duration, what="the duration of zart.timeout")
    return _body("zart.timeout").timeout(length)


@overload
def data(type: TypeForm[T], /) -> T | None: ...
@overload
def data(type: TypeForm[T], /, *, default: T) -> T: ...
def data(type: Any, /, *, default: Any = None) -> Any:
    """A fresh copy of the execution's data as last set with `set_data`, or `default`. Only in a durable body.

    Raises PayloadError when what was set does not fit the type.
    """
    return _body("zart.data").data(codec_for(type, "zart.data", allow_sets=True), default)


def set_data(value: object, /) -> None:
    """Set the execution's data, which begins empty with each run of the body. Only in a durable body.

    Raises SerializationError when the value cannot be stored.
    """
    _body("zart.set_data").set_data(value)


def now() -> dt.datetime:
    """The time, in UTC: in a durable body the database's, the same on replay; elsewhere the machine's."""
    here = place.get()
    return dt.datetime.now(dt.UTC) if here is None else here.now()


def uuid4() -> _uuid.UUID:
    """A random UUID; in a durable body the same on replay."""
    here = place.get()
    return _uuid.uuid4() if here is None else here.uuid4()


def random() -> _random.Random:
    """A source of random numbers (not of secrets); in a durable body it gives the same ones on replay."""
    here = place.get()
    return _random.Random() if here is None else here.random()  # noqa: S311


def suspending() -> bool:
    """In a `finally` block of a durable body: is this only a suspension, the body to go on later?"""
    here = place.get()
    return False if here is None else here.suspending()


def execution_id() -> str:
    """The id of the execution that the running code belongs to, in its body and in its steps."""
    return _execution("zart.execution_id").execution_id()


def context() -> Context:
    """The execution that the running code belongs to, in its body and in its steps."""
    return _execution("zart.context").context()


def step_context() -> StepContext:
    """The attempt of the step that the running code belongs to.

    Where a step's function runs plainly, outside of any execution, it is a stand-in with an idempotency key
    of its own.
    """
    here = place.get()
    if here is not None:
        return here.step_context()
    return StepContext(
        execution_id="", step_name="", step_attempt=1, idempotency_key=str(_uuid.uuid4()), token=""
    )


def resource(type: type[T], /) -> T:
    """What `Registry(lifespan=...)` yielded and is an instance of `type`, in a body and in its steps."""
    return _execution("zart.resource").resource(type)


def _body(called: str) -> Place:
    here = place.get()
    if here is None:
        _refuse(called, "the body of a durable function: to try one without a database, use zart.testing.run")
    return here


def _execution(called: str) -> Place:
    here = place.get()
    if here is None:
        _refuse(called, "a durable function or one of its steps, while a worker runs it")
    return here


def _refuse(called: str, where_instead: str) -> NoReturn:
    raise UsageError(f"{called} is called outside of any execution; call it in {where_instead}")
