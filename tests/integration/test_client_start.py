"""Starting executions with a Client."""

import asyncio
import datetime as dt
import time
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

import zart
from tests.support import modes
from tests.support.clients import Order, finish, other, rows, ship, sweep
from zart import (
    Client,
    ExecutionConflict,
    NotDurableWarning,
    SchemaError,
    SerializationError,
    UsageError,
    durable,
)
from zart.context import place
from zart.migrate import migrate

STRANGE_IDS = [
    "it's",
    'say "x"',
    "100% %s",
    "a#2",
    "a/b",
    "ünï🚀",
    "x" * 200,
    "; DROP TABLE zart_tasks",
    "{id}",
    " ",
]


@pytest.fixture
async def client(dsn: str) -> AsyncIterator[Client]:
    async with Client(dsn) as opened:
        yield opened


async def test_start_makes_one_execution_and_its_task(client: Client, dsn: str) -> None:
    """A start is one execution and one ready task, in the function's queue."""
    handle = await client.start(ship, Order(7), id="order-7")
    assert (handle.id, handle.created) == ("order-7", True)
    assert rows(dsn, "SELECT id, name, queue, status, payload FROM zart_executions") == [
        ("order-7", "ship", "default", "scheduled", {"number": 7, "note": ""})
    ]
    assert rows(dsn, "SELECT execution_id, state FROM zart_tasks") == [("order-7", "ready")]
    status = await handle.status()
    assert (status.status, status.served, status.cancelling) == ("scheduled", False, False)


async def test_without_an_id_it_is_a_uuid_that_sorts_by_time(client: Client) -> None:
    """An execution without an id of the caller's gets a UUID of version 7."""
    first = await client.start(sweep)
    await asyncio.sleep(0.002)
    second = await client.start(sweep)
    assert first.created
    assert second.created
    assert first.id < second.id
    assert first.id[14] == "7"


async def test_ten_clients_start_the_same_id_at_once(dsn: str) -> None:
    """Ten clients start the same id at once: one execution, ten handles, one of which says that it was
    created.
    """
    clients = [Client(dsn) for _ in range(10)]
    try:
        for opened in clients:
            await opened.__aenter__()
        handles = await asyncio.gather(*(opened.start(ship, Order(1), id="same") for opened in clients))
    finally:
        for opened in clients:
            await opened.__aexit__(None, None, None)
    assert [handle.id for handle in handles] == ["same"] * 10
    assert sum(handle.created for handle in handles) == 1
    assert rows(dsn, "SELECT count(*) FROM zart_tasks") == [(1,)]


async def test_other_input_or_function_is_a_conflict(client: Client, dsn: str) -> None:
    """The id of an execution with other input, or of another function, is refused and nothing is changed."""
    await client.start(ship, Order(1), id="a")
    with pytest.raises(ExecutionConflict, match="'a' exists already, of 'ship' with another input") as caught:
        await client.start(ship, Order(2), id="a")
    assert caught.value.execution_id == "a"
    with pytest.raises(ExecutionConflict, match="of the function 'ship', not 'other'"):
        await client.start(other, Order(1), id="a")
    handle = await client.start(other, Order(2), id="a", on_conflict="return")
    assert not handle.created
    assert rows(dsn, "SELECT name, payload FROM zart_executions") == [("ship", {"number": 1, "note": ""})]


async def test_start_after_the_end_gives_the_stored_result(client: Client, dsn: str) -> None:
    """A start of an id that has ended runs nothing: its handle has the stored result."""
    await client.start(ship, Order(1), id="a")
    finish(dsn, "a", '"shipped 1"')
    handle = await client.start(ship, Order(1), id="a")
    assert not handle.created
    assert await handle.result(timeout=5) == "shipped 1"
    assert rows(dsn, "SELECT count(*) FROM zart_tasks") == [(0,)]


async def test_equal_whatever_way_it_was_started(client: Client, dsn: str) -> None:
    """The same input is the same execution whether it was started by function, by name or from SQL."""
    rows(dsn, """SELECT zart_start('ship', 'sql', '{"number": 1}')""")
    assert not (await client.start(ship, Order(1), id="sql")).created
    assert not (await client.start("ship", {"number": 1}, id="sql")).created
    with pytest.raises(ExecutionConflict):
        await client.start(ship, Order(1, "x"), id="sql")
    await client.start(ship, Order(2), id="python")
    assert not (await client.start("ship", {"note": "", "number": 2}, id="python")).created
    with pytest.raises(ExecutionConflict):
        await client.start("ship", {"number": 3}, id="python")
    if modes.current() != "encrypted":  # SQL cannot compare what Python has encrypted
        again = rows(dsn, """SELECT zart_start('ship', 'python', '{"note": "", "number": 2}')""")
        assert again == [("python",)]


