"""What the workers of case f run: executions that have so many squares computed, each in another way."""

import asyncio

import zart
from zart import durable, step


@step("square")
async def square(number: int) -> int:
    return number * number


@durable("square-child")
async def square_child(number: int) -> int:
    return number * number


@durable("scheduled")
async def scheduled(width: int) -> int:
    return sum(await zart.wait_all(*[zart.schedule_step(square, number) for number in range(width)]))


@durable("mapped")
async def mapped(width: int) -> int:
    return sum(await zart.map(square, range(width), limit=100))


@durable("children")
async def children(width: int) -> int:
    return sum(await zart.wait_all(*[zart.start_child(square_child, number) for number in range(width)]))


@durable("inline")
async def inline(width: int) -> int:
    return sum(await asyncio.gather(*(square(number) for number in range(width))))


registry = zart.Registry(scheduled, mapped, children, inline, square_child)
