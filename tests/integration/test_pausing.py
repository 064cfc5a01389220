"""Rules that hold executions back: by id, by function, by step; what they hold, and how it goes on."""

import asyncio
import contextlib
import datetime as dt
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

import zart
from tests.support.running import (
    fast,
    forgetful,
    nothing_left,
    query,
    shift_clock,
    stir,
    until,
    until_record,
    until_status,
    working,
)
from zart import Client, ExecutionCancelled, ExecutionFailed, Worker, durable, step

ran: list[str] = []
gates: dict[str, asyncio.Event] = {}


@pytest.fixture(autouse=True)
def _fresh() -> None:
    ran.clear()
    gates.clear()


def gate(name: str) -> asyncio.Event:
    return gates.setdefault(name, asyncio.Event())


@step("do-{what}")
async def do(what: str) -> str:
    ran.append(what)
    return what


@step("linger-{what}")
async def linger(what: str) -> str:
    """Runs until its gate is opened."""
    ran.append(what)
    await gate(what).wait()
    return what


@step("attempted", retry="fixed(1, 1ms)")
async def attempted() -> str:
    """Fails once its gate is open, and works the second time."""
    ran.append("scheduled")
    if ran.count("scheduled") < 2:
        await gate("scheduled").wait()
        raise ConnectionError("not yet")
    return "scheduled"


@durable("plain")
async def plain() -> str:
    return await do("a") + await do("b")


@durable("other")
async def other() -> str:
    return await do("other")


@durable("two-parts")
async def two_parts() -> str:
    return await linger("first") + await do("second")


@durable("eventful")
async def eventful() -> str:
    first = await do("before")
    event = await zart.wait_for_event("go", str)
    return first + event + await do("after")


@durable("sleepy")
async def sleepy() -> str:
    await do("before")
    await zart.sleep("1h")
    return await do("after")


@durable("tidy")
async def tidy() -> str:
    """Cleans up with a step when it is cancelled."""
    try:
        await do("work")
        await zart.wait_for_event("never")
    finally:
        if not zart.suspending():
            await do("tidy-up")
    return "never"


@durable("fan")
async def fan() -> list[str]:
    return await zart.map(do, ["a", "b", "c", "d"], limit=2)


@durable("child")
async def child() -> str:
    return await do("child")


@durable("parent")
async def parent() -> str:
    return await child() + await do("parent")


ALL = (plain, other, two_parts, eventful, sleepy, tidy, fan, child, parent)


@asynccontextmanager
async def knowing(dsn: str, *durables: Any, **options: Any) -> AsyncIterator[Client]:
    """A worker, and a client whose author is ann."""
    async with working(dsn, *(durables or ALL), **options), Client(dsn, author="ann") as client:
        yield client


async def paused_row(dsn: str, id: str) -> str:
    """The rule that a row was paused for."""
    rows = await query(
        dsn,
        "SELECT paused_by FROM zart_tasks WHERE state = 'paused' AND execution_id = %s AND step_name IS NULL",
        id,
    )
    return rows[0][0] if rows else ""


async def until_row_paused(dsn: str, id: str) -> None:
    await until(lambda: paused_row(dsn, id), f"the row of {id!r} is paused")


# ---------------------------------------------------------------- what a rule holds back


async def test_an_execution_that_is_named_is_held_back_and_its_history_says_who_and_why(dsn: str) -> None:
    """It is `paused` at once and runs nothing; the rule is in the list; once it has ended the execution runs."""
    async with Client(dsn, author="ann") as client:
        await client.start(plain, id="a")
        rule = await client.pause("a", reason="the card is disputed")
        status = await client.status("a")
        assert status.status == "paused"
        assert status.waiting_for == f"pause rule {rule} of ann: the card is disputed"
        (told,) = await client.pauses()
        assert (told.id, told.execution_id, told.name, told.step) == (rule, "a", None, None)
        assert (told.reason, told.author, told.expires_at) == ("the card is disputed", "ann", None)
        assert [execution.id async for execution in client.executions(status="paused")] == ["a"]
        assert (await client.stats()).by_status == {"paused": 1}
        async with Worker(dsn, zart.Registry(*ALL), fast()):
            await client.start(other, id="free")
            assert await client.wait_completion("free") == "other"
            assert ran == ["other"]
            assert await client.unpause(rule, reason="settled")
            assert await client.wait_completion("a") == "ab"
            assert not await client.unpause(rule)
            assert await client.pauses() == []
        notes = (await client.history("a")).notes
        assert notes[0].endswith("paused by ann: the card is disputed")
        assert notes[1].endswith("unpaused by ann: settled")


