"""A folded batch as columns: the arrays that the journal's statements take."""

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar, assert_never
from uuid import UUID

from zart._engine.entries import (
    Blocked,
    BodyRetry,
    Cancelled,
    Change,
    ChildWork,
    Claim,
    Completed,
    ContinuedAsNew,
    Entry,
    Failed,
    FailedAttempt,
    Key,
    Order,
    Paused,
    Released,
    StepEnded,
    StepWork,
    Suspended,
    text,
)
from zart._engine.folding import Batch
from zart._postgres.arrays import Array, bools, byteas, int4s, int8s, jsons, texts, times, uuids, words

T = TypeVar("T")


def _told(entry: Entry, earlier: Mapping[int, list[Entry]], value: T | None, field: str) -> T | None:
    """A field that a later record of a key may leave out, since an earlier one has told it."""
    if value is None:
        for before in reversed(earlier.get(entry.token, ())):
            told: T | None = getattr(before, field)
            if told is not None:
                return told
    return value


def columns_to_begin_anew(batch: Batch) -> dict[str, Array]:
    """The arrays of `begin_anew`."""
    columns = task_columns(batch)
    return {**{name: columns[name] for name in BEGINNING_ANEW}, **_note_columns(batch.changes)}


def columns_to_park(batch: Batch) -> dict[str, Array]:
    """The arrays of `park`."""
    columns = task_columns(batch)
    rules = [change.ending.rule if isinstance(change.ending, Paused) else None for change in batch.changes]
    return {
        **{name: columns[name] for name in PARKING},
        "rules": texts(rules),
        **_note_columns(batch.changes),
        **_order_columns(batch),
    }


PARKING = ("task_ids", "task_executions", "task_runs", "epochs", "task_tokens", "waiting_for")
"""The columns of tasks that `park` needs."""


BEGINNING_ANEW = ("task_ids", "task_executions", "task_runs", "epochs", "task_tokens", "task_results")
"""The columns of tasks that `begin_anew` needs."""


def finishing_columns(changes: Sequence[Change]) -> dict[str, Array]:
    """The columns of tasks that final endings need."""
    rows = [_ending_row(change, clears=False) for change in changes]
    return {
        "task_ids": int8s([row.id for row in rows]),
        "task_executions": texts([row.execution for row in rows]),
        "task_runs": uuids([row.run_id for row in rows]),
        "epochs": int4s([row.epoch for row in rows]),
        "endings": words([row.ending for row in rows]),
        "task_tokens": int8s([row.token for row in rows]),
        "task_results": jsons([row.result for row in rows]),
        "task_failures": jsons([row.failure for row in rows]),
    }


def key_columns(entries: Sequence[Entry], changes: Sequence[Change] = ()) -> dict[str, Array]:
    """The keys of entries, and of scheduled steps that have ended, with the tokens that their rows have then."""
    rows = [(entry.token, entry.run_id, entry.key) for entry in entries]
    rows += [
        (change.token, change.run_id, change.ending.key)
        for change in changes
        if isinstance(change.ending, StepEnded)
    ]
    return _keys("", rows)


def _keys(prefix: str, rows: Sequence[tuple[int, UUID, Key]]) -> dict[str, Array]:
    """The columns of tokens, runs and keys, each with `prefix` before its name."""
    return {
        f"{prefix}tokens": int8s([token for token, _, _ in rows]),
        f"{prefix}runs": uuids([run_id for _, run_id, _ in rows]),
        f"{prefix}paths": words([key[0] for _, _, key in rows]),
        f"{prefix}names": words([key[1] for _, _, key in rows]),
        f"{prefix}occurrences": int4s([key[2] for _, _, key in rows]),
        f"{prefix}kinds": words([key[3] for _, _, key in rows]),
    }


