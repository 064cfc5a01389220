"""Steps that are cut off in all the ways in which a process can end, hang or lose its time."""

import asyncio
import os
import signal
import time

import zart
from tests.acceptance.apps.place import happened, is_open, note, through
from zart import durable, step


@step("{name}")
async def work(name: str) -> str:
    note(name)
    return name.upper()


@step("{gate}")
async def gated(gate: str) -> int:
    """Says that it begins, waits for its gate, and returns the process that it ended in."""
    note(f"{gate} begins")
    await through(gate)
    note(gate)
    return os.getpid()


@durable("three-steps")
async def three_steps() -> list[object]:
    return [await work("one"), await work("two"), await gated("three")]


@step("two")
async def die_once_after_the_effect() -> str:
    first = not happened("two")
    note("two")
    if first:
        os.kill(os.getpid(), signal.SIGKILL)
    return "TWO"


@durable("cut-off")
async def cut_off() -> list[str]:
    return [await work("one"), await die_once_after_the_effect(), await work("three")]


@step("unsteady", retry="fixed(2, 2s)")
async def unsteady() -> str:
    note("attempt")
    if zart.step_context().step_attempt < 3:
        raise ConnectionError(f"attempt {zart.step_context().step_attempt} came to nothing")
    return "steady"


@durable("retries")
async def retries(beside: bool) -> str:
    """With a step beside, the execution is held during the pauses between attempts; alone it is suspended."""
    if beside:
        steady, _ = await asyncio.gather(unsteady(), gated("beside"))
        return steady
    return await unsteady()


@durable("sleeps")
async def sleeps(seconds: float) -> str:
    await work("before")
    await zart.sleep(seconds)
    return await work("after")


@step("kill")
async def kill() -> str:
    note("kill")
    if not is_open("mended"):
        os.kill(os.getpid(), signal.SIGKILL)
    return "lived"


@durable("deadly")
async def deadly() -> str:
    return await kill()


@step("long")
async def take(seconds: float) -> str:
    note("long")
    await asyncio.sleep(seconds)
    return "long"


@durable("innocent")
async def innocent(seconds: float) -> list[str]:
    return [await work("first"), await take(seconds), await work("last")]


@durable("handed-over")
async def handed_over(name: str) -> list[object]:
    return [await gated(name), await work(f"after {name}")]


@step("in-a-thread")
def in_a_thread() -> None:
    first = not happened("thread")
    note("thread")
    if first:
        time.sleep(60)


@durable("threaded")
async def threaded() -> None:
    await in_a_thread()


@step("block")
async def block(seconds: float) -> int:
    """Blocks the event loop, the first time that it runs."""
    first = not happened("block")
    note("block")
    if first:
        time.sleep(seconds)  # noqa: ASYNC251 (that is the point)
    return os.getpid()


@durable("blocking")
async def blocking(seconds: float) -> int:
    return await block(seconds)


registry = zart.Registry(
    three_steps, cut_off, retries, sleeps, deadly, innocent, handed_over, threaded, blocking
)
