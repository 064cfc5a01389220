"""Bringing a database up to date that an earlier version made and used."""

import asyncio

import psycopg
from psycopg import sql

from tests.support.running import query, working
from zart import durable
from zart.migrate import check, migrate, migrations, sql_text


@durable("older")
async def older(number: int) -> int:
    return number * 2


def make_older(dsn: str, number: int) -> None:
    """The tables as they were after migration `number`."""
    script = sql_text()
    later = next(migration for migration in migrations() if migration.number == number + 1)
    with psycopg.connect(dsn) as connection:
        connection.execute(script[: script.index(f"\n-- {later.name}\n")].encode() + b"COMMIT;")


async def test_work_of_a_version_that_gave_lanes_out(empty_dsn: str) -> None:
    """Executions that were started before lanes were derived are run, and so are those that a client of that version
    still starts with the number it remembers; a view of others' on the view of executions stays."""
    make_older(empty_dsn, 2)
    await query(empty_dsn, "SELECT zart_start('older', id => 'before', payload => '1')")
    ((lane,),) = await query(empty_dsn, "SELECT lane FROM zart_tasks")
    assert lane == 1
    await query(
        empty_dsn,
        "INSERT INTO zart_workers (worker_id, writer, host, pid, lanes, expires_at) "
        "VALUES (1, 0, 'h', 1, '{1}', now() + interval '1 minute')",
    )
    await query(empty_dsn, "CREATE VIEW mine AS SELECT id, served FROM zart_v_executions")
    assert await query(empty_dsn, "SELECT * FROM mine") == [("before", True)]
    await migrate(empty_dsn)
    assert (await check(empty_dsn)).is_current
    assert await query(empty_dsn, "SELECT * FROM mine") == [("before", True)]
    await query(empty_dsn, "DELETE FROM zart_workers")
    assert await query(empty_dsn, "SELECT * FROM mine") == [("before", False)]
    async with asyncio.timeout(20), working(empty_dsn, older) as client:
        assert await client.handle(older, "before").result() == 2
        assert (await client.start(older, 2, id="after")).created
        assert await client.handle(older, "after").result() == 4
        await query(
            empty_dsn,
            "WITH made AS (INSERT INTO zart_executions (id, name, queue, priority, run_id, payload) "
            "VALUES ('remembered', 'older', 'default', 0, gen_random_uuid(), '3') RETURNING *) "
            "INSERT INTO zart_tasks (id, execution_id, run_id, lane, priority, state, due_at) "
            "SELECT task_id, id, run_id, 1, priority, 'ready', zart_now() FROM made",
        )
        assert await client.handle(older, "remembered").result() == 6


async def test_two_schemas_are_brought_up_to_date_apart(empty_dsn: str) -> None:
    """A migration touches its own schema alone."""
    make_older(empty_dsn, 2)
    await migrate(empty_dsn, schema="other")
    statement = sql.SQL("SELECT max(number) FROM {}.zart_migrations")
    with psycopg.connect(empty_dsn) as connection:
        found = [
            connection.execute(statement.format(sql.Identifier(schema))).fetchone()
            for schema in ("public", "other")
        ]
    assert found == [(2,), (len(migrations()),)]
