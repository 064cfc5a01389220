"""Bringing a database up to date."""

import asyncio
import sys
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from zart import SchemaError, UsageError
from zart._postgres.connections import connect
from zart.migrate import check, ensure_current, migrate, migrations, sql_text

STRANGE = "we\"ird {x} %s o'schema ü"


async def test_eight_processes_at_once(empty_dsn: str) -> None:
    """Eight processes migrate an empty database at once: all succeed, and each file was applied once."""
    code = (
        "import asyncio, sys, zart; sys.stdin.readline(); "
        "asyncio.run(zart.migrate(sys.argv[1], schema='both ways'))"
    )
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            code,
            empty_dsn,
            stdin=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        for _ in range(8)
    ]
    ended = await asyncio.gather(*(process.communicate(b"go\n") for process in processes))
    assert [(process.returncode, error) for process, (_, error) in zip(processes, ended, strict=True)] == [
        (0, b"")
    ] * 8
    with psycopg.connect(empty_dsn) as connection:
        applied = connection.execute(
            'SELECT name FROM "both ways".zart_migrations ORDER BY number'
        ).fetchall()
    assert applied == [(migration.name,) for migration in migrations()]


async def test_second_time_changes_nothing(dsn: str) -> None:
    """Migrating a database that is up to date changes nothing."""
    assert (await check(dsn)).is_current
    with psycopg.connect(dsn, autocommit=True) as connection:
        before = connection.execute("SELECT * FROM zart_migrations ORDER BY number").fetchall()
        await migrate(dsn)
        assert connection.execute("SELECT * FROM zart_migrations ORDER BY number").fetchall() == before


async def test_schema_with_strange_name(empty_dsn: str) -> None:
    """A schema may have any name, and several may stand in one database."""
    await migrate(empty_dsn, schema=STRANGE)
    assert (await check(empty_dsn, schema=STRANGE)).is_current
    assert not (await check(empty_dsn)).is_current
    await migrate(empty_dsn)
    with psycopg.connect(empty_dsn) as connection:
        start = sql.SQL("SELECT {}.zart_start('f', 'x')").format(sql.Identifier(STRANGE))
        assert connection.execute(start).fetchone() == ("x",)


async def test_script_does_the_same(empty_dsn: str) -> None:
    """The script for psql makes what `migrate` makes."""
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        connection.execute(sql_text(STRANGE).encode())
    assert (await check(empty_dsn, schema=STRANGE)).is_current


async def test_missing_tables_name_the_command(empty_dsn: str) -> None:
    """Where there are no tables the error says which command makes them."""
    async with await connect(empty_dsn, application_name="test") as connection:
        with pytest.raises(SchemaError, match=r"not there: run `zart migrate`$"):
            await ensure_current(connection, "public")
        with pytest.raises(SchemaError, match=r"run `zart migrate --schema 'a b'`$"):
            await ensure_current(connection, "a b")


async def test_older_tables_are_refused(dsn: str) -> None:
    """Tables that lack a migration are called older, and the command is named."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("DELETE FROM zart_migrations WHERE number > 1")
    async with await connect(dsn, application_name="test") as connection:
        with pytest.raises(
            SchemaError, match=r"older than this library \(missing: 0002_.*run `zart migrate`"
        ):
            await ensure_current(connection, "public")


async def test_newer_tables_are_refused(dsn: str) -> None:
    """A database that a newer version migrated is neither used nor migrated."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("INSERT INTO zart_migrations VALUES (9999, '9999_from_tomorrow', 'x')")
    async with await connect(dsn, application_name="test") as connection:
        with pytest.raises(SchemaError, match="newer than this library"):
            await ensure_current(connection, "public")
    with pytest.raises(SchemaError, match="9999_from_tomorrow"):
        await migrate(dsn)


async def test_edited_migration_is_refused(dsn: str) -> None:
    """A released migration that was edited is found out, and nothing is changed."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("UPDATE zart_migrations SET checksum = 'another' WHERE number = 1")
    assert (await check(dsn)).drifted == ("0001_create_engine",)
    with pytest.raises(SchemaError, match="another text of 0001_create_engine"):
        await migrate(dsn)


async def test_failing_migration_leaves_nothing(empty_dsn: str) -> None:
    """When a migration fails nothing of it stays."""
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        connection.execute("CREATE VIEW zart_v_steps AS SELECT 1 AS mine")
        with pytest.raises(psycopg.errors.DuplicateTable):
            await migrate(empty_dsn)
        assert connection.execute(
            "SELECT to_regclass('zart_tasks'), to_regclass('zart_migrations')"
        ).fetchone() == (
            None,
            None,
        )


@pytest.mark.parametrize("schema", ["", "x" * 64, "nul\0", 7])
async def test_impossible_schema(empty_dsn: str, schema: str) -> None:
    """A schema's name that PostgreSQL would cut or refuse is refused first."""
    with pytest.raises(UsageError, match="schema"):
        await migrate(empty_dsn, schema=schema)


def test_files_are_numbered_without_gaps() -> None:
    """Migrations are numbered 1, 2, 3 and so on, and none is missing."""
    files = sorted(Path(__file__).parents[2].joinpath("migrations").glob("*.sql"))
    assert [file.stem for file in files] == [migration.name for migration in migrations()]
    assert [migration.number for migration in migrations()] == list(range(1, len(files) + 1))
