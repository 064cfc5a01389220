"""What steps and tests share outside the database: a list of effects, and gates that hold steps up.

The directory is named by `ZART_TEST_PLACE`. An effect is one line, appended by the step that has it: so it shows what
ran, and where, whatever became of the process and of its records.
"""

import asyncio
import os
import time
from pathlib import Path
from typing import NamedTuple

import zart


class Effect(NamedTuple):
    """Something that a step did."""

    at: float
    """Seconds since the epoch."""
    pid: int
    execution: str
    what: str


def place() -> Path:
    return Path(os.environ["ZART_TEST_PLACE"])


def note(what: str) -> None:
    """Record an effect of the step that calls this."""
    line = f"{time.time()}\t{os.getpid()}\t{zart.execution_id()}\t{what}\n"
    descriptor = os.open(place() / "effects", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def effects(directory: Path) -> list[Effect]:
    """All of them, in the order in which they happened."""
    file = directory / "effects"
    if not file.exists():
        return []
    lines = [line.split("\t") for line in file.read_text().splitlines()]
    return [Effect(float(at), int(pid), execution, what) for at, pid, execution, what in lines]


def happened(what: str) -> bool:
    """Whether this execution has had this effect, in any process."""
    return any(e.execution == zart.execution_id() and e.what == what for e in effects(place()))


def is_open(gate: str) -> bool:
    return (place() / f"{gate}.open").exists()


async def through(gate: str) -> None:
    """Wait until the test opens a gate."""
    while not is_open(gate):  # noqa: ASYNC110 (another process opens it)
        await asyncio.sleep(0.005)
