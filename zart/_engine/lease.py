"""A worker's lease: its rows in the database, and the thread that keeps them fresh.

A registration has an id that is never used again and one row for each connection that writes. While the rows
stand, everything that was claimed under the id is the worker's; once they are deleted nothing that it still
sends is accepted. The heartbeat runs in a thread with a connection of its own, so that a callback which
blocks the event loop costs no lease; a loop that is blocked for too long does (see `watchdog`).

The lease is the database's word, and the heartbeat the worker's own view of it: `fresh` is False some time
before others may take over, and a worker that is not fresh starts nothing. Both clocks are taken so that the
worker's view errs on the safe side: the time of a heartbeat is when it was sent, the database counts from
when it arrived.
"""

import asyncio
import datetime as dt
import logging
import os
import random
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import psycopg
from psycopg import AsyncConnection, sql

from zart._engine.points import reach
from zart._engine.watchdog import Watchdog
from zart._postgres.queries import load
from zart.errors import UsageError
from zart.telemetry.events import HeartbeatLate
from zart.telemetry.hub import hub

_log = logging.getLogger("zart.worker")

Connect = Callable[[], Awaitable[AsyncConnection[Any]]]
Function = tuple[str, str, str | None]
"""Queue, name and version: what a lane stands for."""

_FRESH = 0.8  # of the lease
_LATE = 2.0  # intervals
_LONGEST_PAUSE = 5.0


async def resolve_lanes(
    connection: AsyncConnection[Any], schema: str, functions: Sequence[Function]
) -> dict[int, Function]:
    """The functions by lane; one may have two lanes. Raises UsageError when another function has the number of one."""
    statements = load("workers", schema)
    queues, names, versions = zip(*functions, strict=True) if functions else ((), (), ())
    parameters = {"queues": list(queues), "names": list(names), "versions": list(versions)}
    await connection.execute(statements["note_lanes"], parameters)
    lanes: dict[int, Function] = {}
    for row in await (await connection.execute(statements["lanes"], parameters)).fetchall():
        wanted, lane, noted = row[:3], row[3], row[4:]
        if wanted != noted:
            raise UsageError(
                f"the hash of {wanted} (queue, name, version) equals that of {noted}: rename one of them"
            )
        lanes[lane] = wanted
    return lanes


class Lease:
    """One registration of a worker.

    `register` makes it, `keep` starts the heartbeat, `close` ends both. `on_fenced` is called on the event
    loop when the rows are gone: the worker must drop what it holds and register anew. `on_others_expired`, there
    too, when a heartbeat has seen other workers' leases that have ended, and `on_other_server` when another server
    answers it than before. `on_wedged` is called from the heartbeat's thread when the loop was given up; by then the
    heartbeat has stopped.
    """

    def __init__(
        self,
        schema: str,
        worker_id: int,
        orphan_timeout: dt.timedelta,
        last_heartbeat: float,
        server: dt.datetime,
    ) -> None:
        self.worker_id = worker_id
        self.server = server
        """When the server was started that has answered last."""
        self._statements = load("workers", schema)
        self._length = orphan_timeout
        self._last = last_heartbeat
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.fenced = False
        """The rows are gone: nothing that is written under this id is accepted any more."""
        self.others_expired = False
        """The last heartbeat has seen workers whose leases have ended."""

    @classmethod
    async def register(
        cls,
        connect: Connect,
        schema: str,
        *,
        lanes: Sequence[int],
        orphan_timeout: dt.timedelta,
        writers: int = 4,
        host: str | None = None,
        pid: int | None = None,
    ) -> "Lease":
        """A new worker id with `writers` fence rows, valid for `orphan_timeout`.

        0 is the claimer's, 3 that of steps in transactions.
        """
        statements = load("workers", schema)
        sequence = sql.Identifier(schema, "zart_worker_ids").as_string(None)
        connection = await connect()
        try:
            cursor = await connection.execute(statements["next_worker_id"], {"sequence": sequence})
            ((worker_id,),) = await cursor.fetchall()
            sent = time.monotonic()
            reach("registration.begin")
            cursor = await connection.execute(
                statements["register"],
                {
                    "worker": worker_id,
                    "writers": writers,
                    "host": host or socket.gethostname(),
                    "pid": pid or os.getpid(),
                    "lanes": list(lanes),
                    "lease": orphan_timeout,
                },
            )
            server = (await cursor.fetchall())[0][0]
            reach("registration.committed")
        finally:
            await connection.close()
        return cls(schema, worker_id, orphan_timeout, sent, server)

    @property
    def age(self) -> float:
        """Seconds since it was renewed last."""
        return time.monotonic() - self._last

    @property
    def fresh(self) -> bool:
        """Whether nobody can have taken over so far. When False: claim nothing, start no step."""
        return not self.fenced and time.monotonic() - self._last < _FRESH * self._length.total_seconds()

    def keep(
        self,
        dial: Callable[[], psycopg.Connection[Any]],
        *,
        interval: dt.timedelta,
        wedge_timeout: dt.timedelta,
        on_fenced: Callable[[], None],
        on_wedged: Callable[[], None],
        on_others_expired: Callable[[], None] = lambda: None,
        on_other_server: Callable[[], None] = lambda: None,
    ) -> None:
        """Starts the heartbeat for the running loop. `dial` opens a plain connection in autocommit."""
        loop = asyncio.get_running_loop()

        def told(callback: Callable[[], None]) -> Callable[[], None]:
            def tell() -> None:
                with suppress(RuntimeError):  # a loop that is closed has nobody left to be told
                    loop.call_soon_threadsafe(callback)

            return tell

        heart = _Heart(
            self,
            dial,
            Watchdog(loop, threading.get_ident(), wedge=wedge_timeout.total_seconds()),
            interval=interval.total_seconds(),
            on_fenced=told(on_fenced),
            on_wedged=on_wedged,
            on_others_expired=told(on_others_expired),
            on_other_server=told(on_other_server),
        )
        self._thread = threading.Thread(
            target=heart.run, name=f"zart-heartbeat-{self.worker_id}", daemon=True
        )
        self._thread.start()

    async def close(self, connect: Connect) -> None:
        """Ends the heartbeat and deletes the rows; what is still claimed is free for others from then on."""
        await self.stop()
        connection = await connect()
        try:
            reach("leaving.begin")
            await connection.execute(self._statements["leave"], {"worker": self.worker_id})
            reach("leaving.committed")
        finally:
            await connection.close()

    async def stop(self) -> None:
        """Ends the heartbeat alone: for a lease that is lost."""
        self._stop.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    def beat(self, connection: psycopg.Connection[Any]) -> bool:
        """One heartbeat. False: the rows are gone."""
        reach("lease.begin")
        sent = time.monotonic()
        parameters = {"worker": self.worker_id, "lease": self._length}
        rows = connection.execute(self._statements["heartbeat"], parameters).fetchall()
        reach("lease.committed")
        if rows:
            self._last = sent
            _, self.others_expired, self.server = rows[0]
        else:
            self.fenced = True
        return bool(rows)

    def wait_stop(self, seconds: float) -> bool:
        """Sleeps in the heartbeat's thread; True when it shall end."""
        return self._stop.wait(seconds)


