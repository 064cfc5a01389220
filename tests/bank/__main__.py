"""`python -m tests.bank [--transfers N] [--seed N] [--workers N] [--kill-every SECONDS]`; see the package."""

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
from pathlib import Path

from tests.bank import trial


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Move money while workers are killed and the database crashes"
    )
    parser.add_argument("--transfers", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--kill-every", type=float, default=3.0, help="seconds, on average")
    given = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="zart-bank-"))
    directory.chmod(0o755)  # as root the server runs as another user
    print(f"seed {given.seed}, in {directory}", flush=True)
    figures = asyncio.run(
        trial.run(
            directory,
            transfers=given.transfers,
            seed=given.seed,
            workers=given.workers,
            kill_every=given.kill_every,
        )
    )
    for name, value in figures.items():
        if name != "problems":
            print(f"{name:>24}  {value}")
    for problem in figures["problems"]:
        print(problem, file=sys.stderr)
    if figures["problems"]:
        print(f"the workers' logs are in {directory}", file=sys.stderr)
        return 1
    shutil.rmtree(directory)
    print("no money was lost or made, and each transfer was applied once")
    return 0


if __name__ == "__main__":
    sys.exit(main())
