"""Attempts, delays, time limits, retries of the body and crash loops: counted once, whoever goes on with them."""

import asyncio
import contextlib
import datetime as dt
import threading
import time
from typing import Any

import anyio
import msgspec
import pytest

import zart
from tests.support.running import (
    bury_workers,
    fast,
    query,
    shift_clock,
    stir,
    until,
    until_record,
    until_status,
    working,
)
from zart import durable, step
from zart._engine.claimer import Claimer

effects: list[Any] = []
HOUR = dt.timedelta(hours=1)


@pytest.fixture(autouse=True)
def _no_effects() -> None:
    effects.clear()


@step("work")
async def work(label: str) -> str:
    effects.append(label)
    return label.upper()


ATTEMPTS = (
    "SELECT attempt, body_attempt, failure, next_at - finished_at, started_at <= finished_at"
    " FROM zart_step_attempts ORDER BY id"
)


async def attempts(dsn: str) -> list[tuple[Any, ...]]:
    """With type and message of the failure, and how long the next attempt is put off."""
    return [
        (attempt, body, failure["type"], failure["message"], *times)
        for attempt, body, failure, *times in await query(dsn, ATTEMPTS)
    ]


# ------------------------------------------------------------ attempts of a step


@step("fails-twice", retry="exponential(3, 100ms)")
async def fails_twice() -> str:
    effects.append(time.monotonic())
    if len(effects) < 3:
        raise ConnectionError(f"no {len(effects)}")
    return "yes"


@durable("retries")
async def retries() -> str:
    return await fails_twice()


@pytest.mark.parametrize("always_suspend", [False, True])
async def test_a_step_fails_twice_and_then_works(dsn: str, always_suspend: bool) -> None:
    """Under `exponential(3, …)`: three attempts, delays as specified, none after the last, attempts in the history
    with their errors and times."""
    async with working(dsn, retries, always_suspend=always_suspend) as client:
        handle = await client.start(retries)
        assert await handle.result(timeout="5s") == "yes"
        (record,) = (await client.history(handle.id)).records
        assert (record.state, record.attempts) == ("completed", 3)
        notes = "\n".join((await client.history(handle.id)).notes)
        assert "no 1" in notes
        assert "no 2" in notes
    first, second, third = effects
    assert 0.1 <= second - first < 0.6
    assert 0.2 <= third - second < 0.7
    assert await attempts(dsn) == [
        (1, 1, "ConnectionError", "no 1", dt.timedelta(milliseconds=100), True),
        (2, 1, "ConnectionError", "no 2", dt.timedelta(milliseconds=200), True),
    ]


async def test_a_step_fails_for_good(dsn: str) -> None:
    """When no retry is left the error is raised in the body at once, with the count of attempts."""

    @step("hopeless", retry="fixed(2, 10ms)")
    async def hopeless() -> None:
        effects.append("tried")
        raise LookupError("nothing there")

    @durable("hopes")
    async def hopes() -> None:
        await hopeless()

    async with working(dsn, hopes) as client:
        with pytest.raises(zart.ExecutionFailed, match="nothing there") as caught:
            await client.start_and_wait(hopes, timeout="5s")
        failure = caught.value.failure
        assert (failure.type, failure.step, failure.attempts) == ("LookupError", "hopeless", 3)
        assert "hopeless" in failure.traceback
    assert effects == ["tried"] * 3
    assert len(await attempts(dsn)) == 2


def long_delay() -> zart.Durable[[], str]:
    @step("flaky", retry="fixed(2, 1h)")
    async def flaky() -> str:
        effects.append(zart.step_context().step_attempt)
        if len(effects) < 3:
            raise ConnectionError("again")
        return "done"

    @durable("long-delay")
    async def body() -> str:
        return await flaky()

    return body


