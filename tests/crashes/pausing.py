"""Workflows of the corpus that somebody pauses, and lets go again."""

import asyncio

import zart
from tests.crashes.branches import sum_up
from tests.crashes.straight import do
from tests.crashes.workflow import Cancel, Offer, Pause, Unpause, Workflow, cancelled, returns
from zart import durable


@durable("held-step")
async def held_step() -> str:
    """A step that is held back in the middle."""
    first = await do("first")
    second = await do("second", first)
    return await do("third", second)


@durable("held-branch")
async def held_branch() -> list[str]:
    """One branch is held back, the other one works on until there is nothing more to do."""

    async def working() -> str:
        return await do("b", await do("a", takes=0.01))

    return await sum_up(list(await asyncio.gather(do("held"), working())))


@durable("paused-wait")
async def paused_wait() -> str:
    """It is paused while it waits, and hears of what came meanwhile."""
    before = await do("before")
    return await do("after", before + await zart.wait_for_event("approved", str))


@durable("held-away")
async def held_away() -> str:
    """Steps that were given away are held back, wherever they are."""
    told = await zart.wait_all(*[zart.schedule_step(do, name) for name in ("x", "y", "z")])
    return await do("end", "".join(told))


@durable("paused-for-a-time")
async def paused_for_a_time() -> str:
    """The rule ends by itself."""
    first = await do("first")
    return await do("second", first)


@durable("cancelled-in-a-pause")
async def cancelled_in_a_pause() -> str:
    """A cancel lets it go on to its end, under the rule."""
    try:
        await do("work")
        await zart.wait_for_event("never")
    finally:
        if not zart.suspending():
            await do("tidy-up")
    return "never"


WORKFLOWS = (
    Workflow(
        durable=held_step,
        happens=(Pause(step="second"), Unpause()),
        expect=returns("firstsecondthird"),
        chains=(("first", "second", "third"),),
    ),
    Workflow(
        durable=held_branch,
        happens=(Pause(step="held"), Unpause()),
        expect=returns(["held", "ab"]),
        chains=(("held", "sum-up"), ("a", "b", "sum-up")),
    ),
    Workflow(
        durable=paused_wait,
        happens=(Pause(once="waiting"), Offer("approved", " yes ", once="paused"), Unpause()),
        expect=returns("before yes after"),
        chains=(("before", "after"),),
    ),
    Workflow(
        durable=held_away,
        happens=(Pause(step="[y-z]"), Unpause(once="x")),
        expect=returns("xyzend"),
        chains=(("x", "end"), ("y", "end"), ("z", "end")),
    ),
    Workflow(
        durable=paused_for_a_time,
        happens=(Pause(step="second", expires=0.3),),
        expect=returns("firstsecond"),
        chains=(("first", "second"),),
    ),
    Workflow(
        durable=cancelled_in_a_pause,
        happens=(Pause(once="waiting"), Cancel(once="paused")),
        expect=cancelled(),
        chains=(("work", "tidy-up"),),
        maybe=frozenset({"tidy-up"}),
    ),
)
