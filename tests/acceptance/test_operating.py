"""Commands of those who look after it: prune, workers, show --follow, top."""

import json
import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support.backlog import Backlog, load
from tests.support.command import ZART, Command, Running, hear_ctrl_c

APP = """\
import asyncio

import zart
from zart import durable, step


@step("charge")
async def charge(number: int) -> int:
    if number < 0:
        raise ValueError("no such card")
    return number


@durable("order")
async def order(number: int) -> int:
    await charge(number)
    await zart.wait_for_event("paid")
    return await charge(number + 1)


registry = zart.Registry(order)
"""


@pytest.fixture
def hand(direct_dsn: str) -> Iterator["psycopg.Connection[Any]"]:
    with psycopg.connect(direct_dsn) as connection:
        yield connection


def counted(hand: "psycopg.Connection[Any]") -> tuple[int, int]:
    """Executions, and records of steps."""
    row = hand.execute(
        "SELECT (SELECT count(*) FROM zart_executions), (SELECT count(*) FROM zart_steps)"
    ).fetchone()
    assert row is not None
    return row


def grow_old(hand: "psycopg.Connection[Any]", count: int) -> None:
    load(hand, Backlog(finished=count), names=["f"])
    hand.execute(
        "UPDATE zart_executions SET created_at = created_at - interval '40 days',"
        " finished_at = finished_at - interval '40 days'"
    )
    hand.commit()
    hand.autocommit = True


def test_prune_says_what_goes_and_how_far_it_is(zart: Command, hand: "psycopg.Connection[Any]") -> None:
    """A dry run changes nothing; then lines on stderr, a sentence on stdout, and JSON for programs."""
    grow_old(hand, 2000)
    would = zart("prune", "--older-than", "30d", "--dry-run")
    assert (would.returncode, would.stdout) == (0, "would prune 2,000 executions, with 2,000 records\n")
    assert counted(hand) == (2000, 2000)
    nothing = zart("prune", "--older-than", "30d", "--status", "failed", "--status", "cancelled")
    assert nothing.stderr == ""
    assert nothing.stdout == "pruned 0 executions, with 0 records\n"
    pruned = zart("prune", "--older-than", "30d", "--keep-ids", "90d", "--batch", "100")
    assert pruned.returncode == 0
    assert pruned.stdout == "pruned 0 executions and 2,000 down to their ids, with 2,000 records\n"
    assert pruned.stderr.splitlines() == [f"{number:,} of 2,000" for number in range(200, 2001, 200)]
    assert counted(hand) == (2000, 0)
    last = zart("prune", "--older-than", "30d", "--json")
    assert json.loads(last.stdout) == {"dry_run": False, "deleted": 2000, "emptied": 0, "records": 0}
    assert counted(hand) == (0, 0)


def test_prune_is_killed_and_goes_on(zart: Command, hand: "psycopg.Connection[Any]") -> None:
    """Whatever is left is whole, and another run takes it."""
    grow_old(hand, 20_000)
    with zart.running("prune", "--older-than", "30d", "--batch", "20") as running:
        running.until(" of 20,000")
        running.process.send_signal(signal.SIGKILL)
        assert running.process.wait(20) == -signal.SIGKILL
    executions, records = counted(hand)
    assert 0 < executions <= 18_000
    assert records == executions
    again = zart("prune", "--older-than", "30d", "--json")
    executions, _ = counted(hand)
    assert json.loads(again.stdout)["deleted"] > 0
    assert executions == 0


def test_workers_are_listed(zart: Command, worker: Running) -> None:
    """For people and as JSON; none is said as well."""
    (seen,) = json.loads(zart("workers", "--json").stdout)
    assert seen["pid"] == worker.process.pid
    assert seen["alive"]
    assert seen["functions"] == ["order"]
    line = zart("workers").stdout.splitlines()[1]
    assert f"process {worker.process.pid}" in line
    assert "order" in line
    worker.end()
    assert zart("workers").stdout == "no workers\n"


