"""A worker and a client in the process of the benchmark, on the loop that `zart worker` has."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import zart
from zart.loops import loop_factory

T = TypeVar("T")


def in_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run it to its end."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(work)


@contextlib.asynccontextmanager
async def working(
    dsn: str, registry: zart.Registry, config: zart.WorkerConfig | None = None
) -> AsyncGenerator[zart.Client]:
    async with zart.Client(dsn) as client, zart.Worker(client, registry, config):
        yield client


async def closed_loop_for(seconds: float, callers: list[Callable[[], Awaitable[int]]]) -> tuple[int, float]:
    """Have each caller call again and again until the time is over; returns the sum of what they gave, and seconds."""
    begun = time.perf_counter()

    async def caller(call: Callable[[], Awaitable[int]]) -> int:
        done = await call()
        while time.perf_counter() - begun < seconds:
            done += await call()
        return done

    done = sum(await asyncio.gather(*(caller(call) for call in callers)))
    return done, time.perf_counter() - begun


def expect(found: object, wanted: object, what: str) -> None:
    """A fast wrong answer is worth nothing."""
    if found != wanted:
        raise AssertionError(f"{what}: {found!r}, not {wanted!r}")
