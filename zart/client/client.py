"""The Client: starts executions, waits for them, sends them events, shows and steers them."""

import copy
import datetime as dt
import getpass
import socket
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
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
from zart.client.pausing import Pausing
from zart.client.pruning import prune
from zart.client.repairing import Repairs
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
from zart.state import Execution, History, PauseRule, Pruned, Rerun, Run, Stats, WorkerStatus

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
        self._repairs = Repairs(self._database, author)
        self._pausing = Pausing(self._database, author)

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
        payloads = self._database.payloads
        wanted = make_start(target, data, id=_own_id(fn, id), delay=delay, at=at, payloads=payloads)
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
        wanted = make_start(target, data, id=_own_id(fn, id), payloads=self._database.payloads)
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
        return read_outcome(outcome, codec, self._database.payloads)

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
        offer = make_offer(execution_id, event, payload, dedup, self._database.payloads)
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

    async def workers(self) -> list[WorkerStatus]:
        """The workers whose lease stands, and those that have died and whose work nobody has taken over so far."""
        refuse_in_body("Client.workers")
        return await self._lookout.workers()

    # ------------------------------------------------------------ retention

    async def prune(
        self,
        *,
        older_than: Duration,
        statuses: Collection[str] | None = None,
        keep_ids: Duration | None = None,
        dry_run: bool = False,
        batch: int = 500,
        on_batch: Callable[[Pruned], None] | None = None,
    ) -> Pruned:
        """Take away executions that ended longer than `older_than` ago, with all that belongs to them; of these
        `statuses`, unless it is all three.

        With `keep_ids` the ids stay until they are as old as that, so that a start which is sent again finds its
        execution and nothing runs twice; `result()` raises ExecutionPruned. Without it an id is free again. Nothing is
        changed in a `dry_run`, which tells what would go.

        It goes in batches, each of them a short transaction that looks at `batch` executions (1 to 1000); `on_batch` is
        told the sum so far after each. Ended in the middle it has pruned so much, and calling it again goes on; any
        number may prune at once. Raises UsageError.
        """
        refuse_in_body("Client.prune")
        return await prune(
            self._database,
            older_than=older_than,
            statuses=statuses,
            keep_ids=keep_ids,
            dry_run=dry_run,
            batch=batch,
            on_batch=on_batch,
        )

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

    # ------------------------------------------------------------ repair

    async def runs(self, id: str, /) -> list[Run]:
        """The runs of an execution that are kept, the oldest first; the last is the one that is on, or was. Raises
        ExecutionNotFound.
        """
        refuse_in_body("Client.runs")
        return await self._lookout.runs(check_known_id(id))

    async def retry_step(self, id: str, key: str, /, *, reason: str | None = None) -> bool:
        """Have a step that failed for good tried again, in the run that is on or was the last, with all its retries;
        False when no call of that key has failed.

        `key` is as `zart show` prints it. The body runs again, completed steps are kept, and what stood in the way is
        set aside: whatever else left the body with the failure, and what `on_failure` did. A step that runs at this
        moment is let finish. Also for a scheduled step and for a child (which begins anew, under another id). Raises
        ExecutionNotFound, ExecutionPruned, ExecutionFinished when the run was completed or cancelled, UsageError for an
        unknown key.
        """
        refuse_in_body("Client.retry_step")
        asked = await self._repairs.retry_step(check_known_id(id), key, reason)
        if asked:
            await self._announce()
        return asked

    async def restart(self, id: str, data: Any = NOT_GIVEN, /, *, reason: str | None = None) -> str:
        """Begin the execution again, in any state, as a run with a history of its own; returns that run's id.

        It has the input of the run before, or `data`. That run is kept as it stands, and nothing is written into the
        new one by whoever still holds it; its scheduled steps and children are cancelled, unless they are detached.
        Events that nobody has consumed are dropped. Raises ExecutionNotFound, ExecutionPruned, SerializationError.
        """
        refuse_in_body("Client.restart")
        run_id = await self._repairs.restart(check_known_id(id), data, reason)
        await self._announce()
        return run_id

    async def rerun(self, id: str, /, *, steps: Sequence[str], reason: str | None = None) -> Rerun:
        """Begin the execution again, in any state, and keep what is recorded, but for `steps`.

        Each of them is a key as `zart show` prints it; where no call has that key, all calls of that name. Kept are
        results, consumed events and failures that the body has caught; a failure that left the body, a cancel and what
        came after it are not. Kept results are taken though the code may call them with other arguments now: `stale`
        of what is returned names those that came after the first step to be done again. Raises ExecutionNotFound,
        ExecutionPruned, UsageError for a step that is not recorded.
        """
        refuse_in_body("Client.rerun")
        begun = await self._repairs.rerun(check_known_id(id), steps, reason)
        await self._announce()
        return begun

    async def delete(self, id: str, /, *, reason: str | None = None) -> bool:
        """Delete an execution that has ended, with its history; that it was deleted is kept. Its children stay.

        Its id is free then. Raises ExecutionNotFound, UsageError when it has not ended.
        """
        refuse_in_body("Client.delete")
        return await self._repairs.delete(check_known_id(id), reason)

    # ------------------------------------------------------------ pausing

    async def pause(
        self,
        id: str | None = None,
        /,
        *,
        name: str | None = None,
        step: str | None = None,
        reason: str | None = None,
        expires: Duration | dt.datetime | None = None,
    ) -> str:
        """Hold back an execution, all of a durable function, or steps; returns the id of the rule.

        `step` is a pattern over the names of steps, such as "charge*"; with an id or `name` it holds back those
        of that execution, or of that function. What runs finishes its step, and is `paused` before the next
        one; what is being cancelled goes on to its end. The rule holds until `unpause`, or until it `expires`,
        after a length of time or at a time. Raises UsageError, ExecutionNotFound, ExecutionFinished.
        """
        refuse_in_body("Client.pause")
        rule = await self._pausing.pause(id, name=name, step=step, reason=reason, expires=expires)
        await self._announce()
        return rule

    async def unpause(self, rule: str, /, *, reason: str | None = None) -> bool:
        """End a rule; False when there is none of this id any more. What it held goes on, unless another rule
        holds it back, too.
        """
        refuse_in_body("Client.unpause")
        ended = await self._pausing.unpause(rule, reason)
        if ended:
            await self._announce()
        return ended

    async def pauses(self) -> list[PauseRule]:
        """The rules that hold executions back now, the oldest first."""
        refuse_in_body("Client.pauses")
        return await self._pausing.pauses()


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
