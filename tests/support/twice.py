"""The mode in which each body that has come to its end is replayed in whole, and must come to the same end again.

The first ending is kept in memory, and the execution is given back instead. Whoever claims it next has nothing but the
database's log; when that replay has ended, it is compared: the outcome, and the calls of each branch in their order.
Order between branches is compared through the outcome alone: what branches do between two inputs has none.

A difference blocks the execution, and is written to the file in `ZART_TEST_DIFFERENCES`, so that the test fails
whatever it looks at. What happened outside between the two, a cancel, a limit that passed or somebody's wish to have
a step done again, is a new input: then the newer ending is the one to be confirmed.
"""

import os
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec

from tests.support.modes import DIFFERENCES
from zart._engine import endings, recording
from zart._engine.activation import Activation
from zart._engine.entries import (
    BodyRetry,
    Cancelled,
    Change,
    Completed,
    ContinuedAsNew,
    Entry,
    Failed,
    Key,
    Released,
    StoredEntry,
)
from zart._engine.holding import Holding
from zart._engine.log import Log
from zart.errors import NonDeterminismError


class _Noting(Log):
    """A log that knows what was asked of it, by branch."""

    __slots__ = ("calls", "written")

    def __init__(self, entries: Any, floor: int) -> None:
        super().__init__(entries, floor)
        self.calls: dict[str, list[Key]] = {}
        self.written: list[Key] = []

    def ask(self, key: Key) -> StoredEntry | None:
        self.calls.setdefault(key.path, []).append(key)
        return super().ask(key)


class _Seen(msgspec.Struct):
    """How a body ended."""

    ending: Any
    calls: dict[str, list[Key]]
    last_seq: int
    cancelling: bool
    """Somebody wanted it cancelled, whether its body heard of that or not."""
    repairing: bool
    """Somebody wanted some of it done again, and it has ended for that."""
    second: bool
    """It was replayed from the body that follows a failure on, so the first one's calls are not among these."""


_seen: dict[tuple[UUID, int], _Seen] = {}
"""First endings, by run and attempt of the body."""
_confirmed: set[tuple[UUID, int]] = set()
"""Runs and epochs whose ending was confirmed, or may not be asked for."""


def install() -> None:
    """For all workers of this process, from now on."""
    if recording.Log is _Noting:
        return
    recording.Log = _Noting  # type: ignore[misc]
    end, submit = Holding.end, Activation.submit

    def end_confirmed(self: Holding, change: Change, /) -> None:
        held = self._held.get(change.task_id)
        if held is not None and held.claim.epoch == change.epoch and not self.stopping:
            change = _confirm(held, change)
        end(self, change)

    def submit_noted(self: Activation, entry: Entry, **how: Any) -> Any:
        self.log.written.append(entry.key)  # type: ignore[attr-defined]
        return submit(self, entry, **how)

    Holding.end = end_confirmed  # type: ignore[method-assign]
    Activation.submit = submit_noted  # type: ignore[method-assign]


def _confirm(held: Activation, change: Change) -> Change:
    """What to write instead of an ending: it, if it is confirmed; else the execution is given back."""
    if not isinstance(change.ending, Completed | Failed | Cancelled | BodyRetry | ContinuedAsNew):
        return change
    hold = (change.run_id, change.epoch)
    if hold in _confirmed:
        return change  # the database refused its value
    log: Any = held.log
    now = _Seen(
        ending=_comparable(change.ending),
        calls=log.calls,
        last_seq=held.outgoing.last_seq,
        cancelling=held.cancels.requested is not None,
        repairing=isinstance(change.ending, BodyRetry) and change.ending.met is not None,
        second=bool(log.calls) and all(path.startswith(endings.ON_FAILURE) for path in log.calls),
    )
    body = (change.run_id, held.claim.attempt)
    before = _seen.pop(body, None)
    if before is None or _has_news(before, now, log):
        _seen[body] = now
        return msgspec.structs.replace(change, ending=Released(), notes=())
    _confirmed.add(hold)
    difference = _difference(before, now, log.written)
    if difference is None:
        return change
    who = f"execution {held.claim.execution_id!r} ({held.spec.name})"
    told = f"{who} came to another end when it was replayed: {difference}"
    with Path(os.environ[DIFFERENCES]).open("a") as file:
        file.write(told + "\n")
    return msgspec.structs.replace(
        change,
        ending=endings.blocked(NonDeterminismError(told, recorded="", requested=""), "non-determinism"),
    )


def _has_news(before: _Seen, now: _Seen, log: Any) -> bool:
    """Whether something came from outside: a cancel, a repair, or a limit that passed, with which the log went on."""
    if (now.cancelling and not before.cancelling) or (now.repairing and not before.repairing):
        return True
    recorded = [(entry.seq, key) for key, entry in log.by_key.items() if (entry.seq or 0) > before.last_seq]
    key: Key | None = min(recorded)[1] if recorded else next(iter(log.written), None)
    return key is not None and (key.kind == "cancel" or (key.kind, key.name) == ("timer", "timeout"))


def _difference(before: _Seen, now: _Seen, written: list[Key]) -> str | None:
    if written:
        return f"it wrote {', '.join(map(str, written))} again"
    if before.last_seq != now.last_seq:
        return f"the log had {before.last_seq} entries, and then {now.last_seq}"
    calls = before.calls
    if now.second and not before.second:
        calls = {path: keys for path, keys in calls.items() if path.startswith(endings.ON_FAILURE)}
    for path in calls.keys() | now.calls.keys():
        first, second = calls.get(path, []), now.calls.get(path, [])
        if first != second:
            return f"branch {path!r} made the calls {_shown(first)}, and then {_shown(second)}"
    if before.ending != now.ending:
        return f"it ended as {before.ending}, and then as {now.ending}"
    return None


def _shown(calls: list[Key]) -> str:
    return "[" + ", ".join(f"{key.kind} {key}" for key in calls) + "]"


def _comparable(ending: Completed | Failed | Cancelled | BodyRetry | ContinuedAsNew) -> Any:
    """Without what may differ: where in the code an exception was raised, and random delays."""
    if isinstance(ending, Completed):
        return ("completed", ending.result)
    if isinstance(ending, ContinuedAsNew):
        return ("continued", ending.payload)
    if isinstance(ending, BodyRetry):
        return ("body-retry", ending.attempt, ending.floor, sorted(attempt.key for attempt in ending.afresh))
    return (type(ending).__name__.lower(), _without_tracebacks(msgspec.json.decode(ending.failure)))


def _without_tracebacks(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_tracebacks(inner) for name, inner in value.items() if name != "traceback"}
    if isinstance(value, list):
        return [_without_tracebacks(inner) for inner in value]
    return value
