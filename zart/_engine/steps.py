"""Steps of one activation: they run inline, in the task that called them, attempt after attempt.

The result of a step is its record: it is encoded, decoded again (so the body gets on the first run what it will get on
a replay), written, and delivered when its turn comes. A failed attempt is written with the time of the next one, so a
worker that takes over waits for the remainder and counts on. A step that has run for a second gets a `running` record;
a shorter one never pays for that.
"""

import asyncio
import contextlib
import datetime as dt
import functools
import hashlib
import inspect
import random
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import msgspec

from zart._engine import sagas
from zart._engine.branch import Branch
from zart._engine.entries import Entry, FailedAttempt, Key, Record
from zart._engine.points import reach
from zart._engine.sagas import Undos
from zart.calls import StepCall
from zart.context import place
from zart.durations import format_duration
from zart.errors import RetryAfter, SerializationError, StepStuck, StepTimeout, Suspended
from zart.failures import exception_to_json
from zart.in_step import InStep
from zart.state import StepContext

if TYPE_CHECKING:
    from zart._engine.activation import Activation

NOTICED_AFTER = dt.timedelta(seconds=1)
"""A step that runs for longer is shown as running."""


class Running(msgspec.Struct, eq=False):
    """A step that runs now."""

    key: Key
    attempt: int
    first_started_at: dt.datetime
    started_at: dt.datetime
    shown: bool = False
    within: tuple[Undos, ...] = ()
    """The sagas that it was called in."""
    marks: str = ""
    """How often those were undone and forgotten, if ever."""
    thread: "asyncio.Future[None] | None" = None
    """Done when the thread of the last attempt has returned."""


