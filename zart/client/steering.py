"""What a person does to an execution: cancel and resume, with who and why."""

from typing import NamedTuple

from zart._postgres.listener import done_channel
from zart.client.database import Database
from zart.client.offering import not_found
from zart.errors import ExecutionCancelled, UsageError
from zart.failures import exception_to_json
from zart.names import check_text

_LONGEST_REASON = 10_000


class Cancelled(NamedTuple):
    """What a cancel did."""

    ended: bool
    told: bool
    """Its worker is to unwind it."""
    urgent: bool
    """A worker has something to do now: to claim it, or to tell the body that it holds."""

    @property
    def changed(self) -> bool:
        return self.ended or self.told


class Steering:
    """Changes made under one author's name."""

    def __init__(self, database: Database, author: str) -> None:
        self._database = database
        self._author = author

    async def cancel(self, id: str, reason: str | None, *, force: bool) -> Cancelled:
        """Ends it if there is nothing to unwind, or by force; tells its worker otherwise."""
        check_reason(reason)
        task = await self._find(id)
        if task is None:
            return Cancelled(ended=False, told=False, urgent=False)
        how = "by force, without cleanup" if force else "before it ran or while it was blocked"
        told = f"execution {id!r} was cancelled {how}, by {self._author}" + (f": {reason}" if reason else "")
        error = ExecutionCancelled(told, execution_id=id, reason=reason)
        parameters = {
            "task": task,
            "force": force,
            "reason": reason,
            "author": self._author,
            "failure": exception_to_json(error, attempts=0).decode(),
            "what": "cancelled by force" if force else "cancelled",
        }
        ((ended, was_told, urgent, awaited),) = await self._database.query("cancel", parameters)
        if ended and force:
            await self._database.query("cancel_below", {"id": id, "reason": reason, "author": self._author})
        if awaited:
            await self._database.hint(
                "announce_end", {"channel": done_channel(self._database.schema), "id": id}
            )
        return Cancelled(ended=ended, told=was_told, urgent=urgent)

    async def resume(self, id: str, reason: str | None, *, accept_arguments: bool) -> bool:
        """Makes a blocked execution ready; whether it was blocked."""
        check_reason(reason)
        task = await self._find(id)
        if task is None:
            return False
        parameters = {
            "task": task,
            "reason": reason,
            "author": self._author,
            "accept_arguments": accept_arguments,
        }
        ((resumed,),) = await self._database.query("resume", parameters)
        return bool(resumed)

    async def _find(self, id: str) -> int | None:
        """The task of an execution; None when it has ended. Raises ExecutionNotFound."""
        rows = await self._database.query("find", {"id": id})
        if not rows:
            raise not_found(id)
        task, status = rows[0]
        return int(task) if status == "scheduled" else None


def check_reason(reason: object) -> None:
    if reason is None:
        return
    if len(check_text(reason, "the reason").encode()) > _LONGEST_REASON:
        raise UsageError(f"the reason is over {_LONGEST_REASON} bytes long: give a sentence")
