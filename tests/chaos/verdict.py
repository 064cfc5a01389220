"""The invariants, checked from outside when everything has ended: tables by plain SQL, effects by their log.

- Every execution that a client was told of has ended, as it had to, with the exact result; there is no other one.
- Each step of it is recorded exactly once, after as many attempts as it had to take, and had at least one effect.
- Nothing that was recorded ran again: once a later step had begun, an earlier one had effects only from a process that
  the execution was taken from, which cannot be helped and is counted.
- A step that runs again works with the same values.
- Amounts add up. Nothing is left in `zart_tasks` and `zart_wakeups`, nothing is owned by the dead.
- No worker's log holds a traceback, the server's log no deadlock and no panic.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.driver import Violations
from tests.chaos.effects import Effect, read_effects
from tests.chaos.gang import Gang
from tests.chaos.scripts import TRANSFER, Plan
from tests.chaos.server import Server

_EXECUTIONS = """
    SELECT id, name, status, result, failure, extract(epoch FROM created_at)::float8,
        extract(epoch FROM finished_at)::float8
    FROM zart_executions
"""
_STEPS = """
    SELECT e.id, s.path, s.name, s.occurrence, s.kind, s.state, s.attempts, s.seq, s.result
    FROM zart_executions e JOIN zart_steps s ON s.run_id = e.run_id ORDER BY e.id, s.seq
"""
_ATTEMPTS = """
    SELECT e.id, a.name, count(*), count(DISTINCT (a.body_attempt, a.attempt))
    FROM zart_step_attempts a JOIN zart_executions e ON e.run_id = a.run_id
    WHERE a.kind = 'step' GROUP BY e.id, a.name
