"""Clients that keep a number of executions under way, and check how each of them ends.

At most `in_flight` executions live at a time, so the load is what the machine does: a new one is started when one has
ended. Whoever is told that the database is away tries again, with the same id or key, until the machine's time is
over; that is what an application's caller would do. Any other error is a violation.
"""

import asyncio
import contextlib
import random
import time
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from tests.chaos import scripts
from tests.chaos.scripts import Plan
from zart import (
    Client,
    Event,
    ExecutionBlocked,
    ExecutionCancelled,
    ExecutionFailed,
    ExecutionFinished,
    ExecutionHandle,
    ExecutionTimeout,
)

T = TypeVar("T")

_MANY = 10


class Violations:
    """What must not be, each with its execution, if there is one."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str | None]] = []

    def add(self, text: str, execution: str | None = None) -> None:
        self.found.append((text, execution))
        print(f"VIOLATION {execution or ''}: {text}", flush=True)

    def check(self, *, holds: bool, text: str, execution: str | None = None) -> None:
        if not holds:
            self.add(text, execution)


class Driver:
    """See the module. `plans` are all executions that were ever to be started."""

    def __init__(self, clients: list[Client], violations: Violations, seed: int, *, in_flight: int) -> None:
        self.plans: dict[str, Plan] = {}
        self.violations = violations
        self.counts: Counter[str] = Counter()
        """What clients did, and how often they had to do it again."""
        self.refusals: Counter[str] = Counter()
        """What callers were told who had to ask again."""
        self.live: dict[str, Plan] = {}
        self._clients = clients
        self._seed = seed
        self._free = asyncio.Semaphore(in_flight)
        self._number = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def chance(self, number: int) -> random.Random:
        """What decides over the execution of a number."""
        return random.Random(f"{self._seed}/{number}")

    def next_number(self) -> int:
        self._number += 1
        return self._number

    # ------------------------------------------------------------ the load

    async def run(self, seconds: float) -> None:
        """Start executions for so long; returns when all of them have ended."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            number = self.next_number()
            chance = self.chance(number)
            await self._free.acquire()
            if chance.random() < 0.01:
                for _ in range(_MANY - 1):
                    await self._free.acquire()
                self._spawn(self._many(chance))
            else:
                self._spawn(self._one(scripts.draw(chance, number), chance))
        await self.ended()

    async def ended(self) -> None:
        """Until nothing is under way any more."""
        while self._tasks:
            await asyncio.wait(list(self._tasks))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def adopt(self, plan: Plan) -> None:
        """Follow an execution that somebody else has started."""
        self._spawn(self._follow_adopted(plan))

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _follow_adopted(self, plan: Plan) -> None:
        self.plans[plan.id] = plan
        await self._free.acquire()
        plan.acknowledged = True
        await self._follow(plan, self.chance(plan.job.number), random.choice(self._clients))

    async def _many(self, chance: random.Random) -> None:
        """Several of them in one statement."""
        plans = [scripts.make(scripts.TRANSFER, chance, self.next_number()) for _ in range(_MANY)]
        for plan in plans:
            plan.delay = None
            self.plans[plan.id] = plan
            plan.began = time.time()
        client = chance.choice(self._clients)
        items = {plan.id: plan.job for plan in plans}
        await self.insist(lambda: client.start_many(scripts.TRANSFER.function, items))
        self.counts["executions started in one statement"] += len(plans)
        for plan in plans:
            plan.acknowledged = True
            self._spawn(self._follow(plan, self.chance(plan.job.number), client))

    async def _one(self, plan: Plan, chance: random.Random) -> None:
        self.plans[plan.id] = plan
        plan.began = time.time()
        client = chance.choice(self._clients)
        if chance.random() < 0.05:
            await self._start_everywhere(plan)
        else:
            handle, tries = await self.insist(lambda: self._start(client, plan))
            self.violations.check(
                holds=handle.created or tries > 1,
                text="a start of a new id was told that it exists already",
                execution=plan.id,
            )
        plan.acknowledged = True
        await self._follow(plan, chance, client)

    async def _start_everywhere(self, plan: Plan) -> None:
        """The same id, from several clients at once: one execution comes of it."""
        told = await asyncio.gather(
            *(self.insist(lambda c=client: self._start(c, plan)) for client in self._clients * 2)  # type: ignore[misc]
        )
        self.counts["ids started by several at once"] += 1
        if all(tries == 1 for _, tries in told):
            created = sum(handle.created for handle, _ in told)
            self.violations.check(
                holds=created == 1,
                text=f"{created} of {len(told)} starts of one id said that they had created it",
                execution=plan.id,
            )

    def _start(self, client: Client, plan: Plan) -> Awaitable[ExecutionHandle[Any]]:
        return client.start(plan.kind.function, plan.job, id=plan.id, delay=plan.delay)

    async def _follow(self, plan: Plan, chance: random.Random, client: Client) -> None:
        """What is done to it, and how it ends."""
        self.live[plan.id] = plan
        try:
            waiting = asyncio.ensure_future(self.insist(lambda: self._outcome(client, plan)))
            try:
                if plan.kind.script is not None:
                    await plan.kind.script(self, plan, chance)
                (status, outcome), _ = await waiting
            finally:
                waiting.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await waiting
            plan.ended = time.time()
            plan.result = outcome
            self._check_outcome(plan, status, outcome)
        except Exception as error:
            told = traceback.format_exc()
            self.violations.add(f"a client was told {type(error).__name__}: {error}\n{told}", plan.id)
        finally:
            del self.live[plan.id]
            self._free.release()

    async def _outcome(self, client: Client, plan: Plan) -> tuple[str, Any]:
        handle = client.handle(plan.kind.function, plan.id)
        try:
            return "completed", await handle.result()
        except ExecutionTimeout:
            return "failed", "zart.errors.ExecutionTimeout"
        except ExecutionFailed as failed:
            return "failed", failed.failure.type
        except ExecutionCancelled:
            return "cancelled", None
        except ExecutionBlocked as blocked:
            return "blocked", f"{blocked.failure.type}: {blocked.failure.message}"

    def _check_outcome(self, plan: Plan, status: str, outcome: Any) -> None:
        kind = plan.kind
        right = status == kind.status
        if right and status == "completed":
            right = plan.right(outcome)
        elif right and status == "failed":
            right = outcome == kind.failure
        self.violations.check(
            holds=right, text=f"it ended as {status} with {outcome!r:.300}", execution=plan.id
        )

    # ------------------------------------------------------------ what scripts ask for

    async def offer(
        self, plan: Plan, event: Event[Any], payload: Any, *, dedup: str, may_be_late: bool = False
    ) -> None:
        client = random.choice(self._clients)
        try:
            await self.insist(lambda: client.offer_event(plan.id, event, payload, dedup=dedup))
        except ExecutionFinished:
            if not may_be_late:
                raise
        self.counts["events offered"] += 1

    async def cancel(self, plan: Plan) -> None:
        client = random.choice(self._clients)
        await self.insist(lambda: client.cancel(plan.id, reason="chaos"))
        self.counts["cancels"] += 1

    async def insist(self, ask: Callable[[], Awaitable[T]]) -> tuple[T, int]:
        """Ask until the database is there; returns how often it was asked, too."""
        tries = 1
        while True:
            try:
                return await ask(), tries
            except ConnectionError as error:
                self.counts["requests sent again by callers"] += 1
                self.refusals[type(error).__name__ + ": " + str(error)[-160:]] += 1
                tries += 1
                await asyncio.sleep(random.random())
