"""Workflows of the corpus that somebody repairs: a failed step is tried again, or another run is begun.

What a step does carries the number of the body's attempt, or of the run, so that what is done again is told from what
happens twice. A run that keeps the results of the one before meets what was asked for by running its body afresh: its
first attempt does nothing.
"""

import asyncio
from typing import Any

import zart
from tests.crashes.branches import sum_up
from tests.crashes.composition import at_attempt, waits
from tests.crashes.effects import note
from tests.crashes.repairs import Rerun, Restart, RetryStep
from tests.crashes.straight import do
from tests.crashes.undoing import deliver, fetch_back
from tests.crashes.workflow import Cancel, Offer, Workflow, returns
from zart import Failure, durable, step


@step("act-{name}")
async def act(name: str) -> str:
    attempt = zart.context().attempt
    note(f"{name} {attempt}")
    return f"{name}{attempt} "


@step("charge", retry="fixed(1, 5ms)")
async def charge(from_attempt: int = 2) -> str:
    """Fails, with its retries, until the body has come to this attempt."""
    attempt = zart.context().attempt
    note(f"charge {attempt}.{zart.step_context().step_attempt}")
    if attempt < from_attempt:
        raise ConnectionError("the bank is closed")
    return f"charged{attempt} "


# ------------------------------------------------------------ a failed step is tried again


@durable("retried-failure")
async def retried_failure() -> str:
    """A step fails for good, and nobody catches it; it is tried again after the end, with all its retries."""
    before = await do("before")
    return await do("after", before + await charge())


async def tell(_data: None, failure: Failure) -> None:
    await act("tell")
    await zart.sleep("10ms")
    await act("close")


@durable("retried-handler", on_failure=tell)
async def retried_handler() -> str:
    """It fails twice, and each time `on_failure` runs; what that has done is set aside."""
    before = await do("before")
    return await do("after", before + await charge(3))


@durable("retried-caught")
async def retried_caught() -> str:
    """The body has caught the failure and waits, suspended; it is tried again, and the body takes the other way."""
    before = await do("before")
    try:
        told = await charge()
    except ConnectionError:
        told = await zart.wait_for_event("paid", str)
    return await do("after", before + told)


@durable("retried-beside-step")
async def retried_beside_step() -> list[str]:
    """It is tried again while another branch is in a step, which is let finish."""

    async def paid() -> str:
        try:
            return await charge()
        except ConnectionError:
            return await zart.wait_for_event("paid", str)

    return await sum_up(list(await asyncio.gather(paid(), do("long", takes=0.1))))


@durable("retried-fan-out")
async def retried_fan_out() -> list[str]:
    """One of several scheduled steps and children fails; only that one is given away again."""
    handles: list[Any] = [zart.schedule_step(do, name) for name in ("a", "b")]
    handles.append(zart.schedule_step(far, zart.context().attempt))
    handles.append(zart.start_child(at_attempt, 2))
    return await sum_up(list(await zart.wait_all(*handles)))


@step("far")
async def far(attempt: int) -> str:
    note(f"far {attempt}")
    if attempt < 2:
        raise ConnectionError("no courier")
    return "far"


@durable("retried-child")
async def retried_child() -> str:
    """A child fails; tried again, it is another one."""
    before = await do("before")
    return await do("after", before + await at_attempt(zart.context().attempt))


@durable("retried-saga")
async def retried_saga() -> str:
    """The saga was undone for the failure: its acts are done afresh, what was before it is kept."""
    before = await do("before")
    async with zart.saga() as saga:
        saga.add(fetch_back, "near")
        near = await deliver("near")
        saga.add(fetch_back, "far")
        far = await deliver("far")
    return await do("after", f"{before}, {near}, {far}, ")


# ------------------------------------------------------------ another run


async def tell_of(run: int, failure: Failure) -> None:
    await do(f"tell {run}")


@step("look-up")
async def look_up(run: int) -> str:
    note(f"look-up {run}")
    if run == 1:
        raise LookupError("no such order")
    return "found"


@durable("restarted-failure", on_failure=tell_of)
async def restarted_failure(run: int) -> str:
    """It failed of its input, and begins again with another one."""
    before = await do(f"before {run}")
    return await do(f"after {run}", before + await look_up(run))


