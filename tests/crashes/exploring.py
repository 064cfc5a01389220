"""Which plans are run: every point of every workflow, then what only a first fault leads to, then pairs.

    singles   one fault, at each time that a run without faults reaches a point
    seconds   a first fault in the middle, and a kill at each point that is reached only after it: in a takeover, in
              a shutdown with work in hand, in a worker that finds out that it was taken for dead
    pairs     a first fault anywhere, and a second one anywhere in what follows, drawn at random

Runs are as good as deterministic, but not quite: what gathers in one batch of the journal depends on how fast the
server is. A plan whose point was not reached is counted as missed, and its outcome is judged all the same.
"""

import asyncio
import random
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.crashes.explorer import Explorer, Plan, Run
from tests.crashes.faults import Fault, told
from tests.crashes.nursery import Nursery
from tests.crashes.workflow import Workflow
from tests.support.databases import Databases
from zart._engine.points import POINTS

_BY_TIME = ("lease.", "idle.", "reaping.begin", "claim.begin", "claim.committed")
"""How often these are reached is a matter of time: the first occurrences stand for the others."""
_ENOUGH_BY_TIME = 3
_OF_THE_WORKER = ("registration.", "lease.", "idle.", "leaving.", "shutdown.", "reaping.begin")
"""These have nothing to do with what the worker runs."""


@dataclass
class Tally:
    """What was run of one workflow."""

    points: int = 0
    occurrences: int = 0
    singles: int = 0
    seconds: int = 0
    pairs: int = 0
    missed: int = 0
    took: float = 0.0
    failures: list[Run] = field(default_factory=list)


def command(run: Run) -> str:
    """The command that repeats a run."""
    faults = "".join(f" --fault '{told(worker)}'" for worker in run.plan)
    return f"python -m tests.crashes.explore --workflow {run.workflow.name}{faults}"


