"""Case b: latencies on an idle system."""

import statistics
from typing import Final

import msgspec

from tests.benchmarks.bench import Bench, Case, note
from tests.benchmarks.figures import percentile
from tests.benchmarks.peers import PEERS, Sides, sides_of

ROUNDS: Final = 5
PAUSE: Final = 0.05
"""Seconds before each execution, for the system to come to rest."""
RESULTS: Final = {"Zart": 40}
"""Executions of a round whose start and end are timed. Zart has more, for the sake of its p99."""
RESULTS_OF_PEERS: Final = 15
EVENTS: Final = 5
"""Executions of a round that are sent an event."""
RESULT: Final = "start to result of five steps"
ZART_WAYS: Final = (("together", "worker and client in one process"), ("apart", "worker and client apart"))


class Line(msgspec.Struct, kw_only=True):
    """A product and how it runs, with all that was measured: milliseconds."""

    product: str
    way: str
    told: str
    results: list[float] = []


def run(bench: Bench) -> None:
    with sides_of(bench) as sides:
        lines = [
            Line(product=product, way=way, told=told)
            for product in sides.products()
            for way, told in (ZART_WAYS if product == "Zart" else PEERS[product].latencies)
        ]
        for line in lines:
            guarded(bench, sides, line, warm_up=True)
        rounds = bench.rounds(ROUNDS)
        for number in rounds:
            for line in lines if number % 2 == 0 else lines[::-1]:
                guarded(bench, sides, line)
            note(f"round {number + 1} of {len(rounds)}")
    for line in lines:
        if line.results:
            bench.add("b", line.product, line.told, f"{RESULT}, p99", "ms", percentile(line.results, 0.99))
    compare(bench, lines)


def guarded(bench: Bench, sides: Sides, line: Line, *, warm_up: bool = False) -> None:
    """A peer that fails is left out from then on; when Zart fails, the case does."""
    if line.product in bench.left_out:
        return
    try:
        measure(bench, sides, line, warm_up=warm_up)
    except RuntimeError as error:
        if line.product == "Zart":
            raise
        note(f"{line.product} is left out: {error}")
        bench.left_out[line.product] = f"failed: {error}"


def measure(bench: Bench, sides: Sides, line: Line, *, warm_up: bool) -> None:
    """One round: the median of each quantity is its figure."""
    side = sides.get(line.product, line.way)
    results = 5 if warm_up else bench.options.scaled(RESULTS.get(line.product, RESULTS_OF_PEERS), least=3)
    events = 2 if warm_up else bench.options.scaled(EVENTS, least=2)
    with side.prepared("1", 1):
        answered = side.ask(do="latencies", of="result", count=results, pause=PAUSE)
        answered |= side.ask(do="latencies", of="event", count=events, pause=PAUSE)
    if warm_up:
        note(f"warmed up: {line.product}, {line.told}")
        return
    line.results += answered["results"]
    for quantity, values in (
        (f"{RESULT}, p50", answered["results"]),
        ("step to step, p50", answered["gaps"]),
        ("event to resumed, p50", answered["resumed"]),
    ):
        bench.add("b", line.product, line.told, quantity, "ms", statistics.median(values))


def compare(bench: Bench, lines: list[Line]) -> None:
    """For each way of Zart's. The p50 are those of all rounds together."""
    peers = [line for line in lines if line.product not in ("Zart", *bench.left_out) and line.results]
    if not peers:
        return
    best = min(peers, key=lambda line: percentile(line.results, 0.5))
    limit = percentile(best.results, 0.5)
    name = f"the best peer's p50 ({best.product}'s)"
    for line in lines:
        if line.product == "Zart":
            for share, wanted in ((0.5, 1 / 3), (0.99, 1.0)):
                found = percentile(line.results, share) / limit
                told = f"start to result, p{100 * share:.0f}, {line.told}, against {name}"
                bench.target("b", told, found, wanted, at_least=False)


CASE = Case(
    letter="b",
    title="latencies on an idle system",
    long=False,
    told="One execution at a time, each after a pause of 0.05 s; an event is sent 0.15 s after the start of its "
    "execution. Times are those of the system's monotonic clock, read by the caller and by the body or step itself. "
    "Start to result: from the call that starts an execution of five no-op steps to its result. Step to step: from "
    "the run of one to the run of the next, with the record of the first between them. Event to resumed: from the "
    "call that sends it to the body that runs again. A value is the median of a round, or the p99 of all rounds "
    "together. Products take turns in alternating order.",
    run=run,
)
