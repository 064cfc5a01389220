"""The benchmark runs, checks what it measures, and says how it was measured."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_zarts_side_of_the_benchmark(tmp_path: Path) -> None:
    """One short round of each of Zart's cases: every figure is there, with the settings that matter."""
    output = tmp_path / "quick.json"
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "tests.benchmarks.quick"),
            *("--zart-only", "--rounds", "1", "--seconds", "0.1", "--output", str(output)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    report = json.loads(output.read_text())
    assert [(case["mode"], case["callers"]) for case in report["cases"]] == [
        ("coroutines", 1),
        ("coroutines", 100),
        ("start_many", 100),
    ]
    assert all(case["steps_per_second"]["median"] > 0 for case in report["cases"])
    assert report["server"]["fsync"] == report["server"]["synchronous_commit"] == "on"
    assert "steps/s" in ran.stdout
