"""Mutations of the journal: what is written, when it counts as written, and what one statement may hold."""

from tests.mutations.mutation import Edit, Mutation

JOURNAL = "zart/_postgres/sql/journal.sql"
SENDING = "zart/_engine/sending.py"
COLUMNS = "zart/_engine/columns.py"
FOLDING = "zart/_engine/folding.py"

_WRITES = "tests/integration/test_journal.py::"
_ANEW = "tests/integration/test_continuing.py::"
_FAULTS = "tests/integration/test_journal_faults.py::"

_CONFLICT = """
    ON CONFLICT (run_id, path, name, occurrence, kind) DO UPDATE SET
        seq = excluded.seq, state = excluded.state, digest = coalesce(excluded.digest, s.digest),
        arguments = coalesce(excluded.arguments, s.arguments), result = excluded.result, failure = excluded.failure,
        attempts = excluded.attempts, started_at = coalesce(excluded.started_at, s.started_at),
        finished_at = excluded.finished_at, until = excluded.until,
        progress = coalesce(excluded.progress, s.progress), token = excluded.token
    WHERE s.state IN ('started', 'running', 'waiting') AND excluded.task_id IS NULL
        AND ((s.token >> 24) IS DISTINCT FROM (excluded.token >> 24) OR s.token < excluded.token)"""
_EACH = ("record", "record_one", "record_and_end", "record_and_finish")

