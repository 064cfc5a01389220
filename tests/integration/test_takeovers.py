"""Workers are taken for dead at random while they work: all results are exact, and each call is recorded once."""

import asyncio
import random
from contextlib import AsyncExitStack
from typing import Any

import pytest

import zart
from tests.support.running import fast, query, worker_for
from zart import durable, step

ran: dict[tuple[int, int], int] = {}


@step("count")
async def count(execution: int, number: int) -> int:
    ran[execution, number] = ran.get((execution, number), 0) + 1
    await asyncio.sleep(random.random() * 0.01)
    return number


@step("shaky", retry="fixed(30, 10ms)")
async def shaky(execution: int) -> int:
    if random.random() < 0.5:
        raise OSError("again")
    return execution


@step("plain")
def plain(execution: int) -> int:
    return execution + 1


@durable("mixed")
async def mixed(execution: int) -> list[int]:
    out: list[int] = []

    async def branch(base: int) -> None:
        for number in range(3):
            out.append(await count(execution, base + number))
            if number == 1:
                await zart.sleep(0.005 * base)

    async with asyncio.TaskGroup() as group:
        for base in (0, 3, 6):
            group.create_task(branch(base))
    out.sort()
    out.append(await zart.wait_for_event("item", int))
    out.append(await shaky(execution))
    try:
        async with zart.timeout("30ms"):
            await zart.wait_for_event("never")
    except TimeoutError:
        out.append(await plain(execution))
    out.append(await zart.wait_for_event("item", int))
    return out


@pytest.mark.not_in("suspending", reason="a worker lives for moments here, and each record would take one")
async def test_takeovers_under_load(dsn: str) -> None:
    """Branches, sleeps, retries, limits and events on workers that are taken for dead again and again: every result
    is exact, no call is recorded twice, and each event is consumed once."""
    ran.clear()
    ids = [f"m-{number}" for number in range(60)]
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(zart.Client(dsn))
        for _ in range(3):
            await stack.enter_async_context(worker_for(dsn, mixed, config=fast(max_concurrent_tasks=40)))

        async def bury() -> None:
            while True:
                await asyncio.sleep(random.random() * 0.3)
                await query(
                    dsn,
                    "DELETE FROM zart_workers WHERE worker_id ="
                    " (SELECT worker_id FROM zart_workers ORDER BY random() LIMIT 1)",
                )

        handles = await client.start_many(mixed, {id: number for number, id in enumerate(ids)})
        burying = asyncio.create_task(bury())
        try:
            for payload in (70, 80):
                for id in ids:
                    await client.offer_event(id, "item", payload, dedup=str(payload))
            results = [await handle.result(timeout="40s") for handle in handles]
        finally:
            burying.cancel()
            await asyncio.wait([burying])
    for number, result in enumerate(results):
        assert result == [*range(9), 70, number, number + 1, 80]
    counts = await query(
        dsn, "SELECT count(*), count(DISTINCT seq) FROM zart_steps WHERE seq IS NOT NULL GROUP BY run_id"
    )
    # 9 calls, 3 sleeps, 2 events, the shaky and the plain step, and the limit; the first branch's sleep takes no time
    assert {tuple(row) for row in counts} == {(17, 17)}
    await assert_no_leftovers(dsn)


async def assert_no_leftovers(dsn: str) -> None:
    left: list[Any] = await query(
        dsn,
        "SELECT (SELECT count(*) FROM zart_tasks), (SELECT count(*) FROM zart_events WHERE consumed_at IS NULL),"
        " (SELECT count(*) FROM zart_steps WHERE state IN ('running', 'waiting'))",
    )
    assert left == [(0, 0, 0)]
