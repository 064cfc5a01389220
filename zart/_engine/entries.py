"""What passes between an activation and the database: claims come in, journal entries and endings go out, as data.

An *activation* is one worker's hold on one execution, from its claim until its ending. While it lasts it hands
entries to the journal, one after the other; its ending is the last thing that it writes. The journal commits the
entries of one activation in the order in which they were handed over.
"""

import datetime as dt
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Self
from uuid import UUID

import msgspec

Kind = Literal["step", "capture", "wait", "timer", "cancel", "child"]
EntryState = Literal["started", "running", "waiting", "completed", "failed", "cancelled"]
FINAL: frozenset[str] = frozenset(("completed", "failed", "cancelled"))


class Key(NamedTuple):
    """The identity of a durable call within its run."""

    path: str
    """The branch that asked: '' is the body, '2/' its second branch, '2/1/' that one's first."""
    name: str
    occurrence: int
    kind: Kind

    def __str__(self) -> str:
        return (
            f"{self.path}{self.name}#{self.occurrence}" if self.occurrence > 1 else f"{self.path}{self.name}"
        )


class StoredEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the journal, as a claim returns it."""

    key: Key
    seq: int | None
    """Its place in the log; None while the call is under way."""
    state: EntryState
    digest: bytes | None = None
    arguments: str | None = None
    result: str | None = None
    failure: str | None = None
    attempts: int = 1
    started_at: dt.datetime | None = None
    finished_at: dt.datetime | None = None
    until: dt.datetime | None = None
    progress: str | None = None
    """What the step has told of itself last."""
    data: str | None = None
    """What the step has set with `set_data` in its own transaction."""
    given_away: bool = False
    """A task of its own does it: a scheduled step or a child. What came of it is there before it has a number."""
    child: tuple[str, bool] | None = None
    """Of a child: its id, and whether it is detached."""

    @property
    def has_arrived(self) -> bool:
        """It has ended elsewhere, and no body was told so far."""
        return self.given_away and self.seq is None and self.state in FINAL


class StoredEvent(NamedTuple):
    """An event that no wait has consumed."""

    id: int
    name: str
    payload: str | None


class CancelRequest(NamedTuple):
    reason: str | None
    author: str | None


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """An execution that this worker holds now, with all that its replay needs."""

    task_id: int
    execution_id: str
    run_id: UUID
    lane: int
    epoch: int
    registration: int
    """The worker id under which it was claimed: what it writes is fenced by that row."""
    signal: int
    attempt: int
    floor: int
    recoveries: int
    due_at: dt.datetime
    time_limit: dt.timedelta | None = None
    """In place of the function's own; zero means none, None the function's."""
    started_at: dt.datetime
    not_before: dt.datetime | None
    cancel: CancelRequest | None
    payload: str | None
    entries: list[StoredEntry]
    events: list[StoredEvent]
    now: dt.datetime
    """Durable time at the claim."""
    accept_arguments: bool = False
    """Recorded steps are taken as they are, whatever arguments they are called with now."""
    step: Key | None = None
    """The scheduled step that this is, in the journal of the run; None: the body of an execution."""
    priority: int = 0
    parent_task: int | None = None
    """Whom to tell of the end."""
    done: int = 0
    """How much of what this execution gave away had ended."""
    kept: bool = False
    """Its body is in memory here, and goes on from where it is: payload and entries were not loaded."""
    arrived: list[StoredEntry] = []
    """For such a body: what has ended meanwhile of what it gave away."""
    repair: str | None = None
    """The keys of records that a person wants done again, as JSON."""
    trace_context: str | None = None
    """Of whoever started the execution."""

    @property
    def is_suspect(self) -> bool:
        """Taken over more than once without a new record; the statement `claim` draws the same line."""
        return self.recoveries > 1


def next_epoch(epoch: int) -> int:
    """The epoch of the claim that comes after one; the statement `claim` counts in the same way."""
    return epoch % 2147483647 + 1


class StepWork(msgspec.Struct, frozen=True, kw_only=True):
    """A scheduled step: whoever has registered the function may do it."""

    function: str
    lane: int
    input: bytes
    held_back: bool = False
    """Another one must end before it begins."""

    def stored(self) -> bytes:
        return self.input


class ChildWork(msgspec.Struct, frozen=True, kw_only=True):
    """A child execution."""

    id: str
    name: str
    version: str | None
    queue: str
    priority: int
    lane: int
    run_id: UUID
    payload: bytes | None
    digest: bytes
    time_limit: dt.timedelta | None
    detached: bool
    named: bool
    """Its parent has chosen the id: somebody else may have it."""
    trace_context: str | None = None
    """Of its parent, at the call."""

    def stored(self) -> bytes:
        """What a replay needs to know of it, whichever attempt of the body has started it."""
        return msgspec.json.encode([self.id, self.detached])


Work = StepWork | ChildWork


class Order(NamedTuple):
    """What was given away is to be cancelled."""

    key: Key
    reason: str | None
    author: str | None


class FailedAttempt(NamedTuple):
    """A row of `zart_step_attempts`."""

    key: Key
    attempt: int
    body_attempt: int
    failure: bytes | None
    """None: it did not fail; its saga was undone, and it is tried afresh."""
    started_at: dt.datetime
    finished_at: dt.datetime
    next_at: dt.datetime | None


class Entry(msgspec.Struct, kw_only=True, eq=False):
    """A change to one row of the journal, on its way to the database.

    `done` is called once, on the event loop, after the commit: with the entry and None, or with what went wrong:
    a `SerializationError` when the database refuses the value, `Lost` when the fence is gone, or when another
    activation has recorded this key.
    """

    run_id: UUID
    key: Key
    state: EntryState
    done: Callable[["Entry", Exception | None], None] | None
    execution_id: str = ""
    """Set by the activation: what is encrypted is bound to it."""
    seq: int | None = None
    digest: bytes | None = None
    arguments: str | None = None
    result: bytes | None = None
    failure: bytes | None = None
    attempts: int = 1
    started_at: dt.datetime | None = None
    finished_at: dt.datetime | None = None
    until: dt.datetime | None = None
    progress: bytes | None = None
    data: bytes | None = None
    """Of a step in a transaction; the journal's own statements do not write it."""
    task_id: int = 0
    """The execution's task: needed with `event_id` and `clears_recoveries`."""
    event_id: int | None = None
    """The event that this wait consumes, in the same statement; its payload is the result when there is none here."""
    failed_attempt: FailedAttempt | None = None
    """A failed attempt to store, in the same statement."""
    clears_recoveries: bool = False
    """The first new record since a takeover: the count of recoveries starts again."""
    work: Work | None = None
    """The work that is given away with this entry, which stays without a number until it has ended."""
    giver: Claim | None = None
    """Who gives it away."""
    numbers: bool = False
    """Nothing but the number of what has arrived: the row is there."""
    orders: tuple[Order, ...] = ()
    """To be sent in the same statement."""
    token: int = 0
    """Set by the journal: tells its own write from another's after an ambiguous commit."""
    deliver: Any = None
    """The activation's own: what to do when the entry's turn comes."""

    @classmethod
    def at_once(cls, run_id: UUID, key: Key, result: bytes, now: dt.datetime) -> Self:
        """One that is over when it begins: nothing is waited for but its commit."""
        return cls(
            run_id=run_id,
            key=key,
            state="completed",
            done=None,
            result=result,
            started_at=now,
            finished_at=now,
        )


