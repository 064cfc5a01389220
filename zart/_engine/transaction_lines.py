"""The connections on which steps have their transactions: one kind for an `async def`, one for a plain `def`.

Both do the same: begin with a limit on idleness, commit with the record in one message, roll back, ask. A connection
is opened when it is first needed. psycopg's own `transaction()` is around the step, so a `commit()` or
`rollback()` of the step's is refused, and its own blocks are savepoints.
"""

import threading
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeVar

import anyio.to_thread
import psycopg
from anyio import CapacityLimiter
from psycopg import generators, sql
from psycopg.pq import ExecStatus, TransactionStatus
from psycopg.rows import tuple_row

Parameters = Mapping[str, Any]
Row = tuple[Any, ...]
T = TypeVar("T")
C = TypeVar("C", psycopg.AsyncConnection[Any], psycopg.Connection[Any])


class Line(Protocol):
    """A connection, and the transaction that is open on it."""

    record_failed: bool
    """Whether it was the record that failed at a commit, and not the COMMIT."""
    record_sent: bool
    """Whether the record may have reached the server."""

    @property
    def status(self) -> TransactionStatus: ...
    @property
    def was_closed(self) -> bool:
        """Whether the step has closed it."""
        ...

    async def begin(self, idle_milliseconds: int) -> None: ...
    async def commit(self, record: bytes, parameters: Parameters, on_sent: Callable[[], None]) -> None:
        """Write the record and commit, in one message. Raises what either of them does."""
        ...

    async def roll_back(self) -> None: ...
    async def rows(self, statement: bytes, parameters: Parameters) -> list[Row]: ...
    def abandon(self) -> None:
        """Break it off: what is not committed never will be, unless its COMMIT is on its way."""
        ...


def _begin_statement(idle_milliseconds: int) -> sql.Composed:
    return sql.SQL("SET LOCAL idle_in_transaction_session_timeout = {}").format(
        sql.Literal(idle_milliseconds)
    )


class _Recording:
    """A transaction that ends with a record.

    Both are one message of the simple protocol. The server begins with the record, which locks the fence, when it has
    all of the message; so a process that is stopped anywhere holds the fence for no longer than the server takes. As
    two messages of a pipeline they could be torn apart. Then the server waits between them for as long as the process
    is stopped, which is neither idleness nor a statement to it: no limit ends that, and nobody can take over.
    """

    pgconn: Any
    _conn: Any
    _pop_savepoint: Any
    record: bytes
    on_sent: Callable[[], None]

    def end_with(self, record: str, on_sent: Callable[[], None]) -> None:
        """The record, its values in it, that goes before the COMMIT."""
        self.record = f"{record}; COMMIT".encode(self._conn.info.encoding)
        self.on_sent = on_sent

    def _commit_gen(self) -> Generator[Any, Any, None]:
        """In place of psycopg's own, which sends a COMMIT alone."""
        wrong_order = self._pop_savepoint("commit")
        if wrong_order:
            raise wrong_order
        self.pgconn.send_query(self.record)
        yield from generators.send(self.pgconn)
        self.on_sent()
        for result in (yield from generators.fetch_many(self.pgconn)):
            if result.status == ExecStatus.FATAL_ERROR:
                raise psycopg.errors.error_from_result(result, encoding=self._conn.info.encoding)


class _AsyncTransaction(_Recording, psycopg.AsyncTransaction):
    pass


class _SyncTransaction(_Recording, psycopg.Transaction):
    pass


class _Held(Generic[C]):
    """What is known of a line's connection and of what is open on it."""

    def __init__(self) -> None:
        self._connection: C | None = None
        self._abandoned = False
        self.record_failed = False
        self.record_sent = False

    @property
    def connection(self) -> C:
        assert self._connection is not None  # noqa: S101 (it has begun)
        return self._connection

    @property
    def status(self) -> TransactionStatus:
        known = self._connection
        if known is None or self._abandoned:  # a thread may have it for a while after that
            return TransactionStatus.UNKNOWN
        return known.info.transaction_status

    @property
    def was_closed(self) -> bool:
        known = self._connection
        return known is not None and known.closed and not known.broken and not self._abandoned


