"""What a worker takes from the database, and what it hears about the work that it holds: one `tick` at a time.

A tick claims, loads histories, asks the inbox, applies committed wake-ups and promotes sleepers; what there is nothing
to do of is left out. It takes two round trips: the claim alone, then everything that only reads in one pipeline.
They are not one pipeline, although that would save 0.1 ms: its statements would be one transaction until the last of
them was sent, and a process that is stopped or whose loop is blocked in between would hold the rows of other workers'
executions. A statement in autocommit is committed as soon as it has run, whatever becomes of its sender.

What keeps it right:

- The history is read by later statements than the claim. In one statement it would be read from a snapshot that is
  older than the lock, and may lack what the previous holder has just recorded.
- Signals are read before events, never after: whoever is told of signal 5 sees all events that led to it.
- A claimed execution is handed out once its history is complete, and until then it is *pending* here. When loading
  fails it stays pending and the next tick goes on; a long history is loaded in pages, a page for each tick, so that
  the others need not wait for it.
- When the answer to a claim is lost on its way, nobody knows whether it was committed. Its token is remembered, and
  what it took is given back by the following ticks.
"""

import datetime as dt
import itertools
import logging
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Protocol
from uuid import UUID

import msgspec
import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from zart._engine.entries import CancelRequest, Claim, Key, StoredEntry, StoredEvent
from zart._postgres.listener import done_channel, work_channel
from zart._postgres.queries import load
from zart.errors import ExecutionCancelled
from zart.failures import exception_to_json

_log = logging.getLogger("zart.claimer")

HISTORY_BYTES = 16 * 1024 * 1024
"""So much of stored histories, as the database keeps them, is loaded by one tick."""
_ROW_BYTES = 200  # what a row weighs beside its result
_BATCH = 500  # wake-ups and sleepers at a time
_DOUBT = 120.0  # seconds for which a claim whose answer was lost may still turn up
_RETRY = dt.timedelta(milliseconds=50)  # until a wake-up whose task was locked is tried again

Connect = Callable[[], Awaitable[AsyncConnection[TupleRow]]]
Watched = tuple[int, int, int]
"""A held execution: task id, epoch, the signal seen last."""


class News(msgspec.Struct, frozen=True, kw_only=True):
    """What is new about an execution that this worker holds."""

    task_id: int
    signal: int
    cancel: CancelRequest | None
    events: list[StoredEvent]
    """All that no wait has consumed, in order; at least those that led to `signal`."""
    lost: bool
    """It is no longer held under this epoch: drop it, nothing that it writes would be accepted."""


class Tick(msgspec.Struct, frozen=True, kw_only=True):
    """What one tick brought."""

    fenced: bool
    """The worker's own row is gone: it was reaped, and must register again before it can claim."""
    claims: list[Claim]
    news: list[News]
    next_due: dt.datetime | None
    """When it is worth while to ask again, in durable time: the next sleeper of any lane is due."""
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


class _Pending(msgspec.Struct, kw_only=True, eq=False):
    """A claimed execution whose history is still to be loaded."""

    task_id: int
    execution_id: str
    run_id: UUID
    lane: int
    epoch: int
    signal: int
    attempt: int
    floor: int
    recoveries: int
    due_at: dt.datetime
    started_at: dt.datetime
    not_before: dt.datetime | None
    cancel: CancelRequest | None
    accept_arguments: bool
    now: dt.datetime
    steps: int
    weight: int
    entries: list[StoredEntry]

    def claim(self, registration: int, payload: str | None, events: list[StoredEvent]) -> Claim:
        return Claim(
            task_id=self.task_id,
            execution_id=self.execution_id,
            run_id=self.run_id,
            lane=self.lane,
            epoch=self.epoch,
            registration=registration,
            signal=self.signal,
            attempt=self.attempt,
            floor=self.floor,
            recoveries=self.recoveries,
            due_at=self.due_at,
            started_at=self.started_at,
            not_before=self.not_before,
            cancel=self.cancel,
            accept_arguments=self.accept_arguments,
            payload=payload,
            entries=self.entries,
            events=events,
            now=self.now,
        )


