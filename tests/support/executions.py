"""Executions in the middle of their work, put into the tables directly: for tests of what writes there."""

import asyncio
import datetime as dt
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Self

import psycopg
from psycopg import AsyncConnection

from tests.support import modes
from zart._engine.entries import Change, Ending, Entry, EntryState, FailedAttempt, Key
from zart._engine.writer import Journal

_BLOCKED = """
    SELECT count(*) >= %s FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock'
"""


class Held:
    """An execution that a worker holds."""

    def __init__(self, number: int) -> None:
        self.task_id = number
        self.id = f"execution-{number}"
        self.run_id = uuid.UUID(int=number)
        self.seq = 0


class Bench:
    """A worker's registration, its journal, and executions that it holds.

    `write` and `end` return futures of the verdicts: None, or the error that `done` was called with.
    """

    def __init__(
        self,
        dsn: str,
        *,
        worker_id: int = 1,
        through: str | None = None,
        prepare: bool = True,
        **options: Any,
    ) -> None:
        self.dsn = dsn
        self.worker_id = worker_id
        self.fenced = 0
        self.schema_errors: list[Exception] = []
        self.times: list[dt.datetime] = []
        self.opened = 0
        self.order: list[Entry | Change] = []
        """Records in the order of their verdicts."""
        self._through = through or dsn
        self._prepare = modes.prepare_after() if prepare else None
        self.journal = Journal(
            self._connect,
            "public",
            worker_id,
            on_now=self.times.append,
            on_fenced=self._on_fenced,
            on_schema_error=self.schema_errors.append,
            **options,
        )

    async def _connect(self) -> AsyncConnection[Any]:
        self.opened += 1
        return await psycopg.AsyncConnection.connect(
            self._through, autocommit=True, prepare_threshold=self._prepare
        )

    def _on_fenced(self) -> None:
        self.fenced += 1

    async def __aenter__(self) -> Self:
        self.database = await psycopg.AsyncConnection.connect(self.dsn, autocommit=True)
        await self.database.execute(
            "INSERT INTO zart_workers (worker_id, writer, host, pid, expires_at)"
            " SELECT %s, writer, 'here', 1, clock_timestamp() + interval '1h'"
            " FROM generate_series(0, 2) writer",
            (self.worker_id,),
        )
        self.running = asyncio.create_task(self.journal.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.journal.close()
        await self.running
        await self.database.close()

    async def hold(self, numbers: Sequence[int], **task: Any) -> list[Held]:
        """Executions with these numbers, held by this worker; `task` are columns of their task rows."""
        columns = {"state": "running", "owner": self.worker_id, "epoch": 1, **task}
        names = ", ".join(columns)
        values = ", ".join(f"%({name})s" for name in columns)
        for number in numbers:
            held = Held(number)
            place = {"id": held.id, "task": held.task_id, "run": held.run_id, **columns}
            await self.database.execute(
                "INSERT INTO zart_executions (id, name, queue, priority, run_id, task_id)"
                " VALUES (%(id)s, 'f', 'default', 0, %(run)s, %(task)s)",
                place,
            )
            await self.database.execute(
                "INSERT INTO zart_tasks (id, execution_id, run_id, lane, priority, due_at, started_at,"
                f" {names})"
                f" VALUES (%(task)s, %(id)s, %(run)s, 1, 0, zart_now(), zart_now(), {values})",
                place,
            )
        return [Held(number) for number in numbers]

    async def rows(self, query: str, *arguments: Any) -> list[Any]:
        cursor = await self.database.execute(query, arguments or None)
        return await cursor.fetchall()

    async def execute(self, statement: str, *arguments: Any) -> None:
        await self.database.execute(statement, arguments or None)

    async def value(self, query: str, *arguments: Any) -> Any:
        ((value,),) = await self.rows(query, *arguments)
        return value

    async def blocked(self, count: int) -> None:
        """Until so many statements in this database wait for a lock."""
        await self.until(_BLOCKED, count)

    async def until(self, condition: str, *arguments: Any) -> None:
        """Until this query's value is true."""
        while not await self.value(condition, *arguments):  # noqa: ASYNC110 (the state is the server's)
            await asyncio.sleep(0)

    def write(
        self, held: Held, name: str, state: EntryState = "completed", **fields: Any
    ) -> "asyncio.Future[Any]":
        key = fields.pop("key", Key("", name, 1, "step"))
        if state == "completed":
            held.seq += 1
            fields = {"result": b"1", "seq": held.seq, **fields}
        verdict, done = self._verdict()
        entry = Entry(run_id=held.run_id, task_id=held.task_id, key=key, state=state, done=done, **fields)
        self.journal.write(entry)
        return verdict

    def end(self, held: Held, ending: Ending, *, epoch: int = 1, **fields: Any) -> "asyncio.Future[Any]":
        verdict, done = self._verdict()
        self.journal.end(
            Change(
                task_id=held.task_id,
                execution_id=held.id,
                run_id=held.run_id,
                epoch=epoch,
                ending=ending,
                done=done,
                **fields,
            )
        )
        return verdict

    def _verdict(self) -> "tuple[asyncio.Future[Any], Callable[[Any, Exception | None], None]]":
        verdict: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def done(record: Any, error: Exception | None) -> None:
            self.order.append(record)
            verdict.set_result(error)  # a second call would raise

        return verdict, done


def failed_attempt(name: str, number: int = 1, failure: bytes = b'{"type": "E"}') -> FailedAttempt:
    now = dt.datetime.now(dt.UTC)
    return FailedAttempt(Key("", name, 1, "step"), number, 1, failure, now, now, None)
