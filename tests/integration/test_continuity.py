"""What a worker asks another server for, before it writes there: see zart/_engine/continuity.py.

The other server is the same one here, of which the worker believes that it was started at another time; and what it has
forgotten, a test takes away.
"""

import asyncio
import datetime as dt
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import psycopg
import pytest

from tests.support.floor import Floor, Hand
from zart._engine.continuity import Confirmed, Continuity, ServerForgot
from zart._engine.entries import (
    Change,
    Claim,
    Completed,
    Ending,
    Entry,
    Key,
    Lost,
    Released,
    StepEnded,
    Suspended,
)
from zart._engine.writer import Journal

BEFORE = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
STEP = Key("", "s", 1, "step")
SUSPENDED = Suspended(seen=0, wake_at=None, waiting_for="an event")


class Scene:
    """A worker that has claimed `x`, and its continuity."""

    def __init__(self, floor: Floor, hand: Hand, claim: Claim) -> None:
        self.floor = floor
        self.hand = hand
        self.claim = claim
        self.confirmed = Confirmed()
        self.held = [(claim.task_id, claim.epoch, 0, 0)]
        self.told: list[str] = []
        self.continuity = Continuity(
            "public",
            hand.id,
            BEFORE,
            confirmed=self.confirmed,
            held=lambda: self.held,
            on_forgotten=lambda: self.told.append("forgotten"),
        )

    async def check(self) -> None:
        await self.continuity.check(self.floor.database)

    async def forget(self, statement: str) -> None:
        """Have the server forget something, in spite of what the tables refuse."""
        async with self.floor.database.transaction():
            await self.floor.database.execute("SET LOCAL session_replication_role = replica")
            await self.floor.database.execute(statement.encode())

    async def write(self, entry: Entry | None = None, ending: Ending | None = None) -> None:
        """Have the journal commit an entry, an ending, or both."""
        journal = Journal(
            self.floor.connect,
            "public",
            self.hand.id,
            on_now=lambda _: None,
            on_fenced=lambda: None,
            on_schema_error=lambda _: None,
            confirmed=self.confirmed,
        )
        errors: list[Exception | None] = []

        def done(_: object, error: Exception | None) -> None:
            errors.append(error)

        if entry is not None:
            entry.done = done
            journal.write(entry)
        if ending is not None:
            self.held = []
            claim = self.claim
            journal.end(
                Change(
                    task_id=claim.task_id,
                    execution_id=claim.execution_id,
                    run_id=claim.run_id,
                    epoch=claim.epoch,
                    ending=ending,
                    done=done,
                )
            )
        writing = asyncio.create_task(journal.run())
        await journal.drain()
        await journal.close()
        await writing
        self.errors = errors

    def record(self, key: Key = STEP, result: bytes = b"1") -> Entry:
        return Entry(run_id=self.claim.run_id, key=key, state="completed", done=None, seq=1, result=result)


@pytest.fixture
async def scene(dsn: str) -> AsyncIterator[Scene]:
    async with Floor(dsn) as floor:
        hand = await floor.hand()
        await floor.start("x")
        (claim,) = await hand.claim_all()
        yield Scene(floor, hand, claim)


async def test_a_server_that_has_everything_is_known_from_then_on(scene: Scene) -> None:
    await scene.write(scene.record())
    scene.confirmed.apart(scene.claim.run_id, STEP)
    await scene.check()
    assert scene.told == []
    assert scene.continuity.server == await scene.floor.value("SELECT pg_postmaster_start_time()")
    await scene.forget("DELETE FROM zart_steps")
    await scene.check()


FORGOTTEN: dict[str, tuple[Callable[[Scene], Any], str, str]] = {
    "a claim": (
        lambda scene: None,
        "UPDATE zart_tasks SET state = 'ready', owner = NULL, batch = NULL, epoch = 0",
        "the claim of task",
    ),
    "a claim, and another worker has made it": (
        lambda scene: None,
        "UPDATE zart_tasks SET owner = owner + 1",
        "the claim of task",
    ),
    "a record": (
        lambda scene: scene.write(scene.record()),
        "DELETE FROM zart_steps",
        "the record of step s#1",
    ),
    "a record, of which an earlier state stands": (
        lambda scene: scene.write(scene.record()),
        "UPDATE zart_steps SET state = 'running', seq = NULL, result = NULL, token = token - 1",
        "the record of step s#1",
    ),
    "a record, which another worker has made": (
        lambda scene: scene.write(scene.record()),
        "UPDATE zart_steps SET token = 9223372036854775000",
        "the record of step s#1",
    ),
    "an end": (
        lambda scene: scene.write(ending=Completed(result=b"1")),
        "UPDATE zart_executions SET status = 'scheduled', result = NULL, finished_at = NULL",
        "the end of a hold on execution x",
    ),
    "a suspension": (
        lambda scene: scene.write(ending=SUSPENDED),
        "UPDATE zart_tasks SET state = 'running', owner = 1",
        "the end of a hold on execution x",
    ),
    "a suspension and the claim before it": (
        lambda scene: scene.write(ending=SUSPENDED),
        "UPDATE zart_tasks SET state = 'ready', epoch = epoch - 1",
        "the end of a hold on execution x",
    ),
    "a suspension, and its number is another execution's": (
        lambda scene: scene.write(ending=SUSPENDED),
        "UPDATE zart_tasks SET execution_id = 'y', epoch = epoch + 5",
        "the end of a hold on execution x",
    ),
    "an execution that was given back": (
        lambda scene: scene.write(ending=Released()),
        "DELETE FROM zart_tasks; DELETE FROM zart_executions",
        "the end of a hold on execution x",
    ),
    "a record apart": (
        lambda scene: scene.confirmed.apart(scene.claim.run_id, STEP),
        "SELECT",
        "the record of step s#1",
    ),
}