Record = StoredEntry | Entry
"""What is delivered to a body: an entry of the log as a claim brought it, or as this activation has written it."""


def text(json: bytes | None) -> str | None:
    """JSON as a claim would bring it."""
    return None if json is None else json.decode()


class Completed(msgspec.Struct, frozen=True, kw_only=True):
    """The body returned."""

    result: bytes


class Failed(msgspec.Struct, frozen=True, kw_only=True):
    """The body failed for good."""

    failure: bytes


class Cancelled(msgspec.Struct, frozen=True, kw_only=True):
    """A cancel was delivered, or the execution never started; the body has ended."""

    failure: bytes


class Suspended(msgspec.Struct, frozen=True, kw_only=True):
    """Everything is parked: give the execution back until something is due or somebody has news.

    Refused by the database (the row becomes ready again) when its signal is no longer `seen`.
    """

    seen: int
    wake_at: dt.datetime | None
    waiting_for: str | None
    wake_at_done: int | None = None
    """Go on when so much of what was given away has ended, in all."""


class Paused(msgspec.Struct, frozen=True, kw_only=True):
    """A rule holds it back: give it back until the rule has ended, whatever else happens to it but a cancel.

    Refused by the database (the row becomes ready) when the rule has ended already.
    """

    rule: str
    waiting_for: str | None = None


class BodyRetry(msgspec.Struct, frozen=True, kw_only=True):
    """The body failed and is to run again: the records behind its failure move to the attempts."""

    attempt: int
    not_before: dt.datetime
    floor: int
    afresh: tuple[FailedAttempt, ...]
    met: int | None = None
    """It meets the request of a person that was there when the task's signal was this."""


class Blocked(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody must look at it: nothing is lost, nothing runs until `resume`."""

    failure: bytes
    what: str
    """For the history: 'non-determinism' or 'crash-loop'."""
    failed_undo: FailedAttempt | None = None
    """The undo that has failed for good, to be tried afresh. Then a cancel does not end the execution either."""


class ContinuedAsNew(msgspec.Struct, frozen=True, kw_only=True):
    """The body wants a fresh history: the execution becomes ready as another run, given `payload`."""

    payload: bytes | None


class Released(msgspec.Struct, frozen=True, kw_only=True):
    """Given back at once for another worker to go on (shutdown)."""


class StepEnded(msgspec.Struct, frozen=True, kw_only=True):
    """A scheduled step has come to its end: what came of it goes into the journal of its run, unnumbered."""

    key: Key
    state: Literal["completed", "failed", "cancelled"]
    result: bytes | None = None
    failure: bytes | None = None
    attempts: int = 1
    started_at: dt.datetime | None = None


Ending = (
    StepEnded
    | Completed
    | Failed
    | Cancelled
    | Suspended
    | Paused
    | BodyRetry
    | ContinuedAsNew
    | Blocked
    | Released
)


class Change(msgspec.Struct, kw_only=True, eq=False):
    """The ending of an activation, on its way to the database.

    Matched by owner, epoch and run. `done` gets None, or `Lost`; for a suspension that was refused since there is
    news, the row is ready again and `done` gets None too.
    """

    task_id: int
    execution_id: str
    run_id: UUID
    epoch: int
    ending: Ending
    done: Callable[["Change", Exception | None], None] | None
    notes: tuple[tuple[str, str], ...] = ()
    """(what, note) pairs for `zart_history`, in the same statement."""
    parent_task: int | None = None
    """The body that gave this work away: it is told of the end, in the same statement."""
    orders: tuple[Order, ...] = ()
    token: int = 0


class Lost(Exception):  # noqa: N818
    """The execution is no longer this activation's: the fence is gone, or its claim was taken over."""
