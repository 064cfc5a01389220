"""What `zart doctor` makes of what it sees; nothing here needs a database."""

import datetime as dt
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from psycopg import errors

import zart
from zart.migrate import Status, migrations
from zart_cli.doctor import command, connection, examination, schema, settings, space, work, workers
from zart_cli.doctor.app import judge_app
from zart_cli.doctor.check import Check, Patient
from zart_cli.doctor.finding import Finding, error, info, ok, warning
from zart_cli.main import cli

PATIENT = Patient(schema="public", where="postgresql://h/d", old_after=dt.timedelta(minutes=5))
MINUTE, HOUR = dt.timedelta(minutes=1), dt.timedelta(hours=1)
CHECKS = {check.name: check for check in reversed(examination.CHECKS)}


def judged(name: str, *rows: tuple[Any, ...], patient: Patient = PATIENT) -> list[Finding]:
    return CHECKS[name].judge(rows, patient)


def levels(name: str, *rows: tuple[Any, ...], patient: Patient = PATIENT) -> list[str]:
    found = judged(name, *rows, patient=patient)
    for finding in found:
        assert (finding.remedy is not None) == (
            finding.level in ("warning", "error")
        ) or finding.level == "info"
    return [finding.level for finding in found]


@pytest.mark.parametrize(
    ("name", "rows", "wanted"),
    [
        ("server", [("13.4", 130004, False, "d", "u")], ["error"]),
        ("server", [("16.1", 160001, True, "d", "u")], ["error"]),
        ("server", [("16.1", 160001, False, "d", "u")], ["ok"]),
        ("isolation", [("default_transaction_isolation", "serializable")], ["error"]),
        ("isolation", [("default_transaction_isolation", "read committed")], ["ok"]),
        ("writable", [("default_transaction_read_only", "on")], ["error"]),
        (
            "durability",
            [("fsync", "off"), ("full_page_writes", "off"), ("synchronous_commit", "off")],
            ["error", "error", "warning"],
        ),
        ("durability", [("fsync", "on"), ("full_page_writes", "on"), ("synchronous_commit", "on")], ["ok"]),
        ("timeouts", [("statement_timeout", "30000 ms"), ("lock_timeout", "0")], ["warning"]),
        (
            "timeouts",
            [("idle_session_timeout", "1000 ms"), ("transaction_timeout", "1 ms")],
            ["warning", "warning"],
        ),
        ("timeouts", [("statement_timeout", "0")], ["ok"]),
        ("autovacuum", [("autovacuum", "off"), ("track_counts", "on")], ["error"]),
        ("autovacuum", [("autovacuum", "on"), ("track_counts", "on")], ["ok"]),
        ("connections", [(90, 97)], ["warning"]),
        ("connections", [(9, 97)], ["ok"]),
        ("triggers", [("zart_tasks_announce", "zart_tasks")], ["error"]),
        ("triggers", [], ["ok"]),
        ("privileges", [("zart_tasks", False, False, False)], ["error"]),
        ("privileges", [("zart_tasks", True, False, True)], ["error"]),
        ("privileges", [("zart_tasks", True, True, False)], ["warning"]),
        ("privileges", [("zart_tasks", True, True, True)], ["ok"]),
        ("privileges", [], ["ok"]),
        ("held rows", [(7, "h", 1, 99, "idle in transaction", "psql", None)], ["error"]),
        ("held rows", [(7, "h", 1, None, None, None, None)], ["ok"]),
        ("tasks without owner", [(7, 2), (8, 1)], ["warning"]),
        ("tasks without owner", [], ["ok"]),
        ("wake-ups", [(0, None)], ["ok"]),
        ("wake-ups", [(3, MINUTE)], ["info"]),
        ("wake-ups", [(2001, HOUR)], ["error"]),
        ("oldest ready", [], ["ok"]),
        ("oldest ready", [("default", "f", None, False, 3, MINUTE, True)], ["ok"]),
        ("oldest ready", [("default", "f", None, False, 3, HOUR, True)], ["warning"]),
        ("oldest ready", [("default", "f", None, False, 3, HOUR, False)], ["ok"]),
        ("unregistered names", [("default", "f", None, False, 3, HOUR, False)], ["error"]),
        ("unregistered names", [("mail", "s", None, True, 2001, None, False)], ["error"]),
        ("unregistered names", [("default", "f", None, False, 3, HOUR, True)], ["ok"]),
        ("versions", [("default", "f", None, False), ("default", "f", "2", False)], ["info"]),
        ("versions", [("default", "f", None, False), ("mail", "f", None, False)], ["ok"]),
        ("blocked", [("o", "f", None, 12)], ["warning"]),
        ("blocked", [("o", "f", "no failure", 1)], ["warning"]),
        ("blocked", [], ["ok"]),
        ("retrying", [("o", "charge", 7, HOUR)], ["warning"]),
        ("retrying", [("o", "charge", 7, MINUTE)], ["ok"]),
        ("old snapshots", [(99, "psql", "ann", "active", HOUR, True)], ["warning"]),
        ("old snapshots", [(99, None, "ann", "idle in transaction", MINUTE, False)], ["ok"]),
        ("old snapshots", [(99, "psql", "ann", None, None, True)], ["ok"]),
        ("prepared transactions", [("it's", "ann", HOUR)], ["warning"]),
        ("prepared transactions", [("a", "ann", MINUTE)], ["ok"]),
        ("replication", [("replication slot s", False, 2_000_000)], ["warning"]),
        ("replication", [("standby s", True, 20)], ["ok"]),
        ("dead rows", [("zart_tasks", 100, 60_000, 2**20, None)], ["warning"]),
        (
            "dead rows",
            [("zart_tasks", 100_000, 60_000, 2**20, HOUR), ("zart_steps", 9, 40_000, 1, HOUR)],
            ["ok"],
        ),
        ("dead rows", [("zart_steps", 50_000, 60_000, 2**20, HOUR)], ["warning"]),
        ("history", [("zart_executions", 20_000_000, 0, 2**30, HOUR)], ["info"]),
        ("history", [], ["ok"]),
        ("transaction ids", [(100, 100)], ["ok"]),
        ("transaction ids", [(700_000_000, 100)], ["warning"]),
        ("transaction ids", [(100, 1_600_000_000)], ["error"]),
        ("notification queue", [(0.0,)], ["ok"]),
        ("notification queue", [(0.2,)], ["warning"]),
        ("notification queue", [(0.6,)], ["error"]),
    ],
)
def test_what_is_seen_is_judged(name: str, rows: list[tuple[Any, ...]], wanted: list[str]) -> None:
    """Each trouble has a level, and where something is to be done a remedy."""
    assert levels(name, *rows) == wanted


