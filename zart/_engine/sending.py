"""One connection of the journal: sends batches until each record of them has a verdict.

A statement is sent whole until it passes or the fence is gone. After a lost connection nobody knows whether
it was committed, so it is sent again with the same tokens: what stands already is not written twice, and a
record that the statement does not return is looked for by its token before it is believed lost. What the
data itself is to blame for is found by halving the batch, which did nothing when it failed.
"""

import asyncio
import datetime as dt
import functools
import logging
import random
import struct
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import psycopg
from psycopg import AsyncConnection

from zart._engine.columns import (
    all_columns,
    columns_to_begin_anew,
    columns_to_park,
    entry_columns,
    entry_values,
    finishing_columns,
    key_columns,
    task_columns,
)
from zart._engine.continuity import Confirmed
from zart._engine.encrypting import encrypted_batch, patiently
from zart._engine.entries import Change, Entry, Lost, StepEnded
from zart._engine.folding import (
    Batch,
    Record,
    is_plain,
    only_begins_anew,
    only_finishes,
    only_parks,
    records_and_finishes,
    size,
    touches_entries,
)
from zart._engine.points import reach
from zart._postgres.direct import Direct, DirectLine, Parameters, Row, Statement, statements
from zart._postgres.listener import done_channel, work_channel
from zart._postgres.trouble import Trouble, breaks_off, classify, keeps_connection
from zart.encryption import PLAIN, Payloads
from zart.errors import SerializationError
from zart.telemetry.events import BatchCommitted
from zart.telemetry.hub import hub

log = logging.getLogger("zart.journal")

Connect = Callable[[], Awaitable[AsyncConnection[Any]]]
Settle = Callable[[Record, Exception | None], None]

_FAILURES = (psycopg.Error, OSError, TypeError, ValueError, OverflowError, struct.error)
_SUSPICIOUS = 3  # then the batch is divided, which costs the innocent nothing
_GUILTY = 8  # alone, over several seconds: no series of restarts meets one record as often as that
_SHORTEST_DELAY, _LONGEST_DELAY = 0.05, 5.0
_NOTHING: frozenset[int] = frozenset()


class Stopped(Exception):  # noqa: N818
    """Nothing can be written any more. `unsettled` are the records of the batch that have no verdict."""

    unsettled: Sequence[Record] = ()


class FenceGone(Stopped):
    """The worker's registration was taken away: nothing that it sends is written."""


class Unwritable(Stopped):
    """The tables or the role are not what this library needs; `__cause__` is the database's word."""


class _Send:
    """A statement of the journal, and the points that are reached with it."""

    def __init__(self, statement: Statement, point: str) -> None:
        self._statement = statement
        self._begin = f"{point}.begin"
        self._sent = functools.partial(reach, f"{point}.sent")
        self._answered = f"{point}.answered"

    async def __call__(self, direct: Direct, parameters: Parameters) -> list[Row]:
        """Its rows."""
        reach(self._begin)
        rows = await direct.rows(self._statement, parameters, on_sent=self._sent)
        reach(self._answered)
        return rows


class Reply(NamedTuple):
    now: dt.datetime
    lost: frozenset[int]
    """Tokens of records that are not this writer's to write."""
    ended: list[str]
    """Executions that have ended and that somebody waits for."""
    claimable: bool
    """Whether work was given back that another worker could claim now."""


