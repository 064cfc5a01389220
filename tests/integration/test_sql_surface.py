"""What SQL may use: the functions and the views, from any driver's transaction."""

import datetime as dt
import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import errors

from tests.support.clients import fail, finish, rows
from zart import ExecutionCancelled
from zart._postgres.connections import connect
from zart.migrate import migrate


@pytest.fixture
def sql(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection


def one(connection: psycopg.Connection[Any], query: str, parameters: Any = None) -> Any:
    row = connection.execute(query.encode(), parameters).fetchone()
    assert row is not None
    return row[0]


# ---------------------------------------------------------------- zart_start


def test_start(sql: psycopg.Connection[Any]) -> None:
    """A start by SQL is an execution and a ready task, as by the client."""
    assert one(sql, """SELECT zart_start('ship', 'a', '{"zeta": 1, "a": 1e2}')""") == "a"
    made = sql.execute(
        "SELECT name, queue, version, priority, status, payload::text FROM zart_executions"
    ).fetchone()
    assert made == ("ship", "default", None, 0, "scheduled", '{"a": 100, "zeta": 1}')
    assert sql.execute("SELECT execution_id, state, wake_at FROM zart_tasks").fetchall() == [
        ("a", "ready", None)
    ]
    assert one(sql, "SELECT count(*) FROM zart_executions e JOIN zart_tasks t ON t.id = e.task_id") == 1


def test_start_by_argument_names(sql: psycopg.Connection[Any]) -> None:
    """Arguments have names; without an id it is a UUID of version 7."""
    made = one(
        sql,
        "SELECT zart_start(name => 'ship', queue => 'mail', version => '2', priority => -5, "
        "run_at => now() + interval '1 day')",
    )
    assert made[14] == "7"
    assert sql.execute(
        "SELECT e.queue, e.version, e.priority, t.priority, t.state, t.wake_at = t.due_at, "
        "t.lane = zart_lane('mail', 'ship', '2') "
        "FROM zart_executions e JOIN zart_tasks t ON t.id = e.task_id"
    ).fetchall() == [("mail", "2", -5, -5, "waiting", True, True)]
    assert one(sql, "SELECT status FROM zart_v_executions") == "scheduled"


def test_start_is_idempotent(sql: psycopg.Connection[Any], dsn: str) -> None:
    """The same start again returns the id, also after the end; numbers count by value and keys in any
    order.
    """
    for payload in ('{"a": 1, "b": 2}', '{"b": 2.0, "a": 1}'):
        assert one(sql, "SELECT zart_start('ship', 'a', %s::jsonb)", (payload,)) == "a"
    finish(dsn, "a")
    assert one(sql, """SELECT zart_start('ship', 'a', '{"a": 1, "b": 2}')""") == "a"
    assert one(sql, "SELECT count(*) FROM zart_executions") == 1
    assert one(sql, "SELECT count(*) FROM zart_tasks") == 0


def test_start_conflicts(sql: psycopg.Connection[Any]) -> None:
    """Another function or another payload under one id is 23505, and says which it is."""
    one(sql, "SELECT zart_start('ship', 'a', '1')")
    with pytest.raises(errors.UniqueViolation, match=r"'a' exists already, of the function 'ship'"):
        one(sql, "SELECT zart_start('other', 'a', '1')")
    with pytest.raises(errors.UniqueViolation, match="another payload") as caught:
        one(sql, "SELECT zart_start('ship', 'a', '2')")
    assert "choose another id" in str(caught.value.diag.message_hint)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        ("zart_start(NULL)", "name of the durable function is null"),
        ("zart_start('')", "0 bytes"),
        ("zart_start(repeat('x', 201))", "201 bytes"),
        ("zart_start(repeat('ü', 101))", "202 bytes"),
        (r"zart_start(E'a\nb')", "control character"),
        (r"zart_start(U&'a\0085b')", "control character"),
        ("zart_start('f', 'a~b')", "contains '~'"),
        ("zart_start('f', '')", "execution id is 0 bytes"),
        ("zart_start('f', repeat('x', 300))", "300 bytes"),
        ("zart_start('f', 'a', queue => '')", "queue"),
        ("zart_start('f', 'a', queue => NULL)", "queue is null"),
        ("zart_start('f', 'a', version => '')", "version"),
        ("zart_start('f', 'a', priority => NULL)", "priority is null"),
        ("zart_start('f', 'a', run_at => 'infinity')", "out of reach"),
        ("zart_start('f', 'a', to_jsonb(repeat('x', 1048576)))", "over the limit"),
        ("zart_offer_event('there', '')", "name of the event"),
        ("zart_offer_event('there', repeat('x', 201))", "name of the event"),
        ("zart_offer_event('there', 'e', dedup => '')", "dedup"),
        ("zart_offer_event('there', 'e', to_jsonb(repeat('x', 1048576)))", "over the limit"),
        ("zart_cancel('there', repeat('x', 10001))", "reason"),
    ],
)
def test_bad_values(sql: psycopg.Connection[Any], call: str, text: str) -> None:
    """What may not be is 22023, with the limit and a hint."""
    one(sql, "SELECT zart_start('f', 'there')")
    with pytest.raises(errors.InvalidParameterValue, match=text) as caught:
        one(sql, f"SELECT {call}")
    assert caught.value.diag.message_hint


