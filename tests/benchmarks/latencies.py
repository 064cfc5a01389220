"""How the sides measure latencies: one execution at a time, with a pause before each, so that everything idles.

The clock is the system's monotonic one, which all processes of a machine share: it is read in the body or the step, and
in the caller. Only the standard library is imported here.
"""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from typing import Any

from tests.benchmarks.rounds import STEPS

PARKED = 0.1
"""Seconds after the start of an execution until it certainly waits for its event."""


def now() -> float:
    """Seconds."""
    return time.monotonic()


async def of_results(
    execute: Callable[[], Awaitable[list[float]]], count: int, pause: float
) -> dict[str, list[float]]:
    """From each start to its result, and from each step's run to the next one's, in milliseconds.

    `execute` runs one execution; its result is the time of each of its steps.
    """
    results, gaps = [], []
    for _ in range(count):
        await asyncio.sleep(pause)
        began = now()
        stamps = await execute()
        ended = now()
        if len(stamps) != STEPS or sorted(stamps) != stamps or not began < stamps[0] <= stamps[-1] < ended:
            raise AssertionError(f"the steps of an execution from {began} to {ended} ran at {stamps}")
        results.append((ended - began) * 1000)
        gaps += [(later - earlier) * 1000 for earlier, later in itertools.pairwise(stamps)]
    return {"results": results, "gaps": gaps}


async def of_events(
    start: Callable[[], Awaitable[Any]],
    send: Callable[[Any], Awaitable[object]],
    resumed_at: Callable[[Any], Awaitable[float]],
    count: int,
    pause: float,
) -> dict[str, list[float]]:
    """From the call that sends an event until the body that waited for it runs again, in milliseconds.

    What `start` gives is handed to `send`, which sends the event, and to `resumed_at`, which awaits the result: the
    time at which the body ran again.
    """
    resumed = []
    for _ in range(count):
        handle = await start()
        await asyncio.sleep(PARKED + pause)
        began = now()
        await send(handle)
        at = await resumed_at(handle)
        if not began < at < now():
            raise AssertionError(
                f"an execution that was sent its event at {began} says that it went on at {at}"
            )
        resumed.append((at - began) * 1000)
    return {"resumed": resumed}
