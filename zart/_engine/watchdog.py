"""Sees from another thread whether the event loop still turns.

A loop that one callback holds up cannot report it. So a thread asks it to answer, and when no answer comes it
says which line is in the way: the innermost frame, and the innermost one that is not the library's or the
standard library's, which is where somebody can do something about it. It says so again at growing intervals,
and once more when the loop has come back. Past `wedge` it gives up on the loop: the stacks of all threads are
logged, once, and the caller must let go of the worker's lease, since nobody will go on with what it holds.

The watchdog has no thread of its own: `look` is called every `interval` or so by whoever has one.
"""

import asyncio
import logging
import os
import sys
import sysconfig
import threading
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Final

_log = logging.getLogger("zart.worker")

_NOT_THEIRS: Final = (
    "<",
    str(Path(__file__).resolve().parent.parent) + os.sep,
    *(sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")),
)


class Watchdog:
    """Watches one loop, which runs in the thread `thread` (a `threading.get_ident()`).

    `patience` is how long the loop may be silent before it is reported, `wedge` how long before it is given
    up; both in seconds.
    """

    interval: Final = 0.25
    """How often to look, in seconds."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, thread: int, *, wedge: float, patience: float = 1.0
    ) -> None:
        self._loop = loop
        self._thread = thread
        self._wedge = wedge
        self._patience = patience
        self._asked: float | None = None
        self._answered = threading.Event()
        self._next_report = patience
        self.wedged = False
        """The loop was given up, and stays given up."""

    def look(self) -> None:
        """Asks the loop, or sees whether it has answered; reports when it is late."""
        now = time.monotonic()
        if self._asked is None:
            self._ask(now)
            return
        silent = now - self._asked
        if self._answered.is_set():
            if self._next_report > self._patience:
                _log.warning("the event loop runs again; it was blocked for %.1f s", silent)
            self._next_report = self._patience
            self._ask(now)
            return
        if silent >= self._wedge and not self.wedged:
            self.wedged = True
            _log.critical(
                "the event loop has been blocked for %.1f s and is given up: other workers take over what "
                "this one holds. All threads:\n%s",
                silent,
                all_stacks(),
            )
        elif silent >= self._next_report and not self.wedged:
            self._next_report = max(self._next_report * 2, silent)
            _log.warning(
                "the event loop has been blocked for %.1f s %s. Nothing else runs meanwhile: move blocking "
                "work into a step that is a plain def",
                silent,
                blocking_place(self._thread),
            )

    def _ask(self, now: float) -> None:
        self._asked = now
        self._answered.clear()
        try:
            self._loop.call_soon_threadsafe(self._answered.set)
        except RuntimeError:  # the loop is closed: there is nothing left to watch
            self._answered.set()


def blocking_place(thread: int) -> str:
    """Where a thread is: "at /app/orders.py:12 in charge, which called …/socket.py:706 in readinto"."""
    innermost = _frames().get(thread)
    if innermost is None:
        return "and its thread has ended"
    theirs = next((frame for frame in _outwards(innermost) if _belongs_to_user(frame)), None)
    if theirs is None or theirs is innermost:
        return f"at {_place(innermost)}"
    return f"at {_place(theirs)}, which called {_place(innermost)}"


def all_stacks() -> str:
    """The stacks of all threads, as text."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts: list[str] = []
    for thread, frame in _frames().items():
        stack = "".join(traceback.format_stack(frame)).rstrip()
        parts.append(f"Thread {names.get(thread, thread)}:\n{stack}")
    return "\n".join(parts)


def _frames() -> dict[int, FrameType]:
    return sys._current_frames()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] (documented; there is no other way)


def _outwards(frame: FrameType | None) -> list[FrameType]:
    frames: list[FrameType] = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames


def _belongs_to_user(frame: FrameType) -> bool:
    file = frame.f_code.co_filename
    return not file.startswith(_NOT_THEIRS)


def _place(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"
