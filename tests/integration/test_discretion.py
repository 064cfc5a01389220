"""What people store is theirs: logs tell of executions, never of what is in them."""

import logging

import msgspec
import pytest

import zart
from tests.support.running import until_record, working
from zart import durable, step

_SECRET = "4556-7375"


class Card(msgspec.Struct):
    number: str


@step("authorise", retry="fixed(1, 10ms)")
async def authorise(card: Card) -> str:
    if zart.step_context().step_attempt == 1:
        raise ConnectionError("the bank did not answer")
    return card.number


@step("reverse")
async def reverse(card: Card) -> str:
    return "\x00" + card.number  # cannot be stored


@durable("pay")
async def pay(card: Card) -> str:
    number = await authorise(card)
    try:
        await reverse(card)
    except zart.SerializationError:
        await zart.wait_for_event("code", str)
    return number


async def test_neither_payloads_nor_results_nor_events_are_logged(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Not at the finest level, not when an attempt fails, a record is refused or an execution is cancelled."""
    caplog.set_level(logging.DEBUG)
    async with working(dsn, pay) as client:
        paid = await client.start(pay, Card(_SECRET), id="paid")
        dropped = await client.start(pay, Card(_SECRET), id="dropped")
        for id in ("paid", "dropped"):
            await until_record(client, id, "code", "waiting")
        await client.offer_event("paid", "code", f"{_SECRET} confirmed")
        assert await paid.result(timeout="10s") == _SECRET
        await client.cancel("dropped", reason="not wanted")
        with pytest.raises(zart.ExecutionCancelled):
            await dropped.result(timeout="10s")
    assert "paid" in caplog.text
    assert _SECRET not in caplog.text
