"""The histories of what was claimed, on their way to the worker.

A claimed execution is handed out once its history is complete, and until then it is *pending* here. When
loading fails it stays pending, and the next tick goes on. So much of histories is loaded at once as
`history_bytes` allows, the shortest first; one that is longer than that is loaded in pages, a page for each
tick, so that the others need not wait for it.

What is claimed for the first time has no history, and mostly a short input, which comes with the claim: it is
handed out without another question. Events that were offered to it before are news for it then, like any
other. So is what this worker has kept in memory, when nothing but its time has come; when there is news, nothing
is asked for but that.
"""

import datetime as dt
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
from psycopg.rows import TupleRow

from zart._engine.entries import CancelRequest, Claim, Key, StoredEntry, StoredEvent
from zart._postgres.direct import Statement, statements

HISTORY_BYTES = 16 * 1024 * 1024
"""So much of stored histories, as the database keeps them, is loaded by one tick."""
SHORT_INPUT = 1024
"""Inputs up to this size, in bytes, come with the first claim."""
_ROW_BYTES = 200  # what a row weighs beside its result

Question = tuple[Statement, dict[str, Any]]


class Kept(NamedTuple):
    """What a body that is kept in memory has seen."""

    signal: int
    done: int


class Pending(msgspec.Struct, kw_only=True, eq=False):
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
    time_limit: dt.timedelta | None
    started_at: dt.datetime
    not_before: dt.datetime | None
    cancel: CancelRequest | None
    accept_arguments: bool
    now: dt.datetime
    payload: str | None
    priority: int
    parent_task: int | None
    done: int
    step: Key | None
    steps: int
    weight: int
    complete: bool
    kept: bool
    repair: str | None
    entries: list[StoredEntry]
    arrived: list[StoredEntry] = []
    trace_context: str | None = None

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
            time_limit=self.time_limit,
            started_at=self.started_at,
            not_before=self.not_before,
            cancel=self.cancel,
            accept_arguments=self.accept_arguments,
            payload=payload,
            entries=self.entries,
            events=events,
            now=self.now,
            step=self.step,
            priority=self.priority,
            parent_task=self.parent_task,
            done=self.done,
            kept=self.kept,
            arrived=self.arrived,
            repair=self.repair,
            trace_context=self.trace_context,
        )


