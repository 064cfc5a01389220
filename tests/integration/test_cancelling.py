"""A cancel ends an execution as cancelled wherever it reaches it; its cleanup runs durably, once."""

import asyncio
import datetime as dt
import time
from typing import Any

import pytest

import zart
from tests.support.running import (
    bury_workers,
    query,
    shift_clock,
    until,
    until_record,
    until_status,
    working,
)
from zart import durable, step
from zart._engine.claimer import Claimer

effects: list[Any] = []


@pytest.fixture(autouse=True)
def _no_effects() -> None:
    effects.clear()


@step("work")
async def work(label: str) -> str:
    effects.append(label)
    return label.upper()


@step("long")
async def long() -> None:
    effects.append("began")
    try:
        await asyncio.sleep(60)
    finally:
        effects.append("cut")


@durable("cleans-up")
async def cleans_up(how: str) -> str:
    try:
        await work("first")
        if how == "sleep":
            await zart.sleep("1d")
        elif how == "event":
            await zart.wait_for_event("never")
        elif how == "step":
            await long()
        elif how == "branches":
            await asyncio.gather(zart.sleep("1d"), zart.wait_for_event("never"), long())
        elif how == "limit":
            async with zart.timeout("2d"):
                await zart.sleep("1d")
        elif how == "retry":
            await fails()
    except asyncio.CancelledError:
        effects.append("cancelled")
        await work("undo-1")
        await work("undo-2")
    return "swallowed"


@step("fails", retry="fixed(3, 1h)")
async def fails() -> None:
    raise OSError("again")


async def assert_cancelled(client: zart.Client, id: str, reason: str | None = None) -> None:
    with pytest.raises(zart.ExecutionCancelled) as caught:
        await client.wait_completion(id, timeout="5s")
    assert reason is None or reason in str(caught.value)
    assert (await client.status(id)).status == "cancelled"


# ------------------------------------------------------------ where it reaches the execution


async def test_while_queued(dsn: str) -> None:
    """Cancelled while queued: `cancelled`, and the body never runs."""
    async with zart.Client(dsn) as client:
        await client.start(cleans_up, "sleep", id="q")
        await client.start(cleans_up, "sleep", id="later", delay="1h")
        assert await client.cancel("q", reason="changed my mind") is True
        assert await client.cancel("later") is True
        await assert_cancelled(client, "q", "changed my mind")
        await assert_cancelled(client, "later")
    async with working(dsn, cleans_up) as client:
        await shift_clock(dsn, dt.timedelta(hours=2))
        other = await client.start(cleans_up, "nothing")
        assert await other.result(timeout="5s") == "swallowed"
    assert effects == ["first"]


WHERE = ["sleep", "event", "step", "branches", "limit", "retry"]


@pytest.mark.parametrize("always_suspend", [False, True], ids=["plain", "always"])
@pytest.mark.parametrize("how", WHERE)
async def test_cleanup_runs_once(dsn: str, how: str, always_suspend: bool) -> None:
    """Cancelled while sleeping, waiting, in a step or between its attempts: the outcome is `cancelled` whatever the
    body returns, cleanup runs its durable steps once, and twice is harmless."""
    async with working(dsn, cleans_up, always_suspend=always_suspend) as client:
        await client.start(cleans_up, how, id="x")
        if how in ("step", "branches"):
            await until(lambda: "began" in effects)
        elif how == "retry":
            await until_record(client, "x", "fails", "waiting")
        else:
            await until_status(client, "x", "waiting")
        assert await client.cancel("x", reason="enough") is True
        assert await client.cancel("x", reason="again") is False
        await assert_cancelled(client, "x", "enough")
        assert await client.cancel("x") is False
    done = [effect for effect in effects if effect not in ("began", "cut", "cancelled")]
    assert done == ["first", "undo-1", "undo-2"]
    if not always_suspend:
        assert effects.count("began") == effects.count("cut") == (how in ("step", "branches"))


