"""Mutations of what may be pruned, of what is left then, and of what the doctor sees."""

from tests.mutations.mutation import Edit, Mutation

_PRUNING = "tests/integration/test_pruning.py::"
_SQL = "zart/_postgres/sql/retention.sql"
_WORKS = f"{_PRUNING}test_only_the_statuses_asked_for"

RETENTION = (
    Mutation(
        name="prune-unheard-child",
        breaks="A child stays while its parent has not heard of its end.",
        edits=(
            Edit(
                file=_SQL,
                under="prune",
                old="AND s.state IN ('started', 'running', 'waiting')",
                new="AND s.state IN ('started')",
            ),
        ),
        tests=(f"{_PRUNING}test_a_child_stays_whose_end_its_parent_has_not_heard_of",),
        works=_WORKS,
    ),
    Mutation(
        name="prune-under-a-step",
        breaks="The journal of a run stays while a scheduled step of it is done.",
        edits=(
            Edit(
                file=_SQL,
                under="prune",
                old="WHERE (SELECT t.id FROM {schema}.zart_tasks t WHERE t.id = s.task_id) IS NOT NULL",
                new="WHERE false",
            ),
        ),
        tests=(f"{_PRUNING}test_a_run_stays_of_which_a_scheduled_step_is_still_done",),
        works=_WORKS,
    ),
    Mutation(
        name="prune-leaves-events",
        breaks="Nothing is left of what was pruned.",
        edits=(
            Edit(
                file=_SQL,
                under="prune",
                old="AND v.consumed_at IS NOT NULL\n",
                new="AND v.consumed_at IS NOT NULL AND false\n",
            ),
        ),
        tests=(f"{_PRUNING}test_what_ended_long_ago_goes_with_all_that_belongs_to_it",),
        works=_WORKS,
    ),
    Mutation(
        name="prune-waits",
        breaks="Pruning waits for nobody.",
        edits=(Edit(file=_SQL, under="prune", old="FOR UPDATE OF e SKIP LOCKED", new="FOR UPDATE OF e"),),
        tests=(f"{_PRUNING}test_what_somebody_has_locked_is_passed",),
        works=_WORKS,
    ),
    Mutation(
        name="prune-of-any-size",
        breaks="A transaction of a pruner is short, however long the histories.",
        edits=(
            Edit(
                file=_SQL,
                under="prune",
                old="coalesce(w.before_it, 0) < %(records)s::int",
                new="%(records)s > 0",
            ),
        ),
        tests=(f"{_PRUNING}test_a_long_history_fills_a_batch_alone",),
        works=_WORKS,
    ),
    Mutation(
        name="prune-each-for-itself",
        breaks="One worker prunes for all.",
        edits=(
            Edit(file=_SQL, under="take_turn", old="WHERE d.due_at <= clock_timestamp()", new="WHERE true"),
        ),
        tests=(f"{_PRUNING}test_one_worker_prunes_for_all",),
        works=_WORKS,
    ),
    Mutation(
        name="pruned-result-is-none",
        breaks="The result of what was pruned is an error, not None.",
        edits=(
            Edit(file="zart/client/handle.py", old="if outcome.pruned:", new="if outcome.pruned is None:"),
        ),
        tests=(f"{_PRUNING}test_the_result_of_what_was_pruned_is_an_error_that_says_so",),
        works=_WORKS,
    ),
    Mutation(
        name="kept-id-forgets-its-input",
        breaks="A start by name that is sent again finds the id that was kept.",
        edits=(
            Edit(
                file="zart/_postgres/sql/client.sql",
                under="compare",
                old="ELSE e.payload_hash = {schema}.zart_payload_hash(u.payload::json) END",
                new="ELSE false END",
            ),
        ),
        tests=(f"{_PRUNING}test_a_start_that_is_sent_again_finds_the_id",),
        works=_WORKS,
    ),
    Mutation(
        name="kept-id-takes-anything",
        breaks="Another payload under an id that was kept is refused, from SQL as well.",
        edits=(
            Edit(
                file="migrations/0013_prune_what_ended.sql",
                old="existing.payload_hash IS DISTINCT FROM {schema}.zart_payload_hash(zart_start.payload::text::json)",
                new="false",
            ),
        ),
        tests=(f"{_PRUNING}test_what_was_started_from_sql_is_found_from_sql[None]",),
        works=_WORKS,
    ),
    Mutation(
        name="doctor-sees-its-own-settings",
        breaks="The doctor tells of the settings that sessions begin with, not of those that he has set himself.",
        edits=(
            Edit(
                file="zart/_postgres/sql/doctor.sql",
                under="settings",
                old="CASE WHEN s.reset_val = '0' THEN '0' ELSE s.reset_val || coalesce(' ' || s.unit, '') END",
                new="current_setting(s.name)",
            ),
        ),
        tests=("tests/acceptance/test_doctor.py::test_settings_under_which_nothing_can_work",),
        works="tests/acceptance/test_doctor.py::test_an_index_that_is_gone",
    ),
)
