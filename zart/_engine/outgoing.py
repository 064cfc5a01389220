"""What an activation writes, on its way to the journal: marked, numbered as it leaves, and held back behind a record
that goes another way.

Whatever is handed over is marked at that moment with whose it is, and takes along what waits for the next record: the
orders to cancel what was given away, and that the execution is no suspect any more (see `Holding.takes_suspect`).

Entries leave in the order in which they are handed over. One that the body will observe gets its number at that moment,
so numbers have no gap. The record of a step in a transaction does not go to the journal: it is the last statement of
that transaction, on another connection. It waits until everything that went before is acknowledged, and whatever comes
after it waits until it is committed, or known not to be. So at no time are two of an execution's records in flight on
two connections, and a number that was given to a record in vain goes to the next one.
"""

import asyncio
import functools
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from zart._engine.entries import Change, Claim, Entry, Order

T = TypeVar("T")


class Writer(Protocol):
    """Where it goes."""

    def write(self, entry: Entry, /) -> None: ...
    def end(self, change: Change, /) -> None: ...


class Outgoing:
    """See the module. `acknowledged` must be called once for each entry, when its verdict is here."""

    __slots__ = (
        "_apart",
        "_execution_id",
        "_first_write",
        "_held",
        "_orders",
        "_quiet",
        "_task_id",
        "_under_way",
        "_writer",
        "last_seq",
        "suspect",
    )

    def __init__(self, writer: Writer, claim: Claim, last_seq: int) -> None:
        self._writer = writer
        self._execution_id = claim.execution_id
        self._task_id = claim.task_id
        self._first_write = claim.recoveries > 0
        self._orders: tuple[Order, ...] = ()
        self._under_way = 0
        self._apart: asyncio.Lock | None = None
        """Held by the record that goes another way, if one ever does."""
        self._held: deque[Callable[[], None]] | None = None
        """What waits behind a record that goes another way; None while nothing does."""
        self._quiet: asyncio.Future[None] | None = None
        self.last_seq = last_seq
        """The number of the last entry, written or on its way."""
        self.suspect = claim.is_suspect
        """Nothing of it was committed since it was claimed as a suspect. What is under way does not count: a worker
        that dies now takes it along.
        """

    def claimed_again(self, claim: Claim) -> None:
        """It goes on under another claim."""
        self._first_write = claim.recoveries > 0
        self.suspect = claim.is_suspect

    # ------------------------------------------------------------ what goes along

    def order(self, orders: tuple[Order, ...]) -> None:
        """Have what was given away cancelled: with the next record."""
        self._orders += orders

    def take_orders(self) -> tuple[Order, ...]:
        orders, self._orders = self._orders, ()
        return orders

    def mark(self, entry: Entry) -> None:
        """Say whose it is. Whatever is handed over below is marked already, except for what goes apart: it is to be
        marked when it is made.
        """
        entry.execution_id = self._execution_id
        entry.task_id = self._task_id
        if self._orders:
            entry.orders += self.take_orders()
        # That a step runs is no progress: one that ends its process only after a while would never be found out.
        if self._first_write and entry.state not in ("running", "started"):
            self._first_write = False
            entry.clears_recoveries = True

    # ------------------------------------------------------------ on its way

    def submit(self, entry: Entry) -> None:
        """An entry that the body observes: it has a number from the moment on when it leaves."""
        self.mark(entry)
        if self._held is None:
            self._number_and_write(entry)
        else:
            self._held.append(functools.partial(self._number_and_write, entry))

    def write(self, entry: Entry) -> None:
        """An entry that the body does not observe."""
        self.mark(entry)
        self._pass(self._write, entry)

    def end(self, change: Change) -> None:
        """The last record of the activation."""
        self._pass(self._writer.end, change)

    def acknowledged(self, error: Exception | None) -> None:
        """The verdict on an entry is here."""
        self._under_way -= 1
        if error is None:
            self.suspect = False
        if not self._under_way and self._quiet is not None and not self._quiet.done():
            self._quiet.set_result(None)

    def ended(self, error: Exception | None) -> None:
        """The verdict on the last record, or on a suspension that may not be the last one."""
        if error is None:
            self.suspect = False

    async def apart(self, entry: Entry, commit: Callable[[Entry], Awaitable[None]]) -> None:
        """Number an entry and commit it another way, alone. Raises what `commit` raises: then it has no number."""
        if self._apart is None:
            self._apart = asyncio.Lock()
        async with self._apart:
            held = self._held = deque[Callable[[], None]]()
            try:
                while self._under_way:
                    self._quiet = asyncio.get_running_loop().create_future()
                    await self._quiet
                entry.seq = self.last_seq + 1
                await commit(entry)
                self.last_seq = entry.seq
                self.suspect = False
            finally:
                self._held = None
                for leave in held:
                    leave()

    def _pass(self, leave: Callable[[T], None], record: T) -> None:
        if self._held is None:
            leave(record)
        else:
            self._held.append(functools.partial(leave, record))

    def _number_and_write(self, entry: Entry) -> None:
        self.last_seq += 1
        entry.seq = self.last_seq
        self._write(entry)

    def _write(self, entry: Entry) -> None:
        self._under_way += 1
        self._writer.write(entry)
