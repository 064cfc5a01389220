"""What the workers of case g hold: executions in the middle of a step, and executions that wait for an event."""

import asyncio

import zart
from zart import durable, step

Go = zart.Event("go", int)


@step("note")
async def note(number: int) -> int:
    return number + 1


@step("last-for-hours")
async def last_for_hours(number: int) -> int:
    await asyncio.sleep(36_000)
    return number


@durable("brief")
async def brief(number: int) -> int:
    return await note(number)


@durable("held")
async def held(number: int) -> int:
    return await last_for_hours(await note(number))


@durable("waiting")
async def waiting(number: int) -> int:
    number = await note(number)
    return number + await zart.wait_for_event(Go)


registry = zart.Registry(brief, held, waiting)