@pytest.mark.parametrize("crash", [False, True], ids=["stopped", "crashed"])
async def test_delays_survive_a_crash(dsn: str, crash: bool) -> None:
    """Retry delays survive a crash: a worker that takes over waits only the remainder and counts on."""
    body = long_delay()
    async with working(dsn, body) as client:
        handle = await client.start(body, id="x")
        await until(lambda: effects)
        await until_record(client, "x", "flaky", "waiting")
        if crash:
            await bury_workers(dsn)
        else:
            await until_status(client, "x", "waiting")
            assert "attempt 2" in ((await client.status("x")).waiting_for or "")
    await shift_clock(dsn, dt.timedelta(minutes=59))
    async with working(dsn, body) as client:
        with pytest.raises(zart.ResultTimeout):
            await client.handle(body, handle.id).result(timeout="300ms")
        assert effects == [1]
        await shift_clock(dsn, dt.timedelta(minutes=1, seconds=1))
        await until(lambda: len(effects) == 2)
        await until_status(client, "x", "waiting")
        await shift_clock(dsn, HOUR)
        assert await client.handle(body, handle.id).result(timeout="5s") == "done"
    assert effects == [1, 2, 3]


async def test_a_short_delay_survives_a_takeover(dsn: str) -> None:
    """A delay that passes in memory is stored too: after a takeover only the remainder is waited for."""

    @step("soon", retry="fixed(1, 700ms)")
    async def soon() -> str:
        effects.append(time.monotonic())
        if len(effects) == 1:
            raise ConnectionError("again")
        return "done"

    @durable("soon-again")
    async def soon_again() -> str:
        return await soon()

    async with working(dsn, soon_again) as client:
        handle = await client.start(soon_again)
        await until(lambda: effects)
        await until_record(client, handle.id, "soon", "waiting")
        await bury_workers(dsn)
        assert await handle.result(timeout="5s") == "done"
        (record,) = (await client.history(handle.id)).records
        assert record.attempts == 2
    assert 0.7 <= effects[1] - effects[0] < 1.3


async def test_errors_that_are_not_retried(dsn: str) -> None:
    """`NonRetryable` and `give_up_on`: one attempt."""

    @step("refused", retry="fixed(5, 1h)")
    async def refused() -> None:
        effects.append("refused")
        raise zart.NonRetryable("card stolen")

    @step("given-up", retry=zart.Retry.fixed(5, "1h", give_up_on=(LookupError,)))
    async def given_up() -> None:
        effects.append("given up")
        raise KeyError("k")

    @step("not-listed", retry=zart.Retry.fixed(5, "1h", retry_on=(ConnectionError,)))
    async def not_listed() -> None:
        effects.append("not listed")
        raise ValueError("v")

    @durable("gives-up")
    async def gives_up() -> list[str]:
        out = []
        for call in (refused, given_up, not_listed):
            try:
                await call()
            except (zart.NonRetryable, KeyError, ValueError) as error:
                out.append(type(error).__name__)
        return out

    async with working(dsn, gives_up) as client:
        assert await client.start_and_wait(gives_up, timeout="5s") == [
            "NonRetryable",
            "KeyError",
            "ValueError",
        ]
    assert effects == ["refused", "given up", "not listed"]


async def test_retry_after(dsn: str) -> None:
    """`RetryAfter`: not before that time."""

    @step("limited", retry="fixed(1, 10ms)")
    async def limited() -> str:
        effects.append("tried")
        if len(effects) == 1:
            raise zart.RetryAfter("1h")
        return "done"

    @durable("waits-its-turn")
    async def waits_its_turn() -> str:
        return await limited()

    async with working(dsn, waits_its_turn) as client:
        handle = await client.start(waits_its_turn, id="w")
        await until_status(client, "w", "waiting")
        await shift_clock(dsn, dt.timedelta(minutes=59))
        with pytest.raises(zart.ResultTimeout):
            await handle.result(timeout="200ms")
        assert effects == ["tried"]
        await shift_clock(dsn, dt.timedelta(minutes=1))
        assert await handle.result(timeout="5s") == "done"


# ------------------------------------------------------------ time limits


async def test_a_time_limit_cuts_an_attempt(dsn: str) -> None:
    """Step timeout cuts the attempt, counts as one, and is retried."""

    @step("slow", timeout="150ms", retry="fixed(2, 10ms)")
    async def slow() -> str:
        effects.append("began")
        if len(effects) < 3:
            try:
                await asyncio.sleep(60)
            finally:
                effects.append("cut")
        return "done"

    @durable("cuts")
    async def cuts() -> str:
        return await slow()

    async with working(dsn, cuts) as client:
        assert await client.start_and_wait(cuts, timeout="5s") == "done"
    assert effects == ["began", "cut", "began"]
    assert [row[:3] for row in await attempts(dsn)] == [(1, 1, "zart.errors.StepTimeout")]


