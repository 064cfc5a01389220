"""The real side: the same statements as those of `World`, sent by the classes of the engine and of the client.

Every method has the name and the arguments of one of the world's, and answers in its words. Durable time is a row of a
table here, which a test moves; leases are run out by hand, since no test waits for the real clock.
"""

import asyncio
import datetime as dt
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, TypeVar
from uuid import UUID

import psycopg
from psycopg import AsyncConnection, errors

from tests.model.world import FINAL, Key, Run, World, told
from tests.support import modes
from tests.support.claims import first_claim
from zart import Client, durable
from zart._engine.claimer import Claimer
from zart._engine.entries import (
    Blocked,
    BodyRetry,
    Cancelled,
    Change,
    Claim,
    Completed,
    Ending,
    Entry,
    Failed,
    FailedAttempt,
    Lost,
    Paused,
    Released,
    StoredEvent,
    Suspended,
)
from zart._engine.entries import Key as EntryKey
from zart._engine.folding import Batch
from zart._engine.lease import Lease, resolve_lanes
from zart._engine.pauses import Rules
from zart._engine.reaper import reap
from zart._engine.writer import Journal
from zart.client.database import Database, Transaction, statement_text
from zart.client.pausing import Pausing
from zart.client.repairing import Repairs
from zart.client.starter import Starter
from zart.client.starting import NOT_GIVEN
from zart.client.steering import Steering
from zart.errors import ExecutionConflict, ExecutionFinished, ExecutionNotFound, UsageError

T = TypeVar("T")
EPOCH = dt.datetime(2040, 1, 1, tzinfo=dt.UTC)
_FAILURE = b'{"type": "ValueError", "message": "no"}'
_CLOCK = """
CREATE TABLE IF NOT EXISTS test_clock (at timestamptz NOT NULL);
INSERT INTO test_clock VALUES ('2040-01-01 00:00:00+00');
CREATE OR REPLACE FUNCTION zart_now() RETURNS timestamptz LANGUAGE sql STABLE
    AS 'SELECT c.at FROM public.test_clock c';
"""
_TABLES = (
    *("zart_executions", "zart_tasks", "zart_steps", "zart_step_attempts", "zart_events", "zart_wakeups"),
    *("zart_execution_runs", "zart_workers", "zart_history", "zart_pause_rules"),
)
_SNAPSHOT = (
    """SELECT e.id, e.status, e.payload::text, v.started_at, e.finished_at IS NOT NULL, e.result IS NOT NULL,
        e.failure IS NOT NULL, e.run_id, e.task_id, v.status, v.cancelling
    FROM zart_executions e JOIN zart_v_executions v USING (id)""",
    """SELECT t.execution_id, t.state, t.due_at, t.wake_at, t.started_at, t.not_before, t.owner, t.epoch, t.signal,
        t.attempt, t.floor, t.recoveries, t.accept_arguments, t.cancel_at IS NOT NULL, t.cancel_reason, t.repair,
        t.run_id, t.id, CASE WHEN t.state = 'paused' THEN t.paused_by END
    FROM zart_tasks t""",
    """SELECT s.run_id, s.name, s.occurrence, s.kind, s.state, s.seq, s.attempts, s.result IS NOT NULL,
        s.failure IS NOT NULL
    FROM zart_steps s""",
    "SELECT a.run_id, count(*) FROM zart_step_attempts a GROUP BY 1",
    "SELECT v.execution_id, v.id, v.name, v.dedup, v.consumed_at IS NOT NULL FROM zart_events v ORDER BY v.id",
    "SELECT w.task_id, w.kind, w.reason FROM zart_wakeups w ORDER BY w.id",
    "SELECT w.worker_id, count(*) FROM zart_workers w GROUP BY 1",
    "SELECT h.execution_id, h.what, count(*) FROM zart_history h GROUP BY 1, 2",
    """SELECT r.execution_id, r.run_id, r.payload::text, r.status, r.ended_at IS NOT NULL, r.result IS NOT NULL,
        r.failure IS NOT NULL
    FROM zart_execution_runs r""",
    "SELECT r.id, r.execution_id, r.step IS NOT NULL, r.expires_at FROM zart_pause_rules r",
)


