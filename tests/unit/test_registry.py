"""The registry of durable functions and steps."""

import types
from contextlib import asynccontextmanager

import pytest

from zart import Registry, UsageError, durable, step


@step("charge")
async def charge(amount: int) -> int:
    return amount


@step("ship")
def ship(amount: int) -> int:
    return amount


@durable("sell")
async def sell(amount: int) -> int:
    return await charge(amount)


@durable("tick")
async def tick() -> None: ...


@asynccontextmanager
async def lifespan():
    yield 1


def test_durables_are_found_by_name_and_version():
    """Registered at once or later; the same twice is once."""
    registry = Registry(sell)
    registry.register(tick, sell)
    assert registry.durables == {("sell", None): sell, ("tick", None): tick}
    assert registry.steps == {}


def test_versions_stand_side_by_side():
    """None among them; two functions under one name and version do not."""

    def version(number):
        @durable("sell", version=number)
        async def sell_too() -> None: ...

        return sell_too

    second, third = version("2"), version("3")
    registry = Registry(sell, second)
    registry.include(Registry(third))
    registry.freeze()
    assert registry.durables == {("sell", None): sell, ("sell", "2"): second, ("sell", "3"): third}
    with pytest.raises(UsageError, match="'sell', version '2'.*another name"):
        Registry(second, version("2"))


def test_a_durable_brings_the_steps_of_its_module_when_it_is_frozen():
    """A step that its module names may be asked for by name."""
    registry = Registry(sell)
    registry.freeze()
    registry.freeze()
    assert registry.steps == {"charge": charge, "ship": ship}


def test_nothing_is_added_once_a_worker_uses_it():
    """The text says when to register."""
    registry = Registry()
    registry.freeze()
    for add in (lambda: registry.register(sell), lambda: registry.include(Registry(sell))):
        with pytest.raises(UsageError, match="before the worker starts"):
            add()


def test_freezing_resolves_all_annotations():
    """What cannot be resolved is said with the function's place, before anything runs."""

    @step("lost")
    async def lost() -> "Nowhere": ...  # noqa: F821

    @durable("lost")
    async def lost_durable(data: "Nowhere") -> None: ...  # noqa: F821

    for item in (lost, lost_durable):
        with pytest.raises(UsageError, match=r"lost.* \(.*test_registry.py:\d+\).*'Nowhere'"):
            Registry(item).freeze()


def test_two_functions_under_one_name_are_refused_naming_both():
    """Durable functions as well as steps; another function's name is no accident."""

    @durable("sell")
    async def other_sell(amount: int) -> None: ...

    @step("charge")
    async def other_charge(amount: int) -> None: ...

    with pytest.raises(UsageError, match=r"'sell': sell \(.*:\d+\) and .*other_sell \(.*:\d+\)"):
        Registry(sell, other_sell)
    with pytest.raises(UsageError, match=r"'charge': charge \(.*:\d+\) and .*other_charge \(.*:\d+\)"):
        Registry(charge, other_charge)
    with pytest.raises(UsageError, match="'charge'"):
        Registry(sell, other_charge).freeze()


def test_the_same_function_under_another_name_or_with_other_options_is_no_clash():
    """Variants made with named() and with_options() stand beside the first one."""
    registry = Registry(sell, sell.with_options(queue="slow"), charge, charge.named("again"))
    registry.register(charge.with_options(timeout="1s"))
    assert registry.durables == {("sell", None): sell}
    assert registry.steps["charge"] is charge
    assert set(registry.steps) == {"charge", "again"}


def test_a_registry_includes_another_or_a_module():
    """All that a module names, wherever it was defined."""
    module = types.ModuleType("shop")
    vars(module).update(sell=sell, charge=charge, number=7, Registry=Registry)
    registry = Registry()
    registry.include(module)
    assert registry.durables == {("sell", None): sell}
    assert registry.steps == {"charge": charge}
    registry.include(Registry(tick, ship, lifespan=lifespan))
    assert set(registry.durables) == {("sell", None), ("tick", None)}
    assert set(registry.steps) == {"charge", "ship"}
    assert registry.lifespan is lifespan


def test_two_lifespans_are_refused_naming_both():
    """One that enters both is to be written by hand."""

    @asynccontextmanager
    async def other():
        yield 2

    registry = Registry(lifespan=lifespan)
    registry.include(Registry(lifespan=lifespan))
    with pytest.raises(UsageError, match=r"lifespan .* and .*other"):
        registry.include(Registry(lifespan=other))


def test_what_was_not_decorated_is_refused():
    """A plain function, a bound step, a module given to register, a function given to include."""

    class Shop:
        @step("pack")
        async def pack(self) -> None: ...

    async def plain() -> None: ...

    for wrong in (plain, 7, Shop().pack, types):
        with pytest.raises(UsageError, match="cannot be registered"):
            Registry(wrong)
    with pytest.raises(UsageError, match=r"register\(\)"):
        Registry().include(sell)
    with pytest.raises(UsageError, match="asynccontextmanager"):
        Registry(lifespan=lifespan())


def test_a_lazy_object_in_the_module_is_left_alone():
    """Looking for steps among a module's names does not make it load itself, as Django's settings would."""

    class Lazy:
        @property
        def __class__(self):
            raise AssertionError("it was asked for its class")

    @durable("beside-lazy")
    async def beside_lazy() -> None: ...

    beside_lazy.fn.__globals__["a_lazy_object"] = Lazy()
    try:
        Registry(beside_lazy).freeze()
    finally:
        del beside_lazy.fn.__globals__["a_lazy_object"]
