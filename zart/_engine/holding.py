"""What one registration of a worker holds: its activations, its journal, its slots.

It is the host of the activations. Everything that it holds was claimed under one worker id, and everything that it
writes is fenced by that id's rows; when they are gone, all of it is dropped in memory, and the worker registers anew
with another of these.
"""

import asyncio
import datetime as dt
import logging
from collections.abc import Callable, Mapping
from contextvars import Context
from typing import Any, Final
from uuid import UUID

import anyio
import msgspec

from zart._engine import endings, telling
from zart._engine.activation import Activation
from zart._engine.alarms import Cancellable
from zart._engine.claimer import News
from zart._engine.clock import DatabaseClock
from zart._engine.decrypting import decrypted_claim, decrypted_entries, decrypted_events, set_aside
from zart._engine.entries import Change, Claim, Ending, Entry, Key, Paused, Released
from zart._engine.entries import Suspended as SuspendedEnding
from zart._engine.histories import Kept
from zart._engine.host import Registered
from zart._engine.lanes import lane_of, step_lane
from zart._engine.named_children import NamedChildren
from zart._engine.pauses import Rules
from zart._engine.points import reach
from zart._engine.scheduled import ScheduledStep
from zart._engine.suspending import is_continued_by, wake
from zart._engine.transactions import Connected
from zart._engine.writer import Journal
from zart.calls import DurableSpec, StepCall
from zart.encryption import PLAIN, Payloads
from zart.errors import PayloadUnreadable, UsageError, ZartError
from zart.registry import Registry
from zart.step import Step
from zart.telemetry.hub import Load, hub
from zart.telemetry.logs import about

_log = logging.getLogger("zart.worker")

STAYS_FOR: Final = dt.timedelta(milliseconds=500)
"""A body whose wait is over within this time stays in memory."""
_LAST_WORDS_WITHIN: Final = 2.0
"""Seconds for the last records at a shutdown, at least."""
_LOOKS_EVERY: Final = 0.02
_UNWINDS_WITHIN: Final = 1.0
"""Seconds for the cleanup of bodies and steps that were given back."""


class Shared(msgspec.Struct, kw_only=True, frozen=True):
    """What all registrations of one worker have in common."""

    functions: Mapping[int, DurableSpec]
    """The durable functions by lane."""
    steps: Mapping[int, Step[..., Any]]
    """The steps that are registered, by lane."""
    queues: Mapping[int, str]
    """The queue of each lane."""
    registry: Registry
    threads: anyio.CapacityLimiter
    resources: tuple[object, ...]
    base_context: Context
    max_inflight_steps: int
    max_concurrent_tasks: int
    max_recoveries: int
    max_parked_bodies: int
    always_suspend: bool = False
    """For tests: each record that is committed is replayed instead of being delivered."""
    payloads: Payloads = PLAIN
    """Encrypts and decrypts what is a user's."""


