"""A host of activations without a database: the journal is a dict, time is virtual.

For tests of a body (`zart.testing`). The activations, their logs and their waits are the real ones; there is no crash,
and no worker beside this one. What a body gives away runs beside it, in an activation of its own.
"""

import asyncio
import datetime as dt
import uuid
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from typing import Any, Final

import anyio
import msgspec

from zart._engine import parking, telling
from zart._engine.activation import Activation
from zart._engine.alarms import Cancellable
from zart._engine.entries import (
    Blocked,
    BodyRetry,
    Cancelled,
    CancelRequest,
    Change,
    Claim,
    Completed,
    ContinuedAsNew,
    Entry,
    EntryState,
    Failed,
    Key,
    Order,
    StepWork,
    StoredEntry,
    StoredEvent,
    Work,
    text,
)
from zart._engine.host import Registered
from zart._engine.lanes import lane_of
from zart._engine.pauses import NO_RULES
from zart._engine.scheduled import ScheduledStep
from zart.calls import DurableSpec, StepCall, StepSpec
from zart.errors import UsageError
from zart.telemetry.hub import hub

START: Final = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
"""When virtual time begins."""

Outcome = Completed | Failed | Cancelled | Blocked


class World:
    """What all activations of one `run` share: virtual time, which moves when every one of them waits."""

    def __init__(self, function: Callable[[StepCall, Key], Callable[..., Any]]) -> None:
        self.function = function
        """What to run for an attempt of a step."""
        self.slept = 0.0
        """Virtual seconds that went by."""
        self.loop = asyncio.get_running_loop()
        self.threads = anyio.CapacityLimiter(10)
        self.base_context: Context = copy_context()
        self.specs: dict[int, DurableSpec] = {}
        """Of children, by lane."""
        self.steps: list[StepSpec] = []
        """Of scheduled steps, by lane."""
        self.now = START
        self.due: list[_Due] = []
        self.hosts: list[Memory] = []
        self.waiting: dict[Memory, dt.datetime | None] = {}
        self.tasks: set[asyncio.Task[Any]] = set()

    def claim(self, id: str, run_id: uuid.UUID, payload: str | None, events: list[StoredEvent]) -> Claim:
        return Claim(
            task_id=1,
            execution_id=id,
            run_id=run_id,
            lane=0,
            epoch=1,
            registration=1,
            signal=0,
            attempt=1,
            floor=0,
            recoveries=0,
            due_at=self.now,
            started_at=self.now,
            not_before=None,
            cancel=None,
            payload=payload,
            entries=[],
            events=events,
            now=self.now,
        )

    async def run_body(self, claim: Claim, spec: DurableSpec, host: "Memory | None" = None) -> Outcome:
        """Run a body with its retries, and all the runs that it begins anew, to its outcome."""
        host = host or Memory(self)
        while True:
            claim = msgspec.structs.replace(claim, cancel=host.cancel)
            ending = await host.run(Activation(claim, spec, host))
            match ending:
                case Completed() | Failed() | Cancelled() | Blocked():
                    return ending
                case BodyRetry():
                    for attempt in ending.afresh:
                        host.journal.pop(attempt.key, None)
                    await host.until(ending.not_before)
                    claim = msgspec.structs.replace(
                        claim,
                        attempt=ending.attempt,
                        floor=ending.floor,
                        entries=list(host.journal.values()),
                        events=[event for event in claim.events if event.id not in host.consumed],
                    )
                case ContinuedAsNew():
                    host.begin_anew()
                    claim = msgspec.structs.replace(
                        claim,
                        run_id=uuid.uuid5(claim.run_id, "next"),
                        payload=text(ending.payload),
                        attempt=1,
                        floor=0,
                        due_at=self.now,
                        started_at=self.now,
                        done=0,
                        entries=[],
                        events=[event for event in claim.events if event.id not in host.consumed],
                    )
                case _:
                    raise AssertionError(f"the activation ended as {ending}")

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self.base_context.copy().run(self.loop.create_task, coroutine)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def close(self) -> None:
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    def wait(self, host: "Memory", due: dt.datetime | None) -> None:
        """One of them has nothing to do until then; when that is so of all, time moves."""
        self.waiting[host] = due
        if len(self.waiting) < len(self.hosts):
            return
        times = [time for time in self.waiting.values() if time is not None]
        if not times:
            self.hosts[0].stuck()
            return
        self.move(min(times))

    def move(self, when: dt.datetime) -> None:
        if when > self.now:
            self.slept += (when - self.now).total_seconds()
            self.now = when
        self.due = [item for item in self.due if item.callback is not None]
        for item in [item for item in self.due if item.when <= self.now]:
            item.ring()


