"""What a body gets does not depend on what plain code does between its calls, nor on which run it is."""

import asyncio
import datetime as dt
from collections import defaultdict

import pytest

import zart
from tests.support.running import forgetful, query, shift_clock, until, until_status, working
from zart import durable, step


@pytest.mark.not_in(
    "suspending", "twice", reason="its branches pass gates that open for two runs of the body"
)
async def test_branches_that_arrive_in_another_order_get_their_own_records(dsn: str) -> None:
    """The first time branch a calls before branch b, at the replay b before a: each gets what it had."""
    gates = defaultdict[tuple[int, str], asyncio.Event](asyncio.Event)
    arrived: list[tuple[int, str]] = []
    runs = 0

    async def branch(run: int, name: str) -> str:
        async def mark() -> str:
            return name

        await gates[run, name].wait()
        arrived.append((run, name))
        return await step("mark")(mark)()

    @durable("arrivals")
    async def arrivals() -> list[str]:
        nonlocal runs
        runs += 1
        out = await asyncio.gather(branch(runs, "a"), branch(runs, "b"))
        await zart.wait_for_event("go")
        return list(out)

    async with working(dsn, arrivals, config=forgetful()) as client:
        handle = await client.start(arrivals, id="x")
        gates[1, "a"].set()
        await until(lambda: query(dsn, "SELECT 1 FROM zart_steps WHERE state = 'completed'"))
        gates[1, "b"].set()
        await until_status(client, "x", "waiting")
        await client.offer_event("x", "go")
        gates[2, "b"].set()
        await until(lambda: (2, "b") in arrived)
        gates[2, "a"].set()
        assert await handle.result(timeout="10s") == ["a", "b"]
    assert arrived == [(1, "a"), (1, "b"), (2, "b"), (2, "a")]


@pytest.mark.parametrize("always_suspend", [False, True])
async def test_a_result_is_decoded_the_first_time_too(dsn: str, always_suspend: bool) -> None:
    """A step that says float and returns 2 gives 2.0, on the first run as on every replay."""

    @step("half")
    async def half(number: int) -> float:
        return number // 2

    @durable("halves")
    async def halves() -> str:
        return repr(await half(4))

    async with working(dsn, halves, always_suspend=always_suspend) as client:
        assert await client.start_and_wait(halves, timeout="10s") == "2.0"


async def test_a_plain_request_beside_a_long_sleep_is_not_cut(dsn: str) -> None:
    """One branch waits for an answer, another sleeps for an hour: the body stays until it has the answer."""
    asked: list[str] = []
    answer = asyncio.Event()

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readline()).decode())
        await answer.wait()
        writer.write(b"pong\n")
        writer.close()

    server = await asyncio.start_server(respond, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]

    @step("keep")
    async def keep(text: str) -> str:
        return text

    @durable("asks")
    async def asks() -> list[str]:
        async def ask() -> str:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"ping\n")
            got = (await reader.readline()).decode().strip()
            writer.close()
            return await keep(got)

        async def sleeps() -> str:
            await zart.sleep("1h")
            return await keep("slept")

        return list(await asyncio.gather(ask(), sleeps()))

    async with server, working(dsn, asks) as client:
        handle = await client.start(asks)
        await until(lambda: asked)
        await until(lambda: query(dsn, "SELECT 1 FROM zart_steps WHERE name = 'sleep'"))
        answer.set()
        await until(
            lambda: query(dsn, "SELECT 1 FROM zart_steps WHERE name = 'keep' AND state = 'completed'")
        )
        assert asked == ["ping\n"]
        await shift_clock(
            dsn, dt.timedelta(hours=1)
        )  # suspended by now: its replay asks again, as plain code does
        assert await handle.result(timeout="10s") == ["pong", "slept"]
