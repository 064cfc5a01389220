"""The cases of the benchmark that need no other product run, and give every figure and target that they are for."""

from collections.abc import Iterator

import pytest

from tests.benchmarks.bench import Bench, Options, started
from tests.benchmarks.cases import cost, fan_out, payloads, replay, starts

pytestmark = [
    pytest.mark.slow,
    pytest.mark.not_in(
        *("suspending", "twice", "unparked", "unprepared", "pgbouncer"),
        reason="a server of its own is measured, as users have it",
    ),
]


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    """A bench on a server of its own, at a size at which every case takes seconds."""
    with started(Options(scale=0.003, peers=())) as running:
        yield running


CASES = {
    "c": (
        cost,
        {
            "commits per step",
            "index entries per step",
            "statements",
            "round trips",
            "connections of a worker",
        },
        3,
    ),
    "e": (replay, {"claim to live", "per step"}, 5),
    "f": (fan_out, {"start to result", "time each", "statements each", "commits each", "WAL bytes each"}, 4),
    "h": (starts, {"starts"}, 4),
    "i": (payloads, {"steps", "executions", "payload per second", "WAL bytes each"}, 0),
}


@pytest.mark.parametrize("letter", CASES)
@pytest.mark.not_in(
    "encrypted", reason="the benchmark runs in environments of its own, and measures without keys"
)
def test_a_case(bench: Bench, letter: str) -> None:
    """Every result is checked by the case itself; its figures are there, with values, and its targets."""
    module, quantities, targets = CASES[letter]
    assert module.CASE.letter == letter
    module.CASE.run(bench)
    figures = [figure for figure in bench.figures if figure.case == letter]
    assert quantities <= {figure.quantity for figure in figures}
    assert all(figure.values for figure in figures)
    assert len([target for target in bench.targets if target.case == letter]) == targets
