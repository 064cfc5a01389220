"""Bodies that wait are kept in memory and go on without a replay; whether they are makes no other difference."""

import asyncio
import datetime as dt
from collections import Counter
from typing import Any

import pytest

import zart
from tests.support.running import (
    bury_workers,
    fast,
    forgetful,
    hurrying,
    query,
    shift_clock,
    stir,
    until,
    until_status,
    working,
)
from zart import durable, step
from zart._engine import histories, points
from zart._engine.holding import Holding

pytestmark = pytest.mark.not_in(
    "suspending", "twice", "unparked", reason="counts how often the body runs, and when it is kept"
)

effects: list[Any] = []
begun: list[str] = []


@pytest.fixture(autouse=True)
def _nothing_so_far() -> None:
    effects.clear()
    begun.clear()
    tasks.clear()


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each point of the engine is reached in this process."""
    found: Counter[str] = Counter()
    monkeypatch.setattr(points, "listener", lambda point: found.update((point,)))
    return found


@step("note")
async def note(what: str) -> str:
    effects.append(what)
    return what


@durable("sleeps")
async def sleeps(times: int) -> int:
    begun.append("sleeps")
    for number in range(times):
        await note(f"{number}")
        await zart.sleep("1h")
    return times


NONE = forgetful()


@pytest.mark.parametrize(("config", "bodies"), [(None, 1), (NONE, 31)], ids=["kept", "not kept"])
async def test_a_loop_of_sleeps(dsn: str, reached: Counter[str], config: Any, bodies: int) -> None:
    """Kept in memory the body runs once and nothing is replayed; else each wake-up replays all that went before."""
    async with working(dsn, sleeps, config=config) as client, hurrying(dsn):
        assert await client.start_and_wait(sleeps, 30, id="x", timeout="60s") == 30
    assert len(begun) == bodies
    assert effects == [f"{number}" for number in range(30)]
    # The k-th wake-up replays k steps and k - 1 sleeps.
    assert reached["replay.delivering"] == (0 if bodies == 1 else sum(2 * k - 1 for k in range(1, 31)))


@durable("listens")
async def listens() -> list[str]:
    begun.append("listens")
    seen = [await zart.wait_for_event("line", str) for _ in range(3)]
    try:
        await zart.sleep("365d")
    except asyncio.CancelledError:
        await note(f"cancelled after {seen}")
    return seen


async def test_news_come_with_the_claim(dsn: str, reached: Counter[str]) -> None:
    """Events, from Python and from SQL, and a cancel wake a body that is kept."""
    async with working(dsn, listens) as client:
        handle = await client.start(listens, id="x")
        for number in (1, 2, 3):
            await until_status(client, "x", "waiting")
            if number % 2:
                await client.offer_event("x", "line", f"{number}")
            else:
                await query(dsn, "SELECT zart_offer_event('x', 'line', '\"2\"')")
        await until(lambda: _waits_for(client, "sleep"))
        await client.cancel("x")
        with pytest.raises(zart.ExecutionCancelled):
            await handle.result(timeout="10s")
    assert begun == ["listens"]
    assert effects == ["cancelled after ['1', '2', '3']"]
    assert reached["replay.delivering"] == 0


async def _waits_for(client: zart.Client, what: str) -> bool:
    return what in ((await client.status("x")).waiting_for or "")


@step("far-away")
async def far_away(number: int) -> int:
    effects.append(number)
    return number * number


@durable("child")
async def child(number: int) -> int:
    await zart.sleep("1h")
    return number + 1


@durable("gives-away")
async def gives_away() -> list[Any]:
    begun.append("gives-away")
    scheduled = [zart.schedule_step(far_away, number) for number in range(5)]
    started = [zart.start_child(child, number) for number in range(3)]
    zart.schedule_step(far_away, 99)  # never awaited: it ends before the outcome
    first = await zart.wait_any(*scheduled)
    out: list[Any] = [await first in (0, 1, 4, 9, 16)]
    out += await zart.wait_all(*scheduled)
    out.append(await child(10))
    return [*out, *await zart.wait_all(*started)]


async def test_what_was_given_away_comes_with_the_claim(dsn: str, reached: Counter[str]) -> None:
    """Ends of scheduled steps and of children, while the parent is kept in memory: it runs once, on one worker."""
    async with working(dsn, gives_away, child) as client, hurrying(dsn):
        result = await client.start_and_wait(gives_away, id="x", timeout="30s")
    assert result == [True, 0, 1, 4, 9, 16, 11, 1, 2, 3]
    assert begun == ["gives-away"]
    assert sorted(effects) == [0, 1, 2, 3, 4, 99]
    assert reached["suspension.kept"] > 1


async def test_what_was_given_away_is_done_by_others(dsn: str) -> None:
    """Two workers that keep bodies: the parent comes to the same, whoever has which part of it."""
    async with working(dsn, gives_away, child) as client, working(dsn, gives_away, child), hurrying(dsn):
        for number in range(5):
            await client.start(gives_away, id=f"x{number}")
        for number in range(5):
            result = await client.wait_completion(f"x{number}", timeout="60s")
            assert result == [True, 0, 1, 4, 9, 16, 11, 1, 2, 3]
    assert Counter(effects) == dict.fromkeys((0, 1, 2, 3, 4, 99), 5)


async def test_the_claim_loads_no_history(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a body that is kept has recorded is not read again; a body that is not kept reads it."""
    loaded: list[int] = []
    real = histories._add_steps

    def add_steps(pending: Any, rows: Any) -> None:
        loaded.append(len(rows))
        real(pending, rows)

    monkeypatch.setattr(histories, "_add_steps", add_steps)
    async with working(dsn, sleeps) as client, hurrying(dsn):
        await client.start_and_wait(sleeps, 5, id="x", timeout="60s")
    assert sum(loaded) == 0
    async with working(dsn, sleeps, config=NONE) as client, hurrying(dsn):
        await client.start_and_wait(sleeps, 5, id="y", timeout="60s")
    assert sum(loaded) > 5


