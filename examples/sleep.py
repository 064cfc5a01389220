"""A sleep that outlives the process: the worker that began it is gone when it ends.

Run it with `make example-sleep`.
"""

import asyncio

import zart
from examples import world
from examples.stage import stage, waits_for
from zart import durable, step


@step("brew")
async def brew(tea: str) -> None:
    await world.call("kettle", f"pour {tea}")


@step("serve")
async def serve(tea: str) -> None:
    await world.call("table", f"serve {tea}")


@durable("tea-time")
async def tea_time(tea: str) -> float:
    await brew(tea)
    poured = zart.now()
    await zart.sleep("3s")  # or "3d": it costs the same
    drew = zart.now() - poured
    await serve(tea)
    return drew.total_seconds()


registry = zart.Registry(tea_time)


async def main() -> None:
    async with stage() as client:
        async with zart.Worker(client, registry):
            print("one worker begins")
            handle = await client.start(tea_time, "assam", id="tea-time-1")
            waiting = await waits_for(handle, "sleep")
        print(f"the worker is gone, the execution is {waiting.status}")
        async with zart.Worker(client, registry):
            print("another worker goes on")
            seconds = await handle.result(timeout="30s")
        print(f"done: it drew for {seconds:.0f} seconds")


if __name__ == "__main__":
    asyncio.run(main())