async def test_new_field_with_default_does_not_conflict(client: Client) -> None:
    """A start that is delivered again after a field with a default was added finds its execution."""
    import msgspec

    class Newer(msgspec.Struct):
        number: int
        note: str = ""
        plan: str = "free"

    @durable("ship")
    async def newer(order: Newer) -> str:
        return ""

    await client.start(ship, Order(1), id="a")
    assert not (await client.start(newer, Newer(1), id="a")).created


@pytest.mark.parametrize("id", STRANGE_IDS)
async def test_any_sign_in_an_id(client: Client, dsn: str, id: str) -> None:
    """Quotes, percent signs, emoji and the like in ids are just text."""
    handle = await client.start(ship, Order(1), id=id)
    assert (await client.status(id)).id == id
    assert await client.offer_event(id, "it's 100% #1 🚀", {"x": "%s"})
    finish(dsn, id)
    assert await handle.result(timeout=5) == "done"
    assert (await client.history(id)).execution.status == "completed"


@pytest.mark.parametrize("id", ["", "x" * 300, "a~b", "tab\t", "nul\0", "half\ud800", 7, "ü" * 101])
async def test_impossible_ids(client: Client, id: Any) -> None:
    """Ids that are empty, too long, with control characters or `~` are refused before anything is sent."""
    with pytest.raises(UsageError, match="the execution id"):
        await client.start(ship, Order(1), id=id)


async def test_input_that_does_not_fit(client: Client, dsn: str) -> None:
    """Input that does not fit the function is refused at the start, with the field."""
    with pytest.raises(SerializationError, match=r"input of 'ship'.*number"):
        await client.start(ship, {"number": "seven"})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="takes no input"):
        await client.start(sweep, 1)  # type: ignore[call-overload]
    with pytest.raises(UsageError, match="takes its input as one argument"):
        await client.start(ship)  # type: ignore[call-overload]
    with pytest.raises(UsageError, match="no durable function"):
        await client.start(print)  # type: ignore[call-overload]
    with pytest.raises(SerializationError, match="1,048,576"):
        await client.start(ship, Order(1, "x" * (1 << 20)))
    assert rows(dsn, "SELECT count(*) FROM zart_executions") == [(0,)]


async def test_delay_and_time(client: Client, dsn: str) -> None:
    """An execution may be due later: it is not claimed before."""
    at = dt.datetime.now(dt.UTC) + dt.timedelta(days=3)
    await client.start(sweep, id="at", at=at)
    await client.start(sweep, id="delay", delay="1h")
    await client.start(sweep, id="past", at=at - dt.timedelta(days=400))
    found = rows(
        dsn,
        "SELECT execution_id, state, wake_at = due_at, due_at - zart_now() FROM zart_tasks ORDER BY "
        "execution_id",
    )
    assert [row[:3] for row in found] == [
        ("at", "waiting", True),
        ("delay", "waiting", True),
        ("past", "ready", None),
    ]
    assert abs(found[0][3] - dt.timedelta(days=3)) < dt.timedelta(minutes=1)
    assert abs(found[1][3] - dt.timedelta(hours=1)) < dt.timedelta(minutes=1)
    assert abs(found[2][3]) < dt.timedelta(minutes=1)
    assert (await client.status("at")).status == "scheduled"
    with pytest.raises(UsageError, match="time zone"):
        await client.start(sweep, at=dt.datetime(2030, 1, 1))  # noqa: DTZ001
    with pytest.raises(UsageError, match="one of them"):
        await client.start(sweep, at=at, delay=1)


async def test_queue_priority_and_version(client: Client, dsn: str) -> None:
    """What a start says about queue and priority takes the place of the function's own; a name may have a
    version.
    """
    await client.start(ship.with_options(id="own", queue="slow", priority=3), Order(1))
    await client.start(ship, Order(1), id="given", queue="fast", priority=-1)
    await client.start("ship", {"number": 1}, id="named", version="2")
    assert rows(dsn, "SELECT id, queue, priority, version FROM zart_executions ORDER BY id") == [
        ("given", "fast", -1, None),
        ("named", "default", 0, "2"),
        ("own", "slow", 3, None),
    ]
    expected = (
        "SELECT e.id FROM zart_executions e JOIN zart_tasks t ON t.id = e.task_id "
        "WHERE t.lane = zart_lane(e.queue, e.name, e.version) ORDER BY e.id"
    )
    assert rows(dsn, expected) == [("given",), ("named",), ("own",)]


