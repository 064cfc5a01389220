"""Traces of OpenTelemetry: one for whatever an execution goes through."""

import asyncio
from collections.abc import Iterator

import psycopg
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, StatusCode

import zart
import zart.sync
from tests.support.listening import Spans, tracing, tree
from tests.support.running import fast, forgetful, query, until, until_status, worker_for, working
from zart import Client, durable, step, telemetry
from zart.telemetry.traces import SEGMENT_ATTRIBUTES, STEP_ATTRIBUTES

pytestmark = pytest.mark.not_in("twice", reason="each body comes to its end twice there")

SECRET = "4556-7375"


@pytest.fixture
def spans() -> Iterator[Spans]:
    with tracing() as made:
        yield made


@step("charge-{order}", retry="fixed(1, 10ms)")
async def charge(order: str) -> str:
    with trace.get_tracer(__name__).start_as_current_span("inside"):
        if zart.step_context().step_attempt == 1:
            raise ConnectionError(f"card {SECRET}")
    return SECRET


@step("ship")
def ship(order: str) -> str:
    told = trace.get_current_span().get_span_context()
    return trace.format_span_id(told.span_id)


@durable("order")
async def order(card: str) -> str:
    await charge(zart.execution_id())
    await zart.wait_for_event("approved")
    return await ship(card)


@durable("small")
async def small(number: int) -> str:
    return trace.format_trace_id(trace.get_current_span().get_span_context().trace_id)


@durable("family")
async def family(number: int) -> list[str]:
    named = zart.start_child(small, number, id=f"named-{number}")
    return [await small(number), await named]


@step("look")
async def look(number: int) -> int:
    return number


@durable("scheduling")
async def scheduling(number: int) -> int:
    (looked,) = await zart.wait_all(zart.schedule_step(look, number))
    return looked


@durable("again")
async def again(number: int) -> int:
    if number:
        zart.continue_as_new(number - 1)
    return number


@durable("fails")
async def fails() -> None:
    raise LookupError(f"card {SECRET}")


def ids(span: ReadableSpan) -> tuple[int, int]:
    assert span.context is not None
    return span.context.trace_id, span.context.span_id


def parent(span: ReadableSpan) -> tuple[int, int]:
    assert span.parent is not None
    return span.parent.trace_id, span.parent.span_id


@pytest.mark.not_in("suspending", reason="each record ends a segment there")
async def test_one_trace_across_a_suspension_and_two_workers(dsn: str, spans: Spans) -> None:
    """Who starts an execution finds all of it below, whichever worker ran it and however long it waited in between."""
    async with Client(dsn) as client:
        async with worker_for(dsn, order, config=forgetful()):
            with spans.tracer.start_as_current_span("POST /orders"):
                handle = await client.start(order, SECRET, id="o-1")
            await until_status(client, "o-1", "waiting")
        await client.offer_event("o-1", "approved")
        async with worker_for(dsn, order, config=forgetful()):
            shipped = await handle.result(timeout="15s")
    shown = tree(spans.all())
    print(shown)
    assert shown.splitlines() == [
        "POST /orders",
        "  run order first 1 suspended",
        "    step charge-{order} 1 failed",
        "    step charge-{order} 2 returned",
        "  run order replay 1 completed",
        "    step ship 1 returned",
    ]
    root, first, failed, worked, second, last = spans.all()
    assert {ids(span)[0] for span in spans.all()} == {ids(root)[0]}
    assert parent(first) == parent(second) == ids(root)
    assert parent(failed) == parent(worked) == ids(first)
    assert parent(last) == ids(second)
    assert shipped == trace.format_span_id(ids(last)[1])  # it was the current one, in the step's thread
    one, other = (dict(span.attributes or {})["zart.worker"] for span in (first, second))
    assert one != other
    assert first.kind is SpanKind.CONSUMER
    assert first.end_time is not None
    assert second.start_time is not None
    assert first.end_time <= second.start_time


async def test_a_failed_attempt_says_what_it_failed_of(dsn: str, spans: Spans) -> None:
    """Status, class and frames; not the text of the exception, which may quote anything."""
    async with working(dsn, order, fails) as client:
        handle = await client.start(order, SECRET, id="o-1")
        await client.offer_event("o-1", "approved")
        await handle.result(timeout="15s")
        with pytest.raises(zart.ExecutionFailed):
            await client.start_and_wait(fails, id="x")
        await until(lambda: spans.named("run fails"), "the failed segment")
    failed, worked = spans.named("step charge-{order}")
    assert failed.status.status_code is StatusCode.ERROR
    assert failed.status.description == "ConnectionError"
    assert dict(failed.attributes or {})["error.type"] == "ConnectionError"
    (event,) = failed.events
    told = dict(event.attributes or {})
    assert (event.name, told["exception.type"]) == ("exception", "ConnectionError")
    assert "in charge" in str(told["exception.stacktrace"])
    assert str(told["exception.stacktrace"]).endswith("ConnectionError\n")
    assert worked.status.status_code is StatusCode.UNSET
    assert not worked.events
    (run,) = spans.named("run fails")
    assert run.status.description == "LookupError"
    assert run.events[0].attributes is not None
    assert SECRET not in "".join(span.to_json() for span in spans.all())


