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
from collections.abc import Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Generic, Literal, NoReturn, ParamSpec, Protocol, TypeVar, cast, overload

import msgspec
import psycopg
from typing_extensions import TypeForm

from zart.annotations import codec_for, result_codec, where
from zart.calls import StepCall
from zart.codec import ANY, Codec
from zart.context import UNCHANGED, Place, place
from zart.coroutine_function import CoroutineFunction
from zart.durable import Durable
from zart.durations import Duration, parse_duration
from zart.errors import UsageError
from zart.handles import ChildHandle, EventHandle, Handle, StepHandle, TimerHandle, pendings_of
from zart.names import check_name
from zart.saga import Saga
from zart.state import Context, StepContext
from zart.step import BoundStep, Step

D = TypeVar("D")
F = TypeVar("F", bound=Callable[..., Any])
P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
T4 = TypeVar("T4")
T5 = TypeVar("T5")

_NOT_GIVEN: Final[Any] = msgspec.UNSET
_MOST_IN_A_TUPLE: Final = 5
"""How many types of handles type checkers are told one by one."""


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
    called, codec = _read_event(name, type, "zart.wait_for_event")
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


@overload
def event(event: Event[T], /) -> EventHandle[T]: ...
@overload
def event(name: str, /) -> EventHandle[Any]: ...
@overload
def event(name: str, type: TypeForm[T], /) -> EventHandle[T]: ...
def event(event: str | Event[Any], type: Any = ANY, /) -> EventHandle[Any]:
    """Begin to wait for the next event of a name, and go on: `wait_any` says which of several came first.

    The event belongs to this handle, whether it is awaited or not, unless it is cancelled before. Only in a durable
    body.
    """
    name, codec = _read_event(event, type, "zart.event")
    return EventHandle(_body("zart.event").event(name, codec))


def timer(duration: Duration, /) -> TimerHandle:
    """Begin to wait for a length of time, and go on. Only in a durable body. Raises UsageError for no duration."""
    length = parse_duration(duration, what="the duration of zart.timer")
    return TimerHandle(_body("zart.timer").timer(length))


def schedule_step(step: Step[P, R], /, *args: P.args, **kwargs: P.kwargs) -> StepHandle[R]:
    """Give a step to whatever worker is free, and go on: it has the retries, limits and history of any other.

    What it was given must be storable, since it travels. It runs whether its handle is awaited or not, and ends before
    the execution does. Only in a durable body. Raises UsageError for a step that the worker has not registered, and
    SerializationError for arguments that cannot be stored.
    """
    return StepHandle(
        _body("zart.schedule_step").schedule_step(_call_of(step, args, kwargs, "zart.schedule_step"))
    )


@overload
def start_child(
    fn: Durable[[], R], /, *, id: str | None = None, detached: bool = False
) -> ChildHandle[R]: ...
@overload
def start_child(
    fn: Durable[[D], R], data: D, /, *, id: str | None = None, detached: bool = False
) -> ChildHandle[R]: ...
def start_child(
    fn: Durable[..., Any], data: Any = _NOT_GIVEN, /, *, id: str | None = None, detached: bool = False
) -> ChildHandle[Any]:
    """Start a durable function as a child of this execution, and go on.

    Its id is derived from the call unless one is given. A child is cancelled with its parent and ends before it;
    a detached one goes on by itself. To wait for a child at once, just call it: `await onboarding(data)`. Only in a
    durable body. Raises UsageError, and SerializationError for data that does not fit; the handle raises
    ExecutionConflict when the id that was given exists already.
    """
    if not isinstance(fn, Durable):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(
            f"zart.start_child takes a durable function, not {fn!r}: decorate it with @durable(...)"
        )
    here = _body("zart.start_child")
    args = () if data is _NOT_GIVEN else (data,)
    return ChildHandle(here.start_child(fn.call_of(args, id=id, detached=detached)))


def _wait_all(*handles: Handle[Any], return_exceptions: bool = False) -> Coroutine[Any, Any, Any]:
    waiting = _body("zart.wait_all").wait_all(
        pendings_of(handles, "zart.wait_all"), return_exceptions=return_exceptions
    )
    if not 2 <= len(handles) <= (2 if return_exceptions else _MOST_IN_A_TUPLE):
        return waiting

    async def in_a_tuple() -> tuple[Any, ...]:
        return tuple(await waiting)

    return in_a_tuple()


