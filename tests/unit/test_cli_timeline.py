"""`zart show` as text."""

import datetime as dt

import pytest

from zart import Execution, Failure, History, Record
from zart_cli.timeline import print_history

BEGIN = dt.datetime(2026, 11, 20, 14, 0, tzinfo=dt.UTC)


def after(seconds: float) -> dt.datetime:
    return BEGIN + dt.timedelta(seconds=seconds)


def execution(
    status: str = "completed", failure: Failure | None = None, end: float | None = 10.0
) -> Execution:
    return Execution(
        id="onboarding-ann [x]",
        name="onboarding",
        status=status,  # type: ignore[arg-type]
        run_id="run-1",
        waiting_for=None,
        cancelling=False,
        served=True,
        queue="default",
        priority=0,
        version=None,
        failure=failure,
        created_at=BEGIN,
        finished_at=None if end is None else after(end),
    )


def record(name: str, start: float, end: float | None, **more: object) -> Record:
    values = {"kind": "step", "state": "completed", "attempts": 1, "until": None, "failure": None} | more
    finished = None if end is None else after(end)
    return Record(key=name, name=name, started_at=after(start), finished_at=finished, **values)  # type: ignore[arg-type]


def shown(history: History, capsys: pytest.CaptureFixture[str]) -> list[str]:
    print_history(history)
    return capsys.readouterr().out.splitlines()


def test_lines_are_in_the_order_of_time(capsys: pytest.CaptureFixture[str]) -> None:
    """Steps, waits and dated notes stand where they happened; names are not read as markup."""
    failure = Failure(
        type="ConnectionError", message="refused\nreally", step="charge", attempts=3, traceback=""
    )
    lines = shown(
        History(
            execution=execution(),
            run_id="run-1",
            runs=["run-0", "run-1"],
            records=[
                record("charge[a]", 0.5, 2.0, attempts=3),
                record("email-verified", 2.0, 9.0, kind="wait"),
                record("activate", 9.0, 9.5, state="failed", failure=failure),
            ],
            notes=[
                "2026-11-20 14:00:01.000Z attempt 1 of 'charge[a]' failed: ConnectionError",
                "a note without time",
            ],
        ),
        capsys,
    )
    assert lines[0] == "onboarding-ann [x]   onboarding   completed in 10.0s"
    assert "run run-1 (2 of 2)" in lines[1]
    assert lines[3].split() == ["+500ms", "✓", "charge[a]", "1.5s", "━━━━", "3", "attempts"]
    assert lines[4].strip() == "+1.0s  · attempt 1 of 'charge[a]' failed: ConnectionError"
    assert lines[5].split()[:5] == ["+2.0s", "✓", "email-verified", "(event)", "7.0s"]
    assert set(lines[5].split()[5]) == {"┄"}
    assert lines[6].endswith("━   ConnectionError: refused (step 'charge')")
    assert lines[6].split()[:2] == ["+9.0s", "✗"]
    assert lines[7] == "  a note without time"
    assert all(line == line.rstrip() for line in lines)


def test_bars_share_one_scale(capsys: pytest.CaptureFixture[str]) -> None:
    """A bar begins where its line begins in time; a moment is one sign wide."""
    lines = shown(
        History(
            execution=execution(),
            run_id="run-1",
            runs=["run-1"],
            records=[record("half", 0.0, 5.0), record("rest", 5.0, 10.0), record("end", 10.0, 10.0)],
            notes=[],
        ),
        capsys,
    )
    at = [(line.index("━"), line.count("━")) for line in lines[3:]]
    first = at[0][0]
    assert at == [(first, 12), (first + 12, 12), (first + 23, 1)]


def test_what_is_under_way_says_until_when(capsys: pytest.CaptureFixture[str]) -> None:
    """A wait and a step between two attempts name the time that is next for them."""
    soon = dt.datetime.now(dt.UTC) + dt.timedelta(hours=30, seconds=50)
    lines = shown(
        History(
            execution=execution("waiting", end=None),
            run_id="run-1",
            runs=["run-1"],
            records=[
                record("paid", 1.0, None, kind="wait", state="waiting", until=soon),
                record("charge", 2.0, None, state="waiting", until=soon, attempts=2),
            ],
            notes=[],
        ),
        capsys,
    )
    assert "waiting for" in lines[0]
    assert "(in 30h00m)" in lines[3]
    assert "until" in lines[3]
    assert "2 attempts, next attempt" in lines[4]


def test_failed_execution_ends_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    """The failure with its traceback stands last; a blocked one names the command that goes on."""
    failure = Failure(
        type="NonDeterminismError",
        message="renamed",
        step=None,
        attempts=1,
        traceback="app.py:3 in body\n  raise",
    )
    lines = shown(
        History(
            execution=execution("blocked", failure, end=None), run_id="r", runs=["r"], records=[], notes=[]
        ),
        capsys,
    )
    assert "it has done nothing so far" in lines[2]
    assert lines[-4] == "NonDeterminismError: renamed"
    assert lines[-3] == "    app.py:3 in body"
    assert lines[-1] == "mend the cause, then: zart resume 'onboarding-ann [x]'"
