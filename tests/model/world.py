"""What the tables should hold: executions, their tasks, journals and events, in plain Python.

Each method is one statement of the engine, of the client or of the SQL functions. It says what that statement answers
and changes this world as the statement changes the tables. Nothing here knows of connections, locks or snapshots: a
statement happens all at once. Time is a number of seconds.

A *hold* is what a worker believes that it has. It may be wrong: the worker was taken for dead, or the execution was
ended by force. What such a worker writes is refused, and the world says where.
"""

import copy
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any

FINAL = ("completed", "failed", "cancelled")
Key = tuple[str, int, str]
"""Name, occurrence and kind of a record."""


def told(key: Key) -> str:
    """A key as it is shown to people, and given back by them."""
    name, occurrence, _ = key
    return name if occurrence == 1 else f"{name}#{occurrence}"


@dataclass
class Task:
    state: str
    due_at: int
    wake_at: int | None
    number: int = 0
    """What it is told from other live work by."""
    started_at: int | None = None
    not_before: int | None = None
    owner: str | None = None
    epoch: int = 0
    signal: int = 0
    attempt: int = 1
    floor: int = 0
    recoveries: int = 0
    accepts: bool = False
    cancel: str | None = None
    repair: tuple[Key, ...] = ()
    """The records that somebody wants done again."""
    seen: frozenset[float] = frozenset()
    """The events that the body which is parked knew of."""
    paused_by: str | None = None
    """Of one that is paused: the rule."""

    @property
    def unstarted(self) -> bool:
        return self.started_at is None or self.state == "blocked"


@dataclass
class Record:
    state: str
    seq: int | None
    attempts: int


@dataclass
class Event:
    number: float
    """Its place among all events; that of one that had to wait lies between two others."""
    name: str
    dedup: str | None
    consumed: bool = False


@dataclass(eq=False)
class Run:
    """What is recorded of one run. Whoever holds it goes on writing there when another one was begun."""

    label: str
    payload: int
    """Its input."""
    attempt: int = 1
    """Of the body, as it was at the run's end."""
    records: dict[Key, Record] = field(default_factory=dict)
    attempts: int = 0
    ended: tuple[str, bool, bool] | None = None
    """How it stood when it gave way to another one: its status, whether it had a result, whether a failure."""


@dataclass
class Execution:
    number: int
    payload: int
    """What it was started with."""
    task: Task | None
    runs: list[Run]
    last: int
    """The number of the live work that it has, or had last."""
    status: str = "scheduled"
    started_at: int | None = None
    has_failure: bool = False
    events: list[Event] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)

    @property
    def run(self) -> Run:
        return self.runs[-1]

    @property
    def records(self) -> dict[Key, Record]:
        return self.run.records

    def buffered(self) -> list[float]:
        return [event.number for event in self.events if not event.consumed]

    def known_key(self, dedup: str | None) -> bool:
        return dedup is not None and any(event.dedup == dedup for event in self.events)


@dataclass
class Hold:
    task: int
    """The number of the live work that it took: after a repair there may be another one."""
    run: Run
    epoch: int
    signal: int
    seq: int
    known: list[float]
    """Numbers of the events that it knows, consumed or not."""
    clears: bool
    """Its next record ends the count of recoveries."""
    cancelled: bool = False
    claimed: int = 0
    """The signal when it was claimed."""
    repair: tuple[Key, ...] = ()
    """What somebody wanted done again by then."""


@dataclass
class Rule:
    """What holds back an execution (`id`), or all of them; or, as a rule by steps, what comes to such a step."""

    id: str | None
    step: bool
    expires_at: int | None

    def is_over(self, now: int) -> bool:
        return self.expires_at is not None and self.expires_at <= now


