"""Timers that a body sets through asyncio: made durable where they are time limits, told apart from the rest.

`asyncio.timeout` and (on Python 3.11) `asyncio.wait_for` put a timer on the loop. Set in a body, such a timer would be
forgotten at a suspension, and whether it fired would be known to nobody at a replay. So the loop's `call_at` and
`call_later` look who calls: a limit set by a body's own code becomes a durable wait with a key of its own, and its
firing an entry of the log. Everything else, and everything set by library code, stays a plain timer.
"""

import asyncio
import asyncio.tasks
import datetime as dt
import inspect
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import Context
from typing import Any

from anyio._backends import _asyncio as anyio_asyncio

from zart._engine.branch import Branch
from zart._engine.entries import Record
from zart._engine.lineage import is_users, starter
from zart._engine.waits import Wait
from zart.context import place
from zart.errors import NotDurableWarning

_TIMEOUT: Any = getattr(asyncio.Timeout, "_on_timeout")  # noqa: B009 (private, and checkers do not know it)
_RELEASE: Any = getattr(asyncio.tasks, "_release_waiter", None)
_ANYIO: Any = getattr(anyio_asyncio.CancelScope, "_timeout")  # noqa: B009


class BodyTimer(asyncio.Handle):
    """A time limit of a body, in the hands of the engine instead of the loop.

    It stands for a TimerHandle, which would report its cancellation to a loop that does not know it.
    """

    at = 0.0
    let_go: Callable[[], None] | None = None

    def when(self) -> float:
        return self.at

    def cancel(self) -> None:
        if not self.cancelled() and self.let_go is not None:
            self.let_go()
        super().cancel()

    def fire(self) -> None:
        if not self.cancelled():
            self.let_go = None
            self._run()


def _intercepted(
    loop: asyncio.AbstractEventLoop,
    delay: float,
    callback: Callable[..., object],
    args: tuple[Any, ...],
    context: Context | None,
) -> BodyTimer | None:
    """The durable timer instead of a plain one, if a body's code sets a time limit."""
    branch = place.get()
    if not isinstance(branch, Branch):
        return None
    function = getattr(callback, "__func__", callback)
    if function is _ANYIO:
        branch.activation.anyio_deadlines = True
        return None
    limit = (
        function is _TIMEOUT
        or (function is _RELEASE and _RELEASE is not None)
        or "as_completed" in _name(function)
    )
    sleeping = _name(function) == "_set_result_unless_cancelled"
    if not limit and not sleeping:
        return None
    frame, passed = starter(inspect.currentframe())
    if frame is None or not is_users(frame.f_code, branch.activation.own_library):
        return None
    if sleeping:
        if "sleep" in passed:
            warnings.warn_explicit(
                "asyncio.sleep in a durable body is not durable: it starts anew at each replay; use zart.sleep",
                NotDurableWarning,
                frame.f_code.co_filename,
                frame.f_lineno,
            )
        return None
    timer = BodyTimer(callback, args, loop, context)
    timer.at = loop.time() + delay
    _make_durable(timer, branch, max(delay, 0))
    return timer


def _make_durable(timer: BodyTimer, branch: Branch, delay: float) -> None:
    """Give the timer its wait: the one that is recorded of it, or one that begins when the activation goes live."""
    activation = branch.activation
    activation.forget()
    key = branch.key("timeout", "timer")
    record = activation.log.ask(key)
    wait: Wait | None = None

    def let_go() -> None:
        if wait is not None:
            activation.waits.cancel(wait)

    def fire(_record: Record) -> None:
        if not timer.cancelled():
            activation.fired.append((key, activation.heard))
            timer.fire()

    timer.let_go = let_go
    if record is not None and record.seq is not None:
        activation.replay.on_turn(record, fire)
        return
    until = record.until if record is not None and record.until is not None else None
    deadline = until or activation.host.now() + dt.timedelta(seconds=round(delay, 3))

    def arm() -> None:
        nonlocal wait
        if not timer.cancelled():
            wait = activation.waits.timer(key, deadline, fire)

    activation.replay.when_live(None, None, arm)


def _name(function: object) -> str:
    return getattr(function, "__qualname__", "")


@contextmanager
def body_timers(loop: asyncio.AbstractEventLoop) -> Generator[None]:
    """While it is entered, time limits that bodies set on this loop are durable. Nests."""
    if getattr(loop.call_later, "zart", False):
        yield
        return
    plain_at, plain_later = loop.call_at, loop.call_later

    def call_at(
        when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Any:
        timer = _intercepted(loop, when - loop.time(), callback, args, context)
        return timer if timer is not None else plain_at(when, callback, *args, context=context)

    def call_later(
        delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Any:
        timer = _intercepted(loop, delay, callback, args, context)
        if timer is not None:
            return timer
        if calls_at:
            # asyncio's own call_later goes through self.call_at, which would look a second time.
            return plain_at(loop.time() + delay, callback, *args, context=context)
        return plain_later(delay, callback, *args, context=context)

    calls_at = isinstance(loop, asyncio.BaseEventLoop)
    call_later.zart = True  # type: ignore[attr-defined]
    loop.call_at, loop.call_later = call_at, call_later  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        loop.call_at, loop.call_later = plain_at, plain_later  # type: ignore[method-assign]
