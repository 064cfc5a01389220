"""What a client sees: how executions stand, what they did, how many there are."""

import datetime as dt
from collections import Counter
from collections.abc import AsyncIterator
from typing import Final, cast

import msgspec

from zart.client.database import Database
from zart.client.offering import not_found
from zart.client.reading import named, read_execution, read_notes, read_record, read_run, read_worker
from zart.errors import ExecutionNotFound, UsageError
from zart.instants import in_utc
from zart.names import check_text
from zart.state import (
    FINAL_STATUSES,
    Execution,
    ExecutionStatus,
    History,
    Record,
    Run,
    Stats,
    WorkerStatus,
)

_PAGE: Final = 200
_UNDER_WAY: Final = ("started", "running")


class Lookout:
    """Reads only. Each statement has a snapshot of its own, so what goes on meanwhile may show in a later
    one.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def status(self, id: str) -> Execution:
        """How an execution stands. Raises ExecutionNotFound."""
        rows = await self._database.query("status", {"id": id})
        if not rows:
            raise not_found(id)
        return read_execution(rows[0], self._database.payloads)

    async def executions(
        self,
        *,
        name: str | None,
        status: str | None,
        id_prefix: str | None,
        since: dt.datetime | None,
        until: dt.datetime | None,
        after: str | None,
        limit: int | None,
    ) -> AsyncIterator[Execution]:
        """The newest first, page by page: a page goes on behind the last one's id, whatever was added
        meanwhile.
        """
        _check_filters(status, limit)
        for what, text in (("name", name), ("id_prefix", id_prefix), ("after", after)):
            if text is not None:
                check_text(text, what)
        live = status is not None and status not in FINAL_STATUSES
        left = limit
        while left is None or left > 0:
            size = _PAGE if left is None else min(left, _PAGE)
            parameters = {
                "name": name,
                "status": status,
                "id_prefix": id_prefix,
                "since": since and in_utc(since, "since"),
                "until": until and in_utc(until, "until"),
                "after": after,
                "limit": size,
            }
            rows = await self._database.query("live_page" if live else "page", parameters)
            for row in rows:
                yield read_execution(row, self._database.payloads)
            if len(rows) < size:
                return
            after = rows[-1][0]
            left = None if left is None else left - len(rows)

    async def history(self, id: str, run_id: str | None) -> History:
        """What an execution did. Raises ExecutionNotFound for an unknown id or run."""
        execution = await self.status(id)
        kept = [run for (run,) in await self._database.query("runs", {"id": id})]
        runs = [*(run for run in kept if run != execution.run_id), execution.run_id]
        if run_id is not None and run_id not in runs:
            raise ExecutionNotFound(
                f"execution {id!r} has no run {run_id!r}, or it was forgotten; there is {', '.join(runs)}",
                execution_id=id,
            )
        run = {"run_id": run_id or execution.run_id}
        payloads = self._database.payloads
        records = [read_record(row, id, payloads) for row in await self._database.query("records", run)]
        if run["run_id"] != execution.run_id:
            records = [_given_up(record) for record in records]
        attempts = await self._database.query("attempts", run)
        notes = await self._database.query("notes", {"id": id})
        return History(
            execution=execution,
            run_id=run["run_id"],
            runs=runs,
            records=records,
            notes=read_notes(notes, attempts, id, payloads),
        )

    async def runs(self, id: str) -> list[Run]:
        """The kept runs. Raises ExecutionNotFound."""
        rows = await self._database.query("each_run", {"id": id})
        if not rows:
            raise not_found(id)
        return [read_run(row, id, self._database.payloads) for row in rows]

    async def stats(self) -> Stats:
        """How much there is of what."""
        statuses = await self._database.query("count_by_status", {})
        unserved: Counter[str] = Counter()
        for _, name, version, count in await self._database.query("unserved", {}):
            unserved[named(name, version)] += count
        ((workers,),) = await self._database.query("count_workers", {})
        return Stats(
            by_status=dict(cast("list[tuple[str, int]]", statuses)),
            unserved=dict(unserved),
            workers=workers,
        )

    async def workers(self) -> list[WorkerStatus]:
        """Those that have a row, the eldest first."""
        rows = await self._database.query("workers", {})
        lanes = sorted({lane for row in rows for lane in row[-1]})
        names = await self._database.query("lane_names", {"lanes": lanes}) if lanes else []
        return [read_worker(row, names) for row in rows]


def _check_filters(status: str | None, limit: int | None) -> None:
    if status is not None and status not in tuple(ExecutionStatus):
        raise UsageError(f"status is {status!r}: use one of {', '.join(ExecutionStatus)}")
    if limit is not None and (isinstance(limit, bool) or limit < 0):
        raise UsageError(f"limit is {limit!r}: use a whole number, or None for all")


def _given_up(record: Record) -> Record:
    """A record of a run that gave way to another one. Who has not heard of that may still have shown a step as running
    there: nothing more comes of it.
    """
    return msgspec.structs.replace(record, state="cancelled") if record.state in _UNDER_WAY else record
