"""The ordered log of a run, as its replay reads it.

Everything that a body can observe (results, who won a race, time limits that passed, a cancel) is an entry with a
number. A replay hands the entries out in that order, each after the body has come to rest; what a body asks for in the
meantime waits for its turn. This module keeps the order and the bookkeeping, and finds contradictions between what was
recorded and what is asked for. It knows nothing of tasks or time.

An entry that nobody asks for is passed over once the body cannot ask for it any more. When the log is at its end, the
activation goes live; only then a call without a record may run. Before it does, `contradiction` looks whether that call
stands in the place of a recorded one: then the code has changed under the run.
"""

from collections.abc import Sequence

from zart._engine.entries import FINAL, Key, StoredEntry
from zart.errors import PayloadError

PATCHED = "patched/"
"""The path of the answers of `zart.patched`. They hold for the whole run, so none of them is ever handed out."""


def _is_call(key: Key) -> bool:
    """Whether a record proves what the code asked for; a time limit that passed does not."""
    return key.kind != "cancel" and not (key.kind == "timer" and key.name == "timeout")


def _damaged(entry: StoredEntry) -> PayloadError:
    number = "no number" if entry.seq is None else f"the number {entry.seq}"
    return PayloadError(
        f"the record of {entry.key.kind} {entry.key} is {entry.state} and has {number} in the log, which this library "
        "never writes. Correct the row in zart_steps, then resume the execution"
    )


class Log:
    """The recorded entries of a run, and how far this replay has handed them out."""

    __slots__ = (
        "_asked",
        "_floor",
        "_given",
        "_last_used",
        "_position",
        "_records",
        "_under_way",
        "_unused",
        "by_key",
        "damage",
        "last_seq",
    )

    def __init__(self, entries: Sequence[StoredEntry], floor: int) -> None:
        self._floor = floor
        self._position = 0
        self._asked: set[Key] = set()
        self._last_used: dict[str, int] = {}
        self._unused: dict[Key, StoredEntry] | None = None
        self.by_key: dict[Key, StoredEntry] = {}
        self.damage: PayloadError | None = None
        """Why it cannot be replayed: an entry that nobody here has written so."""
        self._records: list[StoredEntry] = []
        self._under_way: list[Key] = []
        self._given: dict[Key, StoredEntry] = {}
        """What was given away, has no number, and was not asked for."""
        self.last_seq = floor
        if entries:
            self._read(entries)

    def _read(self, entries: Sequence[StoredEntry]) -> None:
        self.by_key = {entry.key: entry for entry in entries}
        for entry in self.by_key.values():
            # What has ended has a number, what is under way has none. What somebody else does ends before it gets one.
            if (entry.seq is None) == (entry.state in FINAL) and not entry.has_arrived:
                self.damage = _damaged(entry)
                break
        numbered = [entry for entry in self.by_key.values() if entry.seq is not None and entry.state in FINAL]
        self._records = sorted(
            (entry for entry in numbered if entry.key.path != PATCHED),
            key=lambda entry: entry.seq or 0,
        )
        self._under_way = [key for key, entry in self.by_key.items() if entry.seq is None]
        self._given = {
            entry.key: entry for entry in self.by_key.values() if entry.given_away and entry.seq is None
        }
        self.last_seq = max([self._floor, *(entry.seq or 0 for entry in numbered)])

    def begin_after(self, seq: int, path: str) -> None:
        """Entries up to number `seq` belong to a body that has ended: they are not handed out. This one's are below
        `path`.
        """
        self._floor = max(self._floor, seq)
        self._records = [record for record in self._records if (record.seq or 0) > seq]
        self._under_way = [key for key in self._under_way if key.path.startswith(path)]

    def ask(self, key: Key) -> StoredEntry | None:
        """What is recorded of a call that the body makes now; it counts as asked for from here on."""
        if not self.by_key:
            return None
        self._asked.add(key)
        if self._given:
            self._given.pop(key, None)
        if self._unused:
            self._unused.pop(key, None)
        return self.by_key.get(key)

    def was_asked(self, key: Key) -> bool:
        return key in self._asked

    @property
    def next(self) -> StoredEntry | None:
        """The entry whose turn it is; None at the end of the log."""
        return self._records[self._position] if self._position < len(self._records) else None

    @property
    def holds_more(self) -> bool:
        """Whether a call is recorded that this replay has not come to: then the run has been further than here.

        A result that waits for its turn proves nothing if its call was made before this place.
        """
        to_come = (record.key for record in self._records[self._position :] if record.key.kind != "cancel")
        return any(key not in self._asked for key in (*to_come, *self._under_way))

    @property
    def brings_cancel(self) -> bool:
        """Whether the execution was cancelled, or its limit passed, at a place that this replay has not come to."""
        return any(record.key.kind == "cancel" for record in self._records[self._position :])

    def pass_on(self) -> None:
        """The next entry has had its turn, whether it was used or not."""
        self._position += 1

    def use(self, record: StoredEntry) -> None:
        """`record` goes to the body now."""
        path = record.key.path
        seq = record.seq or 0
        if seq > self._last_used.get(path, 0):
            self._last_used[path] = seq

    def unused(self) -> list[StoredEntry]:
        """The calls that were recorded and that nobody has asked for."""
        return [record for record in self._records if _is_call(record.key) and record.key not in self._asked]

    def used(self, path: str) -> int:
        """The last number that a branch has used so far."""
        return self._last_used.get(path, 0)

    def contradiction(
        self, key: Key, digest: bytes | None, used: int | None = None, *, gives: bool = False
    ) -> StoredEntry | None:
        """The record that makes a call without a record a contradiction, if there is one.

        `used` is the last number that its branch had used at the call, if it has gone on since; `gives`: the call gives
        work away.

        It is a record of the same branch, later than the last one that the branch has used, that was never asked for
        (renamed, inserted before, or moved); or one of the same name and arguments in another branch (the branches
        were numbered differently). Records made by earlier attempts of the body prove nothing.
        """
        if self._unused is None:
            self._unused = {record.key: record for record in self.unused() if (record.seq or 0) > self._floor}
        if gives and not self._floor:
            # Given away, and not asked for: it would be given away a second time under another name.
            for record in self._given.values():
                if record.key.path == key.path:
                    return record
        if not self._unused:
            return None
        used = self.used(key.path) if used is None else used
        for record in self._unused.values():
            if record.key.path == key.path and (record.seq or 0) > used:
                return record
        for record in self._unused.values():
            same_call = record.key.name == key.name and record.key.kind == key.kind
            if same_call and record.key.path != key.path and digest is not None and record.digest == digest:
                return record
        return None