class _Look(msgspec.Struct, frozen=True, kw_only=True):
    standing: bool
    wakeups: bool
    next_due: dt.datetime | None
    now: dt.datetime

    @property
    def due(self) -> bool:
        return self.next_due is not None and self.next_due <= self.now


class Claimer:
    """The claiming connection of one registration of a worker. Not for concurrent use: one call at a time.

    `connect` opens a connection in autocommit; it is opened when it is first needed, and again after it was lost.
    Any call may raise `psycopg.Error`; the next call goes on from there.
    """

    def __init__(
        self,
        connect: Connect,
        schema: str,
        worker_id: int,
        lanes: Sequence[int],
        *,
        history_bytes: int = HISTORY_BYTES,
    ) -> None:
        self._connect = connect
        self._worker = worker_id
        self._lanes = list(lanes)
        self._history_bytes = history_bytes
        self._claims = load("claim", schema)
        self._wakeups = load("wakeups", schema)
        self._workers = load("workers", schema)
        self._work_channel = work_channel(schema)
        self._done_channel = done_channel(schema)
        self._connection: AsyncConnection[TupleRow] | None = None
        self._tokens = itertools.count(secrets.randbits(62))
        self._pending: dict[int, _Pending] = {}
        self._doubtful: dict[int, float] = {}

    @property
    def pending(self) -> int:
        """Executions that are claimed and were not handed out so far; they count against the next limit."""
        return len(self._pending)

    async def tick(self, *, limit: int, suspect: bool, watching: Sequence[Watched] = ()) -> Tick:
        """Takes up to `limit` executions, and tells what is new about those in `watching`.

        With `suspect`, one of them may be an execution that was taken over and has recorded nothing since
        (`recoveries` > 0); a process should hold one of these at a time.
        """
        connection = await self._connected()
        if self._doubtful:
            await self._give_back(connection, ())
        room = limit - len(self._pending)
        standing, more = await self._claim(connection, room, suspect=suspect) if room > 0 else (True, False)

        whole, paged = self._next_to_load()
        async with connection.pipeline():
            loaded = [await self._execute(connection, *statement) for statement in self._loads(whole, paged)]
            inbox = await self._execute(connection, *self._inbox(watching)) if watching else None
            looked = await self._execute(connection, self._claims["look"], {"worker": self._worker})
            cancels = await self._execute(connection, self._wakeups["read_cancels"], {"batch": _BATCH})
        claims = await self._finish(loaded, whole, paged)
        look = _look(await looked.fetchall())
        news = await self._news(connection, await inbox.fetchall()) if inbox is not None else []

        next_due = look.next_due
        if look.wakeups:
            done, left = await self._apply(connection, await cancels.fetchall(), free=limit - len(claims))
            more = more or done
            if left:
                next_due = min(next_due or look.now + _RETRY, look.now + _RETRY)
        if look.due:
            if await self._promote(connection, free=limit - len(claims)):
                more = True
            else:
                next_due = look.now + _RETRY
        if not (standing and look.standing):
            self._pending.clear()
        return Tick(
            fenced=not (standing and look.standing),
            claims=claims,
            news=news,
            next_due=next_due,
            now=look.now,
            busy=more or bool(self._pending),
        )

    async def peek(self, *, suspect: bool = True) -> Peek:
        """Whether a tick would find anything; `suspect` as there."""
        connection = await self._connected()
        parameters = {"lanes": self._lanes, "suspect": suspect}
        cursor = await self._execute(connection, self._claims["peek"], parameters)
        ((ready, wakeups, next_due, now),) = await cursor.fetchall()
        return Peek(
            work=ready or wakeups or (next_due is not None and next_due <= now), next_due=next_due, now=now
        )

    async def set_idle(self, idle: bool) -> None:  # noqa: FBT001
        """Says whether this worker listens for notifications and has free slots.

        Ask again after saying yes: what was committed just before has notified nobody.
        """
        connection = await self._connected()
        await connection.execute(self._workers["set_idle"], {"worker": self._worker, "idle": idle})

    async def release(self) -> None:
        """Gives back what was claimed and not handed out, so that others go on with it at once."""
        if self._pending or self._doubtful:
            await self._give_back(await self._connected(), list(self._pending.values()))
            self._pending.clear()

    async def close(self) -> None:
        """Closes the connection. What is pending stays claimed: see `release`."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    # -- the claim

    async def _claim(
        self, connection: AsyncConnection[TupleRow], room: int, *, suspect: bool
    ) -> tuple[bool, bool]:
        """Whether the fence stood, and whether there may be more to claim."""
        batch = next(self._tokens) & 0x7FFF_FFFF_FFFF_FFFF
        parameters = {
            "worker": self._worker,
            "lanes": self._lanes,
            "limit": room,
            "suspects": int(suspect),
            "batch": batch,
        }
        self._doubtful[batch] = time.monotonic() + _DOUBT
        cursor = await self._execute(connection, self._claims["claim"], parameters)
        rows = await cursor.fetchall()
        del self._doubtful[batch]
        standing, candidates, now = rows[0][:3]
        taken = 0
        for row in rows:
            if row[3] is None:
                break
            pending = _pending(row[3:], now)
            self._pending[pending.task_id] = pending
            taken += 1
        return standing, standing and (taken >= room or candidates > taken)

    async def _give_back(self, connection: AsyncConnection[TupleRow], unused: Sequence[_Pending]) -> None:
        """Gives back `unused`, and all that claims took whose answer was lost."""
        parameters = {
            "worker": self._worker,
            "batches": list(self._doubtful),
            "tasks": [pending.task_id for pending in unused],
            "epochs": [pending.epoch for pending in unused],
        }
        await connection.execute(self._claims["give_back"], parameters)
        now = time.monotonic()
        self._doubtful = {batch: until for batch, until in self._doubtful.items() if until > now}

    # -- histories

    def _next_to_load(self) -> tuple[list[_Pending], _Pending | None]:
        """Those whose histories fit together, the shortest first; and one that is too long, for a page of it."""
        whole: list[_Pending] = []
        paged: _Pending | None = None
        room = self._history_bytes
        for pending in sorted(self._pending.values(), key=lambda pending: pending.weight):
            if pending.weight > self._history_bytes:
                paged = pending
                break
            if pending.weight > room:
                break
            room -= pending.weight
            whole.append(pending)
        return whole, paged

    def _loads(
        self, whole: list[_Pending], paged: _Pending | None
    ) -> Iterable[tuple[bytes, dict[str, object]]]:
        if whole:
            tasks = [pending.task_id for pending in whole]
            yield self._payloads(whole)
            yield self._claims["load_steps"], {"tasks": tasks, "runs": [pending.run_id for pending in whole]}
            yield self._events([(pending.task_id, pending.execution_id) for pending in whole])
        if paged is not None:
            path, name, occurrence, kind = paged.entries[-1].key if paged.entries else ("", "", 0, "")
            yield (
                self._claims["load_page"],
                {
                    "task": paged.task_id,
                    "run": paged.run_id,
                    "path": path,
                    "name": name,
                    "occurrence": occurrence,
                    "kind": kind,
                    "rows": self._page_rows(paged),
                },
            )
            # With every page: the answers that come with the last one count.
            yield self._payloads([paged])
            yield self._events([(paged.task_id, paged.execution_id)])

    def _page_rows(self, pending: _Pending) -> int:
        return max(10, self._history_bytes * pending.steps // max(pending.weight, 1))

    async def _finish(
        self, loaded: list[psycopg.AsyncCursor[TupleRow]], whole: list[_Pending], paged: _Pending | None
    ) -> list[Claim]:
        """The claims that are complete now. One that was lost while it was loaded is forgotten."""
        claims: list[Claim] = []
        position = 0
        if whole:
            payloads = dict(await loaded[0].fetchall())
            _add_steps(self._pending, await loaded[1].fetchall())
            events = _by_task(await loaded[2].fetchall())
            position = 3
            claims += self._hand_out(whole, payloads, events)
        if paged is not None:
            rows = await loaded[position].fetchall()
            payloads = dict(await loaded[position + 1].fetchall())
            events = _by_task(await loaded[position + 2].fetchall())
            _add_steps(self._pending, rows)
            if paged.task_id not in payloads or len(rows) < self._page_rows(paged):
                paged.entries.sort(key=_log_order)
                claims += self._hand_out([paged], payloads, events)
        return claims

    def _hand_out(
        self, complete: list[_Pending], payloads: dict[int, str | None], events: dict[int, list[StoredEvent]]
    ) -> Iterable[Claim]:
        for pending in complete:
            del self._pending[pending.task_id]
            if pending.task_id in payloads:
                yield pending.claim(self._worker, payloads[pending.task_id], events.get(pending.task_id, []))

    def _payloads(self, held: Sequence[_Pending]) -> tuple[bytes, dict[str, object]]:
        return self._claims["load_payloads"], {
            "worker": self._worker,
            "tasks": [pending.task_id for pending in held],
            "epochs": [pending.epoch for pending in held],
        }

    def _events(self, held: Sequence[tuple[int, str]]) -> tuple[bytes, dict[str, object]]:
        return self._claims["load_events"], {
            "tasks": [task for task, _ in held],
            "executions": [execution for _, execution in held],
        }

    # -- news

    def _inbox(self, watching: Sequence[Watched]) -> tuple[bytes, dict[str, object]]:
        tasks, epochs, signals = (list(column) for column in zip(*watching, strict=True))
        return self._claims["read_inbox"], {
            "worker": self._worker,
            "tasks": tasks,
            "epochs": epochs,
            "signals": signals,
        }

    async def _news(self, connection: AsyncConnection[TupleRow], rows: list[TupleRow]) -> list[News]:
        told = [(row[0], row[3]) for row in rows if not row[1]]
        events: dict[int, list[StoredEvent]] = {}
        if told:
            events = _by_task(await (await self._execute(connection, *self._events(told))).fetchall())
        return [
            News(
                task_id=task,
                signal=signal or 0,
                cancel=CancelRequest(reason, author) if cancelled else None,
                events=events.get(task, []),
                lost=lost,
            )
            for task, lost, signal, _, cancelled, reason, author in rows
        ]

    # -- what a tick does for everybody

    async def _apply(
        self, connection: AsyncConnection[TupleRow], cancels: list[TupleRow], *, free: int
    ) -> tuple[bool, bool]:
        """Whether wake-ups were applied, and whether some are left."""
        parameters = {
            "batch": _BATCH,
            "cancels": [wakeup for wakeup, _, _ in cancels],
            "failures": [cancelled_before_start(execution, reason) for _, execution, reason in cancels],
        }
        cursor = await self._execute(connection, self._wakeups["apply_wakeups"], parameters)
        ((applied, ready, left, ended),) = await cursor.fetchall()
        if ended:
            await self._notify(connection, "notify", {"channel": self._done_channel, "notes": ended})
        await self._share(connection, ready, free)
        return applied > 0, left > 0

    async def _promote(self, connection: AsyncConnection[TupleRow], *, free: int) -> bool:
        cursor = await connection.execute(self._wakeups["promote"], {"batch": _BATCH})
        await self._share(connection, cursor.rowcount, free)
        return cursor.rowcount > 0

    async def _share(self, connection: AsyncConnection[TupleRow], ready: int, free: int) -> None:
        """Tells the others when more has become ready than this worker can take."""
        if ready > free:
            await self._notify(
                connection, "notify_idle", {"channel": self._work_channel, "worker": self._worker}
            )

    async def _notify(
        self, connection: AsyncConnection[TupleRow], statement: str, parameters: dict[str, object]
    ) -> None:
        try:
            await connection.execute(self._wakeups[statement], parameters)
        except psycopg.OperationalError as error:
            # Those who wait poll as well, so they only hear of it later. A lost connection shows at the next statement.
            _log.warning("could not notify: %s", error)

    # -- the connection

    async def _connected(self) -> AsyncConnection[TupleRow]:
        if self._connection is not None and (self._connection.closed or self._connection.broken):
            await self.close()
        if self._connection is None:
            self._connection = await self._connect()
        return self._connection

    async def _execute(
        self, connection: AsyncConnection[TupleRow], statement: bytes, parameters: dict[str, Any]
    ) -> psycopg.AsyncCursor[TupleRow]:
        return await connection.execute(statement, parameters, binary=True)


def cancelled_before_start(execution_id: str, reason: str | None) -> str:
    """The stored failure of an execution that was cancelled when there was nothing to unwind."""
    text = f"execution {execution_id!r} was cancelled before it ran" + (f": {reason}" if reason else "")
    error = ExecutionCancelled(text, execution_id=execution_id, reason=reason)
    return exception_to_json(error, attempts=0).decode()


def _pending(row: TupleRow, now: dt.datetime) -> _Pending:
    (
        task,
        execution,
        run,
        lane,
        epoch,
        signal,
        attempt,
        floor,
        recoveries,
        due_at,
        started_at,
        not_before,
    ) = row[:12]
    cancelled_at, reason, author, accept_arguments, steps, weight = row[12:]
    return _Pending(
        task_id=task,
        execution_id=execution,
        run_id=run,
        lane=lane,
        epoch=epoch,
        signal=signal,
        attempt=attempt,
        floor=floor,
        recoveries=recoveries,
        due_at=due_at,
        started_at=started_at,
        not_before=not_before,
        cancel=CancelRequest(reason, author) if cancelled_at is not None else None,
        accept_arguments=accept_arguments,
        now=now,
        steps=steps,
        weight=int(weight) + steps * _ROW_BYTES,
        entries=[],
    )


def _add_steps(pending: dict[int, _Pending], rows: list[TupleRow]) -> None:
    """Rows of `load_steps` to the entries of their executions. A long replay passes here: 1 µs a row."""
    task = None
    append: Callable[[StoredEntry], None] | None = None
    for row in rows:
        if row[0] != task or append is None:
            task = row[0]
            append = pending[task].entries.append
        (
            _,
            path,
            name,
            occurrence,
            kind,
            seq,
            state,
            digest,
            arguments,
            result,
            failure,
            attempts,
            start,
            end,
            until,
        ) = row
        append(
            StoredEntry(
                key=Key(path, name, occurrence, kind),
                seq=seq,
                state=state,
                digest=digest,
                arguments=arguments,
                result=result,
                failure=failure,
                attempts=attempts,
                started_at=start,
                finished_at=end,
                until=until,
            )
        )


def _log_order(entry: StoredEntry) -> float:
    return entry.seq if entry.seq is not None else math.inf


def _by_task(rows: list[TupleRow]) -> dict[int, list[StoredEvent]]:
    events: dict[int, list[StoredEvent]] = {}
    for task, id, name, payload in rows:
        events.setdefault(task, []).append(StoredEvent(id, name, payload))
    return events


def _look(rows: list[TupleRow]) -> _Look:
    ((standing, wakeups, next_due, now),) = rows
    return _Look(standing=standing, wakeups=wakeups, next_due=next_due, now=now)
