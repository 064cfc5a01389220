"""Fixtures for every test, and the mode that the session runs in (`support/modes.py`).

Asynchronous tests need no mark: anyio runs them on asyncio.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import anyio
import pytest
from hypothesis import HealthCheck, settings

from tests.support import modes
from tests.support.databases import Databases
from tests.support.plain import plain_values
from tests.support.pooler import pgbouncer
from tests.support.server import Server, running_server

MODE = modes.current()

# How fast a machine draws examples says nothing about what is tested.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


def pytest_configure() -> None:
    if MODE is not None:
        modes.prepare_children(MODE)
        modes.enter(MODE)


def pytest_report_header() -> list[str]:
    return [f"zart mode: {MODE}"] if MODE is not None else []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for mark in item.iter_markers("not_in"):
            unknown = set(mark.args) - set(modes.MODES)
            if unknown or not mark.args or not mark.kwargs.get("reason"):
                raise pytest.UsageError(
                    f"{item.nodeid}: not_in takes names of modes and a reason, not {mark}"
                )
            if MODE in mark.args:
                item.add_marker(pytest.mark.skip(reason=f"not in mode {MODE}: {mark.kwargs['reason']}"))
        for mark in item.iter_markers("stores_plain"):
            if mark.args or not mark.kwargs.get("reason"):
                raise pytest.UsageError(f"{item.nodeid}: stores_plain takes a reason, not {mark}")


@pytest.fixture(scope="session", autouse=True)
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The PostgreSQL server of this session."""
    with running_server() as running:
        yield running


@pytest.fixture(scope="session")
def databases(server: Server) -> Iterator[Databases]:
    """For a test that wants several databases: `with databases.database(template) as name: databases.address(name)`."""
    with ExitStack() as stack:
        through = stack.enter_context(pgbouncer(server.dsn)) if MODE == "pgbouncer" else None
        made = Databases(server.dsn, through=through)
        stack.callback(made.close)
        yield made


@pytest.fixture(scope="session")
def template(databases: Databases) -> Iterator[str]:
    """The name of the database that was migrated once, to be cloned; nobody may connect to it."""
    from zart.migrate import migrate

    with databases.database() as name:
        # Past a pooler: it would keep its connection, and with one the database cannot be cloned.
        anyio.run(migrate, databases.direct(name))
        yield name


@pytest.fixture
def database(databases: Databases, template: str) -> Iterator[str]:
    """The name of a migrated database of the test's own."""
    with databases.database(template) as name:
        yield name


@pytest.fixture
def dsn(databases: Databases, database: str) -> str:
    """A migrated database of the test's own."""
    return databases.address(database)


@pytest.fixture
def direct_dsn(databases: Databases, database: str) -> str:
    """The same database, past the pooler in the mode that has one: for what needs a session of its own."""
    return databases.direct(database)


@pytest.fixture
def notified(direct_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients and workers of this test can listen: behind a pooler they are told the way past it."""
    if MODE == "pgbouncer":
        monkeypatch.setenv("ZART_DIRECT_URL", direct_dsn)


@pytest.fixture
def empty_dsn(databases: Databases) -> Iterator[str]:
    """A database of the test's own that has not been migrated."""
    with databases.database() as name:
        yield databases.address(name)


@pytest.fixture
def server_log(server: Server) -> Callable[[], str]:
    """Reads what the server has logged (warnings and worse, in all databases) since the test began."""
    log = server.log
    if log is None:
        pytest.skip("the log of the server in ZART_TEST_DSN cannot be read")
    start = log.stat().st_size

    def read() -> str:
        with log.open(errors="replace") as file:
            file.seek(start)
            return file.read()

    return read


if MODE == "twice":

    @pytest.fixture(scope="session")
    def differences(tmp_path_factory: pytest.TempPathFactory) -> Path:
        """Where every process writes which replays came to another end."""
        path = tmp_path_factory.mktemp("twice") / "differences"
        path.touch()
        os.environ[modes.DIFFERENCES] = str(path)
        return path

    @pytest.fixture(autouse=True)
    def _same_end_twice(differences: Path) -> Iterator[None]:
        """A replay that came to another end fails the test, whatever it looks at."""
        before = differences.stat().st_size
        yield
        with differences.open() as file:
            file.seek(before)
            told = file.read()
        if told:
            pytest.fail(told)


if MODE == "encrypted":

    @pytest.fixture(autouse=True)
    def _nothing_in_plain(request: pytest.FixtureRequest) -> Iterator[None]:
        """A value of a user's that Zart has left in plain fails the test, whatever it looks at."""
        if "database" not in request.fixturenames or request.node.get_closest_marker("stores_plain"):
            yield
            return
        dsn = request.getfixturevalue("databases").direct(request.getfixturevalue("database"))
        yield
        if found := plain_values(dsn):
            pytest.fail("in plain: " + "\n".join(found))
