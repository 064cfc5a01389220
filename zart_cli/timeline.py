"""`zart show`: what an execution did, in the order of time.

    onboarding-ann   onboarding   completed in 14.2s
    started Thu 14:02:11, run 0198c1f2-…

        +0ms  ✓ send-welcome-mail          412ms  ━
      +412ms  ✓ create-customer             6.8s   ━━━━━━━━━   3 attempts
      +540ms  · attempt 1 of 'create-customer' failed: ConnectionError: …
       +7.2s  ✓ email-verified  (event)     6.9s            ┄┄┄┄┄┄┄┄┄
      +14.1s  ✓ activate                    88ms                     ━

Each line begins with the time since the execution was created; the bar shows when and how long, on one scale, waits
dotted. Notes that carry a time stand where they belong.
"""

import datetime as dt
import re
from typing import Final, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from zart import Execution, History, Record
from zart_cli.tables import console, describe, function, styled_status
from zart_cli.times import clock, short_duration

_BAR: Final = 24
_WAITS: Final = frozenset({"wait", "timer"})
_MARKS: Final = {
    "completed": ("green", "✓", "ok"),
    "failed": ("red", "✗", "failed"),
    "cancelled": ("dim", "⊘", "cancelled"),
    "started": ("blue", "▶", "started"),
    "running": ("blue", "▶", "running"),
    "waiting": ("yellow", "…", "waiting"),
}
_NOTE: Final = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?)Z (.*)", re.DOTALL)


class _Line(NamedTuple):
    at: dt.datetime
    record: Record | None
    note: str


def print_history(history: History) -> None:
    out = console()
    now = dt.datetime.now(dt.UTC)
    execution = history.execution
    _print_heading(out, history, now)
    lines = _lines(history)
    if not lines:
        out.print("  it has done nothing so far")
    else:
        out.print()
        out.print(_table(lines, execution, now, signs=_can_draw(out)))
    for note in history.notes:
        if _NOTE.fullmatch(note) is None:
            out.print(f"  {escape(note)}")
    _print_failure(out, execution)


def _print_heading(out: Console, history: History, now: dt.datetime) -> None:
    execution = history.execution
    lasted = short_duration((execution.finished_at or now) - execution.created_at)
    told = f"{styled_status(execution)} {'in' if execution.finished_at is not None else 'since'} {lasted}"
    if execution.finished_at is None:
        told = f"{styled_status(execution)}, created {lasted} ago"
    out.print(f"[bold]{escape(execution.id)}[/]   {escape(function(execution))}   {told}")
    runs = (
        f" ({history.runs.index(history.run_id) + 1} of {len(history.runs)})" if len(history.runs) > 1 else ""
    )
    out.print(f"[dim]created {clock(execution.created_at, now)}, run {history.run_id}{runs}[/]")
    if execution.waiting_for is not None and execution.finished_at is None:
        out.print(f"waits for {escape(execution.waiting_for)}")


def _lines(history: History) -> list[_Line]:
    """Records and dated notes in the order of time; a note that came with a record's start follows it."""
    created = history.execution.created_at
    latest = created
    lines: list[_Line] = []
    for record in history.records:
        # What has no time of its own came after what is before it in the log.
        latest = record.started_at or record.finished_at or latest
        lines.append(_Line(latest, record, ""))
    for note in history.notes:
        if (match := _NOTE.fullmatch(note)) is not None:
            at = dt.datetime.fromisoformat(match[1]).replace(tzinfo=dt.UTC)
            lines.append(_Line(at, None, match[2]))
    lines.sort(key=lambda line: line.at)
    return lines


def _table(lines: list[_Line], execution: Execution, now: dt.datetime, *, signs: bool) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(justify="right", style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    begin = execution.created_at
    end = execution.finished_at or max(now, *(line.at for line in lines))
    for line in lines:
        offset = f"  +{short_duration(line.at - begin)}"
        if line.record is None:
            table.add_row(offset, f"[dim]{'·' if signs else '-'} {escape(line.note)}[/]", "", "", "")
            continue
        record = line.record
        style, sign, word = _MARKS[record.state]
        what = escape(record.key) + (f" [dim]({_kind(record)})[/]" if record.kind != "step" else "")
        took = short_duration((record.finished_at or now) - line.at)
        bar = (
            _bar(line.at, record.finished_at or now, begin, end, waits=record.kind in _WAITS) if signs else ""
        )
        table.add_row(
            offset,
            f"[{style}]{sign if signs else word}[/] {what}",
            took if record.finished_at is not None else f"[dim]{took}[/]",
            f"[{style}]{bar}[/]",
            escape(_remark(record, now)),
        )
    return table


def _kind(record: Record) -> str:
    if record.kind == "wait":
        return "event"
    if record.kind == "timer":
        return "timer"
    return record.kind


def _bar(start: dt.datetime, end: dt.datetime, begin: dt.datetime, last: dt.datetime, *, waits: bool) -> str:
    whole = max((last - begin).total_seconds(), 1e-6)
    left = min(max((start - begin).total_seconds(), 0.0) / whole, 1.0)
    right = min(max((end - begin).total_seconds(), 0.0) / whole, 1.0)
    first = min(int(left * _BAR), _BAR - 1)
    length = max(round(right * _BAR) - first, 1)
    return " " * first + ("┄" if waits else "━") * length + " " * (_BAR - first - length)


def _remark(record: Record, now: dt.datetime) -> str:
    told: list[str] = []
    if record.attempts > 1:
        told.append(f"{record.attempts} attempts")
    if record.state in ("waiting", "running", "started") and record.until is not None:
        until = clock(record.until, now)
        left = f" (in {short_duration(record.until - now)})" if record.until > now else ""
        told.append(f"until {until}{left}" if record.kind in _WAITS else f"next attempt {until}{left}")
    if record.failure is not None:
        told.append(describe(record.failure))
    return ", ".join(told)


def _print_failure(out: Console, execution: Execution) -> None:
    failure = execution.failure
    if failure is None:
        return
    out.print()
    tries = f", {failure.attempts} attempts" if failure.attempts > 1 else ""
    out.print(f"[red]{escape(describe(failure))}{tries}[/]")
    rest = failure.message.strip().splitlines()[1:]
    for line in (*rest, *failure.traceback.strip().splitlines()):
        out.print(f"    [dim]{escape(line)}[/]")
    if execution.status == "blocked":
        out.print(f"mend the cause, then: zart resume {escape(execution.id)}")


def _can_draw(out: Console) -> bool:
    return out.encoding.lower().startswith("utf")
