"""What the steps of the corpus do, noted outside the database: it shows what ran, whatever was recorded.

An effect is one line, appended to the file `corpus-effects` in the directory that `ZART_TEST_PLACE` names.
"""

import os
from pathlib import Path
from typing import NamedTuple

import zart

_FILE = "corpus-effects"


class Effect(NamedTuple):
    """Something that a step did."""

    pid: int
    execution: str
    what: str
    call: str
    """The call of the step that did it, the same for each of its attempts: the step's idempotency key."""


def note(what: str) -> None:
    """Note an effect of the step that calls this."""
    line = f"{os.getpid()}\t{zart.execution_id()}\t{what}\t{zart.step_context().idempotency_key}\n"
    path = Path(os.environ["ZART_TEST_PLACE"]) / _FILE
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def effects(directory: Path) -> list[Effect]:
    """All of them, in the order in which they happened."""
    file = directory / _FILE
    if not file.exists():
        return []
    lines = [line.split("\t") for line in file.read_text().splitlines()]
    return [Effect(int(pid), execution, what, call) for pid, execution, what, call in lines]
