"""`zart pause`, `zart pauses`, `zart unpause`."""

import asyncio
from typing import Any

import click
from rich.markup import escape

from zart import PauseRule
from zart_cli import tables
from zart_cli.database import Database, database_options
from zart_cli.exits import NOT_FOUND, Ended
from zart_cli.looking import json_option
from zart_cli.times import clock
from zart_cli.values import write_json


@click.command(short_help="Hold an execution, a function or steps back.")
@click.argument("execution_id", metavar="[ID]", required=False)
@click.option("--name", metavar="NAME", help="All executions of this function.")
@click.option("--step", metavar="PATTERN", help="Steps whose names fit this, such as 'charge*'.")
@click.option("--reason", help="Shown with what is held back.")
@click.option("--expires", metavar="D", help="The rule ends by itself after this time, such as 2h.")
@database_options
def pause(database: Database, execution_id: str | None, **rule: Any) -> None:
    """Hold back execution ID, or all of a function, or the steps that fit a pattern, and print the id of the rule.

    With --step, an ID or --name says of which execution, or of which function. What runs finishes its step, and is
    paused before the next one.
    """

    async def run() -> None:
        async with database.client() as client:
            made = await client.pause(execution_id, **rule)
        click.echo(made)
        click.echo(f"held back until: zart unpause {made}", err=True)

    asyncio.run(run())


@click.command(short_help="The rules that hold executions back.")
@json_option
@database_options
def pauses(database: Database, as_json: bool) -> None:
    """The rules that hold executions back now: what each of them holds, who has made it, why, and until when."""

    async def run() -> None:
        async with database.client() as client:
            rules = await client.pauses()
        if as_json:
            write_json(rules)
        else:
            print_rules(rules)

    asyncio.run(run())


@click.command(short_help="End the pause RULE.")
@click.argument("rule", metavar="RULE")
@click.option("--reason", help="Kept in the history of an execution that was held back by its id.")
@database_options
def unpause(database: Database, rule: str, reason: str | None) -> None:
    """End the pause RULE: what it held back goes on."""

    async def run() -> None:
        async with database.client() as client:
            ended = await client.unpause(rule, reason=reason)
        if not ended:
            raise Ended(f"there is no pause rule {rule!r}, or it has ended: see zart pauses", NOT_FOUND)
        click.echo(f"{rule} holds nothing back any more")

    asyncio.run(run())


def print_rules(rules: list[PauseRule]) -> None:
    out = tables.console()
    if not rules:
        out.print("nothing is held back")
        return
    table = tables.plain_table("rule", "holds back", "by", "until", "reason")
    for rule in rules:
        table.add_row(
            escape(rule.id),
            escape(describe(rule)),
            escape(rule.author),
            clock(rule.expires_at) if rule.expires_at is not None else "",
            escape(rule.reason or ""),
        )
    out.print(table)


def describe(rule: PauseRule) -> str:
    """What it holds back, in words: "steps charge* of checkout"."""
    whole = rule.execution_id or rule.name
    of_one = f"execution {rule.execution_id}" if rule.execution_id is not None else f"all of {rule.name}"
    if rule.step is None:
        return of_one
    return f"steps {rule.step}" + ("" if whole is None else f" of {whole}")
