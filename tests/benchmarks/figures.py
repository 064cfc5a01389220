"""What was measured, and how it is summed up."""

import statistics
from typing import Any, Literal

import msgspec

Unit = Literal[
    "steps/s",
    "starts/s",
    "executions/s",
    "ms",
    "us",
    "s",
    "bytes",
    "MiB",
    "each",
    "per second",
    "ratio",
    "count",
]


class Figure(msgspec.Struct, kw_only=True):
    """One quantity of one product: a value for each round in which it was measured."""

    case: str
    """The case's letter."""
    product: str
    """"Zart", "DBOS", "Absurd", "Restate", or "PostgreSQL" for what no engine adds anything to."""
    setup: str
    """How it was run, in a few words: "100 callers, coroutines"."""
    quantity: str
    """What was measured: "steps", "start to result, p50"."""
    unit: Unit
    values: list[float] = []

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def lowest(self) -> float:
        return min(self.values)

    @property
    def highest(self) -> float:
        return max(self.values)


class Target(msgspec.Struct, kw_only=True):
    """A ratio that is to be reached, and what it was."""

    case: str
    told: str
    """ "steps per second at concurrency 100 against the raw ceiling"."""
    wanted: float
    at_least: bool = True
    """False: at most `wanted`."""
    found: float

    @property
    def met(self) -> bool:
        return self.found >= self.wanted if self.at_least else self.found <= self.wanted


def percentile(values: list[float], share: float) -> float:
    """The value below which this share (0 to 1) of them lies: the nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered)) - 1))]


def to_json(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=1)
