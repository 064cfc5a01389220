"""`python -m tests.chaos --minutes 20 [--seed N] [--only FAULT,…] [--json FILE]`; see the package."""

import argparse
import asyncio
import contextlib
import importlib
import json
import logging
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import zart
from tests.chaos import report
from tests.chaos.driver import Driver, Violations
from tests.chaos.faults import FAULTS, Arena, Deck
from tests.chaos.gang import Gang
from tests.chaos.server import Server
from tests.chaos.verdict import Verdict, account
from tests.support.processes import Crew
from tests.support.proxy import Proxy
from zart import Client

SCENARIOS = ("failover", "forgetting", "full_disk", "clocks")
"""Modules of this package that bring their own servers."""
_DRAIN_SECONDS = 180.0
_SILENCE_SECONDS = 60.0
_ENDS_WITHIN = 600.0
"""However long it takes to come to a verdict, in seconds, it ends then."""
_ACCOUNTS = 8


def main() -> int:
    arguments = _arguments()
    only = [name.strip() for name in arguments.only.split(",") if name.strip()]
    unknown = set(only) - set(FAULTS)
    if unknown:
        print(f"no such fault: {', '.join(unknown)}; there are {', '.join(FAULTS)}", file=sys.stderr)
        return 2
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(10**6)
    directory = Path(tempfile.mkdtemp(prefix="zart-chaos-"))
    directory.chmod(0o755)  # as root the server runs as another user
    print(f"seed {seed}, {arguments.minutes:g} minutes, in {directory}", flush=True)
    # The pools of the machine's own clients report each connection that they lose: that is what it is about.
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
    logging.getLogger("zart").setLevel(logging.ERROR)
    violations = Violations()
    figures: dict[str, Any] | None = None
    try:
        figures = asyncio.run(_play(arguments, only, seed, directory, violations))
    finally:
        kept = figures is None or bool(violations.found)
        if kept:
            print(f"everything is kept in {directory}")
        else:
            shutil.rmtree(directory)
    print(report.table(figures))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures, indent=2) + "\n")
    return 1 if violations.found else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Try to break Zart.")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--only", default="", help=f"faults, divided by commas: {', '.join(FAULTS)}")
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--in-flight", type=int, default=200, help="executions that live at a time")
    parser.add_argument("--pause", type=float, default=3.0, help="seconds between two faults, on average")
    parser.add_argument("--workers", type=int, default=4, help="processes; every other one behind the proxy")
    parser.add_argument(
        "--scenarios", action="store_true", help=f"then play {', '.join(SCENARIOS)}, a minute and more each"
    )
    return parser.parse_args()


async def _play(
    arguments: argparse.Namespace, only: list[str], seed: int, directory: Path, violations: Violations
) -> dict[str, Any]:
    """All of it. A signal or the machine's own time limit ends it, and all that it started."""
    this = asyncio.current_task()
    assert this is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
    async with asyncio.timeout(arguments.minutes * 60 + _ENDS_WITHIN):
        figures = await _run(arguments, only, seed, directory, violations)
    if arguments.scenarios:
        async with asyncio.timeout(len(SCENARIOS) * _ENDS_WITHIN):
            figures["scenarios"] = await _play_scenarios(seed, directory, violations)
        figures["violations"] = [{"execution": id, "text": text} for text, id in violations.found]
    return figures


async def _play_scenarios(seed: int, directory: Path, violations: Violations) -> dict[str, Any]:
    """Faults that need a server of another kind, one after the other."""
    figures: dict[str, Any] = {}
    for name in SCENARIOS:
        print(f"---- {name}", flush=True)
        place = directory / name
        place.mkdir()
        place.chmod(0o755)
        scenario = importlib.import_module(f"tests.chaos.{name}")
        try:
            figures[name] = await scenario.run(place, seconds=60, seed=seed)
        except Exception:  # it is told, and the others are played
            violations.add(f"the scenario {name} came to no end: {traceback.format_exc()}")
            continue
        for told in figures[name]["violations"]:
            violations.add(f"in the scenario {name}: {told}")
        print(json.dumps(figures[name], indent=2), flush=True)
    return figures


