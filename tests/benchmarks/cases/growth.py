"""Case d: whether a database that holds millions of executions is as quick as an empty one."""

import itertools
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final

import anyio
import msgspec
import psycopg

import zart
from tests.benchmarks.bench import Bench, Case, note
from tests.benchmarks.figures import Unit, percentile
from tests.support.backlog import Backlog, Loaded, execution_of, load
from tests.support.floor import Floor, Hand
from tests.support.quiet import errors_alone

ROUNDS: Final = 3
SAMPLES: Final = 200
WARM_UP: Final = 20
"""Samples that are not counted: connections are opened, and plans made."""
PAGE: Final = 100
"""Executions in a list."""
AT_MOST: Final = 2.0
"""Times its value on an empty database, for each p50."""
EMPTY: Final = "empty"
_COMPARED: Final = ("claim", "start", "list", "status", "start to result")


@zart.step("step")
async def step(number: int) -> int:
    return number + 1


@zart.durable("measured")
async def measured(number: int) -> int:
    for _ in range(5):
        number = await step(number)
    return number


class Setup(msgspec.Struct, kw_only=True, frozen=True):
    """What a database holds."""

    told: str
    backlog: Backlog
    elsewhere: bool = False
    """None of it is of the function that is claimed: fifty others have it."""

    @property
    def names(self) -> list[str]:
        return [f"other-{number}" for number in range(50)] if self.elsewhere else ["backlog"]


class Filled(msgspec.Struct, kw_only=True, frozen=True):
    setup: Setup
    dsn: str
    loaded: Loaded

    def some_id(self) -> str:
        """Of an execution that was there before."""
        return execution_of(random.randrange(1, self.loaded.ready.stop))


def run(bench: Bench) -> None:
    with errors_alone("zart"):  # that nobody serves what is ready is meant
        _run(bench)


def _run(bench: Bench) -> None:
    filled = [fill(bench, setup) for setup in setups(bench)]
    ids = itertools.count()
    samples = bench.options.scaled(SAMPLES, least=5)
    rounds = bench.options.scaled(ROUNDS)
    for number in range(rounds):
        for database in filled if number % 2 == 0 else filled[::-1]:
            note(f"round {number + 1} of {rounds}: {database.setup.told}")
            anyio.run(measure, bench, database, samples, ids, backend_options={"use_uvloop": True})
    for quantity in _COMPARED:
        empty = bench.figure("d", "Zart", EMPTY, f"{quantity}, p50").median
        ratios = {
            database.setup.told: bench.figure("d", "Zart", database.setup.told, f"{quantity}, p50").median
            / empty
            for database in filled[1:]
        }
        worst = max(ratios, key=ratios.__getitem__)
        told = f"p50 of {quantity} against that on an empty database, at its worst ({worst})"
        bench.target("d", told, ratios[worst], AT_MOST, at_least=False)


def setups(bench: Bench) -> list[Setup]:
    """The empty one first."""
    scaled = bench.options.scaled
    return [
        Setup(told=EMPTY, backlog=Backlog(finished=PAGE)),  # a list has as much to show as elsewhere
        *(
            Setup(told=f"{size:,} ready", backlog=Backlog(ready=size))
            for size in sorted({scaled(1_000), scaled(100_000), scaled(1_000_000)})
        ),
        Setup(told=f"{scaled(1_000_000):,} sleeping", backlog=Backlog(sleeping=scaled(1_000_000))),
        Setup(told=f"{scaled(5_000_000):,} finished", backlog=Backlog(finished=scaled(5_000_000))),
        Setup(
            told=f"{scaled(500_000):,} ready in other lanes",
            backlog=Backlog(ready=scaled(500_000)),
            elsewhere=True,
        ),
    ]


def fill(bench: Bench, setup: Setup) -> Filled:
    dsn = bench.database("growth")
    anyio.run(zart.migrate, dsn)
    began = time.monotonic()
    with psycopg.connect(dsn) as connection:
        loaded = load(connection, setup.backlog, names=setup.names)
        connection.execute("CHECKPOINT")
    note(f"loaded: {setup.told}, in {time.monotonic() - began:.0f} s")
    return Filled(setup=setup, dsn=dsn, loaded=loaded)


async def measure(bench: Bench, database: Filled, samples: int, ids: "itertools.count[int]") -> None:
    """One round: the median of each quantity, of so many samples."""

    def add(quantity: str, values: list[float], unit: Unit = "ms") -> None:
        bench.add("d", "Zart", database.setup.told, f"{quantity}, p50", unit, percentile(values, 0.5) * 1000)

    warm_up = bench.options.scaled(WARM_UP, least=3)
    async with zart.Client(database.dsn) as client:
        async with Floor(database.dsn) as floor:
            hand = await floor.hand("backlog")
            times = await without_worker(client, hand, database, ids, warm_up=warm_up, samples=samples)
        for quantity, values in times.items():
            add(quantity, values)
        add("list of what waits", [await timed(lambda: a_page(client, status="waiting")) for _ in range(3)])
        async with zart.Worker(client, zart.Registry(measured)):
            for _ in range(warm_up):
                await client.start_and_wait(measured, 0)
            values = []
            for number in range(samples):

                async def execute(number: int = number) -> None:
                    if await client.start_and_wait(measured, number) != number + 5:
                        raise AssertionError("an execution gave a wrong result")

                values.append(await timed(execute))
        add("start to result", values)


async def without_worker(
    client: zart.Client,
    hand: Hand,
    database: Filled,
    ids: "itertools.count[int]",
    *,
    warm_up: int,
    samples: int,
) -> dict[str, list[float]]:
    """Seconds of each: a start, then a claim of one, a look at one, and a list. Nobody runs what is claimed."""
    times: dict[str, list[float]] = {name: [] for name in ("start", "claim", "status", "list")}
    for number in range(warm_up + samples):
        id = f"new-{next(ids)}"

        async def start(id: str = id) -> None:
            await client.start("backlog", 1, id=id)

        async def claim() -> None:
            if len((await hand.tick(1)).claims) != 1:
                raise AssertionError("a claim took nothing")

        async def status() -> None:
            looked_for = database.some_id()
            if (await client.status(looked_for)).id != looked_for:
                raise AssertionError("another execution was shown")

        async def show(id: str = id) -> None:
            if (await a_page(client))[0] != id:
                raise AssertionError("the newest execution does not stand first")

        for name, call in (("start", start), ("claim", claim), ("status", status), ("list", show)):
            took = await timed(call)
            if number >= warm_up:
                times[name].append(took)
    return times


async def a_page(client: zart.Client, status: str | None = None) -> list[str]:
    return [found.id async for found in client.executions(status=status, limit=PAGE)]


async def timed(call: Callable[[], Awaitable[object]]) -> float:
    """Seconds."""
    began = time.perf_counter()
    await call()
    return time.perf_counter() - began


CASE = Case(
    letter="d",
    title="Growth: what a backlog and a past cost",
    long=True,
    told=(
        "Each database is filled by set-based SQL with rows as the engine leaves them, and analysed. On "
        "an empty one (with a page of 100 finished) and on these, one after another and three times: a "
        "start of one more execution; a claim of one through the worker's claimer, which also hears of "
        "wake-ups and sleepers; the status of any execution; a list of the newest 100; and, with a worker "
        "that serves this function alone, an idle system's start to result of five no-op steps. Where "
        "executions are ready they are of the very function that is claimed, unless they are in other "
        "lanes: then fifty other functions have them. Medians of 200 samples in each of three rounds. "
        '"List of what waits" (a list of one status) has no target: it sorts all that have the status.'
    ),
    run=run,
)
