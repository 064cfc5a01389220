"""The benchmark runs, checks what it measures, and says how it was measured."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tests.benchmarks.key_figures import chosen
from tests.benchmarks.report import Report

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.not_in(
    "encrypted", reason="the benchmark runs in environments of its own, and measures without keys"
)
def test_zarts_part_of_the_benchmark(tmp_path: Path) -> None:
    """One short round of throughput, latencies and the raw ceiling: every figure is there, with what matters for it."""
    output = tmp_path / "bench.json"
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "tests.benchmarks", "--case", "a", "--case", "b", "--case", "k"),
            *("--peers", "", "--scale", "0.02", "--callers", "1,100", "--output", str(output)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    report = msgspec.json.decode(output.read_bytes(), type=Report)
    steps = [figure for figure in report.figures if figure.quantity == "steps"]
    ceiling = ["batches of 1,000 rows, 1 connection", "batches of 1,000 rows, 2 connections"]
    callers = ["1 caller", "100 callers", "100 at a time, all started by one call"]
    assert [figure.setup for figure in steps if figure.case == "a"] == [*callers, *ceiling]
    assert [figure.setup for figure in steps if figure.case == "k"] == ceiling
    assert all(figure.median > 0 for figure in steps)
    latencies = [(figure.setup, figure.quantity) for figure in report.figures if figure.case == "b"]
    for way in ("worker and client in one process", "worker and client apart"):
        assert sorted(quantity for setup, quantity in latencies if setup == way) == [
            "event to resumed, p50",
            "start to result of five steps, p50",
            "start to result of five steps, p99",
            "step to step, p50",
        ]
    assert report.server["fsync"] == report.server["synchronous_commit"] == "on"
    assert set(report.setups) == set(report.versions) == {"Zart", "PostgreSQL"}
    assert [target.wanted for target in report.targets] == [0.1, 0.5]
    assert "## b: latencies on an idle system" in ran.stdout
    assert [row.told for row in chosen(report.figures)] == [
        "steps, 1 caller",
        "steps, 100 callers",
        "steps, in whatever way it did best",
        "processor time of an execution of five steps, 1 caller",
        "processor time of an execution of five steps, 100 callers",
        "start to result of five steps, p50",
        "start to result of five steps, p99",
    ]
