"""How a body ends: what becomes of its result, its failure, a cancel, and the second body that follows a failure.

    returned             completed
    raised               the body again, while it has retries: the records behind the exception are tried afresh, all
                         others are kept; then `on_failure` as a second body of the run, under its own path; then failed
    continue_as_new      ready again, as a run with a history of its own
    cancelled            cancelled, whatever the body returned or raised
    past its time limit  like a failure without retries

A cancel and the execution's time limit are entries of the log. They are delivered once, as a cancellation of the body's
first task; a replay delivers them at the same place.
"""

import asyncio
import datetime as dt
import random
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, NoReturn, cast

import msgspec

from zart._engine.alarms import Alarm
from zart._engine.entries import (
    Blocked,
    BodyRetry,
    Cancelled,
    CancelRequest,
    Completed,
    Ending,
    Entry,
    Failed,
    FailedAttempt,
    Key,
    Record,
)
from zart._engine.entries import ContinuedAsNew as ContinuedEnding
from zart._engine.points import reach
from zart._engine.sagas import Undos
from zart.context import UNCHANGED
from zart.durations import format_duration
from zart.errors import (
    ContinuedAsNew,
    ExecutionCancelled,
    ExecutionTimeout,
    Failure,
    PayloadError,
    SerializationError,
    Suspended,
    UsageError,
)
from zart.failures import KnownExceptions, exception_from_json, exception_to_json, failure_from_json

if TYPE_CHECKING:
    from zart._engine.activation import Activation

ON_FAILURE = "on_failure/"
"""The path of the second body."""
_FAILED = Key(ON_FAILURE, "failure", 1, "capture")
"""The entry that begins it; it holds the failure."""
_MOST_NOTES = 20


def blocked(error: Exception, what: str) -> Blocked:
    return Blocked(failure=exception_to_json(error), what=what)


def _limit(activation: "Activation") -> dt.timedelta | None:
    """The execution's time limit: what its start said, else the function's own."""
    given = activation.claim.time_limit
    return activation.spec.timeout if given is None else given or None


class _Told(msgspec.Struct):
    """What the log keeps of a cancel."""

    reason: str | None = None
    author: str | None = None


def _read_request(record: Record) -> CancelRequest:
    """Who wanted the cancel and why. Raises PayloadError for a row that somebody has edited."""
    try:
        told = msgspec.json.decode(record.result or "{}", type=_Told)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise PayloadError(
            f"the recorded cancel cannot be read: {error}. Correct its row in zart_steps, then resume the execution"
        ) from error
    return CancelRequest(told.reason, told.author)


def _continuation(error: BaseException | None) -> ContinuedAsNew | None:
    """What a body that begins anew has left with; also out of task groups, where nothing else has gone wrong."""
    if isinstance(error, ContinuedAsNew):
        return error
    if isinstance(error, BaseExceptionGroup):
        members = [
            _continuation(each) for each in cast("BaseExceptionGroup[BaseException]", error).exceptions
        ]
        return members[0] if None not in members else None
    return None