async def test_the_total_limit_bounds_all(dsn: str) -> None:
    """With `timeout_scope="total"` the limit bounds all attempts and delays together."""

    @step("never", timeout="500ms", timeout_scope="total", retry="fixed(100, 50ms)")
    async def never() -> None:
        effects.append(time.monotonic())
        raise ConnectionError("again")

    @step("hangs", timeout="300ms", timeout_scope="total", retry="fixed(100, 10ms)")
    async def hangs() -> None:
        await asyncio.sleep(60)

    @durable("bounded")
    async def bounded() -> list[str]:
        out = []
        for call in (never, hangs):
            try:
                await call()
            except (ConnectionError, zart.StepTimeout) as error:
                out.append(type(error).__name__)
        return out

    async with working(dsn, bounded) as client:
        assert await client.start_and_wait(bounded, timeout="5s") == ["ConnectionError", "StepTimeout"]
    assert 2 <= len(effects) <= 11
    assert effects[-1] - effects[0] < 0.55


@pytest.mark.parametrize("parked", ["sleep", "event", "step"])
async def test_an_executions_time_limit(dsn: str, parked: str) -> None:
    """Execution timeout fires while parked on a sleep or event, or in a step, within a second of its time; cleanup
    may run steps."""

    @step("long")
    async def long() -> None:
        await asyncio.sleep(60)

    @durable("limited-body", timeout="2h")
    async def limited_body(how: str) -> str:
        try:
            if how == "sleep":
                await zart.sleep("1d")
            elif how == "event":
                await zart.wait_for_event("never")
            else:
                await long()
        finally:
            if not zart.suspending():
                await work("cleanup")
        return "not cut"

    async with working(dsn, limited_body) as client:
        handle = await client.start(limited_body, parked, id="l")
        if parked == "step":
            await until_record(client, "l", "long", "running")
        else:
            await until_status(client, "l", "waiting")
        await shift_clock(dsn, dt.timedelta(minutes=119))
        with pytest.raises(zart.ResultTimeout):
            await handle.result(timeout="200ms")
        await shift_clock(dsn, dt.timedelta(minutes=1))
        with pytest.raises(zart.ExecutionTimeout, match="2h"):
            await handle.result(timeout="4s")
        assert (await handle.status()).status == "failed"
    assert effects == ["cleanup"]


async def test_a_time_limit_fires_on_time(dsn: str) -> None:
    """By the real clock: within a second of its time."""

    @durable("short-limit", timeout="600ms")
    async def short_limit() -> None:
        await zart.wait_for_event("never")

    async with working(dsn, short_limit) as client:
        started = time.monotonic()
        with pytest.raises(zart.ExecutionTimeout):
            await client.start_and_wait(short_limit, timeout="5s")
        assert 0.6 <= time.monotonic() - started < 1.6


# ------------------------------------------------------------ the body again


@step("once")
async def once(label: str) -> str:
    effects.append(label)
    return label


@step("twice-bad")
async def twice_bad(label: str) -> str:
    effects.append(label)
    if effects.count(label) < 3:
        raise OSError(f"{label} fails")
    return label


@durable("again", max_retries="fixed(3, 50ms)")
async def again() -> list[str]:
    out = [await once("a")]
    try:
        await twice_bad("caught")
    except OSError as error:
        out.append(str(error))
    out.append(await once("b"))
    out.append(await twice_bad("c"))
    return [*out, await once("d")]


@pytest.mark.parametrize("always_suspend", [False, True])
async def test_max_retries(dsn: str, always_suspend: bool) -> None:
    """`max_retries` reruns the body, keeps completed steps and caught failures, and tries afresh exactly the records
    whose exception left the body."""
    async with working(dsn, again, always_suspend=always_suspend) as client:
        handle = await client.start(again, id="x")
        assert await handle.result(timeout="5s") == ["a", "caught fails", "b", "c", "d"]
        notes = (await client.history("x")).notes
        assert sum("of the body failed" in note for note in notes) == 2
    assert effects == ["a", "caught", "b", "c", "c", "c", "d"]
    assert [row[:4] for row in await attempts(dsn)] == [
        (1, 1, "OSError", "c fails"),
        (1, 2, "OSError", "c fails"),
    ]