@dataclass
class Worker:
    changes: int | None = None
    """How often the rules had changed when it read them last."""
    closed: bool = False
    """It knows of a rule over all executions."""
    next_end: int | None = None
    """When the first rule that it knows expires."""
    frees: bool = False
    """There may be something to let go that was paused for rules which are gone."""
    registered: bool = True
    expired: bool = False
    stopped: bool = False
    """Its journal has noticed that the registration is gone."""
    holds: dict[str, Hold] = field(default_factory=dict)


@dataclass
class Wakeup:
    number: int
    execution: str
    kind: str
    reason: str | None = None
    task: int = 0
    """The number of the live work that it is for."""


class World:
    def __init__(self) -> None:
        self.now = 0
        self.executions: dict[str, Execution] = {}
        self.workers: dict[str, Worker] = {}
        self.wakeups: list[Wakeup] = []
        self.rules: dict[str, Rule] = {}
        self.changes = 0
        self.strays: list[Run] = []
        """Runs of executions that were deleted: a worker that was not told may still write there."""
        self.deleted: dict[str, Counter[str]] = {}
        """What is still told of executions that were deleted."""
        self.begun: Counter[str] = Counter()
        """How many runs were begun under an id."""
        self.numbers = 0
        self.open: list[Callable[[World], None]] | None = None
        """What a transaction that somebody holds open will have done once it commits."""
        self.open_ids: set[str] = set()
        self.open_keys: set[tuple[str, str]] = set()

    def copy(self) -> "World":
        return copy.deepcopy(self)

    def number(self) -> int:
        self.numbers += 1
        return self.numbers

    def task(self, id: str) -> Task | None:
        execution = self.executions.get(id)
        return execution.task if execution is not None else None

    # ------------------------------------------------------------ from outside

    def start(self, id: str, payload: int, delay: int, existing: str = "raise") -> str:
        """`delay` in seconds; 0 is at once."""
        found = self.executions.get(id)
        if found is None:
            self._add(id, payload, self.now + delay)
            return "created"
        if found.payload != payload and existing == "raise":
            return "conflict"
        return "existing"

    def sql_start(self, id: str, payload: int, delay: int) -> str:
        return self.start(id, payload, delay)

    def _add(self, id: str, payload: int, due: int) -> None:
        self.insert(id, self.number(), payload, due, waits=due > self.now)

    def insert(self, id: str, number: int, payload: int, due: int, *, waits: bool) -> None:
        task = Task("waiting" if waits else "ready", due, due if waits else None, number=number)
        notes = self.deleted.pop(id, Counter())
        self.executions[id] = Execution(number, payload, task, [self._run(id, payload)], number, notes=notes)

    def _run(self, id: str, payload: int) -> Run:
        self.begun[id] += 1
        return Run(f"{id}/{self.begun[id]}", payload)

    def start_many(self, ids: Collection[str], payload: int) -> dict[str, bool] | str:
        """Which of them are new. What is new has been started even when another one is in conflict."""
        answer = {id: self.start(id, payload, 0) for id in sorted(ids)}
        if "conflict" in answer.values():
            return "conflict"
        return {id: told == "created" for id, told in answer.items()}

    def offer(self, id: str, name: str, dedup: str | None) -> bool | str:
        """An event that is committed with the wake-up: the client's way."""
        return self._offer(id, name, dedup, self._wake)

    def sql_offer(self, id: str, name: str, dedup: str | None) -> bool | str:
        """An event and a wake-up that workers will apply: the way of SQL."""
        return self._offer(id, name, dedup, lambda id: self._news(id, "event"))

    def _offer(self, id: str, name: str, dedup: str | None, wake: Callable[[str], None]) -> bool | str:
        execution = self.executions.get(id)
        if execution is None:
            return "unknown"
        if execution.known_key(dedup):
            return False
        if execution.status != "scheduled":
            return "finished"
        execution.events.append(Event(self.number(), name, dedup))
        wake(id)
        return True

    def _wake(self, id: str) -> None:
        task = self.task(id)
        if task is not None:
            task.signal += 1
            if (
                task.state == "waiting"
                and task.started_at is not None
                and (task.not_before is None or task.not_before <= self.now)
            ):
                task.state = "ready"

    def _news(self, id: str, kind: str, reason: str | None = None) -> None:
        self.wakeups.append(Wakeup(self.number(), id, kind, reason, self.executions[id].last))

    def cancel(self, id: str, reason: str, force: bool) -> bool | str:
        execution = self.executions.get(id)
        if execution is None:
            return "unknown"
        task = execution.task
        if task is None:
            return False
        if force or task.unstarted:
            self._end(execution, "cancelled")
            execution.notes["cancelled by force" if force else "cancelled"] += 1
            return True
        if task.cancel is not None:
            return False
        task.signal += 1
        task.cancel = reason
        if task.state in ("waiting", "paused"):
            task.state = "ready"
        execution.notes["cancel requested"] += 1
        return True

    def sql_cancel(self, id: str, reason: str) -> bool | str:
        execution = self.executions.get(id)
        if execution is None:
            return "unknown"
        asked = any(each.kind == "cancel" and each.task == execution.last for each in self.wakeups)
        if execution.task is None or execution.task.cancel is not None or asked:
            return False
        self._news(id, "cancel", reason)
        execution.notes["cancel requested"] += 1
        return True

    def resume(self, id: str, accepts: bool) -> bool | str:
        execution = self.executions.get(id)
        if execution is None:
            return "unknown"
        task = execution.task
        if task is None or task.state != "blocked":
            return False
        task.state = "ready"
        task.recoveries = 0
        task.signal += 1
        task.accepts = task.accepts or accepts
        execution.notes["resume"] += 1
        return True

    # ------------------------------------------------------------ rules

    def pause(self, rule: str, id: str | None, step: bool, lasts: int | None) -> bool | str:
        """A rule, for good or for some seconds: over one execution or all of them, or over steps of these."""
        if id is not None and id not in self.executions:
            return "unknown"
        if id is not None and self.executions[id].task is None:
            return "finished"
        self.rules[rule] = Rule(id, step, None if lasts is None else self.now + lasts)
        self.changes += 1
        if id is not None:
            self.executions[id].notes["paused"] += 1
            task = self.executions[id].task
            assert task is not None
            if not step and task.cancel is None and task.state in ("ready", "waiting"):
                task.state, task.paused_by = "paused", rule
        return True

    def unpause(self, rule: str) -> bool:
        ended = self.rules.pop(rule, None)
        if ended is None:
            return False
        self.changes += 1
        if ended.is_over(self.now):
            return False
        if ended.id is not None:
            self.executions[ended.id].notes["unpaused"] += 1
        return True

    def shown(self, id: str) -> tuple[str, bool]:
        """What a reader sees: the status of `zart status`, and whether it is being cancelled."""
        execution = self.executions[id]
        task = execution.task
        if task is None:
            return execution.status, False
        cancelling = task.cancel is not None
        if task.state == "blocked":
            return "blocked", cancelling
        if task.state != "running" and not cancelling and self.is_held_back(id):
            return "paused", cancelling
        if task.started_at is None:
            return "scheduled", cancelling
        return "waiting" if task.state == "waiting" else "running", cancelling

    def is_held_back(self, id: str) -> bool:
        """Whether a rule stands now that a reader of this execution, which nobody holds, is told of."""
        task = self.task(id)
        standing = {name: rule for name, rule in self.rules.items() if not rule.is_over(self.now)}
        if task is not None and task.state == "paused" and task.paused_by in standing:
            return True
        return any(not rule.step and rule.id in (None, id) for rule in standing.values())

    def _read_rules(self, worker: str) -> None:
        mine = self.workers[worker]
        mine.changes, mine.frees = self.changes, True
        ends = [rule.expires_at for rule in self.rules.values() if rule.expires_at is not None]
        mine.next_end = min(ends, default=None)
        mine.closed = any(
            rule.id is None and not rule.step and not rule.is_over(self.now) for rule in self.rules.values()
        )

    def _keep_rules(self, worker: str, locked: Collection[str]) -> None:
        """What a look does about rules: it ends those whose time is over, and lets go what they held."""
        mine = self.workers[worker]
        if mine.changes != self.changes:
            self._read_rules(worker)
        if mine.next_end is not None and mine.next_end <= self.now:
            for name, rule in list(self.rules.items()):
                if rule.is_over(self.now):
                    del self.rules[name]
                    self.changes += 1
                    if rule.id is not None:
                        self.executions[rule.id].notes["unpaused"] += 1
            self._read_rules(worker)
        if mine.frees:
            mine.frees = False
            for id, execution in self.executions.items():
                task = execution.task
                if task is None or task.state != "paused" or task.paused_by in self.rules:
                    continue
                mine.frees = True
                if id not in locked:
                    due = max(task.due_at, task.not_before or 0)
                    task.state = "waiting" if due > self.now else "ready"
                    task.wake_at = due if due > self.now else None

    def park(self, worker: str, id: str, rule: str) -> str:
        """What it holds is stopped by a rule: paused, if the rule still stands and nobody has cancelled it."""
        task = self._held(worker, id)
        if task is None:
            return "lost"
        del self.workers[worker].holds[id]
        stands = rule in self.rules and not self.rules[rule].is_over(self.now)
        self._let_go(task, "paused" if stands and task.cancel is None else "ready", None)
        task.paused_by = rule
        return "stored"

    # ------------------------------------------------------------ repairs

    def restart(self, id: str, payload: int | None) -> str:
        """Another run: the one that stands is kept, and events that nobody has consumed are dropped."""
        execution = self.executions.get(id)
        if execution is None:
            return "unknown"
        before = execution.run
        self._give_way(id)
        execution.events = [event for event in execution.events if event.consumed]
        execution.runs.append(self._run(id, before.payload if payload is None else payload))
        self._begin(execution, accepts=False)
        execution.notes["restart"] += 1
        return "begun"

    def rerun(self, id: str, key: Key) -> str:
        """Another run, which keeps what has ended but for one record: that is to be done again."""
        execution = self.executions.get(id)
        if execution is None:
            return "unknown"
        before = execution.run
        ended = [key for key, record in before.records.items() if record.state in FINAL]
        again = [key] if key in ended else [each for each in ended if each[0] == told(key)]
        if not again:
            return "no such record"
        kept = {
            key: replace(record)
            for key, record in before.records.items()
            if record.state in FINAL and (record.state != "cancelled" or record.seq is not None)
        }
        self._give_way(id)
        execution.runs.append(self._run(id, before.payload))
        execution.run.records = kept
        self._begin(execution, accepts=True, repair=tuple(again))
        execution.notes[f"rerun of {told(key)}"] += 1
        return "begun"

    def _give_way(self, id: str) -> None:
        execution = self.executions[id]
        status, _ = self.shown(id)
        failed = execution.has_failure or status == "blocked"
        execution.run.ended = status, execution.status == "completed", failed
        for record in execution.records.values():
            if record.state not in FINAL:
                record.state = "cancelled"

    def _begin(self, execution: Execution, *, accepts: bool, repair: tuple[Key, ...] = ()) -> None:
        task = execution.task
        if task is None:
            self._revive(execution, accepts=accepts, repair=repair)
            return
        self.wakeups = [each for each in self.wakeups if (each.task, each.kind) != (task.number, "cancel")]
        execution.task = Task(
            "ready",
            self.now,
            None,
            number=task.number,
            epoch=task.epoch + 1,
            signal=task.signal + 1,
            accepts=accepts,
            repair=repair,
        )
        execution.has_failure = False

    def _revive(self, execution: Execution, *, accepts: bool, repair: tuple[Key, ...]) -> None:
        """What has ended gets live work again, under another number."""
        task = Task("ready", self.now, None, number=self.number(), epoch=1, accepts=accepts, repair=repair)
        task.attempt = execution.run.attempt
        execution.task, execution.number, execution.last = task, task.number, task.number
        execution.status, execution.has_failure, execution.started_at = "scheduled", False, None

    def retry_step(self, id: str, key: Key) -> bool | str:
        """A failed record is to be done again, in its run."""
        execution = self.executions.get(id)
        if execution is None:
            return "unknown"
        if execution.status in ("completed", "cancelled"):
            return "finished"
        if key not in execution.records:
            return "no such record"
        if execution.records[key].state != "failed":
            return False
        task = execution.task
        if task is None:
            self._revive(execution, accepts=False, repair=(key,))
            execution.run.records = {
                key: record
                for key, record in execution.records.items()
                if record.state != "cancelled" or record.seq is not None
            }
        elif key not in task.repair or task.state == "blocked":
            task.repair = (*task.repair, *({key} - set(task.repair)))
            task.signal += 1
            task.not_before = None
            if task.state == "blocked":
                task.recoveries = 0
            if task.state in ("waiting", "blocked"):
                task.state = "ready"
        execution.notes[f"retry of {told(key)!r}"] += 1
        return True

    def delete(self, id: str) -> bool | str:
        execution = self.executions.get(id)
        if execution is None:
            return "unknown"
        if execution.task is not None:
            return "live"
        del self.executions[id]
        for name in [name for name, rule in self.rules.items() if rule.id == id]:
            del self.rules[name]
            self.changes += 1
        for run in execution.runs:
            run.records, run.attempts = {}, 0
        self.strays += execution.runs
        self.deleted[id] = Counter(deleted=1)
        return True

    # ------------------------------------------------------------ a worker's claims

    def register(self, worker: str) -> None:
        self.workers[worker] = Worker()

    def claim(
        self,
        worker: str,
        limit: int,
        suspects: bool,
        locked: Collection[str] = (),
    ) -> list[str] | str:
        """The executions that it takes, in order. `locked` are in the hands of another statement."""
        if self.workers[worker].changes is None:
            self._read_rules(worker)
        if not self.workers[worker].registered:
            return "fenced"
        closed = self.workers[worker].closed
        ready = sorted(
            (execution.number, id)
            for id, execution in self.executions.items()
            if execution.task is not None
            and execution.task.state == "ready"
            and id not in locked
            and not (closed and execution.task.cancel is None)
        )
        fit = [id for _, id in ready if self.executions[id].task.recoveries <= 1]  # type: ignore[union-attr]
        suspicious = sorted(
            (self.executions[id].task.recoveries, number, id)  # type: ignore[union-attr]
            for number, id in ready
            if id not in fit
        )
        chosen = [id for _, _, id in suspicious[: min(int(suspects), limit)]]
        chosen += fit[: limit - len(chosen)]
        for id in chosen:
            self._take(worker, id)
        return [id for _, id in ready if id in chosen]

    def _take(self, worker: str, id: str) -> None:
        execution = self.executions[id]
        task = execution.task
        assert task is not None
        task.state, task.owner, task.epoch = "running", worker, task.epoch + 1
        task.started_at = self.now if task.started_at is None else task.started_at
        prompt = task.epoch == 1 and not execution.records and task.signal == 0
        self.workers[worker].holds[id] = Hold(
            task=task.number,
            run=execution.run,
            epoch=task.epoch,
            signal=task.signal,
            claimed=task.signal,
            repair=task.repair,
            seq=max((record.seq or 0 for record in execution.records.values()), default=0),
            known=[] if prompt else execution.buffered(),
            clears=task.recoveries > 0,
            cancelled=task.cancel is not None,
        )

    def claimed(self, worker: str, id: str) -> dict[str, Any]:
        """What a claim of it should bring along."""
        execution = self.executions[id]
        task, hold = execution.task, self.workers[worker].holds[id]
        assert task is not None
        return {
            "epoch": task.epoch,
            "signal": task.signal,
            "attempt": task.attempt,
            "floor": task.floor,
            "recoveries": task.recoveries,
            "cancel": task.cancel,
            "accepts": task.accepts,
            "payload": execution.run.payload,
            "repair": task.repair,
            "events": list(hold.known),
            "records": {key: (r.state, r.seq, r.attempts) for key, r in execution.records.items()},
        }

    def tick(
        self, worker: str, limit: int, suspect: bool, watched: Collection[str], locked: Collection[str] = ()
    ) -> dict[str, Any]:
        """All that a claimer does in one go: it claims, asks its inbox, applies wake-ups, promotes sleepers."""
        holds = self.workers[worker].holds
        known = {id: holds[id] for id in watched if id in holds}
        claims = self.claim(worker, limit, suspect, locked) if limit > 0 else []
        if self.workers[worker].changes != self.changes and limit > 0:
            self._read_rules(worker)
        told = {id: self.claimed(worker, id) for id in claims} if claims != "fenced" else {}
        news = self.news(worker, known)
        wakes = [
            execution.task.wake_at
            for execution in self.executions.values()
            if execution.task is not None
            and execution.task.state == "waiting"
            and execution.task.wake_at is not None
        ]
        due = min(wakes, default=None)
        self._keep_rules(worker, locked)
        self.apply(locked)
        if due is not None and due <= self.now:
            self.promote(locked)
        mine = self.workers[worker]
        times = [time for time in (due, mine.next_end) if time is not None]
        again = min(times) if times and not mine.frees else None
        later = again if again is not None and again > self.now else None
        fenced = claims == "fenced" or not mine.registered
        return {"fenced": fenced, "claims": told, "news": news, "due": later}

    def news(self, worker: str, watched: dict[str, Hold]) -> dict[str, Any]:
        """What the inbox says of what it held before it claimed."""
        told: dict[str, Any] = {}
        holds = self.workers[worker].holds
        for id, hold in watched.items():
            task = self.task(id)
            if task is None or holds[id] is not hold or not self.holds(worker, id):
                if holds[id] is hold:
                    del holds[id]
                told[id] = "lost"
            elif task.signal != hold.signal:
                buffered = self.executions[id].buffered()
                hold.signal = task.signal
                hold.known += [number for number in buffered if number not in hold.known]
                hold.cancelled = task.cancel is not None
                told[id] = (task.signal, task.cancel, buffered, bool(task.repair))
        return told

    def apply(self, locked: Collection[str] = ()) -> None:
        """Wake-ups become news; a cancel of what has nothing to unwind ends it."""
        left = []
        for id in {wakeup.execution: None for wakeup in self.wakeups}:
            mine = [wakeup for wakeup in self.wakeups if wakeup.execution == id]
            if id in locked:
                left += mine
                continue
            execution = self.executions.get(id)
            task = execution.task if execution is not None else None
            # An event is for whatever work there is now, a cancel was meant for what there was then.
            mine = [w for w in mine if w.kind == "event" or (task is not None and w.task == task.number)]
            if execution is None or task is None or not mine:
                continue
            cancels = [wakeup for wakeup in mine if wakeup.kind == "cancel"]
            if cancels and task.unstarted:
                self._end(execution, "cancelled")
                execution.notes["cancelled"] += 1
                continue
            task.signal += 1
            if cancels and task.cancel is None:
                task.cancel = cancels[0].reason
            if task.state == "waiting" and (cancels or max(task.due_at, task.not_before or 0) <= self.now):
                task.state = "ready"
            if task.state == "paused" and cancels:
                task.state = "ready"
        self.wakeups = sorted(left, key=lambda wakeup: wakeup.number)

    def promote(self, locked: Collection[str] = ()) -> None:
        """Sleepers that are due become ready."""
        for id, execution in self.executions.items():
            task = execution.task
            if task is None or task.wake_at is None or id in locked:
                continue
            if task.state == "waiting" and task.wake_at <= self.now:
                task.state = "ready"

    def leave(self, worker: str) -> None:
        self.workers[worker].registered = False

    def reap(self) -> list[str]:
        """Registrations that have run out are deleted; what nobody owns any more is free."""
        for worker in self.workers.values():
            if worker.expired:
                worker.registered = False
        freed = []
        for id, execution in self.executions.items():
            task = execution.task
            if task is not None and task.owner is not None and not self.workers[task.owner].registered:
                task.state, task.owner = "ready", None
                task.recoveries += 1
                execution.notes["takeover"] += 1
                freed.append(id)
        return sorted(freed)

    # ------------------------------------------------------------ a worker's journal

    def together(self, worker: str, operations: list[tuple[str, tuple[Any, ...]]]) -> list[str]:
        """Several records of one batch, one after the other. An ending that is refused takes its records with it."""
        gone = {
            arguments[0]
            for name, arguments in operations
            if name in ("suspend", "release") and not self.holds(worker, arguments[0])
        }
        return [
            "lost"
            if name == "record" and arguments[0] in gone and not self._fenced(worker)
            else getattr(self, name)(worker, *arguments)
            for name, arguments in operations
        ]

    def holds(self, worker: str, id: str) -> bool:
        """Whether what a worker believes to hold is its own."""
        hold = self.workers[worker].holds[id]
        return self.has(worker, id) and self.executions[id].task.epoch == hold.epoch  # type: ignore[union-attr]

    def has(self, worker: str, id: str) -> bool:
        """Whether a worker holds the run that it believes to hold, be it by another claim."""
        execution, hold = self.executions.get(id), self.workers[worker].holds[id]
        if execution is None or execution.task is None or execution.run is not hold.run:
            return False
        return execution.task.number == hold.task and execution.task.owner == worker

    def record(self, worker: str, id: str, key: Key, state: str) -> str:
        """A record of the journal: `failed attempt` is a step that waits for its next one."""
        if self._fenced(worker):
            return "lost"
        hold = self.workers[worker].holds[id]
        run = hold.run
        seq = self._place(hold, state)
        self._clear(worker, id, hold, state)
        found = run.records.get(key)
        if found is not None and found.state in FINAL:
            return "lost"
        attempts = 1 if found is None else found.attempts + (found.state == "waiting")
        if state == "failed attempt":
            state = "waiting"
            run.attempts += 1
        run.records[key] = Record(state, seq, attempts)
        return "stored"

    def _place(self, hold: Hold, state: str) -> int | None:
        if state not in FINAL:
            return None
        hold.seq += 1
        return hold.seq

    def _clear(self, worker: str, id: str, hold: Hold, state: str) -> None:
        """The first record since a takeover, unless it only says that a step runs."""
        if hold.clears and state != "running":
            hold.clears = False
            if self.has(worker, id):
                self.executions[id].task.recoveries = 0  # type: ignore[union-attr]

    def consume(self, worker: str, id: str, number: float, occurrence: int) -> str:
        """The record of a wait that takes an event."""
        if self._fenced(worker):
            return "lost"
        hold = self.workers[worker].holds[id]
        seq = self._place(hold, "completed")
        self._clear(worker, id, hold, "completed")
        execution = self.executions.get(id)
        events = [event for event in execution.events if event.number == number] if execution else []
        if not events or events[0].consumed or not self.has(worker, id):
            return "lost"
        events[0].consumed = True
        event = events[0]
        hold.run.records[event.name, occurrence, "wait"] = Record("completed", seq, 1)
        return "stored"

    def suspend(self, worker: str, id: str, wake_at: int | None) -> str:
        task = self._held(worker, id)
        if task is None:
            return "lost"
        hold = self.workers[worker].holds.pop(id)
        task.seen = frozenset(hold.known)
        if task.not_before is not None and task.not_before > self.now and task.cancel is None:
            self._let_go(task, "waiting", task.not_before)
        elif task.signal == hold.signal and (wake_at is None or wake_at > self.now):
            self._let_go(task, "waiting", wake_at)
        else:
            self._let_go(task, "ready", wake_at)
        return "stored"

    def retry(self, worker: str, id: str, delay: int, afresh: Collection[Key], meets: bool = False) -> str:
        """The body is to run again; the records behind its failure are tried afresh. `meets`: because somebody wanted
        that, when the execution was claimed.
        """
        task = self._held(worker, id)
        if task is None:
            return "lost"
        hold = self.workers[worker].holds.pop(id)
        execution = self.executions[id]
        due = self.now + delay
        self._let_go(task, "waiting" if delay > 0 and task.cancel is None else "ready", due)
        task.attempt += 1
        execution.run.attempt = task.attempt
        task.floor = hold.seq
        if meets and hold.claimed == task.signal:
            task.repair = ()
        task.not_before = due
        for key in afresh:
            del execution.records[key]
            execution.run.attempts += 1
        execution.notes["retry"] += 1
        return "stored"

    def block(self, worker: str, id: str) -> str:
        """Somebody must look at it; one that is being cancelled has nobody to wait for."""
        task = self._held(worker, id)
        if task is None:
            return "lost"
        self.executions[id].notes["blocked"] += 1
        if task.cancel is not None:
            return self.end(worker, id, "cancelled")
        del self.workers[worker].holds[id]
        self._let_go(task, "blocked", None)
        return "stored"

    def release(self, worker: str, id: str) -> str:
        task = self._held(worker, id)
        if task is None:
            return "lost"
        del self.workers[worker].holds[id]
        self._let_go(task, "ready", None)
        return "stored"

    def end(self, worker: str, id: str, status: str) -> str:
        task = self._held(worker, id)
        if task is None:
            return "lost"
        if task.repair and task.cancel is None and status != "cancelled":
            return self.release(worker, id)  # somebody wants some of it done again
        del self.workers[worker].holds[id]
        execution = self.executions[id]
        self._end(execution, "cancelled" if task.cancel is not None else status)
        execution.has_failure = status != "completed"
        return "stored"

    def _fenced(self, worker: str) -> bool:
        """The journal of a worker whose registration is gone writes nothing, and the worker drops everything."""
        mine = self.workers[worker]
        if not mine.registered:
            mine.stopped = True
        return not mine.registered

    def _held(self, worker: str, id: str) -> Task | None:
        """The task, if an ending of this worker's hold counts."""
        if self._fenced(worker):
            return None
        if not self.holds(worker, id):
            del self.workers[worker].holds[id]
            return None
        return self.task(id)

    def _let_go(self, task: Task, state: str, wake_at: int | None) -> None:
        task.state, task.owner, task.wake_at = state, None, wake_at

    def _end(self, execution: Execution, status: str) -> None:
        task, execution.task = execution.task, None
        assert task is not None
        execution.status = status
        execution.has_failure = True
        execution.started_at = task.started_at
        for record in execution.records.values():
            if record.state not in FINAL:
                record.state = "cancelled"

    # ------------------------------------------------------------ a transaction that stays open

    def view(self) -> "World":
        """The world as that transaction sees it."""
        seen = self.copy()
        for effect in seen.open or ():
            effect(seen)
        return seen

    def commit(self) -> None:
        effects, self.open = self.open or [], None
        self.open_ids, self.open_keys = set(), set()
        for effect in effects:
            effect(self)

    def roll_back(self) -> None:
        self.open, self.open_ids, self.open_keys = None, set(), set()
