"""Rules by which a person holds executions back, with who and why."""

import datetime as dt
import secrets
from typing import Any, Final

from zart.client.database import Database
from zart.client.offering import check_known_id, not_found
from zart.client.steering import check_reason
from zart.durations import Duration, parse_duration
from zart.errors import ExecutionFinished, UsageError
from zart.names import check_name, check_text
from zart.state import PauseRule

_LAST: Final = dt.datetime(9000, 1, 1, tzinfo=dt.UTC)
_NEVER: Final = "leave it out for a rule that holds until it is ended"


class Pausing:
    """Rules made and ended under one author's name."""

    def __init__(self, database: Database, author: str) -> None:
        self._database = database
        self._author = author

    async def pause(
        self,
        id: str | None,
        *,
        name: str | None,
        step: str | None,
        reason: str | None,
        expires: Duration | dt.datetime | None,
    ) -> str:
        """Makes a rule and returns its id. Raises ExecutionNotFound, and ExecutionFinished: nothing is left to hold."""
        _check_what(id, name, step)
        check_reason(reason)
        until, lasts = _end(expires)
        # Its id is made here: a try whose answer was lost is sent again, and makes no second rule.
        rule = secrets.token_hex(5)
        parameters: dict[str, Any] = {
            "rule": rule,
            "execution": id,
            "name": name,
            "step": step,
            "reason": reason,
            "author": self._author,
            "until": until,
            "lasts": lasts,
        }
        ((status, lives, comes, made),) = await self._database.query("pauses.pause", parameters)
        if made:
            return rule
        if id is not None and status is None:
            raise not_found(id)
        if id is not None and not lives:
            ended = status if status != "scheduled" else "a moment ago"
            raise ExecutionFinished(
                f"execution {id!r} has ended ({ended}): there is nothing to pause", execution_id=id
            )
        assert not comes  # noqa: S101 (nothing else keeps a rule from being made)
        raise UsageError(f"expires is {expires}, which is over already: give a time to come, or {_NEVER}")

    async def unpause(self, rule: str, reason: str | None) -> bool:
        """Ends a rule; whether it stood."""
        check_reason(reason)
        parameters = {"rule": check_text(rule, "the rule"), "reason": reason, "author": self._author}
        ((ended,),) = await self._database.query("pauses.unpause", parameters)
        return bool(ended)

    async def pauses(self) -> list[PauseRule]:
        """The rules that hold now, the oldest first."""
        fields = ("id", "execution_id", "name", "step", "reason", "author", "expires_at")
        rows = await self._database.query("pauses.pauses", {})
        return [PauseRule(**dict(zip(fields, row, strict=True))) for row in rows]


def _check_what(id: str | None, name: str | None, step: str | None) -> None:
    """What the rule is to hold back."""
    if id is None and name is None and step is None:
        raise UsageError(
            "a pause must say what it holds back: the id of an execution, name= of a durable function, or step= for "
            'steps, such as step="charge*"'
        )
    if id is not None and name is not None:
        raise UsageError(
            f"a pause of execution {id!r} needs no name= of its function: give the one or the other"
        )
    if id is not None:
        check_known_id(id)
    if name is not None:
        check_name(name, "the name of the durable function to pause")
    if step is not None:
        check_name(step, "the pattern of the steps to pause")


def _end(expires: object) -> tuple[dt.datetime | None, dt.timedelta | None]:
    """Until when it holds, or for how long; neither is for good."""
    if expires is None:
        return None, None
    if isinstance(expires, dt.datetime):
        if expires.utcoffset() is None:
            raise UsageError(
                f"expires is {expires.isoformat()}, which has no time zone: use datetime(..., tzinfo=UTC)"
            )
        if expires >= _LAST:
            raise UsageError(f"expires is {expires.isoformat()}, which is out of reach: {_NEVER}")
        return expires, None
    lasts = parse_duration(expires, what="expires")  # type: ignore[arg-type]
    if not lasts:
        raise UsageError(f"expires is zero: give a time to come, or {_NEVER}")
    return None, lasts
