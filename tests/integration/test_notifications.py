"""What a worker makes of notifications: it looks at once, looks again, and is not driven mad by them."""

import asyncio
import time

import psycopg
import pytest

from tests.support.running import ANNOUNCING, fast, query, stir, until, working
from zart import durable
from zart._engine import claiming, hearing
from zart._engine.claimer import Claimer

pytestmark = pytest.mark.usefixtures("notified")


@durable("small")
async def small(number: int) -> int:
    return number


@pytest.fixture(autouse=True)
def _only_notified(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is found by chance: an idle worker looks once an hour, and soon relies on notifications."""
    monkeypatch.setattr(claiming, "_IDLE", 3600.0)
    monkeypatch.setattr(claiming, "_TRANSITION", 0.4)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When the workers of this process have looked."""
    times: list[float] = []
    tick, peek = Claimer.tick, Claimer.peek

    async def noted_tick(self: Claimer, **given):
        times.append(time.monotonic())
        return await tick(self, **given)

    async def noted_peek(self: Claimer, **given):
        times.append(time.monotonic())
        return await peek(self, **given)

    monkeypatch.setattr(Claimer, "tick", noted_tick)
    monkeypatch.setattr(Claimer, "peek", noted_peek)
    return times


async def until_idle(dsn: str, looks: list[float]) -> None:
    """Until the worker relies on notifications alone."""
    await until(lambda: query(dsn, "SELECT 1 FROM zart_workers WHERE idle"))
    await until(lambda: looks and time.monotonic() - looks[-1] > 0.6)


async def test_what_is_committed_while_another_is_announced_is_found_soon(
    dsn: str, direct_dsn: str, looks: list[float]
) -> None:
    """It notifies nobody. After the notification that is on its way the worker looks more than once."""
    async with (
        working(dsn, small, config=fast(poll_interval="1h")) as client,
        await psycopg.AsyncConnection.connect(direct_dsn, autocommit=True) as session,
    ):
        for number in range(3):
            await until_idle(dsn, looks)
            await session.execute(ANNOUNCING)
            before = len(looks)
            await stir(dsn)
            await until(lambda before=before: len(looks) > before)
            await asyncio.sleep(0.02)  # that look is over
            handle = await client.start(small, number)
            assert await handle.result(timeout="5s") == number
            await session.execute("SELECT pg_advisory_unlock_all()")


async def test_notifications_of_others_work_are_gathered(
    dsn: str, direct_dsn: str, looks: list[float]
) -> None:
    """A worker that is notified again and again in vain looks some dozen times a second, not each time. What
    comes meanwhile is found all the same, and so is what comes when all is quiet again.
    """
    async with (
        working(dsn, small, config=fast(poll_interval="1h")) as client,
        await psycopg.AsyncConnection.connect(direct_dsn, autocommit=True) as flood,
    ):
        await until_idle(dsn, looks)
        before, begun, sent = len(looks), time.monotonic(), 0
        while time.monotonic() - begun < 1.5 or sent < 200:
            await flood.execute("SELECT pg_notify('zart_work_' || substr(md5('public'), 1, 12), '')")
            sent += 1
        took = time.monotonic() - begun
        assert len(looks) - before < 20 + 45 * took, f"{sent} notifications"
        handle = await client.start(small, 1)
        assert await handle.result(timeout="5s") == 1
        await until_idle(dsn, looks)
        handle = await client.start(small, 2)
        assert await handle.result(timeout="5s") == 2


async def test_the_last_of_many_notifications_is_not_lost(
    dsn: str, monkeypatch: pytest.MonkeyPatch, looks: list[float]
) -> None:
    """One that comes while others are gathered leads to a look when that is over, though nothing else would."""
    monkeypatch.setattr(hearing, "_SHORTEST_GAP", 0.3)
    monkeypatch.setattr(hearing, "_LONGEST_GAP", 0.3)
    monkeypatch.setattr(claiming, "_AFTER_WORK", ())
    async with working(dsn, small, config=fast(poll_interval="1h")) as client:
        await until_idle(dsn, looks)
        await stir(dsn)  # in vain
        await asyncio.sleep(0.1)
        begun = time.monotonic()
        handle = await client.start(small, 1)
        assert await handle.result(timeout="5s") == 1
        assert time.monotonic() - begun < 2
