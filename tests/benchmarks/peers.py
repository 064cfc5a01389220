"""Whom Zart is compared with: where each is installed, how its side is started, and how it was set up.

Each peer comes from its package, in an environment of its own under build/bench/. One that cannot be installed is left
out, and the table says so.
"""

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import msgspec

from tests.benchmarks.bench import OUTPUT, ROOT, Bench, note
from tests.benchmarks.rounds import Side
from zart._postgres import server_binaries


class Missing(Exception):
    """A peer cannot be installed here."""


class Peer(msgspec.Struct, kw_only=True, frozen=True):
    """A product that is installed for the comparison."""

    name: str
    packages: tuple[str, ...]
    """Of Python's index, pinned."""
    node_packages: tuple[str, ...] = ()
    """Of npm's, pinned."""
    setup: str
    """How it is set up, in its fairest way."""
    modes: tuple[tuple[str, str, str], ...]
    """For rounds: which of its sides, what that is asked for, and what it is called in the table."""
    not_alone: tuple[str, ...] = ()
    """Modes that mean nothing with one caller."""
    latencies: tuple[tuple[str, str], ...]
    """For latencies: which of its sides, and what it is called in the table."""
    halted: tuple[str, ...] = ()
    """Sides that are stopped while others are measured, since they poll."""
    prepares: bool = False
    """Whether its side starts its workers, and warms them up, before each round."""

    @property
    def directory(self) -> Path:
        return OUTPUT / f"{self.name.lower()}-venv"

    @property
    def python(self) -> Path:
        return self.directory / "bin" / "python"


ZART_SETUP: Final = (
    "one worker process with its default settings, on uvloop; worker and client in one process (together), or in two "
    "(apart)"
)
BARE_SETUP: Final = (
    "the rows that Zart writes (executions, tasks, journal, ends) into its own tables, by one statement over unnest "
    "arrays and one commit for up to 1,000 rows, prepared, on one connection or two; no engine, and no claim"
)
_DBOS: Final = Peer(
    name="DBOS",
    packages=("dbos==3.4.0", "uvloop==0.23.0"),
    setup="one process, on uvloop, system_database_url, log level ERROR, defaults otherwise, warmed. Coroutines and "
    "threads: workflows run in the caller, without a queue. Queue: enqueued by the same process, or by a DBOSClient "
    "(apart), the queue and the results polled every 0.05 s",
    modes=(
        ("in-process", "coroutines", "coroutines"),
        ("in-process", "threads", "threads"),
        ("by-queue", "queue", "queue"),
    ),
    latencies=(("in-process", "in one process, coroutines"), ("apart", "client and worker apart, queue")),
    halted=("by-queue", "apart"),
)
_ABSURD: Final = Peer(
    name="Absurd",
    packages=("absurd-sdk==0.5.1", "absurdctl==0.5.1", "uvloop==0.23.0"),
    setup="tables by absurdctl init; a client, and 1, 2 or 4 worker processes that each work one task at a time "
    "(claiming 10), or one asynchronous one that works as many at a time as there are callers; an empty queue is "
    "looked at every 0.01 s, a result every 0.005 s. More than one caller means a backlog: all executions of the round "
    "are spawned within the clock, the workers have them all to choose from, then each result is awaited",
    modes=(
        ("workers", "1", "1 process"),
        ("workers", "2", "2 processes"),
        ("workers", "4", "4 processes"),
        ("workers", "async", "1 asynchronous process"),
    ),
    not_alone=("2", "4", "async"),
    prepares=True,
    latencies=(("workers", "client and worker apart"),),
)
_RESTATE: Final = Peer(
    name="Restate",
    packages=("restate-sdk[serde]==1.3.0", "hypercorn==0.18.0", "uvloop==0.23.0"),
    node_packages=("@restatedev/restate-server@1.7.12",),
    setup="restate-server with its defaults, which keeps a log of its own in RocksDB, synced to the disk: no "
    "PostgreSQL; handlers served by hypercorn on uvloop in one process, called over HTTP/2 streams; the client calls "
    "the ingress over kept HTTP connections. Telemetry off, log level error",
    modes=(("ingress", "ingress", "ingress"),),
    latencies=(("ingress", "client, server and handlers apart"),),
)
PEERS: Final = {peer.name: peer for peer in (_DBOS, _ABSURD, _RESTATE)}


