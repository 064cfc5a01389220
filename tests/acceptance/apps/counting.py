"""Executions whose results can be checked to the last digit, for databases that come and go."""

import asyncio
import os

import zart
from tests.acceptance.apps.place import note, through
from zart import durable, step

STEPS = 6
BRANCHES = 3


@step("add-{number}")
async def add(total: int, number: int) -> int:
    note(f"add-{number}")
    await asyncio.sleep(0.03)
    return total + number


@durable("count")
async def count(start: int) -> list[int]:
    """Steps in a row, a sleep, and steps side by side."""
    total = start
    for number in range(STEPS):
        total = await add(total, number)
    await zart.sleep(0.6)
    return list(await asyncio.gather(*(add(total, 100 + branch) for branch in range(BRANCHES))))


def counted(start: int) -> list[int]:
    """The right result of `count`."""
    total = start + sum(range(STEPS))
    return [total + 100 + branch for branch in range(BRANCHES)]


NAMES = [f"add-{number}" for number in (*range(STEPS), *(100 + branch for branch in range(BRANCHES)))]


@step("hold")
async def hold() -> int:
    note("hold begins")
    await through("hold")
    note("hold")
    return os.getpid()


@durable("through-a-restart")
async def through_a_restart() -> list[int]:
    return [await add(0, 1), await hold(), await add(0, 2)]


@step("answer")
async def answer() -> int:
    note("answer")
    return os.getpid()


@durable("ask")
async def ask() -> int:
    return await answer()


@durable("ask-others")
async def ask_others() -> int:
    return await answer()


registry = zart.Registry(count, through_a_restart, ask)
others = zart.Registry(ask_others)
