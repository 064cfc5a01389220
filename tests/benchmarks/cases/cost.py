"""What a step costs the server, what an idle worker does, and what a replay asks for."""

import asyncio
import contextlib
import threading
from collections.abc import Generator
from typing import Final
from unittest.mock import patch

import psycopg

import zart
from tests.benchmarks.bench import Bench, Case, note
from tests.benchmarks.figures import Unit
from tests.benchmarks.in_process import expect, in_loop, working
from tests.benchmarks.meter import CLIENT, UNMETERED, WORKER, Meter
from tests.benchmarks.rounds import side_by_side
from zart._postgres.listener import Listener

STEPS: Final = 5
LONG: Final = 100
CALLERS: Final = 100
ROUNDS: Final = 3
REPLAYED: Final = (100, 1_000)


@zart.step("step")
async def step(number: int) -> int:
    return number + 1


@zart.durable("steps")
async def steps(count: int) -> int:
    number = 0
    for _ in range(count):
        number = await step(number)
    return number


@zart.durable("steps-then-events")
async def steps_then_events(count: int) -> int:
    number = 0
    for _ in range(count):
        number = await step(number)
    while await zart.wait_for_event("go on", bool):
        pass
    return number


REGISTRY: Final = zart.Registry(steps, steps_then_events)


def run(bench: Bench) -> None:
    in_loop(measure(bench))


async def measure(bench: Bench) -> None:
    dsn = bench.database("cost")
    await zart.migrate(dsn)
    with psycopg.connect(bench.server.dsn(), autocommit=True) as connection:
        # After one, pages are written to the WAL in whole when they change first. The next one is minutes away.
        connection.execute("CHECKPOINT")
    await cost_of_steps(bench, dsn)
    commits = bench.figure("c", "Zart", f"{CALLERS} callers, {STEPS} steps each", "commits per step")
    bench.target("c", f"commits per step at concurrency {CALLERS}", commits.median, 0.1, at_least=False)
    await cost_of_replays(bench, dsn)
    await cost_of_idleness(bench)


# ------------------------------------------------------------ steps


async def cost_of_steps(bench: Bench, dsn: str) -> None:
    setups = {
        (1, STEPS): bench.options.scaled(200, least=2),
        (CALLERS, STEPS): bench.options.scaled(2_000, least=10),
        (1, LONG): bench.options.scaled(20),
        (CALLERS, LONG): bench.options.scaled(200, least=2),
    }
    with Meter(bench, dsn) as meter:
        async with working(dsn, REGISTRY) as client:

            async def execute(count: int) -> None:
                expect(await client.start_and_wait(steps, count), count, "steps that ran")

            for (callers, count), times in setups.items():
                await side_by_side([count] * min(callers, times), callers, execute)
            rounds = bench.options.scaled(ROUNDS)
            for number in range(rounds):
                note(f"  cost of steps, round {number + 1} of {rounds}")
                for (callers, count), times in setups.items():
                    begun = meter.read()
                    await side_by_side([count] * times, callers, execute)
                    used = meter.since(begun)
                    updated, hot = meter.updates(used)
                    entries = meter.entries(used)
                    each: dict[str, tuple[Unit, float]] = {
                        "statements per step": ("each", used.statements),
                        "commits per step": ("each", meter.commits(used)),
                        "WAL bytes per step": ("bytes", used.wal_bytes),
                        "index entries per step": ("each", sum(entries.values())),
                        "rows updated per step": ("each", updated),
                        "rows updated per step, HOT": ("each", hot),
                    }
                    for index in sorted(entries) if count == STEPS else ():
                        each[f"entries of {index} per step"] = ("each", entries[index])
                    setup = f"{callers} caller{'s' if callers > 1 else ''}, {count} steps each"
                    for quantity, (unit, value) in each.items():
                        bench.add("c", "Zart", setup, quantity, unit, value / (times * count))
            with connections_watched(meter) as most:
                times = setups[CALLERS, STEPS]
                await side_by_side([STEPS] * times, CALLERS, execute)
        for who, count in most.items():
            bench.add(
                "c", "Zart", f"{CALLERS} callers, {STEPS} steps each", f"connections of {who}", "count", count
            )


@contextlib.contextmanager
def connections_watched(meter: Meter) -> Generator[dict[str, int]]:
    """The most connections that a worker, and a client, have at once; looked at every 20 ms."""
    most: dict[str, int] = {"a worker": 0, "a client": 0}
    over = threading.Event()

    def watch() -> None:
        while True:
            for who, applications in zip(most, (WORKER, CLIENT), strict=True):
                most[who] = max(most[who], meter.connections(applications))
            if over.wait(0.02):
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()


# ------------------------------------------------------------ replays


