"""The figures as JSON, as a table, and as the page docs/reference/benchmarks.md."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import psycopg

from tests.benchmarks.bench import OUTPUT, ROOT, Bench, Case, machine
from tests.benchmarks.figures import Figure, Target, to_json

PAGE: Final = ROOT / "docs" / "reference" / "benchmarks.md"
_SETTINGS: Final = ("server_version", "fsync", "synchronous_commit", "shared_buffers", "max_connections", "max_wal_size")


class CaseTold(msgspec.Struct, kw_only=True):
    letter: str
    title: str
    told: str


class Report(msgspec.Struct, kw_only=True):
    """One run of the benchmark."""

    scale: float
    machine: dict[str, Any]
    server: dict[str, str]
    setups: dict[str, str]
    versions: dict[str, dict[str, str]]
    cases: list[CaseTold]
    figures: list[Figure]
    targets: list[Target]


def described(bench: Bench, cases: Sequence[Case]) -> Report:
    with psycopg.connect(bench.server.dsn()) as connection:
        shown = {
            name: str((connection.execute("SELECT current_setting(%s)", (name,)).fetchone() or ("",))[0])
            for name in _SETTINGS
        }
    return Report(
        scale=bench.options.scale,
        machine=machine(),
        server=shown,
        setups=bench.setups,
        versions=bench.versions,
        cases=[CaseTold(letter=case.letter, title=case.title, told=case.told) for case in cases],
        figures=bench.figures,
        targets=bench.targets,
    )


def write(report: Report, path: Path) -> None:
    path.write_bytes(to_json(report) + b"\n")


def show(report: Report) -> None:
    """Print it for whoever ran it."""
    print(rendered(report))


def document() -> None:
    """The page of both runs, from the files that they have written."""
    parts = [
        rendered(msgspec.json.decode((OUTPUT / name).read_bytes(), type=Report))
        for name in ("bench.json", "bench-long.json")
        if (OUTPUT / name).exists()
    ]
    PAGE.write_text("# Benchmarks\n\nWritten by `python -m tests.benchmarks --document`.\n\n" + "\n".join(parts))


def rendered(report: Report) -> str:
    """Markdown that is also fit to be read in a terminal."""
    raise NotImplementedError
