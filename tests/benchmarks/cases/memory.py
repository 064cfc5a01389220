"""Case g: how much memory a worker process takes for what runs, and for what waits."""

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import anyio

import zart
from tests.benchmarks.bench import Bench, Case, note
from tests.benchmarks.memory_app import Go, brief, held, waiting
from tests.support.processes import Crew, WorkerProcess
from tests.support.running import query, until
from zart.durable import Durable

RUNNING: Final = 1_000
WAITING: Final = 100_000
KEPT: Final = 1_000
"""`max_parked_bodies`, unless somebody says otherwise."""
WARM_UP: Final = 500
"""Executions that a process runs before its size is read first."""
_PATIENCE: Final = 600.0  # seconds, until all of it runs or waits
_SETTLED: Final = 3  # seconds, after which the size is read
_CALM: Final = {
    "orphan_timeout": "60s",
    "heartbeat_interval": "5s",
    "poll_interval": "1s",
    "shutdown_timeout": "1s",
}
_MIB: Final = 1 << 20


def run(bench: Bench) -> None:
    if not Path("/proc/self/status").exists():
        note("the memory of a process is read from /proc: this case is left out here")
        return
    running, waiting_for = bench.options.scaled(RUNNING, least=10), bench.options.scaled(WAITING, least=50)
    anyio.run(at_work, bench, running)
    for told, kept in (
        (f"{KEPT:,} bodies kept", KEPT),
        ("no body kept", 0),
        ("all bodies kept", waiting_for),
    ):
        anyio.run(at_rest, bench, waiting_for, kept, f"{waiting_for:,} waiting, {told}")


async def at_work(bench: Bench, count: int) -> None:
    """All of them in a step at once."""
    async with worker(bench, max_concurrent_tasks=str(count)) as (client, process):
        before = resident(process)
        await start(client, held, count)
        query_running = "SELECT count(*) FROM zart_tasks WHERE state = 'running'"
        await until_counted(client, query_running, count, "all of them to run")
        # A step that lasts for more than a second is on record.
        recorded = "SELECT count(*) FROM zart_steps WHERE name = 'last-for-hours' AND state = 'running'"
        await until_counted(client, recorded, count, "their steps to be on record")
        await told(bench, process, f"{count:,} running", before, count)


async def at_rest(bench: Bench, count: int, kept: int, setup: str) -> None:
    """All of them wait for an event; then some get it, and end as they should."""
    async with worker(bench, max_parked_bodies=str(kept)) as (client, process):
        before = resident(process)
        await start(client, waiting, count)
        query_waiting = "SELECT count(*) FROM zart_tasks WHERE state = 'waiting' AND owner IS NULL"
        await until_counted(client, query_waiting, count, "all of them to wait")
        await told(bench, process, setup, before, count)
        for number in (0, count // 2, count - 1):
            await client.offer_event(f"waiting-{number}", Go, 7)
            result = await client.handle(waiting, f"waiting-{number}").result(timeout="60s")
            if result != number + 1 + 7:
                raise AssertionError(f"execution {number} gave {result!r}")


async def told(bench: Bench, process: WorkerProcess, setup: str, before: int, count: int) -> None:
    await anyio.sleep(min(_SETTLED, 300 * bench.options.scale))
    after = resident(process)
    bench.add("g", "Zart", setup, "worker process before", "MiB", before / _MIB)
    bench.add("g", "Zart", setup, "worker process", "MiB", after / _MIB)
    bench.add("g", "Zart", setup, "more for each execution", "bytes", (after - before) / count)
    note(f"{setup}: {before / _MIB:.0f} MiB before, {after / _MIB:.0f} MiB")


@asynccontextmanager
async def worker(bench: Bench, **options: str) -> AsyncIterator[tuple[zart.Client, WorkerProcess]]:
    """A worker process that has everything loaded, and has worked before."""
    dsn = bench.database("memory")
    await zart.migrate(dsn)
    with tempfile.TemporaryDirectory(prefix="zart-bench-") as directory:
        crew = Crew(dsn, Path(directory), quiet=True)
        chosen: dict[str, Any] = {**_CALM, **options}
        process = crew.begin("tests.benchmarks.memory_app:registry", **chosen)
        try:
            await process.until_running()
            async with zart.Client(dsn) as client:
                warm_up = bench.options.scaled(WARM_UP, least=10)
                await start(client, brief, warm_up)
                for number in range(warm_up):
                    await client.handle(brief, f"brief-{number}").result(timeout="60s")
                yield client, process
        finally:
            if process.exit_code is None:
                process.kill()


async def start(client: zart.Client, fn: Durable[[int], int], count: int) -> None:
    """Executions `<name>-0`, `<name>-1`, …"""
    for begin in range(0, count, 1_000):
        numbers = range(begin, min(begin + 1_000, count))
        await client.start_many(fn, {f"{fn.name}-{number}": number for number in numbers})


async def until_counted(client: zart.Client, statement: str, wanted: int, what: str) -> None:
    """Until a count has reached this."""

    async def reached() -> bool:
        await anyio.sleep(0.1)
        ((count,),) = await query(client.address, statement)
        return bool(count >= wanted)

    await until(reached, what, within=_PATIENCE)


def resident(process: WorkerProcess) -> int:
    """Bytes of a process that are in memory now (VmRSS)."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the kernel does not say how large the process is")


CASE = Case(
    letter="g",
    title="Memory of a worker process",
    long=True,
    told=(
        "One `zart worker` process on its defaults, that has run 500 executions before. Running: each "
        "execution is in its second step, which lasts for hours (`max_concurrent_tasks` is raised to "
        "their number). Waiting: each has run one step and waits for an event; `max_parked_bodies` of "
        "them are kept in memory: the default of 1,000, none, or all. The size is what the kernel says is "
        "resident (VmRSS), three seconds after the last of them ran or waited; the process has taken them "
        "in as fast as it can, so it is a size after hard work. Some of them get their event then, and "
        "their results are looked at."
    ),
    run=run,
)
