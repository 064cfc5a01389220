"""A transaction of a user's stays open and holds keys that others want, too: they wait for it, and nobody else does."""

import asyncio

import psycopg

import zart
from tests.support.running import query, until, until_record, working
from zart import durable, step

HELD = 30
"""More than a client has connections."""
WAITS = (
    "SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' "
    "AND application_name LIKE 'zart%'"
)


@step("double")
async def double(number: int) -> int:
    return number * 2


@durable("doubled")
async def doubled(number: int) -> int:
    return await double(number)


@durable("told")
async def told(number: int) -> list[int]:
    """Two events, and a step between them."""
    return [
        await zart.wait_for_event("number", int),
        await double(number),
        await zart.wait_for_event("number", int),
    ]


async def test_ids_that_are_held_take_no_connections_from_others(dsn: str) -> None:
    """Starts of many ids that somebody's transaction holds wait for its end; all else that a client asks does not."""
    async with working(dsn, doubled) as client, await psycopg.AsyncConnection.connect(dsn) as mine:
        for number in range(HELD):
            await mine.execute(
                "SELECT zart_start('doubled', id => %s, payload => %s)", (f"held-{number}", str(number))
            )
        held = [
            asyncio.create_task(client.start(doubled, number, id=f"held-{number}")) for number in range(HELD)
        ]
        many = asyncio.create_task(client.start_many(doubled, {"held-0": 0, "other": 1}))
        await until(lambda: _first(dsn, WAITS), "that a start waits for the transaction")
        for number in range(5):
            async with asyncio.timeout(8):
                assert await (await client.start(doubled, number)).result() == 2 * number
                handle = await client.start(doubled, number, id=f"own-{number}")
                assert await handle.result() == 2 * number
                assert (await client.status(handle.id)).status == "completed"
        assert not any(start.done() for start in [*held, many])
        await mine.commit()
        async with asyncio.timeout(8):
            assert [(await start).created for start in held] == [False] * HELD
            assert [handle.created for handle in await many] == [False, True]
            assert [await handle.result() for handle in await many] == [0, 2]


async def test_event_keys_that_are_held_take_no_connections_from_others(dsn: str) -> None:
    """Events are offered in somebody's transaction, and redelivered by a client meanwhile: the same."""
    async with working(dsn, told, doubled) as client, await psycopg.AsyncConnection.connect(dsn) as mine:
        one = await client.start(told, 21, id="one")
        for number in range(HELD):
            await mine.execute("SELECT zart_offer_event('one', 'number', '2', %s)", (f"held-{number}",))
        held = [
            asyncio.create_task(client.offer_event("one", "number", 2, dedup=f"held-{number}"))
            for number in range(HELD)
        ]
        await until(lambda: _first(dsn, WAITS), "that an offer waits for the transaction")
        for number in range(3):
            async with asyncio.timeout(8):
                assert await (await client.start(doubled, number, id=f"own-{number}")).result() == 2 * number
        assert await client.offer_event("one", "number", 1, dedup="first")
        await until_record(client, "one", "double", "completed")  # the events of the transaction are older
        assert not any(offer.done() for offer in held)
        await mine.commit()
        async with asyncio.timeout(8):
            assert [await offer for offer in held] == [False] * HELD
            assert await one.result() == [1, 42, 2]


async def _first(dsn: str, statement: str) -> bool:
    return bool((await query(dsn, statement))[0][0])
