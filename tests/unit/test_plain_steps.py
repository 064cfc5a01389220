"""The straight path of a plain step: it writes what the long way writes, and leaves nothing behind."""

import asyncio
import gc
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

import zart
from tests.support.replaying import CuttingHost, Replayed, replayed
from tests.unit.test_replay import CORPUS, EVENTS, RACES, effects, in_a_row, limits, work
from zart import durable, step
from zart._engine import plain_steps, points
from zart._engine.activation import Activation
from zart._engine.branch import Branch
from zart._engine.step_calls import StepRun
from zart.calls import StepSpec
from zart.durable import Durable


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"], scope="module", autouse=True)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture(autouse=True)
def _no_effects() -> None:
    effects.clear()


@step("refused")
async def refused() -> object:
    effects.append("refused")
    return object()


@step("told", retry="fixed(1, 1s)")
async def told() -> int:
    """Tells its progress, fails, and finds what it has told."""
    before = zart.last_progress(int) or 0
    zart.progress(before + 1)
    if not before:
        raise LookupError("the first time")
    return before


@step("recognised")
async def recognised() -> str:
    known = zart.step_context()
    return f"{known.step_name} {known.step_attempt} {known.idempotency_key}"


@durable("out-of-the-ordinary")
async def out_of_the_ordinary() -> list[Any]:
    """Failures that are caught, and everything that a step's code may ask for."""
    out: list[Any] = [await recognised(), await told()]
    for call in (refused, refused):
        try:
            await call()
        except zart.SerializationError as error:
            out.append(str(error))
    return out


@durable("in-a-saga")
async def in_a_saga() -> str:
    async with zart.saga() as saga:
        saga.add(work.named("undo"), "undo")
        first = await work("do")
    return first + await work("after")


BODIES = [
    # Races are decided by whoever is faster, and limits are set by the loop's own clock: no two runs are the same.
    *(body for body in CORPUS if body not in {*RACES, limits}),
    *(out_of_the_ordinary, in_a_saga),
]


async def heard(
    body: Durable[..., Any], monkeypatch: pytest.MonkeyPatch, *, plain: bool, **how: Any
) -> tuple[Replayed, list[str], list[str]]:
    """What came of a body, the points that it came through, and what its steps did; `plain`: by the straight path."""
    points_reached: list[str] = []
    effects.clear()
    with monkeypatch.context() as patch:
        patch.setattr(points, "listener", points_reached.append)
        patch.setattr("random.random", lambda: 0.5)  # how long a retry waits
        if not plain:
            patch.setattr(StepSpec, "plain", property(lambda _: False))
        return await replayed(body, events=EVENTS, **how), points_reached, list(effects)


def described(run: Replayed) -> tuple[Any, ...]:
    """All of it but tracebacks, which show the engine's own lines."""
    entries = [
        msgspec.structs.replace(entry, result=bare(entry.result), failure=bare(entry.failure))
        for entry in run.journal.values()
    ]
    return entries, bare(repr(run.ending)), run.notes, run.activations, run.attempt, run.floor


def bare(text: str | None) -> str | None:
    return text and re.sub(r'"traceback":".*?(?<!\\)"', "", text)


CUTS: dict[str, tuple[Callable[[int], bool], bool]] = {
    "whole": (lambda _: False, False),
    "suspended": (lambda _: False, True),
    "cut": (lambda commit: commit % 2 == 0, False),
    "cut-and-suspended": (lambda commit: commit % 3 == 0, True),
}


@pytest.mark.parametrize(("cut", "suspend"), CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.name)
async def test_it_writes_what_the_long_way_writes(
    body: Any, cut: Callable[[int], bool], suspend: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same journal, the same effects, the same ending, through the same points in the same order, wherever the
    execution is cut off or suspended."""
    straight, *of_straight = await heard(body, monkeypatch, plain=True, cut=cut, suspend=suspend)
    long, *of_long = await heard(body, monkeypatch, plain=False, cut=cut, suspend=suspend)
    assert of_straight == of_long
    assert described(straight) == described(long)


async def test_only_what_is_out_of_the_ordinary_leaves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that returns has no run of its own, and neither has one that is replayed."""
    runs: list[str] = []
    begin = StepRun.__init__

    def noting(self: StepRun, steps: Any, branch: Any, key: Any, *rest: Any, **more: Any) -> None:
        runs.append(key.name)
        begin(self, steps, branch, key, *rest, **more)

    monkeypatch.setattr(StepRun, "__init__", noting)
    whole = await replayed(in_a_row)
    await replayed(in_a_row, journal=whole.journal)
    assert runs == []
    await replayed(out_of_the_ordinary)
    assert runs == ["told", "refused", "refused"]


@durable("forty-at-once")
async def forty_at_once() -> int:
    return len(await asyncio.gather(*(work(str(number), number % 5) for number in range(40))))


async def test_it_keeps_to_the_room_for_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """However they take turns, no more steps run at a time than there is room for, and all of them run."""
    running = most = 0
    attempt = plain_steps.attempt

    async def counted(*what: Any) -> Any:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            return await attempt(*what)
        finally:
            running -= 1

    monkeypatch.setattr(plain_steps, "attempt", counted)
    monkeypatch.setattr("zart._engine.step_calls.attempt", counted)
    monkeypatch.setattr(CuttingHost, "max_inflight_steps", 3, raising=False)
    run = await replayed(forty_at_once)
    assert run.result == 40
    assert most == 3


@durable("waiting")
async def waiting() -> list[str]:
    out = [await work("before")]
    await zart.sleep("1h")
    out.append(await work("after"))
    return out


@pytest.mark.parametrize("body", [in_a_row, waiting, forty_at_once], ids=lambda body: body.name)
async def test_what_has_ended_is_nothing_for_the_collector(body: Any) -> None:
    """An activation that has ended holds none of its parts and nothing of its body; none of that is in a cycle."""
    parts = tuple({type(part) for part in await _parts_of(body)} | {Branch})
    gc.collect()
    gc.disable()
    try:
        before = Counter(type(each) for each in gc.get_objects() if isinstance(each, parts))
        await replayed(body)
        assert Counter(type(each) for each in gc.get_objects() if isinstance(each, parts)) == before
    finally:
        gc.enable()


async def _parts_of(body: Any) -> list[Any]:
    """The parts that an activation of this body makes."""
    found: list[Any] = []
    dissolve = Activation._dissolve

    def noting(self: Activation) -> None:
        found.extend(self.made.values())
        dissolve(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Activation, "_dissolve", noting)
        await replayed(body)
    assert found
    return found
