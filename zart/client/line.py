"""A connection of a client's own, for the statements that somebody waits for all the time.

A client has two, since it starts executions and looks for their results at the same time. The pool is for all the rest,
and for what comes while both are busy: it costs more for each statement than the statement itself.
"""

import asyncio
from collections.abc import Awaitable, Callable

import psycopg

from zart._postgres.connections import Connection
from zart._postgres.direct import DirectLine, Parameters, Row, Statement
from zart._postgres.trouble import Trouble, classify, keeps_connection


class Line:
    """Opened when it is first needed, and again after it was lost. `connect` may raise psycopg's errors."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]]) -> None:
        self._line = DirectLine(connect)
        self.busy: bool = False
        """Somebody's statement is on its way: this takes no other."""

    async def rows(self, statement: Statement, parameters: Parameters) -> list[Row]:
        """The rows of a statement, committed. Raises `psycopg.Error`."""
        self.busy = True
        try:
            return await (await self._line.open()).rows(statement, parameters)
        except psycopg.Error as error:
            if classify(error) is Trouble.LOST and not keeps_connection(error):
                await self.close()
            raise
        except asyncio.CancelledError:
            await self.close()  # its answer is still to come, perhaps after a long time
            raise
        finally:
            self.busy = False

    async def close(self) -> None:
        await self._line.close()