class Histories:
    """What is pending under one registration, and the statements that load it."""

    def __init__(self, schema: str, worker_id: int, history_bytes: int = HISTORY_BYTES) -> None:
        self._worker = worker_id
        self._history_bytes = history_bytes
        self._statements = statements("claim", schema)
        self._pending: dict[int, Pending] = {}
        self._kept: list[Pending] = []
        self._whole: list[Pending] = []
        self._scheduled: list[Pending] = []
        self._paged: Pending | None = None

    def __len__(self) -> int:
        return len(self._pending)

    def add(self, row: TupleRow, now: dt.datetime, kept: Kept | None = None) -> None:
        """A row of the claim; `kept` is what its body has seen that is kept in memory."""
        pending = _pending(row, now, kept)
        self._pending[pending.task_id] = pending

    def held(self) -> tuple[list[int], list[int]]:
        """Task ids and epochs of what is pending."""
        return list(self._pending), [pending.epoch for pending in self._pending.values()]

    def clear(self) -> None:
        self._pending.clear()

    def questions(self) -> Iterator[Question]:
        """What to ask now, if anything; the answers go to `finish`, in this order."""
        self._choose()
        if self._kept:
            yield self.events([(pending.task_id, pending.execution_id) for pending in self._kept])
            yield self.arrived([pending.task_id for pending in self._kept])
        if self._whole:
            tasks = [pending.task_id for pending in self._whole]
            runs = [pending.run_id for pending in self._whole]
            yield self._payloads(self._whole)
            yield self.events([(pending.task_id, pending.execution_id) for pending in self._whole])
            yield self._statements["load_steps"], {"tasks": tasks, "runs": runs}
        if self._scheduled:
            yield self._statements["load_scheduled"], self._holds(self._scheduled)
        if self._paged is not None:
            # With every page: the answers that come with the last one count.
            yield self._payloads([self._paged])
            yield self.events([(self._paged.task_id, self._paged.execution_id)])
            yield self._page(self._paged)

    def finish_first(self) -> list[Claim]:
        """The claims for which there is nothing to ask."""
        return list(self._hand_out([each for each in self._pending.values() if each.complete], None, []))

    def finish(self, answers: Sequence[list[TupleRow]]) -> list[Claim]:
        """The claims that are complete now. One that was lost while it was loaded is forgotten."""
        claims = self.finish_first()
        remaining = iter(answers)
        if self._kept:
            events, arrived = next(remaining), arrivals(next(remaining))
            for pending in self._kept:
                pending.done, pending.arrived = arrived.get(pending.task_id, (pending.done, []))
            claims += self._hand_out(self._kept, None, events)
        if self._whole:
            payloads, events, steps = next(remaining), next(remaining), next(remaining)
            _add_steps(self._pending, steps)
            claims += self._hand_out(self._whole, payloads, events)
        if self._scheduled:
            inputs = [_scheduled(self._pending, row) for row in next(remaining)]
            claims += self._hand_out(self._scheduled, inputs, [])
        if self._paged is not None:
            payloads, events, steps = next(remaining), next(remaining), next(remaining)
            _add_steps(self._pending, steps)
            if not payloads or len(steps) < self._page_rows(self._paged):
                self._paged.entries.sort(key=_log_order)
                claims += self._hand_out([self._paged], payloads, events)
        return claims

    def events(self, held: Sequence[tuple[int, str]]) -> Question:
        """The unconsumed events of (task id, execution id) pairs; `by_task` sorts the answer."""
        return self._statements["load_events"], {
            "tasks": [task for task, _ in held],
            "executions": [execution for _, execution in held],
        }

    def arrived(self, tasks: Sequence[int]) -> Question:
        """What has ended of the work that these executions gave away; `arrivals` reads the answer."""
        return self._statements["load_arrived"], {"tasks": list(tasks)}

    def _choose(self) -> None:
        self._whole, self._scheduled, self._paged = [], [], None
        room = self._history_bytes
        incomplete = [pending for pending in self._pending.values() if not pending.complete]
        self._kept = [pending for pending in incomplete if pending.kept]
        incomplete = [pending for pending in incomplete if not pending.kept]
        for pending in sorted(incomplete, key=lambda pending: pending.weight):
            if pending.weight > self._history_bytes and pending.step is None:
                self._paged = pending
                break
            if pending.weight > room and (self._whole or self._scheduled):
                break
            room -= pending.weight
            (self._whole if pending.step is None else self._scheduled).append(pending)

    def _payloads(self, held: Sequence[Pending]) -> Question:
        return self._statements["load_payloads"], self._holds(held)

    def _holds(self, held: Sequence[Pending]) -> dict[str, Any]:
        return {
            "worker": self._worker,
            "tasks": [pending.task_id for pending in held],
            "epochs": [pending.epoch for pending in held],
        }

    def _page(self, pending: Pending) -> Question:
        path, name, occurrence, kind = pending.entries[-1].key if pending.entries else ("", "", 0, "")
        return self._statements["load_page"], {
            "task": pending.task_id,
            "run": pending.run_id,
            "path": path,
            "name": name,
            "occurrence": occurrence,
            "kind": kind,
            "rows": self._page_rows(pending),
        }

    def _page_rows(self, pending: Pending) -> int:
        return max(10, self._history_bytes * pending.steps // max(pending.weight, 1))

    def _hand_out(
        self,
        complete: list[Pending],
        payloads: list[TupleRow] | None,
        events: list[TupleRow],
    ) -> Iterator[Claim]:
        """`payloads` None: they are known."""
        payload_of = {pending.task_id: pending.payload for pending in complete}
        if payloads is not None:
            payload_of = dict(payloads)
        events_of = by_task(events)
        for pending in complete:
            task = pending.task_id
            del self._pending[task]
            if task in payload_of:
                yield pending.claim(self._worker, payload_of[task], events_of.get(task, []))


def _pending(row: TupleRow, now: dt.datetime, kept: Kept | None) -> Pending:
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
    cancelled, reason, author, accept_arguments, time_limit, priority, parent_task, done = row[12:20]
    path, name, occurrence, payload, steps, weight, repair, trace_context = row[20:]
    first = epoch == 1 and steps == 0 and signal == 0 and weight <= SHORT_INPUT
    return Pending(
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
        time_limit=time_limit,
        started_at=started_at,
        not_before=not_before,
        cancel=CancelRequest(reason, author) if cancelled else None,
        accept_arguments=accept_arguments,
        now=now,
        payload=payload,
        priority=priority,
        parent_task=parent_task,
        done=done,
        step=None if name is None else Key(path, name, occurrence, "step"),
        steps=0 if kept is not None else steps,
        weight=0 if kept is not None else int(weight) + steps * _ROW_BYTES,
        # Only a holder writes records, and with each event that is to be seen the signal moves.
        complete=(signal, done) == kept if kept is not None else first,
        kept=kept is not None,
        repair=repair,
        entries=[],
        trace_context=trace_context,
    )


def _add_steps(pending: dict[int, Pending], rows: list[TupleRow]) -> None:
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
            given_away,
            child,
            progress,
            data,
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
                given_away=given_away,
                child=_child(child),
                progress=progress,
                data=data,
            )
        )


def _child(stored: str | None) -> tuple[str, bool] | None:
    """Of a child's record: its id, and whether it is detached."""
    return None if stored is None else msgspec.json.decode(stored, type=tuple[str, bool])


def _scheduled(pending: dict[int, Pending], row: TupleRow) -> tuple[int, str | None]:
    """A row of `load_scheduled` to the one entry of its claim; returns the task and its input."""
    task, given, state, digest, attempts, started, until, progress = row
    held = pending[task]
    assert held.step is not None  # noqa: S101 (only scheduled steps are asked for there)
    held.entries.append(
        StoredEntry(
            key=held.step,
            seq=None,
            state=state,
            digest=digest,
            attempts=attempts,
            started_at=started,
            until=until,
            progress=progress,
        )
    )
    return task, given


def arrivals(rows: list[TupleRow]) -> dict[int, tuple[int, list[StoredEntry]]]:
    """By task: how much has ended in all, and what of it is new."""
    found: dict[int, tuple[int, list[StoredEntry]]] = {}
    for task, done, path, name, occurrence, kind, state, digest, arguments, result, failure, *rest in rows:
        attempts, started, finished, child = rest
        entry = StoredEntry(
            key=Key(path, name, occurrence, kind),
            seq=None,
            state=state,
            digest=digest,
            arguments=arguments,
            result=result,
            failure=failure,
            attempts=attempts,
            started_at=started,
            finished_at=finished,
            given_away=True,
            child=_child(child),
        )
        found.setdefault(task, (done, []))[1].append(entry)
    return found


def _log_order(entry: StoredEntry) -> float:
    return entry.seq if entry.seq is not None else math.inf


def by_task(rows: list[TupleRow]) -> dict[int, list[StoredEvent]]:
    events: dict[int, list[StoredEvent]] = {}
    for task, event, name, payload in rows:
        events.setdefault(task, []).append(StoredEvent(event, name, payload))
    return events
