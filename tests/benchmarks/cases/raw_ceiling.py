"""Case k: the raw ceiling. Measured by case a in its rounds when both run, since ratios want the same minutes."""

from tests.benchmarks.bench import Bench, Case
from tests.benchmarks.peers import sides_of
from tests.benchmarks.race import Contender, Race


def run(bench: Bench) -> None:
    together = [figure for figure in bench.figures if figure.case == "a" and figure.product == "PostgreSQL"]
    if not together:
        with sides_of(bench) as sides:
            Race(bench, "k", sides).run(ceiling())
    for figure in together:
        for value in figure.values:
            bench.add("k", figure.product, figure.setup, figure.quantity, figure.unit, value)


def ceiling() -> list[Contender]:
    """On one connection, and on two; the better one is the ceiling."""
    return [
        Contender(
            product="PostgreSQL",
            way="bare",
            mode=mode,
            callers=1,
            told=f"batches of 1,000 rows, {mode}",
            least=2_000,
        )
        for mode in ("1 connection", "2 connections")
    ]


CASE = Case(
    letter="k",
    title="the raw ceiling: the same rows, without an engine",
    long=False,
    told="The rows that Zart writes for executions of five steps, by bare batched statements into the same tables. "
    "The better of one connection and two is the ceiling. When case a runs too, these are the figures of its rounds.",
    run=run,
)
