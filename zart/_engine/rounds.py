"""What a worker looks after for all workers: work whose worker is gone, and work that nobody has registered.

All workers do it, each at its own moments. It asks for little: that a lease has ended is seen by the heartbeats of the
others, which look at these rows anyway, so here only owners without rows are asked for. All of it is one connection.
"""

import asyncio
import datetime as dt
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import psycopg

from zart._engine.reaper import reap, sweep
from zart._postgres.connections import Connection
from zart._postgres.queries import load

_log = logging.getLogger("zart.worker")

_UNSERVED_AFTER: Final = (0.5, 15.0, 60.0)
"""Seconds until it is asked what nobody serves, after the beginning and after each time; the last one stands for the
rest: what a deploy has got wrong shows soon."""


class Rounds:
    """The duty. `connect` opens a connection in autocommit; `on_freed` is called when there is work again."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        schema: str,
        *,
        interval: dt.timedelta,
        on_freed: Callable[[], None],
    ) -> None:
        self._connect = connect
        self._schema = schema
        self._interval = interval.total_seconds()
        self._on_freed = on_freed
        self._connection: Connection | None = None
        self._expired = asyncio.Event()
        self._told: set[tuple[str, str, str | None]] = set()

    def expired(self) -> None:
        """Somebody's lease has ended: look at once."""
        self._expired.set()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        asked = 0
        sweep_at = loop.time() + self._pause()
        unserved_at = loop.time() + _UNSERVED_AFTER[0] * random.uniform(0.5, 1.5)  # noqa: S311 (no secret)
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(min(sweep_at, unserved_at)):
                        await self._expired.wait()
                now = loop.time()
                if self._expired.is_set() or now >= sweep_at:
                    sweep_at = now + self._pause()
                    await self._take_over()
                if now >= unserved_at:
                    asked += 1
                    unserved_at = now + _UNSERVED_AFTER[min(asked, len(_UNSERVED_AFTER) - 1)]
                    await self._report_unserved()
        finally:
            await self._hang_up()

    def _pause(self) -> float:
        return self._interval * random.uniform(1.0, 2.0)  # noqa: S311 (no secret)

    async def _take_over(self) -> None:
        expired = self._expired.is_set()
        self._expired.clear()
        try:
            connection = await self._connected()
            if await (reap if expired else sweep)(connection, self._schema):
                self._on_freed()
        except (psycopg.Error, OSError) as error:
            _log.warning("could not look for dead workers and tries again: %s", str(error).strip())
            await self._hang_up()

    async def _report_unserved(self) -> None:
        """Say which ready work nobody has registered."""
        try:
            connection = await self._connected()
            rows = await (await connection.execute(load("client", self._schema)["unserved"], {})).fetchall()
        except (psycopg.Error, OSError) as error:
            _log.debug("could not look for unserved work: %s", error)
            await self._hang_up()
            return
        for queue, name, version, count in rows:
            if (queue, name, version) not in self._told:
                _log.warning(
                    "%d executions of %s%s in queue %r are ready, and no worker that runs now has registered it",
                    count,
                    name,
                    f" version {version}" if version else "",
                    queue,
                )
        self._told = {(queue, name, version) for queue, name, version, _ in rows}

    async def _connected(self) -> Connection:
        if self._connection is None or self._connection.closed or self._connection.broken:
            await self._hang_up()
            self._connection = await self._connect()
        return self._connection

    async def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()