async def test_max_retries_with_causes_and_groups(dsn: str) -> None:
    """Tried afresh: what left the body as a cause or as a member of a group; not what is only its context."""

    @durable("grouped", max_retries="fixed(5, 10ms)")
    async def grouped() -> list[str]:
        with contextlib.suppress(OSError):
            await twice_bad("context")
        out = await asyncio.gather(twice_bad("g1"), twice_bad("g2"), once("ok"), return_exceptions=True)
        bad = [item for item in out if isinstance(item, Exception)]
        if bad:
            raise ExceptionGroup("both", bad)
        try:
            return [str(item) for item in out] + [await twice_bad("cause")]
        except OSError as error:
            raise RuntimeError("wrapped") from error

    async with working(dsn, grouped) as client:
        assert await client.start_and_wait(grouped, timeout="5s") == ["g1", "g2", "ok", "cause"]
    assert [effects.count(label) for label in ("context", "g1", "g2", "ok", "cause")] == [1, 3, 3, 1, 3]


async def test_max_retries_ends(dsn: str) -> None:
    """With no retry left it has failed, with the error of the last attempt and the count."""

    @durable("never-works", max_retries=2)
    async def never_works() -> None:
        await once("a")
        raise ValueError("a bug")

    async with working(dsn, never_works) as client:
        handle = await client.start(never_works, id="n")
        await until_status(client, "n", "waiting", "running")
        for _ in range(3):
            await shift_clock(dsn, dt.timedelta(minutes=2))
        with pytest.raises(zart.ExecutionFailed, match="a bug") as caught:
            await handle.result(timeout="10s")
        assert caught.value.failure.attempts == 3
    assert effects == ["a"]


@pytest.mark.not_in(
    "suspending", "twice", reason="its body fails when it runs for the first time, and counts that"
)
async def test_the_delay_of_a_body_survives_and_ignores_events(dsn: str) -> None:
    """Between two attempts of the body neither an event nor a takeover makes it run early; the event is not lost."""

    @durable("patient", max_retries="fixed(1, 1h)")
    async def patient() -> str:
        effects.append("ran")
        if len(effects) == 1:
            raise OSError("first")
        return await zart.wait_for_event("item", str)

    async with working(dsn, patient) as client:
        handle = await client.start(patient, id="p")
        await until_status(client, "p", "waiting")
        await client.offer_event("p", "item", "kept")
        with pytest.raises(zart.ResultTimeout):
            await handle.result(timeout="300ms")
    async with working(dsn, patient) as client:
        assert effects == ["ran"]
        await shift_clock(dsn, HOUR)
        assert await client.handle(patient, "p").result(timeout="5s") == "kept"
    assert effects == ["ran", "ran"]


@pytest.mark.not_in("twice", reason="counts how often the body runs")
async def test_no_attempt_begins_after_the_time_limit(dsn: str) -> None:
    """An execution's time limit bounds all attempts of its body: one that could only begin after it is not waited
    for."""

    @durable("bounded-body", max_retries="fixed(5, 1h)", timeout="90m")
    async def bounded_body() -> None:
        effects.append("ran")
        raise OSError("again")

    async with working(dsn, bounded_body) as client:
        handle = await client.start(bounded_body, id="b")
        await until_status(client, "b", "waiting")
        await shift_clock(dsn, HOUR)
        with pytest.raises(zart.ExecutionFailed, match="again"):
            await handle.result(timeout="5s")
    assert effects == ["ran", "ran"]


