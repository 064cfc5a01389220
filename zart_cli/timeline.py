"""`zart show`: what an execution did, in the order of time.

    onboarding-ann   onboarding   completed in 12.5s
    created 14:02:11, run 0198c1f2-...

       +44ms  ✓ create-customer          607ms  ━                         3 attempts
       +44ms  · attempt 1 of 'create-customer' failed: ConnectionError: refused; the next one is due at 14:02:12
      +651ms  ✓ provision                 1.9s   ━━━━
       +2.6s  ✓ email-verified (event)    9.9s      ┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄
      +12.5s  ✓ activate                   8ms                         ━

Each line begins with the time since the execution was created; the bar shows when and how long, on one scale, waits
dotted. Notes that carry a time stand where they belong.
"""

import datetime as dt
import re
import shlex
from typing import Final, NamedTuple

from rich.console import Console
from rich.markup import escape

from zart import Execution, History, Record
from zart_cli.tables import console, describe, function, styled_status
from zart_cli.times import clock, short_duration

_BAR: Final = 24
_WAITS: Final = frozenset({"wait", "timer", "child"})
MARKS: Final = {
    "completed": ("green", "✓", "ok"),
    "failed": ("red", "✗", "failed"),
    "cancelled": ("dim", "⊘", "cancelled"),
    "started": ("blue", "▶", "started"),
    "running": ("blue", "▶", "running"),
    "waiting": ("yellow", "…", "waiting"),
}
_KINDS: Final = {"wait": "event"}
_LONGEST_NAME: Final = 40
_LONGEST_PROGRESS: Final = 80
_TIME: Final = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?)Z")
DATED_NOTE: Final = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?)Z (.*)", re.DOTALL)


class _Line(NamedTuple):
    at: dt.datetime
    record: Record | None
    note: str


def print_history(history: History) -> None:
    out = console()
    now = dt.datetime.now(dt.UTC)
    print_heading(out, history, now)
    lines = _lines(history)
    if lines:
        out.print()
    else:
        out.print("  it has done nothing so far")
    execution = history.execution
    span = _Span(
        begin=execution.created_at,
        end=execution.finished_at or max([now, *(line.at for line in lines)]),
        now=now,
    )
    widths = _Widths(lines, span)
    draw = out.encoding.lower().startswith("utf")
    for line in lines:
        offset = f"[dim]{f'+{short_duration(line.at - span.begin)}':>{widths.offset}}[/]"
        told = note_line(line.note, span.now, draw)
        if line.record is not None:
            told = _record_line(line, line.record, span, widths, draw)
        out.print(f"  {offset}  {told}", soft_wrap=True)
    for note in history.notes:
        if DATED_NOTE.fullmatch(note) is None:
            out.print(f"  {escape(note)}", soft_wrap=True)
    print_failure(out, execution)


def print_heading(out: Console, history: History, now: dt.datetime) -> None:
    """Which execution it is, how it stands, and which of its runs is shown."""
    execution = history.execution
    lasted = short_duration((execution.finished_at or now) - execution.created_at)
    told = f"in {lasted}" if execution.finished_at is not None else f"for {lasted}"
    out.print(
        f"[bold]{escape(execution.id)}[/]   {escape(function(execution))}   {styled_status(execution)} {told}",
        soft_wrap=True,
    )
    runs = (
        f" ({history.runs.index(history.run_id) + 1} of {len(history.runs)})" if len(history.runs) > 1 else ""
    )
    out.print(
        f"[dim]created {clock(execution.created_at, now)}, run {history.run_id}{runs}[/]", soft_wrap=True
    )
    if execution.waiting_for is not None and execution.finished_at is None:
        out.print(f"waits for {escape(execution.waiting_for)}", soft_wrap=True)


