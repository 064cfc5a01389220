"""Children whose ids were chosen by their parents: each is started by a statement of its own.

An id that somebody chooses may stand in a transaction that somebody else holds open, and whoever inserts it then waits.
In the journal's batch everybody would wait with it. So these take a connection of their own, which is opened when it is
first needed, give way after a moment, and are sent again until the id is theirs or somebody else's for good.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Final

import psycopg

from zart._engine.columns import interval
from zart._engine.continuity import Confirmed
from zart._engine.encrypting import encrypted_entry, patiently
from zart._engine.entries import ChildWork, Entry, Lost, text
from zart._engine.points import reach
from zart._engine.sending import Connect
from zart._postgres.direct import DirectLine, statements
from zart._postgres.trouble import Trouble, classify, keeps_connection
from zart.encryption import PLAIN, Payloads
from zart.errors import ExecutionConflict, SerializationError

_log = logging.getLogger("zart.journal")

_GIVES_WAY: Final = "250ms"
_SHORTEST, _LONGEST = 0.05, 2.0

Verdict = Callable[[Entry, Exception | None], None]


class NamedChildren:
    """Starts them, one after the other, for one registration of a worker; `confirmed` is told of each."""

    def __init__(
        self,
        connect: Connect,
        schema: str,
        worker_id: int,
        *,
        confirmed: Confirmed,
        payloads: Payloads = PLAIN,
    ) -> None:
        self._confirmed = confirmed
        self._payloads = payloads
        self._line = DirectLine(connect)
        self._statements = statements("journal", schema)
        self._worker = worker_id
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, entry: Entry, done: Verdict) -> None:
        """`done` is told in the end: None, ExecutionConflict, SerializationError, or Lost."""
        task = asyncio.create_task(self._start(entry, done), name="zart child")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """What was not started is started by whoever goes on with its parent."""
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._line.close()

    async def _start(self, entry: Entry, done: Verdict) -> None:
        pause = _SHORTEST
        stored = entry
        if self._payloads.codec is not None:
            stored = await patiently(lambda: encrypted_entry(entry, self._payloads))
        while True:
            try:
                async with self._turn:
                    verdict = await self._try(stored)
            except (psycopg.Error, OSError) as error:
                if classify(error) is Trouble.DATA:
                    told = f"the payload of child {entry.key} cannot be stored: {error}"
                    done(entry, SerializationError(told, what=f"child {entry.key}"))
                    return
                if not keeps_connection(error):
                    await self._line.close()
                _log.debug(
                    "child %s of run %s is not started and is tried again: %s", entry.key, entry.run_id, error
                )
            else:
                if verdict is None:
                    self._confirmed.apart(entry.run_id, entry.key)
                done(entry, verdict)
                return
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 (spreads retries)
            pause = min(pause * 2, _LONGEST)

    async def _try(self, entry: Entry) -> Exception | None:
        work, giver = entry.work, entry.giver
        assert isinstance(work, ChildWork) and giver is not None  # noqa: S101, PT018 (nothing else is given)
        direct = await self._line.open()
        call = {
            "id": work.id,
            "run_id": entry.run_id,
            "path": entry.key.path,
            "call": entry.key.name,
            "occurrence": entry.key.occurrence,
        }
        parameters = {
            **call,
            "worker": self._worker,
            "gives_way": _GIVES_WAY,
            "name": work.name,
            "version": work.version,
            "queue": work.queue,
            "priority": work.priority,
            "child_run": work.run_id,
            "payload": text(work.payload),
            "digest": work.digest,
            "call_digest": entry.digest,
            "parent_id": giver.execution_id,
            "lane": work.lane,
            "time_limit": interval(work.time_limit),
            "trace_context": work.trace_context,
            "parent_task": giver.task_id,
            "detached": work.detached,
            "arguments": entry.arguments,
            "token": 0,
            "input": work.stored().decode(),
        }
        reach("child.begin")
        ((stands, made),) = await direct.rows(self._statements["start_child"], parameters)
        reach("child.committed")
        if not stands:
            return Lost(f"execution {giver.execution_id!r}, which starts it, has ended or goes on elsewhere")
        if made:
            return None
        rows = await direct.rows(self._statements["find_child"], call)
        if rows and rows[0][0]:
            return None  # sent before, and the answer was lost
        return ExecutionConflict(
            f"execution {giver.execution_id!r} starts a child under the id {work.id!r}, which exists already; nothing "
            "was started. Choose another id, or leave it to zart",
            execution_id=work.id,
        )
