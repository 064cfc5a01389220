"""`restart` and `rerun`: another run of an execution, in any state; the one before is kept and fenced off."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import pytest

import zart
from tests.support.running import forgetful, query, until, until_record, until_status, working
from zart import Client, ExecutionNotFound, UsageError, durable, step
from zart._postgres.queries import load

effects: list[str] = []
broken: set[str] = set()
gates: dict[str, asyncio.Event] = {}


@pytest.fixture(autouse=True)
def _anew() -> None:
    effects.clear()
    broken.clear()
    gates.clear()


@step("do")
async def do(what: str) -> str:
    effects.append(what)
    if what in broken:
        raise ConnectionError(f"{what} is out of order")
    return what


@step("hold")
async def hold(what: str) -> str:
    effects.append(what)
    if what in gates:
        await gates[what].wait()
    return what


@durable("greet")
async def greet(name: str) -> str:
    await do(f"greet {name}")
    if name == "wait":
        await zart.wait_for_event("never")
    if name == "hold":
        await hold("hold")
    if name == "fail":
        raise ValueError("no such person")
    return f"hello {name}"


async def waiting(client: Client) -> None:
    await client.start(greet, "wait", id="x")
    await until_status(client, "x", "waiting")


async def running(client: Client) -> None:
    gates["hold"] = asyncio.Event()
    await client.start(greet, "hold", id="x")
    await until(lambda: "hold" in effects)


async def scheduled(client: Client) -> None:
    await client.start(greet, "later", id="x", delay="1h")


async def completed(client: Client) -> None:
    await client.start_and_wait(greet, "done", id="x", timeout="20s")


async def failed(client: Client) -> None:
    await client.start(greet, "fail", id="x")
    await until_status(client, "x", "failed")


async def cancelled(client: Client) -> None:
    await waiting(client)
    await client.cancel("x")
    await until_status(client, "x", "cancelled")


async def cancelling(client: Client) -> None:
    await running(client)
    await client.cancel("x")


EVERY_STATE = [scheduled, running, waiting, completed, failed, cancelled, cancelling]


@pytest.mark.parametrize("state", EVERY_STATE, ids=lambda state: state.__name__)
async def test_restarted_from_any_state(dsn: str, state: Callable[[Client], Awaitable[None]]) -> None:
    """It begins again with the new input; the run before is kept as it stood, with its records."""
    async with working(dsn, greet, config=forgetful()) as client:
        await state(client)
        before = await client.history("x")
        run_id = await client.restart("x", "ann", reason="wrong name")
        assert await client.wait_completion("x", timeout="20s", type=str) == "hello ann"
        for gate in gates.values():
            gate.set()
        runs = await client.runs("x")
        assert [run.run_id for run in runs] == [before.run_id, run_id]
        told = [run.status for run in runs]
        assert told == [before.execution.status, "completed"] or (
            state is cancelling and told == ["cancelled", "completed"]
        )
        history = await client.history("x")
        assert [record.key for record in history.records] == ["do"]
        assert any("restart by" in note and "wrong name" in note for note in history.notes)
        old = await client.history("x", run_id=before.run_id)
    assert [r.key for r in old.records if r.kind == "step"] == [
        r.key for r in before.records if r.kind == "step"
    ]
    assert await query(dsn, "SELECT count(*) FROM zart_tasks") == [(0,)]


async def test_it_is_blocked(dsn: str) -> None:
    """So it is with one that is blocked."""
    async with working(dsn, greet) as client:
        await waiting(client)
        await query(dsn, "UPDATE zart_steps SET name = 'renamed'")
        await query(dsn, "UPDATE zart_tasks SET state = 'blocked'")
        await client.restart("x", "ann")
        assert await client.wait_completion("x", timeout="20s") == "hello ann"
        assert [run.status for run in await client.runs("x")] == ["blocked", "completed"]


async def test_without_an_input_it_has_the_one_of_the_run_before(dsn: str) -> None:
    async with working(dsn, greet) as client:
        await completed(client)
        await client.restart("x")
        assert await client.wait_completion("x", timeout="20s") == "hello done"
        await client.restart("x", "ann")
        assert await client.wait_completion("x", timeout="20s") == "hello ann"
        await client.restart("x")
        assert await client.wait_completion("x", timeout="20s") == "hello ann"
        # A start that is sent again still finds what it has started.
        assert not (await client.start(greet, "done", id="x")).created


async def test_an_input_that_does_not_fit(dsn: str) -> None:
    """The new run fails of it, and can be restarted in its turn."""
    async with working(dsn, greet) as client:
        await completed(client)
        await client.restart("x", {"not": "a name"})
        await until_status(client, "x", "failed")
        await client.restart("x", "ann")
        assert await client.wait_completion("x", timeout="20s") == "hello ann"


async def test_nothing_of_the_old_run_is_written_into_the_new_one(dsn: str) -> None:
    """A restart in the middle of a step: the old run's step ends, and its result is nowhere in the new run."""
    async with working(dsn, greet) as client:
        await running(client)
        gate = gates.pop("hold")
        first = (await client.status("x")).run_id
        second = await client.restart("x", "hold")
        assert await client.wait_completion("x", timeout="20s") == "hello hold"
        gate.set()
        await until(lambda: effects.count("hold") == 2)
        steps = await query(dsn, "SELECT run_id::text, name, state FROM zart_steps ORDER BY run_id, seq")
    assert [row for row in steps if row[0] == second] == [
        (second, "do", "completed"),
        (second, "hold", "completed"),
    ]
    assert (first, "do", "completed") in steps


