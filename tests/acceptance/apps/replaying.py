"""A body that tells how often it was run, and one that comes to another end each time."""

import os
import time

import zart
from tests.acceptance.apps.place import note
from zart import durable, step


@step("one")
async def one() -> int:
    return 1


@step("two")
async def two() -> int:
    return 2


@durable("tells")
async def tells() -> int:
    note("ran")
    return await one() + await two()


@durable("differs")
async def differs() -> list[int]:
    return [await one(), os.getpid(), time.monotonic_ns()]


registry = zart.Registry(tells, differs)