"""
_TAKEOVERS = "SELECT execution_id, note FROM zart_history WHERE what = 'takeover'"
_LEFT = {
    "zart_tasks": "SELECT execution_id || ' ' || state || coalesce(' of ' || owner, '') FROM zart_tasks",
    "zart_wakeups": "SELECT kind || ' for task ' || task_id FROM zart_wakeups",
    "the journal, unfinished": "SELECT run_id || ' ' || name FROM zart_steps"
    " WHERE state IN ('started', 'running', 'waiting')",
}

_ACCOUNT = {
    "execution": "SELECT * FROM zart_v_executions WHERE id = %s",
    "task": "SELECT * FROM zart_tasks WHERE execution_id = %s",
    "journal": """
        SELECT s.path, s.name, s.occurrence, s.kind, s.seq, s.state, s.attempts, s.started_at, s.finished_at,
            s.until, s.token, left(s.result::text, 80), left(s.failure::text, 300)
        FROM zart_steps s JOIN zart_executions e ON e.run_id = s.run_id
        WHERE e.id = %s ORDER BY s.seq NULLS LAST
    """,
    "event": "SELECT * FROM zart_events WHERE execution_id = %s ORDER BY id",
    "history": "SELECT * FROM zart_history WHERE execution_id = %s ORDER BY id",
}
"""What is known of one execution."""


@dataclass
class Evidence:
    """What was found, for the figures."""

    finished: list[float] = field(default_factory=list)
    """When executions ended, in order."""
    durations: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    statuses: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    steps: int = 0
    duplicate_records: int = 0
    lost: int = 0
    effects: int = 0
    run_again: int = 0
    """Attempts of steps that had an effect more than once."""
    zombie_effects: int = 0
    takeovers: int = 0
    taken_over: int = 0
    """Executions that were taken over at least once."""
    counter: tuple[int, int] = (0, 0)
    """The sum of amounts as it is, and as it has to be."""


class Verdict:
    """See the module."""

    def __init__(self, server: Server, gang: Gang, plans: dict[str, Plan], violations: Violations) -> None:
        self._server = server
        self._gang = gang
        self._plans = plans
        self._violations = violations
        self.evidence = Evidence()

    async def reach(self) -> Evidence:
        rows = await self._server.ask(_EXECUTIONS)
        steps: dict[str, list[tuple[Any, ...]]] = defaultdict(list)
        for row in await self._server.ask(_STEPS):
            steps[_root(row[0])].append(row[1:])
        attempts = {(_root(row[0]), row[1]): row[2:] for row in await self._server.ask(_ATTEMPTS)}
        victims = await self._victims()
        effects: dict[str, list[Effect]] = defaultdict(list)
        for effect in read_effects(self._gang.crew.directory):
            effects[_root(effect.execution)].append(effect)
            self.evidence.effects += 1

        self._check_which_exist({_root(row[0]) for row in rows}, set(effects))
        for row in rows:
            plan = self._plans.get(row[0])
            if plan is None:
                self._violations.check(
                    holds=row[6] is not None, text="a child has not ended", execution=row[0]
                )
            else:
                result = self._check_end(plan, row)
                records = [step for step in steps[plan.id] if step[3] == "step"]
                self._check_records(plan, result, records, effects[plan.id], attempts)
                self._check_effects(plan, result, records, effects[plan.id], victims[plan.id])
        self._check_counter(rows)
        self.evidence.finished.sort()
        for what, statement in _LEFT.items():
            left = await self._server.ask(statement)
            self._violations.check(holds=not left, text=f"{len(left)} left in {what}: {left[:5]}")
        self._check_logs()
        return self.evidence

    # ------------------------------------------------------------ executions

    def _check_which_exist(self, ids: set[str], with_effects: set[str]) -> None:
        for plan in self._plans.values():
            if plan.id not in ids and plan.acknowledged:
                self.evidence.lost += 1
                self._violations.add("it was acknowledged and does not exist", plan.id)
        for id in ids - set(self._plans):
            self._violations.add("it exists, and nobody was told so or could not know", id)
        for id in with_effects - ids:
            self._violations.add("it had effects and does not exist", id)

    def _check_end(self, plan: Plan, row: tuple[Any, ...]) -> Any:
        _, name, status, result, failure, created, finished = row
        self.evidence.kinds[name] += 1
        self.evidence.statuses[status] += 1
        kind = plan.kind
        if finished is None:
            self.evidence.lost += 1
            self._violations.add(f"it has not ended: {status}", plan.id)
            return None
        self.evidence.finished.append(finished)
        self.evidence.durations[name].append(finished - created)
        right = name == kind.name and status == kind.status
        if right and status == "completed":
            right = plan.right(result) and (plan.ended is None or result == plan.result)
        self._violations.check(
            holds=right,
            text=f"it ended as {status} with {json.dumps(result):.200}, {json.dumps(failure):.600}",
            execution=plan.id,
        )
        return result if right else None

    # ------------------------------------------------------------ records

    def _check_records(
        self,
        plan: Plan,
        result: Any,
        records: list[tuple[Any, ...]],
        effects: list[Effect],
        attempts: dict[tuple[str, str], tuple[Any, ...]],
    ) -> None:
        kind = plan.kind
        if plan.kind.status == "completed" and result is None:
            return
        self.evidence.steps += len(records)
        names = Counter(record[1] for record in records)
        twice = [name for name, count in names.items() if count > 1]
        self.evidence.duplicate_records += len(twice)
        self._violations.check(holds=not twice, text=f"recorded more than once: {twice}", execution=plan.id)

        expected = {name for chain in plan.chains(result) for name in chain}
        if kind.cleanup and not effects:
            expected -= kind.cleanup
        missing = expected - kind.optional - set(names)
        self._violations.check(holds=not missing, text=f"never recorded: {missing}", execution=plan.id)
        unknown = set(names) - expected
        self._violations.check(
            holds=not unknown, text=f"recorded, unexpectedly: {unknown}", execution=plan.id
        )

        wanted = kind.attempts(plan.job)
        for _, name, _, _, state, tries, *_ in records:
            right = "failed" if name in kind.failing else "completed"
            fine = state == right or (name in kind.optional and state == "cancelled")
            self._violations.check(holds=fine, text=f"step {name} is {state}", execution=plan.id)
            if state == right:
                took = wanted.get(name, 1)
                self._violations.check(
                    holds=tries == took,
                    text=f"step {name} took {tries} attempts, not {took}",
                    execution=plan.id,
                )
                failed = attempts.get((plan.id, name), (0, 0))
                self._violations.check(
                    holds=failed == (took - 1, took - 1),
                    text=f"step {name} has {failed} failed attempts, not {took - 1}",
                    execution=plan.id,
                )
        if kind.name == "fanned":
            order = [record[7] for record in records if record[1].startswith("branch-")]
            self._violations.check(
                holds=order == result[:5],
                text=f"the results are {result[:5]}, but the log says {order}",
                execution=plan.id,
            )

    # ------------------------------------------------------------ effects

    def _check_effects(
        self,
        plan: Plan,
        result: Any,
        records: list[tuple[Any, ...]],
        effects: list[Effect],
        victims: set[int],
    ) -> None:
        times = Counter((effect.what, effect.attempt) for effect in effects)
        self.evidence.run_again += sum(count > 1 for count in times.values())
        for _, name, _, _, state, tries, *_ in records:
            if state in ("completed", "failed"):
                for attempt in range(1, tries + 1):
                    self._violations.check(
                        holds=times[name, attempt] > 0,
                        text=f"attempt {attempt} of step {name} is recorded and had no effect",
                        execution=plan.id,
                    )
        values: dict[str, set[str]] = defaultdict(set)
        for effect in effects:
            values[effect.what].add(effect.value)
        for what, different in values.items():
            self._violations.check(
                holds=len(different) == 1,
                text=f"step {what} worked with different values: {different}",
                execution=plan.id,
            )
        if plan.kind.status != "completed" or result is not None:
            for chain in plan.chains(result):
                self._check_order(plan, chain, effects, victims)

    def _check_order(
        self, plan: Plan, chain: list[str], effects: Iterable[Effect], victims: set[int]
    ) -> None:
        place = {name: number for number, name in enumerate(chain)}
        reached = -1
        for effect in effects:
            number = place.get(effect.what)
            if number is None:
                continue
            if number > reached + 1 and not set(chain[reached + 1 : number]) <= plan.kind.optional:
                self._violations.add(f"{effect.what} ran before what it comes after", plan.id)
            if number < reached:
                if effect.pid in victims:
                    self.evidence.zombie_effects += 1
                else:
                    self._violations.add(
                        f"{effect.what} ran again in process {effect.pid} after {chain[reached]} had run",
                        plan.id,
                    )
            reached = max(reached, number)

    async def _victims(self) -> dict[str, set[int]]:
        """The processes that each execution was taken from."""
        processes = {number: worker.pid for worker in self._gang.crew.workers for number in worker.worker_ids}
        victims: dict[str, set[int]] = defaultdict(set)
        for id, note in await self._server.ask(_TAKEOVERS):
            self.evidence.takeovers += 1
            (number,) = re.findall(r"worker (\d+) ", note)
            if int(number) in processes:
                victims[_root(id)].add(processes[int(number)])
        self.evidence.taken_over = len(victims)
        return victims

    # ------------------------------------------------------------ the rest

    def _check_counter(self, rows: list[tuple[Any, ...]]) -> None:
        """The sum of all transfers."""
        found = sum(row[3] for row in rows if row[1] == TRANSFER.name and row[3] is not None)
        ids = {row[0] for row in rows}
        right = sum(
            plan.kind.result(plan.job)
            for plan in self._plans.values()
            if plan.kind is TRANSFER and (plan.acknowledged or plan.id in ids)
        )
        self.evidence.counter = (found, right)
        self._violations.check(holds=found == right, text=f"transfers add up to {found}, not {right}")

    def _check_logs(self) -> None:
        for worker in self._gang.crew.workers:
            log = worker.log
            if "Traceback" in log:
                start = max(log.index("Traceback") - 500, 0)
                self._violations.add(
                    f"process {worker.pid} has a traceback in its log:\n{log[start : start + 3000]}"
                )
        for line in server_lines(self._server):
            if "deadlock detected" in line or "PANIC" in line:
                self._violations.add(f"the server's log says: {line}")


def _root(id: str) -> str:
    """The execution that a child's child belongs to in the end: what the whole family does is looked at together."""
    return id.partition("~")[0]


def server_lines(server: Server) -> list[str]:
    return server.log.read_text(errors="replace").splitlines()


async def account(server: Server, gang: Gang, plan: Plan | None, id: str) -> str:
    """Everything that is known of an execution, for whoever looks for the cause."""
    lines = [f"==== {id}", f"planned: {plan}"]
    for what, statement in _ACCOUNT.items():
        for row in await server.ask(statement, id):
            lines.append(f"{what}: {', '.join(str(value) for value in row)}")
    lines += [f"effect: {effect}" for effect in read_effects(gang.crew.directory) if effect.execution == id]
    for worker in gang.crew.workers:
        lines += [f"process {worker.pid}: {line}" for line in worker.log.splitlines() if id in line]
    return "\n".join(lines)
