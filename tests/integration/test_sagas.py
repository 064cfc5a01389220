"""A saga: what was registered is undone when its block fails, durably, last one first, and never while an act runs."""

import asyncio
import datetime as dt
import threading
from pathlib import Path
from typing import Any

import anyio
import psycopg
import pytest

import zart
from tests.support.command import Command
from tests.support.running import (
    bury_workers,
    query,
    shift_clock,
    stir,
    until,
    until_record,
    until_status,
    working,
)
from zart import durable, step
from zart._engine import points

HOUR = dt.timedelta(hours=1)

effects: list[str] = []
broken: set[str] = set()
keys: list[str] = []
may_end: list[asyncio.Event] = []


@pytest.fixture(autouse=True)
def _no_effects() -> None:
    effects.clear()
    broken.clear()
    keys.clear()
    may_end[:] = [asyncio.Event()]


@step("do-{name}")
async def do(name: str) -> str:
    if name in broken:
        raise ConnectionError(f"{name} does not answer")
    effects.append(name)
    return name.upper()


@step("undo-{name}", retry="fixed(1, 10ms)")
async def undo(name: str) -> None:
    effects.append(f"-{name}")
    if f"{name}-undo" in broken:
        raise ConnectionError(f"{name} cannot be undone")


async def acts(*names: str) -> None:
    """Each of them, with its undo registered before."""
    async with zart.saga() as saga:
        for name in names:
            saga.add(undo, name)
            await do(name)


async def done(client: zart.Client, id: str) -> list[str]:
    return [f"{record.key} {record.state}" for record in (await client.history(id)).records]


# ------------------------------------------------------------ when it undoes


@durable("three-acts")
async def three_acts(how: str) -> str:
    async with zart.saga() as saga:
        for name in "abc":
            saga.add(undo, name)
            await do(name)
        if how == "fails":
            raise LookupError("no courier")
        if how == "waits":
            await zart.sleep("30ms")
            await zart.wait_for_event("go", timeout="1d")
        if how == "compensates":
            await saga.compensate()
            await saga.compensate()
            effects.append("and again")
            await saga.compensate()
        if how == "compensates and fails":
            await saga.compensate()
            raise LookupError("no courier")
        return how


every_way = pytest.mark.parametrize("always_suspend", [False, True], ids=["live", "suspended"])


@every_way
async def test_a_failure_undoes_in_reverse(dsn: str, always_suspend: bool) -> None:
    """An exception that leaves the block runs the undos, last one first, and then goes on."""
    async with working(dsn, three_acts, always_suspend=always_suspend) as client:
        with pytest.raises(zart.ExecutionFailed, match="no courier"):
            await client.start_and_wait(three_acts, "fails", id="x", timeout="10s")
        assert effects == ["a", "b", "c", "-c", "-b", "-a"]
        assert await done(client, "x") == [
            "do-a completed", "do-b completed", "do-c completed",
            "undo-c completed", "undo-b completed", "undo-a completed",
        ]  # fmt: skip


@durable("fails-in-the-middle")
async def fails_in_the_middle() -> None:
    async with zart.saga() as saga:
        for name in ("a", "unsteady", "c"):
            saga.add(undo, name)
            await (fails(name) if name == "unsteady" else do(name))


@step("fails")
async def fails(name: str) -> None:
    effects.append(name)
    raise ConnectionError(f"no answer to {name}")


async def test_the_act_that_failed_is_undone_too(dsn: str) -> None:
    """An undo is registered before its act: one that fails, or is cut off, may have had its effect."""
    async with working(dsn, fails_in_the_middle) as client:
        with pytest.raises(zart.ExecutionFailed, match="no answer to unsteady"):
            await client.start_and_wait(fails_in_the_middle, timeout="10s")
    assert effects == ["a", "unsteady", "-unsteady", "-a"]


@every_way
async def test_a_return_undoes_nothing(dsn: str, always_suspend: bool) -> None:
    """Neither a return nor a suspension is a failure."""
    async with working(dsn, three_acts, always_suspend=always_suspend) as client:
        handle = await client.start(three_acts, "waits", id="x")
        await until_record(client, "x", "sleep", "completed")
        await until_status(client, "x", "waiting")
        await client.offer_event("x", "go")
        assert await handle.result(timeout="10s") == "waits"
    assert effects == ["a", "b", "c"]


async def test_a_shutdown_and_a_takeover_undo_nothing(dsn: str) -> None:
    """A worker that stops or is taken for dead leaves the block without its having failed."""
    async with working(dsn, three_acts) as client:
        handle = await client.start(three_acts, "waits", id="x")
        await until_record(client, "x", "go", "waiting")
        await bury_workers(dsn)
    async with working(dsn, three_acts) as client:
        await until_status(client, "x", "waiting")
    async with working(dsn, three_acts) as client:
        handle = client.handle(three_acts, "x")
        await client.offer_event("x", "go")
        assert await handle.result(timeout="10s") == "waits"
    assert effects == ["a", "b", "c"]


