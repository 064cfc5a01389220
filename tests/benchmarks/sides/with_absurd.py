"""Absurd's side: a client, and workers in processes of their own, which run while something is measured.

Modes of a round:

- `1`, `2`, `4`: so many worker processes, each of which works its tasks one after another;
- `async`: one worker process that works as many tasks at a time as there are callers.

With one caller it is a closed loop. With more, all executions of the round are spawned first and the workers have the
backlog, then each result is awaited: callers who poll for results would be in the workers' way.
"""

# mypy: disable-error-code="untyped-decorator, import-not-found, unused-ignore"

import asyncio
import importlib.metadata
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import uvloop
from absurd_sdk import Absurd, AsyncAbsurd

from tests.benchmarks import latencies
from tests.benchmarks.rounds import STEPS, answer, check, closed_loop_of_threads, helper, requests

DSN = os.environ["BENCHMARK_DSN"]
QUEUE = "benchmark"
POLL = 0.01
"""Seconds between a worker's looks at an empty queue."""
RESULT_POLL = 0.005
"""Seconds between looks for a result."""
WARM_UP = 20
"""Tasks that new workers do before the clock runs."""
_numbers = itertools.count()


def register(app: Any) -> None:
    @app.register_task(name="workflow")
    def workflow(number: int, context: Any) -> int:
        for _ in range(STEPS):
            number = context.step("step", lambda number=number: number + 1)
        return number

    @app.register_task(name="stamped")
    def stamped(_: None, context: Any) -> list[float]:
        return [context.step("stamp", latencies.now) for _ in range(STEPS)]

    @app.register_task(name="waiter")
    def waiter(event: str, context: Any) -> float:
        context.await_event(event)
        return latencies.now()


def register_async(app: Any) -> None:
    async def step(number: int) -> int:
        return number + 1

    @app.register_task(name="workflow")
    async def workflow(number: int, context: Any) -> int:
        for _ in range(STEPS):
            number = await context.step("step", lambda number=number: step(number))
        return number


def result_of(app: Any, task_id: str) -> Any:
    while (found := app.fetch_task_result(task_id)) is None or found.state in (
        "pending",
        "running",
        "sleeping",
    ):
        time.sleep(RESULT_POLL)
    if found.state != "completed":
        raise AssertionError(f"task {task_id} is {found.state}")
    return found.result


def executed(app: Any, name: str, argument: Any) -> Any:
    return result_of(app, app.spawn(name, argument, queue=QUEUE)["task_id"])


@contextmanager
def working(app: Any, mode: str, concurrency: int) -> Iterator[None]:
    """Workers that are warm."""
    processes = 1 if mode == "async" else int(mode)
    kind = "async" if mode == "async" else "plain"
    with ExitStack() as stack:
        for _ in range(processes):
            stack.enter_context(helper(__spec__.name, "worker", kind, str(concurrency)))
        backlog(app, WARM_UP)
        yield


def backlog(app: Any, executions: int) -> float:
    """Seconds until all are done."""
    began = latencies.now()
    tasks = [app.spawn("workflow", number, queue=QUEUE)["task_id"] for number in range(executions)]
    for number, task_id in enumerate(tasks):
        check(result_of(app, task_id), number)
    return latencies.now() - began


def answer_to(app: Any, request: dict[str, Any]) -> dict[str, Any]:
    match request:
        case {"do": "round", "concurrency": 1, "executions": executions}:
            seconds = closed_loop_of_threads(lambda number: executed(app, "workflow", number), 1, executions)
            return {"seconds": seconds}
        case {"do": "round", "executions": executions}:
            return {"seconds": backlog(app, executions)}
        case {"do": "latencies", "of": "result", "count": count, "pause": pause}:

            async def execute() -> list[float]:
                stamps: list[float] = executed(app, "stamped", None)
                return stamps

            return asyncio.run(latencies.of_results(execute, count, pause))
        case {"count": count, "pause": pause}:

            async def start() -> tuple[str, str]:
                event = f"go-{next(_numbers)}"
                return event, app.spawn("waiter", event, queue=QUEUE)["task_id"]

            async def send(handle: tuple[str, str]) -> None:
                app.emit_event(handle[0], "go")

            async def resumed_at(handle: tuple[str, str]) -> float:
                at: float = result_of(app, handle[1])
                return at

            return asyncio.run(latencies.of_events(start, send, resumed_at, count, pause))
        case _:
            raise ValueError(request)


def main() -> None:
    absurdctl = Path(sys.executable).with_name("absurdctl")
    for command in (["init"], ["create-queue", QUEUE]):
        subprocess.run(
            [absurdctl, command[0], "-d", DSN, *command[1:]], check=True, stdout=subprocess.DEVNULL
        )
    with closing(Absurd(DSN, queue_name=QUEUE)) as app:
        answer(
            versions={
                name: importlib.metadata.version(name)
                for name in ("absurd-sdk", "absurdctl", "psycopg", "uvloop")
            }
        )
        with ExitStack() as workers:
            for request in requests():
                match request:
                    case {"do": "prepare", "mode": mode, "concurrency": concurrency}:
                        workers.enter_context(working(app, mode, concurrency))
                        answer()
                    case {"do": "rest"}:
                        workers.close()
                        answer()
                    case _:
                        answer(**answer_to(app, request))


def work(kind: str, concurrency: int) -> None:
    """Until the standard input ends."""
    app: Any = AsyncAbsurd(DSN, queue_name=QUEUE) if kind == "async" else Absurd(DSN, queue_name=QUEUE)

    def watch() -> None:
        sys.stdin.read()
        app.stop_worker()

    threading.Thread(target=watch, daemon=True).start()
    if kind == "async":
        register_async(app)
        answer(ready=True)
        uvloop.run(app.start_worker(concurrency=concurrency, poll_interval=POLL))
    else:
        register(app)
        answer(ready=True)
        app.start_worker(concurrency=1, batch_size=10, poll_interval=POLL)


if __name__ == "__main__":
    if sys.argv[1] == "worker":
        work(sys.argv[2], int(sys.argv[3]))
    else:
        main()
