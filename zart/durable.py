"""The decorator `@durable`: an async function that survives crashes, restarts and deploys.

The function stays a function. A Client starts executions of it by name, and a Worker runs them; called
plainly it just runs, and so do its steps. Its annotations are resolved late, when a registry is frozen or a
client first needs them.
"""

import datetime as dt
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Self, TypeVar, cast

import msgspec

from zart.annotations import (
    is_coroutine_function,
    module_globals,
    parameter_codec,
    result_codec,
    signature_of,
    where,
)
from zart.calls import ChildCall, DurableSpec
from zart.codec import ANY, Codec
from zart.context import place
from zart.coroutine_function import CoroutineFunction
from zart.durations import Duration, parse_duration
from zart.errors import UsageError
from zart.failures import KnownExceptions
from zart.names import check_id, check_name
from zart.outside import warn_durable
from zart.retry import Retry, resolve_max_retries

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

_KEEP: Any = msgspec.UNSET
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class _Definition(msgspec.Struct, frozen=True, kw_only=True):
    """What the decorator was given, checked."""

    fn: Callable[..., Coroutine[Any, Any, Any]]
    what: str
    payload: str | None
    """The name of the function's one parameter."""
    retry: Retry
    timeout: dt.timedelta | None
    on_failure: Callable[..., Coroutine[Any, Any, object]] | None
    version: str | None
    queue: str
    priority: int = 0
    id: str | None = None
    time_limit: dt.timedelta | None = None
    """For the next start, in place of `timeout`; zero means none."""


class Durable(CoroutineFunction, Generic[P, R_co]):
    """What `@durable` makes of a function: start executions of it with a Client.

    A plain call outside of an execution just runs it, and its steps with it; `fn` is the function itself.
    """

    name: str
    """What executions of it are stored under."""

    def __init__(self, name: str, definition: _Definition) -> None:
        self._pass_for(definition.fn)
        self.name = name
        self._definition = definition
        self._spec: DurableSpec | None = None

    def _call(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]:
        definition = self._definition
        here = place.get()
        if here is None:
            warn_durable(self.name)
            return definition.fn(*args, **kwargs)
        return here.call_durable(self.call_of(inspect.signature(definition.fn).bind(*args, **kwargs).args))

    def call_of(self, args: tuple[Any, ...], *, id: str | None = None, detached: bool = False) -> ChildCall:
        """One call of it by the body of another, as data."""
        return ChildCall(
            spec=self.spec,
            args=args,
            id=self.id if id is None else check_id(id),
            time_limit=self.time_limit,
            detached=detached,
        )

    if TYPE_CHECKING:

        async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...
    else:
        __call__ = _call

    @property
    def fn(self) -> Callable[P, Coroutine[Any, Any, R_co]]:
        """The undecorated function."""
        return self._definition.fn

    @property
    def version(self) -> str | None:
        """The version under which executions are started and claimed; None: the one without a version."""
        return self._definition.version

    @property
    def queue(self) -> str:
        """The queue that executions wait in unless they are started into another."""
        return self._definition.queue

    @property
    def id(self) -> str | None:
        """The id that `with_options` chose for the next start, if any."""
        return self._definition.id

    @property
    def time_limit(self) -> dt.timedelta | None:
        """The time limit that `with_options` gave the next start; zero: none; None: the function's own holds."""
        return self._definition.time_limit

    def with_options(
        self,
        *,
        id: str | None = _KEEP,
        queue: str = _KEEP,
        priority: int = _KEEP,
        timeout: Duration | None = _KEEP,
    ) -> Self:
        """The same function with other options for one start; what is not given stays.

        Work of a lower `priority` is claimed first (default 0). Raises UsageError for what the decorator
        would refuse, too.
        """
        old = self._definition
        definition = msgspec.structs.replace(
            old,
            id=old.id if id is _KEEP else None if id is None else check_id(id),
            queue=old.queue if queue is _KEEP else check_name(queue, f"{old.what}: the queue"),
            priority=old.priority if priority is _KEEP else _check_priority(priority, old.what),
            timeout=old.timeout if timeout is _KEEP else _read_timeout(timeout, old.what),
            time_limit=(
                old.time_limit if timeout is _KEEP else _read_timeout(timeout, old.what) or dt.timedelta()
            ),
        )
        changed = object.__new__(type(self))
        changed.__dict__.update(self.__dict__, _definition=definition, _spec=None)
        return changed

    @property
    def spec(self) -> DurableSpec:
        """The function as data, with its annotations resolved, which happens once.

        Raises UsageError, with the function's name and place, when that fails.
        """
        if self._spec is None:
            definition = self._definition
            self._spec = DurableSpec(
                name=self.name,
                version=definition.version,
                queue=definition.queue,
                priority=definition.priority,
                fn=definition.fn,
                takes_payload=definition.payload is not None,
                payload=(
                    Codec(ANY)
                    if definition.payload is None
                    else parameter_codec(definition.fn, definition.payload, definition.what)
                ),
                result=result_codec(definition.fn, definition.what),
                retry=definition.retry,
                timeout=definition.timeout,
                on_failure=definition.on_failure,
                known=KnownExceptions(
                    module_globals=module_globals(definition.fn),
                    classes=(*definition.retry.retry_on, *definition.retry.give_up_on),
                ),
            )
        return self._spec

    def __repr__(self) -> str:
        version = "" if self.version is None else f" version {self.version!r}"
        return f"<durable {self.name!r}{version} of {where(self._definition.fn)}>"


