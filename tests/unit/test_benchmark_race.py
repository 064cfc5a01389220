"""How contenders take turns, and what becomes of one that fails."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.benchmarks.bench import Bench, Options
from tests.benchmarks.race import Contender, Race, rate
from tests.benchmarks.rounds import STEPS, Side, check


class FakeSide:
    """Takes as long as its mode says: seconds for an execution."""

    pid = 0

    def __init__(self, turns: list[str]) -> None:
        self._turns = turns

    @contextmanager
    def prepared(self, *_: object) -> Iterator[None]:
        yield

    def round(self, mode: str, _: int, executions: int) -> float:
        self._turns.append(mode)
        if mode == "broken":
            raise RuntimeError("it ended with 1")
        return float(mode) * executions


class FakeSides:
    def __init__(self) -> None:
        self.turns: list[str] = []
        self.closed: list[str] = []

    def get(self, *_: str) -> FakeSide:
        return FakeSide(self.turns)

    def close(self, product: str, way: str, _: str) -> None:
        self.closed.append(f"{product} {way}")


class FakeBench(Bench):
    @property
    def server_pid(self) -> int:
        return 0


def a_race(scale: float = 1.0) -> tuple[Race, Bench, FakeSides]:
    server: Any = None
    bench, sides = FakeBench(server, Options(scale=scale)), FakeSides()
    given: Any = sides
    return Race(bench, "a", given), bench, sides


def contender(product: str, mode: str, *, callers: int = 1) -> Contender:
    return Contender(product=product, way=f"way-{mode}", mode=mode, callers=callers, told=f"{callers} {mode}")


def test_a_peers_best_mode_goes_on_and_the_others_keep_their_heats_figure() -> None:
    """The sides of the losers are closed, so that they disturb nobody."""
    race, bench, sides = a_race()
    modes = [contender("DBOS", "0.02"), contender("DBOS", "0.01")]
    race.run(modes)
    figures = [rate(bench, "a", mode) for mode in modes]
    assert [(len(figure.values), figure.median) for figure in figures if figure is not None] == [
        (1, STEPS / 0.02),
        (5, STEPS / 0.01),
    ]
    assert sides.closed == ["DBOS way-0.02"]


def test_rounds_take_turns_in_alternating_order() -> None:
    race, _, sides = a_race()
    race.run([contender("Zart", "0.01"), contender("PostgreSQL", "0.02")])
    heats, rounds = sides.turns[:4], sides.turns[4:]
    assert heats == ["0.01", "0.01", "0.02", "0.02"]
    assert rounds == ["0.01", "0.02", "0.02", "0.01", "0.01", "0.02", "0.02", "0.01", "0.01", "0.02"]


def test_a_slow_contender_has_fewer_rounds() -> None:
    """One of six seconds: a second round would take it past its share."""
    race, bench, _ = a_race()
    slow = contender("DBOS", "0.06", callers=100)
    race.run([slow])
    figure = rate(bench, "a", slow)
    assert figure is not None
    assert len(figure.values) == 1


def test_with_many_callers_the_best_mode_runs_without_a_heat() -> None:
    race, bench, sides = a_race(scale=0.1)
    modes = [contender("DBOS", mode, callers=callers) for callers in (100, 500) for mode in ("0.02", "0.01")]
    race.run(modes)
    assert rate(bench, "a", modes[2]) is None
    assert rate(bench, "a", modes[3]) is not None
    assert sides.turns == ["0.02", "0.02", "0.01", "0.01", "0.01", "0.01"]


def test_a_peer_that_fails_is_left_out() -> None:
    race, bench, _ = a_race()
    zart = contender("Zart", "0.01")
    race.run([zart, contender("Absurd", "broken")])
    assert bench.left_out == {"Absurd": "failed: it ended with 1"}
    assert rate(bench, "a", zart) is not None


def test_when_zart_fails_the_case_does() -> None:
    race, _, _ = a_race()
    with pytest.raises(RuntimeError, match="it ended"):
        race.run([contender("Zart", "broken")])


def test_a_wrong_result_is_an_error() -> None:
    check(7 + STEPS, 7)
    with pytest.raises(AssertionError, match="execution 7 gave"):
        check(7, 7)


def test_a_side_that_does_not_start_is_an_error() -> None:
    """It is not waited for."""
    with pytest.raises(RuntimeError, match=r"tests\.benchmarks\.sides\.with_nobody ended with 1"):
        Side(sys.executable, "tests.benchmarks.sides.with_nobody", [], environment={})
