"""DBOS's side: the process that starts the workflows and runs them.

Modes of a round: `coroutines` and `threads` run them in the caller, DBOS's fastest way, without a queue or polling;
`queue` enqueues them, and a queue that is polled every 0.05 s runs them. The queue is there in a side of its own
(`by-queue`), so that its polling disturbs nobody else.
"""

# mypy: disable-error-code="untyped-decorator, import-not-found, unused-ignore"

import asyncio
import importlib.metadata
import os
import sys
import uuid
from typing import Any

import uvloop
from dbos import DBOS, DBOSConfig, SetWorkflowID

from tests.benchmarks import latencies
from tests.benchmarks.rounds import STEPS, answer, closed_loop, closed_loop_of_threads, requests

QUEUE = "benchmark"
POLLING = 0.05
"""Seconds, of the queue and of those who wait for a result of it."""

config: DBOSConfig = {
    "name": "benchmark",
    "system_database_url": os.environ["BENCHMARK_DSN"],
    "log_level": "ERROR",
}
DBOS(config=config)


@DBOS.step()
async def step(number: int) -> int:
    return number + 1


@DBOS.workflow()
async def workflow(number: int) -> int:
    for _ in range(STEPS):
        number = await step(number)
    return number


@DBOS.step()
def plain_step(number: int) -> int:
    return number + 1


@DBOS.workflow()
def plain_workflow(number: int) -> int:
    for _ in range(STEPS):
        number = plain_step(number)
    return number


@DBOS.step()
async def stamp() -> float:
    return latencies.now()


@DBOS.workflow()
async def stamped() -> list[float]:
    return [await stamp() for _ in range(STEPS)]


@DBOS.workflow()
async def waiter() -> float:
    await DBOS.recv_async("go")
    return latencies.now()


async def enqueued(function: Any, *arguments: Any) -> Any:
    handle = await DBOS.enqueue_workflow_async(QUEUE, function, *arguments)
    return await handle.get_result(polling_interval_sec=POLLING)


async def start_waiter(*, by_queue: bool) -> Any:
    with SetWorkflowID(str(uuid.uuid4())):
        if by_queue:
            return await DBOS.enqueue_workflow_async(QUEUE, waiter)
        return await DBOS.start_workflow_async(waiter)


async def answer_to(request: dict[str, Any], *, by_queue: bool) -> dict[str, Any]:
    match request:
        case {"do": "round"}:
            size = (request["concurrency"], request["executions"])
            match request["mode"]:
                case "coroutines":
                    return {"seconds": await closed_loop(workflow, *size)}
                case "threads":
                    return {"seconds": await asyncio.to_thread(closed_loop_of_threads, plain_workflow, *size)}
                case _:
                    return {"seconds": await closed_loop(lambda number: enqueued(workflow, number), *size)}
        case {"do": "latencies", "of": "result"}:
            execute = (lambda: enqueued(stamped)) if by_queue else stamped
            return await latencies.of_results(execute, request["count"], request["pause"])
        case _:
            return await latencies.of_events(
                lambda: start_waiter(by_queue=by_queue),
                lambda handle: DBOS.send_async(handle.workflow_id, "go", topic="go"),
                lambda handle: handle.get_result(polling_interval_sec=POLLING),
                request["count"],
                request["pause"],
            )


async def main(*, by_queue: bool) -> None:
    DBOS.launch()
    if by_queue:
        await DBOS.register_queue_async(QUEUE, polling_interval_sec=POLLING)
    answer(
        versions={
            name: importlib.metadata.version(name) for name in ("dbos", "psycopg", "sqlalchemy", "uvloop")
        }
    )
    asked = requests()
    while (request := await asyncio.to_thread(next, asked, None)) is not None:
        answer(**await answer_to(request, by_queue=by_queue))
    DBOS.destroy()


if __name__ == "__main__":
    uvloop.run(main(by_queue=sys.argv[1] == "by-queue"))
