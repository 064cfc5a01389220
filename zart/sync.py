"""The client for code that is not async: Flask, Django, scripts, threads.

    client = zart.sync.Client()  # once for each process; any number of threads may use it

    handle = client.start(checkout, order, id="order-4711")
    print(handle.result(timeout="30s"))

`start` and `offer_event` of this module are one statement in a transaction of yours, on your thread and your
connection, with no client at all:

    with transaction.atomic():  # Django's
        order.save()
        zart.sync.start(checkout, order.number, id=f"order-{order.number}", connection=django.db.connection)

A connection is anything with `.cursor()` that takes `%s` for a parameter: psycopg's, psycopg2's, Django's, and in
SQLAlchemy `session.connection().connection`. In autocommit mode the statement is a transaction of its own.
"""

import datetime as dt
from collections.abc import Coroutine
from functools import partial
from types import TracebackType
from typing import Any, Generic, Literal, Protocol, Self, TypeVar, cast, overload

import anyio
import psycopg
from typing_extensions import TypeForm

import zart
from zart._postgres.lent import LentConnection
from zart.client.starting import NOT_GIVEN
from zart.durable import Durable
from zart.durations import Duration
from zart.portal import Portal, refuse_on_loop
from zart.primitives import Event
from zart.primitives import sync_connection as connection
from zart.state import Execution

__all__ = [
    "Client",
    "Cursor",
    "ExecutionHandle",
    "HasCursor",
    "connection",
    "migrate",
    "offer_event",
    "start",
]

D = TypeVar("D")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
T = TypeVar("T")


class Cursor(Protocol):
    """What is asked of a cursor."""

    def execute(self, query: Any, params: Any = ..., /) -> object: ...
    def fetchone(self) -> Any: ...
    def close(self) -> object: ...


class HasCursor(Protocol):
    """psycopg.Connection, django.db.connection, any DB-API connection with %s placeholders."""

    def cursor(self) -> Cursor: ...


class ExecutionHandle(Generic[R_co]):
    """An execution, by its id; see `zart.ExecutionHandle`."""

    id: str
    created: bool
    """Whether the call that returned this handle started the execution."""

    def __init__(self, portal: Portal, handle: zart.ExecutionHandle[R_co]) -> None:
        self.id = handle.id
        self.created = handle.created
        self._portal = portal
        self._handle = handle

    def result(self, *, timeout: Duration | None = None) -> R_co:
        """Wait for the execution to end, and return what it returned; see `zart.ExecutionHandle.result`."""
        return self._portal.call("ExecutionHandle.result", self._handle.result, timeout=timeout)

    def status(self) -> Execution:
        """How the execution stands now. Raises ExecutionNotFound."""
        return self._portal.call("ExecutionHandle.status", self._handle.status)

    def __repr__(self) -> str:
        return repr(self._handle)


# ---------------------------------------------------------------- in a transaction of the caller's


@overload
def start(
    fn: Durable[[], R], /, *, id: str | None = None, connection: HasCursor, schema: str = "public"
) -> str: ...
@overload
def start(
    fn: Durable[[D], R], data: D, /, *, id: str | None = None, connection: HasCursor, schema: str = "public"
) -> str: ...
def start(
    fn: Durable[..., Any],
    data: Any = NOT_GIVEN,
    /,
    *,
    id: str | None = None,
    connection: HasCursor,
    schema: str = "public",
) -> str:
    """Start an execution in the transaction of `connection`, and return its id; see `zart.start`."""
    return _at_once(zart.start(fn, data, id=id, connection=_lent(connection), schema=schema))


@overload
def offer_event(
    execution_id: str,
    event: Event[T],
    payload: T,
    /,
    *,
    dedup: str | None = None,
    connection: HasCursor,
    schema: str = "public",
) -> bool: ...
@overload
def offer_event(
    execution_id: str,
    event: str,
    payload: Any = None,
    /,
    *,
    dedup: str | None = None,
    connection: HasCursor,
    schema: str = "public",
) -> bool: ...
def offer_event(
    execution_id: str,
    event: Event[Any] | str,
    payload: Any = None,
    /,
    *,
    dedup: str | None = None,
    connection: HasCursor,
    schema: str = "public",
) -> bool:
    """Offer an event in the transaction of `connection`, and say whether it was added; see `zart.offer_event`."""
    given: Any = event  # both kinds are fine, and each overload takes one
    lent = _lent(connection)
    return _at_once(
        zart.offer_event(execution_id, given, payload, dedup=dedup, connection=lent, schema=schema)
    )


def migrate(dsn: str | None = None, /, *, schema: str = "public") -> None:
    """Create or update Zart's tables; see `zart.migrate`."""
    refuse_on_loop("zart.sync.migrate", "await zart.migrate(...)")
    anyio.run(partial(zart.migrate, dsn, schema=schema))


# ---------------------------------------------------------------- the client


