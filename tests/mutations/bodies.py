"""Mutations of what a body observes: its log, the order of delivery, replay, waits, time and cancels."""

from tests.mutations.mutation import Edit, Mutation

ACTIVATION = "zart/_engine/activation.py"
BRANCH = "zart/_engine/branch.py"
ENDINGS = "zart/_engine/endings.py"
LOG = "zart/_engine/log.py"
ATTEMPTS = "zart/_engine/step_attempts.py"
CALLS = "zart/_engine/step_calls.py"
PARKING = "zart/_engine/parking.py"
PLAIN = "zart/_engine/plain_steps.py"
PATCHES = "zart/_engine/patches.py"
RECORDING = "zart/_engine/recording.py"
REPLAY = "zart/_engine/replay.py"
REST = "zart/_engine/rest.py"
SUSPENDING = "zart/_engine/suspending.py"
WAITS = "zart/_engine/waits.py"

_KEPT = "tests/integration/test_kept_bodies.py::"
_REPLAY = "tests/unit/test_replay.py::"
_CHANGING = "tests/integration/test_changing_code.py::"
_FAILING = "tests/integration/test_failing.py::"
_IDENTITY = "tests/integration/test_identity.py::"
_REST = "tests/unit/test_rest.py::"
_SAME = "tests/integration/test_same_on_replay.py::"
_WAITING = "tests/integration/test_waiting.py::"

