"""Rounds of several contenders that take turns, so that what else the machine does meets all of them alike."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

import msgspec

from tests.benchmarks.bench import Bench, note
from tests.benchmarks.figures import Figure
from tests.benchmarks.peers import PEERS, Sides
from tests.benchmarks.processor_time import used_by
from tests.benchmarks.rounds import STEPS, Side

ROUNDS: Final = 5
ROUND_SECONDS: Final = 1.2
"""What a round takes, unless its callers need longer for an execution each."""
CONTENDER_SECONDS: Final = 10.0
"""What the rounds of a contender take together. Those whose rounds are long have fewer, at least one."""
HEATED_CALLERS: Final = 100
"""With more callers there is no heat for a peer, which would take long: the mode runs that was best with fewer."""


class Contender(msgspec.Struct, kw_only=True):
    """A product, a way of running it, so many callers."""

    product: str
    way: str
    """Which of the product's sides: `together`, `by-queue`."""
    own: str = ""
    """A name for a side, and a database, that no other contender uses."""
    mode: str
    """What the side is asked for."""
    callers: int
    told: str
    """Its line in the table."""
    least: int = 20
    """Executions of a round at least; a heat has as many."""
    seconds_per_execution: float = 0.0
    """As its last heat found it."""
    executed: int = 0
    """Executions so far, heats included."""

    @property
    def heat(self) -> int:
        return max(self.callers, self.least)

    def executions(self, seconds: float) -> int:
        """As many as a round of so many seconds has time for, and at least one for each caller."""
        return max(self.heat, int(seconds / self.seconds_per_execution))

    def run(self, sides: Sides, executions: int) -> float:
        """Seconds for each execution, in one round."""
        side = sides.get(self.product, self.way, self.own)
        with side.prepared(self.mode, self.callers, executions):
            return self.timed(side, executions)

    def timed(self, side: Side, executions: int) -> float:
        """The same, of a side that is prepared."""
        self.executed += executions
        return side.round(self.mode, self.callers, executions) / executions


class Race:
    """One case's contenders. Of a peer's modes, the best for each number of callers goes on from the heats."""

    def __init__(self, bench: Bench, case: str, sides: Sides) -> None:
        self._bench = bench
        self._case = case
        self._sides = sides
        self._best: dict[str, Contender] = {}
        """Of each product, the last that won a heat."""

    def run(self, contenders: Sequence[Contender]) -> None:
        """Heats for everybody, then the rounds. A mode that lost keeps the figure of its heat."""
        for contender in contenders:  # the order of the table
            self._bench.figures.append(_steps(self._case, contender))
        racing: list[Contender] = []
        for group in _groups(contenders):
            racing += self._guarded(group[0].product, partial(self._heat, group))
        self._close_losers(contenders, racing)
        rounds = self._bench.rounds(ROUNDS)
        for number in rounds:
            for contender in racing if number % 2 == 0 else racing[::-1]:
                took = contender.executions(self._seconds) * contender.seconds_per_execution
                if number == 0 or (number + 1) * took <= CONTENDER_SECONDS:
                    self._guarded(contender.product, partial(self._measure, contender))
            note(f"round {number + 1} of {len(rounds)}")
        self._bench.figures[:] = [figure for figure in self._bench.figures if figure.values]

    @property
    def _seconds(self) -> float:
        return ROUND_SECONDS * self._bench.options.scale

    def _heat(self, group: list[Contender]) -> list[Contender]:
        """Who goes on."""
        product = group[0].product
        known = self._best.get(product)
        if product in PEERS and group[0].callers > HEATED_CALLERS and known is not None:
            best = next(contender for contender in group if contender.mode == known.mode)
            best.seconds_per_execution = known.seconds_per_execution
            return [best]
        for contender in group:
            if product not in PEERS or not PEERS[product].prepares:
                contender.run(self._sides, contender.heat)  # connections, plans, imports
            contender.seconds_per_execution = contender.run(self._sides, contender.heat)
            note(f"warmed up: {product}, {contender.told}")
        best = min(group, key=lambda contender: contender.seconds_per_execution)
        for contender in group:
            if contender is not best:
                self._add_rate(contender, contender.seconds_per_execution)
        self._best[product] = best
        return [best]

    def _measure(self, contender: Contender) -> list[Contender]:
        executions = contender.executions(self._seconds)
        side = self._sides.get(contender.product, contender.way, contender.own)
        with side.prepared(contender.mode, contender.callers, executions):
            before = [used_by(pid) for pid in (side.pid, self._bench.server_pid)]
            self._add_rate(contender, contender.timed(side, executions))
            after = [used_by(pid) for pid in (side.pid, self._bench.server_pid)]
        used = [b - a for a, b in zip(before, after, strict=True) if a is not None and b is not None]
        if used:
            milliseconds = 1000 * sum(used) / executions
            self._bench.add(
                self._case,
                contender.product,
                contender.told,
                "processor time of an execution",
                "ms",
                milliseconds,
            )
        return [contender]

    def _add_rate(self, contender: Contender, seconds_per_execution: float) -> None:
        rate = STEPS / seconds_per_execution
        self._bench.add(self._case, contender.product, contender.told, "steps", "steps/s", rate)

    def _guarded(self, product: str, race: Callable[[], list[Contender]]) -> list[Contender]:
        """A peer that fails is left out from then on; when Zart fails, the case does."""
        if product in self._bench.left_out:
            return []
        try:
            return race()
        except RuntimeError as error:
            if product not in PEERS:
                raise
            note(f"{product} is left out: {error}")
            self._bench.left_out[product] = f"failed: {error}"
            return []

    def _close_losers(self, contenders: Sequence[Contender], racing: Sequence[Contender]) -> None:
        """Their polling would disturb the others."""
        in_use = {(contender.product, contender.way, contender.own) for contender in racing}
        for contender in contenders:
            if (contender.product, contender.way, contender.own) not in in_use:
                self._sides.close(contender.product, contender.way, contender.own)


def _groups(contenders: Sequence[Contender]) -> Iterator[list[Contender]]:
    """Those that compete with each other: a peer's, with as many callers. All others run for themselves."""

    def key(contender: Contender) -> tuple[object, ...]:
        peers = contender.product in PEERS
        return (contender.product, contender.callers) if peers else (contender.product, contender.told)

    for _, group in itertools.groupby(contenders, key=key):
        yield list(group)


def _steps(case: str, contender: Contender) -> Figure:
    return Figure(
        case=case, product=contender.product, setup=contender.told, quantity="steps", unit="steps/s"
    )


def rate(bench: Bench, case: str, contender: Contender) -> Figure | None:
    """Its steps per second, if it came that far."""
    try:
        return bench.figure(case, contender.product, contender.told, "steps")
    except LookupError:
        return None
