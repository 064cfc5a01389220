"""Waiting for executions to end: notifications make it quick, polling makes it certain.

All waits of a client share one LISTEN connection and one polling task. An execution is looked at when a wait
for it begins, when its notification comes, and at intervals that grow from 10 ms to a second. All that are due
are asked for in one statement, and those that are new are marked in one, so that their ends are notified at
all. A lost notification, or a pooler through which none comes, costs a second at most.

The two tasks are made in an empty context: a client may first be used in a step, and what it does from then
on does not belong to that step's execution.
"""

import asyncio
import contextvars
import datetime as dt
import heapq
import itertools
from typing import Final, NamedTuple

from zart._postgres.listener import Listener, done_channel
from zart.client.database import Database, Row
from zart.client.offering import not_found
from zart.errors import ZartError

FIRST_INTERVAL: Final = 0.01
LONGEST_INTERVAL: Final = 1.0
_GROWTH: Final = 1.6
_BATCH: Final = 1000
_PATIENCE: Final = dt.timedelta(seconds=30)


class Outcome(NamedTuple):
    """How an execution ended, or that it is blocked; result and failure as stored."""

    execution_id: str
    status: str
    result: str | None
    failure: str | None


class _Wait:
    __slots__ = ("ended", "interval", "looked", "marked", "waiters")

    def __init__(self, ended: asyncio.Future[Outcome], looked: asyncio.Future[None]) -> None:
        self.ended = ended
        self.looked = looked
        self.interval = FIRST_INTERVAL
        self.marked = False
        self.waiters = 0


class Outcomes:
    """The waits of one client. Its tasks run from the first wait until `close`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waits: dict[str, _Wait] = {}
        self._due: list[tuple[float, int, str]] = []
        self._numbers = itertools.count()
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._listener = Listener(
            database.connect_directly, [done_channel(database.schema)], self._heard, self._caught_up
        )

    async def wait(
        self, execution_id: str, timeout: dt.timedelta | None, *, awaited: bool = False
    ) -> Outcome | None:
        """How it ended; None when `timeout` passed first. Raises ExecutionNotFound for an unknown id.

        `awaited`: it has only just been started, by a statement that marked it as awaited.
        """
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout.total_seconds()
        self._start()
        wait = self._waits.get(execution_id)
        if wait is None:
            wait = self._waits[execution_id] = _Wait(loop.create_future(), loop.create_future())
            wait.marked = awaited
            self._look_after(execution_id, FIRST_INTERVAL if awaited else 0)
        wait.waiters += 1
        try:
            if deadline is not None and not awaited:  # however short the timeout, one look is taken
                await asyncio.wait((wait.ended, wait.looked), return_when=asyncio.FIRST_COMPLETED)
            left = None if deadline is None else max(deadline - loop.time(), 0)
            done, _ = await asyncio.wait((wait.ended,), timeout=left)
            return wait.ended.result() if done else None
        finally:
            wait.waiters -= 1
            if not wait.waiters and self._waits.get(execution_id) is wait:
                del self._waits[execution_id]
                wait.ended.cancel()

    async def close(self) -> None:
        """Stop; whoever still waits gets an error."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._fail(ZartError("the Client was closed while this waited for an execution to end"))

    def tell(self, execution_id: str) -> None:
        """Somebody says that it has ended."""
        if execution_id in self._waits:
            self._look_after(execution_id, 0)

    # -- what runs beside

    def _start(self) -> None:
        if not self._tasks:
            loop = asyncio.get_running_loop()
            self._tasks = [
                loop.create_task(
                    self._listener.run(), name="zart client listener", context=contextvars.Context()
                ),
                loop.create_task(self._poll(), name="zart client poll", context=contextvars.Context()),
            ]

    def _heard(self, channel: str, payload: str) -> None:  # noqa: ARG002 (there is one channel)
        self.tell(payload)

    def _caught_up(self) -> None:
        for execution_id in self._waits:
            self._look_after(execution_id, 0)

    def _look_after(self, execution_id: str, seconds: float) -> None:
        at = asyncio.get_running_loop().time() + seconds
        heapq.heappush(self._due, (at, next(self._numbers), execution_id))
        if self._due[0][0] == at:
            self._wake.set()

    async def _poll(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            ids = self._take_due(loop.time())
            if ids:
                await self._look(ids)
            elif self._due:
                await self._pause(self._due[0][0] - loop.time())
            else:
                await self._wake.wait()

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return

    def _take_due(self, now: float) -> list[str]:
        taken: dict[str, None] = {}
        while self._due and self._due[0][0] <= now and len(taken) < _BATCH:
            _, _, execution_id = heapq.heappop(self._due)
            if execution_id in self._waits:
                taken[execution_id] = None
        return list(taken)

    async def _look(self, ids: list[str]) -> None:
        new = [execution_id for execution_id in ids if not self._waits[execution_id].marked]
        known = [execution_id for execution_id in ids if self._waits[execution_id].marked]
        try:
            rows = await self._mark(new) if new else []
            if known:
                rows += await self._database.query("ended", {"ids": known}, _PATIENCE)
        except Exception as error:  # noqa: BLE001 (goes to those who wait)
            self._fail(error)
            return
        for row in rows:
            wait = self._waits.pop(row[0], None)
            if wait is not None and not wait.ended.done():
                wait.ended.set_result(Outcome(*row))
        for execution_id in ids:
            wait = self._waits.get(execution_id)
            if wait is not None:
                if not wait.looked.done():
                    wait.looked.set_result(None)
                self._look_after(execution_id, wait.interval)
                wait.interval = min(wait.interval * _GROWTH, LONGEST_INTERVAL)

    async def _mark(self, ids: list[str]) -> list[Row]:
        """Mark executions as awaited; those that have ended or are blocked, and an error for those unknown."""
        rows = await self._database.query("await_ends", {"ids": ids}, _PATIENCE)
        found = {row[0]: row for row in rows}
        for execution_id in ids:
            wait = self._waits.get(execution_id)
            if wait is None:
                continue
            row = found.get(execution_id)
            if row is not None:
                wait.marked = row[4]
            elif not wait.ended.done():
                del self._waits[execution_id]
                wait.ended.set_exception(not_found(execution_id))
        return [row[:4] for row in rows if row[1] != "scheduled"]

    def _fail(self, error: Exception) -> None:
        waits, self._waits = self._waits, {}
        for wait in waits.values():
            if not wait.ended.done():
                wait.ended.set_exception(error)
