"""What is told of executions, and who must never notice."""

from tests.mutations.mutation import Edit, Mutation

_HUB = "tests/unit/test_telemetry_hub.py::"
_LOGS = "tests/unit/test_telemetry_logs.py::"
_METRICS = "tests/unit/test_telemetry_metrics.py::"
_EVENTS = "tests/integration/test_telemetry_events.py::"
_TRACES = "tests/integration/test_traces.py::"

TELLING = (
    Mutation(
        name="hook-that-reaches-the-engine",
        breaks="What a hook raises goes no further.",
        edits=(
            Edit(
                file="zart/telemetry/hub.py",
                old="except BaseException as error:  # noqa: BLE001 (whatever",
                new="except ZeroDivisionError as error:  # noqa: BLE001 (whatever",
            ),
        ),
        tests=(
            f"{_HUB}test_what_a_hook_raises_goes_no_further",
            f"{_EVENTS}test_a_hook_that_always_fails_changes_nothing",
        ),
    ),
    Mutation(
        name="trouble-said-each-time",
        breaks="The same trouble of a hook is said once, not at every event.",
        edits=(
            Edit(
                file="zart/telemetry/hub.py",
                old="now - said < _SAID_EVERY",
                new="now - said < 0",
            ),
        ),
        tests=(f"{_HUB}test_the_same_trouble_is_said_once_and_counted_each_time",),
    ),
    Mutation(
        name="labels-without-end",
        breaks="A label has a bounded number of values.",
        edits=(Edit(file="zart/telemetry/labels.py", old="len(known) >= self._most", new="False"),),
        tests=(f"{_METRICS}test_steps_with_names_made_on_the_fly_cannot_fill_the_memory",),
    ),
    Mutation(
        name="label-of-the-rendered-name",
        breaks="A metric's label is the step's name in the code.",
        edits=(
            Edit(
                file="zart/telemetry/metrics.py",
                old="event.segment.function, event.step.step, event.outcome",
                new="event.segment.function, event.step.name, event.outcome",
            ),
        ),
        tests=(f"{_METRICS}test_a_template_is_one_series_whatever_it_renders",),
    ),
    Mutation(
        name="trace-not-stored",
        breaks="The starter's trace goes along with the execution.",
        edits=(
            Edit(
                file="zart/client/starting.py",
                old="trace_context=hub.trace_context(),",
                new="trace_context=None,",
            ),
        ),
        tests=(
            f"{_TRACES}test_one_trace_across_a_suspension_and_two_workers",
            f"{_TRACES}test_whichever_way_it_was_started",
        ),
    ),
    Mutation(
        name="trace-not-claimed",
        breaks="Whoever goes on with an execution knows what it was started in.",
        edits=(
            Edit(
                file="zart/_postgres/sql/claim.sql",
                under="claim",
                old="(SELECT e.trace_context FROM",
                new="(SELECT CASE WHEN t.epoch = 1 THEN e.trace_context END FROM",
            ),
        ),
        tests=(f"{_TRACES}test_one_trace_across_a_suspension_and_two_workers",),
    ),
    Mutation(
        name="children-without-their-parents-trace",
        breaks="A child belongs to its parent's segment.",
        edits=(
            Edit(
                file="zart/_engine/telling.py",
                old="return hub.trace_context_of(_told(activation).segment) if hub.tracing is not None else None",
                new="return None",
            ),
        ),
        tests=(f"{_TRACES}test_children_and_scheduled_steps_are_below",),
    ),
    Mutation(
        name="texts-of-exceptions-in-spans",
        breaks="The text of an exception is not in a span unless somebody wants it there.",
        edits=(
            Edit(
                file="zart/telemetry/traces.py",
                old="if error is not None and self._messages else kind",
                new="if error is not None else kind",
            ),
        ),
        tests=(f"{_TRACES}test_a_failed_attempt_says_what_it_failed_of",),
    ),
    Mutation(
        name="sampled-whatever-the-sampler-says",
        breaks="The sampler decides about a trace that begins in a worker.",
        edits=(
            Edit(
                file="zart/telemetry/traces.py",
                old="return bool(result.decision.is_sampled())",
                new="return True",
            ),
        ),
        tests=(f"{_TRACES}test_the_sampler_decides_for_a_trace_of_its_own",),
    ),
    Mutation(
        name="log-without-step",
        breaks="A line that a step writes says which step it is.",
        edits=(
            Edit(
                file="zart/telemetry/logs.py",
                old='return found | {"zart_step": step.step_name, "zart_attempt": step.step_attempt}',
                new="return found",
            ),
        ),
        tests=(f"{_LOGS}test_each_line_says_where_it_was_written",),
    ),
)