async def test_all_of_a_function_are_held_back_whenever_they_start_and_no_row_is_changed(dsn: str) -> None:
    """Those that were there before the rule, and those that come later; other functions go on."""
    async with Client(dsn, author="ann") as client:
        await client.start(plain, id="before")
        rule = await client.pause(name="plain", reason="bad release")
        async with Worker(dsn, zart.Registry(*ALL), fast()):
            await client.start(other, id="free")
            assert await client.wait_completion("free") == "other"
            await client.start(plain, id="after")
            for id in ("before", "after"):
                status = await client.status(id)
                assert (status.status, status.served) == ("paused", True)
                assert status.waiting_for == f"pause rule {rule} of ann: bad release"
            await client.start(other, id="free-2")
            assert await client.wait_completion("free-2") == "other"
            assert await query(dsn, "SELECT DISTINCT state, epoch FROM zart_tasks") == [("ready", 0)]
            assert await client.unpause(rule)
            for id in ("before", "after"):
                assert await client.wait_completion(id) == "ab"
        await nothing_left(dsn)


async def test_what_was_claimed_under_older_rules_is_given_back_before_it_runs(dsn: str) -> None:
    """A worker that has not heard of a rule takes an execution with the answer that tells of it, and parks it: not even
    a body without a step is run."""

    @durable("bare")
    async def bare() -> str:
        ran.append("bare")
        return "done"

    async with knowing(dsn, bare, other) as client:
        await client.start(other, id="first")
        await client.wait_completion("first")
        # In one transaction, so that the worker hears of both at once.
        await query(
            dsn,
            "WITH rule AS (INSERT INTO zart_pause_rules (id, name, author) VALUES ('r', 'bare', 'ann'))"
            " SELECT zart_start('bare', id => 'a')",
        )
        await until_row_paused(dsn, "a")
        assert ran == ["other"]
        assert await client.unpause("r")
        assert await client.wait_completion("a") == "done"


async def test_a_step_is_held_back_wherever_it_is_asked_for(dsn: str) -> None:
    """What comes before it runs; the execution is `paused`, and says before which step. What has no such step runs."""
    async with knowing(dsn) as client:
        rule = await client.pause(step="do-[bx]", reason="the service is down")
        await client.start(plain, id="a")
        await client.start(other, id="free")
        assert await client.wait_completion("free") == "other"
        await until_status(client, "a", "paused")
        status = await client.status("a")
        assert status.waiting_for == f"before step do-b, pause rule {rule} of ann: the service is down"
        assert sorted(ran) == ["a", "other"]
        assert any(
            f"paused: before step do-b, by rule {rule}" in n for n in (await client.history("a")).notes
        )
        await client.unpause(rule)
        assert await client.wait_completion("a") == "ab"
        assert sorted(ran) == ["a", "b", "other"]


async def test_a_name_and_a_pattern_must_both_hold(dsn: str) -> None:
    """The same step of another function runs; so does another step of the same function."""
    async with knowing(dsn) as client:
        await client.pause(name="plain", step="do-other")
        await client.pause(name="other", step="do-a")
        await client.start(plain, id="a")
        await client.start(other, id="b")
        assert await client.wait_completion("a") == "ab"
        assert await client.wait_completion("b") == "other"
        rule = await client.pause(name="other", step="do-*")
        await client.start(other, id="c")
        await client.start(plain, id="d")
        assert await client.wait_completion("d") == "ab"
        await until_status(client, "c", "paused")
        await client.unpause(rule)
        assert await client.wait_completion("c") == "other"


async def test_a_step_of_one_execution_is_held_back(dsn: str) -> None:
    """An id with a pattern: that execution runs until it asks for the step; its neighbour is let alone."""
    async with Client(dsn) as client:
        await client.start(plain, id="a")
        await client.start(plain, id="b")
        rule = await client.pause("a", step="do-b")
        assert (await client.status("a")).status == "scheduled"
        async with Worker(dsn, zart.Registry(*ALL), fast()):
            assert await client.wait_completion("b") == "ab"
            await until_status(client, "a", "paused")
            assert sorted(ran) == ["a", "a", "b"]
            await client.unpause(rule)
            assert await client.wait_completion("a") == "ab"


@pytest.mark.parametrize("how", [{"name": "two-parts"}, {"step": "do-*"}, {}])
async def test_a_step_that_runs_finishes_and_is_recorded(dsn: str, how: dict[str, str]) -> None:
    """A rule by any of the three, made while the first step runs: that one is recorded, the second does not start."""
    async with knowing(dsn) as client:
        await client.start(two_parts, id="a")
        await until(lambda: ran == ["first"])
        rule = await (client.pause(**how) if how else client.pause("a"))
        # Once this has ended, the worker knows the rule.
        await client.start(other, id="free")
        await until_status(client, "free", "paused" if how == {"step": "do-*"} else "completed")
        assert (await client.status("a")).status == "running"
        gate("first").set()
        await until_status(client, "a", "paused")
        assert "second" not in ran
        records = (await client.history("a")).records
        assert [(record.key, record.state) for record in records] == [("linger-first", "completed")]
        assert await client.unpause(rule)
        assert await client.wait_completion("a") == "firstsecond"
        assert ran.count("first") == 1