class Sender:
    """Commits batches, one at a time. `settle` is called for each record as soon as its verdict is known, and
    `confirmed` keeps the last of what was committed.
    """

    def __init__(
        self,
        connect: Connect,
        schema: str,
        worker_id: int,
        writer: int,
        *,
        on_now: Callable[[dt.datetime], None],
        settle: Settle,
        patience: float,
        confirmed: Confirmed,
        payloads: Payloads = PLAIN,
    ) -> None:
        self._line = DirectLine(connect)
        self._confirmed = confirmed
        self._payloads = payloads
        self._channels: dict[str, Any] = {
            "done_channel": done_channel(schema),
            "work_channel": work_channel(schema),
        }
        journal = statements("journal", schema)
        self._record = _Send(journal["record"], "journal.record")
        self._record_one = _Send(journal["record_one"], "journal.record")
        self._record_and_end = _Send(journal["record_and_end"], "journal.record-and-end")
        self._finish = _Send(journal["finish"], "journal.finish")
        self._record_and_finish = _Send(journal["record_and_finish"], "journal.record-and-end")
        self._begin_anew = _Send(journal["begin_anew"], "journal.begin-anew")
        self._park = _Send(statements("pauses", schema)["park"], "journal.park")
        self._read_back_statement = _Send(journal["read_back"], "journal.read-back")
        self._now = _Send(journal["now"], "journal.now")
        self._announcement = _Send(journal["announce"], "journal.announce")
        self._writer = writer
        self._fence = {"worker": worker_id, "writer": writer}
        self._on_now = on_now
        self._settle = settle
        self._patience = patience
        self._patient_until: float | None = None
        self._watch: asyncio.TimerHandle | None = None

    async def commit(self, batch: Batch) -> None:
        """Returns when every record of the batch is settled. Raises FenceGone or Unwritable."""
        todo = batch.rare_apart()[::-1]
        while todo:
            part = todo.pop()
            began = time.perf_counter()
            try:
                outcome = await self._persist(part)
            except Stopped as stopped:
                stopped.unsettled = [record for rest in (part, *reversed(todo)) for record in rest.records()]
                raise
            if isinstance(outcome, Reply):
                self._remember(part, outcome.lost, began)
                if hub.listening:
                    self._tell(part, time.perf_counter() - began)
                self._deliver(part, outcome)
                reach("journal.acknowledged")
                if outcome.ended or outcome.claimable:
                    await self._announce(outcome)
            elif len(part) > 1:
                todo.extend(reversed(part.halves()))
            else:
                for entry in part.entries:
                    self._settle(entry, _refusal(entry, outcome))
                    earlier = part.earlier.get(entry.token)
                    if earlier:  # what it had taken the place of is not to blame
                        todo.append(Batch([earlier[-1]], [], {earlier[-1].token: earlier[:-1]}))
                for change in part.changes:
                    self._settle(change, _refusal(change, outcome))

    def _remember(self, part: Batch, lost: frozenset[int], began: float) -> None:
        written: list[Record] = (
            [*part.entries, *part.changes] if lost else [(part.changes or part.entries)[-1]]
        )
        while written and written[-1].token in lost:
            written.pop()
        if written:
            self._confirmed.batch(self._writer, written[-1], began)

    def _tell(self, part: Batch, seconds: float) -> None:
        records = part.records()
        told = sum(size(record) for record in records)
        worker = self._fence["worker"]
        hub.tell(BatchCommitted(worker=worker, records=len(records), bytes=told, seconds=seconds))

    async def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        await self._line.close()

    # ------------------------------------------------------------ one batch

    async def _persist(self, part: Batch) -> Reply | Exception:
        """The reply once the batch is committed, or what the data is to blame for."""
        if self._payloads.codec is not None:
            plain = part
            part = await patiently(lambda: encrypted_batch(plain, self._payloads))
        tries = 0
        suspicion: list[Exception] = []
        """The same unexplained failure, again and again, of a server that answers."""
        enough = _SUSPICIOUS if len(part) > 1 else _GUILTY
        while True:
            direct = await self._reopen()
            try:
                with self._patiently():
                    if len(suspicion) >= enough:
                        return await self._inspect(direct, part, suspicion[0])
                    return await self._write(direct, part)
            except _FAILURES as error:
                trouble = classify(error)
                if trouble is Trouble.SCHEMA:
                    raise Unwritable(
                        f"the journal cannot be written: {_said(error)}; `zart migrate --check` compares the tables"
                    ) from error
                if trouble is Trouble.DATA:
                    return error
                if not breaks_off(error) or (suspicion and type(suspicion[0]) is not type(error)):
                    suspicion.clear()
                if breaks_off(error):
                    suspicion.append(error)
                if not keeps_connection(error):
                    await self._line.close()
                await _pause(tries, error)
                tries += 1

    async def _write(self, direct: Direct, part: Batch) -> Reply:
        parameters: Parameters
        if is_plain(part):
            if len(part.entries) == 1:
                statement, parameters = self._record_one, entry_values(part.entries[0])
            else:
                statement, parameters = self._record, entry_columns(part)
        elif only_finishes(part):
            statement = self._finish
            parameters = {
                **finishing_columns(part.changes),
                "announce": len(part.changes) == 1,
                "done_channel": self._channels["done_channel"],
            }
        elif only_begins_anew(part):
            statement, parameters = self._begin_anew, columns_to_begin_anew(part)
        elif records_and_finishes(part):
            statement = self._record_and_finish
            parameters = {**entry_columns(part), **finishing_columns(part.changes)}
        elif only_parks(part):
            statement, parameters = self._park, columns_to_park(part)
        else:
            statement, parameters = self._record_and_end, all_columns(part)
        rows = await statement(direct, {**parameters, **self._fence})
        ((stands, now, written, ended, awaited, claimable),) = rows
        if not stands:
            raise FenceGone
        lost = _NOTHING
        told: list[str] = awaited or []
        if len(written or ()) < len(part.entries) or len(ended or ()) < len(part.changes):
            missing = await self._read_back(direct, part, {*(written or ()), *(ended or ())})
            lost = frozenset(missing)
            told = [*told, *(c.execution_id for c in part.changes if c.token not in lost and _is_final(c))]
        return Reply(now, lost, told, bool(claimable))

    async def _read_back(self, direct: Direct, part: Batch, known: set[int]) -> set[int]:
        """The tokens that stand nowhere."""
        entries = [entry for entry in part.entries if entry.token not in known]
        changes = [change for change in part.changes if change.token not in known]
        columns = {**key_columns(entries, changes), **task_columns(Batch([], changes, {}))}
        found = {token for (token,) in await self._read_back_statement(direct, columns)}
        return ({entry.token for entry in entries} | {change.token for change in changes}) - found

    async def _inspect(self, direct: Direct, part: Batch, suspect: Exception) -> Reply | Exception:
        """After the same unexplained failure again and again: is it committed, or is it the data?"""
        if await self._read_back(direct, part, set()):
            return suspect
        ((now,),) = await self._now(direct, {})
        return Reply(now, _NOTHING, [c.execution_id for c in part.changes if _is_final(c)], claimable=True)

    def _deliver(self, part: Batch, reply: Reply) -> None:
        self._on_now(reply.now)
        if not reply.lost and not part.earlier and not part.changes:
            for entry in part.entries:
                self._settle(entry, None)
            return
        for entry in part.entries:
            error = _lost(entry) if entry.token in reply.lost else None
            for before in part.earlier.get(entry.token, ()):
                self._settle(before, error)
            self._settle(entry, error)
        for change in part.changes:
            self._settle(change, _lost(change) if change.token in reply.lost else None)

    async def _announce(self, reply: Reply) -> None:
        """A hint: whoever misses it finds out a little later by itself."""
        try:
            direct = await self._line.open()
            with self._patiently():
                await self._announcement(
                    direct,
                    {**self._channels, "ended": reply.ended, "claimable": reply.claimable},
                )
        except (psycopg.Error, OSError) as error:
            log.debug("a notification was not sent: %s", error)
            if not keeps_connection(error):
                await self._line.close()

    # ------------------------------------------------------------ the connection

    @contextmanager
    def _patiently(self) -> Generator[None, None, None]:
        """Hangs up when an answer takes too long: the statement then fails as if the server had done so.

        Cancelling it would mean to ask the server for that, on another connection that may be as dead.
        """
        loop = asyncio.get_running_loop()
        self._patient_until = loop.time() + self._patience
        if self._watch is None:  # it stays for the statements to come: that is cheaper than one for each
            self._watch = loop.call_later(self._patience, self._look_at_clock)
        try:
            yield
        finally:
            self._patient_until = None

    def _look_at_clock(self) -> None:
        self._watch = None
        if self._patient_until is None:
            return
        loop = asyncio.get_running_loop()
        left = self._patient_until - loop.time()
        if left > 0:
            self._watch = loop.call_later(left, self._look_at_clock)
        else:
            self._line.hang_up()

    async def _reopen(self) -> Direct:
        """The connection, however long it takes."""
        tries = 0
        while True:
            try:
                return await self._line.open()
            except (psycopg.Error, OSError) as error:
                await _pause(tries, error)
                tries += 1


