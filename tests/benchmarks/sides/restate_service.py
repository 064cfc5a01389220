"""The services that Restate calls: served by hypercorn in a process of their own, on the port of 127.0.0.1 given."""

# mypy: disable-error-code="untyped-decorator, import-not-found, unused-ignore"

import asyncio
import sys
import threading

import restate
import uvloop
from hypercorn.asyncio import serve
from hypercorn.config import Config

from tests.benchmarks import latencies
from tests.benchmarks.rounds import STEPS, answer

service = restate.Service("benchmark")
waiter = restate.Workflow("waiter")


async def step(number: int) -> int:
    return number + 1


async def stamp() -> float:
    return latencies.now()


@service.handler()
async def workflow(context: restate.Context, number: int) -> int:
    for _ in range(STEPS):
        number = await context.run_typed("step", step, restate.RunOptions(), number)
    return number


@service.handler()
async def stamped(context: restate.Context) -> list[float]:
    return [await context.run_typed("stamp", stamp) for _ in range(STEPS)]


@waiter.main()
async def run(context: restate.WorkflowContext) -> float:
    await context.promise("go", type_hint=str)
    return latencies.now()


@waiter.handler()
async def go(context: restate.WorkflowSharedContext) -> None:
    await context.promise("go", type_hint=str).resolve("go")


async def main(port: int) -> None:
    """Until the standard input ends."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()

    def watch() -> None:
        sys.stdin.read()
        loop.call_soon_threadsafe(stopped.set)

    threading.Thread(target=watch, daemon=True).start()
    config = Config()
    config.bind = [f"127.0.0.1:{port}"]
    config.loglevel = "ERROR"
    # Restate keeps few connections and many streams: none of them is to end.
    config.h2_max_concurrent_streams = config.keep_alive_max_requests = 2**31 - 1
    app = restate.app([service, waiter])
    answer(ready=True)
    await serve(app, config, shutdown_trigger=stopped.wait)


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
