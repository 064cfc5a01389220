"""The machine's load and verdict, for faults that need a server of their own kind.

A trial is a gang of worker processes and a driver on whatever database a scenario brings; the scenario does the harm
while `loaded` runs, and `judge` compares what came out with what had to come out. A scenario is a module with

    async def run(directory, *, seconds, seed) -> dict      # its figures; "violations" is empty if all is well

and can be run alone: `python -m tests.chaos.failover --seconds 60`.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import logging
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import zart
from tests.chaos.driver import Driver, Violations
from tests.chaos.effects import PLACE_VARIABLE
from tests.chaos.gang import Gang
from tests.chaos.verdict import Evidence, Verdict, account
from tests.support.processes import Crew, WorkerProcess
from zart import Client

Scenario = Callable[..., Awaitable[dict[str, Any]]]
_DRAINS_WITHIN = 120.0
_SETTLES_WITHIN = 30.0
_FOR_EVER = 1e9


class Asked(Protocol):
    """What a verdict needs of a server."""

    @property
    def log(self) -> Path: ...

    async def ask(self, statement: str, *parameters: Any, within: float = 60) -> list[tuple[Any, ...]]: ...


class _Crew(Crew):
    """One whose processes have environments of their own, in turns."""

    def __init__(self, dsn: str, directory: Path, environments: Sequence[dict[str, str]]) -> None:
        super().__init__(dsn, directory, quiet=True)
        self._environments = itertools.cycle(environments)

    def begin(
        self, app: str, *, dsn: str | None = None, environment: dict[str, str] | None = None, **options: str
    ) -> WorkerProcess:
        return super().begin(app, dsn=dsn, environment=environment or next(self._environments), **options)


class Trial:
    """Load on one database. `server` answers for the evidence; workers and clients find it under `addresses`.

    The worker processes have `environments`, in turns.
    """

    def __init__(
        self,
        directory: Path,
        server: Asked,
        addresses: Sequence[str],
        *,
        seed: int,
        in_flight: int = 60,
        environments: Sequence[dict[str, str]] = ({},),
    ) -> None:
        self.violations = Violations()
        self.drained_after = 0.0
        """How long it took after the last fault until everything had ended."""
        self._directory = directory
        self._server = server
        self._addresses = list(addresses)
        self._seed = seed
        self._in_flight = in_flight
        self._environments = environments

    @contextlib.asynccontextmanager
    async def loaded(self) -> AsyncGenerator[None]:
        """Workers and clients at work, from here to the end; leaves when all that was started has ended."""
        os.environ[PLACE_VARIABLE] = str(self._directory)
        await zart.migrate(self._addresses[0])
        async with contextlib.AsyncExitStack() as stack:
            crew = await stack.enter_async_context(
                _Crew(self._addresses[0], self._directory, self._environments)
            )
            self.gang = Gang(crew, self._addresses, self.violations)
            keeping = asyncio.create_task(self.gang.keep())
            stack.callback(keeping.cancel)
            clients = [
                await stack.enter_async_context(Client(address)) for address in dict.fromkeys(self._addresses)
            ]
            self.client = clients[0]
            self.driver = Driver(clients, self.violations, self._seed, in_flight=self._in_flight)
            stack.push_async_callback(self.driver.stop)
            driving = asyncio.create_task(self.driver.run(_FOR_EVER))
            stack.callback(driving.cancel)
            yield
            over = time.monotonic()
            driving.cancel()
            await asyncio.wait([driving])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_DRAINS_WITHIN):
                    await self.driver.ended()
            for plan in list(self.driver.live.values())[:20]:
                self.violations.add("it has not ended long after the last fault", plan.id)
            self.drained_after = time.monotonic() - over
            await self._settle()
            await self.gang.end()
            keeping.cancel()
            self.evidence = await self._judge()

    def ended(self) -> int:
        """How many executions have ended so far."""
        return sum(plan.ended is not None for plan in self.driver.plans.values())

    async def until_more(self, count: int, within: float = 60) -> float:
        """Until so many more executions have ended than now; how long that took. It may be too long."""
        began, before = time.monotonic(), self.ended()
        while self.ended() < before + count:
            if time.monotonic() - began > within:
                self.violations.add(
                    f"{self.ended() - before} executions ended within {within:g} s, not {count}"
                )
                break
            await asyncio.sleep(0.05)
        return time.monotonic() - began

    async def _settle(self) -> None:
        statement = "SELECT (SELECT count(*) FROM zart_tasks) + (SELECT count(*) FROM zart_wakeups)"
        until = time.monotonic() + _SETTLES_WITHIN
        while await self._server.ask(statement) != [(0,)] and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.2)

    async def _judge(self) -> Evidence:
        server: Any = self._server
        evidence = await Verdict(server, self.gang, self.driver.plans, self.violations).reach()
        found = dict.fromkeys(id for _, id in self.violations.found if id is not None)
        for id in list(found)[:5]:
            print(await account(server, self.gang, self.driver.plans.get(id), id), flush=True)
        return evidence

    def figures(self) -> dict[str, Any]:
        evidence = self.evidence
        return {
            "executions": len(self.driver.plans),
            "lost": evidence.lost,
            "steps recorded": evidence.steps,
            "recorded twice": evidence.duplicate_records,
            "effects": evidence.effects,
            "effects had again": evidence.run_again,
            "takeovers": evidence.takeovers,
            "the counter, and as it must be": evidence.counter,
            "longest pause in seconds": longest_pause(evidence.finished),
            "drained after seconds": round(self.drained_after, 1),
            "violations": [f"{id or '-'}: {text}" for text, id in self.violations.found],
        }


def longest_pause(finished: Sequence[float]) -> float:
    """The longest time between the ends of two executions."""
    return round(max((later - one for one, later in itertools.pairwise(finished)), default=0.0), 1)


def main(scenario: Scenario, about: str) -> int:
    """The command line of one scenario."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int)
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(10**6)
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
    logging.getLogger("zart").setLevel(logging.ERROR)
    directory = Path(tempfile.mkdtemp(prefix="zart-trial-"))
    directory.chmod(0o755)  # as root the server runs as another user
    print(f"seed {seed}, in {directory}", flush=True)
    figures = asyncio.run(scenario(directory, seconds=arguments.seconds, seed=seed))
    print(json.dumps(figures, indent=2))
    if figures["violations"]:
        return 1
    shutil.rmtree(directory)
    return 0


def tell(scenario: Scenario) -> None:
    """Ends the process with the scenario's verdict."""
    sys.exit(main(scenario, (scenario.__doc__ or "").splitlines()[0]))
