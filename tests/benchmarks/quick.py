"""Zart against DBOS, five no-op steps per execution: `make bench-quick`, about two minutes.

Both run on the same embedded PostgreSQL server, with fsync and synchronous_commit on, in databases of
their own, each in one process that starts the executions, runs them and awaits their results. Rounds of
both take turns, so that noise of the machine meets both. DBOS is installed from the package index into
`build/bench/dbos-venv`, at the version below, with its defaults; it is measured as coroutines and as
threads, with 1, 32 and 100 callers, and the fastest counts. Zart is measured with 1 and 100 callers and
its defaults.

Every result is checked. Results go to `build/bench/quick.json`; the table has the median and the range of
the rounds.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psycopg

from tests.benchmarks.processor_time import used_by
from tests.benchmarks.rounds import STEPS, Side
from zart._postgres import embedded

DBOS_VERSION: Final = "3.4.0"
ROOT: Final = Path(__file__).parents[2]
OUTPUT: Final = ROOT / "build" / "bench"


@dataclass(kw_only=True)
class Case:
    """One line of the table: a product, a way of calling it, so many callers."""

    product: str
    mode: str
    callers: int
    seconds_per_round: float
    seconds_per_execution: float = 0.0
    """As the warm-up found it, to make the rounds equally long."""
    rates: list[float] = field(default_factory=list)
    """Steps per second, one for each round."""
    processor: list[float] = field(default_factory=list)
    """Seconds of processor time for an execution, of the process and the server, one for each round."""

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)

    @property
    def processor_seconds(self) -> float | None:
        return statistics.median(self.processor) if self.processor else None

    @property
    def executions(self) -> int:
        """As many as a round has time for, and at least two for each caller."""
        return max(2 * self.callers, int(self.seconds_per_round / self.seconds_per_execution), 20)

    def run(self, side: Side, executions: int) -> float:
        """Seconds for each execution, in one round."""
        return side.round(self.mode, self.callers, executions) / executions

    def measure(self, side: Side, server: int) -> None:
        """One round that counts. `server` is the process id of the server."""
        executions = self.executions
        before = [used_by(pid) for pid in (side.pid, server)]
        self.rates.append(STEPS / self.run(side, executions))
        after = [used_by(pid) for pid in (side.pid, server)]
        used = [
            end - start
            for start, end in zip(before, after, strict=True)
            if start is not None and end is not None
        ]
        if used:
            self.processor.append(sum(used) / executions)


CASES: Final = (
    ("Zart", "coroutines", 1),
    ("DBOS", "coroutines", 1),
    ("DBOS", "threads", 1),
    ("Zart", "coroutines", 100),
    ("Zart", "start_many", 100),
    ("DBOS", "coroutines", 32),
    ("DBOS", "threads", 32),
    ("DBOS", "coroutines", 100),
    ("DBOS", "threads", 100),
)


def main() -> None:
    options = read_options()
    OUTPUT.mkdir(parents=True, exist_ok=True)
    dbos_python = None if options.zart_only else install_dbos()
    with server() as running:
        sides = {"Zart": start_side(running, "zart", sys.executable)}
        if dbos_python is not None:
            sides["DBOS"] = start_side(running, "dbos", str(dbos_python))
        try:
            cases = [
                Case(product=product, mode=mode, callers=callers, seconds_per_round=options.seconds)
                for product, mode, callers in CASES
                if product in sides
            ]
            measure(cases, sides, server_pid(running), options.rounds)
        finally:
            for side in sides.values():
                side.close()
        report = describe(running, sides, cases, options.rounds)
    options.output.write_text(json.dumps(report, indent=2) + "\n")
    print_table(report)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each case (5)")
    parser.add_argument("--seconds", type=float, default=1.5, help="about how long a round takes (1.5)")
    parser.add_argument("--output", type=Path, default=OUTPUT / "quick.json", help="where the figures go")
    parser.add_argument("--zart-only", action="store_true", help="without DBOS")
    return parser.parse_args()


def install_dbos() -> Path:
    """The interpreter of an environment that has DBOS and nothing else."""
    directory = OUTPUT / "dbos-venv"
    python = directory / "bin" / "python"
    installed = "import importlib.metadata as m, uvloop; print(m.version('dbos'))"
    if python.exists():
        found = subprocess.run([python, "-c", installed], capture_output=True, text=True, check=False)
        if found.stdout.strip() == DBOS_VERSION:
            return python
    note(f"installing DBOS {DBOS_VERSION} into {directory.relative_to(ROOT)}")
    venv.create(directory, with_pip=True, clear=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", f"dbos=={DBOS_VERSION}", "uvloop"], check=True)
    return python


@contextmanager
def server() -> Iterator[embedded.EmbeddedServer]:
    """A new server with PostgreSQL's own settings: every commit reaches the disk."""
    with tempfile.TemporaryDirectory(prefix="zart-bench-", ignore_cleanup_errors=True) as directory:
        Path(directory).chmod(0o755)  # as root the server runs as another user
        running = embedded.start(Path(directory), settings={"max_connections": "200"})
        try:
            yield running
        finally:
            running.stop()


