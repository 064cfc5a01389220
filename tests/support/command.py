"""The `zart` command as a process."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ZART = [sys.executable, "-m", "zart_cli"]
PATIENCE_SECONDS = 60.0


def hear_ctrl_c() -> None:
    """For a process that is begun: who runs the tests in the background may not hear it, and would hand that down."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Running:
    """A command that runs; its stdout and stderr go to one file."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def output(self) -> str:
        return self._log.read_text(errors="replace")

    def until(self, text: str) -> str:
        """Wait until it has printed `text`; returns all output so far."""

        def printed() -> bool:
            assert self.process.poll() is None or text in self.output, (
                f"it ended without {text!r}: {self.output}"
            )
            return text in self.output

        until(printed, lambda: f"{text!r} in {self.output}")
        return self.output

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_SECONDS)


class Command:
    """`zart`, in a directory and against a database; `dsn` is given by ZART_DATABASE_URL unless it is None."""

    def __init__(self, directory: Path, dsn: str | None) -> None:
        self.directory = directory
        self._environment = {
            name: value
            for name, value in os.environ.items()
            if name not in ("DATABASE_URL", "ZART_DATABASE_URL", "ZART_APP", "ZART_DIRECT_URL")
        } | {"PYTHONIOENCODING": "utf-8", "PYTHONUNBUFFERED": "1"}
        if dsn is not None:
            self._environment["ZART_DATABASE_URL"] = dsn

    def __call__(
        self, *arguments: str, input: str | None = None, directory: Path | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end."""
        return subprocess.run(
            [*ZART, *arguments],
            cwd=directory or self.directory,
            env=self._environment,
            input=input,
            capture_output=True,
            encoding="utf-8",
            timeout=PATIENCE_SECONDS,
            check=False,
        )

    @contextmanager
    def running(self, *arguments: str) -> Iterator[Running]:
        """Run a command beside the test; it is killed at the end, with its children, if it still runs."""
        log = self.directory / f"zart-{arguments[0]}-{time.monotonic_ns()}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*ZART, *arguments],
                cwd=self.directory,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=hear_ctrl_c,  # noqa: PLW1509 (no threads here)
            )
        try:
            yield Running(process, log)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def until(happened: Callable[[], bool], told: Callable[[], str], seconds: float = PATIENCE_SECONDS) -> None:
    """Wait for a state; `told` says what was there instead."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain: {told()}"
        time.sleep(0.02)