async def test_a_cancel_undoes(dsn: str) -> None:
    """A cancel leaves the block like an exception; the outcome is cancelled once everything is undone."""
    async with working(dsn, three_acts) as client:
        handle = await client.start(three_acts, "waits", id="x")
        await until_record(client, "x", "go", "waiting")
        assert await client.cancel("x", reason="changed his mind")
        with pytest.raises(zart.ExecutionCancelled, match="changed his mind"):
            await handle.result(timeout="10s")
    assert effects == ["a", "b", "c", "-c", "-b", "-a"]


@pytest.mark.not_in("suspending", "twice", reason="the body itself says that it goes on")
async def test_compensate_undoes_once(dsn: str) -> None:
    """An explicit call undoes, the body goes on, and a second call does nothing."""
    async with working(dsn, three_acts) as client:
        assert await client.start_and_wait(three_acts, "compensates", timeout="10s") == "compensates"
    assert effects == ["a", "b", "c", "-c", "-b", "-a", "and again"]


@every_way
async def test_a_failure_after_compensate_undoes_nothing_more(dsn: str, always_suspend: bool) -> None:
    """What is undone is not undone again when an exception leaves the block."""
    async with working(dsn, three_acts, always_suspend=always_suspend) as client:
        with pytest.raises(zart.ExecutionFailed, match="no courier"):
            await client.start_and_wait(three_acts, "compensates and fails", timeout="10s")
    assert effects == ["a", "b", "c", "-c", "-b", "-a"]


@durable("limited", timeout="1h")
async def limited() -> None:
    async with zart.saga() as saga:
        saga.add(undo, "a")
        await do("a")
        await zart.wait_for_event("never")


async def test_the_time_limit_of_the_execution_undoes(dsn: str) -> None:
    """It leaves the block like a cancel, and the undos run past it."""
    async with working(dsn, limited) as client:
        handle = await client.start(limited, id="x")
        await until_status(client, "x", "waiting")
        await shift_clock(dsn, 2 * HOUR)
        with pytest.raises(zart.ExecutionTimeout):
            await handle.result(timeout="10s")
    assert effects == ["a", "-a"]


@durable("limited-block")
async def limited_block() -> str:
    try:
        async with zart.timeout("1h"), zart.saga() as saga:
            saga.add(undo, "a")
            await do("a")
            await zart.wait_for_event("never")
    except TimeoutError:
        return await do("b")
    return "never"


async def test_a_time_limit_in_the_body_undoes(dsn: str) -> None:
    """`zart.timeout` around the block: everything is undone, then the body goes on with its TimeoutError."""
    async with working(dsn, limited_block) as client:
        handle = await client.start(limited_block, id="x")
        await until_status(client, "x", "waiting")
        await shift_clock(dsn, 2 * HOUR)
        assert await handle.result(timeout="10s") == "B"
    assert effects == ["a", "-a", "b"]


# ------------------------------------------------------------ no act overlaps its undo


@step("slow")
async def slow(name: str) -> None:
    effects.append(f"{name} begins")
    try:
        await asyncio.sleep(60)
    finally:
        for _ in range(20):
            await asyncio.sleep(0)
        effects.append(f"{name} ends")


@durable("fails-beside")
async def fails_beside() -> None:
    async def branch() -> None:
        try:
            await zart.sleep("1d")
        finally:
            await do("cleanup")

    async with zart.saga() as saga:
        saga.add(undo, "slow")
        await asyncio.gather(slow("slow"), branch(), fails("other"))


async def test_branches_have_ended_before_the_first_undo(dsn: str) -> None:
    """What the block has started is cancelled, and has ended with its cleanup, before anything is undone."""
    async with working(dsn, fails_beside) as client:
        with pytest.raises(zart.ExecutionFailed, match="no answer to other"):
            await client.start_and_wait(fails_beside, timeout="10s")
    assert sorted(effects[:4]) == ["cleanup", "other", "slow begins", "slow ends"]
    assert effects[4:] == ["-slow"]


released = threading.Event()


@step("in-a-thread", timeout="50ms")
def in_a_thread() -> None:
    effects.append("thread begins")
    released.wait(10)
    effects.append("thread ends")


@durable("thread-past-its-limit")
async def thread_past_its_limit() -> None:
    async with zart.saga() as saga:
        saga.add(undo, "thread")
        await in_a_thread()


