"""Whether the server that answers still has all that it has confirmed.

After a fail-over to a standby that was behind, after a crash with `synchronous_commit = off`, or with a backup put in
its place, a server may have forgotten the last commits before that. A worker that went on as if nothing had happened
would write into journals that have gaps, hold what was never claimed, and take for ended what is not.

So whenever another server answers than the one before, which is one that was started at another time, a registration
asks it for what was confirmed last, before anything is written there. A server forgets from some moment on, and nothing
before that. So it is enough to ask for the last thing on each of the connections that write, and for all that is held:

    record   it stands, written by this registration, or by itself at a later time
    ending   its task is not held under that epoch any more, and was not put back to an earlier one
    apart    records on other connections than the journal's: each, until the journal has had something confirmed that
             was sent after it
    claim    its task is this worker's, under the epoch of the claim

If any of it is missing, the registration is given up like one that was taken away: everything is dropped in memory, its
rows are deleted, and the executions go on from what is there. If all of it is there nothing has happened: that was a
restart, or a fail-over to a standby that had everything.
"""

import asyncio
import datetime as dt
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID

from psycopg import AsyncConnection, Connection

from zart._engine.entries import Cancelled, Change, Completed, Entry, Failed, Key, StepEnded
from zart._postgres.queries import load

_log = logging.getLogger("zart.worker")

Held = Callable[[], Sequence[tuple[int, int, int, int]]]
"""What is held: tasks and epochs, and what is known of their news, which is of no interest here."""

_TOLD: Final = 3
"""So many of the things that are missing are named."""
_LOOKS: Final = 3
"""What is missing must be so each time: others may write while the first look is on its way."""


class ServerForgot(ConnectionError):  # noqa: N818 (whoever writes tries again, as after any lost connection)
    """The server that answers lacks what was confirmed. Nothing is written there under this registration."""


class _Apart(NamedTuple):
    confirmed_at: float
    run_id: UUID
    key: Key


class Confirmed:
    """What the server has confirmed last to the writers of one registration."""

    def __init__(self) -> None:
        self.records: dict[int, Entry | Change] = {}
        """The last one of each of the journal's connections."""
        self._apart: deque[_Apart] = deque()

    def batch(self, writer: int, last: Entry | Change, sent_at: float) -> None:
        """A batch of the journal's connection `writer`, sent at that `perf_counter`, is confirmed: this is one record.

        What was confirmed apart before it was sent is older than it, and stands if it does.
        """
        self.records[writer] = last
        apart = self._apart
        while apart and apart[0].confirmed_at < sent_at:
            apart.popleft()

    def apart(self, run_id: UUID, key: Key) -> None:
        """A record on a connection of its own is confirmed."""
        self._apart.append(_Apart(time.perf_counter(), run_id, key))

    def parameters(self) -> dict[str, Any]:
        """For the statement `forgotten`."""
        entries = [record for record in self.records.values() if isinstance(record, Entry)]
        changes = [record for record in self.records.values() if isinstance(record, Change)]
        keys: list[tuple[UUID, Key, int | None]] = [(e.run_id, e.key, e.token) for e in entries]
        keys += [(run_id, key, None) for _, run_id, key in self._apart]
        ended = [change for change in changes if not isinstance(change.ending, StepEnded)]
        keys += [(c.run_id, c.ending.key, None) for c in changes if isinstance(c.ending, StepEnded)]
        return {
            "runs": [run_id for run_id, _, _ in keys],
            "paths": [key.path for _, key, _ in keys],
            "names": [key.name for _, key, _ in keys],
            "occurrences": [key.occurrence for _, key, _ in keys],
            "kinds": [key.kind for _, key, _ in keys],
            "tokens": [token for _, _, token in keys],
            "ended": [change.task_id for change in ended],
            "ended_epochs": [change.epoch for change in ended],
            "ended_executions": [change.execution_id for change in ended],
            "ended_for_good": [isinstance(change.ending, Completed | Failed | Cancelled) for change in ended],
        }


class Continuity:
    """Looks at each server that answers, for one registration.

    `server` is when the one was started that has registered it; `held` says what is held. `on_forgotten` is called
    once, when one lacks what was confirmed. From then on `check` always raises.
    """

    def __init__(
        self,
        schema: str,
        worker_id: int,
        server: dt.datetime,
        *,
        confirmed: Confirmed,
        held: Held,
        on_forgotten: Callable[[], None],
    ) -> None:
        self.server = server
        self._statements = load("workers", schema)
        self._worker = worker_id
        self._confirmed = confirmed
        self._held = held
        self._on_forgotten = on_forgotten
        self._turn = asyncio.Lock()
        self._forgot: str | None = None

    async def check(self, connection: AsyncConnection[Any]) -> None:
        """Before anything is written on a new connection. Raises ServerForgot, and what psycopg does."""
        cursor = await connection.execute(self._statements["server"], {"worker": self._worker})
        ((started, registered),) = await cursor.fetchall()
        if not registered or (started == self.server and self._forgot is None):
            return  # without its rows nothing of it is written anyway, and each statement says so
        async with self._turn:
            if started != self.server and self._forgot is None:
                missing = await self._missing(connection)
                if missing:
                    more = f" and {len(missing) - _TOLD} more" if len(missing) > _TOLD else ""
                    self._forgot = ", ".join(missing[:_TOLD]) + more
                    _log.warning(
                        "worker %d: the database has forgotten what it had confirmed (%s): a fail-over to a standby "
                        "that was behind, or a crash with synchronous_commit = off. What is held is dropped here and "
                        "goes on from what is there",
                        self._worker,
                        self._forgot,
                    )
                    self._on_forgotten()
                else:
                    _log.info(
                        "worker %d: another server answers, and has all that was confirmed", self._worker
                    )
                    self.server = started
        if self._forgot is not None:
            raise ServerForgot(f"the database has forgotten {self._forgot}; this worker registers anew")

    def knows(self, connection: Connection[Any]) -> bool:
        """From a thread: whether anything may be written on a new connection. If not, `check` has to look first."""
        rows = connection.execute(self._statements["server"], {"worker": self._worker}).fetchall()
        ((started, registered),) = rows
        return not registered or (started == self.server and self._forgot is None)

    async def _missing(self, connection: AsyncConnection[Any]) -> list[str]:
        """What is not there, for people."""
        missing: list[str] = []
        for _ in range(_LOOKS):
            held = self._held()
            parameters = {
                "worker": self._worker,
                "tasks": [task for task, _, _, _ in held],
                "epochs": [epoch for _, epoch, _, _ in held],
                **self._confirmed.parameters(),
            }
            rows = await (await connection.execute(self._statements["forgotten"], parameters)).fetchall()
            missing = [what for (what,) in rows]
            if not missing:
                break
        return missing
