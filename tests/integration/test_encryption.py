"""Encryption at rest: nothing that a user stores can be read in the database, and all of it by whoever has the keys."""

import asyncio
import datetime as dt
from typing import Any

import msgspec
import psycopg
import pytest
from psycopg.types.json import Jsonb

import zart
import zart.sync
from tests.support.keys import key, use_keys
from tests.support.running import (
    bury_workers,
    fast,
    forgetful,
    nothing_left,
    query,
    shift_clock,
    until,
    until_record,
    until_status,
    worker_for,
    working,
)
from zart import Client, durable, step
from zart.digest import payload_digest
from zart.encryption import PayloadKeys, Payloads, Place

SECRET = "plainly-secret-4711"
ran: list[str] = []
gates: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def _fresh() -> None:
    ran.clear()
    gates.clear()


@pytest.fixture(autouse=True)
def _encrypted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients and workers have the key k1, unless a test says otherwise."""
    use_keys(monkeypatch, "k1")


async def everything(dsn: str) -> dict[str, str]:
    """All rows of all tables of the schema, as text, by table."""
    tables = await query(dsn, "SELECT relname FROM pg_class WHERE relkind = 'r' AND relname LIKE 'zart%'")
    found: dict[str, str] = {}
    for (table,) in tables:
        rows = await query(dsn, f'SELECT t::text, to_jsonb(t)::text FROM "{table}" t')
        found[table] = "\n".join(" ".join(row) for row in rows)
    return found


async def where_it_shows(dsn: str, text: str = SECRET) -> list[str]:
    """The tables that show it: plainly, or in base64 or hexadecimal."""
    written = [text, text.encode().hex(), msgspec.json.encode(text.encode()).decode().strip('"')[:-4]]
    return [table for table, rows in (await everything(dsn)).items() if any(form in rows for form in written)]


# ---------------------------------------------------------------- nothing can be read


class Order(msgspec.Struct):
    item: str
    rounds: int = 0


Paid = zart.Event("paid", Order)


class NoCourier(Exception):
    pass


@step("look-up")
async def look_up(item: str) -> str:
    zart.progress({"looking for": item})
    await until(lambda: gates.get("go", True))
    return f"found {item}"


@step("unsteady", retry="fixed(1, 10ms)")
async def unsteady(item: str) -> str:
    ran.append(item)
    if len(ran) == 1:
        raise ConnectionError(f"{item} does not answer")
    return item


@step("hopeless")
async def hopeless(item: str) -> None:
    raise NoCourier(f"nobody carries {item}", item)


@step("scheduled", retry="fixed(1, 10ms)")
async def scheduled(item: str, number: int) -> str:
    if number == 0 and "scheduled" not in gates:
        gates["scheduled"] = True
        raise ConnectionError(f"{item} does not answer")
    return f"{item} {number}"


@step("carried")
def carried(item: str) -> str:
    return item


@step("written", transaction=True)
async def written(item: str) -> str:
    zart.set_data({"written": item})
    return item


@step("written-elsewhere", transaction=True)
async def written_elsewhere(item: str) -> str:
    return item


@step("recorded", transaction="own")
async def recorded(item: str) -> str:
    async with await psycopg.AsyncConnection.connect(gates["dsn"]) as connection:
        await connection.execute("SELECT zart_record_step(%s, %s)", (zart.step_context().token, Jsonb(item)))
    return item


@step("undo-{number}")
async def undo(number: int, item: str) -> str:
    ran.append(f"undone {item}")
    return item


@durable("child")
async def child(order: Order) -> Order:
    return Order(await look_up(order.item), order.rounds)


@durable("failing-child")
async def failing_child(order: Order) -> None:
    await hopeless(order.item)


@durable("parent", max_retries=1)
async def parent(order: Order) -> dict[str, Any]:
    item = order.item
    if order.rounds == 0:
        await look_up(item)
        zart.continue_as_new(Order(item, 1))
    zart.set_data({"item": item})
    got: dict[str, Any] = {"looked up": await look_up(item), "unsteady": await unsteady(item)}
    try:
        await hopeless(item)
    except NoCourier as error:
        got["hopeless"] = list(error.args)
    got["mapped"] = await zart.map(carried, [f"{item} {number}" for number in range(3)], limit=1)
    got["scheduled"] = list(
        await zart.wait_all(
            zart.schedule_step(scheduled, item, 0), zart.schedule_step(written_elsewhere, item)
        )
    )
    got["child"] = (await child(order)).item
    got["named"] = (await child.with_options(id="named-child")(order)).item
    try:
        await failing_child(order)
    except NoCourier as error:
        got["failing child"] = str(error)
    got["written"] = await written(item)
    got["data"] = zart.data(dict[str, str])
    got["recorded"] = await recorded(item)
    try:
        async with zart.saga() as saga:
            saga.add(undo, 1, item)
            await look_up(item)
            raise LookupError(item)
    except LookupError:
        pass
    got["captured"] = await zart.capture("taken", lambda: f"taken {item}")
    got["paid"] = (await zart.wait_for_event(Paid)).item
    if "body" not in gates:
        gates["body"] = True
        raise ValueError(f"the body fails of {item}")
    return got


async def send(client: Client, id: str) -> None:
    """Start it, and offer what it waits for in both ways that encrypt."""
    await client.start(parent, Order(SECRET), id=id)
    async with await psycopg.AsyncConnection.connect(client.address) as connection:
        await zart.offer_event(id, Paid, Order(SECRET), connection=connection)


EXPECTED = {
    "looked up": f"found {SECRET}",
    "unsteady": SECRET,
    "hopeless": [f"nobody carries {SECRET}", SECRET],
    "mapped": [f"{SECRET} {number}" for number in range(3)],
    "scheduled": [f"{SECRET} 0", SECRET],
    "child": f"found {SECRET}",
    "named": f"found {SECRET}",
    "failing child": str(("nobody carries " + SECRET, SECRET)),
    "written": SECRET,
    "data": {"written": SECRET},
    "recorded": SECRET,
    "captured": f"taken {SECRET}",
    "paid": SECRET,
}


@pytest.mark.parametrize("always_suspend", [False, True], ids=["live", "replayed"])
async def test_nothing_of_it_can_be_read_in_the_database(dsn: str, always_suspend: bool) -> None:
    """Of a function that uses everything, with retries, failures, children and a body that is run again, no table
    shows anything that was the user's, neither in the middle nor at the end; and its values are what they are."""
    gates.update(dsn=dsn, go=False)
    async with working(dsn, parent, child, failing_child, always_suspend=always_suspend) as client:
        await send(client, "x")
        await until_record(client, "x", "look-up", "running")
        await until(lambda: _has_progress(dsn))
        assert await where_it_shows(dsn) == []
        gates["go"] = True
        assert await client.wait_completion("x", timeout="60s", type=dict[str, Any]) == EXPECTED
        history = await client.history("x")
        assert any(SECRET in note for note in history.notes)
    await until(lambda: _forgotten(dsn))  # what zart_record_step was given: the journal has it
    assert await where_it_shows(dsn) == []
    await nothing_left(dsn)
    kept = await everything(dsn)
    assert all(
        '"zart"' in kept[table] for table in ("zart_executions", "zart_steps", "zart_events", "zart_history")
    )
    assert '"zart"' in kept["zart_step_attempts"] and '"zart"' in kept["zart_execution_runs"]


async def _has_progress(dsn: str) -> bool:
    return bool(await query(dsn, "SELECT 1 FROM zart_steps WHERE progress IS NOT NULL"))


async def _forgotten(dsn: str) -> bool:
    return not await query(dsn, "SELECT 1 FROM zart_recorded_steps")


async def test_what_was_looked_for_would_be_found(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same function without keys leaves it in every one of these tables: so the test above can fail."""
    use_keys(monkeypatch)
    gates.update(dsn=dsn)
    async with working(dsn, parent, child, failing_child) as client:
        await send(client, "x")
        assert await client.wait_completion("x", timeout="60s", type=dict[str, Any]) == EXPECTED
    await until(lambda: _forgotten(dsn))
    assert sorted(await where_it_shows(dsn)) == [
        "zart_events", "zart_execution_runs", "zart_executions", "zart_history", "zart_step_attempts", "zart_steps",
    ]  # fmt: skip
