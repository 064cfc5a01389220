"""What an activation writes, on its way to the journal: numbered as it leaves, and held back behind a record that goes
another way.

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

from zart._engine.entries import Change, Entry

T = TypeVar("T")


class Writer(Protocol):
    """Where it goes."""

    def write(self, entry: Entry, /) -> None: ...
    def end(self, change: Change, /) -> None: ...


class Outgoing:
    """See the module. `acknowledged` must be called once for each entry, when its verdict is here."""

    __slots__ = ("_apart", "_held", "_quiet", "_under_way", "_writer", "last_seq")

    def __init__(self, writer: Writer, last_seq: int) -> None:
        self._writer = writer
        self._under_way = 0
        self._apart: asyncio.Lock | None = None
        """Held by the record that goes another way, if one ever does."""
        self._held: deque[Callable[[], None]] | None = None
        """What waits behind a record that goes another way; None while nothing does."""
        self._quiet: asyncio.Future[None] | None = None
        self.last_seq = last_seq
        """The number of the last entry, written or on its way."""

    def submit(self, entry: Entry) -> None:
        """An entry that the body observes: it has a number from the moment on when it leaves."""
        if self._held is None:
            self._number_and_write(entry)
        else:
            self._held.append(functools.partial(self._number_and_write, entry))

    def write(self, entry: Entry) -> None:
        """An entry that the body does not observe."""
        self._pass(self._write, entry)

    def end(self, change: Change) -> None:
        """The last record of the activation."""
        self._pass(self._writer.end, change)

    def acknowledged(self) -> None:
        self._under_way -= 1
        if not self._under_way and self._quiet is not None and not self._quiet.done():
            self._quiet.set_result(None)

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