async def test_a_branch_beside_a_step_that_is_held_back_goes_on(dsn: str) -> None:
    """What runs in another branch finishes and is recorded; the execution is paused only then."""

    @durable("branches")
    async def branches() -> list[str]:
        async def both() -> str:
            return await linger("long") + await linger("longer")

        return list(await asyncio.gather(both(), do("held")))

    async with knowing(dsn, branches) as client:
        rule = await client.pause(step="do-held")
        await client.start(branches, id="a")
        gate("longer")
        await until(lambda: ran == ["long"])
        gate("long").set()
        await until(lambda: ran == ["long", "longer"])
        assert (await client.status("a")).status == "running"
        gate("longer").set()
        await until_row_paused(dsn, "a")
        assert ran == ["long", "longer"]
        await client.unpause(rule)
        assert await client.wait_completion("a") == ["longlonger", "held"]
        assert ran == ["long", "longer", "held"]


async def test_a_rule_that_ends_before_the_body_is_parked_lets_the_step_go_at_once(dsn: str) -> None:
    """The body stays where it is, in memory: nothing is replayed."""

    @durable("branches")
    async def branches() -> list[str]:
        ran.append("body")
        return list(await asyncio.gather(linger("long"), do("held")))

    async with knowing(dsn, branches) as client:
        rule = await client.pause(step="do-held")
        await client.start(branches, id="a")
        await until(lambda: ran == ["body", "long"])
        await client.unpause(rule)
        await until(lambda: ran == ["body", "long", "held"])
        gate("long").set()
        assert await client.wait_completion("a") == ["long", "held"]
        assert await query(dsn, "SELECT count(*) FROM zart_history WHERE what = 'paused'") == [(0,)]


async def test_a_replay_is_never_held_back(dsn: str) -> None:
    """Recorded steps are delivered, though a rule covers all steps; the first one without a record waits."""
    async with knowing(dsn, config=forgetful()) as client:
        await client.start(eventful, id="a")
        await until_status(client, "a", "waiting")
        await client.pause(step="*")
        assert (await client.status("a")).status == "waiting"
        await client.offer_event("a", "go", " go ")
        await until_status(client, "a", "paused")
        told = (await client.history("a")).records
        assert [(record.name, record.state) for record in told] == [
            ("do-before", "completed"),
            ("go", "completed"),
        ]
        assert ran == ["before"]
        (rule,) = await client.pauses()
        await client.unpause(rule.id)
        assert await client.wait_completion("a") == "before go after"
        assert ran == ["before", "after"]


@pytest.mark.parametrize("config", [fast(), forgetful()], ids=["kept", "replayed"])
@pytest.mark.parametrize("by_name", [False, True], ids=["by id", "by name"])
async def test_what_waits_stays_paused_though_its_event_comes(
    dsn: str, config: zart.WorkerConfig, by_name: bool
) -> None:
    """The event is kept, and delivered when the rule has ended."""
    async with knowing(dsn, config=config) as client:
        await client.start(eventful, id="a")
        await until_status(client, "a", "waiting")
        rule = await (client.pause(name="eventful") if by_name else client.pause("a"))
        assert (await client.status("a")).status == "paused"
        assert await client.offer_event("a", "go", " first ")
        await query(dsn, "SELECT zart_offer_event('a', 'more')")
        await until_wakeups_applied(dsn)
        await client.start(other, id="free")
        await client.wait_completion("free")
        assert (await client.status("a")).status == "paused"
        assert "after" not in ran
        await client.unpause(rule)
        assert await client.wait_completion("a") == "before first after"


async def until_wakeups_applied(dsn: str) -> None:
    async def applied() -> bool:
        return await query(dsn, "SELECT 1 FROM zart_wakeups") == []

    await until(applied)


@pytest.mark.parametrize("by_name", [False, True], ids=["by id", "by name"])
async def test_what_becomes_due_while_it_is_paused_stays_paused(dsn: str, by_name: bool) -> None:
    """A sleep whose time has come is over when the rule has ended, not before."""
    async with knowing(dsn) as client:
        await client.start(sleepy, id="a")
        await until_status(client, "a", "waiting")
        rule = await (client.pause(name="sleepy") if by_name else client.pause("a"))
        await shift_clock(dsn, dt.timedelta(hours=2))
        await client.start(other, id="free")
        await client.wait_completion("free")
        assert (await client.status("a")).status == "paused"
        assert ran == ["before", "other"]
        await client.unpause(rule)
        assert await client.wait_completion("a") == "after"


