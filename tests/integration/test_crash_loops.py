"""Executions that take their workers with them, again and again."""

import asyncio

import pytest

from tests.support.running import bury_workers, fast, query, until, working
from zart import ExecutionBlocked, durable, step

begun: list[str] = []
mended = asyncio.Event()


@pytest.fixture(autouse=True)
def _nothing_begun() -> None:
    begun.clear()
    mended.clear()


@step("long")
async def long_step() -> str:
    begun.append("long")
    await mended.wait()
    return "done"


@durable("lingers")
async def lingers() -> str:
    return await long_step()


async def shown(dsn: str, before: int) -> int:
    """The mark of the latest write to the step's record, once there is a newer one."""
    rows = await query(dsn, "SELECT token FROM zart_steps WHERE name = 'long' AND state = 'running'")
    return rows[0][0] if rows and rows[0][0] != before else 0


@pytest.mark.slow
async def test_to_run_is_no_progress(dsn: str) -> None:
    """An execution whose workers die while a step has run for a while is blocked in the end, although the step was
    shown as running each time; when it is resumed the count begins anew."""
    async with working(dsn, lingers, config=fast(max_recoveries=2)) as client:
        handle = await client.start(lingers, id="e")
        token = 0
        for times in (1, 2, 3):
            await until(lambda n=times: len(begun) == n)  # type: ignore[misc]
            token = await until(lambda t=token: shown(dsn, t), "a step that is shown as running")  # type: ignore[misc]
            await bury_workers(dsn)
        with pytest.raises(ExecutionBlocked, match="taken over 3 times in a row"):
            await handle.result(timeout="10s")
        assert await client.resume("e")
        await until(lambda: len(begun) == 4)
        assert await query(dsn, "SELECT recoveries FROM zart_tasks") == [(0,)]
        await bury_workers(dsn)
        await until(lambda: len(begun) == 5)
        mended.set()
        assert await handle.result(timeout="10s") == "done"
