"""Child executions: awaited like any function, with an id of their own, ended before their parent."""

import asyncio
import datetime as dt

import msgspec
import psycopg
import pytest

import zart
from tests.support.running import (
    bury_workers,
    fast,
    nothing_left,
    query,
    shift_clock,
    until,
    until_record,
    until_status,
    working,
)
from zart import durable, step

ran: list[object] = []
gates: dict[str, asyncio.Event] = {}


@pytest.fixture(autouse=True)
def _fresh() -> None:
    ran.clear()
    gates.clear()


class Line(msgspec.Struct):
    item: str
    count: int


class Packed(msgspec.Struct):
    text: str


class OutOfStock(Exception):
    pass


@step("pick")
async def pick(item: str) -> str:
    ran.append(item)
    if item in gates:
        await gates[item].wait()
    if item == "gold":
        raise OutOfStock(item)
    return item.upper()


@durable("pack")
async def pack(line: Line) -> Packed:
    return Packed(f"{line.count} {await pick(line.item)}")


@durable("order")
async def order(items: list[str]) -> list[str]:
    told: list[str] = []
    for number, item in enumerate(items, 1):
        try:
            packed = await pack(Line(item, number))
            assert isinstance(packed, Packed)
            told.append(packed.text)
        except OutOfStock as error:
            told.append(f"no {error}")
    return told


@pytest.mark.parametrize("always_suspend", [False, True])
async def test_a_child_is_awaited_like_a_function(dsn: str, always_suspend: bool) -> None:
    """Its typed result comes back, its failure is raised and may be caught, and it is started once."""
    async with working(dsn, order, pack, always_suspend=always_suspend) as client:
        assert await client.start_and_wait(order, ["tea", "gold", "salt"], id="o-1") == [
            "1 TEA",
            "no gold",
            "3 SALT",
        ]
        children = [e async for e in client.executions(name="pack")]
    assert {child.status for child in children} == {"completed", "failed"}
    assert len(children) == 3
    assert all(child.id.startswith("o-1~") for child in children)
    assert ran == ["tea", "gold", "salt"]
    await nothing_left(dsn)


async def test_a_replay_attaches_to_the_child_and_never_starts_it_again(dsn: str) -> None:
    """The parent's worker is lost while the child runs: there is one child, and it ran once."""
    gates["slow"] = asyncio.Event()
    async with working(dsn, order, pack) as client:
        handle = await client.start(order, ["slow"], id="o")
        await until(lambda: ran == ["slow"])
        await until_status(client, "o", "waiting")
        assert (await client.status("o")).waiting_for == "child pack"
        await query(
            dsn, "UPDATE zart_tasks SET state = 'ready' WHERE execution_id = 'o'"
        )  # news about nothing
        await bury_workers(dsn)
        gates["slow"].set()
        assert await handle.result(timeout="20s") == ["1 SLOW"]
    assert await query(dsn, "SELECT count(*) FROM zart_executions WHERE name = 'pack'") == [(1,)]


@durable("many-parents")
async def many_parents(number: int) -> int:
    return await doubled(number) + await doubled(number)


@durable("doubled")
async def doubled(number: int) -> int:
    return number * 2


async def test_more_parents_than_slots_wait_without_a_deadlock(dsn: str) -> None:
    """A parent that waits for its child holds no slot."""
    async with working(dsn, many_parents, doubled, config=fast(max_concurrent_tasks=2)) as client:
        handles = await client.start_many(many_parents, {f"p{n}": n for n in range(30)})
        assert [await handle.result(timeout="30s") for handle in handles] == [4 * n for n in range(30)]
    await nothing_left(dsn)


@durable("tree")
async def tree(depth: int) -> int:
    if depth == 0:
        return await leaf_step()
    left = zart.start_child(tree, depth - 1)
    right = zart.start_child(tree, depth - 1)
    return sum(await zart.wait_all(left, right))


@step("leaf")
async def leaf_step() -> int:
    ran.append("leaf")
    if "leaf" in gates:
        await gates["leaf"].wait()
    return 1


async def test_children_of_children(dsn: str) -> None:
    """A tree of executions; each level waits for the one below."""
    async with working(dsn, tree) as client:
        assert await client.start_and_wait(tree, 4, id="root") == 16
        ids = [e.id async for e in client.executions(name="tree")]
    assert len(ids) == 31
    assert all(id == "root" or id.startswith("root~") for id in ids)
    await nothing_left(dsn)