async def test_a_thread_has_returned_before_it_is_undone(dsn: str) -> None:
    """A plain function past its time limit cannot be cut: its undo waits until its thread has returned."""
    released.clear()
    async with working(dsn, thread_past_its_limit) as client:
        handle = await client.start(thread_past_its_limit, id="x")
        await until_record(client, "x", "in-a-thread", "failed")
        assert effects == ["thread begins"]
        released.set()
        with pytest.raises(zart.ExecutionFailed, match="did not finish within 50ms"):
            await handle.result(timeout="10s")
    assert effects == ["thread begins", "thread ends", "-thread"]


@step("in-a-thread-for-long")
def in_a_thread_for_long() -> None:
    effects.append("thread begins")
    released.wait(10)
    effects.append("thread ends")


@durable("thread-cancelled")
async def thread_cancelled() -> None:
    async with zart.saga() as saga:
        saga.add(undo, "thread")
        await in_a_thread_for_long()


async def test_a_thread_whose_execution_is_cancelled_has_returned_before_it_is_undone(dsn: str) -> None:
    """A cancel cannot cut a plain function either."""
    released.clear()
    async with working(dsn, thread_cancelled) as client:
        handle = await client.start(thread_cancelled, id="x")
        await until(lambda: effects)
        await client.cancel("x")
        await until_record(client, "x", "cancel")
        assert effects == ["thread begins"]
        released.set()
        with pytest.raises(zart.ExecutionCancelled):
            await handle.result(timeout="10s")
    assert effects == ["thread begins", "thread ends", "-thread"]


# ------------------------------------------------------------ cancelled while it undoes


@step("undo-slowly")
async def undo_slowly(name: str) -> None:
    effects.append(f"-{name} begins")
    async with asyncio.timeout(10):
        await may_end[0].wait()
    effects.append(f"-{name} ends")


@durable("undoes-slowly")
async def undoes_slowly() -> None:
    async with zart.saga() as saga:
        saga.add(undo, "a")
        saga.add(undo_slowly, "b")
        raise LookupError("no courier")


@pytest.mark.not_in(
    "suspending", reason="the cancel's record unwinds the body, which cuts the undo like a crash"
)
async def test_a_cancel_does_not_cut_an_undo(dsn: str) -> None:
    """A cancel that comes while something is undone waits until all is undone; the outcome is cancelled."""
    async with working(dsn, undoes_slowly) as client:
        handle = await client.start(undoes_slowly, id="x")
        await until(lambda: effects)
        await client.cancel("x")
        await until_record(client, "x", "cancel")
        assert effects == ["-b begins"]
        may_end[0].set()
        with pytest.raises(zart.ExecutionCancelled):
            await handle.result(timeout="10s")
    assert effects == ["-b begins", "-b ends", "-a"]


@step("undo-later", retry="fixed(1, 1h)")
async def undo_later() -> None:
    effects.append("-later")
    if effects.count("-later") == 1:
        raise ConnectionError("not now")


@durable("undoes-later")
async def undoes_later() -> None:
    async with zart.saga() as saga:
        saga.add(undo, "a")
        saga.add(undo_later)
        raise LookupError("no courier")


async def test_an_undo_waits_for_its_next_attempt_like_any_step(dsn: str) -> None:
    """With an hour until then the execution is parked; a cancel does not shorten that."""
    async with working(dsn, undoes_later) as client:
        handle = await client.start(undoes_later, id="x")
        await until_status(client, "x", "waiting")
        assert "step undo-later, attempt 2" in ((await client.status("x")).waiting_for or "")
        await client.cancel("x")
        await until_record(client, "x", "cancel")
        await until_status(client, "x", "waiting")
        assert effects == ["-later"]
        await shift_clock(dsn, 2 * HOUR)
        with pytest.raises(zart.ExecutionCancelled):
            await handle.result(timeout="10s")
    assert effects == ["-later", "-later", "-a"]


@durable("in-a-task-group-of-anyio")
async def in_a_task_group_of_anyio() -> None:
    async def branch() -> None:
        async with zart.saga() as saga:
            saga.add(undo, "a")
            saga.add(undo_later)
            await zart.wait_for_event("never")

    async with anyio.create_task_group() as group:
        group.start_soon(branch)
        await fails("sibling")


async def test_a_cancelled_scope_of_anyio_does_not_cut_an_undo(dsn: str) -> None:
    """anyio cancels what is in a scope again and again: the undo goes on, and is parked until its next attempt."""
    async with working(dsn, in_a_task_group_of_anyio) as client:
        handle = await client.start(in_a_task_group_of_anyio, id="x")
        await until(lambda: "-later" in effects)
        await until_status(client, "x", "waiting")
        assert "step 1/undo-later, attempt 2" in ((await client.status("x")).waiting_for or "")
        await shift_clock(dsn, 2 * HOUR)
        with pytest.raises(zart.ExecutionFailed, match="unhandled errors in a TaskGroup"):
            await handle.result(timeout="10s")
    assert effects == ["sibling", "-later", "-later", "-a"]