class Cancels:
    """Whether the execution is to end early, and who wants it."""

    __slots__ = ("_activation", "_count", "_deadline", "_submitted", "delivered", "requested", "timed_out")

    def __init__(self, activation: "Activation") -> None:
        self._activation = activation
        self._deadline: Alarm | None = None
        self._count = 0
        self.requested: CancelRequest | None = activation.claim.cancel
        self._submitted = False
        self.delivered = False
        self.timed_out = False

    def request(self, cancel: CancelRequest | None) -> None:
        """Somebody wants the execution cancelled. Asking twice changes nothing."""
        if cancel is not None and self.requested is None:
            self.requested = cancel
        if self.requested is not None and not self._activation.replaying:
            self._submit_request()

    def go_live(self) -> None:
        """The log is at its end: what was asked for meanwhile becomes an entry of it."""
        activation = self._activation
        limit = _limit(activation)
        if limit is not None and not self.timed_out and not activation.phase.is_second:
            self._deadline = activation.alarms.set(activation.claim.due_at + limit, self._time_out)
        self.request(None)

    def forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()

    def deliver(self, record: Record) -> None:
        """Its turn has come: the body is cancelled."""
        self.delivered = True
        if record.key.name == "timeout":
            self.timed_out = True
        elif self.requested is None or not self._submitted:
            self._submitted = True
            self.requested = _read_request(record)
        self._count = max(self._count, record.key.occurrence)
        self._activation.outgoing.order(self._activation.delegated.orders(self.requested))
        root = self._activation.root
        reach("cancel.delivering")
        if root is not None and not root.done():
            root.cancel()
        reach("cancel.delivered")
        self._activation.reconsider()

    def _submit_request(self) -> None:
        if not self._submitted and self.requested is not None:
            self._submitted = True
            reach("cancel.noticed")
            told = _Told(reason=self.requested.reason, author=self.requested.author)
            self._submit("cancel", msgspec.json.encode(told))

    def _time_out(self) -> None:
        if not self._submitted and not self._activation.phase.is_second:
            reach("limit.passed")
            self._submit("timeout", b"null")

    def _submit(self, name: str, told: bytes) -> None:
        activation = self._activation
        self._count += 1
        key = Key("", name, self._count, "cancel")
        entry = Entry.at_once(activation.claim.run_id, key, told, activation.host.now())
        activation.submit(entry, deliver=self.deliver)


