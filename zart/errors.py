"""Every error that zart raises.

    ZartError
    ├── UsageError (TypeError)             called in the wrong place or with the wrong thing
    ├── SerializationError                 a value that cannot be stored and read back
    ├── PayloadError (ValueError)          stored data that does not fit the type asked for
    │   └── PayloadUnreadable              stored data is encrypted, and cannot be decrypted here
    ├── NonDeterminismError                the code no longer asks for what was recorded
    ├── StepFailed                         a step failed for good and its class could not be rebuilt
    ├── StepTimeout (TimeoutError)         a step did not finish within its time limit
    │   └── StepStuck                      a plain def did not return after its total time limit
    ├── StepInterrupted                    an at-most-once step was started and not heard of again
    ├── EventTimeout (TimeoutError)        no event arrived in time
    ├── ExecutionNotFound (LookupError)    no execution has this id
    ├── ExecutionConflict                  the id exists with another function or other input
    ├── ExecutionFinished                  too late for this call
    ├── ExecutionPruned (LookupError)      it has ended, and only its id was kept
    ├── ExecutionFailed                    raised by result(): never the user's own class
    │   └── ExecutionTimeout               the execution reached its own time limit
    ├── ExecutionCancelled                 the execution was cancelled
    ├── ExecutionBlocked                   the execution cannot go on until somebody acts
    ├── ResultTimeout (TimeoutError)       the caller's patience ended, not the execution
    ├── SchemaError                        tables missing, older or newer than this library
    ├── NonRetryable                       raise in a step or body: do not try again
    └── RetryAfter                         raise in a step: not before this time

    NotDurableWarning (UserWarning)        a durable function or step called plainly beside an open Worker

`Suspended` and `ContinuedAsNew` are BaseExceptions of the engine's own: they unwind a body that waits, or that
begins anew, and no `except Exception` may stop them.

The first argument of most errors is the text; what a program wants to look at is an attribute beside it, None
where it is not known. All of them survive `pickle` and `copy`: their attributes live in `__dict__` and have
defaults.
"""

import datetime as dt
from typing import TYPE_CHECKING, final

import msgspec

if TYPE_CHECKING:
    from zart.durations import Duration


@final
class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """What is stored of an exception that ended a step or an execution.

    `type` is the class's full name, `message` its text, `step` the step it came from (None: the body itself),
    `attempts` how often that step or body was tried, `traceback` the shortened text of where it was raised.
    """

    type: str
    message: str
    step: str | None
    attempts: int
    traceback: str


def _describe(failure: Failure) -> str:
    """'ValueError: no such card (step 'charge', 3 attempts)'."""
    told = f"{failure.type}: {failure.message}" if failure.message else failure.type
    tried = f"{failure.attempts} attempt{'' if failure.attempts == 1 else 's'}"
    return f"{told} (step {failure.step!r}, {tried})" if failure.step is not None else f"{told} ({tried})"


class ZartError(Exception):
    """The base of every error that zart raises."""


class UsageError(ZartError, TypeError):
    """Called in the wrong place or with the wrong thing; the text says what is accepted."""


class SerializationError(ZartError):
    """A value cannot be stored and read back as it is. `what` names it: "result of step 'send-email'"."""

    what: str | None = None

    def __init__(self, *args: object, what: str | None = None) -> None:
        super().__init__(*args)
        self.what = what


class PayloadError(ZartError, ValueError):
    """Stored data does not fit the type asked for. `path` is the field, such as "$.items[0].price"."""

    path: str | None = None

    def __init__(self, *args: object, path: str | None = None) -> None:
        super().__init__(*args)
        self.path = path


class PayloadUnreadable(PayloadError):  # noqa: N818
    """Stored data is encrypted, and cannot be decrypted here. `key` is the id of the key that it needs, where that is
    known; with `passing` the codec could not be asked just now.
    """

    key: str | None = None
    passing: bool = False

    def __init__(
        self, *args: object, path: str | None = None, key: str | None = None, passing: bool = False
    ) -> None:
        super().__init__(*args, path=path)
        self.key = key
        self.passing = passing


class NonDeterminismError(ZartError):
    """The code no longer asks for what was recorded. `recorded` and `requested` name the two calls."""

    recorded: str | None = None
    requested: str | None = None

    def __init__(self, *args: object, recorded: str | None = None, requested: str | None = None) -> None:
        super().__init__(*args)
        self.recorded = recorded
        self.requested = requested


class StepFailed(ZartError):  # noqa: N818
    """A step failed for good and its own class could not be rebuilt; `failure` says what is known of it."""

    failure: Failure

    def __init__(self, failure: Failure, /) -> None:
        super().__init__(failure)
        self.failure = failure

    def __str__(self) -> str:
        return _describe(self.failure)


class StepTimeout(ZartError, TimeoutError):  # noqa: N818
    """A step did not finish within its time limit. `step` is its name, `limit` the limit that passed."""

    step: str | None = None
    limit: dt.timedelta | None = None

    def __init__(self, *args: object, step: str | None = None, limit: dt.timedelta | None = None) -> None:
        super().__init__(*args)
        self.step = step
        self.limit = limit


class StepStuck(StepTimeout):
    """A plain `def` step did not return by its total time limit. Its thread still runs."""


