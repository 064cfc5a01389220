"""Clocks that are wrong: those of the workers, the durable one, and the database's own.

**The workers' clocks** jump by hours, forward and backward, while they run. Nothing may come of it: durable times and
leases are the database's, and what a process measures it measures with a clock that cannot be set.

**The durable clock** (`zart_now`) goes on a year later, at once. Executions that sleep for 300 days wake up, time
limits are over, and no worker is taken for dead: leases do not live by it.

**The database's own clock** is the one that all go by, so it matters when that jumps, and it should not: machines with
a database are best kept in step by slewing. Forward by an hour, all leases are over in one moment: the workers take
over from each other, and register anew, and all sleepers of the next hour wake up. Backward by an hour, sleepers wait
for an hour more, and so does what a worker held that dies in the moment of the jump; those who live renew their leases
by the new time. Whatever happens, nothing is lost, and nothing is recorded twice.

Clocks are made wrong by a small library of our own that is preloaded (`wrong_clock.c`), so this takes a C compiler and
a loader that knows LD_PRELOAD; where these are missing, only the durable clock is moved.
"""

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from random import Random
from typing import Any

from tests.chaos.effects import read_effects
from tests.chaos.load import Job
from tests.chaos.scripts import BY_NAME, Plan
from tests.chaos.server import Server
from tests.chaos.trial import Trial, tell
from tests.support.running import shift_clock
from zart.durations import parse_duration

HOUR = 3600
SLEEPERS = 40
SLEEP = "300d"


def library(directory: Path) -> Path | None:
    """What makes clocks wrong, compiled; None where that cannot be done."""
    compiler, made = shutil.which("cc"), directory / "wrong_clock.so"
    if compiler is None or sys.platform != "linux":
        return None
    source = Path(__file__).with_name("wrong_clock.c")
    subprocess.run(
        (compiler, "-O2", "-shared", "-fPIC", "-o", str(made), str(source), "-ldl"), check=True, timeout=60
    )
    made.chmod(0o755)
    return made


class Shift:
    """How wrong the clock of some processes is, from now on: `set`, as often as one likes."""

    def __init__(self, library: Path, file: Path) -> None:
        self._file = file
        self.environment = {"LD_PRELOAD": str(library), "WRONG_CLOCK": str(file)}
        self.set(0)

    def set(self, seconds: int) -> None:
        beside = self._file.with_suffix(".new")
        beside.write_text(f"{seconds}\n")
        beside.chmod(0o644)
        beside.replace(self._file)


async def run(directory: Path, *, seconds: float = 60, seed: int = 0) -> dict[str, Any]:
    """The clocks of workers, the durable clock and the clock of the database jump under load."""
    wrong = await asyncio.to_thread(library, directory)
    parts = [await workers_and_durable(_made(directory / "workers"), wrong, seconds=seconds / 2, seed=seed)]
    if wrong is not None:
        parts.append(
            await the_databases(_made(directory / "database"), wrong, seconds=seconds / 2, seed=seed)
        )
    figures: dict[str, Any] = {"scenario": "clocks", "parts": parts}
    if wrong is None:
        figures["skipped"] = "there is no C compiler: only the durable clock was moved"
    return figures | {"violations": [told for part in parts for told in part["violations"]]}


def _made(directory: Path) -> Path:
    directory.mkdir()
    directory.chmod(0o755)
    return directory


def _without_pauses(trial: Trial) -> dict[str, Any]:
    """The figures but for those that were taken by clocks that jump."""
    return {what: figure for what, figure in trial.figures().items() if "pause" not in what}


# ------------------------------------------------------------ the workers' clocks, and the durable one