@durable("restarted-step")
async def restarted_step(run: int) -> str:
    """Begun again in the middle of a step."""
    before = await do(f"before {run}")
    return await do(f"after {run}", await do(f"long {run}", before, takes=30 if run == 1 else 0))


@durable("restarted-wait")
async def restarted_wait(run: int) -> list[str]:
    """Begun again while it waits: an event that nobody has consumed is dropped, a later one is for the new run."""
    seen = [await do(f"before {run}"), await zart.wait_for_event("approved", str)]
    seen.append(await zart.wait_for_event("shipped", str))
    return await sum_up(seen)


@durable("restarted-family")
async def restarted_family(run: int) -> str:
    """What the run before has given away is cancelled, and ends; the new run gives its own away."""
    before = await do(f"before {run}")
    if run > 1:
        told = await zart.wait_all(zart.start_child(at_attempt, 2), zart.schedule_step(do, "quick"))
        return await do("after", before + "".join(told))
    await zart.wait_all(zart.start_child(waits, "child"), zart.schedule_step(do, "hang", takes=30))
    return "never"


@durable("rerun-completed")
async def rerun_completed() -> list[str]:
    """One step of a completed execution is done again; the others keep their results."""
    return [await act("a"), await act("b"), await act("c")]


@durable("rerun-waiting")
async def rerun_waiting() -> list[str]:
    """Steps before a wait are done again, the event that was consumed is kept, and it waits again."""
    seen = [await act("a"), await act("b"), await zart.wait_for_event("approved", str), await act("c")]
    seen.append(await zart.wait_for_event("shipped", str))
    return [*seen, await act("d")]


@durable("rerun-step")
async def rerun_step() -> list[str]:
    """One of two branches is in the middle of a step: that is cut off, and done again by the new run."""

    async def branch() -> str:
        return await act("a") + await act("b")

    return list(await asyncio.gather(branch(), long()))


@step("long")
async def long() -> str:
    attempt = zart.context().attempt
    note(f"long {attempt}")
    await asyncio.sleep(30 if attempt == 1 else 0)
    return f"long{attempt}"


@durable("rerun-cancelled")
async def rerun_cancelled() -> str:
    """It was cancelled, and has cleaned up; neither is kept."""
    before = await act("before")
    try:
        told = await zart.wait_for_event("go", str)
    except asyncio.CancelledError:
        await act("undo")
        raise
    return before + await act(told)


@durable("rerun-fan-out")
async def rerun_fan_out() -> list[str]:
    """One of several scheduled steps is given away again; the others, and a child, keep their results."""
    handles: list[Any] = [zart.schedule_step(do, name) for name in ("a", "b")]
    handles.append(zart.schedule_step(far, 1 + zart.context().attempt))
    handles.append(zart.start_child(at_attempt, 2))
    return [*await zart.wait_all(*handles), await act("after")]


# A rerun that comes early finds less to keep: then more is done by the new run.


def _second_b(result: list[str]) -> bool:
    """b is of the second attempt, and what came before it is kept"""
    return result[:2] == ["a1 ", "b2 "] and result[2] in ("c1 ", "c2 ")


def _second_a(result: list[str]) -> bool:
    """a is of the second attempt, and so is the step that was cut off"""
    return result in (["a2 b1 ", "long2"], ["a2 b2 ", "long2"])


def _second_far(result: list[str]) -> bool:
    """all results are there"""
    return result[:4] == ["a", "b", "far", "s"] and result[4] in ("after1 ", "after2 ")


_BEFORE_CHARGE = (("before", "charge 1.1", "charge 2.1", "after"), ("before", "charge 1.2", "charge 2.1"))

