"""One worker's hold on one execution: from its claim until its ending.

A body is ordinary code. What makes it durable is that everything it can observe is an entry of one ordered log, and
that entries reach it one at a time, each after it has come to rest, live and at a replay, in the same order:

    replay   calls ask the log and wait; whenever the body rests, the entry whose turn it is goes to whoever asked.
             At the log's end the activation goes live (`replay.py`).
    live     steps run inline in the tasks that called them; what comes of them, of waits and of a cancel is written,
             and delivered after its commit, in the order of writing (`recording.py`).

The body *rests* when nothing but the engine, the network or another process can make it go on (`rest.py`). Then this
does the first of these that there is to do (`_at_rest`): deliver, end with an outcome that has waited, suspend.

At rest and with nothing under way the body may be *parked* (`parking.py`). Then the host decides whether to hold it, to
suspend it, or to suspend it and keep it *dormant* (`suspending.py`). A suspension closes the activation, so that each
durable call raises `Suspended`, and what the body's tasks wait for is settled with that (`unwinding.py`). The ending is
written at once; it is the last thing an activation writes, and nothing that the body does while it unwinds can change
it. When the fence is gone, or another activation has taken over, the body is unwound the same way and nothing more is
written.

Here is what an activation is: its state, the body's tasks, what the host tells it, and its end. What a body may ask for
beyond that is in its parts, one file each; `branch.py` is where its calls come in.
"""

import asyncio
import datetime as dt
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec

from zart._engine import endings, telling
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
    Failed,
    Key,
    Record,
    Released,
    StoredEntry,
    StoredEvent,
)
from zart._engine.host import Host
from zart._engine.lineage import library_of
from zart._engine.parts import Part
from zart._engine.pauses import Holds
from zart._engine.points import reach
from zart._engine.recording import Recording
from zart._engine.repairs import Repair
from zart._engine.replay import Replay
from zart._engine.rest import Rest
from zart._engine.sagas import Sagas
from zart._engine.steps import Steps
from zart._engine.suspending import suspend_if_parked
from zart._engine.unwinding import Unwinding
from zart.calls import DurableSpec
from zart.context import place
from zart.errors import PayloadError, SerializationError
from zart.telemetry.hub import hub
from zart.telemetry.logs import about

E = TypeVar("E", bound=BaseException)

_log = logging.getLogger("zart.worker")


