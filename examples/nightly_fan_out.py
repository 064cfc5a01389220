"""Every night, each account: a thousand statements, never more than fifty at once, whatever the number of workers.

Run it with `make example-nightly_fan_out`. One of the two workers is stopped in the middle; what it had begun goes on
at the other. The limit is kept on all workers together, by the steps themselves: each lets the next one begin.
"""

import asyncio
from datetime import date

import msgspec

import zart
from examples.stage import stage
from zart import durable, step

under_way: set[int] = set()
most = 0


class Night(msgspec.Struct):
    day: date
    accounts: int


@step("statement", retry="exponential(5, 100ms)")
async def statement(account: int) -> int:
    """What one account comes to."""
    global most  # noqa: PLW0603 (both workers are in this process, and it is to be seen)
    under_way.add(account)
    most = max(most, len(under_way))
    await asyncio.sleep(0.002)
    under_way.discard(account)
    return account * 3


@durable("nightly-statements", timeout="6h")
async def nightly(night: Night) -> str:
    sums = await zart.map(statement, range(night.accounts), limit=50)
    return f"{night.day}: {len(sums)} statements, {sum(sums)} cents"


registry = zart.Registry(nightly)


async def main() -> None:
    async with stage() as client, zart.Worker(client, registry):
        async with zart.Worker(client, registry):
            night = Night(date(2030, 1, 7), 1000)
            handle = await client.start(nightly, night, id=f"statements-{night.day}")
            while True:
                records = (await client.history(handle.id)).records
                if sum(record.state == "completed" for record in records) > 200:
                    break
        print("one of two workers has stopped")
        print(await handle.result(timeout="60s"))
        print(f"never more than fifty at once: {most <= 50}")


if __name__ == "__main__":
    asyncio.run(main())