class _Heart:
    """What the heartbeat's thread does, every `interval` seconds."""

    def __init__(
        self,
        lease: Lease,
        dial: Callable[[], psycopg.Connection[Any]],
        watchdog: Watchdog,
        *,
        interval: float,
        on_fenced: Callable[[], None],
        on_wedged: Callable[[], None],
        on_others_expired: Callable[[], None],
        on_other_server: Callable[[], None],
    ) -> None:
        self._lease = lease
        self._dial = dial
        self._watchdog = watchdog
        self._interval = interval
        self._on_fenced = on_fenced
        self._on_wedged = on_wedged
        self._on_others_expired = on_others_expired
        self._on_other_server = on_other_server
        self._connection: psycopg.Connection[Any] | None = None
        self._failures = 0
        self._next = time.monotonic() + interval

    def run(self) -> None:
        try:
            while not self._lease.wait_stop(min(self._watchdog.interval, self._interval)):
                self._watchdog.look()
                if self._watchdog.wedged:
                    self._on_wedged()
                    return
                if time.monotonic() >= self._next and not self._beat():
                    _log.warning(
                        "worker %d lost its lease: it was not renewed in time, and others take over its work",
                        self._lease.worker_id,
                    )
                    self._on_fenced()
                    return
        finally:
            self._hang_up()

    def _beat(self) -> bool:
        """False when the lease is gone. A heartbeat that could not be sent is tried again soon."""
        age, server = self._lease.age, self._lease.server
        try:
            if self._connection is None:
                self._connection = self._dial()
            standing = self._lease.beat(self._connection)
        except (psycopg.Error, OSError) as error:
            self._hang_up()
            if not self._failures:
                self._tell_late(age)
                _log.warning(
                    "worker %d could not renew its lease and tries again: %s", self._lease.worker_id, error
                )
            pause = min(0.1 * 2**self._failures, self._interval, _LONGEST_PAUSE)
            self._failures = min(self._failures + 1, 10)
            self._next = time.monotonic() + pause * random.uniform(0.5, 1.5)  # noqa: S311 (no secret)
            return True
        if self._failures:
            self._failures = 0
            _log.info("worker %d renews its lease again", self._lease.worker_id)
        elif age > _LATE * self._interval:
            self._tell_late(age)
        self._next = time.monotonic() + self._interval
        if standing and self._lease.others_expired:
            self._on_others_expired()
        if self._lease.server != server:
            self._on_other_server()
        return standing

    def _tell_late(self, age: float) -> None:
        if hub.listening:
            hub.tell(HeartbeatLate(worker=self._lease.worker_id, since=age))

    def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
