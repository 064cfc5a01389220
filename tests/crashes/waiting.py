"""Workflows of the corpus that wait: for a time, for an event, until a limit."""

import asyncio

import zart
from tests.crashes.branches import sum_up
from tests.crashes.straight import do
from tests.crashes.workflow import Offer, Workflow, returns
from zart import durable

Approved = zart.Event("approved", str)


@durable("short-sleep")
async def short_sleep() -> str:
    """A sleep for which the body stays in memory."""
    before = await do("before")
    await zart.sleep("15ms")
    return await do("after", before)


@durable("long-sleep")
async def long_sleep() -> str:
    """Sleeps for which the body is suspended."""
    before = await do("before")
    await zart.sleep("800ms")
    middle = await do("middle", before)
    await zart.sleep("900ms")
    return await do("after", middle)


@durable("buffered-events")
async def buffered_events() -> list[str]:
    """Events that were there before the wait: first in, first out."""
    await do("before")
    seen = [await zart.wait_for_event(Approved) for _ in range(3)]
    return await sum_up(seen)


@durable("awaited-event")
async def awaited_event() -> list[str]:
    """Events that come while the body is suspended, with a step between."""
    seen = [await zart.wait_for_event(Approved)]
    seen.append(await do("between"))
    seen.append(await zart.wait_for_event("shipped", str, timeout="10m"))
    return await sum_up(seen)


@durable("in-transactions")
async def in_transactions(start: str) -> str:
    """It begins, and hears of everything, by transactions of somebody else."""
    before = await do("before", start)
    between = await do("between", before + await zart.wait_for_event(Approved))
    return await do("after", between + await zart.wait_for_event(Approved))


@durable("event-timeout")
async def event_timeout() -> str:
    """An event that does not come in time."""
    try:
        await zart.wait_for_event(Approved, timeout="700ms")
    except TimeoutError:
        return await do("too-late")
    return "it never came"


@durable("event-beside-step")
async def event_beside_step() -> list[str]:
    """An event that comes while a step runs beside its wait."""
    done, event = await asyncio.gather(do("work", takes=0.02), zart.wait_for_event(Approved))
    return await sum_up([done, event])


@durable("limited-wait")
async def limited_wait() -> str:
    """A time limit around a wait; the body is suspended under it."""
    before = await do("before")
    try:
        async with zart.timeout("700ms"):
            await do("inside", before)
            await zart.wait_for_event("never")
    except TimeoutError:
        return await do("too-late", before)
    return "it never came"


@durable("limited-step")
async def limited_step() -> str:
    """A time limit that cuts a step off."""
    before = await do("before")
    try:
        async with zart.timeout("30ms"):
            await do("hang", takes=30)
    except TimeoutError:
        return await do("too-late", before)
    return "it never ended"


@durable("kept-limit")
async def kept_limit() -> str:
    """A time limit that is kept."""
    async with zart.timeout("10m"):
        before = await do("a")
        event = await zart.wait_for_event(Approved)
    return await do("b", before + event)


@durable("wait-for")
async def wait_for() -> str:
    """asyncio.wait_for is durable as well."""
    try:
        await asyncio.wait_for(zart.wait_for_event("never"), 0.7)
    except TimeoutError:
        return await do("too-late")
    return "it never came"


@durable("two-waits")
async def two_waits() -> list[str]:
    """Two branches wait for one name: served in the order of their calls."""
    events = await asyncio.gather(zart.wait_for_event(Approved), zart.wait_for_event(Approved))
    return await sum_up(list(events))


@durable("event-or-timer")
async def event_or_timer() -> str:
    """A wait that loses against a timer is cancelled; the event that comes later is for the next wait."""
    waiting = asyncio.create_task(_approved())
    pause = asyncio.create_task(_pause())
    await asyncio.wait({waiting, pause}, return_when=asyncio.FIRST_COMPLETED)
    if waiting.done():
        pause.cancel()
        return await do("done", waiting.result())
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await do("timer")
    return await do("done", await _approved())


