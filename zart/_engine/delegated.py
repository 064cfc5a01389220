"""What one activation has given away, and what its body waits for of that: scheduled steps, children, and handles.

Work that is given away is an entry of the journal without a number, with a task of its own. Whoever does the task
writes what came of it into the row and counts up the `done` of the body's task. When the body's worker hears of it, the
row gets the next number, and is delivered after that like any other entry: so a body hears of each end once, one at a
time, in the same order at each replay. An end that nobody will ever ask about gets no number.

A handle is *over* when it was delivered; a body that waits for handles is parked on a join of them. When it is
suspended it names the `done` at which it can go on: for a join of many, as many more as are still open.

Waits for events and timers may have handles, too. They are entries of the body's own and only share the joins.
"""

import datetime as dt
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from zart._engine import sagas, telling
from zart._engine.contradictions import contradict
from zart._engine.entries import (
    FINAL,
    CancelRequest,
    ChildWork,
    Claim,
    Entry,
    Key,
    Lost,
    Order,
    Record,
    StepWork,
    StoredEntry,
)
from zart._engine.points import reach
from zart.calls import ChildCall, StepCall
from zart.digest import payload_digest
from zart.errors import ExecutionCancelled, UsageError
from zart.failures import exception_to_json
from zart.identifiers import child_id, uuid7
from zart.step_input import Then, write_input

if TYPE_CHECKING:
    from zart._engine.activation import Activation
    from zart._engine.branch import Branch
    from zart._engine.waits import Wait

_PREVIEW = 500
_CANCELLED = "its handle was cancelled"


class Pending:
    """What a handle stands for. It implements `zart.handles.Pending`."""

    __slots__ = (
        "_delegated",
        "_read",
        "cancelled",
        "execution_id",
        "joins",
        "key",
        "place",
        "record",
        "wait_of",
    )

    def __init__(
        self,
        delegated: "Delegated",
        key: Key,
        read: Callable[[Record], Any],
        *,
        execution_id: str = "",
    ) -> None:
        self._delegated = delegated
        self._read = read
        self.key = key
        self.execution_id = execution_id
        self.record: Record | None = None
        self.place = 0
        """Its place among those that are over, in the order of their delivery."""
        self.joins: set[Join] = set()
        self.wait_of: Wait | None = None
        """The wait of the body's own that it is a handle of."""
        self.cancelled = False

    @property
    def name(self) -> str:
        return self.key.name

    def belongs_to(self, delegated: "Delegated") -> bool:
        return self._delegated is delegated

    @property
    def over(self) -> bool:
        return self.record is not None or self.cancelled

    def deliver(self, record: Record) -> None:
        """Its turn has come: the body may know."""
        self.record = record
        self._settle()

    def _settle(self) -> None:
        self.place = self._delegated.next_place()
        for join in list(self.joins):
            join.over()

    def value(self) -> Any:
        """What came of it; raises its error."""
        if self.record is None:
            raise ExecutionCancelled(
                f"execution {self._delegated.claim.execution_id!r}: the wait for {self.key} was cancelled by the body"
            )
        return self._read(self.record)

    async def wait(self) -> Any:
        branch = self._delegated.branch_of(self)
        await self._delegated.join(branch, [self], every=True)
        return self.value()

    async def cancel(self) -> bool:
        branch = self._delegated.branch_of(self)
        await branch.check_call(self.key)
        if self.key.kind in ("wait", "timer"):
            if self.over:
                return False
            self.cancelled = True
            if self.wait_of is not None:
                self._delegated.activation.waits.stop(self.wait_of)
            self._settle()
            return True
        return await self._delegated.cancel(branch, self)


class Join:
    """Somebody waits for one or for all of some handles."""

    __slots__ = ("_every", "_missing", "future", "pendings")

    def __init__(self, activation: "Activation", pendings: Sequence[Pending], *, every: bool) -> None:
        self.pendings = list(dict.fromkeys(pending for pending in pendings if not pending.over))
        self._every = every
        self._missing = len(self.pendings)
        self.future = activation.future()

    def over(self) -> None:
        """One more of them is over."""
        self._missing -= 1
        if not self.future.done() and (not self._every or not self._missing):
            self.future.set_result(None)

    def needs(self, still_open: "dict[Key, bool]") -> int:
        """How many more must at least end elsewhere before this one is over; 0 when that alone will not do."""
        missing = sum(pending.key in still_open for pending in self.pendings if not pending.over)
        return missing if self._every else min(missing, 1)