@pytest.mark.parametrize("id", ["it's", 'say "x"', "100%", "a#2", "a/b", "ünï🚀", "x" * 200])
def test_any_sign(sql: psycopg.Connection[Any], id: str) -> None:
    """Quotes, percent signs and emoji are just text, everywhere."""
    assert one(sql, "SELECT zart_start(%s, %s)", (id, id)) == id
    assert one(sql, "SELECT zart_offer_event(%s, %s, '1', %s)", (id, id, id)) is True
    assert one(sql, "SELECT zart_cancel(%s, %s)", (id, id)) is True


def test_start_rolled_back_and_committed(sql: psycopg.Connection[Any], dsn: str) -> None:
    """A start is part of the transaction around it."""
    with psycopg.connect(dsn) as mine:
        mine.execute("SELECT zart_start('ship', 'gone')")
        mine.rollback()
        mine.execute("SELECT zart_start('ship', 'kept')")
        assert one(sql, "SELECT count(*) FROM zart_executions") == 0
        mine.commit()
    assert rows(dsn, "SELECT execution_id FROM zart_tasks") == [("kept",)]


def test_start_from_a_trigger(sql: psycopg.Connection[Any]) -> None:
    """A trigger may start an execution for each row."""
    sql.execute("CREATE TABLE orders (id int PRIMARY KEY, item text)")
    sql.execute(
        "CREATE FUNCTION ship() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "PERFORM zart_start('ship', 'order-' || NEW.id, to_jsonb(NEW)); RETURN NULL; END $$"
    )
    sql.execute("CREATE TRIGGER ship AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION ship()")
    sql.execute("INSERT INTO orders SELECT n, 'book' FROM generate_series(1, 100) n")
    assert one(sql, "SELECT count(*) FROM zart_tasks WHERE state = 'ready'") == 100


def test_search_path_does_not_matter(sql: psycopg.Connection[Any]) -> None:
    """The functions find their own tables whatever the caller's search_path is."""
    sql.execute("SET search_path = pg_catalog")
    assert one(sql, "SELECT public.zart_start('ship', 'a')") == "a"
    assert one(sql, "SELECT public.zart_offer_event('a', 'e')") is True
    assert one(sql, "SELECT public.zart_cancel('a')") is True


async def test_schema_with_quotes(empty_dsn: str) -> None:
    """The functions work in a schema of any name."""
    await migrate(empty_dsn, schema='o\'schema "x" %s')
    with psycopg.connect(empty_dsn, autocommit=True) as sql:
        schema = '"o\'schema ""x"" %s".'
        assert sql.execute(f"SELECT {schema}zart_start('ship', 'a')").fetchone() == ("a",)
        assert sql.execute(f"SELECT {schema}zart_offer_event('a', 'e')").fetchone() == (True,)
        assert sql.execute(f"SELECT {schema}zart_cancel('a')").fetchone() == (True,)
        assert sql.execute(f"SELECT id FROM {schema}zart_v_executions").fetchone() == ("a",)


