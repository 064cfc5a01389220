"""Crash the engine at every boundary: `make explore`, or `python -m tests.crashes.explore --help`.

    python -m tests.crashes.explore                                      everything, then pairs for five minutes
    python -m tests.crashes.explore --workflow gather --budget 0         one workflow, no pairs
    python -m tests.crashes.explore --workflow gather --fault 'kill@journal.record.sent#2' --fault 'kill@claim.read#1'

With `--fault`, this one plan is run: the first is what happens to the first worker, the next to the one that goes on
after it. Faults of one worker are joined by `+`. That is also what a failure prints to be repeated.
"""

import argparse
import asyncio
import logging
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.crashes.corpus import WORKFLOWS
from tests.crashes.explorer import Plan, Run
from tests.crashes.exploring import Exploration, exploration
from tests.crashes.faults import KINDS, parse
from tests.crashes.workflow import Workflow
from tests.support.databases import Databases
from tests.support.server import running_server
from zart.migrate import migrate


async def explore_all(
    found: Exploration, workflows: Sequence[Workflow], kinds: Sequence[str], *, most: int, budget: float
) -> None:
    """Singles, then what first faults lead to, then pairs."""
    for kind in kinds:
        begun = time.monotonic()
        plans: list[tuple[Workflow, Plan]] = []
        for workflow in workflows:
            # A kill everywhere; of the others one at each point of each workflow, at one of its times.
            once = kind != "kill" or workflow.slow
            singles = found.singles(workflow, kind, own=once, once=once)
            plans += [(workflow, plan) for plan in found.some(singles, most)]
        await found.run_all(plans, what="singles")
        print(f"{kind}: {len(plans)} runs in {time.monotonic() - begun:.0f} s", flush=True)
    begun = time.monotonic()
    plans = [
        (workflow, plan) for workflow in workflows for plan in found.some(found.first_faults(workflow), most)
    ]
    first = await found.run_all(plans, what="singles")
    plans = [
        (run.workflow, plan)
        for run in first
        if run.reached and not run.problems
        for plan in found.some(list(found.seconds(run)), most)
    ]
    await found.run_all(plans, what="seconds")
    print(f"after {len(first)} first faults: {len(plans)} in {time.monotonic() - begun:.0f} s", flush=True)
    if budget:
        await found.run_pairs(workflows, budget)


async def repeat(found: Exploration, workflow: Workflow, plan: Plan, times: int) -> None:
    runs: list[Run] = await found.run_all([(workflow, plan)] * times, what="singles")
    for run in runs:
        for number, trace in enumerate(run.traces, start=1):
            print(f"worker {number}: {' '.join(trace)}")
        print("reached" if run.reached else "NOT REACHED", f"{run.seconds:.2f} s", *run.problems, sep="\n  ")


async def main(options: argparse.Namespace) -> int:
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    chosen = [WORKFLOWS[name] for name in options.workflow or WORKFLOWS]
    print(f"seed {seed}", flush=True)
    logging.getLogger("zart").setLevel(logging.ERROR)  # takeovers are no news here
    directory = Path(tempfile.mkdtemp(prefix="zart-crashes-"))
    with running_server() as server:
        databases = Databases(server.dsn)
        try:
            with databases.database() as template:
                await migrate(databases.address(template))
                async with exploration(
                    databases, template, directory, seed=seed, slots=options.slots
                ) as found:
                    try:
                        await found.begin(chosen)
                        if options.fault:
                            plan = tuple(parse(worker) for worker in options.fault)
                            await repeat(found, chosen[0], plan, options.times)
                        else:
                            kinds = options.kinds.split(",")
                            await explore_all(found, chosen, kinds, most=options.most, budget=options.budget)
                    finally:  # also when it is broken off
                        print(found.table())
                        print(f"seed {seed}, {len(found.failures)} failures", flush=True)
        finally:
            databases.close()
    return 1 if found.failures else 0


def read_options() -> argparse.Namespace:
    options = argparse.ArgumentParser(
        prog="python -m tests.crashes.explore",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="kinds of faults: " + "; ".join(f"{kind}: {what}" for kind, what in KINDS.items()),
    )
    options.add_argument(
        "--workflow", action="append", choices=sorted(WORKFLOWS), help="only this one; repeatable"
    )
    options.add_argument("--kinds", default=",".join(KINDS), help="which faults for single points")
    options.add_argument(
        "--fault", action="append", help="run one plan: the faults of the first worker; repeatable"
    )
    options.add_argument("--times", type=int, default=1, help="run that plan so often")
    options.add_argument("--seed", type=int, help="of all that is drawn at random; printed")
    options.add_argument(
        "--most",
        type=int,
        default=1_000_000,
        help="single points for each workflow and kind, drawn at random",
    )
    options.add_argument("--budget", type=float, default=300, help="seconds for pairs")
    options.add_argument("--slots", type=int, default=3, help="runs at a time")
    return options.parse_args()


if __name__ == "__main__":
    sys.exit(asyncio.run(main(read_options())))
