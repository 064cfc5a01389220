"""Starts per second, with workers that ask to be notified and without."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final

import zart
from tests.benchmarks.bench import Bench, Case, note
from tests.benchmarks.in_process import closed_loop_for, expect, in_loop
from tests.benchmarks.processes import two_workers
from tests.benchmarks.starts_app import left, taken
from tests.support.running import query
from zart.durable import Durable

APP: Final = "tests.benchmarks.starts_app:registry"
WORKERS: Final = 2
DEFAULTS: Final = {"orphan_timeout": "30s", "heartbeat_interval": "5s", "poll_interval": "1s"}
"""Of `zart worker`; workers of tests are quicker to notice things, and so busier."""
MANY: Final = 16
BATCH: Final = 1_000
SECONDS: Final = 0.7
ROUNDS: Final = 5
ROUNDS_THAT_RUN: Final = 3
LISTENING: Final = "idle workers listen"
SILENT: Final = "nobody asks for notifications"
RUNNING: Final = "workers run them"

Start = Callable[[], Awaitable[int]]
"""Starts one execution, or a batch; returns how many."""


def run(bench: Bench) -> None:
    in_loop(measure(bench))


async def measure(bench: Bench) -> None:
    dsn = bench.database("starts")
    await zart.migrate(dsn)
    async with two_workers(dsn, APP, **DEFAULTS), AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(zart.Client(dsn)) for _ in range(MANY)]
        setups = callers(clients, bench.options.scaled(BATCH, least=10))
        starts = Starts(bench, dsn)
        for setup in setups:
            await starts.measure(setup, setups[setup](left), None)  # connections, plans
        rounds, rounds_that_run = bench.options.scaled(ROUNDS), bench.options.scaled(ROUNDS_THAT_RUN)
        for number in range(rounds):
            note(f"  starts, round {number + 1} of {rounds}")
            order = [LISTENING, SILENT] if number % 2 else [SILENT, LISTENING]
            for setup in setups:
                for arrangement in order:
                    await starts.measure(setup, setups[setup](left), arrangement)
        for number in range(rounds_that_run):
            note(f"  starts that are run, round {number + 1} of {rounds_that_run}")
            for setup in setups:
                await starts.measure(setup, setups[setup](taken), RUNNING)
    for setup in setups:
        rates = {
            arrangement: bench.figure("h", "Zart", f"{setup}; {arrangement}", "starts").median
            for arrangement in (LISTENING, SILENT)
        }
        told = f"starts per second, {setup}: workers listening against no notification"
        bench.target("h", told, rates[LISTENING] / rates[SILENT], 0.9)


def callers(
    clients: Sequence[zart.Client], batch: int
) -> dict[str, Callable[[Durable[[int], int]], list[Start]]]:
    """Who starts: for a function, what each caller does again and again."""
    batches = itertools.count()

    def alone(client: zart.Client, fn: Durable[[int], int]) -> Start:
        async def start() -> int:
            await client.start(fn, 1)
            return 1

        return start

    def together(client: zart.Client, fn: Durable[[int], int]) -> Start:
        async def start() -> int:
            number = next(batches)
            handles = await client.start_many(fn, {f"{fn.name}-{number}-{n}": n for n in range(batch)})
            return sum(handle.created for handle in handles)

        return start

    return {
        "one client": lambda fn: [alone(clients[0], fn)],
        f"{MANY} callers of one client": lambda fn: [alone(clients[0], fn)] * MANY,
        f"{MANY} clients": lambda fn: [alone(client, fn) for client in clients],
        f"start_many of {batch}": lambda fn: [together(clients[0], fn)],
    }


class Starts:
    """One round of starts in one arrangement, looked over and cleared away."""

    def __init__(self, bench: Bench, dsn: str) -> None:
        self._bench = bench
        self._dsn = dsn

    async def measure(self, setup: str, starts: list[Start], arrangement: str | None) -> None:
        """None: to warm up."""
        await self._until_idle()
        if arrangement == SILENT:
            await query(self._dsn, "UPDATE zart_workers SET idle = false")
        seconds = max(0.05, SECONDS * self._bench.options.scale)
        started, took = await closed_loop_for(seconds, starts)
        ((there,),) = await query(self._dsn, "SELECT count(*) FROM zart_executions")
        expect(there, started, f"executions that are there: {setup}, {arrangement}")
        if arrangement == RUNNING:
            await self._until_run(started)
        elif arrangement == SILENT:
            await query(self._dsn, "UPDATE zart_workers SET idle = true WHERE writer = 0")
        if arrangement is not None:
            self._bench.add("h", "Zart", f"{setup}; {arrangement}", "starts", "starts/s", started / took)
        # Every round finds the tables empty, so none pays for what an earlier one has left.
        for table in (
            "zart_tasks",
            "zart_executions",
        ):  # each alone: the workers look at both, in their own order
            await query(self._dsn, f"TRUNCATE {table}")

    async def _until_idle(self) -> None:
        """Until every worker asks for notifications, which they do when they have found nothing to do."""
        await self._until("SELECT count(*) = %s FROM zart_workers WHERE idle", WORKERS)

    async def _until_run(self, count: int) -> None:
        await self._until("SELECT count(*) = %s FROM zart_executions WHERE status = 'completed'", count)

    async def _until(self, condition: str, *parameters: Any) -> None:
        deadline = time.monotonic() + 120
        while (await query(self._dsn, condition, *parameters)) != [(True,)]:
            if time.monotonic() > deadline:
                raise TimeoutError(condition)
            await asyncio.sleep(0.05)


CASE = Case(
    letter="h",
    title="starts per second",
    long=False,
    told=(
        "One client that starts one execution after the other; as many callers as can be told from one client, which "
        f"sends their starts together; {MANY} clients, each with a connection of its own; start_many. All of them are "
        f"in one process. {WORKERS} worker processes are there all the time and have nothing to do, since they have "
        "not registered the function that is started: else they would use the processors that the starts need, and "
        "what is compared would not be the notification. They listen, so every commit notifies them, and they look for "
        "work each time, find none and go on listening: no start ever finds them busy, when it would be spared the "
        "notification. Against that, nobody asks for notifications: the same workers, but their rows say that they do "
        "not want any, so they only look every two seconds. These two take turns. Starts that lie in the future would "
        "not do, they notify nobody in either case. Last, the workers run what is started, which has no target. Tables "
        "are emptied before each round, and it is checked that what was started is there."
    ),
    run=run,
)
