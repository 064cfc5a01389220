"""The side of an activation that faces the journal: what it writes, and how what is committed comes to the body.

There are two kinds of entries. What the body observes is *submitted*: it has a number, and is delivered to whoever
waits for it. Anything else is *written*: that a step runs, a wait's deadline, work that is given away. Either way:

    written      Entries leave in the order in which they are handed in. What waits to be told with the next entry (the
                 answers of `zart.patched`, and the deadlines of waits) goes before it.
    committed    The journal tells its verdict on each. If somebody else has recorded the same call (`Lost`), the
                 execution is given back; what the database refuses, its own call fails of.
    delivered    In the order of the numbers, one at a time, each once the body has come to rest after the one before.
                 A body of one task that waits for just this entry is at rest: it gets it at once, in the call that
                 brings the verdict.
    closed       Then nothing is submitted any more, and what is committed is not delivered: the next activation has it.

`Activation` is the only class that extends this one; the two could as well be one object and its part. Each record of
each step comes through here twice, though, and a part costs a look-up wherever the one side needs the other (see
decision 44).
"""

import abc
import asyncio
import functools
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from zart._engine import parking
from zart._engine.entries import Claim, Entry, Key, Lost, Record
from zart._engine.host import Host
from zart._engine.log import Log
from zart._engine.outgoing import Outgoing
from zart._engine.parking import DurableFuture
from zart._engine.parts import Part
from zart._engine.patches import Patches
from zart._engine.points import reach
from zart._engine.transactions import Transaction
from zart._engine.waits import Waits
from zart.telemetry.logs import about

_log = logging.getLogger("zart.worker")