def worker(number: int, *, alive: bool) -> tuple[Any, ...]:
    now = dt.datetime.now(dt.UTC)
    return (number, "host", 10 + number, alive, True, now, now, 3, [1])


def test_dead_workers_are_worse_where_none_lives() -> None:
    """Somebody must start one; else another one takes over by itself."""
    assert levels("workers", worker(1, alive=True)) == ["ok", "ok"]
    assert levels("workers") == ["warning", "ok"]
    assert levels("workers", worker(1, alive=True), worker(2, alive=False)) == ["ok", "warning"]
    assert levels("workers", worker(2, alive=False)) == ["warning", "error"]


def test_the_schema_is_judged_by_what_it_lacks_and_has_too_much() -> None:
    """Nothing there, older, edited, newer."""
    names = tuple(migration.name for migration in migrations())
    for pending, drifted, unknown, told in (
        (names, (), (), "there are no tables"),
        (names[-1:], (), (), f"lack {names[-1]}"),
        ((), names[:1], (), "another text"),
        ((), (), ("9999_from_tomorrow",), "newer than this library"),
    ):
        status = Status(pending=pending, drifted=drifted, unknown=unknown)
        (finding,) = schema.judge_schema(status, PATIENT)
        assert finding.level == "error"
        assert told in finding.found
    (finding,) = schema.judge_schema(Status(pending=(), drifted=(), unknown=()), PATIENT)
    assert finding.level == "ok"


def test_the_indexes_that_must_be_there_are_those_of_the_migrations() -> None:
    """Also those of primary keys; those that a later migration drops do not count."""
    expected = schema.expected_indexes()
    assert {"zart_tasks_ready", "zart_tasks_pkey", "zart_wakeups_cancels", "zart_duties_pkey"} <= expected
    assert "zart_lanes_key" not in expected
    rows = [(name, True) for name in expected]
    assert levels("indexes", *rows) == ["ok"]
    assert levels("indexes", *rows[1:]) == ["error"]
    assert levels("indexes", *rows[1:], (rows[0][0], False)) == ["error"]
    assert levels("indexes", *rows[2:], (rows[0][0], False)) == ["error", "error"]


def test_sizes_near_the_limit_are_named() -> None:
    """Of payloads and results alike; nothing is said twice when all is well."""
    assert work.judge_large([("o", "order", 900_000), ("p", "order", 10), ("q", "order", None)], PATIENT)[
        0
    ].found == ("near the limit of 1,024 KiB: o of order: 879 KiB")
    assert work.judge_large([], PATIENT) == []
    assert [finding.level for finding in work.judge_large_steps([("charge", 10)], PATIENT)] == ["ok"]