async def test_nothing_is_shown_as_under_way_in_a_run_that_gave_way(dsn: str) -> None:
    """Not even if a worker that had not heard of the restart has written so since."""
    async with working(dsn, greet) as client:
        await running(client)
        first = (await client.status("x")).run_id
        await client.restart("x", "ann")
        late = """INSERT INTO zart_steps (run_id, path, name, occurrence, kind, state, attempts)
            VALUES (%s, '', 'hold', 1, 'step', 'running', 1)"""
        await query(dsn, late, first)
        assert await client.wait_completion("x", timeout="20s") == "hello ann"
        shown = (await client.history("x", run_id=first)).records
    assert [(record.key, record.state) for record in shown] == [("do", "completed"), ("hold", "cancelled")]


@durable("child")
async def child(name: str) -> str:
    return await hold(name)


@durable("team")
async def team(names: list[str]) -> list[str]:
    handles: list[Any] = [zart.start_child(child, name) for name in names]
    handles += [zart.schedule_step(hold.named(f"step-{name}"), f"step {name}") for name in names]
    return list(await zart.wait_all(*handles))


async def test_in_a_fan_out_with_children(dsn: str) -> None:
    """What the old run has given away is cancelled, and the new run gives its own away."""
    gates["b"] = asyncio.Event()
    gates["step b"] = asyncio.Event()
    async with working(dsn, team, child) as client:
        await client.start(team, ["a", "b"], id="x")
        await until(lambda: "b" in effects and "step b" in effects)
        old = [r.child_id for r in (await client.history("x")).records if r.kind == "child"]
        await client.restart("x", ["c"])
        assert await client.wait_completion("x", timeout="20s") == ["c", "step c"]
        assert old[1] is not None
        await until_status(client, old[1], "cancelled")
        await until(lambda: _live(dsn, 0), "nothing is left of the old run")


async def _live(dsn: str, count: int) -> bool:
    return await query(dsn, "SELECT count(*) FROM zart_tasks") == [(count,)]


@durable("approval")
async def approval() -> list[Any]:
    first = await zart.wait_for_event("approved", str)
    return [first, await do("pay"), await do.named("tell")("tell")]


async def test_events_nobody_has_consumed_are_dropped_by_a_restart(dsn: str) -> None:
    """And a rerun keeps both these and what was consumed."""
    async with working(dsn, approval) as client:
        await client.start(approval, id="x")
        await client.offer_event("x", "approved", "by ann")
        assert await client.wait_completion("x", timeout="20s") == ["by ann", "pay", "tell"]
        begun = await client.rerun("x", steps=["do"])
        assert await client.wait_completion("x", timeout="20s") == ["by ann", "pay", "tell"]
        assert begun.stale == ["tell"]
        await client.restart("x")
        await until_status(client, "x", "waiting")
        await client.offer_event("x", "other", 1)
        await client.restart("x")
        await until_status(client, "x", "waiting")
        assert await query(dsn, "SELECT name FROM zart_events WHERE consumed_at IS NULL") == []
        await client.offer_event("x", "approved", "by bob")
        assert await client.wait_completion("x", timeout="20s") == ["by bob", "pay", "tell"]


async def _lent(connection: psycopg.AsyncConnection[Any]) -> None:
    await zart.offer_event("x", "approved", "by ann", connection=connection)


async def _sql(connection: psycopg.AsyncConnection[Any]) -> None:
    await connection.execute("""SELECT zart_offer_event('x', 'approved', '"by ann"')""")


@pytest.mark.parametrize("offer", [_lent, _sql], ids=["lent", "SQL"])
async def test_an_event_that_is_committed_only_after_the_restart_wakes_the_new_run(
    dsn: str, offer: Callable[[psycopg.AsyncConnection[Any]], Awaitable[None]]
) -> None:
    """It was offered while the execution lived, which has other live work by now, and waits for it already."""
    async with working(dsn, approval) as client:
        await client.start(approval, id="x")
        await until_status(client, "x", "waiting")
        async with await psycopg.AsyncConnection.connect(dsn) as somebody:
            await offer(somebody)
            await client.cancel("x", force=True)
            await client.restart("x")
            await until_status(client, "x", "waiting")
        assert await client.wait_completion("x", timeout="20s") == ["by ann", "pay", "tell"]


