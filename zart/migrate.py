"""Brings a database to the tables of this version.

`migrations/NNNN_verb_noun.sql` are applied in order, each once, all in one transaction under one advisory
lock: any number of processes may do it at once, on every deploy, and whoever comes second finds nothing to
do. A released file never changes; its checksum is stored with its number, and a difference is an error, since
nobody can tell what such a database holds.

In the files `{schema}` stands for the quoted schema, and braces of SQL's own are doubled.
"""

import hashlib
import re
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Final, final

import msgspec
import psycopg
from psycopg import errors, sql

from zart._postgres import connections
from zart._postgres.naming import check_schema, migrate_command
from zart.errors import SchemaError

_FILE: Final = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")
_LOCK: Final = (
    "SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('zart migrate ' || %s, 0))"
)
_TABLE: Final = """\
CREATE TABLE IF NOT EXISTS {schema}.zart_migrations (
    number int PRIMARY KEY,
    name text NOT NULL,
    checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
)"""


class Migration(msgspec.Struct, frozen=True, kw_only=True):
    """One numbered file. `name` is the file's, without its ending."""

    number: int
    name: str
    text: str
    checksum: str


@final
class Status(msgspec.Struct, frozen=True, kw_only=True):
    """How a database stands to this version of the library."""

    pending: tuple[str, ...]
    """Names of the migrations that it lacks, in order."""
    drifted: tuple[str, ...]
    """Applied ones whose file has another text now."""
    unknown: tuple[str, ...]
    """Applied ones that this version does not have: the database is newer."""

    @property
    def is_current(self) -> bool:
        return not (self.pending or self.drifted or self.unknown)


@cache
def migrations() -> tuple[Migration, ...]:
    """Every migration that comes with the library, in order."""
    packaged = resources.files("zart") / "migrations"
    folder = packaged if packaged.is_dir() else Path(__file__).parent.parent / "migrations"
    found: list[Migration] = []
    for file in folder.iterdir():
        if match := _FILE.fullmatch(file.name):
            text = file.read_text(encoding="utf-8").replace("\r\n", "\n")
            checksum = hashlib.sha256(text.encode()).hexdigest()
            name = file.name.removesuffix(".sql")
            found.append(Migration(number=int(match[1]), name=name, text=text, checksum=checksum))
    found.sort(key=lambda migration: migration.number)
    return tuple(found)


async def migrate(dsn: str | None = None, /, *, schema: str = "public") -> None:
    """Create or update Zart's tables in `schema`, which is created too if it is missing.

    `dsn` is the database; without one, `ZART_DATABASE_URL` or `DATABASE_URL` names it. Call it as often as
    you like, from as many processes as you like. Raises SchemaError when the database is newer than this
    library or a released migration was edited; nothing is changed then.
    """
    check_schema(schema)
    address = connections.resolve_address(dsn)
    connection = await connections.connect(address, application_name="zart migrate", prepared=False)
    async with connection:
        if (await read_status(connection, schema)).is_current:
            return
        await connection.set_isolation_level(psycopg.IsolationLevel.READ_COMMITTED)
        await connection.set_read_only(False)
        async with connection.transaction():
            await _apply(connection, schema)


async def _apply(connection: psycopg.AsyncConnection[Any], schema: str) -> None:
    await connection.execute("SET LOCAL idle_in_transaction_session_timeout = '60s'")
    await connection.execute(_LOCK, (schema,))
    cursor = await connection.execute("SELECT FROM pg_catalog.pg_namespace WHERE nspname = %s", (schema,))
    if cursor.rowcount == 0:  # IF NOT EXISTS would ask for the right to create schemas even where it exists
        await connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
    status = await read_status(connection, schema)
    _refuse_strange(status, schema)
    if not status.pending:
        return
    await connection.execute("SET LOCAL client_min_messages = 'warning'")
    await connection.execute(_statement(_TABLE, schema))
    insert = _with_parameters(
        "INSERT INTO {schema}.zart_migrations (number, name, checksum) VALUES (%s, %s, %s)", schema
    )
    for migration in migrations():
        if migration.name in status.pending:
            await connection.execute(_statement(migration.text, schema))
            await connection.execute(insert, (migration.number, migration.name, migration.checksum))


