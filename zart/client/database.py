"""A client's connections: each statement alone, sent again while the database is away.

Every statement of a client may be sent twice without harm: a start carries its id and run, an event its dedup
key, and the rest says how things shall be. So a connection that was lost with the answer on its way is no
reason to fail.
"""

import asyncio
import datetime as dt
import logging
import random
import time
from collections.abc import Mapping
from typing import Any, Final

import psycopg
from psycopg import errors
from psycopg.rows import tuple_row
from psycopg_pool import AsyncConnectionPool

from zart._postgres import connections
from zart._postgres.connections import Connection
from zart._postgres.direct import statements
from zart._postgres.lent import LentConnection
from zart._postgres.naming import check_schema, schema_trouble
from zart._postgres.queries import load
from zart._postgres.trouble import Trouble, blames_schema, classify, sqlstate
from zart.client.line import Line
from zart.errors import UsageError

_log = logging.getLogger("zart.client")

PATIENCE: Final = dt.timedelta(seconds=10)
"""How long a statement is tried while the database is away."""
GIVES_WAY: Final = "100ms"
"""How long a statement waits for a key that a transaction of somebody else's holds, before others go first."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 1.0
_LONGEST_PAUSE_HELD = 0.5
_HELD = errors.LockNotAvailable.sqlstate
_WITH_FILTERS: Final = frozenset(("page", "live_page"))
"""Planned each time, with the filters that are there: the plan for any filters sorts every execution there is, and of
fifty thousand the server takes that for the cheaper one."""
_WAITED_FOR: Final = frozenset(("start", "start_many", "await_ends", "ended"))
"""The statements of every execution."""
_FILES: Final[Mapping[str, str]] = {
    "cutoffs": "retention",
    "prune": "retention",
    "count_prunable": "retention",
}
"""Where statements stand that are not in `client.sql`."""

Row = tuple[Any, ...]


class Database:
    """The connections of one client, and the statements that it sends."""

    def __init__(self, dsn: str | None, schema: str) -> None:
        self.schema: str = check_schema(schema)
        self._dsn = dsn
        self._address: str | None = None
        self._line = Line(self._dial)
        self._pool: AsyncConnectionPool[Connection] | None = None

    @property
    def address(self) -> str:
        """Where the database is. Raises UsageError when none is named; an embedded server is started."""
        if self._address is None:
            self._address = connections.resolve_address(self._dsn)
        return self._address

    async def open(self) -> None:
        """Open the pool, after one look at whether the database can be reached and used."""
        address = self.address

        async def look_over(connection: Connection) -> list[str]:
            return await connections.check_settings(connection, address)

        for warning in await connections.use(address, look_over, application_name="zart client"):
            _log.warning("%s", warning)
        pool = connections.make_pool(address, application_name="zart client")
        await pool.open()
        self._pool = pool

    async def close(self) -> None:
        pool, self._pool = self._pool, None
        await self._line.close()
        if pool is not None:
            await pool.close()

    async def _dial(self) -> Connection:
        return await connections.dial(self.address, application_name="zart client")

    async def connect_directly(self) -> Connection:
        """A connection beside the pool, past a pooler if `ZART_DIRECT_URL` names a way."""
        return await connections.connect(
            connections.direct_address(self.address), application_name="zart client listener", prepared=False
        )

    async def query(
        self, statement: str, parameters: Mapping[str, Any], patience: dt.timedelta = PATIENCE
    ) -> list[Row]:
        """The rows of one statement of `client.sql`, or of those in `retention.sql`, committed.

        Raises SchemaError for tables that are not as expected, DatabaseUnreachable when the database stayed
        away. What somebody's open transaction holds is waited for however long that takes, on no connection.
        """
        deadline = time.monotonic() + patience.total_seconds()
        pause = _FIRST_PAUSE
        while True:
            try:
                return await self._send(statement, parameters)
            except psycopg.Error as error:
                trouble = classify(error)
                if trouble is Trouble.SCHEMA:
                    raise schema_trouble(error, self.schema) from error
                if trouble is Trouble.DATA:
                    raise
                if error.sqlstate == _HELD:
                    deadline = time.monotonic() + patience.total_seconds()
                    pause = min(pause, _LONGEST_PAUSE_HELD)
                elif time.monotonic() + pause > deadline:
                    raise connections.unreachable(error, self.address, patience) from error
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 (no secret)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def hint(self, statement: str, parameters: Mapping[str, Any]) -> None:
        """Send a notification. Nothing depends on it, so a failure is only logged."""
        try:
            await self._send(statement, parameters)
        except psycopg.Error as error:
            _log.debug("a notification could not be sent: %s", error)

    async def _send(self, statement: str, parameters: Mapping[str, Any]) -> list[Row]:
        if self._pool is None:
            raise UsageError(
                "the Client is not open: use it in `async with zart.Client(...) as client:` "
                "(only start and offer_event with connection= need no open one)"
            )
        if statement in _WAITED_FOR and not self._line.busy:
            return await self._line.rows(statements("client", self.schema)[statement], parameters)
        async with self._pool.connection() as connection:
            try:
                cursor = await connection.execute(
                    load(_FILES.get(statement, "client"), self.schema)[statement],
                    parameters,
                    prepare=False if statement in _WITH_FILTERS else None,
                )
                return await cursor.fetchall()
            except errors.ReadOnlySqlTransaction:
                await (
                    connection.close()
                )  # a server that was demoted: the pool makes a new connection elsewhere
                raise


async def query_within(
    connection: psycopg.AsyncConnection[Any] | LentConnection,
    schema: str,
    statement: str,
    parameters: Mapping[str, Any],
) -> list[Row]:
    """The rows of one statement of `client.sql` in a transaction of the caller's own, which decides over
    it. On a `LentConnection` this never waits for the event loop, and gives the first row only.
    """
    text = load("client", check_schema(schema))[statement]
    if isinstance(connection, LentConnection):
        return _query_lent(connection, schema, text, parameters)
    if not isinstance(connection, psycopg.AsyncConnection):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(
            f"connection= is {type(connection).__name__}, but must be a psycopg.AsyncConnection "
            "(in SQLAlchemy: (await conn.get_raw_connection()).driver_connection); "
            "zart.sync takes synchronous ones"
        )
    try:
        async with connection.cursor(row_factory=tuple_row) as cursor:
            await cursor.execute(text, parameters)
            return await cursor.fetchall()
    except psycopg.Error as error:
        if classify(error) is Trouble.SCHEMA:
            raise schema_trouble(error, schema) from error
        raise


def _query_lent(
    connection: LentConnection, schema: str, text: bytes, parameters: Mapping[str, Any]
) -> list[Row]:
    try:
        row = connection.row(text, parameters)
    except Exception as error:  # each driver has errors of its own
        if blames_schema(sqlstate(error)):
            raise schema_trouble(error, schema) from error
        raise
    return [] if row is None else [row]