async def test_a_start_that_is_not_due_waits_on_for_its_time_after_the_pause(dsn: str) -> None:
    """Neither the rule nor its end begins it early."""
    async with knowing(dsn) as client:
        await client.start(plain, id="a", delay="1h")
        rule = await client.pause("a")
        assert (await client.status("a")).status == "paused"
        await client.unpause(rule)
        await until_status(client, "a", "scheduled")
        await client.start(other, id="free")
        await client.wait_completion("free")
        assert await query(dsn, "SELECT state FROM zart_tasks") == [("waiting",)]
        await shift_clock(dsn, dt.timedelta(hours=2))
        assert await client.wait_completion("a") == "ab"


async def test_the_pause_between_two_attempts_of_a_body_is_kept(dsn: str) -> None:
    """A rule that ends meanwhile does not begin the next attempt early."""

    @durable("again", max_retries="fixed(1, 1h)")
    async def again() -> str:
        ran.append(f"body {zart.context().attempt}")
        if zart.context().attempt == 1:
            raise LookupError("not yet")
        return "done"

    async with knowing(dsn, again, other) as client:
        await client.start(again, id="a")
        await until_status(client, "a", "waiting")
        rule = await client.pause("a")
        await client.unpause(rule)
        await until_status(client, "a", "waiting")
        assert set(ran) == {"body 1"}
        await shift_clock(dsn, dt.timedelta(hours=2))
        assert await client.wait_completion("a") == "done"


async def test_the_next_attempt_of_a_step_is_held_back(dsn: str) -> None:
    """A step that fails again and again: the attempt that runs is recorded, the one after it waits for the rule."""

    @step("flaky", retry="fixed(5, 1ms)")
    async def flaky() -> str:
        ran.append("attempt")
        if len(ran) < 3:
            await gate("attempt").wait()
            raise ConnectionError("down")
        return "up"

    @durable("trying")
    async def trying() -> str:
        return await flaky()

    async with knowing(dsn, trying, other) as client:
        await client.start(trying, id="a")
        await until(lambda: ran == ["attempt"])
        rule = await client.pause(step="flaky")
        await client.start(other, id="free")
        await client.wait_completion("free")
        ran.remove("other")
        gate("attempt").set()
        await until_row_paused(dsn, "a")
        assert ran == ["attempt"]
        assert (await client.status("a")).status == "paused"
        await client.unpause(rule)
        assert await client.wait_completion("a") == "up"
        (record,) = (await client.history("a")).records
        assert record.attempts == 3


# ---------------------------------------------------------------- work that is given away


@pytest.mark.parametrize("how", [{"step": "do-[b-d]"}, {"name": "fan", "step": "do-[b-d]"}])
async def test_scheduled_steps_are_held_back_one_by_one(dsn: str, how: dict[str, str]) -> None:
    """Each waits on its own; a limited map lets no more of them run than it may, before and after."""
    async with knowing(dsn) as client:
        rule = await client.pause(**how)
        await client.start(fan, id="a")

        async def held() -> bool:
            rows = await query(dsn, "SELECT step_name FROM zart_tasks WHERE state = 'paused' ORDER BY 1")
            return rows == [("do-b",), ("do-c",)]

        await until(held)  # a has run, and has let c go
        assert ran == ["a"]
        assert (await client.status("a")).status == "waiting"
        await client.unpause(rule)
        assert await client.wait_completion("a") == ["a", "b", "c", "d"]
        assert sorted(ran) == ["a", "b", "c", "d"]
        await nothing_left(dsn)


@pytest.mark.parametrize("by_name", [False, True], ids=["by id", "by name"])
async def test_what_an_execution_has_scheduled_is_held_back_with_it(dsn: str, by_name: bool) -> None:
    """Its steps are its own, on whatever worker they would run."""

    @durable("giving")
    async def giving() -> str:
        return await zart.schedule_step(attempted)

    async with knowing(dsn, giving, other) as client:
        # The step is due only after the rule: its first attempt has failed by then.
        await client.start(giving, id="a")
        await until(lambda: ran == ["scheduled"])
        rule = await (client.pause(name="giving") if by_name else client.pause("a"))
        await client.start(other, id="free")
        await client.wait_completion("free")
        gate("scheduled").set()

        async def held() -> bool:
            rows = await query(dsn, "SELECT state, paused_by FROM zart_tasks WHERE step_name = 'attempted'")
            return rows == [("paused", rule)]

        await until(held)
        assert ran == ["scheduled", "other"]
        assert (await client.status("a")).status == "paused"
        await client.unpause(rule)
        assert await client.wait_completion("a") == "scheduled"


