"""`zart start`, `zart event`, `zart wait`."""

import asyncio
from typing import Any

import click

from zart_cli.database import Database, database_options
from zart_cli.values import NO_DATA, data_option, read_data, write_json


@click.command(short_help="Start an execution of NAME and print its id.")
@click.argument("name")
@click.option("--id", "execution_id", metavar="ID", help="Your own id: starting it twice is harmless.")
@data_option
@click.option("--version", metavar="V", help="The version of the function, where it has one.")
@click.option("--queue", metavar="QUEUE", help='The queue; without it "default".')
@click.option("--priority", type=int, help="Lower runs first; the default is 0.")
@click.option("--delay", metavar="DURATION", help='Not before this time from now: "30s", "2h".')
@database_options
def start(database: Database, name: str, execution_id: str | None, data: str | None, **options: Any) -> None:
    """Start an execution of the durable function NAME and print its id.

    With --id it is idempotent: the same function with equal data is the execution that exists.
    """
    payload = read_data(data)
    given = {option: value for option, value in options.items() if value is not None}

    async def run() -> None:
        async with database.client() as client:
            arguments = () if payload is NO_DATA else (payload,)
            handle = await client.start(name, *arguments, id=execution_id, **given)
            click.echo(handle.id)
            execution = await handle.status()
        if not handle.created:
            click.echo(f"it exists already: {execution.status}", err=True)
        elif execution.status == "scheduled" and not execution.served:
            what = f"{name!r}" if execution.version is None else f"{name!r} in version {execution.version!r}"
            click.echo(f"no worker that runs now has registered {what}: it waits for one", err=True)

    asyncio.run(run())


@click.command(short_help="Offer the event NAME to execution ID.")
@click.argument("execution_id", metavar="ID")
@click.argument("name")
@data_option
@click.option("--dedup", metavar="KEY", help="A key of yours: an event offered before is not added again.")
@database_options
def event(database: Database, execution_id: str, name: str, data: str | None, dedup: str | None) -> None:
    """Offer the event NAME to execution ID; it is kept until a wait consumes it."""
    payload = read_data(data)

    async def run() -> None:
        async with database.client() as client:
            value = None if payload is NO_DATA else payload
            added = await client.offer_event(execution_id, name, value, dedup=dedup)
        click.echo(
            f"{name} was offered to {execution_id}"
            if added
            else f"{name} was offered before: not added again"
        )

    asyncio.run(run())


@click.command(short_help="Wait for execution ID and print its result.")
@click.argument("execution_id", metavar="ID")
@click.option(
    "--timeout", metavar="DURATION", help='How long to wait, such as "30s"; exit code 4 after that.'
)
@database_options
def wait(database: Database, execution_id: str, timeout: str | None) -> None:
    """Wait for execution ID to end and print its result as one line of JSON.

    Exit code 1 if it failed, was cancelled or is blocked, with the reason on stderr.
    """

    async def run() -> None:
        async with database.client() as client:
            write_json(await client.wait_completion(execution_id, timeout=timeout))

    asyncio.run(run())
