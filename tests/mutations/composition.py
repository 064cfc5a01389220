"""Mutations of what is given away: scheduled steps, children, their ends and their cancels."""

from tests.mutations.mutation import Edit, Mutation

DELEGATED = "zart/_engine/delegated.py"
JOURNAL = "zart/_postgres/sql/journal.sql"
WAKEUPS = "zart/_postgres/sql/wakeups.sql"

_GIVING = "tests/integration/test_giving_away.py::"
_STEPS = "tests/integration/test_scheduled_steps.py::"
_CHILDREN = "tests/integration/test_children.py::"

COMPOSITION = (
    Mutation(
        name="given-away-twice",
        breaks="The same work is given away once, whoever tries.",
        edits=(
            Edit(
                file=JOURNAL,
                under="record_and_end",
                old="WHERE s.state IN ('started', 'running', 'waiting') AND excluded.task_id IS NULL\n",
                new="WHERE s.state IN ('started', 'running', 'waiting')\n",
            ),
        ),
        tests=(f"{_GIVING}test_the_same_work_is_given_away_once",),
    ),
    Mutation(
        name="ends-not-folded",
        breaks="A parent's suspension and the ends that it waits for may meet in one batch: it wakes.",
        edits=(
            Edit(
                file=JOURNAL,
                under="record_and_end",
                old="AND (m.wake_at_done IS NULL OR t.done + m.arrivals < m.wake_at_done) THEN 'waiting'",
                new="THEN 'waiting'",
            ),
        ),
        tests=(f"{_GIVING}test_a_suspension_and_the_ends_that_it_waits_for_in_one_batch",),
    ),
    Mutation(
        name="arrivals-not-counted",
        breaks="What ends elsewhere wakes the body that waits for it.",
        edits=(
            Edit(
                file=JOURNAL,
                under="record_and_end",
                old="        done = t.done + m.arrivals,\n",
                new="        done = t.done,\n",
            ),
        ),
        tests=(f"{_GIVING}test_the_end_of_a_step_tells_its_giver",),
    ),
    Mutation(
        name="children-tell-nobody",
        breaks="The end of a child is in its parent's journal with the outcome itself.",
        edits=(
            Edit(
                file=JOURNAL,
                under="record_and_end",
                old="    WHERE f.ends AND s.run_id = f.parent_run",
                new="    WHERE false AND s.run_id = f.parent_run",
            ),
        ),
        tests=(f"{_GIVING}test_a_child_that_ends_tells_its_parent_in_the_same_statement",),
    ),
    Mutation(
        name="zombie-ends-a-step",
        breaks="Only who holds a scheduled step writes what came of it.",
        edits=(
            Edit(
                file=JOURNAL,
                under="record_and_end",
                old="AND (c.ending = 'none' OR h.epoch = c.epoch)",
                new="",
            ),
        ),
        tests=(f"{_GIVING}test_an_end_under_a_lost_claim_writes_nothing",),
    ),
    Mutation(
        name="renumbered",
        breaks="What has arrived gets its place in the log once.",
        edits=(
            Edit(
                file=JOURNAL,
                under="record_and_end",
                old="AND s.kind = u.kind AND s.seq IS NULL AND s.state IN",
                new="AND s.kind = u.kind AND s.state IN",
            ),
        ),
        tests=(f"{_GIVING}test_what_arrived_gets_its_number_once",),
    ),
    Mutation(
        name="orders-miss-their-batch",
        breaks="A cancel finds what was given away in the same batch.",
        edits=(
            Edit(
                file=JOURNAL,
                under="record_and_end",
                old="            SELECT n.task_id FROM written n\n            WHERE n.run_id",
                new="            SELECT n.task_id FROM written n\n            WHERE false AND n.run_id",
            ),
        ),
        tests=(f"{_GIVING}test_an_order_reaches_what_is_given_away_in_the_same_batch",),
    ),
    Mutation(
        name="outcome-does-not-wait",
        breaks="An execution ends after what it has given away.",
        edits=(
            Edit(
                file="zart/_engine/activation.py",
                old="if isinstance(ending, (Completed, Failed, Cancelled)) and self.delegated.unfinished:",
                new="if False and isinstance(ending, (Completed, Failed, Cancelled)):",
            ),
        ),
        tests=(
            f"{_STEPS}test_a_step_that_nobody_awaits_ends_before_the_execution",
            f"{_CHILDREN}test_a_child_ends_before_its_parent_unless_it_is_detached",
        ),
    ),
    Mutation(
        name="cancel-waits-for-a-slot",
        breaks="A cancel reaches what was given away even when that holds all slots.",
        edits=(
            Edit(
                file="zart/_postgres/sql/client.sql",
                under="cancel",
                old="FROM (SELECT run_id FROM ended UNION ALL SELECT run_id FROM told) x",
                new="FROM (SELECT run_id FROM ended) x",
            ),
        ),
        tests=(f"{_STEPS}test_a_cancelled_execution_takes_its_steps_along",),
    ),
    Mutation(
        name="first-attempt-burned",
        breaks="A worker that dies in the first attempt of a scheduled step burns no other.",
        edits=(Edit(file=DELEGATED, old="            attempts=0,\n", new=""),),
        tests=(f"{_STEPS}test_a_worker_that_dies_in_the_first_attempt_burns_no_other",),
    ),
    Mutation(
        name="limit-of-map-ignored",
        breaks="Of a limited map only so many run at once.",
        edits=(
            Edit(
                file=DELEGATED,
                old="held_back=place >= width and self._is_new(keys[place - width]),",
                new="held_back=False,",
            ),
        ),
        tests=(f"{_STEPS}test_a_map_keeps_its_limit_and_its_order",),
    ),
    Mutation(
        name="detached-is-attached",
        breaks="A detached child is neither waited for nor cancelled.",
        edits=(
            Edit(
                file=DELEGATED,
                old="        if call.detached and key in self._open:\n            self._open[key] = True\n",
                new="",
            ),
            Edit(
                file=DELEGATED,
                old="self._open[key] = isinstance(entry.work, ChildWork) and entry.work.detached",
                new="self._open[key] = False",
            ),
        ),
        tests=(f"{_CHILDREN}test_a_child_ends_before_its_parent_unless_it_is_detached",),
    ),
)