# ---------------------------------------------------------------- zart_offer_event


def test_offer_event(sql: psycopg.Connection[Any]) -> None:
    """An event is stored with a wake-up for its execution; without a payload it is null."""
    one(sql, "SELECT zart_start('ship', 'a')")
    assert one(sql, """SELECT zart_offer_event('a', 'approved', '{"by": "ann"}')""") is True
    assert one(sql, "SELECT zart_offer_event(execution_id => 'a', event => 'seen')") is True
    assert sql.execute("SELECT name, payload::text, dedup FROM zart_events ORDER BY id").fetchall() == [
        ("approved", '{"by": "ann"}', None),
        ("seen", "null", None),
    ]
    assert one(sql, "SELECT count(*) FROM zart_wakeups w JOIN zart_tasks t ON t.id = w.task_id") == 2


def test_offer_event_dedup(sql: psycopg.Connection[Any], dsn: str) -> None:
    """An event that is delivered again under its dedup key is not added, also after the end."""
    one(sql, "SELECT zart_start('ship', 'a')")
    one(sql, "SELECT zart_start('ship', 'b')")
    assert one(sql, "SELECT zart_offer_event('a', 'paid', '1', 'stripe-1')") is True
    assert one(sql, "SELECT zart_offer_event('a', 'paid', '1', 'stripe-1')") is False
    assert one(sql, "SELECT zart_offer_event('b', 'paid', '1', 'stripe-1')") is True
    finish(dsn, "a")
    assert one(sql, "SELECT zart_offer_event('a', 'paid', '1', 'stripe-1')") is False
    assert one(sql, "SELECT count(*) FROM zart_events") == 2


def test_offer_event_refusals(sql: psycopg.Connection[Any], dsn: str) -> None:
    """An event for an unknown execution is P0002, for one that has ended 55000."""
    with pytest.raises(errors.NoDataFound, match="there is no execution 'nobody'"):
        one(sql, "SELECT zart_offer_event('nobody', 'e')")
    one(sql, "SELECT zart_start('ship', 'a')")
    finish(dsn, "a")
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match=r"'a' has ended \(completed\)") as caught:
        one(sql, "SELECT zart_offer_event('a', 'e')")
    assert caught.value.sqlstate == "55000"


def test_open_transactions_lock_no_task(sql: psycopg.Connection[Any], dsn: str) -> None:
    """Transactions that offered, started or cancelled and stay open lock no row of live work."""
    one(sql, "SELECT zart_start('ship', 'a')")
    with psycopg.connect(dsn) as mine:
        mine.execute("SELECT zart_offer_event('a', 'e')")
        mine.execute("SELECT zart_start('ship', 'b')")
        mine.execute("SELECT zart_cancel('a')")
        sql.execute("SET lock_timeout = '100ms'")
        locked = sql.execute("SELECT execution_id FROM zart_tasks FOR UPDATE NOWAIT").fetchall()
        assert locked == [("a",)]
        assert sql.execute("UPDATE zart_executions SET started_at = now() WHERE id = 'a'").rowcount == 1
        assert sql.execute("SELECT FROM zart_executions FOR UPDATE NOWAIT").rowcount == 1
        assert one(sql, "SELECT zart_offer_event('a', 'another')") is True
        mine.rollback()


# ---------------------------------------------------------------- zart_cancel


def test_cancel(sql: psycopg.Connection[Any], dsn: str) -> None:
    """A cancel leaves a wake-up with its reason; twice is harmless, and so is one after the end."""
    one(sql, "SELECT zart_start('ship', 'a')")
    assert one(sql, "SELECT zart_cancel('a', 'no longer wanted')") is True
    assert one(sql, "SELECT zart_cancel('a')") is False
    assert sql.execute("SELECT kind, reason, author = session_user FROM zart_wakeups").fetchall() == [
        ("cancel", "no longer wanted", True)
    ]
    finish(dsn, "a")
    rows(dsn, "DELETE FROM zart_wakeups")
    assert one(sql, "SELECT zart_cancel('a')") is False
    with pytest.raises(errors.NoDataFound):
        one(sql, "SELECT zart_cancel('nobody')")


