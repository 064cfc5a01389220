"""Connections: opened with patience, looked over once, in small pools for those who need several.

A database that is starting, full or out of reach is tried again, with growing pauses that are drawn at random
so that a fleet does not knock in step; an address that can never work (a wrong password, an unknown database)
fails at once. Nothing here leaves state in a session but prepared statements, and where a pooler stands
between there are none: many cannot keep them. `ZART_PREPARED` says `on` for one that can, or `off`.
"""

import asyncio
import datetime as dt
import os
import random
import re
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Final, TypeVar

import psycopg
from psycopg import conninfo
from psycopg_pool import AsyncConnectionPool

from zart._postgres.pooler import through_pooler
from zart.config import EMBEDDED, find_direct_dsn, mask_dsn, resolve_dsn
from zart.errors import UsageError, ZartError

T = TypeVar("T")

Connection = psycopg.AsyncConnection[Any]

DIRECTORY: Final = ".zart"
"""Where the embedded server lives, in the working directory."""
PATIENCE: Final = dt.timedelta(seconds=5)
"""How long an unreachable database is tried for, unless said otherwise."""
PREPARE_AFTER: Final = 2
"""A statement's second run on a connection prepares it: ours are few and come for ever."""

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0
_CONNECT_WITHIN_SECONDS = 10
_MAY_PASS = ("08", "53", "57")
# libpq gives no SQLSTATE for a refused connection, only text. Whatever is not known to be final is tried
# again.
_FINAL = re.compile(
    r"(?:FATAL|error): +(?:.*authentication failed|(?:database|role) .* does not exist|no pg_hba\.conf entry"
    r"|permission denied|.*not permitted to log in|.*no password supplied|unrecognized|invalid|unsupported)"
    r"|no password supplied|invalid (?:port|sslmode|value)|does not support SSL"
    r"|could not translate host name .*not known",
    re.IGNORECASE,
)


class DatabaseUnreachable(ZartError, ConnectionError):  # noqa: N818
    """The database did not let us in, for as long as we tried. The text is one line and holds no secret."""


def resolve_address(dsn: str | None = None) -> str:
    """The address that `dsn` means, or that `ZART_DATABASE_URL` or `DATABASE_URL` names.

    "embedded" starts the server under `.zart/` in the working directory, or joins it. Raises UsageError when
    no database is named, or when it is none of PostgreSQL.
    """
    address, _ = resolve_dsn(dsn)
    return _start_embedded() if address == EMBEDDED else address


def direct_address(address: str) -> str:
    """The address for LISTEN and the heartbeat: past a pooler if `ZART_DIRECT_URL` names it, else the main
    one.
    """
    return find_direct_dsn() or address


def _start_embedded() -> str:
    from zart._postgres import embedded  # noqa: PLC0415 (most programs need no server of their own)

    return embedded.start(Path(DIRECTORY)).dsn()


async def dial(dsn: str, *, application_name: str, prepared: bool | None = None) -> Connection:
    """One attempt to connect; see `connect`. Raises what psycopg does."""
    if prepared is None:
        prepared = wants_prepared()
    arguments = connection_arguments(dsn, application_name=application_name, prepared=prepared)
    connection = await psycopg.AsyncConnection.connect(dsn, **arguments)
    if prepared is None:
        try:
            await _suit_pooler(connection)
        except BaseException:
            await connection.close()
            raise
    return connection


async def connect(
    dsn: str,
    *,
    application_name: str,
    prepared: bool | None = None,
    patience: dt.timedelta = PATIENCE,
) -> Connection:
    """An open connection in autocommit mode.

    `prepared=False` does without prepared statements (None: as `ZART_PREPARED` says, or without them behind
    a pooler). Raises `DatabaseUnreachable` when the database cannot be reached within `patience`, or at once
    when trying again is of no use.
    """

    async def attempt() -> Connection:
        return await dial(dsn, application_name=application_name, prepared=prepared)

    return await _with_patience(attempt, dsn, patience)


async def use(dsn: str, work: Callable[[Connection], Awaitable[T]], *, application_name: str) -> T:
    """What `work` gives with a connection that is closed after it.

    `work` is done again from its beginning when the database goes away in the middle of it: it must be
    harmless to repeat. Raises as `connect` does, and whatever `work` raises.
    """
    deadline = time.monotonic() + PATIENCE.total_seconds()
    while True:
        connection = await connect(dsn, application_name=application_name)
        try:
            return await work(connection)
        except psycopg.OperationalError as error:
            if not may_pass(error):
                raise
            if time.monotonic() > deadline:
                raise unreachable(error, dsn, PATIENCE) from None
        finally:
            await connection.close()
        await asyncio.sleep(_FIRST_PAUSE)


def connection_arguments(dsn: str, *, application_name: str, prepared: bool | None) -> dict[str, Any]:
    """What psycopg's `connect` is given beside the address. What the address says itself wins."""
    said = conninfo.conninfo_to_dict(dsn)
    arguments: dict[str, Any] = {
        "autocommit": True,
        "prepare_threshold": None if prepared is False else PREPARE_AFTER,
    }
    defaults = {"application_name": application_name, "connect_timeout": _CONNECT_WITHIN_SECONDS}
    return arguments | {name: value for name, value in defaults.items() if name not in said}


