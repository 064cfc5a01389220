"""The benchmark runs, checks what it measures, and says how it was measured."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tests.benchmarks.report import Report

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_zarts_side_of_the_benchmark(tmp_path: Path) -> None:
    """One short round of Zart and of the raw ceiling: every figure is there, with the settings that matter."""
    output = tmp_path / "bench.json"
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "tests.benchmarks", "--case", "a", "--peers", ""),
            *("--scale", "0.02", "--callers", "1,100", "--output", str(output)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    report = msgspec.json.decode(output.read_bytes(), type=Report)
    steps = {figure.setup: figure for figure in report.figures if figure.quantity == "steps"}
    assert list(steps) == [
        "1 caller",
        "100 callers",
        "100 at a time, all started by one call",
        "batches of 1,000 rows, 1 connection",
        "batches of 1,000 rows, 2 connections",
    ]
    assert all(figure.median > 0 for figure in steps.values())
    assert report.server["fsync"] == report.server["synchronous_commit"] == "on"
    assert set(report.setups) == set(report.versions) == {"Zart", "PostgreSQL"}
    assert [target.wanted for target in report.targets] == [0.1, 0.5]
    assert "steps/s" in ran.stdout
