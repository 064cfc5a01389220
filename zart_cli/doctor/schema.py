"""The tables: whether they are those of this version, whole, and open to this role."""

import re
from collections.abc import Sequence
from functools import cache
from typing import Final

from zart._postgres.naming import migrate_command
from zart.migrate import Status, migrations
from zart_cli.doctor.check import Check, Patient, Row
from zart_cli.doctor.finding import Finding, error, ok, warning

_MADE: Final = re.compile(r"^CREATE (?:UNIQUE )?INDEX (\w+) ON", re.MULTILINE)
_DROPPED: Final = re.compile(r"^DROP INDEX \{schema\}\.(\w+)", re.MULTILINE)
_KEYED: Final = re.compile(
    r"^CREATE TABLE \{schema\}\.(\w+) \((?:(?!^\);).)*?PRIMARY KEY", re.MULTILINE | re.DOTALL
)


def judge_schema(status: Status, patient: Patient) -> list[Finding]:
    """How the tables stand to this version of the library."""
    command = migrate_command(patient.schema)
    there = len(migrations()) - len(status.pending)
    found: list[Finding] = []
    if status.unknown:
        found.append(
            error(
                "schema",
                f"the tables are newer than this library: it does not know {', '.join(status.unknown)}",
                "upgrade zart-durable here: older workers and clients refuse these tables",
            )
        )
    if status.drifted:
        found.append(
            error(
                "schema",
                f"{', '.join(status.drifted)} was applied with another text: nobody can tell what is in this database",
                "restore the released migration, and put what was changed in it into one of your own",
            )
        )
    if status.pending and not there:
        found.append(
            error("schema", f"there are no tables of Zart's in schema {patient.schema!r}", f"run `{command}`")
        )
    elif status.pending:
        found.append(
            error(
                "schema",
                f"the tables are older than this library: they lack {', '.join(status.pending)}",
                f"run `{command}`: workers and clients of this version refuse them until then",
            )
        )
    return found or [ok("schema", f"all {there} migrations, as this library has them")]


@cache
def expected_indexes() -> frozenset[str]:
    """The indexes that the migrations make, those of primary keys among them."""
    names: set[str] = set()
    for migration in migrations():
        names |= {f"{table}_pkey" for table in _KEYED.findall(migration.text)}
        names |= set(_MADE.findall(migration.text))
        names -= set(_DROPPED.findall(migration.text))
    return frozenset(names)


def judge_indexes(rows: Sequence[Row], patient: Patient) -> list[Finding]:
    """Whether each is there, and whole."""
    if not rows:
        return [ok("indexes", "there is no table to have one")]
    missing = sorted(expected_indexes() - {name for name, _ in rows})
    found: list[Finding] = []
    if missing:
        found.append(
            error(
                "indexes",
                f"missing: {', '.join(missing)}; what they are for reads whole tables instead",
                "`zart migrate --sql` prints how each is made: run its CREATE INDEX with CONCURRENTLY",
            )
        )
    broken = sorted(name for name, valid in rows if not valid)
    if broken:
        found.append(
            error(
                "indexes",
                f"invalid: {', '.join(broken)}; the server does not use them",
                "REINDEX INDEX CONCURRENTLY each of them",
            )
        )
    return found or [ok("indexes", f"all {len(expected_indexes())} are there")]


def judge_triggers(rows: Sequence[Row], patient: Patient) -> list[Finding]:
    """Without them nobody is told of work, and what ended can be changed."""
    if rows:
        told = ", ".join(f"{trigger} on {table}" for trigger, table in rows)
        return [
            error(
                "triggers",
                f"disabled: {told}; idle workers are not told of work, or rows are not guarded",
                "ALTER TABLE ... ENABLE TRIGGER ...",
            )
        ]
    return [ok("triggers", "none is disabled")]


def judge_privileges(rows: Sequence[Row], patient: Patient) -> list[Finding]:
    """What this role may do."""
    if not rows:
        return [ok("privileges", "there is nothing to have a right to")]
    schema = patient.schema
    if not rows[0][1]:
        return [
            error(
                "privileges",
                f"this role may not use schema {schema!r}",
                f'GRANT USAGE ON SCHEMA "{schema}" TO it, and rights on the tables',
            )
        ]
    unread = [table for table, _, reads, _ in rows if not reads]
    if unread:
        return [
            error(
                "privileges",
                f"this role may not read {', '.join(unread)}",
                f'GRANT SELECT ON ALL TABLES IN SCHEMA "{schema}" TO it; workers and clients need INSERT, UPDATE and '
                "DELETE as well",
            )
        ]
    unwritten = [table for table, _, _, writes in rows if not writes]
    if unwritten:
        return [
            warning(
                "privileges",
                f"this role may read, but not change {', '.join(unwritten)}: it can look, not work",
                f'for workers and clients: GRANT INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA "{schema}" TO it',
            )
        ]
    return [ok("privileges", "this role may read and change all tables")]


CHECKS: Final = (
    Check("indexes", ("doctor", "indexes"), judge_indexes),
    Check("triggers", ("doctor", "disabled_triggers"), judge_triggers),
    Check("privileges", ("doctor", "privileges"), judge_privileges),
)
