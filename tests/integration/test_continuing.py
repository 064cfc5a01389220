"""`zart.continue_as_new`: a loop without end is a row of runs, each with a history of its own."""

import asyncio
import datetime as dt
from typing import Any

import msgspec
import pytest

import zart
from tests.support.running import bury_workers, hurrying, query, until, until_status, working
from zart import durable, step

effects: list[Any] = []


@pytest.fixture(autouse=True)
def _no_effects() -> None:
    effects.clear()


@step("note")
async def note(what: str) -> str:
    effects.append(what)
    return what


class Turn(msgspec.Struct):
    number: int
    seen: list[str] = []


# ------------------------------------------------------------ runs


@durable("rounds")
async def rounds(turn: Turn) -> list[str]:
    turn.seen.append(await note(f"round {turn.number}"))
    if turn.number < 4:
        zart.continue_as_new(Turn(turn.number + 1, turn.seen))
    return turn.seen


async def test_the_body_begins_anew_with_another_input(dsn: str) -> None:
    """The same id, a new run with an empty history each time; the result is that of the last one."""
    async with working(dsn, rounds) as client:
        handle = await client.start(rounds, Turn(1), id="x")
        first = (await client.status("x")).run_id
        assert await handle.result(timeout="20s") == [f"round {number}" for number in (1, 2, 3, 4)]
        history = await client.history("x")
        assert history.run_id != first
        assert history.runs[-1] == history.run_id == history.execution.run_id
        assert [record.key for record in history.records] == ["note"]
    assert effects == [f"round {number}" for number in (1, 2, 3, 4)]


async def test_an_execution_that_was_started_from_sql(dsn: str) -> None:
    await query(dsn, """SELECT zart_start('rounds', id => 'x', payload => '{"number": 2}')""")
    async with working(dsn, rounds) as client:
        assert await client.wait_completion("x", timeout="20s") == ["round 2", "round 3", "round 4"]
        # What it was started with is what its id stands for, whatever it goes on with.
        await query(dsn, """SELECT zart_start('rounds', id => 'x', payload => '{"number": 2}')""")
        with pytest.raises(Exception, match="another payload"):
            await query(dsn, """SELECT zart_start('rounds', id => 'x', payload => '{"number": 4}')""")


async def test_a_start_that_is_sent_again(dsn: str) -> None:
    """The same input as the first time is the execution that exists; what it goes on with is no input of a start."""
    async with working(dsn, rounds) as client:
        handle = await client.start(rounds, Turn(1), id="x")
        await handle.result(timeout="20s")
        assert not (await client.start(rounds, Turn(1), id="x")).created
        with pytest.raises(zart.ExecutionConflict):
            await client.start(rounds, Turn(4, ["round 1", "round 2", "round 3"]), id="x")


async def test_the_run_before_can_be_looked_at(dsn: str) -> None:
    """It and the run that is on are kept; another one is unknown."""
    async with working(dsn, rounds) as client:
        first = await client.start(rounds, Turn(3), id="x")
        await first.result(timeout="20s")
        history = await client.history("x")
        assert len(history.runs) == 2
        before = await client.history("x", run_id=history.runs[0])
        assert before.run_id == history.runs[0]
        assert [record.key for record in before.records] == ["note"]
        assert any("continued" in line for line in before.notes)
        with pytest.raises(zart.ExecutionNotFound, match="no run"):
            await client.history("x", run_id="018f0000-0000-7000-8000-000000000000")


@durable("listens")
async def listens(turn: Turn) -> list[str]:
    """Consumes two events a run, and leaves a wait, a failed attempt and a note behind in each."""
    for _ in range(2):
        turn.seen.append(await zart.wait_for_event("line", str))
    await unsteady()
    waiting = asyncio.create_task(zart.sleep("365d"))
    await note(f"round {turn.number}")
    if turn.seen[-1] != "end":
        zart.continue_as_new(Turn(turn.number + 1, turn.seen[-2:]))
    waiting.cancel()
    return turn.seen


failed: set[str] = set()


@step("unsteady", retry="fixed(1, 1ms)")
async def unsteady() -> None:
    run = zart.context().run_id
    if run not in failed:
        failed.add(run)
        raise ConnectionError("the first attempt")