async def test_children_of_a_paused_execution_go_on_and_wait_to_be_heard(dsn: str) -> None:
    """A child is an execution of its own: it runs on, and its parent hears of it after the pause."""

    @durable("slow-child")
    async def slow_child() -> str:
        return await linger("child")

    @durable("slow-parent")
    async def slow_parent() -> str:
        return await slow_child() + await do("parent")

    async with knowing(dsn, slow_parent, slow_child, other) as client:
        await client.start(slow_parent, id="a")
        await until(lambda: ran == ["child"])
        await until_status(client, "a", "waiting")
        rule = await client.pause("a")
        gate("child").set()
        (child_id,) = [r.child_id for r in (await client.history("a")).records if r.child_id]
        assert await client.wait_completion(child_id) == "child"
        assert (await client.status("a")).status == "paused"
        await client.unpause(rule)
        assert await client.wait_completion("a") == "childparent"


async def test_a_paused_child_keeps_its_parent_waiting(dsn: str) -> None:
    """The parent waits, as for any child, and goes on when the child has ended."""
    async with knowing(dsn) as client:
        rule = await client.pause(name="child")
        await client.start(parent, id="a")
        await until_status(client, "a", "waiting")
        (child_id,) = [r.child_id for r in (await client.history("a")).records if r.child_id]
        assert (await client.status(child_id)).status == "paused"
        await client.unpause(rule)
        assert await client.wait_completion("a") == "childparent"


# ---------------------------------------------------------------- cancels, limits, blocks


@pytest.mark.parametrize("by_sql", [False, True], ids=["by client", "by SQL"])
@pytest.mark.parametrize("how", ["id", "name", "step", "all steps"])
async def test_a_cancel_lets_what_is_paused_go_on_to_its_end(dsn: str, how: str, by_sql: bool) -> None:
    """Its cleanup runs, whatever rule covers it, and it is cancelled while the rule stands."""
    async with knowing(dsn) as client:
        await client.start(tidy, id="a")
        await until_status(client, "a", "waiting")
        if how == "id":
            await client.pause("a")
        elif how == "name":
            await client.pause(name="tidy")
        else:
            await client.pause(step="do-tidy-up" if how == "step" else "*")
        if by_sql:
            await query(dsn, "SELECT zart_cancel('a', 'enough')")
            await stir(dsn)
        else:
            assert await client.cancel("a", reason="enough")
        with pytest.raises(ExecutionCancelled, match="enough"):
            await client.wait_completion("a", timeout=10)
        assert ran == ["work", "tidy-up"]
        assert len(await client.pauses()) == 1
        await nothing_left(dsn)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("by_name", [False, True], ids=["by id", "by name"])
async def test_what_is_paused_before_it_ran_is_cancelled_at_once(
    dsn: str, force: bool, by_name: bool
) -> None:
    """There is nothing to clean up, so no worker is needed."""
    async with Client(dsn) as client:
        await client.start(plain, id="a")
        await (client.pause(name="plain") if by_name else client.pause("a"))
        assert await client.cancel("a", force=force)
        assert (await client.status("a")).status == "cancelled"
        await nothing_left(dsn)


async def test_a_cancel_by_force_ends_what_is_paused_in_the_middle(dsn: str) -> None:
    """Without cleanup, here and now."""
    async with knowing(dsn) as client:
        await client.pause(step="do-b")
        await client.start(plain, id="a")
        await until_row_paused(dsn, "a")
        assert await client.cancel("a", force=True)
        assert (await client.status("a")).status == "cancelled"
        await nothing_left(dsn)
        assert ran == ["a"]


async def test_scheduled_steps_of_a_cancelled_execution_are_let_go(dsn: str) -> None:
    """What it has given away ends with it, though a rule holds that back."""
    async with knowing(dsn) as client:
        await client.pause(step="do-*")
        await client.start(fan, id="a")

        async def held() -> bool:
            return await query(dsn, "SELECT count(*) FROM zart_tasks WHERE state = 'paused'") == [(2,)]

        await until(held)
        assert await client.cancel("a")
        with pytest.raises(ExecutionCancelled):
            await client.wait_completion("a", timeout=10)
        assert ran == []
        await nothing_left(dsn)


async def test_a_cancel_beside_a_step_that_is_held_back_in_memory(dsn: str) -> None:
    """The call that waits for the rule is cancelled like any other; the cleanup runs."""

    @durable("busy")
    async def busy() -> None:
        try:
            await asyncio.gather(linger("long"), do("held"))
        finally:
            if not zart.suspending():
                await do("cleanup")

    async with knowing(dsn, busy) as client:
        await client.pause(step="do-*")
        await client.start(busy, id="a")
        await until(lambda: ran == ["long"])
        await client.cancel("a")
        with pytest.raises(ExecutionCancelled):
            await client.wait_completion("a", timeout=10)
        assert ran == ["long", "cleanup"]


