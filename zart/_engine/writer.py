"""The journal writer: every record of every execution in a process goes through here, in groups.

There is no timer. A record that finds the connection idle is sent in the next turn of the loop; whatever
gathers while a statement is in flight goes with the next one. So a lone step waits for one round trip and
one commit, and a hundred busy executions share both.

An execution's records are committed in the order in which they were handed over. Most travel on the first
connection. A big one would hold up everybody else, so it takes a second connection, opened when first
needed; then that execution's later records wait until it is committed, and it waits itself for those that
went before. At no time are two of an execution's records in flight on two connections.

A journal belongs to one registration of the worker, so a batch never mixes registrations. Once the
registration is taken away, everything that is pending and everything that comes later is `Lost`.
"""

import asyncio
import datetime as dt
import logging
import secrets
from collections.abc import Callable, Iterable
from uuid import UUID

from zart._engine.continuity import Confirmed
from zart._engine.entries import Change, Entry, Lost
from zart._engine.folding import Folded, Record, fold, size
from zart._engine.sending import Connect, FenceGone, Sender, Unwritable
from zart.encryption import PLAIN, Payloads

log = logging.getLogger("zart.journal")

MAX_RECORDS = 1000
MAX_BYTES = 4 << 20
BIG = 64 << 10
"""Bytes from which on a record takes the second connection."""

_COUNTER_BITS = 24
_PREFIX_BITS = 63 - _COUNTER_BITS


class Journal:
    """Writes entries and endings in groups, for one registration of a worker.

    `connect` opens a connection in autocommit; `writer` and `big_writer` are the numbers of the fence rows
    of the two connections. `on_now` gets the durable time with each commit. `on_fenced` is called once, when
    the registration is gone; `on_schema_error` once, when the tables or the role are not fit to be written.
    Then everything is `Lost` and `run` returns. A statement without an answer for `patience` seconds is
    taken for a lost connection. `confirmed` is told of each commit. `payloads` encrypts what is a user's.
    """

    def __init__(
        self,
        connect: Connect,
        schema: str,
        worker_id: int,
        *,
        writer: int = 1,
        big_writer: int = 2,
        on_now: Callable[[dt.datetime], None],
        on_fenced: Callable[[], None],
        on_schema_error: Callable[[Exception], None],
        patience: float = 30.0,
        confirmed: Confirmed | None = None,
        payloads: Payloads = PLAIN,
    ) -> None:
        remembered = confirmed or Confirmed()

        def lane(number: int) -> _Lane:
            sender = Sender(
                connect,
                schema,
                worker_id,
                number,
                on_now=on_now,
                settle=self._settle,
                patience=patience,
                confirmed=remembered,
                payloads=payloads,
            )
            return _Lane(sender)

        self._lane = lane(writer)
        self._big_lane = lane(big_writer)
        self._on_fenced = on_fenced
        self._on_schema_error = on_schema_error
        self._unsettled = 0
        self._drained: list[asyncio.Future[None]] = []
        self._diverted: dict[UUID, list[tuple[Record, int]]] = {}
        """Runs with a big record on its way, and what waits behind it."""
        self._behind: dict[UUID, tuple[Record, int]] = {}
        """Big records that wait for smaller ones of their run, which are still in the first lane."""
        self._stopped: str | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._closed = False
        self._token = 0

    def write(self, entry: Entry) -> None:
        """Hands over an entry; its `done` is called after the commit."""
        told = len(entry.result) if entry.result is not None else 0
        if (
            entry.failure is not None
            or entry.failed_attempt is not None
            or entry.work is not None
            or entry.progress is not None
        ):
            told = size(entry)
        self._accept(entry, told)

    def end(self, change: Change) -> None:
        """Hands over an ending: the last record of its activation."""
        self._accept(change, size(change))

    async def run(self) -> None:
        """Writes until it is closed, or until it cannot write any more."""
        if self._closed or self._stopped is not None:
            return
        lanes = (self._lane, self._big_lane)
        self._tasks = [asyncio.create_task(self._run(lane), name="zart journal") for lane in lanes]
        try:
            await asyncio.gather(*self._tasks)
        except asyncio.CancelledError:
            if not self._closed:
                raise
        finally:
            await self._cancel_tasks()
            for lane in lanes:
                await lane.sender.close()

    async def drain(self) -> None:
        """Waits until all that was handed over is settled and announced, or the journal is closed."""
        if self._busy and not self._closed:
            waiter = asyncio.get_running_loop().create_future()
            self._drained.append(waiter)
            await waiter

    async def close(self) -> None:
        """Stops now; what is not committed is never acknowledged. `drain` first to lose nothing."""
        self._closed = True
        await self._cancel_tasks()
        self._release()

    async def _cancel_tasks(self) -> None:
        for task in self._tasks:
            if not task.cancelling():  # a second time would break off the driver's own end of a statement
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def _busy(self) -> bool:
        return self._unsettled > 0 or bool(self._lane.in_flight or self._big_lane.in_flight)

    # ------------------------------------------------------------ what comes in

    def _accept(self, record: Record, told: int) -> None:
        self._unsettled += 1
        if self._stopped is not None:
            asyncio.get_running_loop().call_soon(self._settle, record, Lost(self._stopped))
            return
        record.token = self.draw_token()
        self._route(record, told)

    def draw_token(self) -> int:
        """The token of the next write of this registration, whoever sends it."""
        token = self._token + 1
        if token & ((1 << _COUNTER_BITS) - 1) <= 1:
            token = (secrets.randbits(_PREFIX_BITS) << _COUNTER_BITS) + 2
        self._token = token
        return token

    def _route(self, record: Record, told: int) -> None:
        waiting = self._diverted.get(record.run_id) if self._diverted else None
        if waiting is not None:
            waiting.append((record, told))
        elif told <= BIG:
            self._lane.add(record, told)
        else:
            self._diverted[record.run_id] = []
            if self._lane.holds(record.run_id):
                self._behind[record.run_id] = (record, told)
            else:
                self._big_lane.add(record, told)

    # ------------------------------------------------------------ what goes out

    async def _run(self, lane: "_Lane") -> None:
        while self._stopped is None:
            if not lane.pending:
                await lane.wait()
                continue
            folded = lane.take()
            try:
                await lane.sender.commit(folded.batch)
            except FenceGone as gone:
                first = self._stopped is None
                lane.in_flight = []
                reason = "this worker was taken for dead, and its executions went on elsewhere"
                self._stop(reason, (*gone.unsettled, *folded.refused))
                if first:
                    self._on_fenced()
                return
            except Unwritable as error:
                first = self._stopped is None
                lane.in_flight = []
                self._stop(str(error), (*error.unsettled, *folded.refused))
                if first:
                    self._on_schema_error(error)
                return
            for record in folded.refused:
                self._settle(record, Lost("what it was about had ended with an earlier record"))
            committed, lane.in_flight = lane.in_flight, []
            if lane is self._big_lane:
                self._return(committed)
            elif self._behind:
                self._advance()
            if not self._busy:
                self._release()

    def _return(self, committed: Iterable[Record]) -> None:
        """Big records are committed: what waited behind them takes its ordinary way."""
        for record in committed:
            for waiting, told in self._diverted.pop(record.run_id, ()):
                self._route(waiting, told)

    def _advance(self) -> None:
        """Big records whose predecessors are committed may go."""
        for run_id in list(self._behind):
            if not self._lane.holds(run_id):
                self._big_lane.add(*self._behind.pop(run_id))

    # ------------------------------------------------------------ verdicts

    def _settle(self, record: Record, error: Exception | None) -> None:
        done = record.done
        if done is not None:
            record.done = None
            try:
                done(record, error)  # type: ignore[arg-type]
            except Exception:
                what = record.key if isinstance(record, Entry) else record.execution_id
                log.exception("the receiver of the verdict on '%s' failed", what)
        self._unsettled -= 1
        if not self._busy:
            self._release()

    def _release(self) -> None:
        waiters, self._drained = self._drained, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _stop(self, reason: str, records: Iterable[Record]) -> None:
        """Nothing can be written any more: settles these records and all that wait."""
        first, self._stopped = self._stopped is None, self._stopped or reason
        waiting = [record for lane in (self._lane, self._big_lane) for record in lane.clear()]
        waiting += [record for record, _ in self._behind.values()]
        waiting += [record for behind in self._diverted.values() for record, _ in behind]
        self._behind.clear()
        self._diverted.clear()
        for record in (*records, *waiting):
            self._settle(record, Lost(self._stopped))
        if first:
            log.warning("the journal has stopped: %s", self._stopped)


