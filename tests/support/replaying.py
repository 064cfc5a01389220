"""Runs a body in memory, cut off and replayed wherever a test wants, with the engine's own activation.

The journal is what a database would hold: entries that were committed when the cut came. Nothing else survives it.
"""

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tests.support.claims import first_claim
from zart._engine.activation import Activation
from zart._engine.entries import (
    BodyRetry,
    CancelRequest,
    Change,
    ContinuedAsNew,
    Ending,
    Key,
    Released,
    StoredEntry,
    Suspended,
)
from zart._engine.in_memory import START, Memory, World
from zart._engine.lineage import body_tasks
from zart._engine.timers import body_timers
from zart.durable import Durable
from zart.testing import _stored


@dataclass
class Replayed:
    """What came of it: the ending, the keys of the log in its order, and how many activations it took."""

    ending: Ending
    keys: list[str]
    activations: int
    notes: list[tuple[str, str]]
    journal: dict[Key, StoredEntry] = field(repr=False)
    attempt: int = 1
    floor: int = 0

    @property
    def result(self) -> Any:
        return msgspec.json.decode(self.ending.result)

    @property
    def failure(self) -> dict[str, Any]:
        return msgspec.json.decode(self.ending.failure)


class CuttingHost(Memory):
    """Holds an activation like a worker, and cuts it off as it is told to."""

    def __init__(self, *, cut: Callable[[int], bool], suspend: bool) -> None:
        super().__init__(World(lambda call, _key: call.spec.fn))
        self._cut = cut
        self._suspend = suspend
        self.commits = 0
        self.notes: list[tuple[str, str]] = []

    def holds_back(self, activation: Activation, /) -> bool:
        self.commits += 1
        return self._cut(self.commits)

    def suspends(self, activation: Activation, due: Any, /) -> bool:
        return True if self._suspend else super().suspends(activation, due)

    def end(self, change: Change, /) -> None:
        self.notes.extend(change.notes)
        super().end(change)


async def replayed(
    durable: Durable[..., Any],
    payload: object = None,
    *,
    cut: Callable[[int], bool] = lambda _commit: False,
    suspend: bool = False,
    events: Mapping[str, Sequence[object]] | None = None,
    code: Callable[[int], Durable[..., Any]] | None = None,
    cancel: Callable[[int], bool] = lambda _activation: False,
    journal: Mapping[Key, StoredEntry] | None = None,
    attempt: int = 1,
    floor: int = 0,
    most: int = 200,
    host: CuttingHost | None = None,
) -> Replayed:
    """Run `durable` to its end; `cut(n)` says whether the n-th committed entry is the last before a crash.

    With `suspend` it is suspended whenever it is parked. `code(n)` is the function that activation n runs (the first
    is 1): a deploy in the middle. `cancel(n)` says whether a cancel has been asked for when activation n begins.
    """
    import asyncio

    loop = asyncio.get_running_loop()
    host = host or CuttingHost(cut=cut, suspend=suspend)
    host.journal.update(journal or {})
    spec = durable.spec
    claim = first_claim(
        "test",
        uuid.UUID(int=7),
        START,
        attempt=attempt,
        floor=floor,
        payload=spec.payload.encode(payload, "payload").decode() if spec.takes_payload else None,
        events=_stored(events or {}),
    )
    with body_tasks(loop), body_timers(loop):
        for number in range(1, most + 1):
            claim = msgspec.structs.replace(
                claim,
                entries=list(host.journal.values()),
                events=[event for event in claim.events if event.id not in host.consumed],
                done=host.ended_elsewhere,
                cancel=CancelRequest("enough", "a test") if cancel(number) else claim.cancel,
            )
            activation = Activation(claim, (code(number) if code else durable).spec, host)
            ending = await host.run(activation)
            while activation.tasks:  # noqa: ASYNC110 (a turn of the loop is all that it takes)
                await asyncio.sleep(0)
            match ending:
                case Suspended():
                    if ending.wake_at is not None:
                        host.world.move(ending.wake_at)
                    elif not events:
                        raise AssertionError(f"suspended for ever: {ending.waiting_for}")
                case BodyRetry():
                    for failed in ending.afresh:
                        host.journal.pop(failed.key, None)
                    host.world.move(ending.not_before)
                    claim = msgspec.structs.replace(claim, attempt=ending.attempt, floor=ending.floor)
                case ContinuedAsNew():
                    host.journal.clear()
                    claim = msgspec.structs.replace(
                        claim,
                        run_id=uuid.UUID(int=claim.run_id.int + 1),
                        payload=None if ending.payload is None else ending.payload.decode(),
                        attempt=1,
                        floor=0,
                        due_at=host.now(),
                        started_at=host.now(),
                    )
                case Released():
                    pass
                case _:
                    ordered = sorted(
                        (entry for entry in host.journal.values() if entry.seq),
                        key=lambda entry: entry.seq or 0,
                    )
                    return Replayed(
                        ending,
                        [str(e.key) for e in ordered],
                        number,
                        host.notes,
                        host.journal,
                        claim.attempt,
                        claim.floor,
                    )
    raise AssertionError(f"no end after {most} activations")