async def test_a_time_limit_counts_on_and_ends_the_execution_after_the_pause(dsn: str) -> None:
    """While it is paused nothing of it runs, so it fails when it goes on; the time was not added to its limit."""

    @durable("limited", timeout="1h")
    async def limited() -> None:
        await zart.wait_for_event("never")

    async with knowing(dsn, limited, other) as client:
        await client.start(limited, id="a")
        await until_status(client, "a", "waiting")
        rule = await client.pause("a")
        await shift_clock(dsn, dt.timedelta(hours=2))
        await client.start(other, id="free")
        await client.wait_completion("free")
        assert (await client.status("a")).status == "paused"
        await client.unpause(rule)
        with pytest.raises(ExecutionFailed, match="within 1h"):
            await client.wait_completion("a", timeout=10)


@pytest.mark.parametrize("by_name", [False, True], ids=["by id", "by name"])
async def test_what_is_blocked_stays_so_and_is_paused_once_it_is_resumed(dsn: str, by_name: bool) -> None:
    """A block says more than a pause, so it is shown; a resume does not lead past the rule."""
    async with knowing(dsn) as client:
        await client.start(eventful, id="a")
        await until_status(client, "a", "waiting")
        await query(dsn, "UPDATE zart_tasks SET state = 'blocked'")
        rule = await (client.pause(name="eventful") if by_name else client.pause("a"))
        await client.offer_event("a", "go", "!")
        assert (await client.status("a")).status == "blocked"
        assert await client.resume("a")
        await until_status(client, "a", "paused")
        await client.start(other, id="free")
        await client.wait_completion("free")
        assert (await client.status("a")).status == "paused"
        await client.unpause(rule)
        assert await client.wait_completion("a") == "before!after"


# ---------------------------------------------------------------- how rules end


@pytest.mark.parametrize("how", ["id", "name", "step"])
async def test_a_rule_ends_by_itself_at_its_time(dsn: str, how: str) -> None:
    """Nobody does anything: workers see when it is time, and what it held goes on."""
    async with knowing(dsn) as client:
        if how == "id":
            await client.start(plain, id="a", delay="1h")
            await client.pause("a", expires="3h")
        elif how == "name":
            await client.pause(name="plain", expires=dt.timedelta(hours=3))
            await client.start(plain, id="a")
        else:
            await client.pause(step="do-b", expires=await durable_now(dsn) + dt.timedelta(hours=3))
            await client.start(plain, id="a")
        await until_status(client, "a", "paused")
        await shift_clock(dsn, dt.timedelta(hours=2))
        await client.start(other, id="free")
        await client.wait_completion("free")
        assert (await client.status("a")).status == "paused"
        (rule,) = await client.pauses()
        assert rule.expires_at is not None
        await shift_clock(dsn, dt.timedelta(hours=2))
        assert await client.pauses() == []
        assert await client.wait_completion("a", timeout=10) == "ab"
        assert await query(dsn, "SELECT id FROM zart_pause_rules") == []
        notes = (await client.history("a")).notes
        assert any("unpaused: its rule has expired" in note for note in notes) == (how == "id")


async def durable_now(dsn: str) -> dt.datetime:
    ((now,),) = await query(dsn, "SELECT zart_now()")
    assert isinstance(now, dt.datetime)
    return now


@pytest.mark.usefixtures("notified")
async def test_an_idle_worker_wakes_for_the_end_of_a_rule(dsn: str) -> None:
    """Its next look is at that time, however long it would wait otherwise."""
    config = fast(poll_interval="1h")
    async with knowing(dsn, config=config) as client:
        await client.start(plain, id="a")
        await client.wait_completion("a")
        await client.pause(name="plain", expires="700ms")
        await client.start(plain, id="b")
        assert await client.wait_completion("b", timeout=10) == "ab"


async def test_an_expired_rule_without_a_worker_is_not_shown(dsn: str) -> None:
    """The status is what the rules say now, whoever is there to act upon them."""
    async with Client(dsn) as client:
        await client.start(plain, id="a")
        await client.pause("a", expires="1h")
        await client.start(plain, id="b")
        await client.pause(name="plain", expires="1h")
        await shift_clock(dsn, dt.timedelta(hours=2))
        for id in ("a", "b"):
            status = await client.status(id)
            assert (status.status, status.waiting_for) == ("scheduled", None)
        async with Worker(dsn, zart.Registry(*ALL), fast()):
            for id in ("a", "b"):
                assert await client.wait_completion(id) == "ab"


