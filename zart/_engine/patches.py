"""The answers of `zart.patched`: whether the run of an activation takes a change of its code.

Code that asks is newer than code that did not. A recorded call that the replay has not come to when the question is
asked was made by code that passed this place without asking, and must be made again in the same way: the answer is
false. Where there is none, the answer is true. Any branch's call counts, and the answer is one for the whole run: two
places that ask for the same change hear the same, so what one of them began the other can finish.

The answer is an entry of the log like any other, but nobody waits for it: it is written with the next entry, before
that. So whatever is recorded after a true answer has it in front, and a crash before that leaves a log with no call
behind the place: the answer is true once more. A false one is written, too: a retry of the body removes the
record that it failed of, which may be the one that the answer came from. An answer that a replay gives is written when
the replay is over; if the code turns out to contradict the log, nothing of it is kept.
"""

from typing import TYPE_CHECKING

from zart._engine.entries import Entry, Key
from zart._engine.log import PATCHED
from zart._engine.points import reach
from zart.errors import PayloadError, Suspended

if TYPE_CHECKING:
    from zart._engine.activation import Activation

_RECORDED = {"true": True, "false": False}


class Patches:
    """What one activation knows of them."""

    def __init__(self, activation: "Activation") -> None:
        self._activation = activation
        self._answers: dict[str, bool] = {}
        self._unsaved: list[Entry] = []

    def answer(self, change: str) -> bool:
        """Whether this run takes the change."""
        known = self._answers.get(change)
        if known is None:
            known = self._answers[change] = self._first_answer(change)
        return known

    def _first_answer(self, change: str) -> bool:
        activation = self._activation
        if activation.closed:
            raise Suspended
        key = Key(PATCHED, change, 1, "capture")
        stored = activation.log.by_key.get(key)
        if stored is not None:
            try:
                return _RECORDED[stored.result or ""]
            except KeyError:
                error = PayloadError(
                    f"execution {activation.claim.execution_id!r}: the recorded answer for the change {change!r} is "
                    f"{stored.result}, neither true nor false. Correct its row in zart_steps, then resume the execution"
                )
                activation.block(error, "misfit")
                raise Suspended from None
        answer = not (activation.replaying and activation.log.holds_more)
        told = b"true" if answer else b"false"
        entry = Entry.at_once(activation.claim.run_id, key, told, activation.host.now())
        self._unsaved.append(entry)
        reach("patch.answered")
        return answer

    def save(self) -> None:
        """Write the answers that are not written yet; each is committed before what is written after it."""
        if not self._unsaved:
            return
        unsaved, self._unsaved = self._unsaved, []
        for entry in unsaved:
            self._activation.put_numbered(entry)
