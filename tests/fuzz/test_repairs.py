"""Repairs, given anything: each is made, or refused with an error of Zart's that says why; nothing else is touched."""

import itertools
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from hypothesis import example, given

import zart
from tests.fuzz.examples import examples
from tests.fuzz.stage import Stage
from tests.fuzz.strategies import texts, values
from tests.support.databases import Databases
from zart import durable, step
from zart.errors import ZartError

pytestmark = pytest.mark.filterwarnings(
    "ignore:Do not use the `random` module inside strategies"  # the worker beside the tests does
)
_numbers = itertools.count(1)


@step("{name}")
async def named(name: str) -> str:
    return name


@durable("named-steps")
async def named_steps(names: list[str]) -> int:
    for name in names:
        await named(name)
    return len(names)


@pytest.fixture(scope="module")
def ward(databases: Databases, template: str) -> Iterator[Stage]:
    with databases.database(template) as name, Stage(databases.address(name), named_steps) as running:
        yield running


async def ended(ward: Stage, names: list[str]) -> str:
    id = f"named-{next(_numbers)}"
    await ward.client.start(named_steps, names, id=id)
    assert await ward.client.wait_completion(id, timeout="30s") == len(names)
    return id


async def tried(repair: Awaitable[Any]) -> tuple[Any, ZartError | None]:
    """What it gives, or how it is refused."""
    try:
        return await repair, None
    except ZartError as error:
        return None, error


@examples(30)
@given(texts, texts)
@example("'; DROP TABLE canary; --", "%s%(id)s{}")
def test_any_key_and_any_reason_is_taken_or_refused(ward: Stage, key: str, reason: str) -> None:
    """Of a completed execution there is one step to be done again, `step`, and no other key is taken for it."""

    async def repair() -> None:
        id = await ended(ward, ["step"])
        runs = 1
        for steps in ([key], ["step", key], ["step"]):
            begun, refusal = await tried(ward.client.rerun(id, steps=steps, reason=reason))
            if refusal is not None:
                assert steps != ["step"] or "reason" in str(refusal)
            else:
                assert set(steps) == {"step"}
                runs += 1
                assert begun.stale == []
                assert await ward.client.wait_completion(id, timeout="30s") == 1
        with pytest.raises(ZartError):
            await ward.client.retry_step(id, key, reason=reason)
        told = await ward.client.runs(id)
        assert len(told) == runs
        _, refusal = await tried(ward.client.delete(id, reason=reason))
        if refusal is not None:
            assert "reason" in str(refusal)
        else:
            with pytest.raises(zart.ExecutionNotFound):
                await ward.client.status(id)

    ward.run(repair)
    ward.check_objects()


@examples(40)
@given(texts)
def test_any_id_is_known_or_refused(ward: Stage, id: str) -> None:
    """Nobody has started these."""
    client = ward.client
    asked: list[Callable[[], Awaitable[Any]]] = [
        lambda: client.runs(id),
        lambda: client.retry_step(id, "step"),
        lambda: client.restart(id),
        lambda: client.rerun(id, steps=["step"]),
        lambda: client.delete(id),
    ]

    async def ask(repair: Callable[[], Awaitable[Any]]) -> None:
        with pytest.raises(ZartError):
            await repair()

    for repair in asked:
        ward.run(ask, repair)
    ward.check_objects()


@examples(40)
@given(values)
def test_any_input_of_another_run_is_taken_or_refused(ward: Stage, data: Any) -> None:
    """By the same rules as that of a start; a run that cannot read its input fails, and can be replaced in its turn."""

    async def repair() -> None:
        id = await ended(ward, ["step"])
        _, refusal = await tried(ward.client.restart(id, data))
        if refusal is not None:
            assert len(await ward.client.runs(id)) == 1
        else:
            _, failure = await tried(ward.client.wait_completion(id, timeout="30s"))
            assert failure is None or isinstance(failure, zart.ExecutionFailed)
            await ward.client.restart(id, ["step", "step"])
            assert await ward.client.wait_completion(id, timeout="30s") == 2

    ward.run(repair)
    ward.check_objects()
