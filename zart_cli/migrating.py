"""`zart migrate`."""

import asyncio

import click

import zart
from zart._postgres.naming import migrate_command
from zart.config import mask_dsn
from zart.migrate import check, migrations, sql_text
from zart_cli.database import Database, database_options
from zart_cli.exits import FAILED, Ended


@click.command()
@click.option("--check", "only_check", is_flag=True, help="Change nothing; exit 1 unless all is up to date.")
@click.option("--sql", is_flag=True, help="Print the SQL for an empty schema instead of running it.")
@database_options
def migrate(database: Database, only_check: bool, sql: bool) -> None:
    """Create or update Zart's tables.

    Safe from many processes at once and on every deploy.
    """
    if sql and only_check:
        raise zart.UsageError("--check and --sql exclude each other")
    if sql:
        click.echo(sql_text(database.schema), nl=False)
        return
    address = database.open()
    where = f"schema {database.schema!r} of {mask_dsn(address.dsn)}"
    before = asyncio.run(check(address.dsn, schema=database.schema))
    if only_check:
        if before.is_current:
            click.echo(f"up to date: {where}")
            return
        for name in before.pending:
            click.echo(f"missing    {name}")
        for name in before.drifted:
            click.echo(f"edited     {name}")
        for name in before.unknown:
            click.echo(f"unknown    {name}")
        what = (
            f"run `{migrate_command(database.schema)}`"
            if before.pending and not (before.drifted or before.unknown)
            else "the database is newer than this library, or a released migration was edited"
        )
        raise Ended(f"not up to date: {where}: {what}", FAILED)
    asyncio.run(zart.migrate(address.dsn, schema=database.schema))
    if before.is_current:
        click.echo(f"up to date, nothing to do: {where}")
    else:
        click.echo(f"applied {len(before.pending)} of {len(migrations())} migrations: {where}")
