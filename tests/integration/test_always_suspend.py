"""Every record replayed: each activation adds one, and what comes out is what comes out without."""

import asyncio
import contextlib
from typing import Any

import msgspec
import pytest

import zart
from tests.support.running import fast, forgetful, hurrying, query, until, until_record, until_status, working
from tests.unit import test_replay as corpus
from zart import durable, step
from zart._engine.activation import Activation

effects: list[Any] = corpus.effects


@pytest.fixture(autouse=True)
def _no_effects() -> None:
    effects.clear()


class Item(msgspec.Struct):
    number: int
    label: str = "x"


@step("make")
async def make(number: int, hops: int = 0) -> Item:
    for _ in range(hops):
        await asyncio.sleep(0)
    effects.append(number)
    return Item(number)


@step("double")
def double(item: Item) -> Item:
    return Item(item.number * 2, item.label)


@durable("pipeline")
async def pipeline() -> list[int]:
    """Bounded workers over a queue of tasks, as people write them."""
    limit = asyncio.Semaphore(2)
    out: list[int] = []

    async def one(number: int) -> None:
        async with limit:
            item = await make(number, (number * 5) % 4)
            item = await double(item)
            out.append(item.number)

    async with asyncio.TaskGroup() as group:
        for number in range(5):
            group.create_task(one(number))
    return out


@durable("nested")
async def nested() -> list[list[int]]:
    """Branches in branches, with a sleep and a limit in each."""

    async def inner(number: int) -> int:
        async with asyncio.timeout(3600):
            first = await make(number, number % 3)
            await zart.sleep(60 * (number % 2 + 1))
            return (await double(first)).number

    async def outer(base: int) -> list[int]:
        return list(await asyncio.gather(*(inner(base + offset) for offset in range(3))))

    return list(await asyncio.gather(outer(0), outer(10)))


@durable("locked")
async def locked() -> list[int]:
    """A lock between branches."""
    lock = asyncio.Lock()
    order: list[int] = []

    async def one(number: int) -> None:
        await make(number, 3 - number)
        async with lock:
            order.append(number)
            await make(100 + number)

    await asyncio.gather(*(one(number) for number in range(4)))
    return order


@durable("cancels-a-branch")
async def cancels_a_branch() -> list[str]:
    out: list[str] = []

    async def endless() -> None:
        try:
            number = 0
            while True:
                await make(number)
                await zart.sleep("1m")
                number += 1
        finally:
            await make(-1)
            out.append("stopped")

    task = asyncio.create_task(endless())
    await zart.sleep("150s")
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return out


BODIES = [*corpus.CORPUS, pipeline, nested, locked, cancels_a_branch]
ORDER = {
    "queue",
    "as-completed",
    "first-completed",
    "siblings",
    "appending-branches",
    "task-group",
    "anyio-group",
}
ORDER |= {"pipeline", "locked"}
"""What order their branches end in depends on who is faster: compared without it."""
LINES = {"in-a-row", "caught", "values", "limits", "retried-body", "fails-for-good"}
"""One step at a time: what ran is what was recorded, so nothing may run twice."""
VARYING = {"first-completed", "siblings"}
"""How many calls they make depends on it, too."""


async def outcome(dsn: str, body: Any, *, always_suspend: bool) -> tuple[str, Any, list[str], list[Any]]:
    """Status, result or failure, keys and effects of one execution; durable time passes as fast as it can."""
    effects.clear()
    id = f"x-{always_suspend}"
    async with zart.Client(dsn) as client:  # before there is a worker: some bodies end before a second event
        await client.start(body, id=id)
        for payload in ("one", "two"):
            await client.offer_event(id, "news", payload)
    async with working(dsn, body, config=fast(poll_interval="5ms"), always_suspend=always_suspend) as client:
        async with hurrying(dsn):
            await until_status(client, id, "completed", "failed", "cancelled", "blocked", within=40)
        ((status, result, without, failure),) = await query(
            dsn, "SELECT status, result, result IS NULL, failure FROM zart_executions WHERE id = %s", id
        )
        keys = [f"{r.kind} {r.key}" for r in (await client.history(id)).records if r.state != "cancelled"]
    return status, (failure and failure["message"]) if without else result, keys, list(effects)


def comparable(body: Any, value: Any) -> Any:
    """Without what differs from run to run: the time, and what is drawn from the run's id."""
    if body.name == "waits":
        return value[:-2]
    if body.name == "values":
        return value[0]
    if body.name in VARYING:
        return {item for item in value if item not in ("NEXT", "UNDO")}
    return sorted(value) if body.name in ORDER else value


@pytest.mark.not_in("suspending", reason="compares with a run in which nothing is suspended")
@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.name)
async def test_replayed_at_every_record(dsn: str, monkeypatch: pytest.MonkeyPatch, body: Any) -> None:
    """Every committed record unwinds the body instead of being delivered, parked or not, and the next activation
    replays: the same outcome, and no recorded step runs again."""
    activations = 0
    start = Activation.start

    def counting_start(self: Activation) -> None:
        nonlocal activations
        activations += 1
        start(self)

    monkeypatch.setattr(Activation, "start", counting_start)
    plain = await outcome(dsn, body, always_suspend=False)
    few, activations = activations, 0
    always = await outcome(dsn, body, always_suspend=True)
    assert activations > few
    assert always[0] == plain[0]
    assert comparable(body, always[1]) == comparable(body, plain[1])
    if body.name not in VARYING:
        assert sorted(always[2]) == sorted(plain[2])
    if body.name in LINES:
        assert always[3] == plain[3]
    steps = [key for key in always[2] if key.startswith(("step", "capture"))]
    assert len(steps) == len(set(steps))


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.name)
async def test_branches_end_in_the_same_order_at_a_replay(dsn: str, body: Any) -> None:
    """Bodies that append to a list from branches, use `as_completed`, a Queue or FIRST_COMPLETED: whatever order came
    about live, the replay from the database's log comes to the same."""
    seen: list[Any] = []

    async def ends(data: None, failure: zart.Failure) -> None:
        seen.append(failure.message)
        await zart.wait_for_event("go")

    @durable("then-replayed", on_failure=ends)
    async def then_replayed() -> Any:
        out = await body.fn()
        seen.append(out)
        await zart.wait_for_event("go")
        return out

    async with working(dsn, then_replayed, config=forgetful(poll_interval="5ms")) as client:
        await client.start(then_replayed, id="x")
        for payload in ("one", "two"):
            await client.offer_event("x", "news", payload)
        async with hurrying(dsn):
            await until(lambda: seen)
            await until_record(client, "x", "on_failure/go" if isinstance(seen[0], str) else "go", "waiting")
        await client.offer_event("x", "go")
        await until_status(client, "x", "completed", "failed", "blocked")
        assert (await client.status("x")).status == ("failed" if isinstance(seen[0], str) else "completed")
    assert len(seen) >= 2
    assert all(value == seen[0] for value in seen)
