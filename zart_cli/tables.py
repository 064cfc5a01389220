"""Executions and counts as tables."""

import sys
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from zart import Execution, Failure, Run, Stats
from zart.client.reading import named
from zart_cli.times import ago, clock

STYLES: Final = {
    "scheduled": "cyan",
    "running": "blue",
    "waiting": "yellow",
    "paused": "magenta",
    "blocked": "bold red",
    "completed": "green",
    "failed": "red",
    "cancelled": "dim",
}
"""How each status is shown, everywhere."""

_UNBOUNDED: Final = 10_000


def console() -> Console:
    """Where text for people goes. Where nobody looks, nothing is cut and nothing is coloured."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else _UNBOUNDED)


def plain_table(*headings: str, header: bool = True) -> Table:
    table = Table(box=None, show_header=header, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def styled_status(execution: Execution) -> str:
    """The status, and what a person must know beside it."""
    told = f"[{STYLES[execution.status]}]{execution.status}[/]"
    if execution.cancelling:
        told += " (being cancelled)"
    elif execution.status in ("scheduled", "running", "waiting", "paused") and not execution.served:
        told += " [bold red](no worker serves it)[/]"
    return told


def remark(execution: Execution) -> str:
    """What it waits for, or why it does not go on."""
    if execution.waiting_for is not None and execution.status == "paused":
        return execution.waiting_for
    if execution.waiting_for is not None and execution.status in ("waiting", "running"):
        return f"waits for {execution.waiting_for}"
    if execution.failure is not None:
        return describe(execution.failure)
    return ""


def describe(failure: Failure) -> str:
    """The failure's first line."""
    message = failure.message.strip().splitlines()
    told = f"{failure.type}: {message[0]}" if message else failure.type
    return told if failure.step is None else f"{told} (step {failure.step!r})"


def print_runs(runs: list[Run]) -> None:
    table = plain_table("run", "status", "started", "gave way", "")
    for run in runs:
        table.add_row(
            run.run_id,
            run.status,
            clock(run.started_at),
            "" if run.ended_at is None else clock(run.ended_at),
            "" if run.failure is None else escape(describe(run.failure)),
        )
    console().print(table)


def print_executions(executions: list[Execution]) -> None:
    out = console()
    if not executions:
        out.print("no executions")
        return
    table = plain_table("id", "function", "status", "created", "")
    for execution in executions:
        table.add_row(
            escape(execution.id),
            escape(function(execution)),
            styled_status(execution),
            clock(execution.created_at),
            escape(remark(execution)),
        )
    out.print(table)


def function(execution: Execution) -> str:
    queue = f" in queue {execution.queue}" if execution.queue != "default" else ""
    return named(execution.name, execution.version) + queue


def print_execution(execution: Execution) -> None:
    table = plain_table("", "", header=False)
    rows = [
        ("id", escape(execution.id)),
        ("function", escape(function(execution))),
        ("status", styled_status(execution)),
        ("", escape(remark(execution))),
        ("priority", str(execution.priority) if execution.priority else ""),
        ("run", execution.run_id),
        ("created", f"{clock(execution.created_at)}, {ago(execution.created_at)}"),
        ("finished", clock(execution.finished_at) if execution.finished_at is not None else ""),
    ]
    for name, value in rows:
        if value:
            table.add_row(f"[dim]{name}[/]", value)
    console().print(table)


def print_stats(stats: Stats) -> None:
    out = console()
    table = plain_table("", "", header=False)
    for status in STYLES:
        if count := stats.by_status.get(status):
            table.add_row(f"[{STYLES[status]}]{status}[/]", str(count))
    if not stats.by_status:
        table.add_row("no executions", "")
    table.add_row("workers", str(stats.workers))
    out.print(table)
    for name, count in sorted(stats.unserved.items()):
        out.print(f"[bold red]no worker serves[/] {escape(name)}: {count} ready")