async def _approved() -> str:
    return await zart.wait_for_event(Approved)


async def _pause() -> None:
    await zart.sleep("15ms")


@durable("event-loop")
async def event_loop() -> list[str]:
    """An actor: it waits, works, and waits again, until it is told to end."""
    seen: list[str] = []
    while (event := await zart.wait_for_event("message", str)) != "end":
        seen.append(await do(f"handle-{event}"))
    return await sum_up(seen)


_YES = Offer("approved", "yes", once="waiting")


@durable("continued")
async def continued(seen: list[str]) -> list[str]:
    """Runs that give way to the next one, each with an event that may come in the middle of that."""
    await do(f"run {len(seen) + 1}")
    seen.append(await zart.wait_for_event(Approved))
    if len(seen) < 4:
        zart.continue_as_new(seen)
    return await sum_up(seen)


WORKFLOWS = (
    Workflow(durable=short_sleep, expect=returns("beforeafter"), chains=(("before", "after"),)),
    Workflow(
        durable=long_sleep, expect=returns("beforemiddleafter"), chains=(("before", "middle", "after"),)
    ),
    Workflow(
        durable=buffered_events,
        happens=(Offer("approved", "1"), Offer("approved", "2"), Offer("approved", "3")),
        expect=returns(["1", "2", "3"]),
        chains=(("before", "sum-up"),),
    ),
    Workflow(
        durable=awaited_event,
        happens=(_YES, Offer("shipped", "today", once="between", by_sql=True)),
        expect=returns(["yes", "between", "today"]),
        chains=(("between", "sum-up"),),
    ),
    Workflow(
        durable=in_transactions,
        data="begun ",
        in_transaction=True,
        happens=(
            Offer("approved", " first ", once="before", in_transaction=True),
            Offer("approved", " second ", once="between", in_transaction=True),
        ),
        expect=returns("begun before first between second after"),
        chains=(("before", "between", "after"),),
    ),
    Workflow(
        durable=continued,
        data=[],
        happens=(
            Offer("approved", "1"),
            Offer("approved", "2", by_sql=True),
            Offer("approved", "3", once="run 3"),
            Offer("approved", "4", once="run 3", by_sql=True),
        ),
        expect=returns(["1", "2", "3", "4"]),
        chains=(("run 1", "run 2", "run 3", "run 4", "sum-up"),),
    ),
    Workflow(durable=event_timeout, expect=returns("too-late"), chains=(("too-late",),)),
    Workflow(
        durable=event_beside_step,
        happens=(Offer("approved", "yes", once="work"),),
        expect=returns(["work", "yes"]),
        chains=(("work", "sum-up"),),
    ),
    Workflow(
        durable=limited_wait,
        expect=returns("beforetoo-late"),
        chains=(("before", "inside", "too-late"),),
        maybe=frozenset({"inside"}),
    ),
    Workflow(
        durable=limited_step,
        expect=returns("beforetoo-late"),
        chains=(("before", "hang", "too-late"),),
        maybe=frozenset({"hang"}),
    ),
    Workflow(durable=kept_limit, happens=(_YES,), expect=returns("ayesb"), chains=(("a", "b"),)),
    Workflow(durable=wait_for, expect=returns("too-late"), chains=(("too-late",),)),
    Workflow(
        durable=two_waits,
        happens=(_YES, Offer("approved", "again")),
        expect=returns(["yes", "again"]),
        chains=(("sum-up",),),
    ),
    Workflow(
        durable=event_or_timer,
        happens=(Offer("approved", "yes", once="timer"),),
        expect=returns("yesdone"),
        chains=(("timer", "done"),),
        maybe=frozenset({"timer"}),
        varies=True,
    ),
    Workflow(
        durable=event_loop,
        happens=(
            Offer("message", "1", by_sql=True),
            Offer("message", "2", once="handle-1"),
            Offer("message", "end", once="waiting", by_sql=True),
        ),
        expect=returns(["handle-1", "handle-2"]),
        chains=(("handle-1", "handle-2", "sum-up"),),
    ),
)
