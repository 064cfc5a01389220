"""Repairs and pause rules of one execution: what is repaired is held back like anything else, and nothing is lost."""

import asyncio
from typing import Any

import pytest

import zart
from tests.support.running import fast, forgetful, query, until, until_status, working
from zart import Client, durable, step
from zart.config import WorkerConfig

effects: list[str] = []
broken: set[str] = set()
gates: dict[str, asyncio.Event] = {}


@pytest.fixture(autouse=True)
def _anew() -> None:
    effects.clear()
    broken.clear()
    gates.clear()


@step("do-{what}")
async def do(what: str) -> str:
    effects.append(what)
    if what in gates:
        await gates[what].wait()
    if what in broken:
        raise ConnectionError(f"{what} is out of order")
    return what


@durable("order")
async def order(customer: str) -> str:
    """A failed charge leaves the body, unless the customer is patient."""
    await do(f"reserve for {customer}")
    try:
        told = await do("charge")
    except ConnectionError:
        if customer != "ann":
            raise
        told = await zart.wait_for_event("paid", str)
    return f"{customer}: {told}"


async def ann_waits(client: Client) -> None:
    """The charge has failed, and the body has caught that; from now on a charge works."""
    broken.add("charge")
    await client.start(order, "ann", id="x")
    await until_status(client, "x", "waiting")
    broken.clear()
    effects.clear()


async def until_parked(dsn: str) -> None:
    """Until a worker that had it in its hands has given it back for a rule."""
    row = "SELECT id FROM zart_tasks WHERE execution_id = 'x' AND state = 'paused'"
    await until(lambda: query(dsn, row), "a pause of the row")


@pytest.mark.parametrize("how", [fast(), forgetful()], ids=["kept", "replayed"])
async def test_another_run_does_not_begin_before_the_rule_has_ended(dsn: str, how: WorkerConfig) -> None:
    """A restart of what is paused: nothing of the new run is done under the rule, and all of it afterwards."""
    async with working(dsn, order, config=how) as client:
        await ann_waits(client)
        rule = await client.pause("x")
        await client.restart("x", "bob")
        await until_parked(dsn)
        assert (await client.status("x")).status == "paused"
        assert effects == []
        assert [run.status for run in await client.runs("x")] == ["paused", "paused"]
        assert await client.unpause(rule)
        assert await client.wait_completion("x", timeout="20s") == "bob: charge"
    assert effects == ["reserve for bob", "charge"]


@pytest.mark.parametrize("how", [fast(), forgetful()], ids=["kept", "replayed"])
async def test_a_rerun_is_held_back_as_well(dsn: str, how: WorkerConfig) -> None:
    """The same, of a run that keeps results."""
    async with working(dsn, order, config=how) as client:
        await ann_waits(client)
        rule = await client.pause("x")
        await client.rerun("x", steps=["do-charge"])
        await until_parked(dsn)
        assert effects == []
        assert await client.unpause(rule)
        assert await client.wait_completion("x", timeout="20s") == "ann: charge"
    assert effects == ["charge"]


@pytest.mark.parametrize("how", [fast(), forgetful()], ids=["kept", "replayed"])
async def test_a_retry_of_a_step_stands_until_the_rule_has_ended(dsn: str, how: WorkerConfig) -> None:
    """Asked for in the middle of a pause; the step is done again after it, once."""
    async with working(dsn, order, config=how) as client:
        await ann_waits(client)
        rule = await client.pause("x")
        assert await client.retry_step("x", "do-charge")
        await client.start(order, "bob", id="y")
        assert await client.wait_completion("y", timeout="20s") == "bob: charge"
        assert (await client.status("x")).status == "paused"
        assert effects == ["reserve for bob", "charge"]
        assert await client.unpause(rule)
        assert await client.wait_completion("x", timeout="20s") == "ann: charge"
    assert effects == ["reserve for bob", "charge", "charge"]


async def test_a_step_that_a_rule_covers_is_retried_once_that_has_ended(dsn: str) -> None:
    """The execution goes on up to this step, and is paused before it."""
    async with working(dsn, order) as client:
        await ann_waits(client)
        rule = await client.pause(step="do-ch*")
        assert await client.retry_step("x", "do-charge")
        await until_status(client, "x", "paused")
        assert effects == []
        assert await client.unpause(rule)
        assert await client.wait_completion("x", timeout="20s") == "ann: charge"
    assert effects == ["charge"]


@pytest.mark.not_in("suspending", "twice", reason="it does not come to its end with the rule there")
@pytest.mark.parametrize("how", ["retry_step", "restart"])
async def test_a_rule_that_has_outlived_an_execution_holds_its_repair_back(dsn: str, how: str) -> None:
    """It came while the last step ran, and the execution failed; so what goes on from there is paused at once."""
    broken.add("charge")
    gates["charge"] = asyncio.Event()
    async with working(dsn, order) as client:
        await client.start(order, "bob", id="x")
        await until(lambda: "charge" in effects)
        rule = await client.pause("x")
        gates["charge"].set()
        await until_status(client, "x", "failed")
        broken.clear()
        effects.clear()
        again: Any = client.retry_step("x", "do-charge") if how == "retry_step" else client.restart("x")
        assert await again
        await until_parked(dsn)
        assert (await client.status("x")).status == "paused"
        assert effects == []
        assert await client.unpause(rule)
        assert await client.wait_completion("x", timeout="20s") == "bob: charge"
    assert effects == (["charge"] if how == "retry_step" else ["reserve for bob", "charge"])


@pytest.mark.not_in("suspending", "twice", reason="it does not come to its end with the rule there")
async def test_an_execution_that_is_deleted_takes_its_rules_along(dsn: str) -> None:
    """A rule that names it holds nothing back any more, not even another execution under its id; others stay."""
    gates["charge"] = asyncio.Event()
    async with working(dsn, order) as client:
        await client.start(order, "bob", id="x")
        await until(lambda: "charge" in effects)
        rule = await client.pause("x")
        other = await client.pause(name="another")
        gates["charge"].set()
        await client.wait_completion("x", timeout="20s")
        assert await client.delete("x", reason="asked for")
        assert [rule.id for rule in await client.pauses()] == [other]
        assert not await client.unpause(rule)
        assert (await client.start(order, "eve", id="x")).created
        assert await client.wait_completion("x", timeout="20s") == "eve: charge"
