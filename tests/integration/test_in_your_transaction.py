"""Starts and events in a transaction of the caller's own, whoever the caller is: all of it happens, or nothing."""

import asyncio
import datetime as dt
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

import zart
import zart.sync
from tests.support.callers import CALLERS, SYNC, Caller, Sync
from tests.support.clients import Approval, Approved, Order, finish, other, rows, ship, sweep
from tests.support.running import fast, query, until, until_status, working
from zart import durable, step

every_caller = pytest.mark.parametrize("kind", CALLERS.values(), ids=CALLERS)
MAIN = {name: kind for name, kind in CALLERS.items() if " with " not in name}
main_callers = pytest.mark.parametrize(
    "kind", MAIN.values(), ids=MAIN
)  # the others differ in how they read rows
LEFT = (
    "SELECT (SELECT count(*) FROM zart_executions), (SELECT count(*) FROM zart_tasks), "
    "(SELECT count(*) FROM zart_events), (SELECT count(*) FROM zart_wakeups)"
)


@step("pack")
async def pack(number: int) -> str:
    return f"parcel {number}"


@durable("parcel")
async def parcel(order: Order) -> str:
    return await pack(order.number)


@durable("answered")
async def answered(order: Order) -> str:
    return f"{await pack(order.number)} to {await zart.wait_for_event('address', str)}"


# ------------------------------------------------------------ everybody


@every_caller
async def test_rolled_back_there_is_nothing(dsn: str, kind: type[Caller]) -> None:
    """A start, and an event for it, that are rolled back have left no row, and the id is free."""
    async with kind(dsn) as caller:
        await caller.start(ship, Order(1), id="a")
        await caller.offer("a", "address", "here")
        await caller.rollback()
        assert await query(dsn, LEFT) == [(0, 0, 0, 0)]
        await caller.start(other, Order(2), id="a")
        await caller.commit()
    assert await query(dsn, "SELECT id, name FROM zart_executions") == [("a", "other")]


@every_caller
async def test_a_savepoint_that_is_rolled_back(dsn: str, kind: type[Caller]) -> None:
    """What was started and offered after a savepoint goes with it, and the rest stays."""
    async with kind(dsn) as caller:
        await caller.start(ship, Order(1), id="kept")
        await caller.execute("SAVEPOINT here")
        await caller.start(ship, Order(2), id="gone")
        await caller.offer("kept", "address", "nowhere")
        await caller.execute("ROLLBACK TO here")
        await caller.offer("kept", "address", "here")
        await caller.commit()
    assert await query(dsn, LEFT) == [(1, 1, 1, 1)]
    assert await query(dsn, "SELECT execution_id, payload FROM zart_events") == [("kept", "here")]


@every_caller
async def test_the_callers_own_rows_go_with_it(dsn: str, kind: type[Caller]) -> None:
    """What the caller writes and what he starts are in one transaction: both are there, or none."""
    await query(dsn, "CREATE TABLE orders (number int)")
    both = "SELECT (SELECT array_agg(number) FROM orders), (SELECT array_agg(id) FROM zart_executions)"
    async with kind(dsn) as caller:
        await caller.execute("INSERT INTO orders VALUES (1)")
        await caller.start(ship, Order(1), id="a")
        assert await query(dsn, both) == [(None, None)]
        await caller.rollback()
        assert await query(dsn, both) == [(None, None)]
        await caller.execute("INSERT INTO orders VALUES (2)")
        await caller.start(ship, Order(2), id="b")
        await caller.commit()
        assert await query(dsn, both) == [([2], ["b"])]