async def test_a_loop_without_end_takes_the_room_of_two_rounds(dsn: str) -> None:
    """Records, attempts, notes, consumed events and runs: after thirty rounds there are no more than after three."""

    async def room() -> dict[str, int]:
        found = {}
        for table in ("steps", "step_attempts", "history", "events", "execution_runs", "tasks", "wakeups"):
            ((found[table],),) = await query(dsn, f"SELECT count(*) FROM zart_{table}")
        return found

    async with working(dsn, listens) as client:
        await client.start(listens, Turn(1), id="x")
        sizes = {}
        for number in range(1, 31):
            for half in (1, 2):
                await client.offer_event("x", "line", f"{number}.{half}", dedup=f"{number}.{half}")
            await until(lambda n=number: f"round {n}" in effects, f"round {number}: {effects}")
            if number in (3, 30):
                await until_status(client, "x", "waiting")
                sizes[number] = await room()
        assert all(sizes[30][table] <= size for table, size in sizes[3].items()), sizes
        assert sizes[30]["execution_runs"] == 2
        # A dedup key is remembered as long as the run that has consumed its event.
        assert not await client.offer_event("x", "line", "again", dedup="30.2")
        await client.offer_event("x", "line", "last")
        await client.offer_event("x", "line", "end")
        assert await client.wait_completion("x", timeout="20s") == ["30.1", "30.2", "last", "end"]


# ------------------------------------------------------------ events, cancels, time


@durable("collects")
async def collects(seen: list[str]) -> list[str]:
    seen.append(await zart.wait_for_event("line", str))
    if seen[-1] != "end":
        zart.continue_as_new(seen)
    return seen


@pytest.mark.parametrize("by_sql", [False, True])
async def test_events_that_come_during_the_switch_are_kept(dsn: str, by_sql: bool) -> None:
    """Each of a hundred events is received by some run, in the order in which they were offered."""
    lines = [str(number) for number in range(100)]
    async with working(dsn, collects) as client:
        handle = await client.start(collects, [], id="x")
        for line in [*lines, "end"]:
            if by_sql:
                await query(dsn, "SELECT zart_offer_event('x', 'line', to_jsonb(%s::text))", line)
            else:
                await client.offer_event("x", "line", line)
        assert await handle.result(timeout="60s") == [*lines, "end"]


async def test_events_over_takeovers_in_the_middle_of_the_switch(dsn: str) -> None:
    """However often its workers are taken for dead: none is lost, none comes twice."""
    lines = [str(number) for number in range(60)]
    async with working(dsn, collects) as client, working(dsn, collects):
        handle = await client.start(collects, [], id="x")
        for number, line in enumerate([*lines, "end"]):
            await client.offer_event("x", "line", line)
            if number % 10 == 5:
                await bury_workers(dsn)
        assert await handle.result(timeout="60s") == [*lines, "end"]


@durable("for-ever")
async def for_ever(number: int) -> None:
    try:
        await zart.sleep("1ms")
        zart.continue_as_new(number + 1)
    except asyncio.CancelledError:
        await note("cancelled")
        zart.continue_as_new(0)  # the outcome of a cancel is `cancelled`, whatever the body wants


async def test_a_cancel_ends_the_loop(dsn: str) -> None:
    """Whichever run it comes to."""
    async with working(dsn, for_ever) as client:
        handle = await client.start(for_ever, 1, id="x")
        first = (await client.status("x")).run_id
        await until(lambda: _other_run(client, first))
        await client.cancel("x", reason="enough")
        with pytest.raises(zart.ExecutionCancelled, match="enough"):
            await handle.result(timeout="20s")


async def _other_run(client: zart.Client, first: str) -> bool:
    return (await client.status("x")).run_id != first


@durable("limited", timeout="1h")
async def limited(number: int) -> int:
    await zart.sleep("40m")
    if number < 3:
        zart.continue_as_new(number + 1)
    return number


async def test_the_time_limit_begins_anew(dsn: str) -> None:
    """Three runs of 40 minutes under a limit of an hour; a fourth that takes 80 is over it."""
    async with working(dsn, limited) as client, hurrying(dsn):
        assert await client.start_and_wait(limited, 1, id="x", timeout="30s") == 3

    @durable("limited", timeout="1h")
    async def slower(number: int) -> int:
        await zart.sleep("40m")
        if number == 1:
            zart.continue_as_new(2)
        await zart.sleep("40m")
        return number

    async with working(dsn, slower) as client, hurrying(dsn):
        handle = await client.start(slower, 1, id="y")
        with pytest.raises(zart.ExecutionTimeout):
            await handle.result(timeout="30s")


@durable("clock")
async def clock(before: list[dt.datetime]) -> list[dt.datetime]:
    before.append(zart.now())
    await zart.sleep("1h")
    if len(before) < 3:
        zart.continue_as_new(before)
    return before


async def test_the_time_of_a_body_goes_on(dsn: str) -> None:
    """`zart.now()` at the beginning of a run is not that of the first one."""
    async with working(dsn, clock) as client, hurrying(dsn):
        times = await client.start_and_wait(clock, [], id="x", timeout="30s")
    assert times[1] - times[0] >= dt.timedelta(hours=1)
    assert times[2] - times[1] >= dt.timedelta(hours=1)


# ------------------------------------------------------------ how it leaves the body


