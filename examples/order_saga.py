"""An order that is taken back when its last act fails: stock, card, courier.

Run it with `make example-order_saga`. Each act registers its undo first. The courier of the second order does not come,
so what was done for it is undone, the last act first, across whatever crashes in between.
"""

import asyncio

import msgspec

import zart
from examples import world
from examples.stage import stage
from zart import durable, step


class Order(msgspec.Struct):
    """What somebody wants to have."""

    number: str
    item: str
    cents: int


@step("reserve")
async def reserve(order: Order) -> None:
    await world.call("stock", f"reserve a {order.item} for {order.number}")


@step("release", retry="exponential(8, 1s)")
async def release(order: Order) -> None:
    await world.call("stock", f"release what {order.number} has reserved")


@step("charge")
async def charge(order: Order) -> None:
    await world.call("bank", f"charge {order.cents} cents for {order.number}")


@step("refund", retry="exponential(8, 100ms)")
async def refund(order: Order) -> None:
    await world.call("bank", f"refund what {order.number} has paid")


@step("call-courier")
async def call_courier(order: Order) -> str:
    await world.call("courier", f"fetch {order.number}")
    return f"parcel-{order.number}"


@durable("order")
async def sell(order: Order) -> str:
    async with zart.saga() as saga:
        saga.add(release, order)
        await reserve(order)
        saga.add(refund, order)
        await charge(order)
        return await call_courier(order)


registry = zart.Registry(sell)


async def main() -> None:
    async with stage() as client, zart.Worker(client, registry):
        print("order-1:")
        handle = await client.start(sell, Order(number="order-1", item="lamp", cents=4200), id="order-1")
        print(f"done: {await handle.result(timeout='30s')}")

        print("order-2, for which no courier comes:")
        world.break_once("courier")
        handle = await client.start(sell, Order(number="order-2", item="chair", cents=9900), id="order-2")
        try:
            await handle.result(timeout="30s")
        except zart.ExecutionFailed as failed:
            print(f"undone, and failed: {failed.failure.message}")


if __name__ == "__main__":
    asyncio.run(main())
