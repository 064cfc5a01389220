"""The decorator `@step`."""

import asyncio
import datetime as dt
import functools
import inspect
import threading
from collections.abc import Awaitable, Iterator

import msgspec
import pytest

import zart
from tests.support.places import NotingPlace, placed
from zart import Retry, UsageError, step
from zart.codec import ANY
from zart.outside import opened


class Order(msgspec.Struct):
    id: str


@step("charge-{order.id}", retry="fixed(3, 2s)", timeout="30s", timeout_scope="total", check_args="warn")
async def charge(order: Order, *, currency: str = "EUR") -> list[int]:
    """Take the money."""
    return [len(order.id), len(currency)]


@step("render")
def render(order: Order) -> str:
    return f"{order.id} in {threading.current_thread().name}"


class Shop:
    def __init__(self) -> None:
        self.shipped: list[str] = []

    @step("ship-{order.id}")
    async def ship(self, order: Order, express: bool = False) -> str:
        self.shipped.append(order.id)
        return order.id

    @staticmethod
    @step("static")
    async def static(number: int) -> int:
        return number

    @classmethod
    @step("of-class")
    async def of_class(cls, number: int) -> str:
        return f"{cls.__name__} {number}"

    async def create(self, email: str) -> str:
        return f"created {email}"

    def find(self, email: str) -> str:
        return f"found {email}"


async def refused(number: int) -> int:
    return number


# ---------------------------------------------------------------- calls


async def test_outside_of_a_durable_function_an_async_step_just_runs():
    """`await charge(order)` in a plain program gives what the function gives."""
    assert await charge(Order(id="o-1"), currency="USD") == [3, 3]


async def test_outside_of_a_durable_function_a_plain_step_runs_in_a_thread():
    """A call returns a coroutine also for a plain def, which never blocks the event loop."""
    result = await render(Order(id="o-1"))
    assert result.startswith("o-1 in ")
    assert threading.current_thread().name not in result


async def test_in_a_durable_body_the_place_is_asked_at_the_call():
    """The order of the calls is noted when they are made, not when they are awaited."""
    noting = NotingPlace()
    with placed(noting):
        second = render(Order(id="o-2"))
        first = charge(Order(id="o-1"), currency="USD")
    assert [call.name for call in noting.calls] == ["render", "charge-o-1"]
    assert noting.calls[1].args == (Order(id="o-1"),)
    assert noting.calls[1].kwargs == {"currency": "USD"}
    assert noting.calls[1].template == "charge-{order.id}"
    assert noting.calls[1].bound == 0
    assert await first == "result of charge-o-1"
    assert await second == "result of render"


async def test_the_step_as_data_has_what_the_decorator_was_given():
    """Names of policies and lengths of time are parsed once, annotations resolved once."""
    spec = charge.spec
    assert spec.fn is charge.fn
    assert not spec.threaded
    assert spec.retry == Retry.fixed(3, "2s")
    assert spec.timeout == dt.timedelta(seconds=30)
    assert spec.timeout_scope == "total"
    assert spec.check_args == "warn"
    assert spec.result.annotation == list[int]
    assert charge.spec is spec
    assert render.spec.threaded
    assert render.spec.retry == Retry.none()


async def test_a_step_of_an_instance_is_called_with_it_and_leaves_it_out_of_the_record():
    """`self.ship(order)` hands on the instance, marked as no part of the arguments."""
    shop, noting = Shop(), NotingPlace()
    assert await shop.ship(Order(id="o-1")) == "o-1"
    assert shop.shipped == ["o-1"]
    with placed(noting):
        await shop.ship(Order(id="o-2"), express=True)
        await shop.ship.named("again")(Order(id="o-3"))
    assert [(call.name, call.bound) for call in noting.calls] == [("ship-o-2", 1), ("again", 1)]
    assert noting.calls[0].args == (shop, Order(id="o-2"))
    assert noting.calls[0].kwargs == {"express": True}


async def test_steps_work_below_staticmethod_and_classmethod():
    """Both stand above @step."""
    assert await Shop.static(1) == 1
    assert await Shop().static(2) == 2
    assert await Shop.of_class(3) == "Shop 3"


async def test_any_callable_becomes_a_step_on_the_spot():
    """A method of an SDK, a closure, a partial and a lambda, asynchronous or not."""
    shop = Shop()
    factor = 3

    async def closure(number: int) -> int:
        return factor * number

    def wrapped(fn):
        @functools.wraps(fn)
        def wrapper(*args):
            return fn(*args)

        return wrapper

    assert await step("create")(shop.create)("ann") == "created ann"
    assert await step("find", retry="fixed(2, 1s)")(shop.find)("ann") == "found ann"
    assert await step("closure")(closure)(5) == 15
    assert await step("partial")(functools.partial(closure, 6))() == 18
    assert await step("lambda")(lambda: closure(7))() == 21
    decorated = step("decorated")(wrapped(closure))
    assert not decorated.spec.threaded
    assert decorated.spec.result.annotation is int
    assert await decorated(8) == 24
    assert await step("builtin")(max)(4, 9) == 9

    noting = NotingPlace()
    with placed(noting):
        await step("create-{email}")(shop.create)("ann")
    assert (noting.calls[0].name, noting.calls[0].args, noting.calls[0].bound) == ("create-ann", ("ann",), 0)


