"""Whether a body is provably parked: every task of it waits for the engine, or for another task that does.

A task's future and its innermost frame tell what it waits for. Only what is known for sure counts: a durable future, a
task of the body, and `gather`, `TaskGroup`, `asyncio.wait`, `wait_for` and anyio's task group over these. A queue, a
lock and a socket look alike from here, so whoever waits for one of them keeps the execution in memory.
"""

import asyncio
import asyncio.tasks
import inspect
from collections.abc import Callable, Collection, Iterable
from types import CodeType, FrameType
from typing import Any

from anyio._backends import _asyncio as anyio_asyncio

_TASK_GROUP = asyncio.TaskGroup.__aexit__.__code__
_GATHER: Any = getattr(asyncio.tasks, "_GatheringFuture")  # noqa: B009 (private, and checkers do not know it)
_WAIT: CodeType = asyncio.tasks._wait.__code__  # type: ignore[attr-defined]  # noqa: SLF001
_WAIT_FOR = asyncio.wait_for.__code__
_ANYIO_GROUP = anyio_asyncio.TaskGroup.__aexit__.__code__
_IN_MEMORY = frozenset(("asyncio/queues.py", "asyncio/locks.py"))


class DurableFuture(asyncio.Future[Any]):
    """What the engine will deliver. One task waits for it."""

    woken: Callable[[], None] | None = None
    """What to call when it is done: at once, and not in the next turn of the loop, as a callback is."""

    def set_result(self, result: Any, /) -> None:
        super().set_result(result)
        if self.woken is not None:
            self.woken()

    def set_exception(self, exception: type | BaseException, /) -> None:
        super().set_exception(exception)
        if self.woken is not None:
            self.woken()

    def cancel(self, msg: Any | None = None) -> bool:
        cancelled = super().cancel(msg)
        if self.woken is not None:
            self.woken()
        return cancelled


def settle(future: "asyncio.Future[Any]") -> None:
    """Let go on whoever waits for a future, if anybody still does."""
    if not future.done():
        future.set_result(None)


def waits_for(task: "asyncio.Task[Any]") -> "asyncio.Future[Any] | None":
    """The future that a task waits for; None when it is about to run."""
    return getattr(task, "_fut_waiter", None)


def is_blocked(task: "asyncio.Task[Any]") -> bool:
    """Whether nothing but a future that is not done can make the task go on.

    One that has just ended is not: those who wait for it have not heard of it.
    """
    future = waits_for(task)
    return future is not None and not future.done()


def is_parked(task: "asyncio.Task[Any]", body: Collection["asyncio.Task[Any]"]) -> bool:
    """Whether a task of `body` waits for the engine or for tasks of `body`, beyond doubt."""
    future = waits_for(task)
    if future is None or future.done():
        return False
    return _known(future, body) or _frame_is_parked(innermost(task), body)


def stays_parked(task: "asyncio.Task[Any]", body: Collection["asyncio.Task[Any]"]) -> bool:
    """Whether a task that is parked stays so until what it waits for is done.

    Not in a task group: others may start a task in it that is none of the body.
    """
    future = waits_for(task)
    return future is not None and _known(future, body)


def recognised(
    task: "asyncio.Task[Any]", body: Collection["asyncio.Task[Any]"]
) -> "asyncio.Future[Any] | None":
    """The plain future of a parked task that an unwinding may settle itself; None for one that follows by itself."""
    future = waits_for(task)
    if future is None or future.done() or isinstance(future, asyncio.Task):
        return None
    if _known(future, body):
        return future
    frame = innermost(task)
    if frame is not None and frame.f_code in (_WAIT, _WAIT_FOR) and _frame_is_parked(frame, body):
        return future
    return None


def only_in_memory(task: "asyncio.Task[Any]", body: Collection["asyncio.Task[Any]"]) -> bool:
    """Whether what holds the task up is a queue or a lock of asyncio, which another task of the body must open."""
    if is_parked(task, body):
        return True
    frame = innermost(task)
    return frame is not None and frame.f_code.co_filename.replace("\\", "/").endswith(tuple(_IN_MEMORY))


def _known(future: "asyncio.Future[Any]", body: Collection["asyncio.Task[Any]"]) -> bool:
    if isinstance(future, DurableFuture) or future in body:
        return True
    if isinstance(future, _GATHER):
        children: Any = getattr(future, "_children")  # noqa: B009
        return _all_known(children, body)
    return False


def _all_known(futures: Iterable[Any], body: Collection["asyncio.Task[Any]"]) -> bool:
    return all(future.done() or _known(future, body) for future in futures)


def _frame_is_parked(frame: FrameType | None, body: Collection["asyncio.Task[Any]"]) -> bool:
    if frame is None:
        return False
    code = frame.f_code
    if code is _TASK_GROUP or code is _ANYIO_GROUP:
        return _all_known(frame.f_locals["self"]._tasks, body)  # noqa: SLF001
    if code is _WAIT:
        return _all_known(frame.f_locals["fs"], body)
    if code is _WAIT_FOR:
        return _all_known([frame.f_locals["fut"]], body)
    return False


def innermost(task: "asyncio.Task[Any]") -> FrameType | None:
    """The frame in which a suspended task waits."""
    coroutine: Any = task.get_coro()
    while True:
        inner: Any = getattr(coroutine, "cr_await", None)
        if not inspect.iscoroutine(inner):
            return getattr(coroutine, "cr_frame", None)
        coroutine = inner
