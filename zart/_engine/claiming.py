"""When a worker looks for work.

While there is a backlog it claims without pause. When a look finds nothing, it says in its row that it is idle, so that
whoever commits work notifies it, and looks once more at once: what was committed in between has notified nobody. For a
second it goes on to look after 10, 50 and 250 ms; from then on it relies on notifications and looks every two seconds,
or every `poll_interval` where none arrive, or when the next sleeper is due. Under a stream of work it stops asking for
notifications and looks every few milliseconds instead, so that those who start executions do not pay for them.

One notification stands for what several commit at the same moment, and for the work of other workers' functions, since
all listen to one channel. So after each one it looks again, after the same pauses: what was committed right behind it
has notified nobody.
"""

import asyncio
import datetime as dt
import logging
import random
from collections.abc import Callable
from typing import Final

import psycopg

from zart._engine.claimer import Claimer, Tick
from zart._engine.clock import DatabaseClock
from zart._engine.hearing import Hearing
from zart._engine.holding import Holding
from zart._postgres.trouble import Trouble, classify, keeps_connection

_log = logging.getLogger("zart.worker")

_AFTER_WORK: Final = (0.01, 0.05, 0.25)
_IDLE: Final = 2.0
_TRANSITION: Final = 1.0
"""For how many seconds after it has asked for notifications, or has heard one, a worker does not rely on them."""
_LOOK_AFTER: Final = 0.025
_LOOK_AT_LEAST_EVERY: Final = 0.05
"""Wake-ups and sleepers are looked for when nothing was claimed for 25 ms, and every 50 ms while there is work."""
_STREAM: Final = 20
"""More claims than this within the last 50 ms make a stream of work."""
_STREAM_PAUSE: Final = 0.002
_SHORTEST: Final = 0.001
_LONGEST_RETRY: Final = 5.0


class Claiming:
    """The duty that keeps a worker's slots filled, for one registration."""

    def __init__(
        self,
        claimer: Claimer,
        holding: Holding,
        clock: DatabaseClock,
        *,
        most: int,
        poll_interval: dt.timedelta,
        fresh: Callable[[], bool],
        listens: Callable[[], bool],
        on_fenced: Callable[[], None],
    ) -> None:
        self._claimer = claimer
        self._holding = holding
        self._clock = clock
        self._most = most
        self._poll_interval = poll_interval.total_seconds()
        self._fresh = fresh
        self._listens = listens
        self._on_fenced = on_fenced
        self._stirred = asyncio.Event()
        self._hearing = Hearing(self.stir)
        self._starved = False
        self._idle = False
        self._wary_since = 0.0
        self._looked_at = 0.0
        self._looks = 0
        self._stream = 0.0
        self._stream_at = 0.0

    def stir(self) -> None:
        """Somebody says that there may be work."""
        self._looks = 0
        self._stirred.set()

    def hear(self) -> None:
        """A notification: there may be work, for this worker or for another one."""
        self._wary_since = asyncio.get_running_loop().time()
        self._hearing.hear()

    def freed(self) -> None:
        """A slot is free again: look at once if there was more to claim."""
        if self._starved:
            self._stirred.set()

    async def run(self) -> None:
        failures = 0
        while True:
            self._stirred.clear()
            try:
                pause = await self._look()
                failures = 0
            except (psycopg.Error, OSError) as error:
                if isinstance(error, psycopg.Error) and classify(error) is Trouble.SCHEMA:
                    _log.error("cannot claim: the tables are not what this version expects: %s", error)
                elif not failures:
                    _log.warning("cannot claim and tries again: %s", str(error).strip())
                if not keeps_connection(error):  # it may have led to a server that takes no writes any more
                    await self._claimer.close()
                pause = min(0.05 * 2**failures, _LONGEST_RETRY) * random.uniform(0.5, 1.5)  # noqa: S311
                failures = min(failures + 1, 10)
                await asyncio.sleep(pause)
                continue
            if pause > 0:
                try:
                    async with asyncio.timeout(pause):
                        await self._stirred.wait()
                except TimeoutError:
                    pass

    async def _look(self) -> float:
        """One look; returns how long to pause."""
        room = min(self._holding.free, self._most) if self._fresh() and not self._holding.stopping else 0
        watched = self._holding.watched()
        begun = asyncio.get_running_loop().time()
        self._hearing.begin()
        if self._looks > (0 if self._idle else len(_AFTER_WORK)) and not watched and room > 0:
            peeked = await self._claimer.peek(suspect=self._holding.takes_suspect)
            self._clock.set(peeked.now)
            if not peeked.work:
                self._hearing.end(found=False)
                return self._pause(peeked.next_due)
        tick = await self._claimer.tick(
            limit=max(room, 0),
            suspect=self._holding.takes_suspect,
            watching=watched,
            hand_out=self._holding.take,
            keeps=self._holding.keeps,
            look=begun - self._looked_at > _LOOK_AT_LEAST_EVERY,
        )
        claims = len(tick.claims) + tick.handed_out
        self._clock.set(tick.now)
        self._take(tick, {task: epoch for task, epoch, _, _ in watched})
        if tick.looked:
            self._looked_at = begun
        if tick.fenced:
            self._on_fenced()
            return _IDLE
        self._starved = tick.busy or claims >= room
        if claims or tick.news:
            self._looks = 0
        self._hearing.end(found=bool(claims or tick.news or tick.busy))
        if tick.busy and room > 0:
            if self._idle:
                await self._say_idle(idle=False)
            return 0.0
        if self._is_stream(claims):
            if self._idle:
                await self._say_idle(idle=False)
            return _STREAM_PAUSE
        if not tick.looked:
            return _LOOK_AFTER
        if not self._idle and self._listens() and self._holding.free > 0:
            await self._say_idle(idle=True)
            return 0.0
        return self._pause(tick.next_due)

    def _take(self, tick: Tick, epochs: dict[int, int]) -> None:
        # They are about what was held when the tick began. One that was suspended meanwhile may have been claimed
        # again, and that its old hold is lost must not be taken for news of the new one.
        for news in tick.news:
            self._holding.tell(news, epochs[news.task_id])
        for claim in tick.claims:
            self._holding.take(claim)

    def _pause(self, next_due: dt.datetime | None) -> float:
        now = asyncio.get_running_loop().time()
        if self._looks < len(_AFTER_WORK) and (not self._idle or now - self._wary_since < _TRANSITION):
            pause = max(_AFTER_WORK[self._looks], self._hearing.gap)
        else:
            pause = _IDLE if self._idle and self._listens() else self._poll_interval
        self._looks += 1
        if next_due is not None:
            until = (next_due - self._clock.now()).total_seconds()
            pause = min(pause, max(until, _SHORTEST))
        return pause

    def _is_stream(self, claims: int) -> bool:
        now = asyncio.get_running_loop().time()
        self._stream = self._stream * 0.5 ** ((now - self._stream_at) / 0.05) + claims
        self._stream_at = now
        return self._stream > _STREAM

    async def _say_idle(self, *, idle: bool) -> None:
        await self._claimer.set_idle(idle)
        self._idle = idle
        self._wary_since = asyncio.get_running_loop().time()