def entry_columns(batch: Batch) -> dict[str, Array]:
    """The arrays of `record`."""
    entries = batch.entries
    if any(entry.numbers for entry in entries):
        entries = [entry for entry in entries if not entry.numbers]
    digests = [entry.digest for entry in entries]
    arguments = [entry.arguments for entry in entries]
    started = [entry.started_at for entry in entries]
    progresses = [entry.progress for entry in entries]
    if batch.earlier:
        digests = [_told(entry, batch.earlier, entry.digest, "digest") for entry in entries]
        arguments = [_told(entry, batch.earlier, entry.arguments, "arguments") for entry in entries]
        started = [_told(entry, batch.earlier, entry.started_at, "started_at") for entry in entries]
        progresses = [_told(entry, batch.earlier, entry.progress, "progress") for entry in entries]
    return {
        **key_columns(entries),
        "seqs": int4s([entry.seq for entry in entries]),
        "states": words([entry.state for entry in entries]),
        "digests": byteas(digests),
        "arguments": texts(arguments),
        "results": jsons([entry.result for entry in entries]),
        "failures": jsons([entry.failure for entry in entries]),
        "attempts": int4s([entry.attempts for entry in entries]),
        "started": times(started),
        "finished": times([entry.finished_at for entry in entries]),
        "untils": times([entry.until for entry in entries]),
        "progresses": jsons(progresses),
    }


def entry_values(entry: Entry) -> dict[str, Any]:
    """The parameters of `record_one`, and of the statements for steps in a transaction."""
    return {
        **key_values(entry.run_id, entry.key),
        "seq": entry.seq,
        "state": entry.state,
        "digest": entry.digest,
        "arguments": entry.arguments,
        "result": text(entry.result),
        "failure": text(entry.failure),
        "data": text(entry.data),
        "attempts": entry.attempts,
        "started": entry.started_at,
        "finished": entry.finished_at,
        "until": entry.until,
        "progress": text(entry.progress),
        "token": entry.token,
    }


def key_values(run_id: UUID, key: Key) -> dict[str, Any]:
    """The parameters that name one call of one run."""
    return {
        "run_id": run_id,
        "path": key.path,
        "name": key.name,
        "occurrence": key.occurrence,
        "kind": key.kind,
    }


def all_columns(batch: Batch) -> dict[str, Array]:
    """The arrays of `record_and_end`."""
    written = [entry for entry in batch.entries if not entry.numbers]
    events = [entry for entry in batch.entries if entry.event_id is not None]
    return {
        **entry_columns(batch),
        "step_events": int8s([entry.event_id for entry in written]),
        "event_ids": int8s([entry.event_id for entry in events]),
        "event_tasks": int8s([entry.task_id for entry in events]),
        "event_runs": uuids([entry.run_id for entry in events]),
        **task_columns(batch),
        **_attempt_columns(batch),
        **_note_columns(batch.changes),
        **_number_columns(batch),
        **_work_columns(written),
        **_order_columns(batch),
    }


class TaskRow(NamedTuple):
    """One row of the array of tasks."""

    id: int
    execution: str
    run_id: UUID
    epoch: int
    ending: str
    token: int | None
    clears: bool
    result: bytes | None = None
    failure: bytes | None = None
    seen: int | None = None
    wake_at: dt.datetime | None = None
    wake_at_done: int | None = None
    waiting_for: str | None = None
    attempt: int | None = None
    floor: int | None = None
    not_before: dt.datetime | None = None
    begun: dt.datetime | None = None


def task_rows(batch: Batch) -> list[TaskRow]:
    """One row for each task that an ending or a reset touches, or that an event's consumption locks."""
    rows: dict[int, TaskRow] = {}
    for entry in batch.all_entries():
        if entry.clears_recoveries or entry.event_id is not None:
            before = rows.get(entry.task_id)
            clears = entry.clears_recoveries or (before is not None and before.clears)
            rows[entry.task_id] = TaskRow(entry.task_id, "", entry.run_id, 0, "none", None, clears)
    for change in batch.changes:
        before = rows.get(change.task_id)
        rows[change.task_id] = _ending_row(change, clears=before is not None and before.clears)
    return list(rows.values())


def task_columns(batch: Batch) -> dict[str, Array]:
    rows = task_rows(batch)
    return {
        "task_ids": int8s([row.id for row in rows]),
        "task_executions": texts([row.execution for row in rows]),
        "task_runs": uuids([row.run_id for row in rows]),
        "epochs": int4s([row.epoch for row in rows]),
        "endings": words([row.ending for row in rows]),
        "task_tokens": int8s([row.token for row in rows]),
        "clears": bools([row.clears for row in rows]),
        "task_results": jsons([row.result for row in rows]),
        "task_failures": jsons([row.failure for row in rows]),
        "seen": int4s([row.seen for row in rows]),
        "wake_ats": times([row.wake_at for row in rows]),
        "wake_at_dones": int4s([row.wake_at_done for row in rows]),
        "waiting_for": texts([row.waiting_for for row in rows]),
        "task_attempts": int4s([row.attempt for row in rows]),
        "floors": int4s([row.floor for row in rows]),
        "not_befores": times([row.not_before for row in rows]),
        "begun": times([row.begun for row in rows]),
        "task_is_step": bools([row.ending.startswith("step-") for row in rows]),
        "parent_ids": int8s(
            sorted(
                {c.parent_task for c in batch.changes if c.parent_task is not None}
                | {entry.task_id for entry in batch.entries if entry.work is not None}
            )
        ),
    }


