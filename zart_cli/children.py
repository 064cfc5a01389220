"""Processes that run a worker for this command, which looks after them.

Each ends when the process that started it is gone. Those of `run_children` begin with their signals held back, so that
one that comes while they import the app ends nothing half-way: `hear_on_loop` lets them in once somebody listens.
"""

import asyncio
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import Any, Final, cast

import psycopg

from zart import ZartError
from zart_cli.exits import report

_log = logging.getLogger("zart.cli")

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
"""What ends a worker."""
_ONE_SIGNAL_SECONDS: Final = 0.5
"""Two signals so close are one: supervisors and shells tell the process, and its group."""
_LAST_WORDS_SECONDS: Final = 10.0
_STARTS_ANEW_AFTER: Final = 1.0
"""Seconds, twice as many after each end that follows soon."""
_AT_MOST_AFTER: Final = 30.0
_LIVED_LONG: Final = 60.0
_LOOKS_EVERY: Final = 0.5
"""Seconds, while one is to start anew: a signal alone ends no wait."""
_WRONG: Final = (1, 2)
"""The exit codes of a worker that cannot run here: another process could not either."""


class Stopping:
    """What a process does when it is told to end: `first`, and at a second signal `again` before it ends as it is."""

    def __init__(
        self,
        first: Callable[[], None],
        again: Callable[[], None] = lambda: None,
        until: str = "running steps have ended",
    ) -> None:
        self._first = first
        self._again = again
        self._until = until
        self._since: float | None = None

    def __call__(self, number: int, frame: object = None) -> None:  # noqa: ARG002 (a signal handler's signature)
        name = signal.Signals(number).name
        now = time.monotonic()
        if self._since is None:
            self._since = now
            _log.info("%s: stopping, once %s; again to stop at once", name, self._until)
            self._first()
        elif now - self._since >= _ONE_SIGNAL_SECONDS:
            _log.warning("%s again: this ends where it stands, others take over", name)
            self._again()
            sys.stderr.flush()
            os._exit(128 + number)


def start_child(target: Callable[..., None], arguments: tuple[Any, ...], name: str) -> BaseProcess:
    """Run `target(*arguments)` in a new process. A ZartError there is shown as the command line shows it."""
    child = multiprocessing.get_context("spawn").Process(
        target=_run_child, args=(target, arguments), name=name
    )
    child.start()
    return child


def hear_on_loop(stopping: Stopping) -> None:
    """Call `stopping` on the running loop for each signal, also for one that was held back."""
    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        loop.add_signal_handler(number, stopping, number)
    # What was held back while this process started is let in; harmless in one that nobody started like that.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def run_children(target: Callable[..., None], arguments: tuple[Any, ...], count: int) -> int:
    """Run `target(number, *arguments)` in `count` processes, numbered from 1, until a signal ends them.

    One that is killed starts anew. Returns the exit code: 0 after a signal, or that of the first process that found
    that it cannot run here, whereupon the others are stopped.
    """
    team = _Team([_Member(target, (number, *arguments), number) for number in range(1, count + 1)])
    handler = Stopping(team.stop, team.kill)
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        team.run()
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
    return team.exit_code


class _Team:
    """All of the processes."""

    def __init__(self, members: list["_Member"]) -> None:
        self._members = members
        self._stopping = False
        self.exit_code = 0

    def run(self) -> None:
        while not self._stopping:
            for member in self._members:
                member.start_if_due()
            self._wait()
        for member in self._members:
            member.stop()  # once more: one may have been starting while the others were told
            member.join()

    def _wait(self) -> None:
        """Until one has ended or is to start. A signal's handler runs in here; the ends that it causes end the wait."""
        running = {member.process.sentinel: member for member in self._members if member.process is not None}
        due = [member.due for member in self._members if member.process is None]
        pause = min(max(min(due) - time.monotonic(), 0), _LOOKS_EVERY) if due else None
        for sentinel in connection.wait(list(running), timeout=pause):
            member = running[cast("int", sentinel)]
            if not self._stopping and (code := member.has_ended()):
                self.exit_code = code
                self.stop()

    def stop(self) -> None:
        self._stopping = True
        for member in self._members:
            member.stop()

    def kill(self) -> None:
        for member in self._members:
            member.kill()


class _Member:
    """One of the processes, and its successors."""

    def __init__(self, target: Callable[..., None], arguments: tuple[Any, ...], number: int) -> None:
        self._target = target
        self._arguments = arguments
        self._number = number
        self._began = 0.0
        self._pause = _STARTS_ANEW_AFTER
        self.process: BaseProcess | None = None
        self.due = 0.0

    def start_if_due(self) -> None:
        if self.process is not None or self.due > time.monotonic():
            return
        self._began = time.monotonic()
        held_back = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            self.process = start_child(self._target, self._arguments, f"zart worker {self._number}")
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held_back)

    def has_ended(self) -> int:
        """Say so, and when it starts anew; returns its exit code if none could run here, else 0."""
        process, self.process = self.process, None
        assert process is not None  # noqa: S101 (asked of one that has run)
        process.join()
        ended = process.exitcode or 0
        if ended in _WRONG:
            return ended
        how = signal.Signals(-ended).name if ended < 0 else f"exit code {ended}"
        now = time.monotonic()
        if now - self._began > _LIVED_LONG:
            self._pause = _STARTS_ANEW_AFTER
        told = "worker process %d (pid %s) has ended by %s; it starts anew in %.0f s"
        _log.warning(told, self._number, process.pid, how, self._pause)
        self.due = now + self._pause
        self._pause = min(2 * self._pause, _AT_MOST_AFTER)
        return 0

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()  # SIGTERM: it lets its running steps end

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()

    def join(self) -> None:
        if self.process is not None:
            self.process.join()


def _run_child(target: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    _end_with_parent()
    try:
        target(*arguments)
    except (ZartError, psycopg.Error) as error:
        sys.exit(report(error))


def _end_with_parent() -> None:
    """Let this process, the child, end when the one that looks after it was killed: nobody else would end it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent,), name="zart parent", daemon=True).start()


def _follow(parent: BaseProcess) -> None:
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_LAST_WORDS_SECONDS)
    os._exit(1)
