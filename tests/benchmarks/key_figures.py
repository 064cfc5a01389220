"""The few figures that docs/explanation/performance.md shows, chosen from all that a run has measured.

Products stand beside each other where they were measured alike, each in the set-up in which it did best; the rest is
Zart's own. What was not measured is not there, and what a row says of sizes comes from the figure, so that a run at
another scale is told as what it was.
"""

import re
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from tests.benchmarks.cases import throughput
from tests.benchmarks.cases.growth import EMPTY
from tests.benchmarks.cases.latency import RESULT
from tests.benchmarks.figures import Figure, Unit

BARE: Final = "PostgreSQL"
"""The product of what is written without an engine."""
_FAN_OUT: Final = re.compile(r"(?P<width>\d+) (?P<kind>children|scheduled steps)")
_REPLAY: Final = re.compile(r"(?P<size>\d+) steps, one task")
_MEMORY: Final = re.compile(r".* (?:running|waiting, no body kept|waiting, all bodies kept)")


class Row(msgspec.Struct, kw_only=True, frozen=True):
    """One line of the table."""

    told: str
    unit: Unit
    values: dict[str, float]
    """The median, by product."""


def chosen(figures: Sequence[Figure]) -> list[Row]:
    """The rows for which there are figures."""
    measured = [figure for figure in figures if figure.values]
    rows = [
        _steps(measured, "1 caller", _by_callers(1)),
        _steps(measured, "100 callers", _by_callers(100)),
        _steps(measured, "in whatever way it did best", lambda _: True),
        _processor_time(measured, "1 caller", _by_callers(1)),
        _processor_time(measured, "100 callers", _by_callers(100)),
        *_latencies(measured),
        *_own(measured, "c", "commits per step", lambda setup: setup.endswith(" 5 steps each")),
        *_own(measured, "c", "WAL bytes per step", lambda setup: setup.startswith("100 callers")),
        *_largest(
            measured, "e", "claim to live", _REPLAY, lambda found: f"replay of {int(found['size']):,} steps"
        ),
        *_largest(
            measured,
            "f",
            "time each",
            _FAN_OUT,
            lambda found: f"time for each of {int(found['width']):,} {found['kind']}",
        ),
        *_own(measured, "c", "statements", lambda setup: setup.startswith("an idle worker")),
        *_growth(measured),
        *_own(
            measured,
            "g",
            "more for each execution",
            lambda setup: _MEMORY.fullmatch(setup) is not None,
            told="memory of the worker for each",
        ),
    ]
    return [row for row in rows if row.values]


def _by_callers(callers: int) -> Callable[[Figure], bool]:
    """Of so many callers, in any mode. What is written without an engine stands beside the hundred."""
    setup = throughput.told(callers)
    return lambda figure: (
        figure.setup == setup
        or figure.setup.startswith(f"{setup}, ")
        or (figure.product == BARE and callers == 100)
    )


def _steps(figures: Sequence[Figure], how: str, fits: Callable[[Figure], bool]) -> Row:
    """Of case a: the highest of each product."""
    found = [figure for figure in _of(figures, "a", "steps") if fits(figure)]
    return Row(told=f"steps, {how}", unit="steps/s", values=_of_each(found, max))


def _processor_time(figures: Sequence[Figure], how: str, fits: Callable[[Figure], bool]) -> Row:
    """Of case a: the lowest of each product."""
    found = [figure for figure in _of(figures, "a", "processor time of an execution") if fits(figure)]
    told = f"processor time of an execution of five steps, {how}"
    return Row(told=told, unit="ms", values=_of_each(found, min))


def _of_each(figures: Sequence[Figure], choose: Callable[[float, float], float]) -> dict[str, float]:
    """One median of each product."""
    values: dict[str, float] = {}
    for figure in figures:
        values[figure.product] = choose(figure.median, values.get(figure.product, figure.median))
    return values


def _latencies(figures: Sequence[Figure]) -> list[Row]:
    """Case b, of each product in the set-up whose p50 is the lowest."""
    best: dict[str, Figure] = {}
    for figure in _of(figures, "b", f"{RESULT}, p50"):
        if figure.product not in best or figure.median < best[figure.product].median:
            best[figure.product] = figure
    latest = {(figure.product, figure.setup): figure for figure in _of(figures, "b", f"{RESULT}, p99")}
    p50 = {product: figure.median for product, figure in best.items()}
    p99 = {
        product: latest[product, figure.setup].median
        for product, figure in best.items()
        if (product, figure.setup) in latest
    }
    return [
        Row(told=f"{RESULT}, p50", unit="ms", values=p50),
        Row(told=f"{RESULT}, p99", unit="ms", values=p99),
    ]


def _own(
    figures: Sequence[Figure], case: str, quantity: str, fits: Callable[[str], bool], *, told: str = ""
) -> list[Row]:
    """Zart's own figures of one quantity, one for each set-up that fits; `told` is another name for it."""
    return [
        Row(
            told=f"{told or quantity}: {figure.setup}",
            unit=figure.unit,
            values={figure.product: figure.median},
        )
        for figure in _of(figures, case, quantity)
        if fits(figure.setup)
    ]


def _largest(
    figures: Sequence[Figure],
    case: str,
    quantity: str,
    pattern: re.Pattern[str],
    say: Callable[[re.Match[str]], str],
) -> list[Row]:
    """The last of each sort: cases measure from small to large."""
    last: dict[str, Row] = {}
    for figure in _of(figures, case, quantity):
        if (found := pattern.fullmatch(figure.setup)) is not None:
            last[found.groupdict().get("kind", "")] = Row(
                told=say(found), unit=figure.unit, values={figure.product: figure.median}
            )
    return list(last.values())


def _growth(figures: Sequence[Figure]) -> list[Row]:
    """Case d: on an empty database, and on that of the full ones where it takes longest."""
    found = {figure.setup: figure for figure in _of(figures, "d", "start to result, p50")}
    empty = found.pop(EMPTY, None)
    if empty is None or not found:
        return []
    worst = max(found.values(), key=lambda figure: figure.median)
    told = {"empty database": empty, f"{worst.setup}, the slowest of all": worst}
    return [
        Row(told=f"{RESULT}, p50: {setup}", unit="ms", values={figure.product: figure.median})
        for setup, figure in told.items()
    ]


def _of(figures: Sequence[Figure], case: str, quantity: str) -> list[Figure]:
    return [figure for figure in figures if (figure.case, figure.quantity) == (case, quantity)]
