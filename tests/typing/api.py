"""The types of the public interface, as a program sees them. Never run: mypy and pyright check it."""

import asyncio
import datetime as dt
import logging
import random
import uuid
import warnings
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar, assert_type

import msgspec
import psycopg

import zart
import zart.sync
from zart import durable, step, telemetry, testing

E = TypeVar("E", bound=Exception)

# ---------------------------------------------------------------- what a program defines


class Order(msgspec.Struct):
    id: str
    amount: int


@dataclass
class Decision:
    approved: bool


Approved = zart.Event("approved", Decision)
Names = zart.Event("names", list[str])
Maybe = zart.Event("maybe", int | None)
Untyped = zart.Event("untyped")

assert_type(Approved, zart.Event[Decision])
assert_type(Names, zart.Event[list[str]])
assert_type(Maybe, zart.Event[int | None])
assert_type(Untyped, zart.Event[Any])
assert_type(Approved.name, str)

# ---------------------------------------------------------------- steps


@step(
    "charge-{order.id}",
    retry=zart.Retry.exponential(5, "1s", factor=3.0, max="1m", jitter=0.2, retry_on=(OSError,)),
    timeout=dt.timedelta(seconds=30),
    timeout_scope="total",
    check_args="warn",
    raises=(ValueError,),
)
async def charge(order: Order, *, currency: str = "EUR") -> float:
    return order.amount / 100


@step("render", retry="fixed(3, 2s)", timeout=1.5)
def render(order: Order) -> bytes:
    return order.id.encode()


@step("transfer", transaction=True)
async def transfer(amount: int) -> int:
    assert_type(zart.connection(), psycopg.AsyncConnection[Any])
    assert_type(zart.last_progress(int), int | None)
    assert_type(zart.progress(amount), None)
    return amount


@step("by-an-orm", transaction="own")
async def by_an_orm(amount: int) -> None: ...


@step("once", at_most_once=True)
def once() -> None: ...


@step("nothing", retry=None, timeout=None)
async def nothing() -> None: ...


class Shop:
    @step("ship")
    async def ship(self, order: Order, express: bool = False) -> str:
        return order.id

    @step("print-label")
    def print_label(self, order: Order) -> int:
        return order.amount


class Sdk:
    async def create(self, email: str) -> dict[str, str]:
        return {"email": email}

    def find(self, email: str) -> str | None:
        return email


async def plain(number: int) -> int:
    return number


async def steps() -> None:
    order = Order(id="o-1", amount=100)
    of_async_def: zart.AsyncStep[[], None] = nothing
    of_def: zart.SyncStep[[Order], bytes] = render
    either: list[zart.Step[..., Any]] = [of_async_def, of_def]
    bound: zart.BoundStep[[Order], int] = Shop().print_label
    assert_type(await of_async_def(), None)
    assert_type(await of_def(order), bytes)
    assert_type(await bound(order), int)
    assert_type(either[0].name, str)

    assert_type(await charge(order), float)
    assert_type(await charge(order, currency="USD"), float)
    assert_type(await render(order), bytes)
    assert_type(await nothing(), None)
    assert_type(charge.name, str)

    assert_type(await charge.named("charge-again")(order), float)
    assert_type(await render.named("other").with_options(retry="none", timeout="3s")(order), bytes)
    assert_type(await charge.with_options(timeout_scope="attempt", retry=zart.Retry.none())(order), float)
    assert_type(await charge.with_options(retry=None, timeout=None)(order), float)

    assert_type(await charge.fn(order), float)
    assert_type(render.fn(order), bytes)

    shop = Shop()
    assert_type(await shop.ship(order), str)
    assert_type(await shop.ship(order, express=True), str)
    assert_type(await shop.print_label(order), int)
    assert_type(await shop.ship.named("ship-2")(order), str)
    assert_type(await Shop.ship(shop, order), str)

    sdk = Sdk()
    assert_type(await step("create")(sdk.create)("ann@example.org"), dict[str, str])
    assert_type(await step("find", retry="fixed(1, 1s)")(sdk.find)("ann@example.org"), str | None)
    assert_type(await step("here")(lambda: plain(1))(), int)

    both = await asyncio.gather(charge(order), render(order))
    assert_type(both, tuple[float, bytes])
    async with asyncio.TaskGroup() as group:
        task = group.create_task(charge(order))
    assert_type(task.result(), float)


