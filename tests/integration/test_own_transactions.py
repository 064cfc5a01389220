"""Steps with `transaction="own"`: their record is the last statement of a transaction on an ORM's own connection."""

import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import django
import psycopg
import pytest
import sqlalchemy
from django.conf import settings
from psycopg import conninfo
from psycopg.types.json import Jsonb
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

import zart
from tests.support.running import BURY, fast, query, until, until_record, working
from zart import durable, step
from zart._engine import points

RECORD = "SELECT zart_record_step(%s, %s)"
ran: list[str] = []
shared: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def _nothing_ran() -> Iterator[None]:
    ran.clear()
    shared.clear()
    yield
    points.listener = None


@pytest.fixture
async def shop(dsn: str) -> str:
    await query(dsn, "CREATE TABLE orders (id text NOT NULL)")
    shared["dsn"] = dsn
    return dsn


async def orders(dsn: str) -> int:
    return (await query(dsn, "SELECT count(*) FROM orders"))[0][0]


def order_with(record: Callable[[str], Awaitable[Any]] | None = None, **options: Any) -> Any:
    """A durable function of one such step, which does its work by `record`."""

    @step("order", transaction="own", **options)
    async def order(id: str) -> str:
        ran.append(id)
        assert record is not None
        await record(id)
        return id

    @durable("ordering")
    async def ordering(id: str) -> str:
        return await order(id)

    return ordering


@asynccontextmanager
async def own_transaction(id: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """An order that was inserted in a transaction that commits at the end."""
    async with await psycopg.AsyncConnection.connect(shared["dsn"]) as connection:
        await connection.execute("INSERT INTO orders VALUES (%s)", (id,))
        yield connection


async def insert_and_record(id: str, token: str | None = None) -> None:
    async with own_transaction(id) as connection:
        await connection.execute(RECORD, (token or zart.step_context().token, Jsonb(id)))


# ---------------------------------------------------------------- with the tools that people have


@pytest.fixture
async def engine(shop: str) -> AsyncIterator[AsyncEngine]:
    made = create_async_engine("postgresql+psycopg://", connect_args=dict(conninfo.conninfo_to_dict(shop)))
    yield made
    await made.dispose()


RECORD_BY_SQLALCHEMY = sqlalchemy.text("SELECT zart_record_step(:token, cast(:result AS jsonb))")


async def test_sqlalchemy_async(shop, engine):
    """`async with engine.begin()`: the record is the last statement of the block."""

    async def record(id: str) -> None:
        async with engine.begin() as connection:
            await connection.execute(sqlalchemy.text("INSERT INTO orders VALUES (:id)"), {"id": id})
            await connection.execute(
                RECORD_BY_SQLALCHEMY, {"token": zart.step_context().token, "result": json.dumps(id)}
            )

    fn = order_with(record)
    async with working(shop, fn) as client:
        assert await client.start_and_wait(fn, "o-1", id="o", timeout="30s") == "o-1"
    assert await orders(shop) == 1


async def test_sqlalchemy_in_a_plain_def(shop):
    """A session of the synchronous ORM, in the step's thread."""
    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://", connect_args=dict(conninfo.conninfo_to_dict(shop))
    )

    @step("order", transaction="own")
    def order(id: str) -> str:
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text("INSERT INTO orders VALUES (:id)"), {"id": id})
            connection.execute(
                RECORD_BY_SQLALCHEMY, {"token": zart.step_context().token, "result": json.dumps(id)}
            )
        return id

    @durable("ordering")
    async def ordering(id: str) -> str:
        return await order(id)

    async with working(shop, ordering) as client:
        assert await client.start_and_wait(ordering, "o-1", id="o", timeout="30s") == "o-1"
    engine.dispose()
    assert await orders(shop) == 1


async def test_asyncpg(shop):
    """`async with connection.transaction()`; asyncpg takes jsonb as text."""
    given = conninfo.conninfo_to_dict(shop)
    names = {"dbname": "database", "user": "user", "password": "password", "host": "host", "port": "port"}
    arguments = {names[name]: value for name, value in given.items() if name in names}

    async def record(id: str) -> None:
        connection = await asyncpg.connect(**arguments, statement_cache_size=0)
        try:
            async with connection.transaction():
                await connection.execute("INSERT INTO orders VALUES ($1)", id)
                await connection.execute(
                    "SELECT zart_record_step($1, $2)", zart.step_context().token, json.dumps(id)
                )
        finally:
            await connection.close()

    fn = order_with(record)
    async with working(shop, fn) as client:
        assert await client.start_and_wait(fn, "o-1", id="o", timeout="30s") == "o-1"
    assert await orders(shop) == 1


