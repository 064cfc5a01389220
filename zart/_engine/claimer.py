"""What a worker takes from the database, and what it hears of the work that it holds: one `tick` at a time.

A tick claims, loads histories, asks the inbox, applies committed wake-ups and promotes sleepers; what there
is nothing to do of is left out. It takes two round trips: the claim alone, then everything that only reads in
one pipeline. They are not one pipeline, although that would save 0.1 ms: its statements would be one
transaction until the last of them was sent, and a process that is stopped or whose loop is blocked in between
would hold the rows of other workers' executions. A statement in autocommit is committed when it has run,
whatever becomes of its sender.

What keeps it right:

- The history is read by later statements than the claim. In one statement it would be read from a snapshot
  that is older than the lock, and may lack what the previous holder has just recorded.
- Signals are read before events, never after: whoever is told of signal 5 sees all events that led to it.
- When the answer to a claim is lost on its way, nobody knows whether it was committed. Its token is
  remembered, and what it took is given back by the following ticks.
"""

import datetime as dt
import itertools
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from uuid import UUID

import msgspec
import psycopg
from psycopg import AsyncConnection

from zart._engine.entries import CancelRequest, Claim, StoredEntry, StoredEvent
from zart._engine.histories import HISTORY_BYTES, SHORT_INPUT, Histories, Kept, Question, arrivals, by_task
from zart._engine.pauses import Rules
from zart._engine.points import reach
from zart._engine.rule_keeping import RuleKeeper
from zart._postgres.direct import Direct, DirectLine, Row, statements
from zart._postgres.listener import done_channel, work_channel
from zart.errors import ExecutionCancelled
from zart.failures import exception_to_json
from zart.telemetry.events import ClaimMade
from zart.telemetry.hub import hub

_log = logging.getLogger("zart.claimer")

_BATCH = 500  # wake-ups and sleepers at a time
_PROMPT = 0.3  # seconds
_DOUBT = 120.0  # seconds for which a claim whose answer was lost may still turn up
_RETRY = dt.timedelta(milliseconds=50)  # until a wake-up whose task was locked is tried again

Connection = AsyncConnection[Any]
Connect = Callable[[], Awaitable[Connection]]
Watched = tuple[int, int, int, int]
"""What is held: task id, epoch, the signal seen last, and how much of what it gave away was seen to have ended."""
Keeps = Callable[[int, UUID, int], Kept | None]
"""What the body has seen that is kept in memory for a claim: of this task, run and epoch; None: none is."""


class News(msgspec.Struct, frozen=True, kw_only=True):
    """What is new about an execution that this worker holds."""

    task_id: int
    signal: int
    cancel: CancelRequest | None
    events: list[StoredEvent]
    """All that no wait has consumed, in order; at least those that led to `signal`."""
    done: int = 0
    """How much of what it gave away has ended."""
    arrived: list[StoredEntry] = []
    """What has ended of that, and has no number so far."""
    repair: bool = False
    """A person wants some of it done again."""
    lost: bool
    """It is no longer held under this epoch: drop it, nothing that it writes would be accepted."""


class Tick(msgspec.Struct, frozen=True, kw_only=True):
    """What one tick brought."""

    fenced: bool
    """The worker's own row is gone: it was reaped, and must register again before it can claim."""
    claims: list[Claim]
    handed_out: int = 0
    """Claims that were handed out before the tick's end."""
    looked: bool = True
    """Whether it has looked for wake-ups and sleepers."""
    news: list[News]
    next_due: dt.datetime | None
    """When it is worth while to ask again, in durable time: the next sleeper of any lane is due, or a rule ends."""
    now: dt.datetime
    """Durable time."""
    busy: bool
    """There may be more at once: tick again without a pause."""


class Peek(msgspec.Struct, frozen=True, kw_only=True):
    """What an idle worker sees with one cheap statement."""

    work: bool
    """A tick would find something to do."""
    next_due: dt.datetime | None
    now: dt.datetime


