"""Zart's side of the comparison: a Worker and a Client in one process, asked over its standard input.

The worker runs in the process that starts the executions, as DBOS's does, with the settings it has by
default. Modes:

- `async`: each caller starts an execution, waits for its result, and starts the next; - `many`: all
executions are started at once by `start_many`, then each result is awaited.
"""

import asyncio
import importlib.metadata
import itertools
import json
import os
import sys
import time

import psycopg
import uvloop

import zart
from tests.benchmarks.rounds import STEPS, answer, check, closed_loop


@zart.step("step")
async def step(number: int) -> int:
    return number + 1


@zart.durable("workflow")
async def workflow(number: int) -> int:
    for _ in range(STEPS):
        number = await step(number)
    return number


batches = itertools.count()


async def started_at_once(client: zart.Client, executions: int) -> float:
    batch = next(batches)
    began = time.perf_counter()
    handles = await client.start_many(workflow, {f"{batch}-{number}": number for number in range(executions)})
    results = await asyncio.gather(*(handle.result() for handle in handles))
    took = time.perf_counter() - began
    for number, result in enumerate(results):
        check(result, number)
    return took


async def main() -> None:
    dsn = os.environ["BENCHMARK_DSN"]
    await zart.migrate(dsn)
    async with zart.Client(dsn) as client, zart.Worker(client, zart.Registry(workflow)):
        answer(
            versions={
                "zart": importlib.metadata.version("zart-durable"),
                "psycopg": f"{psycopg.__version__} ({psycopg.pq.__impl__})",
                "uvloop": importlib.metadata.version("uvloop"),
            }
        )
        while line := await asyncio.to_thread(sys.stdin.readline):
            request = json.loads(line)
            if request["mode"] == "start_many":
                answer(seconds=await started_at_once(client, request["executions"]))
                continue

            async def execute(number: int) -> int:
                return await client.start_and_wait(workflow, number)

            answer(seconds=await closed_loop(execute, request["concurrency"], request["executions"]))


uvloop.run(main())  # as `zart worker` does
