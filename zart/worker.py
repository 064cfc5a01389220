"""The worker: claims executions of the functions that it has registered, and runs them.

A worker is made of *registrations*, one after the other; most live with the first to their end. A registration is a row
in the database that others can see and take away, the journal that writes under it, and the executions claimed under
it. When it is taken away, since this process was stopped or cut off for too long, the worker drops what it held, says
so, and registers anew.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator
from contextvars import copy_context
from types import TracebackType
from typing import Self, final

import anyio

from zart._engine.holding import Shared
from zart._engine.lanes import step_name
from zart._engine.lease import Function, resolve_lanes
from zart._engine.lineage import body_tasks, is_instrumented
from zart._engine.registration import Registration
from zart._engine.timers import body_timers
from zart._postgres import connections
from zart.client import Client
from zart.config import WorkerConfig
from zart.context import place
from zart.encryption import configured
from zart.errors import UsageError
from zart.migrate import ensure_current
from zart.names import check_name
from zart.outside import opened
from zart.registry import Registry

_log = logging.getLogger("zart.worker")


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

    _always_suspend: bool = False
    """For tests: each record that is committed is replayed instead of being delivered."""
    _keeps_bodies: bool = True
    """For tests: whether `max_parked_bodies` counts; else none is kept."""

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
        for queue in self._config.queues:
            check_name(queue, "a queue of this worker")
        self._schema = target.schema if isinstance(target, Client) else "public"
        self._stop = asyncio.Event()
        self._started: asyncio.Future[None] | None = None
        self._running: asyncio.Task[None] | None = None
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
        payloads = configured()
        if payloads.codec is not None:
            _log.info("payloads are encrypted with the key %s", payloads.key_id or "of a codec of its own")
        self._registry.freeze()
        if not self._registry.durables:
            raise UsageError(
                "the registry holds no durable function, so this worker would have nothing to do"
            )
        self._address = self._resolve()
        lanes = await connections.use(self._address, self._prepare, application_name="zart worker")
        specs = {key: durable.spec for key, durable in self._registry.durables.items()}
        steps = {step_name(name): step for name, step in self._registry.steps.items()}
        with opened("worker"), body_tasks(loop), body_timers(loop):
            if not is_instrumented(loop):
                raise UsageError(
                    "the event loop's task factory was replaced: Zart needs its own in front of yours"
                )
            async with self._resources() as resources:
                shared = Shared(
                    functions={
                        lane: specs[name, version]
                        for lane, (_, name, version) in lanes.items()
                        if name not in steps
                    },
                    steps={lane: steps[name] for lane, (_, name, _) in lanes.items() if name in steps},
                    queues={lane: queue for lane, (queue, _, _) in lanes.items()},
                    registry=self._registry,
                    threads=anyio.CapacityLimiter(self._config.max_threads),
                    resources=resources,
                    base_context=copy_context(),
                    max_inflight_steps=self._config.max_inflight_steps,
                    max_concurrent_tasks=self._config.max_concurrent_tasks,
                    max_recoveries=self._config.max_recoveries,
                    max_parked_bodies=self._config.max_parked_bodies if self._keeps_bodies else 0,
                    always_suspend=self._always_suspend,
                    payloads=payloads,
                )
                while not self._stop.is_set():
                    registration = Registration(
                        shared,
                        self._config,
                        self._address,
                        self._schema,
                        stop=self._stop,
                        on_started=self._has_started,
                        exit_when_wedged=self.exit_when_wedged,
                    )
                    await registration.run()

    async def __aenter__(self) -> Self:
        if self._running is not None:
            raise UsageError("this Worker runs already")
        self._started = asyncio.get_running_loop().create_future()
        self._running = asyncio.create_task(self.run(), name="zart worker")
        await asyncio.wait((self._started, self._running), return_when=asyncio.FIRST_COMPLETED)
        if self._running.done():
            self._running.result()
        self._running.add_done_callback(_report_end)
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

    async def _prepare(self, connection: connections.Connection) -> dict[int, Function]:
        """Look the database over; returns the lanes of this worker, and what each stands for."""
        await ensure_current(connection, self._schema)
        for warning in await connections.check_settings(connection, self._address):
            _log.warning("%s", warning)
        durables = self._registry.durables
        queues = self._config.queues or tuple(sorted({durable.queue for durable in durables.values()}))
        named = [*durables, *((step_name(step), None) for step in self._registry.steps)]
        wanted = [(queue, name, version) for name, version in named for queue in queues]
        return await resolve_lanes(connection, self._schema, wanted)

    @contextlib.asynccontextmanager
    async def _resources(self) -> AsyncGenerator[tuple[object, ...]]:
        if self._registry.lifespan is None:
            yield ()
            return
        async with self._registry.lifespan() as opened_resources:
            yield opened_resources if isinstance(opened_resources, tuple) else (opened_resources,)

    def _has_started(self) -> None:
        if self._started is not None and not self._started.done():
            self._started.set_result(None)


def _report_end(running: "asyncio.Task[None]") -> None:
    """The application hears of it only when it leaves its `async with`, which may be in a month."""
    if not running.cancelled() and (error := running.exception()) is not None:
        _log.error("the worker ended with an error and claims nothing any more", exc_info=error)
