"""Transactions of steps: what a step writes and its record are one commit.

A step with `transaction=True` runs on a connection of a small pool of the worker's own. Its transaction begins with a
limit on how long it may stand idle, so that a process that was stopped in it keeps nobody from taking over. The record
is the last statement, fenced like every statement of the journal, and sent with the COMMIT in one message: so the fence
is held for the length of a commit, wherever this process is stopped. Where the record is refused, the statement fails,
and the COMMIT is none.

    committed         the step is over, as any other whose record is written
    class 40          a conflict with others: nothing was done, and the function runs again, at no attempt's cost
    connection lost   before the COMMIT: the same. After it nobody knows: the call's row is *sealed*, which waits for a
                      commit that is still under way, and after which no statement that was lost can write it
    refused           the fence is gone, or the call has a record that counts: nothing was done, and that one is adopted
    idle for too long the attempt fails, and says so
    anything else     the attempt fails of it
"""

import asyncio
import datetime as dt
import logging
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from contextvars import Context
from typing import Any, Final, Protocol, TypeVar

import psycopg
from psycopg.pq import TransactionStatus

from zart._engine.columns import entry_values
from zart._engine.continuity import Confirmed
from zart._engine.encrypting import encrypted_entry
from zart._engine.entries import Entry, Key, Lost
from zart._engine.points import reach
from zart._engine.transaction_lines import AsyncLine, Line, SyncLine
from zart._postgres.queries import load
from zart._postgres.trouble import Trouble, classify
from zart.durations import format_duration
from zart.encryption import PLAIN, Payloads, Place
from zart.errors import SerializationError, StepTimeout, UsageError

T = TypeVar("T")

_log = logging.getLogger("zart.worker")

MOST_CONNECTIONS: Final = 10
"""Steps of one worker that may be in a transaction at the same time; more wait for their turn."""
MOST_CONFLICTS: Final = 50
"""After so many conflicts in a row an attempt fails of the last one."""
WRITER: Final = 3
"""The number of the fence row that they share."""
_FENCE_GONE, _RECORDED = "ZR001", "ZR002"
_IDLE = "25P03"
_NO_LOCK = "55P03"
_UNREADABLE = frozenset(("21", "22", "54"))
_PATIENCE = 30.0
"""Seconds for the answer to a record; then its connection is taken for lost."""
_SHORTEST, _LONGEST = 0.05, 5.0
_LONGEST_CONFLICT = 0.5


class Again(Exception):  # noqa: N818
    """Nothing was done, and nobody is to blame: the function may run again. `__cause__` says what happened."""


