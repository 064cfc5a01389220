"""Steps with `transaction=True`: what they write and their record are one commit."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest

import zart
import zart.sync
from tests.support.running import BURY, fast, query, until, until_status, working
from zart import durable, step
from zart._engine import points
from zart._engine.transaction_lines import SyncLine

ran: list[str] = []
gates: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    ran.clear()
    gates.clear()


@pytest.fixture
async def bank(dsn: str) -> str:
    """A database with two accounts and a list of transfers."""
    await query(dsn, "CREATE TABLE accounts (name text PRIMARY KEY, amount int NOT NULL)")
    await query(dsn, "INSERT INTO accounts VALUES ('a', 100), ('b', 100)")
    await query(dsn, "CREATE TABLE transfers (id text)")
    return dsn


async def accounts(dsn: str) -> dict[str, int]:
    return dict(await query(dsn, "SELECT name, amount FROM accounts"))


async def records(dsn: str) -> list[tuple[Any, ...]]:
    return await query(dsn, "SELECT name, seq, state FROM zart_v_steps ORDER BY seq, name")


async def move(amount: int) -> None:
    connection = zart.connection()
    await connection.execute("UPDATE accounts SET amount = amount - %s WHERE name = 'a'", (amount,))
    await connection.execute("UPDATE accounts SET amount = amount + %s WHERE name = 'b'", (amount,))
    await connection.execute("INSERT INTO transfers VALUES (%s)", (zart.execution_id(),))


@asynccontextmanager
async def at_point(name: str, action: Any, *, times: int = 1) -> AsyncIterator[list[str]]:
    """Do something when the engine reaches a point, the first `times` times."""
    reached: list[str] = []

    def listener(point: str) -> None:
        if point == name and len(reached) < times:
            reached.append(point)
            action()

    points.listener = listener
    try:
        yield reached
    finally:
        points.listener = None


@step("transfer", transaction=True)
async def transfer(amount: int) -> int:
    ran.append("transfer")
    await move(amount)
    return amount


@step("transfer-in-a-thread", transaction=True)
def transfer_in_a_thread(amount: int) -> int:
    ran.append(threading.current_thread().name)
    connection = zart.sync.connection()
    connection.execute("UPDATE accounts SET amount = amount - %s WHERE name = 'a'", (amount,))
    connection.execute("UPDATE accounts SET amount = amount + %s WHERE name = 'b'", (amount,))
    return amount


@durable("pay")
async def pay(amount: int) -> int:
    return await transfer(amount) + await transfer_in_a_thread(amount)


@pytest.mark.parametrize("always_suspend", [False, True], ids=["live", "replayed after each record"])
async def test_the_writes_and_the_record_are_committed(bank, always_suspend):
    """On the connection of an `async def`, and on that of a plain `def`, which runs in a thread."""
    async with working(bank, pay, always_suspend=always_suspend) as client:
        assert await client.start_and_wait(pay, 7, id="pay", timeout="30s") == 14
    assert await accounts(bank) == {"a": 86, "b": 114}
    assert await records(bank) == [("transfer", 1, "completed"), ("transfer-in-a-thread", 2, "completed")]
    assert ran[0] == "transfer"
    assert ran[1] != threading.main_thread().name
    assert len(ran) == 2


@durable("pay-once")
async def pay_once(amount: int) -> int:
    return await transfer(amount)


@step("fails-after-writing", transaction=True, retry="fixed(1, 10ms)")
async def fails_after_writing() -> int:
    ran.append("fails")
    await move(5)
    if len(ran) == 1:
        raise ValueError("no")
    return 5


@step("fails-in-a-thread", transaction=True)
def fails_in_a_thread() -> None:
    zart.sync.connection().execute("UPDATE accounts SET amount = 0")
    raise ValueError("never")


@durable("fails")
async def fails() -> str:
    await fails_after_writing()
    try:
        await fails_in_a_thread()
    except ValueError as error:
        return str(error)
    return "not raised"


async def test_what_a_failed_attempt_has_written_is_rolled_back(bank):
    """Each attempt has a transaction of its own."""
    async with working(bank, fails) as client:
        assert await client.start_and_wait(fails, id="fails", timeout="30s") == "never"
    assert await accounts(bank) == {"a": 95, "b": 105}
    assert await query(bank, "SELECT count(*) FROM transfers") == [(1,)]


# ---------------------------------------------------------------- when things break


async def test_neither_is_there_when_its_worker_is_fenced(bank):
    """Taken for dead while the step ran: the record is refused, and the writes with it; the next worker does both."""
    async with working(bank, pay_once) as client:

        def bury() -> None:
            with psycopg.connect(bank, autocommit=True) as connection:
                connection.execute(BURY)

        async with at_point("transaction.record.begin", bury) as reached:
            assert await client.start_and_wait(pay_once, 3, id="pay", timeout="30s") == 3
        assert reached
    assert ran == ["transfer", "transfer"]
    assert await accounts(bank) == {"a": 97, "b": 103}
    assert await query(bank, "SELECT count(*) FROM transfers") == [(1,)]


@pytest.mark.not_in("pgbouncer", reason="it would keep the broken connections of others in its pool")
@pytest.mark.parametrize(
    ("point", "runs"),
    [
        ("transaction.opened", 2),
        ("transaction.record.begin", 2),
        ("transaction.record.sent", 1),
        ("transaction.record.answered", 1),
    ],
)
async def test_a_connection_that_is_lost_costs_no_attempt(bank, point, runs):
    """Before the COMMIT the function runs again. After it what became of it is read back, and it runs no more."""

    def cut() -> None:
        with psycopg.connect(bank, autocommit=True) as connection:
            if point == "transaction.record.sent":
                # the answer is lost, and the commit is not
                while connection.execute("SELECT count(*) FROM transfers").fetchone() != (1,):
                    pass
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'zart worker'"
                " AND datname = current_database()"
            )

    async with working(bank, pay_once) as client, at_point(point, cut) as reached:
        assert await client.start_and_wait(pay_once, 3, id="pay", timeout="30s") == 3
        history = await client.history("pay")
    assert reached
    assert ran == ["transfer"] * runs
    assert await accounts(bank) == {"a": 97, "b": 103}
    assert [(record.name, record.attempts) for record in history.records] == [("transfer", 1)]


async def test_a_connection_that_nobody_waits_for_any_more_is_closed(bank):
    """A step is given up while a thread still opens its connection: it is closed as soon as it is open."""
    dialling, go_on = threading.Event(), threading.Event()
    opened: list[psycopg.Connection[Any]] = []

    def dial() -> psycopg.Connection[Any]:
        dialling.set()
        assert go_on.wait(60)
        opened.append(psycopg.connect(bank))
        return opened[0]

    line = SyncLine(dial)
    beginning = asyncio.create_task(line.begin(1000))
    await until(dialling.is_set)
    beginning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await beginning
    line.abandon()
    go_on.set()
    await until(lambda: opened and opened[0].closed)


async def test_an_ambiguous_commit_is_read_back_by_its_token(bank, monkeypatch):
    """The commit passes and its answer is lost: the record is found to be ours, and the function runs once."""
    from zart._engine.transaction_lines import AsyncLine

    commit = AsyncLine.commit
    lost: list[str] = []

    async def losing(self: AsyncLine, *arguments: Any) -> None:
        await commit(self, *arguments)
        if not lost:
            lost.append("the answer")
            raise psycopg.OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(AsyncLine, "commit", losing)
    async with working(bank, pay_once) as client:
        assert await client.start_and_wait(pay_once, 3, id="pay", timeout="30s") == 3
    assert lost
    assert ran == ["transfer"]
    assert await accounts(bank) == {"a": 97, "b": 103}


async def test_a_commit_that_was_lost_on_its_way_can_never_come_later(bank, monkeypatch):
    """It is sealed before the function runs again: the straggler finds a newer token and is refused."""
    from zart._engine.transaction_lines import AsyncLine

    commit = AsyncLine.commit
    straggler: list[tuple[Any, ...]] = []

    async def losing(self: AsyncLine, record: Any, parameters: Any, on_sent: Any) -> None:
        if straggler:
            await commit(self, record, parameters, on_sent)
            return
        straggler.append((record, parameters))
        self.record_sent = True
        raise psycopg.OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(AsyncLine, "commit", losing)
    async with working(bank, pay_once) as client:

        def come_late() -> None:
            record, parameters = straggler[0]
            with psycopg.connect(bank) as connection:
                connection.execute("UPDATE accounts SET amount = amount - 3 WHERE name = 'a'")
                with pytest.raises(psycopg.DatabaseError) as refused:
                    connection.execute(record, parameters)
                assert refused.value.sqlstate == "ZR002"
                connection.rollback()

        async with at_point("transaction.seal.answered", come_late) as reached:
            assert await client.start_and_wait(pay_once, 3, id="pay", timeout="30s") == 3
        assert reached
    assert ran == ["transfer", "transfer"]
    assert await accounts(bank) == {"a": 97, "b": 103}


@step("conflicts", transaction=True)
async def conflicts() -> int:
    ran.append("conflicts")
    connection = zart.connection()
    await connection.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
    ((amount,),) = await (await connection.execute("SELECT sum(amount)::int FROM accounts")).fetchall()
    if len(ran) < 3:
        await query(gates["dsn"], "UPDATE accounts SET amount = amount + 1 WHERE name = 'a'")
    await connection.execute("UPDATE accounts SET amount = %s WHERE name = 'a'", (amount,))
    return len(ran)


@durable("conflicting")
async def conflicting() -> int:
    return await conflicts()


async def test_a_serialization_failure_runs_the_function_again(bank):
    """At no attempt's cost: the step has no retries, and its record says one attempt."""
    gates["dsn"] = bank
    async with working(bank, conflicting) as client:
        assert await client.start_and_wait(conflicting, id="c", timeout="30s") == 3
        history = await client.history("c")
    assert await accounts(bank) == {"a": 202, "b": 100}
    assert [(record.state, record.attempts) for record in history.records] == [("completed", 1)]


