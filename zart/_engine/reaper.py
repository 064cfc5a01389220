"""Takes over from workers that stopped answering.

Three statements, each committed alone: the rows of expired workers are deleted, the owners that have no row
are looked up, and what they held becomes ready. Whoever dies in between leaves owners without rows, which is
what the next one looks for. The order is what makes it right: the delete waits for no one and stands in
nobody's way, but once it has happened nothing of the dead worker is in flight, so the later statement sees
all that it ever claimed.

Leases live by the database's real clock, not by durable time.
"""

import datetime as dt
import logging
from typing import Any

from psycopg import AsyncConnection

from zart._engine.points import reach
from zart._postgres.queries import load
from zart.telemetry.events import TakenOver
from zart.telemetry.hub import hub

_log = logging.getLogger("zart.reaper")


async def reap(connection: AsyncConnection[Any], schema: str) -> list[str]:
    """Frees what dead workers held; returns the ids of the executions.

    `connection` is in autocommit. A worker one of whose rows is locked, since a statement of its own is still
    under way, is left for the next time; when that goes on, the log names the session that holds the row.
    """
    statements = load("workers", schema)
    reach("reaping.begin")
    cursor = await connection.execute(statements["reap"], {})
    reaped = sorted(set(await cursor.fetchall()))
    if reaped:
        reach("reaping.committed")
    for worker, host, pid in reaped:
        _log.warning("worker %d (%s, process %d) stopped answering", worker, host, pid)
    freed = await sweep(connection, schema)
    await _report_stuck(connection, schema)
    return freed


async def sweep(connection: AsyncConnection[Any], schema: str) -> list[str]:
    """Frees what belongs to workers that have no row; returns the ids of the executions."""
    statements = load("workers", schema)
    cursor = await connection.execute(statements["orphaned"], {})
    owners = [owner for (owner,) in await cursor.fetchall()]
    if not owners:
        return []
    reach("takeover.begin")
    cursor = await connection.execute(statements["take_over"], {"owners": owners})
    reach("takeover.committed")
    freed = [execution for (execution,) in await cursor.fetchall()]
    _log.warning("took over %d executions of %d workers", len(freed), len(owners))
    if hub.listening:
        hub.tell(TakenOver(executions=tuple(freed), workers=len(owners)))
    return freed


async def _report_stuck(connection: AsyncConnection[Any], schema: str) -> None:
    cursor = await connection.execute(load("workers", schema)["stuck"], {})
    for worker, host, pid, backend, state, application, since in await cursor.fetchall():
        holder = "a session that cannot be named"
        if backend is not None:
            age = f" since {since:%H:%M:%S}" if isinstance(since, dt.datetime) else ""
            holder = f"session {backend} ({application or 'no name'}, {state}{age})"
        _log.warning(
            "worker %d (%s, process %d) stopped answering, but its row is locked by %s; its executions "
            "are taken over once that transaction ends (SELECT pg_terminate_backend(...) ends it)",
            worker,
            host,
            pid,
            holder,
        )
