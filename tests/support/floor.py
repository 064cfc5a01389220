"""Workers that take work from real tables, without anything that would run it."""

import asyncio
import datetime as dt
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, Self

import psycopg
from psycopg import AsyncConnection

from tests.support import modes
from zart._engine.claimer import Claimer, Tick
from zart._engine.entries import Claim
from zart._engine.lease import Lease, resolve_lanes

HOUR = dt.timedelta(hours=1)
YEAR = dt.timedelta(days=365)


class Hand:
    """A worker's registration and its claimer."""

    def __init__(self, lease: Lease, claimer: Claimer) -> None:
        self.lease = lease
        self.claimer = claimer
        self.id = lease.worker_id

    async def tick(self, limit: int = 100, *, suspect: bool = False, watching: Sequence[Claim] = ()) -> Tick:
        watched = [(claim.task_id, claim.epoch, claim.signal, claim.done) for claim in watching]
        return await self.claimer.tick(limit=limit, suspect=suspect, watching=watched)

    async def claim_all(self, limit: int = 100, *, suspect: bool = False) -> list[Claim]:
        """What ticks bring until there is no more at once."""
        claims: list[Claim] = []
        while True:
            tick = await self.tick(limit, suspect=suspect)
            claims += tick.claims
            if not tick.busy:
                return claims


class Floor:
    """A database, a connection to look into it, and the workers on it."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self._opened: list[AsyncConnection[Any]] = []
        self._hands: list[Hand] = []

    async def __aenter__(self) -> Self:
        self.database = await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hand in self._hands:
            await hand.lease.stop()
            await hand.claimer.close()
        for connection in self._opened:
            await connection.close()

    async def connect(self, dsn: str | None = None) -> AsyncConnection[Any]:
        """One more connection, or one to another address, closed at the end."""
        connection = await psycopg.AsyncConnection.connect(dsn or self.dsn, autocommit=True)
        self._opened.append(connection)
        return connection

    async def hand(
        self,
        *names: str,
        orphan_timeout: dt.timedelta = HOUR,
        connect: Callable[[], Awaitable[AsyncConnection[Any]]] | None = None,
        **options: Any,
    ) -> Hand:
        """A worker that serves these functions ("f" unless said otherwise)."""
        functions = [("default", name, None) for name in names or ("f",)]
        lanes = list(await resolve_lanes(self.database, "public", functions))
        lease = await Lease.register(self._dial, "public", lanes=lanes, orphan_timeout=orphan_timeout)

        async def dial() -> AsyncConnection[Any]:
            return await psycopg.AsyncConnection.connect(
                self.dsn, autocommit=True, prepare_threshold=modes.prepare_after()
            )

        hand = Hand(lease, Claimer(connect or dial, "public", lease.worker_id, lanes, **options))
        self._hands.append(hand)
        return hand

    async def _dial(self) -> AsyncConnection[Any]:
        return await psycopg.AsyncConnection.connect(self.dsn, autocommit=True)

    # -- work

    async def start(self, *ids: str, name: str = "f", payload: str = "null", priority: int = 0) -> None:
        for execution in ids:
            await self.database.execute(
                "SELECT zart_start(%s, id => %s, payload => %s::jsonb, priority => %s)",
                (name, execution, payload, priority),
            )

    async def claimed_before(self) -> None:
        """Has what is ready claimed and given back once: a history is to be loaded from then on."""
        await self.database.execute("UPDATE zart_tasks SET epoch = epoch + 1 WHERE state = 'ready'")

    async def start_many(self, count: int, name: str = "f") -> None:
        """Executions e1, e2, …"""
        await self.database.execute(
            "SELECT zart_start(%s, id => 'e' || g) FROM generate_series(1, %s) g", (name, count)
        )

    async def offer(self, id: str, event: str, payload: str = "null") -> None:
        await self.database.execute("SELECT zart_offer_event(%s, %s, %s::jsonb)", (id, event, payload))

    async def park(self, *claims: Claim, wake_at: dt.datetime | None = None) -> list[str]:
        """Suspends them as they were seen; returns the states of their rows."""
        states = []
        for claim in claims:
            states += await self.rows(
                "UPDATE zart_tasks SET state = CASE WHEN signal = %s THEN 'waiting' ELSE 'ready' END,"
                " owner = NULL, batch = NULL, wake_at = %s WHERE id = %s AND epoch = %s RETURNING state",
                claim.signal, wake_at, claim.task_id, claim.epoch,
            )  # fmt: skip
        return [state for (state,) in states]

    async def record(self, claim: Claim, *names: str, seq: int = 1, result: str = "1") -> None:
        """Completed steps of this execution, the first at place `seq` of the log."""
        await self.database.execute(
            "INSERT INTO zart_steps (run_id, path, name, occurrence, kind, seq, state, result)"
            " SELECT %s, '', name, 1, 'step', %s + place - 1, 'completed', %s::json"
            " FROM unnest(%s::text[]) WITH ORDINALITY AS step (name, place)",
            (claim.run_id, seq, result, list(names)),
        )

    # -- looking

    async def rows(self, query: str, *arguments: Any) -> list[tuple[Any, ...]]:
        cursor = await self.database.execute(query, arguments or None)
        return await cursor.fetchall() if cursor.description else []

    async def value(self, query: str, *arguments: Any) -> Any:
        ((value,),) = await self.rows(query, *arguments)
        return value

    async def states(self) -> dict[str, str]:
        """The states of live work by execution id."""
        return dict(await self.rows("SELECT execution_id, state FROM zart_tasks ORDER BY id"))

    async def until(self, query: str, *arguments: Any) -> None:
        """Waits until this query says true."""
        async with asyncio.timeout(20):
            while not await self.value(query, *arguments):
                # Else, in a transaction, each look at what others do sees the first one again.
                await self.rows("SELECT pg_stat_clear_snapshot()")
                await asyncio.sleep(0.005)

    async def until_locked_out(self, backend: int) -> None:
        """Waits until this session waits for a lock; behind a pooler any will do, since their numbers mean nothing."""
        await self.until(
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()"
            " AND (pid = %s OR %s) AND wait_event_type = 'Lock')",
            backend,
            modes.current() == "pgbouncer",
        )

    async def end_locked_out(self, backend: int) -> None:
        """Ends this session once it waits for a lock; see `until_locked_out`."""
        await self.until_locked_out(backend)
        await self.database.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
            " AND (pid = %s OR %s) AND wait_event_type = 'Lock'",
            (backend, modes.current() == "pgbouncer"),
        )

    async def move_clock(self, by: dt.timedelta) -> None:
        """Durable time goes on from now + `by`."""
        await self.database.execute(
            "CREATE OR REPLACE FUNCTION zart_now() RETURNS timestamptz LANGUAGE sql STABLE AS"
            f" $$SELECT pg_catalog.statement_timestamp() + interval '{by.total_seconds()} s'$$"
        )


async def backend_of(connection: AsyncConnection[Any]) -> int:
    ((backend,),) = await (await connection.execute("SELECT pg_backend_pid()")).fetchall()
    return int(backend)
