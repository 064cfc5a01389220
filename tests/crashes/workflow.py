"""What a workflow of the corpus is: a durable function, what happens to it from outside, and what must come of it.

Nothing here knows of any fault. Whatever is done to workers and connections while a workflow runs, and whenever what
comes from outside arrives, `expect` must hold of its end, every promised effect must have happened, and none may be
repeated once the next one of its chain has happened: by then its record was committed.

    id = "sequence-7"
    await workflow.start(client, id)
    await workflow.outside(client, id, directory)
    ended = await workflow.end(client, id)
    problems = workflow.problems(ended, [e.what for e in effects(directory) if e.execution == id])

Steps report what they do by `note`, in a file in the directory that `ZART_TEST_PLACE` names: see `effects.py`.
"""

import asyncio
import contextlib
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

import zart
import zart.sync
from tests.crashes.effects import effects
from tests.crashes.repairs import Repair, RetryStep
from tests.support import modes
from zart.durable import Durable
from zart.errors import ExecutionFinished
from zart.state import FINAL_STATUSES

NOTHING: Any = object()
"""The input of a function that takes none."""

Once = str
"""When something happens from outside: `"started"` (at once), `"waiting"` (the execution is parked), `"paused"` (a rule
holds it back, or it has ended before that), `"failed"` and its like (it has ended so), or the name of an effect (when
that has happened)."""


@dataclass(frozen=True)
class Offer:
    """An event that somebody offers."""

    event: str
    payload: Any = None
    once: Once = "started"
    by_sql: bool = False
    """With the SQL function, which only leaves a wake-up for workers to apply."""
    in_transaction: bool = False
    """In a transaction of somebody's own, by `zart.sync`; a first one is rolled back, and must have left nothing."""


@dataclass(frozen=True)
class Cancel:
    """Somebody cancels the execution."""

    reason: str = "not needed any more"
    once: Once = "waiting"
    by_sql: bool = False


@dataclass(frozen=True)
class Pause:
    """Somebody pauses the execution, or those of its steps that fit a pattern."""

    step: str | None = None
    expires: float | None = None
    """In seconds; None: it holds until an `Unpause`."""
    once: Once = "started"


@dataclass(frozen=True)
class Unpause:
    """Somebody ends all that the execution was paused for."""

    once: Once = "paused"


Happening = Offer | Cancel | Pause | Unpause | Repair


@dataclass(frozen=True)
class Ended:
    """How an execution has ended."""

    status: str
    result: Any = None
    error: str | None = None
    """The name of the class of what it failed of."""
    message: str = ""


@dataclass(frozen=True)
class Expectation:
    """What must hold of the end, and how to say it."""

    text: str
    holds: Callable[[Ended], bool] = field(repr=False)

    def __call__(self, ended: Ended) -> bool:
        return self.holds(ended)


def returns(expected: Any) -> Expectation:
    """It completes with this result, or with one of which this function is true."""
    if callable(expected):
        told = (expected.__doc__ or expected.__name__).strip()
        return Expectation(
            f"completed, {told}", lambda ended: ended.status == "completed" and expected(ended.result)
        )
    return Expectation(
        f"completed with {expected!r}",
        lambda ended: ended.status == "completed" and ended.result == expected,
    )


def fails(error: str, message: str = "") -> Expectation:
    """It fails of an exception of this class, whose message contains this."""
    return Expectation(
        f"failed of {error}: {message}",
        lambda ended: ended.status == "failed" and ended.error == error and message in ended.message,
    )


def cancelled() -> Expectation:
    return Expectation("cancelled", lambda ended: ended.status == "cancelled")


