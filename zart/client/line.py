"""A client's own connection, for the statements that somebody waits for all the time.

The pool is for all the rest, and for what comes while this connection is busy: it costs more for each statement than
the statement itself.
"""

import asyncio
from collections.abc import Awaitable, Callable

import psycopg

from zart._postgres.connections import Connection
from zart._postgres.direct import Direct, Parameters, Row, Statement
from zart._postgres.trouble import keeps_connection


class Line:
    """Opened when it is first needed, and again after it was lost. `connect` may raise psycopg's errors."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]]) -> None:
        self._connect = connect
        self._connection: Connection | None = None
        self._direct: Direct | None = None
        self.busy: bool = False
        """Somebody's statement is on its way: this takes no other."""

    def adopt(self, connection: Connection) -> None:
        """Take a connection that is open."""
        self._connection = connection
        self._direct = Direct(connection)

    async def rows(self, statement: Statement, parameters: Parameters) -> list[Row]:
        """The rows of a statement, committed. Raises `psycopg.Error`."""
        self.busy = True
        try:
            if self._direct is None or self._direct.closed:
                await self.close()
                self.adopt(await self._connect())
            assert self._direct is not None  # noqa: S101 (adopted)
            return await self._direct.rows(statement, parameters)
        except psycopg.Error as error:
            if error.sqlstate is None or not (error.sqlstate[:2] in _HARMLESS or keeps_connection(error)):
                await self.close()
            raise
        except asyncio.CancelledError:
            await self.close()  # its answer is still to come, perhaps after a long time
            raise
        finally:
            self.busy = False

    async def close(self) -> None:
        direct, self._direct = self._direct, None
        if direct is not None:
            direct.close()
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


_HARMLESS = ("21", "22", "23", "42", "54")  # of the statement, not of the connection
