"""Break each sentence once and see that its tests notice: `python -m tests.mutations [NAME…]`.

First all tests that are named must pass on the tree as it is. Ends with 1 when a mutation survives.
"""

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.mutations.catalogue import MUTATIONS, SURVIVORS
from tests.mutations.mutation import Mutation, Rotten
from tests.mutations.running import ROOT, Unjudged, Verdict, copy_tree, run_tests
from tests.support.server import Server, running_server

_PATIENCE = 15
"""Seconds, beside four times as long as they took before, after which tests that hang have failed."""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__)
    parser.add_argument("name", nargs="*", help="of mutations; all unless some are named")
    parser.add_argument("--list", action="store_true", help="show what there is, and run nothing")
    options = parser.parse_args(arguments)
    chosen = [mutation for mutation in MUTATIONS if not options.name or mutation.name in options.name]
    unknown = set(options.name) - {mutation.name for mutation in chosen}
    if unknown:
        parser.error(f"no mutation is called {', '.join(sorted(unknown))}; see --list")
    if options.list:
        for mutation in chosen:
            print(f"{mutation.name}: {mutation.breaks}")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # leaves neither a copy nor a server behind
    with tempfile.TemporaryDirectory(prefix="zart-mutations-") as directory, running_server() as server:
        return run_all(chosen, Path(directory), server)


def run_all(mutations: Sequence[Mutation], directory: Path, server: Server) -> int:
    begun = time.monotonic()
    whole = copy_tree(ROOT, directory / "whole")  # what others change meanwhile changes nothing here
    unbroken = try_unbroken(whole, mutations, server)
    caught = 0
    for number, mutation in enumerate(mutations, start=1):
        before = [unbroken[test] for test in mutation.all_tests]
        if any(verdict.outcome != "passed" for verdict in before):
            told = "NOT JUDGED: its tests do not pass as long as nothing is broken"
        else:
            patience = _PATIENCE + 4 * max(verdict.seconds for verdict in before)
            told = verdict_on(copy_tree(whole, directory / mutation.name), mutation, server, patience)
        caught += told.startswith("caught")
        print(f"{number:3}/{len(mutations)}  {mutation.name:32} {told}", flush=True)
    seconds = time.monotonic() - begun
    print(f"{caught} of {len(mutations)} mutations were caught, in {seconds:.0f} s")
    for name, reason in SURVIVORS.items():
        print(f"nobody can notice {name}: {reason}")
    return 0 if caught == len(mutations) else 1


def try_unbroken(tree: Path, mutations: Sequence[Mutation], server: Server) -> dict[str, Verdict]:
    """Whether the tests mean anything: on the tree as it is they pass."""
    wanted = sorted({test for mutation in mutations for test in mutation.all_tests})
    verdicts = run_tests(tree, wanted, server)
    bad = [(test, verdict) for test, verdict in verdicts.items() if verdict.outcome != "passed"]
    for test, verdict in bad:
        print(f"{test} {verdict.outcome} although nothing is broken: {verdict.reason}")
    print(f"{len(wanted) - len(bad)} of {len(wanted)} tests pass as long as nothing is broken", flush=True)
    return verdicts


def verdict_on(tree: Path, mutation: Mutation, server: Server, patience: float) -> str:
    """Breaks the tree; "caught" and by what, or what is wrong."""
    try:
        mutation.apply(tree)
        verdicts = run_tests(tree, mutation.all_tests, server, patience=patience)
    except Rotten as rotten:
        return f"ROTTEN: {rotten}"
    except Unjudged as unjudged:
        return f"NOT JUDGED: {unjudged}"
    if mutation.works is not None and verdicts[mutation.works].outcome != "passed":
        return f"NOT JUDGED: it breaks everything, {mutation.works} too: {verdicts[mutation.works].reason}"
    blind = [test for test in mutation.tests if verdicts[test].outcome != "failed"]
    if blind:
        return f"SURVIVED {', '.join(blind)}"
    indent = " " * 41
    return f"\n{indent}".join(
        f"{'and' if number else 'caught'} by {test.rpartition('::')[2]}: {verdicts[test].reason[:100]}"
        for number, test in enumerate(mutation.tests)
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
