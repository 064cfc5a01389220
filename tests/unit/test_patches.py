"""`zart.patched`: old runs go on as they began, new ones take the change, and the answer stays what it was."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

import zart
from tests.support.replaying import CuttingHost, Replayed, replayed
from zart import durable, step
from zart._engine.entries import Blocked, Completed, Failed

effects: list[str] = []


@pytest.fixture(autouse=True)
def _no_effects() -> None:
    effects.clear()


@step("{label}")
async def work(label: str) -> str:
    effects.append(label)
    return label


Body = zart.Durable[[], Any]


def deployed(**how: Any) -> Callable[[Callable[[], Any]], Body]:
    return durable("deployed", **how)


async def deploy(old: Body, new: Body, *, after: int) -> Replayed:
    """`old` runs until so many entries are recorded, and crashes; then `new` is there."""
    return await replayed(
        old, cut=lambda commit: commit == after, code=lambda number: old if number == 1 else new
    )


@deployed()
async def old() -> list[str]:
    return [await work("a"), await work("b"), await work("c")]


@deployed()
async def inserted() -> list[str]:
    out = [await work("a")]
    if zart.patched("check"):
        out.append(await work("check"))
    return [*out, await work("b"), await work("c")]


async def test_a_run_that_comes_there_for_the_first_time_takes_the_change() -> None:
    whole = await replayed(inserted)
    assert whole.result == ["a", "check", "b", "c"]
    assert whole.keys == ["a", "patched/check", "check", "b", "c"]


@pytest.mark.parametrize("after", [2, 3])
async def test_a_run_that_was_recorded_further_goes_on_as_it_began(after: int) -> None:
    again = await deploy(old, inserted, after=after)
    assert again.result == ["a", "b", "c"]
    assert effects == ["a", "b", "c"]
    assert again.notes == []


async def test_a_run_that_was_not_so_far_takes_the_change() -> None:
    """Its record ends right before the place."""
    again = await deploy(old, inserted, after=1)
    assert again.result == ["a", "check", "b", "c"]


async def test_what_is_under_way_was_asked_for_by_the_code_before() -> None:
    """A run that sleeps behind the place is not there for the first time, although the sleep has no result."""

    @deployed()
    async def sleeps() -> str:
        await work("a")
        await zart.sleep("2d")
        return await work("b")

    @deployed()
    async def reminds() -> str:
        await work("a")
        if zart.patched("remind"):
            await work("remind")
        await zart.sleep("2d")
        return await work("b")

    again = await replayed(sleeps, suspend=True, code=lambda number: sleeps if number == 1 else reminds)
    assert again.result == "b"
    assert effects == ["a", "b"]


async def test_the_answer_outlives_every_crash() -> None:
    """Wherever a run is cut off and replayed, the answer is the one that was given first."""
    whole = await replayed(inserted)
    for position in range(1, len(whole.keys) + 1):
        effects.clear()
        again = await replayed(inserted, cut=lambda commit, at=position: commit == at)
        assert again.result == whole.result, position
        assert again.keys == whole.keys, position
        assert sorted(effects) == ["a", "b", "c", "check"], position


async def test_a_loop_goes_on_as_it_began() -> None:
    """One answer for the whole run: the rounds to come are like those that are recorded."""

    def rounds(new: bool) -> Body:
        @deployed()
        async def body() -> list[str]:
            out: list[str] = []
            for number in range(4):
                changed = new and zart.patched("louder")
                out.append(await work(f"loud-{number}" if changed else f"quiet-{number}"))
            return out

        return body

    again = await deploy(rounds(new=False), rounds(new=True), after=2)
    assert again.result == [f"quiet-{number}" for number in range(4)]
    effects.clear()
    assert (await replayed(rounds(new=True))).result == [f"loud-{number}" for number in range(4)]


def _branches(*, new: bool) -> Body:
    @deployed()
    async def body() -> list[str]:
        out: list[str] = []

        async def branch(label: str) -> None:
            await work(f"{label}1")
            changed = new and zart.patched("second")
            out.append(await work(f"{label}-new" if changed else f"{label}2"))

        await asyncio.gather(branch("x"), branch("y"), branch("z"))
        return sorted(out)

    return body


async def test_branches_hear_the_same() -> None:
    """However far each branch of an old run was recorded: all of them take the change, or none."""
    before, after = _branches(new=False), _branches(new=True)
    for position in range(1, 7):
        effects.clear()
        again = await deploy(before, after, after=position)
        assert isinstance(again.ending, Completed), (position, again.ending)
        assert again.result in (["x-new", "y-new", "z-new"], ["x2", "y2", "z2"]), position
        assert len(effects) == 6, position
    whole = await replayed(after)
    for position in range(1, len(whole.keys) + 1):
        again = await replayed(after, cut=lambda commit, at=position: commit == at)
        assert again.result == ["x-new", "y-new", "z-new"], position


async def test_it_counts_for_nothing_in_the_keys_and_arguments_of_calls() -> None:
    """The same step on both sides is the same call; the old side's arguments are compared with the old record."""

    @deployed()
    async def before() -> str:
        return await work("a") + await work.named("greet")("hello")

    @deployed()
    async def politer() -> str:
        first = await work("a")
        return first + await work.named("greet")("good morning" if zart.patched("polite") else "hello")

    assert (await deploy(before, politer, after=2)).result == "ahello"
    assert (await replayed(politer)).result == "agood morning"


