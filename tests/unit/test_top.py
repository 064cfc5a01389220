"""`zart top`: what a frame is made of, and how it is drawn."""

import datetime as dt
from typing import Any

import pytest
from rich.console import Console

from zart import WorkerStatus
from zart_cli.lanes import Ready
from zart_cli.top.drawing import draw
from zart_cli.top.reading import Counters, Frame, Lane, Rates, lanes, rates, stuck

NOW = dt.datetime(2026, 11, 20, 14, 0, tzinfo=dt.UTC)
MINUTE = dt.timedelta(minutes=1)


def counters(seconds: float, *counts: int) -> Counters:
    started, steps, ended, moves = counts
    at = NOW + dt.timedelta(seconds=seconds)
    return Counters(at=at, started=started, steps=steps, ended=ended, moves=moves)


def worker(number: int, **fields: Any) -> WorkerStatus:
    values = {
        "id": number,
        "host": "box[1]",
        "pid": 4000 + number,
        "alive": True,
        "idle": False,
        "started_at": NOW,
        "heartbeat_at": NOW,
        "held": 0,
        "functions": ["order"],
        "steps": [],
        "queues": ["default"],
    }
    return WorkerStatus(**{**values, **fields})


def ready(name: str, tasks: int, *, served: bool = True, oldest: dt.timedelta | None = MINUTE) -> Ready:
    return Ready("default", name, None, False, tasks, oldest, served)


def shown(frame: Frame, trouble: str | None = None) -> str:
    out = Console(width=200, record=True, file=None, force_terminal=False)
    with out.capture() as captured:
        out.print(draw(frame, "postgresql://h/d", trouble))
    return captured.get()


def frame(**fields: Any) -> Frame:
    values = {
        "counters": counters(0, 0, 0, 0, 0),
        "rates": None,
        "workers": [],
        "lanes": [],
        "estimated": False,
        "stuck": [],
    }
    return Frame(**{**values, **fields})


def test_rates_are_differences_over_the_servers_time() -> None:
    """Per second; none where the server has begun to count anew, or no time has passed."""
    first = counters(0, 10, 100, 5, 50)
    assert rates(first, counters(2, 14, 200, 6, 60)) == Rates(started=2, steps=50, ended=0.5, moves=5)
    assert rates(first, counters(2, 0, 0, 0, 0)) is None
    assert rates(first, counters(0, 14, 200, 6, 60)) is None


def test_ready_and_live_work_of_a_function_are_one_line() -> None:
    """What a sample tells is multiplied; the function with the most that is ready comes first."""
    live = [
        ("default", "order", None, False, 50.0, 2, 3, 4, 0),
        ("mail", "order", None, False, 50.0, 0, 1, 0, 0),
        ("default", "charge", None, True, 50.0, 1, 0, 0, 0),
    ]
    found = lanes([ready("order", 7), ready("pack", 9, served=False)], live)
    assert found == [
        Lane(name="pack", served=False, ready=9, oldest=MINUTE),
        Lane(name="order", ready=7, running=4, waiting=6, sleeping=8, oldest=MINUTE),
        Lane(name="step charge", running=2),
        Lane(name="order in queue mail", waiting=2),
    ]


def test_what_is_stuck_is_said_in_words() -> None:
    """Dead workers, work that nobody serves, blocked executions and failing steps, each with what to do."""
    told = stuck(
        [worker(1), worker(2, alive=False, held=3)],
        [ready("order", 7), ready("pack", 9, served=False)],
        [("o-1", "order", None, 5), ("o-2", "order", None, 5)],
        [("o-3", "charge", 12, MINUTE)],
    )
    assert told == [
        "worker 2 (box[1], process 4002) does not answer and holds 3",
        "no worker serves pack: 9 ready",
        "o-1 (order) is blocked: zart show o-1",
        "o-2 (order) is blocked: zart show o-2",
        "3 more are blocked: zart list --status blocked",
        "step charge of o-3 fails again and again: 12 attempts",
    ]


def test_a_frame_shows_workers_lanes_rates_and_what_is_stuck() -> None:
    """Names are not read as markup; estimates are marked; counts end somewhere."""
    text = shown(
        frame(
            rates=Rates(started=0.5, steps=1234, ended=0, moves=20),
            workers=[worker(1, held=2), worker(2, alive=False), worker(3)],
            lanes=[Lane(name="order[x]", ready=2001, running=2, waiting=30000, oldest=MINUTE)],
            estimated=True,
            stuck=["o-1 [is] blocked"],
        )
    )
    assert "2 workers" in text
    assert "started 0.5/s · steps 1,234/s · ended 0/s · claims and waits 20/s" in text
    rows = [line.split() for line in text.splitlines()]
    assert next(row[:5] for row in rows if "dead" in row) == ["2", "box[1]", "process", "4002", "dead"]
    assert ["order[x]", "2,000+", "1m00s", "~2", "~30,000"] in rows
    assert "! o-1 [is] blocked" in text


def test_an_empty_database_is_shown_as_such() -> None:
    """Also the first frame, which knows no rates, and one that could not be read anew."""
    text = shown(frame(), trouble="the connection is lost")
    for told in (
        "no workers",
        "nothing is ready, runs or waits",
        "rates come with",
        "the connection is lost",
    ):
        assert told in text


@pytest.mark.parametrize("count", [13, 40])
def test_many_workers_are_cut(count: int) -> None:
    """The dead and the busiest are shown."""
    found = [worker(number, held=number) for number in range(count)]
    text = shown(frame(workers=found))
    assert f"and {count - 12} more" in text
    assert f"process {4000 + count - 1}" in text
    assert "process 4000" not in text