async def test_a_takeover_goes_on_with_the_undo(dsn: str) -> None:
    """A worker that dies in the middle of the undoing: another one goes on behind the last record."""
    async with working(dsn, three_acts) as client:
        reached = asyncio.Event()
        handle = await client.start(three_acts, "fails", id="x")
        points.listener = lambda point: reached.set() if point == "saga.undoing" else None
        await reached.wait()
        await bury_workers(dsn)
        points.listener = None
        with pytest.raises(zart.ExecutionFailed, match="no courier"):
            await handle.result(timeout="10s")
    assert [effect for effect in effects if not effect.startswith("-")] == ["a", "b", "c"]
    assert list(dict.fromkeys(effects))[3:] == ["-c", "-b", "-a"]


# ------------------------------------------------------------ an undo that fails for good


@durable("cannot-be-undone")
async def cannot_be_undone(how: str) -> str:
    async with zart.saga() as outer:
        outer.add(undo, "z")
        async with zart.saga() as saga:
            for name in "abc":
                saga.add(undo, name)
                await do(name)
            if how == "waits":
                await zart.wait_for_event("go")
            raise LookupError("no courier")
    return "never"


@every_way
async def test_an_undo_that_fails_for_good_blocks(dsn: str, always_suspend: bool) -> None:
    """After its retries the execution is blocked, and says what is undone and what is not; a resume goes on there."""
    broken.add("b-undo")
    async with working(dsn, cannot_be_undone, always_suspend=always_suspend) as client:
        handle = await client.start(cannot_be_undone, "fails", id="x")
        with pytest.raises(zart.ExecutionBlocked) as caught:
            await handle.result(timeout="10s")
        failure = caught.value.failure
        assert failure.message == (
            "b cannot be undone; undone: undo-c; not undone: undo-b (failed), undo-a, undo-z; "
            "after a resume it goes on with undo-b"
        )
        assert (failure.type, failure.step, failure.attempts) == ("ConnectionError", "undo-b", 2)
        assert effects == ["a", "b", "c", "-c", "-b", "-b"]
        notes = "\n".join((await client.history("x")).notes)
        assert "blocked: an undo failed" in notes
        assert "attempt 2 of 'undo-b' failed: ConnectionError: b cannot be undone" in notes

        await client.resume("x")
        with pytest.raises(zart.ExecutionBlocked, match="b cannot be undone"):
            await handle.result(timeout="10s")
        assert effects == ["a", "b", "c", "-c", *["-b"] * 4], "with all its retries anew"

        broken.clear()
        await client.resume("x")
        with pytest.raises(zart.ExecutionFailed, match="no courier"):
            await handle.result(timeout="10s")
    assert effects == ["a", "b", "c", "-c", *["-b"] * 5, "-a", "-z"]


async def test_the_command_line_shows_what_is_undone(dsn: str, tmp_path: Path) -> None:
    """`zart show` has the attempts of the undo, the list, and the command to go on."""
    broken.add("b-undo")
    async with working(dsn, cannot_be_undone) as client:
        await client.start(cannot_be_undone, "fails", id="x")
        await until_status(client, "x", "blocked")
        shown = (await asyncio.to_thread(Command(tmp_path, dsn), "show", "x")).stdout
    assert "attempt 2 of 'undo-b' failed" in shown
    assert "undone: undo-c; not undone: undo-b (failed), undo-a, undo-z" in shown
    assert "zart resume x" in shown


@every_way
async def test_a_cancel_whose_undo_fails_is_blocked(dsn: str, always_suspend: bool) -> None:
    """A cancel does not end what is not undone; asking twice changes nothing; after a resume it is cancelled."""
    broken.add("b-undo")
    async with working(dsn, cannot_be_undone, always_suspend=always_suspend) as client:
        handle = await client.start(cannot_be_undone, "waits", id="x")
        await until_record(client, "x", "go", "waiting")
        await client.cancel("x", reason="first")
        await until_status(client, "x", "blocked")
        assert (await client.status("x")).cancelling
        assert not await client.cancel("x", reason="second")
        await query(dsn, "SELECT zart_cancel('x', 'third')")
        await until_no_wakeups(dsn)
        assert (await client.status("x")).status == "blocked"

        broken.clear()
        await client.resume("x")
        with pytest.raises(zart.ExecutionCancelled, match="first"):
            await handle.result(timeout="10s")
    assert effects == ["a", "b", "c", "-c", "-b", "-b", "-b", "-a", "-z"]


POINTS = (
    "step.failed",
    "ending.begin",
    "journal.record-and-end.begin",
    "journal.record-and-end.sent",
    "journal.record-and-end.answered",
    "ending.acknowledged",
)


