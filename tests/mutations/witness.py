"""A plugin for the pytest that runs on a broken copy: sees to it that the copy is what is tested, and writes down what
became of each test, line by line, so that it is known even of a run that was ended from outside."""

import json
import os
from pathlib import Path

import pytest

import zart

VERDICTS = "ZART_MUTATION_VERDICTS"
_prepared: dict[str, float] = {}
"""Seconds that it took to set a test up, by its id."""


def pytest_configure(config: pytest.Config) -> None:
    imported = Path(zart.__file__).resolve().parents[1]
    if imported != config.rootpath.resolve():
        raise pytest.UsageError(f"zart was imported from {imported}, not from {config.rootpath}")


def pytest_runtest_logstart(nodeid: str) -> None:
    _note(nodeid, "began", "", 0.0)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "setup":
        _prepared[report.nodeid] = report.duration
    if report.failed:
        _note(report.nodeid, "failed", _reason(report), report.duration)
    elif report.skipped:
        _note(report.nodeid, "skipped", "", report.duration)
    elif report.when == "call":
        # What the test was given may have taken longer to make than the test itself.
        _note(report.nodeid, "passed", "", _prepared[report.nodeid] + report.duration)


def _reason(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    lines = str(crash.message if crash is not None else report.longrepr).strip().splitlines()
    return lines[0] if lines else ""


def _note(nodeid: str, outcome: str, reason: str, seconds: float) -> None:
    with Path(os.environ[VERDICTS]).open("a") as file:
        file.write(json.dumps([nodeid, outcome, reason, seconds]) + "\n")