async def test_a_retry_of_the_body_keeps_the_answer() -> None:
    """The record that the answer came from may be what is tried afresh; another place relies on the answer."""

    @step("fails-{label}")
    async def fails(label: str) -> str:
        effects.append(label)
        if effects.count(label) < 2:
            raise LookupError(label)
        return label

    @deployed(max_retries="fixed(1, 1s)")
    async def before() -> list[str]:
        return [await work("a"), await fails("b")]

    @deployed(max_retries="fixed(1, 1s)")
    async def after() -> list[str]:
        return [await work("a"), await (work("new") if zart.patched("change") else fails("b"))]

    # The failure is recorded and not delivered: the new code hears of it, and its body is what is tried again.
    again = await deploy(before, after, after=2)
    assert again.result == ["a", "b"]
    assert effects == ["a", "b", "b"]
    assert again.attempt == 2
    stored = {str(key): entry.result for key, entry in again.journal.items()}
    assert stored["patched/change"] == "false"


async def test_on_failure_hears_what_the_body_heard() -> None:
    """It is a body of the same run; one that asks first there is answered by what is recorded of it."""

    async def undo(_data: None, _failure: zart.Failure) -> None:
        await work("undo-new" if zart.patched("change") else "undo-old")
        await work("report-new" if zart.patched("reporting") else "report-old")

    @step("fails")
    async def fails() -> None:
        raise LookupError("no")

    @deployed(on_failure=undo)
    async def before() -> None:
        await work("a")
        await fails()

    @deployed(on_failure=undo)
    async def after() -> None:
        if zart.patched("change"):
            await work("first")
        await work("a")
        await fails()

    again = await deploy(before, after, after=1)
    assert isinstance(again.ending, Failed)
    assert effects == ["a", "undo-old", "report-new"]
    for position in range(1, len(again.keys) + 1):
        effects.clear()
        cut = await replayed(after, cut=lambda commit, at=position: commit == at)
        assert isinstance(cut.ending, Failed)
        assert effects == ["first", "a", "undo-new", "report-new"], position


async def test_the_old_side_may_go_when_no_old_run_is_left() -> None:
    """Runs that took the change go on under code that no longer asks, without a warning."""

    @deployed()
    async def only_new() -> list[str]:
        return [await work("a"), await work("check"), await work("b"), await work("c")]

    again = await deploy(inserted, only_new, after=3)
    assert again.result == ["a", "check", "b", "c"]
    assert again.notes == []


async def test_the_old_side_went_too_early() -> None:
    """An old run that is still there is blocked like by any changed code, and nothing of it is run."""

    @deployed()
    async def only_new() -> list[str]:
        return [await work("a"), await work("check"), await work("b"), await work("c")]

    again = await deploy(old, only_new, after=2)
    assert isinstance(again.ending, Blocked)
    assert effects == ["a", "b"]


async def test_a_change_that_is_taken_back_blocks_those_that_took_it() -> None:
    """Under the code before the change, and under the change put in again under its old name in the other way."""
    again = await deploy(inserted, old, after=2)
    assert isinstance(again.ending, Blocked)
    assert "check" in again.failure["message"]
    assert effects == ["a", "check"]


async def test_a_blocked_answer_is_not_kept() -> None:
    """What a replay answers before it turns out to contradict the log is not recorded; the mended code asks anew."""

    @deployed()
    async def mistaken() -> list[str]:
        await work("a")
        zart.patched("check")
        await work("wrong")
        return []

    host = CuttingHost(cut=lambda commit: commit == 2, suspend=False)
    again = await replayed(old, host=host, code=lambda number: old if number == 1 else mistaken)
    assert isinstance(again.ending, Blocked)
    assert [str(key) for key in again.journal] == ["a", "b"]
    mended = await replayed(inserted, journal=again.journal)
    assert mended.result == ["a", "b", "c"]


async def test_an_answer_that_somebody_has_edited_blocks() -> None:
    whole = await replayed(inserted, cut=lambda commit: commit == 2)
    import msgspec

    journal = {
        key: msgspec.structs.replace(entry, result='"maybe"') if key.path == "patched/" else entry
        for key, entry in whole.journal.items()
    }
    again = await replayed(inserted, journal=journal)
    assert isinstance(again.ending, Blocked)
    assert "'check'" in again.failure["message"]
    assert "resume" in again.failure["message"]