class Turns:
    """Of several workers in this process only one claims, whichever is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.workers: list[Holding] = []
        self._turn = 0
        self._looks: Counter[int] = Counter()
        begin, free = Holding.__init__, Holding.free.fget  # type: ignore[attr-defined]

        def begin_noted(holding: Holding, *arguments: Any, **more: Any) -> None:
            begin(holding, *arguments, **more)
            self.workers.append(holding)

        def free_in_turn(holding: Holding) -> Any:
            self._looks[id(holding)] += 1
            return free(holding) if self.workers[self._turn] is holding else 0

        monkeypatch.setattr(Holding, "__init__", begin_noted)
        monkeypatch.setattr(Holding, "free", property(free_in_turn))

    async def give_to(self, turn: int, dsn: str) -> None:
        """Returns when no other worker is in the middle of a claim."""
        self._turn = turn
        before = self._looks.copy()

        async def looked() -> bool:
            await stir(dsn)
            return all(self._looks[id(one)] >= before[id(one)] + 2 for one in self.workers)

        await until(looked, "each worker looks twice")


async def test_what_another_worker_has_held_meanwhile_is_replayed(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers take turns: each replays what the other has recorded since it had the body in its memory."""
    turns = Turns(monkeypatch)
    async with working(dsn, sleeps) as client, working(dsn, sleeps):
        await client.start(sleeps, 6, id="x")
        for number in range(1, 7):
            await until(lambda n=number: len(effects) == n)
            await until_status(client, "x", "waiting")
            await turns.give_to(number % 2, dsn)
            await shift_clock(dsn, dt.timedelta(hours=1))
        assert await client.wait_completion("x", timeout="20s") == 6
    assert effects == [f"{number}" for number in range(6)]
    assert len(begun) == 7


