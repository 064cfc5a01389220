"""The model for as long as you like: `python -m tests.model --minutes 5 [--seed N]`.

Rounds of examples, each of a seed that follows from the first one. The seeds are printed, and of a failure the steps
that led to it; `--shrink` makes them as few as Hypothesis can, which takes minutes.
"""

import argparse
import secrets
import sys
import time
from collections import Counter

import anyio
import hypothesis
from hypothesis.stateful import run_state_machine_as_test

from tests.model.machine import Machine
from tests.model.settings import profile
from tests.model.stage import Stage
from tests.support.databases import Databases
from tests.support.server import running_server
from zart.migrate import migrate

EXAMPLES = 25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    parser.add_argument("--examples", type=int, default=EXAMPLES, help="in a round")
    parser.add_argument("--shrink", action="store_true")
    arguments = parser.parse_args()
    with running_server() as server:
        databases = Databases(server.dsn)
        with databases.database() as name:
            anyio.run(migrate, databases.address(name))
            stage = Stage(databases.address(name))
            try:
                explore(stage, arguments.seed, arguments.minutes * 60, arguments.examples, arguments.shrink)
            finally:
                stage.close()
        databases.close()


def explore(stage: Stage, first: int, seconds: float, examples: int, shrinks: bool) -> None:
    Machine.stage = stage
    rounds, until = 0, time.monotonic() + seconds
    stage.did = Counter()
    while time.monotonic() < until:
        seed = (first + rounds) % 2**32
        print(f"round {rounds + 1}: seed {seed}", flush=True)
        hypothesis.seed(seed)(Machine)
        run_state_machine_as_test(Machine, settings=profile(examples, steps=80, shrinks=shrinks))
        rounds += 1
    told = ", ".join(f"{name} {count}" for name, count in stage.did.most_common())
    print(f"{rounds} rounds, {stage.examples} examples, {stage.steps} steps compared: {told}")


if __name__ == "__main__":
    sys.exit(main())
