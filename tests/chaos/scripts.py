"""The kinds of executions: how each is started, what is done to it from outside, and what must come out of it.

Every step of a kind has another name, so that a record or an effect says by its name alone where it belongs.
"""

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.chaos import load
from tests.chaos.load import Job, Signal, Signalled
from zart.durable import Durable

if TYPE_CHECKING:
    from tests.chaos.driver import Driver

Chains = list[list[str]]
"""Steps of which each had to be recorded before the next one could run."""


def _nothing(job: Job) -> Any:
    return None


def _no_attempts(job: Job) -> Mapping[str, int]:
    return {}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A sort of execution."""

    function: Durable[..., Any]
    weight: int
    size: Callable[[random.Random], int]
    """What `Job.size` may be."""
    script: "Callable[[Driver, Plan, random.Random], Awaitable[None]] | None" = None
    """What is done to it from outside once it was started."""
    status: str = "completed"
    result: Callable[[Job], Any] = _nothing
    """The result, to the last digit; or, with `fits`, anything that fits."""
    fits: Callable[[Job, Any], bool] | None = None
    chains: Callable[[Job, Any], Chains]
    """The steps, given the result; each is recorded once, as completed, but for these:"""
    failing: frozenset[str] = frozenset()
    """Steps that are recorded as failed."""
    optional: frozenset[str] = frozenset()
    """Steps that may be cut off: recorded as cancelled, or not at all."""
    cleanup: frozenset[str] = frozenset()
    """Steps that must be recorded if anything had an effect, and must not otherwise."""
    attempts: Callable[[Job], Mapping[str, int]] = _no_attempts
    """How many attempts a step takes; one, if it is not named."""
    failure: str | None = None
    """The class of the failure of an execution that has to fail."""

    @property
    def name(self) -> str:
        return self.function.name


@dataclass(kw_only=True)
class Plan:
    """One execution."""

    kind: Kind
    id: str
    job: Job
    delay: str | None = None
    acknowledged: bool = False
    """A client was told that it exists."""
    certain: bool = True
    """False: nobody knows whether the transaction that started it was committed."""
    ended: float | None = None
    """When a client was told how it ended."""
    began: float = 0.0
    offered: list[int] = field(default_factory=list)
    """The events that a client was told of as taken."""
    result: Any = None

    def right(self, result: Any) -> bool:
        if self.kind.fits is not None:
            return self.kind.fits(self.job, result)
        return bool(result == self.kind.result(self.job))

    def chains(self, result: Any) -> Chains:
        return self.kind.chains(self.job, result)


def _one_row(*names: str) -> Callable[[Job, Any], Chains]:
    return lambda job, result: [list(names)]


def _amount(random: random.Random) -> int:
    return random.randrange(1, 1_000_000)


def _between(low: int, high: int) -> Callable[[random.Random], int]:
    return lambda random: random.randrange(low, high)


# ------------------------------------------------------------ what is done from outside


async def offer_in_order(driver: "Driver", plan: Plan, random: random.Random) -> None:
    """Events one after the other, some at once, some later; each has a key, so it may be sent again."""
    for number in range(plan.job.size):
        if random.random() < 0.5:
            await asyncio.sleep(random.random() * 0.5)
        await driver.offer(plan, Signalled, Signal(number=number), dedup=f"signal-{number}")
        plan.offered.append(number)


async def offer_about_then(driver: "Driver", plan: Plan, random: random.Random) -> None:
    """One event, about when the time limit ends."""
    await asyncio.sleep(plan.job.size / 1000 * random.uniform(0.3, 1.7))
    await driver.offer(plan, Signalled, Signal(number=0), dedup="signal", may_be_late=True)


async def cancel_some_time(driver: "Driver", plan: Plan, random: random.Random) -> None:
    """A cancel while it is queued, in its first step, or parked."""
    if random.random() < 0.7:
        await asyncio.sleep(random.random() * 0.6)
    await driver.cancel(plan)


# ------------------------------------------------------------ the kinds


def _digest(job: Job) -> str:
    both = load.content(job.number, job.size) + load.content(job.number + 1, job.size)
    return hashlib.sha256(both.encode()).hexdigest()


def _fanned(job: Job, result: Any) -> bool:
    right = [job.size + number for number in range(5)]
    return len(result) == 6 and sorted(result[:5]) == right and result[5] == sum(right)


def _chain_names(job: Job, result: Any) -> Chains:
    return [[f"{side}-{number}" for number in range(4)] for side in ("left", "right")]


def _parcels(job: Job, result: Any) -> Chains:
    return [[f"pack-{number}", f"ship-{number}", "pack-3", "ship-3", "received"] for number in range(3)]


def _drawn(job: Job, result: Any) -> bool:
    return [type(part) for part in result] == [str, str, str] and len(result[0]) == 32


KINDS: tuple[Kind, ...] = (
    Kind(
        function=load.transfer, weight=30, size=_amount,
        result=lambda job: job.size + 10,
        chains=_one_row(*(f"add-{number}" for number in range(5))),
    ),
    Kind(
        function=load.retried, weight=8, size=_between(1, 5),
        result=lambda job: [1, job.size + 1, 2],
        chains=_one_row("before", "unsteady", "after"),
        attempts=lambda job: {"unsteady": job.size + 1},
    ),
    Kind(
        function=load.fanned, weight=10, size=_amount, fits=_fanned,
        chains=lambda job, result: [[f"branch-{number}", "last"] for number in range(5)],
    ),
    Kind(
        function=load.chained, weight=8, size=_amount,
        result=lambda job: [job.size + 6, job.size + 1006],
        chains=_chain_names,
    ),
    Kind(
        function=load.signalled, weight=10, size=_between(1, 5), script=offer_in_order,
        result=lambda job: list(range(job.size)),
        chains=lambda job, result: [[f"got-{number}" for number in range(job.size)]],
    ),
    Kind(
        function=load.raced, weight=6, size=_between(100, 900), script=offer_about_then,
        fits=lambda job, result: result in ("late", "in time"),
        chains=_one_row("before", "after"),
    ),
    Kind(
        function=load.slept, weight=8, size=_between(50, 3000),
        result=lambda job: 2,
        chains=_one_row("before", "after"),
    ),
    Kind(
        function=load.cancelled, weight=8, size=_amount, script=cancel_some_time, status="cancelled",
        chains=_one_row("open", "close", "lock"),
        optional=frozenset({"open"}), cleanup=frozenset({"close", "lock"}),
    ),
    Kind(
        function=load.limited, weight=5, size=_between(100, 1500),
        result=lambda job: "over",
        chains=_one_row("inside", "outside"), optional=frozenset({"inside"}),
    ),
    Kind(
        function=load.overdue, weight=3, size=_amount, status="failed", failure="zart.errors.ExecutionTimeout",
        chains=_one_row("inside"), optional=frozenset({"inside"}),
    ),
    Kind(
        function=load.failed, weight=4, size=_amount, status="failed", failure="zart.errors.NonRetryable",
        chains=_one_row("before", "doomed", "mourn"), failing=frozenset({"doomed"}),
    ),
    Kind(
        function=load.caught, weight=4, size=_amount,
        result=lambda job: ["NonRetryable: no such account"],
        chains=_one_row("doomed", "after"), failing=frozenset({"doomed"}),
    ),
    Kind(
        function=load.again, weight=6, size=_amount,
        result=lambda job: [job.size + 1, 3],
        chains=_one_row("kept", "attempt-1", "attempt-2", "attempt-3"),
    ),
    Kind(
        function=load.big, weight=2, size=_between(1_000, 400_000), result=_digest,
        chains=lambda job, result: [[f"blow-up-{job.number}", f"blow-up-{job.number + 1}"]],
    ),
    Kind(
        function=load.threaded, weight=5, size=_amount,
        result=lambda job: 6 * job.size + 6,
        chains=lambda job, result: [[f"thread-{job.size + number}"] for number in range(3)],
    ),
    Kind(
        function=load.determined, weight=6, size=_amount, fits=_drawn,
        chains=lambda job, result: [[f"draw-{result[0]}", f"again-{'-'.join(result)}"]],
    ),
    Kind(
        function=load.long, weight=3, size=_between(500, 2500),
        result=lambda job: job.size + 1,
        chains=lambda job, result: [["long", "after"], ["napped", "after"]],
    ),
    Kind(
        function=load.scattered, weight=8, size=_amount,
        result=lambda job: [*(job.size + number for number in range(6)), 6 * job.size + 15],
        chains=lambda job, result: [[f"piece-{number}", "joined"] for number in range(6)],
    ),
    Kind(
        function=load.parented, weight=8, size=_amount,
        result=lambda job: 4 * job.size + 12,
        chains=_parcels,
    ),
    Kind(
        function=load.abandoned, weight=4, size=_amount, script=cancel_some_time, status="cancelled",
        chains=lambda job, result: [["open-family", "close-family"], ["take-long"]],
        optional=frozenset({"open-family", "take-long", "close-family"}),
    ),
)  # fmt: skip
TRANSFER = KINDS[0]
BY_NAME = {kind.name: kind for kind in KINDS}


def draw(random: random.Random, number: int) -> Plan:
    """The execution of a number."""
    (kind,) = random.choices(KINDS, [kind.weight for kind in KINDS])
    return make(kind, random, number)


def make(kind: Kind, random: random.Random, number: int) -> Plan:
    delay = f"{random.randrange(50, 1500)}ms" if random.random() < 0.05 else None
    return Plan(kind=kind, id=f"{number:06d}-{kind.name}", job=Job(number, kind.size(random)), delay=delay)
