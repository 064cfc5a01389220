"""One call of a step that has no record: its attempts, one after the other, until there is one.

A failed attempt is written with the time of the next one, so a worker that takes over waits for the remainder and
counts on. Most calls need none of this: a plain function whose first attempt returns takes the straight path of
`plain_steps`, which comes here with whatever is out of the ordinary. What the function returns is its record, in one of
four ways:

    plainly              through the journal, when the function has returned
    at_most_once         the same; but that it is started is recorded before it runs, and who finds that runs it no more
    transaction=True     as the last statement of the transaction in which the function did its writes
    transaction="own"    by the function itself, in a transaction of its own; the journal has it after that
"""

import asyncio
import datetime as dt
import functools
import random
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, NamedTuple

from zart._engine import sagas, telling
from zart._engine.branch import Branch
from zart._engine.entries import Entry, FailedAttempt, Key, Lost, Record
from zart._engine.own_records import OwnRecord
from zart._engine.points import reach
from zart._engine.sagas import Undos
from zart._engine.step_attempts import Running, attempt
from zart._engine.step_waits import stay_with, until_due, until_fresh
from zart._engine.transactions import MOST_CONFLICTS, Again, Connected, Transaction, pause_after_conflict
from zart.calls import StepCall
from zart.errors import RetryAfter, SerializationError, StepInterrupted, StepStuck, Suspended, UsageError
from zart.failures import exception_to_json
from zart.in_step import Inside
from zart.telemetry.hub import hub

if TYPE_CHECKING:
    from zart._engine.steps import Steps


class Tried(NamedTuple):
    """What came of one attempt."""

    decoded: Any = None
    result: bytes | None = None
    error: Exception | None = None
    recorded: bytes | None = None
    """What it, or an earlier one, has recorded in a transaction of its own."""
    data: bytes | None = None
    began: dt.datetime | None = None
    transaction: Transaction | None = None


