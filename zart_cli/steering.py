"""`zart cancel`, `zart resume`."""

import asyncio

import click

from zart_cli.database import Database, database_options
from zart_cli.exits import FAILED, Ended


@click.command(short_help="Cancel execution ID.")
@click.argument("execution_id", metavar="ID")
@click.option("--reason", help="Kept in the history.")
@click.option("--force", is_flag=True, help="End it here and now, without its cleanup.")
@database_options
def cancel(database: Database, execution_id: str, reason: str | None, force: bool) -> None:
    """Cancel execution ID; its cleanup may still run steps. Twice is harmless."""

    async def run() -> None:
        async with database.client() as client:
            changed = await client.cancel(execution_id, reason=reason, force=force)
            execution = await client.status(execution_id)
        if execution.status == "cancelled":
            click.echo(f"{execution_id} is cancelled")
        elif changed or execution.cancelling:
            click.echo(f"{execution_id} is being cancelled")
        elif execution.status in ("completed", "failed"):
            raise Ended(f"{execution_id} has {execution.status} already: nothing to cancel", FAILED)
        else:
            raise Ended(f"{execution_id} is {execution.status} and was not cancelled: try again", FAILED)

    asyncio.run(run())


@click.command(short_help="Let the blocked execution ID go on.")
@click.argument("execution_id", metavar="ID")
@click.option("--reason", help="Kept in the history.")
@click.option(
    "--accept-arguments", is_flag=True, help="Take recorded steps as they are, though arguments changed."
)
@database_options
def resume(database: Database, execution_id: str, reason: str | None, accept_arguments: bool) -> None:
    """Let the blocked execution ID go on: it is replayed with today's code."""

    async def run() -> None:
        async with database.client() as client:
            resumed = await client.resume(execution_id, reason=reason, accept_arguments=accept_arguments)
            if resumed:
                click.echo(f"{execution_id} goes on")
                return
            execution = await client.status(execution_id)
        raise Ended(f"{execution_id} is {execution.status}, not blocked: there is nothing to resume", FAILED)

    asyncio.run(run())
