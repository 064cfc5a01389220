"""A rule that ends in the moment in which something is paused for it: nothing stays paused for a rule that is gone."""

import asyncio
import datetime as dt
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from tests.support.executions import Bench, Held
from tests.support.floor import Floor
from zart import Client
from zart._engine.entries import Key, Order, Paused
from zart._engine.pauses import Rules


@pytest.fixture
async def bench(dsn: str) -> AsyncIterator[Bench]:
    async with Bench(dsn, worker_id=1000) as made:
        yield made


async def states(bench: Bench) -> list[tuple[str, str | None]]:
    return await bench.rows(
        "SELECT state, CASE WHEN state = 'paused' THEN paused_by END FROM zart_tasks ORDER BY id"
    )


async def make_rule(bench: Bench, rule: str, **columns: Any) -> None:
    given = {"id": rule, "step": "*", "author": "ann", **columns}
    names, places = ", ".join(given), ", ".join(["%s"] * len(given))
    await bench.execute(f"INSERT INTO zart_pause_rules ({names}) VALUES ({places})", *given.values())


async def free(bench: Bench) -> None:
    """What a worker does once it has heard of the end of a rule."""
    async with Floor(bench.dsn) as floor:
        hand = await floor.hand()
        tick = await hand.tick(0)
        while tick.busy:
            tick = await hand.tick(0)


async def test_what_is_paused_while_its_rule_is_deleted_is_seen_by_whoever_lets_it_go(bench: Bench) -> None:
    """The delete waits for the statement that pauses; what comes after the delete finds the row."""
    (held,) = await bench.hold([1])
    await make_rule(bench, "r")
    blocker = await psycopg.AsyncConnection.connect(bench.dsn)
    # The statement that pauses has the rule in its hands, and waits before it writes.
    await bench.execute(
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NEW; END'"
    )
    await bench.execute(
        "CREATE TRIGGER wait BEFORE UPDATE ON zart_tasks FOR EACH ROW EXECUTE FUNCTION wait()"
    )
    await blocker.execute("SELECT pg_advisory_xact_lock(7)")
    verdict = bench.end(held, Paused(rule="r"))
    await bench.blocked(1)
    async with Client(bench.dsn) as client:
        ending = asyncio.create_task(client.unpause("r"))
        waits = asyncio.create_task(bench.blocked(2))
        await asyncio.wait([ending, waits], return_when=asyncio.FIRST_COMPLETED)
        assert not ending.done(), "the rule is gone, and somebody is pausing for it"
        await waits
        await blocker.commit()
        await blocker.close()
        assert await verdict is None
        assert await ending
    assert await states(bench) == [("paused", "r")]
    await free(bench)
    assert await states(bench) == [("ready", None)]


async def test_nothing_is_paused_for_a_rule_that_is_about_to_go(bench: Bench) -> None:
    """Somebody has deleted the rule and not committed: the row is ready, and the journal waits for nobody."""
    (held,) = await bench.hold([1])
    await make_rule(bench, "r")
    async with await psycopg.AsyncConnection.connect(bench.dsn) as other:
        await other.execute("DELETE FROM zart_pause_rules")
        assert await bench.end(held, Paused(rule="r")) is None
        assert await states(bench) == [("ready", None)]


@pytest.mark.parametrize("why", ["gone", "expired", "cancelled"])
async def test_what_no_rule_stops_any_more_is_ready(bench: Bench, why: str) -> None:
    """The rule has ended, or the execution is to be cancelled: it is given back for anybody to go on."""
    (held,) = await bench.hold([1])
    if why != "gone":
        await make_rule(bench, "r", **({"expires_at": "2001-01-01 00:00:00+00"} if why == "expired" else {}))
    if why == "cancelled":
        await bench.execute("UPDATE zart_tasks SET cancel_at = zart_now()")
    assert await bench.end(held, Paused(rule="r")) is None
    assert await states(bench) == [("ready", None)]


async def test_who_does_not_hold_it_any_more_pauses_nothing(bench: Bench) -> None:
    """An ending of an older claim is lost, like any other."""
    (held,) = await bench.hold([1], epoch=2)
    await make_rule(bench, "r")
    assert await bench.end(held, Paused(rule="r"), epoch=1) is not None
    assert await states(bench) == [("running", None)]