async def test_of_several_rules_the_last_one_lets_go(dsn: str) -> None:
    """It stays paused for as long as any rule covers it, whichever ends first."""
    async with knowing(dsn) as client:
        rules = [
            await client.pause(step="do-b", reason="one"),
            await client.pause(step="do-*", reason="two"),
            await client.pause(name="plain", reason="three"),
        ]
        await client.start(plain, id="a")
        rules.append(await client.pause("a", reason="four"))
        for rule in (rules[2], rules[1], rules[3]):
            assert (await client.status("a")).status == "paused"
            await client.unpause(rule)
            await client.start(other, id=f"free-{rule}")
        await until_row_paused(dsn, "a")
        await until(lambda: "a" in ran)
        await until_status(client, "a", "paused")
        assert "b" not in ran
        await client.unpause(rules[0])
        assert await client.wait_completion("a") == "ab"


async def test_a_rule_that_somebody_writes_by_hand_holds_as_well(dsn: str) -> None:
    """Workers hear of any change of the table."""
    async with knowing(dsn) as client:
        await query(dsn, "INSERT INTO zart_pause_rules (id, step, author) VALUES ('mine', 'do-b', 'psql')")
        await client.start(plain, id="a")
        await until_status(client, "a", "paused")
        await query(dsn, "UPDATE zart_pause_rules SET step = 'do-x'")
        await query(dsn, "DELETE FROM zart_pause_rules")
        assert await client.wait_completion("a") == "ab"


# ---------------------------------------------------------------- every state

Reach = Callable[[Client], Awaitable[None]]


async def scheduled(client: Client) -> None:
    await client.start(eventful, id="a", delay="1h")


async def ready(client: Client) -> None:
    await client.start(eventful, id="a")


async def waiting(client: Client) -> None:
    await client.start(eventful, id="a")
    await until_status(client, "a", "waiting")


async def in_a_step(client: Client) -> None:
    await client.start(two_parts, id="a")
    await until(lambda: ran == ["first"])


async def in_a_fan_out(client: Client) -> None:
    await client.start(fan, id="a")
    await until_record(client, "a", "do-a")


async def with_a_child(client: Client) -> None:
    await client.start(parent, id="a")
    await until(lambda: "child" in ran)


STATES: list[tuple[Reach, Any, str]] = [
    (scheduled, eventful, "before!after"),
    (ready, eventful, "before!after"),
    (waiting, eventful, "before!after"),
    (in_a_step, two_parts, "firstsecond"),
    (in_a_fan_out, fan, ["a", "b", "c", "d"]),
    (with_a_child, parent, "childparent"),
]


@pytest.mark.parametrize("how", ["id", "name", "step", "id and step", "name and step"])
@pytest.mark.parametrize(("reach", "function", "result"), STATES, ids=lambda v: getattr(v, "__name__", ""))
async def test_a_pause_in_any_state_changes_nothing_but_the_time(
    dsn: str, reach: Reach, function: Any, result: Any, how: str
) -> None:
    """Whatever it does when the rule comes, and by whatever rule: afterwards each step has run once, and the result is
    that of an execution that was never held back."""
    async with knowing(dsn) as client:
        await reach(client)
        given: dict[str, str] = {}
        if "name" in how:
            given["name"] = function.name
        if "step" in how:
            given["step"] = "*"
        try:
            rule = await client.pause(*(["a"] if "id" in how else []), **given)
        except zart.ExecutionFinished:
            rule = None
        gate("first").set()
        with_event = function is eventful
        if with_event:
            await client.offer_event("a", "go", "!")
        await client.start(other, id="free")  # a look at the rules, unless it is held back as well
        if how != "step":
            await client.wait_completion("free")
        await shift_clock(dsn, dt.timedelta(hours=2))
        if rule is not None:
            await client.unpause(rule)
        assert await client.wait_completion("a", timeout=15) == result
        assert await client.wait_completion("free", timeout=15) == "other"
        assert len(ran) == len(set(ran))
        await nothing_left(dsn)


async def test_everything_is_paused_and_let_go_again_and_again(dsn: str) -> None:
    """Fifty executions under rules that come and go: each step runs once, and all of them end."""

    @durable("loop")
    async def loop(number: int) -> int:
        for turn in range(4):
            await do(f"{number}-{turn}")
            await zart.sleep("1ms")
        return number

    async with knowing(dsn, loop) as client:
        handles = await client.start_many(loop, {f"e{number}": number for number in range(50)})
        for turn in range(8):
            rules = [await client.pause(name="loop"), await client.pause(step=f"do-*-{turn % 4}")]
            with contextlib.suppress(zart.ExecutionFinished):
                rules.append(await client.pause(f"e{turn}"))
            for rule in rules:
                assert await client.unpause(rule)
        assert [await handle.result(timeout=30) for handle in handles] == list(range(50))
        assert len(ran) == len(set(ran)) == 200
        await nothing_left(dsn)


