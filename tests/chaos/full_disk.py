"""A full disk: the server's files are on a small file system of their own, and something else fills it up.

Then a table that has to grow is refused space (53100), and the server panics when its log needs a new file: it throws
everybody out, recovers, and panics again, or gives up. Once there is space again, and somebody has started the server
if it gave up, everything goes on: nothing that was acknowledged is lost, nothing has failed of it, nobody was told
anything wrong in between.

The file system is a tmpfs, which takes the right to mount one: root's, as in a container of CI with that right. Where
it is missing, the scenario says so and shows nothing.
"""

import asyncio
import contextlib
import os
import subprocess
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import psycopg

from tests.chaos.server import ask
from tests.chaos.trial import Trial, tell
from zart._postgres import embedded

MEGABYTE = 1 << 20
SIZE = 224
"""Megabytes. An empty database of this server takes about 130."""
SETTINGS = {
    "max_connections": "100",
    "fsync": "on",
    "shared_buffers": "16MB",
    "min_wal_size": "32MB",
    "max_wal_size": "32MB",
    "wal_recycle": "off",
    "restart_after_crash": "on",
    "log_min_messages": "warning",
    "log_line_prefix": "%m [%p] %d %a ",
}
_NO_SPACE = ("No space left", "could not extend")


class Cannot(Exception):
    """This machine does not let us do it; the text says what."""


class SmallServer:
    """A server on a file system of its own that can be filled up."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._filler = place / "filler"
        embedded.start(place, settings=SETTINGS).stop()
        self._log = self._move_log()
        self._server = self._start()
        self.dsn = self._server.dsn()

    def _move_log(self) -> Path:
        """The log is kept where there is space: it is the evidence."""
        data = self._place / "data"
        log = self._place.parent / "server.log"
        log.touch()
        owner = data.stat()
        os.chown(log, owner.st_uid, owner.st_gid)
        (data / "server.log").unlink()
        (data / "server.log").symlink_to(log)
        return log

    @property
    def log(self) -> Path:
        """What the server has logged, but for panics for want of space: those are what was done to it."""
        lines = self._log.read_text(errors="replace").splitlines()
        others = self._place.parent / "server-without-panics.log"
        others.write_text("\n".join(line for line in lines if not any(text in line for text in _NO_SPACE)))
        return others

    def refused(self) -> dict[str, int]:
        """How often the server was refused space, and what it did."""
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if _NO_SPACE[0] in line]
        return {
            level: sum(f"{level}:" in line for line in lines) for level in ("ERROR", "PANIC", "FATAL", "LOG")
        }

    def fill(self, left: int = 0) -> None:
        """Take all space but so many bytes."""
        with self._filler.open("ab", buffering=0) as filler:
            while (space := _free(self._place)) > left:
                try:
                    filler.write(b"\0" * min(space - left, MEGABYTE))
                except OSError:
                    break

    async def keep_full(self, seconds: float) -> None:
        """Full for so long: what the server itself sets free in the meantime is taken, too."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            await asyncio.to_thread(self.fill)
            await asyncio.sleep(0.05)

    async def exhaust_log(self) -> None:
        """Have the server's log use up the files that it has: it panics when it needs another."""
        with contextlib.suppress(psycopg.Error):
            for _ in range(8):
                await self.ask(
                    "SELECT pg_logical_emit_message(false, 'zart', 'chaos'), pg_switch_wal()", within=0
                )

    def free(self) -> None:
        self._filler.unlink(missing_ok=True)

    async def revive(self) -> bool:
        """Start the server if it gave up; whether it had."""
        until = time.monotonic() + 60
        gave_up = False
        while True:
            with contextlib.suppress(psycopg.OperationalError):
                await self.ask("SELECT 1", within=0)
                return gave_up
            if time.monotonic() > until:
                raise TimeoutError("the server does not come back")
            if not self._runs():
                with contextlib.suppress(embedded.EmbeddedServerError):
                    old, self._server = self._server, await asyncio.to_thread(self._start)
                    old.release()
                    gave_up = True
            await asyncio.sleep(0.2)

    def _start(self) -> embedded.EmbeddedServer:
        return embedded.start(self._place, settings=SETTINGS)

    def _runs(self) -> bool:
        try:
            pid = int((self._place / "data" / "postmaster.pid").read_text().splitlines()[0])
            return "postgres" in Path(f"/proc/{pid}/cmdline").read_text()
        except (FileNotFoundError, IndexError, ValueError):
            return False

    async def connect(self) -> psycopg.AsyncConnection[Any]:
        return await psycopg.AsyncConnection.connect(self.dsn, autocommit=True, connect_timeout=5)

    async def ask(self, statement: str, *parameters: Any, within: float = 60) -> list[tuple[Any, ...]]:
        """What a statement gives, tried until the server answers."""
        return await ask(self.connect, statement, *parameters, within=within)

    def stop(self) -> None:
        self._server.stop()


@asynccontextmanager
async def small_server(directory: Path) -> AsyncGenerator[SmallServer]:
    """Raises Cannot where no file system can be mounted."""
    place = directory / "small"
    place.mkdir()
    told = await asyncio.to_thread(
        subprocess.run,
        ("mount", "-t", "tmpfs", "-o", f"size={SIZE}m,mode=755", "tmpfs", str(place)),
        check=False,
        capture_output=True,
        text=True,
    )
    if told.returncode != 0:
        raise Cannot(f"a tmpfs cannot be mounted here: {told.stderr.strip()}")
    try:
        server = await asyncio.to_thread(SmallServer, place)
        try:
            yield server
        finally:
            server.free()
            await asyncio.to_thread(server.stop)
    finally:
        await asyncio.to_thread(_unmount, place)


def _unmount(place: Path) -> None:
    for _ in range(50):
        if subprocess.run(("umount", str(place)), check=False, capture_output=True).returncode == 0:
            return
        time.sleep(0.1)
    subprocess.run(("umount", "--lazy", str(place)), check=True)


def _free(place: Path) -> int:
    at = os.statvfs(place)
    return at.f_bavail * at.f_frsize


async def run(directory: Path, *, seconds: float = 60, seed: int = 0) -> dict[str, Any]:
    """The disk is filled up and set free, again and again, under load."""
    chance = Random(seed)
    held: list[float] = []
    recoveries: list[float] = []
    gave_up = 0
    try:
        async with small_server(directory) as server:
            trial = Trial(directory, server, [server.dsn] * 2, seed=seed)
            async with trial.loaded():
                until = time.monotonic() + seconds
                while time.monotonic() < until - 15 or not held:
                    await trial.until_more(40)
                    held.append(round(chance.uniform(2.0, 12.0), 1))
                    await asyncio.to_thread(server.fill)
                    if len(held) % 2:
                        await server.exhaust_log()
                    await server.keep_full(held[-1])
                    began = time.monotonic()
                    await asyncio.to_thread(server.free)
                    gave_up += await server.revive()
                    await trial.until_more(10)
                    recoveries.append(round(time.monotonic() - began, 1))
            return {
                "scenario": "a full disk",
                "full for seconds": held,
                "refused space": server.refused(),
                "the server gave up": gave_up,
                "ten more executions had ended after seconds": recoveries,
                **trial.figures(),
            }
    except Cannot as reason:
        return {"scenario": "a full disk", "skipped": str(reason), "violations": []}


if __name__ == "__main__":
    tell(run)