class Transactions:
    """The connections, for one registration of a worker. `on_fenced` is called when that is found to be gone, and
    `confirmed` is told of each record that was committed.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[psycopg.AsyncConnection[Any]]],
        dial: Callable[[], psycopg.Connection[Any]],
        schema: str,
        worker_id: int,
        *,
        idle_limit: dt.timedelta,
        draw_token: Callable[[], int],
        on_fenced: Callable[[], None],
        confirmed: Confirmed,
        payloads: Payloads = PLAIN,
    ) -> None:
        self.schema = schema
        self.confirmed = confirmed
        self.payloads = payloads
        self.idle_limit = idle_limit
        self.statements = load("transactions", schema)
        self.fence = {"worker": worker_id}
        self.draw_token = draw_token
        self.on_fenced = on_fenced
        self._connect = connect
        self._dial = dial
        self._turns = asyncio.Semaphore(MOST_CONNECTIONS)
        self._idle: dict[bool, list[Line]] = {False: [], True: []}
        self._closed = False
        self._later: set[asyncio.Task[None]] = set()

    @property
    def idle_milliseconds(self) -> int:
        return max(1, round(self.idle_limit / dt.timedelta(milliseconds=1)))

    async def begin(self, execution_id: str, *, threaded: bool) -> "Transaction":
        """An open transaction, however long the database is away: nothing else could be recorded either."""
        await self._turns.acquire()
        try:
            line, _ = await self._until_done(
                lambda line: line.begin(self.idle_milliseconds), threaded=threaded
            )
            reach("transaction.opened")
        except BaseException:
            self._turns.release()
            raise
        return Transaction(self, line, execution_id)

    async def ask(self, statement: str, parameters: dict[str, Any]) -> list[tuple[Any, ...]]:
        """The rows of one statement, committed; sent again while the database is away."""
        text, values = self.statements[statement], {**parameters, **self.fence}
        line, rows = await self._until_done(lambda line: line.rows(text, values), threaded=False)
        self._give_back(line, threaded=False)
        return rows

    async def _until_done(self, work: Callable[[Line], Awaitable[T]], *, threaded: bool) -> tuple[Line, T]:
        """Do something on an idle line, on another one each time while the database is away."""
        tries = 0
        while True:
            line = self._take(threaded=threaded)
            try:
                return line, await work(line)
            except (psycopg.Error, OSError) as error:
                line.abandon()
                if classify(error) is not Trouble.LOST or getattr(error, "sqlstate", None) == _NO_LOCK:
                    raise
                await _pause(tries, error)
                tries += 1
            except BaseException:
                line.abandon()
                raise

    def later(self, statement: str, parameters: dict[str, Any]) -> None:
        """The same for what nobody waits for, and what does no harm when it is never done."""

        async def ask() -> None:
            try:
                await self.ask(statement, parameters)
            except (psycopg.Error, OSError) as error:
                _log.warning("%s was not done: %s", statement, str(error).strip())

        task = asyncio.Task(ask(), loop=asyncio.get_running_loop(), context=Context())
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    async def close(self) -> None:
        self._closed = True
        for task in list(self._later):
            task.cancel()
        lines = [line for idle in self._idle.values() for line in idle]
        self._idle = {False: [], True: []}
        for line in lines:
            line.abandon()

    def _take(self, *, threaded: bool) -> Line:
        idle = self._idle[threaded]
        if idle:
            return idle.pop()
        return SyncLine(self._dial) if threaded else AsyncLine(self._connect)

    def _give_back(self, line: Line, *, threaded: bool) -> None:
        if self._closed or line.status is not TransactionStatus.IDLE:
            line.abandon()
        else:
            self._idle[threaded].append(line)

    def over(self, line: Line) -> None:
        """A transaction has ended."""
        self._give_back(line, threaded=isinstance(line, SyncLine))
        self._turns.release()


class Transaction:
    """One attempt's transaction. Exactly one of `commit`, `failed` and `abandon` ends it."""

    def __init__(self, pool: Transactions, line: Line, execution_id: str) -> None:
        self._pool = pool
        self._line = line
        self._execution_id = execution_id
        self._over = False

    @property
    def connection(self) -> psycopg.AsyncConnection[Any] | None:
        return self._line.connection if isinstance(self._line, AsyncLine) else None

    @property
    def sync_connection(self) -> psycopg.Connection[Any] | None:
        return self._line.connection if isinstance(self._line, SyncLine) else None

    @property
    def schema(self) -> str:
        return self._pool.schema

    def in_thread(self) -> AbstractContextManager[None]:
        """The step's own thread has the connection for the length of this block."""
        return self._line.in_step() if isinstance(self._line, SyncLine) else nullcontext()

    async def commit(self, entry: Entry) -> None:
        """Write the record and commit. Raises Again, Lost, or what the attempt fails of."""
        entry.token = self._pool.draw_token()
        stored = entry
        if self._pool.payloads.codec is not None:
            stored = self._encrypted(lambda: encrypted_entry(entry, self._pool.payloads))
        await self._commit("record", entry_values(stored), entry.key, lambda: self._was_committed(entry))
        self._pool.confirmed.apart(entry.run_id, entry.key)
        if entry.clears_recoveries:
            await self._pool.ask("clear_recoveries", {"task": entry.task_id, "run_id": entry.run_id})

    async def commit_beside(
        self,
        parameters: dict[str, Any],
        result: bytes,
        place: Place,
        key: Key,
        was_committed: Callable[[], Awaitable[bool]],
    ) -> None:
        """The same with a record beside the journal: of a scheduled step, whose end is written by its ending."""
        stored = self._encrypted(lambda: self._pool.payloads.encrypt(result, place))
        await self._commit("record_beside", {**parameters, "result": stored.decode()}, key, was_committed)

    def _encrypted(self, encrypt: Callable[[], T]) -> T:
        """What `encrypt` returns. Where the codec fails nothing was done, and the function runs again."""
        try:
            return encrypt()
        except SerializationError as error:
            self.abandon()
            raise Again from error

    async def _commit(
        self,
        statement: str,
        parameters: dict[str, Any],
        key: Key,
        was_committed: Callable[[], Awaitable[bool]],
    ) -> None:
        try:
            self._check(key)
            reach("transaction.record.begin")
            try:
                async with asyncio.timeout(_PATIENCE):
                    await self._line.commit(
                        self._pool.statements[statement],
                        {**parameters, **self._pool.fence},
                        lambda: reach("transaction.record.sent"),
                    )
            except (psycopg.Error, OSError) as error:  # a TimeoutError is an OSError
                await self._refused(key, error, was_committed)
            reach("transaction.record.answered")
        finally:
            self._end()

    async def failed(self, error: Exception, key: Key) -> Exception:
        """The function has raised: take back what it has written. Returns what the attempt fails of, or an Again."""
        judged = self._judge(error, key)
        try:
            await self._line.roll_back()
        except (psycopg.Error, OSError) as trouble:
            _log.debug("a transaction was rolled back by the end of its connection: %s", trouble)
            self._line.abandon()
        finally:
            self._end()
        return judged

    def abandon(self) -> None:
        """Whatever the step still does in it is never committed. Harmless when it has ended."""
        if not self._over:
            self._line.abandon()
            self._end()

    def _end(self) -> None:
        if not self._over:
            self._over = True
            self._pool.over(self._line)

    # ------------------------------------------------------------ what has happened

    def _check(self, key: Key) -> None:
        """Whether the transaction is still the one that was begun."""
        status = self._line.status
        here = f"execution {self._execution_id!r}: step {key}"
        if status is TransactionStatus.INERROR:
            raise UsageError(
                f"{here} has returned although a statement had failed in its transaction, so nothing of it could be "
                "committed. Let the error out of the step, or try such a statement in a savepoint: "
                "async with zart.connection().transaction()"
            )
        if status is TransactionStatus.IDLE or self._line.was_closed:
            raise UsageError(
                f"{here} has ended its transaction itself: leave COMMIT, ROLLBACK and close() to Zart, which commits "
                "what the step has written together with its record"
            )

    async def _refused(
        self, key: Key, error: Exception, was_committed: Callable[[], Awaitable[bool]]
    ) -> None:
        """The record and its COMMIT have failed. Returns if they were committed all the same."""
        state = error.sqlstate if isinstance(error, psycopg.Error) else None
        if state == _FENCE_GONE:
            self._pool.on_fenced()
            raise Lost(f"{key}: this worker was taken for dead") from error
        if state == _RECORDED:
            raise Lost(f"{key} was recorded by another activation, whose record counts") from error
        if state is not None and state[:2] in _UNREADABLE and self._line.record_failed:
            raise SerializationError(
                f"the record of {key.kind} '{key}' cannot be stored: {error}. Nothing of the step was "
                "committed; return a value that JSON text in PostgreSQL can hold",
                what=f"record of {key.kind} '{key}'",
            ) from error
        if state == _IDLE:
            raise self._idled(key) from error
        if state is not None and state[:2] == "40":
            raise Again from error
        if classify(error) is not Trouble.LOST:
            raise error
        self._line.abandon()
        if not self._line.record_sent:
            raise Again from error
        if not await was_committed():
            raise Again from error

    async def _was_committed(self, entry: Entry) -> bool:
        """After a lost answer: whether the record stands. If not, it never will. Raises Lost for another one's."""
        reach("transaction.seal.begin")
        lost, parameters = entry.token, entry_values(entry)
        parameters["token"] = self._pool.draw_token()
        ((stands, sealed),) = await self._pool.ask("seal", parameters)
        reach("transaction.seal.answered")
        if sealed:
            return False
        written = await self._pool.ask("written_token", parameters)
        if [lost] == [token for (token,) in written]:
            return True
        if not stands:
            self._pool.on_fenced()
        raise Lost(f"{entry.key} was recorded by another activation, whose record counts")

    def _judge(self, error: Exception, key: Key) -> Exception:
        """What an error of the step's function means."""
        for cause in _causes(error):
            if not isinstance(cause, psycopg.Error):
                continue
            if cause.sqlstate == _IDLE:
                return self._idled(key)
            lost = self._line.status is TransactionStatus.UNKNOWN and not self._line.was_closed
            if lost or (cause.sqlstate or "")[:2] == "40":
                again = Again()
                again.__cause__ = error
                return again
        return error

    def _idled(self, key: Key) -> StepTimeout:
        limit = self._pool.idle_limit
        return StepTimeout(
            f"execution {self._execution_id!r}: step {key} left its transaction idle for longer than orphan_timeout "
            f"({format_duration(limit)}), so the database has ended it and nothing of it was committed: a "
            "transaction that stands idle keeps other workers from taking over. It is open while the step runs: do "
            "what takes long in a step before this one, or give the worker a longer orphan_timeout",
            step=key.name,
            limit=limit,
        )


