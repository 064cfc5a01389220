"""Waiting for executions to end: notifications make it quick, polling makes it certain.

All waits of a client share one LISTEN connection and one polling task. An execution is looked at when a wait
for it begins, when its notification comes, and at intervals that grow to a second: from 10 ms, or from 50 ms
where notifications arrive. All that are due are asked for in one statement, and those that are new are marked
in one, so that their ends are notified at all. A lost notification, or a pooler through which none comes, costs
a second at most; beyond two thousand waits a lost notification may cost as much more as there are more of them.

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
FIRST_INTERVAL_LISTENING: Final = 0.05
LONGEST_INTERVAL: Final = 1.0
LOOKS_PER_SECOND: Final = 2000
"""Where notifications arrive, more looks than this are not taken: those of many waits are further apart."""
_GROWTH: Final = 1.6
_BATCH: Final = 1000
_PATIENCE: Final = dt.timedelta(seconds=30)


class Outcome(NamedTuple):
    """How an execution ended, or that it is blocked; result and failure as stored."""

    execution_id: str
    status: str
    result: str | None
    failure: str | None
    pruned: bool = False
    """Result or failure were pruned since then."""


class _Wait:
    """One execution whose end somebody waits for."""

    __slots__ = ("due_at", "execution_id", "interval", "looks", "marked", "waiters")

    def __init__(self, execution_id: str, *, marked: bool, interval: float) -> None:
        self.execution_id = execution_id
        self.marked = marked
        self.interval = interval
        self.waiters: set[asyncio.Future[Outcome | None]] = set()
        """Who waits: each has a future of its own, since whoever is cancelled cancels the one that it waits for."""
        self.due_at: float | None = None
        """When it is looked at next, by the loop's clock; None while a look is under way."""
        self.looks: list[asyncio.Future[None]] = []
        """Done by a look that began after they were put here."""

    def end(self, outcome: Outcome) -> None:
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(outcome)

    def fail(self, error: Exception) -> None:
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_exception(error)


class Outcomes:
    """The waits of one client. Its tasks run from the first wait until `close`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waits: dict[str, _Wait] = {}
        self._due: list[tuple[float, int, _Wait]] = []
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
            interval = FIRST_INTERVAL_LISTENING if self._listener.listening else FIRST_INTERVAL
            wait = _Wait(execution_id, marked=awaited, interval=interval)
            self._waits[execution_id] = wait
            if awaited:
                self._look_later(wait)
            else:
                self._look_after(wait, 0)
        waiter: asyncio.Future[Outcome | None] = loop.create_future()
        wait.waiters.add(waiter)
        timer: asyncio.TimerHandle | None = None
        try:
            if deadline is not None and not awaited:  # however short the timeout, one look is taken
                look = loop.create_future()
                wait.looks.append(look)
                self._look_after(wait, 0)
                await asyncio.wait((waiter, look), return_when=asyncio.FIRST_COMPLETED)
            if deadline is not None:
                timer = loop.call_later(max(deadline - loop.time(), 0), _give_up, waiter)
            return await waiter
        finally:
            if timer is not None:
                timer.cancel()
            if waiter.done() and not waiter.cancelled():
                waiter.exception()  # whoever was cancelled in the moment of an error has not heard of it
            wait.waiters.discard(waiter)
            if not wait.waiters and self._is_open(wait):
                del self._waits[execution_id]

    async def close(self) -> None:
        """Stop; whoever still waits gets an error."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._fail(ZartError("the Client was closed while this waited for an execution to end"))

    def tell(self, execution_id: str) -> None:
        """Somebody says that it has ended."""
        wait = self._waits.get(execution_id)
        if wait is not None:
            self._look_after(wait, 0)

    def _is_open(self, wait: _Wait) -> bool:
        """Whether its end is still waited for."""
        return self._waits.get(wait.execution_id) is wait

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
        for wait in self._waits.values():
            self._look_after(wait, 0)

    def _look_later(self, wait: _Wait) -> None:
        of_many = len(self._waits) / LOOKS_PER_SECOND if self._listener.listening else 0.0
        self._look_after(wait, max(wait.interval, of_many))

    def _look_after(self, wait: _Wait, seconds: float) -> None:
        """Look at it then; an entry of the queue with another time than the wait's own does not count any more."""
        wait.due_at = asyncio.get_running_loop().time() + seconds
        heapq.heappush(self._due, (wait.due_at, next(self._numbers), wait))
        if self._due[0][2] is wait:
            self._wake.set()

    async def _poll(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            waits = self._take_due(loop.time())
            if waits:
                await self._look(waits)
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

    def _take_due(self, now: float) -> list[_Wait]:
        taken: list[_Wait] = []
        while self._due and self._due[0][0] <= now and len(taken) < _BATCH:
            at, _, wait = heapq.heappop(self._due)
            if wait.due_at == at and self._is_open(wait):
                wait.due_at = None
                taken.append(wait)
        return taken

    async def _look(self, waits: list[_Wait]) -> None:
        looks = [look for wait in waits for look in wait.looks]
        for wait in waits:
            wait.looks.clear()
        known = [wait.execution_id for wait in waits if wait.marked]
        try:
            rows = await self._mark([wait for wait in waits if not wait.marked])
            if known:
                rows += await self._database.query("ended", {"ids": known}, _PATIENCE)
        except Exception as error:  # noqa: BLE001 (goes to those who wait)
            self._fail(error)
            return
        for row in rows:
            ended = self._waits.pop(row[0], None)
            if ended is not None:
                ended.end(Outcome(*row))
        for wait in waits:
            if wait.due_at is None and self._is_open(wait):  # else somebody asked for an earlier look
                self._look_later(wait)
            wait.interval = min(wait.interval * _GROWTH, LONGEST_INTERVAL)
        for look in looks:
            if not look.done():
                look.set_result(None)

    async def _mark(self, waits: list[_Wait]) -> list[Row]:
        """Mark executions as awaited; those that have ended or are blocked, and an error for those unknown."""
        if not waits:
            return []
        ids = [wait.execution_id for wait in waits]
        rows = await self._database.query("await_ends", {"ids": ids}, _PATIENCE)
        found = {row[0]: row for row in rows}
        for wait in waits:
            row = found.get(wait.execution_id)
            if row is not None:
                wait.marked = row[5]
            elif self._is_open(wait):
                del self._waits[wait.execution_id]
                wait.fail(not_found(wait.execution_id))
        return [row[:5] for row in rows if row[1] != "scheduled"]

    def _fail(self, error: Exception) -> None:
        waits, self._waits = self._waits, {}
        for wait in waits.values():
            wait.fail(error)


def _give_up(waiter: "asyncio.Future[Outcome | None]") -> None:
    """The time of who waits has passed."""
    if not waiter.done():
        waiter.set_result(None)