def installed(peer: Peer) -> Path:
    """Its Python interpreter. Installs it the first time. Raises Missing."""
    marker = peer.directory / "installed"
    wanted = "\n".join((*peer.packages, *peer.node_packages, sys.version))
    if marker.exists() and marker.read_text() == wanted:
        return peer.python
    note(f"installing {peer.name} into {peer.directory.relative_to(ROOT)}")
    try:
        venv.create(peer.directory, with_pip=True, clear=True)
        _run(
            [
                str(peer.python),
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                *peer.packages,
            ]
        )
        if peer.node_packages:
            npm = shutil.which("npm")
            if npm is None:
                raise Missing("npm is not installed")
            _run(
                [
                    npm,
                    "install",
                    "--silent",
                    "--no-save",
                    "--prefix",
                    str(peer.directory),
                    *peer.node_packages,
                ]
            )
    except (OSError, subprocess.SubprocessError) as error:
        output = getattr(error, "stdout", None) or str(error)
        raise Missing(f"cannot be installed: {output.strip().splitlines()[-1]}") from error
    marker.write_text(wanted)
    return peer.python


def _path_with_psql() -> str:
    """What `absurdctl` calls is where the server's programs are."""
    return f"{server_binaries.find_binaries(None)}{os.pathsep}{os.environ['PATH']}"


def _run(command: Sequence[str]) -> None:
    subprocess.run(
        command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600
    )


class Sides:
    """The processes of one case, by product and way (`together`, `by-queue`), each started when first asked for."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._sides: dict[tuple[str, str, str], Side] = {}
        self._databases: dict[tuple[str, str, str], str] = {}

    def products(self) -> list[str]:
        """Zart, and each peer that was asked for and can be installed."""
        found = ["Zart"]
        for name in self._bench.options.peers:
            if name in PEERS and name not in self._bench.left_out:
                try:
                    installed(PEERS[name])
                except Missing as missing:
                    note(f"{name} is left out: {missing}")
                    self._bench.left_out[name] = str(missing)
                else:
                    found.append(name)
        return found

    def get(self, product: str, way: str, own: str = "") -> Side:
        """`own` names one that is shared with nobody. Raises RuntimeError when it does not start."""
        key = (product, way, own)
        if key not in self._sides:
            self._sides[key] = self._start(product, way, self.dsn(*key))
        return self._sides[key]

    def dsn(self, product: str, way: str, own: str = "") -> str:
        """The database of this side, made when it is first asked for."""
        key = (product, way, own)
        if key not in self._databases:
            self._databases[key] = self._bench.database(product.lower())
        return self._databases[key]

    def _start(self, product: str, way: str, dsn: str) -> Side:
        peer = PEERS.get(product)
        python = Path(sys.executable) if peer is None else installed(peer)
        module = "bare" if product == "PostgreSQL" else f"with_{product.lower()}"
        side = Side(
            str(python),
            f"tests.benchmarks.sides.{module}",
            [way],
            halts=peer is not None and way in peer.halted,
            prepares=product == "PostgreSQL" or (peer is not None and peer.prepares),
            environment=os.environ
            | {"BENCHMARK_DSN": dsn, "PYTHONPATH": str(ROOT), "PATH": _path_with_psql()},
        )
        self._bench.versions[product] = side.versions
        self._bench.setups[product] = (
            peer.setup if peer is not None else ZART_SETUP if product == "Zart" else BARE_SETUP
        )
        return side

    def close(self, product: str, way: str, own: str = "") -> None:
        """This one is needed no longer."""
        side = self._sides.pop((product, way, own), None)
        if side is not None:
            side.close()

    def close_all(self) -> None:
        with ExitStack() as stack:
            for side in self._sides.values():
                stack.callback(side.close)
            self._sides.clear()


@contextmanager
def sides_of(bench: Bench) -> Iterator[Sides]:
    """Whatever happens, none of them is left."""
    sides = Sides(bench)
    try:
        yield sides
    finally:
        sides.close_all()
