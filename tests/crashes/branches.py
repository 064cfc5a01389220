"""Workflows of the corpus with several branches: what they observe of each other must be the same after a crash."""

import asyncio
from collections.abc import Awaitable

import anyio

import zart
from tests.crashes.effects import note
from tests.crashes.straight import do, plain
from tests.crashes.workflow import Workflow, returns
from zart import durable, step

# The first branch is slower, so that results come in another order than calls; the others often share a commit.
_QUICKER = {"a": 0.006, "b": 0.0, "c": 0.0}


@step("sum-up")
async def sum_up(seen: list[str]) -> list[str]:
    """Its argument is compared on a replay: another order would be another call."""
    note("sum-up")
    return seen


@durable("gather")
async def gather() -> list[str]:
    """Five calls at once, ending in another order; each gets its own value."""
    results = await asyncio.gather(
        *(do(name, takes=takes) for name, takes in (*_QUICKER.items(), ("d", 0.003), ("e", 0.009)))
    )
    return await sum_up(list(results))


@durable("chains")
async def chains() -> list[str]:
    """Two chains of steps side by side, and a third that sleeps in its middle."""

    async def chain(label: str, *, sleeps: bool = False) -> str:
        value = await do(f"{label}1")
        if sleeps:
            await zart.sleep("20ms")
        value = await do(f"{label}2", value)
        return await do(f"{label}3", value)

    return list(await asyncio.gather(chain("x"), chain("y", sleeps=True), chain("z")))


@durable("parked-chains")
async def parked_chains() -> list[str]:
    """Chains that are suspended in their middle."""

    async def chain(label: str, pause: str) -> str:
        value = await do(f"{label}1")
        await zart.sleep(pause)
        return await do(f"{label}2", value)

    return list(await asyncio.gather(chain("x", "700ms"), chain("y", "800ms")))


def _any_order(*expected: str) -> object:
    def in_any_order(result: list[str]) -> bool:
        return sorted(result) == sorted(expected)

    in_any_order.__doc__ = f"with {expected} in any order"
    return in_any_order


@durable("appended")
async def appended() -> list[str]:
    """Branches append to a list; what is done next depends on its order."""
    seen: list[str] = []

    async def branch(name: str, takes: float) -> None:
        seen.append(await do(name, takes=takes))
        seen.append(await do(f"{name}2"))

    async with asyncio.TaskGroup() as group:
        for name, takes in _QUICKER.items():
            group.create_task(branch(name, takes))
    return await sum_up(seen)


@durable("anyio-group")
async def anyio_group() -> list[str]:
    """The same in a task group of anyio."""
    seen: list[str] = []

    async def branch(name: str, takes: float) -> None:
        seen.append(await do(name, takes=takes))

    async with anyio.create_task_group() as group:
        for name, takes in _QUICKER.items():
            group.start_soon(branch, name, takes)
    return await sum_up(seen)


@durable("as-completed")
async def as_completed() -> list[str]:
    """Results in the order of their arrival."""
    seen: list[str] = []
    tasks = [asyncio.create_task(_call(do(name, takes=takes))) for name, takes in _QUICKER.items()]
    for earliest in asyncio.as_completed(tasks):
        seen.append(await earliest)
        if len(seen) == 2:
            await sum_up(list(seen))
    return await do_again(seen)


async def _call(call: Awaitable[str]) -> str:
    return await call


@step("again")
async def do_again(seen: list[str]) -> list[str]:
    note("again")
    return seen


@durable("queue")
async def queue() -> list[str]:
    """Branches that hand work to each other through a queue."""
    waiting: asyncio.Queue[str | None] = asyncio.Queue()
    seen: list[str] = []

    async def produce(name: str, takes: float) -> None:
        await waiting.put(await do(name, takes=takes))

    async def consume() -> None:
        while (found := await waiting.get()) is not None:
            seen.append(await do(f"take-{found}"))

    consumer = asyncio.create_task(consume())
    await asyncio.gather(*(produce(name, takes) for name, takes in _QUICKER.items()))
    await waiting.put(None)
    await consumer
    return await sum_up(seen)


