"""Worker processes that start in milliseconds: forked from one that has imported everything, and runs nothing.

That one, the nursery, has no thread and no event loop, so a child of it is as good as a fresh process. It reads
orders as lines of JSON, and says as lines of JSON what becomes of its children. It ends, and they with it, when its
input does.
"""

import asyncio
import contextlib
import gc
import json
import logging
import os
import select
import signal
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.crashes import faults

ROOT = Path(__file__).parents[2]


class Life:
    """A worker process, as the explorer sees it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.exit_code: int | None = None
        """Once it has ended; the negative number of the signal that ended it."""
        self.standing = False
        """Whether it has been stopped by SIGSTOP."""
        self._changed = asyncio.Event()

    def hear(self, status: int) -> None:
        if os.WIFSTOPPED(status):
            self.standing = True
        else:
            self.exit_code = os.waitstatus_to_exitcode(status)
        self._changed.set()

    def send(self, number: signal.Signals) -> None:
        if self.exit_code is None:
            if number == signal.SIGCONT:
                self.standing = False
            with contextlib.suppress(
                ProcessLookupError
            ):  # it has just ended, and the news of that is on its way
                os.kill(self.pid, number)

    async def change(self) -> None:
        """Until it has ended or stands still."""
        while self.exit_code is None and not self.standing:
            self._changed.clear()
            await self._changed.wait()

    async def end(self) -> int:
        while self.exit_code is None:
            self._changed.clear()
            await self._changed.wait()
        return self.exit_code


class Nursery:
    """The explorer's side."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._lives: dict[int, Life] = {}
        self._born: dict[int, asyncio.Future[Life]] = {}
        self._number = 0
        self._gone: RuntimeError | None = None

    async def __aenter__(self) -> Self:
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "tests.crashes.nursery",
                cwd=ROOT,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()
        await self._reading

    async def fork(
        self, dsn: str, directory: Path, planned: faults.Faults, *, trace: Path, log: Path, keeps: bool
    ) -> Life:
        """A worker of the whole corpus; its steps note their effects in `directory`.

        Raises RuntimeError when the nursery has ended.
        """
        if self._gone is not None:
            raise self._gone
        self._number += 1
        order = {
            "number": self._number,
            "dsn": dsn,
            "directory": str(directory),
            "faults": faults.told(planned),
            "trace": str(trace),
            "log": str(log),
            "keeps": keeps,
        }
        born = self._born[self._number] = asyncio.get_running_loop().create_future()
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        try:
            return await asyncio.shield(born)
        except asyncio.CancelledError:
            born.add_done_callback(lambda child: child.result().send(signal.SIGKILL))  # nobody knows of it
            raise

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            told: dict[str, int] = json.loads(line)
            if "number" in told:
                life = self._lives[told["pid"]] = Life(told["pid"])
                self._born.pop(told["number"]).set_result(life)
            else:
                life = self._lives[told["pid"]]
                life.hear(told["status"])
                if life.exit_code is not None:
                    del self._lives[told["pid"]]
        self._gone = RuntimeError(f"the nursery has ended: see {self._log}")
        for born in self._born.values():
            born.set_exception(self._gone)
        for life in self._lives.values():  # nobody tells of them any more
            life.hear(signal.SIGKILL)


# ---------------------------------------------------------------- the nursery's own process


def main() -> None:
    from tests.crashes.corpus import registry

    registry.freeze()
    gc.freeze()
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    signal.set_wakeup_fd(writes)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(
        signal.SIGTERM, lambda *_: os._exit(0)
    )  # for a child that is stopped before its worker listens
    children: set[int] = set()
    waiting = b""
    while True:
        ready, _, _ = select.select([0, reads], [], [])
        if 0 in ready:
            received = os.read(0, 65536)
            if not received:
                break
            *orders, waiting = (waiting + received).split(b"\n")
            for order in orders:
                children.add(_fork(json.loads(order), (reads, writes)))
        if reads in ready:
            os.read(reads, 4096)
            _report(children)
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _report(children: set[int]) -> None:
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
        if not pid:
            return
        if not os.WIFSTOPPED(status):
            children.discard(pid)
        _say(pid=pid, status=status)


def _say(**told: int) -> None:
    os.write(1, json.dumps(told).encode() + b"\n")


def _fork(order: dict[str, Any], inherited: tuple[int, int]) -> int:
    # A child of Python forgets the signals that it got before it had come to itself: the system keeps this one so long.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        _say(number=order["number"], pid=pid)
        return pid
    code = 70
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        for descriptor in inherited:
            os.close(descriptor)
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for descriptor, standard in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(descriptor, standard)
        _work(order)
        code = 0
    finally:
        sys.stderr.flush()
        os._exit(code)


def _work(order: dict[str, Any]) -> None:
    from tests.crashes.corpus import registry
    from zart import Worker, WorkerConfig
    from zart._engine import points

    logging.basicConfig(level=logging.INFO, format="%(relativeCreated)d %(name)s %(levelname)s %(message)s")
    os.environ["ZART_TEST_PLACE"] = order["directory"]
    saboteur = faults.Saboteur(faults.parse(order["faults"]), Path(order["trace"]))
    points.listener = saboteur
    config = WorkerConfig(
        poll_interval="20ms",
        heartbeat_interval="50ms",
        orphan_timeout="60s",
        shutdown_timeout="3s",
        max_parked_bodies=1000 if order["keeps"] else 0,
    )

    async def work() -> None:
        worker = saboteur.worker = Worker(order["dsn"], registry, config)
        loop = saboteur.loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, worker.stop)
        await worker.run()

    try:
        asyncio.run(work())
    except Exception:
        logging.getLogger("zart.crashes").exception("the worker has ended with an error")
        raise


if __name__ == "__main__":
    main()
