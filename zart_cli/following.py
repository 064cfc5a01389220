"""`zart show --follow`: the timeline, line by line, as it grows.

    onboarding-ann   onboarding   running for 0.2s
    created 14:02:11, run 0198c1f2-...

        +44ms  ▶ create-customer
       +651ms  ✓ create-customer  607ms  3 attempts
       +651ms  … email-verified (event)  until Thu 14:02 (in 48h00m)
       +10.6s  ✓ email-verified (event)  9.9s
       +10.6s  completed in 10.6s

What is shown is never taken back: a step that takes a while has a line when it begins and one when it ends. So it is
the same in a terminal, in a pipe and in a log.
"""

import asyncio
import datetime as dt
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, NamedTuple

from rich.console import Console
from rich.markup import escape

from zart import Client, Execution, ExecutionNotFound, History, Record
from zart_cli.database import Database
from zart_cli.exits import FAILED, Ended
from zart_cli.tables import console, styled_status
from zart_cli.timeline import (
    DATED_NOTE,
    MARKS,
    name_of,
    note_line,
    print_failure,
    print_heading,
    read_time,
    remark_on,
)
from zart_cli.times import short_duration
from zart_cli.values import write_json

_FIRST_PAUSE: Final = 0.1
"""Seconds; longer each time that nothing is new."""
_LONGEST_PAUSE: Final = 2.0
_GROWTH: Final = 1.5
_OFFSET: Final = 8
_RESTS: Final = frozenset({"scheduled", "waiting", "paused"})
"""While an execution stands so, with all else the same, its journal has most likely not grown: it is read seldom."""

_ENDINGS: Final = {"failed": "has failed", "cancelled": "was cancelled", "blocked": "is blocked"}


class News(NamedTuple):
    """One line: what a record has become, or a note."""

    at: dt.datetime
    record: Record | None
    note: str


class Seen:
    """What of an execution was shown so far."""

    def __init__(self) -> None:
        self._records: dict[tuple[str, str], tuple[Any, ...]] = {}
        self._notes: Counter[str] = Counter()

    def begin_run(self) -> None:
        """Another run of the execution: its records are new, while most notes are the execution's."""
        self._records = {}

    def news(self, history: History) -> list[News]:
        """What is new since the last time, in the order of time."""
        found: list[News] = []
        latest = history.execution.created_at
        for record in history.records:
            # What has no time of its own came after what is before it in the log.
            latest = record.finished_at or record.started_at or latest
            now = (record.state, record.attempts, record.until, record.progress)
            if self._records.get((record.key, record.kind)) != now:
                self._records[record.key, record.kind] = now
                found.append(News(latest, record, ""))
        for note, count in Counter(history.notes).items():
            dated = DATED_NOTE.fullmatch(note)
            at, text = (read_time(dated[1]), dated[2]) if dated else (latest, note)
            found += [News(at, None, text)] * (count - self._notes[note])
            self._notes[note] = max(count, self._notes[note])
        found.sort(key=lambda news: news.at)
        return found


def show_as_it_grows(database: Database, execution_id: str, *, as_json: bool) -> None:
    """Show an execution until it ends or is blocked; the exit code is that of `zart wait`."""

    async def run() -> Execution:
        async with database.client() as client:
            return await follow(client, execution_id, _JsonLines() if as_json else _Lines())

    status = asyncio.run(run()).status
    if status != "completed":
        raise Ended(f"execution {execution_id!r} {_ENDINGS.get(status, status)}", FAILED)


class _Lines:
    """For people."""

    def __init__(self) -> None:
        self._out: Console = console()
        self._draw = self._out.encoding.lower().startswith("utf")

    def begin(self, history: History) -> None:
        print_heading(self._out, history, dt.datetime.now(dt.UTC))
        self._out.print()

    def show(self, news: News, execution: Execution) -> None:
        told = news_line(news, dt.datetime.now(dt.UTC), self._draw)
        self._out.print(f"  {_offset(news.at, execution)}  {told}", soft_wrap=True)

    def end(self, history: History) -> None:
        execution = history.execution
        at = execution.finished_at or dt.datetime.now(dt.UTC)
        lasted = short_duration(at - execution.created_at)
        self._out.print(
            f"  {_offset(at, execution)}  {styled_status(execution)} after {lasted}", soft_wrap=True
        )
        print_failure(self._out, execution)


class _JsonLines:
    """For programs: a line for each."""

    def begin(self, history: History) -> None:
        write_json({"execution": history.execution})

    def show(self, news: News, execution: Execution) -> None:  # noqa: ARG002 (as above)
        what = {"record": news.record} if news.record is not None else {"note": news.note}
        write_json({"at": news.at, **what})

    def end(self, history: History) -> None:
        write_json({"execution": history.execution})


def news_line(news: News, now: dt.datetime, draw: bool) -> str:
    """One line without its time."""
    record = news.record
    if record is None:
        return note_line(news.note, now, draw)
    style, sign, word = MARKS[record.state]
    told = f"[{style}]{sign if draw else f'{word:<9}'}[/] {escape(name_of(record))}"
    if record.finished_at is not None and record.started_at is not None:
        told += f"  {short_duration(record.finished_at - record.started_at)}"
    remark = remark_on(record, now)
    return f"{told}  {escape(remark)}" if remark else told


def _offset(at: dt.datetime, execution: Execution) -> str:
    return f"[dim]{f'+{short_duration(at - execution.created_at)}':>{_OFFSET}}[/]"


async def follow(client: Client, id: str, shown: "_Lines | _JsonLines") -> Execution:
    """Show what there is and what comes, until the execution has ended or is blocked; returns how it stands then.

    Raises ExecutionNotFound.
    """
    seen = Seen()
    run: str | None = None
    before: tuple[Any, ...] | None = None
    pause = _FIRST_PAUSE
    while True:
        standing = _standing(await client.status(id))
        if standing != before or standing[0] not in _RESTS or pause >= _LONGEST_PAUSE:
            history = await client.history(id)
            if history.run_id != run:
                if run is not None:
                    await _rest_of_run(client, id, run, seen, shown.show)
                run = history.run_id
                seen.begin_run()
                shown.begin(history)
            news = seen.news(history)
            for one in news:
                shown.show(one, history.execution)
            if history.execution.finished_at is not None or history.execution.status == "blocked":
                shown.end(history)
                return history.execution
            pause = _FIRST_PAUSE if news or standing != before else pause
            before = _standing(history.execution)
        await asyncio.sleep(pause)
        pause = min(pause * _GROWTH, _LONGEST_PAUSE)


def _standing(execution: Execution) -> tuple[Any, ...]:
    return (execution.status, execution.run_id, execution.waiting_for, execution.cancelling)


async def _rest_of_run(
    client: Client, id: str, run: str, seen: Seen, show: Callable[[News, Execution], None]
) -> None:
    """What a run did between the last look and its end, if it is still kept."""
    with suppress(ExecutionNotFound):
        history = await client.history(id, run_id=run)
        for one in seen.news(history):
            show(one, history.execution)
