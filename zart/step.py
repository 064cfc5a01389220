"""The decorator `@step`: a function whose result is recorded once in the durable body that calls it.

A call asks the place where it stands. A durable body's place makes a durable call of it, with the occurrence
taken at once; a step's place refuses it; and outside of both the function simply runs. What a call needs of
the function, its types, its retry policy, the exceptions that a replay may rebuild, is worked out when it is
first needed.
"""

import functools
import inspect
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Self, TypeVar, cast, overload

import msgspec

from zart.annotations import (
    Parameters,
    is_coroutine_function,
    module_globals,
    result_codec,
    signature_of,
    where,
)
from zart.calls import CheckArgs, StepCall, StepSpec, TimeoutScope, Transaction
from zart.codec import Codec
from zart.context import place
from zart.coroutine_function import CODE, CoroutineFunction
from zart.digest import Arguments
from zart.durations import Duration
from zart.errors import UsageError
from zart.failures import KnownExceptions
from zart.names import shorten_name
from zart.outside import run_plainly, warn_step
from zart.retry import Retry
from zart.step_options import StepOptions, read_options
from zart.template import NameTemplate

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
S = TypeVar("S")
T = TypeVar("T")

_KEEP: Any = msgspec.UNSET


class _Function:
    """A decorated function, and what follows from it alone."""

    def __init__(self, name: str, fn: Callable[..., Any], what: str) -> None:
        self.name = name
        self.fn = fn
        self.what = what
        self.threaded: bool = not is_coroutine_function(fn)
        self.signature: inspect.Signature = signature_of(fn)

    @functools.cached_property
    def arguments(self) -> Arguments:
        return Arguments(self.signature)

    @functools.cached_property
    def parameters(self) -> Parameters:
        return Parameters(self.fn, self.signature, self.what)

    @functools.cached_property
    def result(self) -> Codec:
        return result_codec(self.fn, self.what)


class _Definition:
    """A function with its options; shared by all steps that differ in their name only."""

    __slots__ = ("_spec", "function", "options")

    def __init__(self, function: _Function, options: StepOptions) -> None:
        self.function: _Function = function
        self.options: StepOptions = options
        self._spec: StepSpec | None = None

    def spec(self) -> StepSpec:
        """The step as data. Raises UsageError when its annotations cannot be resolved or stored."""
        if self._spec is None:
            function, options = self.function, self.options
            self._spec = StepSpec(
                fn=function.fn,
                threaded=function.threaded,
                retry=options.retry,
                timeout=options.timeout,
                timeout_scope=options.timeout_scope,
                check_args=options.check_args,
                at_most_once=options.at_most_once,
                transaction=options.transaction,
                result=function.result,
                arguments=function.arguments,
                parameters=function.parameters,
                known=KnownExceptions(
                    module_globals=module_globals(function.fn),
                    classes=(*options.raises, *options.retry.retry_on, *options.retry.give_up_on),
                ),
            )
        return self._spec


