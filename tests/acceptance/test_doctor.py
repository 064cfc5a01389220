"""`zart doctor` on set-ups that are broken: each trouble has its name, and what to do about it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from tests.support.command import Command
from zart.migrate import migrations

APP = """\
import zart
from zart import durable, step


@step("charge")
async def charge(number: int) -> int:
    return number


@step("ship", retry="fixed(3, 1s)")
async def ship(number: int) -> int:
    return number


@durable("order")
async def order(number: int) -> int:
    return await ship(await charge(number))


registry = zart.Registry(order)
"""


@pytest.fixture
def hand(direct_dsn: str) -> Iterator["psycopg.Connection[Any]"]:
    """Somebody at psql."""
    with psycopg.connect(direct_dsn, autocommit=True) as connection:
        yield connection


Findings = dict[str, list[dict[str, Any]]]


OF_THE_TEST_SERVER = ("fsync is off", "full_page_writes is off")
"""It is meant to lose everything in a crash, and the doctor says so."""


def examine(zart: Command, *arguments: str, errors: set[str]) -> Findings:
    """The findings by check, of which these have errors; the exit code says whether any has."""
    ended = zart("doctor", "--json", *arguments)
    assert "Traceback" not in ended.stderr
    report = json.loads(ended.stdout)
    wrong = any(finding["level"] == "error" for finding in report["findings"])
    assert (report["ok"], ended.returncode) == ((False, 1) if wrong else (True, 0))
    found: Findings = {}
    for finding in report["findings"]:
        if not finding["found"].startswith(OF_THE_TEST_SERVER):
            found.setdefault(finding["check"], []).append(finding)
    assert {check for check in found if found[check][0]["level"] == "error"} == errors
    return found


def only(found: Findings, check: str) -> tuple[str, str, str]:
    """The one finding of a check: its level, what was found, and what to do."""
    (finding,) = found[check]
    return finding["level"], finding["found"], finding["remedy"] or ""


def test_nothing_is_wrong_where_a_worker_works(zart: Command) -> None:
    """Exit code 0; each check is named with what it found, for people and as JSON."""
    with zart.running("worker", "--app", "app") as worker:
        worker.until(" runs ")
        zart("start", "order", "--id", "o", "--data", "1")
        zart("wait", "o", "--timeout", "20s")
        found = examine(zart, "--app", "app", errors=set())
        assert only(found, "workers")[0] == "ok"
        assert only(found, "schema")[:2] == (
            "ok",
            f"all {len(migrations())} migrations, as this library has them",
        )
        level, told, remedy = only(found, "steps without retry")
        assert (level, told) == ("info", "a failure of charge is final at once")
        assert "exponential" in remedy
        shown = zart("doctor", "--app", "app")
        lines = shown.stdout.splitlines()
        for check in found:
            assert any(
                line.split(maxsplit=1)[1:] and line.split(maxsplit=1)[1].startswith(check) for line in lines
            )


def test_tables_of_an_older_version(zart: Command, hand: "psycopg.Connection[Any]") -> None:
    """Broken set-up 1: a deploy that forgot to migrate."""
    last = migrations()[-1]
    hand.execute("DELETE FROM zart_migrations WHERE number = %s", (last.number,))
    level, told, remedy = only(examine(zart, errors={"schema"}), "schema")
    assert level == "error"
    assert told == f"the tables are older than this library: they lack {last.name}"
    assert remedy.startswith("run `zart migrate`")


def test_a_dead_worker_holds_work_and_none_lives(zart: Command, hand: "psycopg.Connection[Any]") -> None:
    """Broken set-up 2: the only worker was killed in the middle of something."""
    hand.execute("SELECT zart_start('order', id => 'o', payload => '1')")
    hand.execute(
        "INSERT INTO zart_workers (worker_id, writer, host, pid, expires_at)"
        " VALUES (7, 0, 'vanished', 4711, clock_timestamp() - interval '1 minute')"
    )
    hand.execute("UPDATE zart_tasks SET state = 'running', owner = 7, started_at = zart_now()")
    found = examine(zart, errors={"dead workers"})
    level, told, remedy = only(found, "dead workers")
    assert level == "error"
    assert told.startswith("worker 7 (vanished, process 4711) does not answer any more, and holds 1")
    assert "zart worker --app" in remedy
    assert only(found, "workers")[0] == "warning"


def test_a_transaction_that_was_forgotten(
    zart: Command, hand: "psycopg.Connection[Any]", direct_dsn: str
) -> None:
    """Broken set-up 3: it keeps every row that has died since it began."""
    with psycopg.connect(direct_dsn, application_name="a notebook") as forgotten:
        forgotten.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        forgotten.execute("SELECT count(*) FROM zart_tasks")
        pid = forgotten.info.backend_pid
        level, told, remedy = only(examine(zart, "--old-after", "0s", errors=set()), "old snapshots")
        assert level == "warning"
        assert told.startswith(f"session {pid} (a notebook, role ")
        assert told.endswith("idle in transaction, and keeps every row that died since then")
        assert f"pg_terminate_backend({pid})" in remedy
        assert only(examine(zart, errors=set()), "old snapshots")[0] == "ok"  # not old so far
    assert only(examine(zart, "--old-after", "0s", errors=set()), "old snapshots")[0] == "ok"


def test_work_that_nobody_has_registered(zart: Command, hand: "psycopg.Connection[Any]") -> None:
    """Broken set-up 4: a function was renamed while executions of it waited."""
    hand.execute("SELECT zart_start('ordr', id => 'o', payload => '1', version => '2')")
    with zart.running("worker", "--app", "app") as worker:
        worker.until(" runs ")
        found = examine(zart, "--app", "app", errors={"unregistered names"})
        level, told, remedy = only(found, "unregistered names")
        assert level == "error"
        assert told == "1 executions of ordr version 2 are ready, and no living worker has registered it"
        assert "registry" in remedy
        level, told, _ = only(found, "names of the app")
        assert level == "warning"
        assert told == "live work of ordr version 2 is not in this app's registry"


@pytest.mark.not_in("pgbouncer", reason="the pooler's connections are older than the settings")
def test_settings_under_which_nothing_can_work(
    zart: Command, hand: "psycopg.Connection[Any]", database: str
) -> None:
    """Broken set-up 5: somebody has tuned the database."""
    alter = "ALTER DATABASE {} SET {} = {}"
    for name, value in (
        ("default_transaction_isolation", "repeatable read"),
        ("default_transaction_read_only", "on"),
        ("synchronous_commit", "off"),
        ("statement_timeout", "30s"),
    ):
        hand.execute(
            sql.SQL(alter).format(sql.Identifier(database), sql.Identifier(name), sql.Literal(value))
        )
    found = examine(zart, errors={"isolation", "writable"})
    for check, wanted, told, remedy in (
        ("isolation", "error", "'repeatable read'", "SET default_transaction_isolation = 'read committed'"),
        ("writable", "error", "nothing can be recorded", "RESET default_transaction_read_only"),
        ("durability", "warning", "synchronous_commit is off", "SET synchronous_commit = on"),
        ("timeouts", "warning", "statement_timeout is 30000 ms", "SET statement_timeout = 0"),
    ):
        assert only(found, check)[0] == wanted
        assert told in only(found, check)[1]
        assert remedy in only(found, check)[2]


def test_an_index_that_is_gone(zart: Command, hand: "psycopg.Connection[Any]") -> None:
    """And a trigger that was disabled."""
    hand.execute("DROP INDEX zart_tasks_ready")
    hand.execute("ALTER TABLE zart_tasks DISABLE TRIGGER zart_tasks_announce")
    found = examine(zart, errors={"indexes", "triggers"})
    assert only(found, "indexes")[1].startswith("missing: zart_tasks_ready;")
    assert "zart_tasks_announce on zart_tasks" in only(found, "triggers")[1]


def test_work_whose_owner_has_no_row(zart: Command, hand: "psycopg.Connection[Any]") -> None:
    """And news that nobody applies."""
    hand.execute("SELECT zart_start('order', id => 'o', payload => '1')")
    hand.execute("UPDATE zart_tasks SET state = 'running', owner = 7, started_at = zart_now()")
    hand.execute("SELECT zart_offer_event('o', 'paid')")
    found = examine(zart, "--old-after", "0s", errors={"wake-ups"})
    assert only(found, "tasks without owner")[1].startswith(
        "1 executions or scheduled steps are held by workers that"
    )
    assert only(found, "wake-ups")[0] == "error"


def test_blocked_executions_and_large_payloads(zart: Command, hand: "psycopg.Connection[Any]") -> None:
    """A person is wanted; and a payload is near the limit, however well it compresses."""
    hand.execute("SELECT zart_start('order', id => 'o', payload => to_jsonb(repeat('x', 1000000)))")
    hand.execute("ALTER TABLE zart_executions ALTER payload SET STORAGE external")
    hand.execute(
        "SELECT zart_start('order', id => 'large', payload => to_jsonb((SELECT string_agg(md5(g::text), '')"
        " FROM generate_series(1, 30000) g)))"
    )
    hand.execute("UPDATE zart_tasks SET state = 'blocked', started_at = zart_now() WHERE execution_id = 'o'")
    with zart.running("worker", "--app", "app") as worker:
        worker.until(" runs ")
        found = examine(zart, errors=set())
    assert only(found, "blocked")[1] == "1 wait for a person: o (no reason stored)"
    assert any("large of order: 938 KiB" in finding["found"] for finding in found["payload sizes"])


@pytest.mark.not_in("pgbouncer", reason="the pooler lets one role in")
def test_a_role_that_may_do_nothing(
    place: Path, hand: "psycopg.Connection[Any]", database: str, direct_dsn: str
) -> None:
    """It is told so check by check, and never by a traceback."""
    role = f"{database}_nobody"
    hand.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)))
    try:
        zart = Command(place, psycopg.conninfo.make_conninfo(direct_dsn, user=role))
        found = examine(zart, errors={"privileges", "schema"})
        level, told, remedy = only(found, "privileges")
        assert level == "error"
        assert told.startswith("this role may not read zart_duties")
        assert "GRANT SELECT" in remedy
        assert only(found, "blocked")[1].startswith(
            "this role may not look at it: permission denied for table"
        )
        hand.execute(
            sql.SQL("GRANT SELECT ON ALL TABLES IN SCHEMA public TO {}").format(sql.Identifier(role))
        )
        found = examine(zart, errors=set())
        assert only(found, "privileges")[0] == "warning"
        assert only(found, "blocked")[0] == "ok"
    finally:
        hand.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(role)))
        hand.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


def test_a_database_without_tables(place: Path, empty_dsn: str) -> None:
    """The one thing to do is named; what could not be looked at says why."""
    found = examine(Command(place, empty_dsn), errors={"schema"})
    assert only(found, "schema")[2] == "run `zart migrate`"
    for check in ("blocked", "clock"):
        level, told, remedy = only(found, check)
        assert level == "warning"
        assert "does not exist" in told
        assert remedy == "mend what `schema` says first"
    assert only(found, "notifications")[0] in ("ok", "warning")  # behind a pooler none arrives


def test_a_server_that_is_not_there(place: Path) -> None:
    """It is a finding like any other."""
    found = examine(
        Command(place, f"host={place} user=u password=s3cret connect_timeout=1"), errors={"database"}
    )
    level, told, _ = only(found, "database")
    assert level == "error"
    assert "s3cret" not in told