def test_cancel_that_was_applied(sql: psycopg.Connection[Any]) -> None:
    """A second cancel is harmless too once a worker has applied the first."""
    one(sql, "SELECT zart_start('ship', 'a')")
    sql.execute("UPDATE zart_tasks SET cancel_at = now()")
    assert one(sql, "SELECT zart_cancel('a')") is False


# ---------------------------------------------------------------- the views

EXECUTION_COLUMNS = [
    *("id", "name", "version", "queue", "status", "cancelling", "run_id", "waiting_for", "payload", "result"),
    *("failure", "created_at", "started_at", "finished_at"),
]
STEP_COLUMNS = [
    *("execution_id", "run_id", "seq", "key", "name", "kind", "state", "attempts", "result", "failure"),
    *("started_at", "finished_at"),
]


def test_view_columns(sql: psycopg.Connection[Any]) -> None:
    """The documented columns are there, in their order, and payloads are jsonb."""
    for view, expected in (("zart_v_executions", EXECUTION_COLUMNS), ("zart_v_steps", STEP_COLUMNS)):
        columns = dict(
            sql.execute(
                "SELECT column_name, data_type FROM information_schema.columns WHERE table_name = %s "
                "ORDER BY ordinal_position",
                (view,),
            ).fetchall()
        )
        assert list(columns)[: len(expected)] == expected
        assert {columns[name] for name in ("payload", "result", "failure") if name in columns} == {"jsonb"}


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ("", "scheduled"),
        ("state = 'waiting', wake_at = now()", "scheduled"),
        ("state = 'running', owner = 1, started_at = now()", "running"),
        ("state = 'ready', started_at = now()", "running"),
        ("state = 'waiting', started_at = now(), waiting_for = 'event x'", "waiting"),
        ("state = 'blocked', started_at = now()", "blocked"),
    ],
)
def test_live_status(sql: psycopg.Connection[Any], change: str, status: str) -> None:
    """A live execution's status comes from its task."""
    one(sql, "SELECT zart_start('ship', 'a', '{}')")
    if change:
        sql.execute(f"UPDATE zart_tasks SET {change}".encode())
    waiting_for = "event x" if status == "waiting" else None
    query = "SELECT status, cancelling, waiting_for, payload FROM zart_v_executions"
    assert sql.execute(query).fetchone() == (status, False, waiting_for, {})
    sql.execute("UPDATE zart_tasks SET cancel_at = now()")
    assert one(sql, "SELECT cancelling FROM zart_v_executions") is True


def test_final_status(sql: psycopg.Connection[Any], dsn: str) -> None:
    """What has ended shows how, with its result or failure as jsonb."""
    for name in ("ok", "bad", "off"):
        one(sql, "SELECT zart_start('ship', %s)", (name,))
    finish(dsn, "ok", '{"b": 1e2}')
    fail(dsn, "bad", ValueError("nul \0 and half \ud800"))
    fail(dsn, "off", ExecutionCancelled("off"), "cancelled")
    found = sql.execute(
        "SELECT status, cancelling, result, failure, finished_at IS NULL FROM zart_v_executions ORDER BY id"
    ).fetchall()
    assert found[0][:2] == ("failed", False)
    assert "ValueError" in found[0][3]["type"]
    assert found[1][0] == "cancelled"
    assert found[2] == ("completed", False, {"b": 100}, None, False)