def test_show_follows_an_execution_to_its_end(zart: Command, worker: Running) -> None:
    """Line by line in a pipe, while it goes on; exit code 0 when it has completed."""
    zart("start", "order", "--id", "o", "--data", "1")
    with zart.running("show", "--follow", "o") as follower:
        follower.until("paid (event)")
        assert "charge" in follower.output
        assert "completed" not in follower.output
        zart("event", "o", "paid")
        follower.until("completed after")
        assert follower.process.wait(20) == 0
        lines = follower.output.splitlines()
    told = [line.split()[1:3] for line in lines if line.startswith("  ")]
    assert told == [
        *(["✓", "charge"], ["…", "paid"], ["✓", "paid"], ["✓", "charge#2"], ["completed", "after"]),
    ]


def test_show_follow_ends_like_wait(zart: Command, worker: Running) -> None:
    """Exit code 1 when it has failed, with the reason; 3 when there is none; each line JSON for programs."""
    zart("start", "order", "--id", "bad", "--data", "-5")
    failed = zart("show", "--follow", "bad")
    assert failed.returncode == 1
    assert "no such card" in failed.stdout
    assert failed.stderr == "zart: execution 'bad' has failed\n"
    found = [json.loads(line) for line in zart("show", "--follow", "bad", "--json").stdout.splitlines()]
    assert found[-1]["execution"]["status"] == "failed"
    assert [line["record"]["state"] for line in found if "record" in line] == ["failed"]
    assert zart("show", "--follow", "nobody").returncode == 3


def test_show_follow_is_left_with_ctrl_c(zart: Command, worker: Running) -> None:
    """Exit code 130, and no traceback; the execution goes on."""
    zart("start", "order", "--id", "o", "--data", "1")
    with zart.running("show", "--follow", "o") as follower:
        follower.until("paid (event)")
        assert follower.end(signal.SIGINT) == 130
        assert "Traceback" not in follower.output
    zart("event", "o", "paid")
    assert zart("wait", "o", "--timeout", "20s").returncode == 0


def test_top_prints_one_frame_where_nobody_looks(zart: Command, worker: Running) -> None:
    """And with --once anyway; with --json a line for each frame, with rates from the second on."""
    zart("start", "order", "--id", "o", "--data", "1")
    zart("start", "nothing", "--id", "n")
    for arguments in ((), ("--once",)):
        shown = zart("top", *arguments)
        assert shown.returncode == 0
        assert "1 workers" in shown.stdout
        assert "no worker serves nothing: 1 ready" in shown.stdout
    once = json.loads(zart("top", "--once", "--json").stdout)
    assert once["rates"] is None
    assert {lane["name"] for lane in once["lanes"]} == {"order", "nothing"}
    with zart.running("top", "--json", "--interval", "200ms") as running:
        running.until('"rates":{')
        assert running.end(signal.SIGINT) == 130
        assert "Traceback" not in running.output


def test_top_in_a_terminal_goes_on_until_ctrl_c(place: Path, dsn: str) -> None:
    """It draws over what it has drawn, and gives the screen back at the end."""
    screen, terminal = pty.openpty()
    environment = os.environ | {"ZART_DATABASE_URL": dsn, "TERM": "xterm", "COLUMNS": "150", "LINES": "40"}
    process = subprocess.Popen(
        [*ZART, "top", "--interval", "200ms"],
        cwd=place,
        env=environment,
        stdin=terminal,
        stdout=terminal,
        stderr=subprocess.PIPE,
        preexec_fn=hear_ctrl_c,  # noqa: PLW1509 (no threads here)
    )
    os.close(terminal)
    shown = b""
    try:
        while b"started 0/s" not in shown:  # the second frame
            shown += os.read(screen, 65536)
        process.send_signal(signal.SIGINT)
        while b"\x1b[?1049l" not in shown:
            shown += os.read(screen, 65536)
        _, trouble = process.communicate(timeout=30)
    finally:
        process.kill()
        os.close(screen)
    assert process.returncode == 130
    assert trouble == b""
    assert b"no workers" in shown


def test_top_of_a_database_without_tables_says_what_to_do(place: Path, empty_dsn: str) -> None:
    """One line, and no traceback."""
    ended = Command(place, empty_dsn)("top", "--once")
    assert ended.returncode == 1
    assert "run `zart migrate`" in ended.stderr
    assert "Traceback" not in ended.stderr
