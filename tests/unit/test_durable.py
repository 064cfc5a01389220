"""The decorator `@durable`."""

import asyncio
import datetime as dt
import inspect

import msgspec
import pytest

import zart
from tests.support.places import NotingPlace, placed
from zart import Retry, UsageError, durable, step
from zart.outside import opened


class Order(msgspec.Struct):
    id: str


@step("charge")
async def charge(order: Order) -> int:
    return len(order.id)


async def clean_up(order: Order, failure: zart.Failure) -> None: ...


@durable("sell", max_retries=2, timeout="50h", on_failure=clean_up, queue="shop")
async def sell(order: Order) -> int:
    """Sell it."""
    return 1 + await charge(order)


@durable("tick")
async def tick() -> None: ...


async def refused(order: Order) -> None: ...


async def test_outside_a_durable_function_just_runs_and_so_do_its_steps():
    """A plain call needs no database."""
    assert await sell(Order(id="o-1")) == 4
    assert await sell.fn(Order(id="o-12")) == 5
    assert await tick() is None


async def test_in_a_body_the_place_is_asked():
    """A durable function that is called in another one is the place's business."""
    noting = NotingPlace()
    with placed(noting):
        assert await sell(order=Order(id="o-1")) == "result of sell"
    assert noting.asked == [("call_durable", "sell", sell.fn, (Order(id="o-1"),))]


def test_the_function_as_data_has_what_the_decorator_was_given():
    """A number of retries doubles from 1 s to 1 min; lengths of time are parsed once."""
    spec = sell.spec
    assert (spec.name, spec.version, spec.queue, spec.priority) == ("sell", None, "shop", 0)
    assert spec.fn is sell.fn
    assert spec.takes_payload
    assert spec.payload.annotation is Order
    assert spec.result.annotation is int
    assert spec.retry == Retry.exponential(2, "1s", max="1m")
    assert spec.timeout == dt.timedelta(hours=50)
    assert spec.on_failure is clean_up
    assert sell.spec is spec
    assert not tick.spec.takes_payload
    assert tick.spec.timeout is None
    assert tick.spec.on_failure is None
    assert tick.spec.retry == Retry.none()


def test_a_version_is_part_of_what_the_function_is():
    """It stays over `with_options`; one that cannot be stored is refused with the function's place."""

    @durable("sell", version="2")
    async def sell_2() -> None: ...

    assert sell_2.version == sell_2.spec.version == sell_2.with_options(queue="mail").spec.version == "2"
    assert "version '2'" in repr(sell_2)
    for version in ("", "x" * 201, "a\nb", 2):
        with pytest.raises(UsageError, match=r"@durable on .*: the version"):

            @durable("sell", version=version)
            async def refused() -> None: ...


def test_options_for_one_start_leave_the_function_as_it_is():
    """`with_options` returns another object; what is not given stays."""
    changed = sell.with_options(id="order-7", queue="slow", priority=5, timeout="1h")
    assert (changed.id, changed.queue, changed.spec.priority) == ("order-7", "slow", 5)
    assert changed.spec.timeout == dt.timedelta(hours=1)
    assert changed.with_options(timeout=None, id=None).spec.timeout is None
    assert changed.with_options(timeout=None, id=None).id is None
    assert changed.with_options(priority=-1).queue == "slow"
    assert (sell.id, sell.queue, sell.spec.priority, sell.spec.timeout) == (
        None,
        "shop",
        0,
        dt.timedelta(hours=50),
    )


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"id": "a~b"}, "'~'"),
        ({"id": "x" * 201}, "201 bytes"),
        ({"queue": ""}, "queue is empty"),
        ({"priority": True}, "priority is True"),
        ({"priority": 2**31}, "priority is 2147483648"),
        ({"timeout": "0s"}, "timeout is zero"),
    ],
)
def test_wrong_options_for_a_start_are_refused(options, told):
    """Like those of the decorator."""
    with pytest.raises(UsageError, match=told):
        sell.with_options(**options)


