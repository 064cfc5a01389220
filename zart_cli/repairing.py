"""`zart runs`, `zart retry-step`, `zart restart`, `zart rerun`, `zart delete`."""

import asyncio

import click

from zart_cli import tables
from zart_cli.database import Database, database_options
from zart_cli.exits import FAILED, Ended
from zart_cli.looking import json_option
from zart_cli.values import NO_DATA, data_option, read_data, write_json

reason_option = click.option("--reason", help="Kept in the history.")


@click.command(short_help="The runs of execution ID.")
@click.argument("execution_id", metavar="ID")
@json_option
@database_options
def runs(database: Database, execution_id: str, as_json: bool) -> None:
    """The runs of execution ID that are kept, the oldest first; `zart show --run` shows what one of them did."""

    async def run() -> None:
        async with database.client() as client:
            found = await client.runs(execution_id)
        if as_json:
            write_json(found)
        else:
            tables.print_runs(found)

    asyncio.run(run())


@click.command("retry-step", short_help="Try the failed step KEY of execution ID again.")
@click.argument("execution_id", metavar="ID")
@click.argument("key")
@reason_option
@database_options
def retry_step(database: Database, execution_id: str, key: str, reason: str | None) -> None:
    """Have the step KEY of execution ID, which has failed for good, tried again with all its retries.

    KEY is as `zart show` prints it. The run goes on: completed steps are kept.
    """

    async def run() -> None:
        async with database.client() as client:
            asked = await client.retry_step(execution_id, key, reason=reason)
        if not asked:
            raise Ended(f"{key} of {execution_id} has not failed: there is nothing to retry", FAILED)
        click.echo(f"{key} of {execution_id} is tried again")

    asyncio.run(run())


@click.command(short_help="Begin execution ID again, with an empty history.")
@click.argument("execution_id", metavar="ID")
@data_option
@reason_option
@database_options
def restart(database: Database, execution_id: str, data: str | None, reason: str | None) -> None:
    """Begin execution ID again, in any state, and print the id of the new run.

    Its input is --data, or else that of the run before, which is kept: see `zart runs`.
    """
    payload = read_data(data)

    async def run() -> None:
        async with database.client() as client:
            given = () if payload is NO_DATA else (payload,)
            click.echo(await client.restart(execution_id, *given, reason=reason))

    asyncio.run(run())


@click.command(short_help="Begin execution ID again, and keep all results but those of some steps.")
@click.argument("execution_id", metavar="ID")
@click.option(
    "--step",
    "steps",
    metavar="KEY",
    multiple=True,
    required=True,
    help="What to do again: a key as `zart show` prints it, or a name of calls. May be repeated.",
)
@reason_option
@json_option
@database_options
def rerun(
    database: Database, execution_id: str, steps: tuple[str, ...], reason: str | None, as_json: bool
) -> None:
    """Begin execution ID again, in any state, and keep what is recorded but for some steps.

    Prints the id of the new run; kept results that came after one that is done again are named on stderr.
    """

    async def run() -> None:
        async with database.client() as client:
            begun = await client.rerun(execution_id, steps=steps, reason=reason)
        if as_json:
            write_json(begun)
            return
        click.echo(begun.run_id)
        if begun.stale:
            click.echo(f"kept, and perhaps stale: {', '.join(begun.stale)}", err=True)

    asyncio.run(run())


@click.command(short_help="Delete execution ID, which has ended.")
@click.argument("execution_id", metavar="ID")
@reason_option
@database_options
def delete(database: Database, execution_id: str, reason: str | None) -> None:
    """Delete execution ID, which has ended, with its history. That it was deleted, by whom and why, is kept."""

    async def run() -> None:
        async with database.client() as client:
            await client.delete(execution_id, reason=reason)
        click.echo(f"{execution_id} is deleted")

    asyncio.run(run())