async def test_django(shop):
    """`with transaction.atomic()`, on the connection of the step's thread."""
    given = conninfo.conninfo_to_dict(shop)
    database = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": given["dbname"],
        "USER": given.get("user", ""),
        "PASSWORD": given.get("password", ""),
        "HOST": given.get("host", ""),
        "PORT": given.get("port", ""),
    }
    if not settings.configured:
        settings.configure(DATABASES={"default": database})
        django.setup()
    from django.db import connections, transaction
    from django.db.utils import ConnectionHandler

    handler = ConnectionHandler({"default": database})

    @step("order", transaction="own")
    def order(id: str) -> str:
        connections["default"] = handler["default"]
        try:
            with transaction.atomic(), connections["default"].cursor() as cursor:
                cursor.execute("INSERT INTO orders VALUES (%s)", [id])
                cursor.execute(
                    "SELECT zart_record_step(%s, %s::jsonb)", [zart.step_context().token, json.dumps(id)]
                )
        finally:
            connections["default"].close()
        return id

    @durable("ordering")
    async def ordering(id: str) -> str:
        return await order(id)

    async with working(shop, ordering) as client:
        assert await client.start_and_wait(ordering, "o-1", id="o", timeout="30s") == "o-1"
    assert await orders(shop) == 1


# ---------------------------------------------------------------- when things break


@pytest.mark.parametrize("always_suspend", [False, True], ids=["live", "replayed after each record"])
async def test_what_was_recorded_is_the_result(shop, always_suspend):
    """As it was recorded, not as the function returned it; and nothing of it stays beside the journal."""

    async def record(id: str) -> None:
        async with own_transaction(id) as connection:
            await connection.execute(RECORD, (zart.step_context().token, Jsonb("recorded")))

    fn = order_with(record)
    async with working(shop, fn, always_suspend=always_suspend) as client:
        assert await client.start_and_wait(fn, "o-1", id="o", timeout="30s") == "recorded"

        async def forgotten() -> bool:
            return await query(shop, "SELECT 1 FROM zart_recorded_steps") == []

        await until(forgotten)
    assert ran == ["o-1"]
    assert await query(shop, "SELECT seq, state, result FROM zart_v_steps") == [(1, "completed", "recorded")]


async def test_what_was_committed_is_never_done_again(shop):
    """The worker is taken for dead after the commit, before the journal has it: the next one takes it over."""
    fn = order_with(insert_and_record)

    def bury(point: str) -> None:
        if point == "own.recorded" and "buried" not in ran:
            ran.append("buried")
            with psycopg.connect(shop, autocommit=True) as connection:
                connection.execute(BURY)

    points.listener = bury
    async with working(shop, fn) as client:
        assert await client.start_and_wait(fn, "o-1", id="o", timeout="30s") == "o-1"
    assert ran == ["o-1", "buried"]
    assert await orders(shop) == 1


async def test_a_failure_after_the_commit_changes_nothing(shop):
    """What is committed is recorded: the function's exception comes too late."""

    async def record(id: str) -> None:
        await insert_and_record(id)
        raise ConnectionError("the connection did not close cleanly")

    fn = order_with(record)
    async with working(shop, fn) as client:
        assert await client.start_and_wait(fn, "o-1", id="o", timeout="30s") == "o-1"
    assert ran == ["o-1"]


async def test_a_failed_attempt_is_tried_again(shop):
    """Rolled back, with its record: the next attempt has another token."""

    async def record(id: str) -> None:
        async with own_transaction(id) as connection:
            await connection.execute(RECORD, (zart.step_context().token, Jsonb(id)))
            if len(ran) < 3:
                raise ConnectionError("not yet")

    fn = order_with(record, retry="fixed(2, 1ms)")
    async with working(shop, fn) as client:
        assert await client.start_and_wait(fn, "o-1", id="o", timeout="30s") == "o-1"
    assert ran == ["o-1"] * 3
    assert await orders(shop) == 1


