"""Mutations of rules that hold executions back: what they cover, when they are heard of, how they let go."""

from tests.mutations.mutation import Edit, Mutation

PAUSES = "zart/_postgres/sql/pauses.sql"
CLAIM = "zart/_postgres/sql/claim.sql"

_PAUSING = "tests/integration/test_pausing.py::"
_RACES = "tests/integration/test_pausing_races.py::"

PAUSING = (
    Mutation(
        name="step-not-held",
        breaks="A step that a rule covers does not begin.",
        edits=(
            Edit(
                file="zart/_engine/step_calls.py",
                old="        if activation.host.rules.any:\n"
                "            await activation.holds.pass_by(branch, self._key)\n",
                new="",
            ),
        ),
        tests=(f"{_PAUSING}test_a_step_is_held_back_wherever_it_is_asked_for",),
    ),
    Mutation(
        name="claim-not-looked-over",
        breaks="What was claimed under older rules is not run.",
        edits=(
            Edit(
                file="zart/_engine/holding.py",
                old="paused = self._paused(claim) if self.rules.any else None",
                new="paused = None",
            ),
        ),
        tests=(f"{_PAUSING}test_what_was_claimed_under_older_rules_is_given_back_before_it_runs",),
    ),
    Mutation(
        name="lanes-stay-open",
        breaks="A rule by a function's name changes no row of what it covers.",
        edits=(
            Edit(
                file="zart/_engine/pauses.py",
                old="self.open = [lane for lane in self._lanes if self._functions.get(lane) not in names]",
                new="self.open = self._lanes",
            ),
        ),
        tests=(f"{_PAUSING}test_all_of_a_function_are_held_back_whenever_they_start_and_no_row_is_changed",),
    ),
    Mutation(
        name="cancels-wait-for-rules",
        breaks="What is to be cancelled is claimed, though a rule holds its function back.",
        edits=(
            Edit(
                file="zart/_engine/claimer.py",
                old='            "passing": self._rules.closed,\n            "limit"',
                new='            "passing": [],\n            "limit"',
            ),
        ),
        tests=(f"{_PAUSING}test_a_cancel_lets_what_is_paused_go_on_to_its_end[name-by client]",),
    ),
    Mutation(
        name="cleanup-held-back",
        breaks="The cleanup of a cancelled execution is held back by no rule.",
        edits=(
            Edit(
                file="zart/_engine/pauses.py",
                old="if not rules.any or activation.cancels.requested is not None:",
                new="if not rules.any:",
            ),
        ),
        tests=(f"{_PAUSING}test_a_cancel_lets_what_is_paused_go_on_to_its_end[step-by client]",),
    ),
    Mutation(
        name="paused-for-what-is-gone",
        breaks="Nothing is paused for a rule that goes at this moment.",
        edits=(Edit(file=PAUSES, under="park", old="    FOR KEY SHARE SKIP LOCKED\n", new=""),),
        tests=(
            f"{_RACES}test_what_is_paused_while_its_rule_is_deleted_is_seen_by_whoever_lets_it_go",
            f"{_RACES}test_nothing_is_paused_for_a_rule_that_is_about_to_go",
        ),
    ),
    Mutation(
        name="locked-rows-forgotten",
        breaks="What another transaction holds at the end of its rule is let go later.",
        edits=(
            Edit(
                file="zart/_engine/rule_keeping.py",
                old="self._frees = found > 0",
                new="self._frees = found > freed",
            ),
            Edit(
                file="zart/_engine/rule_keeping.py",
                old="        return changes != self._rules.changes or self._rules.has_ended(now) or self._frees",
                new="        return changes != self._rules.changes or self._rules.has_ended(now)",
            ),
        ),
        tests=(f"{_RACES}test_what_another_transaction_holds_is_let_go_later",),
    ),
    Mutation(
        name="delays-forgotten",
        breaks="The end of a rule begins nothing before its time.",
        edits=(
            Edit(
                file=PAUSES,
                under="free",
                old="SET state = CASE WHEN greatest(t.due_at, t.not_before) > {schema}.zart_now() THEN 'waiting' "
                "ELSE 'ready' END,",
                new="SET state = 'ready',",
            ),
        ),
        tests=(
            f"{_PAUSING}test_a_start_that_is_not_due_waits_on_for_its_time_after_the_pause",
            f"{_PAUSING}test_the_pause_between_two_attempts_of_a_body_is_kept",
        ),
    ),
    Mutation(
        name="rules-never-expire",
        breaks="A rule ends by itself at its time.",
        edits=(
            Edit(
                file="zart/_engine/pauses.py",
                old="return self.next_end is not None and self.next_end <= now",
                new="return False",
            ),
        ),
        tests=(f"{_PAUSING}test_a_rule_ends_by_itself_at_its_time[name]",),
    ),
)