class StepInterrupted(ZartError):  # noqa: N818
    """A step with `at_most_once` was started and not heard of again: it may have happened. `step` is its name."""

    step: str | None = None

    def __init__(self, *args: object, step: str | None = None) -> None:
        super().__init__(*args)
        self.step = step


class EventTimeout(ZartError, TimeoutError):  # noqa: N818
    """No event of this name arrived in time. `event` is the name, `limit` how long the body waited."""

    event: str | None = None
    limit: dt.timedelta | None = None

    def __init__(self, *args: object, event: str | None = None, limit: dt.timedelta | None = None) -> None:
        super().__init__(*args)
        self.event = event
        self.limit = limit


class _AboutExecution(ZartError):  # noqa: N818
    execution_id: str | None = None

    def __init__(self, *args: object, execution_id: str | None = None) -> None:
        super().__init__(*args)
        self.execution_id = execution_id


class ExecutionNotFound(_AboutExecution, LookupError):  # noqa: N818
    """No execution has this id."""


class ExecutionConflict(_AboutExecution):
    """An execution of this id exists with another function or other input; nothing was started."""


class ExecutionFinished(_AboutExecution):
    """The execution has already completed, failed or was cancelled: too late for this call."""


class ExecutionPruned(_AboutExecution, LookupError):  # noqa: N818
    """The execution has ended, and what it was given and what it gave was pruned since; its id is kept."""


class ExecutionCancelled(_AboutExecution):
    """The execution was cancelled. `reason` is what the person who did it gave."""

    reason: str | None = None

    def __init__(self, *args: object, execution_id: str | None = None, reason: str | None = None) -> None:
        super().__init__(*args, execution_id=execution_id)
        self.reason = reason


class ResultTimeout(_AboutExecution, TimeoutError):  # noqa: N818
    """The caller's patience ended, not the execution: it goes on, and asking again is harmless."""


class ExecutionFailed(ZartError):  # noqa: N818
    """The execution failed for good: what `result()` raises, never the user's class. `failure` says why."""

    failure: Failure
    execution_id: str | None = None

    def __init__(self, failure: Failure, /, *, execution_id: str | None = None) -> None:
        super().__init__(failure)
        self.failure = failure
        self.execution_id = execution_id

    def __str__(self) -> str:
        return f"{_subject(self.execution_id)} failed: {_describe(self.failure)}"


class ExecutionTimeout(ExecutionFailed):
    """The execution reached its own time limit."""

    def __str__(self) -> str:
        return f"{_subject(self.execution_id)} reached its time limit: {_describe(self.failure)}"


class ExecutionBlocked(ZartError):  # noqa: N818
    """The execution cannot go on by itself and nothing is lost: mend what `failure` names, then resume it."""

    failure: Failure
    execution_id: str | None = None

    def __init__(self, failure: Failure, /, *, execution_id: str | None = None) -> None:
        super().__init__(failure)
        self.failure = failure
        self.execution_id = execution_id

    def __str__(self) -> str:
        command = "zart resume " + (self.execution_id if self.execution_id is not None else "ID")
        return (
            f"{_subject(self.execution_id)} is blocked: {_describe(self.failure)}. "
            f"Nothing was lost; mend the cause, then run `{command}`."
        )


def _subject(execution_id: str | None) -> str:
    return "execution" if execution_id is None else f"execution {execution_id!r}"


class SchemaError(ZartError):
    """The tables are missing, older or newer than this library; the text names the command to run."""


class NonRetryable(ZartError):  # noqa: N818
    """Raise it in a step or body: what was asked for can never work, so it is not tried again."""


class RetryAfter(ZartError):  # noqa: N818
    """Raise it in a step: the next attempt starts no earlier than `delay` from now.

    `delay` is a timedelta, seconds, or text such as "30s"; what follows are the exception's own arguments.
    Raises UsageError when `delay` is not a duration.
    """

    def __init__(self, delay: "Duration", /, *args: object) -> None:
        from zart.durations import parse_duration  # noqa: PLC0415 (durations needs this module's UsageError)

        # Seconds, not a timedelta, are what a record can hold: the delay is then still known after a replay.
        super().__init__(parse_duration(delay, what="delay of RetryAfter").total_seconds(), *args)

    @property
    def delay(self) -> dt.timedelta:
        """The least time until the next attempt."""
        return dt.timedelta(seconds=self.args[0])

    def __str__(self) -> str:
        from zart.durations import format_duration  # noqa: PLC0415

        told = f"not before {format_duration(self.delay)} from now"
        rest = ", ".join(str(argument) for argument in self.args[1:])
        return f"{rest} ({told})" if rest else told


class NotDurableWarning(UserWarning):
    """A step or durable function was called plainly beside an open Client or Worker: nothing was recorded."""


class Suspended(BaseException):
    """Unwinds a body whose execution waits or ends here. The engine raises it, and nobody should catch it."""


class ContinuedAsNew(BaseException):
    """Leaves a body that called `zart.continue_as_new`: its execution begins anew with `payload`, encoded. The engine
    raises it, and nobody should catch it.
    """

    def __init__(self, payload: bytes | None = None) -> None:
        super().__init__("the execution begins anew")
        self.payload = payload
