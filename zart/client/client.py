"""The Client: starts executions, waits for them, sends them events, shows and steers them."""

import copy
import datetime as dt
import getpass
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVar, overload

import psycopg
from typing_extensions import TypeForm

from zart._postgres.listener import work_channel
from zart.annotations import codec_for
from zart.client.database import GIVES_WAY, Database
from zart.client.handle import ExecutionHandle, read_outcome, result_timeout
from zart.client.lookout import Lookout
from zart.client.offering import Answer, check_known_id, make_offer, read_answer
from zart.client.outcomes import Outcomes
from zart.client.outside import refuse_in_body
from zart.client.starter import Starter
from zart.client.starting import NOT_GIVEN, OnConflict, make_start, read_target
from zart.client.steering import Steering
from zart.client.transactions import offer_within, start_within
from zart.codec import ANY, Codec
from zart.durable import Durable
from zart.durations import Duration, parse_duration
from zart.errors import UsageError
from zart.names import check_text
from zart.outside import opened
from zart.primitives import Event
from zart.state import Execution, History, Stats

D = TypeVar("D")
R = TypeVar("R")
T = TypeVar("T")

_TRIES: Final = 3
_ANYTHING: Final = Codec(ANY)


class Client:
    """Starts executions and follows them: `async with zart.Client(dsn) as client:`.

    `dsn` is the database; without one `ZART_DATABASE_URL` or `DATABASE_URL` names it, and "embedded" is a
    server of your own under `.zart/`. `schema` is where Zart's tables are. `author` goes with what a person
    does to an execution; the default is user@host. A client belongs to one event loop, and any number of
    tasks may share it.

    In the body of a durable function its methods raise UsageError: they would not be replayed. Steps may call
    them. A database that is away is tried for ten seconds, then DatabaseUnreachable, a ConnectionError, is
    raised.
    """

    def __init__(
        self, dsn: str | None = None, /, *, schema: str = "public", author: str | None = None
    ) -> None:
        self._database = Database(dsn, schema)
        self._open: AsyncExitStack | None = None
        self._outcomes_: Outcomes | None = None
        self._starter = Starter(self._database)
        self._lookout = Lookout(self._database)
        self._sign(check_text(author, "the author") if author is not None else _who())

    def _sign(self, author: str) -> None:
        """Make what writes an author's name into the history."""
        self._steering = Steering(self._database, author)

    async def __aenter__(self) -> Self:
        if self._open is not None:
            raise UsageError("this Client is open already: one `async with` is enough, tasks may share it")
        async with AsyncExitStack() as stack:
            await self._database.open()
            stack.push_async_callback(self._database.close)
            self._outcomes_ = Outcomes(self._database)
            stack.push_async_callback(self._outcomes_.close)
            stack.push_async_callback(self._starter.close)
            stack.enter_context(opened("client"))
            self._open = stack.pop_all()
        return self

    async def __aexit__(
        self, t: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None, /
    ) -> None:
        stack, self._open = self._open, None
        if stack is not None:
            await stack.aclose()

    @property
    def address(self) -> str:
        """Where the database is, as libpq reads it, passwords included. Raises UsageError when none is
        named.
        """
        return self._database.address

    @property
    def schema(self) -> str:
        """The schema of Zart's tables."""
        return self._database.schema

    @property
    def is_open(self) -> bool:
        """Whether its methods may be called now."""
        return self._open is not None

    def as_author(self, author: str, /) -> Self:
        """This client under another author's name: what is done through it is signed so in the history.

        It shares the connections, and lives as long as this one is open: it is not opened and not closed. Raises
        UsageError when this one is not open.
        """
        if self._open is None:
            raise UsageError("this Client is not open: open it, then act in another author's name")
        view = copy.copy(self)
        view._sign(check_text(author, "the author"))  # noqa: SLF001 (its own kind)
        return view

    # ------------------------------------------------------------ starting

    @overload
    async def start(
        self,
        fn: Durable[[], R],
        /,
        *,
        id: str | None = None,
        delay: Duration | None = None,
        at: dt.datetime | None = None,
        queue: str | None = None,
        priority: int | None = None,
        on_conflict: OnConflict = "raise",
        connection: psycopg.AsyncConnection[Any] | None = None,
    ) -> ExecutionHandle[R]: ...
    @overload
    async def start(
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
        on_conflict: OnConflict = "raise",
        connection: psycopg.AsyncConnection[Any] | None = None,
    ) -> ExecutionHandle[R]: ...
    @overload
    async def start(
        self,
        fn: str,
        data: Any = ...,
        /,
        *,
        version: str | None = None,
        id: str | None = None,
        delay: Duration | None = None,
        at: dt.datetime | None = None,
        queue: str | None = None,
        priority: int | None = None,
        on_conflict: OnConflict = "raise",
        connection: psycopg.AsyncConnection[Any] | None = None,
    ) -> ExecutionHandle[Any]: ...
    async def start(
        self,
        fn: Durable[..., Any] | str,
        data: Any = NOT_GIVEN,
        /,
        *,
        version: str | None = None,
        id: str | None = None,
        delay: Duration | None = None,
        at: dt.datetime | None = None,
        queue: str | None = None,
        priority: int | None = None,
        on_conflict: OnConflict = "raise",
        connection: psycopg.AsyncConnection[Any] | None = None,
    ) -> ExecutionHandle[Any]:
        """Start an execution of a durable function, given itself or by its name.

        Idempotent by `id` (default: a new UUID): the same function with equal input is the execution that
        exists, in whatever state, and the handle says `created=False`. Anything else under that id raises
        ExecutionConflict, or is returned with `on_conflict="return"`. It becomes due after `delay`, or `at` a
        time, or at once. `queue` and `priority` take the place of the function's own. With `connection` the
        start is one statement in the caller's transaction, and only inserts.

        Raises UsageError for an id or a name that cannot be, SerializationError for input that does not fit.
        """
        refuse_in_body("Client.start")
        _check_on_conflict(on_conflict)
        target = read_target(fn, version=version, queue=queue, priority=priority)
        wanted = make_start(target, data, id=_own_id(fn, id), delay=delay, at=at)
        if connection is not None:
            created = await start_within(connection, self._database.schema, wanted, on_conflict)
        else:
            created = await self._starter.start(wanted, on_conflict)
        return ExecutionHandle(self, self._result, wanted.id, target.result, created=created)

    async def start_many(self, fn: Durable[[D], R], items: Mapping[str, D], /) -> list[ExecutionHandle[R]]:
        """Start one execution for each id of `items`, which maps ids to inputs; the handles come in its
        order.

        One statement for a thousand. All input is checked before anything is sent. If an id stands for
        something else, ExecutionConflict names it: nothing of that one was changed, what is new among the
        others was started, and calling again with the rest is harmless.
        """
        refuse_in_body("Client.start_many")
        target = read_target(fn)
        created = await self._starter.start_many(target, items)
        return [
            ExecutionHandle(self, self._result, key, target.result, created=key in created) for key in items
        ]

    @overload
    async def start_and_wait(
        self, fn: Durable[[], R], /, *, id: str | None = None, timeout: Duration | None = None
    ) -> R: ...
    @overload
    async def start_and_wait(
        self, fn: Durable[[D], R], data: D, /, *, id: str | None = None, timeout: Duration | None = None
    ) -> R: ...
    async def start_and_wait(
        self,
        fn: Durable[..., Any],
        data: Any = NOT_GIVEN,
        /,
        *,
        id: str | None = None,
        timeout: Duration | None = None,
    ) -> Any:
        """Start an execution, wait for its end and return its result; see `start` and
        `ExecutionHandle.result`.
        """
        refuse_in_body("Client.start_and_wait")
        target = read_target(fn)
        wanted = make_start(target, data, id=_own_id(fn, id))
        created = await self._starter.start(wanted, "raise", awaited=True)
        return await self._result(wanted.id, target.result, timeout, awaited=created)

    # ------------------------------------------------------------ waiting

    def handle(self, fn: Durable[..., R], id: str, /) -> ExecutionHandle[R]:
        """The handle of an execution of `fn` that exists or will; nothing is asked of the database."""
        target = read_target(fn)
        return ExecutionHandle(self, self._result, check_known_id(id), target.result, created=False)

    @overload
    async def wait_completion(self, id: str, /, *, timeout: Duration | None = None) -> Any: ...
    @overload
    async def wait_completion(
        self, id: str, /, *, timeout: Duration | None = None, type: TypeForm[T]
    ) -> T: ...
    async def wait_completion(
        self, id: str, /, *, timeout: Duration | None = None, type: Any = NOT_GIVEN
    ) -> Any:
        """Wait for an execution to end and return its result as `type`; see `ExecutionHandle.result`."""
        codec = _ANYTHING if type is NOT_GIVEN else codec_for(type, "type=", allow_sets=True)
        return await self._result(check_known_id(id), codec, timeout)

    async def _result(self, id: str, codec: Codec, timeout: Duration | None, *, awaited: bool = False) -> Any:
        refuse_in_body("waiting for the result of an execution")
        limit = None if timeout is None else parse_duration(timeout, what="timeout")
        outcome = await self._outcomes.wait(id, limit, awaited=awaited)
        if outcome is None:
            raise result_timeout(id, timeout if timeout is not None else 0)
        return read_outcome(outcome, codec)

    @property
    def _outcomes(self) -> Outcomes:
        if self._open is None or self._outcomes_ is None:
            raise UsageError("the Client is not open: use it in `async with zart.Client(...) as client:`")
        return self._outcomes_

    # ------------------------------------------------------------ events

    @overload
    async def offer_event(
        self,
        execution_id: str,
        event: Event[T],
        payload: T,
        /,
        *,
        dedup: str | None = None,
        connection: psycopg.AsyncConnection[Any] | None = None,
    ) -> bool: ...
    @overload
    async def offer_event(
        self,
        execution_id: str,
        event: str,
        payload: Any = None,
        /,
        *,
        dedup: str | None = None,
        connection: psycopg.AsyncConnection[Any] | None = None,
    ) -> bool: ...
    async def offer_event(
        self,
        execution_id: str,
        event: Event[Any] | str,
        payload: Any = None,
        /,
        *,
        dedup: str | None = None,
        connection: psycopg.AsyncConnection[Any] | None = None,
    ) -> bool:
        """Offer an event to an execution. It is kept until a wait consumes it: first in, first out, each
        once.

        Returns whether it was added; with `dedup`, a key of your own, an event that was offered before is not
        added again. With `connection` it is part of the caller's transaction. Raises ExecutionNotFound,
        ExecutionFinished, and SerializationError for a payload that does not fit the event's type.
        """
        refuse_in_body("Client.offer_event")
        offer = make_offer(execution_id, event, payload, dedup)
        if connection is not None:
            return await offer_within(connection, self._database.schema, offer)
        for _ in range(_TRIES):
            rows = await self._database.query("offer_event", {**offer.parameters(), "gives_way": GIVES_WAY})
            answer = read_answer(offer, rows[0])
            if answer is Answer.ADDED and rows[0][3]:
                await self._announce()
            if answer is not Answer.CHANGED:
                # Where the key is ours, what was there before is this event, by a statement whose answer was
                # lost.
                return answer is Answer.ADDED or dedup is None
        return False

    async def _announce(self) -> None:
        await self._database.hint("announce", {"channel": work_channel(self._database.schema)})

    # ------------------------------------------------------------ looking

    async def status(self, id: str, /) -> Execution:
        """How an execution stands now. Raises ExecutionNotFound."""
        refuse_in_body("Client.status")
        return await self._lookout.status(check_known_id(id))

    async def executions(
        self,
        *,
        name: str | None = None,
        status: str | None = None,
        id_prefix: str | None = None,
        since: dt.datetime | None = None,
        until: dt.datetime | None = None,
        after: str | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[Execution]:
        """Executions, the newest first: those of a function's name, in a status, whose ids begin so, that
        were created at or after `since` and before `until`. They are read by pages while you iterate; to go
        on later, give the last id as `after`. At most `limit` of them (default: all).
        """
        refuse_in_body("Client.executions")
        found = self._lookout.executions(
            name=name, status=status, id_prefix=id_prefix, since=since, until=until, after=after, limit=limit
        )
        async for execution in found:
            yield execution

    async def history(self, id: str, /, *, run_id: str | None = None) -> History:
        """What an execution did: its records in order, what is under way last, and notes on what else
        happened.

        Raises ExecutionNotFound for an unknown id or run.
        """
        refuse_in_body("Client.history")
        return await self._lookout.history(check_known_id(id), run_id)

    async def stats(self) -> Stats:
        """How many executions there are by status, ready ones that no live worker serves, and live
        workers.
        """
        refuse_in_body("Client.stats")
        return await self._lookout.stats()

    # ------------------------------------------------------------ steering

    async def cancel(self, id: str, /, *, reason: str | None = None, force: bool = False) -> bool:
        """Cancel an execution; False when it has ended or was asked to end before.

        One that never ran, or is blocked, ends at once. Any other is told: what it waits for raises
        CancelledError, its cleanup may run steps, and then it is `cancelled`, whatever it returns. `force`
        ends it here and now, without cleanup. Raises ExecutionNotFound.
        """
        refuse_in_body("Client.cancel")
        done = await self._steering.cancel(check_known_id(id), reason, force=force)
        if done.ended:
            self._outcomes.tell(id)
        if done.urgent:
            await self._announce()
        return done.changed

    async def resume(self, id: str, /, *, reason: str | None = None, accept_arguments: bool = False) -> bool:
        """Let a blocked execution go on; False when it is not blocked.

        It is replayed with today's code and has its recoveries again. `accept_arguments` takes recorded steps
        as they are though the code now calls them with other arguments. Raises ExecutionNotFound.
        """
        refuse_in_body("Client.resume")
        resumed = await self._steering.resume(check_known_id(id), reason, accept_arguments=accept_arguments)
        if resumed:
            await self._announce()
        return resumed


def _who() -> str:
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # a user without a name, as in some containers
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def _own_id(fn: Durable[..., Any] | str, id: str | None) -> str | None:
    return fn.id if id is None and isinstance(fn, Durable) else id


def _check_on_conflict(on_conflict: Literal["raise", "return"]) -> None:
    if on_conflict not in ("raise", "return"):
        raise UsageError(f'on_conflict is {on_conflict!r}: use "raise" or "return"')