async def test_start_many(client: Client, dsn: str) -> None:
    """Many starts are one statement for a thousand, idempotent, in the order in which they were given."""
    items = {f"n-{number}": Order(number) for number in range(2500, 0, -1)}
    await client.start(ship, Order(5), id="n-5")
    handles = await client.start_many(ship, items)
    assert [handle.id for handle in handles] == list(items)
    assert [handle.id for handle in handles if not handle.created] == ["n-5"]
    assert not any(handle.created for handle in await client.start_many(ship, items))
    assert rows(dsn, "SELECT count(*) FROM zart_tasks WHERE state = 'ready'") == [(2500,)]


async def test_start_many_names_the_conflict(client: Client, dsn: str) -> None:
    """An id among many that stands for something else is named, and it is left as it is."""
    await client.start(ship, Order(99), id="b")
    with pytest.raises(ExecutionConflict, match="'b'"):
        await client.start_many(ship, {"a": Order(1), "b": Order(2), "c": Order(3)})
    ((payload,),) = rows(dsn, "SELECT payload FROM zart_executions WHERE id = 'b'")
    assert payload["number"] == 99
    with pytest.raises(UsageError, match="~"):
        await client.start_many(ship, {"fine": Order(1), "not~fine": Order(2)})
    assert rows(dsn, "SELECT count(*) FROM zart_executions WHERE id = 'fine'") == [(0,)]


async def test_many_starters_of_the_same_ids_do_not_deadlock(dsn: str, server_log: Any) -> None:
    """Starts of the same ids in opposite order, at once, do not deadlock."""
    ids = [f"n-{number}" for number in range(1000)]
    async with Client(dsn) as first, Client(dsn) as second:
        forward, backward = await asyncio.gather(
            first.start_many(ship, {key: Order(1) for key in ids}),
            second.start_many(ship, {key: Order(1) for key in reversed(ids)}),
        )
    assert sum(handle.created for handle in (*forward, *backward)) == 1000
    assert "deadlock" not in server_log()


async def test_in_a_transaction(client: Client, dsn: str) -> None:
    """A start in the caller's transaction exists when that has committed, and never if it is rolled back."""
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        handle = await client.start(ship, Order(1), id="rolled-back", connection=connection)
        assert handle.created
        assert await zart.start(ship, Order(2), id="rolled-back-2", connection=connection) == "rolled-back-2"
        await connection.rollback()
        await client.start(ship, Order(1), id="committed", connection=connection)
        with pytest.raises(zart.ExecutionNotFound):
            await client.status("committed")
        await connection.commit()
        assert (await client.status("committed")).status == "scheduled"
        again = await client.start(ship, Order(1), id="committed", connection=connection)
        assert not again.created
        with pytest.raises(ExecutionConflict):
            await client.start(ship, Order(2), id="committed", connection=connection)
        await connection.execute("SELECT 1")  # the conflict has not spoiled the transaction
    assert rows(dsn, "SELECT id FROM zart_executions") == [("committed",)]


async def test_start_in_a_transaction_takes_no_lock_on_tasks(client: Client, dsn: str) -> None:
    """A transaction that started an execution and stays open keeps nobody from working."""
    await client.start(ship, Order(1), id="before")
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        await client.start(ship, Order(1), id="held", connection=connection)
        with psycopg.connect(dsn, autocommit=True) as other_connection:
            other_connection.execute("SET lock_timeout = '100ms'")
            assert other_connection.execute("SELECT execution_id FROM zart_tasks FOR UPDATE").fetchall() == [
                ("before",)
            ]
        await connection.rollback()


async def test_start_without_connection_or_client(dsn: str) -> None:
    """Outside of a transaction the module's start says what to use."""
    with pytest.raises(UsageError, match=r"give it connection=.*client\.start"):
        await zart.start(ship, Order(1))
    with pytest.raises(UsageError, match="not open"):
        await Client(dsn).start(ship, Order(1))
    with psycopg.connect(dsn) as connection, pytest.raises(UsageError, match=r"psycopg\.AsyncConnection"):
        await zart.start(ship, Order(1), connection=connection)  # type: ignore[call-overload]