def wants_prepared() -> bool | None:
    """Whether `ZART_PREPARED` wants prepared statements; None where it says nothing: unless a pooler stands
    between.
    """
    value = os.environ.get("ZART_PREPARED", "auto").strip().lower()
    if value in ("auto", ""):
        return None
    if value in ("on", "1", "true", "yes"):
        return True
    if value in ("off", "0", "false", "no"):
        return False
    raise UsageError(f"ZART_PREPARED is {value!r}: set it to on, off or auto")


async def _suit_pooler(connection: Connection) -> None:
    """Do without prepared statements on a connection through a pooler."""
    if await through_pooler(connection):
        connection.prepare_threshold = None


def make_pool(
    dsn: str, *, application_name: str, min_size: int = 0, max_size: int = 8
) -> AsyncConnectionPool[Connection]:
    """A pool that is not open yet, of autocommit connections."""
    prepared = wants_prepared()
    return AsyncConnectionPool(
        dsn,
        configure=_suit_pooler if prepared is None else None,
        kwargs=connection_arguments(dsn, application_name=application_name, prepared=prepared),
        min_size=min_size,
        max_size=max_size,
        open=False,
        name=application_name,
        timeout=_CONNECT_WITHIN_SECONDS,
        reconnect_timeout=_CONNECT_WITHIN_SECONDS,
    )


async def _with_patience(
    attempt: Callable[[], Coroutine[Any, Any, Connection]], dsn: str, patience: dt.timedelta
) -> Connection:
    deadline = time.monotonic() + patience.total_seconds()
    pause = _FIRST_PAUSE
    while True:
        try:
            return await attempt()
        except psycopg.OperationalError as error:
            pause_now = pause * random.uniform(0.5, 1.5)  # noqa: S311 (no secret)
            if not may_pass(error):
                raise unreachable(error, dsn) from None
            if time.monotonic() + pause_now > deadline:
                raise unreachable(error, dsn, patience) from None
            pause = min(pause * 2, _LONGEST_PAUSE)
            await asyncio.sleep(pause_now)


def may_pass(error: psycopg.Error) -> bool:
    """Whether a failure to connect is worth another try."""
    if error.sqlstate is not None:
        return error.sqlstate[:2] in _MAY_PASS
    return not _FINAL.search(str(error))


def unreachable(error: Exception, dsn: str, tried: dt.timedelta | None = None) -> DatabaseUnreachable:
    """The error for people: one line, what was tried, the server's own reason, no secret."""
    reason = _one_line(str(error), dsn)
    tried_for = f" within {tried.total_seconds():g} s" if tried is not None else ""
    return DatabaseUnreachable(
        f"no connection to {mask_dsn(dsn)}{tried_for}: {reason}. Check that the server runs and that the "
        "address is right"
    )


def _one_line(text: str, dsn: str) -> str:
    line = " ".join(text.split()).rstrip(".")
    password = conninfo.conninfo_to_dict(dsn).get("password")
    if password:
        line = line.replace(str(password), "***")
    return line if len(line) <= 400 else line[:397] + "..."


async def check_settings(connection: Connection, dsn: str) -> list[str]:
    """Warnings about settings of this database or role that slow Zart down or endanger data.

    Raises UsageError for those under which it cannot work: a default isolation other than read committed
    (statements would decide from stale rows), or a database that takes no writes.
    """
    cursor = await connection.execute(
        "SELECT current_setting('default_transaction_isolation'), "
        "current_setting('default_transaction_read_only'),"
        " pg_catalog.pg_is_in_recovery(), current_setting('synchronous_commit'),"
        " current_setting('statement_timeout'), current_setting('lock_timeout'), "
        "current_setting('server_version_num')::int,"
        " current_setting('server_version')"
    )
    rows = await cursor.fetchall()
    isolation, read_only, standby, synchronous, statement_timeout, lock_timeout, number, version = rows[0]
    where = mask_dsn(dsn)
    if number < 140000:
        raise UsageError(f"{where} is PostgreSQL {version}: Zart needs 14 or newer")
    if isolation != "read committed":
        raise UsageError(
            f"{where} has default_transaction_isolation = '{isolation}', under which Zart would decide "
            "from stale rows: "
            "run ALTER ROLE ... SET default_transaction_isolation = 'read committed', "
            "or add options=-cdefault_transaction_isolation=read\\ committed to the address"
        )
    if standby or read_only == "on":
        what = "a standby" if standby else "read-only (default_transaction_read_only = on)"
        raise UsageError(f"{where} is {what}: give the address of the database that takes writes")
    warnings: list[str] = []
    if synchronous == "off":
        warnings.append(
            f"{where} has synchronous_commit = off: after a crash of the server, steps that were recorded "
            "last run again"
        )
    if statement_timeout != "0":
        warnings.append(
            f"{where} has statement_timeout = {statement_timeout}: long statements are cut and tried again"
        )
    if lock_timeout != "0":
        warnings.append(
            f"{where} has lock_timeout = {lock_timeout}: statements that wait longer are tried again"
        )
    return warnings
