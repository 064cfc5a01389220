"""The command line, from the first migration to a worker that is told to stop."""

import json
import os
import signal
from pathlib import Path

import psycopg
import pytest

from tests.support.command import Command, Running, until
from zart._postgres import embedded

APP = """\
import asyncio
from pathlib import Path

import msgspec

import zart
from zart import durable, step


class Order(msgspec.Struct):
    number: int
    card: str = "good"


@step("charge", retry="fixed(1, 10ms)")
async def charge(order: Order) -> str:
    if order.card != "good":
        raise ValueError(f"card {order.card!r} is not good")
    return f"receipt {order.number}"


@step("ship")
def ship(receipt: str) -> str:
    return f"shipped with {receipt}"


@durable("order")
async def order(data: Order) -> str:
    receipt = await charge(data)
    await zart.wait_for_event("paid", timeout="48h")
    return await ship(receipt)


@step("linger")
async def linger() -> None:
    Path("lingering").touch()
    await asyncio.sleep(60)


@durable("slow")
async def slow() -> None:
    await linger()


@durable("family")
async def family(number: int) -> str:
    first = zart.start_child(order, Order(number=number), id=f"part-{number}")
    second = await nested(number)
    return f"{await first} and {second}"


@durable("nested")
async def nested(number: int) -> str:
    return await tiny(number)


@durable("tiny")
async def tiny(number: int) -> str:
    return f"tiny {number}"


registry = zart.Registry(order, slow, family, nested, tiny)
"""


def status_of(zart: Command, execution_id: str) -> str:
    return str(json.loads(zart("status", execution_id, "--json").stdout)["status"])


def wait_for_status(zart: Command, execution_id: str, wanted: str) -> None:
    until(
        lambda: status_of(zart, execution_id) == wanted,
        lambda: f"{execution_id} is {status_of(zart, execution_id)}, not {wanted}",
    )


def test_an_order_from_start_to_end(zart: Command, worker: Running) -> None:
    """start, status, list, show, event, wait and stats tell one story; SIGTERM ends the worker with exit code 0."""
    started = zart("start", "order", "--id", "o-1", "--data", '{"number": 1}')
    assert (started.returncode, started.stdout, started.stderr) == (0, "o-1\n", "")
    wait_for_status(zart, "o-1", "waiting")

    again = zart("start", "order", "--id", "o-1", "--data", "-", "--", input='{"number": 1}')
    assert (again.returncode, again.stdout) == (0, "o-1\n")
    assert "exists already: waiting" in again.stderr
    other = zart("start", "order", "--id", "o-1", "--data", '{"number": 2}')
    assert other.returncode == 1
    assert "o-1" in other.stderr

    status = zart("status", "o-1")
    assert status.returncode == 0
    assert "event 'paid'" in status.stdout
    early = zart("wait", "o-1", "--timeout", "50ms")
    assert (early.returncode, early.stdout) == (4, "")
    assert "50ms" in early.stderr

    assert zart("event", "o-1", "paid", "--dedup", "k", "--data", '"cash"').returncode == 0
    ended = zart("wait", "o-1", "--timeout", "20s")
    assert (ended.returncode, ended.stdout) == (0, '"shipped with receipt 1"\n')

    assert "offered before" in zart("event", "o-1", "paid", "--dedup", "k").stdout
    late = zart("event", "o-1", "paid")
    assert late.returncode == 1
    assert "o-1" in late.stderr

    shown = zart("show", "o-1")
    assert shown.returncode == 0
    names = [line.split()[2] for line in shown.stdout.splitlines() if "✓" in line]
    assert names == ["charge", "paid", "ship"]
    history = json.loads(zart("show", "o-1", "--json").stdout)
    assert [record["name"] for record in history["records"]] == ["charge", "paid", "ship"]

    listed = json.loads(zart("list", "--json", "--status", "completed").stdout)
    assert [execution["id"] for execution in listed] == ["o-1"]
    assert "o-1" in zart("list", "--name", "order").stdout
    assert json.loads(zart("stats", "--json").stdout) == {
        "by_status": {"completed": 1},
        "unserved": {},
        "workers": 1,
    }
    assert worker.end() == 0
    assert "o-1 waits for event 'paid'" in worker.output
    assert "Traceback" not in worker.output


