"""Which of zart's names may be called where, and steps of every kind, on a real worker."""

import functools
import threading
import uuid
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

import zart
from tests.support.running import working
from zart import durable, step

NAMED = zart.Event("named", str)


class Shop:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    @step("triple-{number}")
    async def triple(self, number: int) -> int:
        return self.factor * number

    @step("label")
    def label(self, number: int) -> str:
        return f"{number} on {threading.current_thread().name}"

    async def create(self, email: str) -> str:
        return f"created {email}"

    def find(self, email: str) -> str:
        return f"found {email}"


@step("identity")
async def identity(value: int) -> int:
    return value


@durable("steps-of-all-kinds")
async def steps_of_all_kinds(number: int) -> dict[str, Any]:
    shop = Shop(3)

    async def closure(value: int) -> int:
        return value + number

    return {
        "method": await shop.triple(number),
        "threaded": (await shop.label(number)).startswith(f"{number} on "),
        "sdk": await step("create")(shop.create)("ann"),
        "plain sdk": await step("find", retry="fixed(1, 1s)")(shop.find)("ann"),
        "closure": await step("closure")(closure)(1),
        "partial": await step("partial")(functools.partial(closure, 2))(),
        "lambda": await step("lambda")(lambda: closure(3))(),
        "renamed": await identity.named(f"identity of {number}")(number),
        "with options": await identity.with_options(timeout="5s", retry=None)(number),
        "twice": [await identity(1), await identity(2)],
    }


@pytest.mark.parametrize("always_suspend", [False, True], ids=["live", "replayed after each record"])
async def test_steps_of_all_kinds_run_and_replay(dsn, always_suspend):
    """Methods, threads, SDK methods, closures, partials, lambdas, renamed and changed ones."""
    async with working(dsn, steps_of_all_kinds, always_suspend=always_suspend) as client:
        result = await client.start_and_wait(steps_of_all_kinds, 7, id="all", timeout="30s")
        history = await client.history("all")
    assert result == {
        "method": 21,
        "threaded": True,
        "sdk": "created ann",
        "plain sdk": "found ann",
        "closure": 8,
        "partial": 9,
        "lambda": 10,
        "renamed": 7,
        "with options": 7,
        "twice": [1, 2],
    }
    assert [record.key for record in history.records] == [
        "triple-7", "label", "create", "find", "closure", "partial", "lambda", "identity of 7",
        "identity", "identity#2", "identity#3",
    ]  # fmt: skip


REFUSED_IN_A_STEP: dict[str, Callable[[], Any]] = {
    "step": lambda: identity(1),
    "durable": lambda: steps_of_all_kinds(1),
    "sleep": lambda: zart.sleep("1s"),
    "wait_for_event": lambda: zart.wait_for_event(NAMED),
    "timeout": lambda: zart.timeout("1s"),
    "capture": lambda: zart.capture("roll", lambda: 4),
    "saga": zart.saga,
    "data": lambda: zart.data(int),
    "set_data": lambda: zart.set_data(1),
    "patched": lambda: zart.patched("fraud-check"),
    "continue_as_new": lambda: zart.continue_as_new(1),
    "start": lambda: zart.start(steps_of_all_kinds, 1),
    "offer_event": lambda: zart.offer_event("all", NAMED, "x"),
}
REFUSED_IN_A_BODY: dict[str, Callable[[], Any]] = {
    "step_context": zart.step_context,
    "start": lambda: zart.start(steps_of_all_kinds, 1),
    "offer_event": lambda: zart.offer_event("all", NAMED, "x"),
}


async def refusal(call: Callable[[], Any]) -> str:
    try:
        result = call()
        if isinstance(result, Awaitable):
            await result
    except zart.UsageError as error:
        return str(error)
    return "not refused"


@step("look-around")
async def look_around() -> list[str]:
    answers = [zart.execution_id(), zart.context().name, zart.step_context().step_name]
    answers += [str(zart.suspending()), zart.resource(Shop).find("ann")]
    return answers + [await refusal(call) for call in REFUSED_IN_A_STEP.values()]


@step("look-around-in-a-thread")
def look_around_in_a_thread() -> list[str]:
    return [zart.execution_id(), zart.step_context().step_name, str(zart.now() == zart.now())]


@durable("places")
async def places() -> dict[str, list[str]]:
    assert zart.now() == zart.now()
    drawn = [str(zart.uuid4()), str(zart.random().random())]
    return {
        "step": await look_around(),
        "thread": await look_around_in_a_thread(),
        "body": [await refusal(call) for call in REFUSED_IN_A_BODY.values()],
        "own": [
            zart.execution_id(),
            zart.context().name,
            str(zart.suspending()),
            zart.resource(Shop).find("bob"),
        ],
        "drawn": drawn,
    }


@asynccontextmanager
async def lifespan():
    yield Shop(2), "a text"


async def test_a_name_works_where_it_makes_sense_and_is_refused_elsewhere_by_name(dsn):
    """In a body, in a step and in a step's thread; each refusal says what was called."""
    async with working(dsn, places, lifespan=lifespan, always_suspend=True) as client:
        found = await client.start_and_wait(places, id="here", timeout="30s")
    in_step, thread = found["step"], found["thread"]
    assert in_step[:5] == ["here", "places", "look-around", "False", "found ann"]
    for name, told in zip(REFUSED_IN_A_STEP, in_step[5:], strict=True):
        instead = (
            "connection="
            if name in {"start", "offer_event"}
            else "the step 'look-around' of execution 'here'"
        )
        assert instead in told, name
    assert thread == ["here", "look-around-in-a-thread", "False"]
    in_body = dict(zip(REFUSED_IN_A_BODY, found["body"], strict=True))
    assert "zart.context()" in in_body["step_context"]
    assert "step" in in_body["start"]
    assert "step" in in_body["offer_event"]
    assert found["own"] == ["here", "places", "False", "found bob"]
    assert uuid.UUID(found["drawn"][0])


@durable("uses-a-client")
async def uses_a_client(dsn: str) -> str:
    async with zart.Client(dsn) as client:
        return await refusal(lambda: client.status("here"))


async def test_a_client_in_a_body_is_refused(dsn):
    """Its answers would not be replayed: it belongs into a step."""
    async with working(dsn, uses_a_client) as client:
        told = await client.start_and_wait(uses_a_client, dsn, timeout="30s")
    assert "put it into a step" in told
