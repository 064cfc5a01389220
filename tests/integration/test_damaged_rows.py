"""Rows that somebody has edited by hand: their execution ends in a state that says why, and all others go on."""

import contextlib
from collections.abc import AsyncIterator

import pytest

import zart
from tests.support.running import query, until, until_status, working
from zart import Client, ExecutionBlocked, durable, step

pytestmark = pytest.mark.stores_plain(reason="damages rows by itself")


@step("first")
async def first() -> int:
    return 1


@step("fragile")
async def fragile() -> None:
    raise ValueError("no")


@durable("victim", timeout="50h")
async def victim() -> int:
    one = await first()
    with contextlib.suppress(ValueError):
        await fragile()
    return one + await zart.wait_for_event("go", int)


@durable("innocent")
async def innocent() -> int:
    return await first()


@contextlib.asynccontextmanager
async def damaged(dsn: str, statement: str) -> AsyncIterator[Client]:
    """`victim` waits for its event, and this is done to it; then the event comes, and a worker takes it up."""
    async with working(dsn, victim, innocent) as client:
        await client.start(victim, id="victim")
        await until_status(client, "victim", "waiting")
    await query(dsn, "SELECT zart_offer_event('victim', 'go', '2')")
    await query(dsn, statement)
    async with working(dsn, victim, innocent) as client:
        yield client


@pytest.mark.parametrize(
    "edit",
    [
        "due_at = 'infinity', state = 'ready'",
        "due_at = '294276-12-31', state = 'ready'",
        "started_at = '-infinity'",
        "not_before = '4713-01-01 BC'",
        "wake_at = 'infinity'",
        "wake_at = '-infinity'",
        "time_limit = interval '178000000 years'",
        "epoch = 2147483647",
        "signal = 2147483647",
    ],
)
async def test_a_number_or_time_out_of_reach_stops_nobody(dsn: str, edit: str) -> None:
    """PostgreSQL's times go on for ever and its counters end; a worker reads all rows at once, and gets over both."""
    async with damaged(dsn, f"UPDATE zart_tasks SET {edit}") as client:
        assert await client.start_and_wait(innocent, timeout="15s") == 1
        assert await client.wait_completion("victim", timeout="15s") == 3
        assert [(await client.status("victim")).status] == ["completed"]


async def test_takeovers_go_on_beside_a_counter_at_its_end(dsn: str) -> None:
    """One that was taken over as often as can be counted is blocked, and the others are taken over."""
    edit = "UPDATE zart_tasks SET state = 'running', owner = 99, recoveries = 2147483647"
    async with damaged(dsn, edit) as client:
        with pytest.raises(ExecutionBlocked, match="taken over"):
            await client.wait_completion("victim", timeout="15s")
        assert await client.start_and_wait(innocent, timeout="15s") == 1


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        ("seq = NULL WHERE name = 'fragile'", "step fragile is failed and has no number"),
        ("state = 'waiting' WHERE name = 'first'", "step first is waiting and has the number 1"),
        ("failure = '[]' WHERE name = 'fragile'", "the recorded failure of step fragile"),
        ("state = 'failed' WHERE name = 'first'", "the recorded failure of step first"),
        pytest.param(
            "kind = 'cancel' WHERE name = 'first'",
            "the recorded cancel cannot be read",
            marks=pytest.mark.not_in("encrypted", reason="what is encrypted belongs to one kind of record"),
        ),
    ],
)
@pytest.mark.not_in("suspending", reason="counts claims")
async def test_a_record_that_cannot_be_blocks_its_execution(dsn: str, edit: str, told: str) -> None:
    """By name and once: it is not run again and again, and nothing that was recorded is run anew."""
    async with damaged(dsn, f"UPDATE zart_steps SET {edit}") as client:
        with pytest.raises(ExecutionBlocked, match=told):
            await client.wait_completion("victim", timeout="15s")
        ((epoch,),) = await query(dsn, "SELECT epoch FROM zart_tasks")
        assert epoch == 2
        assert await client.start_and_wait(innocent, timeout="15s") == 1


@pytest.mark.parametrize("failure", ['{"type": 5}', '"\\ud800"', '"\\u0000"'])
async def test_a_failure_that_cannot_be_read_hides_no_other(dsn: str, failure: str) -> None:
    """Lists and histories show what can be shown, and say of the rest that it cannot be read."""
    async with working(dsn, victim, innocent) as client:
        await client.start(victim, id="victim")
        await client.start_and_wait(innocent, id="innocent")
        await until_status(client, "victim", "waiting")
        await client.cancel("victim", force=True)
        await query(
            dsn,
            f"UPDATE zart_executions SET failure = '{failure}', created_at = 'infinity' WHERE id = 'victim'",
        )
        await query(dsn, "UPDATE zart_steps SET failure = '[]', started_at = '-infinity'")

        async def listed() -> set[str]:
            return {execution.id async for execution in client.executions()}

        await until(listed)
        assert await listed() == {"victim", "innocent"}
        history = await client.history("victim")
        assert history.execution.failure is not None
        assert "correct the row" in history.execution.failure.message
        assert [record.failure.type for record in history.records if record.failure] == ["unknown"] * 3
