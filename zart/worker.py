"""The worker: claims executions of the functions that it has registered, and runs them.

A worker is made of *registrations*, one after the other; most live with the first to their end. A registration is a row
in the database that others can see and take away, the journal that writes under it, and the executions claimed under
it. When it is taken away, since this process was stopped or cut off for too long, the worker drops what it held, says
so, and registers anew.

    one registration = lease (heartbeat in a thread) + claiming + journal + listener + reaper + a tick each second
"""

import asyncio
import contextlib
import datetime as dt
import logging
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import copy_context
from types import TracebackType
from typing import Any, Self, cast, final

import anyio
import psycopg

from zart._engine.claimer import Claimer
from zart._engine.claiming import Claiming
from zart._engine.clock import DatabaseClock
from zart._engine.holding import Holding, Shared
from zart._engine.lease import Lease, resolve_lanes
from zart._engine.lineage import body_tasks, is_instrumented
from zart._engine.reaper import reap
from zart._engine.timers import body_timers
from zart._engine.writer import Journal
from zart._postgres import connections
from zart._postgres.listener import Listener, work_channel
from zart._postgres.queries import load
from zart.calls import DurableSpec
from zart.client import Client
from zart.config import WorkerConfig
from zart.context import place
from zart.errors import SchemaError, UsageError
from zart.migrate import ensure_current
from zart.outside import opened
from zart.registry import Registry

_log = logging.getLogger("zart.worker")

_TICK = 1.0
_UNSERVED_EVERY = 60.0
_EX_SOFTWARE = 70


@final
class Worker:
    """Runs executions until it is told to stop.

    `target` is a DSN, a Client, or None for what `ZART_DATABASE_URL` or `DATABASE_URL` names. Either
    `await worker.run()`, which returns after `stop()` and the drain, or `async with Worker(…)` inside an application.
    No signal handlers are installed. Raises UsageError for a registry that cannot be frozen or a database whose
    settings do not fit, and SchemaError when its tables are missing or of another version.
    """

    exit_when_wedged: bool = False
    """Whether a blocked event loop ends the process past `wedge_timeout`; else the worker only gives its work up."""

    def __init__(
        self, target: str | Client | None, registry: Registry, config: WorkerConfig | None = None, /
    ) -> None:
        if not isinstance(registry, Registry):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(
                f"Worker takes a Registry, not {registry!r}: Worker(dsn, zart.Registry(onboarding))"
            )
        self._target = target
        self._registry = registry
        self._config = config or WorkerConfig()
        self._schema = target.schema if isinstance(target, Client) else "public"
        self._stop = asyncio.Event()
        self._started: asyncio.Future[None] | None = None
        self._running: asyncio.Task[None] | None = None
        self._always_suspend = False
        self._address = ""

    # ------------------------------------------------------------ life

    def stop(self) -> None:
        """Ask the worker to stop: it claims no more, lets running steps come to an end for `shutdown_timeout`, and
        gives the rest back for others to go on at once. `run()` returns after that."""
        self._stop.set()

    async def run(self) -> None:
        """Work until `stop()`."""
        if place.get() is not None:
            raise UsageError("a Worker is started in an execution: start it from the outside")
        loop = asyncio.get_running_loop()
        self._registry.freeze()
        if not self._registry.durables:
            raise UsageError(
                "the registry holds no durable function, so this worker would have nothing to do"
            )
        self._address = self._resolve()
        functions = await self._prepare()
        with opened("worker"), body_tasks(loop), body_timers(loop):
            if not is_instrumented(loop):
                raise UsageError(
                    "the event loop's task factory was replaced: Zart needs its own in front of yours"
                )
            async with self._resources() as resources:
                shared = Shared(
                    functions=functions,
                    threads=anyio.CapacityLimiter(self._config.max_threads),
                    resources=resources,
                    base_context=copy_context(),
                    max_inflight_steps=self._config.max_inflight_steps,
                    max_concurrent_tasks=self._config.max_concurrent_tasks,
                    max_recoveries=self._config.max_recoveries,
                    always_suspend=self._always_suspend,
                )
                while not self._stop.is_set():
                    await _Registration(self, shared).run()

    async def __aenter__(self) -> Self:
        if self._running is not None:
            raise UsageError("this Worker runs already")
        self._started = asyncio.get_running_loop().create_future()
        self._running = asyncio.create_task(self.run(), name="zart worker")
        await asyncio.wait((self._started, self._running), return_when=asyncio.FIRST_COMPLETED)
        if self._running.done():
            self._running.result()
        return self

    async def __aexit__(
        self, t: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None, /
    ) -> None:
        self.stop()
        running, self._running = self._running, None
        if running is not None:
            await running
        self._stop.clear()

    # ------------------------------------------------------------ before it starts

    def _resolve(self) -> str:
        if isinstance(self._target, Client):
            return self._target.address
        return connections.resolve_address(self._target)

    async def _prepare(self) -> dict[int, DurableSpec]:
        """Look the database over; returns the functions by lane."""
        connection = await connections.connect(self._address, application_name="zart worker")
        try:
            await ensure_current(connection, self._schema)
            for warning in await connections.check_settings(connection, self._address):
                _log.warning("%s", warning)
            specs = {key: durable.spec for key, durable in self._registry.durables.items()}
            queues = self._config.queues or tuple(sorted({spec.queue for spec in specs.values()}))
            wanted = [(queue, spec.name, spec.version) for spec in specs.values() for queue in queues]
            lanes = await resolve_lanes(connection, self._schema, wanted)
        finally:
            await connection.close()
        return {lane: specs[name, version] for (_queue, name, version), lane in lanes.items()}

    @contextlib.asynccontextmanager
    async def _resources(self) -> AsyncIterator[tuple[object, ...]]:
        if self._registry.lifespan is None:
            yield ()
            return
        async with self._registry.lifespan() as opened_resources:
            yield opened_resources if isinstance(opened_resources, tuple) else (opened_resources,)

    # ------------------------------------------------------------ for the registration

    def _has_started(self) -> None:
        if self._started is not None and not self._started.done():
            self._started.set_result(None)


