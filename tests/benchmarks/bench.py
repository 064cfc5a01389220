"""What every case is given: a server, databases, the products to compare, and a place for its figures.

    def run(bench: Bench) -> None:
        for _ in bench.rounds(5):
            bench.add("a", "Zart", "100 callers", "steps", "steps/s", 12_345.0)

The server is a new one with PostgreSQL's own settings (fsync and synchronous_commit on), and pg_stat_statements loaded.
Cases run one after another, each in databases of its own.
"""

import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import psycopg

from tests.benchmarks.figures import Figure, Target, Unit
from zart._postgres import embedded

ROOT: Final = Path(__file__).parents[2]
OUTPUT: Final = ROOT / "build" / "bench"
SETTINGS: Final = {
    "max_connections": "200",
    "shared_preload_libraries": "pg_stat_statements",
    "pg_stat_statements.track": "top",
    "pg_stat_statements.track_utility": "off",
}


class Options(msgspec.Struct, kw_only=True, frozen=True):
    """What whoever runs it may choose."""

    scale: float = 1.0
    """Sizes and durations are multiplied by it: 0.01 for a look at whether a case works at all."""
    peers: tuple[str, ...] = ("DBOS", "Absurd", "Restate")
    """Whom to compare with."""
    callers: tuple[int, ...] = (1, 32, 100, 500)
    """How many callers at a time case a has."""
    ceiling: bool = True
    """Whether case a writes the same rows without an engine too."""

    def scaled(self, size: int, least: int = 1) -> int:
        return max(least, round(size * self.scale))


class Case(msgspec.Struct, kw_only=True, frozen=True):
    """One letter of the benchmark."""

    letter: str
    title: str
    long: bool
    """Whether `make bench-long` runs it, rather than `make bench`."""
    told: str
    """How it was measured, in whole sentences: it stands above its table."""
    run: "Callable[[Bench], None]"


class Bench:
    """See the module."""

    def __init__(self, server: embedded.EmbeddedServer, options: Options) -> None:
        self.server = server
        self.options = options
        self.figures: list[Figure] = []
        self.targets: list[Target] = []
        self.setups: dict[str, str] = {}
        """How each product was set up, in its fairest way, by its name."""
        self.versions: dict[str, dict[str, str]] = {}
        """The packages of each product."""
        self.left_out: dict[str, str] = {}
        """Peers that were asked for and could not be measured, and why."""
        self.load_at_the_start = os.getloadavg()[0]
        """Processes that ran or wanted to, in the minute before: other programs'."""
        self._databases = 0

    def rounds(self, wanted: int) -> range:
        """So many rounds, and fewer at a small scale."""
        return range(min(wanted, self.options.scaled(wanted)))

    def add(  # noqa: PLR0917 (a figure's names, in the order of the table)
        self, case: str, product: str, setup: str, quantity: str, unit: Unit, value: float
    ) -> None:
        """One more value of a figure."""
        figure = self._find(case, product, setup, quantity)
        if figure is None:
            figure = Figure(case=case, product=product, setup=setup, quantity=quantity, unit=unit)
            self.figures.append(figure)
        figure.values.append(value)

    def figure(self, case: str, product: str, setup: str, quantity: str) -> Figure:
        """What was added under these names. Raises LookupError when nothing was."""
        figure = self._find(case, product, setup, quantity)
        if figure is None:
            raise LookupError(f"nothing was measured for {product}, {setup}, {quantity} in case {case}")
        return figure

    def _find(self, *names: str) -> Figure | None:
        return next(
            (
                figure
                for figure in self.figures
                if (figure.case, figure.product, figure.setup, figure.quantity) == names
            ),
            None,
        )

    def target(self, case: str, told: str, found: float, wanted: float, *, at_least: bool = True) -> None:
        self.targets.append(Target(case=case, told=told, wanted=wanted, at_least=at_least, found=found))

    def database(self, name: str) -> str:
        """The DSN of a new database, empty."""
        self._databases += 1
        database = f"bench_{name}_{self._databases}"
        with psycopg.connect(self.server.dsn(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {database}")
        with psycopg.connect(self.server.dsn(database), autocommit=True) as connection:
            connection.execute("CREATE EXTENSION pg_stat_statements")
        return self.server.dsn(database)

    @property
    def server_pid(self) -> int:
        return int((self.server.directory / "data" / "postmaster.pid").read_text().splitlines()[0])


@contextmanager
def started(options: Options) -> Iterator[Bench]:
    """A bench on a server of its own, which goes with it."""
    with tempfile.TemporaryDirectory(prefix="zart-bench-", ignore_cleanup_errors=True) as directory:
        Path(directory).chmod(0o755)  # as root the server runs as another user
        running = embedded.start(Path(directory), settings=SETTINGS)
        try:
            yield Bench(running, options)
        finally:
            running.stop()


def machine() -> dict[str, Any]:
    return {
        "system": platform.platform(),
        "processors": os.cpu_count(),
        "load_at_the_end": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def note(text: str) -> None:
    """Tell whoever waits how far it is."""
    print(text, file=sys.stderr, flush=True)
