"""One execution that has so many pieces of work done: by other workers, or by itself."""

import asyncio
import time
from typing import Final

import zart
from tests.benchmarks.bench import Bench, Case, note
from tests.benchmarks.fan_out_app import children, inline, mapped, scheduled
from tests.benchmarks.in_process import expect, in_loop
from tests.benchmarks.meter import Meter
from tests.benchmarks.processes import two_workers
from tests.support.processes import Crew
from tests.support.running import query

APP: Final = "tests.benchmarks.fan_out_app:registry"
WIDTHS: Final = (100, 1_000, 10_000)
KINDS: Final = {
    "scheduled steps": scheduled,
    "mapped steps": mapped,
    "children": children,
    "steps inline": inline,
}
ROUNDS: Final = 3
_LONG: Final = 3.0
"""Seconds: what takes longer is measured in two rounds."""
_LEFT: Final = """
    SELECT (SELECT count(*) FROM zart_tasks), (SELECT count(*) FROM zart_wakeups),
        (SELECT count(*) - count(DISTINCT (s.path, s.name, s.occurrence, s.kind)) FROM zart_steps s
            JOIN zart_executions e ON e.run_id = s.run_id WHERE e.id = %s),
        (SELECT count(*) FROM zart_steps s JOIN zart_executions e ON e.run_id = s.run_id
            WHERE e.id = %s AND s.state = 'completed' AND s.seq IS NOT NULL)
"""
_DONE: Final = """
    SELECT count(*) FROM zart_steps s JOIN zart_executions e ON e.run_id = s.run_id
    WHERE e.id = %s AND s.state = 'completed'
"""


def run(bench: Bench) -> None:
    in_loop(measure(bench))


async def measure(bench: Bench) -> None:
    dsn = bench.database("fan_out")
    await zart.migrate(dsn)
    widths = [bench.options.scaled(width, least=4 * at) for at, width in enumerate(WIDTHS, start=1)]
    async with two_workers(dsn, APP) as crew, zart.Client(dsn) as client:
        with Meter(bench, dsn) as meter:
            fan_out = FanOut(bench, client, meter)
            for fn in KINDS.values():
                await client.start_and_wait(fn, widths[0], timeout="60s")  # connections, plans, imports
            rounds = bench.options.scaled(ROUNDS)
            for number in range(rounds):
                note(f"  fan-outs, round {number + 1} of {rounds}")
                for kind in KINDS:
                    for width in widths:
                        if number < 2 or fan_out.seconds[kind, width] < _LONG:
                            await fan_out.measure(kind, width, number)
            note("  a fan-out of which one worker is killed")
            await fan_out.measure("scheduled steps", widths[-1], ROUNDS, crew=crew)
    _, middle, large = widths
    for kind in KINDS:
        each = [bench.figure("f", "Zart", f"{width} {kind}", "time each").median for width in (middle, large)]
        told = f"time for each of {large} {kind} against {middle}"
        bench.target("f", told, each[1] / each[0], 2.0, at_least=False)


class FanOut:
    """Executions of the functions in `fan_out_app`, each measured and looked over."""

    def __init__(self, bench: Bench, client: zart.Client, meter: Meter) -> None:
        self.seconds: dict[tuple[str, int], float] = {}
        """Of the last one, by kind and width."""
        self._bench = bench
        self._client = client
        self._meter = meter

    async def measure(self, kind: str, width: int, number: int, crew: Crew | None = None) -> None:
        """One execution; with a crew its first worker is killed when half of the work is done."""
        id = f"{kind} {width} {number}"
        begun = self._meter.read()
        started = time.perf_counter()
        handle = await self._client.start(KINDS[kind], width, id=id)
        if crew is not None:
            await self._until_half_done(id, width)
            crew.workers[0].kill()
        result = await handle.result(timeout="600s")
        seconds = self.seconds[kind, width] = time.perf_counter() - started
        used = self._meter.since(begun)
        await self._look_over(id, result, width)
        setup = f"{width} {kind}" + (", one of two workers killed" if crew is not None else "")
        self._bench.add("f", "Zart", setup, "start to result", "s", seconds)
        self._bench.add("f", "Zart", setup, "time each", "ms", seconds * 1000 / width)
        self._bench.add("f", "Zart", setup, "statements each", "each", used.statements / width)
        self._bench.add("f", "Zart", setup, "commits each", "each", self._meter.commits(used) / width)
        self._bench.add("f", "Zart", setup, "WAL bytes each", "bytes", used.wal_bytes / width)

    async def _until_half_done(self, id: str, width: int) -> None:
        async with asyncio.timeout(300):
            while (await query(self._client.address, _DONE, id))[0][0] < width // 2:  # noqa: ASYNC110 (workers do it)
                await asyncio.sleep(0.005)

    async def _look_over(self, id: str, result: int, width: int) -> None:
        expect(result, sum(number * number for number in range(width)), f"the sum of {id}")
        ((tasks, wakeups, twice, recorded),) = await query(self._client.address, _LEFT, id, id)
        expect((tasks, wakeups), (0, 0), f"tasks and wake-ups left by {id}")
        expect((twice, recorded), (0, width), f"doubled records, and records, of {id}")


CASE = Case(
    letter="f",
    title="fan-out",
    long=False,
    told=(
        "One execution has so many pieces of work done and adds up their results; the time runs from its start to "
        "its result. Scheduled steps (zart.schedule_step and wait_all), mapped steps (zart.map, 100 at a time) and "
        "children (zart.start_child) are given away, and two worker processes do them; steps inline are called by the "
        "body itself (asyncio.gather) and run where it runs. The sum is checked, that every piece was "
        "recorded once, and that nothing is left of the work. In the last run the worker that was started first is "
        f"killed when half of the work is done; its work is taken over after 1.5 s. {ROUNDS} rounds, two of what takes "
        f"over {_LONG:.0f} s."
    ),
    run=run,
)
