"""One registration of a worker: everything that it does under one worker id.

    lease (heartbeat in a thread) + claiming + journal + listener + rounds (reaper) + a tick each second

It ends when the worker is stopped: then running steps may finish, and the rest is given back. Or it is taken away,
since this process was stopped or cut off for too long: then everything that was held is dropped.
"""

import asyncio
import contextlib
import datetime as dt
import logging
import os
import random
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, cast

import psycopg

from zart._engine.claimer import Claimer
from zart._engine.claiming import Claiming
from zart._engine.clock import DatabaseClock
from zart._engine.continuity import Confirmed, Continuity
from zart._engine.holding import Holding, Shared
from zart._engine.lease import Lease
from zart._engine.named_children import NamedChildren
from zart._engine.pauses import Rules
from zart._engine.points import reach
from zart._engine.retention import RetentionDuty
from zart._engine.rounds import Rounds
from zart._engine.transactions import Transactions
from zart._engine.writer import Journal
from zart._postgres import connections
from zart._postgres.listener import Listener, work_channel
from zart._postgres.pruning import Retention
from zart._postgres.queries import load
from zart._postgres.trouble import Trouble, classify
from zart.config import WorkerConfig
from zart.errors import SchemaError
from zart.state import FINAL_STATUSES
from zart.telemetry.events import WorkerFenced, WorkerStarted, WorkerStopped
from zart.telemetry.hub import hub

_log = logging.getLogger("zart.worker")

_TICK = 1.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_SIGN_OFF_WITHIN = 2.0
_EX_SOFTWARE = 70


