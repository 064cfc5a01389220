"""Keys come out the same on every Python, with asyncio and uvloop, with cold and warm libraries."""

import asyncio
import sys
import types
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import pytest
import uvloop

import zart
from tests.support.replaying import Replayed, replayed
from zart import durable, step
from zart._engine import lineage
from zart._engine.entries import Blocked

Run = Callable[[Coroutine[Any, Any, Any]], Any]

GOLDEN = [
    "1/a",
    "1/a#2",
    "10/a",
    "11/a",
    "2/a",
    "2/a#2",
    "3/a",
    "4/1/a",
    "4/a",
    "5/a",
    "6/a",
    "7/a",
    "8/a",
    "9/a",
    "a",
    "a#2",
    "a#3",
    "a#4",
    "a#5",
    "a#6",
    "a#7",
    "a#8",
    "sleep",
    "timeout#4",
    "timeout#5",
]
"""What `everything` asks for, on all supported Pythons; `make test-versions` runs this file on each."""


@step("a")
async def a(hops: int = 0) -> int:
    for _ in range(hops):
        await asyncio.sleep(0)
    return hops


async def chain(length: int = 1, hops: int = 0) -> int:
    for _ in range(length):
        await a(hops)
    return length


async def nested() -> None:
    await a()
    await asyncio.create_task(chain())


@durable("everything")
async def everything() -> None:
    await asyncio.wait_for(a(), 60)  # the caller's branch, on 3.11 too
    await asyncio.gather(chain(2, hops=3), chain(2))
    await asyncio.gather(a(2), a(1))  # calls of steps share the caller's branch
    async with asyncio.TaskGroup() as group:
        group.create_task(chain())
        group.create_task(nested())
    async with anyio.create_task_group() as anyio_group:
        anyio_group.start_soon(chain)
        anyio_group.start_soon(chain)
    await asyncio.wait_for(chain(), 60)
    await asyncio.shield(asyncio.create_task(chain()))
    async with asyncio.timeout(60):
        await chain()
    tasks = [asyncio.create_task(chain()) for _ in range(2)]
    for earliest in asyncio.as_completed(tasks):
        await earliest
    await asyncio.gather(zart.sleep(1), a())
    await asyncio.wait([asyncio.ensure_future(chain())])
    for call in asyncio.as_completed([a(1), a(2)]):
        await call
    for _ in range(2):
        try:
            async with zart.timeout(1):
                await asyncio.Event().wait()
        except TimeoutError:
            pass
    await asyncio.create_task(named_branch())


async def named_branch() -> None:
    await a()


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    return request.param


def test_keys_are_the_golden_ones(run: Run) -> None:
    """One list for all Pythons and both event loops."""
    result: Replayed = run(replayed(everything))
    assert sorted(result.keys) == GOLDEN


def test_a_library_that_starts_tasks_shifts_nobody(run: Run, library: types.ModuleType) -> None:
    """With a cold pool a library starts a task of its own, with a warm one it does not: the same keys."""

    @durable("pooled")
    async def pooled() -> None:
        await library.request()
        await asyncio.gather(chain(), chain())

    library.warm = False
    cold = run(replayed(pooled))
    library.warm = True
    warm = run(replayed(pooled))
    assert sorted(cold.keys) == sorted(warm.keys) == ["1/a", "2/a"]


def test_a_library_that_makes_durable_calls_has_branches_of_its_own(
    run: Run, library: types.ModuleType
) -> None:
    @durable("fanned-out")
    async def fanned_out() -> None:
        await library.fan_out(chain)
        await asyncio.create_task(chain())

    assert sorted(run(replayed(fanned_out)).keys) == ["1/a", "_one.1/a", "_one.2/a"]


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module that looks like an installed package."""
    source = """
import asyncio

warm = False

async def _pool():
    await asyncio.sleep(0)

async def request():
    if not warm:
        await asyncio.create_task(_pool())

async def _one(call):
    await call()

async def fan_out(call):
    await asyncio.gather(_one(call), _one(call))
"""
    filename = f"{lineage._SITES[0]}made_up_library/__init__.py"
    module = types.ModuleType("made_up_library")
    exec(compile(source, filename, "exec"), module.__dict__)
    monkeypatch.setitem(sys.modules, "made_up_library", module)
    return module


@pytest.mark.filterwarnings(
    "ignore:coroutine .* was never awaited"
)  # the other one, that asyncio did not get to
async def test_plain_coroutines_in_as_completed_are_refused() -> None:
    """It starts them in the order of a set, another one in each process."""

    @durable("unordered")
    async def unordered() -> None:
        calls = [chain(), chain()]
        try:
            for earliest in asyncio.as_completed(calls):
                await earliest
        finally:
            for call in calls:
                call.close()

    result = await replayed(unordered)
    assert "make tasks first" in result.failure["message"]


async def test_a_step_that_moved_to_another_branch_blocks() -> None:
    """The same call under another path: the branches were numbered differently, so nothing may run."""

    @durable("moved")
    async def old() -> None:
        await asyncio.gather(chain(), a.named("b")(7))

    @durable("moved")
    async def new() -> None:
        await a.named("b")(7)
        await asyncio.create_task(other())
        await asyncio.create_task(chain())

    async def other() -> None:
        await asyncio.create_task(chain())

    result = await replayed(
        old, cut=lambda commit: commit == 2, code=lambda number: old if number == 1 else new
    )
    assert isinstance(result.ending, Blocked)


async def test_a_task_factory_that_was_there_stays_in_use() -> None:
    """Ours stands before it, and hands on every task that is not a body's."""
    loop = asyncio.get_running_loop()
    made: list[str] = []

    def factory(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> "asyncio.Task[Any]":
        made.append(coroutine.__qualname__)
        return asyncio.Task(coroutine, loop=loop, **options)

    previous = loop.get_task_factory()
    loop.set_task_factory(factory)
    try:
        with lineage.body_tasks(loop):
            await asyncio.create_task(asyncio.sleep(0))
        assert loop.get_task_factory() is factory
    finally:
        loop.set_task_factory(previous)
    assert made == ["sleep"]