async def check(dsn: str | None = None, /, *, schema: str = "public") -> Status:
    """What `migrate` would find; changes nothing."""
    check_schema(schema)
    address = connections.resolve_address(dsn)
    connection = await connections.connect(address, application_name="zart migrate", prepared=False)
    async with connection:
        return await read_status(connection, schema)


async def ensure_current(connection: psycopg.AsyncConnection[Any], schema: str) -> None:
    """Raise SchemaError, naming the command to run, unless `schema` holds exactly this version's tables."""
    status = await read_status(connection, schema)
    _refuse_strange(status, schema)
    if status.pending:
        older = len(status.pending) < len(migrations())
        what = f"older than this library (missing: {', '.join(status.pending)})" if older else "not there"
        raise SchemaError(f"Zart's tables in schema {schema!r} are {what}: run `{migrate_command(schema)}`")


async def read_status(connection: psycopg.AsyncConnection[Any], schema: str) -> Status:
    """How `schema` stands to this version, read over an open connection."""
    table = _statement("{schema}.zart_migrations", schema).as_string(None)
    cursor = await connection.execute("SELECT pg_catalog.to_regclass(%s) IS NOT NULL", (table,))
    row = await cursor.fetchone()
    applied: dict[int, tuple[str, str]] = {}
    if row is not None and row[0]:
        try:
            cursor = await connection.execute(
                _statement(
                    "SELECT number, name, checksum FROM {schema}.zart_migrations ORDER BY number", schema
                )
            )
        except errors.InsufficientPrivilege:
            raise SchemaError(
                f"this role may not read the tables in schema {schema!r}: "
                "GRANT USAGE on the schema and SELECT on its tables"
            ) from None
        applied = {number: (name, checksum) for number, name, checksum in await cursor.fetchall()}
    known = {migration.number: migration for migration in migrations()}
    return Status(
        pending=tuple(migration.name for number, migration in known.items() if number not in applied),
        drifted=tuple(
            known[number].name
            for number, (_, checksum) in applied.items()
            if number in known and known[number].checksum != checksum
        ),
        unknown=tuple(name for number, (name, _) in applied.items() if number not in known),
    )


def sql_text(schema: str = "public") -> str:
    """All migrations as one script for psql, for those who apply them by other means to an empty schema.

    Raises UsageError for what cannot be a schema's name.
    """
    check_schema(schema)
    parts = [
        "BEGIN;",
        _statement("CREATE SCHEMA IF NOT EXISTS {schema};", schema).as_string(None),
        _statement(_TABLE + ";", schema).as_string(None),
    ]
    insert = (
        "INSERT INTO {schema}.zart_migrations (number, name, checksum) VALUES ({number}, {name}, {checksum});"
    )
    for migration in migrations():
        parts.append(f"\n-- {migration.name}\n")
        parts.append(_statement(migration.text, schema).as_string(None).strip())
        values = {
            "number": sql.Literal(migration.number),
            "name": sql.Literal(migration.name),
            "checksum": sql.Literal(migration.checksum),
        }
        parts.append(sql.SQL(insert).format(schema=sql.Identifier(schema), **values).as_string(None))
    return "\n".join([*parts, "\nCOMMIT;\n"])


def _refuse_strange(status: Status, schema: str) -> None:
    if status.unknown:
        raise SchemaError(
            f"Zart's tables in schema {schema!r} are newer than this library (it does not know "
            f"{', '.join(status.unknown)}): upgrade zart-durable in this environment"
        )
    if status.drifted:
        raise SchemaError(
            f"schema {schema!r} was migrated with another text of {', '.join(status.drifted)}: a released "
            "migration "
            "was edited. Restore the released file and put the change into a new one; nothing was changed"
        )


def _statement(text: str, schema: str) -> sql.Composed:
    # The texts are the library's own; a schema's name enters them quoted.
    return sql.SQL(text).format(schema=sql.Identifier(schema))  # pyright: ignore[reportArgumentType]


def _with_parameters(text: str, schema: str) -> bytes:
    # A percent sign in the schema's name is no placeholder.
    quoted = sql.Identifier(schema).as_string(None).replace("%", "%%")
    return text.replace("{schema}", quoted).encode()
