"""Zart's side: a Client, and a Worker in the same process (`together`) or in one of its own (`apart`).

The worker has the settings that it has by default. Modes of a round:

- `callers`: each caller starts an execution, waits for its result, and starts the next;
- `start_many`: all executions are started at once by `start_many`, then each result is awaited.
"""

import asyncio
import contextlib
import importlib.metadata
import itertools
import os
import sys
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import uvloop

import zart
from tests.benchmarks import latencies
from tests.benchmarks.rounds import STEPS, answer, check, closed_loop, helper, requests


@zart.step("step")
async def step(number: int) -> int:
    return number + 1


@zart.durable("workflow")
async def workflow(number: int) -> int:
    for _ in range(STEPS):
        number = await step(number)
    return number


@zart.step("stamp")
async def stamp() -> float:
    return latencies.now()


@zart.durable("stamped")
async def stamped() -> list[float]:
    return [await stamp() for _ in range(STEPS)]


@zart.durable("waiter")
async def waiter() -> float:
    await zart.wait_for_event("go")
    return latencies.now()


REGISTRY = zart.Registry(workflow, stamped, waiter)
batches = itertools.count()


async def started_at_once(client: zart.Client, executions: int) -> float:
    batch = next(batches)
    began = latencies.now()
    handles = await client.start_many(workflow, {f"{batch}-{number}": number for number in range(executions)})
    results = await asyncio.gather(*(handle.result() for handle in handles))
    took = latencies.now() - began
    for number, result in enumerate(results):
        check(result, number)
    return took


async def answer_to(client: zart.Client, request: dict[str, Any]) -> dict[str, Any]:
    match request:
        case {"do": "round", "mode": "start_many"}:
            return {"seconds": await started_at_once(client, request["executions"])}
        case {"do": "round"}:

            async def execute(number: int) -> int:
                return await client.start_and_wait(workflow, number)

            return {"seconds": await closed_loop(execute, request["concurrency"], request["executions"])}
        case {"do": "latencies", "of": "result"}:
            return await latencies.of_results(
                lambda: client.start_and_wait(stamped), request["count"], request["pause"]
            )
        case _:
            return await latencies.of_events(
                lambda: client.start(waiter),
                lambda handle: client.offer_event(handle.id, "go"),
                lambda handle: handle.result(),
                request["count"],
                request["pause"],
            )


@contextlib.asynccontextmanager
async def working(client: zart.Client, where: str) -> AsyncIterator[None]:
    if where == "together":
        async with zart.Worker(client, REGISTRY):
            yield
    else:
        with helper(__spec__.name, "worker"):
            yield


async def main(where: str) -> None:
    await zart.migrate(os.environ["BENCHMARK_DSN"])
    async with zart.Client(os.environ["BENCHMARK_DSN"]) as client, working(client, where):
        answer(
            versions={
                "zart": importlib.metadata.version("zart-durable"),
                "psycopg": f"{psycopg.__version__} ({psycopg.pq.__impl__})",
                "uvloop": importlib.metadata.version("uvloop"),
            }
        )
        asked = requests()
        while (request := await asyncio.to_thread(next, asked, None)) is not None:
            answer(**await answer_to(client, request))


async def work() -> None:
    async with zart.Worker(os.environ["BENCHMARK_DSN"], REGISTRY):
        answer(ready=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    part = sys.argv[1]
    uvloop.run(work() if part == "worker" else main(part))  # as `zart worker` does
