"""`zart show --follow`: what is new between two looks."""

import datetime as dt
from typing import Any

import msgspec
import pytest

from zart import Execution, ExecutionNotFound, Failure, History, Record
from zart_cli import following
from zart_cli.following import News, Seen, follow, news_line

BEGIN = dt.datetime(2026, 11, 20, 14, 0, tzinfo=dt.UTC)


def after(seconds: float) -> dt.datetime:
    return BEGIN + dt.timedelta(seconds=seconds)


def execution(status: str = "running", run_id: str = "run-1", **fields: Any) -> Execution:
    values = {
        "id": "a",
        "name": "order",
        "status": status,
        "run_id": run_id,
        "waiting_for": None,
        "cancelling": False,
        "served": True,
        "queue": "default",
        "priority": 0,
        "version": None,
        "failure": None,
        "created_at": BEGIN,
        "finished_at": after(9) if status in ("completed", "failed", "cancelled") else None,
    }
    return Execution(**{**values, **fields})


def record(name: str, start: float, end: float | None = None, **fields: Any) -> Record:
    values = {
        "key": name,
        "name": name,
        "kind": "step",
        "state": "running" if end is None else "completed",
        "attempts": 1,
        "started_at": after(start),
        "finished_at": None if end is None else after(end),
        "until": None,
        "failure": None,
    }
    return Record(**{**values, **fields})


def history(*records: Record, notes: tuple[str, ...] = (), of: Execution | None = None) -> History:
    shown = of or execution()
    return History(
        execution=shown, run_id=shown.run_id, runs=[shown.run_id], records=list(records), notes=list(notes)
    )


def names(news: list[News]) -> list[str]:
    return [one.note if one.record is None else f"{one.record.key} {one.record.state}" for one in news]


def test_a_record_is_told_when_it_begins_and_when_it_ends() -> None:
    """And when it is tried again, or has made progress; never twice the same."""
    seen = Seen()
    assert names(seen.news(history(record("charge", 1)))) == ["charge running"]
    assert seen.news(history(record("charge", 1))) == []
    assert names(seen.news(history(record("charge", 1, progress="0.5")))) == ["charge running"]
    retried = record("charge", 1, attempts=2, state="waiting", until=after(5))
    assert names(seen.news(history(retried))) == ["charge waiting"]
    ended = [record("charge", 1, 6), record("ship", 6, 7)]
    assert names(seen.news(history(*ended))) == ["charge completed", "ship completed"]
    assert seen.news(history(*ended)) == []


def test_notes_stand_where_they_belong_and_each_is_told_once() -> None:
    """The same note twice is told twice, if it is there twice."""
    seen = Seen()
    note = "2026-11-20 14:00:02.000Z resumed by ann"
    told = seen.news(history(record("a", 0, 1), record("b", 3, 4), notes=(note,)))
    assert names(told) == ["a completed", "resumed by ann", "b completed"]
    assert names(seen.news(history(notes=(note, note)))) == ["resumed by ann"]


def test_another_run_has_records_of_its_own() -> None:
    """Its first step is news, though the run before had one of that name; notes are the execution's."""
    seen = Seen()
    note = "2026-11-20 14:00:02.000Z restart by ann"
    seen.news(history(record("a", 0, 1), notes=(note,)))
    seen.begin_run()
    assert names(seen.news(history(record("a", 0, 1), notes=(note,)))) == ["a completed"]


def test_a_line_says_what_a_record_came_to() -> None:
    """With the time that it took, its attempts, its error; without signs where they cannot be shown."""
    failure = Failure(type="ValueError", message="no [card]", step=None, attempts=3, traceback="")
    failed = News(after(3), record("charge", 1, 3, state="failed", attempts=3, failure=failure), "")
    assert news_line(failed, after(9), draw=True) == (
        "[red]✗[/] charge  2.0s  3 attempts, ValueError: no \\[card]"
    )
    assert news_line(failed, after(9), draw=False).startswith("[red]failed   [/] charge")
    waiting = record("paid", 1, state="waiting", kind="wait", until=after(61))
    assert "paid (event)  until" in news_line(News(after(1), waiting, ""), after(1), draw=True)


