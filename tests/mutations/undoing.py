"""Mutations of sagas: what is undone when, in which order, and what becomes of an undo that fails."""

from tests.mutations.mutation import Edit, Mutation

SAGAS = "zart/_engine/sagas.py"
ATTEMPTS = "zart/_engine/step_attempts.py"
CALLS = "zart/_engine/step_calls.py"
ENDINGS = "zart/_engine/endings.py"

_TESTS = "tests/integration/test_sagas.py::"

UNDOING = (
    Mutation(
        name="undone-from-the-front",
        breaks="Undos run in reverse: the last act is undone first.",
        edits=(
            Edit(
                file=SAGAS,
                old="for entry in reversed(self._registered):",
                new="for entry in self._registered:",
            ),
        ),
        tests=(f"{_TESTS}test_a_failure_undoes_in_reverse",),
    ),
    Mutation(
        name="undone-beside-acts",
        breaks="Nothing is undone before the branches of the block have ended.",
        edits=(Edit(file=SAGAS, old="            await self._end_branches(line)\n", new=""),),
        tests=(f"{_TESTS}test_branches_have_ended_before_the_first_undo",),
    ),
    Mutation(
        name="undone-beside-threads",
        breaks="Nothing is undone before the threads of the block have returned.",
        edits=(
            Edit(
                file=SAGAS,
                old="                await attend(self._activation, asyncio.wait(running))",
                new="                pass",
            ),
        ),
        tests=(f"{_TESTS}test_a_thread_has_returned_before_it_is_undone",),
    ),
    Mutation(
        name="undone-beside-what-was-given-away",
        breaks="Nothing is undone before scheduled steps and children of the block have ended.",
        edits=(Edit(file=SAGAS, old="            await self._end_given()\n", new=""),),
        tests=(f"{_TESTS}test_what_was_given_away_has_ended_before_it_is_undone",),
    ),
    Mutation(
        name="undos-can-be-cancelled",
        breaks="A cancel does not cut an undo that runs.",
        edits=(
            Edit(
                file=SAGAS,
                old="                    await asyncio.wait([task])",
                new="                    await task",
            ),
        ),
        tests=(f"{_TESTS}test_a_cancel_does_not_cut_an_undo",),
    ),
    Mutation(
        name="undone-twice",
        breaks="What is undone once is not undone again.",
        edits=(
            Edit(
                file=SAGAS,
                old="        if self._task is None:\n            self.taken",
                new="        if True:\n            self.taken",
            ),
            Edit(
                file=SAGAS,
                old="                if not undo.done:\n                    await",
                new="                if True:\n                    await",
            ),
        ),
        tests=(
            f"{_TESTS}test_compensate_undoes_once",
            f"{_TESTS}test_a_failure_after_compensate_undoes_nothing_more",
        ),
    ),
    Mutation(
        name="inner-sagas-forgotten",
        breaks="A saga that ended well within another is undone with that one.",
        edits=(
            Edit(
                file=SAGAS,
                old="                outer._registered.append(self)  # noqa: SLF001\n",
                new="",
            ),
        ),
        tests=(f"{_TESTS}test_a_saga_within_another",),
    ),
    Mutation(
        name="undone-acts-kept",
        breaks="What was undone is done afresh when the body is run again.",
        edits=(
            Edit(
                file=ENDINGS,
                old="        for saga in forgotten:\n            for key",
                new="        for saga in []:\n            for key",
            ),
        ),
        tests=(f"{_TESTS}test_what_was_undone_is_done_afresh_when_the_body_is_run_again",),
    ),
    Mutation(
        name="taken-along-and-kept",
        breaks="What a sibling's failure has undone is done afresh when the body is run again.",
        edits=(
            Edit(
                file=SAGAS,
                old="(undos.taken_along and undos.undone_at >= since)",
                new="False",
            ),
        ),
        tests=(
            f"{_TESTS}test_a_saga_that_a_failure_took_along_is_done_afresh_too",
            f"{_TESTS}test_a_saga_undone_by_hand_after_the_failure_is_done_afresh",
        ),
    ),
    Mutation(
        name="cancelled-before-and-forgotten",
        breaks="A saga that was cancelled before the failure of the body stays as it is when that is run again.",
        edits=(
            Edit(
                file=SAGAS,
                old="(undos.taken_along and undos.undone_at >= since)",
                new="undos.taken_along",
            ),
        ),
        tests=(f"{_TESTS}test_a_saga_that_was_cancelled_before_the_failure_is_kept",),
    ),
    Mutation(
        name="undone-acts-keep-their-key",
        breaks="An act that was undone is done afresh under another idempotency key.",
        edits=(Edit(file=ATTEMPTS, old="    if step.marks:\n", new="    if False:\n"),),
        tests=(f"{_TESTS}test_what_was_undone_is_done_afresh_when_the_body_is_run_again",),
    ),
    Mutation(
        name="failed-undos-are-failures",
        breaks="An undo that fails for good blocks the execution, and is tried again after a resume.",
        edits=(Edit(file=CALLS, old="        if self._undoes is not None:\n", new="        if False:\n"),),
        tests=(f"{_TESTS}test_an_undo_that_fails_for_good_blocks",),
    ),
    Mutation(
        name="cancelled-with-acts-left",
        breaks="A cancel whose undo fails does not end the execution.",
        edits=(
            Edit(
                file="zart/_engine/columns.py",
                old='"undo-failed" if ending.failed_undo else "blocked"',
                new='"blocked"',
            ),
        ),
        tests=(f"{_TESTS}test_a_cancel_whose_undo_fails_is_blocked",),
    ),
    Mutation(
        name="second-cancel-gives-up",
        breaks="Asking a second time for a cancel does not give up what cannot be undone.",
        edits=(
            Edit(
                file="zart/_postgres/sql/client.sql",
                under="cancel",
                old="(t.state = 'blocked' AND t.cancel_at IS NULL)",
                new="t.state = 'blocked'",
            ),
        ),
        tests=(f"{_TESTS}test_a_cancel_whose_undo_fails_is_blocked",),
    ),
)
