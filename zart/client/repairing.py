"""What a person does to an execution when something went wrong: have a step retried, begin again, or delete it.

Each is one transaction, sent again when its answer is lost; what is to come of it is drawn before, so that the second
time it is found done. What an execution does next is decided by its worker, which replays what is recorded: see
`zart._engine.repairs`.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec

from zart.client.database import Database, Transaction
from zart.client.offering import not_found
from zart.client.starting import NOT_GIVEN
from zart.client.steering import check_reason
from zart.codec import ANY, Codec
from zart.encryption import Place
from zart.errors import ExecutionFinished, ExecutionPruned, UsageError
from zart.identifiers import uuid7
from zart.names import check_text
from zart.state import FINAL_STATUSES, Rerun

_ANYTHING: Final = Codec(ANY)
_NAMED_AT_MOST: Final = 10


class _Standing(NamedTuple):
    """An execution, locked."""

    task: int
    live: bool
    run_id: UUID
    status: str
    pruned: bool
    """Only its id is kept."""


class _Recorded(NamedTuple):
    """A row of `records`."""

    path: str
    name: str
    occurrence: int
    kind: str
    state: str
    place: int | None
    """Among all that the execution has recorded; None while it has none."""
    text: str
    """The key in the form for people."""

    @property
    def key(self) -> tuple[str, str, int, str]:
        return self[:4]


class Repairs:
    """Repairs made under one author's name."""

    def __init__(self, database: Database, author: str) -> None:
        self._database = database
        self._author = author

    async def retry_step(self, id: str, key: str, reason: str | None) -> bool:
        """Has the failed record of a call done again; False when it has not failed.

        Raises ExecutionFinished when the run has ended otherwise than by a failure, UsageError for an unknown key.
        """
        check_reason(reason)
        check_text(key, "the key of a step")

        async def work(transaction: Transaction) -> bool:
            standing = await _lock(transaction, id)
            if standing.status in FINAL_STATUSES and standing.status != "failed":
                raise ExecutionFinished(
                    f"execution {id!r} has {_how(standing.status)}: no step of this run can be retried; `rerun` begins "
                    "another run that keeps the other steps' results",
                    execution_id=id,
                )
            records = await _records(transaction, id, standing.run_id)
            chosen = [record for record in records if record.text == key]
            if not chosen:
                raise UsageError(_unknown(id, key, records))
            failed = [record for record in chosen if record.state == "failed"]
            if not failed:
                return False
            request = {"repair": _keys(failed), "id": id, "task": standing.task}
            if standing.live:
                await transaction.query("request", request)
                await transaction.query("unblock", request)
            else:
                again = {"run": standing.run_id, "accept_arguments": False}
                await transaction.query("revive", {**request, **again})
                await transaction.query("clear_ended", again)
            await self._note(transaction, id, standing.run_id, f"retry of {key!r}", reason)
            return True

        return await self._database.transact(work)

    async def restart(self, id: str, data: Any, reason: str | None) -> str:
        """Begins another run, with its own input if `data` is given; returns the run's id."""
        check_reason(reason)
        given = data is not NOT_GIVEN
        payload: str | None = None
        if given:
            encoded = _ANYTHING.encode(data, f"the input of another run of {id!r}")
            payload = self._database.payloads.encrypt(encoded, Place(id, "input")).decode()
        run_id = uuid7()

        async def work(transaction: Transaction) -> str:
            standing = await _lock(transaction, id)
            if standing.run_id != run_id:
                await self._give_way(transaction, id, standing, run_id, given=given, payload=payload)
                await transaction.query("drop_events", {"id": id})
                await self._begin(transaction, id, standing, run_id, repair=None)
                await self._note(transaction, id, run_id, "restart", reason)
            return str(run_id)

        return await self._database.transact(work)

    async def rerun(self, id: str, steps: Sequence[str], reason: str | None) -> Rerun:
        """Begins another run that keeps what is recorded, but for `steps`: keys, or names of calls."""
        check_reason(reason)
        if isinstance(steps, str) or not steps:
            raise UsageError(
                f"steps is {steps!r}: give the keys of the calls to do again, as `zart show` prints them"
            )
        wanted = list(dict.fromkeys(check_text(step, "the key of a step") for step in steps))
        run_id = uuid7()
        stale: list[str] = []

        async def work(transaction: Transaction) -> Rerun:
            standing = await _lock(transaction, id)
            if standing.run_id != run_id:
                records = await _records(transaction, id, standing.run_id)
                chosen = _chosen(id, wanted, records)
                stale[:] = _stale(chosen, records)
                await self._give_way(transaction, id, standing, run_id)
                await transaction.query("copy_records", {"run": standing.run_id, "next_run": run_id})
                await self._begin(transaction, id, standing, run_id, repair=_keys(chosen))
                await self._note(transaction, id, run_id, f"rerun of {', '.join(wanted)}", reason)
            return Rerun(run_id=str(run_id), stale=stale)

        return await self._database.transact(work)

    async def delete(self, id: str, reason: str | None) -> bool:
        """Deletes an execution that has ended with all that belongs to it; who did it and why stays in the history.

        Raises UsageError when it has not ended.
        """
        check_reason(reason)

        async def work(transaction: Transaction) -> bool:
            standing = await _lock_any(transaction, id)
            if standing.live:
                raise UsageError(
                    f"execution {id!r} has not ended: cancel it (by force, if it must be), then delete it"
                )
            await transaction.query("drop_events", {"id": id})
            for part in ("rules", "records", "attempts", "events", "history", "runs", "execution"):
                await transaction.query(f"delete_{part}", {"id": id})
            await self._note(transaction, id, standing.run_id, "deleted", reason)
            return True

        return await self._database.transact(work)

    # ------------------------------------------------------------ the parts

    async def _give_way(
        self,
        transaction: Transaction,
        id: str,
        standing: _Standing,
        next_run: UUID,
        *,
        given: bool = False,
        payload: str | None = None,
    ) -> None:
        """The run that stands is kept as it is, and what it has under way ends."""
        both = {"id": id, "run": standing.run_id, "next_run": next_run}
        await transaction.query("begin_run", {**both, "given": given, "payload": payload})
        await transaction.query("archive_run", {"id": id})
        told = {"reason": "another run was begun", "author": self._author}
        await transaction.query("cancel_given", {**both, **told})
        await transaction.query("sweep", both)

    async def _begin(
        self, transaction: Transaction, id: str, standing: _Standing, run_id: UUID, *, repair: str | None
    ) -> None:
        # A run that keeps records may call them with other arguments, since others are done again before.
        parameters = {
            "id": id,
            "task": standing.task,
            "repair": repair,
            "accept_arguments": repair is not None,
        }
        if standing.live:
            await transaction.query("drop_cancels", parameters)
            await transaction.query("renew_task", {**parameters, "next_run": run_id})
            await transaction.query("renew_execution", {"id": id, "next_run": run_id})
        else:
            await transaction.query("revive", {**parameters, "run": run_id})

    async def _note(
        self, transaction: Transaction, id: str, run_id: UUID, what: str, reason: str | None
    ) -> None:
        noted = {"id": id, "run": run_id, "what": what, "author": self._author, "reason": reason}
        await transaction.query("note", noted)