async def test_the_texts_of_exceptions_for_those_who_want_them(dsn: str) -> None:
    """`opentelemetry(messages=True)`."""
    with tracing(messages=True) as spans:
        async with working(dsn, fails) as client:
            with pytest.raises(zart.ExecutionFailed):
                await client.start_and_wait(fails, id="x")
            await until(lambda: spans.named("run fails"), "the failed segment")
    run = spans.one("run fails")
    assert run.status.description == f"LookupError: card {SECRET}"
    assert dict(run.events[0].attributes or {})["exception.message"] == f"card {SECRET}"


async def test_every_attribute_is_one_that_the_reference_names(dsn: str, spans: Spans) -> None:
    """And none of those is made up."""
    failing = durable("versioned", version="2")(fails.fn)
    async with working(dsn, order, scheduling, failing) as client:
        handle = await client.start(order, SECRET, id="o-1")
        await until_status(client, "o-1", "waiting")
        await client.offer_event("o-1", "approved")
        await handle.result(timeout="15s")
        await client.start_and_wait(scheduling, 1)
        with pytest.raises(zart.ExecutionFailed):
            await client.start_and_wait(failing)
        await until(lambda: spans.named("run versioned"), "the failed segment")
    runs = {name for span in spans.all() if span.name.startswith("run ") for name in span.attributes or {}}
    steps = {name for span in spans.all() if span.name.startswith("step ") for name in span.attributes or {}}
    assert runs == set(SEGMENT_ATTRIBUTES)
    assert steps == set(STEP_ATTRIBUTES)


async def test_children_and_scheduled_steps_are_below(dsn: str, spans: Spans) -> None:
    """A child, with an id of its parent's choice or not, belongs to its parent's segment; a scheduled step to what the
    execution was started in."""
    async with working(dsn, family, small, scheduling) as client:
        with spans.tracer.start_as_current_span("GET /"):
            traces = await client.start_and_wait(family, 7, id="f")
            await client.start_and_wait(scheduling, 1)
        await until(lambda: len(spans.named("run scheduling")) >= 1, "all spans")
    root = spans.one("GET /")
    assert traces == [trace.format_trace_id(ids(root)[0])] * 2
    parents = {ids(span) for span in spans.named("run family")}
    assert len(spans.named("run small")) == 2
    assert {parent(span) for span in spans.named("run small")} <= parents
    assert parent(spans.one("run look")) == ids(root)
    assert parent(spans.one("step look")) == ids(spans.one("run look"))


async def test_an_execution_that_begins_anew_stays_in_its_trace(dsn: str, spans: Spans) -> None:
    """The context is the execution's, whatever run it is in."""
    async with working(dsn, again) as client:
        with spans.tracer.start_as_current_span("loop"):
            await client.start_and_wait(again, 2)
        await until(lambda: len(spans.named("run again")) == 3, "all runs")
    root = spans.one("loop")
    assert {parent(span) for span in spans.named("run again")} == {ids(root)}
    outcomes = [dict(span.attributes or {})["zart.outcome"] for span in spans.named("run again")]
    assert outcomes == ["continued", "continued", "completed"]


async def test_whichever_way_it_was_started(dsn: str, spans: Spans) -> None:
    """Many at once, in a transaction of the caller's, by name, and from threads."""
    async with Client(dsn) as client:
        with spans.tracer.start_as_current_span("starter") as starter:
            await client.start(small, 1, id="one")
            await client.start_many(small, {"many-1": 1, "many-2": 2})
            await client.start("small", 1, id="by-name")
            await asyncio.gather(*(client.start(small, number) for number in range(5)))
            async with await psycopg.AsyncConnection.connect(dsn) as connection:
                await zart.start(small, 1, id="inside", connection=connection)

            def in_thread() -> None:
                with zart.sync.Client(dsn) as threads, psycopg.connect(dsn) as own:
                    threads.start(small, 1, id="thread")
                    zart.sync.start(small, 1, id="thread-inside", connection=own)

            await asyncio.to_thread(in_thread)
        await client.start(small, 1, id="nobody")
    await query(dsn, "SELECT zart_start('small', 'sql', '1')")
    context = starter.get_span_context()
    numbers = trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id)
    traceparent = "-".join(("00", *numbers, f"{context.trace_flags:02x}"))
    stored = dict(await query(dsn, "SELECT id, trace_context FROM zart_executions"))
    assert stored.pop("nobody") is None
    assert stored.pop("sql") is None
    assert len(stored) == 12
    assert set(stored.values()) == {traceparent}


