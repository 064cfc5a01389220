"""The append-only log of what steps did: one line for each effect, written by the step's own process.

It is outside of the database, so it shows what ran, whatever became of the process and of its records. Lines go to
one file that is opened for appending, so their order is the order in which things happened, across all processes.
"""

import functools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import zart

PLACE_VARIABLE = "ZART_TEST_PLACE"
"""Names the directory that worker processes and the machine share."""


class Effect(NamedTuple):
    """Something that an attempt of a step did."""

    at: float
    """Seconds since the epoch."""
    pid: int
    execution: str
    what: str
    """The step's name."""
    attempt: int
    value: str
    """What it worked with."""


def place() -> Path:
    return Path(os.environ[PLACE_VARIABLE])


@functools.cache
def _descriptor() -> int:
    return os.open(place() / "effects", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)


def note(value: object = "") -> None:
    """Record an effect of the step that calls this."""
    step = zart.step_context()
    line = (
        f"{time.time():.6f}\t{os.getpid()}\t{step.execution_id}\t{step.step_name}\t{step.step_attempt}"
        f"\t{value}\n"
    )
    os.write(_descriptor(), line.encode())


def read_effects(directory: Path) -> Iterator[Effect]:
    """All of them, in the order in which they happened."""
    file = directory / "effects"
    if not file.exists():
        return
    with file.open() as lines:
        for line in lines:
            at, pid, execution, what, attempt, value = line.rstrip("\n").split("\t")
            yield Effect(float(at), int(pid), execution, what, int(attempt), value)