@pytest.mark.stores_plain(reason="gives the journal records by itself, as they are")
async def test_a_pause_goes_with_other_endings_and_records_in_one_batch(bench: Bench) -> None:
    """What is written together is all written, each by its own statement: records, an end, a pause with an order."""
    first, second, third = await bench.hold([1, 2, 3])
    await make_rule(bench, "r")
    await bench.execute(
        "INSERT INTO zart_steps (run_id, path, name, occurrence, kind, state, task_id)"
        " VALUES (%s, '', 'given', 1, 'step', 'waiting', 77)",
        second.run_id,
    )
    order = Order(Key("", "given", 1, "step"), "enough", "ann")
    verdicts = [
        bench.write(first, "a"),
        bench.write(second, "b"),
        bench.end(second, Paused(rule="r", waiting_for="before step c"), orders=(order,)),
        bench.end(first, Paused(rule="r")),
        bench.write(third, "c"),
    ]
    assert [await verdict for verdict in verdicts] == [None] * 5
    assert await states(bench) == [("paused", "r"), ("paused", "r"), ("running", None)]
    assert await bench.rows("SELECT name FROM zart_steps WHERE state = 'completed' ORDER BY 1") == [
        ("a",), ("b",), ("c",),
    ]  # fmt: skip
    assert await bench.rows("SELECT task_id, kind, reason FROM zart_wakeups") == [(77, "cancel", "enough")]
    assert await bench.rows("SELECT waiting_for FROM zart_tasks WHERE id = 2") == [("before step c",)]


async def paused(bench: Bench, count: int, rule: str = "r") -> list[Held]:
    made = await bench.hold(range(1, count + 1))
    await bench.execute("UPDATE zart_tasks SET state = 'paused', owner = NULL, paused_by = %s", rule)
    return made


async def test_what_another_transaction_holds_is_let_go_later(bench: Bench) -> None:
    """A worker passes over a row that is locked, and comes back for it."""
    await paused(bench, 3)
    async with Floor(bench.dsn) as floor:
        hand = await floor.hand("f", rules=Rules([]))
        async with await psycopg.AsyncConnection.connect(bench.dsn) as other:
            await other.execute("SELECT FROM zart_tasks WHERE id = 2 FOR UPDATE")
            tick = await hand.tick(0)
            assert [state for state, _ in await states(bench)] == ["ready", "paused", "ready"]
            assert tick.next_due is not None
            assert (await hand.claimer.peek()).work
        await hand.tick(0)
        assert [state for state, _ in await states(bench)] == ["ready", "ready", "ready"]


async def test_many_are_let_go_in_batches_and_others_are_let_be(bench: Bench) -> None:
    """Each look takes so many, and says that there is more; what another rule holds stays paused."""
    await paused(bench, 1200)
    await make_rule(bench, "other")
    await bench.execute("UPDATE zart_tasks SET paused_by = 'other' WHERE id <= 10")
    async with Floor(bench.dsn) as floor:
        hand = await floor.hand()
        looks, tick = 1, await hand.tick(0)
        while tick.busy:
            looks, tick = looks + 1, await hand.tick(0)
        assert looks == 4
    assert await bench.rows("SELECT state, count(*) FROM zart_tasks GROUP BY 1 ORDER BY 1") == [
        ("paused", 10), ("ready", 1190),
    ]  # fmt: skip


async def test_while_nothing_changes_no_statement_is_sent_for_rules(dsn: str) -> None:
    """A worker reads them when it starts, and then when it hears that they have changed."""
    async with Floor(dsn) as floor, Client(dsn) as client:
        hand = await floor.hand()
        sent: list[str] = []
        direct = await hand.claimer._line.open()
        rows = direct.rows

        async def counted(statement: Any, parameters: Any, **options: Any) -> Any:
            sent.extend(
                name for name, known in hand.claimer._keeper._statements.items() if known is statement
            )
            return await rows(statement, parameters, **options)

        direct.rows = counted  # type: ignore[method-assign]
        await hand.tick()
        assert sent == ["rules", "free"]
        sent.clear()
        for _ in range(5):
            await hand.tick()
            await hand.claimer.peek()
        assert sent == []
        rule = await client.pause(step="x", expires="1h")
        assert (await hand.claimer.peek()).work
        await hand.tick()
        await hand.tick()
        assert sent == ["rules", "free"]
        sent.clear()
        assert not (await hand.claimer.peek()).work
        await floor.move_clock(dt.timedelta(hours=2))
        assert (await hand.claimer.peek()).work
        await hand.tick()
        assert sent == ["end_expired", "rules", "free"]
        assert not await client.unpause(rule)
