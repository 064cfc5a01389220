"""A client's connections: each statement alone, sent again while the database is away.

Every statement of a client may be sent twice without harm: a start carries its id and run, an event its dedup
key, and the rest says how things shall be. So a connection that was lost with the answer on its way is no
reason to fail.
"""

import asyncio
import datetime as dt
import functools
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar

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
from zart.encryption import Payloads, configured
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

Row = tuple[Any, ...]
T = TypeVar("T")


class Database:
    """The connections of one client, and the statements that it sends."""

    def __init__(self, dsn: str | None, schema: str) -> None:
        self.schema: str = check_schema(schema)
        self._dsn = dsn
        self._address: str | None = None
        self._lines = (Line(self._dial), Line(self._dial))
        """The second one is opened when a start and a look for results are first sent at the same time."""
        self._pool: AsyncConnectionPool[Connection] | None = None

    @property
    def address(self) -> str:
        """Where the database is. Raises UsageError when none is named; an embedded server is started."""
        if self._address is None:
            self._address = connections.resolve_address(self._dsn)
        return self._address

    @functools.cached_property
    def payloads(self) -> Payloads:
        """What this client encrypts and decrypts with. Raises UsageError when that cannot be used."""
        return configured()

    async def open(self) -> None:
        """Open the pool, after one look at whether the database can be reached and used."""
        address, _ = self.address, self.payloads

        async def look_over(connection: Connection) -> list[str]:
            return await connections.check_settings(connection, address)

        for warning in await connections.use(address, look_over, application_name="zart client"):
            _log.warning("%s", warning)
        pool = connections.make_pool(address, application_name="zart client")
        await pool.open()
        self._pool = pool

    async def close(self) -> None:
        pool, self._pool = self._pool, None
        for line in self._lines:
            await line.close()
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
        """The rows of one statement, committed: of `client.sql`, or as `file.name` of another one.

        Raises SchemaError for tables that are not as expected, DatabaseUnreachable when the database stayed
        away. What somebody's open transaction holds is waited for however long that takes, on no connection.
        """
        return await self._persistently(lambda: self._send(statement, parameters), patience)

    async def transact(self, work: "Callable[[Transaction], Awaitable[T]]") -> T:
        """What `work` returns, once all its statements are committed together.

        It is done again from the start while the database is away, and when nobody knows whether it was committed: so
        it must find out whether it was. Raises like `query`.
        """
        return await self._persistently(lambda: self._transact(work), PATIENCE)

    async def _persistently(self, send: Callable[[], Awaitable[T]], patience: dt.timedelta) -> T:
        deadline = time.monotonic() + patience.total_seconds()
        pause = _FIRST_PAUSE
        while True:
            try:
                return await send()
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

    @property
    def _opened(self) -> AsyncConnectionPool[Connection]:
        if self._pool is None:
            raise UsageError(
                "the Client is not open: use it in `async with zart.Client(...) as client:` "
                "(only start and offer_event with connection= need no open one)"
            )
        return self._pool

    async def _send(self, statement: str, parameters: Mapping[str, Any]) -> list[Row]:
        pool = self._opened
        if statement in _WAITED_FOR:
            for line in self._lines:
                if not line.busy:
                    return await line.rows(statements("client", self.schema)[statement], parameters)
        async with pool.connection() as connection:
            try:
                cursor = await connection.execute(
                    statement_text(self.schema, statement),
                    parameters,
                    prepare=False if statement in _WITH_FILTERS else None,
                )
                return await cursor.fetchall()
            except errors.ReadOnlySqlTransaction:
                await (
                    connection.close()
                )  # a server that was demoted: the pool makes a new connection elsewhere
                raise

    async def _transact(self, work: "Callable[[Transaction], Awaitable[T]]") -> T:
        async with self._opened.connection() as connection, connection.transaction():
            transaction = Transaction(connection, self.schema)
            await transaction.query("limit_idling", {"limit": f"{int(PATIENCE.total_seconds() * 1000)}"})
            return await work(transaction)


class Transaction:
    """Several statements of `repairs.sql` that are committed together."""

    def __init__(self, connection: Connection, schema: str) -> None:
        self._connection = connection
        self._statements = load("repairs", schema)

    async def query(self, statement: str, parameters: Mapping[str, Any]) -> list[Row]:
        """The rows of one of them; none if it returns nothing."""
        cursor = await self._connection.execute(self._statements[statement], parameters)
        return await cursor.fetchall() if cursor.description is not None else []


def statement_text(schema: str, statement: str) -> bytes:
    """A statement of `client.sql`, or as `file.name` of another one."""
    file, _, name = statement.rpartition(".")
    return load(file or "client", schema)[name]


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
