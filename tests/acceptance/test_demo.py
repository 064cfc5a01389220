"""The demo proves what it says, and knows when it does not."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from examples import demo
from examples.demo import SERVICE_OF_STEP, USERS, Call, Ledger, Stage, Unproven

ROOT = Path(__file__).parents[2]
DEAD, ALIVE = 100, 200


@pytest.mark.slow
def test_the_demo_proves_it() -> None:
    """`make demo` ends with 0 within a minute, and shows the kill, the timeline and the proof."""
    ran = subprocess.run(
        [sys.executable, "-m", "examples.demo"],
        cwd=ROOT,
        env=os.environ | {"NO_COLOR": "1", "COLUMNS": "110"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "kill -9 " in ran.stdout
    assert "each called exactly once in all" in ran.stdout
    for step in SERVICE_OF_STEP:
        assert step in ran.stdout


DIED = Call(pid=DEAD, user="ann", step="provision")
RECORDED = {(user, step) for user in USERS for step in ("send-welcome-mail", "create-customer")}


def honest_calls() -> list[Call]:
    """What the world notes when one worker dies in ann's provisioning and the other does the rest."""
    before = [Call(pid=DEAD, user=user, step=step) for user, step in sorted(RECORDED)]
    after = [
        Call(pid=ALIVE, user=user, step=step)
        for user in USERS
        for step in SERVICE_OF_STEP
        if (user, step) not in RECORDED
    ]
    return [*before, DIED, *after]


def prove(tmp_path: Path, calls: list[Call]) -> None:
    ledger = tmp_path / "ledger"
    lines = []
    for call in calls:
        service, word = SERVICE_OF_STEP[call.step].split()
        lines.append(f"{call.pid}\t{service}\t{word} something of {call.user}\n")
    ledger.write_text("".join(lines))
    demo.prove(Stage(dsn="", ledger=Ledger(ledger), workers={}), DIED, RECORDED)


def test_an_honest_ledger_is_proof(tmp_path: Path) -> None:
    """Recorded steps once, the step that was cut off twice, all others once."""
    assert Counter(honest_calls())[DIED] == 1
    prove(tmp_path, honest_calls())


def test_a_recorded_step_that_ran_twice_is_found(tmp_path: Path) -> None:
    """The lie that the demo exists to rule out."""
    again = Call(pid=ALIVE, user="ben", step="send-welcome-mail")
    with pytest.raises(
        Unproven, match="ben's send-welcome-mail was recorded before the kill and was run 2 times"
    ):
        prove(tmp_path, [*honest_calls(), again])


def test_a_step_that_never_ran_is_found(tmp_path: Path) -> None:
    """A missing call is as bad as one too many."""
    missing = Call(pid=ALIVE, user="cleo", step="activate")
    with pytest.raises(Unproven, match="cleo's activate was run 0 times"):
        prove(tmp_path, [call for call in honest_calls() if call != missing])


def test_a_step_that_ran_twice_without_having_been_cut_off_is_found(tmp_path: Path) -> None:
    """Only what the dead worker had begun may run again."""
    with pytest.raises(Unproven, match="cleo's activate was run 2 times"):
        prove(tmp_path, [*honest_calls(), Call(pid=ALIVE, user="cleo", step="activate")])