class Registration:
    """See the module. `stop` ends it in order; `on_started` is called once it claims."""

    def __init__(
        self,
        shared: Shared,
        config: WorkerConfig,
        address: str,
        schema: str,
        *,
        stop: asyncio.Event,
        on_started: Callable[[], None],
        exit_when_wedged: bool,
    ) -> None:
        self._shared = shared
        self._config = config
        self._address = address
        self._schema = schema
        self._stop = stop
        self._on_started = on_started
        self._exit_when_wedged = exit_when_wedged
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        self._continuity: Continuity | None = None
        self._looks: set[asyncio.Task[None]] = set()
        self._fenced = False
        self._forgotten = False
        self._broken: Exception | None = None

    async def run(self) -> None:
        """Work until the worker is stopped or the registration is taken away."""
        lanes = sorted((*self._shared.functions, *self._shared.steps))
        registered = await self._register(lanes)
        if registered is None:
            return
        lease, clock = registered
        confirmed = Confirmed()
        journal = Journal(
            self._connect,
            self._schema,
            lease.worker_id,
            on_now=clock.set,
            on_fenced=self._on_fenced,
            on_schema_error=self._on_schema_error,
            confirmed=confirmed,
            payloads=self._shared.payloads,
        )
        transactions = Transactions(
            self._connect,
            self._dial_for_steps,
            self._schema,
            lease.worker_id,
            idle_limit=self._config.orphan_timeout,
            draw_token=journal.draw_token,
            on_fenced=self._on_fenced,
            confirmed=confirmed,
            payloads=self._shared.payloads,
        )
        rules = Rules(lanes, {lane: spec.name for lane, spec in self._shared.functions.items()})
        claimer = Claimer(self._connect, self._schema, lease.worker_id, lanes, rules=rules)
        named_children = NamedChildren(
            self._connect,
            self._schema,
            lease.worker_id,
            confirmed=confirmed,
            payloads=self._shared.payloads,
        )
        holding = Holding(
            self._shared,
            clock,
            journal,
            named_children,
            fresh=lambda: lease.fresh,
            on_free=lambda: claiming.freed(),  # noqa: PLW0108 (it comes below)
            transactions=transactions,
            rules=rules,
        )
        self._continuity = Continuity(
            self._schema,
            lease.worker_id,
            lease.server,
            confirmed=confirmed,
            held=holding.watched,
            on_forgotten=self._on_forgotten,
        )
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
            lambda _channel, _payload: claiming.hear(),
            claiming.stir,
        )
        rounds = Rounds(
            self._connect, self._schema, interval=self._config.heartbeat_interval, on_freed=claiming.stir
        )
        lease.keep(
            self._dial,
            interval=self._config.heartbeat_interval,
            wedge_timeout=self._config.wedge_timeout,
            on_fenced=self._on_fenced,
            on_wedged=self._on_wedged,
            on_others_expired=rounds.expired,
            on_other_server=self._on_other_server,
        )
        writing = asyncio.create_task(journal.run(), name="zart journal")
        duties = [
            asyncio.create_task(duty, name=name)
            for name, duty in (
                ("zart claiming", claiming.run()),
                ("zart listener", listener.run()),
                ("zart tick", _every(_TICK, holding.tick)),
                ("zart rounds", rounds.run()),
                *self._retention_duty(),
            )
        ]
        stopping: asyncio.Task[Any] = asyncio.create_task(self._stop.wait(), name="zart stop")
        over: asyncio.Task[Any] = asyncio.create_task(self._over.wait(), name="zart registration")
        names = sorted({spec.name for spec in self._shared.functions.values()})
        _log.info("worker %d runs %s", lease.worker_id, ", ".join(names))
        hub.loads[id(holding)] = holding.load
        if hub.listening:
            slots = self._config.max_concurrent_tasks
            hub.tell(WorkerStarted(worker=lease.worker_id, functions=tuple(names), slots=slots))
        self._on_started()
        try:
            await asyncio.wait([*duties, writing, stopping, over], return_when=asyncio.FIRST_COMPLETED)
            holding.stopping = True
            reach("shutdown.begin")
            failed = [task for task in (*duties, writing) if task.done() and not task.cancelled()]
            await _cancel(duties[0])
            if self._over.is_set():
                if self._fenced and hub.listening:
                    hub.tell(WorkerFenced(worker=lease.worker_id))
                reach("fenced.begin")
                holding.lose_all()
                reach("fenced.dropped")
            elif not writing.done():
                with contextlib.suppress(psycopg.Error, OSError):
                    async with asyncio.timeout(_SIGN_OFF_WITHIN):
                        await claimer.release()
                reach("shutdown.unclaimed")
                await holding.drain(self._config.shutdown_timeout.total_seconds())
                reach("shutdown.drained")
            for task in failed:
                task.result()
        finally:
            del hub.loads[id(holding)]
            for task in (*duties, stopping, over, *self._looks):
                await _cancel(task)
            await named_children.close()
            await transactions.close()
            await journal.close()
            await asyncio.wait([writing])  # not cancelled: it still closes its connections
            await claimer.close()
            await self._leave(lease)
            if hub.listening:
                hub.tell(WorkerStopped(worker=lease.worker_id))
        if self._broken is not None:
            raise SchemaError(
                f"this worker cannot write to schema {self._schema!r}: {self._broken}; run `zart migrate --check`"
            ) from self._broken

    async def _register(self, lanes: list[int]) -> tuple[Lease, DatabaseClock] | None:
        """A lease, however long the database is away; None when the worker is stopped meanwhile."""
        pause = _FIRST_PAUSE
        while not self._stop.is_set():
            try:
                lease = await Lease.register(
                    self._connect, self._schema, lanes=lanes, orphan_timeout=self._config.orphan_timeout
                )
                connection = await self._connect()
                try:
                    return lease, DatabaseClock(await _now(connection, self._schema))
                finally:
                    await connection.close()
            except (psycopg.Error, OSError) as error:
                if classify(error) is not Trouble.LOST:
                    raise
                _log.warning("cannot register and tries again: %s", str(error).strip())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause * random.uniform(0.5, 1.5)):  # noqa: S311 (no secret)
                    await self._stop.wait()
            pause = min(pause * 2, _LONGEST_PAUSE)
        return None

    def _retention_duty(self) -> Iterator[tuple[str, Coroutine[Any, Any, None]]]:
        if self._config.retention is not None:
            retention = Retention(
                self._config.retention,
                tuple(sorted(status.value for status in FINAL_STATUSES)),
                self._config.keep_ids,
            )
            yield "zart retention", RetentionDuty(self._connect, self._schema, retention).run()

    async def _leave(self, lease: Lease) -> None:
        if self._fenced and not self._forgotten:
            await lease.stop()
            return
        try:
            async with asyncio.timeout(_SIGN_OFF_WITHIN):
                await lease.close(self._open)
        except (psycopg.Error, OSError, TimeoutError) as error:
            _log.warning("could not sign off; others take over when the lease ends: %s", error)

    # ------------------------------------------------------------ what can go wrong

    def _on_fenced(self) -> None:
        if not self._fenced:
            self._fenced = True
            _log.warning(
                "this worker was taken for dead: its executions go on elsewhere, and it registers anew"
            )
            self._over.set()

    def _on_forgotten(self) -> None:
        self._fenced = self._forgotten = True
        self._over.set()

    def _on_other_server(self) -> None:
        """The heartbeat has met it first: connections through a pooler may outlive the server behind it."""
        look = asyncio.create_task(self._look_at_server(), name="zart continuity")
        self._looks.add(look)
        look.add_done_callback(self._looks.discard)

    async def _look_at_server(self) -> None:
        with contextlib.suppress(psycopg.Error, OSError):  # whoever connects next looks again
            await (await self._connect()).close()

    def _on_schema_error(self, error: Exception) -> None:
        self._broken = error
        self._over.set()

    def _on_wedged(self) -> None:
        """Called from the heartbeat's thread: the event loop has been blocked for too long."""
        if self._exit_when_wedged:
            os._exit(_EX_SOFTWARE)

    # ------------------------------------------------------------ connections

    async def _open(self) -> connections.Connection:
        return await connections.connect(self._address, application_name="zart worker")

    async def _connect(self) -> connections.Connection:
        """A connection on which may be written: see `continuity`."""
        connection = await self._open()
        if self._continuity is not None:
            try:
                await self._continuity.check(connection)
            except BaseException:
                await connection.close()
                raise
        return connection

    async def _connect_directly(self) -> connections.Connection:
        address = connections.direct_address(self._address)
        return await connections.connect(address, application_name="zart listener", prepared=False)

    def _dial_for_steps(self) -> psycopg.Connection[Any]:
        prepared = connections.wants_prepared() or False  # what stands between cannot be asked for here
        arguments = connections.connection_arguments(
            self._address, application_name="zart worker", prepared=prepared
        )
        connection = psycopg.Connection.connect(self._address, **arguments)
        if self._continuity is not None and not self._continuity.knows(connection):
            connection.close()
            self._loop.call_soon_threadsafe(self._on_other_server)
            raise psycopg.OperationalError("another server answers: what it has is looked at first")
        return connection

    def _dial(self) -> psycopg.Connection[Any]:
        address = connections.direct_address(self._address)
        arguments = connections.connection_arguments(
            address, application_name="zart heartbeat", prepared=False
        )
        return psycopg.Connection.connect(address, **arguments)


async def _now(connection: connections.Connection, schema_name: str) -> dt.datetime:
    ((now,),) = await (await connection.execute(load("journal", schema_name)["now"], {})).fetchall()
    return cast("dt.datetime", now)


async def _every(seconds: float, duty: Callable[[], None]) -> None:
    while True:
        await asyncio.sleep(seconds)
        duty()


async def _cancel(task: "asyncio.Task[Any]") -> None:
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()
