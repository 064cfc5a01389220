"""Measure Zart, and what it is compared with.

make bench                 cases a, b, c, e, f, h, k: under 15 minutes
make bench-long            cases d, g, i, j: about an hour
make bench CASE=a          one of them
make bench-quick           Zart and DBOS, five no-op steps, 1, 32 and 100 callers: two minutes
make bench BENCH_ARGS='--scale 0.05 --peers DBOS'

It writes build/bench/bench.json (bench-long.json, bench-a.json, quick.json) and prints a table. `--document` renders
what the first two hold into docs/reference/benchmarks.md, and a few of them into docs/explanation/performance.md; no
figure there is written by hand.
"""

import argparse
import importlib
import pkgutil
import signal
import sys
import traceback
from pathlib import Path

from tests.benchmarks import cases, report
from tests.benchmarks.bench import OUTPUT, Case, Options, note, started
from tests.benchmarks.peers import PEERS


def every_case() -> dict[str, Case]:
    """All of them, by letter."""
    found = {}
    for module in pkgutil.iter_modules(cases.__path__):
        case: Case = importlib.import_module(f"{cases.__name__}.{module.name}").CASE
        found[case.letter] = case
    return dict(sorted(found.items()))


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # nothing that was started is left behind
    known = every_case()
    options = read_options(list(known))
    if options.document:
        report.document()
        return 0
    if options.quick:
        chosen = [known["a"]]
    else:
        chosen = [known[letter] for letter in sorted(options.case)]
        chosen = chosen or [c for c in known.values() if c.long == options.long]
    failed = False
    with started(chosen_options(options)) as bench:
        for case in chosen:
            note(f"case {case.letter}: {case.title}")
            try:
                case.run(bench)
            except Exception:
                failed = True
                traceback.print_exc()
        told = report.described(bench, chosen)
    output = options.output or OUTPUT / f"{name_of(options)}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    report.write(told, output)
    report.show(told)
    return int(failed)


def chosen_options(options: argparse.Namespace) -> Options:
    peers = options.peers if options.peers is not None else "DBOS" if options.quick else "DBOS,Absurd,Restate"
    callers = options.callers or ("1,32,100" if options.quick else "1,32,100,500")
    unknown = set(filter(None, peers.split(","))) - PEERS.keys()
    if unknown:
        raise SystemExit(f"nobody knows {', '.join(sorted(unknown))}: --peers takes {', '.join(PEERS)}")
    return Options(
        scale=options.scale,
        peers=tuple(filter(None, peers.split(","))),
        callers=tuple(sorted(map(int, callers.split(",")))),
        ceiling=not options.quick,
    )


def name_of(options: argparse.Namespace) -> str:
    if options.quick:
        return "quick"
    if options.case:
        return f"bench-{''.join(sorted(options.case))}"
    return "bench-long" if options.long else "bench"


def read_options(letters: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "--case", action="append", choices=letters, default=[], help="only this one; may be repeated"
    )
    parser.add_argument("--long", action="store_true", help="the cases that take an hour")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies sizes and durations (1)")
    parser.add_argument("--peers", help="whom to compare with (DBOS,Absurd,Restate); empty: nobody")
    parser.add_argument("--callers", help="how many at a time, in case a (1,32,100,500)")
    parser.add_argument(
        "--quick", action="store_true", help="case a with Zart and DBOS, fewer callers and no ceiling"
    )
    parser.add_argument("--output", type=Path, help="where the figures go")
    parser.add_argument(
        "--document", action="store_true", help="write the figures into the documents, and end"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
