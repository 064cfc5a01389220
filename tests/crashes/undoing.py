"""Workflows of the corpus that undo what they did: sagas that fail, are cancelled or tried again, or hold branches."""

import asyncio

import zart
from tests.crashes.effects import note
from tests.crashes.straight import do
from tests.crashes.workflow import Cancel, Offer, Workflow, cancelled, fails, returns
from zart import durable, step


@step("undo-{name}", retry="fixed(1, 5ms)")
async def undo(name: str) -> None:
    """The undo of `do(name)`; of one, the first attempt fails."""
    note(f"undo-{name}")
    if name == "unsteady" and zart.step_context().step_attempt == 1:
        raise ConnectionError("not yet")


@durable("saga")
async def saga_that_fails() -> None:
    """Three acts, the last one fails; their undos, one of which needs a second attempt."""
    async with zart.saga() as saga:
        saga.add(undo, "a")
        await do("a")
        saga.add(undo, "unsteady")
        await do("unsteady")
        saga.add(undo, "c")
        await do("c")
        raise LookupError("no courier")


@durable("saga-cancelled")
async def saga_cancelled() -> None:
    """A cancel while the body waits within one saga inside another."""
    async with zart.saga() as outer:
        outer.add(undo, "a")
        await do("a")
        async with zart.saga() as inner:
            inner.add(undo, "b")
            await do("b")
        outer.add(undo, "c")
        await do("c")
        await zart.wait_for_event("never")


@step("deliver-{name}")
async def deliver(name: str) -> str:
    attempt = zart.context().attempt
    note(f"{name} {attempt}")
    if name == "far" and attempt == 1:
        raise ConnectionError("no courier")
    return f"{name} {attempt}"


@step("fetch-back")
async def fetch_back(name: str) -> None:
    note(f"fetch back {name} {zart.context().attempt}")


@durable("saga-retried", max_retries="fixed(1, 5ms)")
async def saga_retried() -> str:
    """The body is run again after the saga was undone: its acts are done afresh, what was before it is kept."""
    before = await do("before")
    async with zart.saga() as saga:
        saga.add(fetch_back, "near")
        near = await deliver("near")
        saga.add(fetch_back, "far")
        far = await deliver("far")
    return await do("after", f"{before}, {near}, {far}, ")


@durable("saga-taken-along", max_retries="fixed(1, 5ms)")
async def saga_taken_along() -> str:
    """A sibling's failure cancels the block, and the body is run again: its act is done afresh."""
    begun = asyncio.Event()

    async def beside() -> str:
        async with zart.saga() as saga:
            saga.add(fetch_back, "near")
            near = await deliver("near")
            begun.set()
            if zart.context().attempt == 1:
                await zart.wait_for_event("never")
        return near

    async with asyncio.TaskGroup() as group:
        near = group.create_task(beside())
        await begun.wait()
        far = await deliver("far")
    return await do("after", f"{near.result()}, {far}, ")


@durable("saga-with-branches")
async def saga_with_branches() -> str:
    """Branches with acts; the saga is undone by hand once the body has an answer, and the body goes on."""

    async def branch(saga: zart.Saga, name: str) -> None:
        saga.add(undo, name)
        await do(name)
        await zart.wait_for_event("never")

    async with zart.saga() as saga:
        branches = [asyncio.create_task(branch(saga, name)) for name in ("x", "y")]
        await zart.sleep("300ms")
        await saga.compensate()
        await asyncio.wait(branches)
    return await do("after")


@durable("saga-giving-away")
async def saga_giving_away() -> None:
    """A scheduled step within has ended, another one hangs when the block fails: it is cancelled, and ends first."""
    async with zart.saga() as saga:
        saga.add(undo, "quick")
        quick = zart.schedule_step(do, "quick")
        await quick
        saga.add(undo, "hang")
        zart.schedule_step(do, "hang", takes=30)
        await zart.wait_for_event("enough")
        raise LookupError("no courier")


WORKFLOWS = (
    Workflow(
        durable=saga_that_fails,
        expect=fails("LookupError", "no courier"),
        chains=(("a", "unsteady", "c", "undo-c", "undo-a"),),
        # Two attempts, of which a crash may repeat either.
        maybe=frozenset({"undo-unsteady"}),
    ),
    Workflow(
        durable=saga_cancelled,
        happens=(Cancel(),),
        expect=cancelled(),
        chains=(("a", "b", "c", "undo-c", "undo-b", "undo-a"),),
    ),
    Workflow(
        durable=saga_retried,
        expect=returns("before, near 2, far 2, after"),
        chains=(
            (
                "before",
                "near 1",
                "far 1",
                "fetch back far 1",
                "fetch back near 1",
                "near 2",
                "far 2",
                "after",
            ),
        ),
    ),
    Workflow(
        durable=saga_taken_along,
        expect=returns("near 2, far 2, after"),
        chains=(("near 1", "far 1", "fetch back near 1", "near 2", "far 2", "after"),),
    ),
    Workflow(
        durable=saga_giving_away,
        happens=(Offer("enough", once="hang"),),
        expect=fails("LookupError", "no courier"),
        chains=(("quick", "hang", "undo-hang", "undo-quick"),),
    ),
    Workflow(
        durable=saga_with_branches,
        expect=returns("after"),
        chains=(("x", "undo-x", "after"), ("y", "undo-y", "after")),
    ),
)