@durable("branches")
async def branches(number: int) -> str:
    async def beside() -> None:
        try:
            await zart.sleep("365d")
        finally:
            await note(f"branch of {number} ended")

    async with asyncio.TaskGroup() as group:
        group.create_task(beside())
        await note(f"body of {number}")
        if number < 2:
            zart.continue_as_new(number + 1)
        raise LookupError("over")


async def test_other_branches_end_first(dsn: str) -> None:
    """Their cleanup runs durably in the run that ends; out of a task group it comes as itself."""
    async with working(dsn, branches) as client:
        handle = await client.start(branches, 1, id="x")
        with pytest.raises(zart.ExecutionFailed, match="TaskGroup"):
            await handle.result(timeout="20s")
    assert effects == ["body of 1", "branch of 1 ended", "body of 2", "branch of 2 ended"]


@durable("left-behind")
async def left_behind(number: int) -> int:
    async def beside() -> None:
        try:
            await zart.sleep("365d")
        finally:
            await note(f"branch of {number} ended")

    task = asyncio.create_task(beside())
    await note(f"body of {number}")
    if number < 2:
        zart.continue_as_new(number + 1)
    task.cancel()
    await asyncio.wait([task])
    return number


async def test_branches_that_are_left_behind_are_cancelled_without_a_warning(dsn: str) -> None:
    async with working(dsn, left_behind) as client:
        assert await client.start_and_wait(left_behind, 1, id="x", timeout="20s") == 2
        history = await client.history("x")
        before = await client.history("x", run_id=history.runs[0])
    assert effects == ["body of 1", "branch of 1 ended", "body of 2", "branch of 2 ended"]
    assert [record.key for record in before.records if record.kind == "step"] == ["note", "1/note"]
    assert [line for line in history.notes if "warning" in line] == []


@durable("cleans-up")
async def cleans_up(number: int) -> int:
    try:
        await note(f"body of {number}")
        if number < 2:
            zart.continue_as_new(number + 1)
        return number
    except Exception:
        return -1
    finally:
        await note(f"cleanup of {number}")


async def test_cleanup_runs_and_except_exception_does_not_catch_it(dsn: str) -> None:
    async with working(dsn, cleans_up) as client:
        assert await client.start_and_wait(cleans_up, 1, id="x", timeout="20s") == 2
    assert effects == ["body of 1", "cleanup of 1", "body of 2", "cleanup of 2"]


@durable("retried", max_retries="fixed(1, 1ms)")
async def retried(number: int) -> int:
    await note(f"run {number}")
    if zart.context().attempt == 1:
        raise LookupError("once in each run")
    if number < 3:
        zart.continue_as_new(number + 1)
    return number


async def test_each_run_has_all_attempts_of_the_body(dsn: str) -> None:
    async with working(dsn, retried) as client:
        assert await client.start_and_wait(retried, 1, id="x", timeout="20s") == 3


async def supervise(_data: int, failure: zart.Failure) -> None:
    await note(f"failed: {failure.message}")
    if effects.count("failed: no") < 3:
        zart.continue_as_new()


@durable("supervised", on_failure=supervise)
async def supervised(data: int) -> int:
    await note(f"given {data}")
    raise LookupError("no")


async def test_on_failure_may_begin_anew(dsn: str) -> None:
    """It is a body of the run; without data the new run is given the same input."""
    async with working(dsn, supervised) as client:
        handle = await client.start(supervised, 7, id="x")
        with pytest.raises(zart.ExecutionFailed, match="no"):
            await handle.result(timeout="20s")
    assert effects == ["given 7", "failed: no"] * 3


@durable("without-input")
async def without_input() -> int:
    await note("run")
    if len(effects) < 3:
        zart.continue_as_new()
    return len(effects)


async def test_a_function_without_input(dsn: str) -> None:
    async with working(dsn, without_input) as client:
        assert await client.start_and_wait(without_input, id="x", timeout="20s") == 3


@durable("refused")
async def refused() -> str:
    try:
        zart.continue_as_new(7)
    except zart.UsageError as error:
        return str(error)


@durable("not-storable")
async def not_storable(data: Any) -> str:
    try:
        zart.continue_as_new({1, 2})
    except zart.SerializationError as error:
        return str(error)


async def test_data_that_cannot_be_an_input(dsn: str) -> None:
    """For a function that takes none, or what cannot be stored: an error that names the execution."""
    async with working(dsn, refused, not_storable) as client:
        told = await client.start_and_wait(refused, id="x", timeout="20s")
        assert "'x'" in told
        assert "takes none" in told
        told = await client.start_and_wait(not_storable, 1, id="y", timeout="20s")
        assert "'y'" in told


@durable("swallows")
async def swallows(number: int) -> int:
    try:
        zart.continue_as_new(number + 1)
    except BaseException:
        await note("swallowed")
    return number


