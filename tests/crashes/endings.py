"""Workflows of the corpus that do not simply return: body retries, failures, handlers, cancels, time limits."""

import asyncio

import zart
from tests.crashes.effects import note
from tests.crashes.straight import do
from tests.crashes.workflow import Cancel, Workflow, cancelled, fails, returns
from zart import Failure, durable, step


@step("book")
async def book() -> str:
    attempt = zart.context().attempt
    note(f"book {attempt}")
    if attempt < 3:
        raise ConnectionError(f"attempt {attempt}: no answer")
    return f"booked at attempt {attempt}"


@durable("body-retries", max_retries="fixed(2, 5ms)")
async def body_retries() -> str:
    """The body fails twice of a step, which is tried afresh; what was done before it is kept."""
    before = await do("before")
    return await do("after", before + await book())


@durable("own-failure", max_retries="fixed(1, 5ms)")
async def own_failure() -> str:
    """The body's own exception: all its records are kept at the next attempt."""
    before = await do("before")
    if zart.context().attempt == 1:
        raise RuntimeError("at the first attempt")
    return await do("after", before)


async def tell(data: str, failure: Failure) -> None:
    """Runs after the failure, as a body of its own."""
    await do("tell", f"{data}: {failure.message}")
    await zart.sleep("10ms")
    await do("close")


@step("break")
async def break_down() -> None:
    note("break")
    raise LookupError("no such order")


@durable("on-failure", on_failure=tell)
async def on_failure(order: str) -> None:
    """A failure with a handler that runs steps."""
    await do("before", order)
    await break_down()


@durable("time-limit", timeout="800ms")
async def time_limit() -> None:
    """An execution that takes longer than it may; its cleanup runs a step."""
    await do("before")
    try:
        await zart.wait_for_event("never")
    finally:
        if not zart.suspending():
            await do("cleanup")


@durable("cancelled-wait")
async def cancelled_wait() -> None:
    """A cancel while the body is suspended; its cleanup runs steps."""
    done = await do("before")
    try:
        await zart.wait_for_event("never")
    except asyncio.CancelledError:
        undone = await do("undo-1", done)
        await do("undo-2", undone)
        raise


@durable("cancelled-step")
async def cancelled_step() -> None:
    """A cancel in the middle of a step."""
    await do("before")
    try:
        await do("hang", takes=30)
    finally:
        if not zart.suspending():
            await do("undo")


@durable("swallowed-cancel")
async def swallowed_cancel() -> str:
    """A body that goes on after a cancel and returns: it is cancelled all the same."""
    try:
        await zart.wait_for_event("never")
    except asyncio.CancelledError:
        await do("undo")
        await zart.sleep("10ms")
        await do("farewell")
    return "all is well"


@durable("cancelled-branches")
async def cancelled_branches() -> None:
    """A cancel that reaches branches, each with a cleanup."""

    async def branch(name: str) -> None:
        await do(name)
        try:
            await zart.wait_for_event("never")
        except asyncio.CancelledError:
            await do(f"undo-{name}")
            raise

    async with asyncio.TaskGroup() as group:
        group.create_task(branch("x"))
        group.create_task(branch("y"))


@durable("finally")
async def in_the_end() -> str:
    """Steps in a `finally` around a wait run once, at the real end."""
    try:
        before = await do("before")
        await zart.sleep("800ms")
        return await do("work", before)
    finally:
        if not zart.suspending():
            await do("close")


WORKFLOWS = (
    Workflow(
        durable=body_retries,
        expect=returns("beforebooked at attempt 3after"),
        chains=(("before", "book 1", "book 2", "book 3", "after"),),
    ),
    Workflow(durable=own_failure, expect=returns("beforeafter"), chains=(("before", "after"),)),
    Workflow(
        durable=on_failure,
        data="order 7",
        expect=fails("LookupError", "no such order"),
        chains=(("before", "break", "tell", "close"),),
    ),
    Workflow(
        durable=time_limit,
        expect=fails("TimeoutError", "did not finish within 800ms"),
        chains=(("before", "cleanup"),),
        maybe=frozenset({"before", "cleanup"}),
    ),
    Workflow(
        durable=cancelled_wait,
        happens=(Cancel(),),
        expect=cancelled(),
        chains=(("before", "undo-1", "undo-2"),),
    ),
    Workflow(
        durable=cancelled_step,
        happens=(Cancel(once="hang"),),
        expect=cancelled(),
        chains=(("before", "hang", "undo"),),
    ),
    Workflow(
        durable=swallowed_cancel, happens=(Cancel(),), expect=cancelled(), chains=(("undo", "farewell"),)
    ),
    Workflow(
        durable=cancelled_branches,
        happens=(Cancel(by_sql=True),),
        expect=cancelled(),
        chains=(("x", "undo-x"), ("y", "undo-y")),
    ),
    Workflow(durable=in_the_end, expect=returns("beforework"), chains=(("before", "work", "close"),)),
)
