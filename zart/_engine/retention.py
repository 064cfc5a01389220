"""Prunes what ended long ago, for all workers: one of them at a time, once an hour.

Whose turn it is says a row of the database. A worker that dies in the middle leaves the rest for the next turn. The
walk rests for as long as each of its transactions took, and it has a connection of its own: it does not hold up the
journal, the claims or the rounds.
"""

import asyncio
import datetime as dt
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import psycopg

from zart._postgres.connections import Connection
from zart._postgres.pruning import Retention, prune
from zart._postgres.queries import load

_log = logging.getLogger("zart.worker")

_EVERY: Final = dt.timedelta(hours=1)
"""Between two rounds of all workers, by the real clock."""
_LOOKS_EVERY: Final = 300.0
"""Seconds, or nearly, until a worker asks whether it is its turn."""
_FIRST_LOOK: Final = 10.0


class RetentionDuty:
    """The duty. `connect` opens a connection in autocommit; it is closed between the rounds."""

    def __init__(
        self, connect: Callable[[], Awaitable[Connection]], schema: str, retention: Retention
    ) -> None:
        self._connect = connect
        self._statements = load("retention", schema)
        self._retention = retention

    async def run(self) -> None:
        pause = _FIRST_LOOK
        while True:
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 (no secret)
            pause = _LOOKS_EVERY
            try:
                connection = await self._connect()
                try:
                    await self._look(connection)
                finally:
                    await connection.close()
            except (psycopg.Error, OSError) as error:
                _log.warning("could not prune, and tries again later: %s", " ".join(str(error).split()))

    async def _look(self, connection: Connection) -> None:
        """Prune, if it is this worker's turn."""

        async def query(statement: str, parameters: Mapping[str, Any]) -> list[tuple[Any, ...]]:
            cursor = await connection.execute(self._statements[statement], parameters)
            return await cursor.fetchall()

        if not await query("take_turn", {"duty": "retention", "every": _EVERY}):
            return
        deleted = emptied = 0
        began = time.monotonic()
        async for page in prune(query, self._retention):
            deleted += page.deleted
            emptied += page.emptied
            await asyncio.sleep(time.monotonic() - began)
            began = time.monotonic()
        if deleted or emptied:
            _log.info(
                "pruned %d executions that ended more than %s ago, and %d down to their ids",
                deleted,
                self._retention.older_than,
                emptied,
            )