@durable("f")
async def f(data: int) -> int:
    return data


def at(seconds: int | None) -> dt.datetime | None:
    return None if seconds is None else EPOCH + dt.timedelta(seconds=seconds)


def seconds(moment: dt.datetime | None) -> int | None:
    return None if moment is None else round((moment - EPOCH).total_seconds())


class OneConnection(Database):
    """A client's database with a connection that the test may put into a transaction."""

    def __init__(self, dsn: str, connection: AsyncConnection[Any]) -> None:
        super().__init__(dsn, "public")
        self.connection = connection

    async def _send(self, statement: str, parameters: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        cursor = await self.connection.execute(statement_text(self.schema, statement), parameters)
        return await cursor.fetchall()

    async def _transact(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        async with self.connection.transaction():
            return await work(Transaction(self.connection, self.schema))


class Desk:
    """What a program that uses Zart does, through one connection."""

    def __init__(self, dsn: str, connection: AsyncConnection[Any]) -> None:
        self.connection = connection
        database = OneConnection(dsn, connection)
        self.client = Client(dsn)
        self.client._database = database
        self.client._starter = Starter(database)
        self.steering = Steering(database, "ann")
        self.pausing = Pausing(database, "ann")
        self.repairs = Repairs(database, "ann")


class Activity:
    """What a worker knows of an execution that it holds, as an activation would."""

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.signal = claim.signal
        self.seq = max((entry.seq or 0 for entry in claim.entries), default=0)
        self.clears = claim.recoveries > 0
        self.events: dict[float, StoredEvent] = {}
        self.attempts = {entry.key: (entry.state, entry.attempts) for entry in claim.entries}

    def next_seq(self) -> int:
        self.seq += 1
        return self.seq

    def first(self) -> bool:
        """Whether this is the first record since a takeover."""
        clears, self.clears = self.clears, False
        return clears


class Hand:
    """A worker: its lease, its claimer, its journal, and what it knows of its holds."""

    def __init__(self, lease: Lease, claimer: Claimer, journal: Journal) -> None:
        self.lease = lease
        self.claimer = claimer
        self.journal = journal
        self.holds: dict[str, Activity] = {}
        self.sent: Batch | None = None
        """What the journal has sent last."""
        self.running = asyncio.create_task(journal.run())
        self.sender = journal._lane.sender
        write = self.sender._write

        async def remember(direct: Any, part: Batch) -> Any:
            self.sent = part
            return await write(direct, part)

        self.sender._write = remember  # type: ignore[method-assign]
        self.write_again = write

    async def close(self) -> None:
        await self.journal.close()
        await self.running
        await self.claimer.close()


class Stage:
    """A database, and everybody who works on it. One for all examples: `reset` between them."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.runner = asyncio.Runner()
        self.hands: dict[str, Hand] = {}
        self.world = World()
        """The model that goes along: for the numbers that both sides give to things."""
        self.steps = self.examples = 0
        self.task_ids: dict[str, int] = {}
        self.run_ids: dict[str, UUID] = {}
        self.rule_ids: dict[str, str] = {}
        """The ids of rules, by what the model calls them."""
        self.runs: dict[str, set[UUID]] = {}
        """All that were seen under an id."""
        self.tasks: dict[int, str] = {}
        """All numbers of live work that were seen, and whose it was."""
        self.did: Counter[str] = Counter()
        """What was done how often."""
        self.run(self._open())

    def run(self, work: Awaitable[Any]) -> Any:
        """Bounded: a statement that waits for a lock which nobody will give up is an error of its own."""

        async def bounded() -> Any:
            async with asyncio.timeout(10):
                return await work

        return self.runner.run(bounded())

    async def _open(self) -> None:
        self.connections = [await self._dial() for _ in range(5)]
        self.eyes, self.watcher, self.user, first, second = self.connections
        self.desks = [Desk(self.dsn, first), Desk(self.dsn, second)]
        self.desk = self.desks[0]
        await self.eyes.execute(_CLOCK)
        self.reaper = await self._dial()
        self.lanes = list(await resolve_lanes(self.eyes, "public", [("default", "f", None)]))

    async def _dial(self) -> AsyncConnection[Any]:
        return await AsyncConnection.connect(
            self.dsn, autocommit=True, prepare_threshold=modes.prepare_after()
        )

    def reset(self, world: World) -> None:
        self.examples += 1
        self.run(self._reset())
        self.world = world

    async def _reset(self) -> None:
        await self.user.rollback()
        self.rule_ids = {}
        for hand in self.hands.values():
            await hand.close()
        self.hands, self.runs, self.tasks = {}, {}, {}
        for table in _TABLES:
            await self.eyes.execute(f"DELETE FROM {table}".encode())
        await self.move(0)

    def close(self) -> None:
        async def close() -> None:
            for hand in self.hands.values():
                await hand.close()
            for connection in (*self.connections, self.reaper):
                await connection.close()

        self.run(close())
        self.runner.close()

    async def move(self, now: int) -> None:
        await self.eyes.execute("UPDATE test_clock SET at = %s", (at(now),))

    # ------------------------------------------------------------ from outside

    async def start(self, id: str, payload: int, delay: int, existing: Any = "raise") -> str:
        try:
            handle = await self.desk.client.start(
                f, payload, id=id, delay=delay or None, on_conflict=existing
            )
        except ExecutionConflict:
            return "conflict"
        return "created" if handle.created else "existing"

    async def start_many(self, ids: Collection[str], payload: int) -> dict[str, bool] | str:
        try:
            handles = await self.desk.client.start_many(f, dict.fromkeys(ids, payload))
        except ExecutionConflict:
            return "conflict"
        return {handle.id: handle.created for handle in sorted(handles, key=lambda handle: handle.id)}

    async def offer(self, id: str, name: str, dedup: str | None) -> bool | str:
        try:
            return await self.desk.client.offer_event(id, name, 1, dedup=dedup)
        except ExecutionNotFound:
            return "unknown"
        except ExecutionFinished:
            return "finished"

    async def cancel(self, id: str, reason: str, force: bool) -> bool | str:
        try:
            return (await self.desk.steering.cancel(id, reason, force=force)).changed
        except ExecutionNotFound:
            return "unknown"

    async def resume(self, id: str, accepts: bool) -> bool | str:
        try:
            return await self.desk.steering.resume(id, None, accept_arguments=accepts)
        except ExecutionNotFound:
            return "unknown"

    async def pause(self, rule: str, id: str | None, step: bool, lasts: int | None) -> bool | str:
        given = {"name": "f" if id is None else None, "step": "*" if step else None}
        try:
            made = await self.desk.pausing.pause(id, **given, reason=None, expires=lasts)
        except ExecutionNotFound:
            return "unknown"
        except ExecutionFinished:
            return "finished"
        self.rule_ids[rule] = made
        return True

    async def unpause(self, rule: str) -> bool:
        return await self.desk.pausing.unpause(self.rule_ids.get(rule, rule), None)

    async def restart(self, id: str, payload: int | None) -> str:
        data = NOT_GIVEN if payload is None else payload
        return await self._repaired(self.desk.repairs.restart(id, data, None))

    async def rerun(self, id: str, key: Key) -> str:
        return await self._repaired(self.desk.repairs.rerun(id, [told(key)], None))

    async def _repaired(self, begun: Awaitable[object]) -> str:
        try:
            await begun
        except ExecutionNotFound:
            return "unknown"
        except UsageError:
            return "no such record"
        return "begun"

    async def retry_step(self, id: str, key: Key) -> bool | str:
        try:
            return await self.desk.repairs.retry_step(id, told(key), None)
        except ExecutionNotFound:
            return "unknown"
        except ExecutionFinished:
            return "finished"
        except UsageError:
            return "no such record"

    async def delete(self, id: str) -> bool | str:
        try:
            return await self.desk.repairs.delete(id, None)
        except ExecutionNotFound:
            return "unknown"
        except UsageError:
            return "live"

    async def sql_start(self, id: str, payload: int, delay: int) -> str:
        before = id in self.world.executions or id in self.world.open_ids
        run_at = EPOCH + dt.timedelta(seconds=self.world.now + delay) if delay else None
        told = await self._call(
            "SELECT zart_start('f', id => %s, payload => %s::text::jsonb, run_at => %s)",
            id,
            str(payload),
            run_at,
        )
        return told if told != id else "existing" if before else "created"

    async def sql_offer(self, id: str, name: str, dedup: str | None) -> bool | str:
        return await self._call("SELECT zart_offer_event(%s, %s, '1', %s)", id, name, dedup)

    async def sql_cancel(self, id: str, reason: str) -> bool | str:
        return await self._call("SELECT zart_cancel(%s, %s)", id, reason)

    async def _call(self, query: str, *arguments: Any) -> Any:
        try:
            async with self.user.transaction():  # a savepoint where a transaction is open
                ((told,),) = await (await self.user.execute(query.encode(), arguments)).fetchall()
        except errors.NoDataFound:
            return "unknown"
        except errors.ObjectNotInPrerequisiteState:
            return "finished"
        except errors.UniqueViolation:
            return "conflict"
        return told

    # ------------------------------------------------------------ a worker's claims

    async def register(self, worker: str) -> None:
        lease = await Lease.register(
            self._dial, "public", lanes=self.lanes, orphan_timeout=dt.timedelta(hours=1)
        )
        rules = Rules(self.lanes, dict.fromkeys(self.lanes, "f"))
        claimer = Claimer(self._dial, "public", lease.worker_id, self.lanes, rules=rules)
        journal = Journal(
            self._dial,
            "public",
            lease.worker_id,
            on_now=lambda _: None,
            on_fenced=lambda: None,
            on_schema_error=self._broken,
        )
        self.hands[worker] = Hand(lease, claimer, journal)

    def _broken(self, error: Exception) -> None:
        raise error

    def keep(self, worker: str, claim: Claim) -> dict[str, Any]:
        """What a claim has brought."""
        hand = self.hands[worker]
        hand.holds[claim.execution_id] = Activity(claim)
        assert claim.registration == hand.lease.worker_id
        assert claim.entries == sorted(
            claim.entries, key=lambda entry: (entry.seq is None, entry.seq or 0)
        ), "the history is not in the order of the log"
        return {
            "epoch": claim.epoch,
            "signal": claim.signal,
            "attempt": claim.attempt,
            "floor": claim.floor,
            "recoveries": claim.recoveries,
            "cancel": claim.cancel.reason if claim.cancel is not None else None,
            "accepts": claim.accept_arguments,
            "payload": int(claim.payload or "0"),
            "repair": _keys(json.loads(claim.repair or "[]")),
            "events": self._learn(worker, claim.execution_id, claim.events),
            "records": {
                (entry.key.name, entry.key.occurrence, entry.key.kind): (
                    entry.state,
                    entry.seq,
                    entry.attempts,
                )
                for entry in claim.entries
            },
        }

    def forge(self, worker: str, id: str) -> None:
        """Has a worker believe that it holds what it never claimed."""
        claim = first_claim(
            id,
            self.run_ids[id],
            EPOCH,
            task_id=self.task_ids[id],
            lane=self.lanes[0],
            epoch=0,
            registration=self.hands[worker].lease.worker_id,
        )
        self.hands[worker].holds[id] = Activity(claim)

    def _learn(self, worker: str, id: str, events: list[StoredEvent]) -> list[float]:
        numbers = self.event_numbers(id)
        known = {numbers[event.id]: event for event in events}
        self.hands[worker].holds[id].events |= known
        return list(known)

    def event_numbers(self, id: str) -> dict[int, float]:
        """From an event's id to its number in the world, where both count up."""
        return self._numbers[id]

    async def look_up_events(self) -> None:
        cursor = await self.eyes.execute("SELECT execution_id, id FROM zart_events ORDER BY id")
        ids: dict[str, list[int]] = {}
        for execution, event in await cursor.fetchall():
            ids.setdefault(execution, []).append(event)
        self._numbers = {
            id: dict(zip(ids.get(id, []), (event.number for event in execution.events), strict=True))
            for id, execution in self.world.executions.items()
        }

    async def tick(self, worker: str, limit: int, suspect: bool, watched: Collection[str]) -> dict[str, Any]:
        await self.look_up_events()
        hand = self.hands[worker]
        tasks = {hand.holds[id].claim.task_id: id for id in watched}
        watching = [
            (task, hand.holds[id].claim.epoch, hand.holds[id].signal, hand.holds[id].claim.done)
            for task, id in tasks.items()
        ]
        tick = await hand.claimer.tick(limit=limit, suspect=suspect, watching=watching)
        news: dict[str, Any] = {}
        for each in tick.news:
            id = tasks[each.task_id]
            if each.lost:
                news[id] = "lost"
            else:
                hand.holds[id].signal = each.signal
                told = self._learn(worker, id, each.events)
                cancel = each.cancel.reason if each.cancel is not None else None
                news[id] = (each.signal, cancel, told, each.repair)
        return {
            "fenced": tick.fenced,
            "claims": {claim.execution_id: self.keep(worker, claim) for claim in tick.claims},
            "news": news,
            "due": self._later(tick.next_due),
        }

    def _later(self, due: dt.datetime | None) -> int | None:
        """When the next sleeper is due, if that is not now."""
        told = seconds(due)
        return told if told is not None and told > self.world.now else None

    async def expire(self, worker: str) -> None:
        """The lease runs out: the worker was not heard of for too long."""
        await self.eyes.execute(
            "UPDATE zart_workers SET expires_at = clock_timestamp() - interval '1s' WHERE worker_id = %s",
            (self.hands[worker].lease.worker_id,),
        )

    def beat(self, worker: str) -> bool:
        """A heartbeat, on a connection of its own."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            return self.hands[worker].lease.beat(connection)

    async def leave(self, worker: str) -> None:
        await self.hands[worker].lease.close(self._dial)

    async def reap(self) -> list[str]:
        return sorted(await reap(self.reaper, "public"))

    # ------------------------------------------------------------ a worker's journal

    async def together(self, worker: str, operations: list[tuple[str, tuple[Any, ...]]]) -> list[str]:
        """Hands several records over at once: the journal sends them in one batch."""
        verdicts = [getattr(self, "_" + name)(worker, *arguments) for name, arguments in operations]
        return [await verdict for verdict in verdicts]

    def _record(self, worker: str, id: str, key: Key, state: str) -> Any:
        mine = self.hands[worker].holds[id]
        place = EntryKey("", *key)  # type: ignore[arg-type]
        was, attempts = mine.attempts.get(place, ("", 0))
        if was in ("", "waiting"):
            attempts += 1
        now = at(self.world.now) or EPOCH
        failed = None
        if state == "failed attempt":
            failed = FailedAttempt(place, attempts, mine.claim.attempt, _FAILURE, now, now, now)
            state = "waiting"
        mine.attempts[place] = state, attempts
        entry = Entry(
            run_id=mine.claim.run_id,
            key=place,
            state=state,  # type: ignore[arg-type]
            done=None,
            seq=mine.next_seq() if state in FINAL else None,
            result=b"1" if state == "completed" else None,
            failure=_FAILURE if state == "failed" else None,
            attempts=attempts,
            started_at=now,
            finished_at=now if state in FINAL else None,
            until=now if state == "waiting" else None,
            task_id=mine.claim.task_id,
            failed_attempt=failed,
            clears_recoveries=state != "running" and mine.first(),
        )
        return self._write(worker, entry)

    def _consume(self, worker: str, id: str, number: float, occurrence: int) -> Any:
        mine = self.hands[worker].holds[id]
        event = mine.events[number]
        entry = Entry(
            run_id=mine.claim.run_id,
            key=EntryKey("", event.name, occurrence, "wait"),
            state="completed",
            done=None,
            seq=mine.next_seq(),
            result=(event.payload or "null").encode(),
            started_at=at(self.world.now),
            finished_at=at(self.world.now),
            task_id=mine.claim.task_id,
            event_id=event.id,
            clears_recoveries=mine.first(),
        )
        return self._write(worker, entry)

    def _write(self, worker: str, entry: Entry) -> Any:
        verdict, entry.done = _verdict()
        self.hands[worker].journal.write(entry)
        return verdict

    def _suspend(self, worker: str, id: str, wake_at: int | None) -> Any:
        seen = self.hands[worker].holds[id].signal
        return self._close(worker, id, Suspended(seen=seen, wake_at=at(wake_at), waiting_for="news"))

    def _retry(self, worker: str, id: str, delay: int, afresh: Collection[Key], meets: bool = False) -> Any:
        now = at(self.world.now) or EPOCH
        mine = self.hands[worker].holds[id]
        moved = tuple(
            FailedAttempt(EntryKey("", *key), 1, mine.claim.attempt, _FAILURE, now, now, None)  # type: ignore[arg-type]
            for key in afresh
        )
        due = now + dt.timedelta(seconds=delay)
        ending = BodyRetry(
            attempt=mine.claim.attempt + 1,
            not_before=due,
            floor=mine.seq,
            afresh=moved,
            met=mine.claim.signal if meets else None,
        )
        return self._close(worker, id, ending, notes=(("retry", "again"),))

    def _block(self, worker: str, id: str) -> Any:
        return self._close(worker, id, Blocked(failure=_FAILURE, what="non-determinism"))

    def _release(self, worker: str, id: str) -> Any:
        return self._close(worker, id, Released())

    def _park(self, worker: str, id: str, rule: str) -> Any:
        return self._close(worker, id, Paused(rule=self.rule_ids.get(rule, rule)))

    def _end(self, worker: str, id: str, status: str) -> Any:
        endings: dict[str, Ending] = {
            "completed": Completed(result=b"1"),
            "failed": Failed(failure=_FAILURE),
            "cancelled": Cancelled(failure=_FAILURE),
        }
        return self._close(worker, id, endings[status])

    def _close(self, worker: str, id: str, ending: Ending, **fields: Any) -> Any:
        claim = self.hands[worker].holds[id].claim
        verdict, done = _verdict()
        self.hands[worker].journal.end(
            Change(
                task_id=claim.task_id,
                execution_id=id,
                run_id=claim.run_id,
                epoch=claim.epoch,
                ending=ending,
                done=done,
                **fields,
            )
        )
        return verdict

    async def again(self, worker: str) -> None:
        """Sends once more what the journal has sent last, as after a connection that was lost with the answer."""
        hand = self.hands[worker]
        assert hand.sent is not None
        await hand.journal.drain()  # it may still announce
        await hand.write_again(await hand.sender._line.open(), hand.sent)

    # ------------------------------------------------------------ looking

    async def place_of(self, id: str, dedup: str | None) -> int:
        """How many events of this execution come before the one with this key."""
        query = """SELECT count(*) FROM zart_events v WHERE v.execution_id = %(id)s AND v.id <
            (SELECT k.id FROM zart_events k WHERE k.execution_id = %(id)s AND k.dedup = %(dedup)s)"""
        ((place,),) = await (await self.eyes.execute(query, {"id": id, "dedup": dedup})).fetchall()
        return int(place)

    async def until_waiting(self, work: "asyncio.Future[Any]") -> None:
        """Until this waits for a lock, as nothing else does now, or has ended.

        Behind a pooler nobody can tell by which session it waits.
        """
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        while not work.done():
            await asyncio.sleep(0)
            if (await (await self.watcher.execute(query)).fetchone()) != (0,):
                return

    def look(self) -> dict[str, Any]:
        return self.run(self._look())

    async def _look(self) -> dict[str, Any]:
        async with self.eyes.pipeline():
            cursors = [await self.eyes.execute(query.encode()) for query in _SNAPSHOT]
        answers = [await cursor.fetchall() for cursor in cursors]
        self.task_ids = {row[0]: row[8] for row in answers[0]}
        self.run_ids = {row[0]: row[7] for row in answers[0]}
        rules = {made: name for name, made in self.rule_ids.items()}
        for id, run in (*self.run_ids.items(), *(row[:2] for row in answers[8])):
            self.runs.setdefault(id, set()).add(run)
        self.tasks |= {task: id for id, task in self.task_ids.items()}
        names = {hand.lease.worker_id: name for name, hand in self.hands.items()}
        # An id of a run begins with the time.
        labels = {
            run: f"{id}/{number}"
            for id, runs in self.runs.items()
            for number, run in enumerate(sorted(runs), start=1)
        }
        return _shape(answers, names, labels, self.tasks, rules)


def _verdict() -> tuple["asyncio.Future[str]", Callable[[Any, Exception | None], None]]:
    verdict: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def done(_: Any, error: Exception | None) -> None:
        if error is None:
            verdict.set_result("stored")
        elif isinstance(error, Lost):
            verdict.set_result("lost")
        else:
            verdict.set_exception(error)

    return verdict, done


def _keys(repair: list[list[Any]] | None) -> tuple[Key, ...]:
    return tuple((name, occurrence, kind) for _, name, occurrence, kind in repair or ())


def _shape(
    answers: list[list[Any]],
    names: dict[int, str],
    labels: dict[UUID, str],
    owners: dict[int, str],
    rules: dict[str, str],
) -> dict[str, Any]:
    """The tables, in the shape of `expected`."""
    executions, tasks, steps, attempts, events, wakeups, workers, notes, kept, made = answers
    shaped: dict[str, Any] = {}
    current: dict[UUID, str] = {}
    numbers: dict[int, str] = {}
    runs: dict[str, dict[str, Any]] = {}
    for id, status, payload, started, finished, result, failure, run, task, shown, cancelling in executions:
        current[run], numbers[task] = id, id
        shaped[id] = {
            "status": status,
            "shown": (shown, cancelling),
            "payload": int(payload),
            "started": seconds(started),
            "ended": (finished, result, failure),
            "task": None,
            "run": labels[run],
            "runs": {},
            "events": [],
            "notes": Counter(),
        }
        runs[labels[run]] = {"records": {}, "attempts": 0}
    for (
        id,
        state,
        due,
        wake,
        started,
        before,
        owner,
        *counters,
        cancelled,
        reason,
        repair,
        run,
        task,
        rule,
    ) in tasks:
        assert current[run] == numbers[task] == id, "a task belongs to another run or execution"
        assert shaped[id]["task"] is None, "an execution has two tasks"
        shaped[id]["task"] = {
            "state": state,
            "due": seconds(due),
            "wake": seconds(wake) if state == "waiting" else None,
            "started": seconds(started),
            "before": seconds(before),
            "owner": None if owner is None else names[owner],
            "counters": tuple(counters),
            "cancel": reason if cancelled else None,
            "repair": _keys(repair),
            "paused by": rules.get(rule, rule),
        }
    for id, run, payload, status, ended, result, failure in kept:
        assert ended == (run not in current), "only the last run has not ended"
        shaped[id]["runs"][labels[run]] = (
            None if payload is None else int(payload),
            (status, result, failure) if ended else None,
        )
    for run, name, occurrence, kind, state, seq, tries, result, failure in steps:
        assert (result, failure) == (state == "completed", state == "failed"), (name, state)
        place = runs.setdefault(labels[run], {"records": {}, "attempts": 0})
        place["records"][name, occurrence, kind] = (state, seq, tries)
    for run, count in attempts:
        runs.setdefault(labels[run], {"records": {}, "attempts": 0})["attempts"] = count
    for id, _, name, dedup, consumed in events:
        shown_key = None if dedup is None or dedup.startswith("~") else dedup
        shaped[id]["events"].append((name, shown_key, consumed))
    deleted: dict[str, Counter[str]] = {}
    for id, what, count in notes:
        (shaped[id]["notes"] if id in shaped else deleted.setdefault(id, Counter()))[what] = count
    return {
        "executions": shaped,
        "records": runs,
        "deleted": deleted,
        "wakeups": Counter((owners[task], task in numbers, kind, reason) for task, kind, reason in wakeups),
        "workers": {names[worker]: count for worker, count in workers},
        "rules": {rules.get(rule, rule): (id, step, seconds(expires)) for rule, id, step, expires in made},
    }


def expected(world: World) -> dict[str, Any]:
    """What the tables should hold."""
    last = {execution.last for execution in world.executions.values()}
    runs = [run for execution in world.executions.values() for run in execution.runs]
    current = {execution.run.label for execution in world.executions.values()}
    return {
        "executions": {id: _expected(world, id) for id in world.executions},
        "records": {
            run.label: {
                "records": {key: (r.state, r.seq, r.attempts) for key, r in run.records.items()},
                "attempts": run.attempts,
            }
            for run in (*runs, *world.strays)
            if run.label in current or run.records or run.attempts
        },
        "deleted": world.deleted,
        "wakeups": Counter(
            (wakeup.execution, wakeup.task in last, wakeup.kind, wakeup.reason) for wakeup in world.wakeups
        ),
        "workers": {name: 4 for name, worker in world.workers.items() if worker.registered},
        "rules": {name: (rule.id, rule.step, rule.expires_at) for name, rule in world.rules.items()},
    }


def _expected(world: World, id: str) -> dict[str, Any]:
    execution = world.executions[id]
    task = execution.task
    blocked = task is not None and task.state == "blocked"
    return {
        "status": execution.status,
        "shown": world.shown(id),
        "payload": execution.payload,
        "started": execution.started_at if task is None else task.started_at,
        "ended": (
            task is None,
            execution.status == "completed",
            execution.has_failure or blocked,
        ),
        "task": None
        if task is None
        else {
            "state": task.state,
            "due": task.due_at,
            "wake": task.wake_at if task.state == "waiting" else None,
            "started": task.started_at,
            "before": task.not_before,
            "owner": task.owner,
            "counters": (
                *(task.epoch, task.signal, task.attempt, task.floor, task.recoveries, task.accepts),
            ),
            "cancel": task.cancel,
            "repair": task.repair,
            "paused by": task.paused_by if task.state == "paused" else None,
        },
        "run": execution.run.label,
        "runs": {run.label: _kept(run, first=run is execution.runs[0]) for run in execution.runs}
        if len(execution.runs) > 1
        else {},
        "events": [(event.name, event.dedup, event.consumed) for event in execution.events],
        "notes": execution.notes,
    }


def _kept(run: Run, *, first: bool) -> tuple[int | None, tuple[str, bool, bool] | None]:
    """A row of the runs that are kept. The input of the first one is that of the execution."""
    return None if first else run.payload, run.ended
