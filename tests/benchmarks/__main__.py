"""Measure Zart, and what it is compared with.

make bench                 cases a, b, c, e, f, h, k: under 15 minutes
make bench-long            cases d, g, i, j: about an hour
make bench CASE=a          one of them
make bench BENCH_ARGS='--scale 0.05 --peers DBOS'

It writes build/bench/bench.json (or bench-long.json) and prints a table. `--document` renders what both have written
last into docs/reference/benchmarks.md; no figure there is written by hand.
"""

import argparse
import importlib
import pkgutil
import sys
import traceback

from tests.benchmarks import cases, report
from tests.benchmarks.bench import OUTPUT, Case, Options, note, started


def every_case() -> dict[str, Case]:
    """All of them, by letter."""
    found = {}
    for module in pkgutil.iter_modules(cases.__path__):
        case: Case = importlib.import_module(f"{cases.__name__}.{module.name}").CASE
        found[case.letter] = case
    return dict(sorted(found.items()))


def main() -> int:
    known = every_case()
    options = read_options(list(known))
    if options.document:
        report.document()
        return 0
    chosen = [known[letter] for letter in options.case] or [c for c in known.values() if c.long == options.long]
    failed = False
    with started(Options(scale=options.scale, peers=tuple(options.peers.split(",")))) as bench:
        for case in chosen:
            note(f"case {case.letter}: {case.title}")
            try:
                case.run(bench)
            except Exception:  # noqa: BLE001 (the others are measured all the same, and the exit code tells)
                failed = True
                traceback.print_exc()
        told = report.described(bench, chosen)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    name = f"bench-{''.join(options.case)}" if options.case else "bench-long" if options.long else "bench"
    report.write(told, OUTPUT / f"{name}.json")
    report.show(told)
    return int(failed)


def read_options(letters: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--case", action="append", choices=letters, default=[], help="only this one; may be repeated")
    parser.add_argument("--long", action="store_true", help="the cases that take an hour")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies sizes and durations (1)")
    parser.add_argument("--peers", default="DBOS,Absurd,Restate", help="whom to compare with")
    parser.add_argument("--document", action="store_true", help="write docs/reference/benchmarks.md and end")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