@step("locks-{first}", transaction=True)
async def locks(first: str, second: str) -> None:
    connection = zart.connection()
    await connection.execute("UPDATE accounts SET amount = amount + 1 WHERE name = %s", (first,))
    ran.append(first)
    await until(lambda: len(ran) >= 2)
    await connection.execute("UPDATE accounts SET amount = amount + 1 WHERE name = %s", (second,))


@durable("locking")
async def locking() -> None:
    await asyncio.gather(locks("a", "b"), locks("b", "a"))


async def test_a_deadlock_runs_the_loser_again(bank):
    """Two steps of one execution that lock in opposite order: both are done."""
    async with working(bank, locking) as client:
        await client.start_and_wait(locking, id="l", timeout="30s")
    assert await accounts(bank) == {"a": 102, "b": 102}
    assert len(ran) >= 3  # where each record is replayed, that of the winner cuts the loser once more


@step("checked-late", transaction=True)
async def checked_late() -> None:
    ran.append("late")
    await zart.connection().execute("INSERT INTO late VALUES (1), (1)")


@durable("deferred")
async def deferred() -> str:
    try:
        await checked_late()
    except Exception as error:
        return str(error)
    return "committed"


async def test_a_constraint_that_is_checked_at_the_commit_fails_the_step(bank):
    """Nothing is committed, the failure is the step's, and its number is the one that the record would have had."""
    await query(bank, "CREATE TABLE late (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    async with working(bank, deferred) as client:
        assert "late_n_key" in await client.start_and_wait(deferred, id="d", timeout="30s")
    assert await records(bank) == [("checked-late", 1, "failed")]
    assert ran == ["late"]


@step("idles", transaction=True)
async def idles() -> None:
    ran.append("idles")
    await move(1)
    await until(lambda: gates.get("go on"), within=30)
    await zart.connection().execute("SELECT 1")


@durable("idling")
async def idling() -> None:
    await idles()


async def test_a_transaction_that_stands_idle_is_ended_and_named(bank):
    """The limit is orphan_timeout: the attempt fails and says so; it is not taken for a lost connection."""
    async with working(bank, idling, config=fast(orphan_timeout="1s")) as client:
        handle = await client.start(idling, id="i")
        gone = "SELECT count(*) = 0 FROM pg_stat_activity WHERE state = 'idle in transaction'"
        await until(lambda: ran)

        async def ended() -> bool:
            return (await query(bank, f"{gone} AND datname = current_database()"))[0][0]

        await until(ended)
        gates["go on"] = True
        with pytest.raises(zart.ExecutionFailed, match=r"orphan_timeout \(1s\).*nothing of it was committed"):
            await handle.result(timeout="30s")
    assert ran == ["idles"]
    assert await accounts(bank) == {"a": 100, "b": 100}


@step("spoils-{how}", transaction=True, retry="fixed(3, 1ms)")
async def spoils(how: str) -> None:
    ran.append(how)
    connection = zart.connection()
    await move(1)
    if how == "commits":
        await connection.execute("COMMIT")
    elif how == "commit()":
        await connection.commit()
    elif how == "closes":
        await connection.close()
    elif how == "swallows":
        with pytest.raises(psycopg.Error):
            await connection.execute("SELECT 1 / 0")


@durable("spoiling")
async def spoiling(how: str) -> None:
    await spoils(how)


@pytest.mark.parametrize(
    ("how", "told", "attempts"),
    [
        ("commits", "has ended its transaction itself", 1),
        ("closes", "has ended its transaction itself", 1),
        ("swallows", "although a statement had failed in its transaction", 1),
        ("commit()", "Explicit commit", 4),
    ],
)
async def test_a_step_leaves_its_transaction_to_zart(bank, how, told, attempts):
    """Each way to end it early is refused by name, and what is left of it is rolled back."""
    async with working(bank, spoiling) as client:
        handle = await client.start(spoiling, how, id="s")
        with pytest.raises(zart.ExecutionFailed, match=told):
            await handle.result(timeout="30s")
    assert len(ran) == attempts
    assert await accounts(bank) == ({"a": 99, "b": 101} if how == "commits" else {"a": 100, "b": 100})


# ---------------------------------------------------------------- what else happens in it


@durable("other")
async def other(amount: int) -> int:
    return amount + await zart.wait_for_event("more", int)


@step("starts", transaction=True)
async def starts(fail: bool) -> str:
    ran.append("starts")
    started = await zart.start(other, 1, id="other")
    await zart.offer_event("other", "more", 41)
    zart.set_data({"started": started})
    if fail and len(ran) == 1:
        raise ConnectionError("after all of it")
    return started


@durable("starting")
async def starting(fail: bool) -> Any:
    before = zart.data(dict[str, str])
    await starts.with_options(retry="fixed(1, 1ms)")(fail)
    return [before, zart.data(dict[str, str])]


@pytest.mark.parametrize("always_suspend", [False, True], ids=["live", "replayed after each record"])
@pytest.mark.parametrize("fail", [False, True], ids=["at once", "at the second attempt"])
async def test_it_starts_offers_and_sets_data(bank, fail, always_suspend):
    """In the same transaction: with its record, or not at all; and the body has the data with the step's result."""
    async with working(bank, starting, other, always_suspend=always_suspend) as client:
        result = await client.start_and_wait(starting, fail, id="s", timeout="30s")
        assert result == [None, {"started": "other"}]
        assert await client.wait_completion("other", timeout="30s") == 42
    assert await query(bank, "SELECT count(*) FROM zart_events") == [(1,)]


@step("beside-{number}")
async def beside(number: int) -> int:
    return number


@step("tx-{number}", transaction=True)
async def counted(number: int) -> int:
    await zart.connection().execute("UPDATE accounts SET amount = amount + 1 WHERE name = 'a'")
    return number


@durable("mixed")
async def mixed(most: int) -> list[str]:
    order: list[str] = []

    async def branch(one: Any, numbers: range) -> None:
        for number in numbers:
            await one(number)
            order.append(f"{'tx' if one is counted else 'beside'}-{number}")

    await asyncio.gather(branch(counted, range(most)), branch(beside, range(5 * most)))
    return order


async def test_its_record_takes_its_turn_among_the_others(bank):
    """Numbers without a gap and without doubles, in the order in which the body got the results."""
    async with working(bank, mixed) as client:
        order = await client.start_and_wait(mixed, 20, id="m", timeout="60s")
    recorded = await records(bank)
    assert [seq for _, seq, _ in recorded] == list(range(1, 121))
    assert [name for name, _, _ in recorded] == order
    assert await accounts(bank) == {"a": 120, "b": 100}


@durable("cancels")
async def cancels() -> str:
    try:
        await idles()
    except asyncio.CancelledError:
        await beside(1)
        raise
    return "not cancelled"


async def test_a_cancel_rolls_it_back(bank):
    """The connection is given up in the middle of the step; the body cleans up."""
    async with working(bank, cancels, config=fast(orphan_timeout="20s")) as client:
        await client.start(cancels, id="c")
        await until(lambda: ran)
        await client.cancel("c")
        await until_status(client, "c", "cancelled")
    assert await accounts(bank) == {"a": 100, "b": 100}


@step("isolated", transaction=True)
async def isolated() -> int:
    connection = zart.connection()
    await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    ((beat,),) = await (await connection.execute("SELECT max(heartbeat_at) FROM zart_workers")).fetchall()
    ran.append("snapshot")

    async def has_beaten() -> bool:
        return (await query(gates["dsn"], "SELECT max(heartbeat_at) FROM zart_workers"))[0][0] > beat

    await until(has_beaten)
    return len(ran)


@durable("isolating")
async def isolating() -> int:
    return await isolated()


async def test_a_snapshot_older_than_a_heartbeat_still_takes_the_fence(bank):
    """A heartbeat changes no key of the row that it locks: else every step longer than that would be a conflict."""
    gates["dsn"] = bank
    async with working(bank, isolating) as client:
        assert await client.start_and_wait(isolating, id="i", timeout="30s") == 1


@durable("scheduling")
async def scheduling(amount: int) -> list[int]:
    first = zart.schedule_step(transfer, amount)
    second = zart.schedule_step(transfer_in_a_thread, amount)
    return list(await zart.wait_all(first, second))


async def test_a_scheduled_step_has_a_transaction_too(bank):
    """Its record is beside the journal, in the same commit: whoever takes over then does not do it a second time."""

    def bury() -> None:
        with psycopg.connect(bank, autocommit=True) as connection:
            connection.execute(BURY)

    async with working(bank, scheduling) as client, at_point("transaction.record.answered", bury) as reached:
        assert await client.start_and_wait(scheduling, 7, id="s", timeout="30s") == [7, 7]
    assert reached
    assert await accounts(bank) == {"a": 86, "b": 114}
    assert ran.count("transfer") == 1


# ---------------------------------------------------------------- where it may be called


async def test_a_connection_is_refused_elsewhere(bank):
    """In a body, in another step, in the wrong kind of function, and outside: each says where it belongs."""

    @step("plain")
    async def plain() -> list[str]:
        return [refusal(zart.connection), refusal(zart.sync.connection)]

    @step("in-async", transaction=True)
    async def in_async() -> str:
        return refusal(zart.sync.connection)

    @step("in-def", transaction=True)
    def in_def() -> str:
        return refusal(zart.connection)

    @step("own", transaction="own", retry=None)
    async def own() -> None:
        raise ValueError(refusal(zart.connection))

    @durable("asks")
    async def asks() -> list[str]:
        told = [refusal(zart.connection), refusal(zart.sync.connection), *await plain()]
        told += [await in_async(), await in_def()]
        try:
            await own()
        except ValueError as error:
            told.append(str(error))
        return told

    async with working(bank, asks) as client:
        told = await client.start_and_wait(asks, id="asks", timeout="30s")
    in_body, sync_in_body, in_plain, sync_in_plain, in_async_def, in_plain_def, in_own = told
    assert "in its body" in in_body
    assert "in its body" in sync_in_body
    assert "transaction=True" in in_plain
    assert "transaction=True" in sync_in_plain
    assert "use zart.connection()" in in_async_def
    assert "use zart.sync.connection()" in in_plain_def
    assert "one of your own" in in_own
    assert "outside of any execution" in refusal(zart.connection)
    assert "outside of any execution" in refusal(zart.sync.connection)


def refusal(call: Any) -> str:
    with pytest.raises(zart.UsageError) as refused:
        call()
    return str(refused.value)


# ---------------------------------------------------------------- what it costs others


@step("writes", transaction=True)
async def writes(number: int) -> None:
    await zart.connection().execute("INSERT INTO transfers VALUES (%s)", (str(number),))


@durable("writing")
async def writing(steps: int) -> None:
    for number in range(steps):
        await writes(number)


@durable("plainly")
async def plainly(steps: int) -> None:
    for number in range(steps):
        await beside(number)


async def test_multixacts_per_thousand_steps(bank):
    """Beside transactional steps the journal's own rows are locked by one connection each, as without them."""
    async with working(bank, writing, plainly) as client:

        async def run(fn: Any, executions: int) -> int:
            before = await next_multixact(bank)
            name = fn.name
            await asyncio.gather(
                *(client.start_and_wait(fn, 20, id=f"{name}-{n}", timeout="60s") for n in range(executions))
            )
            return await next_multixact(bank) - before

        plain = await run(plainly, 50)
        transactional = await run(writing, 50)
    print(f"multixacts per thousand: {plain} of plain steps, {transactional} of transactional ones")
    assert plain < 100
    assert transactional < 2000  # the one row that they share: see decision 25


async def next_multixact(dsn: str) -> int:
    await query(dsn, "CHECKPOINT")
    return int((await query(dsn, "SELECT next_multixact_id FROM pg_control_checkpoint()"))[0][0])
