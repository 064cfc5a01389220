"""Workers die at every named point, and others make it good.

A part of what `make explore` does, chosen anew for each `ZART_CRASHES_SEED`. A failure prints the command that repeats
it.
"""

import itertools
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.crashes.corpus import WORKFLOWS
from tests.crashes.explorer import Run, plan, why_it_stands
from tests.crashes.exploring import Exploration, command, exploration
from tests.crashes.faults import parse, told
from tests.crashes.workflow import Ended
from tests.support.databases import Databases
from tests.support.quiet import errors_alone

SEED = int(os.environ.get("ZART_CRASHES_SEED", "1"))
WITHIN = 40.0
"""Seconds for the largest test, on a machine that can do its fixed part within them."""
PAIRS_FOR = 5.0
"""Seconds for pairs, at least."""
QUICK = [workflow for workflow in WORKFLOWS.values() if not workflow.slow]

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with errors_alone("zart.reaper"):
        yield tmp_path_factory.mktemp("crashes")


@pytest.fixture
async def found(databases: Databases, template: str, place: Path) -> AsyncIterator[Exploration]:
    async with exploration(databases, template, place, seed=SEED) as exploring:
        yield exploring
        print(exploring.table())


def _told(runs: list[Run]) -> str:
    return "\n".join(line for run in runs for line in (command(run), *run.problems))


async def test_any_worker_may_die_anywhere(found: Exploration) -> None:
    """A kill at every point that the corpus leads to, in every workflow; other faults; pairs while there is time."""
    begun = time.monotonic()
    await found.begin(QUICK)
    await found.run_all(found.spread(QUICK, "kill", 1), what="singles")
    for _ in range(4):  # what is reached depends a little on time
        await found.run_all(found.missed("kill"), what="singles")
    kinds = itertools.cycle(("stop", "freeze", "cut", "news"))
    others = [
        (workflow, found.some(found.singles(workflow, kind), 1))
        for workflow, kind in zip(QUICK, kinds, strict=False)
    ]
    await found.run_all([(workflow, plan) for workflow, plans in others for plan in plans], what="singles")
    await found.run_pairs(QUICK, max(PAIRS_FOR, WITHIN - (time.monotonic() - begun)))
    assert not found.failures, _told(found.failures)
    never = [plan[0][0].point for _, plan in found.missed("kill")]
    assert len(never) <= 3, f"no worker died at {never}"


async def test_what_only_a_first_fault_leads_to(found: Exploration) -> None:
    """A kill in the middle of a takeover, of a shutdown with work in hand, of looking for lost commits."""
    workflows = [WORKFLOWS[name] for name in ("sequence", "cancelled-wait")]
    await found.begin(workflows)
    first = [(workflow, plan) for workflow in workflows for plan in found.first_faults(workflow)]
    runs = await found.run_all(first, what="singles")
    await found.run_all([(run.workflow, plan) for run in runs for plan in found.seconds(run)], what="seconds")
    assert not found.failures, _told(found.failures)
    reached = {point for point, kind in found.reached if kind == "kill"}
    led_to = {"takeover.begin", "takeover.committed", "reaping.committed", "release.begin"}
    # In a mode of the suite a release may need no fault.
    without = {line.partition("#")[0] for run in found.baselines.values() for line in run.traces[0]}
    assert led_to - without <= reached


def test_a_fault_is_written_as_it_is_read() -> None:
    """What a failure prints can be given back."""
    text = "stop@journal.record.sent#2+kill@shutdown.begin#1"
    assert told(parse(text)) == text
    for wrong in ("kill", "kill@nowhere#1", "burn@claim.read#1", "kill@claim.read#x"):
        with pytest.raises(ValueError, match="KIND@POINT#NUMBER"):
            parse(wrong)


def test_a_cut_in_another_thread_is_not_why_a_worker_stands() -> None:
    """The heartbeat may reach its point when the process is being frozen: nobody has to wait for news then."""
    kinds = {"lease.begin#2": "cut", "journal.finish.sent#1": "freeze"}
    trace = ["claim.begin#1", "journal.finish.sent#1", "lease.begin#2"]
    assert why_it_stands(kinds, trace) == "freeze"


def test_a_worker_that_reached_nothing_is_no_place_for_a_fault() -> None:
    """The last worker of a run may be stopped before its first point: the pairs are drawn from other runs."""
    workflow = WORKFLOWS["sequence"]
    exploring = Exploration([], seed=SEED)
    exploring.baselines[workflow.name] = Run(workflow, (), traces=[["claim.begin#1", "claim.read#1"]])
    for kind in ("kill", "stop", "freeze", "cut"):
        exploring._traces[workflow.name].append((plan(f"{kind}@claim.read#1"), [["claim.begin#1"], []]))
    for _ in range(50):
        assert "@claim." in told(exploring.pair(workflow)[-1])


async def test_the_judge_sees_other_records(found: Exploration) -> None:
    """A record too many, or one too few, is noticed."""
    workflow = WORKFLOWS["sequence"]
    await found.begin([workflow])
    baseline = found.baselines[workflow.name]
    good = await found._explorers[0].run(workflow, plan("kill@step.returned#2"), baseline)
    assert good.problems == []
    assert good.reached
    baseline.calls -= {(("", "b", 1, "step"), "completed")}
    bad = await found._explorers[0].run(workflow, (), baseline)
    assert any("the records differ" in problem for problem in bad.problems)


@pytest.mark.parametrize(
    ("done", "problem"),
    [
        ("abcd", None),
        ("abbcd", None),
        ("abacd", "'a' was repeated after 'b'"),
        ("abd", "'c' has not happened"),
        ("abcde", "nobody expects"),
    ],
)
def test_the_judge_sees_what_is_wrong_with_effects(done: str, problem: str | None) -> None:
    """An effect may happen again until the next one has happened: by then it was recorded."""
    found = list(WORKFLOWS["sequence"].problems(Ended("completed", "-abcd"), list(done)))
    assert found == [] if problem is None else problem in found[0]
