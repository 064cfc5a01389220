"""The workflows of the load, as users write them: the app of the worker processes.

Each says what it does in the effects' log. What must come out of each is in `scripts.py`.
"""

import asyncio
import hashlib
import os
import random
import signal
import time
from typing import Any

import msgspec

import zart
from tests.chaos.effects import note, place
from zart import EventTimeout, NonRetryable, durable, step

BLOCK_SECONDS = 3.5
"""Longer than the crew's orphan timeout."""


class Job(msgspec.Struct, frozen=True):
    number: int
    size: int = 0
    """What makes this one different from others of its kind: an amount, a count, a length."""


class Signal(msgspec.Struct):
    number: int


Signalled = zart.Event("signal", Signal)
Never = zart.Event("never", Signal)


async def _work() -> None:
    """What takes time in a step: often nothing, sometimes a little; and the event loop, when it is to be blocked."""
    blocked = place() / f"block-{os.getpid()}"
    if blocked.exists():
        blocked.unlink(missing_ok=True)
        time.sleep(BLOCK_SECONDS)  # noqa: ASYNC251 (that is the point)
    if random.random() < 0.5:
        await asyncio.sleep(random.random() * 0.05)


@step("{name}")
async def add(name: str, total: int, amount: int) -> int:
    await _work()
    note(total)
    return total + amount


@durable("transfer")
async def transfer(job: Job) -> int:
    """Steps in a row."""
    total = job.size
    for number in range(5):
        total = await add(f"add-{number}", total, number)
    return total


@step("unsteady", retry="fixed(4, 100ms)")
async def unsteady(failures: int) -> int:
    await _work()
    attempt = zart.step_context().step_attempt
    note()
    if attempt <= failures:
        raise ConnectionError(f"attempt {attempt} came to nothing")
    return attempt


@durable("retried")
async def retried(job: Job) -> list[int]:
    """A step that fails several times before it works."""
    return [await add("before", 0, 1), await unsteady(job.size), await add("after", 1, 1)]


@durable("fanned")
async def fanned(job: Job) -> list[int]:
    """Branches that append to a list: its order is the order of the log."""
    order: list[int] = []

    async def branch(number: int) -> None:
        order.append(await add(f"branch-{number}", job.size, number))

    await asyncio.gather(*(branch(number) for number in range(5)))
    return [*order, await add("last", sum(order), 0)]


@durable("chained")
async def chained(job: Job) -> list[int]:
    """Two chains beside each other, suspended in the middle."""

    async def chain(name: str, total: int) -> int:
        for number in range(4):
            if number == 2:
                await zart.sleep(0.3)
            total = await add(f"{name}-{number}", total, number)
        return total

    return list(await asyncio.gather(chain("left", job.size), chain("right", job.size + 1000)))


@durable("signalled")
async def signalled(job: Job) -> list[int]:
    """Waits for events and does something after each."""
    got = []
    for number in range(job.size):
        signal = await zart.wait_for_event(Signalled)
        got.append(signal.number)
        await add(f"got-{number}", signal.number, 0)
    return got


@durable("raced")
async def raced(job: Job) -> str:
    """An event against a time limit: one side wins, and stays the winner."""
    await add("before", 0, 0)
    try:
        signal = await zart.wait_for_event(Signalled, timeout=f"{job.size}ms")
        won = 1 + signal.number
    except EventTimeout:
        won = 0
    await add("after", won, 0)
    return "late" if won == 0 else "in time"


@durable("slept")
async def slept(job: Job) -> int:
    """A sleep between steps."""
    total = await add("before", 0, 1)
    await zart.sleep(f"{job.size}ms")
    return await add("after", total, 1)


@durable("cancelled")
async def cancelled(job: Job) -> None:
    """Waits until it is cancelled, and cleans up in steps."""
    try:
        await add("open", job.size, 0)
        await zart.wait_for_event(Never)
    finally:
        if not zart.suspending():
            await add("close", job.size, 0)
            await add("lock", job.size, 0)


@durable("limited")
async def limited(job: Job) -> str:
    """A time limit around a wait that never ends."""
    try:
        async with zart.timeout(f"{job.size}ms"):
            await add("inside", 0, 0)
            await zart.wait_for_event(Never)
    except TimeoutError:
        await add("outside", 0, 0)
        return "over"
    return "never"


@durable("overdue", timeout="1500ms")
async def overdue(job: Job) -> None:
    """Ends by its own time limit."""
    await add("inside", job.size, 0)
    await zart.wait_for_event(Never)


@step("doomed")
async def doomed() -> None:
    await _work()
    note()
    raise NonRetryable("no such account")


async def mourn(job: Job, failure: zart.Failure) -> None:
    await add("mourn", job.size, 0)


@durable("failed", on_failure=mourn)
async def failed(job: Job) -> None:
    """Fails, as asked, and has a last phase."""
    await add("before", job.size, 0)
    await doomed()


@durable("caught")
async def caught(job: Job) -> list[str]:
    """A failure that is caught stays caught, with its class and its text."""
    try:
        await doomed()
    except NonRetryable as error:
        told = f"{type(error).__name__}: {error}"
    await add("after", job.size, 0)
    return [told]


