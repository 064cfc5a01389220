"""What a body calls: in a durable body, in a step, and outside of both."""

import asyncio
import datetime as dt
import inspect
import random
import uuid

import msgspec
import pytest

import zart
from tests.support.places import ID, LONG_AGO, NotingPlace, placed
from zart import UsageError, step
from zart.codec import ANY
from zart.in_step import InStep


class Decision(msgspec.Struct):
    approved: bool


Approved = zart.Event("approved", Decision)


@step("charge")
async def charge(amount: int) -> int:
    return amount


@zart.durable("sell")
async def sell() -> None: ...


ONLY_IN_A_BODY = {
    "zart.sleep": lambda: zart.sleep("1s"),
    "zart.sleep_until": lambda: zart.sleep_until(LONG_AGO),
    "zart.wait_for_event": lambda: zart.wait_for_event(Approved),
    "zart.timeout": lambda: zart.timeout("1s"),
    "zart.capture": lambda: zart.capture("roll", lambda: 4),
    "zart.saga": zart.saga,
    "zart.data": lambda: zart.data(int),
    "zart.set_data": lambda: zart.set_data(7),
    "zart.patched": lambda: zart.patched("fraud-check"),
    "zart.continue_as_new": lambda: zart.continue_as_new(7),
}


# ---------------------------------------------------------------- in a durable body


async def test_a_body_sleeps_through_its_place():
    """Durations in all their forms become timedeltas; the place is asked at the call."""
    noting = NotingPlace()
    with placed(noting):
        later = zart.sleep("1h30m")
        await zart.sleep(0.5)
        await zart.sleep_until(LONG_AGO)
    assert noting.asked == [
        ("sleep", dt.timedelta(hours=1, minutes=30)),
        ("sleep", dt.timedelta(milliseconds=500)),
        ("sleep_until", LONG_AGO),
    ]
    assert await later is None


async def test_a_body_waits_for_an_event_by_name_or_object():
    """The type comes from the event or beside the name; without one any payload goes."""
    noting = NotingPlace()
    with placed(noting):
        assert await zart.wait_for_event(Approved, timeout="48h") == "payload of approved"
        await zart.wait_for_event("approved")
        await zart.wait_for_event("approved", Decision)
        await zart.wait_for_event(name="names", type=list[str], timeout=0)
        await zart.wait_for_event(zart.Event("tags", set[int]))
    assert noting.asked == [
        ("wait_for_event", "approved", Decision, dt.timedelta(hours=48)),
        ("wait_for_event", "approved", ANY, None),
        ("wait_for_event", "approved", Decision, None),
        ("wait_for_event", "names", list[str], dt.timedelta(0)),
        ("wait_for_event", "tags", set[int], None),
    ]


async def test_a_body_captures_by_annotation_or_type():
    """What the function is annotated to return, unless a type is given."""

    def roll() -> int:
        return 4

    async def later() -> float:
        return 0.5

    noting = NotingPlace()
    with placed(noting):
        assert await zart.capture("roll", roll) == 4
        (await (await zart.capture("later", later)))
        await zart.capture("any", lambda: 4)
        await zart.capture("typed", lambda: 4, type=int | None)
        with pytest.raises(UsageError, match=r"zart.capture\('set'\).*sorted list"):
            zart.capture("set", lambda: {1}, type=set[int])
    assert noting.asked == [
        ("capture", "roll", int),
        ("capture", "later", float),
        ("capture", "any", ANY),
        ("capture", "typed", int | None),
    ]


async def test_a_body_asks_its_place_for_the_rest():
    """Time limits, data, time, randomness and what the execution is."""
    noting = NotingPlace()
    with placed(noting):
        async with zart.timeout("2h"):
            pass
        assert zart.data(int) is None
        assert zart.data(list[int], default=[7]) == [7]
        zart.set_data({"a": 1})
        assert zart.now() == LONG_AGO
        assert zart.uuid4() == ID
        assert zart.random().random() == random.Random(7).random()
        assert not zart.suspending()
        noting.is_suspending = True
        assert zart.suspending()
        assert zart.execution_id() == zart.context().execution_id == "order-7"
        assert zart.step_context().step_name == "charge"
        assert zart.resource(dict) == {}
    assert noting.asked == [
        ("timeout", dt.timedelta(hours=2)),
        ("data", int),
        ("data", list[int]),
        ("set_data", {"a": 1}),
    ]


# ---------------------------------------------------------------- in a step


@pytest.fixture
def in_step() -> InStep:
    body = NotingPlace()
    return InStep(body, body.step_context)


@pytest.mark.parametrize("called", ONLY_IN_A_BODY)
def test_what_needs_a_body_is_refused_in_a_step(called, in_step):
    """The text names the step, the execution and what to do instead."""
    with (
        placed(in_step),
        pytest.raises(
            UsageError, match=f"{called} is called in the step 'charge' of execution 'order-7'.*: "
        ),
    ):
        ONLY_IN_A_BODY[called]()


