"""What can be done to a worker at a named point of the engine.

A fault is written `kill@journal.record.sent#2`: at the second time that this worker reaches the point. The faults of
one worker are joined by `+`.
"""

import asyncio
import contextlib
import os
import signal
import socket
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from zart import Worker
from zart._engine.points import POINTS

KINDS = {
    "kill": "the process dies (SIGKILL)",
    "stop": "the worker is asked to stop, as by SIGTERM",
    "freeze": "the process stands still, is taken for dead, and goes on after another has finished",
    "cut": "all of its database connections break; a statement that was sent may be committed",
    "news": "what comes from outside comes exactly now, while the process stands still",
}
STANDING = ("freeze", "news")
"""Those for which the process stands still."""


class Fault(NamedTuple):
    """One of `KINDS`, at one time that a point is reached."""

    kind: str
    point: str
    occurrence: int

    def __str__(self) -> str:
        return f"{self.kind}@{self.point}#{self.occurrence}"


Faults = tuple[Fault, ...]
"""The faults of one worker, in the order in which they are to happen."""


def parse(text: str) -> Faults:
    """Raises ValueError for what is no list of faults."""
    return tuple(_one(part) for part in text.split("+")) if text else ()


def _one(text: str) -> Fault:
    kind, _, rest = text.strip().partition("@")
    point, _, occurrence = rest.partition("#")
    if kind not in KINDS or point not in POINTS or not (occurrence or "1").isdigit():
        raise ValueError(f"{text!r} is not KIND@POINT#NUMBER; kinds: {', '.join(KINDS)}")
    return Fault(kind, point, int(occurrence or 1))


def told(faults: Faults) -> str:
    return "+".join(map(str, faults))


class Saboteur:
    """Listens to the points of a worker process, writes them down, and does what is planned."""

    def __init__(self, faults: Sequence[Fault], trace: Path) -> None:
        self._faults = {(fault.point, fault.occurrence): fault.kind for fault in faults}
        self._counts: Counter[str] = Counter()
        self._trace = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._guard = threading.Lock()
        self.worker: Worker | None = None
        self.loop: asyncio.AbstractEventLoop | None = None

    def __call__(self, point: str) -> None:
        with self._guard:
            self._counts[point] += 1
            count = self._counts[point]
            os.write(self._trace, f"{point}#{count}\n".encode())
        kind = self._faults.get((point, count))
        if kind is not None:
            self._do(kind)

    def _do(self, kind: str) -> None:
        match kind:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "freeze" | "news":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "stop":
                assert self.worker is not None
                assert self.loop is not None
                self.loop.call_soon_threadsafe(self.worker.stop)
            case "cut":
                _cut_connections()


def _cut_connections() -> None:
    """Break each socket that leads anywhere, whoever has it."""
    for name in os.listdir("/dev/fd"):  # noqa: PTH208 (the names are numbers, not paths)
        with contextlib.suppress(OSError):
            line = socket.socket(fileno=int(name))
            try:
                if line.getpeername():  # a loop's own pair of sockets has no name
                    line.shutdown(socket.SHUT_RDWR)
            finally:
                line.detach()