def test_failed_and_cancelled_executions_end_the_wait_with_code_1(zart: Command, worker: Running) -> None:
    """The reason is a line on stderr; `show` names the step, its attempts and the error."""
    zart("start", "order", "--id", "bad", "--data", '{"number": 1, "card": "stolen"}')
    failed = zart("wait", "bad", "--timeout", "20s")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "card 'stolen' is not good" in failed.stderr
    assert "Traceback" not in failed.stderr
    shown = zart("show", "bad").stdout
    assert "✗ charge" in shown
    assert "2 attempts" in shown
    refused = zart("cancel", "bad")
    assert refused.returncode == 1
    assert "has failed already" in refused.stderr

    zart("start", "order", "--id", "gone", "--data", '{"number": 1}')
    wait_for_status(zart, "gone", "waiting")
    assert zart("cancel", "gone", "--reason", "no longer wanted").returncode == 0
    cancelled = zart("wait", "gone", "--timeout", "20s")
    assert cancelled.returncode == 1
    assert "no longer wanted" in cancelled.stderr
    assert zart("cancel", "gone").returncode == 0  # twice is harmless
    not_blocked = zart("resume", "gone")
    assert not_blocked.returncode == 1
    assert "not blocked" in not_blocked.stderr


def test_payload_that_does_not_fit_fails_with_its_path(zart: Command, worker: Running) -> None:
    """Started by name, the type is not at hand: the execution fails, naming the field."""
    zart("start", "order", "--id", "misfit", "--data", '{"number": "one"}')
    failed = zart("wait", "misfit", "--timeout", "20s")
    assert failed.returncode == 1
    assert "$.number" in failed.stderr


def test_changed_code_blocks_and_resumes(zart: Command, place: Path) -> None:
    """A renamed step blocks: wait says so with exit code 1; after the fix `resume` lets it go on."""
    with zart.running("worker", "--app", "app") as first:
        first.until(" runs ")
        zart("start", "order", "--id", "o", "--data", '{"number": 1}')
        wait_for_status(zart, "o", "waiting")
        first.end()
    (place / "app.py").write_text(APP.replace('@step("charge"', '@step("debit"'))
    with zart.running("worker", "--app", "app") as second:
        second.until(" runs ")
        zart("event", "o", "paid")
        wait_for_status(zart, "o", "blocked")
        waited = zart("wait", "o")
        assert waited.returncode == 1
        assert "charge" in waited.stderr
        assert "debit" in waited.stderr
        assert "zart resume o" in zart("show", "o").stdout
        second.end()
    (place / "app.py").write_text(APP)
    with zart.running("worker", "--app", "app") as third:
        third.until(" runs ")
        resumed = zart("resume", "o", "--reason", "mended")
        assert resumed.returncode == 0
        ended = zart("wait", "o", "--timeout", "20s")
        assert (ended.returncode, ended.stdout) == (0, '"shipped with receipt 1"\n')


def test_a_function_is_paused_shown_and_let_go(zart: Command, worker: Running) -> None:
    """pause prints the id of its rule alone; list, status and pauses show it; unpause lets everything go on."""
    rule = zart("pause", "--name", "order", "--reason", "release 17 is broken", "--expires", "2h")
    assert rule.returncode == 0
    assert rule.stderr == f"held back until: zart unpause {rule.stdout}"
    made = rule.stdout.strip()
    zart("start", "order", "--id", "o-1", "--data", '{"number": 1}')
    wait_for_status(zart, "o-1", "paused")
    told = f"pause rule {made} of "
    assert told in zart("status", "o-1").stdout
    listed = zart("list", "--status", "paused").stdout
    assert told in listed
    assert listed.rstrip().endswith("release 17 is broken")
    (shown,) = json.loads(zart("pauses", "--json").stdout)
    assert (shown["id"], shown["name"], shown["step"], shown["execution_id"]) == (made, "order", None, None)
    assert shown["reason"] == "release 17 is broken"
    assert shown["expires_at"] is not None
    table = zart("pauses").stdout
    assert "all of order" in table
    assert "release 17 is broken" in table

    ended = zart("unpause", made, "--reason", "release 18")
    assert (ended.returncode, ended.stdout) == (0, f"{made} holds nothing back any more\n")
    wait_for_status(zart, "o-1", "waiting")
    assert zart("pauses").stdout == "nothing is held back\n"
    again = zart("unpause", made)
    assert (again.returncode, again.stdout) == (3, "")

    one = zart("pause", "o-1", "--step", "sh[i]p").stdout.strip()
    assert "steps sh[i]p of o-1" in zart("pauses").stdout
    zart("event", "o-1", "paid")
    wait_for_status(zart, "o-1", "paused")
    assert f"before step ship, pause rule {one}" in zart("status", "o-1").stdout
    assert "paused" in zart("show", "o-1").stdout
    zart("unpause", one)
    assert zart("wait", "o-1", "--timeout", "20s").returncode == 0
    for wrong in ((), ("o-1", "--name", "order"), ("--step", "*", "--expires", "soon"), ("--name", "")):
        refused = zart("pause", *wrong)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert len(refused.stderr.splitlines()) == 1
    assert zart("pause", "o-1").returncode == 1  # it has ended


