"""What steps and durable functions are, as data: what the decorators hand to whatever runs a body."""

import datetime as dt
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Literal

import msgspec

from zart.annotations import Parameters
from zart.codec import Codec
from zart.digest import Arguments
from zart.failures import KnownExceptions
from zart.retry import Retry

CheckArgs = Literal["block", "warn", "off"]
TimeoutScope = Literal["attempt", "total"]
Transaction = bool | Literal["own"]
"""Whether a step's record is part of a transaction: of the worker's own, or of one of the step's."""


class StepSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A step as its decorator and `with_options` left it, with its annotations resolved."""

    fn: Callable[..., Any]
    """The undecorated function."""
    threaded: bool
    """A plain `def`: it runs in a worker thread, never on the event loop."""
    retry: Retry
    timeout: dt.timedelta | None
    timeout_scope: TimeoutScope
    check_args: CheckArgs
    at_most_once: bool = False
    transaction: Transaction = False
    result: Codec
    arguments: Arguments
    parameters: Parameters
    """How its arguments travel when it is scheduled."""
    known: KnownExceptions
    """The exception classes that a replay may rebuild."""

    @property
    def plain(self) -> bool:
        """An `async def` that runs until it returns, as often as it takes, and is recorded after that."""
        return not (self.threaded or self.timeout is not None or self.at_most_once or self.transaction)


class StepCall(msgspec.Struct, frozen=True, gc=False):
    """One call of a step: its rendered name and its arguments."""

    spec: StepSpec
    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    bound: int = 0
    """How many of the leading arguments are the instance of a method: they count by their type only."""
    template: str = ""
    """The step's name as it was given, with its fields."""
    marks: str = ""
    """Of a scheduled step: how often the sagas that it was called in were undone and forgotten, if ever."""

    def digest(self) -> tuple[bytes | None, str | None]:
        """What is recorded of the arguments: their digest and a preview; neither when they are not compared."""
        if self.spec.check_args == "off":
            return None, None
        return self.spec.arguments.digest(self.args, self.kwargs, self.bound)


class DurableSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A durable function as its decorator and `with_options` left it, with its annotations resolved."""

    name: str
    version: str | None
    queue: str
    priority: int
    fn: Callable[..., Coroutine[Any, Any, Any]]
    """The undecorated function."""
    takes_payload: bool
    payload: Codec
    result: Codec
    retry: Retry
    """Of the body as a whole."""
    timeout: dt.timedelta | None
    """Of the execution, from when it is due."""
    on_failure: Callable[..., Coroutine[Any, Any, object]] | None
    known: KnownExceptions


class ChildCall(msgspec.Struct, frozen=True, kw_only=True):
    """One call of a durable function in the body of another."""

    spec: DurableSpec
    args: tuple[Any, ...]
    """Its payload, if it takes one."""
    id: str | None = None
    """Chosen by the caller; else it is derived from the call."""
    time_limit: dt.timedelta | None = None
    """In place of the function's own; zero means none."""
    detached: bool = False
    """It goes on without its parent."""