@main_callers
@pytest.mark.usefixtures("notified")
async def test_a_worker_sees_it_once_it_is_committed_and_then_at_once(
    dsn: str, kind: type[Caller], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start is taken up when its transaction commits, by an idle worker that is told; meanwhile nobody waits."""
    monkeypatch.setattr("zart._engine.claiming._IDLE", 3600.0)  # nobody finds it by chance
    async with working(dsn, parcel) as client, kind(dsn) as caller:
        await caller.start(parcel, Order(1), id="held")
        for number in range(10):
            assert await client.start_and_wait(parcel, Order(number), timeout="10s") == f"parcel {number}"
        with pytest.raises(zart.ExecutionNotFound):
            await client.status("held")
        await _idle(dsn)
        await caller.commit()
        assert await client.handle(parcel, "held").result(timeout="10s") == "parcel 1"


@main_callers
@pytest.mark.usefixtures("notified")
async def test_an_event_arrives_once_it_is_committed_and_then_at_once(
    dsn: str, kind: type[Caller], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event reaches its execution when its transaction commits, and never if it is rolled back; nobody waits."""
    monkeypatch.setattr("zart._engine.claiming._IDLE", 3600.0)
    async with working(dsn, answered) as client, kind(dsn) as caller:
        held = await client.start(answered, Order(1), id="held")
        await until_status(client, "held", "waiting")
        await caller.offer("held", "address", "nowhere")
        await caller.rollback()
        await caller.offer("held", "address", "a street")
        for number in range(5):
            one = await client.start(answered, Order(number))
            await client.offer_event(one.id, "address", "a square")
            assert await one.result(timeout="10s") == f"parcel {number} to a square"
        assert (await client.status("held")).status == "waiting"
        await _idle(dsn)
        await caller.commit()
        assert await held.result(timeout="10s") == "parcel 1 to a street"


async def _idle(dsn: str) -> None:
    """Until the worker has nothing to do and listens."""
    await until(lambda: query(dsn, "SELECT 1 FROM zart_workers WHERE idle"), "that the worker is idle")


@main_callers
async def test_a_start_and_its_event_in_one_transaction(dsn: str, kind: type[Caller]) -> None:
    """An execution can be started and sent an event before anybody else sees it."""
    async with working(dsn, answered) as client, kind(dsn) as caller:
        await caller.start(answered, Order(7), id="a")
        await caller.offer("a", "address", "a street", dedup="once")
        await caller.offer("a", "address", "a street", dedup="once")
        await caller.commit()
        assert await client.handle(answered, "a").result(timeout="10s") == "parcel 7 to a street"
    assert await query(dsn, "SELECT count(*) FROM zart_events") == [(1,)]


# ------------------------------------------------------------ zart.sync, on each kind of connection


@pytest.fixture
async def lent(dsn: str, request: pytest.FixtureRequest) -> Any:
    """A caller with a connection of this kind."""
    async with request.param(dsn) as caller:
        yield caller


each_connection = pytest.mark.parametrize("lent", SYNC.values(), ids=SYNC, indirect=True)


@each_connection
async def test_in_autocommit_mode(dsn: str, lent: Sync) -> None:
    """Without a transaction of the caller's the statement is its own."""
    await lent.run(lent.set_autocommit)
    await lent.start(ship, Order(1), id="a")
    assert await query(dsn, "SELECT count(*) FROM zart_tasks") == [(1,)]
    await lent.offer("a", "address", "here")
    assert await query(dsn, "SELECT count(*) FROM zart_wakeups") == [(1,)]


@each_connection
async def test_an_id_stands_for_one_input(dsn: str, lent: Sync) -> None:
    """The same start again is fine, another one is a conflict, and the transaction goes on after it."""

    def check() -> None:
        for _ in range(2):
            assert (
                zart.sync.start(ship, Order(1, 'it\'s 100 % "fine" \\'), id="a", connection=lent.lend())
                == "a"
            )
        with pytest.raises(zart.ExecutionConflict, match="another input"):
            zart.sync.start(ship, Order(2), id="a", connection=lent.lend())
        with pytest.raises(zart.ExecutionConflict, match="of the function 'ship', not 'other'"):
            zart.sync.start(other, Order(1), id="a", connection=lent.lend())
        zart.sync.start(sweep, id="b", connection=lent.lend())
        zart.sync.start(sweep, id="b", connection=lent.lend())

    await lent.run(check)
    await lent.commit()
    (first, second) = await query(dsn, "SELECT id, payload FROM zart_executions ORDER BY id")
    assert (first[0], first[1]["note"]) == ("a", 'it\'s 100 % "fine" \\')
    assert second == ("b", None)


@each_connection
async def test_an_input_that_was_started_from_sql_is_compared(dsn: str, lent: Sync) -> None:
    """An execution that SQL has started has no digest; its input is read as the function's type."""
    await query(dsn, """SELECT zart_start('ship', 'a', '{"number": 1, "note": "x\\"{},NULL"}')""")

    def check() -> None:
        assert zart.sync.start(ship, Order(1, 'x"{},NULL'), id="a", connection=lent.lend()) == "a"
        with pytest.raises(zart.ExecutionConflict):
            zart.sync.start(ship, Order(1, "NULL"), id="a", connection=lent.lend())

    await lent.run(check)


@each_connection
async def test_an_event_is_checked_as_elsewhere(dsn: str, lent: Sync) -> None:
    """Added or not by its dedup key; refused for an unknown execution, and for one that has ended."""
    rows(
        dsn,
        "SELECT zart_start('ship', 'a', '{\"number\": 1}'), zart_start('ship', 'done', '{\"number\": 1}')",
    )
    finish(dsn, "done")

    def check() -> None:
        assert zart.sync.offer_event("a", Approved, Approval("ann"), dedup="k", connection=lent.lend())
        assert not zart.sync.offer_event("a", Approved, Approval("ann"), dedup="k", connection=lent.lend())
        assert zart.sync.offer_event("a", "100 %s", {"x": [1, None, "%(id)s"]}, connection=lent.lend())
        with pytest.raises(zart.ExecutionNotFound, match="'nobody'"):
            zart.sync.offer_event("nobody", "x", connection=lent.lend())
        with pytest.raises(zart.ExecutionFinished, match="'done'"):
            zart.sync.offer_event("done", "x", connection=lent.lend())
        with pytest.raises(zart.SerializationError, match="approved"):
            zart.sync.offer_event("a", Approved, "yes", connection=lent.lend())  # type: ignore[misc]

    await lent.run(check)
    await lent.commit()
    found = await query(dsn, "SELECT name, payload FROM zart_events ORDER BY id")
    assert found == [("approved", {"by": "ann"}), ("100 %s", {"x": [1, None, "%(id)s"]})]


@each_connection
async def test_what_cannot_be_is_refused_before_anything_is_sent(dsn: str, lent: Sync) -> None:
    """Input that does not fit, is too large, or an id that cannot be: an error of Zart's, and a sound transaction."""

    def check() -> None:
        with pytest.raises(zart.SerializationError, match="is the most"):
            zart.sync.start(ship, Order(1, "x" * 2**20), id="a", connection=lent.lend())
        with pytest.raises(zart.SerializationError):
            zart.sync.start(ship, Order(1, "\0"), id="a", connection=lent.lend())
        with pytest.raises(zart.UsageError, match="~"):
            zart.sync.start(ship, Order(1), id="a~b", connection=lent.lend())
        with pytest.raises(zart.UsageError, match="takes its input"):
            zart.sync.start(ship, id="a", connection=lent.lend())  # type: ignore[arg-type]
        zart.sync.start(ship, Order(1, "x" * 1_000_000), id="large", connection=lent.lend())

    await lent.run(check)
    await lent.commit()
    assert await query(dsn, "SELECT id FROM zart_executions") == [("large",)]


@each_connection
async def test_a_client_starts_with_all_its_options(dsn: str, lent: Sync) -> None:
    """`Client.start(connection=)` is the same statement, with delay, queue and priority; nothing need be open."""
    client = zart.sync.Client(dsn)
    in_a_year = dt.datetime.now(dt.UTC) + dt.timedelta(days=365)

    def check() -> None:
        handle = client.start(
            ship, Order(1), id="a", delay="1h", queue="mail", priority=-(2**31), connection=lent.lend()
        )
        assert (handle.id, handle.created) == ("a", True)
        again = client.start(ship, Order(2), id="a", on_conflict="return", connection=lent.lend())
        assert (again.id, again.created) == ("a", False)
        client.start(ship.with_options(timeout="90m"), Order(1), id="b", at=in_a_year, connection=lent.lend())
        assert client.start(ship, Order(1), connection=lent.lend()).id[14] == "7"

    await lent.run(check)
    await lent.commit()
    assert await query(
        dsn,
        "SELECT e.id, e.queue, t.priority, t.state, t.wake_at - e.created_at BETWEEN '59 min' AND '61 min', "
        "t.wake_at = %s, t.time_limit FROM zart_executions e JOIN zart_tasks t ON t.id = e.task_id "
        "ORDER BY e.priority, e.id DESC",
        in_a_year,
    ) == [
        ("a", "mail", -(2**31), "waiting", True, False, None),
        ("b", "default", 0, "waiting", False, True, dt.timedelta(minutes=90)),
        (ANY, "default", 0, "ready", None, None, None),
    ]
    assert client._portal._portal is None


class _Any:
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


ANY = _Any()


@each_connection
async def test_missing_tables_are_named(empty_dsn: str, lent: Sync) -> None:
    """Where nobody has migrated, the error names the command, whichever driver says so."""

    def check() -> None:
        with pytest.raises(zart.SchemaError, match="zart migrate --schema elsewhere"):
            zart.sync.start(ship, Order(1), connection=lent.lend(), schema="elsewhere")

    await lent.run(check)


@each_connection
async def test_any_schema(dsn: str, lent: Sync) -> None:
    """The tables may be in a schema whose name a driver could misread."""
    name = 'o\'schema "x" %s %(id)s'
    await zart.migrate(dsn, schema=name)

    def check() -> None:
        zart.sync.start(ship, Order(1), id="a", connection=lent.lend(), schema=name)
        with pytest.raises(zart.ExecutionConflict):
            zart.sync.start(ship, Order(2), id="a", connection=lent.lend(), schema=name)
        assert zart.sync.offer_event("a", "x", connection=lent.lend(), schema=name)

    await lent.run(check)


# ------------------------------------------------------------ where it is refused


async def test_other_connections_are_refused(dsn: str) -> None:
    """What has no cursor, or is asynchronous, is refused with what to give instead."""
    for wrong in (None, dsn, object()):
        with pytest.raises(zart.UsageError, match=r"django\.db\.connection"):
            zart.sync.start(ship, Order(1), connection=wrong)  # type: ignore[call-overload]
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        with pytest.raises(zart.UsageError, match=r"await zart\.start"):
            zart.sync.start(ship, Order(1), connection=connection)  # type: ignore[call-overload]


@durable("starts-others")
async def starts_others(dsn: str) -> list[str]:
    """Tries to start and signal from its body, and starts from a step."""
    told: list[str] = []
    calls: list[Callable[[psycopg.Connection[Any]], object]] = [
        lambda connection: zart.sync.start(parcel, Order(1), id="no", connection=connection),
        lambda connection: zart.sync.offer_event("x", "y", connection=connection),
        lambda connection: zart.sync.Client(dsn).start(parcel, Order(1), id="no", connection=connection),
    ]
    for call in calls:
        with psycopg.connect(dsn) as connection:
            try:
                call(connection)
            except zart.UsageError as error:
                told.append(str(error))
    return [*told, await starts(dsn)]


@step("starts")
def starts(dsn: str) -> str:
    """Its own transaction; what it starts is idempotent by the step's key."""
    with psycopg.connect(dsn) as connection:
        return zart.sync.start(
            parcel, Order(3), id=zart.step_context().idempotency_key, connection=connection
        )


async def test_in_a_body_it_is_refused_and_in_a_step_it_works(dsn: str) -> None:
    """A body would repeat it on every replay; a step does it in a transaction of its own."""
    async with working(dsn, starts_others, parcel, config=fast()) as client:
        *told, started = await client.start_and_wait(starts_others, dsn, timeout="30s")
        assert len(told) == 3
        assert all("is called in the body of execution" in text and "step" in text for text in told)
        assert await client.wait_completion(started, timeout="30s") == "parcel 3"


async def test_a_transaction_that_cannot_see_the_other_start(dsn: str) -> None:
    """Under repeatable read, an id that somebody has taken meanwhile is the database's own reason to try again."""
    with psycopg.connect(dsn) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.execute("SELECT 1 FROM zart_executions")
        rows(dsn, "SELECT zart_start('ship', 'a', '{\"number\": 1}')")
        with pytest.raises(psycopg.errors.SerializationFailure):
            zart.sync.start(ship, Order(1), id="a", connection=connection)


async def test_two_transactions_start_the_same_id(dsn: str) -> None:
    """The second waits for the first, and takes what that has left: its execution, or the place."""
    async with SYNC["psycopg"](dsn) as first, SYNC["psycopg2"](dsn) as second:
        for end, found in ((first.rollback, 2), (first.commit, 1)):
            await first.start(ship, Order(1), id=f"a{found}")
            waiting = asyncio.create_task(second.start(ship, Order(2), id=f"a{found}"))
            await until(
                lambda: query(dsn, "SELECT 1 FROM pg_locks WHERE NOT granted"), "that the second start waits"
            )
            await end()
            if found == 1:
                with pytest.raises(zart.ExecutionConflict):
                    await waiting
            else:
                await waiting
            await second.commit()
    found = await query(dsn, "SELECT id, payload FROM zart_executions ORDER BY id")
    assert [(id, payload["number"]) for id, payload in found] == [("a1", 1), ("a2", 2)]
