"""When a body rests: found out exactly, whatever its tasks wait for, at a price per entry that many branches share."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvloop

import zart
from tests.support.replaying import CuttingHost, replayed
from tests.unit.test_replay import CORPUS, EVENTS, assert_replays, effects, work
from zart import durable
from zart._engine import parking, rest
from zart._engine.rest import RESTING_TURNS, Rest

LOOPS = {"asyncio": asyncio.run, "uvloop": uvloop.run}


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"], scope="module", autouse=True)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture(autouse=True)
def _no_effects() -> None:
    effects.clear()


@pytest.fixture
def hidden(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The loop does not show its queue, as one that is always busy: turns are all that there is."""
    rest._looks.clear()
    monkeypatch.setattr(rest, "_queue_of", lambda _loop: None)
    yield
    rest._looks.clear()


@pytest.fixture(params=["seen", "hidden"])
def queue(request: pytest.FixtureRequest) -> None:
    if request.param == "hidden":
        request.getfixturevalue("hidden")


# ------------------------------------------------------------ what it costs


@durable("calls-in-a-gather")
async def calls_in_a_gather(branches: int) -> None:
    await asyncio.gather(*(work(str(number)) for number in range(branches)))


@durable("groups-in-a-group")
async def groups_in_a_group(branches: int) -> None:
    async def branch(label: str) -> None:
        await asyncio.gather(work(label), work(label))
        await work(label)

    async with asyncio.TaskGroup() as group:
        for number in range(branches):
            group.create_task(branch(str(number)))


@durable("behind-a-semaphore")
async def behind_a_semaphore(branches: int) -> None:
    few = asyncio.Semaphore(5)

    async def branch(label: str) -> None:
        async with few:
            await work(label)

    await asyncio.gather(*(branch(str(number)) for number in range(branches)))


@durable("each-its-own-time")
async def each_its_own_time(branches: int) -> None:
    async def branch(number: int) -> None:
        await zart.sleep(f"{number + 1}m")

    await asyncio.gather(*(branch(number) for number in range(branches)))


