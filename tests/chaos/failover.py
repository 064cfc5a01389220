"""Fail-over: the primary is killed, its standby promoted, and workers and clients go on by themselves.

Two places, `a` and `b`, and one address that names both and asks for the one that takes writes. The primary is
replicated synchronously: what it has acknowledged is on the standby's disk. So after `kill -9` of all its processes and
the promotion of the standby nothing that anybody was told of may be missing, and nothing may be recorded twice. Then a
new standby is made of the survivor in the other's place, and the same happens the other way round.

With an asynchronous standby that is behind, what was acknowledged in the last moments is gone. What that means for
clients a test of its own shows (`test_what_an_asynchronous_fail_over_loses`), and for workers `forgetting`.
"""

import asyncio
import os
import shutil
import signal
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
from psycopg import conninfo

from tests.chaos.trial import Trial, tell
from tests.support.crashing import process_state
from zart._postgres import embedded
from zart._postgres.caretaker import read_pid_file
from zart._postgres.server_binaries import find_binaries, reachable_binaries, run_as, server_user

SETTINGS: Mapping[str, str] = {
    "max_connections": "100",
    "max_wal_senders": "5",
    "wal_level": "replica",
    "hot_standby": "on",
    "log_min_messages": "warning",
    "log_line_prefix": "%m [%p] %d %a ",
    "wal_receiver_status_interval": "1s",
    "wal_retrieve_retry_interval": "200ms",
    "shared_buffers": "32MB",
}
_STREAMS_WITHIN = 30.0