def test_a_step_or_durable_function_is_refused_in_a_step(in_step):
    """Their functions are at hand as `.fn`."""
    with placed(in_step):
        with pytest.raises(UsageError, match=r"'charge' is called in the step 'charge'.*charge.fn\("):
            charge(7)
        with pytest.raises(UsageError, match=r"'sell' is called in the step 'charge'.*sell.fn\("):
            sell()


async def test_a_step_sees_the_machine_and_its_execution(in_step):
    """Time and randomness are real; ids, contexts and resources are the execution's."""
    with placed(in_step):
        before = dt.datetime.now(dt.UTC)
        assert before <= zart.now() <= dt.datetime.now(dt.UTC)
        assert zart.uuid4() != zart.uuid4()
        assert zart.random().random() != zart.random().random()
        assert not zart.suspending()
        assert zart.execution_id() == "order-7"
        assert zart.context().run_id == str(ID)
        assert zart.step_context().step_attempt == 2
        assert zart.resource(list) == []
        assert await charge.fn(7) == 7


# ---------------------------------------------------------------- outside


@pytest.mark.parametrize("called", ONLY_IN_A_BODY)
def test_what_needs_a_body_is_refused_outside(called):
    """The text names what was called, where it belongs and how to try it without a database."""
    with pytest.raises(UsageError, match=f"{called} is called outside of any execution.*zart.testing.run"):
        ONLY_IN_A_BODY[called]()


@pytest.mark.parametrize("called", [zart.execution_id, zart.context, lambda: zart.resource(int)])
def test_what_belongs_to_an_execution_is_refused_outside(called):
    """There is no execution to tell of."""
    with pytest.raises(UsageError, match=r"zart.\w+ is called outside of any execution; call it in"):
        called()


def test_what_has_a_plain_meaning_has_it_outside():
    """So that bodies and steps can be tried and reused plainly."""
    assert zart.now().utcoffset() == dt.timedelta(0)
    assert isinstance(zart.uuid4(), uuid.UUID)
    assert 0 <= zart.random().random() < 1
    assert not zart.suspending()
    stand_in = zart.step_context()
    assert stand_in.step_attempt == 1
    assert stand_in.idempotency_key != zart.step_context().idempotency_key


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: zart.sleep("soon"), "duration of zart.sleep is 'soon'"),
        (lambda: zart.sleep(-1), "negative"),
        (lambda: zart.sleep_until("tomorrow"), "datetime with a time zone"),
        (lambda: zart.sleep_until(dt.datetime(2030, 1, 1)), "no time zone.*tzinfo=UTC"),  # noqa: DTZ001
        (lambda: zart.wait_for_event(""), "name of an event is empty"),
        (lambda: zart.wait_for_event(7), "name of an event is 7"),
        (lambda: zart.wait_for_event("a", timeout="x"), "timeout of the event 'a' is 'x'"),
        (lambda: zart.wait_for_event(Approved, Decision), "leave out the second"),
        (lambda: zart.timeout(None), "duration of zart.timeout"),
        (lambda: zart.capture("", lambda: 1), "name of a capture is empty"),
        (lambda: zart.capture("a", 7), "function without parameters, not 7"),
        (lambda: zart.Event("a\nb"), "control character"),
        (lambda: zart.Event("a", object()), "the event 'a'"),
    ],
)
def test_wrong_arguments_are_refused_wherever_they_are_given(call, told):
    """Before the place is asked, so that outside and inside the same mistake has the same text."""
    with pytest.raises(UsageError, match=told):
        call()
    with placed(NotingPlace()), pytest.raises(UsageError, match=told):
        call()


@pytest.mark.parametrize("name", ["sleep", "sleep_until", "wait_for_event", "capture"])
def test_waits_pass_for_coroutine_functions(name):
    """With the parameters and the documentation that they are declared with."""
    wait = getattr(zart, name)
    assert inspect.iscoroutinefunction(wait)
    assert asyncio.iscoroutinefunction(wait)
    assert wait.__name__ == name
    assert "Only in a durable body" in " ".join(inspect.getdoc(wait).split())
    assert repr(wait) == f"<function zart.{name}>"


async def test_a_saga_passes_on_what_is_registered():
    """A saga registers calls as they would be made, and tells its place when and how its block ends."""
    noting = NotingPlace()
    error = LookupError("no courier")
    with placed(noting):
        with pytest.raises(LookupError):
            async with zart.saga() as saga:
                saga.add(charge, amount=7)
                saga.add(charge.named("refund"), 8)
                await saga.compensate()
                raise error
        async with zart.saga():
            pass
    assert noting.asked == [
        ("saga",),
        ("enter",),
        ("add", "charge", (), {"amount": 7}),
        ("add", "refund", (8,), {}),
        ("compensate",),
        ("leave", error),
        ("saga",),
        ("enter",),
        ("leave", None),
    ]


def test_a_saga_takes_steps_that_can_be_called_so():
    """What could not be run later on is refused at once."""
    with placed(NotingPlace()):
        saga = zart.saga()
        with pytest.raises(UsageError, match=r"takes the step that undoes, and its arguments, not <function"):
            saga.add(charge.fn, 7)
        with pytest.raises(
            UsageError, match=r"charge.*cannot be called so later on: too many positional arguments"
        ):
            saga.add(charge, 7, 8)