class Steps:
    """The steps that an activation runs."""

    def __init__(self, activation: "Activation") -> None:
        self._activation = activation
        self._host = activation.host
        self._free = activation.host.max_inflight_steps
        self._queue: deque[asyncio.Future[None]] = deque()
        self.running: dict[Key, Running] = {}
        self.tasks: set[asyncio.Task[Any]] = set()
        """The tasks that are in a step now."""

    async def run(
        self,
        branch: Branch,
        key: Key,
        call: StepCall,
        digest: bytes | None,
        preview: str | None,
        *,
        within: tuple[Undos, ...] = (),
        undoes: Undos | None = None,
    ) -> Any:
        """Run a step that has no record, with all its attempts; returns or raises what is recorded then.

        `within` are the sagas that it was called in; `undoes` is the one that it undoes, if it does.
        """
        activation, host, spec = self._activation, self._host, call.spec
        stored = activation.log.by_key.get(key)
        attempt, until = 1, None
        if stored is not None:
            attempt = stored.attempts + (stored.state == "waiting")
            until = stored.until if stored.state == "waiting" else None
        first = stored.started_at if stored is not None and stored.started_at is not None else None
        entry = functools.partial(
            Entry, run_id=activation.claim.run_id, key=key, done=None, digest=digest, arguments=preview
        )
        step: Running | None = None
        sagas.note(within, key)
        marks = call.marks or sagas.marks(within)
        while True:
            if until is not None:
                if step is not None and step.thread is not None:
                    await self._stay_with(step.thread, until)
                await activation.pause(branch, until, f"step {key}, attempt {attempt}")
            await self._slot(branch)
            try:
                if not host.fresh:
                    await activation.until_fresh(branch)
                if activation.closed:  # while this waited for its time or its turn, which had come just then
                    raise Suspended
                now = host.now()
                first = first or now
                thread = step.thread if step is not None else None
                step = Running(key, attempt, first, now, within=within, marks=marks, thread=thread)
                reach("step.begin")
                decoded, result, error = await self._attempt(branch, step, call)
            finally:
                self._give_back()
            finished = host.now()
            so_far = functools.partial(entry, attempts=attempt, started_at=first)
            if error is None:
                reach("step.returned")
                completed = so_far(state="completed", result=result, finished_at=finished)
                try:
                    record: Record = await branch.parked(activation.submit(completed))
                except SerializationError as refused:
                    error = refused
                else:
                    branch.heard(record)
                    sagas.note(within, key, record)
                    return decoded
            reach("step.failed")
            failure = exception_to_json(error, step=key.name, attempts=attempt)
            until = self._again(call, error, attempt, first, finished)
            failed_attempt = FailedAttempt(
                key, attempt, activation.claim.attempt, failure, step.started_at, finished, until
            )
            if until is None:
                if undoes is not None:
                    undoes.give_up(failed_attempt, error)
                failed = so_far(state="failed", failure=failure, finished_at=finished)
                record = await branch.parked(activation.submit(failed))
                branch.heard(record)
                sagas.note(within, key, record)
                return branch.value_of(record, spec)
            if activation.closed:  # the ending is the last thing that it has written
                raise Suspended
            activation.write(so_far(state="waiting", until=until, failed_attempt=failed_attempt))
            reach("step.waiting")
            attempt += 1

    def _again(
        self, call: StepCall, error: Exception, attempt: int, first: dt.datetime, now: dt.datetime
    ) -> dt.datetime | None:
        """When the next attempt is due; None when there is none."""
        spec = call.spec
        if isinstance(error, (SerializationError, StepStuck)):
            return None
        if attempt > spec.retry.retries or not spec.retry.allows(error):
            return None
        delay = spec.retry.delay_before(attempt, draw=random.random)
        if isinstance(error, RetryAfter):
            delay = max(delay, error.delay)
        limit = spec.timeout if spec.timeout_scope == "total" else None
        if limit is not None and now + delay >= first + limit:
            return None
        return now + delay

    async def _attempt(
        self, branch: Branch, step: Running, call: StepCall
    ) -> tuple[Any, bytes | None, Exception | None]:
        """One attempt: the decoded value and its bytes, or the error."""
        spec = call.spec
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 (a coroutine always runs in one)
        fn = self._host.function(call, step.key)
        cancelling = task.cancelling()
        key = step.key
        self.running[key] = step
        self.tasks.add(task)
        token = place.set(InStep(branch, lambda: _step_context(branch, step)))
        try:
            limit = self._limit(call, step)
            if spec.threaded:
                value = await self._in_thread(fn, step, call, limit)
            elif limit is None:
                value = await fn(*call.args, **call.kwargs)
            else:
                scope = asyncio.timeout(limit)
                try:
                    async with scope:
                        value = await fn(*call.args, **call.kwargs)
                except TimeoutError:
                    if scope.expired():
                        raise self._timed_out(step, call) from None
                    raise
            result, decoded = spec.result.store(value, f"the result of step {key}")
        except Exception as error:
            if task.cancelling() > cancelling:
                raise asyncio.CancelledError from error
            return None, None, error
        except asyncio.CancelledError:
            if self._activation.closed:
                raise Suspended from None
            if task.cancelling() > cancelling:
                raise
            # Nobody cancelled this task: the step ran into a cancellation of something that it awaited.
            return None, None, _was_cancelled(key)
        else:
            if task.cancelling() > cancelling:
                # It was cancelled and returned all the same: what the body sees must not depend on that race.
                raise asyncio.CancelledError
            return decoded, result, None
        finally:
            place.reset(token)
            self.tasks.discard(task)
            del self.running[key]

    async def _in_thread(
        self, fn: Callable[..., Any], step: Running, call: StepCall, limit: float | None
    ) -> Any:
        """Run a plain `def`. A thread cannot be cut: past its limit only the attempt ends."""
        spec, loop = call.spec, asyncio.get_running_loop()
        if step.thread is not None and not step.thread.done():
            await self._thread_back(step, call)
        returned = step.thread = loop.create_future()
        for saga in step.within:
            saga.threads.add(returned)

        def work() -> Any:
            try:
                return fn(*call.args, **call.kwargs)
            finally:
                with contextlib.suppress(
                    RuntimeError
                ):  # the loop may be closed by then: nobody waits any more
                    loop.call_soon_threadsafe(_settle, returned)

        scope = asyncio.timeout(limit)
        try:
            async with scope:
                result = await anyio.to_thread.run_sync(
                    work, limiter=self._host.threads, abandon_on_cancel=True
                )
                # `step("fetch")(lambda: fetch(url))` is a plain function, too, that returns a coroutine.
                return await result if inspect.isawaitable(result) else result
        except TimeoutError:
            if not scope.expired():
                raise
            raise self._timed_out(step, call, stuck=spec.timeout_scope == "total") from None

    async def _stay_with(self, thread: "asyncio.Future[None]", until: dt.datetime) -> None:
        """Until a thread that ignores its limit has returned, or the next attempt is due.

        The body is not parked meanwhile: who goes on after a suspension would know nothing of the thread, and begin an
        attempt beside it.
        """
        activation = self._activation
        due: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        alarm = activation.alarms.set(until, functools.partial(_settle, due))
        activation.stir()
        try:
            await asyncio.wait([thread, due], return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            if activation.closed:
                raise Suspended from None
            raise
        finally:
            alarm.cancel()
        activation.busy()

    async def _thread_back(self, step: Running, call: StepCall) -> None:
        """The last attempt's thread has not returned: wait for it, as long as the step may take in all."""
        spec = call.spec
        assert step.thread is not None and spec.timeout is not None  # noqa: S101, PT018
        total = spec.timeout
        if spec.timeout_scope == "attempt":
            total = spec.timeout * (spec.retry.retries + 1)
            for attempt in range(1, spec.retry.retries + 1):
                total += spec.retry.delay_before(attempt, draw=lambda: 0.5)
        left = (step.first_started_at + total - self._host.now()).total_seconds()
        try:
            async with asyncio.timeout(max(left, 0)):
                await asyncio.wait([step.thread])
        except TimeoutError:
            raise self._timed_out(step, call, stuck=True) from None

    def _limit(self, call: StepCall, step: Running) -> float | None:
        """How long this attempt may take, in seconds."""
        spec = call.spec
        if spec.timeout is None:
            return None
        if spec.timeout_scope == "attempt":
            return spec.timeout.total_seconds()
        return max((step.first_started_at + spec.timeout - step.started_at).total_seconds(), 0)

    def _timed_out(self, step: Running, call: StepCall, *, stuck: bool = False) -> StepTimeout:
        limit = call.spec.timeout or dt.timedelta()
        scope = " in all" if call.spec.timeout_scope == "total" else ""
        told = f"execution {self._activation.claim.execution_id!r}: step {step.key}, attempt {step.attempt},"
        if stuck:
            return StepStuck(
                f"{told} has not returned and its thread still runs; its limit is {format_duration(limit)}{scope}",
                step=step.key.name,
                limit=limit,
            )
        return StepTimeout(
            f"{told} did not finish within {format_duration(limit)}{scope}", step=step.key.name, limit=limit
        )

    async def _slot(self, branch: Branch) -> None:
        """At most so many live steps of one execution at a time, first come first served."""
        if self._free > 0 and not self._queue:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            await branch.parked(turn)
        except BaseException:
            if turn.done() and not turn.cancelled():
                self._give_back()
            raise

    def _give_back(self) -> None:
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    def show_long(self, now: dt.datetime) -> None:
        """Write a `running` record for each attempt that has run for a second."""
        for step in self.running.values():
            if not step.shown and now - step.started_at >= NOTICED_AFTER:
                step.shown = True
                self._activation.write(
                    Entry(
                        run_id=self._activation.claim.run_id,
                        key=step.key,
                        state="running",
                        done=None,
                        attempts=step.attempt,
                        started_at=step.first_started_at,
                    )
                )
                reach("step.shown")


def _settle(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def _step_context(branch: Branch, step: Running) -> StepContext:
    claim = branch.activation.claim
    path, name, occurrence, kind = step.key
    identity = f"{path}\0{name}\0{occurrence}\0{kind}"
    if step.marks:
        # It was done and undone under the key that it would have: that one is used up.
        identity += f"\0{step.marks}"
    key = hashlib.blake2b(identity.encode(), key=claim.run_id.bytes, digest_size=16).hexdigest()
    return StepContext(
        execution_id=claim.execution_id,
        step_name=name,
        step_attempt=step.attempt,
        idempotency_key=key,
        token=f"{key}.{step.attempt}",
    )


def _was_cancelled(key: Key) -> Exception:
    return RuntimeError(f"step {key} ended with asyncio.CancelledError, although nobody cancelled it")
