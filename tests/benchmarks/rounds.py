"""What the sides of a comparison share: a process that answers each request with a line of JSON.

Only the standard library is imported here: the peers' sides run in environments of their own. A round is a closed
loop: `concurrency` callers, each of which runs one execution after another, from its start to its result, until
`executions` are done. The clock runs from the first start to the last result.
"""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

STEPS = 5
"""No-op steps in each execution."""


async def closed_loop(
    execute: Callable[[int], Awaitable[object]], concurrency: int, executions: int
) -> float:
    """The seconds that `executions` calls of `execute` took, `concurrency` at a time."""

    async def checked(number: int) -> None:
        check(await execute(number), number)

    return await side_by_side(range(executions), concurrency, checked)


async def side_by_side(items: Iterable[T], concurrency: int, call: Callable[[T], Awaitable[None]]) -> float:
    """The seconds that calls with each of the items took, `concurrency` at a time."""
    left = iter(items)

    async def caller() -> None:
        for item in left:
            await call(item)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as callers:
        for _ in range(concurrency):
            callers.create_task(caller())
    return time.perf_counter() - began


def closed_loop_of_threads(execute: Callable[[int], object], concurrency: int, executions: int) -> float:
    """The same with a thread for each caller, for code that is not asynchronous."""
    numbers = itertools.count()  # one call of next() is atomic

    def caller(_: int, failed: list[BaseException]) -> None:
        while (number := next(numbers)) < executions and not failed:
            check(execute(number), number)

    return in_threads(concurrency, caller)


def in_threads(count: int, work: Callable[[int, list[BaseException]], None]) -> float:
    """The seconds until `count` threads had done their work, which gets its number and what others failed of."""
    errors: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number, errors)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - began
    if errors:
        raise errors[0]
    return took


def check(result: object, number: int) -> None:
    """Every execution's result is looked at: a fast wrong answer is worth nothing."""
    if result != number + STEPS:
        raise AssertionError(f"execution {number} gave {result!r}, not {number + STEPS}")


def answer(**fields: Any) -> None:
    """Send one line to the process that asked."""
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def requests() -> Iterator[dict[str, Any]]:
    """What the other process asks, until it asks no more."""
    while line := sys.stdin.readline():
        yield json.loads(line)


@contextlib.contextmanager
def helper(
    module: str, *arguments: str, ready: bool = True, **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """A process that a side needs beside itself, such as a worker: it is there until the block ends.

    `module` is run by the same interpreter. With `ready`, the block begins when it has written a line. Its standard
    input ends with this process, so that it can end then too.
    """
    command = [sys.executable, "-m", module, *arguments]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | environment
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        if ready and not process.stdout.readline():
            raise RuntimeError(f"{module} ended with {process.wait()}; see its output above")
        yield process
    finally:
        process.stdin.close()
        end(process, within=5)
        process.stdout.close()


def end(process: "subprocess.Popen[str]", *, within: float) -> None:
    """Wait so many seconds for it to end, then end it."""
    try:
        process.wait(timeout=within)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Side:
    """A process that measures one product: started once, warmed up once, asked for many rounds.

    It has a process group of its own, of which nothing is left when it is closed. With `halts` the group is stopped
    (SIGSTOP) except while it is asked for something. It is in this process's session: should this process be killed,
    the system ends a stopped group of its session. With `prepares` the side is told before a round what will be asked,
    and after it that it may rest.
    """

    def __init__(
        self,
        python: str,
        module: str,
        arguments: Sequence[str],
        *,
        environment: dict[str, str],
        halts: bool = False,
        prepares: bool = False,
    ) -> None:
        self._module = module
        self._halts = halts
        self._prepares = prepares
        self._process = subprocess.Popen(
            [python, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            process_group=0,
        )
        try:
            self.versions: dict[str, str] = self._read()["versions"]
        except BaseException:
            self.close(within=0)
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, **request: Any) -> dict[str, Any]:
        """Its answer. Raises RuntimeError when it has none: it has ended."""
        assert self._process.stdin is not None
        if self._halts:
            self._signal(signal.SIGCONT)
        try:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(json.dumps(request) + "\n")
                self._process.stdin.flush()
            return self._read()
        finally:
            if self._halts:
                self._signal(signal.SIGSTOP)

    def _signal(self, number: signal.Signals) -> None:
        """To all of its group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    @contextlib.contextmanager
    def prepared(self, mode: str, concurrency: int, executions: int = 0) -> Iterator[None]:
        """Within the block a round of this kind may be asked for, with whatever it needs already there and warm."""
        if not self._prepares:
            yield
            return
        self.ask(do="prepare", mode=mode, concurrency=concurrency, executions=executions)
        yield
        self.ask(do="rest")

    def round(self, mode: str, concurrency: int, executions: int) -> float:
        """Seconds that a round took."""
        seconds: float = self.ask(do="round", mode=mode, concurrency=concurrency, executions=executions)[
            "seconds"
        ]
        return seconds

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._module} ended with {self._process.wait()}; see its output above")
        fields: dict[str, Any] = json.loads(line)
        return fields

    def close(self, *, within: float = 15) -> None:
        """It ends when its input does."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._signal(signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            end(self._process, within=within)
        finally:
            self._signal(signal.SIGKILL)  # to what it has left behind
            self._process.stdout.close()
