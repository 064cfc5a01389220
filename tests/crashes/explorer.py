"""Runs one workflow under one plan of faults, and judges what came of it.

A plan says what happens to the first worker, to the one that goes on after it, and so on; behind the last of them comes
one to which nothing happens. Each is a process of its own, and each fault happens exactly where the plan says.

    run = await Explorer(...).run(WORKFLOWS["gather"], plan("kill@journal.record.sent#2", "kill@takeover.begin#1"))

What must hold in the end, whatever the plan:

- the execution has ended as the workflow says, and nothing of it is left among the live work;
- each call has one record, which is final; the records are those of a run without faults, numbered without a gap;
- the runs that somebody has replaced are there, as many as it should be, and nothing of them is under way;
- each effect has happened at least once, and none again after the record of its call was committed;
- no worker that has died or left has rows or owns anything, and the history tells of no more than the takeovers.
"""

import asyncio
import contextlib
import hashlib
import itertools
import os
import signal
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

import zart
from tests.crashes.effects import Effect, effects
from tests.crashes.faults import STANDING, Fault, Faults, parse
from tests.crashes.nursery import Life, Nursery
from tests.crashes.workflow import Workflow
from zart._engine.reaper import reap

PATIENCE = 60.0
"""Seconds after which a run is stuck."""
_NEWS_WITHIN = 1.0
"""Seconds after which what comes from outside comes at its own time, since the plan's point is not reached."""
_HEARD_WITHIN = 1.0
"""Seconds for a worker that was taken for dead to find that out, once it goes on."""

Plan = tuple[Faults, ...]
Call = tuple[str, str, int, str]
"""Path, name, occurrence and kind: the identity of a call."""


def plan(*workers: str) -> Plan:
    return tuple(parse(worker) for worker in workers)


_AGAIN = 5.0
"""Seconds until a worker that does not stop is told once more: longer than its own `shutdown_timeout`."""
_FAMILY = "split_part(e.id, '~', 1) = %s"
"""The execution, its children and theirs."""


class _Stuck(Exception):
    pass


@dataclass
class Run:
    """What came of it."""

    workflow: Workflow
    plan: Plan
    problems: list[str] = field(default_factory=list)
    reached: bool = False
    """Whether every fault of the plan has happened."""
    traces: list[list[str]] = field(default_factory=list)
    """The points that each worker reached, as POINT#NUMBER."""
    happened_at: int = 0
    """How many points the first worker had reached when the first thing happened from outside."""
    calls: frozenset[tuple[Call, str]] = frozenset()
    """The records: calls and states."""
    seconds: float = 0.0
    directory: Path = Path()


class Explorer:
    """Runs plans on one database, one after the other."""

    def __init__(self, dsn: str, nursery: Nursery, directory: Path) -> None:
        self._dsn = dsn
        self._nursery = nursery
        self._directory = directory
        self._numbers = iter(range(1, 1_000_000))
        self._shifted = 0.0

    async def __aenter__(self) -> "Explorer":
        async with contextlib.AsyncExitStack() as stack:
            self._client = await stack.enter_async_context(zart.Client(self._dsn))
            self._database = await psycopg.AsyncConnection.connect(self._dsn, autocommit=True)
            stack.push_async_callback(self._database.close)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def run(self, workflow: Workflow, planned: Plan = (), baseline: Run | None = None) -> Run:
        """`baseline` is a run without faults: the records must be the same."""
        number = next(self._numbers)
        directory = self._directory / f"{os.getpid()}-{number}-{workflow.name}"
        directory.mkdir(parents=True)
        run = Run(workflow, planned, directory=directory)
        begun = time.monotonic()
        course = _Course(self, run, f"{workflow.name}-{number}-{uuid.uuid4().hex[:6]}")
        try:
            async with asyncio.timeout(PATIENCE):
                await course.go()
        except (_Stuck, TimeoutError) as stuck:
            run.problems.append(str(stuck) or f"it has not ended within {PATIENCE} s")
            run.problems += await course.scene()
        finally:
            await course.clear()
        run.traces = [_lines(path) for path in course.trace_files]
        run.reached = all(
            f"{fault.point}#{fault.occurrence}" in trace
            for faults, trace in zip(planned, run.traces, strict=False)
            for fault in faults
        ) and len(run.traces) >= len(planned)
        if not run.problems:
            run.problems += await course.judge(baseline)
        run.seconds = time.monotonic() - begun
        return run