# ---------------------------------------------------------------- names and options at the call


async def test_a_step_can_be_renamed_at_the_call():
    """`named` takes the name as it is, braces and all; the first step keeps its own."""
    noting = NotingPlace()
    other = charge.named("charge-{again}")
    with placed(noting):
        await other(Order(id="o-1"))
        await charge.named("é" * 150)(Order(id="o-1"))
        await charge(Order(id="o-1"))
    first, long, last = (call.name for call in noting.calls)
    assert first == other.name == "charge-{again}"
    assert len(long.encode()) <= 200
    assert long.startswith("é" * 80)
    assert last == "charge-o-1"
    assert noting.calls[0].spec is noting.calls[2].spec


async def test_a_rendered_name_that_is_too_long_is_shortened_and_stays_distinct():
    """Names over 200 bytes keep their beginning and end in a hash."""
    noting = NotingPlace()
    with placed(noting):
        await charge(Order(id="x" * 300 + "1"))
        await charge(Order(id="x" * 300 + "2"))
    first, second = (call.name for call in noting.calls)
    assert first != second
    assert len(first) <= 200
    assert first[:160] == second[:160] == ("charge-" + "x" * 300)[:160]


@pytest.mark.parametrize("name", ["", "a\nb", "half \ud800"])
def test_a_step_is_not_renamed_to_what_is_no_name(name):
    """Empty names and control characters are refused at the call, too."""
    with pytest.raises(UsageError, match="charge"):
        charge.named(name)
    with pytest.raises(UsageError, match="takes the name"):
        charge.named(7)


async def test_options_can_be_changed_at_the_call():
    """What is not given stays; None takes a retry policy or a limit away."""
    noting = NotingPlace()
    with placed(noting):
        await charge.with_options(timeout="1m")(Order(id="o"))
        await charge.with_options(retry=None, timeout=None)(Order(id="o"))
        await charge.named("other").with_options(retry="none", timeout_scope="attempt")(Order(id="o"))
    minute, without, other = (call.spec for call in noting.calls)
    assert (minute.timeout, minute.retry, minute.timeout_scope) == (
        dt.timedelta(minutes=1),
        charge.spec.retry,
        "total",
    )
    assert (without.timeout, without.retry) == (None, Retry.none())
    assert (other.timeout, other.retry, other.timeout_scope) == (
        charge.spec.timeout,
        Retry.none(),
        "attempt",
    )
    assert noting.calls[2].name == "other"
    with pytest.raises(UsageError, match=r"@step on charge \(.*test_step.py:\d+\): retry 'often'"):
        charge.with_options(retry="often")


# ---------------------------------------------------------------- what tools see


@pytest.mark.parametrize(
    "called", [charge, render, charge.named("x"), Shop().ship, Shop.static, step("x")(lambda: 1)], ids=repr
)
def test_a_step_passes_for_a_coroutine_function(called):
    """Frameworks that ask whether to await see that a call returns a coroutine."""
    assert inspect.iscoroutinefunction(called)
    assert asyncio.iscoroutinefunction(called)


def test_a_step_shows_the_signature_and_the_documentation_of_its_function():
    """Names, docstring and parameters are the function's; an instance's step lacks the instance."""
    assert charge.__name__ == "charge"
    assert charge.__doc__ == "Take the money."
    assert charge.__module__ == __name__
    assert list(inspect.signature(charge).parameters) == ["order", "currency"]
    assert list(inspect.signature(render).parameters) == ["order"]
    assert list(inspect.signature(Shop().ship).parameters) == ["order", "express"]
    assert list(inspect.signature(Shop.ship).parameters) == ["self", "order", "express"]
    assert isinstance(charge, zart.AsyncStep)
    assert isinstance(render, zart.SyncStep)
    assert isinstance(Shop().ship, zart.BoundStep)
    assert repr(charge).startswith("<step 'charge-{order.id}' of charge (")


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"retry": "often(3)"}, "retry 'often(3)'.*no policy.*accepted"),
        ({"retry": 3}, "retry is 3, which is no text"),
        ({"timeout": "soon"}, "timeout is 'soon'"),
        ({"timeout": 0}, "timeout is zero"),
        ({"timeout": -1}, "timeout is -1"),
        ({"timeout_scope": "both"}, "timeout_scope is 'both'.*'attempt', 'total'"),
        ({"check_args": True}, "check_args is True.*'block', 'warn', 'off'"),
        ({"raises": ValueError}, "raises is <class 'ValueError'>.*tuple"),
        ({"raises": (BaseException,)}, "raises is .*tuple of Exception classes"),
    ],
)
def test_wrong_options_are_refused_with_the_function_and_its_place(options, told):
    """The text names the function, its file and line, the option and what is accepted."""
    with pytest.raises(
        UsageError, match=rf"@step on refused \(.*test_step.py:\d+\): {told.replace('(3)', '.3.')}"
    ):
        step("refused", **options)(refused)


