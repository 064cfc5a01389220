"""A rule over a hundred thousand executions costs nothing to set, and nothing to claims that it does not touch."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from tests.support.backlog import Backlog, load
from tests.support.floor import Floor
from tests.support.plans import Planner
from tests.support.running import fast, query
from zart import Client, Registry, Worker, durable
from zart._engine.pauses import Rules

pytestmark = pytest.mark.stores_plain(reason="writes a backlog by itself")

CROWD = Backlog(ready=200_000)
CLAIMS = 60


@durable("free")
async def free(data: dict[str, int]) -> int:
    return data["number"]


@durable("stopped")
async def stopped(data: dict[str, int]) -> int:
    return data["number"]


@pytest.fixture
def crowd(direct_dsn: str) -> str:
    """A hundred thousand executions of each of two functions, all ready."""
    with psycopg.connect(direct_dsn) as connection:
        load(connection, CROWD, names=["stopped", "free"])
    return direct_dsn


@pytest.mark.slow
async def test_setting_a_rule_and_claiming_the_others_stays_as_fast(
    crowd: str, record_property: Callable[[str, object], None]
) -> None:
    """No row of what it covers is changed, nothing of it is claimed, and a claim of the others takes what it took."""
    async with Floor(crowd) as floor, Client(crowd) as client:
        names = ("stopped", "free")
        lanes = {name: await floor.value("SELECT zart_lane('default', %s, NULL)", name) for name in names}
        rules = Rules(list(lanes.values()), {lane: name for name, lane in lanes.items()})
        alone = await floor.hand("free")
        both = await floor.hand("stopped", "free", rules=rules)

        async def claims(hand: Any) -> tuple[float, set[int]]:
            """The median of their times, in seconds, and the lanes of what they have taken."""
            times, taken = [], set()
            for _ in range(CLAIMS):
                begun = time.perf_counter()
                tick = await hand.tick(20)
                times.append(time.perf_counter() - begun)
                taken |= {claim.lane for claim in tick.claims}
                assert len(tick.claims) == 20
            return statistics.median(times), taken

        before, _ = await claims(alone)
        written = await floor.value("SELECT pg_current_wal_insert_lsn()::text")
        begun = time.perf_counter()
        rule = await client.pause(name="stopped")
        took = time.perf_counter() - begun
        bytes_written = await floor.value(
            "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), %s)::int", written
        )
        after, taken = await claims(both)
        assert taken == {lanes["free"]}
        beside, _ = await claims(alone)
        for name, figure in (
            ("set", took),
            ("claim without a rule", before),
            ("claim of a worker with both functions", after),
            ("claim of a worker with the other function", beside),
        ):
            record_property(name, f"{figure * 1000:.2f} ms")
            print(f"{name}: {figure * 1000:.2f} ms")
        assert bytes_written < 100_000  # a hundred thousand rows would be ten megabytes at least
        assert took < 1
        assert (
            max(after, beside) < 3 * before + 0.005
        )  # of the same order, on a machine that others use as well
        assert (await client.status("e000000002")).status == "paused"
        counted = (await client.stats()).by_status
        assert counted["paused"] == 100_000
        assert await client.unpause(rule)
        _, taken = await claims(both)
        assert lanes["stopped"] in taken


@pytest.mark.slow
def test_a_claim_looks_at_nothing_that_a_rule_holds_back(crowd: str) -> None:
    """A lane that is left out costs a look at its index, whatever its backlog: told by the server in pages."""
    with psycopg.connect(crowd, autocommit=True) as connection:
        planner = Planner(connection)
        rows = connection.execute(
            "SELECT zart_lane('default', n, NULL) FROM (VALUES ('free'), ('stopped')) v (n)"
        )
        (free_lane,), (stopped_lane,) = rows.fetchall()
        connection.execute(
            "INSERT INTO zart_workers (worker_id, writer, host, pid, expires_at)"
            " VALUES (1, 0, 'here', 1, clock_timestamp() + interval '1h')"
        )
        values = {"worker": 1, "limit": 20, "suspects": 1, "short": 1000, "batch": 7, "lanes": [free_lane]}
        pages = {
            name: planner.plan("claim", "claim", {**values, "passing": passing}, "custom", run=True).pages
            for name, passing in (("without a rule", []), ("with a rule", [stopped_lane]))
        }
        assert pages["with a rule"] <= pages["without a rule"] + 30, pages
        peeks = planner.plan(
            "claim", "peek", {**values, "passing": [stopped_lane], "lanes": []}, "custom", run=True
        )
        assert peeks.pages < 50


@pytest.mark.slow
async def test_a_worker_goes_on_beside_a_hundred_thousand_that_are_paused(crowd: str) -> None:
    """It runs what is free, nothing of the others, and takes those when the rule ends."""
    async with Client(crowd) as client:
        rule = await client.pause(name="stopped")
        async with Worker(crowd, Registry(free, stopped), fast()):
            assert await client.wait_completion("e000001001", timeout=60) == 1001
            ended = "SELECT count(*) FROM zart_executions WHERE name = 'stopped' AND status <> 'scheduled'"
            assert await query(crowd, ended) == [(0,)]
            assert await query(crowd, "SELECT count(*) FROM zart_tasks WHERE state = 'paused'") == [(0,)]
            assert await client.unpause(rule)
            assert await client.wait_completion("e000000002", timeout=60) == 2