class Phase:
    """Which body of the run is on, and what follows it."""

    __slots__ = ("_activation", "_failure", "path", "pauses")

    def __init__(self, activation: "Activation") -> None:
        self._activation = activation
        self._failure: bytes | None = None
        self.path = ""
        self.pauses: dict[str, dt.datetime] = {}
        """Steps that wait for their next attempt, for people."""

    @property
    def is_second(self) -> bool:
        return self._failure is not None

    @property
    def marks(self) -> str:
        """What the identity of a call is extended by, so that it is done under a key of its own: a repair may have set
        aside what was done after a failure or in a cleanup at an earlier attempt, and that has used its key up.
        """
        attempt = self._activation.claim.attempt
        return (
            f"@{attempt} " if attempt > 1 and (self.is_second or self._activation.cancels.delivered) else ""
        )

    def first(self) -> Coroutine[Any, Any, Any]:
        """The body to run at this activation. Raises PayloadError when the payload does not fit."""
        activation = self._activation
        failed = activation.log.by_key.get(_FAILED)
        repaired = activation.repair is not None  # then there is no failure any more
        if failed is None or failed.seq is None or activation.spec.on_failure is None or repaired:
            spec = activation.spec
            return spec.fn(self._payload()) if spec.takes_payload else spec.fn()
        activation.log.begin_after(failed.seq, ON_FAILURE)
        self._failure = (failed.result or "").encode()
        self.path = ON_FAILURE
        return self._second()

    def _payload(self) -> Any:
        claim = self._activation.claim
        return self._activation.spec.payload.load(
            claim.payload or "null", f"the payload of execution {claim.execution_id!r}"
        )

    def _second(self) -> Coroutine[Any, Any, object]:
        spec = self._activation.spec
        assert spec.on_failure is not None and self._failure is not None  # noqa: S101, PT018
        payload = self._payload() if spec.takes_payload else None
        return spec.on_failure(payload, failure_from_json(self._failure))

    def refuse(self, error: PayloadError) -> None:
        """The payload does not fit: the body never ran, so there is nothing to retry or to clean up."""
        self._activation.end(Failed(failure=exception_to_json(error)))

    def refused(self, error: SerializationError) -> Ending:
        """The database refuses the ending's value."""
        return Failed(failure=exception_to_json(error))

    def over(self, root: "asyncio.Task[Any]") -> None:
        """The body and all its branches have ended."""
        reach("body.over")
        activation = self._activation
        cancels = activation.cancels
        error = asyncio.CancelledError("the body cancelled itself") if root.cancelled() else root.exception()
        if activation.repair is not None:
            activation.repair.meet(error)
            return
        self._note_unused()
        continued = _continuation(error)
        if cancels.requested is not None:
            activation.end(Cancelled(failure=exception_to_json(self._cancelled(cancels.requested))))
        elif continued is not None and (self._failure is not None or not cancels.timed_out):
            activation.notes.append(("continued", "as another run"))
            activation.end(ContinuedEnding(payload=continued.payload))
        elif self._failure is not None:
            activation.end(self._after_second(error))
        elif cancels.timed_out:
            self._fail(self._timed_out())
        elif error is not None:
            self._failed(error)
        else:
            self._returned(root.result())

    def continue_as_new(self, data: object) -> NoReturn:
        """Leave the body; when it and its branches have ended, the execution begins anew."""
        activation = self._activation
        claim, spec = activation.claim, activation.spec
        what = f"the input with which execution {claim.execution_id!r} ({spec.name}) begins anew"
        if activation.closed:
            raise Suspended
        if data is UNCHANGED:
            raise ContinuedAsNew(None if claim.payload is None else claim.payload.encode())
        if not spec.takes_payload:
            raise UsageError(f"{what} is {type(data).__name__!r}, but the function takes none")
        raise ContinuedAsNew(spec.payload.store(data, what)[0])

    def begins_anew(self, root: "asyncio.Task[Any]") -> bool:
        """Whether this is how the body has ended."""
        return not root.cancelled() and _continuation(root.exception()) is not None

    def _returned(self, value: object) -> None:
        activation = self._activation
        what = f"the result of execution {activation.claim.execution_id!r} ({activation.spec.name})"
        try:
            stored, _ = activation.spec.result.store(value, what)
            activation.end(Completed(result=stored))
        except SerializationError as error:
            self._fail(error)

    def _failed(self, error: BaseException) -> None:
        activation = self._activation
        claim, retry = activation.claim, activation.spec.retry
        hopeless = not isinstance(error, Exception) or isinstance(error, UsageError)
        if hopeless or claim.attempt > retry.retries or not retry.allows(error):  # type: ignore[arg-type]
            self._fail(error)
            return
        delay = retry.delay_before(claim.attempt, draw=random.random)
        limit = _limit(activation)
        if limit is not None and activation.host.now() + delay >= claim.due_at + limit:
            self._fail(error)  # the next attempt could only begin after the time limit
            return
        activation.notes.append(
            (
                "retry",
                f"attempt {claim.attempt} of the body failed ({type(error).__name__}: {error}); the next one starts in "
                + format_duration(delay),
            )
        )
        reach("body.retrying")
        afresh, forgotten = self.tried_afresh([error])
        for saga in forgotten:
            activation.note_down(saga.next_mark)
        activation.end(
            BodyRetry(
                attempt=claim.attempt + 1,
                not_before=activation.host.now() + delay,
                floor=activation.outgoing.last_seq,
                afresh=afresh,
            )
        )

    def _fail(self, error: BaseException) -> None:
        """The body has failed for good: `on_failure` if there is one, else the end."""
        activation = self._activation
        failure = self._told(error)
        if activation.spec.on_failure is None:
            activation.end(Failed(failure=failure))
            return
        reach("failure.begin")
        activation.cancels.forget_deadline()
        entry = Entry.at_once(activation.claim.run_id, _FAILED, failure, activation.host.now())
        self._failure = failure
        activation.submit(entry, deliver=self._begin_second)

    def _begin_second(self, record: Record) -> None:
        reach("failure.delivered")
        self.path = ON_FAILURE
        heard_at = record.finished_at or self._activation.host.now()
        self._activation.start_phase(self._second(), ON_FAILURE, heard_at)

    def _after_second(self, error: BaseException | None) -> Failed:
        assert self._failure is not None  # noqa: S101
        if error is None:
            return Failed(failure=self._failure)
        original = exception_from_json(self._failure, KnownExceptions())
        both = BaseExceptionGroup("the body failed, and so did its on_failure handler", [original, error])
        return Failed(failure=exception_to_json(both, attempts=self._activation.claim.attempt))

    def _told(self, error: BaseException) -> bytes:
        """The failure of the execution: of the step whose exception left the body, or of the body itself."""
        blamed = self._activation.blamed.get(id(error))
        if blamed is None:
            return exception_to_json(error, attempts=self._activation.claim.attempt)
        return exception_to_json(error, step=str(blamed[1].key), attempts=blamed[1].attempts)

    # ------------------------------------------------------------ what is tried afresh

    def tried_afresh(self, errors: list[BaseException]) -> tuple[tuple[FailedAttempt, ...], list[Undos]]:
        """The records behind exceptions that left the body: themselves, their causes, the members of groups.

        With them go the records within sagas that were undone for that: what was done there is to be done again. These
        sagas are returned, too.
        """
        activation = self._activation
        afresh: dict[Key, FailedAttempt] = {}
        since: list[int] = []
        seen: dict[int, BaseException] = {}
        pending = list(errors)
        while pending:
            current = pending.pop()
            if id(current) in seen:
                continue
            seen[id(current)] = current
            blamed = activation.blamed.get(id(current))
            if blamed is not None:
                afresh[blamed[1].key] = self.moved(blamed[1].key, blamed[1], current)
                since.append(blamed[1].seq or 0)
            elif type(current) is TimeoutError and activation.fired:
                key, at = activation.fired[-1]
                afresh[key] = self.moved(key, None, current)
                since.append(at)
            if isinstance(current, BaseExceptionGroup):
                pending.extend(cast("BaseExceptionGroup[BaseException]", current).exceptions)
            if current.__cause__ is not None:
                pending.append(current.__cause__)
        forgotten = activation.sagas.forgotten(seen.values(), min(since, default=0))
        for saga in forgotten:
            for key, record in saga.called.items():
                afresh.setdefault(key, self.moved(key, record, None))
        return tuple(afresh.values()), forgotten

    def moved(self, key: Key, record: Record | None, error: BaseException | None) -> FailedAttempt:
        """A record that is set aside, as an attempt."""
        now = self._activation.host.now()
        stored = record.failure if record is not None else None
        if stored is None and error is not None:
            stored = exception_to_json(error, step=key.name)
        return FailedAttempt(
            key=key,
            attempt=record.attempts if record is not None else 1,
            body_attempt=self._activation.claim.attempt,
            failure=stored.encode() if isinstance(stored, str) else stored,
            started_at=(record.started_at if record is not None else None) or now,
            finished_at=(record.finished_at if record is not None else None) or now,
            next_at=None,
        )

    # ------------------------------------------------------------ texts

    def _cancelled(self, request: CancelRequest) -> ExecutionCancelled:
        told = f"execution {self._activation.claim.execution_id!r} was cancelled"
        if request.author:
            told += f" by {request.author}"
        if request.reason:
            told += f": {request.reason}"
        return ExecutionCancelled(
            told, execution_id=self._activation.claim.execution_id, reason=request.reason
        )

    def _timed_out(self) -> ExecutionTimeout:
        activation = self._activation
        limit = format_duration(_limit(activation) or dt.timedelta())
        failure = Failure(
            type="TimeoutError",
            message=f"{activation.spec.name} did not finish within {limit}",
            step=None,
            attempts=activation.claim.attempt,
            traceback="",
        )
        return ExecutionTimeout(failure, execution_id=activation.claim.execution_id)

    def _note_unused(self) -> None:
        activation = self._activation
        unused = activation.log.unused()
        for record in unused[:_MOST_NOTES]:
            activation.notes.append(
                ("warning", f"the recorded {record.key.kind} {record.key} is no longer called by the code")
            )
        if len(unused) > _MOST_NOTES:
            activation.notes.append(("warning", f"and {len(unused) - _MOST_NOTES} more recorded calls"))
