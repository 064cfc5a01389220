"""Mutations of what is given away: scheduled steps, children, their ends and their cancels."""

from tests.mutations.mutation import Edit, Mutation

DELEGATED = "zart/_engine/delegated.py"
JOURNAL = "zart/_postgres/sql/journal.sql"
WAKEUPS = "zart/_postgres/sql/wakeups.sql"

_GIVING = "tests/integration/test_giving_away.py::"
_STEPS = "tests/integration/test_scheduled_steps.py::"
_CHILDREN = "tests/integration/test_children.py::"
_EDGES = "tests/integration/test_giving_away_edges.py::"
_CHILD_EDGES = "tests/integration/test_children_edges.py::"

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
                old="if isinstance(ending, (Completed, Failed, Cancelled)) and self._outlived:",
                new="if False and isinstance(ending, (Completed, Failed, Cancelled)):",
            ),
        ),
        tests=(
            f"{_STEPS}test_a_step_that_nobody_awaits_ends_before_the_execution",
            f"{_CHILDREN}test_a_child_ends_before_its_parent_unless_it_is_detached",
        ),
    ),
    Mutation(
        name="ended-as-it-returned",
        breaks="A cancel, or the end of the limit, counts although the body has returned and waits for its children.",
        edits=(
            Edit(
                file="zart/_engine/endings.py",
                old="        self._activation.reconsider()\n",
                new="",
            ),
        ),
        tests=(f"{_CHILDREN}test_what_ends_a_parent_whose_body_has_returned",),
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
    Mutation(
        name="map-holds-back-for-ever",
        breaks="A limited map goes on although whoever was to let an item begin has ended before.",
        edits=(
            Edit(
                file=DELEGATED,
                old="held_back=place >= width and self._is_new(keys[place - width]),",
                new="held_back=place >= width,",
            ),
        ),
        tests=(
            f"{_EDGES}test_a_limited_map_goes_on_after_an_item_has_failed_the_body",
            f"{_EDGES}test_a_limited_map_goes_on_when_a_deploy_has_appended_items",
        ),
    ),
    Mutation(
        name="failed-child-is-waited-for",
        breaks="A named child that is tried afresh is a conflict, and not one that was started before.",
        edits=(
            Edit(
                file=JOURNAL,
                under="find_child",
                old="    AND EXISTS (SELECT FROM",
                new="    AND true OR EXISTS (SELECT FROM",
            ),
        ),
        tests=(f"{_CHILD_EDGES}test_a_named_child_that_is_tried_afresh_is_a_conflict",),
    ),
    Mutation(
        name="child-id-of-the-attempt",
        breaks="A child keeps its id in later attempts of the body.",
        edits=(
            Edit(
                file=DELEGATED,
                old="if stored is not None and stored.child is not None:",
                new="if False and stored is not None and stored.child is not None:",
            ),
        ),
        tests=(f"{_CHILD_EDGES}test_a_child_keeps_its_id_in_later_attempts_of_the_body",),
    ),
    Mutation(
        name="replayed-cancel-means-all",
        breaks="What a cancelled body gives away to clean up is not cancelled by a replay.",
        edits=(
            Edit(
                file=DELEGATED,
                old="if not detached and (not replaying or key in self._asked)",
                new="if not detached",
            ),
        ),
        tests=(f"{_EDGES}test_what_a_cancelled_body_gives_away_to_clean_up_outlives_its_replays",),
    ),
    Mutation(
        name="detached-forgotten",
        breaks="A detached child is one although the code that started it does not run again.",
        edits=(
            Edit(
                file=DELEGATED,
                old="self._open[entry.key] = entry.child is not None and entry.child[1]",
                new="self._open[entry.key] = False",
            ),
        ),
        tests=(f"{_CHILD_EDGES}test_a_detached_child_stays_detached_when_only_on_failure_is_replayed",),
    ),
    Mutation(
        name="given-away-after-the-end",
        breaks="Nothing is given away after a forced cancel.",
        edits=(
            Edit(
                file=JOURNAL,
                under="record_and_end",
                old="AND (NOT u.given_away OR u.giver IN (",
                new="AND (true OR u.giver IN (",
            ),
        ),
        tests=(f"{_EDGES}test_nothing_is_given_away_after_a_forced_cancel",),
    ),
    Mutation(
        name="renamed-while-under-way",
        breaks="What is given away and under way is not given away again under another name.",
        edits=(Edit(file="zart/_engine/log.py", old="if gives and not self._floor:", new="if False:"),),
        tests=(f"{_EDGES}test_a_scheduled_step_that_was_renamed_is_a_contradiction[under-way]",),
    ),
    Mutation(
        name="renamed-after-its-end",
        breaks="What has ended is not given away again under another name, however far its branch has gone on.",
        edits=(
            Edit(
                file="zart/_engine/log.py",
                old="used = self.used(key.path) if used is None else used",
                new="used = self.used(key.path)",
            ),
        ),
        tests=(f"{_EDGES}test_a_scheduled_step_that_was_renamed_is_a_contradiction[ended]",),
    ),
    Mutation(
        name="foreign-handles",
        breaks="A handle of another execution is refused.",
        edits=(Edit(file=DELEGATED, old="if not pending.belongs_to(self):", new="if False:"),),
        tests=(f"{_EDGES}test_a_handle_of_another_execution_is_refused",),
    ),
    Mutation(
        name="forced-cancel-looks-once",
        breaks="A forced cancel reaches what was given away while it waited for whoever gave it away.",
        edits=(Edit(file="zart/client/steering.py", old="if ended and force:", new="if False:"),),
        tests=(f"{_EDGES}test_a_forced_cancel_reaches_what_is_given_away_while_it_waits",),
    ),
    Mutation(
        name="orphans-go-on",
        breaks="A named child whose parent was ended by force while its id was waited for does not go on.",
        edits=(
            Edit(
                file=JOURNAL,
                under="start_child",
                old="NOT EXISTS (SELECT FROM giver)",
                new="false",
            ),
        ),
        tests=(f"{_CHILD_EDGES}test_no_named_child_goes_on_after_a_forced_cancel",),
    ),
    Mutation(
        name="cancel-in-any-order",
        breaks="When a limited map is cancelled no held-back step begins.",
        edits=(
            Edit(
                file="zart/_postgres/sql/client.sql",
                under="cancel",
                old="ORDER BY s.path DESC, s.name DESC, s.occurrence DESC",
                new="ORDER BY s.path, s.name, s.occurrence",
            ),
        ),
        tests=(f"{_EDGES}test_the_cancel_of_a_map_takes_its_last_items_first",),
    ),
)
