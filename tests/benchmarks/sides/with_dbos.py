"""DBOS's side: the process that starts the workflows and runs them.

Modes of a round: `coroutines` and `threads` run them in the caller, DBOS's fastest way, without a queue or polling;
`queue` enqueues them, and a queue that is polled every 0.05 s runs them. The queue is there in a side of its own
(`by-queue`), so that its polling disturbs nobody else. `apart` measures latencies only: a DBOSClient enqueues, a worker
process runs.
"""

# mypy: disable-error-code="untyped-decorator, import-not-found, unused-ignore"

import asyncio
import importlib.metadata
import os
import sys
import uuid
from contextlib import ExitStack
from typing import Any

import uvloop
from dbos import DBOS, DBOSClient, DBOSConfig, SetWorkflowID

from tests.benchmarks import latencies
from tests.benchmarks.rounds import STEPS, answer, closed_loop, closed_loop_of_threads, helper, requests

QUEUE = "benchmark"
POLLING = 0.05
"""Seconds, of the queue and of those who wait for a result of it."""

config: DBOSConfig = {
    "name": "benchmark",
    "system_database_url": os.environ["BENCHMARK_DSN"],
    "log_level": "ERROR",
}


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


async def answer_apart(client: DBOSClient, request: dict[str, Any]) -> dict[str, Any]:
    async def enqueue(workflow_name: str) -> Any:
        return await client.enqueue_async({"queue_name": QUEUE, "workflow_name": workflow_name})

    async def result_of(handle: Any) -> Any:
        return await handle.get_result(polling_interval_sec=POLLING)

    async def execute() -> Any:
        return await result_of(await enqueue("stamped"))

    if request["of"] == "result":
        return await latencies.of_results(execute, request["count"], request["pause"])
    return await latencies.of_events(
        lambda: enqueue("waiter"),
        lambda handle: client.send_async(handle.workflow_id, "go", topic="go"),
        result_of,
        request["count"],
        request["pause"],
    )


async def launch(*, by_queue: bool) -> None:
    DBOS(config=config)
    DBOS.launch()
    if by_queue:
        await DBOS.register_queue_async(QUEUE, polling_interval_sec=POLLING)


async def work() -> None:
    """Until the standard input ends."""
    await launch(by_queue=True)
    answer(ready=True)
    await asyncio.to_thread(sys.stdin.read)
    DBOS.destroy()


async def main(way: str) -> None:
    with ExitStack() as stack:
        if way == "apart":
            stack.enter_context(helper(__spec__.name, "worker"))
            client = DBOSClient(system_database_url=os.environ["BENCHMARK_DSN"])
            stack.callback(client.destroy)
        else:
            client = None
            await launch(by_queue=way == "by-queue")
            stack.callback(DBOS.destroy)
        tell_versions()
        asked = requests()
        while (request := await asyncio.to_thread(next, asked, None)) is not None:
            if client is not None:
                answer(**await answer_apart(client, request))
            else:
                answer(**await answer_to(request, by_queue=way == "by-queue"))


def tell_versions() -> None:
    answer(
        versions={
            name: importlib.metadata.version(name) for name in ("dbos", "psycopg", "sqlalchemy", "uvloop")
        }
    )


if __name__ == "__main__":
    uvloop.run(work() if sys.argv[1] == "worker" else main(sys.argv[1]))
