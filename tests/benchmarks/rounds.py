"""What both sides of a comparison share: a process that answers each request for a round with a line of JSON.

Only the standard library is imported here: the other product's side runs in an environment of its own. A
round is a closed loop: `concurrency` callers, each of which runs one execution after another, from its
start to its result, until `executions` are done. The clock runs from the first start to the last result.
"""

import asyncio
import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

STEPS = 5
"""No-op steps in each execution."""


async def closed_loop(
    execute: Callable[[int], Awaitable[object]], concurrency: int, executions: int
) -> float:
    """The seconds that `executions` calls of `execute` took, `concurrency` at a time."""
    numbers = iter(range(executions))

    async def caller() -> None:
        for number in numbers:
            check(await execute(number), number)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as callers:
        for _ in range(concurrency):
            callers.create_task(caller())
    return time.perf_counter() - began


def closed_loop_of_threads(execute: Callable[[int], object], concurrency: int, executions: int) -> float:
    """The same with a thread for each caller, for code that is not asynchronous."""
    numbers = itertools.count()  # one call of next() is atomic
    errors: list[BaseException] = []

    def caller() -> None:
        try:
            while (number := next(numbers)) < executions and not errors:
                check(execute(number), number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=caller) for _ in range(concurrency)]
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


class Side:
    """A process that measures one product: started once, warmed up once, asked for many rounds."""

    def __init__(self, command: Sequence[str], environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.versions: dict[str, str] = self._read()["versions"]

    @property
    def pid(self) -> int:
        return self._process.pid

    def round(self, mode: str, concurrency: int, executions: int) -> float:
        """Seconds that a round took."""
        assert self._process.stdin is not None
        request = {"mode": mode, "concurrency": concurrency, "executions": executions}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        seconds: float = self._read()["seconds"]
        return seconds

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"{self._process.args!r} ended with {self._process.wait()}; see its output above"
            )
        fields: dict[str, Any] = json.loads(line)
        return fields

    def close(self) -> None:
        """It ends when its input does."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
