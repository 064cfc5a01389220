"""Waits of one activation: sleeps, events, time limits. While it is held they are armed in memory, on durable time.

A wait that is resolved is an entry of the log like any other. One that is not resolved has a row with its deadline, so
that a crash or a suspension does not start it anew; the row is written with the next entry, at a suspension, or within
a second, whichever comes first: a short sleep costs one write.
"""

import datetime as dt
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Literal

import msgspec

from zart._engine import telling
from zart._engine.alarms import Alarm
from zart._engine.branch import Branch
from zart._engine.entries import Entry, Key, Record, StoredEntry, StoredEvent
from zart._engine.points import reach
from zart.telemetry.hub import hub

if TYPE_CHECKING:
    from zart._engine.activation import Activation
    from zart._engine.parking import DurableFuture

_CONSUMED = 0
"""The id of an event that the log holds already: nothing is left to consume in the database."""
_SECOND_HAND = "an event that was given back by a cancelled wait"
"""Stands in the record of a wait that has such an event, so that a replay takes it from those that were given back."""


class Wait(msgspec.Struct, eq=False):
    """Something that the body waits for now."""

    key: Key
    until: dt.datetime | None
    started_at: dt.datetime | None = None
    future: "DurableFuture | None" = None
    alarm: Alarm | None = None
    too_late: Callable[[], bytes] | None = None
    """What an event wait raises when `until` comes first."""
    deliver: Callable[[Record], None] | None = None
    """Who gets the entry of a wait without a future."""

    def __str__(self) -> str:
        what = f"event {self.key.name!r}" if self.key.kind == "wait" else self.key.name
        return what if self.until is None else f"{what} until {self.until:%a %d %b %H:%M:%S} UTC"