class Exploration:
    """Runs plans on several databases at once, and counts."""

    def __init__(
        self, explorers: Sequence[Explorer], *, seed: int, say: Callable[[str], None] = print
    ) -> None:
        self._explorers = explorers
        self._random = random.Random(seed)
        self._say = say
        self.baselines: dict[str, Run] = {}
        self.tallies: dict[str, Tally] = defaultdict(Tally)
        self.reached: Counter[tuple[str, str]] = Counter()
        """How often each kind of fault happened at each point."""
        self._traces: dict[str, list[tuple[Plan, list[list[str]]]]] = defaultdict(list)

    @property
    def failures(self) -> list[Run]:
        return [run for tally in self.tallies.values() for run in tally.failures]

    # ------------------------------------------------------------ what to run

    async def begin(self, workflows: Sequence[Workflow]) -> None:
        """Each once without faults. Raises RuntimeError when one of them does not even end well so."""
        await self._each([lambda explorer, w=w: self._baseline(explorer, w) for w in workflows])
        if self.failures:
            raise RuntimeError("\n".join(f"{command(run)}\n{run.problems}" for run in self.failures))

    def singles(self, workflow: Workflow, kind: str, *, own: bool = False, once: bool = False) -> list[Plan]:
        """One fault of this kind, wherever the workflow leads.

        `own` leaves out the points that have nothing to do with the workflow; `once` takes each point once, at a time
        drawn at random.
        """
        baseline = self.baselines[workflow.name]
        trace = baseline.traces[0]
        if kind == "news":
            trace = (
                trace[: baseline.happened_at] if workflow.happens else _until(trace, "journal.finish.begin")
            )
        times: dict[str, list[int]] = defaultdict(list)
        for point, occurrence in map(_split, trace):
            if own and point.startswith(_OF_THE_WORKER):
                continue
            if not point.startswith(_BY_TIME) or occurrence <= _ENOUGH_BY_TIME:
                times[point].append(occurrence)
        chosen = ([self._random.choice(o)] if once else o for o in times.values())
        return [
            ((Fault(kind, point, occurrence),),)
            for point, occurrences in zip(times, chosen, strict=True)
            for occurrence in occurrences
        ]

    def some(self, plans: list[Plan], most: int) -> list[Plan]:
        """At most so many of them, drawn at random."""
        return plans if len(plans) <= most else self._random.sample(plans, most)

    def spread(self, workflows: Sequence[Workflow], kind: str, rounds: int) -> list[tuple[Workflow, Plan]]:
        """A part of the singles: so many for each workflow, and among them every point that one of them leads to.

        Each takes the points first that the others have not.
        """
        waiting = {workflow.name: self.singles(workflow, kind, once=True) for workflow in workflows}
        chosen: list[tuple[Workflow, Plan]] = []
        taken: Counter[str] = Counter()
        for number in range(1, 1000):
            for workflow in workflows:
                left = waiting[workflow.name]
                rarest = min((taken[plan[0][0].point] for plan in left), default=1)
                if not left or (number > rounds and rarest):
                    continue
                plan = self._random.choice([plan for plan in left if taken[plan[0][0].point] == rarest])
                left.remove(plan)
                taken[plan[0][0].point] += 1
                chosen.append((workflow, plan))
            if number >= rounds and all(
                taken[plan[0][0].point] for left in waiting.values() for plan in left
            ):
                break
        return chosen

    def missed(self, kind: str) -> list[tuple[Workflow, Plan]]:
        """One plan for each point that the workflows lead to and no fault of this kind has happened at."""
        leading: dict[str, list[Workflow]] = defaultdict(list)
        for baseline in self.baselines.values():
            for point in {_split(line)[0] for line in baseline.traces[0]}:
                if not self.reached[point, kind]:
                    leading[point].append(baseline.workflow)
        return [
            (self._random.choice(workflows), ((Fault(kind, point, 1),),))
            for point, workflows in sorted(leading.items(), key=lambda item: item[0])
        ]

    def first_faults(self, workflow: Workflow) -> list[Plan]:
        """Faults in the middle of the workflow, each of which leads to points that are not reached without it."""
        trace = self.baselines[workflow.name].traces[0]
        sent = [line for line in trace if line.startswith("journal.re") and ".sent" in line]
        step = [line for line in trace if line.startswith("step.begin")]
        plans: list[Plan] = []
        if sent:
            middle = _split(sent[len(sent) // 2])
            plans += [((Fault(kind, *middle),),) for kind in ("kill", "stop", "freeze", "cut")]
        if step:
            plans.append(((Fault("stop", *_split(step[len(step) // 2])),),))
        return plans

    def seconds(self, first: Run) -> Iterator[Plan]:
        """A kill at each point that was reached only after the fault of this run."""
        known = {_split(line)[0] for line in self.baselines[first.workflow.name].traces[0]}
        ((fault,),) = first.plan
        before = f"{fault.point}#{fault.occurrence}"
        seen: set[str] = set()
        for number, trace in enumerate(first.traces):
            later = trace if number else trace[trace.index(before) + 1 :] if before in trace else []
            for point, occurrence in map(_split, later):
                if point in known | seen or (number and fault.kind in {"stop", "cut"}):
                    continue
                seen.add(point)
                kill = Fault("kill", point, occurrence)
                yield ((fault, kill),) if number == 0 else ((fault,), (kill,))

    def pair(self, workflow: Workflow) -> Plan:
        """Two faults at random; the second one in what followed a first one like it, as far as that is known."""
        kinds = ("kill", "kill", "kill", "stop", "freeze", "cut")
        kind = self._random.choice(kinds)
        first = self._random.choice(self.singles(workflow, kind))[0]
        known = [
            traces[-1]
            for plan, traces in self._traces[workflow.name]
            if len(traces) > 1 and traces[-1] and plan[0][0].kind == kind
        ]
        trace = self._random.choice(known) if known else self.baselines[workflow.name].traces[0]
        second = Fault(self._random.choice(kinds), *_split(self._random.choice(trace)))
        if kind == "cut":
            return ((*first, second),)
        return (first, (second,))

    # ------------------------------------------------------------ to run it

    async def run_all(self, plans: Sequence[tuple[Workflow, Plan]], *, what: str) -> list[Run]:
        """Run these; `what` is the count that they belong to."""
        runs: list[Run] = []

        async def one(explorer: Explorer, workflow: Workflow, plan: Plan) -> None:
            runs.append(await self._run(explorer, workflow, plan, what))

        await self._each([lambda explorer, w=w, p=p: one(explorer, w, p) for w, p in plans])
        return runs

    async def run_pairs(self, workflows: Sequence[Workflow], budget: float) -> None:
        """Run pairs for so many seconds."""
        until = time.monotonic() + budget

        async def go_on(explorer: Explorer) -> None:
            while time.monotonic() < until:
                workflow = self._random.choice(workflows)
                await self._run(explorer, workflow, self.pair(workflow), "pairs")

        async with asyncio.TaskGroup() as group:
            for explorer in self._explorers:
                group.create_task(go_on(explorer))

    async def _each(self, jobs: Sequence[Callable[[Explorer], Awaitable[None]]]) -> None:
        waiting = iter(jobs)

        async def work(explorer: Explorer) -> None:
            for job in waiting:
                await job(explorer)

        async with asyncio.TaskGroup() as group:
            for explorer in self._explorers:
                group.create_task(work(explorer))

    async def _baseline(self, explorer: Explorer, workflow: Workflow) -> None:
        run = await explorer.run(workflow)
        self.baselines[workflow.name] = run
        tally = self.tallies[workflow.name]
        tally.occurrences = len(run.traces[0])
        tally.points = len({_split(line)[0] for line in run.traces[0]})
        self._conclude(run, tally)

    async def _run(self, explorer: Explorer, workflow: Workflow, plan: Plan, what: str) -> Run:
        run = await explorer.run(workflow, plan, self.baselines[workflow.name])
        tally = self.tallies[workflow.name]
        setattr(tally, what, getattr(tally, what) + 1)
        tally.missed += not run.reached
        if run.reached:
            self.reached.update((fault.point, fault.kind) for worker in plan for fault in worker)
        self._traces[workflow.name].append((plan, run.traces))
        self._conclude(run, tally)
        return run

    def _conclude(self, run: Run, tally: Tally) -> None:
        tally.took += run.seconds
        if run.problems:
            tally.failures.append(run)
            self._say(f"FAILED  {command(run)}")
            for problem in run.problems:
                self._say(f"        {problem[:2000]}")
            self._say(f"        {run.directory}")
        else:
            shutil.rmtree(run.directory)

    # ------------------------------------------------------------ what came of it

    def table(self) -> str:
        head = f"{'workflow':20} points occurrences singles seconds pairs missed failures   time"
        lines = [head]
        total = Tally()
        for name, tally in (*self.tallies.items(), ("all", total)):
            lines.append(
                f"{name:20} {tally.points:6} {tally.occurrences:11} {tally.singles:7} {tally.seconds:7}"
                f" {tally.pairs:5} {tally.missed:6} {len(tally.failures):8} {tally.took:5.0f} s"
            )
            if tally is not total:
                total.points = max(total.points, tally.points)
                for count in ("occurrences", "singles", "seconds", "pairs", "missed", "took", "failures"):
                    setattr(total, count, getattr(total, count) + getattr(tally, count))
        kinds = Counter(kind for (_, kind), times in self.reached.items() for _ in range(times))
        lines.append("")
        lines.append("faults: " + ", ".join(f"{kind} {count}" for kind, count in kinds.most_common()))
        unreached = [point for point in POINTS if not any(self.reached[point, kind] for kind in kinds)]
        lines.append(f"points with a fault: {len(POINTS) - len(unreached)} of {len(POINTS)}")
        if unreached:
            lines.append(f"without: {', '.join(unreached)}")
        return "\n".join(lines)


@asynccontextmanager
async def exploration(
    databases: Databases,
    template: str,
    directory: Path,
    *,
    seed: int,
    slots: int = 2,
    say: Callable[[str], None] = print,
) -> AsyncIterator[Exploration]:
    """An exploration with a database for each of so many runs at a time."""
    async with AsyncExitStack() as stack:
        addresses = [
            databases.address(stack.enter_context(databases.database(template))) for _ in range(slots)
        ]
        nursery = await stack.enter_async_context(Nursery(directory / "nursery.log"))
        explorers = [
            await stack.enter_async_context(Explorer(address, nursery, directory / f"slot-{number}"))
            for number, address in enumerate(addresses, start=1)
        ]
        yield Exploration(explorers, seed=seed, say=say)


def _split(line: str) -> tuple[str, int]:
    point, _, occurrence = line.partition("#")
    return point, int(occurrence)


def _until(trace: list[str], point: str) -> list[str]:
    for index, line in enumerate(trace):
        if line.startswith(point):
            return trace[: index + 1]
    return trace