@pytest.mark.parametrize(
    "arguments",
    [
        ("status", "nobody"),
        ("show", "nobody"),
        ("wait", "nobody"),
        ("event", "nobody", "paid"),
        ("cancel", "nobody"),
        ("resume", "nobody"),
        ("pause", "nobody"),
        ("unpause", "nobody"),
    ],
)
def test_unknown_execution_is_code_3(zart: Command, arguments: tuple[str, ...]) -> None:
    """One line that names the id."""
    result = zart(*arguments)
    assert result.returncode == 3
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert "'nobody'" in line


@pytest.mark.parametrize("bad", ["", "x" * 300, "a\nb", "a~b"])
def test_ids_that_cannot_be_are_wrong_usage(zart: Command, bad: str) -> None:
    """Empty, too long, control characters, the sign that is kept for derived ids."""
    result = zart("start", "order", "--id", bad)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


def test_a_version_that_nobody_has_registered(zart: Command, worker: Running) -> None:
    """`start --version`: the execution waits for a worker that has it, and `list` and `stats` show that."""
    started = zart("start", "order", "--id", "o-2", "--version", "2", "--data", '{"number": 1}')
    assert (started.returncode, started.stdout) == (0, "o-2\n")
    assert "'order' in version '2'" in started.stderr
    zart("start", "order", "--id", "o-1", "--data", '{"number": 1}')
    wait_for_status(zart, "o-1", "waiting")
    lines = {line.split()[0]: line for line in zart("list").stdout.splitlines()}
    assert "order version 2" in lines["o-2"]
    assert "no worker serves it" in lines["o-2"]
    assert "no worker serves it" not in lines["o-1"]
    assert json.loads(zart("stats", "--json").stdout)["unserved"] == {"order version 2": 1}


def test_any_other_sign_in_ids_and_names_is_fine(zart: Command) -> None:
    """Quotes, %, #, /, emoji and markup come back as they went in; work that nobody serves is shown as such."""
    strange = 'it\'s "50%" #2/[red]3 🎉 {x}'
    started = zart("start", strange, "--id", strange)
    assert (started.returncode, started.stdout) == (0, f"{strange}\n")
    assert "no worker that runs now has registered" in started.stderr
    assert strange in zart("show", strange).stdout
    listed = zart("list").stdout
    assert listed.count(strange) == 2
    assert "no worker serves it" in listed
    assert json.loads(zart("stats", "--json").stdout)["unserved"] == {strange: 1}
    assert f"no worker serves {strange}: 1 ready" in zart("stats").stdout


def test_tables_that_are_missing(place: Path, empty_dsn: str) -> None:
    """Every command names the one that makes them; after it all is well; --check tells by its exit code."""
    zart = Command(place, empty_dsn)
    for arguments in (("list",), ("start", "order"), ("worker", "--app", "app")):
        result = zart(*arguments)
        assert result.returncode == 1, result.stderr
        assert "zart migrate" in result.stderr
        assert "Traceback" not in result.stderr
    checked = zart("migrate", "--check")
    assert checked.returncode == 1
    assert "0001_create_engine" in checked.stdout
    assert zart("migrate").returncode == 0
    assert zart("migrate").stdout.startswith("up to date, nothing to do")
    assert zart("migrate", "--check").returncode == 0


