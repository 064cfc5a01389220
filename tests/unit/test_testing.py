"""`zart.testing.run`: a body alone, in memory, in virtual time."""

import datetime as dt
import time
from typing import Any

import msgspec
import pytest

import zart
import zart.testing
from zart import durable, step


class Order(msgspec.Struct):
    id: str
    total: int


Approved = zart.Event("approved", bool)


@step("charge-{order.id}", retry="exponential(3, 2s)")
async def charge(order: Order) -> str:
    raise RuntimeError("a test must not reach the real thing")


@step("ship")
def ship(receipt: str) -> str:
    return f"shipped {receipt}"


@durable("buy", max_retries="fixed(1, 1m)")
async def buy(order: Order) -> str:
    receipt = await charge(order)
    if not await zart.wait_for_event(Approved, timeout="2d"):
        return "refused"
    await zart.sleep("1h")
    return await ship(receipt)


ORDER = Order("o1", 10)


async def test_steps_are_replaced_by_template_or_rendered_name() -> None:
    """Values stand for results; a step that is not replaced runs."""
    for name in ("charge-{order.id}", "charge-o1"):
        outcome = await zart.testing.run(buy, ORDER, steps={name: "r1"}, events={"approved": [True]})
        assert outcome.result == "shipped r1"
        assert outcome.steps == ["charge-o1", "ship"]
        assert outcome.calls["ship"] == [("r1",)]
        assert outcome.error is None


async def test_a_list_stands_for_successive_attempts() -> None:
    """The retry policy is the step's own: two failures wait for 2 s and 4 s of virtual time."""
    outcome = await zart.testing.run(
        buy,
        ORDER,
        steps={
            "charge-o1": [ConnectionError("down"), TimeoutError("slow"), "r2"],
            "ship": lambda receipt: receipt,
        },
        events={"approved": [True]},
    )
    assert outcome.result == "r2"
    assert outcome.slept == pytest.approx(2 + 4 + 3600)


async def test_a_list_that_ends_too_early_is_said() -> None:
    outcome = await zart.testing.run(buy, ORDER, steps={"charge-o1": []}, events={"approved": [True]})
    assert isinstance(outcome.error, zart.UsageError)
    assert "more often" in str(outcome.error)


async def test_what_the_body_raises_is_in_the_outcome() -> None:
    """After the body's own retries: here one, a minute later."""
    outcome = await zart.testing.run(buy, ORDER, steps={"charge-o1": zart.NonRetryable("stolen card")})
    assert isinstance(outcome.error, zart.NonRetryable)
    with pytest.raises(zart.NonRetryable, match="stolen card"):
        _ = outcome.result


async def test_two_days_pass_at_once() -> None:
    """Time is virtual: a limit of two days passes without waiting, and zart.now() shows it."""

    @durable("waits")
    async def waits() -> tuple[str, float]:
        before = zart.now()
        try:
            await zart.wait_for_event(Approved, timeout="2d")
        except zart.EventTimeout:
            return "too late", (zart.now() - before).total_seconds()
        return "in time", 0.0

    begun = time.monotonic()
    outcome = await zart.testing.run(waits)
    assert outcome.result == ("too late", dt.timedelta(days=2).total_seconds())
    assert outcome.slept == dt.timedelta(days=2).total_seconds()
    assert time.monotonic() - begun < 5


async def test_an_event_that_nobody_offers_is_said() -> None:
    """Without a limit the body would wait for ever, so the test says what is missing."""

    @durable("waits-for-ever")
    async def waits() -> Any:
        return await zart.wait_for_event("never")

    with pytest.raises(zart.UsageError, match="never"):
        await zart.testing.run(waits)


async def test_values_are_those_of_a_real_run() -> None:
    """Results go through the codec: what would not survive the database does not survive here."""

    @step("pair")
    async def pair() -> Any:
        return (1, 2)

    @durable("pairs")
    async def pairs() -> Any:
        return await pair()

    outcome = await zart.testing.run(pairs)
    assert isinstance(outcome.error, zart.SerializationError)
    assert "pair" in str(outcome.error)


