"""One worker's hold on one execution: from its claim until its ending.

A body is ordinary code. What makes it durable is that everything it can observe is an entry of one ordered log, and
that entries reach it one at a time, each after it has come to rest, live and at a replay, in the same order:

    replay   calls ask the log and wait; whenever the body rests, the entry whose turn it is goes to whoever asked.
             At the log's end the activation goes live. A body of one task that asks in the recorded order takes a
             short cut: the entry is handed over without a turn of the loop.
    live     steps run inline in the tasks that called them; what comes of them, of waits and of a cancel is written,
             and delivered after its commit, in the order of writing.

The body *rests* when nothing but the engine, the network or another process can make it go on (`rest.py`).

At rest and with nothing under way the body may be *parked* (`parking.py`). Then the host decides whether to hold it or
to suspend it: the activation is closed, so that each durable call raises `Suspended`, and what the body's
tasks wait for is settled with that. The ending is written at once; it is the last thing an activation writes, and
nothing that the body does while it unwinds can change it. When the fence is gone, or another activation has taken over,
the body is unwound the same way and nothing more is written.

A host may also keep what it suspends: the same ending is written, and the activation stays as it is, *dormant*. The
execution is everybody's then. If the next claim of it is the host's own, nobody has held it in between, and the
activation goes on under that claim, with what the claim has brought. Otherwise it is forgotten, which is to be unwound
late; so it is as soon as anything in it moves by itself. Whether a body is kept decides nothing but the price of going
on.
"""

import asyncio
import datetime as dt
import functools
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, NoReturn, TypeVar
from uuid import UUID

import msgspec

from zart._engine import endings, parking, telling
from zart._engine.alarms import Alarms
from zart._engine.branch import Branch
from zart._engine.delegated import Delegated
from zart._engine.entries import (
    BodyRetry,
    Cancelled,
    CancelRequest,
    Change,
    Claim,
    Completed,
    Ending,
    Entry,
    Failed,
    Key,
    Lost,
    Order,
    Paused,
    Record,
    Released,
    StoredEntry,
    StoredEvent,
    next_epoch,
)
from zart._engine.entries import Suspended as SuspendedEnding
from zart._engine.host import Host
from zart._engine.lineage import library_of
from zart._engine.log import Log
from zart._engine.outgoing import Outgoing
from zart._engine.parking import DurableFuture
from zart._engine.parts import Part
from zart._engine.patches import Patches
from zart._engine.pauses import Holds
from zart._engine.points import reach
from zart._engine.repairs import Repair
from zart._engine.rest import Rest
from zart._engine.sagas import Sagas
from zart._engine.steps import Steps
from zart._engine.timers import BodyTimer
from zart._engine.transactions import Transaction
from zart._engine.unwinding import Unwinding
from zart._engine.waits import Wait, Waits
from zart.calls import DurableSpec, StepCall
from zart.context import place
from zart.errors import NonDeterminismError, PayloadError, SerializationError, Suspended
from zart.telemetry.hub import hub
from zart.telemetry.logs import about

E = TypeVar("E", bound=BaseException)

_log = logging.getLogger("zart.worker")

_PATIENCE = 5.0
"""How long, in seconds, a replay waits for plain awaits of a body before it passes over an entry nobody asks for."""
_PATIENCE_IN_MEMORY = 0.05
_FRESH_AGAIN = 0.05


class _WhenLive(NamedTuple):
    """What is to be done once the log is at its end."""

    key: Key | None
    digest: bytes | None
    used: int
    gives: bool
    act: Callable[[], None]