class Memory:
    """A host without a database: the journal of one run is a dict."""

    max_inflight_steps = 256
    fresh = True
    rules = NO_RULES
    resources: tuple[object, ...] = ()
    transactions = None

    def __init__(self, world: World) -> None:
        self.world = world
        self.threads = world.threads
        self.base_context = world.base_context
        self.journal: dict[Key, StoredEntry] = {}
        self.consumed: set[int] = set()
        self.cancel: CancelRequest | None = None
        """What it was told before it began."""
        self._activation: Activation | None = None
        self._given: dict[Key, Memory] = {}
        self.ended_elsewhere = 0
        """How much of what was given away has ended."""
        self._end: asyncio.Future[Any] = world.loop.create_future()

    async def run(self, activation: Activation) -> Any:
        self._end = self.world.loop.create_future()
        self._activation = activation
        self.world.hosts.append(self)
        activation.start()
        try:
            return await self._end
        finally:
            self.world.hosts.remove(self)
            self.world.waiting.pop(self, None)

    async def until(self, when: dt.datetime) -> None:
        """Between two attempts of the body."""
        passed: asyncio.Future[None] = self.world.loop.create_future()
        self.call_at(when, lambda: passed.set_result(None))
        self.world.hosts.append(self)
        self.world.wait(self, when)
        try:
            await passed
        finally:
            self.world.hosts.remove(self)

    def begin_anew(self) -> None:
        """The next run has a journal of its own; what the last one has given away concerns it no more."""
        self.journal = {}
        self._given = {}
        self.ended_elsewhere = 0

    def stuck(self) -> None:
        activation = self._activation
        assert activation is not None  # noqa: S101 (it runs)
        if not self._end.done():
            self._end.set_exception(
                UsageError(
                    f"the body waits for {activation.waits} for ever: zart.testing.run(…, events={{…}}) has "
                    "nothing for it"
                )
            )
        activation.lose()

    # ------------------------------------------------------------ the host of the activation

    def now(self) -> dt.datetime:
        return self.world.now

    def function(self, call: StepCall, key: Key) -> Callable[..., Any]:
        self._busy()
        return self.world.function(call, key)

    def call_at(self, when: dt.datetime, callback: Callable[[], None], /) -> Cancellable:
        def ring() -> None:
            self._busy()
            callback()

        due = _Due(when, ring)
        if when <= self.world.now:
            self.world.loop.call_soon(due.ring, context=self.base_context)
        else:
            self.world.due.append(due)
        return due

    def registered(self, claim: Claim, call: StepCall, /) -> Registered:  # noqa: ARG002
        self.world.steps.append(call.spec)
        return Registered(call.spec, len(self.world.steps) - 1)

    def queue(self, claim: Claim, /) -> str:  # noqa: ARG002
        return "default"

    def lane(self, spec: DurableSpec, /) -> int:
        lane = lane_of(spec.queue, spec.name, spec.version)
        self.world.specs[lane] = spec
        return lane

    def write(self, entry: Entry, /) -> None:
        self._busy()
        if entry.numbers:
            self.journal[entry.key] = msgspec.structs.replace(self.journal[entry.key], seq=entry.seq)
        elif entry.seq is not None or entry.key not in self.journal:
            self.journal[entry.key] = StoredEntry(
                key=entry.key,
                seq=entry.seq,
                state=entry.state,
                digest=entry.digest,
                result=text(entry.result),
                failure=text(entry.failure),
                attempts=entry.attempts,
                started_at=entry.started_at,
                finished_at=entry.finished_at,
                until=entry.until,
                progress=text(entry.progress),
                data=text(entry.data),
                given_away=entry.work is not None,
            )
        if entry.event_id is not None:
            self.consumed.add(entry.event_id)
        if entry.done is not None:
            self.world.loop.call_soon(entry.done, entry, None)
        if entry.work is not None:
            self._give(entry, entry.work)
        self._send(entry.orders)

    def start_child(self, entry: Entry, done: Callable[[Entry, Exception | None], None], /) -> None:
        entry.done = done
        self.write(entry)

    def end(self, change: Change, /) -> None:
        self._send(change.orders)
        if hub.listening and self._activation is not None:
            telling.over(self._activation, change.ending)
        if not self._end.done():
            self._end.set_result(change.ending)

    def suspends(self, activation: Activation, due: dt.datetime | None, /) -> bool:  # noqa: ARG002
        """Never: time moves instead."""
        self.world.wait(self, due)
        return False

    def keeps_dormant(self, activation: Activation, /) -> bool:  # noqa: ARG002
        return False

    def forgets(self, activation: Activation, /) -> None:
        pass

    def sleeps(self, activation: Activation, /) -> None:
        pass

    def holds_back(self, activation: Activation, /) -> bool:  # noqa: ARG002
        return False

    def goes_on(self, activation: Activation, /) -> None:  # noqa: ARG002
        self._busy()

    def rests(self, activation: Activation, /) -> None:
        """What waits for a queue or a lock of its own waits for time to move, too."""
        if all(parking.only_in_memory(task, activation.tasks) for task in activation.tasks):
            self.world.wait(self, activation.alarms.due)

    def ended(self, activation: Activation, /) -> None:
        pass

    def _busy(self) -> None:
        self.world.waiting.pop(self, None)

    # ------------------------------------------------------------ what is given away

    def _give(self, entry: Entry, work: Work) -> None:
        assert self._activation is not None  # noqa: S101 (it gives)
        claim = self._activation.claim
        host = self._given[entry.key] = Memory(self.world)
        if isinstance(work, StepWork):
            given = self.world.claim(claim.execution_id, claim.run_id, work.input.decode(), [])
            given = msgspec.structs.replace(given, step=entry.key)
            self.world.spawn(self._run_step(given, work.function, self.world.steps[work.lane], host))
            return
        begun = self.world.claim(work.id, work.run_id, text(work.payload), [])
        self.world.spawn(self._run_child(entry.key, begun, work.lane, host))

    async def _run_step(self, claim: Claim, name: str, step: StepSpec, host: "Memory") -> None:
        journal = self.journal
        claim = msgspec.structs.replace(claim, cancel=host.cancel)
        ending = await host.run(ScheduledStep(claim, name, step, host))
        if journal is self.journal:
            self._arrive(ending.key, ending.state, ending.result, ending.failure, ending.attempts)

    async def _run_child(self, key: Key, claim: Claim, lane: int, host: "Memory") -> None:
        journal = self.journal
        ending = await self.world.run_body(claim, self.world.specs[lane], host)
        if journal is not self.journal:
            return  # the body that gave it away has begun anew
        match ending:
            case Completed():
                self._arrive(key, "completed", ending.result, None, 1)
            case Cancelled():
                self._arrive(key, "cancelled", None, ending.failure, 1)
            case _:
                self._arrive(key, "failed", None, ending.failure, 1)

    def _arrive(
        self, key: Key, state: EntryState, result: bytes | None, failure: bytes | None, attempts: int
    ) -> None:
        self._busy()
        self.ended_elsewhere += 1
        arrived = self.journal[key] = msgspec.structs.replace(
            self.journal[key],
            state=state,
            result=text(result),
            failure=text(failure),
            attempts=attempts,
            finished_at=self.world.now,
        )
        if self._activation is not None:
            self._activation.news(0, [], None, self.ended_elsewhere, [arrived])

    def _send(self, orders: tuple[Order, ...]) -> None:
        for order in orders:
            host = self._given.get(order.key)
            if host is not None:
                host.tell(CancelRequest(order.reason, order.author))

    def tell(self, cancel: CancelRequest) -> None:
        """Somebody wants it cancelled."""
        self._busy()
        self.cancel = self.cancel or cancel
        if self._activation is not None:
            self._activation.news(0, [], cancel)


class _Due:
    def __init__(self, when: dt.datetime, callback: Callable[[], None]) -> None:
        self.when = when
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None

    def ring(self) -> None:
        callback, self.callback = self.callback, None
        if callback is not None:
            callback()
