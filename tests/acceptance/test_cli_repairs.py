"""What somebody types who is called at three in the morning: runs, retry-step, restart, rerun, delete, show --run."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import Command, Running, until

APP = """\
from pathlib import Path

import zart
from zart import durable, step


@step("charge", retry="fixed(1, 10ms)")
async def charge(number: int) -> str:
    if not Path("open").exists():
        raise ConnectionError("the bank is closed")
    return f"receipt {number}"


@step("ship")
async def ship(receipt: str) -> str:
    with Path("shipped").open("a") as file:
        file.write(f"{receipt}\\n")
    return f"shipped with {receipt}"


@durable("order")
async def order(number: int) -> str:
    return await ship(await charge(number))


@durable("wait")
async def wait() -> None:
    await zart.wait_for_event("never")


registry = zart.Registry(order, wait)
"""


def failed(zart: Command) -> None:
    zart("start", "order", "--id", "o", "--data", "1")
    assert zart("wait", "o", "--timeout", "20s").returncode == 1


def completed(zart: Command, place: Path) -> None:
    (place / "open").touch()
    zart("start", "order", "--id", "o", "--data", "1")
    assert result(zart) == "shipped with receipt 1"


def result(zart: Command) -> Any:
    ended = zart("wait", "o", "--timeout", "20s")
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def runs(zart: Command) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = json.loads(zart("runs", "o", "--json").stdout)
    return told


def test_a_failed_step_is_tried_again(zart: Command, worker: Running, place: Path) -> None:
    """The line says what is tried again, and the run goes on; `show` tells who wanted it and why."""
    failed(zart)
    (place / "open").touch()
    asked = zart("retry-step", "o", "charge", "--reason", "the bank is open")
    assert (asked.returncode, asked.stdout, asked.stderr) == (0, "charge of o is tried again\n", "")
    assert result(zart) == "shipped with receipt 1"
    shown = zart("show", "o").stdout
    assert "retry of 'charge'" in shown
    assert "the bank is open" in shown
    assert [run["status"] for run in runs(zart)] == ["completed"]


def test_what_cannot_be_retried(zart: Command, worker: Running, place: Path) -> None:
    """1: there is nothing to retry; 2: no such key, with those that there are."""
    failed(zart)
    unknown = zart("retry-step", "o", "chrage")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "no record 'chrage'" in unknown.stderr
    assert "charge" in unknown.stderr
    (place / "open").touch()
    zart("retry-step", "o", "charge")
    assert result(zart) == "shipped with receipt 1"
    ended = zart("retry-step", "o", "charge")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "has completed" in ended.stderr


def test_a_step_that_has_not_failed(zart: Command, worker: Running, place: Path) -> None:
    """Its execution has, of another step: 1, and one line that says so."""
    completed(zart, place)
    (place / "open").unlink()
    zart("rerun", "o", "--step", "charge")
    assert zart("wait", "o", "--timeout", "20s").returncode == 1
    kept = zart("retry-step", "o", "ship")
    assert (kept.returncode, kept.stdout) == (1, "")
    assert kept.stderr == "zart: ship of o has not failed: there is nothing to retry\n"


def test_restart_prints_the_new_run_and_keeps_the_old_one(
    zart: Command, worker: Running, place: Path
) -> None:
    """The new run has its own input; `runs` lists both, and `show --run` tells what the old one did."""
    failed(zart)
    (old,) = [run["run_id"] for run in runs(zart)]
    (place / "open").touch()
    begun = zart("restart", "o", "--data", "2", "--reason", "wrong number")
    assert (begun.returncode, begun.stderr) == (0, "")
    assert result(zart) == "shipped with receipt 2"
    told = runs(zart)
    assert [(run["run_id"], run["status"]) for run in told] == [
        (old, "failed"),
        (begun.stdout.strip(), "completed"),
    ]
    assert told[0]["failure"]["message"] == "the bank is closed"
    assert told[0]["ended_at"] is not None
    assert told[1]["ended_at"] is None
    table = zart("runs", "o").stdout
    assert old in table
    assert begun.stdout.strip() in table
    assert "ConnectionError: the bank is closed" in table
    assert "✗ charge" in zart("show", "o", "--run", old).stdout
    assert "✗ charge" not in zart("show", "o").stdout
    shown = json.loads(zart("show", "o", "--run", old, "--json").stdout)
    assert shown["run_id"] == old
    assert [(record["key"], record["state"]) for record in shown["records"]] == [("charge", "failed")]


def test_a_run_that_is_not_kept_is_code_3(zart: Command, worker: Running, place: Path) -> None:
    completed(zart, place)
    unknown = zart("show", "o", "--run", "nothing")
    assert (unknown.returncode, unknown.stdout) == (3, "")
    assert "has no run 'nothing'" in unknown.stderr


def test_rerun_names_what_may_be_stale(zart: Command, worker: Running, place: Path) -> None:
    """On stderr, so that stdout is the run; with --json both are in one object."""
    completed(zart, place)
    begun = zart("rerun", "o", "--step", "charge", "--reason", "new rules")
    assert begun.returncode == 0
    assert begun.stderr == "kept, and perhaps stale: ship\n"
    assert result(zart) == "shipped with receipt 1"
    assert [run["run_id"] for run in runs(zart)][1] == begun.stdout.strip()
    both = zart("rerun", "o", "--step", "charge", "--step", "ship", "--json")
    assert both.returncode == 0
    told = json.loads(both.stdout)
    assert result(zart) == "shipped with receipt 1"
    assert told == {"run_id": runs(zart)[2]["run_id"], "stale": []}
    assert (place / "shipped").read_text() == "receipt 1\n" * 2


def test_rerun_wants_steps_that_there_are(zart: Command, worker: Running, place: Path) -> None:
    """2, whether none is named or one that is unknown; nothing was begun."""
    completed(zart, place)
    none = zart("rerun", "o")
    assert none.returncode == 2
    assert "--step" in none.stderr
    unknown = zart("rerun", "o", "--step", "shop")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "no record 'shop'" in unknown.stderr
    assert len(runs(zart)) == 1


def test_delete_only_what_has_ended(zart: Command, worker: Running) -> None:
    """Afterwards nobody knows of it."""
    zart("start", "wait", "--id", "o")
    until(lambda: "waiting" in zart("status", "o").stdout, lambda: "it waits")
    live = zart("delete", "o")
    assert (live.returncode, live.stdout) == (2, "")
    assert "has not ended: cancel it" in live.stderr
    zart("cancel", "o")
    assert zart("wait", "o", "--timeout", "20s").returncode == 1
    deleted = zart("delete", "o", "--reason", "asked for")
    assert (deleted.returncode, deleted.stdout, deleted.stderr) == (0, "o is deleted\n", "")
    assert zart("status", "o").returncode == 3


@pytest.mark.parametrize(
    "arguments",
    [
        ("runs", "nobody"),
        ("retry-step", "nobody", "charge"),
        ("restart", "nobody"),
        ("rerun", "nobody", "--step", "charge"),
        ("delete", "nobody"),
        ("show", "nobody", "--run", "nothing"),
    ],
)
def test_an_unknown_execution_is_code_3(zart: Command, arguments: tuple[str, ...]) -> None:
    """One line that names the id."""
    told = zart(*arguments)
    assert (told.returncode, told.stdout) == (3, "")
    (line,) = told.stderr.splitlines()
    assert "'nobody'" in line


@pytest.mark.parametrize(
    "arguments",
    [
        ("restart", "o", "--data", "{"),
        ("restart", "o", "--reason", "x" * 20_000),
        ("retry-step", "o"),
        ("delete",),
    ],
)
def test_what_cannot_be_is_wrong_usage(zart: Command, arguments: tuple[str, ...]) -> None:
    told = zart(*arguments)
    assert (told.returncode, told.stdout) == (2, "")
    assert "Traceback" not in told.stderr
