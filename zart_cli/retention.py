"""`zart prune`: takes away what ended long ago."""

import asyncio
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from zart import Pruned
from zart.state import FINAL_STATUSES
from zart_cli.database import Database, database_options
from zart_cli.looking import json_option
from zart_cli.values import write_json


@click.command(short_help="Take away what ended long ago.")
@click.option(
    "--older-than", metavar="DURATION", required=True, help='What ended so long ago goes, such as "30d".'
)
@click.option(
    "--status",
    "statuses",
    type=click.Choice(sorted(status.value for status in FINAL_STATUSES)),
    multiple=True,
    help="Only what ended so; may be repeated.  [default: however it ended]",
)
@click.option(
    "--keep-ids",
    metavar="DURATION",
    help="Keep the ids for so long: a start that is sent again still finds its execution.",
)
@click.option("--dry-run", is_flag=True, help="Change nothing; say what would go.")
@click.option(
    "--batch",
    type=click.IntRange(1, 1000),
    default=500,
    show_default=True,
    help="Executions that one transaction looks at.",
)
@json_option
@database_options
def prune(
    database: Database, statuses: tuple[str, ...], dry_run: bool, as_json: bool, batch: int, **limits: Any
) -> None:
    """Take away executions that ended long ago, with all that belongs to them. What has not ended stays.

    It goes in small transactions. Interrupted, it has pruned so much; run again, it goes on.
    """

    async def run() -> Pruned:
        async with database.client() as client:
            wanted: dict[str, Any] = {**limits, "statuses": statuses or None}
            if as_json and not dry_run:
                return await client.prune(**wanted, batch=batch)
            counted = await client.prune(**wanted, dry_run=True)
            if dry_run:
                return counted
            with _progress(counted.deleted + counted.emptied) as advance:
                return await client.prune(**wanted, batch=batch, on_batch=advance)

    pruned = asyncio.run(run())
    if as_json:
        write_json(
            {
                "dry_run": dry_run,
                "deleted": pruned.deleted,
                "emptied": pruned.emptied,
                "records": pruned.records,
            }
        )
    else:
        click.echo(_summary(pruned, dry_run=dry_run))


def _summary(pruned: Pruned, *, dry_run: bool) -> str:
    told = [f"{pruned.deleted:,} executions"]
    if pruned.emptied:
        told.append(f"{pruned.emptied:,} down to their ids")
    begin = "would prune" if dry_run else "pruned"
    return f"{begin} {' and '.join(told)}, with {pruned.records:,} records"


@contextmanager
def _progress(total: int) -> Generator[Callable[[Pruned], None]]:
    """Shows on stderr how far it is: a bar for people, a line for each tenth where nobody looks."""
    if sys.stderr.isatty():
        columns = (TextColumn("pruning"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("pruning", total=total)
            yield lambda pruned: bar.update(task, completed=pruned.deleted + pruned.emptied)
        return
    told = 0

    def tell(pruned: Pruned) -> None:
        nonlocal told
        done = pruned.deleted + pruned.emptied
        if total and done * 10 // total > told:
            told = done * 10 // total
            click.echo(f"{done:,} of {total:,}", err=True)

    yield tell
