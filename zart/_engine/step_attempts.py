"""One attempt of a step: its function runs, in the task that called it or in a thread, within its time limit.

A value is encoded and decoded again at once, so that the body gets on the first run what it will get on a replay. A
thread cannot be cut: past its limit the attempt ends, and the next one waits until the thread has returned.
"""

import asyncio
import base64
import contextlib
import datetime as dt
import hashlib
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import msgspec

from zart._engine import parking
from zart._engine.branch import Branch
from zart._engine.entries import Key
from zart._engine.sagas import Undos
from zart._engine.transactions import Transaction
from zart.calls import StepCall
from zart.context import place
from zart.durations import format_duration
from zart.errors import StepStuck, StepTimeout, Suspended
from zart.in_step import Inside, InStep
from zart.state import StepContext

if TYPE_CHECKING:
    from zart._engine.steps import Steps


class Running(msgspec.Struct, eq=False):
    """A step that runs now."""

    key: Key
    attempt: int
    first_started_at: dt.datetime
    started_at: dt.datetime
    at_most_once: bool
    inside: Inside
    """What the step's code has to do with the engine."""
    transaction: Transaction | None = None
    within: tuple[Undos, ...] = ()
    """The sagas that it was called in."""
    marks: str = ""
    """How often those were undone and forgotten, if ever."""
    shown: bool = False
    thread: "asyncio.Future[None] | None" = None
    """Done when the thread of the last attempt has returned."""
    over: bool = False
    """The function has returned or raised: what it still says of its progress comes too late."""
    telling: bool = False
    """Its progress was written within the last second."""
    untold: bool = False
    """It has got on since."""


async def attempt(
    steps: "Steps", branch: Branch, step: Running, call: StepCall
) -> tuple[Any, bytes | None, Exception | None]:
    """One attempt: the decoded value and its bytes, or the error."""
    spec = call.spec
    activation = branch.activation
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 (a coroutine always runs in one)
    fn = activation.host.function(call, step.key)
    cancelling = task.cancelling()
    key = step.key
    steps.running[key] = step
    steps.tasks.add(task)
    token = place.set(
        InStep(branch, lambda: step_context(branch, step, own=spec.transaction == "own"), step.inside)
    )
    try:
        limit = None if spec.timeout is None else _limit(spec.timeout, call, step)
        if spec.threaded:
            value = await _in_thread(branch, fn, step, call, limit)
        elif limit is None:
            value = await fn(*call.args, **call.kwargs)
        else:
            scope = asyncio.timeout(limit)
            try:
                async with scope:
                    value = await fn(*call.args, **call.kwargs)
            except TimeoutError:
                if scope.expired():
                    raise _timed_out(branch, step, call) from None
                raise
        result, decoded = spec.result.store(value, f"the result of step {key}")
    except Exception as error:
        if task.cancelling() > cancelling:
            raise asyncio.CancelledError from error
        return None, None, error
    except asyncio.CancelledError:
        if activation.closed:
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
        step.over = True
        # It refers to this step, and a cycle for each step is work for the collector.
        step.inside.on_progress = None
        place.reset(token)
        steps.tasks.discard(task)
        del steps.running[key]


async def _in_thread(
    branch: Branch, fn: Callable[..., Any], step: Running, call: StepCall, limit: float | None
) -> Any:
    """Run a plain `def`. A thread cannot be cut: past its limit only the attempt ends."""
    spec, loop = call.spec, asyncio.get_running_loop()
    if step.thread is not None and not step.thread.done():
        await _thread_back(branch, step, call)
    returned = step.thread = loop.create_future()
    for saga in step.within:
        saga.threads.add(returned)

    def work() -> Any:
        try:
            with contextlib.nullcontext() if step.transaction is None else step.transaction.in_thread():
                return fn(*call.args, **call.kwargs)
        finally:
            with contextlib.suppress(RuntimeError):  # the loop may be closed by then: nobody waits any more
                loop.call_soon_threadsafe(parking.settle, returned)

    scope = asyncio.timeout(limit)
    try:
        async with scope:
            result = await anyio.to_thread.run_sync(
                work, limiter=branch.activation.host.threads, abandon_on_cancel=True
            )
            # `step("fetch")(lambda: fetch(url))` is a plain function, too, that returns a coroutine.
            return await result if inspect.isawaitable(result) else result
    except TimeoutError:
        if not scope.expired():
            raise
        raise _timed_out(branch, step, call, stuck=spec.timeout_scope == "total") from None


async def _thread_back(branch: Branch, step: Running, call: StepCall) -> None:
    """The last attempt's thread has not returned: wait for it, as long as the step may take in all."""
    spec = call.spec
    assert step.thread is not None and spec.timeout is not None  # noqa: S101, PT018
    total = spec.timeout
    if spec.timeout_scope == "attempt":
        total = spec.timeout * (spec.retry.retries + 1)
        for number in range(1, spec.retry.retries + 1):
            total += spec.retry.delay_before(number, draw=lambda: 0.5)
    left = (step.first_started_at + total - branch.activation.host.now()).total_seconds()
    try:
        async with asyncio.timeout(max(left, 0)):
            await asyncio.wait([step.thread])
    except TimeoutError:
        raise _timed_out(branch, step, call, stuck=True) from None


def _limit(timeout: dt.timedelta, call: StepCall, step: Running) -> float:
    """How long this attempt may take, in seconds."""
    if call.spec.timeout_scope == "attempt":
        return timeout.total_seconds()
    return max((step.first_started_at + timeout - step.started_at).total_seconds(), 0)


def _timed_out(branch: Branch, step: Running, call: StepCall, *, stuck: bool = False) -> StepTimeout:
    limit = call.spec.timeout or dt.timedelta()
    scope = " in all" if call.spec.timeout_scope == "total" else ""
    told = f"execution {branch.activation.claim.execution_id!r}: step {step.key}, attempt {step.attempt},"
    if stuck:
        return StepStuck(
            f"{told} has not returned and its thread still runs; its limit is {format_duration(limit)}{scope}",
            step=step.key.name,
            limit=limit,
        )
    return StepTimeout(
        f"{told} did not finish within {format_duration(limit)}{scope}", step=step.key.name, limit=limit
    )


def step_context(branch: Branch, step: Running, *, own: bool) -> StepContext:
    claim = branch.activation.claim
    path, name, occurrence, kind = step.key
    identity = f"{path}\0{name}\0{occurrence}\0{kind}"
    if step.marks:
        # It was done under the key that it would have, and undone or set aside: that one is used up.
        identity += f"\0{step.marks}"
    key = hashlib.blake2b(identity.encode(), key=claim.run_id.bytes, digest_size=16).hexdigest()
    token = f"{key}.{step.attempt}"
    transactions = branch.activation.host.transactions
    if own and transactions is not None:
        # What zart_record_step reads: registration, task, epoch, run, attempt, occurrence, idle limit, and the key.
        text = base64.b64encode(f"{path}\x1f{name}\x1f{kind}".encode()).decode()
        numbers = (claim.registration, claim.task_id, claim.epoch, claim.run_id.hex, step.attempt, occurrence)
        token = ".".join((*map(str, numbers), str(transactions.idle_milliseconds), text))
    return StepContext(
        execution_id=claim.execution_id,
        step_name=name,
        step_attempt=step.attempt,
        idempotency_key=key,
        token=token,
    )


def _was_cancelled(key: Key) -> Exception:
    return RuntimeError(f"step {key} ended with asyncio.CancelledError, although nobody cancelled it")