async def test_an_event_that_waited_for_its_key_beyond_the_restart_wakes_the_new_run(
    dsn: str, direct_dsn: str
) -> None:
    """So it is for one that is offered at once, but could not be inserted before: somebody's open transaction had its
    key."""
    given = {"id": "x", "event": "approved", "payload": '"by ann"', "dedup": "key", "gives_way": "20s"}
    async with (
        working(dsn, approval) as client,
        await _connect(direct_dsn) as program,
        await _connect(dsn) as other,
    ):
        await client.start(approval, id="x")
        await until_status(client, "x", "waiting")
        async with other.transaction(force_rollback=True):
            await other.execute("SELECT zart_offer_event('x', 'approved', '1', 'key')")
            offering = asyncio.create_task(program.execute(load("client", "public")["offer_event"], given))
            await until(lambda: _waits(dsn, program.info.backend_pid))
            await client.cancel("x", force=True)
            await client.restart("x")
            await until_status(client, "x", "waiting")
        assert (await (await offering).fetchone() or ())[:2] == ("scheduled", True)
        assert await client.wait_completion("x", timeout="20s") == ["by ann", "pay", "tell"]


async def _connect(dsn: str) -> psycopg.AsyncConnection[Any]:
    return await psycopg.AsyncConnection.connect(dsn, autocommit=True)


async def _waits(dsn: str, pid: int) -> bool:
    return await query(dsn, "SELECT wait_event_type FROM pg_stat_activity WHERE pid = %s", pid) == [("Lock",)]


# ------------------------------------------------------------ rerun


@durable("report")
async def report() -> list[str]:
    return [
        await do.named("fetch")("fetch"),
        await do.named("clean")("clean"),
        *await asyncio.gather(*(do.named("chart")(f"chart {number}") for number in range(3))),
        await do.named("send")("send"),
    ]


async def test_rerun_keeps_all_results_but_those_of_some_steps(dsn: str) -> None:
    """Each call by its key; what was kept and came later may be stale, and is named."""
    async with working(dsn, report) as client:
        await client.start_and_wait(report, id="x", timeout="20s")
        effects.clear()
        begun = await client.rerun("x", steps=["clean"], reason="new rules")
        result = await client.wait_completion("x", timeout="20s")
        assert result == ["fetch", "clean", "chart 0", "chart 1", "chart 2", "send"]
        assert effects == ["clean"]
        assert sorted(begun.stale) == ["chart", "chart#2", "chart#3", "send"]
        assert (await client.history("x")).run_id == begun.run_id
        effects.clear()
        begun = await client.rerun("x", steps=["chart#2", "send"])
        assert await client.wait_completion("x", timeout="20s") == result
        assert effects == ["chart 1", "send"]
        assert begun.stale == ["chart#3"]


@durable("branches")
async def branches() -> list[str]:
    async def twice(name: str) -> str:
        return await do(f"{name} 1") + await do(f"{name} 2")

    return list(await asyncio.gather(twice("a"), twice("b")))


async def test_a_name_stands_for_all_calls_of_it_where_it_is_no_key(dsn: str) -> None:
    async with working(dsn, branches) as client:
        await client.start_and_wait(branches, id="x", timeout="20s")
        effects.clear()
        await client.rerun("x", steps=["1/do#2"])
        assert await client.wait_completion("x", timeout="20s") == ["a 1a 2", "b 1b 2"]
        assert effects == ["a 2"]
        await client.rerun("x", steps=["do"])
        await client.wait_completion("x", timeout="20s")
        assert sorted(effects[1:]) == ["a 1", "a 2", "b 1", "b 2"]


@durable("chain")
async def chain(start: int) -> str:
    number = await count(start)
    return f"{await do(f'report {number}')} of {number}"


@step("count")
async def count(start: int) -> int:
    effects.append("count")
    return start + effects.count("count")


async def test_kept_results_are_taken_though_their_arguments_changed(dsn: str) -> None:
    """A rerun step gives something else: a kept step that took it is not done again, and the history says so."""
    async with working(dsn, chain) as client:
        assert await client.start_and_wait(chain, 10, id="x", timeout="20s") == "report 11 of 11"
        begun = await client.rerun("x", steps=["count"])
        assert begun.stale == ["do"]
        assert await client.wait_completion("x", timeout="20s") == "report 11 of 12"
        assert any("recorded with other arguments" in note for note in (await client.history("x")).notes)


