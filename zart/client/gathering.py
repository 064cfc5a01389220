"""Starts that many callers make at once, sent together.

A start that finds nothing on its way is sent at once, alone. What comes in the meantime goes with the
next statement, so a hundred callers share its round trip and its commit, as executions share the
journal's.

Only starts whose ids were made here come this way. An id that a caller chose may be held by somebody's
open transaction, and its statement then waits for the end of that: it is sent alone, and delays nobody.
"""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from zart._postgres.trouble import Trouble, classify
from zart.client.starting import Start, chunks
from zart.errors import ZartError

MANY = 1000
MANY_BYTES = 16 * 1024 * 1024


class Gathered(NamedTuple):
    """A start, and whether somebody listens for the end of its execution."""

    start: Start
    awaited: bool


class _Waiting(NamedTuple):
    gathered: Gathered
    sent: asyncio.Future[None]


class Gathering:
    """`send` commits starts of one function, with equal options, in one statement."""

    def __init__(self, send: Callable[[Sequence[Gathered]], Awaitable[None]]) -> None:
        self._send = send
        self._busy = False
        self._waiting: list[_Waiting] = []
        self._task: asyncio.Task[None] | None = None

    async def start(self, gathered: Gathered) -> None:
        """Returns when it is committed. Raises what `send` does."""
        if self._busy:
            sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(_Waiting(gathered, sent))
            await sent
            return
        self._busy = True
        try:
            await self._send([gathered])
        finally:
            if self._waiting:  # the task does not belong to the execution whose step may be calling
                self._task = asyncio.get_running_loop().create_task(
                    self._run(), name="zart client starts", context=contextvars.Context()
                )
            else:
                self._busy = False

    async def close(self) -> None:
        """Stop; whoever still waits gets an error."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        _fail(self._waiting, ZartError("the Client was closed while this waited to start an execution"))
        self._waiting = []

    async def _run(self) -> None:
        taken: list[_Waiting] = []
        try:
            while self._waiting:
                taken = self._take()
                await self._commit(taken)
        except asyncio.CancelledError:
            self._waiting = [*taken, *self._waiting]
            raise
        finally:
            self._busy = False

    def _take(self) -> list[_Waiting]:
        """Those that can go with the first one; the others stay."""
        waiting = [one for one in self._waiting if not one.sent.done()]
        if not waiting:
            self._waiting = []
            return []
        key = waiting[0].gathered.start.target.key
        alike = [one for one in waiting if one.gathered.start.target.key == key]
        starts = [one.gathered.start for one in alike]
        taken = alike[: len(chunks(starts, most=MANY, most_bytes=MANY_BYTES)[0])]
        gone = {id(one.sent) for one in taken}
        self._waiting = [one for one in waiting if id(one.sent) not in gone]
        return taken

    async def _commit(self, taken: Sequence[_Waiting]) -> None:
        if not taken:
            return
        try:
            await self._send([one.gathered for one in taken])
        except Exception as error:  # noqa: BLE001 (goes to those who wait)
            if len(taken) > 1 and classify(error) is Trouble.DATA:
                for one in taken:  # nothing was started: find the one that is to blame
                    await self._commit([one])
            else:
                _fail(taken, error)
        else:
            for one in taken:
                if not one.sent.done():
                    one.sent.set_result(None)


def _fail(waiting: Sequence[_Waiting], error: Exception) -> None:
    for one in waiting:
        if not one.sent.done():
            one.sent.set_exception(error)