class Delegated:
    """See the module."""

    def __init__(self, activation: "Activation") -> None:
        self.activation = activation
        self.done = activation.claim.done
        """How much has ended, of what was seen."""
        self._open: dict[Key, bool] = {}
        """What has not ended as far as is known; True: it is detached."""
        self._arrived: dict[Key, StoredEntry] = {}
        """What has ended and has no number."""
        self._asked: dict[Key, Pending] = {}
        self._joins: set[Join] = set()
        self._places = 0
        self._unsure = 0
        self._starting: dict[Key, Order | None] = {}
        """Children that may not be there yet, and what they are to be told then."""
        for entry in activation.claim.entries:
            if entry.has_arrived:
                self._arrived[entry.key] = entry
            elif entry.given_away and entry.state not in FINAL:
                self._open[entry.key] = entry.child is not None and entry.child[1]

    def __str__(self) -> str:
        waited = [
            pending.key for join in self._joins for pending in join.pendings if pending.key in self._open
        ]
        keys = list(dict.fromkeys(waited)) or [key for key, detached in self._open.items() if not detached]
        shown = ", ".join(f"{key.kind} {key}" for key in keys[:3])
        return shown + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")

    @property
    def claim(self) -> Claim:
        """The one under which the activation is on."""
        return self.activation.claim

    @property
    def unfinished(self) -> bool:
        """Whether anything is under way that the execution must not end before."""
        return self._unsure > 0 or not all(self._open.values())

    @property
    def wake_at_done(self) -> int | None:
        """The count at which a suspended body can go on; None when no end elsewhere will do."""
        if self.activation.is_over:
            needs = [sum(not detached for detached in self._open.values())]
        else:
            needs = [join.needs(self._open) for join in self._joins]
        return self.done + min(needs) if (needs := [need for need in needs if need]) else None

    def next_place(self) -> int:
        self._places += 1
        return self._places

    def branch_of(self, pending: Pending) -> "Branch":
        """The branch that uses a handle now. Raises UsageError outside of the body that made it."""
        branch = self.activation.current_branch()
        if branch is None:
            raise UsageError(
                f"execution {self.claim.execution_id!r}: the handle of {pending.key} is used outside of the body that "
                "made it; give its value to the step instead"
            )
        return branch

    # ------------------------------------------------------------ giving away

    def schedule(self, branch: "Branch", call: StepCall) -> Pending:
        """Give a step away."""
        return self._schedule(branch, call, branch.key(call.name, "step"))()

    def schedule_all(self, branch: "Branch", calls: Sequence[StepCall], limit: int | None) -> list[Pending]:
        """Give steps away of which at most `limit` run at once: each lets the one that is `limit` further on begin.

        They are written from the last to the first, so that nobody can end before the one that it lets go is there.
        """
        keys = [branch.key(call.name, "step") for call in calls]
        for key in keys:
            self.activation.log.ask(key)  # all of them, before the last one looks for a contradiction
        width = len(calls) if limit is None else limit
        begun = [
            self._schedule(
                branch,
                call,
                keys[place],
                held_back=place >= width and self._is_new(keys[place - width]),
                then=Then(*keys[place + width][:3]) if place + width < len(keys) else None,
            )
            for place, call in enumerate(calls)
        ]
        pendings = [begin() for begin in reversed(begun)]
        pendings.reverse()
        return pendings

    def _is_new(self, key: Key) -> bool:
        """Whether a call is given away only now: one that was recorded before does not know whom to let go."""
        return key not in self.activation.log.by_key

    def _schedule(
        self, branch: "Branch", call: StepCall, key: Key, *, held_back: bool = False, then: Then | None = None
    ) -> Callable[[], Pending]:
        activation = self.activation
        registered = activation.host.registered(self.claim, call)
        digest, preview = call.digest()
        if marks := activation.phase.marks + sagas.marks(sagas.around()):
            call = msgspec.structs.replace(call, marks=marks)
        what = f"execution {self.claim.execution_id!r}: scheduled step {key}"
        given = write_input(call, registered.spec, activation.spec.name, what, then)
        work = StepWork(function=call.template, lane=registered.lane, input=given, held_back=held_back)
        pending = Pending(self, key, lambda record: branch.value_of(record, call.spec))
        entry = Entry(
            run_id=self.claim.run_id,
            key=key,
            state="waiting",
            done=None,
            digest=digest,
            arguments=preview,
            attempts=0,
            work=work,
        )
        return lambda: self._begin(branch, pending, entry, call)

    def child(self, branch: "Branch", call: ChildCall, key: Key) -> Pending:
        """Start a child."""
        claim, spec = self.claim, call.spec
        what = f"the payload of {spec.name!r}, called by execution {claim.execution_id!r}"
        if spec.takes_payload != bool(call.args):
            takes = "takes its payload as one argument" if spec.takes_payload else "takes no payload"
            raise UsageError(f"execution {claim.execution_id!r}: the durable function {spec.name!r} {takes}")
        payload, decoded = spec.payload.store(call.args[0], what) if call.args else (None, None)
        digest = payload_digest(decoded)
        work = ChildWork(
            id=self._child_id(call, key),
            name=spec.name,
            version=spec.version,
            queue=spec.queue,
            priority=spec.priority,
            lane=self.activation.host.lane(spec),
            run_id=uuid7(),
            payload=payload,
            digest=digest,
            time_limit=call.time_limit,
            detached=call.detached,
            named=call.id is not None,
            trace_context=telling.trace_context_for_children(self.activation),
        )
        pending = Pending(
            self,
            key,
            lambda record: branch.outcome_of(record, spec.result, spec.known),
            execution_id=work.id,
        )
        entry = Entry(
            run_id=claim.run_id,
            key=key,
            state="waiting",
            done=None,
            digest=digest,
            arguments=None if payload is None else payload[:_PREVIEW].decode(errors="ignore"),
            work=work,
        )
        self._begin(branch, pending, entry, None)
        if call.detached and key in self._open:
            self._open[key] = True
        return pending

    def _child_id(self, call: ChildCall, key: Key) -> str:
        """The id that it has already, or gets."""
        stored = self.activation.log.by_key.get(key)
        if stored is not None and stored.child is not None:
            return stored.child[0]
        return call.id or child_id(self.claim.execution_id, self.claim.run_id, key[:3], self.claim.attempt)

    async def attach(self, branch: "Branch", key: Key) -> Record:
        """The record of what was given away, for a call that is no handle's."""
        pending = Pending(self, key, lambda record: record)
        self._asked[key] = pending
        if key in self._arrived and not self.activation.replaying:
            self._number(key)
        await self.join(branch, [pending], every=True)
        record: Record = pending.value()
        return record

    def _begin(self, branch: "Branch", pending: Pending, entry: Entry, call: StepCall | None) -> Pending:
        """Attach to what is recorded of a call, or give it away once the activation is live."""
        activation, key = self.activation, entry.key
        record = branch.asked(key, entry.digest, call)
        if not (isinstance(entry.work, ChildWork) and entry.work.detached):
            for saga in sagas.around():
                saga.given.append(pending)
                saga.called[key] = record
        if record is not None and record.seq is None and not record.given_away:
            contradict(
                activation,
                f"{key.kind} {key} is under way as a call of the body's own, and the code gives it away now; make the "
                "code call it inline until it has ended, then resume the execution",
                key,
                key,
            )
        self._asked[key] = pending
        if record is not None and record.seq is not None:
            activation.replay.on_turn(record, pending.deliver)
        elif record is None:
            self._open[key] = isinstance(entry.work, ChildWork) and entry.work.detached
            activation.replay.when_live(key, entry.digest, functools.partial(self._give, entry), gives=True)
        elif key in self._arrived and not activation.replaying:
            self._number(key)
        return pending

    def _give(self, entry: Entry) -> None:
        entry.giver = self.claim
        entry.execution_id = self.claim.execution_id
        if isinstance(entry.work, ChildWork) and entry.work.named:
            self._unsure += 1
            self._starting[entry.key] = None
            self.activation.host.start_child(entry, self._named)
        else:
            self.activation.write(entry, self._given)
        reach("work.given")

    def _named(self, entry: Entry, error: Exception | None) -> None:
        self._unsure -= 1
        told = self._starting.pop(entry.key, None)
        if error is None and told is not None:
            self.activation.outgoing.order((told,))
        self._given(entry, error)
        self.activation.stir()

    @property
    def unsure(self) -> bool:
        """Whether a child may not be there yet that the body could be suspended for."""
        return self._unsure > 0

    def _given(self, entry: Entry, error: Exception | None) -> None:
        """The verdict of the journal on what was given away."""
        activation = self.activation
        if error is None or activation.closed:
            return
        if isinstance(error, Lost):
            activation.release()
            return
        # The database refuses what it was to be given: the call has failed, and nobody was asked.
        self._open.pop(entry.key, None)
        now = activation.host.now()
        failed = Entry(
            run_id=entry.run_id,
            key=entry.key,
            state="failed",
            done=None,
            digest=entry.digest,
            failure=exception_to_json(error, step=entry.key.name),
            started_at=now,
            finished_at=now,
        )
        activation.submit(failed, deliver=self._asked[entry.key].deliver)

    # ------------------------------------------------------------ what comes back

    def news(self, done: int, arrived: Iterable[StoredEntry]) -> None:
        """What has ended elsewhere while the execution is held."""
        self.done = max(self.done, done)
        for entry in arrived:
            if entry.key in self._open:
                del self._open[entry.key]
                self._arrived[entry.key] = entry
                if entry.key in self._asked and not self.activation.replaying:
                    self._number(entry.key)
        self.activation.stir()

    def go_live(self) -> None:
        """The log is at its end: what has arrived meanwhile is delivered, in the order in which it ended."""
        for entry in sorted(self._arrived.values(), key=_by_end):
            if entry.key in self._asked:
                self._number(entry.key)

    def _number(self, key: Key) -> None:
        arrived = self._arrived.pop(key)
        pending = self._asked[key]
        entry = Entry(
            run_id=self.claim.run_id,
            key=key,
            state=arrived.state,
            done=None,
            finished_at=arrived.finished_at,
            numbers=True,
        )
        reach("arrival.numbering")
        self.activation.submit(entry, deliver=lambda _: pending.deliver(arrived))

    # ------------------------------------------------------------ waiting

    async def join(self, branch: "Branch", pendings: Sequence[Pending], *, every: bool) -> None:
        """Wait until one of some handles is over, or every one."""
        for pending in pendings:
            if not pending.belongs_to(self):
                raise UsageError(
                    f"execution {self.claim.execution_id!r}: the handle of {pending.key} belongs to another body; give "
                    "its value to this one instead"
                )
        if pendings:
            await branch.check_call(pendings[0].key)
        over = [pending for pending in pendings if pending.over]
        if len(over) == len(pendings) or (over and not every):
            self._hear(branch, over)
            return
        join = Join(self.activation, pendings, every=every)
        self._joins.add(join)
        for pending in join.pendings:
            pending.joins.add(join)
        self.activation.stir()
        try:
            await branch.parked(join.future)
        finally:
            self._joins.discard(join)
            for pending in join.pendings:
                pending.joins.discard(join)
        self._hear(branch, [pending for pending in pendings if pending.over])

    @staticmethod
    def _hear(branch: "Branch", over: Iterable[Pending]) -> None:
        for pending in over:
            finished = pending.record.finished_at if pending.record is not None else None
            if finished is not None and finished > branch.heard_at:
                branch.heard_at = finished

    # ------------------------------------------------------------ cancelling

    async def cancel(self, branch: "Branch", pending: Pending) -> bool:
        """Ask for the end of one that was given away, by an entry of the log."""
        key = branch.key(f"cancel {pending.key.kind} {pending.key.path}{pending.key.name}", "capture")
        record = await branch.recorded(key)
        if record is None:
            under_way = not pending.over
            told = b"true" if under_way else b"false"
            entry = Entry.at_once(self.claim.run_id, key, told, self.activation.host.now())
            if under_way:
                entry.orders = self._now_or_later([Order(pending.key, _CANCELLED, self._author)])
            record = await branch.parked(self.activation.submit(entry))
            branch.heard(record)
        elif record.result == "true" and not pending.over:
            # Told before, unless it was not there yet: then whoever wanted to tell it is no more.
            self.activation.replay.when_live(None, None, lambda: self._tell_again(pending.key))
        return record.result in ("true", b"true")

    def _tell_again(self, key: Key) -> None:
        if key in self._open:
            self.activation.outgoing.order(self._now_or_later([Order(key, _CANCELLED, self._author)]))

    @property
    def _author(self) -> str:
        return f"execution {self.claim.execution_id}"

    def orders(self, request: CancelRequest | None) -> tuple[Order, ...]:
        """The execution is to end: so is everything that it has given away and that does not stand for itself."""
        told = f"execution {self.claim.execution_id!r}, which started it, is to end"
        reason = told if request is None or not request.reason else f"{told}: {request.reason}"
        author = None if request is None else request.author
        # At a replay: what the body gives away after its cancel, to clean up, is there already and is not meant.
        replaying = self.activation.replaying
        meant = [
            key
            for key, detached in self._open.items()
            if not detached and (not replaying or key in self._asked)
        ]
        return self._now_or_later([Order(key, reason, author) for key in sorted(meant, reverse=True)])

    def _now_or_later(self, orders: Sequence[Order]) -> tuple[Order, ...]:
        """Those that can be given now; the others are kept until their child is there."""
        for order in orders:
            if order.key in self._starting:
                self._starting[order.key] = order
        return tuple(order for order in orders if order.key not in self._starting)


def _by_end(entry: StoredEntry) -> tuple[dt.datetime, Key]:
    return entry.finished_at or dt.datetime.max.replace(tzinfo=dt.UTC), entry.key