async def _lock(transaction: Transaction, id: str) -> _Standing:
    """As below. Raises ExecutionPruned where nothing is left to go on with."""
    standing = await _lock_any(transaction, id)
    if standing.pruned:
        raise ExecutionPruned(
            f"execution {id!r} has {_how(standing.status)}, and what it was given and what it did was pruned since: "
            "only its id is kept, so nothing of it can be done again. Start another one; `delete` makes this id free",
            execution_id=id,
        )
    return standing


async def _lock_any(transaction: Transaction, id: str) -> _Standing:
    """How an execution stands, which nobody changes until the transaction ends. Raises ExecutionNotFound."""
    while True:
        found = await transaction.query("find", {"id": id})
        if not found:
            raise not_found(id)
        ((task,),) = found
        live = bool(await transaction.query("lock_task", {"task": task}))
        locked = await transaction.query("lock_execution", {"id": id})
        if not locked:
            raise not_found(id)
        ((now, run_id, status, pruned),) = locked
        if now == task:  # else somebody has repaired it in between
            return _Standing(task, live, run_id, status, pruned)


async def _records(transaction: Transaction, id: str, run_id: UUID) -> list[_Recorded]:
    return [_Recorded(*row) for row in await transaction.query("records", {"id": id, "run": run_id})]


def _keys(records: Sequence[_Recorded]) -> str:
    return msgspec.json.encode([record.key for record in records]).decode()


def _chosen(id: str, wanted: Sequence[str], records: Sequence[_Recorded]) -> list[_Recorded]:
    ended = [record for record in records if record.state in ("completed", "failed", "cancelled")]
    chosen: list[_Recorded] = []
    for step in wanted:
        found = [record for record in ended if record.text == step]
        found = found or [record for record in ended if record.name == step]
        if not found:
            raise UsageError(_unknown(id, step, ended))
        chosen += found
    return chosen


def _stale(chosen: Sequence[_Recorded], records: Sequence[_Recorded]) -> list[str]:
    """Kept results that came after the first of those to be done again: they may rest on what it gave."""
    first = min((record.place for record in chosen if record.place is not None), default=None)
    if first is None:
        return []
    again = {record.key for record in chosen}
    return [
        record.text
        for record in records
        if record.state == "completed"
        and record.place is not None
        and record.place > first
        and record.key not in again
        and record.kind != "cancel"
    ]


def _unknown(id: str, key: str, records: Sequence[_Recorded]) -> str:
    known = [record.text for record in records]
    shown = ", ".join(known[:_NAMED_AT_MOST]) + (", …" if len(known) > _NAMED_AT_MOST else "")
    return (
        f"execution {id!r} has no record {key!r}; "
        + (f"there is {shown}" if known else "nothing is recorded of this run")
        + ". Keys are as `zart show` prints them"
    )


def _how(status: str) -> str:
    return "been cancelled" if status == "cancelled" else status