wrong_argument = charge(1)  # type: ignore[arg-type]
missing_argument = render()  # type: ignore[call-arg]
no_name = step(plain)  # type: ignore[arg-type]
no_such_scope = step("x", timeout_scope="both")  # type: ignore[arg-type]
read_only = charge.fn(1)  # type: ignore[arg-type]

# ---------------------------------------------------------------- durable functions


async def clean_up(order: Order, failure: zart.Failure) -> None:
    assert_type(failure.type, str)
    assert_type(failure.message, str)
    assert_type(failure.step, str | None)
    assert_type(failure.attempts, int)
    assert_type(failure.traceback, str)


@step("count-characters")
async def count_characters(text: str) -> int:
    return len(text)


@durable("pack")
async def pack(order: Order) -> list[str]:
    return [order.id]


@durable("tidy-up")
async def tidy_up() -> None:
    return None


async def compose(order: Order) -> None:
    step_handle = zart.schedule_step(count_characters, "tea")
    assert_type(step_handle, zart.StepHandle[int])
    assert_type(step_handle.name, str)
    assert_type(await step_handle, int)
    assert_type(await step_handle.cancel(), bool)
    child = zart.start_child(pack, order, id="parcel", detached=True)
    assert_type(child, zart.ChildHandle[list[str]])
    assert_type(child.id, str)
    assert_type(zart.start_child(tidy_up), zart.ChildHandle[None])
    assert_type(await pack(order), list[str])
    event = zart.event(Approved)
    assert_type(event, zart.EventHandle[Decision])
    assert_type(zart.event("approved"), zart.EventHandle[Any])
    assert_type(zart.event("approved", Decision), zart.EventHandle[Decision])
    timer = zart.timer("2h")
    assert_type(timer, zart.TimerHandle)
    assert_type(await zart.wait_all(step_handle, child), tuple[int, list[str]])
    assert_type(await zart.wait_all(step_handle, child, timer), tuple[int, list[str], None])
    handles: list[zart.Handle[int]] = [step_handle]
    assert_type(await zart.wait_all(*handles), list[int])
    assert_type(await zart.wait_all(*handles, return_exceptions=True), list[int | Exception])
    assert_type(
        await zart.wait_all(step_handle, child, return_exceptions=True),
        tuple[int | Exception, list[str] | Exception],
    )
    assert_type(await zart.wait_any(event, timer), zart.Handle[Decision] | zart.Handle[None])
    assert_type(await zart.wait_any(*handles), zart.Handle[int])
    assert_type(await zart.map(count_characters, ["a", "b"], limit=2), list[int])
    assert_type(await zart.map(count_characters, ["a", "b"], return_exceptions=True), list[int | Exception])