@dataclass(frozen=True, kw_only=True)
class Workflow:
    """See the module."""

    durable: Durable[..., Any]
    expect: Expectation
    data: Any = NOTHING
    in_transaction: bool = False
    """It is started in a transaction of somebody's own, as an `Offer` may be."""
    happens: tuple[Happening, ...] = ()
    """What must come from outside, in this order; without it the execution would not end."""
    chains: tuple[tuple[str, ...], ...] = ()
    """Effects that happen, once each without faults. In a chain each waits for the record of the one before.

    The attempts of a step are no chain: one that fails is recorded while the next one waits for its time.
    """
    maybe: frozenset[str] = frozenset()
    """Effects that a fault, or something from outside that comes at another time, may prevent."""
    beside: frozenset[str] = frozenset()
    """Effects of steps that others are recorded beside: where each record ends an activation, that cuts them off."""
    at_most_once: frozenset[str] = frozenset()
    """Effects that no fault may make happen again."""
    varies: bool = False
    """Which calls are recorded depends on when a fault comes; the outcome does not."""
    slow: bool = False
    """It takes seconds."""

    @property
    def name(self) -> str:
        return self.durable.name

    @property
    def keeps(self) -> bool:
        """Whether its workers keep a body that waits in memory: half of the corpus does, or `all` or `none`, as
        `ZART_CRASHES_KEEP` says."""
        told = os.environ.get("ZART_CRASHES_KEEP")
        return told == "all" or (told != "none" and zlib.crc32(self.name.encode()) % 2 == 0)

    @property
    def effects(self) -> frozenset[str]:
        """All that it does without faults."""
        return frozenset(effect for chain in self.chains for effect in chain) | self.maybe

    # ------------------------------------------------------------ to run it

    async def start(self, client: zart.Client, id: str) -> None:
        """Harmless when it is repeated."""
        if self.in_transaction:
            await _in_transactions(
                client.address,
                lambda lent: zart.sync.start(self.durable, self.data, id=id, connection=lent),
            )
        elif self.data is NOTHING:
            await client.start(self.durable, id=id)
        else:
            await client.start(self.durable, self.data, id=id)

    async def outside(
        self, client: zart.Client, id: str, directory: Path, *, skip: int = 0, most: int | None = None
    ) -> None:
        """Let what must happen from outside happen, each when it is time; returns after the last.

        `directory` is where its steps note their effects. Where so many executions run that looking at all of that is
        too much, call `happen` instead, at any time: the outcome must be the same, unless it is a cancel that comes
        early; then the effects after it may be missing.
        """
        for number, happening in enumerate(self.happens[:most]):
            if number < skip:
                continue
            while not await self._is_time(client, id, happening.once, directory):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            while not await self.happen(client, id, number):  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def happen(self, client: zart.Client, id: str, number: int) -> bool:
        """Let one of `happens` happen now; harmless when it is repeated, or comes after the end.

        False for a repair that comes too early: it must be tried again.
        """
        happening = self.happens[number]
        if isinstance(happening, (Pause, Unpause)):
            await _pause(client, id, happening)
            return True
        if isinstance(happening, Repair):
            return await happening.make(client, id, self._place(number))
        if happening.by_sql:
            await self._happen_by_sql(client, id, happening, f"{number}")
        elif isinstance(happening, Cancel):
            await client.cancel(id, reason=happening.reason)
        else:
            await self._offer(client, id, happening, f"{number}")
        return True

    def _place(self, number: int) -> int:
        """Of a repair: the how manyth it is, from 1, among those like it."""
        retries = isinstance(self.happens[number], RetryStep)
        return sum(
            isinstance(happening, Repair) and isinstance(happening, RetryStep) == retries
            for happening in self.happens[: number + 1]
        )

    async def _offer(self, client: zart.Client, id: str, happening: Offer, dedup: str) -> None:
        try:
            if happening.in_transaction:
                await _in_transactions(
                    client.address,
                    lambda lent: zart.sync.offer_event(
                        id, happening.event, happening.payload, dedup=dedup, connection=lent
                    ),
                )
            else:
                await client.offer_event(id, happening.event, happening.payload, dedup=dedup)
        except ExecutionFinished:
            if not self.is_cancelled:
                raise

    async def _happen_by_sql(
        self, client: zart.Client, id: str, happening: "Offer | Cancel", dedup: str
    ) -> None:
        async with await psycopg.AsyncConnection.connect(client.address, autocommit=True) as connection:
            if isinstance(happening, Cancel):
                await connection.execute("SELECT zart_cancel(%s, %s)", (id, happening.reason))
                return
            try:
                await connection.execute(
                    "SELECT zart_offer_event(%s, %s, %s, %s)",
                    (id, happening.event, Jsonb(happening.payload), dedup),
                )
            except psycopg.errors.ObjectNotInPrerequisiteState:  # it has ended
                if not self.is_cancelled:
                    raise

    async def _is_time(self, client: zart.Client, id: str, once: Once, directory: Path) -> bool:
        if once == "started":
            return True
        if once == "waiting":
            return (await client.status(id)).status not in {"scheduled", "running"}
        if once == "paused":
            return (await client.status(id)).status not in {"scheduled", "running", "waiting"}
        if once in FINAL_STATUSES:
            return (await client.status(id)).status == once
        return any(effect.execution == id and effect.what == once for effect in effects(directory))

    async def end(self, client: zart.Client, id: str, *, timeout: float = 60.0) -> Ended:
        """Wait for the end. Raises ResultTimeout; ExecutionBlocked is for nobody to expect."""
        try:
            return Ended("completed", await client.wait_completion(id, timeout=timeout))
        except zart.ExecutionCancelled:
            return Ended("cancelled")
        except zart.ExecutionFailed as failed:
            return Ended("failed", None, failed.failure.type, failed.failure.message)

    # ------------------------------------------------------------ to judge it

    @property
    def is_cancelled(self) -> bool:
        return any(isinstance(happening, Cancel) for happening in self.happens)

    @property
    def is_repaired(self) -> bool:
        return any(isinstance(happening, Repair) for happening in self.happens)

    @property
    def runs(self) -> int:
        """How many runs it has in the end, all of which are kept if there are several."""
        begun = (happening for happening in self.happens if isinstance(happening, Repair))
        return 1 + sum(not isinstance(repair, RetryStep) for repair in begun)

    def problems(
        self, ended: Ended, done: Sequence[str], *, faultless: bool = False, any_time: bool = False
    ) -> Iterator[str]:
        """What is wrong with an end and its effects, `done` in the order in which they happened.

        Without faults (and with all from outside at its time) each effect happens exactly once. With `any_time` what
        came from outside did not keep to its time: then a cancel, or a repair, may have prevented any effect.
        """
        if not self.expect(ended):
            yield f"it was to be {self.expect.text}, but it is {ended}"
        counts = Counter(done)
        prevented = any_time and (self.is_cancelled or self.is_repaired)
        unknown = counts.keys() - self.effects
        if unknown:
            yield f"nobody expects the effects {sorted(unknown)}"
        for effect in self.at_most_once:
            if counts[effect] > 1:
                yield f"effect {effect!r} has happened {counts[effect]} times, and may happen once"
        for chain in self.chains:
            for effect in chain:
                if counts[effect] < 1 and effect not in self.maybe and not prevented:
                    yield f"effect {effect!r} has not happened"
                cut = effect in self.beside and modes.current() == "suspending"
                if counts[effect] > 1 and faultless and not cut:
                    yield f"effect {effect!r} has happened {counts[effect]} times, without any fault"
            yield from _repeated(chain, done)


async def _pause(client: zart.Client, id: str, happening: Pause | Unpause) -> None:
    if isinstance(happening, Pause):
        with contextlib.suppress(ExecutionFinished):  # it has come too late
            await client.pause(id, step=happening.step, expires=happening.expires)
        return
    for rule in await client.pauses():
        if rule.execution_id == id:
            await client.unpause(rule.id)


async def _in_transactions(dsn: str, do: Callable[[psycopg.Connection[Any]], object]) -> None:
    """Do it in a transaction that is rolled back, and then in one that commits, in a thread."""

    def both() -> None:
        with psycopg.connect(dsn) as connection:
            do(connection)
            connection.rollback()
            do(connection)

    await asyncio.to_thread(both)


def _repeated(chain: tuple[str, ...], done: Sequence[str]) -> Iterator[str]:
    """Effects that were had again after a later one of their chain: their record was committed by then."""
    reached = -1
    for effect in done:
        if effect in chain:
            place_in_chain = chain.index(effect)
            if place_in_chain < reached:
                yield f"effect {effect!r} was repeated after {chain[reached]!r}, which needed its record"
            reached = max(reached, place_in_chain)