@durable("again", max_retries="fixed(3, 100ms)")
async def again(job: Job) -> list[int]:
    """A body that fails twice: what was recorded before stays."""
    total = await add("kept", job.size, 1)
    attempt = zart.context().attempt
    await add(f"attempt-{attempt}", attempt, 0)
    if attempt < 3:
        raise ConnectionError(f"body {attempt} came to nothing")
    return [total, attempt]


@step("blow-up-{number}")
async def blow_up(number: int, length: int) -> str:
    await _work()
    note(length)
    return content(number, length)


def content(number: int, length: int) -> str:
    """So many characters, different for each number."""
    block = hashlib.sha256(str(number).encode()).hexdigest()
    return (block * (length // len(block) + 1))[:length]


@durable("big")
async def big(job: Job) -> str:
    """Results that fill a batch of their own."""
    first = await blow_up(job.number, job.size)
    await zart.sleep(0.05)
    second = await blow_up(job.number + 1, job.size)
    return hashlib.sha256((first + second).encode()).hexdigest()


@step("thread-{amount}")
def in_a_thread(amount: int) -> int:
    time.sleep(random.random() * 0.05)
    note(amount)
    return amount * 2


@durable("threaded")
async def threaded(job: Job) -> int:
    """Plain functions, in threads."""
    return sum(await asyncio.gather(*(in_a_thread(job.size + number) for number in range(3))))


@durable("determined")
async def determined(job: Job) -> list[str]:
    """What is drawn in a body is the same on each replay."""
    first = zart.uuid4().hex
    await add(f"draw-{first}", job.size, 0)
    await zart.sleep(0.1)
    number = zart.random().randrange(10**9)
    moment = await zart.capture("moment", time.time_ns, type=int)
    await add(f"again-{first}-{number}-{moment}", job.size, 0)
    return [first, str(number), str(moment)]


@step("long")
async def take(milliseconds: int) -> int:
    await _work()
    await asyncio.sleep(milliseconds / 1000)
    note(milliseconds)
    return milliseconds


@durable("long")
async def long(job: Job) -> int:
    """A step of seconds beside a wait that ends earlier, and one after it."""

    async def nap() -> int:
        await zart.sleep("200ms")
        return await add("napped", 1, 0)

    taken, napped = await asyncio.gather(take(job.size), nap())
    return await add("after", taken, napped)


@durable("scattered")
async def scattered(job: Job) -> list[int]:
    """Steps on whatever worker is free, two at a time; then one here."""
    pieces = [
        zart.schedule_step(add.named(f"piece-{number}"), f"piece-{number}", job.size, number)
        for number in range(6)
    ]
    values = await zart.wait_all(*pieces)
    return [*values, await add("joined", sum(values), 0)]


class Parcel(msgspec.Struct):
    number: int
    total: int


@durable("parcel")
async def parcel(data: Parcel) -> int:
    """A child that sleeps in its middle."""
    total = await add(f"pack-{data.number}", data.total, data.number)
    await zart.sleep("150ms")
    return await add(f"ship-{data.number}", total, data.number)


@durable("parented")
async def parented(job: Job) -> int:
    """Children side by side, then one awaited like a function."""
    handles = [zart.start_child(parcel, Parcel(number, job.size)) for number in range(3)]
    first = sum(await zart.wait_all(*handles))
    return await add("received", first + await parcel(Parcel(3, job.size)), 0)


@durable("abandoned")
async def abandoned(job: Job) -> int:
    """Cancelled with a child and a scheduled step below it."""
    await add("open-family", job.size, 0)
    child = zart.start_child(waiting_child, job)
    far = zart.schedule_step(take_long, job.size)
    try:
        await zart.wait_all(child, far)
    finally:
        if not zart.suspending():
            await add("close-family", job.size, 0)
    return job.size


@durable("waiting-child")
async def waiting_child(job: Job) -> int:
    await zart.wait_for_event(Never)
    return job.size


@step("take-long")
async def take_long(size: int) -> int:
    note(size)
    await asyncio.sleep(3600)
    return size


def _tell_tasks(*_: object) -> None:
    """On SIGUSR1, what every task of this process waits for: for whoever looks for the cause of a standstill."""
    for task in asyncio.all_tasks(asyncio.get_running_loop()):
        chain: list[str] = []
        coroutine: Any = task.get_coro()
        while getattr(coroutine, "cr_frame", None) is not None:
            chain.append(f"{coroutine.cr_code.co_qualname}:{coroutine.cr_frame.f_lineno}")
            coroutine = coroutine.cr_await
        print(f"TASK {task.get_name()}: {' > '.join(chain)} >> {coroutine!r:.200}", flush=True)


signal.signal(signal.SIGUSR1, _tell_tasks)

registry = zart.Registry(
    transfer, retried, fanned, chained, signalled, raced, slept, cancelled, limited, overdue, failed, caught,
    again, big, threaded, determined, long, scattered, parcel, parented, abandoned, waiting_child,
)  # fmt: skip