async def test_the_state_of_the_trace_goes_along(dsn: str, spans: Spans) -> None:
    """What vendors have put into tracestate."""
    context = trace.SpanContext(
        0x1234567890ABCDEF1234567890ABCDEF,
        0x1234567890ABCDEF,
        is_remote=True,
        trace_flags=trace.TraceFlags(trace.TraceFlags.SAMPLED),
        trace_state=trace.TraceState([("vendor", "a b"), ("other", "1")]),
    )
    async with working(dsn, small) as client:
        with trace.use_span(trace.NonRecordingSpan(context)):
            handle = await client.start(small, 1, id="x")
        await handle.result(timeout="15s")
        await until(lambda: spans.named("run small"), "the segment")
    ((stored,),) = await query(dsn, "SELECT trace_context FROM zart_executions")
    assert stored == "00-1234567890abcdef1234567890abcdef-1234567890abcdef-01 vendor=a b,other=1"
    span = spans.one("run small")
    assert parent(span) == (context.trace_id, context.span_id)
    assert span.context is not None
    assert span.context.trace_state.to_header() == "vendor=a b,other=1"


@pytest.mark.parametrize(
    "stored", [None, "", "nonsense", "00-0-0-01", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"]
)
async def test_one_that_nobody_traced_has_a_trace_of_its_own(
    dsn: str, spans: Spans, stored: str | None
) -> None:
    """All its segments are in it, on whatever worker, since its id is drawn from the run; and so it is where what is
    stored cannot be read.
    """
    async with Client(dsn) as client:
        await query(dsn, "SELECT zart_start('order', 'o-1', '\"card\"')")
        await query(dsn, "UPDATE zart_executions SET trace_context = %s", stored)
        async with worker_for(dsn, order, config=forgetful()):
            await until_status(client, "o-1", "waiting")
        await client.offer_event("o-1", "approved")
        async with worker_for(dsn, order, config=forgetful()):
            await until_status(client, "o-1", "completed")
        await until(lambda: len(spans.named("run order")) >= 2, "both segments")
    runs = spans.named("run order")
    assert len({ids(span)[0] for span in spans.all()}) == 1
    assert len({parent(span) for span in runs}) == 1


async def test_the_sampler_decides_for_a_trace_of_its_own(dsn: str) -> None:
    """As it would for a trace that begins in the worker: the same on each, since it is asked about the same trace."""
    for sampler, most in ((ParentBased(ALWAYS_OFF), 0), (ParentBased(TraceIdRatioBased(0.5)), 39)):
        with tracing(sampler) as spans:
            async with working(dsn, small) as client:
                starts = [await client.start(small, 1) for _ in range(40)]
                for handle in starts:
                    await handle.result(timeout="15s")
        assert len(spans.all()) <= most
        assert len(spans.all()) >= bool(most)


async def test_a_trace_that_is_not_sampled_stays_so(dsn: str) -> None:
    """The starter's decision is handed on with its context."""
    with tracing(ParentBased(ALWAYS_OFF)) as spans:
        async with working(dsn, small) as client:
            with spans.tracer.start_as_current_span("starter"):
                await client.start_and_wait(small, 1)
    ((stored,),) = await query(dsn, "SELECT trace_context FROM zart_executions")
    assert not int(stored[-2:], 16) & trace.TraceFlags.SAMPLED
    assert spans.all() == []


async def test_the_body_runs_in_its_segment(dsn: str, spans: Spans) -> None:
    """The current span there is that of the segment, also when the body was kept in memory and goes on."""

    @step("where")
    async def where(seen: str) -> str:
        return seen

    def current() -> str:
        return trace.format_span_id(trace.get_current_span().get_span_context().span_id)

    seen: list[str] = []

    @durable("looking")
    async def looking() -> None:
        seen.append(current())
        await zart.wait_for_event("go")
        seen.append(current())

    async with working(dsn, looking) as client:
        handle = await client.start(looking, id="x")
        await until_status(client, "x", "waiting")
        await client.offer_event("x", "go")
        await handle.result(timeout="15s")
        await until(lambda: len(spans.named("run looking")) >= 2, "both segments")
    runs = [trace.format_span_id(ids(span)[1]) for span in spans.named("run looking")]
    assert seen[0] == runs[0]
    assert seen[-1] == runs[-1]


async def test_spans_are_ended_when_tracing_is(dsn: str) -> None:
    """Closing the subscription ends what is open; what goes on is not traced any more."""
    with tracing() as spans:
        async with working(dsn, order) as client:
            await client.start(order, "card", id="o-1")
            await until(lambda: spans.named("step charge-{order}"), "the step")
            telemetry.opentelemetry().close()
            before = len(spans.all())
            await until_status(client, "o-1", "waiting")
            await client.offer_event("o-1", "approved")
            await until_status(client, "o-1", "completed")
            assert len(spans.all()) == before


def test_twice_is_harmless() -> None:
    """The first call counts: a program and the command that runs it may both switch tracing on."""
    with tracing():
        first = telemetry.opentelemetry()
        assert telemetry.opentelemetry() is first
    assert telemetry.hub.hub.tracing is None


async def test_nothing_is_stored_or_made_without_it(dsn: str) -> None:
    """A program that has not switched it on pays nothing, whatever spans it has."""
    with tracing() as spans:
        telemetry.opentelemetry().close()
        with spans.tracer.start_as_current_span("starter"):
            async with working(dsn, small, config=fast()) as client:
                await client.start_and_wait(small, 1)
    assert [span.name for span in spans.all()] == ["starter"]
    assert await query(dsn, "SELECT trace_context FROM zart_executions") == [(None,)]
