"""A loop over a list, in portions with a pause between them: where it stands is nobody's business but its own.

Run it with `make example-durable_loop`. No counter is stored anywhere: a worker that goes on runs the loop from its
top, and each step that is recorded is passed in no time.
"""

import asyncio

import zart
from examples import world
from examples.stage import stage, waits_for
from zart import durable, step

PORTION = 2


@step("send", retry="exponential(5, 200ms)")
async def send(address: str) -> None:
    await world.call("mail", f"newsletter to {address}")


@durable("newsletter")
async def newsletter(addresses: list[str]) -> int:
    for number, address in enumerate(addresses, 1):
        await send(address)
        if number % PORTION == 0:
            await zart.sleep("2s")  # the mail server wants no more than that at a time
    return len(addresses)


registry = zart.Registry(newsletter)


async def main() -> None:
    addresses = [f"{name}@example.com" for name in ("ann", "bob", "cem", "dora", "eve")]
    async with stage() as client:
        async with zart.Worker(client, registry):
            print("one worker begins")
            handle = await client.start(newsletter, addresses, id="newsletter-may")
            await waits_for(handle, "sleep")
        print("it is gone; another one goes on, and the mail server fails once")
        world.break_once("mail")
        async with zart.Worker(client, registry):
            print(f"done: {await handle.result(timeout='30s')} newsletters sent")


if __name__ == "__main__":
    asyncio.run(main())