@pytest.mark.parametrize(
    "state", [running, waiting, completed, failed, cancelled, cancelling], ids=lambda s: s.__name__
)
async def test_rerun_in_any_state(dsn: str, state: Callable[[Client], Awaitable[None]]) -> None:
    """What is recorded is kept, what was under way runs again, and a failure or a cancel is not kept."""
    async with working(dsn, greet) as client:
        await state(client)
        effects.clear()
        before = (await client.status("x")).status
        await client.rerun("x", steps=["do"])
        for gate in gates.values():
            gate.set()
        if state in (waiting, cancelled):
            await until_status(client, "x", "waiting")
            await until_record(client, "x", "do", "completed")
        elif state is failed:
            await until_status(client, "x", "failed")
        else:
            await client.wait_completion("x", timeout="20s")
        assert [effect for effect in effects if effect.startswith("greet")] == [f"greet {_name(state)}"]
        told = (await client.runs("x"))[0].status
        assert told == before or (state is cancelling and told == "cancelled")


def _name(state: Callable[[Client], Awaitable[None]]) -> str:
    return {waiting: "wait", cancelled: "wait", failed: "fail", completed: "done"}.get(state, "hold")


@durable("cleans-up")
async def cleans_up() -> str:
    first = await do("act")
    try:
        await zart.wait_for_event("go")
    except asyncio.CancelledError:
        await do.named("undo")("undo")
        raise
    return f"{first} {await do.named('last')('last')}"


async def test_rerun_after_a_cancel_with_cleanup(dsn: str) -> None:
    """The cancel is not kept, nor the cleanup that followed it: a later cancel cleans up again."""
    async with working(dsn, cleans_up) as client:
        await client.start(cleans_up, id="x")
        await until_status(client, "x", "waiting")
        for _ in range(2):
            await client.cancel("x")
            await until_status(client, "x", "cancelled")
            await client.rerun("x", steps=["do"])
            await until_status(client, "x", "waiting")
        assert effects == ["act", "undo", "act", "undo", "act"]
        await client.offer_event("x", "go")
        assert await client.wait_completion("x", timeout="20s") == "act last"


async def test_rerun_keeps_children_that_have_ended(dsn: str) -> None:
    """A child's result is kept like any other; one that is under way is cancelled and begins anew."""
    gates["b"] = asyncio.Event()
    async with working(dsn, team, child) as client:
        await client.start(team, ["a", "b"], id="x")
        await until(lambda: "b" in effects and "step b" in effects)
        await until_record(client, "x", "child", "completed")
        await until_record(client, "x", "step-a", "completed")
        await until_record(client, "x", "step-b", "completed")
        old = [r.child_id for r in (await client.history("x")).records if r.kind == "child"]
        effects.clear()
        held = gates.pop("b")
        await client.rerun("x", steps=["step-a"])
        assert await client.wait_completion("x", timeout="20s") == ["a", "b", "step a", "step b"]
        held.set()
        assert sorted(effects) == ["b", "step a"]
        new = [r.child_id for r in (await client.history("x")).records if r.kind == "child"]
        assert new[0] == old[0]
        assert new[1] != old[1]


async def test_a_step_that_is_not_recorded(dsn: str) -> None:
    async with working(dsn, greet) as client:
        await completed(client)
        with pytest.raises(UsageError, match="'x' has no record 'ship'; there is do"):
            await client.rerun("x", steps=["ship"])
        with pytest.raises(UsageError, match="give the keys of the calls to do again"):
            await client.rerun("x", steps=[])
        with pytest.raises(UsageError, match="give the keys"):
            await client.rerun("x", steps="do")
        with pytest.raises(ExecutionNotFound):
            await client.rerun("nobody", steps=["do"])
        with pytest.raises(ExecutionNotFound):
            await client.restart("nobody")
        assert len(await client.runs("x")) == 1


# ------------------------------------------------------------ deletion


async def test_delete(dsn: str) -> None:
    """All of an execution is gone, but that it was deleted, by whom and why; its id is free."""
    async with working(dsn, greet) as client:
        await completed(client)
        await client.restart("x", "ann")
        await client.wait_completion("x", timeout="20s")
        assert await client.delete("x", reason="asked for")
        with pytest.raises(ExecutionNotFound):
            await client.status("x")
        for table in ("executions", "execution_runs", "steps", "step_attempts", "events", "tasks"):
            assert await query(dsn, f"SELECT count(*) FROM zart_{table}") == [(0,)], table
        assert await query(dsn, "SELECT what, note FROM zart_history") == [("deleted", "asked for")]
        with pytest.raises(ExecutionNotFound):
            await client.delete("x")
        assert (await client.start(greet, "bob", id="x")).created


async def test_what_has_not_ended_is_not_deleted(dsn: str) -> None:
    async with working(dsn, greet) as client:
        await waiting(client)
        with pytest.raises(UsageError, match="'x' has not ended: cancel it"):
            await client.delete("x")
        assert (await client.status("x")).status == "waiting"
