"""Mutations of what happens inside a step: its transaction, that it was started, its progress."""

from tests.mutations.mutation import Edit, Mutation

TRANSACTIONS = "zart/_engine/transactions.py"
CALLS = "zart/_engine/step_calls.py"
OUTGOING = "zart/_engine/outgoing.py"
SQL = "zart/_postgres/sql/transactions.sql"
MIGRATION = "migrations/0007_record_own_steps.sql"

_STEPS = "tests/integration/test_transactional_steps.py::"
_OWN = "tests/integration/test_own_transactions.py::"
_LONG = "tests/integration/test_long_steps.py::"

INSIDE = (
    Mutation(
        name="record-without-fence",
        breaks="A worker that was taken for dead commits nothing of a step.",
        edits=(
            Edit(
                file=SQL,
                under="record",
                old="    WHEN NOT EXISTS (SELECT FROM fence) THEN {schema}.zart_refuse_record('ZR001')\n",
                new="",
            ),
            Edit(
                file=SQL,
                under="record",
                old="    WHERE w.worker_id = %(worker)s::bigint AND w.writer = 3\n    FOR KEY SHARE",
                new="    WHERE %(worker)s::bigint IS NOT NULL LIMIT 1",
            ),
            Edit(file=SQL, under="record", old="    FROM fence\n", new=""),
        ),
        tests=(f"{_STEPS}test_neither_is_there_when_its_worker_is_fenced",),
    ),
    Mutation(
        name="record-apart-from-its-writes",
        breaks="What a step writes and its record are one commit.",
        edits=(
            Edit(
                file="zart/_engine/transaction_lines.py",
                old='self.record = f"{record}; COMMIT".encode(self._conn.info.encoding)',
                new='self.record = f"COMMIT; {record}".encode(self._conn.info.encoding)',
            ),
        ),
        tests=(f"{_STEPS}test_neither_is_there_when_its_worker_is_fenced",),
    ),
    Mutation(
        name="commit-in-doubt-not-read-back",
        breaks="After a lost answer it is found out what became of the COMMIT.",
        edits=(
            Edit(
                file=TRANSACTIONS,
                old="        if not await was_committed():\n            raise Again from error\n",
                new="        raise Again from error\n",
            ),
        ),
        tests=(f"{_STEPS}test_an_ambiguous_commit_is_read_back_by_its_token",),
    ),
    Mutation(
        name="stragglers-commit",
        breaks="A COMMIT that was stuck on its way can never come after the function has run again.",
        edits=(
            Edit(
                file=SQL,
                under="record",
                old="OR s.token < excluded.token)",
                new="OR true)",
            ),
        ),
        tests=(f"{_STEPS}test_a_commit_that_was_lost_on_its_way_can_never_come_later",),
    ),
    Mutation(
        name="conflicts-count-as-attempts",
        breaks="A serialization failure or a deadlock runs the function again, at no attempt's cost.",
        edits=(
            Edit(file=TRANSACTIONS, old='if lost or (cause.sqlstate or "")[:2] == "40":', new="if lost:"),
        ),
        tests=(
            f"{_STEPS}test_a_serialization_failure_runs_the_function_again",
            f"{_STEPS}test_a_deadlock_runs_the_loser_again",
        ),
    ),
    Mutation(
        name="no-limit-on-idleness",
        breaks="A step's transaction that stands idle is ended, and the attempt fails by name.",
        edits=(
            Edit(
                file="zart/_engine/transaction_lines.py",
                old='sql.SQL("SET LOCAL idle_in_transaction_session_timeout = {}").format(\n'
                "        sql.Literal(idle_milliseconds)\n    )",
                new='sql.SQL("SET LOCAL idle_in_transaction_session_timeout = {}").format(\n'
                "        sql.Literal(0 * idle_milliseconds)\n    )",
            ),
        ),
        tests=(f"{_STEPS}test_a_transaction_that_stands_idle_is_ended_and_named",),
    ),
    Mutation(
        name="nothing-held-back",
        breaks="The record of a step in its transaction has a number of its own, in its place in the log.",
        edits=(
            Edit(
                file=OUTGOING,
                old="        if self._held is None:\n            leave(record)\n",
                new="        if True:\n            leave(record)\n",
            ),
        ),
        tests=(f"{_STEPS}test_its_record_takes_its_turn_among_the_others",),
    ),
    Mutation(
        name="data-not-in-the-record",
        breaks="Data that a step sets is part of its record.",
        edits=(
            Edit(
                file=SQL,
                under="record",
                old="%(result)s::text::json, %(data)s::text::json,",
                new="%(result)s::text::json, CASE WHEN %(data)s::text = '' THEN '1'::json END,",
            ),
        ),
        tests=(f"{_STEPS}test_it_starts_offers_and_sets_data",),
    ),
    Mutation(
        name="own-record-forgotten",
        breaks="What a step has committed in a transaction of its own is never done again.",
        edits=(
            Edit(
                file="zart/_engine/own_records.py",
                old="        if attempt == 1 and self._claim.epoch == 1:\n            return None\n",
                new="        if True:\n            return None\n",
            ),
        ),
        tests=(f"{_OWN}test_what_was_committed_is_never_done_again",),
    ),
    Mutation(
        name="own-record-without-fence",
        breaks="A worker that was taken for dead records nothing in a transaction of a step's own.",
        edits=(Edit(file=MIGRATION, old="    IF holds IS NOT TRUE THEN", new="    IF false THEN"),),
        tests=(f"{_OWN}test_a_worker_that_was_taken_for_dead_records_nothing",),
    ),
    Mutation(
        name="own-attempts-not-ended",
        breaks="An attempt that is over records nothing any more.",
        edits=(
            Edit(
                file=MIGRATION,
                old="WHERE r.result IS NULL AND (r.epoch, r.attempt) < (excluded.epoch, excluded.attempt);\n"
                "    IF NOT FOUND THEN",
                new="WHERE r.result IS NULL;\n    IF NOT FOUND THEN",
            ),
        ),
        tests=(f"{_OWN}test_the_token_of_an_attempt_that_is_over_is_refused",),
    ),
    Mutation(
        name="started-not-recorded",
        breaks="That a step which runs at most once is started is committed before it runs.",
        edits=(
            Edit(file=CALLS, old="                await self._say_started()\n", new="                pass\n"),
        ),
        tests=(
            f"{_LONG}test_that_it_is_started_is_committed_before_it_runs",
            f"{_LONG}test_an_interrupted_one_is_never_run_again",
        ),
    ),
    Mutation(
        name="at-most-once-tried-afresh",
        breaks="A failure that leaves the body does not run a step again that runs at most once.",
        edits=(Edit(file="zart/_engine/branch.py", old="afresh=not spec.at_most_once", new="afresh=True"),),
        tests=(f"{_LONG}test_a_failure_that_leaves_the_body_does_not_run_it_again",),
    ),
    Mutation(
        name="shutdown-does-not-wait",
        breaks="A shutdown waits for a step that runs at most once.",
        edits=(
            Edit(
                file="zart/_engine/holding.py",
                old="                if activation.steps.may_be_interrupted:\n",
                new="                if True:\n",
            ),
        ),
        tests=(f"{_LONG}test_a_shutdown_waits_for_it",),
    ),
    Mutation(
        name="progress-lost-at-a-failure",
        breaks="The progress of an attempt that fails is there for the next one.",
        edits=(
            Edit(file=CALLS, old="        self._progress = step.inside.progress\n", new="        pass\n"),
            Edit(
                file=CALLS,
                old="self._first, self._progress = step.first_started_at, step.inside.progress",
                new="self._first = step.first_started_at",
            ),
        ),
        tests=(f"{_LONG}test_progress_is_kept_for_the_next_attempt",),
    ),
)