@pytest.mark.not_in("twice", reason="counts how often the body runs")
async def test_a_payload_that_does_not_fit(dsn: str) -> None:
    """Started by name with a payload that does not fit: the execution fails with the field's path, the body never
    runs, retries or not."""

    class Order(msgspec.Struct):
        number: int
        lines: list[dict[str, int]]

    async def clean_up(order: Order, failure: zart.Failure) -> None:
        effects.append("cleaned")

    @durable("order", max_retries=5, on_failure=clean_up)
    async def order(given: Order) -> None:
        effects.append("ran")

    async with working(dsn, order) as client:
        for payload, path in (
            ({"number": "x", "lines": []}, "number"),
            ({"number": 1, "lines": [{"a": "b"}]}, "lines"),
        ):
            handle = await client.start("order", payload)
            with pytest.raises(zart.ExecutionFailed, match=path) as caught:
                await handle.result(timeout="5s")
            assert caught.value.failure.type.endswith("PayloadError")
        assert await client.start_and_wait(order, Order(1, [{"a": 2}]), timeout="5s") is None
    assert effects == ["ran"]


async def test_a_deadline_of_anyio_is_refused(dsn: str) -> None:
    """A durable call under an anyio deadline cannot be replayed: refused by name, with the way on."""

    @durable("fail-after")
    async def fail_after() -> None:
        with anyio.fail_after(5):
            await work("a")

    async with working(dsn, fail_after) as client:
        with pytest.raises(zart.ExecutionFailed, match=r"zart\.timeout"):
            await client.start_and_wait(fail_after, timeout="5s")
    assert effects == []


@pytest.mark.parametrize("always_suspend", [False, True])
async def test_on_failure(dsn: str, always_suspend: bool) -> None:
    """`on_failure` runs durably, once, and may call steps and wait; the execution has failed with the first error."""

    async def clean_up(order: int, failure: zart.Failure) -> None:
        await once(f"undo {order} after {failure.message}")
        await zart.wait_for_event("go")
        await once("undone")

    @durable("fails", on_failure=clean_up, max_retries="fixed(1, 10ms)")
    async def fails(order: int) -> None:
        await once("a")
        raise LookupError("no stock")

    async with working(dsn, fails, always_suspend=always_suspend) as client:
        handle = await client.start(fails, 7, id="f")
        await until_record(client, "f", "on_failure/go", "waiting")
        await until_status(client, "f", "waiting")
        await bury_workers(dsn)
        await client.offer_event("f", "go")
        with pytest.raises(zart.ExecutionFailed, match="no stock"):
            await handle.result(timeout="5s")
    assert effects == ["a", "undo 7 after no stock", "undone"]


async def test_on_failure_that_fails(dsn: str) -> None:
    """If it fails itself, the execution has failed with both errors."""

    async def clean_up(data: None, failure: zart.Failure) -> None:
        raise RuntimeError("second")

    @durable("fails-twice-over", on_failure=clean_up)
    async def fails_twice_over() -> None:
        raise LookupError("first")

    async with working(dsn, fails_twice_over) as client:
        with pytest.raises(zart.ExecutionFailed) as caught:
            await client.start_and_wait(fails_twice_over, timeout="5s")
        assert "first" in caught.value.failure.traceback + caught.value.failure.message
        assert "second" in caught.value.failure.traceback + caught.value.failure.message


# ------------------------------------------------------------ crash loops


@pytest.mark.parametrize("after", ["at once", "after a while"])
async def test_a_crash_loop_is_blocked(dsn: str, after: str) -> None:
    """A handler that ends the process each time: blocked after `max_recoveries`, others unaffected; resume gives it a
    new budget. A process that dies only after a while counts the same."""
    mended = asyncio.Event()

    @step("poison")
    async def poison() -> str:
        effects.append("poison")
        if not mended.is_set():
            await asyncio.sleep(60)
        return "cured"

    @durable("poisoned")
    async def poisoned() -> str:
        return await poison()

    @durable("innocent")
    async def innocent() -> str:
        await zart.wait_for_event("go")
        return await work("innocent")

    ended_in = 0

    async def crash() -> None:
        """The process ends while the step runs."""
        nonlocal ended_in
        await until(lambda: len(effects) > ended_in)
        ended_in = len(effects)
        if after == "after a while":
            await until_record(client, "p", "poison", "running")
        await bury_workers(dsn)

    async with working(dsn, poisoned, innocent, config=fast(max_recoveries=2)) as client:
        others = [await client.start(innocent) for _ in range(3)]
        handle = await client.start(poisoned, id="p")
        for budget in range(2):
            for _ in range(3):
                await crash()
            with pytest.raises(zart.ExecutionBlocked, match="'p'"):
                await handle.result(timeout="15s")
            assert any("crash-loop" in note for note in (await client.history("p")).notes)
            if budget == 0:
                assert await client.resume("p") is True
        for other in others:
            await client.offer_event(other.id, "go")
            assert await other.result(timeout="5s") == "INNOCENT"
        mended.set()
        assert await client.resume("p", reason="mended") is True
        assert await handle.result(timeout="5s") == "cured"


