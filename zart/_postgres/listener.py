"""Notifications: a hint that it is worth while to look now, never the news itself.

Whoever listens also polls, so nothing is lost when there is no connection for it, or none that can listen: a
pooler in transaction mode takes a LISTEN and forgets it. A listener keeps a connection of its own for as long
as it runs; when it was lost it comes back by itself and then says so, since what was sent in between is gone.
"""

import asyncio
import hashlib
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import psycopg
from psycopg import AsyncConnection, sql

from zart._postgres.pooler import through_pooler
from zart._postgres.readiness import has_more

_log = logging.getLogger("zart.listener")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 30.0


def work_channel(schema: str) -> str:
    """Where idle workers hear that there is work; the payload is empty."""
    return "zart_work_" + _mark(schema)


def done_channel(schema: str) -> str:
    """Where clients hear that an execution has ended; the payload is its id."""
    return "zart_done_" + _mark(schema)


def _mark(schema: str) -> str:
    return hashlib.md5(schema.encode(), usedforsecurity=False).hexdigest()[:12]


class Listener:
    """Calls `heard(channel, payload)` for every notification on its channels.

    `connect` opens a connection in autocommit. `caught_up()` is called each time it begins to listen: what
    was sent before was not heard, so look once. Both are called on the event loop and must not block it.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[AsyncConnection[Any]]],
        channels: Sequence[str],
        heard: Callable[[str, str], None],
        caught_up: Callable[[], None] = lambda: None,
    ) -> None:
        self._connect = connect
        self._channels = tuple(channels)
        self._heard = heard
        self._caught_up = caught_up
        self._told = False
        self.listening = False
        """Whether notifications arrive now. Where this is False, poll more often."""

    async def run(self) -> None:
        """Listens until it is cancelled."""
        pause = _FIRST_PAUSE
        while True:
            try:
                connection = await self._connect()
            except (psycopg.Error, OSError) as error:
                self._say("cannot listen for notifications and polls instead: %s", error)
            else:
                try:
                    if await through_pooler(connection):
                        _log.info(
                            "cannot listen for notifications through a connection pooler and polls instead; "
                            "ZART_DIRECT_URL may name the database itself"
                        )
                        await connection.close()
                        await asyncio.get_running_loop().create_future()  # that will not change
                    await self._listen(connection)
                except (psycopg.Error, OSError) as error:
                    if self.listening:
                        pause = _FIRST_PAUSE
                    self._say("lost its connection for notifications and polls until it is back: %s", error)
                finally:
                    self.listening = False
                    await connection.close()
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 (no secret)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _listen(self, connection: AsyncConnection[Any]) -> None:
        for channel in self._channels:
            await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
        self.listening = True
        if self._told:
            self._told = False
            _log.info("listens for notifications again")
        self._caught_up()
        await self._hear(connection)

    async def _hear(self, connection: AsyncConnection[Any]) -> None:
        """Until the connection is lost. The socket stays registered: to hear takes one turn of the loop."""
        libpq, loop = connection.pgconn, asyncio.get_running_loop()
        lost: asyncio.Future[None] = loop.create_future()

        def readable() -> None:
            try:
                while True:
                    libpq.consume_input()
                    while (notification := libpq.notifies()) is not None:
                        self._heard(notification.relname.decode(), notification.extra.decode())
                    if not has_more(socket):
                        return
            except psycopg.Error as error:
                loop.remove_reader(socket)
                if not lost.done():
                    lost.set_exception(error)

        socket = connection.fileno()
        loop.add_reader(socket, readable)
        try:
            readable()  # what came while LISTEN was sent
            await lost
        finally:
            loop.remove_reader(socket)

    def _say(self, text: str, *arguments: object) -> None:
        """Once for each time that it goes wrong."""
        if not self._told:
            self._told = True
            _log.warning(text, *arguments)