@durable("sell", max_retries=3, timeout="50h", on_failure=clean_up, queue="shop")
async def sell(order: Order) -> str:
    assert_type(await zart.wait_for_event(Approved, timeout="48h"), Decision)
    assert_type(await zart.wait_for_event(Names), list[str])
    assert_type(await zart.wait_for_event(Untyped), Any)
    assert_type(await zart.wait_for_event("approved"), Any)
    assert_type(await zart.wait_for_event("approved", Decision), Decision)
    assert_type(await zart.wait_for_event("count", int | None, timeout=60), int | None)
    assert_type(await zart.wait_for_event(name="approved", type=Decision), Decision)

    assert_type(await zart.sleep("1h30m"), None)
    assert_type(await zart.sleep(0.5), None)
    assert_type(await zart.sleep_until(dt.datetime(2030, 1, 1, tzinfo=dt.UTC)), None)

    limit = zart.timeout(dt.timedelta(hours=2))
    assert_type(limit, AbstractAsyncContextManager[None])
    async with zart.timeout("2h"):
        pass

    saga = zart.saga()
    assert_type(saga, zart.Saga)
    async with saga as entered:
        assert_type(entered, zart.Saga)
        assert_type(entered.add(charge, order, currency="USD"), None)
        entered.add(charge, "no order")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        entered.add(plain, 1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        assert_type(await entered.compensate(), None)

    assert_type(await zart.capture("flags", lambda: 3), int)
    assert_type(await zart.capture("read", nothing.fn), None)
    assert_type(await zart.capture("plain", lambda: plain(1)), int)
    assert_type(await zart.capture("typed", lambda: {"a": 1}, type=dict[str, int]), dict[str, int])

    assert_type(zart.data(Order), Order | None)
    assert_type(zart.data(list[int], default=[]), list[int])
    assert_type(zart.set_data(order), None)

    assert_type(zart.now(), dt.datetime)
    assert_type(zart.uuid4(), uuid.UUID)
    assert_type(zart.random(), random.Random)
    assert_type(zart.patched("fraud-check"), bool)
    assert_type(zart.suspending(), bool)
    assert_type(zart.execution_id(), str)
    assert_type(zart.resource(Sdk), Sdk)

    await compose(order)
    here = zart.context()
    assert_type(here, zart.Context)
    assert_type(here.execution_id, str)
    assert_type(here.run_id, str)
    assert_type(here.name, str)
    assert_type(here.attempt, int)
    assert_type(here.started_at, dt.datetime)
    assert_type(here.is_replaying, bool)

    attempt = zart.step_context()
    assert_type(attempt, zart.StepContext)
    assert_type(attempt.step_name, str)
    assert_type(attempt.step_attempt, int)
    assert_type(attempt.idempotency_key, str)
    assert_type(attempt.token, str)
    return order.id


@durable("tick")
async def tick() -> None: ...


@durable("for-ever")
async def for_ever(order: Order) -> NoReturn:
    if order.amount:
        zart.continue_as_new(order)
    zart.continue_as_new()


@durable("retried", max_retries=zart.Retry.fixed(2, "1s"))
async def retried(count: int) -> list[int]:
    return [count]


async def durables() -> None:
    takes_one: zart.Durable[[Order], str] = sell
    takes_none: zart.Durable[[], None] = tick
    slow: zart.Durable[[Order], str] = sell.with_options(id="o-1", queue="slow", priority=5, timeout=None)
    function: Callable[[Order], Coroutine[Any, Any, str]] = sell.fn
    assert_type(await takes_one(Order(id="o-1", amount=1)), str)
    assert_type(await takes_none(), None)
    assert_type(await slow.fn(Order(id="o-1", amount=1)), str)
    assert_type(await function(Order(id="o-1", amount=1)), str)
    assert_type(await sell(Order(id="o-1", amount=1)), str)
    assert_type(await tick(), None)
    assert_type(sell.name, str)


wrong_payload = sell("o-1")  # type: ignore[arg-type]


def not_async(order: Order) -> str:
    return order.id


not_durable = durable("x")(not_async)  # type: ignore[arg-type, var-annotated]

# ---------------------------------------------------------------- registry, settings, errors


@asynccontextmanager
async def lifespan() -> AsyncGenerator[tuple[Sdk, Shop], None]:
    yield Sdk(), Shop()


registry = zart.Registry(sell, tick, charge, render, lifespan=lifespan)
registry.register(retried, nothing)
registry.include(zart.Registry(sell))
registry.include(asyncio)

limit: zart.Duration = "1h30m"

config = zart.WorkerConfig(
    poll_interval="200ms",
    max_tasks_per_poll=10,
    max_concurrent_tasks=10,
    max_threads=4,
    shutdown_timeout=5,
    orphan_timeout=dt.timedelta(seconds=30),
    heartbeat_interval="5s",
    wedge_timeout=None,
    max_recoveries=3,
    max_inflight_steps=16,
    max_parked_bodies=100,
    queues=("shop",),
)
assert_type(config, zart.WorkerConfig)


class Money:
    def __init__(self, cents: int) -> None:
        self.cents = cents


zart.register_type(Money, encode=lambda money: money.cents, decode=Money)

policies: list[zart.Retry] = [
    zart.Retry.none(),
    zart.Retry.fixed(3, "10s", jitter=0.1, give_up_on=(ValueError,)),
    zart.Retry.linear(3, 1, max="5s"),
    zart.Retry.exponential(3, dt.timedelta(seconds=1)),
    zart.Retry.parse("linear(3, 1s)"),
]


def is_one(error: E, kind: type[E]) -> E:
    return error


def errors(error: Exception) -> None:
    match error:
        case zart.StepFailed() | zart.ExecutionFailed() | zart.ExecutionTimeout() | zart.ExecutionBlocked():
            assert_type(error.failure, zart.Failure)
        case zart.StepInterrupted():
            assert_type(error, zart.StepInterrupted)
        case zart.StepTimeout() | zart.StepStuck() | zart.EventTimeout() | zart.ResultTimeout():
            is_one(error, TimeoutError)
        case zart.PayloadError():
            is_one(error, ValueError)
        case zart.UsageError():
            is_one(error, TypeError)
        case zart.ExecutionNotFound():
            is_one(error, LookupError)
        case (
            zart.SerializationError()
            | zart.NonDeterminismError()
            | zart.ExecutionConflict()
            | zart.ExecutionFinished()
            | zart.ExecutionCancelled()
            | zart.SchemaError()
        ):
            is_one(error, zart.ZartError)
        case _:
            warnings.warn("not recorded", zart.NotDurableWarning, stacklevel=2)
            raise zart.NonRetryable("no such card") from zart.RetryAfter("30s", "busy")


# ---------------------------------------------------------------- from outside


async def client(rows: psycopg.AsyncConnection[Any]) -> None:
    order = Order(id="o-1", amount=1)
    await zart.migrate()
    await zart.migrate("postgresql:///shop", schema="jobs")

    async with zart.Client("postgresql:///shop", schema="jobs", author="ann") as shop:
        if shop.is_open:
            assert_type(shop.as_author("bob"), zart.Client)
        handle = await shop.start(
            sell, order, id="o-1", delay="1h", queue="slow", priority=3, on_conflict="return"
        )
        assert_type(handle, zart.ExecutionHandle[str])
        assert_type(handle.id, str)
        assert_type(handle.created, bool)
        assert_type(await handle.result(timeout="5s"), str)
        assert_type(await shop.start(tick, at=dt.datetime.now(dt.UTC)), zart.ExecutionHandle[None])
        assert_type(await shop.start("sell", {"id": "o-1"}, version=None), zart.ExecutionHandle[Any])
        assert_type(await shop.start(sell, order, connection=rows), zart.ExecutionHandle[str])
        assert_type(await shop.start_many(sell, {"o-1": order}), list[zart.ExecutionHandle[str]])
        assert_type(await shop.start_and_wait(sell, order, id="o-1", timeout=5), str)
        assert_type(await shop.start_and_wait(tick), None)
        assert_type(shop.handle(sell, "o-1"), zart.ExecutionHandle[str])
        assert_type(await shop.wait_completion("o-1", timeout="1m"), Any)
        assert_type(await shop.wait_completion("o-1", type=list[int]), list[int])
        assert_type(await shop.offer_event("o-1", Approved, Decision(approved=True), dedup="once"), bool)
        assert_type(await shop.offer_event("o-1", "approved", {"approved": True}, connection=rows), bool)

        execution = await handle.status()
        assert_type(execution, zart.Execution)
        assert_type(await shop.status("o-1"), zart.Execution)
        assert_type(execution.waiting_for, str | None)
        assert_type(execution.failure, zart.Failure | None)
        assert_type(execution.finished_at, dt.datetime | None)
        async for found in shop.executions(name="sell", status="waiting", id_prefix="o-", limit=10):
            assert_type(found, zart.Execution)

        assert_type(await shop.runs("o-1"), list[zart.Run])
        assert_type(await shop.retry_step("o-1", "charge", reason="mended"), bool)
        assert_type(await shop.restart("o-1", {"id": 1}), str)
        begun = await shop.rerun("o-1", steps=["charge"])
        assert_type(begun, zart.Rerun)
        assert_type(begun.stale, list[str])
        assert_type(await shop.delete("o-1"), bool)
        history = await shop.history("o-1")
        assert_type(history, zart.History)
        assert_type(history.records, list[zart.Record])
        assert_type(history.notes, list[str])
        pruned = await shop.prune(older_than="30d", statuses=["completed"], keep_ids="90d", dry_run=True)
        assert_type(pruned, zart.Pruned)
        assert_type(pruned.deleted, int)
        assert_type(await shop.workers(), list[zart.WorkerStatus])
        assert_type(zart.ExecutionPruned("gone").execution_id, str | None)
        stats = await shop.stats()
        assert_type(stats, zart.Stats)
        assert_type(stats.workers, int)

        assert_type(await shop.cancel("o-1", reason="asked to", force=True), bool)
        assert_type(await shop.resume("o-1", accept_arguments=True), bool)

        rule = await shop.pause("o-1", step="charge*", reason="disputed", expires="2h")
        assert_type(rule, str)
        assert_type(await shop.pause(name="sell", expires=dt.datetime.now(dt.UTC)), str)
        for each in await shop.pauses():
            assert_type(each, zart.PauseRule)
            assert_type((each.id, each.author), tuple[str, str])
            assert_type((each.execution_id, each.name, each.step), tuple[str | None, str | None, str | None])
            assert_type((each.reason, each.expires_at), tuple[str | None, dt.datetime | None])
        assert_type(await shop.unpause(rule, reason="settled"), bool)

    assert_type(await zart.start(sell, order, id="o-1", connection=rows, schema="jobs"), str)
    assert_type(await zart.start(tick), str)
    assert_type(await zart.offer_event("o-1", Approved, Decision(approved=True), connection=rows), bool)
    assert_type(await zart.offer_event("o-1", "approved", None, dedup="once"), bool)

    await shop.start(sell)  # type: ignore[arg-type]
    await shop.start(sell, 7)  # type: ignore[arg-type]
    await shop.start(tick, 7)  # type: ignore[arg-type]
    await shop.offer_event("o-1", Approved, "yes")  # type: ignore[misc]


def threads(rows: psycopg.Connection[Any], lent: zart.sync.HasCursor) -> None:
    order = Order(id="o-1", amount=1)
    zart.sync.migrate()
    zart.sync.migrate("postgresql:///shop", schema="jobs")

    assert_type(zart.sync.start(sell, order, id="o-1", connection=rows, schema="jobs"), str)
    assert_type(zart.sync.start(tick, connection=lent), str)
    assert_type(zart.sync.offer_event("o-1", Approved, Decision(approved=True), connection=rows), bool)
    assert_type(zart.sync.offer_event("o-1", "approved", None, dedup="once", connection=lent), bool)
    cursor: zart.sync.Cursor = lent.cursor()
    assert_type(cursor.fetchone(), Any)

    with zart.sync.Client("postgresql:///shop", schema="jobs") as shop:
        handle = shop.start(sell, order, id="o-1", delay="1h", queue="slow", priority=3, on_conflict="return")
        assert_type(handle, zart.sync.ExecutionHandle[str])
        assert_type(handle.id, str)
        assert_type(handle.created, bool)
        assert_type(handle.result(timeout="5s"), str)
        assert_type(handle.status(), zart.Execution)
        assert_type(shop.start(tick, at=dt.datetime.now(dt.UTC)), zart.sync.ExecutionHandle[None])
        assert_type(shop.start(sell, order, connection=rows), zart.sync.ExecutionHandle[str])
        assert_type(shop.start_and_wait(sell, order, id="o-1", timeout=5), str)
        assert_type(shop.start_and_wait(tick), None)
        assert_type(shop.handle(sell, "o-1"), zart.sync.ExecutionHandle[str])
        assert_type(shop.wait_completion("o-1", timeout="1m"), Any)
        assert_type(shop.wait_completion("o-1", type=list[int]), list[int])
        assert_type(shop.offer_event("o-1", Approved, Decision(approved=True), dedup="once"), bool)
        assert_type(shop.offer_event("o-1", "approved", {"approved": True}), bool)
        assert_type(shop.status("o-1"), zart.Execution)
        assert_type(shop.cancel("o-1", reason="asked to", force=True), bool)
        assert_type(shop.resume("o-1", accept_arguments=True), bool)

        shop.start(sell)  # type: ignore[arg-type]
        shop.start(sell, 7)  # type: ignore[arg-type]
        shop.offer_event("o-1", Approved, "yes")  # type: ignore[misc]
    zart.sync.start(sell, order)  # type: ignore[call-overload]
    zart.sync.start(sell, order, connection=order)  # type: ignore[call-overload]


async def worker(given: zart.Client) -> None:
    await zart.Worker("postgresql:///shop", registry, config).run()
    async with zart.Worker(given, registry) as running:
        assert_type(running, zart.Worker)
        running.stop()
    zart.Worker(None, registry)


def encryption(secret: bytes) -> None:
    codec: zart.PayloadCodec = zart.PayloadKeys({"k2": secret, "k1": secret})
    assert_type(codec.decode(codec.encode(b"1", b"place"), b"place"), bytes)
    assert_type(zart.PayloadKeys({"k1": secret}).key_id, str)
    unreadable = zart.PayloadUnreadable("text", key="k1")
    assert_type(unreadable.key, str | None)
    is_one(unreadable, zart.PayloadError)


# ---------------------------------------------------------------- without a database


async def unit_test() -> None:
    outcome = await testing.run(
        sell,
        Order(id="o-1", amount=1),
        steps={"charge-{order.id}": 5.0, "render": ValueError("no")},
        events={"approved": [Decision(approved=True)]},
        id="o-1",
    )
    assert_type(outcome, testing.Outcome[str])
    assert_type(outcome.result, str)
    assert_type(outcome.error, BaseException | None)
    assert_type(outcome.steps, list[str])
    assert_type(outcome.slept, float)
    assert_type((await testing.run(tick)).result, None)


# ---------------------------------------------------------------- telemetry


def hook(event: telemetry.TelemetryEvent) -> None:
    match event:
        case telemetry.StepEnded(outcome=outcome, seconds=seconds, segment=segment):
            assert_type(seconds, float)
            assert_type(segment.execution_id, str)
            assert_type(segment.step, str | None)
            assert outcome in ("returned", "failed", "abandoned")
            assert_type(event.error, telemetry.Raised | None)
        case telemetry.SegmentOver():
            assert_type(event.segment, telemetry.Segment)
        case _:
            pass


def only_ends(event: telemetry.ExecutionEnded) -> None: ...


def observe(handler: logging.Handler) -> None:
    with telemetry.subscribe(hook) as subscription:
        assert_type(subscription, telemetry.Subscription)
    telemetry.subscribe(hook, threaded=True).close()
    telemetry.subscribe(only_ends)  # type: ignore[arg-type]
    handler.addFilter(telemetry.LogContext())
    handler.setFormatter(telemetry.JsonFormatter())
    assert_type(telemetry.opentelemetry(messages=True), telemetry.Subscription)
    assert_type(telemetry.prometheus(), telemetry.Subscription)
    assert_type(telemetry.exposition(), tuple[str, bytes])
    assert_type(telemetry.serve_metrics(9464, address="127.0.0.1"), Callable[[], None])