JOURNAL_MUTATIONS = (
    Mutation(
        name="acknowledged-before-commit",
        breaks="Nothing is acknowledged before it is durable.",
        edits=(
            Edit(
                file=SENDING,
                old="        todo = batch.rare_apart()[::-1]\n",
                new="        todo = batch.rare_apart()[::-1]\n"
                "        for record in batch.records():\n"
                "            told, record.done = record.done, None\n"
                "            if told is not None:\n"
                "                told(record, None)\n",
            ),
        ),
        tests=(
            f"{_WRITES}test_nothing_is_acknowledged_before_its_commit",
            f"{_WRITES}test_without_its_fence_the_journal_writes_nothing_more",
        ),
    ),
    Mutation(
        name="limit-of-the-first-run",
        breaks="The time limit of an execution that begins anew begins anew.",
        edits=(
            Edit(
                file=JOURNAL,
                under="begin_anew",
                old="due_at = {schema}.zart_now(), started_at",
                new="due_at = t.due_at, started_at",
            ),
        ),
        tests=(f"{_ANEW}test_the_time_limit_begins_anew",),
    ),
    Mutation(
        name="runs-kept-for-ever",
        breaks="A loop without end takes the room of its last two runs.",
        edits=(
            Edit(
                file=JOURNAL,
                under="begin_anew",
                old="WHERE r.ended_at IS NOT NULL AND",
                new="WHERE false AND",
            ),
        ),
        tests=(f"{_ANEW}test_a_loop_without_end_takes_the_room_of_two_rounds",),
    ),
    Mutation(
        name="events-lost-at-the-switch",
        breaks="What is offered while an execution begins anew is for the next run.",
        edits=(
            Edit(
                file=JOURNAL,
                under="begin_anew",
                old="v.consumed_at <= o.ended_at",
                new="coalesce(v.consumed_at, o.ended_at) <= o.ended_at",
            ),
        ),
        tests=(f"{_ANEW}test_events_that_come_during_the_switch_are_kept",),
    ),
    Mutation(
        name="on-conflict-removed",
        breaks="A record that is sent again, or that follows its own `running`, finds its row.",
        edits=tuple(Edit(file=JOURNAL, under=statement, old=_CONFLICT, new="") for statement in _EACH),
        tests=(
            f"{_FAULTS}test_entries_whose_commit_is_in_doubt_are_read_back",
            f"{_WRITES}test_a_start_and_its_result_fold_into_the_result",
        ),
    ),
    Mutation(
        name="final-records-written-over",
        breaks="A recorded result is never written over.",
        edits=tuple(
            Edit(
                file=JOURNAL,
                under=statement,
                old="WHERE s.state IN ('started', 'running', 'waiting') AND excluded.task_id IS NULL\n",
                new="WHERE excluded.task_id IS NULL\n",
            )
            for statement in _EACH
        ),
        tests=(f"{_WRITES}test_a_final_record_is_never_written_over",),
    ),
    Mutation(
        name="stragglers-win",
        breaks="A try that was stuck while its connection broke does not undo what came after it.",
        edits=tuple(
            Edit(
                file=JOURNAL,
                under=statement,
                old="AND ((s.token >> 24) IS DISTINCT FROM (excluded.token >> 24) OR s.token < excluded.token)",
                new="",
            )
            for statement in _EACH
        ),
        tests=(f"{_FAULTS}test_a_straggler_does_not_undo_what_came_after_it",),
    ),
    Mutation(
        name="no-read-back",
        breaks="What was committed while its answer was lost is not believed lost.",
        edits=(
            Edit(
                file=SENDING,
                old="{change.token for change in changes}) - found",
                new="{change.token for change in changes})",
            ),
        ),
        tests=(
            f"{_FAULTS}test_entries_whose_commit_is_in_doubt_are_read_back",
            f"{_FAULTS}test_endings_whose_commit_is_in_doubt_are_read_back",
        ),
    ),
    Mutation(
        name="lost-counts-as-written",
        breaks="A worker whose record another has made knows it.",
        edits=(
            Edit(
                file=SENDING,
                old="error = _lost(entry) if entry.token in reply.lost else None",
                new="error = None",
            ),
            Edit(
                file=SENDING,
                old="        if not reply.lost and not part.earlier",
                new="        if not part.earlier",
            ),
        ),
        tests=(f"{_WRITES}test_a_final_record_is_never_written_over",),
    ),
    Mutation(
        name="deaf-to-its-fence",
        breaks="A worker whose fence is gone stops at its first statement and registers anew.",
        edits=(Edit(file=SENDING, old="        if not stands:\n            raise FenceGone\n", new=""),),
        tests=(f"{_WRITES}test_without_its_fence_the_journal_writes_nothing_more",),
    ),
    Mutation(
        name="tasks-not-folded",
        breaks="A batch has one change for each row: PostgreSQL would drop all others silently.",
        edits=(
            Edit(
                file=COLUMNS,
                old="    return list(rows.values())\n\n\ndef task_columns",
                new="    resets = [row for row in rows.values() if row.ending == 'none']\n"
                "    return [*resets, *(_ending_row(change, clears=False) for change in batch.changes)]\n\n\n"
                "def task_columns",
            ),
            Edit(
                file=COLUMNS,
                old="        rows[change.task_id] = _ending_row(change, clears=before is not None and before.clears)\n",
                new="",
            ),
        ),
        tests=(f"{_WRITES}test_the_first_record_after_a_takeover_resets_the_recoveries",),
    ),
    Mutation(
        name="entries-not-folded",
        breaks="Of several records of one call in a batch the later one counts.",
        edits=(Edit(file=FOLDING, old="if len(by_key) < len(entries):", new="if False:"),),
        tests=("tests/unit/test_folding.py::test_the_later_of_two_entries_for_a_key_counts",),
    ),
    Mutation(
        name="sweep-beside-entries",
        breaks="What an ending sweeps away and what is written beside it never meet in one statement.",
        edits=(
            Edit(
                file=FOLDING,
                old="elif record.run_id in written and touches_entries(record.ending) and _meets(record, entries):",
                new="elif False:",
            ),
        ),
        tests=(
            "tests/unit/test_folding.py::test_an_ending_that_touches_entries_waits_for_those_of_its_run",
            f"{_WRITES}test_a_body_retry_moves_the_records_to_try_afresh",
        ),
    ),
    Mutation(
        name="poison-not-halved",
        breaks="A record that the database refuses fails alone.",
        edits=(
            Edit(
                file=SENDING,
                old="            elif len(part) > 1:\n                todo.extend(reversed(part.halves()))\n",
                new="",
            ),
        ),
        tests=(
            f"{_WRITES}test_one_poison_record_among_five_hundred_fails_alone",
            f"{_WRITES}test_a_poison_outcome_fails_alone",
        ),
    ),
    Mutation(
        name="suspicion-at-once",
        breaks="No record is blamed for connections that break by themselves.",
        edits=(Edit(file=SENDING, old="_GUILTY = 8", new="_GUILTY = 1"),),
        tests=(f"{_FAULTS}test_a_record_is_not_blamed_for_connections_that_break_by_themselves",),
    ),
    Mutation(
        name="suspicion-never",
        breaks="A record at which the server breaks off again and again fails by name, and the others go on.",
        edits=(Edit(file=SENDING, old="if len(suspicion) >= enough:", new="if False:"),),
        tests=(f"{_FAULTS}test_a_record_that_breaks_the_connection_each_time_is_refused_in_the_end",),
    ),
    Mutation(
        name="suspicion-without-looking",
        breaks="Before a record is blamed the journal looks whether it was committed.",
        edits=(Edit(file=SENDING, old="if await self._read_back(direct, part, set()):", new="if True:"),),
        tests=(f"{_FAULTS}test_a_record_that_was_committed_is_not_refused_however_often_the_answer_is_lost",),
    ),
    Mutation(
        name="waits-for-ever",
        breaks="A connection that does not answer is given up.",
        edits=(Edit(file=SENDING, old="self._line.hang_up()", new="pass"),),
        tests=(f"{_FAULTS}test_a_connection_without_answers_is_given_up",),
    ),
    Mutation(
        name="one-fence-row-for-all",
        breaks="Each writing connection has a fence row of its own: to share one would cost a multixact a batch.",
        edits=(Edit(file=SENDING, old='"writer": writer}', new='"writer": 1}'),),
        tests=(f"{_WRITES}test_batches_beside_a_big_record_make_no_multixacts",),
    ),
    Mutation(
        name="locked-in-any-order",
        breaks="Everybody locks tasks in the order of their ids, so there are no deadlocks.",
        edits=(
            Edit(
                file=JOURNAL,
                under="record_and_end",
                old="    ORDER BY t.id\n    FOR NO KEY UPDATE OF t",
                new="    ORDER BY array_position(%(task_ids)s::bigint[], t.id)\n    FOR NO KEY UPDATE OF t",
            ),
        ),
        tests=(f"{_WRITES}test_six_writers_of_the_same_tasks_do_not_deadlock",),
    ),
    Mutation(
        name="big-records-overtaken",
        breaks="An execution's records are committed in the order in which they were made.",
        edits=(
            Edit(
                file="zart/_engine/writer.py",
                old="            waiting.append((record, told))\n        elif told <= BIG:",
                new="            self._lane.add(record, told)\n        elif told <= BIG:",
            ),
        ),
        tests=(f"{_WRITES}test_big_records_do_not_hold_up_others_and_keep_their_place",),
    ),
    Mutation(
        name="big-records-overtake",
        breaks="At no time are two records of one execution in flight on two connections.",
        edits=(
            Edit(file="zart/_engine/writer.py", old="if self._lane.holds(record.run_id):", new="if False:"),
        ),
        tests=(f"{_WRITES}test_a_big_record_waits_for_those_before_it",),
    ),
    Mutation(
        name="suspension-without-counter",
        breaks="No event falls between the last look and the suspension.",
        edits=(
            Edit(
                file=JOURNAL,
                under="record_and_end",
                old="WHEN t.signal = m.seen AND (m.wake_at IS NULL",
                new="WHEN (m.wake_at IS NULL",
            ),
        ),
        tests=(
            f"{_WRITES}test_a_suspension_parks_unless_there_is_news",
            f"{_WRITES}test_a_suspension_behind_a_lock_sees_what_the_holder_did",
            "tests/integration/test_waiting.py::test_a_suspension_that_missed_news_is_refused",
        ),
    ),
    Mutation(
        name="event-consumed-twice",
        breaks="Each event is consumed once.",
        edits=(
            Edit(
                file=JOURNAL,
                under="record_and_end",
                old="WHERE v.id = u.id AND v.consumed_at IS NULL AND",
                new="WHERE v.id = u.id AND",
            ),
        ),
        tests=(f"{_WRITES}test_an_event_is_consumed_once",),
    ),
    Mutation(
        name="event-consumed-by-strangers",
        breaks="Only who holds the execution consumes its events.",
        edits=(
            Edit(
                file=JOURNAL,
                under="record_and_end",
                old="AND v.consumed_at IS NULL AND h.owner = %(worker)s::bigint",
                new="AND v.consumed_at IS NULL",
            ),
        ),
        tests=(f"{_WRITES}test_who_does_not_hold_the_execution_consumes_nothing",),
    ),
    Mutation(
        name="end-before-cancel",
        breaks="An execution that was to be cancelled before its end is cancelled, however its body ended.",
        edits=(
            *(
                Edit(
                    file=JOURNAL,
                    under=statement,
                    old="CASE WHEN m.cancelling THEN 'cancelled' ELSE m.ending END",
                    new="m.ending",
                )
                for statement in ("finish", "record_and_finish")
            ),
            Edit(
                file=JOURNAL,
                under="record_and_end",
                old="WHEN m.cancelling THEN 'cancelled' ELSE m.ending END",
                new="ELSE m.ending END",
            ),
        ),
        tests=("tests/integration/test_cancelling.py::test_after_the_last_step",),
    ),
    Mutation(
        name="leftovers-stay",
        breaks="What a body left under way has ended with it.",
        edits=tuple(
            Edit(
                file=JOURNAL,
                under=statement,
                old="SET state = 'cancelled', finished_at = {schema}.zart_now()\n    FROM mine m\n    WHERE s.run_id",
                new="SET state = 'cancelled', finished_at = {schema}.zart_now()\n    FROM mine m\n"
                "    WHERE false AND s.run_id",
            )
            for statement in ("record_and_end", "finish", "record_and_finish")
        ),
        tests=(f"{_WRITES}test_an_outcome_ends_the_execution_and_what_was_under_way",),
    ),
    Mutation(
        name="failed-records-kept",
        breaks="When a body is run again, the records whose exception left it are tried afresh.",
        edits=(
            Edit(
                file=JOURNAL,
                under="record_and_end",
                old="    WHERE m.token = a.token AND s.run_id = a.run_id AND s.path = a.path",
                new="    WHERE false AND m.token = a.token AND s.run_id = a.run_id AND s.path = a.path",
            ),
        ),
        tests=("tests/integration/test_failing.py::test_max_retries",),
    ),
)