class StepRun:
    """See the module. `run` returns or raises what is recorded in the end."""

    def __init__(
        self,
        steps: "Steps",
        branch: Branch,
        key: Key,
        call: StepCall,
        *,
        digest: bytes | None,
        preview: str | None,
        within: tuple[Undos, ...] = (),
        undoes: Undos | None = None,
    ) -> None:
        activation = branch.activation
        host = activation.host
        stored = activation.log.by_key.get(key)
        self._steps = steps
        self._branch = branch
        self._key = key
        self._call = call
        self._digest = digest
        self._preview = preview
        self._attempt = 1
        self._until: dt.datetime | None = None
        self._first = stored.started_at if stored is not None else None
        self._progress = stored.progress.encode() if stored is not None and stored.progress else None
        self._thread: asyncio.Future[None] | None = None
        self._interrupted = stored is not None and stored.state == "started"
        self._conflicts = 0
        self._within = within
        self._undoes = undoes
        sagas.note(within, key)
        self._marks = call.marks or activation.phase.marks + sagas.marks(within)
        if stored is not None:
            self._attempt = stored.attempts + (stored.state == "waiting")
            self._until = stored.until if stored.state == "waiting" else None
        self._own: OwnRecord | None = None
        self._scheduled = activation.claim.step is not None
        if host.transactions is not None and (
            call.spec.transaction == "own" or (call.spec.transaction and self._scheduled)
        ):
            self._own = OwnRecord(host.transactions, activation, key)

    def after(self, step: Running, error: Exception) -> Coroutine[Any, Any, Any]:
        """Go on where a first attempt, made outside of this, has come to nothing; see `plain_steps`."""
        self._first, self._progress = step.first_started_at, step.inside.progress
        return self.run(Tried(error=error, began=step.started_at))

    async def run(self, tried: Tried | None = None) -> Any:
        """`tried`: the first attempt was made already."""
        branch, host = self._branch, self._branch.activation.host
        if self._interrupted:
            return await self._fail(self._was_interrupted(), self._first or host.now())
        while True:
            if self._until is not None:
                if self._thread is not None:
                    await stay_with(branch, self._thread, self._until)
                await until_due(branch, self._until, f"step {self._key}, attempt {self._attempt}")
            if tried is None:
                tried = await self._try()
            finished, error = host.now(), tried.error
            if tried.recorded is not None:
                return await self._take_over(tried.recorded, finished)
            if error is None:
                reach("step.returned")
                error = await self._record(tried, finished)
                if error is None:
                    return tried.decoded
            if isinstance(error, Again):
                error = await self._after_conflict(error)
                if error is None:
                    tried = None
                    continue
            reach("step.failed")
            self._until = self._again(error, finished)
            if self._until is None:
                return await self._fail(error, finished, tried.began)
            self._wait_for_next(error, tried.began or finished, finished)
            self._attempt += 1
            self._conflicts = 0
            tried = None

    async def _try(self) -> Tried:
        """One attempt, when there is room for it."""
        branch, activation = self._branch, self._branch.activation
        if activation.host.rules.any:
            await activation.holds.pass_by(branch, self._key)
        if not self._steps.take_slot():
            await self._steps.slot(branch)
        transaction: Transaction | None = None
        try:
            if not activation.host.fresh:
                await until_fresh(branch)
            if activation.closed:  # while this waited for its time or its turn, which had come just then
                raise Suspended
            if self._own is not None:
                recorded = await self._ask_own(self._own.before(self._number))
                if recorded is not None:
                    return Tried(recorded=recorded)
            if self._call.spec.transaction is True and activation.host.transactions is not None:
                transaction = await self._begin(activation.host.transactions)
            return await self._run_function(self._running(transaction))
        except BaseException:
            if transaction is not None:
                transaction.abandon()
            raise
        finally:
            self._steps.give_back()

    async def _run_function(self, step: Running) -> Tried:
        reach("step.begin")
        run = telling.told_attempt if hub.listening else attempt
        if step.at_most_once:
            with self._steps.not_to_be_interrupted(step):
                await self._say_started()
                decoded, result, error = await run(self._steps, self._branch, step, self._call)
        else:
            decoded, result, error = await run(self._steps, self._branch, step, self._call)
        self._progress = step.inside.progress
        self._thread = step.thread
        recorded = None
        if error is not None and step.transaction is not None:
            with self._steps.in_step():
                error = await step.transaction.failed(error, self._key)
        elif self._own is not None and step.transaction is not None:
            recorded, error = await self._commit_beside(self._own, step.transaction, result or b"null")
        elif self._own is not None:
            recorded, error = await self._end_own(self._own, error)
        return Tried(decoded, result, error, recorded, step.inside.data, step.started_at, step.transaction)

    # ------------------------------------------------------------ before the function runs

    async def _begin(self, transactions: Connected) -> Transaction:
        with self._steps.in_step():
            return await transactions.begin(
                self._branch.activation.claim.execution_id, threaded=self._call.spec.threaded
            )

    def _running(self, transaction: Transaction | None) -> Running:
        now = self._branch.activation.host.now()
        self._first = self._first or now
        inside = Inside(
            transaction=self._call.spec.transaction, progress=self._progress, scheduled=self._scheduled
        )
        if transaction is not None:
            inside.connection = transaction.connection
            inside.sync_connection = transaction.sync_connection
            inside.schema = transaction.schema
        step = Running(
            self._key,
            self._attempt,
            self._first,
            now,
            self._call.spec.at_most_once,
            inside,
            transaction=transaction,
            within=self._within,
            marks=self._marks,
            thread=self._thread,
        )
        inside.on_progress = functools.partial(self._steps.progressed, step)
        return step

    async def _say_started(self) -> None:
        """Record that it is started, before it runs: whoever finds that and no more never runs it."""
        activation = self._branch.activation
        started = self._so_far(state="started")
        await self._branch.parked(activation.note(started))
        reach("step.started")
        if activation.closed:
            raise Suspended

    # ------------------------------------------------------------ when it has returned

    def _so_far(self, **what: Any) -> Entry:
        return Entry(
            run_id=self._branch.activation.claim.run_id,
            key=self._key,
            done=None,
            digest=self._digest,
            arguments=self._preview,
            attempts=self._attempt,
            started_at=self._first,
            progress=self._progress,
            **what,
        )

    async def _record(self, tried: Tried, finished: dt.datetime) -> Exception | None:
        """Record the result, and wait for the body's turn to have it. Returns what it could not be recorded for."""
        branch, activation = self._branch, self._branch.activation
        completed = self._so_far(
            state="completed", result=tried.result, finished_at=finished, data=tried.data
        )
        if tried.transaction is None:
            future = activation.submit(completed)
        else:
            future = activation.submit_apart(completed, tried.transaction)
        try:
            self._heard(await branch.parked(future))
        except SerializationError as refused:
            return refused
        except Exception as error:
            if tried.transaction is None:
                raise
            return error
        return None

    def _heard(self, record: Record) -> None:
        self._branch.heard(record)
        sagas.note(self._within, self._key, record)

    async def _after_conflict(self, conflict: Again) -> Exception | None:
        """Nothing was done: the function runs again, unless it has come to nothing too often."""
        self._conflicts += 1
        if self._conflicts > MOST_CONFLICTS:
            return conflict.__cause__ if isinstance(conflict.__cause__, Exception) else conflict
        self._until = None
        with self._steps.in_step():
            await pause_after_conflict(self._conflicts)
        return None

    async def _fail(self, error: Exception, finished: dt.datetime, began: dt.datetime | None = None) -> Any:
        """Record that it has failed for good; raises that in the body when its turn has come."""
        failure = exception_to_json(error, step=self._key.name, attempts=self._attempt)
        if self._undoes is not None:
            self._undoes.give_up(self._failed_attempt(failure, began or finished, finished), error)
        failed = self._so_far(state="failed", failure=failure, finished_at=finished)
        return await self._submitted(failed)

    async def _submitted(self, entry: Entry) -> Any:
        """What a record says to the body, once its turn has come."""
        branch = self._branch
        future = branch.activation.submit(entry)
        if self._own is not None:  # whether or not anybody goes on here by then
            entry.done = self._own.forgetting(entry.done)
        record: Record = await branch.parked(future)
        self._heard(record)
        return branch.value_of(record, self._call.spec)

    def _wait_for_next(self, error: Exception, began: dt.datetime, finished: dt.datetime) -> None:
        if self._branch.activation.closed:  # the ending is the last thing that it has written
            raise Suspended
        failure = exception_to_json(error, step=self._key.name, attempts=self._attempt)
        failed_attempt = self._failed_attempt(failure, began, finished)
        self._branch.activation.write(
            self._so_far(state="waiting", until=self._until, failed_attempt=failed_attempt)
        )
        if hub.listening and self._until is not None:
            delay = (self._until - finished).total_seconds()
            telling.retried(self._branch, self._call, self._key, self._attempt, delay)
        reach("step.waiting")

    def _failed_attempt(self, failure: bytes, began: dt.datetime, finished: dt.datetime) -> FailedAttempt:
        body_attempt = self._branch.activation.claim.attempt
        return FailedAttempt(self._key, self._attempt, body_attempt, failure, began, finished, self._until)

    def _again(self, error: Exception, now: dt.datetime) -> dt.datetime | None:
        """When the next attempt is due; None when there is none."""
        spec, attempt = self._call.spec, self._attempt
        if isinstance(error, (SerializationError, StepStuck)) or spec.at_most_once:
            return None
        if spec.transaction and isinstance(error, UsageError):
            return None  # its transaction was not ended as it must be: the next one would not be either
        if attempt > spec.retry.retries or not spec.retry.allows(error):
            return None
        delay = spec.retry.delay_before(attempt, draw=random.random)
        if isinstance(error, RetryAfter):
            delay = max(delay, error.delay)
        limit = spec.timeout if spec.timeout_scope == "total" else None
        if limit is not None and now + delay >= (self._first or now) + limit:
            return None
        return now + delay

    def _was_interrupted(self) -> StepInterrupted:
        execution = self._branch.activation.claim.execution_id
        return StepInterrupted(
            f"execution {execution!r}: step {self._key}, which runs at most once, was started at "
            f"{self._first:%Y-%m-%d %H:%M:%S} UTC and not heard of again: it may have happened or not. Find out from "
            "whoever it concerns, and go on from there",
            step=self._key.name,
        )

    # ------------------------------------------------------------ a record beside the journal

    @property
    def _number(self) -> int:
        """Of the attempt; in Zart's transaction those count, too, that came to nothing by a conflict."""
        if self._call.spec.transaction == "own":
            return self._attempt
        return self._attempt * (MOST_CONFLICTS + 1) + self._conflicts

    async def _commit_beside(
        self, own: OwnRecord, transaction: Transaction, result: bytes
    ) -> tuple[bytes | None, Exception | None]:
        """The record of a scheduled step; or what it could not be recorded for."""
        reach("step.returned")
        with self._steps.in_step():
            try:
                await own.commit(transaction, self._number, result)
            except Lost:
                self._branch.activation.release()
                raise Suspended from None
            except Exception as error:  # noqa: BLE001 (the step fails of it, or is run again)
                return None, error
        return result, None

    async def _ask_own(self, question: Any) -> bytes | None:
        with self._steps.in_step():
            try:
                recorded: bytes | None = await question
            except Lost:
                self._branch.activation.release()
                raise Suspended from None
        return recorded

    async def _end_own(
        self, own: OwnRecord, error: Exception | None
    ) -> tuple[bytes | None, Exception | None]:
        """What the attempt has recorded, or else what it fails of."""
        try:
            recorded = await self._ask_own(own.after(self._attempt))
        except UsageError as still_open:
            return None, error or still_open
        if recorded is None and error is None:
            error = own.not_called(self._attempt)
        return recorded, error

    async def _take_over(self, recorded: bytes, finished: dt.datetime) -> Any:
        """What such a step has recorded goes to the journal, and to the body when its turn has come."""
        reach("own.recorded")
        self._first = self._first or finished
        completed = self._so_far(state="completed", result=recorded, finished_at=finished)
        return await self._submitted(completed)