class Holding:
    """The host of the activations of one registration."""

    def __init__(
        self,
        shared: Shared,
        clock: DatabaseClock,
        journal: Journal,
        named_children: NamedChildren,
        *,
        fresh: Callable[[], bool],
        on_free: Callable[[], None],
        transactions: Connected | None = None,
        rules: Rules,
    ) -> None:
        self._shared = shared
        self.rules = rules
        """What people hold back."""
        rules.on_change = self._on_rules
        self.transactions = transactions
        """Where steps have their transactions."""
        self._fresh = fresh
        self._clock = clock
        self._journal = journal
        self._named_children = named_children
        self._on_free = on_free
        self._loop = asyncio.get_running_loop()
        self._held: dict[int, Activation] = {}
        self._suspect: Activation | None = None
        """The last suspect that was claimed, held or already suspended again."""
        self._resting: set[int] = set()
        self._dormant: dict[int, Activation] = {}
        """What is suspended and kept in memory, by task; what was used last stands last."""
        self._expected: set[int] = set()
        """Those of them that are claimed, and not handed out so far."""
        self._empty = asyncio.Event()
        self._empty.set()
        self.stopping = False
        """No step is started any more: each execution is given back at its next record."""

    # ------------------------------------------------------------ what is held

    @property
    def free(self) -> int:
        """How many more executions may run. One that only waits takes no slot."""
        return self._shared.max_concurrent_tasks - len(self._held) + len(self._resting)

    @property
    def takes_suspect(self) -> bool:
        """At most one execution whose workers died before it recorded anything is held at a time.

        One that is suspended, with nothing of it committed so far, counts: it would be taken over with the next.
        """
        return self._suspect is None or not self._suspect.suspect

    def load(self) -> Load:
        """How full it is, for metrics."""
        return Load(
            slots=self._shared.max_concurrent_tasks,
            held=len(self._held),
            waiting=len(self._resting),
            parked=len(self._dormant),
        )

    def watched(self) -> list[tuple[int, int, int, int]]:
        return [
            (task, held.claim.epoch, held.signal, held.done)
            for task, held in self._held.items()
            if not held.closed
        ]

    def take(self, claim: Claim) -> None:
        """Run an execution that was claimed."""
        reach("claim.handed-out")
        try:
            claim = decrypted_claim(claim, self._shared.payloads)
        except PayloadUnreadable as error:
            self._set_aside(claim, error)
            return
        dormant = self._dormant.pop(claim.task_id, None)
        self._expected.discard(claim.task_id)
        paused = self._paused(claim) if self.rules.any else None
        if claim.kept and dormant is not None and paused is None and claim.repair is None:
            self._clock.set(claim.now)  # what it sleeps for may be over by that
            self._hold(claim, dormant)
            self._begin(dormant, lambda: wake(dormant, claim))
            return
        if dormant is not None:
            dormant.forget()
        if paused is not None:
            self._journal.end(_never_begun(claim, paused))
            return
        if claim.kept:  # it has moved meanwhile, or is to be repaired: the next claim loads its history
            self._journal.end(_never_begun(claim, Released()))
            return
        exhausted = claim.recoveries > self._shared.max_recoveries
        if exhausted and claim.step is None:
            self._block(claim)
            return
        activation = self._activation(claim)
        self._hold(claim, activation)
        if exhausted:
            activation.block(_crash_loop(f"scheduled step {claim.step} of {claim.execution_id!r}", claim))
        else:
            self._begin(activation, activation.start)

    def _paused(self, claim: Claim) -> Paused | None:
        """How a claim ends at once that a rule holds back: it was taken before the rule was known, or was let go by
        something else than the end of the rule. A scheduled step is asked about before its attempt."""
        if claim.step is not None or claim.cancel is not None:
            return None
        rule = self.rules.covering(claim.execution_id, self._shared.functions[claim.lane].name)
        return None if rule is None else Paused(rule=rule.id)

    def _on_rules(self) -> None:
        for activation in list(self._held.values()):
            activation.reconsider_rules()

    def _hold(self, claim: Claim, activation: Activation) -> None:
        self._held[claim.task_id] = activation
        self._resting.discard(claim.task_id)  # of a hold that has ended and has not heard of it yet
        self._empty.clear()
        if claim.is_suspect:
            self._suspect = activation

    def _begin(self, activation: Activation, begin: Callable[[], None]) -> None:
        try:
            begin()
        except Exception as error:  # noqa: BLE001 (one execution is held; the worker and all others go on)
            told = activation.claim.execution_id
            _log.exception("execution %s cannot be run", told, extra=about(told))
            activation.block(error)

    def _activation(self, claim: Claim) -> Activation:
        if claim.step is None:
            return Activation(claim, self._shared.functions[claim.lane], self)
        step = self._shared.steps[claim.lane]
        return ScheduledStep(claim, step.name, step.spec, self)

    def keeps(self, task: int, run_id: UUID, epoch: int) -> Kept | None:
        """What the body has seen which is kept here and goes on with such a claim; None: there is none.

        It is kept until that claim is handed out.
        """
        dormant = self._dormant.get(task)
        if dormant is None:
            return None
        if not is_continued_by(dormant, run_id, epoch):
            dormant.forget()  # somebody else has held it in between
            return None
        self._expected.add(task)
        return Kept(dormant.signal, dormant.done)

    def tell(self, news: News, epoch: int) -> None:
        """News of what was held under `epoch` when they were asked for."""
        activation = self._held.get(news.task_id)
        if activation is None or activation.claim.epoch != epoch:
            return
        if news.lost:
            activation.lose()
            return
        claim, payloads = activation.claim, self._shared.payloads
        try:
            # A scheduled step is told of its execution's events, too, and has nothing to do with them.
            events = decrypted_events(news.events if claim.step is None else [], claim.execution_id, payloads)
            arrived = decrypted_entries(news.arrived, claim.execution_id, payloads)
        except PayloadUnreadable as error:
            activation.block(error, "unreadable")
            return
        activation.news(news.signal, events, news.cancel, news.done, arrived, repair=news.repair)

    def tick(self) -> None:
        """Once a second."""
        now = self.now()
        for activation in list(self._held.values()):
            activation.tick(now)

    def lose_all(self) -> None:
        """The registration is gone."""
        if self._held:
            _log.warning(
                "%d executions go on elsewhere; what this worker still does for them is not recorded",
                len(self._held),
            )
        for activation in list(self._held.values()):
            activation.lose()
        self._forget_all()

    async def drain(self, limit: float) -> None:
        """Let the running steps finish for `limit` seconds, then give everything back.

        Bounded even when the database is away: what cannot be written then goes on elsewhere when the lease ends.
        """
        self.stopping = True
        held = [*self._held.values(), *self._dormant.values()]
        self._forget_all()
        for task in list(self._resting):
            self._held[task].release()
        try:
            async with asyncio.timeout(limit):
                await self._empty.wait()
        except TimeoutError:
            self._warn_of_those_left(
                "%d executions did not come to a step's end in time and are given back: %s"
            )
            for activation in list(self._held.values()):
                if activation.steps.may_be_interrupted:
                    activation.release()
            await self._last_steps()
        try:
            async with asyncio.timeout(max(limit, _LAST_WORDS_WITHIN)):
                await self._journal.drain()
        except TimeoutError:
            _log.warning(
                "the database did not take the last records; others go on when this worker's lease ends"
            )
        unwinding = [task for activation in held for task in activation.tasks]
        if unwinding:
            await asyncio.wait(unwinding, timeout=_UNWINDS_WITHIN)

    def _forget_all(self) -> None:
        self._expected.clear()
        for dormant in list(self._dormant.values()):
            dormant.forget()

    async def _last_steps(self) -> None:
        """Steps that run at most once are waited for, however long they take: nobody could run them again."""
        self._warn_of_those_left(
            "%d executions are in a step that runs at most once, and this worker waits for it: %s"
        )
        while any(not held.closed for held in self._held.values()):  # noqa: ASYNC110 (it ends in several places)
            await asyncio.sleep(_LOOKS_EVERY)

    def _warn_of_those_left(self, told: str) -> None:
        left = [held.claim.execution_id for held in self._held.values() if not held.closed]
        if left:
            _log.warning(told, len(left), ", ".join(left[:5]) + (", …" if len(left) > 5 else ""))

    def _set_aside(self, claim: Claim, error: PayloadUnreadable) -> None:
        """Its values cannot be decrypted: nothing of it is run."""
        dormant = self._dormant.pop(claim.task_id, None)
        self._expected.discard(claim.task_id)
        if dormant is not None:
            dormant.forget()
        _log.error("execution %s is set aside: %s", claim.execution_id, error)
        self._journal.end(_never_begun(claim, set_aside(claim, error, self.now())))

    def _block(self, claim: Claim) -> None:
        error = _crash_loop(f"execution {claim.execution_id!r}", claim)
        blocked = endings.blocked(error, "crash-loop")
        self._journal.end(_never_begun(claim, blocked))
        if hub.listening:
            spec = self._shared.functions[claim.lane]
            telling.never_begun(claim, spec, self.queue(claim), blocked)
        _log.error("%s", error, extra=about(claim.execution_id))

    # ------------------------------------------------------------ the host of the activations

    @property
    def max_inflight_steps(self) -> int:
        return self._shared.max_inflight_steps

    @property
    def threads(self) -> anyio.CapacityLimiter:
        return self._shared.threads

    @property
    def resources(self) -> tuple[object, ...]:
        return self._shared.resources

    @property
    def fresh(self) -> bool:
        return self._fresh()

    @property
    def base_context(self) -> Context:
        return self._shared.base_context

    def now(self) -> dt.datetime:
        return self._clock.now()

    def call_at(self, when: dt.datetime, callback: Callable[[], None], /) -> Cancellable:
        delay = (when - self._clock.now()).total_seconds()
        return self._loop.call_later(max(delay, 0), callback, context=self._shared.base_context)

    def function(self, call: StepCall, key: Key, /) -> Callable[..., Any]:  # noqa: ARG002
        return call.spec.fn

    def registered(self, claim: Claim, call: StepCall, /) -> Registered:
        step = self._shared.registry.steps.get(call.template)
        if step is None or step.fn is not call.spec.fn:
            raise UsageError(
                f"execution {claim.execution_id!r}: the step {call.template!r} is scheduled, but it is not registered, "
                "so that no other worker would find it. Decorate a function of a module with @step, and give it to the "
                "Registry or keep it in the module of a durable function; what is made on the spot is called inline"
            )
        return Registered(step.spec, step_lane(self._shared.queues[claim.lane], step.name))

    def queue(self, claim: Claim, /) -> str:
        return self._shared.queues[claim.lane]

    def lane(self, spec: DurableSpec, /) -> int:
        return lane_of(spec.queue, spec.name, spec.version)

    def start_child(self, entry: Entry, done: Callable[[Entry, Exception | None], None], /) -> None:
        # Not in the context of the body that starts it: its pauses are no time limits of that body.
        self.base_context.copy().run(self._named_children.start, entry, done)

    def write(self, entry: Entry, /) -> None:
        self._journal.write(entry)

    def end(self, change: Change, /) -> None:
        self._journal.end(change)

    def suspends(self, activation: Activation, due: dt.datetime | None, /) -> bool:  # noqa: ARG002
        # What is due now is never suspended, in any mode: it would be claimed again and again without a new record.
        stays_for = dt.timedelta() if self._shared.always_suspend else STAYS_FOR
        return due is None or due - self._clock.now() > stays_for

    def keeps_dormant(self, activation: Activation, /) -> bool:
        most = self._shared.max_parked_bodies
        if self.stopping or self._shared.always_suspend or not most or activation.claim.step is not None:
            return False
        if len(self._dormant) >= most:
            oldest = next((task for task in self._dormant if task not in self._expected), None)
            if oldest is None:
                return False
            self._dormant[oldest].forget()
        self._let_go(activation)
        self._dormant[activation.claim.task_id] = activation
        return True

    def forgets(self, activation: Activation, /) -> None:
        task = activation.claim.task_id
        if self._dormant.get(task) is activation:
            del self._dormant[task]

    def sleeps(self, activation: Activation, /) -> None:
        change = activation.dormant
        if change is not None and isinstance(change.ending, SuspendedEnding):
            self._say_what_for(change.execution_id, change.ending)

    def holds_back(self, activation: Activation, /) -> bool:
        gives_back = self.stopping or self._shared.always_suspend or activation.gives_way
        return gives_back and activation.steps.may_be_interrupted

    def rests(self, activation: Activation, /) -> None:
        task = activation.claim.task_id
        if self.stopping or activation.gives_way:
            activation.release()
        elif self._held.get(task) is activation:
            self._resting.add(task)
            self._on_free()

    def goes_on(self, activation: Activation, /) -> None:
        self._resting.discard(activation.claim.task_id)

    def ended(self, activation: Activation, /) -> None:
        if isinstance(activation.ending, SuspendedEnding) and not activation.lost:
            self._say_what_for(activation.claim.execution_id, activation.ending)
        elif isinstance(activation.ending, Paused) and not activation.lost:
            _log.info("%s is paused by rule %s", activation.claim.execution_id, activation.ending.rule)
        self._let_go(activation)

    def _let_go(self, activation: Activation) -> None:
        task = activation.claim.task_id
        if self._held.get(task) is activation:
            del self._held[task]
            self._resting.discard(task)
            if not self._held:
                self._empty.set()
            self._on_free()

    def _say_what_for(self, execution_id: str, ending: SuspendedEnding) -> None:
        waiting_for = ending.waiting_for or "its next attempt"
        _log.info("%s waits for %s", execution_id, waiting_for, extra=about(execution_id))


def _never_begun(claim: Claim, ending: Ending) -> Change:
    """The ending of a claim for which nothing was run."""
    return Change(
        task_id=claim.task_id,
        execution_id=claim.execution_id,
        run_id=claim.run_id,
        epoch=claim.epoch,
        ending=ending,
        done=None,
    )


def _crash_loop(what: str, claim: Claim) -> ZartError:
    return ZartError(
        f"{what} was taken over {claim.recoveries} times in a row without recording anything new: it seems to end the "
        "process that runs it. Look at the workers' logs, mend it, then resume it"
    )