def test_a_durable_function_passes_for_a_coroutine_function():
    """With its function's name, documentation and parameters."""
    assert inspect.iscoroutinefunction(sell)
    assert asyncio.iscoroutinefunction(sell)
    assert list(inspect.signature(sell).parameters) == ["order"]
    assert (sell.__name__, sell.__doc__, sell.__module__) == ("sell", "Sell it.", __name__)
    assert repr(sell).startswith("<durable 'sell' of sell (")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"max_retries": -1}, "max_retries is -1"),
        ({"max_retries": "often"}, "'often'.*no policy"),
        ({"max_retries": 1.5}, "max_retries is 1.5"),
        ({"timeout": "soon"}, "timeout is 'soon'"),
        ({"timeout": 0}, "timeout is zero"),
        ({"queue": "a\nb"}, "the queue is 'a.*control character"),
        ({"on_failure": lambda data, failure: None}, "on_failure is .*async def of \\(data, failure\\)"),
        ({"on_failure": tick.fn}, "on_failure, tick .*must take \\(data, failure\\)"),
        ({"on_failure": 7}, "on_failure is 7"),
    ],
)
def test_wrong_options_are_refused_with_the_function_and_its_place(options, told):
    """The text names the function, its file and line, and the option."""
    with pytest.raises(UsageError, match=rf"@durable on refused \(.*test_durable.py:\d+\): .*{told}"):
        durable("refused", **options)(refused)


@pytest.mark.parametrize("name", ["", "x" * 201, "a\tb", 7])
def test_a_name_that_cannot_be_is_refused(name):
    """1 to 200 bytes without control characters."""
    with pytest.raises(UsageError, match=r"@durable on refused \(.*: the name"):
        durable(name)(refused)


def test_the_name_may_not_be_forgotten():
    """A bare @durable says what to write."""
    with pytest.raises(UsageError, match=r"@durable on .*sell_all .* write @durable\('sell-all'\)"):

        @durable
        async def sell_all(): ...


def test_only_an_async_function_with_one_payload_or_none_is_durable():
    """Each refusal says what to do instead."""

    async def three(user, email, plan): ...
    async def keywords(*, order): ...
    async def many(*orders): ...
    async def default(order=None): ...
    def plain(order): ...
    async def stream(order):
        yield order

    class Shop:
        async def sell(self): ...

    for wrong, told in [
        (three, r"takes \(user, email, plan\).*one parameter.*Struct or dataclass"),
        (keywords, r"takes \(order\).*one parameter"),
        (many, r"takes \(\*orders\).*one parameter"),
        (default, "'order' has a default"),
        (plain, "async def"),
        (stream, "generator"),
        (Shop().sell, "module"),
        (charge, "already"),
        (sell, "already"),
        (7, "async def"),
    ]:
        with pytest.raises(UsageError, match=told):
            durable("wrong")(wrong)


def test_annotations_are_resolved_when_they_are_needed():
    """They may name what is defined further down; what cannot be found is named with the function's place."""

    @durable("later")
    async def later(order: "Later") -> "Later": ...

    @durable("payload")
    async def payload(order: "Nowhere") -> None: ...  # noqa: F821

    @durable("sets")
    async def sets(order: set[int]) -> frozenset[int]: ...

    assert later.spec.payload.annotation is Later
    assert later.spec.result.annotation is Later
    with pytest.raises(UsageError, match=r"@durable on .*payload \(.*:\d+\): .*'Nowhere' of its parameter"):
        _ = payload.spec
    with pytest.raises(UsageError, match="sorted list"):
        _ = sets.spec


class Later(msgspec.Struct):
    pass


async def test_a_plain_call_beside_an_open_client_or_worker_warns_once_for_each_place():
    """A crash would lose it; the text names the function and what to do."""

    async def call_twice():
        for _ in range(2):
            await tick()

    for what in ("client", "worker"):
        with opened(what):
            with pytest.warns(zart.NotDurableWarning, match=r"'tick'.*client.start") as warned:
                await call_twice()
            assert [warning.filename for warning in warned] == [__file__]
    await call_twice()