def test_a_registry_is_compared_with_what_lives() -> None:
    """By name and version; steps by their name."""

    @zart.step("charge", retry="fixed(1, 1s)")
    async def charge() -> None: ...

    @zart.step("ship")
    async def ship() -> None: ...

    @zart.durable("order", version="2")
    async def order() -> None:
        await charge()
        await ship()

    registry = zart.Registry(order, charge, ship)
    patient = PATIENT._replace(registry=registry)
    rows = [("default", "order", "2", False), ("default", "order", None, False), ("mail", "pack", None, True)]
    (finding,) = judged("names of the app", *rows, patient=patient)
    assert finding.level == "warning"
    assert finding.found == "live work of order, step pack in queue mail is not in this app's registry"
    assert levels("names of the app", *rows[:1], ("default", "ship", None, True), patient=patient) == ["ok"]
    assert levels("names of the app", *rows) == []  # no app was named
    about, once = judge_app(registry)
    assert about.found == "registers order version 2 and 2 steps"
    assert (once.level, once.found) == ("info", "a failure of ship is final at once")


def test_the_way_to_the_server_is_judged() -> None:
    """A pooler without a way past it; clocks that differ; a durable clock that was moved."""
    assert [finding.level for finding in connection.judge_pooler(pooled=True, direct=False)] == ["warning"]
    assert [finding.level for finding in connection.judge_pooler(pooled=True, direct=True)] == ["ok"]
    assert [finding.level for finding in connection.judge_pooler(pooled=False, direct=False)] == ["ok"]
    assert [finding.level for finding in connection.judge_notifications(None)] == ["ok"]
    assert [finding.level for finding in connection.judge_notifications("none arrives")] == ["warning"]
    nothing, ten = dt.timedelta(), dt.timedelta(seconds=10)
    for ahead, round_trip, shifted, wanted in (
        (nothing, nothing, nothing, ["ok"]),
        (-ten, nothing, nothing, ["info"]),
        (ten, dt.timedelta(seconds=30), nothing, ["ok"]),
        (nothing, nothing, dt.timedelta(days=2), ["ok", "warning"]),
    ):
        found = connection.judge_clocks(ahead, round_trip, shifted)
        assert [finding.level for finding in found] == wanted


@pytest.mark.parametrize(
    ("trouble", "level", "told"),
    [
        (errors.UndefinedTable("no table\nLINE 1"), "warning", "could not be looked at: no table"),
        (errors.InsufficientPrivilege("no"), "warning", "this role may not look at it"),
        (errors.QueryCanceled("late"), "warning", "the look was cut off"),
        (psycopg.OperationalError("gone"), "error", "the connection was lost: gone"),
        (errors.DiskFull(""), "warning", "could not be looked at: DiskFull"),
        (OSError("no route"), "warning", "no route"),
    ],
)
def test_trouble_while_looking_is_a_finding_of_its_check(trouble: Exception, level: str, told: str) -> None:
    """With one line of reason and something to do."""
    finding = examination.judge_trouble("blocked", trouble, PATIENT)
    assert (finding.check, finding.level) == ("blocked", level)
    assert told in finding.found
    assert finding.remedy


def test_each_check_stands_in_a_table_with_its_look() -> None:
    """Names are in words, and what is judged was asked for."""
    tables = (settings.CHECKS, schema.CHECKS, workers.CHECKS, work.CHECKS, space.CHECKS)
    assert tuple(check for table in tables for check in table) == examination.CHECKS
    for check in examination.CHECKS:
        assert isinstance(check, Check)
        assert check.judge.__doc__


@pytest.mark.parametrize(
    ("found", "code", "last"),
    [
        ([ok("a", "fine"), info("b", "so", "maybe"), warning("c", "hm", "do this")], 0, "1 warning"),
        (
            [error("a", "no", "mend"), error("a", "nor this", "mend"), warning("c", "hm", "x")],
            1,
            "2 errors, 1 warning",
        ),
        ([ok("a", "fine")], 0, "all well"),
    ],
)
def test_the_exit_code_says_whether_anything_is_in_the_way(
    found: list[Finding], code: int, last: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Errors alone count; each finding has its line, and below it what to do."""

    async def examine(*_: object, **__: object) -> list[Finding]:
        return found

    monkeypatch.setattr(command, "examine", examine)
    result = CliRunner().invoke(cli, ["doctor", "--dsn", "postgresql://h/d"])
    assert result.exit_code == code
    assert result.stderr == ("zart: something is in the way of the work: a\n" if code else "")
    lines = result.stdout.splitlines()
    assert lines[-1] == last
    assert sum("to do:" in line for line in lines) == sum(finding.remedy is not None for finding in found)
    for finding in found:
        assert any(finding.level in line and finding.found in line for line in lines)