class Step(CoroutineFunction, Generic[P, R_co]):
    """What `@step` makes of a function: call it in a durable body, and its result is recorded once.

    A call returns a coroutine, in a body and outside, whether the function is an `async def` or a plain one,
    which runs in a thread. In a body the call's place among the calls of the same name is taken when it is
    called, not when it is awaited. Outside of a durable function a call just runs the function; `fn` is the
    function itself.
    """

    name: str
    """The name as it was given; it may be a template such as "charge-{order.id}"."""

    def __init__(self, definition: _Definition) -> None:
        function = definition.function
        self._pass_for(function.fn, function.signature)
        self.name = function.name
        self._function = function
        self._definition = definition
        self._template = NameTemplate(function.name, function.signature, function.what)
        self._fixed = self._template.fixed()

    def _call(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]:
        here = place.get()
        if here is None:
            warn_step(self.name)
            return run_plainly(self._function.fn, args, kwargs, threaded=self._function.threaded)
        return here.call_step(self.call_of(args, kwargs))

    def call_of(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> StepCall:
        """One call of it, as data."""
        name = self._fixed or self._template.render(args, kwargs)
        return StepCall(self._definition.spec(), name, args, kwargs, 0, self._function.name)

    if TYPE_CHECKING:
        # Checkers tell the results of asyncio.gather apart for what is declared so, and only then.
        async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...
    else:
        __call__ = _call

    def named(self, name: str, /) -> Self:
        """The same step under another name, which is taken as it is: `send.named(f"send-{i}")(address)`.

        Raises UsageError when it is empty or holds control characters. Of a name longer than 200 bytes the
        first 160 and a hash are used.
        """
        if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"{self._function.what}: named() takes the name, not {name!r}")
        return self._changed(name=name, _fixed=shorten_name(name, f"{self._function.what}: the name"))

    def with_options(
        self,
        *,
        retry: str | Retry | None = _KEEP,
        timeout: Duration | None = _KEEP,
        timeout_scope: TimeoutScope = _KEEP,
    ) -> Self:
        """The same step with other options for this call; what is not given stays. None: no retry, no time
        limit.

        Raises UsageError for what the decorator would refuse, too.
        """
        options = self._definition.options
        changed = read_options(
            self._function.what,
            retry=options.retry if retry is _KEEP else retry,
            timeout=options.timeout if timeout is _KEEP else timeout,
            timeout_scope=options.timeout_scope if timeout_scope is _KEEP else timeout_scope,
            check_args=options.check_args,
            raises=options.raises,
            at_most_once=options.at_most_once,
            transaction=options.transaction,
        )
        return self._changed(_definition=_Definition(self._function, changed))

    @overload
    def __get__(self, instance: None, owner: type, /) -> Self: ...
    @overload
    def __get__(
        self: "Step[Concatenate[S, Q], T]", instance: S, owner: type | None = None, /
    ) -> "BoundStep[Q, T]": ...
    def __get__(self, instance: object, owner: type | None = None, /) -> Any:
        return self if instance is None else BoundStep(self, instance, self._call_bound)

    def __repr__(self) -> str:
        return f"<step {self.name!r} of {where(self._function.fn)}>"

    @property
    def fn(self) -> Callable[P, Any]:
        """The undecorated function: a call of it is never recorded."""
        return self._function.fn

    @property
    def spec(self) -> StepSpec:
        """The step as data, with its annotations resolved, which happens once.

        Raises UsageError, with the function's name and place, when that fails.
        """
        return self._definition.spec()

    def _call_bound(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Coroutine[Any, Any, R_co]:
        """A call through an instance, which is the first of `args`."""
        here = place.get()
        if here is None:
            return run_plainly(self._function.fn, args, kwargs, threaded=self._function.threaded)
        name = self._fixed or self._template.render(args, kwargs)
        return here.call_step(StepCall(self._definition.spec(), name, args, kwargs, 1, self._function.name))

    def _changed(self, **changes: object) -> Self:
        changed = object.__new__(type(self))
        changed.__dict__.update(self.__dict__, **changes)
        return changed


class AsyncStep(Step[P, R_co]):
    """A step of an `async def`."""

    @property
    def fn(self) -> Callable[P, Coroutine[Any, Any, R_co]]:
        """The undecorated function: a call of it is never recorded."""
        return self._function.fn


class SyncStep(Step[P, R_co]):
    """A step of a plain `def`, which runs in a worker thread, never on the event loop."""

    @property
    def fn(self) -> Callable[P, R_co]:
        """The undecorated function: a call of it is never recorded and runs in the caller's thread."""
        return self._function.fn


class BoundStep(Generic[P, R_co]):
    """A step of an instance: `await shop.charge(order)`. The instance is no part of what is recorded."""

    __slots__ = ("_action", "_instance", "_step")

    def __init__(
        self, step: Step[..., R_co], instance: object, action: Callable[..., Coroutine[Any, Any, R_co]]
    ) -> None:
        self._step = step
        self._instance = instance
        self._action = action

    def _call(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]:
        if place.get() is None:
            warn_step(self._step.name)
        return self._action((self._instance, *args), kwargs)

    if TYPE_CHECKING:

        async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...
    else:
        __call__ = _call

    def named(self, name: str, /) -> Self:
        """The same step under another name; see `Step.named`."""
        return cast("Self", self._step.named(name).__get__(self._instance))

    def __getattr__(self, attribute: str) -> Any:
        # What tells tools that this is a coroutine function, and its parameters without the instance.
        if attribute == "__signature__":
            signature = inspect.signature(self._step)
            return signature.replace(parameters=list(signature.parameters.values())[1:])
        if attribute == "__code__":
            return CODE
        if attribute in {"__name__", "__qualname__", "__defaults__", "__kwdefaults__", "__annotations__"}:
            return getattr(self._step, attribute)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {attribute!r}")

    def __repr__(self) -> str:
        return f"<{self._step!r} bound to a {type(self._instance).__name__}>"


class _StepDecorator:
    def __init__(self, name: str, options: dict[str, Any]) -> None:
        self._name = name
        self._options = options

    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncStep[P, R]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, fn: Callable[P, R], /) -> SyncStep[P, R]: ...
    def __call__(self, fn: Callable[..., Any], /) -> Step[..., Any]:
        what = f"@step on {where(fn)}"
        _check_function(fn, what)
        function = _Function(self._name, fn, what)
        definition = _Definition(function, read_options(what, **self._options))
        return SyncStep(definition) if function.threaded else AsyncStep(definition)