class _Registration:
    """See the module."""

    def __init__(self, worker: Worker, shared: Shared) -> None:
        self._worker = worker
        self._shared = shared
        self._config = worker._config  # noqa: SLF001
        self._schema = worker._schema  # noqa: SLF001
        self._address = worker._address  # noqa: SLF001
        self._over = asyncio.Event()
        self._fenced = False
        self._broken: Exception | None = None

    async def run(self) -> None:
        """Work until the worker is stopped or the registration is taken away."""
        lanes = sorted(self._shared.functions)
        lease = await Lease.register(
            self._connect, self._schema, lanes=lanes, orphan_timeout=self._config.orphan_timeout
        )
        connection = await self._connect()
        clock = DatabaseClock(await _now(connection, self._schema))
        journal = Journal(
            self._connect,
            self._schema,
            lease.worker_id,
            on_now=clock.set,
            on_fenced=self._on_fenced,
            on_schema_error=self._on_schema_error,
        )
        claimer = Claimer(self._connect, self._schema, lease.worker_id, lanes)
        holding = Holding(self._shared, clock, journal, on_free=lambda: claiming.freed())  # noqa: PLW0108 (it comes below)
        claiming = Claiming(
            claimer,
            holding,
            clock,
            most=self._config.max_tasks_per_poll,
            poll_interval=self._config.poll_interval,
            fresh=lambda: lease.fresh,
            listens=lambda: listener.listening,
            on_fenced=self._on_fenced,
        )
        listener = Listener(
            self._connect_directly,
            [work_channel(self._schema)],
            lambda _channel, _payload: claiming.stir(),
            claiming.stir,
        )
        lease.keep(
            self._dial,
            interval=self._config.heartbeat_interval,
            wedge_timeout=self._config.wedge_timeout,
            on_fenced=self._on_fenced,
            on_wedged=self._on_wedged,
        )
        writing = asyncio.create_task(journal.run(), name="zart journal")
        duties = [
            asyncio.create_task(duty, name=name)
            for name, duty in (
                ("zart claiming", claiming.run()),
                ("zart listener", listener.run()),
                ("zart tick", _every(_TICK, _sync(holding.tick))),
                ("zart reaper", self._reap(connection)),
                ("zart unserved", self._report_unserved()),
            )
        ]
        stopping: asyncio.Task[Any] = asyncio.create_task(self._worker._stop.wait(), name="zart stop")  # noqa: SLF001
        over: asyncio.Task[Any] = asyncio.create_task(self._over.wait(), name="zart registration")
        names = sorted({spec.name for spec in self._shared.functions.values()})
        _log.info("worker %d runs %s", lease.worker_id, ", ".join(names))
        self._worker._has_started()  # noqa: SLF001
        try:
            await asyncio.wait([*duties, writing, stopping, over], return_when=asyncio.FIRST_COMPLETED)
            holding.stopping = True
            failed = [task for task in (*duties, writing) if task.done() and not task.cancelled()]
            await _cancel(duties[0])
            if self._over.is_set():
                holding.lose_all()
            elif not writing.done():
                with contextlib.suppress(psycopg.Error, OSError):
                    await claimer.release()
                await holding.drain(self._config.shutdown_timeout.total_seconds())
            for task in failed:
                task.result()
        finally:
            for task in (*duties, stopping, over):
                await _cancel(task)
            await journal.close()
            await asyncio.wait([writing])  # not cancelled: it still closes its connections
            await claimer.close()
            await connection.close()
            await self._leave(lease)
        if self._broken is not None:
            raise SchemaError(
                f"this worker cannot write to schema {self._schema!r}: {self._broken}; run `zart migrate --check`"
            ) from self._broken

    async def _leave(self, lease: Lease) -> None:
        if self._fenced:
            await lease.stop()
            return
        try:
            async with asyncio.timeout(5):
                await lease.close(self._connect)
        except (psycopg.Error, OSError, TimeoutError) as error:
            _log.warning("could not sign off; others take over when the lease ends: %s", error)

    # ------------------------------------------------------------ duties

    async def _reap(self, connection: connections.Connection) -> None:
        """Take over from workers that stopped answering; all workers do, each at its own moments."""
        interval = self._config.heartbeat_interval.total_seconds()
        while True:
            await asyncio.sleep(interval * random.uniform(0.5, 1.5))  # noqa: S311 (no secret)
            try:
                if connection.closed or connection.broken:
                    connection = await self._connect()
                await reap(connection, self._schema)
            except (psycopg.Error, OSError) as error:
                _log.warning("could not look for dead workers and tries again: %s", str(error).strip())
                await connection.close()

    async def _report_unserved(self) -> None:
        """Say which ready work nobody has registered."""
        statement = load("workers", self._schema)["unserved"]
        told: set[tuple[str, str, str | None]] = set()
        while True:
            await asyncio.sleep(_UNSERVED_EVERY * random.uniform(0.02, 0.05) if not told else _UNSERVED_EVERY)  # noqa: S311
            try:
                connection = await self._connect()
                try:
                    rows = await (await connection.execute(statement)).fetchall()
                finally:
                    await connection.close()
            except (psycopg.Error, OSError) as error:
                _log.debug("could not look for unserved work: %s", error)
                continue
            for queue, name, version, count in rows:
                if (queue, name, version) not in told:
                    _log.warning(
                        "%d executions of %s%s in queue %r are ready, and no worker that runs now has registered it",
                        count,
                        name,
                        f" version {version}" if version else "",
                        queue,
                    )
            told = {(queue, name, version) for queue, name, version, _ in rows} or {("", "", None)}

    # ------------------------------------------------------------ what can go wrong

    def _on_fenced(self) -> None:
        if not self._fenced:
            self._fenced = True
            _log.warning(
                "this worker was taken for dead: its executions go on elsewhere, and it registers anew"
            )
            self._over.set()

    def _on_schema_error(self, error: Exception) -> None:
        self._broken = error
        self._over.set()

    def _on_wedged(self) -> None:
        """Called from the heartbeat's thread: the event loop has been blocked for too long."""
        if self._worker.exit_when_wedged:
            os._exit(_EX_SOFTWARE)

    # ------------------------------------------------------------ connections

    async def _connect(self) -> connections.Connection:
        return await connections.connect(self._address, application_name="zart worker")

    async def _connect_directly(self) -> connections.Connection:
        address = connections.direct_address(self._address)
        return await connections.connect(address, application_name="zart listener")

    def _dial(self) -> psycopg.Connection[Any]:
        address = connections.direct_address(self._address)
        arguments = connections.connection_arguments(address, application_name="zart heartbeat")
        return psycopg.Connection.connect(address, **arguments)


async def _now(connection: connections.Connection, schema_name: str) -> dt.datetime:
    ((now,),) = await (await connection.execute(load("journal", schema_name)["now"])).fetchall()
    return cast("dt.datetime", now)


async def _every(seconds: float, duty: Callable[[], Awaitable[None]]) -> None:
    while True:
        await asyncio.sleep(seconds)
        await duty()


def _sync(duty: Callable[[], None]) -> Callable[[], Awaitable[None]]:
    async def run() -> None:
        duty()

    return run


async def _cancel(task: "asyncio.Task[Any]") -> None:
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()
