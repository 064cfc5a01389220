"""From what has gathered to what one statement may carry: one change for each row.

PostgreSQL applies only one change of a statement to a row, silently or with an error, so a batch is folded
first:

- of several entries for one key the later one counts, until one of them is final: what comes after that is
  refused, as the database would refuse it;
- an ending and a reset of the recoveries of the same task become one row of the array of tasks;
- an ending that touches its run's own entries (all but a suspension and a release) waits for the next batch
  when this one holds such entries.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, assert_never
from uuid import UUID

from zart._engine.entries import (
    FINAL,
    Blocked,
    BodyRetry,
    Cancelled,
    Change,
    ChildWork,
    Completed,
    ContinuedAsNew,
    Ending,
    Entry,
    Failed,
    Paused,
    Released,
    StepEnded,
    StepWork,
    Suspended,
)

Record = Entry | Change


class Batch(NamedTuple):
    """What one statement carries."""

    entries: list[Entry]
    changes: list[Change]
    earlier: Mapping[int, list[Entry]]
    """By the token of an entry: those for the same key that it took the place of."""

    def __len__(self) -> int:
        return len(self.entries) + len(self.changes)

    def halves(self) -> tuple["Batch", "Batch"]:
        """Two batches that hold it all, entries before endings. Only for a batch of more than one."""
        middle = len(self) // 2
        split = len(self.entries)
        return (
            Batch(self.entries[:middle], self.changes[: max(0, middle - split)], self.earlier),
            Batch(self.entries[middle:], self.changes[max(0, middle - split) :], self.earlier),
        )

    def rare_apart(self) -> list["Batch"]:
        """Those that begin anew, and those that a rule stops, have statements of their own: in everybody's it would
        cost everybody."""
        rare = [
            [change for change in self.changes if isinstance(change.ending, kind)]
            for kind in (ContinuedAsNew, Paused)
        ]
        if not any(rare) or any(len(changes) == len(self) for changes in rare):
            return [self]
        others = [
            change for change in self.changes if not isinstance(change.ending, (ContinuedAsNew, Paused))
        ]
        parts = [Batch(self.entries, others, self.earlier), *(Batch([], changes, {}) for changes in rare)]
        return [part for part in parts if len(part)]

    def all_entries(self) -> Sequence[Entry]:
        """The entries, each after those that it took the place of."""
        if not self.earlier:
            return self.entries
        return [told for entry in self.entries for told in (*self.earlier.get(entry.token, ()), entry)]

    def records(self) -> list[Record]:
        """Everything in it, also what was folded away."""
        return [*self.all_entries(), *self.changes]


class Folded(NamedTuple):
    batch: Batch
    refused: list[Record]
    """Comes after a final entry of its key, or after an ending of its task."""
    later: list[Record]
    """For the next batch."""


def fold(records: Sequence[Record]) -> Folded:
    """One batch of some records that stand in the order in which they were handed over."""
    entries = [record for record in records if type(record) is Entry]
    earlier: dict[int, list[Entry]] = {}
    refused: list[Record] = []
    if len(entries) > 1:
        by_key = {(entry.run_id, entry.key): entry for entry in entries}
        if len(by_key) < len(entries):
            entries = _fold_entries(entries, earlier, refused)
    if len(entries) == len(records):
        return Folded(Batch(entries, [], earlier), refused, [])
    changes: dict[int, Change] = {}
    later: list[Record] = []
    written = {entry.run_id for entry in entries}
    for record in records:
        if type(record) is not Change:
            continue
        if record.task_id in changes:
            refused.append(record)
        elif record.run_id in written and touches_entries(record.ending) and _meets(record, entries):
            later.append(record)
        else:
            changes[record.task_id] = record
    return Folded(Batch(entries, list(changes.values()), earlier), refused, later)


def _meets(change: Change, entries: Sequence[Entry]) -> bool:
    """Whether an ending changes a row that one of these entries writes: of a scheduled step, only its own."""
    ending = change.ending
    if not isinstance(ending, StepEnded):
        return True
    return any(entry.key == ending.key and entry.run_id == change.run_id for entry in entries)


def touches_entries(ending: Ending) -> bool:
    """Whether an ending changes entries of its run that are written already.

    A block does when the execution is being cancelled, which only the database knows.
    """
    return isinstance(ending, (Completed, Failed, Cancelled, BodyRetry, ContinuedAsNew, Blocked, StepEnded))


def _fold_entries(
    entries: list[Entry], earlier: dict[int, list[Entry]], refused: list[Record]
) -> list[Entry]:
    kept: dict[tuple[UUID, Any], Entry] = {}
    for entry in entries:
        place = (entry.run_id, entry.key)
        before = kept.get(place)
        if before is None:
            kept[place] = entry
        elif before.state in FINAL:
            refused.append(entry)
        else:
            del kept[place]  # its place is where the later one stands: in that order a body hears of them
            kept[place] = entry
            earlier[entry.token] = [*earlier.pop(before.token, ()), before]
    return list(kept.values())


def is_plain(batch: Batch) -> bool:
    """Whether it concerns nothing but rows of the journal."""
    return not batch.changes and _entries_are_plain(batch)


def _entries_are_plain(batch: Batch) -> bool:
    if batch.earlier:
        return False
    for entry in batch.entries:
        if entry.event_id is not None or entry.clears_recoveries or entry.failed_attempt is not None:
            return False
        if entry.numbers or entry.orders or entry.work is not None:
            return False
    return True


def only_finishes(batch: Batch) -> bool:
    """Whether it holds final endings and nothing else."""
    return not batch.entries and _endings_are_final(batch)


def records_and_finishes(batch: Batch) -> bool:
    """Whether it holds entries that concern nothing but rows of the journal, and final endings, of other runs."""
    return _endings_are_final(batch) and _entries_are_plain(batch)


def _endings_are_final(batch: Batch) -> bool:
    return all(
        isinstance(change.ending, (Completed, Failed, Cancelled))
        and change.parent_task is None
        and not (change.notes or change.orders)
        for change in batch.changes
    )


def only_begins_anew(batch: Batch) -> bool:
    """Whether it holds executions that begin anew and nothing else."""
    return not batch.entries and all(isinstance(change.ending, ContinuedAsNew) for change in batch.changes)


def only_parks(batch: Batch) -> bool:
    """Whether it holds what a rule stops and nothing else."""
    return not batch.entries and all(isinstance(change.ending, Paused) for change in batch.changes)


def size(record: Record) -> int:
    """The bytes of a record that are a user's; the rest is small."""
    if isinstance(record, Entry):
        told = len(record.result or b"") + len(record.failure or b"") + len(record.progress or b"")
        if isinstance(record.work, StepWork):
            told += len(record.work.input)
        elif isinstance(record.work, ChildWork):
            told += len(record.work.payload or b"")
        return told + len(record.failed_attempt.failure or b"") if record.failed_attempt is not None else told
    ending = record.ending
    match ending:
        case Completed():
            return len(ending.result)
        case StepEnded():
            return len(ending.result or b"") + len(ending.failure or b"")
        case Failed() | Cancelled() | Blocked():
            return len(ending.failure)
        case BodyRetry():
            return sum(len(attempt.failure or b"") for attempt in ending.afresh)
        case ContinuedAsNew():
            return len(ending.payload or b"")
        case Suspended() | Paused() | Released():
            return 0
        case _:
            assert_never(ending)
