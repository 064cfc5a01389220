"""Branches of a body: which task belongs to which, and under what number.

Keys must come out the same in every replay, on every Python, with a cold and a warm connection pool. So numbers are
drawn only for tasks that the user's code starts and that can make durable calls:

- A call of ours in a task of its own (`gather(send(a), send(b))`) shares the caller's branch: its key was drawn when it
  was called. What `asyncio.wait_for` wraps shares it too, since Python 3.12 starts no task there and 3.11 does.
- A task whose coroutine and whose starter are both library code (a connection pool's, say) takes no number from
  anybody. Should it make a durable call after all, its branch bears the name of its coroutine.
- `asyncio.as_completed` starts tasks in the order of a set, another one in each process: plain coroutines are refused.

The task factory of the loop sees every task at its creation; it is chained before the one it found. A task of a body
is never started eagerly.
"""

import asyncio
import inspect
import site
import sysconfig
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import copy_context
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import anyio

from zart._engine.branch import Branch
from zart.context import place
from zart.errors import UsageError

TaskFactory = Callable[..., "asyncio.Task[Any]"]

_ZART = str(Path(__file__).parents[1]) + "/"
_ASYNCIO = str(Path(asyncio.__file__).parent) + "/"
_HERE = Path(__file__)
_MACHINERY = (
    _ASYNCIO,
    str(Path(anyio.__file__).parent) + "/",
    str(_HERE),
    str(_HERE.with_name("timers.py")),
)
"""Who starts a task or sets a timer on behalf of another."""
_SITES = tuple(
    sorted(
        {
            str(Path(directory).resolve()) + "/"
            for directory in (
                *site.getsitepackages(),
                site.getusersitepackages(),
                sysconfig.get_path("stdlib"),
                sysconfig.get_path("platstdlib"),
                sysconfig.get_path("purelib"),
                sysconfig.get_path("platlib"),
            )
        },
        key=len,
        reverse=True,
    )
)
_homes: dict[str, str | None] = {}
_WAIT_FOR = asyncio.wait_for.__code__


def library_of(filename: str) -> str | None:
    """The directory of the installed package that a source file belongs to; None for the user's own code."""
    try:
        return _homes[filename]
    except KeyError:
        pass
    home: str | None = None
    if filename.startswith("<"):
        home = "" if filename.startswith("<frozen") else None
    elif not filename.startswith(_ZART):
        path = str(Path(filename).resolve())
        for directory in _SITES:
            if path.startswith(directory):
                home = directory + path[len(directory) :].split("/", 1)[0]
                break
    _homes[filename] = home
    return home


def is_users(code: CodeType | None, own: str | None) -> bool:
    """Whether code is the user's: not in an installed package, or in the one (`own`) that the durable is in."""
    if code is None:
        return False
    home = library_of(code.co_filename)
    return home is None or home == own


def starter(frame: FrameType | None) -> tuple[FrameType | None, set[str]]:
    """Who starts a task or sets a timer: the first frame outside asyncio and anyio, and what lies between."""
    passed = set[str]()
    while frame is not None:
        code = frame.f_code
        if not code.co_filename.startswith(_MACHINERY):
            return frame, passed
        passed.add(code.co_qualname)
        frame = frame.f_back
    return None, passed


class BodyTasks:
    """The task factory that gives each task of a body its branch."""

    def __init__(self, previous: TaskFactory | None) -> None:
        self.previous = previous

    def __call__(
        self, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any
    ) -> "asyncio.Task[Any]":
        parent = place.get()
        if not isinstance(parent, Branch):
            if self.previous is not None:
                return self.previous(loop, coroutine, **options)
            return asyncio.Task(coroutine, loop=loop, **options)
        frame, passed = starter(inspect.currentframe())
        code = getattr(coroutine, "cr_code", None)
        branch, tracked = self._branch(parent, code, frame, passed, coroutine)
        given = options.pop("context", None)
        context = copy_context() if given is None else given.copy()
        context.run(place.set, branch)
        options.pop("eager_start", None)
        task = asyncio.Task(coroutine, loop=loop, context=context, **options)
        if tracked:
            parent.activation.track(task)
        return task

    def _branch(
        self,
        parent: Branch,
        code: CodeType | None,
        frame: FrameType | None,
        passed: set[str],
        coroutine: Any,
    ) -> tuple[Branch, bool]:
        if code is not None and code.co_filename.startswith(_ZART):
            return parent, True
        own = parent.activation.own_library
        users = is_users(code, own) or (frame is not None and is_users(frame.f_code, own))
        if not users:
            return parent.child(getattr(coroutine, "__qualname__", type(coroutine).__qualname__)), False
        if any(name.startswith(("as_completed", "_AsCompletedIterator")) for name in passed):
            coroutine.close()
            raise UsageError(
                f"execution {parent.activation.claim.execution_id!r}: asyncio.as_completed starts coroutines in an "
                "order that changes from process to process, so their steps could not be told apart at a replay; "
                "make tasks first: `as_completed([asyncio.create_task(…) for …])`"
            )
        if "wait_for" in passed:
            return parent, True
        return parent.child(), True


def is_instrumented(loop: asyncio.AbstractEventLoop) -> bool:
    return isinstance(loop.get_task_factory(), BodyTasks)


@contextmanager
def body_tasks(loop: asyncio.AbstractEventLoop) -> Generator[None]:
    """While it is entered, tasks of bodies get their branches on this loop. Nests."""
    previous: Any = loop.get_task_factory()
    if isinstance(previous, BodyTasks):
        yield
        return
    factory = BodyTasks(previous)
    loop.set_task_factory(factory)
    try:
        yield
    finally:
        if loop.get_task_factory() is factory:
            loop.set_task_factory(previous)
