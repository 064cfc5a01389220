"""What a person wants done again in a run: a step that has failed for good, or results that a new run does not keep.

The request stands on the task's row until an activation has met it. Whoever holds the execution gives it back at its
next record. The activation that finds the request replays what is recorded and, at the end of the log or when the body
has ended, does not go on: it sets aside what is to be done again, and the body runs afresh, as after a failure with
retries left. So everything else is as there: completed steps are kept, entries of before prove no contradiction, and a
saga that was undone because of what is tried afresh is forgotten with its acts.

Set aside are

- the records asked for;
- records whose exception left the body, as by a retry of the body, and failures that have come too late for it to hear
  of: else it would fail of them now;
- a cancel, or the end of the time limit, with all that came after it, which was cleanup;
- what `on_failure` has done: there is no failure any more.
"""

from typing import TYPE_CHECKING, Final

import msgspec

from zart._engine.endings import ON_FAILURE
from zart._engine.entries import BodyRetry, FailedAttempt, Key, StoredEntry
from zart._engine.points import reach
from zart.errors import PayloadError

if TYPE_CHECKING:
    from zart._engine.activation import Activation

_KEYS: Final = msgspec.json.Decoder(list[Key])


class Repair:
    """A request, and the activation that meets it."""

    def __init__(self, activation: "Activation", keys: frozenset[Key]) -> None:
        self._activation = activation
        self._keys = keys

    @classmethod
    def of(cls, activation: "Activation") -> "Repair | None":
        """What was asked for when the execution was claimed. Raises PayloadError for a row that somebody has edited."""
        asked = activation.claim.repair
        if asked is None:
            return None
        try:
            return cls(activation, frozenset(_KEYS.decode(asked)))
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise PayloadError(
                f"what is to be repaired cannot be read: {error}. Set `repair` of its row in zart_tasks to null, "
                "resume the execution, then ask again"
            ) from error

    def meet(self, error: BaseException | None) -> None:
        """All that is recorded was replayed; `error` has left the body, if it has ended so."""
        activation = self._activation
        reach("repair.begin")
        blamed = [raised for raised, record in activation.blamed.values() if record.key in self._keys]
        afresh, forgotten = activation.phase.tried_afresh([*blamed, *([error] if error is not None else [])])
        set_aside = {attempt.key: attempt for attempt in afresh}
        for record in self._recorded():
            set_aside.setdefault(record.key, self._aside(record))
        for saga in forgotten:
            activation.note_down(saga.next_mark)
        told = ", ".join(str(key) for key in set_aside) or "nothing"
        activation.notes.append(("repair", f"the body runs again, without what is recorded of {told}"))
        activation.end(
            BodyRetry(
                attempt=activation.claim.attempt + 1,
                not_before=activation.claim.now,
                floor=max(
                    activation.outgoing.last_seq, 1
                ),  # 0 is none: what was given away may have no number
                afresh=tuple(set_aside.values()),
                met=activation.claim.signal,
            )
        )

    def _recorded(self) -> list[StoredEntry]:
        """The records asked for, and what is of no use without them."""
        entries = self._activation.log.by_key.values()
        heard = {record.key for _, record in self._activation.blamed.values()}
        ends = [entry.seq for entry in entries if entry.key.kind == "cancel" and entry.seq is not None]
        since = min(ends, default=None)
        return [
            entry
            for entry in entries
            if entry.key in self._keys
            or (entry.state == "failed" and entry.key not in heard)
            or entry.key.path.startswith(ON_FAILURE)
            or (since is not None and entry.seq is not None and entry.seq >= since)
        ]

    def _aside(self, record: StoredEntry) -> FailedAttempt:
        return self._activation.phase.moved(record.key, record, None)
