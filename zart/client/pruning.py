"""Taking away what ended long ago, at a person's word. A worker does the same by itself: `zart._engine.retention`."""

import datetime as dt
from collections.abc import Callable, Collection
from typing import Final

from zart._postgres import pruning
from zart._postgres.pruning import Retention
from zart.client.database import Database
from zart.durations import Duration, format_duration, parse_duration
from zart.errors import UsageError
from zart.state import FINAL_STATUSES, Pruned

_STATUSES: Final = tuple(sorted(status.value for status in FINAL_STATUSES))


async def prune(
    database: Database,
    *,
    older_than: Duration,
    statuses: Collection[str] | None,
    keep_ids: Duration | None,
    dry_run: bool,
    batch: int,
    on_batch: Callable[[Pruned], None] | None,
) -> Pruned:
    """See `Client.prune`."""
    retention = read_retention(older_than, statuses, keep_ids)
    if isinstance(batch, bool) or not 1 <= batch <= pruning.LARGEST_PAGE:
        raise UsageError(f"batch is {batch!r}: give a whole number from 1 to {pruning.LARGEST_PAGE}")
    walk = (
        pruning.count(database.query, retention)
        if dry_run
        else pruning.prune(database.query, retention, page=batch)
    )
    total = Pruned(deleted=0, emptied=0, records=0)
    async for page in walk:
        total = Pruned(
            deleted=total.deleted + page.deleted,
            emptied=total.emptied + page.emptied,
            records=total.records + page.records,
        )
        if on_batch is not None:
            on_batch(total)
    return total


def read_retention(
    older_than: Duration, statuses: Collection[str] | None, keep_ids: Duration | None
) -> Retention:
    """What a caller wants to go. Raises UsageError."""
    return Retention(
        older_than=parse_duration(older_than, what="older_than"),
        statuses=_STATUSES if statuses is None else _checked(statuses),
        keep_ids=None if keep_ids is None else _not_sooner(keep_ids, older_than),
    )


def _checked(statuses: Collection[str]) -> tuple[str, ...]:
    wanted = () if isinstance(statuses, str) else tuple(dict.fromkeys(statuses))
    if not wanted or not FINAL_STATUSES.issuperset(wanted):
        raise UsageError(
            f"statuses is {statuses!r}: give some of {', '.join(_STATUSES)}, such as ('completed',); "
            "an execution that has not ended is never pruned"
        )
    return tuple(str(status) for status in wanted)


def _not_sooner(keep_ids: Duration, older_than: Duration) -> dt.timedelta:
    kept, gone = parse_duration(keep_ids, what="keep_ids"), parse_duration(older_than, what="older_than")
    if kept < gone:
        raise UsageError(
            f"keep_ids is {format_duration(kept)}, shorter than older_than ({format_duration(gone)}): an id stays at "
            "least as long as what belongs to it"
        )
    return kept
