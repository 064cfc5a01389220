"""`zart workers`: who works here."""

import asyncio

import click
from rich.markup import escape

from zart import WorkerStatus
from zart_cli.database import Database, database_options
from zart_cli.looking import json_option
from zart_cli.tables import console, plain_table
from zart_cli.times import ago
from zart_cli.values import write_json

_NAMES_SHOWN = 5


@click.command(short_help="Which workers there are, and what they do.")
@json_option
@database_options
def workers(database: Database, as_json: bool) -> None:
    """Workers that live, and those that have died and whose work nobody has taken over so far."""

    async def run() -> list[WorkerStatus]:
        async with database.client() as client:
            return await client.workers()

    found = asyncio.run(run())
    if as_json:
        write_json(found)
    else:
        print_workers(found)


def print_workers(found: list[WorkerStatus]) -> None:
    out = console()
    if not found:
        out.print("no workers")
        return
    table = plain_table("worker", "where", "", "since", "heard of", "holds", "serves")
    for worker in found:
        table.add_row(
            str(worker.id),
            f"{escape(worker.host)} process {worker.pid}",
            state(worker),
            ago(worker.started_at),
            ago(worker.heartbeat_at),
            str(worker.held),
            escape(serves(worker)),
        )
    out.print(table)


def state(worker: WorkerStatus) -> str:
    """In one word."""
    if not worker.alive:
        return "[bold red]dead[/]"
    return "[blue]works[/]" if worker.held else "[green]idle[/]"


def serves(worker: WorkerStatus) -> str:
    """What it has registered, cut where that is much."""
    names = [*worker.functions, *(f"step {step}" for step in worker.steps)]
    told = ", ".join(names[:_NAMES_SHOWN])
    if len(names) > _NAMES_SHOWN:
        told += f" and {len(names) - _NAMES_SHOWN} more"
    queues = [queue for queue in worker.queues if queue != "default"]
    return told + (
        f" in queue{'s' if len(worker.queues) > 1 else ''} {', '.join(worker.queues)}" if queues else ""
    )
