"""Fixtures for every test. Asynchronous tests need no mark: anyio runs them on asyncio."""

from collections.abc import Callable, Iterator

import anyio
import pytest

from tests.support.databases import Databases
from tests.support.server import Server, running_server


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
    made = Databases(server.dsn)
    yield made
    made.close()


@pytest.fixture(scope="session")
def template(databases: Databases) -> Iterator[str]:
    """The name of the database that was migrated once, to be cloned; nobody may connect to it."""
    from zart.migrate import migrate

    with databases.database() as name:
        anyio.run(migrate, databases.address(name))
        yield name


@pytest.fixture
def dsn(databases: Databases, template: str) -> Iterator[str]:
    """A migrated database of the test's own."""
    with databases.database(template) as name:
        yield databases.address(name)


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