@pytest.mark.stores_plain(reason="writes a record by itself")
def test_steps_view(sql: psycopg.Connection[Any]) -> None:
    """Steps show with the key that people see, in the order of the log."""
    one(sql, "SELECT zart_start('ship', 'a')")
    sql.execute(
        "INSERT INTO zart_steps (run_id, path, name, occurrence, kind, seq, state, result) "
        "SELECT run_id, '1/', 'charge', 2, 'step', 3, 'completed', '{\"x\": 1}' FROM zart_executions"
    )
    found = sql.execute(
        "SELECT execution_id, seq, key, name, kind, state, result FROM zart_v_steps"
    ).fetchall()
    assert found == [("a", 3, "1/charge#2", "charge", "step", "completed", {"x": 1})]


def test_served(sql: psycopg.Connection[Any]) -> None:
    """An execution is served while a worker whose lease stands has its lane."""
    one(sql, "SELECT zart_start('ship', 'a')")
    assert one(sql, "SELECT served FROM zart_v_executions") is False
    sql.execute(
        "INSERT INTO zart_workers (worker_id, writer, host, pid, lanes, expires_at) "
        "VALUES (1, 0, 'h', 1, ARRAY[zart_lane('default', 'ship', NULL)], now() + interval '1 minute')"
    )
    assert one(sql, "SELECT served FROM zart_v_executions") is True
    sql.execute("UPDATE zart_workers SET expires_at = now() - interval '1 second'")
    assert one(sql, "SELECT served FROM zart_v_executions") is False


def test_due_times_follow_durable_time(sql: psycopg.Connection[Any]) -> None:
    """Whether a start is due is a matter of durable time, which a test may shift."""
    sql.execute(
        "CREATE OR REPLACE FUNCTION zart_now() RETURNS timestamptz LANGUAGE sql STABLE AS "
        "$$ SELECT statement_timestamp() + interval '1 year' $$"
    )
    one(sql, "SELECT zart_start('ship', 'a', run_at => now() + interval '300 days')")
    assert sql.execute("SELECT state, due_at > now() + interval '364 days' FROM zart_tasks").fetchone() == (
        "ready",
        True,
    )


async def test_idle_worker_hears_of_it_at_commit(dsn: str, direct_dsn: str) -> None:
    """An idle worker that listens is notified when the transaction commits; nobody is when none is idle."""
    async with await connect(direct_dsn, application_name="test") as listener:
        rows(
            dsn,
            "INSERT INTO zart_workers (worker_id, writer, host, pid, idle, lanes, expires_at) "
            "VALUES (1, 0, 'h', 1, true, ARRAY[zart_lane('default', 'ship', NULL)], now() + interval '1 minute')",
        )
        await listener.execute(
            "SELECT pg_catalog.set_config('x.channel', substr(md5('public'), 1, 12), false)"
        )
        row = await (await listener.execute("SELECT 'zart_work_' || current_setting('x.channel')")).fetchone()
        assert row is not None
        await listener.execute(f'LISTEN "{row[0]}"')
        with psycopg.connect(dsn) as mine:
            mine.execute("SELECT zart_start('ship', 'a'), zart_offer_event('a', 'e')")
            mine.rollback()
            mine.execute("SELECT zart_start('ship', 'a')")
            mine.commit()
        heard = [note async for note in listener.notifies(timeout=5, stop_after=1)]
        assert [(note.channel, note.payload) for note in heard] == [(row[0], "")]
        rows(dsn, "UPDATE zart_workers SET idle = false")
        rows(dsn, "SELECT zart_start('ship', 'b')")
        assert [note async for note in listener.notifies(timeout=0)] == []


def test_payload_as_python_reads_it(sql: psycopg.Connection[Any]) -> None:
    """What SQL gave is stored as the text of its jsonb."""
    payload = {"float": 1.5, "big": 12345678901234567890, "text": 'ü🚀"', "none": None, "list": [True, []]}
    one(sql, "SELECT zart_start('ship', 'a', %s::jsonb)", (json.dumps(payload),))
    assert json.loads(one(sql, "SELECT payload::text FROM zart_executions")) == payload
    created = one(sql, "SELECT created_at FROM zart_v_executions")
    assert abs(dt.datetime.now(dt.UTC) - created) < dt.timedelta(minutes=5)
