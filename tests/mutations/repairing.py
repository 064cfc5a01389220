"""Mutations of repairs: who still writes for a run that was replaced, and what becomes of what a person asked for."""

from tests.mutations.mutation import Edit, Mutation

REPAIRS = "zart/_postgres/sql/repairs.sql"
JOURNAL = "zart/_postgres/sql/journal.sql"
WAKEUPS = "zart/_postgres/sql/wakeups.sql"
TABLES = "migrations/0010_repair_executions.sql"
ACTIVATION = "zart/_engine/activation.py"
ENDINGS = "zart/_engine/endings.py"
PLAIN = "zart/_engine/plain_steps.py"

_RUNS = "tests/integration/test_other_runs.py::"
_RETRIES = "tests/integration/test_retrying_steps.py::"
_UNDER_RULES = "tests/integration/test_repairing_under_rules.py::"
_TRANSITIONS = (
    "tests/model/test_transitions.py::test_what_is_in_the_table_happens_and_nothing_else[{state}]".format
)

REPAIRING = (
    Mutation(
        name="restart-leaves-the-holder",
        breaks="Once another run is begun, nobody holds the execution: who did hears that it is no longer his.",
        edits=(
            Edit(
                file=REPAIRS,
                under="renew_task",
                old="state = 'ready', owner = NULL, batch = NULL, epoch = t.epoch %% 2147483647 + 1,",
                new="state = CASE WHEN t.state = 'running' THEN 'running' ELSE 'ready' END,",
            ),
        ),
        tests=(
            f"{_RUNS}test_nothing_of_the_old_run_is_written_into_the_new_one",
            _TRANSITIONS(state="restarted while it was held"),
        ),
    ),
    Mutation(
        name="ending-of-another-run",
        breaks="What a worker sends of the run that was replaced ends nothing, whoever holds the execution.",
        edits=(
            Edit(
                file=REPAIRS,
                under="renew_task",
                old="state = 'ready', owner = NULL, batch = NULL, epoch = t.epoch %% 2147483647 + 1,",
                new="state = CASE WHEN t.state = 'running' THEN 'running' ELSE 'ready' END,",
            ),
            Edit(file=JOURNAL, under="finish", old=" AND h.run_id = c.run_id", new=""),
        ),
        tests=(f"{_RUNS}test_nothing_of_the_old_run_is_written_into_the_new_one",),
    ),
    Mutation(
        name="repaired-is-claimed-as-new",
        breaks="Of a run that was begun by a person the claim takes its own input, not that of the start.",
        edits=(
            Edit(
                file=REPAIRS,
                under="revive",
                old="{schema}.zart_now(), 1, e.attempt,",
                new="{schema}.zart_now(), 0, e.attempt,",
            ),
        ),
        tests=(f"{_RUNS}test_restarted_from_any_state[completed]",),
    ),
    Mutation(
        name="request-cleared-unmet",
        breaks="A request stays until a body has met it that was claimed since.",
        edits=(
            Edit(
                file=JOURNAL,
                under="record_and_end",
                old="WHEN m.ending = 'body-retry' AND m.seen = t.signal THEN NULL",
                new="WHEN m.ending = 'body-retry' THEN NULL",
            ),
        ),
        tests=(_TRANSITIONS(state="asked for while it was held"),),
    ),
    Mutation(
        name="end-despite-a-request",
        breaks="An execution of which somebody wants some done again does not end.",
        edits=(
            Edit(
                file=JOURNAL,
                under="finish",
                old="h.repaired AND c.ending <> 'cancelled' AS goes_on",
                new="false AS goes_on",
            ),
            Edit(
                file=JOURNAL,
                under="record_and_finish",
                old="h.repaired AND c.ending <> 'cancelled' AS goes_on",
                new="false AS goes_on",
            ),
            Edit(
                file=JOURNAL,
                under="record_and_end",
                old="t.repair IS NOT NULL AND t.cancel_at IS NULL AS repaired",
                new="false AS repaired",
            ),
            Edit(
                file=JOURNAL,
                under="begin_anew",
                old="t.repair IS NOT NULL AS repaired",
                new="false AS repaired",
            ),
        ),
        tests=tuple(
            f"{_RETRIES}test_an_end_that_comes_after_the_request_is_none[{ending}-{beside}]"
            for ending in ("Completed", "Failed", "ContinuedAsNew")
            for beside in ("alone", "with records")
        ),
    ),
    Mutation(
        name="deleted-but-its-rules",
        breaks="An execution that is deleted takes the rules that name it along.",
        edits=(
            Edit(
                file=REPAIRS, under="delete_rules", old="r.execution_id =", new="false AND r.execution_id ="
            ),
        ),
        tests=(f"{_UNDER_RULES}test_an_execution_that_is_deleted_takes_its_rules_along",),
    ),
    Mutation(
        name="held-does-not-give-way",
        breaks="What is held is given back for a repair, though its body waits for something outside of Zart.",
        edits=(
            Edit(
                file=ACTIVATION,
                old="        if repair and self.repair is None:\n",
                new="        if False:\n",
            ),
        ),
        tests=(f"{_RETRIES}test_in_a_plain_await",),
    ),
    Mutation(
        name="blocked-is-asked-in-vain",
        breaks="A blocked execution goes on when a step of it is to be tried again, asked for before or not.",
        edits=(Edit(file=REPAIRS, under="request", old="(t.state = 'blocked' OR NOT", new="(NOT"),),
        tests=(f"{_RETRIES}test_one_that_was_asked_for_before_the_body_was_blocked",),
    ),
    Mutation(
        name="wake-up-of-work-before",
        breaks="An event wakes what its execution has become, if that was repaired before the event was committed.",
        edits=(
            Edit(
                file=WAKEUPS,
                under="apply_wakeups",
                old="coalesce(r.task_id, f.task_id) AS task_id",
                new="f.task_id",
            ),
        ),
        tests=tuple(
            f"{_RUNS}test_an_event_that_is_committed_only_after_the_restart_wakes_the_new_run[{offer}]"
            for offer in ("lent", "SQL")
        ),
    ),
    Mutation(
        name="attempts-counted-anew",
        breaks="A run that is repaired is replayed as of the attempt that it ended in.",
        edits=(Edit(file=REPAIRS, under="revive", old="coalesce(e.attempt, 1) AS", new="1 AS"),),
        tests=tuple(
            f"{_RETRIES}test_the_body_counts_its_attempts_on[{retry}]" for retry in ("none", "fixed(1, 1ms)")
        ),
    ),
    Mutation(
        name="one-key-for-what-was-set-aside",
        breaks="What was done and is set aside is done again under another key.",
        edits=(
            Edit(
                file=ENDINGS,
                old="if attempt > 1 and (self.is_second",
                new="if attempt > 1000 and (self.is_second",
            ),
        ),
        tests=tuple(
            f"{_RETRIES}test_what_is_set_aside_is_done_again_under_another_key[{how}]"
            for how in ("on_failure", "cleanup")
        ),
    ),
    Mutation(
        name="one-key-on-the-straight-path",
        breaks="What was done and is set aside is done again under another key, also where a step takes the short way.",
        edits=(Edit(file=PLAIN, old=", marks=activation.phase.marks)", new=")"),),
        tests=tuple(
            f"{_RETRIES}test_what_is_set_aside_is_done_again_under_another_key[{how}]"
            for how in ("on_failure", "cleanup")
        ),
    ),
    Mutation(
        name="events-of-the-run-before",
        breaks="A restart drops events that nobody has consumed.",
        edits=(Edit(file=REPAIRS, under="drop_events", old="v.consumed_at IS NULL", new="false"),),
        tests=(f"{_RUNS}test_events_nobody_has_consumed_are_dropped_by_a_restart",),
    ),
    Mutation(
        name="ended-without-new-work",
        breaks="What has ended goes on only with other live work.",
        edits=(
            Edit(
                file=TABLES,
                old="AND (NEW.status <> 'scheduled' OR NEW.task_id = OLD.task_id))",
                new="AND NEW.status <> 'scheduled')",
            ),
        ),
        tests=(
            "tests/integration/test_rows_that_cannot_be.py::test_what_ended_stays_as_it_ended[scheduled]",
        ),
    ),
)