@pytest.mark.parametrize("what", ["cancel", "time limit"])
async def test_in_a_plain_await_after_a_takeover(dsn: str, what: str) -> None:
    """A body that was replayed up to its last record, and now waits for something that is not the engine's, goes live:
    it hears of a cancel, and its time limit counts."""
    waiting: list[str] = []

    @durable("plainly", timeout="1h")
    async def plainly() -> None:
        await work("first")
        waiting.append("waits")
        await asyncio.Event().wait()

    async with working(dsn, plainly) as client:
        handle = await client.start(plainly, id="x")
        await until_record(client, "x", "work", "completed")
        await until(lambda: waiting)
        replayed = len(waiting)
        await bury_workers(dsn)
        await until(lambda: len(waiting) > replayed)
        if what == "cancel":
            await client.cancel("x")
            await assert_cancelled(client, "x")
        else:
            await shift_clock(dsn, dt.timedelta(hours=2))
            with pytest.raises(zart.ExecutionTimeout):
                await handle.result(timeout="10s")
    assert effects == ["first"]


@pytest.mark.parametrize(
    "late",
    [
        "worker hears it",
        pytest.param(
            "outcome comes first",
            marks=pytest.mark.not_in(
                "suspending", "twice", reason="a worker that is deaf claims nothing again"
            ),
        ),
    ],
)
async def test_after_the_last_step(dsn: str, monkeypatch: pytest.MonkeyPatch, late: str) -> None:
    """Cancelled after the last step, before the outcome: `cancelled`, always."""
    gate, deaf = asyncio.Event(), asyncio.Event()

    @durable("last")
    async def last() -> str:
        await work("last")
        await gate.wait()
        return "done"

    look = Claimer.tick

    async def deaf_look(self: Claimer, **options: Any) -> Any:
        if late == "outcome comes first" and options["watching"]:
            deaf.set()
            await until(lambda: query(dsn, "SELECT 1 FROM zart_executions WHERE status <> 'scheduled'"))
        return await look(self, **options)

    async with working(dsn, last) as client:
        monkeypatch.setattr(Claimer, "tick", deaf_look)
        await client.start(last, id="x")
        await until_record(client, "x", "work", "completed")
        if late == "outcome comes first":
            await deaf.wait()
        assert await client.cancel("x", reason="too late?") is True
        if late == "outcome comes first":
            gate.set()
        await assert_cancelled(client, "x")
    assert effects == ["last"]


async def test_between_two_attempts_of_the_body(dsn: str) -> None:
    """Cancelled while the body waits for its next attempt: `cancelled`, at once."""

    @durable("fails-first", max_retries="fixed(1, 1h)")
    async def fails_first() -> str:
        effects.append("ran")
        if effects.count("ran") == 1:
            raise OSError("first")
        try:
            await zart.wait_for_event("never")
        finally:
            if not zart.suspending():
                await work("undo")
        return "not reached"

    async with working(dsn, fails_first) as client:
        await client.start(fails_first, id="x")
        await until_status(client, "x", "waiting")
        await client.cancel("x")
        await assert_cancelled(client, "x")


@durable("retried", max_retries="fixed(1, 1d)")
async def retried() -> None:
    effects.append("ran")
    await work("act")
    await gates["retried"].wait()
    if effects.count("ran") == 1:
        raise OSError("first")
    try:
        await zart.wait_for_event("never")
    finally:
        await work("undo-1")
        await zart.sleep("1h")
        await work("undo-2")


gates: dict[str, asyncio.Event] = {}