async def _run(
    arguments: argparse.Namespace, only: list[str], seed: int, directory: Path, violations: Violations
) -> dict[str, Any]:
    seconds = arguments.minutes * 60
    async with contextlib.AsyncExitStack() as stack:
        server = await asyncio.to_thread(Server, directory)
        stack.push_async_callback(asyncio.to_thread, server.stop)
        await zart.migrate(server.dsn)
        proxies = {
            "workers": await stack.enter_async_context(Proxy(server.dsn)),
            "clients": await stack.enter_async_context(Proxy(server.dsn)),
        }
        addresses = [
            proxies["workers"].dsn if place % 2 else server.dsn for place in range(arguments.workers)
        ]
        crew = await stack.enter_async_context(Crew(server.dsn, directory, quiet=True))
        os.environ["ZART_TEST_PLACE"] = str(directory)
        gang = Gang(crew, addresses, violations)
        await gang.ready()
        keeping = asyncio.create_task(gang.keep())
        stack.callback(keeping.cancel)
        clients = [
            await stack.enter_async_context(Client(server.dsn)),
            await stack.enter_async_context(Client(proxies["clients"].dsn)),
        ]
        driver = Driver(clients, violations, seed, in_flight=arguments.in_flight)
        stack.push_async_callback(driver.stop)
        arena = Arena(server=server, gang=gang, proxies=proxies, driver=driver, violations=violations)
        deck = Deck(arena, seed, only, pause=arguments.pause)

        began = time.time()
        watching = asyncio.create_task(_watch(driver, deck, began))
        stack.callback(watching.cancel)
        driving = asyncio.create_task(driver.run(seconds))
        await deck.play(seconds)
        gang.wake()
        ended = time.time()
        try:
            await asyncio.wait_for(driving, _DRAIN_SECONDS)
        except TimeoutError:
            for plan in list(driver.live.values())[:20]:
                violations.add(f"it has not ended {_DRAIN_SECONDS:g} s after the last fault", plan.id)
        drained = time.time()
        await _settle(server, violations)
        await gang.end()
        keeping.cancel()
        evidence = await Verdict(server, gang, driver.plans, violations).reach()
        ((workers,),) = await server.ask("SELECT count(*) FROM zart_workers")
        violations.check(holds=workers == 0, text=f"{workers} rows of workers are left when all have gone")
        await _tell(server, gang, driver, violations, directory)
        return report.figures(
            seed=seed,
            began=began,
            ended=ended,
            drained=drained,
            windows=deck.windows,
            evidence=evidence,
            driver=driver,
            gang=gang,
            server=server,
            proxies=proxies,
            violations=violations,
            extra={"processor seconds": _processor_seconds()},
        )


async def _settle(server: Server, violations: Violations) -> None:
    """Until the living have taken over from all the dead, and nothing is left to be applied."""
    statement = (
        "SELECT (SELECT count(*) FROM zart_tasks), (SELECT count(*) FROM zart_wakeups),"
        " (SELECT count(*) FROM zart_workers WHERE expires_at < clock_timestamp())"
    )
    until = time.monotonic() + 30
    while (rows := await server.ask(statement)) != [(0, 0, 0)]:
        if time.monotonic() > until:
            tasks, wakeups, dead = rows[0]
            violations.add(
                f"30 s later there are {tasks} tasks, {wakeups} wake-ups and {dead} rows of the dead"
            )
            return
        await asyncio.sleep(0.2)


async def _watch(driver: Driver, deck: Deck, began: float) -> None:
    """Says how it goes, and notices when nothing goes on any more."""
    last, since = 0, time.monotonic()
    while True:
        await asyncio.sleep(10)
        ended = sum(plan.ended is not None for plan in driver.plans.values())
        if ended > last:
            last, since = ended, time.monotonic()
        elif time.monotonic() - since > _SILENCE_SECONDS and driver.live:
            driver.violations.add(f"nothing has ended for {_SILENCE_SECONDS:g} s")
            since = time.monotonic()
        print(
            f"{time.time() - began:6.0f} s: {ended} of {len(driver.plans)} executions have ended, "
            f"{len(deck.windows)} faults are over, {len(driver.violations.found)} violations",
            flush=True,
        )


async def _tell(server: Server, gang: Gang, driver: Driver, violations: Violations, directory: Path) -> None:
    """Write down all that is known of the executions with violations; print the first of them."""
    ids = list(dict.fromkeys(id for _, id in violations.found if id is not None))
    accounts = [await account(server, gang, driver.plans.get(id), id) for id in ids[: _ACCOUNTS * 4]]
    if violations.found:
        text = "\n".join(f"{id or '-'}: {told}" for told, id in violations.found)
        (directory / "violations.txt").write_text("\n\n".join([text, *accounts]))
    for told in accounts[:_ACCOUNTS]:
        print(told, flush=True)


def _processor_seconds() -> float:
    mine, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return round(sum(usage.ru_utime + usage.ru_stime for usage in (mine, children)), 1)


if __name__ == "__main__":
    sys.exit(main())
