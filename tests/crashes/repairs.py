"""What a person does to a workflow of the corpus in order to repair it.

Each is asked for again and again until it was made: it may come before there is anything to repair, or at a moment when
the failure is not recorded so far. So each knows whether it was made already.
"""

import contextlib
from dataclasses import dataclass
from typing import Any, Final

import zart

FROM_BEFORE: Final[Any] = object()
"""The input of a new run: that of the run before."""


@dataclass(frozen=True)
class RetryStep:
    """Somebody has a failed call tried again."""

    key: str
    once: str = "failed"

    async def make(self, client: zart.Client, id: str, number: int) -> bool:
        """Whether it was made, now or before; it is the one of this number, from 1. False when it comes too early."""
        notes = (await client.history(id)).notes
        if sum("retry of" in note for note in notes) >= number:
            return True
        with contextlib.suppress(zart.UsageError):  # nothing is recorded under this key so far
            return await client.retry_step(id, self.key, reason="mended")
        return False


@dataclass(frozen=True)
class Restart:
    """Somebody begins another run."""

    data: Any = FROM_BEFORE
    once: str = "waiting"

    async def make(self, client: zart.Client, id: str, number: int) -> bool:
        """As of RetryStep; a Rerun counts as well."""
        if len(await client.runs(id)) <= number:
            given = () if self.data is FROM_BEFORE else (self.data,)
            await client.restart(id, *given, reason="a better input")
        return True


@dataclass(frozen=True)
class Rerun:
    """Somebody begins another run that keeps all but some results."""

    steps: tuple[str, ...]
    once: str = "waiting"

    async def make(self, client: zart.Client, id: str, number: int) -> bool:
        """As of Restart."""
        if len(await client.runs(id)) > number:
            return True
        with contextlib.suppress(zart.UsageError):  # nothing is recorded under these keys so far
            await client.rerun(id, steps=self.steps, reason="new rules")
            return True
        return False


Repair = RetryStep | Restart | Rerun