@pytest.mark.parametrize(
    "name", ["", "a\0b", "x" * 201, "é" * 101, "a-{missing}", "a-{number", "a-{number!r}"]
)
def test_a_name_that_cannot_be_is_refused_when_decorated(name):
    """Fixed names are 1 to 200 bytes without control characters; a field must be a parameter."""
    with pytest.raises(UsageError, match=r"@step on refused \(.*test_step.py:\d+\)"):
        step(name)(refused)


def test_the_name_may_not_be_forgotten():
    """A bare @step says what to write."""
    with pytest.raises(UsageError, match=r"@step on .*send_email .* write @step\('send-email'\)"):

        @step
        async def send_email(): ...

    with pytest.raises(UsageError, match='write @step\\("send-email"\\)'):
        step(7)


async def test_what_is_no_function_to_record_is_refused():
    """Generators, classes, calls, other steps and durable functions, each with its way out."""

    async def stream() -> Iterator[int]:
        yield 1

    def items() -> Iterator[int]:
        yield 1

    @zart.durable("sell")
    async def sell() -> None: ...

    for wrong, told in [
        (stream, "generator"),
        (items, "generator"),
        (Order, "class"),
        (refused(1), "given a call"),
        (charge, "a step already"),
        (Shop().ship, "a step already"),
        (sell, "durable function"),
        (staticmethod(refused), "put @staticmethod above"),
        (classmethod(refused), "put @classmethod above"),
        (7, "not 7"),
    ]:
        with pytest.raises(UsageError, match=told):
            step("wrong")(wrong)


def test_a_result_that_is_a_set_is_refused_when_the_types_are_resolved():
    """The order of a set differs from process to process."""

    @step("tags")
    async def tags() -> dict[str, set[int]]:
        return {}

    with pytest.raises(UsageError, match=r"@step on .*tags \(.*test_step.py:\d+\).*sorted list"):
        _ = tags.spec


def test_an_annotation_that_cannot_be_resolved_is_refused_when_it_is_needed():
    """The error names the function and its place; that of a parameter is not needed."""

    @step("forward")
    async def forward(order: "Nowhere") -> "Nowhere": ...  # noqa: F821

    @step("only-parameter")
    async def only_parameter(order: "Nowhere") -> "Later": ...  # noqa: F821

    with pytest.raises(UsageError, match=r"@step on .*forward \(.*:\d+\): .*'Nowhere' of what it returns"):
        _ = forward.spec
    assert only_parameter.spec.result.annotation is Later


class Later(msgspec.Struct):
    pass


def test_results_are_read_by_what_the_function_is_annotated_to_return():
    """Without an annotation any value goes that survives JSON; an awaitable counts as what it gives."""

    async def plain(number): ...

    def awaitable() -> Awaitable[int]: ...

    class Local(msgspec.Struct):
        pass

    def nested() -> "list[Local]":
        return [Local()]

    assert step("x")(plain).spec.result.annotation is ANY
    assert step("x")(awaitable).spec.result.annotation is int
    assert step("x")(nested).spec.result.annotation == list[Local]


# ---------------------------------------------------------------- unrecorded calls


async def test_a_plain_call_beside_an_open_worker_warns_once_for_each_place():
    """Nothing of it is recorded, which is said where it is called; `.fn` is silent."""

    async def call_twice():
        for _ in range(2):
            await charge(Order(id="o"))

    with opened("worker"):
        with pytest.warns(zart.NotDurableWarning, match="'charge-{order.id}'.*nothing") as warned:
            await call_twice()
        assert [warning.filename for warning in warned] == [__file__]
        with pytest.warns(zart.NotDurableWarning, match="ship"):
            await Shop().ship(Order(id="o"))
        await charge.fn(Order(id="o"))
        noting = NotingPlace()
        with placed(noting):
            await charge(Order(id="o"))
    await call_twice()
    with opened("client"):
        await call_twice()
    with opened("worker"), pytest.warns(zart.NotDurableWarning):
        await call_twice()
