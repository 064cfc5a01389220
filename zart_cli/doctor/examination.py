"""Takes all looks, and has each judged. Whatever a look meets becomes a finding of its name."""

import datetime as dt
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final

import psycopg
from psycopg import errors

import zart
from zart._postgres import connections
from zart._postgres.queries import load
from zart.config import mask_dsn
from zart.encryption import PLAIN, configured
from zart.errors import SchemaError, UsageError
from zart.migrate import read_status
from zart_cli.doctor import schema, settings, space, work, workers
from zart_cli.doctor.app import judge_app
from zart_cli.doctor.check import Check, Patient, Row
from zart_cli.doctor.connection import look_at_clocks, look_at_notifications, look_for_pooler
from zart_cli.doctor.finding import Finding, error, ok, warning

CHECKS: Final[tuple[Check, ...]] = (
    *settings.CHECKS,
    *schema.CHECKS,
    *workers.CHECKS,
    *work.CHECKS,
    *space.CHECKS,
)
_LONGEST_LOOK: Final = "10s"
_NO_TABLE: Final = ("42P01", "42703", "42883", "3F000")
"""A table, a column, a function or the schema is not there."""
_MAY_NOT: Final = "42501"
_CUT: Final = ("57014", "55P03")


async def examine(
    address: str, schema_name: str, *, old_after: dt.timedelta, registry: zart.Registry | None
) -> list[Finding]:
    """All findings, in the order of their causes. Raises nothing that a database does."""
    found = judge_app(registry) if registry is not None else []
    try:
        payloads = configured()
    except UsageError as trouble:
        found.append(
            error("payload keys", str(trouble), "mend it: until then no client and no worker starts with it")
        )
        payloads = PLAIN
    patient = Patient(schema_name, mask_dsn(address), old_after, registry, payloads)
    try:
        connection = await connections.connect(address, application_name="zart doctor", prepared=False)
    except (connections.DatabaseUnreachable, psycopg.Error) as trouble:
        remedy = "start the server, or mend the address: `zart dsn` says where it comes from"
        return [*found, error("database", " ".join(str(trouble).split()), remedy)]
    async with connection:
        found.append(ok("database", patient.where))
        looks: list[tuple[str, Callable[[], Awaitable[list[Finding]]]]] = [
            ("pooler", partial(look_for_pooler, connection, address)),
            ("notifications", partial(look_at_notifications, address)),
            ("clock", partial(look_at_clocks, connection, schema_name)),
            ("schema", partial(_schema, connection, patient)),
            *((check.name, partial(_take, connection, check, patient)) for check in CHECKS),
        ]
        for name, look in looks:
            found += await _safely(name, look, patient)
            if connection.closed:
                break  # the last finding says so
    return found


async def _schema(connection: connections.Connection, patient: Patient) -> list[Finding]:
    return schema.judge_schema(await read_status(connection, patient.schema), patient)


async def _take(connection: connections.Connection, check: Check, patient: Patient) -> list[Finding]:
    return check.judge(await _rows(connection, check, patient), patient)


async def _rows(connection: connections.Connection, check: Check, patient: Patient) -> Sequence[Row]:
    """What its look gives: in a transaction of its own, which only reads and takes ten seconds at most."""
    file, name = check.look
    async with connection.transaction():
        await connection.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED READ ONLY")
        await connection.execute(f"SET LOCAL statement_timeout = '{_LONGEST_LOOK}'")
        cursor = await connection.execute(
            load(file, patient.schema)[name], {"schema": patient.schema, **check.parameters}
        )
        rows: list[tuple[Any, ...]] = await cursor.fetchall()
        return rows


async def _safely(name: str, look: Callable[[], Awaitable[list[Finding]]], patient: Patient) -> list[Finding]:
    try:
        return await look()
    except SchemaError as trouble:
        return [error(name, str(trouble), "grant that, or ask as a role that may")]
    except (psycopg.Error, OSError) as trouble:
        return [judge_trouble(name, trouble, patient)]


def judge_trouble(name: str, trouble: Exception, patient: Patient) -> Finding:
    """What a look has met, as a finding of the check that wanted it."""
    state = trouble.sqlstate if isinstance(trouble, psycopg.Error) else None
    reason = " ".join(str(trouble).split("\n", 1)[0].split()) or type(trouble).__name__
    if state in _NO_TABLE:
        return warning(name, f"could not be looked at: {reason}", "mend what `schema` says first")
    if state == _MAY_NOT:
        return warning(
            name,
            f"this role may not look at it: {reason}",
            f'GRANT SELECT ON ALL TABLES IN SCHEMA "{patient.schema}" TO it, or ask as another role',
        )
    if state in _CUT:
        return warning(
            name,
            f"the look was cut off: {reason}",
            "the server is busy or a timeout of this role is short: see `timeouts`, and try again",
        )
    if isinstance(trouble, errors.OperationalError) and state is None:
        return error(name, f"the connection was lost: {reason}", "look at the server's log, and try again")
    return warning(name, f"could not be looked at: {reason}", "see the server's log")
