"""Mutations of what is asked from outside: starts, events, cancels, results, notifications."""

from tests.mutations.mutation import Edit, Mutation

CLIENT = "zart/_postgres/sql/client.sql"
SURFACE = "migrations/0002_add_sql_surface.sql"
ANNOUNCE = "migrations/0009_announce_to_those_concerned.sql"
CLAIMING = "zart/_engine/claiming.py"
HEARING = "zart/_engine/hearing.py"
WAKEUPS = "zart/_postgres/sql/wakeups.sql"

_STARTS = "tests/integration/test_client_start.py::"
_STEERS = "tests/integration/test_client_steering.py::"
_WAKES = "tests/integration/test_wakeups.py::"
_LENDS = "tests/integration/test_in_your_transaction.py::"
_NOTES = "tests/integration/test_notifications.py::"
_THREADS = "tests/integration/test_sync_client.py::"

CLIENTS = (
    Mutation(
        name="start-not-idempotent",
        breaks="Ten clients that start one id at once start one execution.",
        edits=(Edit(file=CLIENT, under="start", old="    ON CONFLICT (id) DO NOTHING\n", new=""),),
        tests=(f"{_STARTS}test_ten_clients_start_the_same_id_at_once",),
    ),
    Mutation(
        name="conflicts-ignored",
        breaks="An id stands for one function and one input; anything else is a conflict.",
        edits=(
            Edit(
                file="zart/client/starter.py",
                old='if on_conflict == "raise" and not is_equal(wanted, found[0]):',
                new="if False:",
            ),
        ),
        tests=(f"{_STARTS}test_other_input_or_function_is_a_conflict",),
    ),
    Mutation(
        name="on-conflict-ignored",
        breaks='With `on_conflict="return"` the execution that exists is returned, and nothing is raised.',
        edits=(
            Edit(
                file="zart/client/starter.py",
                old='if on_conflict == "raise" and not is_equal(wanted, found[0]):',
                new="if not is_equal(wanted, found[0]):",
            ),
        ),
        tests=(f"{_STARTS}test_other_input_or_function_is_a_conflict",),
    ),
    Mutation(
        name="own-start-not-known",
        breaks="A start that was committed while its answer was lost is known as one's own.",
        edits=(
            Edit(
                file="zart/client/starter.py",
                old="        if found[0][2] == str(wanted.run_id):\n            return True",
                new="        if False:\n            return True",
            ),
        ),
        tests=("tests/integration/test_client_faults.py::test_start_whose_answer_was_lost_wherever",),
    ),
    Mutation(
        name="started-without-version",
        breaks="A start by a durable function takes its version, and the execution stays with it.",
        edits=(
            Edit(
                file="zart/client/starting.py",
                old="        version=spec.version,\n",
                new="        version=None,\n",
            ),
        ),
        tests=(
            "tests/integration/test_versions.py::test_versions_side_by_side_in_one_registry",
            "tests/integration/test_versions.py::test_an_execution_stays_with_its_version",
        ),
    ),
    Mutation(
        name="dedup-ignored",
        breaks="An event that is delivered again under its dedup key is there once.",
        edits=(
            Edit(
                file=CLIENT,
                under="offer_event",
                old="%(payload)s::text::json, %(dedup)s",
                new="%(payload)s::text::json, NULL::text",
            ),
        ),
        tests=(
            f"{_STEERS}test_event_dedup",
            "tests/integration/test_waiting.py::test_an_event_offered_twice",
        ),
    ),
    Mutation(
        name="event-without-signal",
        breaks="Whoever offers an event tells the execution that there is news.",
        edits=(
            Edit(
                file=CLIENT,
                under="offer_event",
                old="SET signal = t.signal %% 2147483647 + 1,",
                new="SET signal = t.signal,",
            ),
        ),
        tests=(
            f"{_STEERS}test_event_wakes_at_once",
            "tests/integration/test_waiting.py::test_news_while_a_step_runs",
        ),
    ),
    Mutation(
        name="wakeup-without-signal",
        breaks="An event from SQL that arrives while its execution is held is not slept over.",
        edits=(
            Edit(
                file=WAKEUPS,
                under="apply_wakeups",
                old="SET signal = t.signal %% 2147483647 + 1,",
                new="SET signal = t.signal,",
            ),
        ),
        tests=(f"{_WAKES}test_an_event_between_the_claim_and_the_suspension_is_not_lost",),
    ),
    Mutation(
        name="wakeup-dropped",
        breaks="A wake-up whose task is locked at this moment is kept.",
        edits=(
            Edit(
                file=WAKEUPS,
                under="apply_wakeups",
                old="            OR NOT EXISTS (SELECT FROM {schema}.zart_tasks t WHERE t.id = k.task_id)))",
                new="            OR true))",
            ),
        ),
        tests=(f"{_WAKES}test_a_wake_up_is_left_while_its_task_is_locked",),
    ),
    Mutation(
        name="event-ends-a-pause",
        breaks="An event does not shorten the pause before a body is run again.",
        edits=(
            Edit(
                file=CLIENT,
                under="offer_event",
                old="\n                AND (t.not_before IS NULL OR t.not_before <= {schema}.zart_now())",
                new="",
            ),
        ),
        tests=(f"{_STEERS}test_event_during_a_body_retry",),
    ),
    Mutation(
        name="sql-locks-tasks",
        breaks="A transaction of the caller's that stays open holds no lock that a worker could need.",
        edits=(
            Edit(
                file=SURFACE,
                old="    INSERT INTO {schema}.zart_wakeups (task_id, kind) VALUES (target.task_id, 'event');\n",
                new="    INSERT INTO {schema}.zart_wakeups (task_id, kind) VALUES (target.task_id, 'event');\n"
                "    UPDATE {schema}.zart_tasks SET signal = signal + 1 WHERE id = target.task_id;\n",
            ),
        ),
        tests=(
            "tests/integration/test_sql_surface.py::test_open_transactions_lock_no_task",
            "tests/integration/test_waiting.py::test_an_open_transaction_delays_nobody_else",
        ),
    ),
    Mutation(
        name="conflicts-ignored-in-a-transaction",
        breaks="In the caller's transaction, too, an id stands for one function and one input.",
        edits=(
            Edit(
                file="zart/client/transactions.py",
                old='if on_conflict == "raise" and not is_equal(wanted, rows[0]):',
                new="if False:",
            ),
        ),
        tests=(f"{_STARTS}test_in_a_transaction", f"{_LENDS}test_an_id_stands_for_one_input"),
    ),
    Mutation(
        name="lent-connection-committed",
        breaks="The caller decides over his transaction: what he rolls back has never been.",
        edits=(
            Edit(
                file="zart/_postgres/lent.py",
                old="            cursor.close()\n",
                new="            cursor.close()\n            self._connection.commit()\n",
            ),
        ),
        tests=(f"{_LENDS}test_rolled_back_there_is_nothing", f"{_LENDS}test_a_savepoint_that_is_rolled_back"),
    ),
    Mutation(
        name="fork-shares-a-client",
        breaks="A client that was opened before a fork is refused in the child, and the parent's goes on.",
        edits=(
            Edit(
                file="zart/portal.py",
                old="return self._process not in (None, os.getpid())",
                new="return False",
            ),
        ),
        tests=(f"{_THREADS}test_a_fork_is_refused_and_does_no_harm",),
    ),
    Mutation(
        name="client-left-at-exit",
        breaks="A client for threads is closed when nobody has it any more, and at the end of the process.",
        edits=(
            Edit(
                file="zart/portal.py",
                old="weakref.finalize(self, _end, portal, thread, os.getpid())",
                new="partial(_end, portal, thread, os.getpid())",
            ),
        ),
        tests=(f"{_THREADS}test_dropped_it_is_closed",),
    ),
    Mutation(
        name="loop-blocked",
        breaks="A client for threads does not block a running event loop.",
        edits=(
            Edit(
                file="zart/portal.py",
                old="        asyncio.get_running_loop()\n    except RuntimeError:",
                new="        pass\n    finally:",
            ),
        ),
        tests=(f"{_THREADS}test_on_an_event_loop_it_is_refused",),
    ),
    Mutation(
        name="call-outlives-its-caller",
        breaks="Ctrl-C ends a call of the client for threads, and not only the wait for it.",
        edits=(Edit(file="zart/portal.py", old="            call.abandon()  #", new="            pass  #"),),
        tests=(f"{_THREADS}test_ctrl_c_ends_the_wait",),
    ),
    Mutation(
        name="cancel-not-heard",
        breaks="A cancel of live work reaches its body.",
        edits=(
            Edit(
                file=CLIENT,
                under="cancel",
                old="SET signal = t.signal %% 2147483647 + 1, cancel_reason",
                new="SET signal = t.signal, cancel_reason",
            ),
        ),
        tests=("tests/integration/test_waiting.py::test_news_while_a_step_runs",),
    ),
    Mutation(
        name="always-notified",
        breaks="Nobody pays for notifications while no worker is idle.",
        edits=(Edit(file=ANNOUNCE, old="IF FOUND AND", new="IF true AND"),),
        tests=(f"{_WAKES}test_only_an_idle_worker_is_notified",),
    ),
    Mutation(
        name="never-notified",
        breaks="An idle worker hears of new work at once.",
        edits=(Edit(file=ANNOUNCE, old="IF FOUND AND", new="IF false AND"),),
        tests=(f"{_WAKES}test_only_an_idle_worker_is_notified",),
    ),
    Mutation(
        name="others-work-announced",
        breaks="Nobody pays for notifications while no idle worker has registered the function.",
        edits=(Edit(file=ANNOUNCE, old="w.idle AND NEW.lane = ANY (w.lanes)", new="w.idle"),),
        tests=(f"{_WAKES}test_work_is_announced_to_those_who_have_registered_its_function",),
    ),
    Mutation(
        name="announced-one-after-the-other",
        breaks="Nobody's commit waits for another one's notification.",
        edits=(
            Edit(
                file=ANNOUNCE,
                old="IF pg_catalog.pg_try_advisory_xact_lock(\n",
                new="IF (1, 1) <> (\n",
            ),
        ),
        tests=(f"{_WAKES}test_one_announcement_at_a_time_is_on_its_way",),
    ),
    Mutation(
        name="announcing-without-end",
        breaks="A transaction that stays open keeps nobody else from notifying.",
        edits=(Edit(file=ANNOUNCE, old="clock_timestamp()) * 20;", new="clock_timestamp()) / 1e9;"),),
        tests=(f"{_WAKES}test_a_transaction_that_stays_open_keeps_nobody_from_announcing",),
    ),
    Mutation(
        name="looked-once",
        breaks="What is committed while another one's notification is on its way is found within milliseconds.",
        edits=(
            Edit(
                file=CLAIMING,
                old="        self._wary_since = asyncio.get_running_loop().time()\n        self._hearing.hear()\n",
                new="        self._hearing.hear()\n",
            ),
        ),
        tests=(f"{_NOTES}test_what_is_committed_while_another_is_announced_is_found_soon",),
    ),
    Mutation(
        name="driven-mad",
        breaks="Notifications of others' work do not have a worker look each time.",
        edits=(Edit(file=HEARING, old="wait = self._since + self.gap - loop.time()", new="wait = 0.0"),),
        tests=(f"{_NOTES}test_notifications_of_others_work_are_gathered",),
    ),
    Mutation(
        name="gathered-and-lost",
        breaks="What a notification tells is looked for, though it came right after another one.",
        edits=(Edit(file=HEARING, old="self._later = loop.call_later(wait, self._prompt)", new="pass"),),
        tests=(f"{_NOTES}test_the_last_of_many_notifications_is_not_lost",),
    ),
    Mutation(
        name="ends-not-announced",
        breaks="Who awaits a result hears of it at once.",
        edits=(
            Edit(
                file="zart/_postgres/sql/journal.sql",
                under="finish",
                old="%(announce)s::bool AND pg_notification_queue_usage() < 0.5\n"
                "            AND pg_notify(%(done_channel)s::text, f.id) IS NOT NULL",
                new="%(announce)s::bool AND %(done_channel)s::text IS NOT NULL",
            ),
        ),
        tests=("tests/acceptance/test_database_faults.py::test_results_are_quick",),
    ),
)