class Pair:
    """Two places for a server. One of them takes writes; the other is its standby, or empty."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._servers: dict[str, embedded.EmbeddedServer] = {}
        self._dead: list[embedded.EmbeddedServer] = []
        self._deaf = 0
        self.primary = "a"
        self._sockets = {name: str((directory / name / "data").resolve()) for name in ("a", "b")}
        self._servers["a"] = embedded.start(directory / "a", settings=SETTINGS)

    @property
    def standby(self) -> str:
        return "b" if self.primary == "a" else "a"

    @property
    def dsn(self) -> str:
        """The address of whichever takes writes."""
        return conninfo.make_conninfo(
            "",
            user="postgres",
            dbname="postgres",
            host=",".join(self._sockets.values()),
            port="5432,5432",
            target_session_attrs="read-write",
        )

    @property
    def log(self) -> Path:
        """What both have logged; the end of a server that was killed is no complaint."""
        together = self._directory / "servers.log"
        logs = (Path(self._sockets[name]) / "server.log" for name in ("a", "b"))
        together.write_text("".join(log.read_text(errors="replace") for log in logs if log.exists()))
        return together

    def address(self, name: str) -> str:
        return self._servers[name].dsn()

    def add_standby(self) -> None:
        """Make a standby of the primary's files, beside it. It streams, and is asynchronous so far."""
        name = self.standby
        place = self._directory / name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        user = server_user(Path(self._sockets[self.primary]))
        if user is not None:
            os.chown(place, user.pw_uid, user.pw_gid)
        data = place / "data"
        program = reachable_binaries(find_binaries(None), user) / "pg_basebackup"
        source = conninfo.make_conninfo(
            "", host=self._sockets[self.primary], port=5432, user="postgres", application_name="standby"
        )
        told = run_as(
            user,
            *(str(program), "-D", str(data), "-d", source, "-X", "stream", "--checkpoint=fast", "--no-sync"),
        )
        if told.returncode != 0:
            raise RuntimeError(f"pg_basebackup: {told.stdout.strip()}")
        for left in (data / "server.log", *data.glob(".s.PGSQL*")):  # the primary's own
            left.unlink(missing_ok=True)
        # The copy knows the primary's settings; one that waited for a standby of its own would take no writes.
        settings = data / "postgresql.auto.conf"
        settings.write_text(f"primary_conninfo = '{source}'\n")
        (data / "standby.signal").touch()
        for file in (settings, data / "standby.signal"):
            if user is not None:
                os.chown(file, user.pw_uid, user.pw_gid)
        self._servers[name] = embedded.start(place, settings=SETTINGS)

    async def until_streaming(self) -> None:
        await self._until(
            self.primary, "SELECT count(*) > 0 FROM pg_stat_replication WHERE state = 'streaming'"
        )

    async def be_synchronous(self) -> None:
        """From when this returns, whatever is acknowledged is on both."""
        await self.until_streaming()
        async with await self.connect(self.primary) as connection:
            await connection.execute("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
            await connection.execute("SELECT pg_reload_conf()")
        await self._until(
            self.primary, "SELECT count(*) > 0 FROM pg_stat_replication WHERE sync_state = 'sync'"
        )

    async def until_caught_up(self) -> None:
        """Until the standby has all that the primary has."""
        await self._until(
            self.primary,
            "SELECT bool_and(replay_lsn >= pg_current_wal_insert_lsn()) FROM pg_stat_replication",
        )

    def fall_behind(self) -> None:
        """From now on the standby hears nothing."""
        postmaster = int(read_pid_file(Path(self._sockets[self.standby]))[0])
        for process in _children(postmaster):
            if b"walreceiver" in Path(f"/proc/{process}/cmdline").read_bytes():
                os.kill(process, signal.SIGSTOP)
                self._deaf = process

    def kill_primary(self) -> None:
        """As if its machine had lost its power: every process at once."""
        place = Path(self._sockets[self.primary])
        pid = int(read_pid_file(place)[0])
        os.kill(pid, signal.SIGSTOP)  # so that nobody is replaced meanwhile
        for process in [*_children(pid), pid]:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        while (state := process_state(pid)) not in ("", "Z"):
            assert state
            time.sleep(0.01)
        self._dead.append(self._servers.pop(self.primary))

    async def promote(self) -> None:
        """The standby becomes the primary. One that has fallen behind hears nothing of the primary's last words."""
        if self._deaf:
            os.kill(self._deaf, signal.SIGKILL)
            self._deaf = 0
            # Its server throws everybody out and starts anew: it cannot know what that process has left.
            await self._until_it_answers(self.standby)
        async with await self.connect(self.standby) as connection:
            await connection.execute("SELECT pg_promote()")
        self.primary = self.standby

    async def connect(self, name: str) -> psycopg.AsyncConnection[Any]:
        return await psycopg.AsyncConnection.connect(self.address(name), autocommit=True, connect_timeout=5)

    async def ask(self, statement: str, *parameters: Any, within: float = 60) -> list[tuple[Any, ...]]:
        """What a statement gives on the primary."""
        async with asyncio.timeout(within), await self.connect(self.primary) as connection:
            cursor = await connection.execute(statement.encode(), parameters or None)
            return await cursor.fetchall() if cursor.description else []

    def close(self) -> None:
        for server in self._servers.values():
            server.stop()
        for server in self._dead:
            server.release()

    async def _until_it_answers(self, name: str) -> None:
        async with asyncio.timeout(_STREAMS_WITHIN):
            while True:
                with suppress(psycopg.OperationalError):
                    await self._until(name, "SELECT true")
                    return
                await asyncio.sleep(0.05)

    async def _until(self, name: str, condition: str) -> None:
        async with asyncio.timeout(_STREAMS_WITHIN), await self.connect(name) as connection:
            while (await (await connection.execute(condition.encode())).fetchone()) != (True,):  # noqa: ASYNC110
                await asyncio.sleep(0.05)


@asynccontextmanager
async def pair(directory: Path) -> AsyncGenerator[Pair]:
    """A primary and its standby, streaming."""
    made = await asyncio.to_thread(Pair, directory)
    try:
        await asyncio.to_thread(made.add_standby)
        await made.until_streaming()
        yield made
    finally:
        await asyncio.to_thread(made.close)


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in tasks.read_text().split()]


async def run(directory: Path, *, seconds: float = 60, seed: int = 0) -> dict[str, Any]:
    """The primary is killed and its synchronous standby promoted, again and again, under load."""
    recoveries: list[float] = []
    async with pair(directory) as servers:
        await servers.be_synchronous()
        trial = Trial(directory, servers, [servers.dsn] * 3, seed=seed)
        async with trial.loaded():
            until = time.monotonic() + seconds
            await trial.until_more(30)
            while True:
                began = time.monotonic()
                await asyncio.to_thread(servers.kill_primary)
                await servers.promote()
                await trial.until_more(10)
                recoveries.append(round(time.monotonic() - began, 1))
                if time.monotonic() > until - 15:
                    break
                await asyncio.to_thread(servers.add_standby)
                await servers.be_synchronous()
                await trial.until_more(50)
        return {
            "scenario": "fail-over to a synchronous standby",
            "fail-overs": len(recoveries),
            "ten more executions had ended after seconds": recoveries,
            **trial.figures(),
        }


if __name__ == "__main__":
    tell(run)