async def workers_and_durable(
    directory: Path, wrong: Path | None, *, seconds: float, seed: int
) -> dict[str, Any]:
    """The workers' clocks jump; in the middle of it, durable time jumps by a year, once."""
    chance = Random(seed)
    server = await asyncio.to_thread(Server, directory)
    try:
        shifts = [Shift(wrong, directory / f"clock-{place}") for place in range(2)] if wrong else []
        for shift, hours in zip(shifts, (5, -30), strict=False):
            shift.set(hours * HOUR)
        trial = Trial(
            directory,
            server,
            [server.dsn] * 3,
            seed=seed,
            environments=[*(shift.environment for shift in shifts), {}],
        )
        jumps = 0
        async with trial.loaded():
            await _start_sleepers(trial)
            until = time.monotonic() + seconds
            woken = None
            while time.monotonic() < until or woken is None:
                for shift in shifts:
                    if chance.random() < 0.5:
                        shift.set(chance.randrange(-40 * HOUR, 40 * HOUR))
                        jumps += 1
                await asyncio.sleep(chance.uniform(0.2, 1.0))
                if woken is None and await _all_sleep(server):
                    _check_sleepers(trial, asleep=True)
                    woken = await _sleep_for_a_year(trial, server)
        _check_sleepers(trial, asleep=False)
        trial.violations.check(
            holds=trial.evidence.takeovers == 0,
            text=f"{trial.evidence.takeovers} executions were taken over, though every worker was alive",
        )
        wrong_effects = sum(abs(effect.at - time.time()) > 2 * HOUR for effect in read_effects(directory))
        trial.violations.check(holds=not shifts or wrong_effects > 0, text="no worker's clock was wrong")
        return {
            "part": "workers' clocks and the durable one",
            "jumps of workers' clocks": jumps,
            "effects had by a wrong clock": wrong_effects,
            f"sleepers of {SLEEP} woken up, and the last of them after seconds": [SLEEPERS, woken],
            **_without_pauses(trial),
        }
    finally:
        await asyncio.to_thread(server.stop)


def _sleepers(trial: Trial) -> list[Plan]:
    return [plan for plan in trial.driver.plans.values() if plan.id.startswith("sleeper-")]


async def _start_sleepers(trial: Trial) -> None:
    kind = BY_NAME["slept"]
    milliseconds = int(parse_duration(SLEEP).total_seconds() * 1000)
    for number in range(SLEEPERS):
        plan = Plan(kind=kind, id=f"sleeper-{number}", job=Job(number, milliseconds), began=time.time())
        await trial.client.start(kind.function, plan.job, id=plan.id)
        trial.driver.adopt(plan)


def _check_sleepers(trial: Trial, *, asleep: bool) -> None:
    for plan in _sleepers(trial):
        trial.violations.check(
            holds=(plan.ended is None) is asleep,
            text="it woke up early" if asleep else "it did not wake up",
            execution=plan.id,
        )


async def _all_sleep(server: Server) -> bool:
    statement = "SELECT count(*) FROM zart_tasks WHERE execution_id LIKE 'sleeper-%' AND state = 'waiting'"
    return await server.ask(statement) == [(SLEEPERS,)]


async def _sleep_for_a_year(trial: Trial, server: Server) -> float:
    """Until the last of the sleepers has ended, in seconds of ours."""
    began = time.monotonic()
    await shift_clock(server.dsn, parse_duration("365d"))
    while any(plan.ended is None for plan in _sleepers(trial)) and time.monotonic() - began < 30:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    return round(time.monotonic() - began, 1)


# ------------------------------------------------------------ the database's own clock


async def the_databases(directory: Path, wrong: Path, *, seconds: float, seed: int) -> dict[str, Any]:
    """The clock of the server jumps forward and backward, by minutes and hours."""
    chance = Random(seed)
    shift = Shift(wrong, directory / "clock")
    jumps: list[str] = []
    async with _shifted_server(directory, shift) as server:
        trial = Trial(directory, server, [server.dsn] * 3, seed=seed)
        async with trial.loaded():
            until = time.monotonic() + seconds
            await trial.until_more(30)
            at = 0
            while time.monotonic() < until - 5:
                by = chance.choice((HOUR, -HOUR, 30 * HOUR, 20, -20, -3))
                at += by
                shift.set(at)
                ((now,),) = await server.ask("SELECT extract(epoch FROM clock_timestamp())::float8")
                off = now - time.time()
                trial.violations.check(
                    holds=abs(off - at) < 5, text=f"the server's clock is off by {off:.0f} s, not {at}"
                )
                if by < 0:
                    at = await _catch_up(trial, shift, at, -by)
                jumps.append(f"{by:+d} s: ten more had ended after {await trial.until_more(10):.1f} s")
            if at < 0:
                shift.set(0)
        return {"part": "the database's clock", "jumps": jumps, **_without_pauses(trial)}


async def _catch_up(trial: Trial, shift: Shift, at: int, by: int) -> int:
    """Those who sleep sleep longer by the jump; a while later the clock is put right, and they wake up."""
    before = trial.ended()
    await asyncio.sleep(3)
    if trial.ended() == before:
        trial.violations.add(f"nothing ended for three seconds after the clock was put back by {by} s")
    shift.set(at + by)
    return at + by


@asynccontextmanager
async def _shifted_server(directory: Path, shift: Shift) -> AsyncGenerator[Server]:
    with _environment(shift.environment):
        server = await asyncio.to_thread(Server, directory)
    try:
        yield server
    finally:
        await asyncio.to_thread(server.stop)


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """For the processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


if __name__ == "__main__":
    tell(run)
