"""What an activation waits for by the clock: sleeps, limits, a step's next attempt. In durable time, not the loop's."""

import datetime as dt
import heapq
import itertools
from collections.abc import Callable
from typing import Protocol


class Cancellable(Protocol):
    def cancel(self) -> None: ...


class Clock(Protocol):
    def now(self) -> dt.datetime:
        """Durable time."""
        ...

    def call_at(self, when: dt.datetime, callback: Callable[[], None], /) -> Cancellable:
        """Call back once durable time has reached `when`; a little earlier does no harm."""
        ...


class Alarm:
    """One callback at a time to come."""

    __slots__ = ("_alarms", "callback", "when")

    def __init__(self, alarms: "Alarms", when: dt.datetime, callback: Callable[[], None]) -> None:
        self._alarms = alarms
        self.when = when
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        if self.callback is not None:
            self.callback = None
            self._alarms.forget()


class Alarms:
    """All alarms of one activation, on one timer of its clock. `closed`: none of them ever calls back."""

    def __init__(self, clock: Clock, *, closed: bool = False) -> None:
        self._clock = clock
        self._heap: list[tuple[dt.datetime, int, Alarm]] = []
        self._numbers = itertools.count()
        self._timer: Cancellable | None = None
        self._timer_at: dt.datetime | None = None
        self._closed = closed
        self._silent = False

    def set(self, when: dt.datetime, callback: Callable[[], None]) -> Alarm:
        alarm = Alarm(self, when, callback)
        heapq.heappush(self._heap, (when, next(self._numbers), alarm))
        self._arm()
        return alarm

    def forget(self) -> None:
        """An alarm was cancelled: the dead ones at the front go."""
        while self._heap and self._heap[0][2].callback is None:
            heapq.heappop(self._heap)

    @property
    def due(self) -> dt.datetime | None:
        """When the first of them is due."""
        return self._heap[0][0] if self._heap else None

    def ring(self) -> None:
        """Call back what is due."""
        now = self._clock.now()
        while self._heap and self._heap[0][0] <= now and not self._closed:
            alarm = heapq.heappop(self._heap)[2]
            callback, alarm.callback = alarm.callback, None
            if callback is not None:
                callback()
        self.forget()
        self._arm()

    def close(self) -> None:
        self.silence()
        self._closed = True
        self._heap.clear()

    def silence(self) -> None:
        """None of them calls back until `go_on`."""
        self._silent = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def go_on(self) -> None:
        """What has become due meanwhile calls back soon."""
        self._silent = False
        self._arm()

    def _arm(self) -> None:
        due = self.due
        if self._closed or self._silent or due is None or (self._timer is not None and self._timer_at == due):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = due
        self._timer = self._clock.call_at(due, self._rang)

    def _rang(self) -> None:
        self._timer = None
        self.ring()