async def not_called(id: str) -> None:
    async with own_transaction(id):
        pass


async def rolled_back(id: str) -> None:
    async with own_transaction(id) as connection:
        await connection.execute(RECORD, (zart.step_context().token, Jsonb(id)))
        await connection.rollback()


async def not_committed(id: str) -> None:
    connection = await psycopg.AsyncConnection.connect(shared["dsn"])
    shared["open"] = connection
    await connection.execute(RECORD, (zart.step_context().token, Jsonb(id)))


@pytest.mark.parametrize(
    ("record", "told"),
    [
        (not_called, "zart_record_step was not called with its token, or that transaction was rolled back"),
        (rolled_back, "zart_record_step was not called with its token, or that transaction was rolled back"),
        (not_committed, "is not committed: commit it before the step returns"),
    ],
)
async def test_a_step_that_does_not_record_itself_fails_by_name(shop, record, told):
    """Not called, rolled back, not committed: no retry would do better, so there is none."""
    fn = order_with(record, retry="fixed(3, 1ms)")
    async with working(shop, fn) as client:
        handle = await client.start(fn, "o-1", id="o")
        with pytest.raises(zart.ExecutionFailed, match=told):
            await handle.result(timeout="30s")
    if "open" in shared:
        await shared["open"].close()
    assert ran == ["o-1"]


async def test_an_open_transaction_holds_up_nobody_else(shop):
    """The one that stays open has written no row of the journal: others of the worker go on meanwhile."""

    async def waits(id: str) -> None:
        async with own_transaction(id) as connection:
            await connection.execute(RECORD, (zart.step_context().token, Jsonb(id)))
            zart.progress("recorded")
            if id == "slow":
                shared["recorded"] = True
                await until(lambda: shared.get("go on"))

    fn = order_with(waits)
    async with working(shop, fn, config=fast(orphan_timeout="20s")) as client:
        slow = await client.start(fn, "slow", id="slow")
        await until(lambda: shared.get("recorded"))
        await until_record(client, "slow", "order", "running")
        for number in range(5):
            await client.start_and_wait(fn, f"o-{number}", id=f"o-{number}", timeout="10s")
        shared["go on"] = True
        assert await slow.result(timeout="10s") == "slow"


async def refused(statement: str, *parameters: Any) -> psycopg.Error:
    async with await psycopg.AsyncConnection.connect(shared["dsn"]) as connection:
        with pytest.raises(psycopg.Error) as raised:
            await connection.execute(statement.encode(), parameters)
        await connection.rollback()
    return raised.value


async def test_recording_twice_is_refused(shop):
    """In the same transaction, and in another one: nothing of the second counts."""

    async def twice(id: str) -> None:
        async with own_transaction(id) as connection:
            token = zart.step_context().token
            await connection.execute(RECORD, (token, Jsonb(id)))
            with pytest.raises(psycopg.errors.UniqueViolation, match="'?order'? is recorded already"):
                async with connection.transaction():
                    await connection.execute(RECORD, (token, Jsonb("again")))
        error = await refused(RECORD, token, Jsonb("again"))
        assert error.sqlstate == "23505"

    fn = order_with(twice)
    async with working(shop, fn) as client:
        assert await client.start_and_wait(fn, "o-1", id="o", timeout="30s") == "o-1"


async def test_the_token_of_an_attempt_that_is_over_is_refused(shop):
    """A thread of the first attempt that comes late rolls back; the second one's record counts."""

    async def record(id: str) -> None:
        tokens = shared.setdefault("tokens", [])
        tokens.append(zart.step_context().token)
        if len(tokens) == 1:
            raise TimeoutError("too slow")
        error = await refused(RECORD, tokens[0], Jsonb("late"))
        assert error.sqlstate == "55000"
        assert "attempt 1 of step order is over" in str(error)
        await insert_and_record(id)

    fn = order_with(record, retry="fixed(1, 1ms)")
    async with working(shop, fn) as client:
        assert await client.start_and_wait(fn, "o-1", id="o", timeout="30s") == "o-1"
        error = await refused(RECORD, shared["tokens"][1], Jsonb("late"))
        assert error.sqlstate in ("23505", "55000")
    assert await orders(shop) == 1


