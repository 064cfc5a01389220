"""Whatever a body can observe comes out the same, wherever a crash cuts it and however often it is suspended."""

import asyncio
from typing import Any

import anyio
import pytest

import zart
from tests.support.replaying import CuttingHost, Replayed, replayed
from zart import durable, step
from zart._engine.entries import Blocked, Cancelled, Completed, Failed, Released

effects: list[str] = []


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"], scope="module", autouse=True)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """What is seen of a body at rest differs between loops: everything holds on both."""
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture(autouse=True)
def _no_effects() -> None:
    effects.clear()


@step("work")
async def work(label: str, hops: int = 0) -> str:
    for _ in range(hops):
        await asyncio.sleep(0)
    effects.append(label)
    return label.upper()


@step("fails")
async def fails(label: str) -> str:
    effects.append(label)
    raise LookupError(label)


@step("flaky-{label}", retry="exponential(3, 2s)")
async def flaky(label: str) -> str:
    effects.append(label)
    if effects.count(label) < 3:
        raise ConnectionError(label)
    return label


@step("threaded")
def threaded(label: str) -> str:
    effects.append(label)
    return label


@durable("in-a-row")
async def in_a_row() -> list[str]:
    return [await work(str(number)) for number in range(4)]


@durable("appending-branches")
async def appending_branches() -> list[str]:
    out: list[str] = []

    async def branch(label: str, hops: int) -> None:
        out.append(await work(label + "1", hops))
        out.append(await work(label + "2", 3 - hops))

    await asyncio.gather(branch("a", 3), branch("b", 1), branch("c", 2))
    return out


@durable("beginnings")
async def beginnings() -> list[str]:
    out: list[str] = []

    async def branch(label: str) -> None:
        out.append(f"{label} begins")
        out.append(await work(label))
        await asyncio.sleep(0)
        out.append(f"{label} goes on")
        out.append(await work(label + "'"))

    async with asyncio.TaskGroup() as group:
        group.create_task(branch("a"))
        group.create_task(branch("b"))
        out.append(await work("main"))
    return out


@durable("task-group")
async def task_group() -> list[str]:
    out: list[str] = []

    async def branch(label: str, hops: int) -> None:
        out.append(await work(label, hops))
        out.append(await work(label + "'", hops))

    async with asyncio.TaskGroup() as group:
        for number in range(4):
            group.create_task(branch(str(number), (number * 7) % 5))
    return out


@durable("anyio-group")
async def anyio_group() -> list[str]:
    out: list[str] = []

    async def branch(label: str, hops: int) -> None:
        out.append(await work(label, hops))
        await zart.sleep("1h")
        out.append(await work(label + "'", 5 - hops))

    async with anyio.create_task_group() as group:
        for number in range(3):
            group.start_soon(branch, str(number), (number * 3) % 5)
    return out


@durable("as-completed")
async def as_completed() -> list[str]:
    out: list[str] = []
    tasks = [asyncio.create_task(two(str(number), (number * 3) % 4)) for number in range(4)]
    for earliest in asyncio.as_completed(tasks):
        out.append(await earliest)
        out.append(await work("after", 2))
    return out


async def two(label: str, hops: int) -> str:
    return await work(label, hops) + await work(label + "'", 2)


@durable("queue")
async def through_a_queue() -> list[str]:
    queue: asyncio.Queue[str] = asyncio.Queue()

    async def produce(label: str, hops: int) -> None:
        await queue.put(await work(label, hops))
        await queue.put(await work(label + "'", 3 - hops))

    producers = [asyncio.create_task(produce(label, hops)) for label, hops in (("a", 3), ("b", 0), ("c", 1))]
    out = [await queue.get() for _ in range(6)]
    await asyncio.gather(*producers)
    return out


@durable("first-completed")
async def first_completed() -> list[str]:
    tasks = {
        asyncio.create_task(two(label, hops), name=label) for label, hops in (("a", 2), ("b", 1), ("c", 3))
    }
    out: list[str] = []
    while tasks:
        done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        out.extend(sorted(task.result() for task in done))
        out.append(await work("next"))
    return out


@durable("caught")
async def caught() -> list[str]:
    out = [await work("before")]
    try:
        await fails("x")
    except LookupError as error:
        out.append(f"caught {error}")
    out.append(await work("after"))
    return out


@durable("siblings")
async def siblings() -> list[str]:
    out: list[str] = []

    async def loser() -> None:
        try:
            await work("a")
            await work("b", 6)
            await work("c", 6)
        finally:
            out.append(await work("undo"))

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(loser())
            group.create_task(fails("x"))
    except* LookupError:
        out.append("failed")
    return out


@durable("retries")
async def retries() -> list[str]:
    return [*await asyncio.gather(flaky("a"), flaky("b")), await threaded("t")]


@durable("waits")
async def waits() -> list[Any]:
    out: list[Any] = []

    async def sleeper() -> None:
        await zart.sleep("2h")
        out.append(await work("slept"))

    async def listener() -> None:
        out.append(await zart.wait_for_event("news"))
        out.append(await zart.wait_for_event("news"))
        try:
            out.append(await zart.wait_for_event("news", timeout="1h"))
        except zart.EventTimeout:
            out.append("too late")

    await asyncio.gather(sleeper(), listener())
    out.append(zart.now().isoformat())
    out.append(str(zart.uuid4()))
    return out


@durable("limits")
async def limits() -> list[str]:
    out: list[str] = []
    try:
        async with zart.timeout("1h"):
            out.append(await work("in time"))
            await zart.sleep("2h")
    except TimeoutError:
        out.append(await work("zart.timeout"))
    try:
        async with asyncio.timeout(1800):
            await zart.wait_for_event("never")
    except TimeoutError:
        out.append(await work("asyncio.timeout"))
    try:
        await asyncio.wait_for(chain("a"), 3600)
    except TimeoutError:
        out.append(await work("wait_for"))
    out.append(await asyncio.wait_for(work("quick"), 3600))
    return out


async def chain(label: str) -> None:
    await work(label)
    await zart.sleep("1d")
    await work(label + "'")


@durable("values")
async def values() -> list[Any]:
    zart.set_data({"n": 1})
    first = await zart.capture("dice", lambda: len(effects) * 0 + 4)
    zart.set_data({"n": first})
    await work("a")
    return [zart.data(dict[str, int]), zart.random().random(), zart.now().isoformat()]


@durable("retried-body", max_retries="fixed(2, 1m)")
async def retried_body() -> list[str]:
    out = [await work("once")]
    try:
        await fails("caught")
    except LookupError:
        out.append("caught")
    out.append(await fails_twice())
    return out


@step("fails-twice")
async def fails_twice() -> str:
    effects.append("twice")
    if effects.count("twice") < 3:
        raise OSError("again")
    return "done"


async def clean_up(data: None, failure: zart.Failure) -> None:
    await work("undo-a")
    await zart.sleep("1h")
    await work("undo-b " + failure.message)


@durable("fails-for-good", on_failure=clean_up)
async def fails_for_good() -> None:
    await work("a")
    await fails("b")


@step("undo")
async def undo(label: str) -> None:
    effects.append("-" + label)


@durable("sagas-in-branches")
async def sagas_in_branches() -> list[str]:
    out: list[str] = []

    async def branch(label: str, hops: int) -> None:
        async with zart.saga() as saga:
            saga.add(undo, label)
            out.append(await work(label, hops))
        await zart.sleep("1d")

    async with zart.saga() as saga:
        saga.add(undo, "whole")
        try:
            await asyncio.gather(*(branch(str(number), (number * 7) % 5) for number in range(3)), fails("x"))
        except LookupError:
            out.append("caught")
            await saga.compensate()
    return out


@durable("retried-saga", max_retries="fixed(2, 1m)")
async def retried_saga() -> list[str]:
    out = [await work("once")]
    async with zart.saga() as outer:
        outer.add(undo, "outer")
        out.append(await work("outer"))
        async with zart.saga() as inner:
            inner.add(undo, "inner")
            out.append(await work("inner"))
        out.append(await fails_twice())
    return out


CORPUS = [
    in_a_row,
    appending_branches,
    beginnings,
    task_group,
    anyio_group,
    as_completed,
    through_a_queue,
    first_completed,
    caught,
    siblings,
    retries,
    waits,
    limits,
    values,
    retried_body,
    fails_for_good,
    sagas_in_branches,
    retried_saga,
]
RACES = {first_completed, siblings, sagas_in_branches}
"""How many calls these make depends on who is faster, so only the log of the same run explains their outcome."""
EVENTS = {"news": ["one", "two"]}


def described(ending: object) -> object:
    if isinstance(ending, Completed):
        return ending.result
    assert isinstance(ending, Failed), ending
    import msgspec

    failure = msgspec.json.decode(ending.failure)
    return failure["type"], failure["message"]


async def assert_replays(body: Any, run: Replayed) -> None:
    """The complete log, replayed, gives what the run gave, and nothing runs again."""
    effects.clear()
    again = await replayed(body, events=EVENTS, journal=run.journal, attempt=run.attempt, floor=run.floor)
    assert described(again.ending) == described(run.ending)
    assert again.keys == run.keys
    assert effects == []


@pytest.mark.parametrize("body", CORPUS, ids=lambda body: body.name)
async def test_a_crash_at_any_record_leaves_a_log_that_explains_the_outcome(body: Any) -> None:
    """Cut at each position of the log and carried on: what came out is what a replay of the whole log gives."""
    whole = await replayed(body, events=EVENTS)
    await assert_replays(body, whole)
    for position in range(1, len(whole.keys) + 1):
        effects.clear()
        again = await replayed(body, events=EVENTS, cut=lambda commit, at=position: commit == at)
        assert type(again.ending) is type(whole.ending)
        assert body in RACES or sorted(again.keys) == sorted(whole.keys)
        assert again.keys[: position - 1] == whole.keys[: position - 1]
        await assert_replays(body, again)


@pytest.mark.parametrize("body", CORPUS, ids=lambda body: body.name)
async def test_replayed_at_every_record_it_still_ends(body: Any) -> None:
    """Every record is replayed instead of being delivered: each activation adds one, and the outcome holds."""
    whole = await replayed(body, events=EVENTS)
    effects.clear()
    again = await replayed(body, events=EVENTS, cut=lambda _commit: True, suspend=True)
    assert type(again.ending) is type(whole.ending)
    assert body in RACES or sorted(again.keys) == sorted(whole.keys)
    await assert_replays(body, again)


@pytest.mark.parametrize("body", CORPUS, ids=lambda body: body.name)
async def test_suspended_whenever_it_is_parked_it_ends_the_same(body: Any) -> None:
    whole = await replayed(body, events=EVENTS)
    effects.clear()
    again = await replayed(body, events=EVENTS, suspend=True)
    assert described(again.ending) == described(whole.ending)
    assert again.keys == whole.keys


async def test_a_cancelled_body_cleans_up_durably_and_once() -> None:
    @durable("cancelled")
    async def body() -> str:
        try:
            await work("a")
            await zart.sleep("1d")
        except asyncio.CancelledError:
            await work("undo-a")
            await work("undo-b")
        return "swallowed"

    for position in range(1, 5):
        effects.clear()
        again = await replayed(
            body,
            cut=lambda commit, at=position: commit == at,
            suspend=True,
            cancel=lambda number: number >= 2,
        )
        assert isinstance(again.ending, Cancelled), position
        assert effects == ["a", "undo-a", "undo-b"], position


async def test_a_renamed_step_blocks_and_runs_nothing() -> None:
    """The code asks for another step where one is recorded: blocked, naming both, and nothing was run."""

    @durable("body")
    async def old() -> str:
        return await work("a") + await work.named("before")("b") + await work("c")

    @durable("body")
    async def new() -> str:
        return await work("a") + await work.named("after")("b") + await work("c")

    again = await replayed(old, cut=lambda commit: commit == 3, code=lambda n: old if n == 1 else new)
    assert isinstance(again.ending, Blocked)
    assert "'" in again.failure["message"]
    assert "before" in again.failure["message"]
    assert "after" in again.failure["message"]
    assert effects == ["a", "b", "c"]


async def test_other_arguments_block() -> None:
    @durable("body")
    async def old() -> str:
        return await work("a") + await work("b")

    @durable("body")
    async def new() -> str:
        return await work("a") + await work("other")

    again = await replayed(old, cut=lambda commit: commit == 2, code=lambda n: old if n == 1 else new)
    assert isinstance(again.ending, Blocked)
    assert effects == ["a", "b"]


async def test_a_removed_step_is_a_warning() -> None:
    @durable("body")
    async def old() -> str:
        return await work.named("x")("a") + await work.named("y")("b") + await work.named("z")("c")

    @durable("body")
    async def new() -> str:
        return await work.named("x")("a") + await work.named("z")("c") + await work.named("w")("d")

    again = await replayed(old, cut=lambda commit: commit == 3, code=lambda n: old if n == 1 else new)
    assert again.result == "ACD"
    assert any("y" in note for what, note in again.notes if what == "warning")


async def test_a_body_that_leaves_branches_behind_ends_them_first() -> None:
    @durable("leaves")
    async def body() -> str:
        async def forever() -> None:
            try:
                await zart.sleep("365d")
            finally:
                await work("undo")

        tasks = [asyncio.create_task(forever())]
        await work("a")
        assert tasks
        return "done"

    again = await replayed(body)
    assert again.result == "done"
    assert effects == ["a", "undo"]
    assert again.notes


async def test_no_attempt_begins_while_the_lease_is_in_doubt() -> None:
    """After a long stop the worker first learns whether its executions went on elsewhere; then it runs steps. The
    body is not suspended meanwhile, since nothing would ever wake it up."""

    @durable("doubtful")
    async def body() -> str:
        return await work("a")

    class InDoubt(CuttingHost):
        asked = 0

        @property
        def fresh(self) -> bool:  # type: ignore[override]
            self.asked += 1
            assert not effects or self.asked > 3
            return self.asked > 3

    host = InDoubt(cut=lambda _commit: False, suspend=True)
    result = await replayed(body, host=host)
    assert result.result == "A"
    assert host.asked > 3


@pytest.mark.parametrize("asked", [1, 2, 3])
async def test_a_body_that_waits_for_its_lease_is_unwound_at_any_moment(asked: int) -> None:
    """An execution is given back in the very moment in which its step looks whether the lease stands: the body is
    unwound, and begins no attempt."""

    @durable("doubtful")
    async def body() -> str:
        return await work("a")

    class GivenBack(CuttingHost):
        asked = 0
        activation: Any = None

        async def run(self, activation: Any) -> Any:
            self.activation = activation
            return await super().run(activation)

        @property
        def fresh(self) -> bool:  # type: ignore[override]
            self.asked += 1
            if self.asked == asked:
                self.activation.release()
            return self.asked > 3

    async with asyncio.timeout(5):
        result = await replayed(body, host=GivenBack(cut=lambda _commit: False, suspend=True))
    assert (result.result, result.activations) == ("A", 2)
    assert effects == ["a"]


@pytest.mark.parametrize("activation", [1, 2], ids=["first", "second"])
@pytest.mark.parametrize("body", CORPUS, ids=lambda body: body.name)
async def test_a_body_is_unwound_at_any_turn_of_the_loop(body: Any, activation: int) -> None:
    """Its execution is given back at one turn of the loop after the other: none of its tasks is left hanging, to be
    finalised who knows when, with calls in its `finally` that belong to no execution then."""

    class GivenBack(CuttingHost):
        activations = 0

        async def run(self, held: Any) -> Any:
            self.activations += 1
            if self.activations != activation:
                return await super().run(held)

            async def give_back() -> None:
                for _ in range(turn):
                    await asyncio.sleep(0)
                held.release()

            giving_back = asyncio.create_task(give_back())
            ending = await super().run(held)
            self.was_given_back = isinstance(ending, Released)
            await giving_back
            return ending

    for turn in range(1000):  # noqa: B007 (it is looked at above)
        host = GivenBack(cut=lambda commit: commit < activation, suspend=False)
        host.was_given_back = False
        async with asyncio.timeout(5):
            await replayed(body, events=EVENTS, host=host)
        if not host.was_given_back:
            break
    assert turn > 1


async def test_a_record_that_is_committed_when_its_call_is_cancelled() -> None:
    """A commit arrives in the very moment in which the call that waits for it was cancelled: the record stays unused,
    and nothing goes wrong."""

    @durable("cut")
    async def body() -> str:
        try:
            await work("a")
        except asyncio.CancelledError:
            return "cut"
        return "not cut"

    class Cancelling(CuttingHost):
        def holds_back(self, activation: Any, /) -> bool:
            activation.root.cancel()
            return False

    wrong: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: wrong.append(context))
    result = await replayed(body, host=Cancelling(cut=lambda _commit: False, suspend=False))
    asyncio.get_running_loop().set_exception_handler(None)
    assert result.result == "cut"
    assert effects == ["a"]
    assert wrong == []