@overload
async def wait_all(h1: Handle[T1], h2: Handle[T2], /) -> tuple[T1, T2]: ...
@overload
async def wait_all(h1: Handle[T1], h2: Handle[T2], h3: Handle[T3], /) -> tuple[T1, T2, T3]: ...
@overload
async def wait_all(
    h1: Handle[T1], h2: Handle[T2], h3: Handle[T3], h4: Handle[T4], /
) -> tuple[T1, T2, T3, T4]: ...
@overload
async def wait_all(
    h1: Handle[T1], h2: Handle[T2], h3: Handle[T3], h4: Handle[T4], h5: Handle[T5], /
) -> tuple[T1, T2, T3, T4, T5]: ...
@overload
async def wait_all(*handles: Handle[T]) -> list[T]: ...
@overload
async def wait_all(
    h1: Handle[T1], h2: Handle[T2], /, *, return_exceptions: Literal[True]
) -> tuple[T1 | Exception, T2 | Exception]: ...
@overload
async def wait_all(*handles: Handle[T], return_exceptions: Literal[True]) -> list[T | Exception]: ...
@_at_once(_wait_all)
async def wait_all(*handles: Handle[Any], return_exceptions: bool = False) -> Any:
    """Wait until all handles are over; their values in the order of the handles.

    It waits for all even if one has failed, and then raises the first failure in their order; with
    `return_exceptions` failures stand among the values. Two to five handles give a tuple, otherwise it is a list.
    Only in a durable body.
    """


def _wait_any(*handles: Handle[Any]) -> Coroutine[Any, Any, Any]:
    here = _body("zart.wait_any")
    pendings = pendings_of(handles, "zart.wait_any")
    if not pendings:
        raise UsageError("zart.wait_any was given no handle, so that it would wait for ever")

    async def winner() -> Handle[Any]:
        return handles[await here.wait_any(pendings)]

    return winner()


@overload
async def wait_any(h1: Handle[T1], h2: Handle[T2], /) -> Handle[T1] | Handle[T2]: ...
@overload
async def wait_any(
    h1: Handle[T1], h2: Handle[T2], h3: Handle[T3], /
) -> Handle[T1] | Handle[T2] | Handle[T3]: ...
@overload
async def wait_any(*handles: Handle[T]) -> Handle[T]: ...
@_at_once(_wait_any)
async def wait_any(*handles: Handle[Any]) -> Any:
    """Wait until one of the handles is over, and return that one; the others go on.

    The same one at each replay. Await it for its value or its error. Only in a durable body.
    """


def _map(
    step: Step[..., Any],
    items: Iterable[Any],
    /,
    *,
    limit: int | None = None,
    return_exceptions: bool = False,
) -> Coroutine[Any, Any, Any]:
    here = _body("zart.map")
    given = cast("object", limit)
    if given is not None and (isinstance(given, bool) or not isinstance(given, int) or given < 1):
        raise UsageError(f"limit is {limit!r}, but it must be a whole number from 1 on, or None for no limit")
    calls = [_call_of(step, (item,), {}, "zart.map") for item in items]
    return here.map(calls, limit, return_exceptions=return_exceptions)


@overload
async def map(step: Step[[T], R], items: Iterable[T], /, *, limit: int | None = None) -> list[R]: ...  # noqa: A001
@overload
async def map(  # noqa: A001
    step: Step[[T], R], items: Iterable[T], /, *, limit: int | None = None, return_exceptions: Literal[True]
) -> list[R | Exception]: ...
@_at_once(_map)
async def map(  # noqa: A001
    step: Step[[Any], Any],
    items: Iterable[Any],
    /,
    *,
    limit: int | None = None,
    return_exceptions: bool = False,
) -> Any:
    """Schedule a step for each item, at most `limit` of them at once (default: no limit), and wait for all.

    The values in the order of the items. It waits for all even if one has failed, and then raises the first failure
    in that order; with `return_exceptions` failures stand among the values. Only in a durable body. Raises like
    `schedule_step`.
    """


def timeout(duration: Duration, /) -> AbstractAsyncContextManager[None]:
    """Limit a block of a durable body: `async with zart.timeout("2h"): ...` raises TimeoutError when it is
    over.

    The limit is durable: it counts on while the execution waits or its worker is gone, and which side won is
    recorded. Only in a durable body.
    """
    length = parse_duration(duration, what="the duration of zart.timeout")
    return _body("zart.timeout").timeout(length)