# ---------------------------------------------------------------- what cannot be


@pytest.mark.parametrize(
    ("positional", "given", "told"),
    [
        ((), {}, "must say what it holds back"),
        (("a",), {"name": "plain"}, "needs no name="),
        ((7,), {}, "must be text"),
        ((), {"name": ""}, "the name of the durable function to pause is empty"),
        ((), {"name": "x" * 201}, "the name of the durable function to pause is"),
        ((), {"step": ""}, "the pattern of the steps to pause is empty"),
        ((), {"step": "a\nb"}, "control character"),
        ((), {"step": 7}, "must be text"),
        ((), {"step": "*", "reason": "x" * 10_001}, "the reason is over"),
        ((), {"step": "*", "reason": "nul\0"}, "the reason"),
        ((), {"step": "*", "expires": "soon"}, "no length of time"),
        ((), {"step": "*", "expires": 0}, "expires is zero"),
        ((), {"step": "*", "expires": -1}, "negative"),
        ((), {"step": "*", "expires": "3000w3000w"}, "no length of time"),
        ((), {"step": "*", "expires": "9999999d"}, "too long"),
        ((), {"step": "*", "expires": float("nan")}, "no length of time"),
        ((), {"step": "*", "expires": True}, "no length of time"),
        ((), {"step": "*", "expires": dt.datetime(2030, 1, 1)}, "no time zone"),  # noqa: DTZ001
        ((), {"step": "*", "expires": dt.datetime(2001, 1, 1, tzinfo=dt.UTC)}, "over already"),
        ((), {"step": "*", "expires": dt.datetime.min.replace(tzinfo=dt.UTC)}, "over already"),
        ((), {"step": "*", "expires": dt.datetime.max.replace(tzinfo=dt.UTC)}, "out of reach"),
    ],
)
async def test_what_is_no_rule_is_refused_in_clear_words(
    dsn: str, positional: tuple[Any, ...], given: dict[str, Any], told: str
) -> None:
    """Before anything is sent, or by the database's clock; no rule is left behind."""
    async with Client(dsn) as client:
        await client.start(plain, id="a")
        with pytest.raises(zart.UsageError, match=told):
            await client.pause(*positional, **given)
        assert await client.pauses() == []
        assert (await client.status("a")).status == "scheduled"


async def test_an_execution_that_is_unknown_or_has_ended_cannot_be_paused(dsn: str) -> None:
    """And no rule is made for it."""
    async with knowing(dsn) as client:
        for id in ("nobody", "nul\0", "\ud800"):
            with pytest.raises(zart.ExecutionNotFound, match="there is no execution"):
                await client.pause(id)
        await client.start(plain, id="a")
        await client.wait_completion("a")
        with pytest.raises(
            zart.ExecutionFinished, match=r"'a' has ended \(completed\): there is nothing to pause"
        ):
            await client.pause("a")
        assert await client.pauses() == []


async def test_an_unknown_rule_is_no_rule(dsn: str) -> None:
    """Whatever it looks like; what is no text is refused."""
    async with Client(dsn) as client:
        for rule in ("nothing", "", "x" * 10_000, "'; DROP TABLE zart_tasks"):
            assert not await client.unpause(rule)
        for rule in ("nul\0", 7):
            with pytest.raises(zart.UsageError, match="the rule"):
                await client.unpause(rule)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "pattern", ["[", "[!", "[]", "*****************************z", "(a+)+$", "do-[", "\\", "%", "_"]
)
async def test_a_strange_pattern_fits_what_it_says_and_harms_nobody(dsn: str, pattern: str) -> None:
    """A bracket that is not closed stands for itself; no worker stops for a pattern."""
    async with knowing(dsn) as client:
        rule = await client.pause(step=pattern)
        await client.start(plain, id="a")
        assert await client.wait_completion("a", timeout=10) == "ab"
        assert await client.unpause(rule)


async def test_a_client_in_a_body_pauses_nothing(dsn: str) -> None:
    """It would not be replayed: the three are refused like the client's other methods."""

    @durable("meddling")
    async def meddling() -> list[str]:
        told = []
        for method in (client.pause(step="*"), client.unpause("r"), client.pauses()):
            try:
                await method
            except zart.UsageError as error:
                told.append(str(error).split(" ")[0])
        return told

    async with Client(dsn) as client, Worker(dsn, zart.Registry(meddling), fast()):
        assert len(await client.start_and_wait(meddling, timeout=10)) == 3
        assert await client.pauses() == []
