"""A FastAPI app that stores an order and starts its execution in one transaction: both, or neither.

Run it with `make example-fastapi_orders`. Here the app asks itself, without a network; in production it is served by
uvicorn, and the worker is a process of its own: `zart worker --app examples.fastapi_orders:registry`.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import fastapi
import httpx
import pydantic
from psycopg_pool import AsyncConnectionPool

import zart
from examples import world
from examples.stage import stage
from zart import durable, step


class Order(pydantic.BaseModel):
    number: int
    item: str
    card: str = "valid"


@step("pack")
async def pack(order: Order) -> str:
    await world.call("depot", f"pack a {order.item}")
    return f"parcel {order.number}"


@step("send")
async def send(parcel: str) -> None:
    await world.call("carrier", f"fetch {parcel}")


@durable("fulfil")
async def fulfil(order: Order) -> str:
    parcel = await pack(order)
    await send(parcel)
    return f"{parcel} is on its way"


registry = zart.Registry(fulfil)


@contextlib.asynccontextmanager
async def lifespan(app: fastapi.FastAPI) -> AsyncIterator[None]:
    async with (
        stage() as client,
        AsyncConnectionPool(client.address, open=False) as pool,
        zart.Worker(client, registry),
    ):
        async with pool.connection() as connection:
            await connection.execute("CREATE TABLE IF NOT EXISTS orders (number int PRIMARY KEY, item text)")
        app.state.client, app.state.pool = client, pool
        yield


app = fastapi.FastAPI(lifespan=lifespan)


@app.post("/orders", status_code=201)
async def place(order: Order) -> dict[str, str]:
    # Committed at the end of the block, before the answer is given; rolled back if anything is raised in it.
    async with app.state.pool.connection() as connection:
        await connection.execute("INSERT INTO orders VALUES (%s, %s)", (order.number, order.item))
        execution = await zart.start(fulfil, order, id=f"order-{order.number}", connection=connection)
        if order.card != "valid":
            raise fastapi.HTTPException(402, "the card is declined")
    return {"execution": execution}


@app.get("/orders/{number}")
async def look(number: int) -> dict[str, Any]:
    try:
        execution = await app.state.client.status(f"order-{number}")
    except zart.ExecutionNotFound:
        raise fastapi.HTTPException(404, "there is no such order") from None
    return {"status": execution.status, "waiting_for": execution.waiting_for}


async def main() -> None:
    transport = httpx.ASGITransport(app)
    async with lifespan(app), httpx.AsyncClient(transport=transport, base_url="http://shop") as http:
        print("an order with an expired card")
        order = Order(number=4711, item="kettle", card="expired")
        answer = await http.post("/orders", json=order.model_dump())
        print(f"POST /orders: {answer.status_code} {answer.json()}")
        answer = await http.get("/orders/4711")
        print(f"GET /orders/4711: {answer.status_code} {answer.json()}")

        print("the same order with a valid one")
        order = Order(number=4711, item="kettle")
        answer = await http.post("/orders", json=order.model_dump())
        result = await app.state.client.handle(fulfil, "order-4711").result(timeout="30s")
        print(f"POST /orders: {answer.status_code} {answer.json()}")
        print(f"the result: {result}")
        answer = await http.get("/orders/4711")
        print(f"GET /orders/4711: {answer.status_code} {answer.json()}")


if __name__ == "__main__":
    asyncio.run(main())