class Waits:
    """The waits that are open."""

    def __init__(self, activation: "Activation") -> None:
        self._activation = activation
        self._open: dict[Key, Wait] = {}
        self._by_event: dict[str, deque[Wait]] = {}
        self._events: dict[str, deque[StoredEvent]] = {}
        self._given_back: dict[str, deque[StoredEvent]] = {}
        self._known_events: set[int] = set()
        self._unsaved: dict[Key, Entry] = {}

    def __str__(self) -> str:
        shown = [str(wait) for wait in list(self._open.values())[:3]]
        more = len(self._open) - len(shown)
        return ", ".join(shown) + (f" and {more} more" if more > 0 else "")

    async def sleep(self, branch: Branch, key: Key, until: dt.datetime) -> Record:
        wait = Wait(key, until)
        return await self._wait(branch, wait)

    async def event(
        self, branch: Branch, key: Key, until: dt.datetime | None, too_late: Callable[[], bytes]
    ) -> Record:
        wait = Wait(key, until, too_late=too_late)
        queue = self._by_event.setdefault(key.name, deque())
        queue.append(wait)
        try:
            return await self._wait(branch, wait)
        finally:
            if wait in queue:
                queue.remove(wait)

    async def _wait(self, branch: Branch, wait: Wait) -> Record:
        activation = self._activation
        wait.future = activation.future()
        self._arm(wait, lambda: self._resolve(wait))
        if wait.key.kind == "wait":
            self._match(wait.key.name)
        activation.stir()
        try:
            record: Record = await branch.parked(wait.future)
        finally:
            self.cancel(wait)
        return record

    def timer(self, key: Key, until: dt.datetime, deliver: Callable[[Record], None]) -> Wait:
        """A time that nobody waits for: `deliver` gets its entry when that has its turn."""
        wait = Wait(key, until, deliver=deliver)
        self._arm(wait, lambda: self._resolve(wait))
        return wait

    def expect(self, key: Key, deliver: Callable[[Record], None]) -> Wait:
        """Wait for an event without anybody who waits: `deliver` gets its entry."""
        wait = Wait(key, None, deliver=deliver)
        self._by_event.setdefault(key.name, deque()).append(wait)
        self._arm(wait, lambda: None)
        self._match(key.name)
        return wait

    def stop(self, wait: Wait) -> None:
        """The body has cancelled a wait that it has a handle of."""
        queue = self._by_event.get(wait.key.name)
        if queue is not None and wait in queue:
            queue.remove(wait)
        self.cancel(wait)

    def _arm(self, wait: Wait, due: Callable[[], None]) -> None:
        activation = self._activation
        self._open[wait.key] = wait
        stored = activation.log.by_key.get(wait.key)
        wait.started_at = stored.started_at if stored is not None else activation.host.now()
        if stored is None:
            self._unsaved[wait.key] = Entry(
                run_id=activation.claim.run_id,
                key=wait.key,
                state="waiting",
                done=None,
                started_at=wait.started_at,
                until=wait.until,
            )
        if wait.until is not None:
            wait.alarm = activation.alarms.set(wait.until, due)
        reach("wait.armed")

    def cancel(self, wait: Wait) -> None:
        """The body waits for it no more."""
        self._open.pop(wait.key, None)
        if not self._activation.closed:
            self._unsaved.pop(wait.key, None)
        if wait.alarm is not None:
            wait.alarm.cancel()
            wait.alarm = None

    def _resolve(self, wait: Wait, event: StoredEvent | None = None) -> None:
        """The wait is over: by an event, or since its time has come."""
        queue = self._by_event.get(wait.key.name) if wait.key.kind == "wait" else None
        if queue is not None and wait in queue:
            queue.remove(wait)
        late = event is None and wait.key.kind == "wait"
        self._submit(wait, "failed" if late else "completed", event=event, deliver=wait.deliver)

    def _submit(
        self,
        wait: Wait,
        state: Literal["completed", "failed"],
        *,
        event: StoredEvent | None = None,
        deliver: Callable[[Record], None] | None = None,
    ) -> None:
        reach("wait.over")
        activation = self._activation
        if wait.future is None:
            self._open.pop(wait.key, None)
        self._unsaved.pop(wait.key, None)
        payload = event.payload.encode() if event is not None and event.payload is not None else None
        if wait.alarm is not None:
            wait.alarm.cancel()
            wait.alarm = None
        second_hand = event is not None and event.id == _CONSUMED
        if event is not None and not second_hand and hub.listening:
            telling.delivered(activation, event.name)
        entry = Entry(
            run_id=activation.claim.run_id,
            key=wait.key,
            state=state,
            done=None,
            result=payload if event is None else (payload or b"null"),
            failure=wait.too_late() if state == "failed" and wait.too_late is not None else None,
            started_at=wait.started_at or activation.host.now(),
            finished_at=activation.host.now(),
            until=wait.until,
            event_id=event.id if event is not None and not second_hand else None,
            arguments=_SECOND_HAND if second_hand else None,
        )
        activation.submit(entry, future=wait.future, deliver=deliver)

    # ------------------------------------------------------------ events

    def offer(self, events: Iterable[StoredEvent]) -> None:
        """Buffered events as the database has them now: the ones that are new go to those who wait, in order."""
        names = dict[str, None]()
        for event in events:
            if event.id not in self._known_events:
                self._known_events.add(event.id)
                self._events.setdefault(event.name, deque()).append(event)
                names[event.name] = None
        for name in names:
            self._match(name)

    def _match(self, name: str) -> None:
        if self._activation.replaying:
            return
        waiting = self._by_event.get(name)
        for events in (self._given_back.get(name), self._events.get(name)):
            while waiting and events:
                self._resolve(waiting[0], events.popleft())

    def match_all(self) -> None:
        for name in {**self._given_back, **self._events}:
            self._match(name)

    def give_back(self, record: Record) -> None:
        """An event was consumed for a wait that the body has cancelled meanwhile: the next wait has it, not nobody.

        It is in the log as the first wait's, so a replay gives it back at the same place.
        """
        if record.key.kind == "wait" and record.state == "completed":
            payload = record.result.decode() if isinstance(record.result, bytes) else record.result
            name = record.key.name
            self._given_back.setdefault(name, deque()).append(StoredEvent(_CONSUMED, name, payload))
            self._match(name)

    def replayed(self, record: StoredEntry) -> None:
        """The record of an event wait has its turn."""
        given_back = self._given_back.get(record.key.name)
        if given_back and record.arguments == _SECOND_HAND:
            given_back.popleft()

    # ------------------------------------------------------------ deadlines

    def save(self) -> None:
        """Write the rows of the waits that have none."""
        if self._unsaved:
            reach("deadlines.begin")
        unsaved, self._unsaved = self._unsaved, {}
        for entry in unsaved.values():
            self._activation.write(entry)

    @property
    def unsaved(self) -> bool:
        return bool(self._unsaved)