class Activation(Recording):
    """See the module."""

    __slots__ = (
        "_outcome",
        "anyio_deadlines",
        "blamed",
        "data",
        "dormant",
        "ending",
        "fired",
        "gives_way",
        "held_up",
        "late",
        "lost",
        "notes",
        "own_library",
        "repair",
        "replaying",
        "resting",
        "root",
        "signal",
        "spec",
        "told",
    )

    alarms = Part(lambda activation: Alarms(activation.host, closed=activation.closed))
    cancels = Part(endings.Cancels)
    delegated = Part(Delegated)
    holds = Part(Holds)
    phase = Part(endings.Phase)
    replay = Part(Replay)
    rest = Part(Rest)
    sagas = Part(Sagas)
    steps = Part(Steps)
    unwinding = Part(Unwinding)

    def __init__(self, claim: Claim, spec: DurableSpec, host: Host) -> None:
        super().__init__(claim, host)
        self.spec = spec
        self.signal = claim.signal
        self.data: bytes | None = None
        self.replaying = True
        self.lost = False
        self.resting = False
        self.dormant: Change | None = None
        """The suspension with which it went to sleep, while it is kept beyond that."""
        self.anyio_deadlines = False
        self.own_library = library_of(spec.fn.__code__.co_filename)
        self.root: asyncio.Task[Any] | None = None
        self.ending: Ending | None = None
        self.notes: list[tuple[str, str]] = []
        self.blamed: dict[int, tuple[BaseException, Record]] = {}
        """Exceptions that records have raised in the body, by identity."""
        self.fired: list[tuple[Key, int]] = []
        """Time limits that have passed, and the number of the last entry that was heard then."""
        self.late: deque[StoredEntry] | None = None
        """What was asked for after its turn (see `replay`): here, since each delivery must look first."""
        self.held_up = 0
        """How many tasks wait for something of this process (see `step_waits`)."""
        self.repair: Repair | None = None
        """What a person wants done again: it is met at the end of the log."""
        self.gives_way = False
        """It is to be given back at its next record."""
        self.told: telling.Told | None = None
        """What telemetry has been told of it."""
        self._outcome: Completed | Failed | Cancelled | None = None

    # ------------------------------------------------------------ the body

    def start(self) -> None:
        """Run the body. A payload that does not fit ends the execution as failed."""
        if hub.listening:
            telling.claimed(self)
        if self.log.damage is not None:
            self.block(self.log.damage, "misfit")
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
            self.replay.end()
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

    def current_branch(self) -> Branch | None:
        """The branch of this body that runs now."""
        here = place.get()
        return here if isinstance(here, Branch) and here.activation is self else None

    def raised(self, error: E, record: Record) -> E:
        """Remember which record raised an exception in the body: if it leaves the body, that one is tried afresh."""
        self.blamed[id(error)] = (error, record)
        return error

    # ------------------------------------------------------------ what the host tells it, and asks

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
        self.end_at_last()

    def give_way(self) -> None:
        """Give the execution back, as soon as no step and no record of it is under way, or at its next record."""
        self.gives_way = True
        if not self.closed and not self.steps.tasks and not self._inflight:
            self.release()

    def reconsider_rules(self) -> None:
        """The rules that hold steps back have changed, or hold nothing of this back any more."""
        if "holds" in self.made:
            self.holds.reconsider()

    def tick(self, now: dt.datetime) -> None:
        """Once a second: show what takes long, and write the deadlines that are not written yet."""
        if not self.closed:
            self.steps.show_long(now)
            if not self.replaying:
                self.save_waits()
                if "alarms" in self.made:
                    self.alarms.ring()

    @property
    def suspect(self) -> bool:
        """It was taken over more than once, and neither has recorded anything since nor lived for a second."""
        return self.outgoing.suspect and not self.lost

    @property
    def done(self) -> int:
        """How much of what it gave away was seen to have ended."""
        return self.delegated.done if "delegated" in self.made else self.claim.done

    @property
    def has_given_away(self) -> bool:
        """Whether this activation, or one before it, has given anything away."""
        return "delegated" in self.made or bool(self.claim.entries)

    # ------------------------------------------------------------ rest

    def busy(self) -> None:
        """The body is about to do something live."""
        self.rest.happens()
        if self.resting:
            self.resting = False
            self.host.goes_on(self)

    def stir(self) -> None:
        """Something may be there to deliver, or the body may be parked: look once it is at rest."""
        self.rest.stir()

    @property
    def nothing_to_look_for(self) -> bool:
        """A step or a commit is under way and nothing waits for its turn: what comes of it will stir again."""
        if self.replaying or self._outbox or self.late:
            return False
        if self._inflight or self.steps.tasks or self.held_up:
            return True
        return self.has_given_away and self.delegated.unsure

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
        if self.late:
            self.replay.give_turn(self.late.popleft())
        elif self.replaying:
            self.replay.go_on()
        elif self._outbox:
            self._deliver_next()
        elif self.end_at_last() or suspend_if_parked(self):
            pass
        elif not (self.resting or self.closed or self.nothing_to_look_for):
            self.resting = True
            self.host.rests(self)

    # ------------------------------------------------------------ the outcome may have to wait

    @property
    def is_over(self) -> bool:
        """The body has ended; what it has given away has not."""
        return self._outcome is not None

    def reconsider(self) -> None:
        """A cancel, or the end of the time limit, has come. While the outcome waited: it counts."""
        self.reconsider_rules()
        if self._outcome is not None and self.root is not None:
            self._outcome = None
            self.over(self.root)

    def end_at_last(self) -> bool:
        """End with the outcome that has waited, if nothing is left to wait for; whether it did."""
        if self._outcome is None or self._outlived:
            return False
        self.end(self._outcome)
        return True

    @property
    def _outlived(self) -> bool:
        """Whether something is to come before the outcome: the end of what was given away, or a recorded cancel."""
        unfinished = self.has_given_away and self.delegated.unfinished
        return unfinished or (self.replaying and self.log.brings_cancel)

    # ------------------------------------------------------------ the end

    def release(self) -> None:
        """Give the execution back for another worker to go on."""
        reach("release.begin")
        self.end(Released())

    def block(self, error: Exception, what: str = "error") -> None:
        """Hold the execution until somebody has looked at it: nothing is lost."""
        self.end(endings.blocked(error, what))

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
            self.save_answers()
        if not self.replaying:
            self.save_waits()
        change = self.change(ending, self._ended)
        self._close()
        self.outgoing.end(change)
        self._dissolve()

    def change(self, ending: Ending, done: Callable[[Change, Exception | None], None]) -> Change:
        """The record of an ending; `done` is told the verdict on it."""
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
            orders=self.outgoing.take_orders(),
        )

    def _ended(self, change: Change, error: Exception | None) -> None:
        if isinstance(error, SerializationError):
            self.ending = self.refused(error)
            retry = msgspec.structs.replace(change, ending=self.ending, token=0, done=self._ended)
            self.host.end(retry)
            return
        self.outgoing.ended(error)
        if error is not None:
            self.lost = True
        if hub.listening:
            telling.over(self, self.ending if error is None else None)
        reach("ending.acknowledged")
        self.host.ended(self)

    def refused(self, error: SerializationError) -> Ending:
        """What to end with instead: the database does not take what was to be written."""
        return self.phase.refused(error)

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

    def _close(self) -> None:
        """From here on each durable call raises `Suspended`, and what the body's tasks wait for is settled with it."""
        if self.closed:
            return
        self.closed = True
        if "alarms" in self.made:
            self.alarms.close()
        if "replay" in self.made:
            self.replay.close()
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
