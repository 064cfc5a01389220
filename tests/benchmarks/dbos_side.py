"""DBOS's side of the comparison: runs in the environment that has DBOS, asked over its standard input.

Workflows run in the process that starts them, which is DBOS's fastest way: no queue, no polling. Both
kinds that it has are measured, `async def` and plain `def` in threads; whichever is faster counts.
"""

# mypy: disable-error-code="untyped-decorator, import-not-found, unused-ignore"

import asyncio
import importlib.metadata
import json
import os
import sys

import uvloop
from dbos import DBOS, DBOSConfig

from tests.benchmarks.rounds import STEPS, answer, closed_loop, closed_loop_of_threads

config: DBOSConfig = {
    "name": "benchmark",
    "system_database_url": os.environ["BENCHMARK_DSN"],
    "log_level": "ERROR",
}
if "BENCHMARK_POOL" in os.environ:
    config["sys_db_pool_size"] = int(os.environ["BENCHMARK_POOL"])
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


async def main() -> None:
    DBOS.launch()
    answer(
        versions={
            name: importlib.metadata.version(name) for name in ("dbos", "psycopg", "sqlalchemy", "uvloop")
        }
    )
    while line := await asyncio.to_thread(sys.stdin.readline):
        request = json.loads(line)
        size = (request["concurrency"], request["executions"])
        if request["mode"] == "coroutines":
            answer(seconds=await closed_loop(workflow, *size))
        else:
            answer(seconds=await asyncio.to_thread(closed_loop_of_threads, plain_workflow, *size))
    DBOS.destroy()


uvloop.run(main())