async def test_a_cancel_goes_down_the_tree(dsn: str) -> None:
    """Cancelling the root cancels every execution below, running or not, and ends after them."""
    gates["leaf"] = asyncio.Event()
    async with working(dsn, tree, config=fast(max_concurrent_tasks=5)) as client:
        handle = await client.start(tree, 3, id="root")
        await until(lambda: len(ran) == 5)
        await client.cancel("root", reason="not needed")
        with pytest.raises(zart.ExecutionCancelled):
            await handle.result(timeout="15s")
        statuses = [e.status async for e in client.executions(name="tree")]
    assert set(statuses) == {"cancelled"}
    await nothing_left(dsn)


@durable("careless")
async def careless() -> str:
    zart.start_child(pack, Line("left", 1))
    zart.start_child(pack, Line("detached", 1), detached=True)
    return "returned"


async def test_a_child_ends_before_its_parent_unless_it_is_detached(dsn: str) -> None:
    """A child that nobody awaits still ends before the outcome; a detached one goes on by itself."""
    gates["left"], gates["detached"] = asyncio.Event(), asyncio.Event()
    async with working(dsn, careless, pack) as client:
        handle = await client.start(careless, id="c")
        await until(lambda: len(ran) == 2)
        await until_status(client, "c", "waiting")
        gates["left"].set()
        assert await handle.result(timeout="10s") == "returned"
        statuses = sorted([e.status async for e in client.executions(name="pack")])
        assert statuses == ["completed", "running"]
        gates["detached"].set()
        await until(lambda: _all_ended(dsn))
    await nothing_left(dsn)


async def _all_ended(dsn: str) -> bool:
    return not await query(dsn, "SELECT 1 FROM zart_executions WHERE status = 'scheduled'")


async def test_a_detached_child_outlives_a_cancelled_parent(dsn: str) -> None:
    """The cancel of a parent does not reach it."""
    gates["left"], gates["detached"] = asyncio.Event(), asyncio.Event()
    async with working(dsn, careless, pack) as client:
        handle = await client.start(careless, id="c")
        await until(lambda: len(ran) == 2)
        await client.cancel("c")
        with pytest.raises(zart.ExecutionCancelled):
            await handle.result(timeout="10s")
        gates["detached"].set()
        await until(lambda: _all_ended(dsn))
        statuses = sorted([e.status async for e in client.executions(name="pack")])
    assert statuses == ["cancelled", "completed"]
    await nothing_left(dsn)


@durable("hurried", timeout="1h")
async def hurried() -> str:
    zart.start_child(pack, Line("left", 1))
    return "returned"


@pytest.mark.parametrize("kept", [0, 10], ids=["replayed", "kept"])
@pytest.mark.parametrize("ended_by", ["cancel", "limit"])
async def test_what_ends_a_parent_whose_body_has_returned(dsn: str, ended_by: str, kept: int) -> None:
    """It waits for its child when it is cancelled, or when its limit passes: that is its outcome, and it says so,
    whether the body is still in memory or replayed."""
    gates["left"] = asyncio.Event()
    async with working(dsn, hurried, pack, config=fast(max_parked_bodies=kept)) as client:
        handle = await client.start(hurried, id="h")
        await until(lambda: len(ran) == 1)
        await until_status(client, "h", "waiting")
        if ended_by == "cancel":
            await client.cancel("h", reason="too slow")
            with pytest.raises(zart.ExecutionCancelled, match="too slow"):
                await handle.result(timeout="10s")
        else:
            await shift_clock(dsn, dt.timedelta(hours=2))
            with pytest.raises(zart.ExecutionTimeout, match="within 1h"):
                await handle.result(timeout="10s")
        await until(lambda: _all_ended(dsn))
        statuses = [e.status async for e in client.executions(name="pack")]
    assert statuses == ["cancelled"]
    await nothing_left(dsn)


@durable("chooses")
async def chooses(id: str) -> str:
    child = zart.start_child(pack, Line("tea", 2), id=id)
    assert child.id == id
    try:
        return (await child).text
    except zart.ExecutionConflict:
        return "taken"


