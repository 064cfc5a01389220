"""The machine's own database server: with fsync on, since it is crashed and started again while executions run."""

import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import psycopg

from tests.support.crashing import crash_server
from zart._postgres import embedded
from zart._postgres.caretaker import read_pid_file

CONNECTIONS = 100
SETTINGS = {
    "max_connections": str(CONNECTIONS),
    "fsync": "on",
    "log_min_messages": "warning",
    "log_line_prefix": "%m [%p] %d %a ",
    "deadlock_timeout": "200ms",
    "checkpoint_timeout": "1min",
}
_STARTS_WITHIN = 60.0


class Server:
    """`dsn` is the address of its database, over a socket."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._server = embedded.start(directory, settings=SETTINGS)
        self.dsn = self._server.dsn()
        self.starts = 1

    @property
    def log(self) -> Path:
        return self._server.log

    @property
    def pid(self) -> int:
        return int(read_pid_file(self.directory / "data")[0])

    def crash(self) -> None:
        """Stop it as `pg_ctl stop -m immediate` does: nothing is flushed, nobody is told."""
        crash_server(self.directory)

    def start(self) -> None:
        """Start it again; it recovers from its log."""
        deadline = time.monotonic() + _STARTS_WITHIN
        while True:
            try:
                new = embedded.start(self.directory, settings=SETTINGS)
                break
            except embedded.EmbeddedServerError:  # its predecessor's last processes may still end
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        old, self._server = self._server, new
        old.release()
        self.starts += 1

    def stop(self) -> None:
        """For good. A server that is down is started first, so that nobody waits for it in vain."""
        if embedded.running(self.directory) is None:
            self.start()
        self._server.stop()

    async def restart(self, away: float) -> None:
        """Crash it, and start it again after so many seconds."""
        await anyio.to_thread.run_sync(self.crash)
        try:
            await anyio.sleep(away)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self.start)

    async def connect(self, **options: Any) -> psycopg.AsyncConnection[Any]:
        options = {"autocommit": True, "application_name": "chaos", "connect_timeout": 5} | options
        return await psycopg.AsyncConnection.connect(self.dsn, **options)

    async def ask(self, statement: str, *parameters: Any, within: float = 60) -> list[tuple[Any, ...]]:
        """What a statement gives, on a connection of its own; tried until the server answers."""
        return await ask(self.connect, statement, *parameters, within=within)


async def ask(
    connect: Callable[[], Awaitable[psycopg.AsyncConnection[Any]]],
    statement: str,
    *parameters: Any,
    within: float,
) -> list[tuple[Any, ...]]:
    """What a statement gives, on a connection of its own; tried until the server answers."""
    deadline = time.monotonic() + within
    while True:
        try:
            async with await connect() as connection:
                cursor = await connection.execute(statement.encode(), parameters or None)
                return await cursor.fetchall() if cursor.description else []
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
        await anyio.sleep(0.1)