WORKFLOWS = (
    Workflow(
        durable=retried_failure,
        happens=(RetryStep("charge"),),
        expect=returns("beforecharged2 after"),
        chains=_BEFORE_CHARGE,
    ),
    Workflow(
        durable=retried_handler,
        happens=(RetryStep("charge"), RetryStep("charge")),
        expect=returns("beforecharged3 after"),
        chains=(
            (
                *("before", "charge 1.1", "tell 1", "close 1", "charge 2.1", "tell 2", "close 2"),
                *("charge 3.1", "after"),
            ),
            ("charge 1.2", "tell 1"),
            ("charge 2.2", "tell 2"),
        ),
    ),
    Workflow(
        durable=retried_caught,
        happens=(RetryStep("charge", once="waiting"),),
        expect=returns("beforecharged2 after"),
        chains=_BEFORE_CHARGE,
    ),
    Workflow(
        durable=retried_beside_step,
        happens=(RetryStep("1/charge", once="charge 1.2"),),
        expect=returns(["charged2 ", "long"]),
        chains=(("charge 1.1", "charge 2.1", "sum-up"), ("charge 1.2", "charge 2.1"), ("long", "sum-up")),
    ),
    Workflow(
        durable=retried_fan_out,
        happens=(RetryStep("far"),),
        expect=returns(["a", "b", "far", "s"]),
        chains=(("a", "sum-up"), ("b", "sum-up"), ("far 1", "far 2", "sum-up"), ("s", "sum-up")),
    ),
    Workflow(
        durable=retried_child,
        happens=(RetryStep("at-attempt"),),
        expect=returns("beforesafter"),
        chains=(("before", "after"), ("s",)),
    ),
    Workflow(
        durable=retried_saga,
        happens=(RetryStep("deliver-far"),),
        expect=returns("before, near 2, far 2, after"),
        chains=(
            (
                *("before", "near 1", "far 1", "fetch back far 1", "fetch back near 1"),
                *("near 2", "far 2", "after"),
            ),
        ),
    ),
    Workflow(
        durable=restarted_failure,
        data=1,
        happens=(Restart(2, once="failed"),),
        expect=returns("before 2foundafter 2"),
        chains=(("before 1", "look-up 1", "tell 1"), ("before 2", "look-up 2", "after 2")),
    ),
    Workflow(
        durable=restarted_step,
        data=1,
        happens=(Restart(2, once="long 1"),),
        expect=returns("before 2long 2after 2"),
        chains=(("before 1", "long 1"), ("before 2", "long 2", "after 2")),
    ),
    Workflow(
        durable=restarted_wait,
        data=1,
        happens=(
            Offer("shipped", "too early"),
            Restart(2, once="waiting"),
            Offer("shipped", "today", once="before 2"),
            Offer("approved", "yes", once="waiting", by_sql=True),
        ),
        expect=returns(["before 2", "yes", "today"]),
        chains=(("before 1", "before 2", "sum-up"),),
    ),
    Workflow(
        durable=restarted_family,
        data=1,
        happens=(Restart(2, once="hang"),),
        expect=returns("before 2squickafter"),
        chains=(("before 1", "hang"), ("before 2", "quick", "after"), ("s", "after")),
        maybe=frozenset({"child undone"}),
    ),
    Workflow(
        durable=rerun_completed,
        happens=(Rerun(("act-b",), once="completed"),),
        expect=returns(_second_b),
        chains=(("a 1", "b 1", "c 1"), ("b 1", "b 2", "c 2")),
        maybe=frozenset({"c 2"}),
    ),
    Workflow(
        durable=rerun_waiting,
        happens=(
            Offer("approved", "yes"),
            Rerun(("act-a",), once="waiting"),
            Offer("shipped", "today", once="waiting"),
        ),
        expect=returns(["a2 ", "b1 ", "yes", "c1 ", "today", "d2 "]),
        chains=(("a 1", "b 1", "c 1", "a 2", "d 2"),),
    ),
    Workflow(
        durable=rerun_step,
        happens=(Rerun(("1/act-a",), once="b 1"),),
        expect=returns(_second_a),
        chains=(("a 1", "b 1"), ("a 1", "a 2", "b 2"), ("long 1", "long 2")),
        maybe=frozenset({"b 2", "long 1"}),
        beside=frozenset({"long 1"}),
    ),
    Workflow(
        durable=rerun_cancelled,
        happens=(
            Offer("nobody-waits-for-this"),
            Cancel(once="waiting"),
            Rerun(("act-before",), once="cancelled"),
            Offer("go", "last", once="waiting"),
        ),
        expect=returns("before2 last2 "),
        chains=(("before 1", "undo 1", "before 2", "last 2"),),
    ),
    Workflow(
        durable=rerun_fan_out,
        happens=(Rerun(("far",), once="completed"),),
        expect=returns(_second_far),
        chains=(*((name, "after 1") for name in ("a", "b", "far 2", "s")), ("far 2", "far 3", "after 2")),
        maybe=frozenset({"after 2"}),
    ),
)
