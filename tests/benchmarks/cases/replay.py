"""How long a body takes until it goes on, by the steps that it has behind it."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

import zart
from tests.benchmarks.bench import Bench, Case, note
from tests.benchmarks.figures import Figure
from tests.benchmarks.in_process import expect, in_loop, working
from zart._engine import points

SIZES: Final = (100, 1_000, 10_000)
BRANCHES: Final = 100
ROUNDS: Final = 7
_FEW_ROUNDS: Final = 3
_LONG: Final = 2.0
"""Seconds: a replay that takes longer is measured in few rounds."""

begun: Counter[str] = Counter()
"""How often each execution's body began."""
ran: Counter[str] = Counter()
"""How many steps of each execution ran."""
heard: Counter[str] = Counter()
"""How many events each has heard, after the last replay."""


class Watch:
    """When one execution was claimed, and when its replay was over: see the points of the engine."""

    def __init__(self) -> None:
        self.claimed = self.over = 0.0
        self._handed_out = False

    def __call__(self, point: str) -> None:
        if point == "claim.begin" and not self._handed_out:
            self.claimed = time.perf_counter()
        elif point == "claim.handed-out":
            self._handed_out = True
        elif point == "replay.over":
            self.over = time.perf_counter()


class Asked(msgspec.Struct, frozen=True):
    shape: str
    steps: int


@zart.step("step")
async def step(number: int) -> int:
    ran[zart.execution_id()] += 1
    return number


@zart.durable("replayed")
async def replayed(asked: Asked) -> int:
    """So many steps, then it waits for events, until one says that it was the last; returns the number of steps."""
    id = zart.execution_id()
    begun[id] += 1
    heard[id] = 0
    done = await SHAPES[asked.shape](asked.steps)
    while await zart.wait_for_event("go on", bool):
        heard[id] += 1
    return done


async def in_a_row(count: int) -> int:
    for number in range(count):
        await step(number)
    return count


async def gathered(count: int) -> int:
    return sum(await asyncio.gather(*(in_a_row(count // BRANCHES) for _ in range(BRANCHES))))


async def grouped(count: int) -> int:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(in_a_row(count // BRANCHES)) for _ in range(BRANCHES)]
    return sum(task.result() for task in tasks)


async def each_alone(count: int) -> int:
    return len(await asyncio.gather(*(step(number) for number in range(count))))


SHAPES: Final[dict[str, Callable[[int], Awaitable[int]]]] = {
    "one task": in_a_row,
    f"{BRANCHES} branches, gather": gathered,
    f"{BRANCHES} branches, TaskGroup": grouped,
    "a branch for each step": each_alone,
}
REGISTRY: Final = zart.Registry(replayed)


def run(bench: Bench) -> None:
    in_loop(measure(bench))


async def measure(bench: Bench) -> None:
    dsn = bench.database("replay")
    await zart.migrate(dsn)
    sizes = [bench.options.scaled(size, least=BRANCHES * at) for at, size in enumerate(SIZES, start=1)]
    async with working(dsn, REGISTRY, zart.WorkerConfig(max_parked_bodies=0)) as client:
        cases = {("one task", 0): await client.start(replayed, Asked("one task", 0), id="none")}
        for shape in SHAPES:
            for size in sizes:
                cases[shape, size] = await client.start(replayed, Asked(shape, size), id=f"{shape} {size}")
        for handle in cases.values():
            await until_waiting(client, handle.id)
        rounds = Counter[str]()
        times = bench.options.scaled(ROUNDS)
        for number in range(times):
            note(f"  replays, round {number + 1} of {times}")
            for (shape, size), handle in cases.items():
                setup = f"{size} steps, {shape}"
                if number >= _FEW_ROUNDS and _so_far(bench, setup).median > _LONG * 1000:
                    continue
                seconds = await claim_to_live(client, handle.id, rounds[handle.id])
                rounds[handle.id] += 1
                bench.add("e", "Zart", setup, "claim to live", "ms", seconds * 1000)
        for (_, size), handle in cases.items():
            bodies = 1 + rounds[handle.id]
            expect((begun[handle.id], ran[handle.id]), (bodies, size), f"bodies and steps of {handle.id}")
            await client.offer_event(handle.id, "go on", False)
            expect(await handle.result(timeout="60s"), size, f"the result of {handle.id}")
    for shape in SHAPES:
        each: dict[int, float] = {}
        for size in sizes:
            each[size] = _so_far(bench, f"{size} steps, {shape}").median / size
            bench.add("e", "Zart", f"{size} steps, {shape}", "per step", "us", each[size] * 1000)
        _, middle, large = sizes
        told = f"time per replayed step, {shape}: {large} steps against {middle}"
        bench.target("e", told, each[large] / each[middle], 1.5, at_least=False)
    whole = _so_far(bench, f"{sizes[-1]} steps, one task").median / 1000
    bench.target(
        "e", f"seconds from claim to live with {sizes[-1]} steps of one task", whole, 0.5, at_least=False
    )


def _so_far(bench: Bench, setup: str) -> Figure:
    return bench.figure("e", "Zart", setup, "claim to live")


async def claim_to_live(client: zart.Client, id: str, events: int) -> float:
    """Seconds from a claim until the replay of all that was before is over; the claim is that for the next event."""
    bodies = begun[id]
    points.listener = watch = Watch()
    try:
        await client.offer_event(id, "go on", True)
        async with asyncio.timeout(120):
            while begun[id] == bodies or heard[id] <= events:  # noqa: ASYNC110 (an event is no less to wake up for)
                await asyncio.sleep(0.005)
    finally:
        points.listener = None
    expect(begun[id], bodies + 1, f"bodies of {id}, each of which replays")
    await until_waiting(client, id)
    return watch.over - watch.claimed


async def until_waiting(client: zart.Client, id: str) -> None:
    async with asyncio.timeout(300):
        while (await client.status(id)).status != "waiting":  # noqa: ASYNC110 (the database says so)
            await asyncio.sleep(0.01)


CASE = Case(
    letter="e",
    title="replay",
    long=False,
    told=(
        "A body of so many recorded steps waits for an event and is kept in no memory (max_parked_bodies is 0). When "
        "the event comes it is claimed. Measured is the time from the moment when that claim is sent until the body "
        "rests at the end of its log: claim, reading and decoding the history, and the replay. That each is a replay "
        "of everything, and that no step ran twice, is checked. The steps are those of one task, of "
        f"{BRANCHES} branches "
        "that share them (asyncio.gather and TaskGroup), and as many branches as steps. Worker and client are one "
        f"process; {ROUNDS} rounds, in which all take turns, or {_FEW_ROUNDS} of what takes over {_LONG:.0f} s."
    ),
    run=run,
)
