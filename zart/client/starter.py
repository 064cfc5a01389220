"""The starts of one client: each in one round trip, many in one statement for a thousand."""

from collections.abc import Mapping, Sequence
from typing import Any

from zart.client.database import GIVES_WAY, Database
from zart.client.gathering import MANY, MANY_BYTES, Gathered, Gathering
from zart.client.starting import (
    OnConflict,
    Start,
    Target,
    chunks,
    conflict,
    is_equal,
    make_start,
    sort_items,
    vanished,
)


class Starter:
    """Starts executions."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._gathering = Gathering(self._send)

    async def close(self) -> None:
        await self._gathering.close()

    async def start(self, wanted: Start, on_conflict: OnConflict, *, awaited: bool = False) -> bool:
        """Whether the execution is new. Raises ExecutionConflict."""
        if wanted.id_is_new and wanted.at is None and wanted.delay is None:
            await self._gathering.start(Gathered(wanted, awaited))
            created = True
        else:
            created = await self._start(wanted, on_conflict, awaited=awaited)
        if created:
            wanted.tell()
        return created

    async def _send(self, gathered: Sequence[Gathered]) -> None:
        """Start executions of one function whose ids are new."""
        first = gathered[0]
        if len(gathered) == 1:
            await self._start(first.start, "raise", awaited=first.awaited)
        else:
            awaited = {one.start.id for one in gathered if one.awaited}
            starts = sorted((one.start for one in gathered), key=lambda start: start.id)
            await self._start_group(first.start.target, starts, awaited)

    async def _start(self, wanted: Start, on_conflict: OnConflict, *, awaited: bool) -> bool:
        if await self._database.query("start", wanted.parameters(awaited=awaited, gives_way=GIVES_WAY)):
            return True
        found = await self._database.query("compare", wanted.compare_parameters())
        if not found:
            raise vanished(wanted)
        if found[0][2] == str(wanted.run_id):
            return True  # started by a statement of ours whose answer was lost
        if on_conflict == "raise" and not is_equal(wanted, found[0]):
            raise conflict(wanted, found[0])
        return False

    async def start_many(self, target: Target, items: Mapping[str, Any]) -> set[str]:
        """The ids that are new. All is checked before anything is sent. Raises ExecutionConflict."""
        payloads = self._database.payloads
        starts = [make_start(target, items[key], id=key, payloads=payloads) for key in sort_items(items)]
        created: set[str] = set()
        for group in chunks(starts, most=MANY, most_bytes=MANY_BYTES):
            new = await self._start_group(target, group, set())
            created |= new
            for start in group:
                if start.id in new:
                    start.tell()
        return created

    async def _start_group(self, target: Target, group: list[Start], awaited: set[str]) -> set[str]:
        by_id = {start.id: start for start in group}
        parameters = _columns(group) | {
            "run_ids": [start.run_id for start in group],
            "trace_contexts": [start.trace_context for start in group],
            "awaited": [start.id in awaited for start in group],
            "gives_way": GIVES_WAY,
            "name": target.name,
            "version": target.version,
            "queue": target.queue,
            "priority": target.priority,
            "time_limit": target.time_limit,
        }
        created = {row[0] for row in await self._database.query("start_many", parameters)}
        rest = [start for start in group if start.id not in created]
        found = await self._database.query("compare", _columns(rest)) if rest else []
        for row in found:
            wanted = by_id[row[0]]
            if row[2] == str(wanted.run_id):
                created.add(wanted.id)
            elif not is_equal(wanted, row):
                raise conflict(wanted, row)
        return created


def _columns(starts: list[Start]) -> dict[str, Any]:
    return {
        "ids": [start.id for start in starts],
        "payloads": [start.stored.payload for start in starts],
        "digests": [start.stored.digest for start in starts],
    }
