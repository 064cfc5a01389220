"""`zart.testing.run` of a body that gives work away: scheduled steps and children run beside it, in virtual time."""

import asyncio

import pytest

import zart
import zart.testing
from zart import durable, step


@step("fetch-{name}", retry="fixed(2, 1m)")
async def fetch(name: str) -> str:
    raise RuntimeError("a test must not reach the real thing")


@durable("part")
async def part(name: str) -> str:
    await zart.sleep("2h")
    return (await fetch(name)).upper()


@durable("whole")
async def whole(names: list[str]) -> list[str]:
    mapped = await zart.map(fetch, names, limit=1)
    handles = [zart.start_child(part, name) for name in names]
    return [*mapped, *(await zart.wait_all(*handles)), await part("last")]


async def test_steps_and_children_run_beside_the_body():
    """Steps are replaced wherever they run; children that sleep at the same time sleep once."""
    outcome = await zart.testing.run(whole, ["a", "b", "c"], steps={"fetch-{name}": lambda name: name * 2})
    assert outcome.result == ["aa", "bb", "cc", "AA", "BB", "CC", "LASTLAST"]
    assert outcome.slept == 4 * 3600


@durable("race")
async def race() -> str:
    answer = zart.event("answer", str)
    patience = zart.timer("1d")
    if await zart.wait_any(answer, patience) is answer:
        return await answer
    return "nobody answered"


async def test_a_race_of_an_event_and_a_timer():
    """Time moves when nothing else can happen."""
    assert (await zart.testing.run(race, events={"answer": ["yes"]})).result == "yes"
    outcome = await zart.testing.run(race)
    assert outcome.result == "nobody answered"
    assert outcome.slept == 24 * 3600


@durable("catches")
async def catches() -> list[str]:
    told: list[str] = []
    try:
        await failing_child()
    except LookupError as error:
        told.append(f"caught {error.args[0]}")
    values = await zart.wait_all(
        zart.schedule_step(fetch, "x"), zart.start_child(part, "y"), return_exceptions=True
    )
    return told + [type(value).__name__ for value in values]


@durable("failing-child")
async def failing_child() -> None:
    raise LookupError("nothing")


async def test_failures_come_back_to_the_body():
    """The exception of a child, and that of a step after its retries, in virtual time."""
    outcome = await zart.testing.run(catches, steps={"fetch-{name}": ConnectionError("down")})
    assert outcome.result == ["caught nothing", "ConnectionError", "ConnectionError"]


@durable("cancelling")
async def cancelling() -> str:
    child = zart.start_child(waits_for_ever)
    assert await child.cancel()
    try:
        await child
    except zart.ExecutionCancelled:
        return "cancelled"
    return "?"


@durable("waits-for-ever")
async def waits_for_ever() -> None:
    try:
        await zart.wait_for_event("never")
    except asyncio.CancelledError:
        await zart.sleep("1m")
        raise


async def test_a_child_is_cancelled_and_cleans_up():
    """Its cleanup may wait, too."""
    outcome = await zart.testing.run(cancelling)
    assert outcome.result == "cancelled"
    assert outcome.slept == 60


async def test_a_child_that_waits_for_ever_is_told():
    """Nothing can happen any more: the test says so instead of hanging."""

    @durable("stuck")
    async def stuck() -> None:
        await waits_for_ever()

    with pytest.raises(zart.UsageError, match="for ever"):
        await zart.testing.run(stuck)
