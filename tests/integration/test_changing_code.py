"""What may be changed in the code of running executions: each claim of docs/how-to/change-running-code.md."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

import zart
from tests.support.running import bury_workers, query, until_status, working
from zart import durable, step

effects: list[str] = []


@pytest.fixture(autouse=True)
def _no_effects() -> None:
    effects.clear()


@step("work")
async def work(label: str) -> str:
    effects.append(label)
    return label


Body = zart.Durable[[], Any]


@durable("deployed")
async def old() -> list[str]:
    out = [await work.named("a")("a"), await work.named("b")("b")]
    await zart.wait_for_event("go")
    return [*out, await work.named("c")("c")]


@durable("deployed")
async def inserted() -> list[str]:
    out = [await work.named("a")("a"), await work.named("check")("check"), await work.named("b")("b")]
    await zart.wait_for_event("go")
    return [*out, await work.named("c")("c")]


@durable("deployed")
async def patched() -> list[str]:
    out = [await work.named("a")("a")]
    if zart.patched("check"):
        out.append(await work.named("check")("check"))
    out.append(await work.named("b")("b"))
    await zart.wait_for_event("go")
    return [*out, await work.named("c")("c")]


async def started_under(dsn: str, body: Body, id: str = "x") -> None:
    """An execution that waits for "go" in the middle of a body."""
    async with working(dsn, body) as client:
        await client.start(body, id=id)
        await until_status(client, id, "waiting")


async def finished_under(dsn: str, body: Body, id: str = "x") -> Any:
    """What it comes to, with other code."""
    async with working(dsn, body) as client:
        await client.offer_event(id, "go", dedup="go")
        return await client.handle(body, id).result(timeout="10s")


# ------------------------------------------------------------ patched


async def test_a_patch_lets_a_blocked_execution_complete(dsn: str) -> None:
    """A step was inserted before recorded ones: blocked. With `patched` around it `resume` lets it complete."""
    await started_under(dsn, old)
    with pytest.raises(zart.ExecutionBlocked):
        await finished_under(dsn, inserted)
    assert effects == ["a", "b"]
    async with working(dsn, patched) as client:
        assert await client.resume("x", reason="patched")
        assert await client.handle(patched, "x").result(timeout="10s") == ["a", "b", "c"]
    assert effects == ["a", "b", "c"]


async def test_executions_that_start_now_take_the_change(dsn: str) -> None:
    """Beside an old execution that does not; both go on as they began after their worker has died."""
    await started_under(dsn, old)
    effects.clear()
    async with working(dsn, patched) as client:
        await client.start(patched, id="y")
        await until_status(client, "y", "waiting")
        await bury_workers(dsn)
        for id in ("x", "y"):
            await client.offer_event(id, "go")
        assert await client.handle(patched, "x").result(timeout="10s") == ["a", "b", "c"]
        assert await client.handle(patched, "y").result(timeout="10s") == ["a", "check", "b", "c"]
        keys = [record.key for record in (await client.history("y")).records]
    assert effects.count("check") == 1
    assert keys[:3] == ["a", "patched/check", "check"]


@pytest.mark.not_in(
    "suspending", reason="each record is followed by an ending, which takes a statement of its own"
)
async def test_the_answer_takes_no_round_trip_of_its_own(dsn: str) -> None:
    """It is written by the same statement as the next record."""
    await started_under(dsn, patched)
    rows = await query(
        dsn, "SELECT xmin::text FROM zart_steps WHERE path = 'patched/' OR name = 'check' ORDER BY seq"
    )
    assert len(rows) == 2
    assert len(set(rows)) == 1


async def test_the_old_side_may_be_removed_when_no_old_execution_is_left(dsn: str) -> None:
    """An execution that took the change completes under code that asks no more, without a warning."""
    await started_under(dsn, patched)
    assert await finished_under(dsn, inserted) == ["a", "check", "b", "c"]
    async with zart.Client(dsn) as client:
        assert [note for note in (await client.history("x")).notes if "check" in note] == []


async def test_the_old_side_removed_too_early_blocks(dsn: str) -> None:
    """An old execution that is still there: blocked, nothing was run; with the old side back it completes."""
    await started_under(dsn, old)
    with pytest.raises(zart.ExecutionBlocked, match="check"):
        await finished_under(dsn, inserted)
    assert effects == ["a", "b"]
    async with working(dsn, patched) as client:
        await client.resume("x")
        assert await client.handle(patched, "x").result(timeout="10s") == ["a", "b", "c"]


async def test_an_inserted_step_that_is_taken_out_again(dsn: str) -> None:
    """Back to the code before it: an execution that took the change completes, with a warning."""
    await started_under(dsn, patched)
    assert await finished_under(dsn, old) == ["a", "b", "c"]
    async with zart.Client(dsn) as client:
        assert any("step check" in note for note in (await client.history("x")).notes)


@durable("deployed")
async def replaced() -> list[str]:
    out = [await work.named("a")("a")]
    out.append(await (work.named("b2")("b2") if zart.patched("b2") else work.named("b")("b")))
    await zart.wait_for_event("go")
    return [*out, await work.named("c")("c")]


async def test_a_replaced_step_that_is_taken_back_blocks_those_that_took_it(dsn: str) -> None:
    """Back to the code before it: blocked, nothing is run; with the patch back, they go on."""
    await started_under(dsn, replaced)
    with pytest.raises(zart.ExecutionBlocked, match="b2"):
        await finished_under(dsn, old)
    async with working(dsn, replaced) as client:
        await client.resume("x")
        assert await client.handle(replaced, "x").result(timeout="10s") == ["a", "b2", "c"]
    assert effects == ["a", "b2", "c"]


async def test_a_patch_that_comes_back_takes_another_name(dsn: str) -> None:
    """What ran while it was out is in the log: the old answer would not fit that; under another name it is false."""

    @durable("deployed")
    async def again() -> list[str]:
        out = [await work.named("a")("a")]
        out.append(await (work.named("b2")("b2") if zart.patched("b2-again") else work.named("b")("b")))
        await zart.wait_for_event("go")
        return [*out, await work.named("c")("c")]

    await started_under(dsn, old)
    assert await finished_under(dsn, again) == ["a", "b", "c"]


# ------------------------------------------------------------ edits that are safe


class Order(msgspec.Struct):
    number: str


class OrderWithCurrency(msgspec.Struct):
    number: str
    currency: str = "EUR"


class OrderTheOtherWayRound(msgspec.Struct):
    currency: str = "EUR"
    number: str = ""


def charging(kind: Any, *, retry: str | None = None, more: bool = False, inside: str = "") -> Body:
    """An execution that has charged an order, in one of several versions of its code."""
    if more:

        @step("charge", retry=retry)
        async def charge(order: kind, express: bool = False) -> str:
            effects.append(f"charged{inside} {order.number}")
            return order.number

    else:

        @step("charge", retry=retry)
        async def charge(order: kind) -> str:
            effects.append(f"charged{inside} {order.number}")
            return order.number

    @durable("deployed")
    async def body() -> list[str]:
        first = await charge(kind(number="1"))
        await zart.wait_for_event("go")
        return [first, await charge(kind(number="2"))]

    return body


SAFE: dict[str, Callable[[], Body]] = {
    "what happens inside a step": lambda: charging(Order, inside=" anew"),
    "its options": lambda: charging(Order, retry="fixed(3, 1s)"),
    "a field with a default": lambda: charging(OrderWithCurrency),
    "another order of fields": lambda: charging(OrderTheOtherWayRound),
    "a parameter with a default": lambda: charging(Order, more=True),
}


@pytest.mark.parametrize("changed", SAFE.values(), ids=SAFE)
async def test_safe_edits(dsn: str, changed: Callable[[], Body]) -> None:
    """The recorded step stands and is not run again; the one after the wait runs in the new code."""
    await started_under(dsn, charging(Order))
    assert await finished_under(dsn, changed()) == ["1", "2"]
    assert len(effects) == 2
    assert effects[0] == "charged 1"


async def test_anything_after_the_place_where_it_stands(dsn: str) -> None:
    """New steps there simply run, and recorded ones do not."""

    @durable("deployed")
    async def longer() -> list[str]:
        out = [await work.named("a")("a"), await work.named("b")("b")]
        await zart.wait_for_event("go")
        return [*out, await work.named("x")("x"), await work.named("c")("c")]

    await started_under(dsn, old)
    assert await finished_under(dsn, longer) == ["a", "b", "x", "c"]
    assert effects == ["a", "b", "x", "c"]


async def test_code_that_asks_for_nothing(dsn: str) -> None:
    """Arithmetic and names in a body."""

    @durable("deployed")
    async def tidied() -> list[str]:
        collected: list[str] = []
        for label in ("a", "b"):
            collected += [await work.named(label)(label)]
        await zart.wait_for_event("go")
        collected.append(await work.named("c")("c"))
        return sorted(collected, reverse=True)

    await started_under(dsn, old)
    assert await finished_under(dsn, tidied) == ["c", "b", "a"]


async def test_a_call_moved_into_a_branch_blocks(dsn: str) -> None:
    """A step that is called in a task of its own is another call than the same one in the body."""
    import asyncio

    @durable("deployed")
    async def moved() -> list[str]:
        first = await work.named("a")("a")

        async def second() -> str:
            return await work.named("b")("b")

        out = [first, *await asyncio.gather(second())]
        await zart.wait_for_event("go")
        return [*out, await work.named("c")("c")]

    await started_under(dsn, old)
    with pytest.raises(zart.ExecutionBlocked):
        await finished_under(dsn, moved)
    assert effects == ["a", "b"]


async def test_a_changed_default_is_not_noticed(dsn: str) -> None:
    """What equals its default is left out of the comparison: the old record is taken for the new default."""

    def with_default(currency: str) -> Body:
        @step("charge")
        async def charge(number: str, currency: str = currency) -> str:
            effects.append(currency)
            return f"{number} in {currency}"

        @durable("deployed")
        async def body() -> list[str]:
            first = await charge("1")
            await zart.wait_for_event("go")
            return [first, await charge("2")]

        return body

    await started_under(dsn, with_default("EUR"))
    assert await finished_under(dsn, with_default("USD")) == ["1 in EUR", "2 in USD"]


async def test_other_annotations_read_the_same_json(dsn: str) -> None:
    """A recorded result is read by the annotation of today."""

    def annotated(kind: Any) -> Body:
        @step("number")
        async def number() -> kind:
            effects.append("number")
            return kind(7)

        @durable("deployed")
        async def body() -> str:
            value = await number()
            await zart.wait_for_event("go")
            return f"{value!r}"

        return body

    await started_under(dsn, annotated(int))
    assert await finished_under(dsn, annotated(float)) == "7.0"
    assert effects == ["number"]


async def test_a_result_that_no_longer_fits_blocks(dsn: str) -> None:
    """A recorded result that the annotation of today cannot read: blocked, and with the old annotation it goes on."""

    def annotated(kind: Any) -> Body:
        @step("number")
        async def number() -> kind:
            return kind("7")

        @durable("deployed")
        async def body() -> Any:
            value = await number()
            await zart.wait_for_event("go")
            return f"{value}"

        return body

    await started_under(dsn, annotated(str))
    with pytest.raises(zart.ExecutionBlocked, match="number"):
        await finished_under(dsn, annotated(int))
    async with working(dsn, annotated(str)) as client:
        await client.resume("x")
        assert await client.handle(annotated(str), "x").result(timeout="10s") == "7"


@pytest.mark.parametrize("policy", ["warn", "off"])
async def test_other_arguments_where_a_step_does_not_look(dsn: str, policy: Any) -> None:
    """`check_args="warn"` notes the difference, "off" does not look: the recorded result stands."""

    def charging_with(amount: int) -> Body:
        @step("charge", check_args=policy)
        async def charge(cents: int) -> int:
            effects.append(f"{cents}")
            return cents

        @durable("deployed")
        async def body() -> int:
            charged = await charge(amount)
            await zart.wait_for_event("go")
            return charged

        return body

    await started_under(dsn, charging_with(100))
    assert await finished_under(dsn, charging_with(200)) == 100
    assert effects == ["100"]
    async with zart.Client(dsn) as client:
        notes = [note for note in (await client.history("x")).notes if "other arguments" in note]
    assert bool(notes) == (policy == "warn")
