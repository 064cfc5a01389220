"""Durable time as a worker knows it: the database's, carried on by a monotonic clock between statements."""

import datetime as dt
import time


class DatabaseClock:
    """Every answer of the database that brings the time sets the clock; nobody compares wall clocks."""

    __slots__ = ("_at", "_now")

    def __init__(self, now: dt.datetime) -> None:
        self._now = now
        self._at = time.monotonic()

    def set(self, now: dt.datetime) -> None:
        """The database has just said that it is `now`. Time goes back only if the database's did."""
        estimate = self.now()
        self._at = time.monotonic()
        # The answer is a little older than the moment in which it is read: keep the later of both.
        self._now = max(now, estimate) if abs((now - estimate).total_seconds()) < 1 else now

    def now(self) -> dt.datetime:
        # Twice for each step: days and seconds by their places are read faster than by their names.
        return self._now + dt.timedelta(0, time.monotonic() - self._at)
