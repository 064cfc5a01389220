"""Runs tests on a copy of the tree: the copy's `zart`, never the one that is installed.

A copy has what the tests need and nothing else. All runs share one PostgreSQL server, which outlives a run that has to
be ended; each run migrates databases of its own, so a broken migration is as private as a broken module.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.mutations.witness import VERDICTS
from tests.support.server import Server

ROOT = Path(__file__).parents[2]
_NEEDED = ("zart", "zart_cli", "migrations", "tests", "pyproject.toml")
_PATIENCE = 60
"""Seconds after which a test that hangs has failed."""

Outcome = Literal["passed", "failed", "skipped", "missing"]


@dataclass(frozen=True)
class Verdict:
    outcome: Outcome
    reason: str = ""
    seconds: float = 0


class Unjudged(Exception):
    """The run says nothing about the tests; the text is pytest's."""


def copy_tree(source: Path, target: Path) -> Path:
    """A private copy of what the tests need."""
    target.mkdir(parents=True)
    for name in _NEEDED:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source / name, target / name)
    return target


def run_tests(
    tree: Path, tests: Sequence[str], server: Server, *, patience: float = _PATIENCE
) -> dict[str, Verdict]:
    """What becomes of each of these tests in this tree, which hang after `patience` seconds. Raises Unjudged.

    A test that hangs takes its process with it; those behind it get another one.
    """
    verdicts = tree / "verdicts.jsonl"
    noted: dict[str, Verdict] = {}
    rest = list(tests)
    while rest:
        output = _run(tree, rest, server, verdicts, patience)
        before, noted = noted, _read(verdicts)
        rest = [test for test in rest if _verdict(noted, test).outcome == "missing"]
        if rest and len(noted) == len(before):
            raise Unjudged(output)
    return {test: _verdict(noted, test) for test in tests}


def _run(tree: Path, tests: Sequence[str], server: Server, verdicts: Path, patience: float) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ZART_")}
    environment |= {
        "PYTHONPATH": str(tree),
        "PYTHONDONTWRITEBYTECODE": "1",
        "ZART_TEST_DSN": server.dsn,
        "ZART_TEST_LOG": str(server.log or ""),
        VERDICTS: str(verdicts),
    }
    options = ["-q", "--tb=short", f"--rootdir={tree}", f"--timeout={patience}", "--timeout-method=thread"]
    plugins = ["-p", "no:cacheprovider", "-p", "tests.mutations.witness"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", *options, *plugins, *tests],
        cwd=tree,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=patience * (len(tests) + 1))
    except subprocess.TimeoutExpired:
        return "it did not end"
    finally:
        _end(process)
    return output


def _end(process: "subprocess.Popen[str]") -> None:
    """Ends the run and whatever it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _read(verdicts: Path) -> dict[str, Verdict]:
    """The last word on each test; one that began and was not heard of again has failed."""
    noted: dict[str, Verdict] = {}
    for line in verdicts.read_text().splitlines() if verdicts.exists() else ():
        nodeid, outcome, reason, seconds = json.loads(line)
        if outcome == "began":
            outcome, reason = "failed", "it did not end"
        noted[nodeid] = Verdict(outcome, reason, seconds)
    return noted


def _verdict(noted: dict[str, Verdict], test: str) -> Verdict:
    """Of a test, or of all its parameters together: failed if one has."""
    of_it = [verdict for nodeid, verdict in noted.items() if nodeid == test or nodeid.startswith(f"{test}[")]
    for outcome in ("failed", "passed", "skipped"):
        for verdict in of_it:
            if verdict.outcome == outcome:
                return Verdict(verdict.outcome, verdict.reason, max(one.seconds for one in of_it))
    return Verdict("missing")