async def _pause(tries: int, error: Exception) -> None:
    if tries & (tries - 1) == 0:  # the first, second, fourth, eighth time
        log.warning(
            "the journal could not write (%s: %s); it tries again until it can, and executions wait",
            type(error).__name__,
            _said(error),
        )
    longest = min(_LONGEST_DELAY, _SHORTEST_DELAY * 2.0 ** min(tries, 10))
    await asyncio.sleep(longest * random.uniform(0.5, 1.0))  # noqa: S311 (spreads retries)


def _is_final(change: Change) -> bool:
    """Whether its execution has ended, or is blocked: a client may wait for that."""
    return touches_entries(change.ending) and not isinstance(change.ending, StepEnded)


def _lost(record: Record) -> Lost:
    if isinstance(record, Entry):
        return Lost(
            f"{record.key} of run {record.run_id} was recorded by another activation, whose record counts"
        )
    return Lost(f"execution {record.execution_id!r} is held by another activation, which goes on with it")


def _said(error: Exception) -> str:
    """The message without details, which may quote what a user stored."""
    primary = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    return primary or str(error).strip() or "no answer"


def _refusal(record: Record, error: Exception) -> SerializationError:
    if isinstance(record, Entry):
        what = f"record of {record.key.kind} '{record.key}'"
    elif isinstance(record.ending, StepEnded):
        what = f"record of step '{record.ending.key}'"
    else:
        what = f"outcome of execution {record.execution_id!r}"
    refused = SerializationError(
        f"the {what} cannot be stored: {_said(error)}. Everything else was stored; return a value that JSON text in "
        "PostgreSQL can hold (valid UTF-8, no NUL character, within its limits of size and depth).",
        what=what,
    )
    refused.__cause__ = error
    return refused