class _DurableDecorator:
    def __init__(self, name: str, options: dict[str, Any]) -> None:
        self._name = name
        self._options = options

    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> Durable[P, R]:
        what = f"@durable on {where(fn)}"
        payload = _check_function(fn, what)
        name = check_name(self._name, f"{what}: the name")
        return Durable(name, _read_options(fn, what, payload, **self._options))


def durable(
    name: str,
    /,
    *,
    max_retries: int | str | Retry = 0,
    timeout: Duration | None = None,
    on_failure: Callable[..., Awaitable[object]] | None = None,
    version: str | None = None,
    queue: str = "default",
) -> _DurableDecorator:
    """Make an `async def` with one parameter, its payload, or none a durable function.

    `name` is what executions are stored under, 1 to 200 bytes. `max_retries` says how often the body is run
    again after an exception left it, with its completed steps kept: a number (1 s doubling up to 1 min
    between them) or a policy. `timeout` limits an execution from when it is due, its retries and waits
    included (default: no limit). `on_failure`, an `async def` of (data, failure), is the last phase of a
    failed execution; it may call steps. Executions are started under the function's `version` and stay with
    it: only workers that have registered that version claim them, so several may stand side by side. `queue`
    is where executions wait for a worker.

    Raises UsageError, with the function's name and place, for what cannot be.
    """
    if callable(name):
        suggested: str = getattr(name, "__name__", "onboarding").strip("_").replace("_", "-")
        raise UsageError(
            f"@durable on {where(name)} has no name: write @durable({suggested!r}); executions are stored "
            "under it"
        )
    options = {
        "max_retries": max_retries,
        "timeout": timeout,
        "on_failure": on_failure,
        "version": version,
        "queue": queue,
    }
    return _DurableDecorator(name, options)


def _check_function(fn: Any, what: str) -> str | None:
    """Refuse what cannot be a durable function; return the name of its parameter, if it has one."""
    if isinstance(fn, CoroutineFunction):
        raise UsageError(f"{what}: it is a step or durable function already")
    if isinstance(fn, (staticmethod, classmethod)) or inspect.ismethod(fn):
        raise UsageError(
            f"{what}: a durable function stands in a module, since a worker finds it by name, not in a class"
        )
    if inspect.isasyncgenfunction(fn):
        raise UsageError(f"{what}: it is a generator; a durable function returns its result")
    if not callable(fn) or not is_coroutine_function(fn):
        raise UsageError(f"{what}: a durable function is an async def")
    parameters = list(signature_of(fn).parameters.values())
    if len(parameters) > 1 or any(parameter.kind not in _POSITIONAL for parameter in parameters):
        shown = ", ".join(str(parameter).split(":")[0].split("=")[0].strip() for parameter in parameters)
        raise UsageError(
            f"{what}: it takes ({shown}), but a durable function takes one parameter, its payload, or none: "
            "put "
            "several values into one Struct or dataclass"
        )
    if not parameters:
        return None
    if parameters[0].default is not inspect.Parameter.empty:
        raise UsageError(
            f"{what}: its payload {parameters[0].name!r} has a default, but a started execution always has "
            "its payload: "
            "put the default into a field of a Struct or dataclass"
        )
    return parameters[0].name


def _read_options(
    fn: Any,
    what: str,
    payload: str | None,
    *,
    max_retries: int | str | Retry,
    timeout: Duration | None,
    on_failure: Callable[..., Awaitable[object]] | None,
    version: str | None,
    queue: str,
) -> _Definition:
    try:
        retry = resolve_max_retries(max_retries)
    except UsageError as error:
        raise UsageError(f"{what}: {error}") from None
    return _Definition(
        fn=fn,
        what=what,
        payload=payload,
        retry=retry,
        timeout=_read_timeout(timeout, what),
        on_failure=_check_on_failure(on_failure, what),
        version=None if version is None else check_name(version, f"{what}: the version"),
        queue=check_name(queue, f"{what}: the queue"),
    )


def _read_timeout(timeout: Duration | None, what: str) -> dt.timedelta | None:
    if timeout is None:
        return None
    limit = parse_duration(timeout, what=f"{what}: timeout")
    if not limit:
        raise UsageError(f"{what}: timeout is zero, so that it could never finish; None means no limit")
    return limit


def _check_priority(priority: object, what: str) -> int:
    if isinstance(priority, bool) or not isinstance(priority, int) or not -(2**31) <= priority < 2**31:
        raise UsageError(
            f"{what}: priority is {priority!r}, but it must be a whole number of 32 bits, such as 10"
        )
    return priority


def _check_on_failure(fn: Any, what: str) -> Callable[..., Coroutine[Any, Any, object]] | None:
    if fn is None:
        return None
    if not callable(fn) or not is_coroutine_function(fn):
        raise UsageError(f"{what}: on_failure is {where(fn)}, but it must be an async def of (data, failure)")
    try:
        signature_of(fn).bind(None, None)
    except TypeError as error:
        raise UsageError(
            f"{what}: on_failure, {where(fn)}, must take (data, failure), the payload and a zart.Failure: "
            f"{error}"
        ) from None
    return cast("Callable[..., Coroutine[Any, Any, object]]", fn)
