"""Claims that no worker has made."""

import datetime as dt
from typing import Any
from uuid import UUID

from zart._engine.entries import Claim


def first_claim(execution_id: str, run_id: UUID, now: dt.datetime, **told: Any) -> Claim:
    """The first claim of an execution that has no payload and no history, but for what is `told` of it."""
    known: dict[str, Any] = {
        "task_id": 1,
        "lane": 0,
        "epoch": 1,
        "registration": 1,
        "signal": 0,
        "attempt": 1,
        "floor": 0,
        "recoveries": 0,
        "not_before": None,
        "cancel": None,
        "payload": None,
        "entries": [],
        "events": [],
    }
    return Claim(
        execution_id=execution_id, run_id=run_id, due_at=now, started_at=now, now=now, **(known | told)
    )
