"""The first start of a function delays nobody: not in an open transaction either."""

import asyncio
import hashlib

import psycopg
import pytest

import zart
from tests.support.floor import Floor
from tests.support.running import fast, query, working
from zart import Client, Registry, UsageError, Worker, durable
from zart._engine.lease import resolve_lanes


@durable("brand-new")
async def brand_new(number: int) -> int:
    return number * 2


BY_SQL = "SELECT zart_start('brand-new', id => 'held', payload => '21')"


@pytest.mark.parametrize("by", ["python", "sql"])
@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_a_first_start_in_an_open_transaction_delays_nobody(dsn: str, by: str, end: str) -> None:
    """While it is open a worker registers the function, and others start it, in each way; all of that runs."""
    async with await psycopg.AsyncConnection.connect(dsn) as mine:
        if by == "python":
            await zart.start(brand_new, 21, id="held", connection=mine)
        else:
            await mine.execute(BY_SQL)
        async with asyncio.timeout(15), working(dsn, brand_new) as client:
            one = await client.start(brand_new, 1)
            many = await client.start_many(brand_new, {"two": 2, "three": 3})
            await query(dsn, "SELECT zart_start('brand-new', id => 'four', payload => '4')")
            async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as other:
                await zart.start(brand_new, 5, id="five", connection=other)
            handles = [one, *many, client.handle(brand_new, "four"), client.handle(brand_new, "five")]
            assert [await handle.result() for handle in handles] == [2, 4, 6, 8, 10]
            await (mine.commit() if end == "commit" else mine.rollback())
            if end == "commit":
                assert await client.handle(brand_new, "held").result() == 42
            else:
                assert (await client.start(brand_new, 22, id="held")).created
                assert await client.handle(brand_new, "held").result() == 44


async def test_a_worker_need_not_know_the_function_at_its_first_start(dsn: str) -> None:
    """Two transactions with the first start of the same function stay open beside each other, before any worker."""
    async with (
        await psycopg.AsyncConnection.connect(dsn) as first,
        await psycopg.AsyncConnection.connect(dsn) as second,
        asyncio.timeout(15),
    ):
        await first.execute(BY_SQL)
        await second.execute(BY_SQL.replace("held", "held as well"))
        await second.commit()
        async with working(dsn, brand_new) as client:
            assert await client.handle(brand_new, "held as well").result() == 42
            await first.commit()
            assert await client.handle(brand_new, "held").result() == 42
        assert (await query(dsn, "SELECT count(*) FROM zart_tasks")) == [(0,)]


@pytest.mark.parametrize(
    ("queue", "name", "version"),
    [("default", "checkout", None), ("default", "checkout", "2"), ("ab", "c", None), ("a", "bc", None),
     ("a", "b", "c"), ("default", "größe", None)],
)  # fmt: skip
async def test_the_number_of_a_lane(dsn: str, queue: str, name: str, version: str | None) -> None:
    """It is derived from queue, name and version alone: 62 bits of a SHA-256, the same in every database."""
    digest = hashlib.sha256("\x1f".join((queue, name, version or "")).encode()).digest()
    expected = int.from_bytes(digest[:8]) & (2**62 - 1) | 2**62
    assert await query(dsn, "SELECT zart_lane(%s, %s, %s)", queue, name, version) == [(expected,)]


async def test_functions_whose_numbers_collide_are_told_apart(dsn: str) -> None:
    """A worker refuses to register a function whose number another one has, and names both."""
    async with Floor(dsn) as floor:
        await floor.database.execute(
            "INSERT INTO zart_lanes (id, queue, name) VALUES (zart_lane('default', 'brand-new', NULL), 'q', 'other')"
        )
        with pytest.raises(UsageError, match=r"'brand-new', None\) .* equals that of \('q', 'other', None\)"):
            await resolve_lanes(floor.database, "public", [("default", "brand-new", None)])
        async with Client(dsn) as client:
            with pytest.raises(UsageError, match="rename one of them"):
                await Worker(client, Registry(brand_new), fast()).run()


async def test_a_lane_that_was_given_out_is_served_beside_the_derived_one(dsn: str) -> None:
    """Executions of databases that were made by an earlier version, and of clients that remember its numbers."""
    async with Floor(dsn) as floor:
        await floor.database.execute("INSERT INTO zart_lanes (id, queue, name) VALUES (7, 'default', 'f')")
        await floor.start("new")
        await floor.start("old")
        await floor.database.execute("UPDATE zart_tasks SET lane = 7 WHERE execution_id = 'old'")
        assert {claim.execution_id for claim in await (await floor.hand("f")).claim_all()} == {"new", "old"}