def _lines(history: History) -> list[_Line]:
    """Records and dated notes in the order of time; what is told of a record stands after it."""
    latest = history.execution.created_at
    lines: list[_Line] = []
    for record in history.records:
        # What has no time of its own came after what is before it in the log.
        latest = record.started_at or record.finished_at or latest
        lines.append(_Line(latest, record, ""))
    dated = filter(None, map(DATED_NOTE.fullmatch, history.notes))
    lines += [_Line(read_time(match[1]), None, match[2]) for match in dated]
    # Notes have milliseconds, records microseconds.
    lines.sort(
        key=lambda line: (line.at.replace(microsecond=line.at.microsecond // 1000 * 1000), not line.record)
    )
    return lines


def read_time(text: str) -> dt.datetime:
    """The time at the beginning of a note."""
    return dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC)


class _Span(NamedTuple):
    """What the bars stand for."""

    begin: dt.datetime
    end: dt.datetime
    now: dt.datetime


class _Widths:
    """How wide the columns are; a long name pushes its own line only."""

    def __init__(self, lines: list[_Line], span: _Span) -> None:
        self.offset = max([len(f"+{short_duration(line.at - span.begin)}") for line in lines], default=0)
        self.name = min(
            max([len(name_of(line.record)) for line in lines if line.record], default=0), _LONGEST_NAME
        )


def name_of(record: Record) -> str:
    """What a record is called, with its kind unless that is a step."""
    return record.key if record.kind == "step" else f"{record.key} ({_KINDS.get(record.kind, record.kind)})"


def note_line(note: str, now: dt.datetime, draw: bool) -> str:
    """A note with its times as people read them."""
    readable = _TIME.sub(lambda found: clock(read_time(found[1]), now), note)
    return f"[dim]{'·' if draw else '-'} {escape(readable)}[/]"


def _record_line(line: _Line, record: Record, span: _Span, widths: _Widths, draw: bool) -> str:
    style, sign, word = MARKS[record.state]
    name = name_of(record)
    end = record.finished_at or max(span.now, line.at)
    took = f"{short_duration(end - line.at):>7}"
    parts = [
        f"[{style}]{sign if draw else f'{word:<9}'}[/] {escape(name)}{' ' * max(widths.name - len(name), 0)}",
        took if record.finished_at is not None else f"[dim]{took}[/]",
    ]
    remark = remark_on(record, span.now)
    if draw:
        bar = _bar(line.at, end, span, waits=record.kind in _WAITS)
        parts.append(f"[{style}]{bar if remark else bar.rstrip()}[/]")
    if remark:
        parts.append(escape(remark))
    return "  ".join(parts)


def _bar(start: dt.datetime, end: dt.datetime, span: _Span, *, waits: bool) -> str:
    whole = max((span.end - span.begin).total_seconds(), 1e-6)
    left = min(max((start - span.begin).total_seconds(), 0.0) / whole, 1.0)
    right = min(max((end - span.begin).total_seconds(), 0.0) / whole, 1.0)
    first = min(int(left * _BAR), _BAR - 1)
    length = max(round(right * _BAR) - first, 1)
    return " " * first + ("┄" if waits else "━") * length + " " * (_BAR - first - length)


def remark_on(record: Record, now: dt.datetime) -> str:
    """What stands behind it: attempts, what it waits for, how far it is, why it failed."""
    told: list[str] = []
    if record.attempts > 1:
        told.append(f"{record.attempts} attempts")
    if record.state in ("waiting", "running", "started") and record.until is not None:
        until = clock(record.until, now)
        left = f" (in {short_duration(record.until - now)})" if record.until > now else ""
        told.append(f"until {until}{left}" if record.kind in _WAITS else f"next attempt {until}{left}")
    if record.progress is not None:
        progress = record.progress
        told.append(
            f"progress {progress if len(progress) <= _LONGEST_PROGRESS else progress[:_LONGEST_PROGRESS] + '…'}"
        )
    if record.failure is not None:
        told.append(describe(record.failure))
    return ", ".join(told)


def print_failure(out: Console, execution: Execution) -> None:
    """Why it failed or is blocked, and what to do next; nothing when it is neither."""
    failure = execution.failure
    if failure is None:
        return
    out.print()
    tries = f", {failure.attempts} attempts" if failure.attempts > 1 else ""
    out.print(f"[red]{escape(describe(failure))}{tries}[/]", soft_wrap=True)
    rest = failure.message.strip().splitlines()[1:]
    for line in (*rest, *failure.traceback.strip().splitlines()):
        out.print(f"    [dim]{escape(line)}[/]", soft_wrap=True)
    if execution.status == "blocked":
        out.print(f"mend the cause, then: zart resume {escape(shlex.quote(execution.id))}", soft_wrap=True)