def saga() -> Saga:
    """A block of a durable body that is undone when it fails: `async with zart.saga() as saga: ...`.

    Only in a durable body. See `Saga` for what may be done with it.
    """
    return Saga(_body("zart.saga").saga())


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
    """Set the execution's data, which begins empty with each run of the body.

    Only in a durable body, and in a step with `transaction=True`: there it is a part of the step's record, and the body
    has it when it has the step's result.

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


def patched(change_id: str, /) -> bool:
    """Whether this execution takes a change of the code: `if zart.patched("fraud-check"): ... else: (as before)`.

    True where the execution comes here for the first time, false where more of it is recorded already: then the
    code before the change made those records, and goes on with them. The first answer for a `change_id` is recorded
    and holds everywhere in the run, on every replay and in every attempt of the body. Only in a durable body.
    """
    return _body("zart.patched").patched(check_name(change_id, "the change id of zart.patched"))


def continue_as_new(data: object = UNCHANGED, /) -> NoReturn:
    """End this run and begin the body anew with `data` as its input (default: the same again): for loops without end.

    The execution keeps its id and the events that nobody has consumed, and begins with an empty history, a new
    `run_id` and the whole of its `timeout`. It leaves the body as an exception that `except Exception` does not
    catch: cleanup runs, and other branches are cancelled first. The run that ended stays to be seen until the next
    one has ended, too. Only in a durable body, where it is refused with UsageError for data to a function that takes
    none, and with SerializationError for data that cannot be stored.
    """
    _body("zart.continue_as_new").continue_as_new(data)


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


def connection() -> psycopg.AsyncConnection[Any]:
    """The connection of a step with `transaction=True`, in an `async def`; in a plain `def`: `zart.sync.connection`.

    What the step writes on it is committed together with the step's record, or not at all: the step neither commits nor
    rolls back. Blocks of `async with connection.transaction()` are savepoints. Raises UsageError anywhere else.
    """
    here = place.get()
    if here is None:
        _refuse("zart.connection()", "a step with transaction=True, while a worker runs it")
    return here.connection()


def sync_connection() -> psycopg.Connection[Any]:
    """The connection of a plain `def` step with `transaction=True`: what `zart.sync.connection` is."""
    here = place.get()
    if here is None:
        _refuse("zart.sync.connection()", "a plain def step with transaction=True, while a worker runs it")
    return here.sync_connection()


def progress(value: object, /) -> None:
    """Tell how far a step is: shown by `zart show`, and kept for its next attempt, wherever that runs.

    It is written at once the first time, then about once a second; the last one of an attempt is never lost, unless the
    process is. Outside of any execution nothing happens. Raises UsageError in a body, and SerializationError when the
    value cannot be stored.
    """
    here = place.get()
    if here is not None:
        here.progress(value)


def last_progress(type: TypeForm[T], /) -> T | None:
    """What this step has told of its progress last, in this attempt or an earlier one; None when it has told nothing.

    Raises UsageError in a body, and PayloadError when what was told does not fit the type.
    """
    codec = codec_for(type, "zart.last_progress", allow_sets=True)
    here = place.get()
    return None if here is None else cast("T | None", here.last_progress(codec))


def resource(type: type[T], /) -> T:
    """What `Registry(lifespan=...)` yielded and is an instance of `type`, in a body and in its steps."""
    return _execution("zart.resource").resource(type)


def _read_event(event: str | Event[Any], type: Any, called: str) -> tuple[str, Codec]:
    """The name of an event and the codec of its payload."""
    if isinstance(event, Event):
        if type is not ANY:
            raise UsageError(f"{called}({event!r}) has its type from the event: leave out the second one")
        return event.name, event.codec
    name = check_name(event, "the name of an event")
    return name, codec_for(type, f"the event {name!r}", allow_sets=True)


def _call_of(step: Any, args: tuple[Any, ...], kwargs: dict[str, Any], called: str) -> StepCall:
    if not isinstance(step, Step):
        told = (
            "an instance cannot travel to another worker" if isinstance(step, BoundStep) else "it is no step"
        )
        raise UsageError(f"{called} takes a step, not {step!r}: {told}. Decorate a function with @step(...)")
    return cast("Step[..., Any]", step).call_of(args, kwargs)


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