async def test_a_missing_or_superfluous_payload_is_refused() -> None:
    with pytest.raises(zart.UsageError, match="takes its payload"):
        await zart.testing.run(buy)  # type: ignore[call-overload]


async def test_on_failure_runs_as_a_second_body() -> None:
    undone: list[str] = []

    @step("undo")
    async def undo(what: str) -> None:
        undone.append(what)

    async def clean_up(data: None, failure: zart.Failure) -> None:
        await undo(failure.message)

    @durable("fails", on_failure=clean_up)
    async def fails() -> None:
        raise LookupError("nothing there")

    outcome = await zart.testing.run(fails)
    assert isinstance(outcome.error, LookupError)
    assert undone == ["nothing there"]
    assert outcome.steps == ["on_failure/undo"]


@step("give-back", retry="fixed(1, 1m)")
async def give_back(order: Order) -> None:
    raise RuntimeError("a test must not reach the real thing")


@durable("buy-or-give-back", max_retries="fixed(1, 1h)")
async def buy_or_give_back(order: Order) -> str:
    async with zart.saga() as saga:
        saga.add(give_back, order)
        receipt = await charge(order)
        return await ship(receipt)


async def test_a_saga_is_undone() -> None:
    """Undos are steps like others: they are replaced by name, counted and tried again; then the body is run again."""
    outcome = await zart.testing.run(
        buy_or_give_back,
        ORDER,
        steps={"charge-o1": "r1", "ship": [OSError(), "shipped"], "give-back": [ConnectionError(), None]},
    )
    assert outcome.result == "shipped"
    assert outcome.steps == ["charge-o1", "ship", "give-back"]
    assert outcome.calls["give-back"] == [(ORDER,)]
    assert outcome.slept == 60 + 3600


async def test_a_saga_that_cannot_be_undone() -> None:
    """It would be blocked: the error says what is undone and what is not."""
    outcome = await zart.testing.run(
        buy_or_give_back, ORDER, steps={"charge-o1": OSError, "give-back": PermissionError("no access")}
    )
    with pytest.raises(
        PermissionError, match=r"no access; undone: nothing; not undone: give-back \(failed\)"
    ):
        _ = outcome.result


@step("transfer", transaction=True)
async def transfer(cents: int) -> int:
    await zart.connection().execute("UPDATE accounts SET cents = cents - %s", (cents,))
    return cents


@step("keep", transaction=True)
async def keep(value: int) -> int:
    zart.set_data(value)
    return value


@step("by-itself", transaction="own")
async def by_itself(cents: int) -> int:
    return cents


@step("once", at_most_once=True)
def once() -> str:
    return "once"


@durable("inside")
async def inside(cents: int) -> list[object]:
    return [await transfer(cents), await keep(3), zart.data(int), await by_itself(cents), await once()]


async def test_steps_with_transactions_and_at_most_once():
    """There is no database: what uses a connection has a replacement, and the rest runs as it is."""
    outcome = await zart.testing.run(inside, 5, steps={"transfer": 7})
    assert outcome.result == [7, 3, 3, 5, "once"]
    assert outcome.steps == ["transfer", "keep", "by-itself", "once"]
    without = await zart.testing.run(inside, 5)
    assert isinstance(without.error, zart.UsageError)
    assert "give zart.testing.run a replacement" in str(without.error)


async def test_an_interrupted_step_is_a_replacement():
    """What the body does about it can be tried."""

    @durable("asks")
    async def asks() -> str:
        try:
            return await once()
        except zart.StepInterrupted as interrupted:
            return str(interrupted)

    outcome = await zart.testing.run(asks, steps={"once": zart.StepInterrupted("cut off")})
    assert outcome.result == "cut off"