@durable("first-completed")
async def first_completed() -> str:
    """The first of two wins, and the other is cancelled."""
    race = {asyncio.create_task(_call(do(name, takes=takes)), name=name) for name, takes in RACE.items()}
    done, pending = await asyncio.wait(race, return_when=asyncio.FIRST_COMPLETED)
    for loser in pending:
        loser.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    return await do("after", "+".join(sorted(task.result() for task in done)))


RACE = {"slow": 5.0, "quick": 0.0}


@durable("failing-group")
async def failing_group() -> str:
    """One branch of a task group fails, the others are cancelled, and the body goes on."""

    async def fail() -> None:
        await do("first")
        raise LookupError("nothing there")

    async def hang() -> None:
        await zart.wait_for_event("never")

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
            group.create_task(hang())
    except* LookupError:
        pass
    return await do("after")


@durable("threads")
async def threads() -> list[str]:
    """Plain functions side by side."""
    results = await asyncio.gather(*(plain(name) for name in ("a", "b", "c")))
    return await sum_up(list(results))


@durable("lock")
async def lock() -> list[str]:
    """Branches that take turns."""
    turn = asyncio.Lock()
    seen: list[str] = []

    async def branch(name: str) -> None:
        async with turn:
            seen.append(await do(f"{name}1"))
            seen.append(await do(f"{name}2"))

    await asyncio.gather(branch("x"), branch("y"))
    return await sum_up(seen)


@durable("leftovers")
async def leftovers() -> str:
    """A branch that has not ended with the body is cancelled."""
    waiting = asyncio.create_task(_call(zart.wait_for_event("never", str)))
    result = await do("a")
    await zart.sleep("10ms")
    result = await do("b", result)
    return result if not waiting.done() else "the event never came"


WORKFLOWS = (
    Workflow(
        durable=gather,
        expect=returns(["a", "b", "c", "d", "e"]),
        chains=tuple((name, "sum-up") for name in "abcde"),
    ),
    Workflow(
        durable=chains,
        expect=returns(["x1x2x3", "y1y2y3", "z1z2z3"]),
        chains=tuple((f"{label}1", f"{label}2", f"{label}3") for label in "xyz"),
    ),
    Workflow(
        durable=parked_chains,
        expect=returns(["x1x2", "y1y2"]),
        chains=tuple((f"{label}1", f"{label}2") for label in "xy"),
    ),
    Workflow(
        durable=appended,
        expect=returns(_any_order("a", "b", "c", "a2", "b2", "c2")),
        chains=tuple((name, f"{name}2", "sum-up") for name in "abc"),
    ),
    Workflow(
        durable=anyio_group,
        expect=returns(_any_order("a", "b", "c")),
        chains=tuple((name, "sum-up") for name in "abc"),
    ),
    Workflow(
        durable=as_completed,
        expect=returns(_any_order("a", "b", "c")),
        chains=(*((name, "again") for name in "abc"), ("sum-up", "again")),
    ),
    Workflow(
        durable=queue,
        expect=returns(_any_order("take-a", "take-b", "take-c")),
        chains=tuple((name, f"take-{name}", "sum-up") for name in "abc"),
    ),
    Workflow(
        durable=first_completed,
        expect=returns("quickafter"),
        chains=(("quick", "after"),),
        maybe=frozenset({"slow"}),
    ),
    Workflow(durable=failing_group, expect=returns("after"), chains=(("first", "after"),)),
    Workflow(
        durable=threads,
        expect=returns(["a", "b", "c"]),
        chains=tuple((f"plain {name}", "sum-up") for name in "abc"),
    ),
    Workflow(
        durable=lock,
        expect=returns(_any_order("x1", "x2", "y1", "y2")),
        chains=(("x1", "x2", "sum-up"), ("y1", "y2", "sum-up")),
    ),
    Workflow(durable=leftovers, expect=returns("ab"), chains=(("a", "b"),)),
)