def test_tables_that_are_too_old_or_too_new(zart: Command, dsn: str) -> None:
    """A worker refuses both and says what to do; `migrate` never touches tables that it does not know."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO zart_migrations (number, name, checksum) VALUES (9999, '9999_add_more', 'x')"
        )
        for arguments in (("worker", "--app", "app"), ("migrate",)):
            result = zart(*arguments)
            assert result.returncode == 1
            assert "newer than this library" in result.stderr
            assert "9999_add_more" in result.stderr
        assert "9999_add_more" in zart("migrate", "--check").stdout
        connection.execute("DELETE FROM zart_migrations WHERE number > 1")
        older = zart("worker", "--app", "app")
    assert older.returncode == 1
    assert "run `zart migrate`" in older.stderr


def test_work_that_nobody_serves_is_in_the_log_of_those_who_run(zart: Command) -> None:
    """A worker warns of ready work that no worker has registered; the work waits and does not fail."""
    zart("start", "unheard", "--id", "u")
    with zart.running("worker", "--app", "app") as worker:
        worker.until("unheard in queue 'default' are ready, and no worker that runs now has registered it")
    assert status_of(zart, "u") == "scheduled"


def test_schema_with_quotes(place: Path, empty_dsn: str) -> None:
    """--schema reaches every command, whatever the name."""
    zart = Command(place, empty_dsn)
    schema = ("--schema", 'the "new" one\'s')
    assert zart("migrate", *schema).returncode == 0
    with zart.running("worker", "--app", "app", *schema) as worker:
        worker.until(" runs ")
        assert zart("start", "order", "--id", "o", "--data", '{"number": 7}', *schema).returncode == 0
        assert zart("event", "o", "paid", *schema).returncode == 0
        ended = zart("wait", "o", "--timeout", "20s", *schema)
        assert ended.stdout == '"shipped with receipt 7"\n', ended.stderr
    assert zart("list").returncode == 1  # nothing in public


def ended_by_two(number: signal.Signals, worker: Running) -> int:
    """The exit code of a worker that is sent one signal, and then others until it has ended: soon after the second."""
    worker.process.send_signal(number)
    worker.until(f"{number.name}: stopping")

    def gone() -> bool:
        if worker.process.poll() is None:
            worker.process.send_signal(number)
        return worker.process.poll() is not None

    until(gone, lambda: worker.output, seconds=4.0)  # the shutdown timeout is 5 s
    return int(worker.process.wait())


def test_second_signal_ends_at_once(zart: Command, place: Path, worker: Running) -> None:
    """The first lets a running step have its time, the second does not wait for it."""
    zart("start", "slow", "--id", "s")
    until((place / "lingering").exists, lambda: worker.output)
    assert ended_by_two(signal.SIGTERM, worker) == 128 + signal.SIGTERM


def test_several_processes(zart: Command, place: Path) -> None:
    """They share the work; one that is killed starts anew; a signal ends all of them."""
    (place / "app.py").write_text(
        "import os\n" + APP.replace('Path("lingering")', 'Path(f"lingering-{os.getpid()}")')
    )
    for number in range(2):
        zart("start", "slow", "--id", f"s{number}")
    options = (
        "--processes",
        "2",
        "--max-concurrent-tasks",
        "1",
        "--orphan-timeout",
        "2s",
        "--heartbeat-interval",
        "500ms",
    )
    leases = ("--orphan-timeout", "2s", "--heartbeat-interval", "500ms")
    with zart.running("worker", "--app", "app", *options, *leases) as workers:

        def lingering() -> list[int]:
            return sorted(int(path.name.partition("-")[2]) for path in place.glob("lingering-*"))

        until(lambda: len(lingering()) == 2, lambda: workers.output)
        assert workers.process.pid not in lingering()
        os.kill(lingering()[0], signal.SIGKILL)
        workers.until("has ended by SIGKILL; it starts anew in 1 s")
        until(lambda: len(lingering()) == 3, lambda: workers.output)
        for number in (1, 2):
            assert f"[{number}] INFO" in workers.output
        assert workers.end() == 0
        assert workers.output.count("INFO    stopped\n") == 2
        for pid in lingering():
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
    assert "Traceback" not in workers.output


def test_second_signal_ends_several_processes_at_once(zart: Command, place: Path) -> None:
    """As with one; what they held goes on when their leases end."""
    zart("start", "slow", "--id", "s")
    with zart.running("worker", "--app", "app", "--processes", "2") as workers:
        until((place / "lingering").exists, lambda: workers.output)
        assert ended_by_two(signal.SIGINT, workers) == 128 + signal.SIGINT


def test_several_processes_end_with_the_one_that_looks_after_them(zart: Command) -> None:
    """kill -9 of it leaves none behind."""
    with zart.running("worker", "--app", "app", "--processes", "2") as workers:
        until(lambda: workers.output.count(" runs ") == 2, lambda: workers.output)
        workers.end(signal.SIGKILL)
        with pytest.raises(ProcessLookupError):
            until(lambda: os.killpg(workers.process.pid, 0) is not None, lambda: "a process is left")


def test_several_processes_that_cannot_run(zart: Command, place: Path, dsn: str) -> None:
    """What keeps each of them from running ends the command, with its exit code, and is not tried again and again."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("DELETE FROM zart_migrations WHERE number > 1")
    older = zart("worker", "--app", "app", "--processes", "2")
    assert older.returncode == 1
    assert "run `zart migrate`" in older.stderr
    (place / "app.py").write_text("import nothing_like_it\n")
    broken = zart("worker", "--app", "app", "--processes", "2")
    assert broken.returncode == 2
    assert broken.stderr.count("nothing_like_it") == 1
    assert zart("worker", "--app", "app", "--processes", "0").returncode == 2


