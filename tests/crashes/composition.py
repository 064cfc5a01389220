"""Workflows of the corpus that give work away: scheduled steps, children, handles, and their cancels."""

import asyncio

import zart
from tests.crashes.effects import note
from tests.crashes.straight import do
from tests.crashes.workflow import Cancel, Offer, Workflow, cancelled, returns
from zart import durable, step


@step("unsteady-{name}", retry="fixed(2, 5ms)")
async def unsteady(name: str) -> str:
    attempt = zart.step_context().step_attempt
    note(f"{name} {attempt}")
    if attempt < 2:
        raise ConnectionError(f"attempt {attempt} came to nothing")
    return name


@step("missing")
async def missing() -> str:
    note("missing")
    raise LookupError("no such thing")


@durable("scheduled")
async def scheduled() -> str:
    """Steps on whatever worker is free, one tried again, one caught; then more of them, then an inline one."""
    first = [zart.schedule_step(do, "a", takes=0.004), zart.schedule_step(unsteady, "u")]
    failing = zart.schedule_step(missing)
    told = "".join(await zart.wait_all(*first))
    try:
        await failing
    except LookupError as error:
        told += f" ({error})"
    second = await zart.wait_all(*[zart.schedule_step(do, name, told[:1]) for name in ("b", "c")])
    return await do("after", told + "".join(second))


@durable("limited-map")
async def limited_map() -> str:
    """A map of which two run at once."""
    return await do("after", "".join(await zart.map(do, ["a", "b", "c", "d", "e"], limit=2)))


@durable("part")
async def part(name: str) -> str:
    """A child that sleeps between two steps."""
    first = await do(f"{name}1")
    await zart.sleep("5ms")
    return await do(f"{name}2", first)


@durable("broken-part")
async def broken_part(name: str) -> str:
    await do(name)
    raise LookupError(f"{name} is broken")


@durable("family")
async def family() -> str:
    """Children side by side and one after the other; the failure of one is caught."""
    told = "".join(await zart.wait_all(zart.start_child(part, "x"), zart.start_child(part, "y")))
    try:
        await broken_part("z")
    except LookupError as error:
        told += f" {error} "
    return await do("after", told + await part("w"))


@durable("first-of-two")
async def first_of_two() -> str:
    """A race of two children, of which the loser is cancelled."""
    quick, slow = zart.start_child(part, "quick"), zart.start_child(waits, "slow")
    winner = await zart.wait_any(quick, slow)
    value = await winner
    await slow.cancel()
    try:
        await slow
    except zart.ExecutionCancelled:
        value += " and not slow"
    return await do("after", value)


@durable("waits")
async def waits(name: str) -> str:
    """A child that would wait for ever; its cleanup is durable."""
    try:
        return await zart.wait_for_event("never", str)
    finally:
        if not zart.suspending():
            await do(f"{name} undone")


@durable("cancelled-family")
async def cancelled_family() -> str:
    """Cancelled with everything below it; all of that ends first."""
    await do("before")
    handles = [zart.start_child(waits, "child"), zart.schedule_step(hang)]
    try:
        await zart.wait_all(*handles)
    finally:
        if not zart.suspending():
            await do("undo")
    return "never"


@step("hang")
async def hang() -> str:
    note("hang")
    await asyncio.sleep(60)
    return "never"


@durable("left-alone")
async def left_alone() -> str:
    """What nobody awaits ends before the execution does."""
    zart.schedule_step(do, "a", takes=0.003)
    zart.start_child(part, "b")
    return await do("c")


@durable("races")
async def races() -> str:
    """Handles of an event and of timers: what loses is cancelled."""
    answer, short, long = zart.event("answer", str), zart.timer("2ms"), zart.timer("700ms")
    first = await zart.wait_any(short, long)
    assert first is short
    await do("asked")
    later = await zart.wait_any(answer, long)
    if later is long:
        await answer.cancel()
        return await do("after", await zart.wait_for_event("answer", str))
    return await do("after", await answer)


@durable("retried-family", max_retries="fixed(1, 5ms)")
async def retried_family() -> str:
    """The body fails of a child, which is tried afresh under another id; the other one is kept."""
    kept = await part("kept")
    return await do("after", kept + await at_attempt(zart.context().attempt))


@durable("at-attempt")
async def at_attempt(attempt: int) -> str:
    if attempt < 2:
        raise ConnectionError("not the first time")
    return await do("s")


OTHERS = (part, broken_part, waits, at_attempt)
"""Functions that workflows start as children."""

WORKFLOWS = (
    Workflow(
        durable=scheduled,
        expect=returns("au (no such thing)abacafter"),
        chains=(("a", "b"), ("u 1",), ("u 2", "c"), ("missing", "after")),
    ),
    Workflow(
        durable=limited_map,
        expect=returns("abcdeafter"),
        chains=(("a", "c", "e", "after"), ("b", "d", "after")),
    ),
    Workflow(
        durable=family,
        expect=returns("x1x2y1y2 z is broken w1w2after"),
        chains=(("x1", "x2", "z", "w1", "w2", "after"), ("y1", "y2")),
    ),
    Workflow(
        durable=first_of_two,
        expect=returns("quick1quick2 and not slowafter"),
        chains=(("quick1", "quick2", "after"),),
        maybe=frozenset({"slow undone"}),
        varies=True,
    ),
    Workflow(
        durable=cancelled_family,
        happens=(Cancel(once="hang"),),
        expect=cancelled(),
        chains=(("before", "undo"),),
        maybe=frozenset({"hang", "child undone"}),
        varies=True,
    ),
    Workflow(
        durable=left_alone,
        expect=returns("c"),
        chains=(("a",), ("b1", "b2"), ("c",)),
        varies=True,
    ),
    Workflow(
        durable=races,
        happens=(Offer("answer", "yes", once="asked"),),
        expect=returns("yesafter"),
        chains=(("asked", "after"),),
        varies=True,
    ),
    Workflow(
        durable=retried_family,
        expect=returns("kept1kept2safter"),
        chains=(("kept1", "kept2", "after"), ("s",)),
    ),
)