def start_side(running: embedded.EmbeddedServer, name: str, python: str) -> Side:
    database = f"bench_{name}"
    with psycopg.connect(running.dsn(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {database}")
    environment = os.environ | {"BENCHMARK_DSN": running.dsn(database), "PYTHONPATH": str(ROOT)}
    return Side([python, "-m", f"tests.benchmarks.{name}_side"], environment)


def server_pid(running: embedded.EmbeddedServer) -> int:
    return int((running.directory / "data" / "postmaster.pid").read_text().splitlines()[0])


def measure(cases: list[Case], sides: dict[str, Side], server: int, rounds: int) -> None:
    for case in cases:
        case.run(sides[case.product], max(case.callers, 20))  # connections, plans, imports
        case.seconds_per_execution = case.run(sides[case.product], max(case.callers, 20))
        note(f"warmed up: {case.product} {label(case)}")
    for number in range(rounds):
        order = cases if number % 2 == 0 else cases[::-1]
        for case in order:
            case.measure(sides[case.product], server)
        note(f"round {number + 1} of {rounds}")


def describe(
    running: embedded.EmbeddedServer, sides: dict[str, Side], cases: list[Case], rounds: int
) -> dict[str, Any]:
    settings = ("server_version", "fsync", "synchronous_commit", "shared_buffers", "max_connections")
    with psycopg.connect(running.dsn()) as connection:
        shown = {
            name: connection.execute("SELECT current_setting(%s)", (name,)).fetchone() for name in settings
        }
    return {
        "steps_per_execution": STEPS,
        "rounds": rounds,
        "machine": {
            "system": platform.platform(),
            "processors": os.cpu_count(),
            "load_at_the_end": os.getloadavg()[0],
            "python": platform.python_version(),
        },
        "server": {name: row[0] for name, row in shown.items() if row is not None},
        "versions": {product: side.versions for product, side in sides.items()},
        "cases": [
            {
                "product": case.product,
                "mode": case.mode,
                "callers": case.callers,
                "executions_per_round": case.executions,
                "steps_per_second": {
                    "median": round(case.rate, 1),
                    "lowest": round(min(case.rates), 1),
                    "highest": round(max(case.rates), 1),
                    "rounds": [round(rate, 1) for rate in case.rates],
                },
                "processor_milliseconds_per_execution": case.processor_seconds
                and round(case.processor_seconds * 1000, 2),
                "milliseconds_per_execution": round(STEPS / case.rate * case.callers * 1000, 2),
            }
            for case in cases
        ],
        "ratios": {
            name: {what: round(ratio, 2) for what, ratio in told.items()}
            for name, told in ratios(cases).items()
        },
    }


def ratios(cases: list[Case]) -> dict[str, dict[str, float]]:
    """Zart's against DBOS's faster mode: how many times its steps per second, and its processor time."""
    dbos = [case for case in cases if case.product == "DBOS"]
    if not dbos:
        return {}
    told = {}
    for zart in (case for case in cases if case.product == "Zart"):
        equal = max((case for case in dbos if case.callers == zart.callers), key=lambda case: case.rate)
        told[f"Zart {label(zart)} : DBOS {label(equal)}"] = compared(zart, equal)
        best = max(dbos, key=lambda case: case.rate)
        if best is not equal and zart.callers > 1:
            told[f"Zart {label(zart)} : DBOS at its best, {label(best)}"] = compared(zart, best)
    return told


def compared(zart: Case, dbos: Case) -> dict[str, float]:
    ratio = {"steps_per_second": zart.rate / dbos.rate}
    if zart.processor_seconds and dbos.processor_seconds:
        ratio["processor_time"] = dbos.processor_seconds / zart.processor_seconds
    return ratio


def label(case: Case) -> str:
    return f"{case.callers} {case.mode}"


def print_table(report: dict[str, Any]) -> None:
    machine, versions, server = report["machine"], report["versions"], report["server"]
    line = "{:<6} {:<10} {:>8} {:>10} {:>19} {:>18} {:>18}".format
    print(line("", "", "", "", "", "for an execution:", ""))
    print(line("", "", "callers", "steps/s", "lowest to highest", "ms until its end", "ms of processor"))
    for case in sorted(report["cases"], key=lambda case: (case["callers"] > 1, case["product"] == "DBOS")):
        rate = case["steps_per_second"]
        print(
            line(
                case["product"],
                case["mode"],
                case["callers"],
                f"{rate['median']:,.0f}",
                f"{rate['lowest']:,.0f} to {rate['highest']:,.0f}",
                f"{case['milliseconds_per_execution']:,.1f}",
                f"{case['processor_milliseconds_per_execution'] or 0:,.1f}",
            )
        )
    print()
    for name, ratio in report["ratios"].items():
        processor = f", processor time 1/{ratio['processor_time']:.1f}" if "processor_time" in ratio else ""
        print(f"{ratio['steps_per_second']:>6.1f} x  {name}{processor}")
    print()
    print(
        f"{STEPS} no-op steps per execution; start, steps and result are within the time; median of "
        f"{report['rounds']} rounds that took turns.\nEach product: one process with worker and callers, on uvloop, "
        "its defaults, a database of its own, the same server."
    )
    print(
        f"PostgreSQL {server['server_version']}, fsync {server['fsync']}, synchronous_commit "
        f"{server['synchronous_commit']}, shared_buffers {server['shared_buffers']}; {machine['processors']} "
        f"processors, load {machine['load_at_the_end']:.1f}; Python {machine['python']}"
    )
    if machine["load_at_the_end"] > 2 * machine["processors"]:
        print(
            "Other programs kept the processors busy: the figures are low, and the ratios blurred. Processor time is "
            "what such noise distorts least."
        )
    for product, found in versions.items():
        print(f"{product}: " + ", ".join(f"{name} {version}" for name, version in found.items()))


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
