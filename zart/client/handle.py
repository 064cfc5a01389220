"""The handle of an execution, and what its end means to whoever asks for the result."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, Generic, NoReturn, TypeVar, cast

import msgspec

from zart import errors
from zart.client.outcomes import Outcome
from zart.client.reading import unreadable_failure
from zart.codec import Codec
from zart.durations import Duration, format_duration, parse_duration
from zart.encryption import Payloads, Place
from zart.errors import (
    ExecutionBlocked,
    ExecutionCancelled,
    ExecutionFailed,
    ExecutionPruned,
    ExecutionTimeout,
    Failure,
    PayloadError,
    PayloadUnreadable,
    ResultTimeout,
)
from zart.failures import KnownExceptions, exception_from_json, failure_from_json
from zart.state import Execution

if TYPE_CHECKING:
    from zart.client.client import Client

R_co = TypeVar("R_co", covariant=True)

Wait = Callable[[str, Codec, Duration | None], Awaitable[Any]]
"""Waits for the end of an execution, and gives its result."""

_OURS: Final = KnownExceptions(module_globals=vars(errors))


class ExecutionHandle(Generic[R_co]):
    """An execution, by its id. Handles are cheap: make one wherever the id is known."""

    id: str
    created: bool
    """Whether the call that returned this handle started the execution; False: it existed, or nobody
    looked.
    """

    def __init__(self, client: "Client", wait: Wait, id: str, codec: Codec, *, created: bool) -> None:
        self.id = id
        self.created = created
        self._client = client
        self._wait = wait
        self._codec = codec

    async def result(self, *, timeout: Duration | None = None) -> R_co:
        """Wait for the execution to end, and return what it returned.

        Raises ExecutionFailed (ExecutionTimeout when it reached its own limit), ExecutionCancelled,
        ExecutionBlocked as soon as it is blocked, and ResultTimeout after `timeout`: then it goes on, and you
        may ask again. ExecutionNotFound when there is none, ExecutionPruned when only its id was kept.
        PayloadUnreadable when the result is encrypted, and its key is not here.
        """
        return cast("R_co", await self._wait(self.id, self._codec, timeout))

    async def status(self) -> Execution:
        """How the execution stands now. Raises ExecutionNotFound."""
        return await self._client.status(self.id)

    def __repr__(self) -> str:
        return f"<execution {self.id!r}>"


def read_outcome(outcome: Outcome, codec: Codec, payloads: Payloads) -> Any:
    """The result of an execution that completed. Raises what any other end means, and PayloadUnreadable for a result
    that is encrypted with a key that is not here. How it ended is told without a key, too.
    """
    if outcome.pruned:
        raise ExecutionPruned(
            f"execution {outcome.execution_id!r} has ended ({outcome.status}), and what came of it was pruned since: "
            "only its id is kept. Read a result before it is older than the retention, or prune later",
            execution_id=outcome.execution_id,
        )
    if outcome.status != "completed":
        _raise(outcome._replace(failure=_decrypted_failure(outcome, payloads)))
    what = f"the result of execution {outcome.execution_id!r}"
    if outcome.result is None:
        return codec.load("null", what)
    return codec.load(payloads.decrypt(outcome.result, Place(outcome.execution_id, "result")), what)


def _decrypted_failure(outcome: Outcome, payloads: Payloads) -> str | None:
    if outcome.failure is None:
        return None
    try:
        return payloads.decrypt(outcome.failure, Place(outcome.execution_id, "failure"))
    except PayloadUnreadable as error:
        if outcome.status == "cancelled":
            return None
        return msgspec.json.encode(unreadable_failure(error, told=True)).decode()


def result_timeout(execution_id: str, timeout: Duration) -> ResultTimeout:
    told = format_duration(parse_duration(timeout, what="timeout"))
    return ResultTimeout(
        f"execution {execution_id!r} has not ended within {told}; it goes on, and asking again is harmless",
        execution_id=execution_id,
    )


def _raise(outcome: Outcome) -> NoReturn:
    execution_id = outcome.execution_id
    if outcome.status == "cancelled":
        raise _cancelled(outcome)
    failure = _read_failure(outcome.failure)
    if outcome.status == "blocked":
        raise ExecutionBlocked(failure, execution_id=execution_id)
    if failure.type.rpartition(".")[2] == ExecutionTimeout.__name__:
        raise ExecutionTimeout(_inner(outcome, failure), execution_id=execution_id)
    raise ExecutionFailed(failure, execution_id=execution_id)


def _inner(outcome: Outcome, failure: Failure) -> Failure:
    """What the stored ExecutionTimeout is about."""
    try:
        inner = getattr(exception_from_json(outcome.failure or "", _OURS), "failure", None)
    except PayloadError:
        return failure
    return inner if isinstance(inner, Failure) else failure


def _cancelled(outcome: Outcome) -> ExecutionCancelled:
    stored: object = None
    if outcome.failure is not None:
        try:
            stored = exception_from_json(outcome.failure, _OURS)
        except PayloadError:
            stored = None
    reason = getattr(stored, "reason", None)
    text = str(stored) if stored is not None else f"execution {outcome.execution_id!r} was cancelled"
    return ExecutionCancelled(
        text, execution_id=outcome.execution_id, reason=reason if isinstance(reason, str) else None
    )


def _read_failure(stored: str | None) -> Failure:
    told = "no failure was stored"
    if stored is not None:
        try:
            return failure_from_json(stored)
        except PayloadError as error:
            told = str(error)
    return Failure(type="unknown", message=told, step=None, attempts=1, traceback="")