async def cost_of_replays(bench: Bench, dsn: str) -> None:
    """Statements from an event that is offered to a body which waits for it until that waits again."""
    config = zart.WorkerConfig(max_parked_bodies=0, heartbeat_interval="15s")
    found: dict[int, float] = {}
    with Meter(bench, dsn) as meter:
        async with working(dsn, REGISTRY, config) as client:
            for count in (
                bench.options.scaled(size, least=10 * at) for at, size in enumerate(REPLAYED, start=1)
            ):
                handle = await client.start(steps_then_events, count)
                await until_waiting(dsn, handle.id)
                for number in range(bench.options.scaled(10, least=3)):
                    begun = meter.read()
                    await client.offer_event(handle.id, "go on", True)
                    await until_waiting(dsn, handle.id, waits=number + 2)
                    statements = meter.since(begun).statements
                    bench.add("c", "Zart", f"a replay of {count} steps", "statements", "count", statements)
                await client.offer_event(handle.id, "go on", False)
                expect(await handle.result(timeout="60s"), count, "steps that were replayed")
                found[count] = bench.figure("c", "Zart", f"a replay of {count} steps", "statements").median
    (few, least), (many, most) = found.items()
    # None; but while a longer replay goes on, the worker looks for work a few times more.
    told = f"statements for each replayed step, with the looks meanwhile: {many} steps against {few}"
    bench.target("c", told, (most - least) / (many - few), 0.01, at_least=False)


async def until_waiting(dsn: str, id: str, *, waits: int = 1) -> None:
    """Until it is suspended in its so manieth wait."""
    look = (
        "SELECT t.state = 'waiting' AND %s = (SELECT count(*) FROM zart_steps s"
        " WHERE s.run_id = t.run_id AND s.kind = 'wait' AND s.state = 'completed')"
        f" FROM zart_tasks t WHERE t.execution_id = %s {UNMETERED}"
    )
    async with (
        asyncio.timeout(120),
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection,
    ):
        while True:
            cursor = await connection.execute(look.encode(), (waits - 1, id))
            if await cursor.fetchone() == (True,):
                return
            await asyncio.sleep(0.005)


# ------------------------------------------------------------ idle workers


async def cost_of_idleness(bench: Bench) -> None:
    """Two idle workers at once, each with a database of its own."""
    setups = {"an idle worker with LISTEN": True, "an idle worker without LISTEN": False}
    dsns = {setup: bench.database("idle") for setup in setups}
    seconds = max(1.0, 30 * bench.options.scale)
    async with contextlib.AsyncExitStack() as stack:
        for setup, listens in setups.items():
            await zart.migrate(dsns[setup])
            with contextlib.nullcontext() if listens else deaf():
                await stack.enter_async_context(zart.Worker(dsns[setup], REGISTRY))
        await asyncio.sleep(min(3.0, seconds))  # from then on it is idle
        meters = {setup: stack.enter_context(Meter(bench, dsns[setup])) for setup in setups}
        begun = {setup: meter.read() for setup, meter in meters.items()}
        note(f"  idle for {seconds:.0f} s")
        await asyncio.sleep(seconds)
        for setup, meter in meters.items():
            used = meter.since(begun[setup])
            rates = {
                "statements": used.statements / seconds,
                "connections opened": used.sessions / seconds,
                "round trips": (used.statements + 2 * used.sessions) / seconds,
            }
            for quantity, rate in rates.items():
                bench.add("c", "Zart", setup, quantity, "per second", rate)
            bench.add("c", "Zart", setup, "connections of a worker", "count", meter.connections(WORKER))
    found = bench.figure("c", "Zart", "an idle worker with LISTEN", "round trips").median
    bench.target("c", "round trips per second of an idle worker with LISTEN", found, 1.0, at_least=False)


@contextlib.contextmanager
def deaf() -> Generator[None]:
    """Workers that begin in this block never listen, as behind a pooler."""

    async def run(_: Listener) -> None:
        await asyncio.get_running_loop().create_future()

    with patch.object(Listener, "run", run):
        yield


CASE = Case(
    letter="c",
    title="what a step costs",
    long=False,
    told=(
        f"Executions of {STEPS} no-op steps, and of {LONG}, from their start to their result, which are counted in: "
        "so the long ones show what a step costs, and the short ones what an execution adds. Worker and client are one "
        "process. Statements are what clients send, as pg_stat_statements counts them, each of them a round trip at "
        "most. Commits, row updates and entries of indexes are counted in the WAL by pg_walinspect, which has a record "
        "of each: exactly, but for one in tens of thousands of entries that splits an inner page. Transactions that "
        "only read have no commit there; they wait for no disk. WAL bytes are positions in the WAL compared. A replay "
        "is one from memory's end to the next wait: an event is offered to a body of so many steps that is kept in no "
        "memory, and what is counted are all statements, those of the offer among them, until it waits for the next "
        "one. Of an idle worker everything is counted, heartbeat and looks for dead workers too, from three seconds "
        "after its beginning; each connection that it opens counts as two round trips more. Without LISTEN it is a "
        "worker behind a pooler, which polls."
    ),
    run=run,
)
