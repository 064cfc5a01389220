"""`zart status`, `zart list`, `zart show`, `zart stats`, `zart dsn`."""

import asyncio
from pathlib import Path
from typing import Any

import click

from zart import Execution
from zart._postgres import embedded
from zart.config import EMBEDDED, mask_dsn
from zart.state import ExecutionStatus
from zart_cli import tables
from zart_cli.database import DIRECTORY, Database, database_options
from zart_cli.following import show_as_it_grows
from zart_cli.timeline import print_history
from zart_cli.tree import print_children, read_children
from zart_cli.values import write_json

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text for people.")

_PAGE = 50


@click.command()
@click.argument("execution_id", metavar="ID")
@json_option
@database_options
def status(database: Database, execution_id: str, as_json: bool) -> None:
    """How execution ID stands."""

    async def run() -> None:
        async with database.client() as client:
            execution = await client.status(execution_id)
        if as_json:
            write_json(execution)
        else:
            tables.print_execution(execution)

    asyncio.run(run())


@click.command("list")
@click.option(
    "--status",
    type=click.Choice([status.value for status in ExecutionStatus]),
    help="Only those in this status.",
)
@click.option("--name", metavar="NAME", help="Only those of this function.")
@click.option("--id-prefix", metavar="TEXT", help="Only those whose ids begin so.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=_PAGE, show_default=True, help="At most so many."
)
@json_option
@database_options
def list_(database: Database, limit: int, as_json: bool, **filters: Any) -> None:
    """Executions, the newest first."""

    async def run() -> None:
        async with database.client() as client:
            # One more than asked for tells whether there are more.
            found: list[Execution] = [
                execution async for execution in client.executions(**filters, limit=limit + 1)
            ]
        shown = found[:limit]
        if as_json:
            write_json(shown)
            return
        tables.print_executions(shown)
        if len(found) > limit:
            click.echo(f"there are more than these {limit}: see --limit", err=True)

    asyncio.run(run())


@click.command(short_help="What execution ID did, as a timeline.")
@click.argument("execution_id", metavar="ID")
@click.option("--run", "run_id", metavar="RUN", help="An earlier run of it; see `zart runs`.")
@click.option(
    "--follow", is_flag=True, help="Go on, line by line, until it ends; the exit code is that of `wait`."
)
@json_option
@database_options
def show(database: Database, execution_id: str, run_id: str | None, follow: bool, as_json: bool) -> None:
    """What execution ID did, as a timeline: steps, attempts, waits, and what else happened to it.

    Below it stand the executions that it has started, and theirs. With --follow and --json each
    line is a JSON document.
    """
    if follow and run_id is not None:
        raise click.UsageError("an earlier run does not grow: give --run or --follow")
    if follow:
        show_as_it_grows(database, execution_id, as_json=as_json)
        return

    async def run() -> None:
        async with database.client() as client:
            history = await client.history(execution_id, run_id=run_id)
            children = None if as_json else await read_children(client, history)
        if as_json:
            write_json(history)
        else:
            print_history(history)
            print_children(children)

    asyncio.run(run())


@click.command(short_help="How much there is of what.")
@json_option
@database_options
def stats(database: Database, as_json: bool) -> None:
    """How many executions there are by status, which work no worker serves, and live workers."""

    async def run() -> None:
        async with database.client() as client:
            counted = await client.stats()
        if as_json:
            write_json(counted)
        else:
            tables.print_stats(counted)

    asyncio.run(run())


@click.command(short_help="Which database commands here use.")
@click.option("--reveal", is_flag=True, help="Show its passwords.")
@json_option
@database_options
def dsn(database: Database, reveal: bool, as_json: bool) -> None:
    """Which database commands here use, on stdout, and where that is said, on stderr."""
    address = database.find()
    address_dsn, source = address.dsn, address.source
    if address_dsn == EMBEDDED:
        server = embedded.running(Path(DIRECTORY))
        if server is not None:
            address_dsn, source = server.dsn(), f"{source}: {EMBEDDED}"
        else:
            source = f"{source}; its server does not run now"
    shown = address_dsn if reveal else mask_dsn(address_dsn)
    if as_json:
        write_json({"dsn": shown, "source": source})
    else:
        click.echo(shown)
        click.echo(f"from {source}", err=True)