@pytest.mark.not_in("pgbouncer", reason="the point is reached while a statement is on its way")
@pytest.mark.parametrize("point", POINTS)
async def test_taken_for_dead_while_it_gives_an_undo_up(
    dsn: str, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever its worker loses it: it is blocked in the end, and nothing that is undone is undone again."""
    broken.add("b-undo")
    buried: list[str] = []

    def bury(reached: str) -> None:
        if reached == point and effects.count("-b") == 2 and not buried:
            buried.append(reached)
            with psycopg.connect(dsn, autocommit=True) as connection:
                # Without waiting for what the worker's own statement holds, since this stands in its way.
                connection.execute(
                    "DELETE FROM zart_workers WHERE worker_id IN"
                    " (SELECT worker_id FROM zart_workers FOR UPDATE SKIP LOCKED)"
                )

    monkeypatch.setattr(points, "listener", bury)
    async with working(dsn, cannot_be_undone) as client:
        handle = await client.start(cannot_be_undone, "fails", id="x")
        with pytest.raises(zart.ExecutionBlocked, match="undone: undo-c; not undone: undo-b"):
            await handle.result(timeout="10s")
        assert buried
        broken.clear()
        await client.resume("x")
        with pytest.raises(zart.ExecutionFailed, match="no courier"):
            await handle.result(timeout="10s")
    assert [effect for effect in effects if effect != "-b"] == ["a", "b", "c", "-c", "-a", "-z"]


async def until_no_wakeups(dsn: str) -> None:
    await stir(dsn)

    async def none() -> bool:
        return not await query(dsn, "SELECT FROM zart_wakeups")

    await until(none, "that all wake-ups are applied")


async def test_what_cannot_be_undone_can_be_given_up(dsn: str) -> None:
    """A person may decide to leave it: a cancel of what is blocked, by force where it was being cancelled already."""
    broken.add("b-undo")
    async with working(dsn, cannot_be_undone) as client:
        for id, how in (("x", "fails"), ("y", "waits")):
            handle = await client.start(cannot_be_undone, how, id=id)
            if how == "waits":
                await until_record(client, id, "go", "waiting")
                await client.cancel(id)
            await until_status(client, id, "blocked")
            assert await client.cancel(id, force=how == "waits")
            with pytest.raises(zart.ExecutionCancelled):
                await handle.result(timeout="10s")


# ------------------------------------------------------------ one within another


@durable("nested")
async def nested(how: str) -> str:
    async with zart.saga() as outer:
        outer.add(undo, "a")
        await do("a")
        try:
            await acts("b", "c")
        except ConnectionError:
            if how != "the inner one, caught":
                raise
        outer.add(undo, "d")
        await do("d")
        if how == "the outer one":
            raise LookupError("no courier")
    return how


NESTED = {
    "neither": ["a", "b", "c", "d"],
    "the inner one": ["a", "b", "-c", "-b", "-a"],
    "the inner one, caught": ["a", "b", "-c", "-b", "d"],
    "the outer one": ["a", "b", "c", "d", "-d", "-c", "-b", "-a"],
}


@every_way
@pytest.mark.parametrize("how", NESTED)
async def test_a_saga_within_another(dsn: str, how: str, always_suspend: bool) -> None:
    """An inner one that fails is undone before the outer one; one that ended well is the outer one's to undo."""
    if how.startswith("the inner one"):
        broken.add("c")
    async with working(dsn, nested, always_suspend=always_suspend) as client:
        handle = await client.start(nested, how, id="x")
        try:
            assert await handle.result(timeout="10s") == how
        except zart.ExecutionFailed:
            assert how in {"the inner one", "the outer one"}
    assert effects == NESTED[how]


@durable("nested-in-none")
async def nested_in_none(how: str) -> str:
    async with zart.saga() as outer:
        outer.add(undo, "a")
        await do("a")
        middle = zart.saga()
        middle.add(undo, "b")
        await do("b")
        await acts("c")
        if how == "the middle one":
            await middle.compensate()
        await do("d")
        raise LookupError("no courier")


@every_way
@pytest.mark.parametrize("how", ["the middle one", "the outer one"])
async def test_a_saga_within_one_without_a_block(dsn: str, how: str, always_suspend: bool) -> None:
    """It belongs to the one without a block and to the one around that: whoever is undone first undoes it, once."""
    async with working(dsn, nested_in_none, always_suspend=always_suspend) as client:
        with pytest.raises(zart.ExecutionFailed, match="no courier"):
            await client.start_and_wait(nested_in_none, how, timeout="10s")
    undone = ["-c", "-b", "d", "-a"] if how == "the middle one" else ["d", "-c", "-a"]
    assert effects == ["a", "b", "c", *undone]


# ------------------------------------------------------------ the body is run again


@step("keyed-{name}")
async def keyed(name: str) -> str:
    effects.append(f"{name}{zart.context().attempt}")
    keys.append(zart.step_context().idempotency_key)
    if name in broken and zart.context().attempt < 3:
        raise ConnectionError(f"{name} does not answer")
    return f"{name}{zart.context().attempt}"


@step("undo-keyed-{name}")
async def undo_keyed(name: str, what: str) -> None:
    effects.append(f"-{what}")
    keys.append(zart.step_context().idempotency_key)


@durable("tries-again", max_retries="fixed(2, 10ms)")
async def tries_again(how: str) -> list[str]:
    before = await keyed("a")
    try:
        async with zart.saga() as saga:
            saga.add(undo_keyed, "b", "b")
            inside = await keyed("b")
            await zart.wait_for_event("approved")
            if how == "inside":
                saga.add(undo_keyed, "c", "c")
                await keyed("c")
    except ConnectionError as error:
        if how == "wrapped":
            raise LookupError("wrapped") from error
        raise
    if how == "after":
        await keyed("c")
    return [before, inside]


@every_way
async def test_what_was_undone_is_done_afresh_when_the_body_is_run_again(
    dsn: str, always_suspend: bool
) -> None:
    """Acts and undos within are run by each attempt, under another idempotency key; the rest is kept."""
    broken.add("c")
    async with working(dsn, tries_again, always_suspend=always_suspend) as client:
        handle = await client.start(tries_again, "inside", id="x")
        await client.offer_event("x", "approved")
        assert await handle.result(timeout="10s") == ["a1", "b3"]
        notes = "\n".join((await client.history("x")).notes)
        assert await done(client, "x") == [
            "keyed-a completed", "approved completed", "saga:1/undone completed", "saga:1/undone#2 completed",
            "keyed-b completed", "keyed-c completed",
        ]  # fmt: skip
    assert effects == ["a1", "b1", "c1", "-c", "-b", "b2", "c2", "-c", "-b", "b3", "c3"]
    assert len(set(keys)) == len(keys)
    assert "attempt 1 of 'keyed-b' is set aside: its saga was undone, and the body runs again" in notes
    assert "no longer called" not in notes


@every_way
async def test_a_saga_that_ended_well_is_kept_when_the_body_is_run_again(
    dsn: str, always_suspend: bool
) -> None:
    """What failed after it concerns it no more: its acts are completed steps like others."""
    broken.add("c")
    async with working(dsn, tries_again, always_suspend=always_suspend) as client:
        handle = await client.start(tries_again, "after", id="x")
        await client.offer_event("x", "approved")
        assert await handle.result(timeout="10s") == ["a1", "b1"]
    assert effects == ["a1", "b1", "c1", "c2", "c3"]
    assert len(set(keys)) == 3


@durable("second-choice", max_retries="fixed(2, 10ms)")
async def second_choice() -> str:
    for choice in ("b", "d"):
        try:
            async with zart.saga() as saga:
                saga.add(undo_keyed, choice, choice)
                chosen = await keyed(choice)
                if choice == "b":
                    await fails("b is full")
                break
        except ConnectionError:
            continue
    return chosen + await keyed("c")


@every_way
async def test_a_saga_whose_failure_was_caught_is_kept_when_the_body_is_run_again(
    dsn: str, always_suspend: bool
) -> None:
    """It was undone, and the body went on with something else: the next attempt comes to the same without any act."""
    broken.add("c")
    async with working(dsn, second_choice, always_suspend=always_suspend) as client:
        assert await client.start_and_wait(second_choice, timeout="10s") == "d1c3"
    assert effects == ["b1", "b is full", "-b", "d1", "c1", "c2", "c3"]


@durable("taken-along", max_retries="fixed(2, 10ms)")
async def taken_along(how: str) -> list[str]:
    out: list[str] = []
    begun = asyncio.Event()

    async def beside() -> None:
        async with zart.saga() as saga:
            saga.add(undo_keyed, "b", "b")
            out.append(await keyed("b"))
            begun.set()
            if zart.context().attempt < 3:
                await zart.wait_for_event("never")

    async with asyncio.TaskGroup() as group:
        group.create_task(beside())
        await begun.wait()
        if how == "of a step":
            out.append(await keyed("c"))
        elif zart.context().attempt < 3:
            raise RuntimeError("of its own")
    return out


@every_way
@pytest.mark.parametrize("how", ["of a step", "of the body"])
async def test_a_saga_that_a_failure_took_along_is_done_afresh_too(
    dsn: str, how: str, always_suspend: bool
) -> None:
    """A sibling's failure cancels the block; when that works at the next attempt, nothing would undo it again."""
    broken.add("c")
    async with working(dsn, taken_along, always_suspend=always_suspend) as client:
        handle = await client.start(taken_along, how, id="x")
        assert await handle.result(timeout="10s") == (["b3", "c3"] if how == "of a step" else ["b3"])
    assert [effect for effect in effects if "b" in effect] == ["b1", "-b", "b2", "-b", "b3"]
    assert len(set(keys)) == (6 if how == "of a step" else 5), "that of the failed step is kept"


@durable("too-late", max_retries="fixed(2, 10ms)")
async def too_late() -> list[str]:
    out: list[str] = []
    try:
        async with zart.timeout("20ms"), zart.saga() as saga:
            saga.add(undo_keyed, "b", "b")
            out.append(await keyed("b"))
            await zart.wait_for_event("never")
    except TimeoutError:
        out.append(await keyed("a"))
    return [*out, await keyed("c")]


@every_way
async def test_a_saga_that_was_cancelled_before_the_failure_is_kept(dsn: str, always_suspend: bool) -> None:
    """A limit that passed in the block, and was caught, passes again at the next attempt: nothing of it is run."""
    broken.add("c")
    async with working(dsn, too_late, always_suspend=always_suspend) as client:
        assert await client.start_and_wait(too_late, timeout="10s") == ["b1", "a1", "c3"]
    assert effects == ["b1", "-b", "a1", "c1", "c2", "c3"]


@durable("undone-later", max_retries="fixed(2, 10ms)")
async def undone_later() -> str:
    saga = zart.saga()
    saga.add(undo_keyed, "b", "b")
    inside = await keyed("b")
    failure: Exception | None = None
    try:
        await keyed("c")
    except ConnectionError as error:
        failure = error
    if failure is not None:
        await saga.compensate()
        raise failure
    return inside


@every_way
async def test_a_saga_undone_by_hand_after_the_failure_is_done_afresh(dsn: str, always_suspend: bool) -> None:
    """Also when the call stands outside of the `except`."""
    broken.add("c")
    async with working(dsn, undone_later, always_suspend=always_suspend) as client:
        assert await client.start_and_wait(undone_later, timeout="10s") == "b3"
    assert effects == ["b1", "c1", "-b", "b2", "c2", "-b", "b3", "c3"]


@durable("by-hand", max_retries="fixed(2, 10ms)")
async def by_hand() -> str:
    saga = zart.saga()
    try:
        saga.add(undo_keyed, "b", "b")
        inside = await keyed("b")
        await keyed("c")
    except ConnectionError:
        await saga.compensate()
        raise
    return inside


@every_way
async def test_a_saga_without_a_block(dsn: str, always_suspend: bool) -> None:
    """Undone in an `except`, it is taken for a block that this exception has left."""
    broken.add("c")
    async with working(dsn, by_hand, always_suspend=always_suspend) as client:
        assert await client.start_and_wait(by_hand, timeout="10s") == "b3"
    assert effects == ["b1", "c1", "-b", "b2", "c2", "-b", "b3", "c3"]


# ------------------------------------------------------------ what is refused and checked


async def test_other_arguments_of_an_undo_are_noticed(dsn: str) -> None:
    """The arguments of an undo are compared with the recorded ones, like those of any step."""

    def version(argument: str) -> zart.Durable[[], None]:
        @step("undo-it")
        async def undo_it(what: str) -> None:
            effects.append(f"-{what}")

        @durable("undoes-it")
        async def body() -> None:
            async with zart.saga() as saga:
                saga.add(undo, "stops")
                saga.add(undo_it, argument)
                raise LookupError("no courier")

        return body

    broken.add("stops-undo")
    first, second = version("this"), version("that")
    async with working(dsn, first) as client:
        await client.start(first, id="x")
        await until_status(client, "x", "blocked")
    async with working(dsn, second) as client:
        await client.resume("x")
        with pytest.raises(
            zart.ExecutionBlocked, match="undo-it was recorded with other arguments"
        ) as caught:
            await client.handle(second, "x").result(timeout="10s")
    assert caught.value.failure.type == "zart.errors.NonDeterminismError"
    assert "-that" not in effects


async def test_code_that_does_not_fail_any_more_is_noticed(dsn: str) -> None:
    """Once something is undone, a block that would end well after a deploy contradicts the log; none of it runs."""

    def version(fails: bool) -> zart.Durable[[], None]:
        @durable("changes")
        async def body() -> None:
            async with zart.saga() as saga:
                for name in "bc":
                    saga.add(undo, name)
                    await do(name)
                if fails:
                    raise LookupError("no courier")
            await do("d")

        return body

    broken.add("b-undo")
    first, second = version(True), version(False)
    async with working(dsn, first) as client:
        await client.start(first, id="x")
        await until_status(client, "x", "blocked")
    broken.clear()
    async with working(dsn, second) as client:
        await client.resume("x")
        with pytest.raises(zart.ExecutionBlocked, match="asks for step do-d, where step undo-c is recorded"):
            await client.handle(second, "x").result(timeout="10s")
    assert "d" not in effects
    async with working(dsn, first) as client:
        await client.resume("x")
        with pytest.raises(zart.ExecutionFailed, match="no courier"):
            await client.handle(first, "x").result(timeout="10s")
    assert effects == ["b", "c", "-c", "-b", "-b", "-b"]


refused: dict[str, str] = {}


@durable("misuses")
async def misuses() -> None:
    async def attempt(what: str, call: Any) -> None:
        try:
            result = call()
            if asyncio.iscoroutine(result):
                await result
            refused[what] = "not refused"
        except zart.UsageError as error:
            refused[what] = str(error)

    saga: Any = zart.saga()
    await attempt("no step", lambda: saga.add(print, "a"))
    await attempt("other arguments", lambda: saga.add(undo))
    await attempt("a call", lambda: saga.add(coroutine))
    async with saga:
        await attempt("entered twice", saga.__aenter__)
    await attempt("after its end", lambda: saga.add(undo, "a"))
    await saga.compensate()
    await attempt("after it was undone", lambda: saga.add(undo, "a"))


coroutine = "undo('a')"


async def test_misuse_is_refused_before_the_act(dsn: str) -> None:
    """What could not be undone later on is refused when it is registered, by name."""
    refused.clear()
    async with working(dsn, misuses) as client:
        await client.start_and_wait(misuses, timeout="10s")
    told = {
        "no step": "saga.add takes the step that undoes",
        "other arguments": "missing a required argument: 'name'",
        "a call": "not a call of one",
        "entered twice": "a saga is for one block",
        "after its end": "added to a saga that has ended",
        "after it was undone": "added to a saga that was undone",
    }
    assert refused.keys() == told.keys()
    for what, text in told.items():
        assert text in refused[what], what


# ------------------------------------------------------------ what is given away


@step("given-{name}")
async def given(name: str) -> str:
    effects.append(name)
    keys.append(zart.step_context().idempotency_key)
    if name == "long" and "long" not in broken:
        try:
            await asyncio.sleep(60)
        finally:
            effects.append("long ends")
    return name


@durable("child-of-a-saga")
async def child_of_a_saga(name: str) -> str:
    try:
        return await given(name)
    finally:
        if not zart.suspending():
            await do(f"child {name} ends")


@durable("gives-away", max_retries="fixed(1, 10ms)")
async def gives_away(how: str) -> list[str]:
    async with zart.saga() as saga:
        saga.add(undo, "short")
        short = zart.schedule_step(given, "short")
        saga.add(undo, "long")
        long = (
            zart.schedule_step(given, "long") if how == "step" else zart.start_child(child_of_a_saga, "long")
        )
        out = [await short]
        if zart.context().attempt == 1:
            await zart.wait_for_event("fail")
            raise LookupError("no courier")
        return [*out, await long]


@every_way
@pytest.mark.parametrize("how", ["step", "child"])
async def test_what_was_given_away_has_ended_before_it_is_undone(
    dsn: str, how: str, always_suspend: bool
) -> None:
    """Scheduled steps and children are cancelled, and waited for; the next attempt of the body begins them afresh."""
    async with working(dsn, gives_away, child_of_a_saga, always_suspend=always_suspend) as client:
        handle = await client.start(gives_away, how, id="x")
        await until(lambda: "long" in effects)
        await until_record(client, "x", "given-short", "completed")
        await client.offer_event("x", "fail")
        await until(lambda: "-short" in effects)
        ended = "long ends" if how == "step" else "child long ends"
        assert effects.index(ended) < effects.index("-long") < effects.index("-short")
        broken.add("long")
        assert await handle.result(timeout="15s") == ["short", "long"]
    assert effects.count("short") == effects.count("long") == 2
    assert effects.count("-long") == effects.count("-short") == 1
    assert len(set(keys)) == 4


@durable("goes-on-anew")
async def goes_on_anew(rounds: int) -> str:
    async with zart.saga() as saga:
        saga.add(undo, f"round-{rounds}")
        await do(f"round-{rounds}")
        if rounds > 1:
            zart.continue_as_new(rounds - 1)
    return "over"


async def test_a_body_that_begins_anew_in_a_saga_has_not_failed(dsn: str) -> None:
    """`continue_as_new` leaves the block like a return: nothing is undone, in this run and in the next ones."""
    async with working(dsn, goes_on_anew) as client:
        assert await client.start_and_wait(goes_on_anew, 3, id="x") == "over"
    assert effects == ["round-3", "round-2", "round-1"]