class Client:
    """`zart.Client` for threads: each method waits for its answer, and is what the async one is.

    `dsn` and `schema` are as there. It is opened by its first call, or by `with`, and any number of threads may use
    it: one for a process is enough. It is closed at the end of `with`, when it is dropped, and when the process ends.

    Its methods raise UsageError in the body of a durable function, where an event loop runs (use `zart.Client`
    there), and in a fork of the process that opened it: a server that forks must do so before the first call.
    """

    def __init__(self, dsn: str | None = None, /, *, schema: str = "public") -> None:
        self._client = zart.Client(dsn, schema=schema)
        self._portal = Portal(self._client)

    def __enter__(self) -> Self:
        self._portal.open()
        return self

    def __exit__(
        self, t: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None, /
    ) -> None:
        self._portal.close()

    @overload
    def start(
        self,
        fn: Durable[[], R],
        /,
        *,
        id: str | None = None,
        delay: Duration | None = None,
        at: dt.datetime | None = None,
        queue: str | None = None,
        priority: int | None = None,
        on_conflict: Literal["raise", "return"] = "raise",
        connection: HasCursor | None = None,
    ) -> ExecutionHandle[R]: ...
    @overload
    def start(
        self,
        fn: Durable[[D], R],
        data: D,
        /,
        *,
        id: str | None = None,
        delay: Duration | None = None,
        at: dt.datetime | None = None,
        queue: str | None = None,
        priority: int | None = None,
        on_conflict: Literal["raise", "return"] = "raise",
        connection: HasCursor | None = None,
    ) -> ExecutionHandle[R]: ...
    def start(
        self,
        fn: Durable[..., Any],
        data: Any = NOT_GIVEN,
        /,
        *,
        id: str | None = None,
        delay: Duration | None = None,
        at: dt.datetime | None = None,
        queue: str | None = None,
        priority: int | None = None,
        on_conflict: Literal["raise", "return"] = "raise",
        connection: HasCursor | None = None,
    ) -> ExecutionHandle[Any]:
        """Start an execution; see `zart.Client.start`. With `connection` it is one statement on that, in the caller's
        thread and transaction, and the client need not be open.
        """
        begin = partial(
            self._client.start, fn, data,
            id=id, delay=delay, at=at, queue=queue, priority=priority, on_conflict=on_conflict,
        )  # fmt: skip
        if connection is not None:
            return ExecutionHandle(self._portal, _at_once(begin(connection=_lent(connection))))
        return ExecutionHandle(self._portal, self._portal.call("Client.start", begin))

    @overload
    def start_and_wait(
        self, fn: Durable[[], R], /, *, id: str | None = None, timeout: Duration | None = None
    ) -> R: ...
    @overload
    def start_and_wait(
        self, fn: Durable[[D], R], data: D, /, *, id: str | None = None, timeout: Duration | None = None
    ) -> R: ...
    def start_and_wait(
        self,
        fn: Durable[..., Any],
        data: Any = NOT_GIVEN,
        /,
        *,
        id: str | None = None,
        timeout: Duration | None = None,
    ) -> Any:
        """Start an execution, wait for its end and return its result; see `zart.Client.start_and_wait`."""
        method = self._client.start_and_wait
        return self._portal.call("Client.start_and_wait", method, fn, data, id=id, timeout=timeout)

    def handle(self, fn: Durable[..., R], id: str, /) -> ExecutionHandle[R]:
        """The handle of an execution of `fn` that exists or will; nothing is asked of the database."""
        return ExecutionHandle(self._portal, self._client.handle(fn, id))

    @overload
    def wait_completion(self, id: str, /, *, timeout: Duration | None = None) -> Any: ...
    @overload
    def wait_completion(self, id: str, /, *, timeout: Duration | None = None, type: TypeForm[T]) -> T: ...
    def wait_completion(self, id: str, /, *, timeout: Duration | None = None, type: Any = NOT_GIVEN) -> Any:
        """Wait for an execution to end and return its result as `type`; see `zart.Client.wait_completion`."""
        method = self._client.wait_completion
        return self._portal.call("Client.wait_completion", method, id, timeout=timeout, type=type)

    @overload
    def offer_event(
        self, execution_id: str, event: Event[T], payload: T, /, *, dedup: str | None = None
    ) -> bool: ...
    @overload
    def offer_event(
        self, execution_id: str, event: str, payload: Any = None, /, *, dedup: str | None = None
    ) -> bool: ...
    def offer_event(
        self,
        execution_id: str,
        event: Event[Any] | str,
        payload: Any = None,
        /,
        *,
        dedup: str | None = None,
    ) -> bool:
        """Offer an event to an execution, and say whether it was added; see `zart.Client.offer_event`."""
        method = self._client.offer_event
        return self._portal.call("Client.offer_event", method, execution_id, event, payload, dedup=dedup)

    def status(self, id: str, /) -> Execution:
        """How an execution stands now. Raises ExecutionNotFound."""
        return self._portal.call("Client.status", self._client.status, id)

    def cancel(self, id: str, /, *, reason: str | None = None, force: bool = False) -> bool:
        """Cancel an execution; False when it has ended or was asked to before. See `zart.Client.cancel`."""
        return self._portal.call("Client.cancel", self._client.cancel, id, reason=reason, force=force)

    def resume(self, id: str, /, *, reason: str | None = None, accept_arguments: bool = False) -> bool:
        """Let a blocked execution go on; False when it is not blocked. See `zart.Client.resume`."""
        method = self._client.resume
        return self._portal.call(
            "Client.resume", method, id, reason=reason, accept_arguments=accept_arguments
        )


# ---------------------------------------------------------------- async code on a lent connection


def _lent(connection: HasCursor) -> "psycopg.AsyncConnection[Any]":
    """A connection for the async functions: they give it whole statements, and it answers without waiting."""
    return cast("psycopg.AsyncConnection[Any]", LentConnection(connection))


def _at_once(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that waits for nothing: on a lent connection nothing does."""
    try:
        work.send(None)
    except StopIteration as done:
        return cast("T", done.value)
    work.close()
    raise RuntimeError("a call on a lent connection has waited for the event loop")