class _Course:
    """One run, on its way."""

    def __init__(self, explorer: Explorer, run: Run, id: str) -> None:
        self._explorer = explorer
        self._client = explorer._client
        self._database = explorer._database
        self._run = run
        self._workflow = run.workflow
        self._id = id
        self._lives: list[Life] = []
        self._frozen: list[Life] = []
        self._frozen_at: dict[int, int] = {}
        """How many effects there were when a process was stopped."""
        self._buried: list[int] = []
        self._news = asyncio.Event()
        self._news_done = asyncio.Event()
        self._outside: asyncio.Task[None] | None = None
        self._committed: list[tuple[int, set[str]]] = []
        """At each death: how many effects there were, and the calls whose record was committed."""
        self.trace_files: list[Path] = []

    @property
    def _has_news(self) -> bool:
        return any(fault.kind == "news" for faults in self._run.plan for fault in faults)

    @property
    def _is_tried_again(self) -> bool:
        """A failed call may be tried afresh with the whole body."""
        return self._workflow.durable.spec.retry.retries > 0 or self._workflow.is_repaired

    # ------------------------------------------------------------ the course of it

    async def go(self) -> None:
        await self._workflow.start(self._client, self._id)
        self._outside = asyncio.create_task(self._let_happen())
        ended = asyncio.create_task(self._until_ended())
        try:
            for faults in (*self._run.plan, ()):
                life = await self._fork(faults)
                await self._live(life, faults, ended)
                if ended.done():
                    break
                await self._bury(life)
            ended.result()
            for life in self._frozen:
                await self._thaw(life)
        finally:
            ended.cancel()
            self._outside.cancel()
            await asyncio.wait([ended, self._outside])

    async def _fork(self, faults: Faults) -> Life:
        number = len(self._lives) + 1
        directory = self._run.directory
        trace = directory / f"trace-{number}"
        self.trace_files.append(trace)
        life = await self._explorer._nursery.fork(
            self._explorer._dsn,
            directory,
            faults,
            trace=trace,
            log=directory / f"log-{number}",
            keeps=self._workflow.keeps,
        )
        self._lives.append(life)
        return life

    async def _live(self, life: Life, faults: Faults, ended: "asyncio.Task[None]") -> None:
        """Until the worker has ended or is frozen, or the execution has ended, and the worker after it."""
        kinds = {f"{fault.point}#{fault.occurrence}": fault.kind for fault in faults}
        told_to_stop = False
        while True:
            change = asyncio.create_task(life.change())
            # A signal that comes in the moment in which the worker begins to listen for it may be lost.
            await asyncio.wait(
                [change] if told_to_stop else [change, ended],
                return_when=asyncio.FIRST_COMPLETED,
                timeout=_AGAIN if told_to_stop else None,
            )
            if ended.done() and ended.exception() is not None:
                change.cancel()
                raise _Stuck(str(ended.exception()))
            if change.done():
                if life.exit_code is not None:
                    self._check_exit(life, faults)
                    return
                if why_it_stands(kinds, _lines(self.trace_files[-1])) == "freeze":
                    self._frozen.append(life)
                    self._frozen_at[life.pid] = len(self._effects())
                    return
                self._news.set()
                await self._news_done.wait()
                life.send(signal.SIGCONT)
            else:
                change.cancel()
                told_to_stop = True
                life.send(signal.SIGTERM)

    def _check_exit(self, life: Life, faults: Faults) -> None:
        expected = {0, -signal.SIGKILL} if any(fault.kind == "kill" for fault in faults) else {0}
        if life.exit_code not in expected:
            self._run.problems.append(
                f"worker {len(self._lives)} has ended with exit code {life.exit_code}: see {self._run.directory}"
            )

    async def _bury(self, life: Life) -> None:
        """A worker is no more, or stands still: let the others take it for dead, and note what it has left."""
        self._buried.append(life.pid)
        await self._expire()
        # What somebody wants done again, and what goes with it, is known only to a replay. Asked in one statement: what
        # the dead has sent, and what somebody wants, may be committed just now.
        rows = await self._query(
            "SELECT s.run_id, s.path, s.name, s.occurrence, s.kind, s.state,"
            " EXISTS (SELECT FROM zart_tasks WHERE repair IS NOT NULL)"
            f" FROM zart_steps s JOIN zart_executions e ON e.run_id = s.run_id WHERE {_FAMILY}",
            self._id,
        )
        final = {"completed"} if self._is_tried_again else {"completed", "failed"}
        committed = {
            _idempotency_key(run, (path, name, n, kind))
            for run, path, name, n, kind, state, repaired in rows
            if state in final and not repaired
        }
        self._committed.append((len(self._effects()), committed))

    async def _expire(self) -> None:
        """The leases of the buried end; again and again, since a heartbeat may have been on its way. It locks in the
        order in which they do."""
        await self._query(
            "WITH held AS MATERIALIZED (SELECT worker_id, writer FROM zart_workers"
            " WHERE pid = ANY (%s) AND expires_at > clock_timestamp()"
            " ORDER BY worker_id, writer FOR NO KEY UPDATE)"
            " UPDATE zart_workers w SET expires_at = clock_timestamp() - interval '1s'"
            " FROM held WHERE w.worker_id = held.worker_id AND w.writer = held.writer",
            self._buried,
        )

    async def _thaw(self, life: Life) -> None:
        """It goes on, must find out that it was taken for dead, and may do no harm."""
        trace = self.trace_files[self._lives.index(life)]
        life.send(signal.SIGCONT)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_HEARD_WITHIN):
                while not any(line.startswith("fenced.dropped") for line in _lines(trace)):
                    if life.exit_code is not None:
                        break
                    await asyncio.sleep(0.005)
        life.send(signal.SIGTERM)
        while life.exit_code is None:
            await life.change()
            if life.standing:
                life.send(signal.SIGCONT)

    # ------------------------------------------------------------ from outside

    async def _let_happen(self) -> None:
        if self._has_news:
            await self._let_news_happen()
        elif self._workflow.happens:
            await self._workflow.outside(self._client, self._id, self._run.directory, most=1)
            if self.trace_files and self.trace_files[0].exists():
                self._run.happened_at = len(_lines(self.trace_files[0]))
        await self._workflow.outside(self._client, self._id, self._run.directory, skip=1)

    async def _let_news_happen(self) -> None:
        """The first thing happens when a worker stands still for it; at its own time when none ever does."""
        at_its_time = asyncio.create_task(self._happen_late())
        news = asyncio.create_task(self._news.wait())
        await asyncio.wait([at_its_time, news], return_when=asyncio.FIRST_COMPLETED)
        made = at_its_time.done()
        at_its_time.cancel()
        await asyncio.wait([at_its_time])
        if made:
            at_its_time.result()
        elif self._workflow.happens:
            made = await self._workflow.happen(self._client, self._id, 0)
        else:
            made = True
            with contextlib.suppress(zart.ExecutionFinished):
                await self._client.offer_event(self._id, "nobody-waits-for-this")
        self._news_done.set()
        news.cancel()
        await asyncio.wait([news])
        if not made:  # it came too early for a repair
            await self._workflow.outside(self._client, self._id, self._run.directory, most=1)

    async def _happen_late(self) -> None:
        await asyncio.sleep(_NEWS_WITHIN)
        await self._workflow.outside(self._client, self._id, self._run.directory, most=1)

    async def _until_ended(self) -> None:
        """Until the execution has ended; moves durable time when nothing but time can make it go on."""
        assert self._outside is not None
        for look in itertools.count():
            if self._buried and look % 20 == 0:
                await self._expire()
            ((status,),) = await self._query(
                "SELECT e.status FROM zart_executions e WHERE e.id = %s", self._id
            )
            if status != "scheduled" and (not self._workflow.is_repaired or await self._is_over()):
                return
            ((blocked, waits, until),) = await self._query(
                "SELECT coalesce(bool_or(state = 'blocked'), false), coalesce(bool_and(state = 'waiting'), false),"
                " extract(epoch FROM min(wake_at) - zart_now())::float FROM zart_tasks"
            )
            if blocked:
                raise _Stuck("the execution is blocked")
            if self._outside.done():
                self._outside.result()
                if waits and until is not None and until > 0:
                    await self._shift_clock(until)
            await asyncio.sleep(0.005)

    async def _is_over(self) -> bool:
        """Whether nobody repairs it any more, and what the runs before gave away has ended, too."""
        assert self._outside is not None
        if not self._outside.done():
            return False
        self._outside.result()
        return not await self._query("SELECT 1 FROM zart_tasks")

    async def _shift_clock(self, seconds: float) -> None:
        self._explorer._shifted += seconds
        await self._query(
            "CREATE OR REPLACE FUNCTION zart_now() RETURNS timestamptz LANGUAGE sql STABLE AS "
            f"'SELECT pg_catalog.statement_timestamp() + interval ''{self._explorer._shifted} seconds'''"
        )
        await self._query("SELECT pg_notify('zart_work_' || substr(md5('public'), 1, 12), '')")

    # ------------------------------------------------------------ afterwards

    async def judge(self, baseline: Run | None) -> list[str]:
        """What is wrong."""
        await self._reap()
        ended = await self._workflow.end(self._client, self._id)
        done = [effect.what for effect in self._lasting_effects()]
        problems = list(
            self._workflow.problems(ended, done, faultless=not self._run.plan, any_time=self._has_news)
        )
        problems += self._repeated()
        problems += [problem async for problem in self._wrong_records(baseline)]
        if self._workflow.runs > 1:
            problems += [problem async for problem in self._wrong_runs()]
        problems += [problem async for problem in self._left_over()]
        return problems

    async def _reap(self) -> None:
        # One whose connections broke may have been unable to sign off: its rows stay until its lease ends.
        cut = [any(fault.kind == "cut" for fault in faults) for faults in (*self._run.plan, ())]
        self._buried = [
            life.pid
            for life, was_cut in zip(self._lives, cut, strict=False)
            if life.exit_code != 0 or was_cut
        ]
        # A session of a process that was killed may hold its row for a moment longer.
        for _ in range(500):
            await self._expire()
            await reap(self._database, "public")
            if not await self._query("SELECT 1 FROM zart_workers WHERE pid = ANY (%s)", self._buried):
                break
            await asyncio.sleep(0.01)

    def _effects(self) -> list[Effect]:
        return [
            effect
            for effect in effects(self._run.directory)
            if effect.execution.partition("~")[0] == self._id
        ]

    def _lasting_effects(self) -> list[Effect]:
        """Without what a worker did that was taken for dead: that may overlap with what the next one does."""
        return [
            effect
            for number, effect in enumerate(self._effects())
            if number < self._frozen_at.get(effect.pid, number + 1)
        ]

    def _repeated(self) -> Iterator[str]:
        """Effects of calls whose record was committed when a worker ended."""
        for number, effect in enumerate(self._effects()):
            zombie = number >= self._frozen_at.get(effect.pid, number + 1)
            if not zombie and any(
                number >= count and effect.call in committed for count, committed in self._committed
            ):
                yield f"effect {effect.what!r} happened again, although its record was committed"

    async def _wrong_records(self, baseline: Run | None) -> Any:
        rows = await self._query(
            "SELECT e.id = %s, e.name, s.run_id, s.path, s.name, s.occurrence, s.kind, s.state, s.seq,"
            f" s.task_id IS NOT NULL FROM zart_steps s JOIN zart_executions e ON e.run_id = s.run_id WHERE {_FAMILY}"
            " ORDER BY s.run_id, s.seq",
            self._id,
            self._id,
        )
        # What the body had left under way has no number: whether it had a row at all depends on when it was suspended.
        # What it has given away has one only if it wanted to know.
        self._run.calls = frozenset(
            ((path, name, n, kind) if root else (function, path, name, n, kind), state)
            for root, function, _, path, name, n, kind, state, seq, _ in rows
            if seq is not None
        )
        for _, _, _, path, name, n, kind, state, seq, given_away in rows:
            if state not in {"completed", "failed", "cancelled"}:
                yield f"{kind} {path}{name}#{n} is still {state}"
            if seq is None and state != "cancelled" and not given_away:
                yield f"{kind} {path}{name}#{n} is {state} without a number"
        for run in dict.fromkeys(row[2] for row in rows):
            numbers = [row[8] for row in rows if row[2] == run and row[8] is not None]
            if len(set(numbers)) < len(numbers) or (
                not self._is_tried_again and numbers != list(range(1, len(numbers) + 1))
            ):
                yield f"the records are numbered {numbers}"
        early = self._workflow.is_cancelled or self._workflow.runs > 1
        varies = self._workflow.varies or (early and self._has_news)
        if baseline is not None and not varies and self._run.calls != baseline.calls:
            more = sorted(map(str, self._run.calls - baseline.calls))
            fewer = sorted(map(str, baseline.calls - self._run.calls))
            yield f"the records differ from those without faults: {more} instead of {fewer}"

    async def _wrong_runs(self) -> Any:
        """What is wrong with the runs that gave way to others."""
        rows = await self._query(
            "SELECT r.run_id = e.run_id, r.status, r.ended_at FROM zart_execution_runs r"
            " JOIN zart_executions e ON e.id = r.execution_id WHERE e.id = %s",
            self._id,
        )
        if len(rows) != self._workflow.runs or [row[0] for row in rows].count(True) != 1:
            yield f"it should have {self._workflow.runs} runs, but it has {rows}"
        for is_last, status, ended in rows:
            if is_last != (status is None) or is_last != (ended is None):
                yield f"a run is {status}, ended {ended}, and {'is' if is_last else 'is not'} the last"
        under_way = await self._query(
            "SELECT s.path, s.name, s.occurrence, s.kind, s.state FROM zart_steps s JOIN zart_execution_runs r"
            " USING (run_id) WHERE r.execution_id = %s AND s.state NOT IN ('completed', 'failed', 'cancelled')"
            # A worker that is stopping, and asks for no more news, may have shown its step as running since.
            " AND NOT (s.state = 'running' AND s.task_id IS NULL AND r.ended_at IS NOT NULL)",
            self._id,
        )
        if under_way:
            yield f"of the runs that it had {under_way} is under way"

    async def _left_over(self) -> Any:
        pids = [life.pid for life in self._lives]
        ownerless = (
            "SELECT t.* FROM zart_tasks t WHERE t.owner IS NOT NULL AND %s::text IS NOT NULL"
            " AND NOT EXISTS (SELECT FROM zart_workers w WHERE w.worker_id = t.owner)"
        )
        rows_of_workers = "SELECT worker_id, writer, pid FROM zart_workers WHERE pid = ANY (%s)"
        for what, statement, given in (
            ("live work", "SELECT * FROM zart_tasks WHERE %s::text IS NOT NULL", self._id),
            (
                "wake-ups",
                "SELECT * FROM zart_wakeups w WHERE w.kind <> 'event' AND %s::text IS NOT NULL",
                self._id,
            ),
            ("rows of workers", rows_of_workers, pids),
            ("work of workers that are gone", ownerless, self._id),
        ):
            rows = await self._query(statement, given)
            if rows:
                yield f"{what} left: {rows}"
        told = Counter(
            what
            for (what,) in await self._query(
                # Of one worker's death each piece of work tells.
                "SELECT what FROM zart_history WHERE execution_id = %s GROUP BY what, note",
                self._id,
            )
        )
        deaths = sum(1 for life in self._lives if life.exit_code != 0) + len(self._frozen)
        if told["takeover"] > deaths:
            yield f"{told['takeover']} takeovers, but {deaths} workers were lost"
        expected = {"takeover", "retry", "warning", "continued", "cancelled", "cancel requested"}
        expected |= {"paused", "unpaused"}
        if self._workflow.is_repaired:
            expected |= {"repair", "restart"}
        unexpected = {
            what for what in told.keys() - expected if not what.startswith(("step ", "retry of", "rerun of"))
        }
        if unexpected:
            yield f"its history tells of {sorted(unexpected)}"

    async def scene(self) -> list[str]:
        """What is there when it does not end."""
        found: list[str] = []
        records = (
            "SELECT s.path, s.name, s.occurrence, s.kind, s.seq, s.state, s.until FROM zart_steps s"
            f" JOIN zart_executions e ON e.run_id = s.run_id WHERE {_FAMILY} ORDER BY s.seq"
        )
        for what, statement in (
            ("live work", "SELECT * FROM zart_tasks WHERE %s::text IS NOT NULL"),
            ("records", records),
            ("history", "SELECT what, note FROM zart_history WHERE execution_id = %s ORDER BY id"),
        ):
            found.append(f"{what}: {await self._query(statement, self._id)}")
        workers = "SELECT worker_id, writer, pid, idle, expires_at > clock_timestamp() FROM zart_workers"
        found.append(f"workers: {await self._query(workers)}")
        return found

    async def clear(self) -> None:
        """No process stays."""
        for life in self._lives:
            life.send(signal.SIGKILL)
        for life in self._lives:
            await life.end()
        await self._query("DELETE FROM zart_tasks") if self._run.problems else None

    async def _query(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        cursor = await self._database.execute(statement.encode(), parameters or None)
        return await cursor.fetchall() if cursor.description else []


def why_it_stands(kinds: Mapping[str, str], trace: Sequence[str]) -> str:
    """The kind of the fault that has stopped a process, by the kinds of its plan and the points that it reached.

    Another thread may have reached the point of a cut just after it.
    """
    return [kinds[line] for line in trace if kinds.get(line) in STANDING][-1]


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _idempotency_key(run_id: uuid.UUID, call: Call) -> str:
    identity = "\0".join(map(str, call)).encode()
    return hashlib.blake2b(identity, key=run_id.bytes, digest_size=16).hexdigest()


__all__ = ["Explorer", "Fault", "Plan", "Run", "plan"]
