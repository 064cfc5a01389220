"""Real `zart worker` processes, to be stopped, continued and killed, and always cleaned up.

    async with Crew(dsn, directory) as crew:
        worker = await crew.worker("tests.acceptance.apps.crashing")
        worker.kill()

They share a directory with the test: their steps append to a list of effects there (`crew.effects()`), and wait for
gates that the test opens (`crew.open("gate")`).
"""

import asyncio
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.acceptance.apps.place import Effect, effects
from tests.support import modes
from tests.support.running import until

ROOT = Path(__file__).parents[2]
QUICK = {
    "orphan_timeout": "1500ms",
    "heartbeat_interval": "150ms",
    "shutdown_timeout": "2s",
    "poll_interval": "100ms",
}
_STARTS_WITHIN = 60.0
"""Seconds: a machine that does much else takes its time to import everything."""


def _is_inherited(variable: str) -> bool:
    """Nothing that would change a worker, but the mode in which the tests run."""
    return not variable.startswith("ZART_") or variable in (
        modes.VARIABLE,
        modes.DIFFERENCES,
        "ZART_PREPARED",
        "ZART_PAYLOAD_CODEC",
    )


class WorkerProcess:
    """A `zart worker` process and its log."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self._process = process
        self._log = log
        self.pid = process.pid

    @property
    def log(self) -> str:
        """All that it has said so far."""
        return self._log.read_text(errors="replace")

    @property
    def exit_code(self) -> int | None:
        """None while it runs; the negative number of a signal that ended it."""
        return self._process.poll()

    @property
    def worker_ids(self) -> list[int]:
        """Its registrations, the newest last."""
        return [int(number) for number in re.findall(r"worker (\d+) runs", self.log)]

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self._process.kill()
        self._process.wait(10)

    async def until_logged(self, text: str, *, times: int = 1, within: float = 15) -> None:
        """Until its log holds what this pattern means, so many times."""

        def said() -> bool:
            ended = self.exit_code is not None
            if len(re.findall(text, self.log)) >= times:
                return True
            assert not ended, f"process {self.pid} has ended with exit code {self.exit_code}"
            return False

        try:
            await until(said, f"{text!r} in the log of worker process {self.pid}", within=within)
        except AssertionError as error:
            raise AssertionError(f"{error}; it holds\n{self.log}") from None

    async def until_running(self) -> None:
        """Until it has registered and looks for work."""
        await self.until_logged(r"worker \d+ runs", within=_STARTS_WITHIN)

    async def until_ended(self, *, within: float = 15) -> int:
        """Until it has ended; its exit code."""
        await until(lambda: self.exit_code is not None, f"the end of process {self.pid}", within=within)
        assert self.exit_code is not None
        return self.exit_code


class Crew:
    """The worker processes of one test. Their logs are printed at the end, unless it is `quiet`."""

    def __init__(self, dsn: str, directory: Path, *, quiet: bool = False) -> None:
        self.dsn = dsn
        self.directory = directory
        self.workers: list[WorkerProcess] = []
        self._quiet = quiet

    def begin(
        self,
        app: str,
        *,
        dsn: str | None = None,
        environment: dict[str, str] | None = None,
        **options: str,
    ) -> WorkerProcess:
        """Start a worker of `app`, quick to notice things unless `options` (WorkerConfig's names) say otherwise.

        `dsn` is another way to the crew's database, such as a proxy.
        """
        log = self.directory / f"worker-{len(self.workers) + 1}.log"
        arguments = [
            part
            for name, value in (QUICK | options).items()
            for part in (f"--{name.replace('_', '-')}", value)
        ]
        inherited = {name: value for name, value in os.environ.items() if _is_inherited(name)}
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "zart_cli",
                    "worker",
                    "--app",
                    app,
                    "--dsn",
                    dsn or self.dsn,
                    *arguments,
                ],
                cwd=ROOT,
                env=inherited | {"ZART_TEST_PLACE": str(self.directory)} | (environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        worker = WorkerProcess(process, log)
        self.workers.append(worker)
        return worker

    async def worker(
        self, app: str, *, environment: dict[str, str] | None = None, **options: str
    ) -> WorkerProcess:
        """A worker that has registered and looks for work; see `begin`."""
        worker = self.begin(app, environment=environment, **options)
        await worker.until_running()
        return worker

    async def pair(self, app: str, **options: str) -> tuple[WorkerProcess, WorkerProcess]:
        """Two of them, started side by side."""
        first, second = self.begin(app, **options), self.begin(app, **options)
        await asyncio.gather(*(worker.until_running() for worker in (first, second)))
        return first, second

    # ------------------------------------------------------------ what steps do

    def effects(self, execution: str | None = None) -> list[Effect]:
        """What steps did, of one execution or all, in the order in which it happened."""
        return [
            effect for effect in effects(self.directory) if execution is None or effect.execution == execution
        ]

    def did(self, execution: str) -> list[tuple[str, int]]:
        """What an execution did, and in which process."""
        return [(effect.what, effect.pid) for effect in self.effects(execution)]

    async def until_done(self, execution: str, what: str, *, times: int = 1, within: float = 15) -> Effect:
        """Until a step of this execution did this so many times; the last of them."""

        def times_done() -> list[Effect]:
            done = [effect for effect in self.effects(execution) if effect.what == what]
            return done if len(done) >= times else []

        return (await until(times_done, f"effect {what!r} of {execution!r}, {times} times", within=within))[
            -1
        ]

    def open(self, gate: str) -> None:
        """Let steps pass that wait for this gate."""
        (self.directory / f"{gate}.open").touch()

    # ------------------------------------------------------------ life

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self.workers:
            worker.kill()  # ends a stopped process, too
        if self._quiet:
            return
        for number, worker in enumerate(self.workers, start=1):
            print(f"---- worker {number}, process {worker.pid}, exit code {worker.exit_code}\n{worker.log}")