@durable("race")
async def race() -> list[str]:
    begun.append("race")
    event = asyncio.create_task(zart.wait_for_event("line", str))
    timer = asyncio.create_task(zart.sleep("1h"))
    done, others = await asyncio.wait([event, timer], return_when=asyncio.FIRST_COMPLETED)
    for other in others:
        other.cancel()
    await note("event" if event in done else "timer")
    await zart.wait_for_event("go")
    return effects


async def test_a_race_that_another_worker_has_decided_meanwhile(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event won while somebody else held the execution: a body that is kept from before hears of no timer."""
    turns = Turns(monkeypatch)
    async with working(dsn, race) as client, working(dsn, race):
        await client.start(race, id="x")
        await until_status(client, "x", "waiting")
        await turns.give_to(1, dsn)
        await client.offer_event("x", "line", "1")
        await until(lambda: _waits_for(client, "'go'"))
        await turns.give_to(0, dsn)
        await shift_clock(dsn, dt.timedelta(hours=2))
        await client.offer_event("x", "go")
        assert await client.wait_completion("x", timeout="20s") == ["event"]
    assert begun == ["race"] * 3


async def test_taken_over_in_the_middle(dsn: str) -> None:
    """The registration is taken away while a body is kept: it is unwound, and replayed under the next one."""
    async with working(dsn, listens) as client:
        await client.start(listens, id="x")
        await client.offer_event("x", "line", "1")
        await until(lambda: _consumed(dsn))
        await until_status(client, "x", "waiting")
        await bury_workers(dsn)
        await stir(dsn)
        for line in ("2", "3"):
            await client.offer_event("x", "line", line)
        await until(lambda: _waits_for(client, "sleep"))
        await client.cancel("x")
        with pytest.raises(zart.ExecutionCancelled):
            await client.wait_completion("x", timeout="10s")
    assert len(begun) == 2
    assert effects == ["cancelled after ['1', '2', '3']"]


async def _consumed(dsn: str) -> bool:
    return bool(await query(dsn, "SELECT 1 FROM zart_events WHERE consumed_at IS NOT NULL"))


async def test_the_one_that_was_used_least_recently_goes_first(dsn: str) -> None:
    """With room for two of three, the first one is replayed, and the others go on."""

    @durable("waits")
    async def waits(name: str) -> str:
        begun.append(name)
        await zart.wait_for_event("go")
        return name

    async with working(dsn, waits, config=fast(max_parked_bodies=2)) as client:
        for name in "abc":
            await client.start(waits, name, id=name)
            await until_status(client, name, "waiting")
        for name in "cba":
            await client.offer_event(name, "go")
            assert await client.wait_completion(name, timeout="10s") == name
    assert begun == ["a", "b", "c", "a"]


@durable("cleans-up")
async def cleans_up() -> str:
    begun.append("cleans-up")
    try:
        return await zart.wait_for_event("go", str)
    finally:
        effects.append(f"suspending: {zart.suspending()}")


async def test_a_shutdown_unwinds_what_is_kept(dsn: str) -> None:
    """Plain cleanup runs then, and not before; the next worker replays."""
    async with working(dsn, cleans_up) as client:
        await client.start(cleans_up, id="x")
        await until_status(client, "x", "waiting")
        assert effects == []
    assert effects == ["suspending: True"]
    async with working(dsn, cleans_up) as client:
        await client.offer_event("x", "go", "now")
        assert await client.wait_completion("x", timeout="10s") == "now"
    assert effects == ["suspending: True", "suspending: False"]
    assert len(begun) == 2


tasks: list["asyncio.Task[Any]"] = []


@durable("disturbed")
async def disturbed() -> str:
    task = asyncio.current_task()
    assert task is not None
    tasks.append(task)
    try:
        await zart.wait_for_event("go")
    except asyncio.CancelledError:
        await note("cleanup")
        raise
    return "done"


async def test_a_body_that_moves_by_itself_is_forgotten(dsn: str) -> None:
    """Somebody cancels its task while it belongs to nobody: nothing of that is recorded, and a replay goes on."""
    async with working(dsn, disturbed) as client:
        await client.start(disturbed, id="x")
        await until_status(client, "x", "waiting")
        tasks[0].cancel()
        await until(tasks[0].done)
        assert (await client.status("x")).status == "waiting"
        await client.offer_event("x", "go")
        assert await client.wait_completion("x", timeout="10s") == "done"
        records = [record.key for record in (await client.history("x")).records]
    assert effects == []
    assert records == ["go"]
    assert len(tasks) == 2


async def test_it_moves_when_it_is_claimed_already(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the claim and its hand-out: the execution is given back, and the next claim loads its history."""
    keeps = Holding.keeps

    def keeps_and_disturbs(self: Holding, task: int, run: Any, epoch: int) -> int | None:
        kept = keeps(self, task, run, epoch)
        if kept is not None and len(tasks) == 1:
            self._dormant[task].forget()
        return kept

    monkeypatch.setattr(Holding, "keeps", keeps_and_disturbs)
    async with working(dsn, disturbed) as client:
        await client.start(disturbed, id="x")
        await until_status(client, "x", "waiting")
        await client.offer_event("x", "go")
        assert await client.wait_completion("x", timeout="10s") == "done"
    assert len(tasks) == 2


@durable("limited", timeout="10h")
async def limited() -> None:
    begun.append("limited")
    await note("begun")
    await zart.sleep("365d")


async def test_a_time_limit_reaches_a_body_that_is_kept(dsn: str) -> None:
    async with working(dsn, limited) as client:
        handle = await client.start(limited, id="x")
        await until_status(client, "x", "waiting")
        await shift_clock(dsn, dt.timedelta(hours=11))
        with pytest.raises(zart.ExecutionTimeout):
            await handle.result(timeout="10s")
    assert begun == ["limited"]


async def test_the_history_tells_how_long_a_wait_was(dsn: str) -> None:
    """A wait that went on in memory began when it began."""
    async with working(dsn, sleeps) as client, hurrying(dsn):
        await client.start_and_wait(sleeps, 1, id="x", timeout="60s")
        (wait,) = [record for record in (await client.history("x")).records if record.kind == "timer"]
    assert wait.started_at is not None
    assert wait.finished_at is not None
    assert (wait.finished_at - wait.started_at).total_seconds() > 3000


@durable("many-branches")
async def many_branches() -> list[str]:
    begun.append("many-branches")
    out: list[str] = []

    async def branch(label: str, hours: int) -> None:
        for number in range(3):
            await zart.sleep(f"{hours}h")
            out.append(await note(f"{label}{number}"))

    await asyncio.gather(branch("a", 3), branch("b", 5), branch("c", 7))
    out.append(f"{zart.uuid4()}")
    return out


async def test_branches_come_to_the_same_in_memory_and_by_replay(dsn: str) -> None:
    """The log of a body that went on in memory explains its outcome: a replay of it comes to the same."""
    async with working(dsn, many_branches) as client, hurrying(dsn):
        kept = await client.start_and_wait(many_branches, id="x", timeout="60s")
    assert begun == ["many-branches"]
    effects.clear()
    # Begin once more behind the last record: as if the worker had died before the outcome.
    await query(
        dsn,
        "INSERT INTO zart_tasks (id, execution_id, run_id, lane, priority, state, due_at, started_at, epoch)"
        " SELECT task_id, id || '', run_id, zart_lane(queue, name, version), 0, 'ready', created_at, created_at, 5"
        " FROM zart_executions",
    )
    await query(dsn, "ALTER TABLE zart_executions DISABLE TRIGGER ALL")
    await query(
        dsn,
        "UPDATE zart_executions SET status = 'scheduled', finished_at = NULL, result = NULL, failure = NULL",
    )
    async with working(dsn, many_branches, config=NONE) as client:
        assert await client.wait_completion("x", timeout="20s") == kept
    assert effects == []
