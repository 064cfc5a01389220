"""The long cases of the benchmark run, at a size that says nothing about speed, and check what they measure."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.benchmarks.bench import Bench, Options
from tests.benchmarks.cases import growth, memory, soak
from tests.support.databases import Databases
from tests.support.modes import MODES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.not_in(*MODES, reason="what is measured is the ordinary way to run"),
]


class SmallBench(Bench):
    """On the server of the tests, whose databases are made in no time."""

    def __init__(self, make: Callable[[], str]) -> None:
        no_server: Any = None
        super().__init__(no_server, Options(scale=0.0005, peers=()))
        self._make = make

    def database(self, name: str) -> str:
        return self._make()


@pytest.fixture
def bench(databases: Databases, template: str) -> Iterator[Bench]:
    with ExitStack() as stack:
        yield SmallBench(lambda: databases.direct(stack.enter_context(databases.database(template))))


@pytest.fixture
def quantities(bench: Bench) -> Callable[[str], set[str]]:
    """What was measured in a case."""

    def of(letter: str) -> set[str]:
        figures = [figure for figure in bench.figures if figure.case == letter]
        assert all(figure.values for figure in figures)
        return {figure.quantity for figure in figures}

    return of


@pytest.mark.not_in(
    "encrypted", reason="the benchmark runs in environments of its own, and measures without keys"
)
def test_growth(bench: Bench, quantities: Callable[[str], set[str]]) -> None:
    """Case d: each of five has a figure on each of seven databases, and a target."""
    growth.CASE.run(bench)
    compared = {f"{what}, p50" for what in ("claim", "start", "list", "status", "start to result")}
    assert compared < quantities("d")
    assert len({figure.setup for figure in bench.figures if figure.case == "d"}) == 7
    assert len([target for target in bench.targets if target.case == "d"]) == len(compared)


@pytest.mark.not_in(
    "encrypted", reason="the benchmark runs in environments of its own, and measures without keys"
)
def test_memory(bench: Bench, quantities: Callable[[str], set[str]]) -> None:
    """Case g: a process at work, and three at rest."""
    memory.CASE.run(bench)
    assert "worker process" in quantities("g")
    assert len({figure.setup for figure in bench.figures if figure.case == "g"}) == 4


@pytest.mark.not_in(
    "encrypted", reason="the benchmark runs in environments of its own, and measures without keys"
)
def test_soak(bench: Bench, quantities: Callable[[str], set[str]]) -> None:
    """Case j: a rate for each minute, and the last against the first."""
    soak.CASE.run(bench)
    assert {"executions", "multixacts", "zart_tasks: HOT share of its updates"} < quantities("j")
    assert [target.case for target in bench.targets if target.case == "j"] == ["j"]