@pytest.mark.parametrize(
    "body",
    [calls_in_a_gather, groups_in_a_group, behind_a_semaphore, each_its_own_time],
    ids=lambda body: body.name,
)
async def test_the_price_of_an_entry_does_not_grow_with_the_branches(
    body: Any, queue: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many tasks and futures are looked at for one entry, live and at a replay, is the same for ten times as many
    branches."""
    seen = 0

    def counting(function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any) -> Any:
            nonlocal seen
            seen += 1
            return function(*args)

        return counted

    monkeypatch.setattr(parking, "waits_for", counting(parking.waits_for))
    monkeypatch.setattr(parking, "_known", counting(parking._known))

    async def prices(branches: int) -> tuple[float, float]:
        nonlocal seen
        seen = 0
        run = await replayed(body, branches)
        live, seen = seen, 0
        await replayed(body, branches, journal=run.journal)
        return live / len(run.keys), seen / len(run.keys)

    few, many = await prices(150), await prices(1500)
    assert many[0] < 1.3 * few[0] + 1, (few, many)
    assert many[1] < 1.3 * few[1] + 1, (few, many)


async def test_bodies_that_look_at_the_same_time_do_not_take_each_other_for_busy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ten replays side by side need about as many looks each as one alone."""
    looks = 0
    look = Rest.look

    def counted(self: Rest, *, quiet: bool) -> None:
        nonlocal looks
        looks += 1
        look(self, quiet=quiet)

    monkeypatch.setattr(Rest, "look", counted)
    run = await replayed(groups_in_a_group, 30)
    looks = 0
    await replayed(groups_in_a_group, 30, journal=run.journal)
    alone, looks = looks, 0
    await asyncio.gather(*(replayed(groups_in_a_group, 30, journal=run.journal) for _ in range(10)))
    assert looks < 10 * alone * 2


# ------------------------------------------------------------ that it is right


@pytest.mark.parametrize("body", CORPUS, ids=lambda body: body.name)
async def test_what_is_let_be_is_blocked(body: Any, queue: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look sees what a look at every task would see. Only on a busy loop it may be one turn late, and only with
    what is not the engine's own; then that turn is counted."""
    all_blocked, all_parked = Rest._all_blocked, Rest.all_parked.fget
    assert all_parked is not None
    looked = 0

    def compared(self: Rest, but_for: Any = None) -> bool:
        nonlocal looked
        looked += 1
        found = all_blocked(self, but_for)
        tasks, in_steps = self._activation.tasks, self._activation.steps.tasks
        about_to_run = [
            task
            for task in tasks
            if not parking.is_blocked(task) and task not in in_steps and task is not but_for
        ]
        if found and about_to_run:
            assert not self._looks.quiet
            assert not any(
                isinstance(parking.waits_for(task), parking.DurableFuture) for task in about_to_run
            )
        assert found or about_to_run
        return found

    def compared_parked(self: Rest) -> bool:
        found = all_parked(self)
        assert found == all(
            parking.is_parked(task, self._activation.tasks) for task in self._activation.tasks
        )
        return found

    monkeypatch.setattr(Rest, "_all_blocked", compared)
    monkeypatch.setattr(Rest, "all_parked", property(compared_parked))
    run = await replayed(body, events=EVENTS)
    for suspend in (False, True):
        again = await replayed(body, events=EVENTS, cut=lambda commit: commit % 3 == 0, suspend=suspend)
        await assert_replays(body, again)
    await assert_replays(body, run)
    assert looked


@pytest.mark.parametrize("body", CORPUS, ids=lambda body: body.name)
async def test_where_the_queue_is_hidden_replays_come_out_the_same(body: Any, hidden: None) -> None:
    """Cut at each position of the log, with nothing to go by but turns."""
    whole = await replayed(body, events=EVENTS)
    for position in range(1, len(whole.keys) + 1, 2):
        again = await replayed(body, events=EVENTS, cut=lambda commit, at=position: commit == at)
        await assert_replays(body, again)


async def test_a_body_that_has_done_something_plain_rests_only_after_that(queue: None) -> None:
    """However many turns a plain task takes, what it sets going in the end is waited for: it calls its step before the
    other branch's time has come."""

    @durable("plain")
    async def body() -> None:
        async def plain() -> None:
            for _ in range(RESTING_TURNS * 3):
                await asyncio.sleep(0)
            done = asyncio.get_running_loop().create_future()
            done.set_result(None)
            # Between this future and the task there are callbacks alone, for a turn each.
            await asyncio.gather(asyncio.gather(asyncio.shield(done)))
            await work("plain")

        await asyncio.gather(plain(), zart.sleep("1h"))

    run = await replayed(body, suspend=True)
    assert [key.rpartition("/")[2] for key in run.keys] == ["work", "sleep"]
    assert run.activations == 2


async def test_what_a_queue_of_callbacks_sets_going_is_waited_for(queue: None) -> None:
    """A chain of callbacks of the user's own that no task shows."""

    @durable("chain")
    async def body() -> None:
        async def chained() -> None:
            loop, opened = asyncio.get_running_loop(), asyncio.Event()

            def hop(left: int) -> None:
                if left:
                    loop.call_soon(hop, left - 1)
                else:
                    opened.set()

            hop(RESTING_TURNS - 1)
            await opened.wait()
            await work("chained")

        await asyncio.gather(chained(), work("other"))

    run = await replayed(body)
    await assert_replays(body, run)
    assert [key.rpartition("/")[2] for key in run.keys] == ["work", "work"]


async def test_who_was_parked_and_is_woken_may_be_held_up_by_something_plain(queue: None) -> None:
    """A branch that had slept makes a plain request: the body is not parked before that has its answer."""

    @durable("woken")
    async def body() -> None:
        async def plain() -> None:
            await zart.sleep("1h")
            answer = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_later(0.05, answer.set_result, None)
            await answer
            await work("plain")

        await asyncio.gather(plain(), zart.sleep("2h"))

    run = await replayed(body)
    assert [key.rpartition("/")[2] for key in run.keys] == ["sleep", "work", "sleep"]


async def test_a_task_of_a_library_joins_a_group_whose_body_was_parked(queue: None) -> None:
    """What was parked in a task group is looked at again: a task that nobody knows may have come to the group."""

    @durable("joined")
    async def body() -> list[str]:
        out: list[str] = []

        async def plain(group: asyncio.TaskGroup) -> None:
            await zart.sleep("1h")
            # As a library does it: a task of the group that is none of the body's.
            waiter = asyncio.get_running_loop().create_future()
            task = asyncio.Task(foreign(waiter))
            group._tasks.add(task)  # type: ignore[attr-defined]
            task.add_done_callback(group._on_task_done)  # type: ignore[attr-defined]
            asyncio.get_running_loop().call_later(0.05, waiter.set_result, None)

        async def foreign(waiter: "asyncio.Future[None]") -> None:
            await waiter
            out.append("foreign")

        async with asyncio.TaskGroup() as group:
            group.create_task(plain(group))
        return out

    class Counting(CuttingHost):
        parked = 0

        def suspends(self, activation: Any, due: Any, /) -> bool:
            self.parked += 1
            return super().suspends(activation, due)

    host = Counting(cut=lambda _commit: False, suspend=False)
    run = await replayed(body, host=host)
    assert run.result == ["foreign"]
    assert host.parked == 1


@pytest.mark.parametrize("run", LOOPS.values(), ids=LOOPS)
def test_the_queue_of_the_loop_is_found(run: Callable[[Any], None]) -> None:
    """It holds what is about to run and nothing else; what was put there to find it runs no more."""

    async def look() -> None:
        loop = asyncio.get_running_loop()
        queue = rest._queue_of(loop)
        await asyncio.sleep(0)
        assert queue is not None
        assert len(queue) == 0
        handle = loop.call_soon(lambda: None)
        assert list(queue) == [handle]

    run(look())


def test_a_queue_that_cannot_be_found_is_none() -> None:
    class Strange(asyncio.SelectorEventLoop):
        _ready: Any

        def call_soon(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:
            return super().call_soon(callback, *args, context=context)

    loop = Strange()
    try:
        assert rest._queue_of(loop) is not None
        loop._ready, kept = [], loop._ready
        loop.call_soon = lambda *_args, **_options: asyncio.Handle(print, (), loop)  # type: ignore[method-assign]
        assert rest._queue_of(loop) is None
        loop._ready = kept
        kept.clear()
    finally:
        loop.close()