def test_dev_is_found_from_another_terminal_and_reloads(place: Path) -> None:
    """`zart dev` prints what it found and two commands that work when pasted; a change restarts the worker."""
    zart = Command(place, None)
    below = place / "deep" / "down"
    below.mkdir(parents=True)
    with zart.running("dev", "--app", "app", "--reload") as dev:
        greeting = dev.until(" runs ")
        for word in ("order, queue default", "slow", "schema     public", ".zart/", "zart show first"):
            assert word in greeting
        assert (place / ".zart" / ".gitignore").read_text() == "*\n"

        started = zart("start", "order", "--id", "first", "--data", '{"number": 3}', directory=below)
        assert started.returncode == 0, started.stderr
        assert started.stderr.splitlines()[0] == f"using the database of zart dev in {place.resolve()}/.zart"
        wait_for_status(zart, "first", "waiting")

        (place / "app.py").write_text("import nothing_like_it\n")
        dev.until("app.py changed: starting anew")
        dev.until("No module named 'nothing_like_it'")
        (place / "app.py").write_text(APP.replace("shipped", "sent"))
        until(lambda: dev.output.count(" runs ") == 2, lambda: dev.output)
        zart("event", "first", "paid")
        assert zart("wait", "first", "--timeout", "20s").stdout == '"sent with receipt 3"\n'
        assert dev.end(signal.SIGINT) == 0
    assert "Traceback" not in dev.output
    assert zart("list").returncode == 2  # the server went with it


def test_reloading_worker_ends_with_the_process_that_watches(place: Path) -> None:
    """kill -9 of `zart dev --reload` leaves neither a worker nor a server behind."""
    zart = Command(place, None)
    with zart.running("dev", "--app", "app", "--reload") as dev:
        dev.until(" runs ")
        server = embedded.running(place / ".zart")
        assert server is not None
        dev.end(signal.SIGKILL)
        until(lambda: embedded.running(place / ".zart") is None, lambda: "the server runs on")
        with pytest.raises(ProcessLookupError):  # the group of its processes is empty, sooner or later
            until(lambda: os.killpg(dev.process.pid, 0) is not None, lambda: "a process is left")


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("default_transaction_isolation=serializable", "default_transaction_isolation = 'serializable'"),
        ("default_transaction_read_only=on", "read-only"),
    ],
)
def test_settings_under_which_nothing_would_work(
    place: Path, direct_dsn: str, setting: str, told: str
) -> None:
    """A database whose defaults break the engine's rules is refused by name, as wrong usage."""
    mark = "&" if "?" in direct_dsn else "?"
    zart = Command(place, f"{direct_dsn}{mark}options=-c%20{setting.replace('=', '%3D')}")
    for arguments in (("list",), ("worker", "--app", "app")):
        result = zart(*arguments)
        assert result.returncode == 2, result.stderr
        assert told in result.stderr
        assert "Traceback" not in result.stderr


def test_dev_takes_no_database_from_the_environment(place: Path) -> None:
    """A production address in a variable is never used by `zart dev`."""
    zart = Command(place, "postgresql://nobody@127.0.0.1:1/production")
    with zart.running("dev", "--app", "app") as dev:
        dev.until(" runs ")
        assert dev.end() == 0
    assert "production" not in dev.output


def test_a_tree_of_executions_is_shown(zart: Command, worker: Running) -> None:
    """`show` draws what an execution has started, and what that has; names and states of all of them."""
    assert zart("start", "family", "--id", "f-1", "--data", "5").returncode == 0
    wait_for_status(zart, "part-5", "waiting")
    assert zart("event", "part-5", "paid").returncode == 0
    ended = zart("wait", "f-1", "--timeout", "20s")
    assert ended.stdout == '"shipped with receipt 5 and tiny 5"\n'
    shown = zart("show", "f-1").stdout
    tree = shown[shown.index("children") :]
    drawn = [line.strip("│├└─ ").split()[1:3] for line in tree.splitlines()[1:4]]
    assert sorted(drawn) == [["nested", "completed"], ["order", "completed"], ["tiny", "completed"]]
    assert drawn.index(["tiny", "completed"]) == drawn.index(["nested", "completed"]) + 1
    records = json.loads(zart("show", "f-1", "--json").stdout)["records"]
    assert [record["child_id"] for record in records if record["child_id"] == "part-5"] == ["part-5"]