async def test_client_in_a_body_is_refused(client: Client, dsn: str) -> None:
    """In the body of a durable function a Client refuses, since its calls would be repeated by every
    replay.
    """

    class Body:
        def execution_id(self) -> str:
            return "x-1"

    token = place.set(Body())  # type: ignore[arg-type]
    try:
        for call in (
            client.start(ship, Order(1)),
            client.start_many(ship, {}),
            client.start_and_wait(ship, Order(1)),
            client.offer_event("x", "y"),
            client.status("x"),
            client.cancel("x"),
            client.resume("x"),
            client.stats(),
            client.history("x"),
            client.wait_completion("x"),
            client.handle(ship, "x").result(),
            anext(client.executions()),
            zart.start(ship, Order(1)),
            zart.offer_event("x", "y"),
        ):
            with pytest.raises(UsageError, match=r"body of execution 'x-1'.*put it into a step"):
                await call
    finally:
        place.reset(token)


async def test_plain_call_beside_a_client_warns(client: Client) -> None:
    """A durable function called plainly while a Client is open warns: nothing of it is recorded."""
    with pytest.warns(NotDurableWarning):
        assert await ship(Order(1)) == "shipped 1"


async def test_plain_call_without_a_client_is_silent(dsn: str) -> None:
    """Once the Client is closed a plain call is just that."""
    async with Client(dsn):
        pass
    assert await ship(Order(1)) == "shipped 1"


async def test_schema_with_quotes(empty_dsn: str) -> None:
    """A client works in any schema."""
    schema = "we\"ird %s o'schema"
    await migrate(empty_dsn, schema=schema)
    async with Client(empty_dsn, schema=schema) as client:
        await client.start(ship, Order(1), id="a")
        assert await client.offer_event("a", "x")
        assert (await client.status("a")).status == "scheduled"
        assert [execution.id async for execution in client.executions()] == ["a"]
        assert (await client.stats()).by_status == {"scheduled": 1}
        assert await client.cancel("a")
        with pytest.raises(zart.ExecutionCancelled):
            await client.handle(ship, "a").result()


async def test_missing_tables(empty_dsn: str) -> None:
    """Without tables a client says which command makes them."""
    async with Client(empty_dsn) as client:
        with pytest.raises(SchemaError, match="run `zart migrate`"):
            await client.start(ship, Order(1))


async def test_lost_connections_are_replaced(client: Client, direct_dsn: str) -> None:
    """A client whose connections were terminated goes on by itself."""
    await client.start(ship, Order(1), id="a")
    rows(
        direct_dsn,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND application_name = 'zart client'",
    )
    assert (await client.start(ship, Order(2), id="b")).created


@pytest.mark.not_in("unprepared", "pgbouncer", reason="each statement is planned anew, which takes its time")
async def test_start_is_quick(client: Client, dsn: str) -> None:
    """A start takes hardly longer than a bare insert with its commit, beside which it is timed."""
    starts, inserts = [], []
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as other:
        await other.execute(
            "CREATE TABLE bare (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, what text)"
        )
        for _ in range(300):
            begin = time.perf_counter()
            await client.start(ship, Order(1))
            between = time.perf_counter()
            await other.execute("INSERT INTO bare (what) VALUES ('x') RETURNING id")
            starts.append(between - begin)
            inserts.append(time.perf_counter() - between)
    assert sorted(starts)[150] < 6 * sorted(inserts)[150]


async def test_starts_at_once_share_statements(
    client: Client, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred callers without ids of their own need a handful of statements, and get an execution each."""
    statements: list[str] = []
    query = client._database.query

    async def counting(statement: str, *arguments: Any) -> Any:
        statements.append(statement)
        return await query(statement, *arguments)

    monkeypatch.setattr(client._database, "query", counting)
    handles = await asyncio.gather(*(client.start(ship, Order(number)) for number in range(100)))
    assert all(handle.created for handle in handles)
    assert len(statements) <= 5
    found = {id: payload["number"] for id, payload in rows(dsn, "SELECT id, payload FROM zart_executions")}
    assert found == {handle.id: number for number, handle in enumerate(handles)}


async def test_an_id_that_somebody_holds_delays_nobody_else(client: Client, dsn: str) -> None:
    """A start waits for another transaction that starts the same id; other starts do not wait with it."""
    async with await psycopg.AsyncConnection.connect(dsn) as other:
        await other.execute("SELECT zart_start('ship', id => 'held', payload => '{\"number\": 1}')")
        held = asyncio.create_task(client.start(ship, Order(1), id="held"))
        async with asyncio.timeout(10):
            await asyncio.gather(*(client.start(ship, Order(number)) for number in range(20)))
        assert not held.done()
    assert not (await held).created