async def test_a_body_that_catches_everything_goes_on(dsn: str) -> None:
    """Like any exception it has no effect where it is caught."""
    async with working(dsn, swallows) as client:
        assert await client.start_and_wait(swallows, 1, id="x", timeout="20s") == 1
        assert len((await client.history("x")).runs) == 1


async def test_a_patch_is_asked_for_anew_in_each_run(dsn: str) -> None:
    """So a loop without end takes up a change of its code with its next round."""

    def deployed(*, new: bool) -> zart.Durable[[int], list[Any]]:
        @durable("deployed")
        async def body(number: int) -> list[Any]:
            label = "new" if new and zart.patched("change") else "old"
            await note(f"{label} {number}")
            await zart.wait_for_event("go")
            if number < 2:
                zart.continue_as_new(number + 1)
            return effects

        return body

    async with working(dsn, deployed(new=False)) as client:
        await client.start("deployed", 1, id="x")
        await until_status(client, "x", "waiting")
    async with working(dsn, deployed(new=True)) as client:
        for _ in range(2):
            await client.offer_event("x", "go")
        await client.wait_completion("x", timeout="20s")
    assert effects == ["old 1", "new 2"]


# ------------------------------------------------------------ what a run has given away


@step("slow-{number}")
async def slow(number: int) -> int:
    await gates[number].wait()
    effects.append(f"slow {number}")
    return number


gates: dict[int, asyncio.Event] = {}


@durable("hands-on")
async def hands_on(number: int) -> int:
    zart.schedule_step(slow, number)
    zart.start_child(grandchild, number)
    if number < 4:
        zart.continue_as_new(number + 1)
    return number


@durable("grandchild")
async def grandchild(number: int) -> int:
    await zart.wait_for_event("go")
    await note(f"child {number}")
    return number


async def test_what_a_run_has_given_away_goes_on_without_it(dsn: str) -> None:
    """Scheduled steps and children that nobody has awaited are detached: they end when they end, also after their run
    would have been forgotten; the last run waits for its own."""
    gates.update({number: asyncio.Event() for number in (1, 2, 3, 4)})
    async with working(dsn, hands_on, grandchild) as client:
        handle = await client.start(hands_on, 1, id="x")
        await until(lambda: _given(dsn, 8))
        children = [
            row[0] for row in await query(dsn, "SELECT id FROM zart_executions WHERE parent_id = 'x'")
        ]
        assert len(children) == 4
        gates[4].set()
        await client.offer_event(await _child_of_the_last_run(dsn), "go")
        assert await handle.result(timeout="20s") == 4
        assert sorted(effects) == ["child 4", "slow 4"]
        for number in (1, 2, 3):
            gates[number].set()
        for one in children:
            if (await client.status(one)).status != "completed":
                await client.offer_event(one, "go")
        await until(lambda: len(effects) == 8, f"all of it: {effects}")
        await until(lambda: _no_tasks(dsn))


async def _given(dsn: str, count: int) -> bool:
    ((found,),) = await query(dsn, "SELECT count(*) FROM zart_steps WHERE task_id IS NOT NULL")
    return bool(found == count)


async def _child_of_the_last_run(dsn: str) -> str:
    ((id,),) = await query(
        dsn,
        "SELECT c.id FROM zart_executions c JOIN zart_executions e ON e.id = c.parent_id AND e.run_id = c.parent_run",
    )
    return str(id)


async def _no_tasks(dsn: str) -> bool:
    return not await query(dsn, "SELECT 1 FROM zart_tasks")


@durable("awaits-a-loop")
async def awaits_a_loop() -> list[str]:
    return await rounds(Turn(1))


async def test_a_child_that_begins_anew(dsn: str) -> None:
    """Its parent waits for the last run."""
    async with working(dsn, awaits_a_loop, rounds) as client:
        result = await client.start_and_wait(awaits_a_loop, id="x", timeout="20s")
    assert result == [f"round {number}" for number in (1, 2, 3, 4)]


async def test_in_memory() -> None:
    """`zart.testing.run` goes through all runs; what a run has given away concerns the next one no more."""
    import zart.testing

    assert (await zart.testing.run(rounds, Turn(1))).result == [f"round {number}" for number in (1, 2, 3, 4)]
    assert (await zart.testing.run(clock, [])).slept >= 3 * 3600
    gates.update({number: asyncio.Event() for number in (1, 2, 3, 4)})
    for gate in gates.values():
        gate.set()
    outcome = await zart.testing.run(hands_on_steps, 1)
    assert outcome.result == 4


@durable("hands-on-steps")
async def hands_on_steps(number: int) -> int:
    zart.schedule_step(slow, number)
    if number < 4:
        zart.continue_as_new(number + 1)
    return number