def _ending_row(change: Change, *, clears: bool) -> TaskRow:
    def row(ending: str, **rest: Any) -> TaskRow:
        return TaskRow(
            change.task_id,
            change.execution_id,
            change.run_id,
            change.epoch,
            ending,
            change.token,
            clears,
            **rest,
        )

    ending = change.ending
    match ending:
        case Completed():
            return row("completed", result=ending.result)
        case Failed():
            return row("failed", failure=ending.failure)
        case Cancelled():
            return row("cancelled", failure=ending.failure)
        case Suspended():
            return row(
                "suspended",
                seen=ending.seen,
                wake_at=ending.wake_at,
                wake_at_done=ending.wake_at_done,
                waiting_for=ending.waiting_for,
            )
        case Paused():
            return row("paused", waiting_for=ending.waiting_for)
        case BodyRetry():
            return row(
                "body-retry",
                attempt=ending.attempt,
                floor=ending.floor,
                not_before=ending.not_before,
                seen=ending.met,
            )
        case ContinuedAsNew():
            return row("continued", result=ending.payload)
        case Blocked():
            return row("undo-failed" if ending.failed_undo else "blocked", failure=ending.failure)
        case Released():
            return row("released")
        case StepEnded():
            return row(
                f"step-{ending.state}",
                result=ending.result,
                failure=ending.failure,
                attempt=ending.attempts,
                begun=ending.started_at,
            )
        case _:
            assert_never(ending)


def _attempt_columns(batch: Batch) -> dict[str, Array]:
    rows: list[tuple[int, UUID, FailedAttempt]] = []
    for entry in batch.entries:
        all_told = (*batch.earlier.get(entry.token, ()), entry) if batch.earlier else (entry,)
        rows += [(entry.token, entry.run_id, told.failed_attempt) for told in all_told if told.failed_attempt]
    for change in batch.changes:
        if isinstance(change.ending, BodyRetry):
            rows.extend((change.token, change.run_id, attempt) for attempt in change.ending.afresh)
        elif isinstance(change.ending, Blocked) and change.ending.failed_undo is not None:
            rows.append((change.token, change.run_id, change.ending.failed_undo))
    return _columns_of_attempts(rows) if rows else _NO_ATTEMPTS


def _columns_of_attempts(rows: Sequence[tuple[int, UUID, FailedAttempt]]) -> dict[str, Array]:
    return {
        **_keys("attempt_", [(token, run_id, attempt.key) for token, run_id, attempt in rows]),
        "attempt_numbers": int4s([attempt.attempt for _, _, attempt in rows]),
        "attempt_bodies": int4s([attempt.body_attempt for _, _, attempt in rows]),
        "attempt_failures": jsons([attempt.failure for _, _, attempt in rows]),
        "attempt_started": times([attempt.started_at for _, _, attempt in rows]),
        "attempt_finished": times([attempt.finished_at for _, _, attempt in rows]),
        "attempt_next": times([attempt.next_at for _, _, attempt in rows]),
    }


def _note_columns(changes: Sequence[Change]) -> dict[str, Array]:
    notes = [(change.token, what, note) for change in changes for what, note in change.notes]
    notes += [
        (change.token, "blocked", change.ending.what)
        for change in changes
        if isinstance(change.ending, Blocked)
    ]
    return _columns_of_notes(notes) if notes else _NO_NOTES


def _columns_of_notes(notes: Sequence[tuple[int, str, str]]) -> dict[str, Array]:
    return {
        "note_tokens": int8s([token for token, _, _ in notes]),
        "note_whats": texts([what for _, what, _ in notes]),
        "note_texts": texts([note for _, _, note in notes]),
    }


def _number_columns(batch: Batch) -> dict[str, Array]:
    entries = [entry for entry in batch.entries if entry.numbers]
    return _columns_of_numbers(entries) if entries else _NO_NUMBERS