@pytest.mark.parametrize("when", ["before the retry is written", "during the delay"])
async def test_a_bodys_retry_does_not_delay_a_cancel(
    dsn: str, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Cancelled while the body's retry is being written, or during its delay: neither the cancel nor a sleep in the
    cleanup waits for the end of that delay."""
    gates["retried"] = asyncio.Event()
    deaf = asyncio.Event()
    look = Claimer.tick

    async def deaf_look(self: Claimer, **options: Any) -> Any:
        if options["watching"] and not gates["retried"].is_set():
            deaf.set()
            await until(lambda: query(dsn, "SELECT 1 FROM zart_tasks WHERE state <> 'running'"))
        return await look(self, **options)

    async with working(dsn, retried) as client:
        if when != "during the delay":
            monkeypatch.setattr(Claimer, "tick", deaf_look)
        await client.start(retried, id="x")
        await until_record(client, "x", "work", "completed")
        if when == "during the delay":
            gates["retried"].set()
            await until_status(client, "x", "waiting")
            assert await client.cancel("x") is True
        else:
            await deaf.wait()
            assert await client.cancel("x") is True
            gates["retried"].set()
        await until_record(client, "x", "sleep", "waiting")
        await until_status(client, "x", "waiting")
        await shift_clock(dsn, dt.timedelta(hours=1, seconds=1))
        await assert_cancelled(client, "x")
    assert [effect for effect in effects if effect != "ran"] == ["act", "undo-1", "undo-2"]


async def test_while_blocked(dsn: str) -> None:
    """Cancelled while blocked: `cancelled`, nothing runs."""

    def version(name: str) -> zart.Durable[[], None]:
        @durable("deployed")
        async def body() -> None:
            await work.named(name)(name)
            await zart.wait_for_event("go")

        return body

    old, new = version("old"), version("new")
    async with working(dsn, old) as client:
        await client.start(old, id="x")
        await until_status(client, "x", "waiting")
    async with working(dsn, new) as client:
        await client.offer_event("x", "go")
        await until_status(client, "x", "blocked")
        assert await client.cancel("x") is True
        await assert_cancelled(client, "x")
    assert effects == ["old"]


async def test_from_sql(dsn: str) -> None:
    """`zart_cancel` does the same from any transaction: rolled back, nothing; committed, it is cancelled."""
    async with working(dsn, cleans_up) as client:
        await client.start(cleans_up, "event", id="x")
        await until_status(client, "x", "waiting")
        assert await query(dsn, "SELECT zart_cancel('x', 'by hand')") == [(True,)]
        await assert_cancelled(client, "x", "by hand")
    assert [effect for effect in effects if effect != "cancelled"] == ["first", "undo-1", "undo-2"]


# ------------------------------------------------------------ what cleanup may do


@durable("slow-cleanup")
async def slow_cleanup() -> None:
    try:
        await work("act")
        await zart.sleep("1d")
    finally:
        if not zart.suspending():
            effects.append("cleaning")
        await work("undo-1")
        await zart.sleep("1h")
        await work("undo-2")


async def test_cleanup_may_wait_and_survives_a_crash(dsn: str) -> None:
    """Cleanup may sleep; its worker dies meanwhile; another one goes on with it, and nothing of it runs twice. Until
    it has ended the execution shows as cancelling."""
    async with working(dsn, slow_cleanup) as client:
        await client.start(slow_cleanup, id="x")
        await until_status(client, "x", "waiting")
        await client.cancel("x", reason="stop")
        await until(lambda: "undo-1" in effects)
        await until_status(client, "x", "waiting")
        status = await client.status("x")
        assert (status.status, status.cancelling) == ("waiting", True)
        await bury_workers(dsn)
    async with working(dsn, slow_cleanup) as client:
        assert await client.cancel("x") is False
        await shift_clock(dsn, dt.timedelta(hours=1))
        await assert_cancelled(client, "x", "stop")
        entries = [r for r in (await client.history("x")).records if r.kind == "cancel"]
        assert len(entries) == 1
    assert [effect for effect in effects if effect != "cleaning"] == ["act", "undo-1", "undo-2"]


async def test_an_error_in_cleanup(dsn: str) -> None:
    """Whatever cleanup raises, the outcome is `cancelled`."""

    @durable("bad-cleanup", max_retries=5)
    async def bad_cleanup() -> None:
        try:
            await zart.sleep("1d")
        finally:
            if not zart.suspending():
                raise RuntimeError("broken cleanup")

    async with working(dsn, bad_cleanup) as client:
        await client.start(bad_cleanup, id="x")
        await until_status(client, "x", "waiting")
        await client.cancel("x")
        await assert_cancelled(client, "x")


async def test_a_time_limit_is_delivered_like_a_cancel(dsn: str) -> None:
    """The execution's own limit is delivered like a cancel: cleanup runs durable steps once; then it has failed."""

    @durable("limited", timeout="1h")
    async def limited() -> str:
        try:
            await work("act")
            await zart.sleep("1d")
        except asyncio.CancelledError:
            await work("undo")
            await zart.wait_for_event("go")
            await work("undone")
        return "swallowed"

    async with working(dsn, limited) as client:
        await client.start(limited, id="x")
        await until_status(client, "x", "waiting")
        await shift_clock(dsn, dt.timedelta(hours=1))
        await until(lambda: "undo" in effects)
        await until_record(client, "x", "go", "waiting")
        await bury_workers(dsn)
        await client.offer_event("x", "go")
        with pytest.raises(zart.ExecutionTimeout):
            await client.wait_completion("x", timeout="5s")
    assert effects == ["act", "undo", "undone"]


async def test_a_cancel_after_the_time_limit(dsn: str) -> None:
    """Cancelled while the cleanup of a time limit waits: it is told a second time, and ends as cancelled."""

    @durable("limited-too", timeout="1h")
    async def limited_too() -> None:
        try:
            await zart.sleep("1d")
        except asyncio.CancelledError:
            effects.append("limit")
            try:
                await zart.wait_for_event("never")
            except asyncio.CancelledError:
                effects.append("cancel")

    async with working(dsn, limited_too) as client:
        await client.start(limited_too, id="x")
        await until_status(client, "x", "waiting")
        await shift_clock(dsn, dt.timedelta(hours=1))
        await until_record(client, "x", "never", "waiting")
        await client.cancel("x")
        await assert_cancelled(client, "x")
    assert set(effects) == {"limit", "cancel"}


@pytest.mark.parametrize("when", ["in the body", "in on_failure"])
async def test_on_failure_is_not_for_a_cancel(dsn: str, when: str) -> None:
    """A cancel does not begin `on_failure`; one that reaches it ends it, and the outcome is `cancelled`."""

    async def clean_up(data: None, failure: zart.Failure) -> None:
        await work("on_failure")
        await zart.wait_for_event("never")
        effects.append("not reached")

    @durable("fails-or-waits", on_failure=clean_up)
    async def fails_or_waits(fail: bool) -> None:
        if fail:
            raise OSError("failed")
        await zart.wait_for_event("never")

    async with working(dsn, fails_or_waits) as client:
        await client.start(fails_or_waits, when == "in on_failure", id="x")
        await until_status(client, "x", "waiting")
        await client.cancel("x")
        await assert_cancelled(client, "x")
    assert effects == (["on_failure"] if when == "in on_failure" else [])


# ------------------------------------------------------------ by force


@pytest.mark.parametrize("how", ["step", "event"])
async def test_by_force(dsn: str, how: str) -> None:
    """`force=True` ends it here and now, without cleanup; what its worker still does for it is not recorded."""
    async with working(dsn, cleans_up) as client:
        handle = await client.start(cleans_up, how, id="x")
        if how == "step":
            await until(lambda: "began" in effects)
        else:
            await until_status(client, "x", "waiting")
        started = time.monotonic()
        assert await client.cancel("x", force=True, reason="now") is True
        with pytest.raises(zart.ExecutionCancelled):
            await handle.result(timeout="5s")
        assert time.monotonic() - started < 1
        if how == "step":
            await until(lambda: "cut" in effects, within=5)
        assert await client.cancel("x", force=True) is False
        assert await query(dsn, "SELECT count(*) FROM zart_tasks") == [(0,)]
        assert await query(dsn, "SELECT count(*) FROM zart_steps WHERE state IN ('running', 'waiting')") == [
            (0,)
        ]
    assert "undo-1" not in effects


async def test_unknown(dsn: str) -> None:
    """Cancelling an unknown execution says so."""
    async with zart.Client(dsn) as client:
        with pytest.raises(zart.ExecutionNotFound, match="'nobody'"):
            await client.cancel("nobody")