def step(
    name: str,
    /,
    *,
    retry: str | Retry | None = None,
    timeout: Duration | None = None,
    timeout_scope: TimeoutScope = "attempt",
    at_most_once: bool = False,
    transaction: Transaction = False,
    check_args: CheckArgs = "block",
    raises: tuple[type[Exception], ...] = (),
) -> _StepDecorator:
    """Make a function a step: in a durable body its result is recorded once and never asked for again.

    `name` identifies its records, so it must stay as it is while executions are under way; 1 to 200 bytes,
    and it may take values from the call: "charge-{order.id}". `retry` says how failures are tried again, such
    as "exponential(3, 2s)" (three retries; default: none). `timeout` limits each attempt, or with
    `timeout_scope="total"` all of them with the delays between (default: no limit).

    `at_most_once` records that the step was started before it runs: one that is interrupted is never run again
    but raises `StepInterrupted` in the body. With `transaction=True` what the step writes on `zart.connection()`
    is committed together with its record: exactly once in this database. With `transaction="own"` the step does
    that itself, on a connection of its own, by `SELECT zart_record_step(token, result)`.

    When a replayed call has other arguments than the recorded one, `check_args` blocks the execution, warns, or is
    off. `raises` names the classes of exceptions that a body wants to catch again on replay; those of the function's
    own module and builtins are known.

    Works on an `async def`, on a plain `def`, which runs in a thread, and on the spot on any callable: `await
    step("create")(crm.create)(email)`. Raises UsageError, with the function's name and place, for what cannot
    be.
    """
    if callable(name):
        raise UsageError(
            f"@step on {where(name)} has no name: write @step({_suggestion(name)!r}); the name identifies "
            "what is recorded"
        )
    if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f'step() takes the name of the step first, not {name!r}: write @step("send-email")')
    options = {
        "retry": retry,
        "timeout": timeout,
        "timeout_scope": timeout_scope,
        "at_most_once": at_most_once,
        "transaction": transaction,
        "check_args": check_args,
        "raises": raises,
    }
    return _StepDecorator(name, options)


def _suggestion(fn: object) -> str:
    name: str = getattr(fn, "__name__", "send-email")
    return name.strip("<>").strip("_").replace("_", "-") or "send-email"


def _check_function(fn: Any, what: str) -> None:
    """Refuse what cannot be a step, each with its way out."""
    if inspect.iscoroutine(fn):
        fn.close()
        raise UsageError(
            f"{what}: it was given a call; give it the function and call the step: step(...)(fn)(...)"
        )
    if isinstance(fn, (staticmethod, classmethod)):
        raise UsageError(f"{what}: put @{type(cast('object', fn)).__name__} above @step, not below it")
    if isinstance(fn, (Step, BoundStep)):
        raise UsageError(f"{what}: it is a step already; use .named() and .with_options() to vary it")
    if isinstance(fn, CoroutineFunction):
        raise UsageError(
            f"{what}: it is a durable function, which cannot be a step; call its .fn in a step instead"
        )
    if isinstance(fn, type):
        raise UsageError(f"{what}: it is a class; a step is a function: async def or def")
    if not callable(fn):
        raise UsageError(f"{what}: a step is a function (async def or def), not {fn!r}")
    inner = inspect.unwrap(fn)
    if inspect.isasyncgenfunction(inner) or inspect.isgeneratorfunction(inner):
        raise UsageError(
            f"{what}: it is a generator, and only a finished result can be recorded: return a list, or make "
            "each piece "
            "a step of its own"
        )