class Recording(abc.ABC):
    """See the module."""

    __slots__ = (
        "_apart",
        "_inflight",
        "_outbox",
        "claim",
        "closed",
        "heard",
        "host",
        "log",
        "loop",
        "made",
        "outgoing",
        "tasks",
    )

    patches = Part(Patches)
    waits = Part(Waits)

    def __init__(self, claim: Claim, host: Host) -> None:
        self.claim = claim
        self.host = host
        self.loop = asyncio.get_running_loop()
        self.log = Log(claim.entries, claim.floor)
        self.outgoing = Outgoing(host, claim, self.log.last_seq)
        self.made: dict[str, Any] = {}
        """The parts that were asked for so far."""
        self.tasks: dict[asyncio.Task[Any], None] = {}
        """The tasks of the body."""
        self.closed = False
        self.heard = 0
        """The number of the last entry that the body has heard of."""
        self._inflight = 0
        """How many entries are on their way whose commit somebody waits for."""
        self._outbox: deque[tuple[Record, Callable[[Record], None]]] | None = None
        """What is committed and waits until the body rests."""
        self._apart: set[asyncio.Task[None]] = set()

    @abc.abstractmethod
    def stir(self) -> None:
        """Something may be there to deliver, or the body may be parked: look once it is at rest."""

    @abc.abstractmethod
    def busy(self) -> None:
        """The body is about to do something live."""

    @abc.abstractmethod
    def release(self) -> None:
        """Give the execution back for another worker to go on."""

    def future(self) -> DurableFuture:
        return DurableFuture(loop=self.loop)

    # ------------------------------------------------------------ what the body does not observe

    def write(self, entry: Entry, done: Callable[[Entry, Exception | None], None] | None = None) -> None:
        """Write an entry that the body does not observe. `done` is told the verdict; without it, somebody looks."""
        self.save_answers()
        self._prepare(entry, done)
        self.outgoing.write(entry)

    def put_numbered(self, entry: Entry) -> None:
        """The same for one that has a number, although the body does not observe it; before what waits for the next
        entry.
        """
        self._prepare(entry, None)
        self.outgoing.submit(entry)

    def note_down(self, key: Key) -> None:
        """Write an entry with a number that is only there to be found by later activations; harmless twice."""
        if key in self.log.by_key:
            return
        now = self.host.now()
        self.save_answers()
        self.put_numbered(Entry.at_once(self.claim.run_id, key, b"null", now))

    def note(self, entry: Entry) -> DurableFuture:
        """Write an entry that the body does not observe; the future is done when it is committed."""
        future = self.future()
        if self.closed:
            future.cancel()
            return future
        self.save_answers()
        entry.done = self._noted
        entry.deliver = future
        self._inflight += 1
        self.outgoing.write(entry)
        return future

    def _prepare(self, entry: Entry, done: Callable[[Entry, Exception | None], None] | None) -> None:
        told = done or self._written

        def acknowledged(entry: Entry, error: Exception | None) -> None:
            self.outgoing.acknowledged(error)
            told(entry, error)

        entry.done = acknowledged

    def _written(self, entry: Entry, error: Exception | None) -> None:
        if isinstance(error, Lost):
            self.release()
        elif error is not None:
            told = "execution %s: what is under way at %s is not shown: %s"
            execution, key = self.claim.execution_id, entry.key
            _log.warning(told, execution, key, error, extra=about(execution, step=key.name))

    def _noted(self, entry: Entry, error: Exception | None) -> None:
        self.outgoing.acknowledged(error)
        self._inflight -= 1
        future: DurableFuture = entry.deliver
        if isinstance(error, Lost):
            self.release()
        elif future.done():
            pass
        elif error is not None:
            future.set_exception(error)
        else:
            future.set_result(None)

    # ------------------------------------------------------------ what goes before the next entry

    def save_answers(self) -> None:
        """Write what `zart.patched` has answered: before anything that comes after it."""
        if "patches" in self.made:
            self.patches.save()

    def save_waits(self) -> None:
        """Write the waits that have no row so far."""
        if "waits" in self.made and self.waits.unsaved:
            self.waits.save()

    # ------------------------------------------------------------ what the body observes

    def submit(
        self,
        entry: Entry,
        *,
        future: DurableFuture | None = None,
        deliver: Callable[[Record], None] | None = None,
    ) -> DurableFuture:
        """Write an entry and deliver it once it is committed and the body is at rest. The future gets it then."""
        future = future or self.future()
        if self.closed:
            future.cancel()
            return future
        self.save_answers()
        entry.done = self._acknowledged
        entry.deliver = (future, deliver)
        self._inflight += 1
        self.save_waits()
        self.outgoing.submit(entry)
        return future

    def submit_apart(self, entry: Entry, transaction: Transaction) -> DurableFuture:
        """The same for the record of a step in its transaction, which commits it. What that fails of, the future gets.

        Whoever waits for it may be cancelled meanwhile: it is committed all the same.
        """
        future = self.future()
        if self.closed:
            transaction.abandon()
            future.cancel()
            return future
        self.save_answers()
        entry.deliver = (future, None)
        self._inflight += 1
        self.save_waits()
        self.outgoing.mark(entry)
        committing = self._commit_apart(entry, transaction)
        task = asyncio.Task(committing, loop=self.loop, context=self.host.base_context.copy())
        self._apart.add(task)
        task.add_done_callback(self._apart.discard)
        return future

    async def _commit_apart(self, entry: Entry, transaction: Transaction) -> None:
        async def commit(entry: Entry) -> None:
            if self.closed:
                transaction.abandon()
                raise Lost(f"{entry.key}: the execution was given back before its turn came")
            await transaction.commit(entry)

        error: Exception | None = None
        try:
            await self.outgoing.apart(entry, commit)
        except Exception as failure:  # noqa: BLE001 (the step fails of it, or is run again)
            error = failure
        finally:
            transaction.abandon()
        self._committed(entry, error)

    def _acknowledged(self, entry: Entry, error: Exception | None) -> None:
        self.outgoing.acknowledged(error)
        self._committed(entry, error)

    # ------------------------------------------------------------ delivered

    def _committed(self, entry: Entry, error: Exception | None) -> None:
        self._inflight -= 1
        if self.closed:
            return
        future, deliver = entry.deliver
        entry.deliver = None  # the future will hold the entry
        if isinstance(error, Lost):
            # Somebody else has recorded this call. If the execution is still ours, a replay adopts that record.
            self.release()
            return
        if error is not None:
            if not future.done():
                future.set_exception(error)
            return
        reach("input.acknowledged")
        if self.host.holds_back(self):  # type: ignore[arg-type]  # an Activation: see the module
            self.release()
            return
        if not self._outbox and deliver is None and self._only_waits_for(future):
            self.heard = entry.seq or 0
            future.set_result(entry)
            reach("input.delivered")
            return
        if self._outbox is None:
            self._outbox = deque()
        self._outbox.append((entry, deliver or functools.partial(self.hand_over, future)))
        self.stir()

    def _only_waits_for(self, future: DurableFuture) -> bool:
        """Whether the body is one task, and waits for just this: then it is at rest.

        It does not when it was cancelled a moment ago, although its future is still the same.
        """
        if future.done() or len(self.tasks) != 1:
            return False
        return parking.waits_for(next(iter(self.tasks))) is future

    def _deliver_next(self) -> None:
        """The body rests: what was committed next goes to whoever waits for it."""
        assert self._outbox  # noqa: S101 (whoever calls this has looked)
        committed, hand_over = self._outbox.popleft()
        self.busy()
        reach("input.delivering")
        self.heard = committed.seq or 0
        hand_over(committed)
        reach("input.delivered")
        self.stir()

    def hand_over(self, future: DurableFuture, record: Record) -> None:
        """Give a record to who waits for it; an event that nobody waits for any more is the next wait's."""
        if not future.done():
            future.set_result(record)
        else:
            self.waits.give_back(record)