class _Look(msgspec.Struct, frozen=True, kw_only=True):
    standing: bool
    wakeups: bool
    next_due: dt.datetime | None
    now: dt.datetime
    rules: int | None
    """How often the rules that hold executions back have changed."""

    @property
    def due(self) -> bool:
        return self.next_due is not None and self.next_due <= self.now


class Claimer:
    """The claiming connection of one registration of a worker. Not for concurrent use: one call at a time.

    `connect` opens a connection in autocommit, when it is first needed and again after it was lost. Any call
    may raise `psycopg.Error`; the next call goes on from there.
    """

    def __init__(
        self,
        connect: Connect,
        schema: str,
        worker_id: int,
        lanes: Sequence[int],
        *,
        history_bytes: int = HISTORY_BYTES,
        rules: Rules | None = None,
    ) -> None:
        """`rules` is what holds executions back; it is told of each change before anything is handed out that was
        claimed after the change.
        """
        self._line = DirectLine(connect)
        self._worker = worker_id
        self._rules = rules or Rules(lanes)
        self._keeper = RuleKeeper(schema, self._rules)
        self._histories = Histories(schema, worker_id, history_bytes)
        self._claims = statements("claim", schema)
        self._wakeups = statements("wakeups", schema)
        self._workers = statements("workers", schema)
        self._work_channel = work_channel(schema)
        self._done_channel = done_channel(schema)
        self._tokens = itertools.count(secrets.randbits(62))
        self._doubtful: dict[int, float] = {}
        self._claimed_at = dt.datetime.min.replace(tzinfo=dt.UTC)

    @property
    def pending(self) -> int:
        """Executions that are claimed and were not handed out so far; they count against the next limit."""
        return len(self._histories)

    async def tick(
        self,
        *,
        limit: int,
        suspect: bool,
        watching: Sequence[Watched] = (),
        hand_out: Callable[[Claim], None] | None = None,
        keeps: Keeps | None = None,
        look: bool = True,
    ) -> Tick:
        """Takes up to `limit` executions, and tells what is new about those in `watching`.

        Those that were never claimed before need nothing but what the claim itself brings, and so do those whose body
        is kept in memory, as `keeps` says: `hand_out` gets them before anything else is asked, and they are not among
        the tick's claims then. Without `look` wake-ups and sleepers are
        left for a later tick, unless there is something to ask anyway.

        With `suspect`, one of them may be an execution that was taken over more than once and has recorded nothing
        since (`recoveries` > 1); a process should hold one of these at a time.
        """
        direct = await self._line.open()
        if self._doubtful:
            await self._give_back(direct, [], [])
        room = limit - len(self._histories)
        asked = time.monotonic()
        standing, more = (
            await self._claim(direct, room, keeps, suspect=suspect) if room > 0 else (True, False)
        )
        early = 0
        # An answer that comes late may be old: a process that was stopped meanwhile asks after its fence first.
        if hand_out is not None and standing and time.monotonic() - asked < _PROMPT:
            for claim in self._histories.finish_first():
                hand_out(claim)
                early += 1

        questions = list(self._histories.questions())
        if early and not (look or questions or watching):
            return Tick(
                fenced=False,
                claims=[],
                handed_out=early,
                looked=False,
                news=[],
                next_due=self._rules.next_end,
                now=self._claimed_at,
                busy=more,
            )
        if watching:
            questions.append(self._inbox(watching))
        questions.append((self._claims["look"], {"worker": self._worker}))
        answers = await self._ask(direct, questions)
        if len(self._histories):
            reach("claim.read")
        seen = _look(answers.pop())
        news = await self._news(direct, answers.pop(), watching) if watching else []

        next_due = seen.next_due
        more = await self._let_go(direct, seen, free=limit - len(self._histories)) or more
        if seen.wakeups:
            done, left = await self._apply(direct, free=limit - len(self._histories))
            more = more or done
            if left:
                next_due = min(next_due or seen.now + _RETRY, seen.now + _RETRY)
        if seen.due:
            if await self._promote(direct, free=limit - len(self._histories)):
                more = True
            else:
                next_due = seen.now + _RETRY
        # Only now, when nothing can fail any more: what is handed out is forgotten here.
        claims = self._histories.finish(answers)
        if not (standing and seen.standing):
            claims = []
            self._histories.clear()
            self._doubtful.clear()
        return Tick(
            fenced=not (standing and seen.standing),
            claims=claims,
            handed_out=early,
            news=news,
            next_due=self._keeper.next_look(next_due, seen.now),
            now=seen.now,
            busy=more or len(self._histories) > 0,
        )

    async def peek(self, *, suspect: bool = True) -> Peek:
        """Whether a tick would find anything; `suspect` as there."""
        direct = await self._line.open()
        await self._keeper.begin(direct)
        parameters = {"lanes": self._rules.open, "passing": self._rules.closed, "suspect": suspect}
        ((ready, suspects, wakeups, next_due, now, rules),) = await direct.rows(
            self._claims["peek"], parameters
        )
        due = next_due is not None and next_due <= now
        return Peek(
            work=ready or suspects or wakeups or due or self._keeper.has_work(rules, now),
            next_due=self._keeper.next_look(next_due, now),
            now=now,
        )

    async def set_idle(self, idle: bool) -> None:  # noqa: FBT001
        """Says whether this worker listens for notifications and has free slots.

        Ask again after saying yes: what was committed just before has notified nobody.
        """
        direct = await self._line.open()
        reach("idle.begin")
        await direct.rows(self._workers["set_idle"], {"worker": self._worker, "idle": idle})
        reach("idle.committed")

    async def release(self) -> None:
        """Gives back what was claimed and not handed out, before `close`: others go on with it at once."""
        if len(self._histories) or self._doubtful:
            await self._give_back(await self._line.open(), *self._histories.held())
            self._histories.clear()

    async def close(self) -> None:
        """Closes the connection. What is pending stays claimed: see `release`."""
        await self._line.close()

    # -- the claim

    async def _claim(
        self, direct: Direct, room: int, keeps: Keeps | None = None, *, suspect: bool
    ) -> tuple[bool, bool]:
        """Whether the fence stood, and whether there may be more to claim."""
        await self._keeper.begin(direct)
        batch = next(self._tokens) & 0x7FFF_FFFF_FFFF_FFFF
        parameters = {
            "worker": self._worker,
            "lanes": self._rules.open,
            "passing": self._rules.closed,
            "limit": room,
            "suspects": int(suspect),
            "short": SHORT_INPUT,
            "batch": batch,
        }
        self._doubtful[batch] = time.monotonic() + _DOUBT
        asked = time.perf_counter()
        reach("claim.begin")
        rows = await direct.rows(self._claims["claim"], parameters)
        reach("claim.committed")
        del self._doubtful[batch]
        standing, candidates, now, rules = rows[0][:4]
        self._claimed_at = now
        taken = 0
        for row in rows:
            if row[4] is None:
                break
            self._histories.add(row[4:], now, keeps(row[4], row[6], row[8]) if keeps is not None else None)
            taken += 1
        await self._keeper.hear(direct, rules)
        if hub.listening:
            hub.tell(ClaimMade(worker=self._worker, taken=taken, seconds=time.perf_counter() - asked))
        return standing, standing and (taken >= room or candidates > taken)

    async def _give_back(self, direct: Direct, tasks: list[int], epochs: list[int]) -> None:
        """Gives these back, and all that claims took whose answer was lost."""
        parameters = {
            "worker": self._worker,
            "batches": list(self._doubtful),
            "tasks": tasks,
            "epochs": epochs,
        }
        reach("return.begin")
        await direct.rows(self._claims["give_back"], parameters)
        reach("return.committed")
        now = time.monotonic()
        self._doubtful = {batch: until for batch, until in self._doubtful.items() if until > now}

    # -- news

    def _inbox(self, watching: Sequence[Watched]) -> Question:
        tasks, epochs, signals, dones = (list(column) for column in zip(*watching, strict=True))
        return self._claims["read_inbox"], {
            "worker": self._worker,
            "tasks": tasks,
            "epochs": epochs,
            "signals": signals,
            "dones": dones,
        }

    async def _news(self, direct: Direct, rows: list[Row], watching: Sequence[Watched]) -> list[News]:
        told = [(row[0], row[3]) for row in rows if not row[1]]
        events: dict[int, list[StoredEvent]] = {}
        if told:
            events = by_task(await direct.rows(*self._histories.events(told)))
        seen = {task: done for task, _, _, done in watching}
        ended = [row[0] for row in rows if not row[1] and row[7] != seen[row[0]]]
        arrived = arrivals(await direct.rows(*self._histories.arrived(ended))) if ended else {}
        if rows:
            reach("inbox.read")
        return [
            News(
                task_id=task,
                signal=signal or 0,
                cancel=CancelRequest(reason, author) if cancelled else None,
                events=events.get(task, []),
                done=arrived[task][0] if task in arrived else done or 0,
                arrived=arrived[task][1] if task in arrived else [],
                lost=lost,
                repair=bool(repair),
            )
            for task, lost, signal, _, cancelled, reason, author, done, repair in rows
        ]

    # -- what a tick does for everybody

    async def _apply(self, direct: Direct, *, free: int) -> tuple[bool, bool]:
        """Whether wake-ups were applied, and whether some are left."""
        reach("wakeups.begin")
        cancels = await direct.rows(self._wakeups["read_cancels"], {"batch": _BATCH})
        reach("wakeups.read")
        parameters = {
            "batch": _BATCH,
            "cancels": [wakeup for wakeup, _, _, _ in cancels],
            "failures": [
                cancelled_before_start(execution, step, reason) for _, execution, step, reason in cancels
            ],
        }
        ((applied, ready, left, ended),) = await direct.rows(self._wakeups["apply_wakeups"], parameters)
        reach("wakeups.committed")
        if ended:
            await self._notify(direct, "notify", {"channel": self._done_channel, "notes": ended})
        await self._share(direct, ready, free)
        return applied > 0, left > 0

    async def _promote(self, direct: Direct, *, free: int) -> bool:
        reach("sleepers.begin")
        ((promoted,),) = await direct.rows(self._wakeups["promote"], {"batch": _BATCH})
        reach("sleepers.committed")
        await self._share(direct, promoted, free)
        return bool(promoted > 0)

    async def _let_go(self, direct: Direct, seen: _Look, *, free: int) -> bool:
        """Does what there is to do about rules; whether something was let go that they had held."""
        let_go = await self._keeper.look(direct, seen.rules, seen.now)
        if let_go.freed:
            await self._share(direct, let_go.ready, free)
        return let_go.freed > 0

    async def _share(self, direct: Direct, ready: int, free: int) -> None:
        """Tells the others when more has become ready than this worker can take."""
        if ready > free:
            await self._notify(direct, "notify_idle", {"channel": self._work_channel, "worker": self._worker})

    async def _notify(self, direct: Direct, statement: str, parameters: dict[str, object]) -> None:
        try:
            await direct.rows(self._wakeups[statement], parameters)
        except psycopg.OperationalError as error:
            # Those who wait poll as well. A lost connection shows at the next statement.
            _log.warning("could not notify: %s", error)

    # -- the connection

    async def _ask(self, direct: Direct, questions: Sequence[Question]) -> list[list[Row]]:
        """The rows of one statement, or of several that only read, in one round trip."""
        if len(questions) == 1:
            return [await direct.rows(*questions[0])]
        return await direct.rows_of_each(questions)


def cancelled_before_start(execution_id: str, step: str | None, reason: str | None) -> str:
    """The stored failure of an execution, or of a scheduled step, that was cancelled with nothing to unwind."""
    what = f"execution {execution_id!r}" if step is None else f"execution {execution_id!r}: step {step}"
    text = f"{what} was cancelled before it ran" + (f": {reason}" if reason else "")
    error = ExecutionCancelled(text, execution_id=execution_id, reason=reason)
    return exception_to_json(error, attempts=0).decode()


def _look(rows: list[Row]) -> _Look:
    ((standing, wakeups, next_due, now, rules),) = rows
    return _Look(standing=standing, wakeups=wakeups, next_due=next_due, now=now, rules=rules)