def _columns_of_numbers(entries: Sequence[Entry]) -> dict[str, Array]:
    return {
        **_keys("number_", [(entry.token, entry.run_id, entry.key) for entry in entries]),
        "number_seqs": int4s([entry.seq for entry in entries]),
    }


def _work_columns(entries: Sequence[Entry]) -> dict[str, Array]:
    """What is given away: the first two columns stand beside the entries, the others are of steps and children."""
    steps: list[tuple[int, Claim, StepWork]] = []
    children: list[tuple[int, Claim, ChildWork]] = []
    for entry in entries:
        if isinstance(entry.work, StepWork):
            steps.append((entry.token, _giver(entry), entry.work))
        elif isinstance(entry.work, ChildWork):
            children.append((entry.token, _giver(entry), entry.work))
    return {
        **(_columns_of_steps(steps) if steps else _NO_STEPS),
        **(_columns_of_children(children) if children else _NO_CHILDREN),
        "given_away": bools([entry.work is not None for entry in entries]),
        "givers": int8s([entry.task_id for entry in entries]),
        "inputs": jsons([None if entry.work is None else entry.work.stored() for entry in entries]),
    }


def _columns_of_steps(steps: Sequence[tuple[int, Claim, StepWork]]) -> dict[str, Array]:
    return {
        "work_tokens": int8s([token for token, _, _ in steps]),
        "work_executions": texts([giver.execution_id for _, giver, _ in steps]),
        "work_lanes": int8s([work.lane for _, _, work in steps]),
        "work_priorities": int4s([giver.priority for _, giver, _ in steps]),
        "work_parents": int8s([giver.task_id for _, giver, _ in steps]),
        "work_functions": texts([work.function for _, _, work in steps]),
        "work_held_back": bools([work.held_back for _, _, work in steps]),
    }


def _columns_of_children(children: Sequence[tuple[int, Claim, ChildWork]]) -> dict[str, Array]:
    return {
        "child_tokens": int8s([token for token, _, _ in children]),
        "child_ids": texts([work.id for _, _, work in children]),
        "child_names": texts([work.name for _, _, work in children]),
        "child_versions": texts([work.version for _, _, work in children]),
        "child_queues": texts([work.queue for _, _, work in children]),
        "child_priorities": int4s([work.priority for _, _, work in children]),
        "child_lanes": int8s([work.lane for _, _, work in children]),
        "child_runs": uuids([work.run_id for _, _, work in children]),
        "child_payloads": jsons([work.payload for _, _, work in children]),
        "child_digests": byteas([work.digest for _, _, work in children]),
        "child_limits": texts([interval(work.time_limit) for _, _, work in children]),
        "child_traces": texts([work.trace_context for _, _, work in children]),
        "child_parents": int8s([giver.task_id for _, giver, _ in children]),
        "child_parent_ids": texts([giver.execution_id for _, giver, _ in children]),
        "child_detached": bools([work.detached for _, _, work in children]),
    }


def _giver(entry: Entry) -> Claim:
    if entry.giver is None:
        raise TypeError(f"nobody is said to give {entry.key} away")
    return entry.giver


def interval(length: dt.timedelta | None) -> str | None:
    """A length of time as text that PostgreSQL reads."""
    if length is None:
        return None
    return f"{length.days} days {length.seconds} seconds {length.microseconds} microseconds"


def _order_columns(batch: Batch) -> dict[str, Array]:
    rows: list[tuple[int, UUID, Order]] = []
    for entry in batch.entries:
        for told in (*batch.earlier.get(entry.token, ()), entry):
            rows += [(entry.token, entry.run_id, order) for order in told.orders]
    for change in batch.changes:
        rows += [(change.token, change.run_id, order) for order in change.orders]
    return _columns_of_orders(rows) if rows else _NO_ORDERS


def _columns_of_orders(rows: Sequence[tuple[int, UUID, Order]]) -> dict[str, Array]:
    return {
        **_keys("order_", [(token, run_id, order.key) for token, run_id, order in rows]),
        "order_reasons": texts([order.reason for _, _, order in rows]),
        "order_authors": texts([order.author for _, _, order in rows]),
    }


# What most batches do not carry; there are many columns of it.
_NO_ATTEMPTS: Final = _columns_of_attempts(())
_NO_NOTES: Final = _columns_of_notes(())
_NO_NUMBERS: Final = _columns_of_numbers(())
_NO_STEPS: Final = _columns_of_steps(())
_NO_CHILDREN: Final = _columns_of_children(())
_NO_ORDERS: Final = _columns_of_orders(())
