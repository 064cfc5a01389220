"""What a worker asks while it has nothing to do, and what it looks after for all."""

import asyncio

import pytest

from tests.support.floor import Floor
from tests.support.running import fast, query, until, working
from zart import WorkerConfig, durable
from zart._engine import claiming, rounds


@durable("small")
async def small(number: int) -> int:
    return number


@pytest.mark.usefixtures("notified")
@pytest.mark.not_in("pgbouncer", reason="the pooler asks for itself, too")
async def test_an_idle_worker_asks_less_than_once_a_second(
    dsn: str, database: str, server_log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All told: its looks, its heartbeat, dead workers, work that nobody serves; and it opens no connections. Here
    everything happens ten times as fast.
    """
    monkeypatch.setattr(claiming, "_IDLE", claiming._IDLE / 10)
    monkeypatch.setattr(rounds, "_UNSERVED_AFTER", [each / 10 for each in rounds._UNSERVED_AFTER])
    default = WorkerConfig().heartbeat_interval
    config = fast(heartbeat_interval=default / 10, poll_interval="100ms")
    name = database.replace('"', '""')
    await query(dsn, f"ALTER DATABASE \"{name}\" SET log_statement = 'all'")

    def told(what: str) -> list[str]:
        return [line for line in server_log().splitlines() if f" {database} LOG:" in line and what in line]

    sessions = "SELECT sessions FROM pg_stat_database WHERE datname = current_database()"
    async with Floor(dsn) as floor, working(dsn, small, config=config) as client:
        assert await client.start_and_wait(small, 1) == 1
        await floor.until("SELECT bool_or(idle) FROM zart_workers")
        await asyncio.sleep(
            2.5
        )  # from then on it relies on notifications, and has asked twice who serves what
        connections, before = await floor.value(sessions), len(told("LOG:"))
        await asyncio.sleep(6)
        asked = len(told("LOG:")) - before
        assert await floor.value(sessions) == connections
        assert 30 <= asked <= 58


async def test_a_lease_that_has_ended_is_seen_by_another_ones_heartbeat(dsn: str) -> None:
    """Whoever sees it takes the work over at once."""
    async with Floor(dsn) as floor, working(dsn, small) as client:
        await floor.start("small", name="never")
        dead = await floor.hand("never", "small")
        assert len((await dead.tick()).claims) == 1
        await client.start_and_wait(small, 1)
        await floor.database.execute(
            "UPDATE zart_workers SET expires_at = clock_timestamp() WHERE worker_id = %s", (dead.id,)
        )
        await floor.until("SELECT state = 'ready' AND recoveries = 1 FROM zart_tasks")
        await floor.until("SELECT count(*) = 0 FROM zart_workers WHERE worker_id = %s", dead.id)


async def test_owners_without_rows_are_looked_for_all_the_time(dsn: str) -> None:
    """Whoever deleted the rows has died before it freed the work, or the worker has left without giving it back: no
    heartbeat can see that.
    """
    async with Floor(dsn) as floor, working(dsn, small):
        await floor.start("small", name="never")
        gone = await floor.hand("never")
        assert len((await gone.tick()).claims) == 1
        await floor.database.execute("DELETE FROM zart_workers WHERE worker_id = %s", (gone.id,))
        await floor.until("SELECT state = 'ready' FROM zart_tasks")


async def test_what_nobody_serves_is_told_once(dsn: str, monkeypatch, caplog) -> None:
    """However often it is asked for."""
    monkeypatch.setattr(rounds, "_UNSERVED_AFTER", (0.05,))
    async with Floor(dsn) as floor:
        await floor.start("a", "b", name="never")
        async with working(dsn, small):
            await until(lambda: "2 executions of never" in caplog.text)
            await floor.start("c", name="neither")
            await until(lambda: "1 executions of neither" in caplog.text)
        assert caplog.text.count("of never in queue") == 1


async def test_the_connection_for_it_comes_back(dsn: str, direct_dsn: str, caplog) -> None:
    """When it is lost, the next look has another one."""
    async with Floor(direct_dsn) as floor, working(dsn, small) as client:
        await client.start_and_wait(small, 1)
        await floor.start("small", name="never")
        gone = await floor.hand("never")
        assert len((await gone.tick()).claims) == 1
        await floor.database.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND query LIKE 'SELECT DISTINCT t.owner%'"
        )
        await floor.database.execute("DELETE FROM zart_workers WHERE worker_id = %s", (gone.id,))
        await floor.until("SELECT state = 'ready' FROM zart_tasks")