class Script:
    """A client that shows one look after the other; the last one stays."""

    def __init__(self, *looks: History | Exception) -> None:
        self.looks = list(looks)
        self.of_earlier_runs: dict[str, History] = {}

    async def status(self, id: str) -> Execution:
        look = self.looks[0]
        if isinstance(look, Exception):
            raise look
        return look.execution

    async def history(self, id: str, *, run_id: str | None = None) -> History:
        if run_id is not None:
            if run_id not in self.of_earlier_runs:
                raise ExecutionNotFound("forgotten")
            return self.of_earlier_runs[run_id]
        look = self.looks[0]
        assert isinstance(look, History)
        if len(self.looks) > 1:
            del self.looks[0]
        return look


class Shown:
    def __init__(self) -> None:
        self.told: list[str] = []

    def begin(self, history: History) -> None:
        self.told.append(f"begin {history.run_id}")

    def show(self, news: News, execution: Execution) -> None:
        self.told += names([news])

    def end(self, history: History) -> None:
        self.told.append(f"end {history.execution.status}")


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long it slept, each time; nobody really does."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(following.asyncio, "sleep", sleep)
    return slept


async def told_of(script: Script) -> list[str]:
    shown = Shown()
    await follow(script, "a", shown)  # type: ignore[arg-type]
    return shown.told


async def test_it_goes_on_until_the_end(pauses: list[float]) -> None:
    """What comes is told as it comes, the end last."""
    script = Script(
        history(record("a", 0)),
        history(record("a", 0, 1), record("b", 1)),
        history(record("a", 0, 1), record("b", 1, 2), of=execution("completed")),
    )
    told = ["begin run-1", "a running", "a completed", "b running", "b completed", "end completed"]
    assert await told_of(script) == told


async def test_a_blocked_execution_ends_it(pauses: list[float]) -> None:
    """It waits for a person, so nobody knows for how long."""
    assert await told_of(Script(history(of=execution("blocked")))) == ["begin run-1", "end blocked"]


@pytest.mark.parametrize("kept", [True, False])
async def test_what_the_run_before_did_last_is_told_if_it_is_kept(pauses: list[float], kept: bool) -> None:
    """An execution that begins anew between two looks."""
    script = Script(
        history(record("a", 0)), history(record("c", 3, 4), of=execution("completed", run_id="run-2"))
    )
    if kept:
        script.of_earlier_runs["run-1"] = history(record("a", 0, 1), record("b", 1, 2))
    rest = ["a completed", "b completed"] if kept else []
    assert await told_of(script) == [
        *("begin run-1", "a running", *rest),
        *("begin run-2", "c completed", "end completed"),
    ]


async def test_it_looks_less_often_while_nothing_happens(pauses: list[float]) -> None:
    """Up to every two seconds, and again at once when something does."""
    resting = history(of=execution("waiting", waiting_for="event 'paid'"))
    script = Script(*[resting] * 8, history(record("a", 0, 1), of=execution("completed")))
    await told_of(script)
    assert pauses[0] == pytest.approx(0.1)
    assert pauses == sorted(pauses)
    assert pauses[-1] == 2.0


async def test_an_execution_that_is_not_there(pauses: list[float]) -> None:
    """Is an error, as for any command."""
    with pytest.raises(ExecutionNotFound):
        await told_of(Script(ExecutionNotFound("a")))


def test_lines_of_json_hold_one_record_each(capsys: pytest.CaptureFixture[str]) -> None:
    """The execution first and last, records and notes between, each with its time."""
    lines = following._JsonLines()
    lines.begin(history())
    lines.show(News(after(1), record("a", 0, 1), ""), execution())
    lines.show(News(after(2), None, "resumed"), execution())
    lines.end(history(of=execution("completed")))
    found = [msgspec.json.decode(line) for line in capsys.readouterr().out.splitlines()]
    assert [sorted(line) for line in found] == [
        ["execution"],
        ["at", "record"],
        ["at", "note"],
        ["execution"],
    ]
    assert found[1]["record"]["key"] == "a"
    assert found[-1]["execution"]["status"] == "completed"
