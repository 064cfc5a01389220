"""Takes away what ended long ago, page by page.

Each page is one short transaction. A walk may end anywhere and another one begin: what is gone is gone with all that
belongs to it, the rest is as it was. Several may go at once; each leaves alone what another has locked.
"""

import datetime as dt
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple

Query = Callable[[str, Mapping[str, Any]], Awaitable[list[tuple[Any, ...]]]]
"""Gives the rows of a statement of `retention.sql`, committed."""

LARGEST_PAGE: Final = 1000
"""Executions that one transaction looks at."""
DEFAULT_PAGE: Final = 500
_RECORDS: Final = 10_000
"""With so many records a page is full, whatever the number of executions."""


class Retention(NamedTuple):
    """What is to go: what ended `older_than` ago in one of `statuses`. Its id may stay for longer."""

    older_than: dt.timedelta
    statuses: tuple[str, ...]
    keep_ids: dt.timedelta | None = None


class Page(NamedTuple):
    """What became of a page."""

    deleted: int
    emptied: int
    """Only the id is left of them."""
    records: int
    """In the journals of both."""


async def prune(query: Query, retention: Retention, *, page: int = DEFAULT_PAGE) -> AsyncIterator[Page]:
    """Walk to the end once; yields after each committed page."""
    async for pruned in _walk(query, "prune", retention, {"batch": page, "records": _RECORDS}):
        yield pruned


async def count(query: Query, retention: Retention) -> AsyncIterator[Page]:
    """The same walk, which changes nothing: what would be pruned."""
    async for counted in _walk(query, "count_prunable", retention, {}):
        yield counted


async def _walk(
    query: Query, statement: str, retention: Retention, parameters: Mapping[str, Any]
) -> AsyncIterator[Page]:
    kept_for = retention.older_than if retention.keep_ids is None else retention.keep_ids
    ((before, ids_before),) = await query(
        "cutoffs", {"older_than": retention.older_than, "keep_ids": kept_for}
    )
    fixed = {
        **parameters,
        "statuses": list(retention.statuses),
        "before": before,
        "ids_before": ids_before,
    }
    after_at: dt.datetime | None = None
    after_id: str | None = ""
    while True:
        ((deleted, emptied, records, after_at, after_id),) = await query(
            statement, {**fixed, "after_at": after_at, "after_id": after_id}
        )
        if after_id is None:
            return
        yield Page(deleted=deleted, emptied=emptied, records=records)
