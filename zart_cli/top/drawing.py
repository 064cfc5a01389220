"""A frame as rich shows it."""

import datetime as dt
from collections.abc import Iterator
from typing import Final

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from zart import WorkerStatus
from zart_cli.lanes import COUNTED
from zart_cli.tables import plain_table
from zart_cli.times import ago, short_duration
from zart_cli.top.reading import Frame, Lane, Rates
from zart_cli.workers import serves, state

_WORKERS_SHOWN: Final = 12


def draw(frame: Frame, where: str, trouble: str | None = None) -> RenderableType:
    """The whole view; `trouble` says why it is not of this moment."""
    parts: list[RenderableType] = [_heading(frame, where)]
    if trouble is not None:
        parts.append(Text(trouble, style="bold red"))
    parts += ["", _workers(frame.workers), "", _lanes(frame)]
    if frame.stuck:
        parts += ["", *(Text(f"! {line}", style="red") for line in frame.stuck)]
    return Group(*parts)


def _heading(frame: Frame, where: str) -> RenderableType:
    living = sum(worker.alive for worker in frame.workers)
    told = f"[bold]{escape(where)}[/]   {frame.counters.at.astimezone():%H:%M:%S}   {living} workers"
    return Text.from_markup(f"{told}   {' · '.join(rate_words(frame.rates))}")


def rate_words(rates: Rates | None) -> Iterator[str]:
    """What happens per second."""
    if rates is None:
        yield "[dim]rates come with the second look[/]"
        return
    for name, value in (
        ("started", rates.started),
        ("steps", rates.steps),
        ("ended", rates.ended),
        ("claims and waits", rates.moves),
    ):
        yield f"{name} {value:,.0f}/s" if value >= 10 or not value else f"{name} {value:.1f}/s"


def _workers(workers: list[WorkerStatus]) -> RenderableType:
    if not workers:
        return Text("no workers", style="bold red")
    table = plain_table("worker", "where", "", "heard of", "holds", "serves")
    for worker in sorted(workers, key=lambda worker: (worker.alive, -worker.held))[:_WORKERS_SHOWN]:
        table.add_row(
            str(worker.id),
            escape(f"{worker.host} process {worker.pid}"),
            state(worker),
            ago(worker.heartbeat_at),
            str(worker.held),
            escape(serves(worker)),
        )
    if len(workers) > _WORKERS_SHOWN:
        table.add_row("", f"and {len(workers) - _WORKERS_SHOWN} more", "", "", "", "")
    return table


def _lanes(frame: Frame) -> RenderableType:
    if not frame.lanes:
        return Text("nothing is ready, runs or waits", style="dim")
    table: Table = plain_table("function", "ready", "oldest", "running", "waiting", "sleeping")
    for column in table.columns[1:]:
        column.justify = "right"
    about = "~" if frame.estimated else ""
    for lane in frame.lanes:
        table.add_row(
            escape(lane.name),
            _ready(lane),
            _age(lane.oldest) if lane.ready else "",
            *(f"{about}{count:,}" if count else "" for count in (lane.running, lane.waiting, lane.sleeping)),
        )
    return table


def _ready(lane: Lane) -> str:
    told = f"{COUNTED:,}+" if lane.ready > COUNTED else f"{lane.ready:,}" if lane.ready else ""
    return told if lane.served else f"[bold red]{told}[/]"


def _age(age: dt.timedelta | None) -> str:
    return "" if age is None else short_duration(age)