async def test_a_child_under_a_chosen_id(dsn: str) -> None:
    """The parent may choose the id; one that exists already is a conflict that it may catch."""
    async with working(dsn, chooses, pack) as client:
        assert await client.start_and_wait(chooses, "parcel-7", id="first") == "2 TEA"
        assert (await client.status("parcel-7")).status == "completed"
        assert await client.start_and_wait(chooses, "parcel-7", id="second") == "taken"
    assert ran == ["tea"]
    await nothing_left(dsn)


async def test_a_chosen_id_that_a_transaction_holds_delays_nobody_else(dsn: str) -> None:
    """Somebody's open transaction has the id: that parent waits, all others go on."""
    async with working(dsn, chooses, order, pack) as client:
        async with await psycopg.AsyncConnection.connect(dsn) as other:
            await other.execute("SELECT zart_start('pack', 'parcel-8', '{\"item\": \"salt\", \"count\": 1}')")
            waiting = await client.start(chooses, "parcel-8", id="waits")
            assert await client.start_and_wait(order, ["tea"]) == ["1 TEA"]
            await other.rollback()
        assert await waiting.result(timeout="10s") == "2 TEA"


@durable("retried", max_retries=1)
async def retried() -> str:
    return (await flaky_child()) + (await doubled_text("x"))


@durable("flaky-child")
async def flaky_child() -> str:
    return await flaky_step()


@durable("doubled-text")
async def doubled_text(text: str) -> str:
    return text * 2


@step("flaky-step")
async def flaky_step() -> str:
    ran.append("flaky")
    if len(ran) == 1:
        raise ConnectionError("once")
    return "ok"


async def test_a_child_whose_failure_left_the_body_is_tried_afresh(dsn: str) -> None:
    """The body runs again: the failed child is another execution, under the next derived id."""
    async with working(dsn, retried, flaky_child, doubled_text) as client:
        assert await client.start_and_wait(retried, id="r") == "okxx"
        children = [e async for e in client.executions(name="flaky-child")]
    assert sorted(child.status for child in children) == ["completed", "failed"]
    assert len({child.id for child in children}) == 2
    await nothing_left(dsn)


@durable("told")
async def told_of_end() -> str:
    handle = zart.start_child(pack, Line("cancelled", 1))
    try:
        await handle
    except zart.ExecutionCancelled:
        return "it was cancelled"
    return "?"


async def test_a_child_that_somebody_cancels(dsn: str) -> None:
    """The parent hears of it, whether the child has run or not."""
    gates["cancelled"] = asyncio.Event()
    async with working(dsn, told_of_end, pack) as client:
        handle = await client.start(told_of_end, id="t")
        await until(lambda: ran == ["cancelled"])
        ((child,),) = await query(dsn, "SELECT id FROM zart_executions WHERE name = 'pack'")
        await client.cancel(child)
        assert await handle.result(timeout="10s") == "it was cancelled"
    async with working(dsn, told_of_end) as client:  # nobody here runs the child
        handle = await client.start(told_of_end, id="u")
        await until_record(client, "u", "pack", "waiting")
        ((child,),) = await query(
            dsn, "SELECT id FROM zart_executions WHERE name = 'pack' AND finished_at IS NULL"
        )
        assert (await client.status(child)).served is False
        await client.cancel(child)
        assert await handle.result(timeout="10s") == "it was cancelled"
    await nothing_left(dsn)


async def test_a_parent_that_is_cancelled_by_force_takes_its_children_along(dsn: str) -> None:
    """Nothing of the tree is left running, although the parent ends at once."""
    gates["slow"] = asyncio.Event()
    async with working(dsn, order, pack) as client:
        handle = await client.start(order, ["slow"], id="o")
        await until(lambda: ran == ["slow"])
        await client.cancel("o", force=True)
        with pytest.raises(zart.ExecutionCancelled):
            await handle.result(timeout="10s")
        await until(lambda: _all_ended(dsn))
        statuses = [e.status async for e in client.executions(name="pack")]
    assert statuses == ["cancelled"]
    await until(lambda: _gone(dsn))


async def _gone(dsn: str) -> bool:
    return not await query(dsn, "SELECT 1 FROM zart_tasks") and not await query(
        dsn, "SELECT 1 FROM zart_wakeups"
    )
