"""Text that PostgreSQL cannot take, given to a client."""

import asyncio

import pytest

import zart
from tests.support.clients import Order, finish, ship
from zart import ExecutionNotFound, UsageError

NO_TEXT = ["a\0b", "\ud800", "caf\udce9"]


@pytest.mark.parametrize("id", NO_TEXT)
async def test_an_id_that_is_no_text_is_not_found(dsn: str, id: str) -> None:
    """No execution can have it, so whoever asks for one is told just that."""
    async with zart.Client(dsn) as client:
        for asked in (
            client.status(id),
            client.history(id),
            client.cancel(id),
            client.resume(id),
            client.wait_completion(id, timeout="1s"),
            client.offer_event(id, "event"),
            client.handle(ship, "there is none").status(),
        ):
            with pytest.raises(ExecutionNotFound):
                await asked


@pytest.mark.parametrize("text", NO_TEXT)
async def test_other_text_that_cannot_be_is_refused(dsn: str, text: str) -> None:
    """With an error of this library, before anything is sent."""
    with pytest.raises(UsageError, match="author"):
        zart.Client(dsn, author=text)
    async with zart.Client(dsn) as client:
        await client.start(ship, Order(1), id="order")
        with pytest.raises(UsageError, match="reason"):
            await client.cancel("order", reason=text)
        for filters in ({"name": text}, {"id_prefix": text}, {"after": text}):
            with pytest.raises(UsageError, match=next(iter(filters))):
                [found async for found in client.executions(**filters)]


async def test_who_waits_for_what_cannot_be_does_not_disturb_others(dsn: str) -> None:
    """All waits of a client are looked after by one statement: one that cannot be sent must not be among them."""
    async with zart.Client(dsn) as client:
        handle = await client.start(ship, Order(1), id="order")
        other = asyncio.create_task(handle.result(timeout="20s"))
        await asyncio.sleep(0)
        with pytest.raises(ExecutionNotFound):
            await client.wait_completion("\ud800", timeout="5s")
        await asyncio.to_thread(finish, dsn, "order")
        assert await other == "done"