async def test_a_worker_that_was_taken_for_dead_records_nothing(shop):
    """Its transaction is refused, and with it the order; the one who took over has one of his own."""

    @step("order", transaction="own")
    def order(id: str) -> str:
        first = not ran
        ran.append(id)
        with psycopg.connect(shop) as connection:
            connection.execute("INSERT INTO orders VALUES (%s)", (id,))
            if first:
                with psycopg.connect(shop) as other:
                    other.execute(BURY)
                with pytest.raises(
                    psycopg.errors.ObjectNotInPrerequisiteState, match="not its worker's any more"
                ):
                    connection.execute(RECORD, (zart.step_context().token, Jsonb(id)))
                ran.append("refused")
                connection.rollback()
            else:
                connection.execute(RECORD, (zart.step_context().token, Jsonb(id)))
        return id

    @durable("ordering")
    async def ordering(id: str) -> str:
        return await order(id)

    async with working(shop, ordering) as client:
        assert await client.start_and_wait(ordering, "o-1", id="o", timeout="30s") == "o-1"
    assert sorted(ran) == ["o-1", "o-1", "refused"]
    assert await orders(shop) == 1


@pytest.mark.parametrize("token", ["", "nonsense", "1.2.3", "1.2.3.4.5.6.7.8", "x" * 300, None])
async def test_what_is_no_token_is_refused(shop, token):
    """With what to give instead."""
    error = await refused(RECORD, token, Jsonb(1))
    assert error.sqlstate == "22023"
    assert "zart_record_step was given no token" in str(error)
    assert error.diag.message_hint is not None
    assert "step_context().token" in error.diag.message_hint


async def test_the_token_of_another_kind_of_step_is_none(shop):
    """A step without transaction="own" has nothing to record by itself."""

    @step("plain")
    async def plain() -> str:
        return str((await refused(RECORD, zart.step_context().token, Jsonb(1))).sqlstate)

    @durable("plainly")
    async def plainly() -> str:
        return await plain()

    async with working(shop, plainly) as client:
        assert await client.start_and_wait(plainly, id="p", timeout="30s") == "22023"


async def test_the_transaction_is_ended_when_it_stands_idle(shop):
    """zart_record_step sets the limit itself: nobody is kept from taking over by a process that was stopped."""

    async def idles(id: str) -> None:
        async with own_transaction(id) as connection:
            await connection.execute(RECORD, (zart.step_context().token, Jsonb(id)))
            cursor = await connection.execute("SELECT current_setting('idle_in_transaction_session_timeout')")
            shared["limit"] = (await cursor.fetchall())[0][0]

    fn = order_with(idles)
    async with working(shop, fn, config=fast(orphan_timeout="2500ms")) as client:
        await client.start_and_wait(fn, "o-1", id="o", timeout="30s")
    assert shared["limit"] == "2500ms"


async def test_a_large_result_is_refused(shop):
    """The limit of every stored value, with the step's name."""

    async def large(id: str) -> None:
        error = await refused(RECORD, zart.step_context().token, Jsonb("x" * (1 << 20)))
        assert "the result of step order is" in str(error)
        await insert_and_record(id)

    fn = order_with(large)
    async with working(shop, fn) as client:
        assert await client.start_and_wait(fn, "o-1", id="o", timeout="30s") == "o-1"


async def test_a_thread_that_comes_late_is_heard_or_refused(shop):
    """A plain def past its time limit: the second attempt waits for its thread, and takes over what that committed."""
    gate = threading.Event()

    @step("order", transaction="own", retry="fixed(1, 1ms)", timeout="300ms")
    def order(id: str) -> str:
        ran.append(id)
        token = zart.step_context().token
        with psycopg.connect(shared["dsn"]) as connection:
            connection.execute("INSERT INTO orders VALUES (%s)", (id,))
            if len(ran) == 1:
                connection.execute(RECORD, (token, Jsonb("first")))
                gate.wait(1)
            else:
                connection.execute(RECORD, (token, Jsonb("second")))
        return id

    @durable("ordering")
    async def ordering(id: str) -> str:
        return await order(id)

    async with working(shop, ordering, config=fast(orphan_timeout="20s")) as client:
        result = await client.start_and_wait(ordering, "o-1", id="o", timeout="30s")
    assert (result, await orders(shop)) == ("first", 1)
    assert ran == ["o-1"]
