"""The PostgreSQL server that a test session uses.

`ZART_TEST_DSN` names one that runs already (its user must be allowed to create databases), and `ZART_TEST_LOG` the
file of its log, for tests that read it. Otherwise the embedded
server is started in a temporary directory, with the programs in `ZART_TEST_POSTGRES_BIN` if that is set. Where no
server wheel is installed, a container is started if Docker answers.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from zart._postgres import embedded

SETTINGS = {
    "max_connections": "300",
    # A test's data need not survive a power cut.
    "fsync": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "checkpoint_timeout": "1h",
    "max_wal_size": "4GB",
    "log_min_messages": "warning",
    "log_line_prefix": "%m [%p] %d ",
    "deadlock_timeout": "200ms",
}


@dataclass(frozen=True, kw_only=True)
class Server:
    """`dsn` is a superuser's, to its maintenance database; `log` is None where the server's log is out of reach."""

    dsn: str
    log: Path | None


@contextmanager
def running_server() -> Iterator[Server]:
    given = os.environ.get("ZART_TEST_DSN")
    if given:
        log = os.environ.get("ZART_TEST_LOG")
        yield Server(dsn=given, log=Path(log) if log else None)
        return
    programs = os.environ.get("ZART_TEST_POSTGRES_BIN")
    directory = Path(tempfile.mkdtemp(prefix="zart-tests-"))
    directory.chmod(0o755)  # as root the server runs as another user
    try:
        try:
            server = embedded.start(
                directory, settings=SETTINGS, binaries=Path(programs) if programs else None
            )
        except embedded.EmbeddedServerError as missing:
            if programs or "not installed" not in str(missing):
                raise
            yield from _container(missing)
            return
        try:
            yield Server(dsn=server.dsn(), log=server.log)
        finally:
            server.stop()
    finally:
        shutil.rmtree(directory)


def _container(missing: Exception) -> Iterator[Server]:
    import docker.errors  # type: ignore[import-untyped]
    from testcontainers.postgres import PostgresContainer

    command = [part for name, value in SETTINGS.items() for part in ("-c", f"{name}={value}")]
    try:
        container = PostgresContainer("postgres:18-alpine", driver=None).with_command(["postgres", *command])
    except docker.errors.DockerException as silent:
        raise missing from silent
    with container:
        yield Server(dsn=container.get_connection_url(), log=None)