class _Lane:
    """What goes through one connection: records that wait, and those in flight."""

    def __init__(self, sender: Sender) -> None:
        self.sender = sender
        self.pending: list[Record] = []
        self.in_flight: list[Record] = []
        self._bytes = 0
        self._waiter: asyncio.Future[None] | None = None

    def add(self, record: Record, told: int) -> None:
        self.pending.append(record)
        self._bytes += told
        self._wake()

    def holds(self, run_id: UUID) -> bool:
        return any(record.run_id == run_id for record in self.in_flight) or any(
            record.run_id == run_id for record in self.pending
        )

    def take(self) -> Folded:
        """The next batch: all that waits, up to its limits; one record always fits."""
        taken = self.pending
        if len(taken) <= MAX_RECORDS and self._bytes <= MAX_BYTES:
            self.pending, self._bytes = [], 0
        else:
            count = told = 0
            for record in taken:
                more = size(record)
                if count and (count == MAX_RECORDS or told + more > MAX_BYTES):
                    break
                count += 1
                told += more
            taken, self.pending = taken[:count], taken[count:]
            self._bytes -= told
        folded = fold(taken)
        if folded.later:
            self.pending[:0] = folded.later
            self._bytes += sum(size(record) for record in folded.later)
        self.in_flight = taken
        return folded

    async def wait(self) -> None:
        """Until there is something to send, or the lane is cleared."""
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def clear(self) -> list[Record]:
        """Takes away what waits."""
        taken, self.pending, self._bytes = self.pending, [], 0
        self._wake()
        return taken

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
