"""`zart doctor`."""

import asyncio
import itertools
from collections.abc import Sequence
from typing import Final

import click
from rich.markup import escape

from zart.durations import parse_duration
from zart_cli.app import app_option, load_registry
from zart_cli.database import Database, database_options
from zart_cli.doctor.examination import examine
from zart_cli.doctor.finding import Finding
from zart_cli.exits import FAILED, Ended
from zart_cli.looking import json_option
from zart_cli.tables import console
from zart_cli.values import write_json

_STYLES: Final = {"ok": "green", "info": "cyan", "warning": "yellow", "error": "bold red"}


@click.command(short_help="What is wrong here, and what to do about it.")
@app_option
@click.option(
    "--old-after",
    metavar="DURATION",
    default="5m",
    show_default=True,
    help="A transaction that is open for longer, or work that is ready for longer, is named.",
)
@json_option
@database_options
def doctor(database: Database, app: str | None, old_after: str, as_json: bool) -> None:
    """Look everything over: tables, settings, workers, what waits, what keeps dead rows, and the way to the server.

    Each line names a check and what was found, and below it what to do. With --app it also compares live work with the
    app's registry. Exit code 1 if something is in the way of the work, 0 otherwise. It only reads.
    """
    patience = parse_duration(old_after, what="--old-after")
    registry = load_registry(app) if app else None
    address = database.open().dsn
    found = asyncio.run(examine(address, database.schema, old_after=patience, registry=registry))
    wrong = list(dict.fromkeys(finding.check for finding in found if finding.level == "error"))
    if as_json:
        write_json({"ok": not wrong, "findings": found})
    else:
        print_findings(found)
    if wrong:
        raise Ended(f"something is in the way of the work: {', '.join(wrong)}", FAILED)


def print_findings(found: Sequence[Finding]) -> None:
    """One line for each, and what to do below it."""
    out = console()
    width = max(len(finding.check) for finding in found)
    for check, findings in itertools.groupby(found, key=lambda finding: finding.check):
        name = check
        for finding in findings:
            level = f"[{_STYLES[finding.level]}]{finding.level:<7}[/]"
            out.print(f"{level}  {name:<{width}}  {escape(finding.found)}", soft_wrap=True)
            if finding.remedy is not None:
                out.print(f"{'':7}  {'':{width}}  [dim]to do:[/] {escape(finding.remedy)}", soft_wrap=True)
            name = ""
    counts = {level: sum(finding.level == level for finding in found) for level in ("error", "warning")}
    told = [f"{count} {level}{'s' if count > 1 else ''}" for level, count in counts.items() if count]
    out.print()
    out.print(", ".join(told) if told else "all well", soft_wrap=True)
