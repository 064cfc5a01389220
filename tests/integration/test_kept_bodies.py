"""Bodies that wait are kept in memory and go on without a replay; whether they are makes no other difference."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

import zart
from tests.support.running import (
    bury_workers,
    fast,
    hurrying,
    query,
    shift_clock,
    stir,
    until,
    until_status,
    working,
)
from zart import durable, step
from zart._engine import points

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
def reached(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """How often each point of the engine is reached in this process."""
    found: Counter[str] = Counter()
    monkeypatch.setattr(points, "listener", lambda point: found.update((point,)))
    yield found


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


NONE = fast(max_parked_bodies=0)


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


async def test_the_claim_loads_no_history(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a body that is kept has recorded is not read again; a body that is not kept reads it."""
    from zart._engine import histories

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


async def test_what_another_worker_has_held_meanwhile_is_replayed(dsn: str) -> None:
    """Two workers take turns: whoever comes to it after the other replays what that one has recorded."""

    def deployed(worker: str) -> zart.Durable[[], list[str]]:
        @durable("taken-in-turns")
        async def body() -> list[str]:
            begun.append(worker)
            out = []
            for number in range(12):
                out.append(await note(f"{number}"))
                await zart.sleep("1h")
            return out

        return body

    async with working(dsn, deployed("one")) as client, working(dsn, deployed("two")), hurrying(dsn):
        await client.start("taken-in-turns", id="x")
        assert await client.wait_completion("x", timeout="60s") == [f"{n}" for n in range(12)]
    assert effects == [f"{number}" for number in range(12)]


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
        await until(lambda: tasks[0].done())
        assert (await client.status("x")).status == "waiting"
        await client.offer_event("x", "go")
        assert await client.wait_completion("x", timeout="10s") == "done"
        records = [record.key for record in (await client.history("x")).records]
    assert effects == []
    assert records == ["go"]
    assert len(tasks) == 2


async def test_it_moves_when_it_is_claimed_already(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the claim and its hand-out: the execution is given back, and the next claim loads its history."""
    from zart._engine.holding import Holding

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
        import datetime as dt

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