class AsyncLine(_Held[psycopg.AsyncConnection[Any]]):
    """See `Line`."""

    def __init__(self, connect: Callable[[], Awaitable[psycopg.AsyncConnection[Any]]]) -> None:
        super().__init__()
        self._connect = connect
        self._transaction: _AsyncTransaction | None = None

    async def begin(self, idle_milliseconds: int) -> None:
        connection = await self._open()
        self.record_failed = self.record_sent = False
        # Not connection.transaction(): what that opens in a pipeline stays in the pipeline to its end.
        self._transaction = transaction = _AsyncTransaction(connection)
        async with connection.pipeline():
            await transaction.__aenter__()
            await connection.execute("RESET ALL")  # what the step before has set for its session
            await connection.execute(_begin_statement(idle_milliseconds))
        connection.row_factory = tuple_row

    async def commit(self, record: bytes, parameters: Parameters, on_sent: Callable[[], None]) -> None:
        connection, transaction = self.connection, self._transaction
        assert transaction is not None  # noqa: S101 (it has begun)
        transaction.end_with(psycopg.AsyncClientCursor(connection).mogrify(record, parameters), on_sent)
        self.record_sent = True
        try:
            await transaction.__aexit__(None, None, None)
        except psycopg.Error:
            self.record_failed = self.status is TransactionStatus.INERROR
            if self.record_failed:
                await connection.execute("ROLLBACK")
            raise

    async def roll_back(self) -> None:
        transaction, self._transaction = self._transaction, None
        if transaction is not None and not self.connection.closed:
            await transaction.__aexit__(psycopg.Rollback, psycopg.Rollback(), None)

    async def rows(self, statement: bytes, parameters: Parameters) -> list[Row]:
        connection = await self._open()
        cursor = await connection.execute(statement, parameters)
        return await cursor.fetchall()

    def abandon(self) -> None:
        if self._connection is not None and not self._connection.closed:
            self._abandoned = True
            self._connection.pgconn.finish()

    async def _open(self) -> psycopg.AsyncConnection[Any]:
        if self._connection is None or self._connection.closed:
            self._connection = await self._connect()
            self._abandoned = False
        return self._connection


class SyncLine(_Held[psycopg.Connection[Any]]):
    """See `Line`. Each of its doings has a thread, for a moment; the step's own thread has the connection between them.

    A step that is cancelled leaves its thread running: then the connection is closed at the end of that thread.
    """

    def __init__(self, dial: Callable[[], psycopg.Connection[Any]]) -> None:
        super().__init__()
        self._dial = dial
        self._transaction: _SyncTransaction | None = None
        self._threads = CapacityLimiter(1)
        self._lock = threading.Lock()
        self._in_step = False

    async def begin(self, idle_milliseconds: int) -> None:
        def work() -> None:
            connection = self._open()
            self.record_failed = self.record_sent = False
            self._transaction = transaction = _SyncTransaction(connection)
            with connection.pipeline():
                transaction.__enter__()
                connection.execute("RESET ALL")
                connection.execute(_begin_statement(idle_milliseconds))
            connection.row_factory = tuple_row

        await self._run(work)

    async def commit(self, record: bytes, parameters: Parameters, on_sent: Callable[[], None]) -> None:
        def work() -> None:
            connection, transaction = self.connection, self._transaction
            assert transaction is not None  # noqa: S101 (it has begun)
            transaction.end_with(psycopg.ClientCursor(connection).mogrify(record, parameters), on_sent)
            self.record_sent = True
            try:
                transaction.__exit__(None, None, None)
            except psycopg.Error:
                self.record_failed = self.status is TransactionStatus.INERROR
                if self.record_failed:
                    connection.execute("ROLLBACK")
                raise

        await self._run(work)

    async def roll_back(self) -> None:
        transaction, self._transaction = self._transaction, None
        if transaction is not None and not self.connection.closed:
            await self._run(lambda: transaction.__exit__(psycopg.Rollback, psycopg.Rollback(), None))

    async def rows(self, statement: bytes, parameters: Parameters) -> list[Row]:
        return await self._run(lambda: self._open().execute(statement, parameters).fetchall())

    @contextmanager
    def in_step(self) -> Generator[None, None, None]:
        """The step's thread has the connection for the length of this block."""
        if not self._enter_step():
            raise psycopg.OperationalError("the step was given up before its thread began")
        try:
            yield
        finally:
            self._leave_step()

    def _enter_step(self) -> bool:
        with self._lock:
            self._in_step = not self._abandoned
            return self._in_step

    def _leave_step(self) -> None:
        with self._lock:
            self._in_step = False
            if self._abandoned:
                self._finish()

    def abandon(self) -> None:
        with self._lock:
            if self._connection is None or not self._connection.closed:
                self._abandoned = True  # also one that a thread is opening, for somebody who was cancelled
                if not self._in_step:
                    self._finish()

    def _finish(self) -> None:
        if self._connection is not None:
            self._connection.pgconn.finish()

    def _open(self) -> psycopg.Connection[Any]:
        if self._connection is not None and not self._connection.closed:
            return self._connection
        self._connection = None
        opened = self._dial()
        with self._lock:
            if not self._abandoned:
                self._connection = opened
                return opened
        opened.close()
        raise psycopg.OperationalError("the connection was given up while it was opened")

    async def _run(self, work: Callable[[], T]) -> T:
        return await anyio.to_thread.run_sync(work, limiter=self._threads, abandon_on_cancel=False)