BODIES = (
    Mutation(
        name="delivered-out-of-order",
        breaks="What a body observes comes in one order, live and on replay.",
        edits=(
            Edit(
                file=RECORDING,
                old="committed, hand_over = self._outbox.popleft()",
                new="committed, hand_over = self._outbox.pop()",
            ),
        ),
        tests=(f"{_REPLAY}test_a_crash_at_any_record_leaves_a_log_that_explains_the_outcome",),
    ),
    Mutation(
        name="delivered-without-rest",
        breaks="The next entry is delivered when the body has come to rest after the one before it.",
        edits=(
            Edit(
                file=RECORDING,
                old="if not self._outbox and deliver is None and self._only_waits_for(future):",
                new="if deliver is None and not future.done():",
            ),
        ),
        tests=(f"{_REPLAY}test_a_crash_at_any_record_leaves_a_log_that_explains_the_outcome",),
    ),
    Mutation(
        name="replayed-in-order-of-names",
        breaks="A replay hands the entries out in the recorded order.",
        edits=(Edit(file=LOG, old="key=lambda entry: entry.seq or 0,", new="key=lambda entry: entry.key,"),),
        tests=(f"{_REPLAY}test_a_crash_at_any_record_leaves_a_log_that_explains_the_outcome",),
    ),
    Mutation(
        name="recorded-steps-run-again",
        breaks="A recorded step never runs again.",
        edits=(
            Edit(
                file=BRANCH,
                old="        if record is None or record.seq is None:\n            if activation.replaying:",
                new="        if record is None or record.seq is None or record.key.kind == 'step':\n"
                "            if activation.replaying:",
            ),
        ),
        tests=(f"{_IDENTITY}test_a_caught_failure_is_replayed",),
    ),
    Mutation(
        name="branches-not-numbered",
        breaks="Each branch of a body has calls of its own, which never get another branch's records.",
        edits=(
            Edit(
                file="zart/_engine/lineage.py",
                old="        return parent.child(), True",
                new="        return parent, True",
            ),
        ),
        tests=(
            "tests/unit/test_lineage.py::test_keys_are_the_golden_ones",
            f"{_SAME}test_branches_that_arrive_in_another_order_get_their_own_records",
        ),
    ),
    Mutation(
        name="first-value-not-decoded",
        breaks="What a body gets on the first run is what it gets on replay.",
        edits=(Edit(file=ATTEMPTS, old="return decoded, result, None", new="return value, result, None"),),
        tests=(f"{_SAME}test_a_result_is_decoded_the_first_time_too",),
    ),
    Mutation(
        name="contradictions-ignored",
        breaks="Changed code is noticed before anything of it runs.",
        edits=(
            Edit(
                file=LOG,
                old="        if not self._unused:\n            return None",
                new="        return None",
            ),
        ),
        tests=(f"{_IDENTITY}test_changed_code_blocks_and_runs_nothing",),
    ),
    Mutation(
        name="kept-body-of-anybody",
        breaks="A body that is kept in memory goes on only if nobody else has held its execution in between.",
        edits=(
            Edit(
                file=SUSPENDING,
                old="        next_epoch(activation.claim.epoch),\n",
                new="        epoch,\n",
            ),
        ),
        tests=(f"{_KEPT}test_a_race_that_another_worker_has_decided_meanwhile",),
    ),
    Mutation(
        name="kept-body-hears-nothing",
        breaks="A body that is kept in memory hears of the events that came meanwhile.",
        edits=(
            Edit(
                file=SUSPENDING,
                old="    activation.waits.offer(claim.events)\n",
                new="",
            ),
        ),
        tests=(f"{_KEPT}test_news_come_with_the_claim",),
    ),
    Mutation(
        name="kept-body-hears-of-no-ends",
        breaks="A body that is kept in memory hears of what has ended meanwhile of the work that it gave away.",
        edits=(
            Edit(
                file=SUSPENDING,
                old="    activation.delegated.news(claim.done, claim.arrived)\n",
                new="",
            ),
        ),
        tests=(f"{_KEPT}test_what_was_given_away_comes_with_the_claim",),
    ),
    Mutation(
        name="kept-bodies-go-on-by-themselves",
        breaks="A body that is kept in memory records nothing while its execution is everybody's.",
        edits=(
            Edit(
                file=BRANCH,
                old="        activation.forget()\n        if activation.closed:",
                new="        if activation.closed:",
            ),
        ),
        tests=(f"{_KEPT}test_a_body_that_moves_by_itself_is_forgotten",),
    ),
    Mutation(
        name="patches-for-all",
        breaks="An execution that is recorded further than `zart.patched` does not take the change.",
        edits=(
            Edit(
                file=PATCHES,
                old="answer = not (activation.replaying and activation.log.holds_more)",
                new="answer = True",
            ),
        ),
        tests=(f"{_CHANGING}test_a_patch_lets_a_blocked_execution_complete",),
    ),
    Mutation(
        name="patches-forgotten",
        breaks="The first answer of `zart.patched` stays.",
        edits=(
            Edit(
                file=PATCHES,
                old="        self._unsaved.append(entry)",
                new="        _ = entry",
            ),
        ),
        tests=(
            f"{_CHANGING}test_executions_that_start_now_take_the_change",
            "tests/unit/test_patches.py::test_a_retry_of_the_body_keeps_the_answer",
        ),
    ),
    Mutation(
        name="digest-ignored",
        breaks="Changed arguments of a recorded step are noticed.",
        edits=(Edit(file=BRANCH, old="and digest != record.digest", new="and False"),),
        tests=(f"{_IDENTITY}test_changed_arguments_block_until_they_are_accepted",),
    ),
    Mutation(
        name="defaults-in-the-digest",
        breaks="A new field with its default blocks no running execution.",
        edits=(
            Edit(
                file="zart/digest.py",
                old="if usual is not _MISSING and _equals(member, usual):",
                new="if False:",
            ),
        ),
        tests=(f"{_IDENTITY}test_a_field_with_a_default_is_added",),
    ),
    Mutation(
        name="random-values-not-stable",
        breaks="`zart.uuid4()` and `zart.random()` give the same on replay.",
        edits=(
            Edit(
                file=BRANCH,
                old='f"{self.path}\\0{self._draws}".encode(), key=self.activation.claim.run_id.bytes',
                new='f"{self.path}\\0{self._draws}".encode(), key=uuid.uuid4().bytes',
            ),
        ),
        tests=(f"{_IDENTITY}test_derived_values",),
    ),
    Mutation(
        name="now-not-derived",
        breaks="`zart.now()` gives the same on replay.",
        edits=(
            Edit(
                file=BRANCH,
                old="        return self.heard_at\n",
                new="        return self.activation.host.now()\n",
            ),
        ),
        tests=(f"{_IDENTITY}test_derived_values",),
    ),
    Mutation(
        name="straight-through-a-replay",
        breaks="A call without a record runs only when its body has come to rest at the end of the log.",
        edits=(
            Edit(
                file=BRANCH,
                old="if activation.replaying or activation.closed or activation.dormant is not None:",
                new="if activation.closed or activation.dormant is not None:",
            ),
        ),
        tests=("tests/unit/test_plain_steps.py::test_it_writes_what_the_long_way_writes",),
    ),
    Mutation(
        name="straight-past-the-first-attempts",
        breaks="A worker that takes over counts the attempts on that were made before.",
        edits=(Edit(file=PLAIN, old=" or key in activation.log.by_key", new=""),),
        tests=(f"{_FAILING}test_delays_survive_a_crash",),
    ),
    Mutation(
        name="straight-into-a-full-room",
        breaks="No more steps of an execution run at a time than there is room for.",
        edits=(Edit(file=PLAIN, old="(host.fresh and steps.take_slot())", new="host.fresh"),),
        tests=("tests/unit/test_plain_steps.py::test_it_keeps_to_the_room_for_steps",),
    ),
    Mutation(
        name="straight-while-in-doubt",
        breaks="No attempt of a step begins while others may have taken over.",
        edits=(Edit(file=PLAIN, old="(host.fresh and steps.take_slot())", new="steps.take_slot()"),),
        tests=("tests/unit/test_replay.py::test_no_attempt_begins_while_the_lease_is_in_doubt",),
    ),
    Mutation(
        name="parts-kept",
        breaks="An activation that has ended is nothing for the collector.",
        edits=(Edit(file=ACTIVATION, old="            self.made.clear()\n", new=""),),
        tests=("tests/unit/test_plain_steps.py::test_what_has_ended_is_nothing_for_the_collector",),
    ),
    Mutation(
        name="retry-state-not-stored",
        breaks="A worker that takes over waits for the remainder of a retry's delay, and counts on.",
        edits=(
            Edit(
                file=CALLS,
                old="self._branch.activation.write(\n"
                '            self._so_far(state="waiting", until=self._until, failed_attempt=failed_attempt)\n'
                "        )",
                new="pass",
            ),
        ),
        tests=(f"{_FAILING}test_delays_survive_a_crash", f"{_FAILING}test_a_short_delay_survives_a_takeover"),
    ),
    Mutation(
        name="one-attempt-too-few",
        breaks="`exponential(3, …)` means three retries after the first attempt.",
        edits=(
            Edit(
                file=CALLS,
                old="if attempt > spec.retry.retries or",
                new="if attempt >= spec.retry.retries or",
            ),
        ),
        tests=(f"{_FAILING}test_a_step_fails_for_good",),
    ),
    Mutation(
        name="one-attempt-too-many",
        breaks="No attempt is made after the last retry.",
        edits=(
            Edit(
                file=CALLS,
                old="if attempt > spec.retry.retries or",
                new="if attempt > spec.retry.retries + 1 or",
            ),
        ),
        tests=(f"{_FAILING}test_a_step_fails_for_good",),
    ),
    Mutation(
        name="suspended-beside-a-thread",
        breaks="The next attempt of a plain function waits for the thread of the last one.",
        edits=(Edit(file=CALLS, old="await stay_with(branch, self._thread, self._until)", new="pass"),),
        tests=(f"{_FAILING}test_a_plain_function_that_ignores_its_limit",),
    ),
    Mutation(
        name="bodies-retried-for-ever",
        breaks="`max_retries` bounds the attempts of a body.",
        edits=(
            Edit(
                file=ENDINGS,
                old="claim.attempt > retry.retries or",
                new="claim.attempt > retry.retries + 1 or",
            ),
        ),
        tests=(f"{_FAILING}test_max_retries_ends",),
    ),
    Mutation(
        name="limits-begin-anew",
        breaks="An execution's time limit counts from when it was due, whatever happened to its workers.",
        edits=(
            Edit(
                file=ENDINGS,
                old="activation.alarms.set(activation.claim.due_at + limit, self._time_out)",
                new="activation.alarms.set(activation.host.now() + limit, self._time_out)",
            ),
        ),
        tests=(
            "tests/integration/test_zombies.py::test_a_time_limit_does_not_begin_anew_with_another_worker",
        ),
    ),
    Mutation(
        name="deadlines-not-written",
        breaks="A sleep or a limit that has begun keeps its time through suspensions and crashes.",
        edits=(
            Edit(
                file=WAITS,
                old="        for entry in unsaved.values():\n            self._activation.write(entry)",
                new="        unsaved.clear()",
            ),
        ),
        tests=(f"{_WAITING}test_a_sleep_outlasts_its_worker",),
    ),
    Mutation(
        name="events-out-of-order",
        breaks="Events of one name are received in the order in which they were offered.",
        edits=(
            Edit(
                file="zart/_postgres/sql/claim.sql",
                under="load_events",
                old="ORDER BY v.id",
                new="ORDER BY v.id DESC",
            ),
        ),
        tests=(f"{_WAITING}test_events_before_the_body_first_ran",),
    ),
    Mutation(
        name="consumed-events-come-again",
        breaks="A worker that takes over does not hear once more of events that were consumed.",
        edits=(
            Edit(
                file="zart/_postgres/sql/claim.sql",
                under="load_events",
                old="WHERE v.execution_id = held.execution AND v.consumed_at IS NULL",
                new="WHERE v.execution_id = held.execution",
            ),
        ),
        tests=(f"{_WAITING}test_an_event_offered_twice",),
    ),
    Mutation(
        name="cancelled-waits-keep-their-event",
        breaks="An event that was consumed for a wait cancelled in the same moment goes to the next wait.",
        edits=(
            Edit(
                file=WAITS,
                old='if record.key.kind == "wait" and record.state == "completed":',
                new="if False:",
            ),
        ),
        tests=(f"{_WAITING}test_an_event_for_a_wait_that_was_cancelled",),
    ),
    Mutation(
        name="cancel-not-logged",
        breaks="A cancel is an entry of the log, delivered once, at the same place on replay.",
        edits=(
            Edit(
                file=ENDINGS,
                old="        activation.submit(entry, deliver=self.deliver)\n\n\nclass Phase",
                new="        self.deliver(entry)\n\n\nclass Phase",
            ),
        ),
        tests=("tests/integration/test_cancelling.py::test_cleanup_may_wait_and_survives_a_crash",),
    ),
    Mutation(
        name="cancel-can-be-swallowed",
        breaks="Whatever the body returns or raises after a cancel, the outcome is `cancelled`.",
        edits=(
            Edit(
                file=ENDINGS,
                old="if cancels.requested is not None:\n            activation.end(Cancelled",
                new="if cancels.requested is not None and root.cancelled():\n            activation.end(Cancelled",
            ),
            # The database's own word on it: see `end-before-cancel`.
            *(
                Edit(
                    file="zart/_postgres/sql/journal.sql",
                    under=statement,
                    old="CASE WHEN m.cancelling THEN 'cancelled' ELSE m.ending END",
                    new="m.ending",
                )
                for statement in ("finish", "record_and_finish")
            ),
        ),
        tests=("tests/integration/test_cancelling.py::test_cleanup_runs_once",),
    ),
    Mutation(
        name="suspensions-can-be-caught",
        breaks="`except Exception` around a durable wait never sees a suspension.",
        edits=(
            Edit(
                file="zart/errors.py",
                old="class Suspended(BaseException",
                new="class Suspended(Exception",
            ),
        ),
        tests=(f"{_WAITING}test_constructs_around_a_wait",),
    ),
    Mutation(
        name="left-hanging-at-the-end",
        breaks="A body whose execution was given back or lost is unwound, at whatever moment that was.",
        edits=(
            Edit(
                file=BRANCH,
                old="if activation.closed and not future.done():",
                new="if activation.closed and future.cancelled():",
            ),
        ),
        tests=(f"{_REPLAY}test_a_body_is_unwound_at_any_turn_of_the_loop",),
    ),
    Mutation(
        name="woken-and-not-looked-at",
        breaks="A task that is woken is looked at again: until it is blocked, the body does not rest.",
        edits=(
            Edit(
                file=REST,
                old="            self._awake[task] = self._doubtful[task] = None\n            if task not in",
                new="            if task not in",
            ),
        ),
        tests=(f"{_REST}test_what_is_let_be_is_blocked",),
    ),
    Mutation(
        name="doubts-forgotten",
        breaks="A task that was parked and is woken is asked again whether it is parked.",
        edits=(
            Edit(
                file=REST,
                old="            self._awake[task] = self._doubtful[task] = None\n            if task not in",
                new="            self._awake[task] = None\n            if task not in",
            ),
        ),
        tests=(f"{_REST}test_who_was_parked_and_is_woken_may_be_held_up_by_something_plain",),
    ),
    Mutation(
        name="woken-a-turn-late",
        breaks="Of what the engine itself has made done, no look is ever wrong.",
        edits=(
            Edit(
                file=REST,
                old="if isinstance(future, parking.DurableFuture) and future.woken is None:",
                new="if False:",
            ),
        ),
        tests=(f"{_REST}test_what_is_let_be_is_blocked",),
    ),
    Mutation(
        name="looked-at-every-task",
        breaks="What one entry costs does not grow with the number of branches.",
        edits=(
            Edit(
                file=REST,
                old="                del self._awake[task]\n",
                new="                continue\n",
            ),
        ),
        tests=(f"{_REST}test_the_price_of_an_entry_does_not_grow_with_the_branches",),
    ),
    Mutation(
        name="asked-every-task",
        breaks="Whether a body of many branches is parked costs the same as of few.",
        edits=(
            Edit(
                file=REST,
                old="                del self._doubtful[task]\n",
                new="                pass\n",
            ),
        ),
        tests=(f"{_REST}test_the_price_of_an_entry_does_not_grow_with_the_branches",),
    ),
    Mutation(
        name="busy-loops-taken-for-quiet",
        breaks="A body rests when no callback is left that could make it go on.",
        edits=(
            Edit(
                file=REST,
                old="elif quiet or self._calm >= RESTING_TURNS:",
                new="elif True:",
            ),
        ),
        tests=(
            f"{_REST}test_a_body_that_has_done_something_plain_rests_only_after_that",
            f"{_REST}test_what_a_queue_of_callbacks_sets_going_is_waited_for",
        ),
    ),
    Mutation(
        name="calm-in-the-middle-of-work",
        breaks="On a busy loop the turns count from when the last task was seen to run.",
        edits=(
            Edit(
                file=REST,
                old="        elif not self._all_blocked():\n            self._calm = 0\n",
                new="        elif not self._all_blocked():\n            self._calm += 1\n",
            ),
            Edit(
                file=REST,
                old="            if task not in self._activation.steps.tasks:\n                self._calm = 0\n",
                new="",
            ),
        ),
        tests=(f"{_REST}test_a_body_that_has_done_something_plain_rests_only_after_that",),
    ),
    Mutation(
        name="looked-at-one-by-one",
        breaks="Bodies that look at the same time do not take each other for a busy loop.",
        edits=(
            Edit(
                file=REST,
                old="                looking.popleft().look(quiet=quiet)\n",
                new="                looking.popleft().look(quiet=self.quiet)\n",
            ),
        ),
        tests=(f"{_REST}test_bodies_that_look_at_the_same_time_do_not_take_each_other_for_busy",),
    ),
    Mutation(
        name="short-cut-past-others",
        breaks="An entry is handed over at once only if nothing else goes on in the body.",
        edits=(
            Edit(
                file=REPLAY,
                old="return alone or self._rest.rests_but_for(asyncio.current_task())",
                new="return True",
            ),
        ),
        tests=(f"{_REPLAY}test_a_crash_at_any_record_leaves_a_log_that_explains_the_outcome",),
    ),
    Mutation(
        name="groups-stay-parked",
        breaks="A task group is asked again whether it is parked: others may have come to it.",
        edits=(
            Edit(
                file=PARKING,
                old="    return future is not None and _known(future, body)\n",
                new="    return is_parked(task, body)\n",
            ),
        ),
        tests=(f"{_REST}test_a_task_of_a_library_joins_a_group_whose_body_was_parked",),
    ),
    Mutation(
        name="plain-awaits-cut",
        breaks="A body of which one branch waits for something plain is not suspended.",
        edits=(
            Edit(
                file=REST,
                old="            if not parking.is_parked(task, body):\n",
                new="            if not parking.is_blocked(task):\n",
            ),
        ),
        tests=(f"{_SAME}test_a_plain_request_beside_a_long_sleep_is_not_cut",),
    ),
    Mutation(
        name="waiting-takes-a-slot",
        breaks="A waiting execution takes no slot of its worker.",
        edits=(
            Edit(
                file="zart/_engine/holding.py",
                old="            self._resting.add(task)\n            self._on_free()",
                new="            self._on_free()",
            ),
        ),
        tests=(f"{_WAITING}test_resident_executions_hold_no_slot",),
    ),
    Mutation(
        name="leftover-branches-go-on",
        breaks="Branches that the body left behind have ended before its outcome is written.",
        edits=(
            Edit(
                file=ACTIVATION,
                old="self.root.done() and not self.tasks and self._outcome is None:",
                new="self.root.done() and self._outcome is None:",
            ),
        ),
        tests=(f"{_REPLAY}test_a_body_that_leaves_branches_behind_ends_them_first",),
    ),
)