class Connected(Protocol):
    """What a host has for the steps of its activations."""

    payloads: Payloads
    confirmed: Confirmed

    @property
    def idle_milliseconds(self) -> int: ...
    async def begin(self, execution_id: str, *, threaded: bool) -> Transaction: ...
    async def ask(self, statement: str, parameters: dict[str, Any]) -> list[tuple[Any, ...]]: ...
    def later(self, statement: str, parameters: dict[str, Any]) -> None: ...


async def pause_after_conflict(conflicts: int) -> None:
    """A little longer each time, so that those who conflict get out of each other's way."""
    longest = min(_LONGEST_CONFLICT, 0.002 * 2.0 ** min(conflicts, 10))
    await asyncio.sleep(longest * random.uniform(0.1, 1.0))  # noqa: S311 (spreads retries)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, and what it was raised from or while handling."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


async def _pause(tries: int, error: Exception) -> None:
    if tries & (tries - 1) == 0:  # the first, second, fourth, eighth time
        _log.warning(
            "steps in a transaction wait for the database (%s: %s)", type(error).__name__, str(error).strip()
        )
    longest = min(_LONGEST, _SHORTEST * 2.0 ** min(tries, 10))
    await asyncio.sleep(longest * random.uniform(0.5, 1.0))  # noqa: S311 (spreads retries)