@pytest.mark.parametrize("what", FORGOTTEN)
async def test_a_server_that_lacks_something_is_refused(scene: Scene, what: str) -> None:
    """Once and for all: whoever asks again is refused too, whatever is there by then."""
    confirm, forget, said = FORGOTTEN[what]
    done = confirm(scene)
    if done is not None:
        await done
    await scene.forget(forget)
    for _ in range(2):
        with pytest.raises(ServerForgot, match=said):
            await scene.check()
    assert scene.told == ["forgotten"]
    with psycopg.connect(scene.floor.dsn, autocommit=True) as connection:
        assert not scene.continuity.knows(connection)


async def _suspended_and_ended_by_others(scene: Scene) -> None:
    await scene.write(ending=SUSPENDED)
    await scene.forget(
        "DELETE FROM zart_tasks; UPDATE zart_executions SET status = 'completed', finished_at = now()"
    )


async def _suspended_and_held_by_others(scene: Scene) -> None:
    await scene.write(ending=SUSPENDED)
    await scene.forget("UPDATE zart_tasks SET state = 'running', owner = 1, epoch = epoch + 1")


async def _written_once_more(scene: Scene) -> None:
    await scene.write(scene.record())
    await scene.forget("UPDATE zart_steps SET token = token + 1")


async def _recorded_in_its_own_transaction(scene: Scene) -> None:
    scene.confirmed.apart(scene.claim.run_id, STEP)
    await scene.forget(
        "INSERT INTO zart_recorded_steps (run_id, path, name, occurrence, kind, epoch, attempt, result)"
        f" VALUES ('{scene.claim.run_id}', '', 's', 1, 'step', 1, 1, '1')"
    )


async def _refused(scene: Scene) -> None:
    """A batch of which nothing was written tells nothing."""
    await scene.write(scene.record())
    await scene.write(scene.record(result=b"2"))
    assert [type(error) for error in scene.errors] == [Lost]


async def _covered_by_the_journal(scene: Scene) -> None:
    """What was confirmed apart is older than a batch that was sent after it: it is not asked for any more."""
    scene.confirmed.apart(scene.claim.run_id, Key("", "gone", 1, "step"))
    await scene.write(scene.record())


async def _gone_with_its_worker(scene: Scene) -> None:
    """Nothing of a worker without rows is written anyway, and each statement says so."""
    await scene.forget("DELETE FROM zart_workers; UPDATE zart_tasks SET owner = NULL, state = 'ready'")


@pytest.mark.parametrize(
    "happens",
    [
        _suspended_and_ended_by_others,
        _suspended_and_held_by_others,
        _written_once_more,
        _recorded_in_its_own_transaction,
        _refused,
        _covered_by_the_journal,
        _gone_with_its_worker,
    ],
)
async def test_what_has_gone_on_since_is_not_forgotten(scene: Scene, happens: Callable[[Scene], Any]) -> None:
    await happens(scene)
    await scene.check()
    assert scene.told == []


async def test_what_was_sent_before_a_record_apart_does_not_stand_for_it(scene: Scene) -> None:
    """The batch was on its way, and may be the older of the two."""
    sent = time.perf_counter()
    scene.confirmed.apart(scene.claim.run_id, Key("", "gone", 1, "step"))
    scene.confirmed.batch(1, scene.record(), sent)
    with pytest.raises(ServerForgot, match="gone"):
        await scene.check()


async def test_the_end_of_a_scheduled_step(scene: Scene) -> None:
    """It has no execution of its own: what stands for it is its record."""
    change = Change(
        task_id=10**9,
        execution_id="x",
        run_id=scene.claim.run_id,
        epoch=1,
        ending=StepEnded(key=STEP, state="completed", result=b"1"),
        done=None,
    )
    scene.confirmed.batch(1, change, time.perf_counter())
    with pytest.raises(ServerForgot, match="the record of step s#1"):
        await scene.check()


async def test_of_much_that_is_missing_some_is_named(scene: Scene) -> None:
    scene.held = [(10**9 + number, 1, 0, 0) for number in range(1000)]
    with pytest.raises(ServerForgot, match="the claim of task 1000000002 and 997 more;"):
        await scene.check()


async def test_what_is_missing_must_be_missing_each_time(scene: Scene) -> None:
    """Others write while the first look is on its way: what they have ended is not held at the second."""
    looks = iter([[(10**9, 1, 0, 0)], []])
    scene.continuity._held = lambda: next(looks)
    await scene.check()
    assert scene.told == []


async def test_ids_of_workers_are_not_given_out_again(scene: Scene) -> None:
    """A standby that was behind goes on from an earlier number of the sequence."""
    first = await scene.floor.hand()
    await scene.floor.database.execute("SELECT setval('zart_worker_ids', %s, false)", (first.id // 10_000,))
    ids = {(await scene.floor.hand()).id, first.id}
    assert len(ids) == 2


def test_nothing_is_confirmed_at_first() -> None:
    parameters = Confirmed().parameters()
    assert all(value == [] for value in parameters.values())