@pytest.mark.not_in("twice", reason="its body passes a gate that opens once for each step")
async def test_the_count_of_recoveries_starts_again_with_a_record(dsn: str) -> None:
    """Takeovers with a new record in between are no crash loop."""

    @durable("long-way")
    async def long_way() -> list[str]:
        out = []
        for number in range(6):
            out.append(await work(str(number)))
            await gate.acquire()
        return out

    gate = asyncio.Semaphore(0)
    async with working(dsn, long_way, config=fast(max_recoveries=1)) as client:
        handle = await client.start(long_way, id="l")
        for number in range(6):
            await until_record(client, "l", "work" if number == 0 else f"work#{number + 1}", "completed")
            await bury_workers(dsn)
            await until(
                lambda: query(dsn, "SELECT 1 FROM zart_tasks t JOIN zart_workers w ON w.worker_id = t.owner")
            )
            for _ in range(number + 1):
                gate.release()
        assert await handle.result(timeout="5s") == [str(number) for number in range(6)]
    assert effects == [str(number) for number in range(6)]


# ------------------------------------------------------------ plain functions


@pytest.mark.parametrize(
    ("retry", "takes"),
    [("fixed(3, 10ms)", 0.5), ("fixed(3, 700ms)", 1.5)],
    ids=["soon", "after-a-suspension"],
)
async def test_a_plain_function_that_ignores_its_limit(dsn: str, retry: str, takes: float) -> None:
    """A `def` step that ignores its time limit: no second attempt overlaps it."""
    running = peak = 0
    lock = threading.Lock()

    @step("stubborn", timeout="200ms", retry=retry)
    def stubborn() -> str:
        nonlocal running, peak
        with lock:
            running += 1
            peak = max(peak, running)
            effects.append("began")
            first = len(effects) == 1
        time.sleep(takes if first else 0)
        with lock:
            running -= 1
        return "done"

    @durable("threads")
    async def threads() -> str:
        return await stubborn()

    async with working(dsn, threads) as client:
        assert await client.start_and_wait(threads, timeout="5s") == "done"
    assert peak == 1
    assert effects == ["began", "began"]


async def test_the_pool_is_not_exhausted(dsn: str) -> None:
    """Ten plain functions that never come back do not take the threads of the others, and fail as StepStuck."""
    release = threading.Event()

    @step("stuck", timeout="200ms", timeout_scope="total")
    def stuck() -> None:
        release.wait(30)

    @step("plain")
    def plain(label: str) -> str:
        effects.append(threading.current_thread() is threading.main_thread())
        return label

    @durable("gets-stuck")
    async def gets_stuck() -> str:
        try:
            await stuck()
        except zart.StepStuck:
            return await plain("went on")
        return "not stuck"

    try:
        async with working(dsn, gets_stuck, config=fast(max_threads=4)) as client:
            handles = [await client.start(gets_stuck) for _ in range(10)]
            assert [await handle.result(timeout="10s") for handle in handles] == ["went on"] * 10
    finally:
        release.set()
    assert effects == [False] * 10


# ------------------------------------------------------------ the worker itself


async def test_a_worker_that_ends_by_an_error_says_so_at_once(
    dsn: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Inside an application nobody looks at the worker's task: its error is logged at once, and raised at the end."""

    @durable("idle")
    async def idle() -> None: ...

    async def broken(self: Claimer, **options: Any) -> Any:
        raise NotImplementedError("a bug of ours")

    with pytest.raises(NotImplementedError, match="a bug of ours"):
        async with working(dsn, idle):
            monkeypatch.setattr(Claimer, "tick", broken)
            await stir(dsn)
            await until(lambda: "claims nothing any more" in caplog.text)