class Activation:
    """See the module."""

    __slots__ = (
        "_apart",
        "_first_write",
        "_gate",
        "_in_doubt",
        "_inflight",
        "_late",
        "_orders",
        "_out_of_patience",
        "_outbox",
        "_outcome",
        "_outgoing",
        "_patience",
        "_suspect",
        "_turns",
        "_when_live",
        "anyio_deadlines",
        "blamed",
        "claim",
        "closed",
        "data",
        "dormant",
        "ending",
        "fired",
        "gives_way",
        "heard",
        "host",
        "log",
        "loop",
        "lost",
        "made",
        "notes",
        "own_library",
        "repair",
        "replaying",
        "resting",
        "root",
        "signal",
        "spec",
        "tasks",
        "told",
    )

    alarms = Part(lambda activation: Alarms(activation.host, closed=activation.closed))
    cancels = Part(endings.Cancels)
    delegated = Part(Delegated)
    holds = Part(Holds)
    patches = Part(Patches)
    phase = Part(endings.Phase)
    rest = Part(Rest)
    sagas = Part(Sagas)
    steps = Part(Steps)
    unwinding = Part(Unwinding)
    waits = Part(Waits)

    def __init__(self, claim: Claim, spec: DurableSpec, host: Host) -> None:
        self.claim = claim
        self.spec = spec
        self.host = host
        self.loop = asyncio.get_running_loop()
        self.log = Log(claim.entries, claim.floor)
        self.made: dict[str, Any] = {}
        """The parts that were asked for so far."""
        self.signal = claim.signal
        self.data: bytes | None = None
        self.replaying = True
        self.closed = False
        self.lost = False
        self.resting = False
        self.dormant: Change | None = None
        """The suspension with which it went to sleep, while it is kept beyond that."""
        self.anyio_deadlines = False
        self.own_library = library_of(spec.fn.__code__.co_filename)
        self.tasks: dict[asyncio.Task[Any], None] = {}
        self.root: asyncio.Task[Any] | None = None
        self.ending: Ending | None = None
        self.notes: list[tuple[str, str]] = []
        self.blamed: dict[int, tuple[BaseException, Record]] = {}
        """Exceptions that records have raised in the body, by identity."""
        self.fired: list[tuple[Key, int]] = []
        """Time limits that have passed, and the number of the last entry that was heard then."""
        self.heard = 0
        """The number of the last entry that the body has heard of."""
        self.repair: Repair | None = None
        """What a person wants done again: it is met at the end of the log."""
        self.gives_way = False
        """It is to be given back at its next record."""
        self.told: telling.Told | None = None
        """What telemetry has been told of it."""
        self._outgoing = Outgoing(host, self.log.last_seq)
        self._inflight = 0
        self._in_doubt = 0
        self._orders: tuple[Order, ...] = ()
        self._outbox: deque[tuple[Record, Callable[[Record], None]]] | None = None
        self._apart: set[asyncio.Task[None]] = set()
        self._turns: dict[Key, Callable[[Record], None]] = {}
        self._late: deque[StoredEntry] | None = None
        self._gate: list[tuple[Key, bytes | None, DurableFuture]] = []
        self._when_live: list[_WhenLive] = []
        self._outcome: Completed | Failed | Cancelled | None = None
        self._patience: asyncio.TimerHandle | None = None
        self._out_of_patience = False
        self._first_write = claim.recoveries > 0
        self._suspect = claim.is_suspect

    # ------------------------------------------------------------ life

    def start(self) -> None:
        """Run the body. A payload that does not fit ends the execution as failed."""
        if hub.listening:
            telling.claimed(self)
        if self.log.damaged is not None:
            self.block(_damaged(self.log.damaged), "misfit")
            return
        if self.claim.events:
            self.waits.offer(self.claim.events)
        try:
            self.repair = Repair.of(self)
        except PayloadError as error:
            self.block(error, "misfit")
            return
        try:
            coroutine = self.phase.first()
        except PayloadError as error:
            self.phase.refuse(error)
            return
        if self.log.next is None:
            self._end_replay()
        if self.closed:
            coroutine.close()
            return
        self.start_phase(coroutine, self.phase.path, self.claim.started_at)

    def start_phase(self, coroutine: Any, path: str, heard_at: dt.datetime) -> None:
        """Run a body of the run: the first one, or what follows its failure."""
        context = self.host.base_context.copy()
        context.run(place.set, Branch(self, path, heard_at))
        if hub.listening:
            telling.enter(self, context)
        self.root = asyncio.Task(coroutine, loop=self.loop, context=context)
        self.track(self.root)

    def news(
        self,
        signal: int,
        events: list[StoredEvent],
        cancel: CancelRequest | None,
        done: int = 0,
        arrived: Sequence[StoredEntry] = (),
        *,
        repair: bool = False,
    ) -> None:
        """What has happened to the execution outside, while it is held."""
        if self.closed or self.dormant is not None:
            return
        self.signal = signal
        self.waits.offer(events)
        self.delegated.news(done, arrived)
        self.cancels.request(cancel)
        if repair and self.repair is None:
            self.give_way()
        self._end_at_last()

    def give_way(self) -> None:
        """Give the execution back, as soon as no step and no record of it is under way, or at its next record."""
        self.gives_way = True
        if not self.closed and not self.steps.tasks and not self._inflight:
            self.release()

    def tick(self, now: dt.datetime) -> None:
        """Once a second: show what takes long, and write the deadlines that are not written yet."""
        if not self.closed:
            self.steps.show_long(now)
            if not self.replaying:
                self._save_waits()
                if "alarms" in self.made:
                    self.alarms.ring()

    def release(self) -> None:
        """Give the execution back for another worker to go on."""
        reach("release.begin")
        self.end(Released())

    def lose(self) -> None:
        """The execution is not ours any more: unwind, and write nothing."""
        if not self.lost:
            self.lost = True
            already = self.ending is not None
            self._close()
            if not already:  # else its change is on the way and will report
                if hub.listening:
                    telling.over(self, None)
                self.host.ended(self)
            self._dissolve()

    @property
    def done(self) -> int:
        """How much of what it gave away was seen to have ended."""
        return self.delegated.done if "delegated" in self.made else self.claim.done

    @property
    def _has_given_away(self) -> bool:
        """Whether this activation, or one before it, has given anything away."""
        return "delegated" in self.made or bool(self.claim.entries)

    @property
    def is_over(self) -> bool:
        """The body has ended; what it has given away has not."""
        return self._outcome is not None

    def current_branch(self) -> Branch | None:
        """The branch of this body that runs now."""
        here = place.get()
        return here if isinstance(here, Branch) and here.activation is self else None

    def reconsider(self) -> None:
        """A cancel, or the end of the time limit, has come. While the outcome waited: it counts."""
        self.reconsider_rules()
        if self._outcome is not None and self.root is not None:
            self._outcome = None
            self.over(self.root)

    def reconsider_rules(self) -> None:
        """The rules that hold steps back have changed, or hold nothing of this back any more."""
        if "holds" in self.made:
            self.holds.reconsider()

    def _end_at_last(self) -> bool:
        """End with the outcome that has waited, if nothing is left to wait for; whether it did."""
        if self._outcome is None or self._outlived:
            return False
        self.end(self._outcome)
        return True

    @property
    def _outlived(self) -> bool:
        """Whether something is to come before the outcome: the end of what was given away, or a recorded cancel."""
        unfinished = self._has_given_away and self.delegated.unfinished
        return unfinished or (self.replaying and self.log.brings_cancel)

    def end(self, ending: Ending) -> None:
        """Write the ending, and unwind what is left of the body.

        An outcome waits for what the body has given away, and in a replay for a cancel that came meanwhile.
        """
        if self.ending is not None or self.lost:
            return
        if isinstance(ending, (Completed, Failed, Cancelled)) and self._outlived:
            reach("body.outlived")
            self._outcome = ending
            self.stir()
            return
        self.ending = ending
        reach("ending.begin")
        if not self.replaying or isinstance(ending, BodyRetry):
            self._save_answers()
        if not self.replaying:
            self._save_waits()
        change = self._change(ending, self._ended)
        self._close()
        self._outgoing.end(change)
        self._dissolve()

    def _change(self, ending: Ending, done: Callable[[Change, Exception | None], None]) -> Change:
        claim = self.claim
        return Change(
            task_id=claim.task_id,
            execution_id=claim.execution_id,
            run_id=claim.run_id,
            epoch=claim.epoch,
            ending=ending,
            done=done,
            notes=tuple(self.notes),
            parent_task=claim.parent_task,
            orders=self._take_orders(),
        )

    def _ended(self, change: Change, error: Exception | None) -> None:
        if isinstance(error, SerializationError):
            self.ending = self.refused(error)
            retry = msgspec.structs.replace(change, ending=self.ending, token=0, done=self._ended)
            self.host.end(retry)
            return
        self._got_on(error)
        if error is not None:
            self.lost = True
        if hub.listening:
            telling.over(self, self.ending if error is None else None)
        reach("ending.acknowledged")
        self.host.ended(self)

    # ------------------------------------------------------------ dormant

    def _fall_asleep(self, ending: SuspendedEnding) -> None:
        """Write the suspension, and stay as it is."""
        reach("ending.begin")
        self._save_answers()
        self._save_waits()
        self.alarms.silence()
        self.dormant = self._change(ending, self._asleep)
        self.notes.clear()
        self.host.end(self.dormant)
        reach("suspension.kept")

    def _asleep(self, change: Change, error: Exception | None) -> None:
        if change is not self.dormant:
            return  # it is awake again, or forgotten: the claim that woke it was there before this verdict
        self._got_on(error)
        if hub.listening:
            telling.over(self, change.ending if error is None else None)
        if error is not None:
            self.forget()
            return
        reach("ending.acknowledged")
        self.host.sleeps(self)

    def is_continued_by(self, run_id: UUID, epoch: int) -> bool:
        """Whether a claim with this epoch comes right after this dormant activation's own."""
        return self.dormant is not None and (run_id, epoch) == (
            self.claim.run_id,
            next_epoch(self.claim.epoch),
        )

    def wake(self, claim: Claim) -> None:
        """Go on under a new claim."""
        reach("claim.goes-on")
        if hub.listening and self.dormant is not None:
            telling.goes_on(self, self.dormant.ending, claim)
        self.claim = msgspec.structs.replace(claim, payload=self.claim.payload)
        self.dormant = None
        self.resting = False
        self.signal = claim.signal
        self._first_write = claim.recoveries > 0
        self._suspect = claim.is_suspect
        self.waits.offer(claim.events)
        self.delegated.news(claim.done, claim.arrived)
        self.cancels.request(claim.cancel)
        self.alarms.go_on()
        self.stir()
        self._end_at_last()

    def forget(self) -> None:
        """It is not wanted, or has moved while it was dormant: unwind it. All of it is recorded."""
        if self.dormant is not None:
            if hub.listening:
                telling.over(self, self.dormant.ending)
            self.dormant = None
            self.lost = True
            reach("suspension.unwinding")
            self._close()
            self.host.forgets(self)
            self._dissolve()

    # ------------------------------------------------------------ tasks

    def track(self, task: "asyncio.Task[Any]") -> None:
        """A task of the body: it is part of what rests, parks and ends."""
        self.forget()
        self.tasks[task] = None
        if "sagas" in self.made:
            self.sagas.started(task)
        self.rest.begins(task)
        task.add_done_callback(self._task_done)

    def adopt(self, task: "asyncio.Task[Any] | None") -> None:
        """A task that a library started makes a durable call: it is part of the body from now on."""
        if task is not None and task not in self.tasks:
            self.track(task)

    def _task_done(self, task: "asyncio.Task[Any]") -> None:
        self.forget()
        self.tasks.pop(task, None)
        if "sagas" in self.made:
            self.sagas.ended(task)
        self.rest.ends(task)
        if self.closed:
            if not task.cancelled():
                task.exception()  # an unwound task's exception is nobody's news
            self._dissolve()
            return
        if task is self.root:
            leftovers = [left for left in self.tasks if left not in self.sagas.undoing]
            if leftovers and not self.phase.begins_anew(task):
                self.notes.append(
                    ("warning", f"{len(leftovers)} branches had not ended with the body and were cancelled")
                )
            for leftover in leftovers:
                leftover.cancel()
        if self.root is not None and self.root.done() and not self.tasks and self._outcome is None:
            self.over(self.root)
        else:
            self.stir()

    def over(self, root: "asyncio.Task[Any]") -> None:
        """The body and all its branches have ended."""
        self.phase.over(root)

    def refused(self, error: SerializationError) -> Ending:
        """What to end with instead: the database does not take what was to be written."""
        return self.phase.refused(error)

    def busy(self) -> None:
        """The body is about to do something live."""
        self.rest.happens()
        if self.resting:
            self.resting = False
            self.host.goes_on(self)

    # ------------------------------------------------------------ asking the log

    def is_turn_of(self, record: StoredEntry) -> bool:
        """The short cut: the only task of the body that does not rest asks for the entry whose turn it is."""
        self.rest.happens()
        if self.log.next is record and not self._late and self._only_this_goes_on():
            self.log.pass_on()
            reach("replay.delivering")
            self._use(record)
            self.stir()  # what comes next may be for nobody who asks: a cancel, or the end of the log
            return True
        return False

    def _only_this_goes_on(self) -> bool:
        alone = len(self.tasks) == 1 and not self._turns
        return alone or self.rest.rests_but_for(asyncio.current_task())

    def _use(self, record: StoredEntry) -> None:
        self.log.use(record)
        self.heard = max(self.heard, record.seq or 0)
        if record.key.kind == "wait":
            self.waits.replayed(record)

    def turn(self, record: StoredEntry) -> DurableFuture:
        """Wait until it is this record's turn."""
        future = self.future()
        self.on_turn(record, functools.partial(self._hand_over, future))
        return future

    def _hand_over(self, future: DurableFuture, record: Record) -> None:
        if not future.done():
            future.set_result(record)
        else:
            self.waits.give_back(record)

    def on_turn(self, record: StoredEntry, deliver: Callable[[Record], None]) -> None:
        upcoming = self.log.next
        if upcoming is None or (record.seq or 0) < (upcoming.seq or 0):
            if self._late is None:
                self._late = deque()
            self._late.append(record)
        self._turns[record.key] = deliver
        self.stir()

    def gate(self, key: Key, digest: bytes | None) -> DurableFuture:
        """Wait until the activation goes live: the call has no record."""
        future = self.future()
        self._gate.append((key, digest, future))
        self.stir()
        return future

    def future(self) -> DurableFuture:
        return DurableFuture(loop=self.loop)

    def compare(self, record: StoredEntry, call: StepCall | None) -> None:
        """The arguments of a call are not the recorded ones."""
        policy = call.spec.check_args if call is not None else "block"
        told = f"{record.key.kind} {record.key} was recorded with other arguments ({record.arguments or 'not kept'})"
        if policy == "warn" or self.claim.accept_arguments:
            self.notes.append(("warning", told))
            return
        self.contradict(
            f"{told} than the code gives it now; make the code give the recorded ones, or accept the new ones with "
            "`resume --accept-arguments`",
            record.key,
            record.key,
        )

    def refuse_contradiction(
        self, key: Key, digest: bytes | None, used: int | None = None, *, gives: bool = False
    ) -> None:
        record = self.log.contradiction(key, digest, used, gives=gives)
        if record is not None:
            self.contradict(
                f"the code asks for {key.kind} {key}, where {record.key.kind} {record.key} is recorded as number "
                f"{record.seq} and is not asked for; nothing was run. Mend the code, then resume the execution",
                record.key,
                key,
            )

    def block(self, error: Exception, what: str = "error") -> None:
        """Hold the execution until somebody has looked at it: nothing is lost."""
        self.end(endings.blocked(error, what))

    def contradict(self, told: str, recorded: Key, requested: Key) -> NoReturn:
        """Block the execution: the code is not the one that wrote the log."""
        error = NonDeterminismError(
            f"execution {self.claim.execution_id!r}: {told}", recorded=str(recorded), requested=str(requested)
        )
        self.block(error, "non-determinism")
        raise Suspended

    def raised(self, error: E, record: Record) -> E:
        """Remember which record raised an exception in the body: if it leaves the body, that one is tried afresh."""
        self.blamed[id(error)] = (error, record)
        return error

    @property
    def suspect(self) -> bool:
        """It was taken over more than once, and neither has recorded anything since nor lived for a second.

        What is under way is not recorded: a worker that dies now takes it along.
        """
        return self._suspect and not self.lost

    @property
    def last_seq(self) -> int:
        """The number of the last entry, written or on its way."""
        return self._outgoing.last_seq

    # ------------------------------------------------------------ writing

    def write(self, entry: Entry, done: Callable[[Entry, Exception | None], None] | None = None) -> None:
        """Write an entry that the body does not observe."""
        self._save_answers()
        self.put(entry, done)

    def put(self, entry: Entry, done: Callable[[Entry, Exception | None], None] | None = None) -> None:
        """The same, and what waits to be written with the next entry goes on waiting."""
        self._prepare(entry, done)
        self._outgoing.write(entry)

    def put_numbered(self, entry: Entry) -> None:
        """The same for one that has a number, although the body does not observe it."""
        self._prepare(entry, None)
        self._outgoing.submit(entry)

    def _prepare(self, entry: Entry, done: Callable[[Entry, Exception | None], None] | None) -> None:
        told = done or self._written

        def acknowledged(entry: Entry, error: Exception | None) -> None:
            self._outgoing.acknowledged()
            self._got_on(error)
            told(entry, error)

        entry.done = acknowledged
        self._mark(entry)

    def note(self, entry: Entry) -> DurableFuture:
        """Write an entry that the body does not observe; the future is done when it is committed."""
        future = self.future()
        if self.closed:
            future.cancel()
            return future
        self._save_answers()
        entry.done = self._noted
        entry.deliver = future
        self._inflight += 1
        self._mark(entry)
        self._outgoing.write(entry)
        return future

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
        self._save_answers()
        entry.done = self._acknowledged
        entry.deliver = (future, deliver)
        self._inflight += 1
        self._save_waits()
        self._mark(entry)
        self._outgoing.submit(entry)
        return future

    def _save_answers(self) -> None:
        """Write what `zart.patched` has answered: before anything that comes after it."""
        if "patches" in self.made:
            self.patches.save()

    def _save_waits(self) -> None:
        """Write the waits that have no row so far."""
        if "waits" in self.made and self.waits.unsaved:
            self.waits.save()

    def order(self, orders: tuple[Order, ...]) -> None:
        """Have what was given away cancelled: with the next record."""
        self._orders += orders

    def _take_orders(self) -> tuple[Order, ...]:
        orders, self._orders = self._orders, ()
        return orders

    def note_down(self, key: Key) -> None:
        """Write an entry with a number that is only there to be found by later activations; harmless twice."""
        if key in self.log.by_key:
            return
        now = self.host.now()
        self._save_answers()
        self.put_numbered(Entry.at_once(self.claim.run_id, key, b"null", now))

    def submit_apart(self, entry: Entry, transaction: Transaction) -> DurableFuture:
        """The same for the record of a step in its transaction, which commits it. What that fails of, the future gets.

        Whoever waits for it may be cancelled meanwhile: it is committed all the same.
        """
        future = self.future()
        if self.closed:
            transaction.abandon()
            future.cancel()
            return future
        self._save_answers()
        entry.deliver = (future, None)
        self._inflight += 1
        self._save_waits()
        self._mark(entry)
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
            await self._outgoing.apart(entry, commit)
        except Exception as failure:  # noqa: BLE001 (the step fails of it, or is run again)
            error = failure
        finally:
            transaction.abandon()
        self._committed(entry, error)

    def _mark(self, entry: Entry) -> None:
        entry.execution_id = self.claim.execution_id
        entry.task_id = self.claim.task_id
        if self._orders:
            entry.orders += self._take_orders()
        # That a step runs is no progress: one that ends its process only after a while would never be found out.
        if self._first_write and entry.state not in ("running", "started"):
            self._first_write = False
            entry.clears_recoveries = True

    def _got_on(self, error: Exception | None) -> None:
        """The verdict on something that it has written is here."""
        if error is None:
            self._suspect = False

    def _written(self, entry: Entry, error: Exception | None) -> None:
        if isinstance(error, Lost):
            self.release()
        elif error is not None:
            told = "execution %s: what is under way at %s is not shown: %s"
            execution, key = self.claim.execution_id, entry.key
            _log.warning(told, execution, key, error, extra=about(execution, step=key.name))

    def _noted(self, entry: Entry, error: Exception | None) -> None:
        self._outgoing.acknowledged()
        self._got_on(error)
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

    def _acknowledged(self, entry: Entry, error: Exception | None) -> None:
        self._outgoing.acknowledged()
        self._committed(entry, error)

    def _committed(self, entry: Entry, error: Exception | None) -> None:
        self._got_on(error)
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
        if self.host.holds_back(self):
            self.release()
            return
        if not self._outbox and deliver is None and self._only_waits_for(future):
            self.heard = entry.seq or 0
            future.set_result(entry)
            reach("input.delivered")
            return
        if self._outbox is None:
            self._outbox = deque()
        self._outbox.append((entry, deliver or functools.partial(self._hand_over, future)))
        self.stir()

    def _only_waits_for(self, future: DurableFuture) -> bool:
        """Whether the body is one task, and waits for just this: then it is at rest.

        It does not when it was cancelled a moment ago, although its future is still the same.
        """
        if future.done() or len(self.tasks) != 1:
            return False
        return parking.waits_for(next(iter(self.tasks))) is future

    # ------------------------------------------------------------ time

    async def pause(self, branch: Branch, until: dt.datetime, what: str) -> None:
        """Wait until a time that the body does not observe: the next attempt of a step."""
        future = self.future()
        alarm = self.alarms.set(until, functools.partial(parking.settle, future))
        self.phase.pauses[what] = until
        self.stir()
        try:
            await branch.parked(future)
        finally:
            self.phase.pauses.pop(what, None)
            alarm.cancel()
        self.busy()

    async def until_fresh(self, branch: Branch) -> None:
        """After a long stop others may have taken over: wait until the lease is renewed, or this is unwound.

        The body is not parked meanwhile: there is nothing that would wake it up.
        """
        self._in_doubt += 1
        try:
            while not self.host.fresh:
                future = self.future()
                self.loop.call_later(_FRESH_AGAIN, parking.settle, future, context=self.host.base_context)
                await branch.parked(future)
                if self.closed:  # between the moment when the pause was over and this one
                    raise Suspended
        finally:
            self._in_doubt -= 1

    async def attend(self, waiting: Awaitable[object]) -> None:
        """Wait for something in this process. The body is not parked meanwhile: nobody else would wake it up."""
        self._in_doubt += 1
        try:
            await waiting
        finally:
            self._in_doubt -= 1
        if self.closed:
            raise Suspended

    def set_timer(self, branch: Branch, delay: float, timer: BodyTimer) -> None:
        """A time limit that a body has set."""
        self.forget()
        key = branch.key("timeout", "timer")
        record = self.log.ask(key)
        wait: Wait | None = None

        def let_go() -> None:
            if wait is not None:
                self.waits.cancel(wait)

        def fire(_record: Record) -> None:
            if not timer.cancelled():
                self.fired.append((key, self.heard))
                timer.fire()

        timer.let_go = let_go
        if record is not None and record.seq is not None:
            self.on_turn(record, fire)
            return
        until = record.until if record is not None and record.until is not None else None
        deadline = until or self.host.now() + dt.timedelta(seconds=round(delay, 3))

        def arm() -> None:
            nonlocal wait
            if not timer.cancelled():
                wait = self.waits.timer(key, deadline, fire)

        self.when_live(None, None, arm)

    def when_live(
        self,
        key: Key | None,
        digest: bytes | None,
        act: Callable[[], None],
        *,
        gives: bool = False,
    ) -> None:
        """Do something once the log is at its end: now, if it is.

        `key` is a call that has no record and goes on by itself, so its branch may use more of the log until then;
        `gives`: it gives work away.
        """
        if self.replaying:
            used = self.log.used(key.path) if key is not None else 0
            self._when_live.append(_WhenLive(key, digest, used, gives, act))
            self.stir()
            return
        if key is not None:
            self.refuse_contradiction(key, digest, gives=gives)
        self.busy()
        act()

    # ------------------------------------------------------------ rest

    def stir(self) -> None:
        """Something may be there to deliver, or the body may be parked: look once it is at rest."""
        self.rest.stir()

    @property
    def nothing_to_look_for(self) -> bool:
        """A step or a commit is under way and nothing waits for its turn: what comes of it will stir again."""
        if self.replaying or self._outbox or self._late:
            return False
        if self._inflight or self.steps.tasks or self._in_doubt:
            return True
        return self._has_given_away and self.delegated.unsure

    def at_rest(self) -> None:
        """Go on with what has waited for that."""
        try:
            self._at_rest()
        except PayloadError as error:
            self.block(error, "misfit")
        except Exception as error:  # noqa: BLE001 (one execution is held; the worker and all others go on)
            told = self.claim.execution_id
            _log.exception("execution %s cannot go on", told, extra=about(told))
            self.block(error)

    def _at_rest(self) -> None:
        if self._late:
            record = self._late.popleft()
            self._give_turn(record)
        elif self.replaying:
            self._replay()
        elif self._outbox:
            committed, hand_over = self._outbox.popleft()
            self.busy()
            reach("input.delivering")
            self.heard = committed.seq or 0
            hand_over(committed)
            reach("input.delivered")
            self.stir()
        else:
            self._consider_parking()

    def _give_turn(self, record: StoredEntry) -> None:
        deliver = self._turns.pop(record.key, None)
        if deliver is not None:
            reach("replay.delivering")
            self._use(record)
            deliver(record)
            reach("replay.delivered")
        self.stir()

    def _replay(self) -> None:
        """Hand out the entry whose turn it is; at the end of the log, go live."""
        while (record := self.log.next) is not None:
            if record.key.kind == "cancel":
                self.log.pass_on()
                self.cancels.deliver(record)
                self.stir()
                return
            if record.key in self._turns:
                self.log.pass_on()
                self._give_turn(record)
                return
            if not self.log.was_asked(record.key) and not self._may_pass_over():
                return
            self.log.pass_on()
        self._end_replay()

    def _may_pass_over(self) -> bool:
        """Whether nobody can ask any more for the entry whose turn it is, as things stand."""
        if self._out_of_patience or self.rest.all_parked:
            self._out_of_patience = False
            return True
        if self._patience is None:
            memory = all(parking.only_in_memory(task, self.tasks) for task in self.tasks)
            delay = _PATIENCE_IN_MEMORY if memory else _PATIENCE
            self._patience = self.loop.call_later(delay, self._lose_patience, context=self.host.base_context)
        return False

    def _lose_patience(self) -> None:
        self._patience = None
        self._out_of_patience = True
        self.stir()

    def _end_replay(self) -> None:
        """The log is at its end."""
        reach("replay.over")
        if self.repair is not None:
            self.repair.meet(None)
        else:
            self._go_live()

    def _go_live(self) -> None:
        """What had no record may run now."""
        gate, self._gate = self._gate, []
        when_live, self._when_live = self._when_live, []
        try:
            for key, digest, future in gate:
                if not future.done():
                    self.refuse_contradiction(key, digest)
            for later in when_live:
                if later.key is not None:
                    self.refuse_contradiction(later.key, later.digest, later.used, gives=later.gives)
        except Suspended:
            return
        self.replaying = False
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        for _key, _digest, future in gate:
            if not future.done():
                future.set_result(None)
        for later in when_live:
            later.act()
        if "waits" in self.made:
            self.waits.match_all()
        if self._has_given_away:
            self.delegated.go_live()
        self.cancels.go_live()
        self.stir()

    def _consider_parking(self) -> None:
        if self._end_at_last():
            return
        if self.rest.all_parked:
            due = self.alarms.due
            if self.host.suspends(self, due):
                reach("suspension.begin")
                if "holds" in self.made and (paused := self.holds.ending()) is not None:
                    self._pause_for(paused)
                    return
                waiting = ", ".join(filter(None, (str(self.waits), str(self.delegated), *self.phase.pauses)))
                ending = SuspendedEnding(
                    seen=self.signal,
                    wake_at=due,
                    wake_at_done=self.delegated.wake_at_done,
                    waiting_for=waiting or None,
                )
                if self.host.keeps_dormant(self):
                    self._fall_asleep(ending)
                    return
                self.end(ending)
                reach("suspension.unwinding")
                return
        if not self.resting and not self.closed and not self.nothing_to_look_for:
            self.resting = True
            self.host.rests(self)

    def _pause_for(self, ending: Paused) -> None:
        """A rule holds back what the body would do next; nobody wakes it before the rule has ended."""
        if self.claim.step is None:
            self.notes.append(("paused", f"{ending.waiting_for}, by rule {ending.rule}"))
        self.end(ending)
        reach("suspension.unwinding")

    # ------------------------------------------------------------ unwinding

    def _close(self) -> None:
        """From here on each durable call raises `Suspended`, and what the body's tasks wait for is settled with it."""
        if self.closed:
            return
        self.closed = True
        if "alarms" in self.made:
            self.alarms.close()
        if self._patience is not None:
            self._patience.cancel()
        if self.tasks:
            self.unwinding.begin()

    def _dissolve(self) -> None:
        """Once nothing of the body is left, let go of all that refers back to this: see `parts`."""
        if not self.tasks:
            self.made.clear()
            self.root = None
            if self.told is not None:
                self.told.context = None
            self.blamed.clear()


def _damaged(entry: StoredEntry) -> PayloadError:
    number = "no number" if entry.seq is None else f"the number {entry.seq}"
    return PayloadError(
        f"the record of {entry.key.kind} {entry.key} is {entry.state} and has {number} in the log, which this library "
        "never writes. Correct the row in zart_steps, then resume the execution"
    )
