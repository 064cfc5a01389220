"""Workflows of the corpus that are one line of control: steps in a row, retries, loops, values."""

import asyncio
import datetime as dt
import uuid

import zart
from tests.crashes.effects import note
from tests.crashes.workflow import Workflow, fails, returns
from zart import durable, step


@step("{name}")
async def do(name: str, given: str = "", *, takes: float = 0) -> str:
    """A step whose result shows what it was given."""
    note(name)
    if takes:
        await asyncio.sleep(takes)
    return given + name


@durable("sequence")
async def sequence(start: str) -> str:
    """Steps in a row, each given what the one before returned."""
    first = await do("a", start)
    second = await do("b", first)
    third = await do("c", second)
    return await do("d", third)


@step("add")
async def add(total: int, number: int) -> int:
    note(f"add {number}")
    return total + number


@durable("loop")
async def loop(rounds: int) -> int:
    """One step again and again."""
    total = 0
    for number in range(rounds):
        total = await add(total, number)
    return total


@step("unsteady", retry="fixed(2, 5ms)")
async def unsteady() -> int:
    attempt = zart.step_context().step_attempt
    note(f"attempt {attempt}")
    if attempt < 3:
        raise ConnectionError(f"attempt {attempt} came to nothing")
    return attempt


@durable("retries")
async def retries() -> str:
    """A step that succeeds at the third attempt, with the body in memory meanwhile."""
    return await do("after", str(await unsteady()))


@step("patient", retry="fixed(1, 700ms)")
async def patient() -> int:
    attempt = zart.step_context().step_attempt
    note(f"attempt {attempt}")
    if attempt < 2:
        raise ConnectionError("not yet")
    return attempt


@durable("parked-retry")
async def parked_retry() -> str:
    """A step whose next attempt is so far away that the body is suspended."""
    before = await do("before")
    return await do("after", before + str(await patient()))


@step("refuse")
async def refuse() -> None:
    note("refuse")
    raise ValueError("out of stock")


@durable("caught-failure")
async def caught_failure() -> str:
    """A failure that the body catches, and goes on."""
    before = await do("reserve")
    try:
        await refuse()
    except ValueError as error:
        return await do("undo", f"{before}, {error}, ")
    return "never"


@step("exhausted", retry="fixed(1, 5ms)")
async def exhausted() -> None:
    note(f"attempt {zart.step_context().step_attempt}")
    raise ConnectionError("nobody answers")


@durable("exhausted-retries")
async def exhausted_retries() -> None:
    """A step that fails for good, and nobody catches it."""
    await do("before")
    await exhausted()


@step("plain-{name}")
def plain(name: str, given: str = "") -> str:
    """A plain function runs in a thread."""
    note(f"plain {name}")
    return given + name


@durable("plain-functions")
async def plain_functions() -> str:
    """Plain functions as steps."""
    first = await plain("a")
    second = await plain("b", first)
    return await plain("c", second)


@step("repeat")
async def repeat(seen: list[str]) -> list[str]:
    note("repeat")
    return seen


@step("look")
async def look(seen: list[str]) -> list[str]:
    note("look")
    return seen


@durable("derived")
async def derived() -> list[str]:
    """Times, ids and random numbers that a replay must draw again."""
    seen = [zart.now().isoformat(), str(zart.uuid4()), str(zart.random().random())]
    seen.append(str(await zart.capture("drawn", lambda: uuid.uuid4().hex)))
    first = await look(seen)
    seen = [*seen, zart.now().isoformat(), str(zart.uuid4())]
    second = await repeat(seen)
    return [*first, "|", *second]


def _drawn_once(result: list[str]) -> bool:
    """with the same values before and after each step"""
    bar = result.index("|")
    first, second = result[:bar], result[bar + 1 :]
    times = dt.datetime.fromisoformat(second[0]), dt.datetime.fromisoformat(second[4])
    return len(first) == 4 and second[:4] == first and len(second) == 6 and times[0] <= times[1]


@step("use-data")
async def use_data(round_number: int, found: int) -> int:
    note(f"use {round_number}")
    return found


@durable("data")
async def data() -> list[int]:
    """What the body keeps with set_data is what it reads, in each activation."""
    seen: list[int] = []
    for number in range(3):
        zart.set_data([*zart.data(list[int], default=[]), number])
        seen.append(await use_data(number, sum(zart.data(list[int], default=[]))))
        await zart.sleep("5ms")
    return seen


@step("large")
async def large(size: int) -> str:
    note("large")
    return "x" * size


@durable("large-records")
async def large_records(size: int) -> list[int]:
    """A result so big that it takes another connection, with small ones before, beside and behind it."""
    before = await do("before")
    big, beside = await asyncio.gather(large(size), do("beside", before))
    return [len(big), len(await do("after", beside))]


@durable("patched")
async def patched() -> str:
    """A change of the code that the run takes, asked for before and after a suspension."""
    first = await do("a")
    first = await do("new", first) if zart.patched("change") else await do("old", first)
    await zart.sleep("5ms")
    return await do("new too", first) if zart.patched("change") else await do("old too", first)


@durable("long-step")
async def long_step() -> str:
    """A step that is shown as running while it lasts."""
    return await do("after", await do("long", takes=2.2))


WORKFLOWS = (
    Workflow(durable=sequence, data="-", expect=returns("-abcd"), chains=(("a", "b", "c", "d"),)),
    Workflow(durable=loop, data=6, expect=returns(15), chains=(tuple(f"add {n}" for n in range(6)),)),
    Workflow(
        durable=retries,
        expect=returns("3after"),
        chains=tuple((f"attempt {n}", "after") for n in (1, 2, 3)),
    ),
    Workflow(
        durable=parked_retry,
        expect=returns("before2after"),
        chains=(("before", "attempt 1", "attempt 2", "after"),),
    ),
    Workflow(
        durable=caught_failure,
        expect=returns("reserve, out of stock, undo"),
        chains=(("reserve", "refuse", "undo"),),
    ),
    Workflow(
        durable=exhausted_retries,
        expect=fails("ConnectionError", "nobody answers"),
        chains=(("before", "attempt 1"), ("before", "attempt 2")),
    ),
    Workflow(durable=plain_functions, expect=returns("abc"), chains=(("plain a", "plain b", "plain c"),)),
    Workflow(durable=derived, expect=returns(_drawn_once), chains=(("look", "repeat"),)),
    Workflow(durable=data, expect=returns([0, 1, 3]), chains=(("use 0", "use 1", "use 2"),)),
    Workflow(
        durable=large_records,
        data=100_000,
        expect=returns([100_000, len("beforebesideafter")]),
        chains=(("before", "large", "after"), ("before", "beside", "after")),
    ),
    Workflow(durable=patched, expect=returns("anewnew too"), chains=(("a", "new", "new too"),)),
    Workflow(durable=long_step, expect=returns("longafter"), chains=(("long", "after"),), slow=True),
)
