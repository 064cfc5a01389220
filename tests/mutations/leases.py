"""Mutations of leases, claims and takeovers: who may work on what, and what a dead worker can still do."""

from tests.mutations.mutation import Edit, Mutation

CLAIM = "zart/_postgres/sql/claim.sql"
JOURNAL = "zart/_postgres/sql/journal.sql"
WORKERS = "zart/_postgres/sql/workers.sql"
TABLES = "migrations/0001_create_engine.sql"

_CLAIMS = "tests/integration/test_claims.py::"
_REAPER = "tests/integration/test_reaper.py::"
_ROUNDS = "tests/integration/test_rounds.py::"
_ZOMBIES = "tests/integration/test_zombies.py::"

_FENCE = """FROM {schema}.zart_workers w
    WHERE w.worker_id = %(worker)s::bigint AND w.writer = %(writer)s::smallint
"""

LEASES = (
    Mutation(
        name="fence-removed",
        breaks="What a worker sends after it was taken for dead is not written.",
        edits=(
            Edit(
                file=JOURNAL,
                under="record",
                old="FROM fence, unnest(",
                new="FROM unnest(",
            ),
            Edit(
                file=JOURNAL,
                under="record_one",
                old="    FROM fence\n    ON CONFLICT",
                new="    WHERE true\n    ON CONFLICT",
            ),
            *(
                Edit(
                    file=JOURNAL,
                    under=statement,
                    old="SELECT EXISTS (SELECT FROM fence)",
                    new="SELECT EXISTS (SELECT FROM fence) OR true",
                )
                for statement in ("record", "record_one")
            ),
        ),
        tests=(
            "tests/integration/test_journal.py::test_without_its_fence_the_journal_writes_nothing_more",
            "tests/integration/test_identity.py::test_who_was_taken_for_dead_records_nothing",
        ),
    ),
    Mutation(
        name="fence-not-locked",
        breaks="Nothing of a worker is under way any more once its work is taken over.",
        edits=tuple(
            Edit(file=JOURNAL, under=statement, old=f"{_FENCE}    FOR KEY SHARE\n", new=_FENCE)
            for statement in ("record", "record_one", "record_and_end", "finish", "record_and_finish")
        ),
        tests=(
            "tests/integration/test_journal.py::test_the_reaper_waits_for_a_statement_in_flight",
            f"{_ZOMBIES}test_a_record_in_flight_is_in_the_history_of_who_takes_over",
        ),
    ),
    Mutation(
        name="alive-false",
        breaks="The reaper deletes a dead worker's rows; a mark on them would wait for nothing that is in flight.",
        edits=(
            Edit(
                file=TABLES,
                old="    idle boolean NOT NULL DEFAULT false, ",
                new="    alive boolean NOT NULL DEFAULT true, idle boolean NOT NULL DEFAULT false, ",
            ),
            Edit(
                file=WORKERS,
                under="reap",
                old="WHERE w.expires_at < clock_timestamp()",
                new="WHERE w.expires_at < clock_timestamp() AND w.alive",
            ),
            Edit(
                file=WORKERS, under="reap", old="FOR UPDATE SKIP LOCKED", new="FOR NO KEY UPDATE SKIP LOCKED"
            ),
            Edit(
                file=WORKERS,
                under="reap",
                old="DELETE FROM {schema}.zart_workers w USING dead WHERE",
                new="UPDATE {schema}.zart_workers w SET alive = false FROM dead WHERE",
            ),
            Edit(
                file=WORKERS,
                under="orphaned",
                old="WHERE w.worker_id = t.owner",
                new="WHERE w.worker_id = t.owner AND w.alive",
            ),
            Edit(
                file=WORKERS,
                under="heartbeat",
                old="WHERE w.worker_id = %(worker)s ORDER BY",
                new="WHERE w.worker_id = %(worker)s AND w.alive ORDER BY",
            ),
            Edit(
                file=CLAIM,
                under="claim",
                old="WHERE w.worker_id = %(worker)s AND w.writer = 0",
                new="WHERE w.worker_id = %(worker)s AND w.writer = 0 AND w.alive",
            ),
            *(
                Edit(file=JOURNAL, under=statement, old=_FENCE, new=f"{_FENCE}        AND w.alive\n")
                for statement in ("record", "record_one", "record_and_end", "finish", "record_and_finish")
            ),
        ),
        tests=(
            f"{_ZOMBIES}test_a_record_in_flight_is_in_the_history_of_who_takes_over",
            f"{_REAPER}test_a_claim_in_flight_while_its_worker_is_reaped_leaves_nothing_behind",
        ),
    ),
    Mutation(
        name="claim-without-fence",
        breaks="A worker that was taken for dead claims nothing.",
        edits=(
            Edit(
                file=CLAIM,
                under="claim",
                old="SELECT w.worker_id FROM {schema}.zart_workers w\n"
                "    WHERE w.worker_id = %(worker)s AND w.writer = 0\n    FOR KEY SHARE",
                new="SELECT %(worker)s::bigint AS worker_id",
            ),
        ),
        tests=(f"{_CLAIMS}test_a_fenced_worker_claims_nothing",),
    ),
    Mutation(
        name="heartbeat-unchecked",
        breaks="A worker whose lease was taken away notices, at its next heartbeat at the latest.",
        edits=(
            Edit(
                file="zart/_engine/lease.py",
                old="        if rows:\n            self._last = sent",
                new="        if rows or True:\n            self._last = sent",
            ),
            Edit(file="zart/_engine/lease.py", old="return bool(rows)", new="return True"),
        ),
        tests=("tests/integration/test_lease.py::test_a_worker_whose_rows_are_gone_is_told",),
    ),
    Mutation(
        name="heartbeat-by-durable-time",
        breaks="Leases live by the real clock: moving durable time takes no worker for dead.",
        edits=(
            Edit(
                file=WORKERS,
                under="heartbeat",
                old="expires_at = clock_timestamp() + %(lease)s",
                new="expires_at = {schema}.zart_now() + %(lease)s",
            ),
        ),
        tests=(f"{_REAPER}test_a_moved_durable_clock_reaps_nobody",),
    ),
    Mutation(
        name="no-sweep",
        breaks="What belongs to a worker without a row is taken over, whoever deleted the row.",
        edits=(
            Edit(
                file="zart/_engine/reaper.py",
                old="owners = [owner for (owner,) in await cursor.fetchall()]",
                new="owners: list[int] = []",
            ),
        ),
        tests=(f"{_REAPER}test_owners_without_a_row_are_swept",),
    ),
    Mutation(
        name="ended-leases-unseen",
        breaks="A worker whose lease has ended is taken for dead, though none that lives looks for that alone.",
        edits=(
            Edit(
                file=WORKERS, under="heartbeat", old="AND x.expires_at < clock_timestamp()", new="AND false"
            ),
        ),
        tests=(f"{_ROUNDS}test_a_lease_that_has_ended_is_seen_by_another_ones_heartbeat",),
    ),
    Mutation(
        name="swept-only-with-the-dead",
        breaks="Owners without rows are looked for all the time, not only when a lease has ended.",
        edits=(
            Edit(
                file="zart/_engine/rounds.py",
                old="await (reap if expired else sweep)(connection, self._schema)",
                new="expired and await reap(connection, self._schema)",
            ),
        ),
        tests=(f"{_ROUNDS}test_owners_without_rows_are_looked_for_all_the_time",),
    ),
    Mutation(
        name="all-asked-each-time",
        breaks="An idle worker asks the database less than once a second.",
        edits=(
            Edit(
                file="zart/_engine/rounds.py",
                old="await (reap if expired else sweep)(",
                new="await (sweep if expired is None else reap)(",
            ),
            Edit(
                file="zart/_engine/rounds.py", old="random.uniform(1.0, 2.0)", new="random.uniform(0.5, 1.5)"
            ),
        ),
        tests=(f"{_ROUNDS}test_an_idle_worker_asks_less_than_once_a_second",),
    ),
    Mutation(
        name="reaper-waits",
        breaks="Nobody who looks for dead workers waits for a session that holds one of their rows.",
        edits=(Edit(file=WORKERS, under="reap", old="FOR UPDATE SKIP LOCKED", new="FOR UPDATE"),),
        tests=(f"{_REAPER}test_a_worker_is_reaped_whole_or_not_at_all",),
    ),
    Mutation(
        name="half-reaped",
        breaks="A worker is taken for dead as a whole: not while one of its connections is in a statement.",
        edits=(
            Edit(
                file=WORKERS,
                under="reap",
                old="USING dead WHERE w.worker_id = dead.worker_id",
                new="USING expired x WHERE (w.worker_id, w.writer) = (x.worker_id, x.writer)",
            ),
        ),
        tests=(f"{_REAPER}test_a_worker_is_reaped_whole_or_not_at_all",),
    ),
    Mutation(
        name="takeovers-not-counted",
        breaks="An execution that ends the process of each worker is blocked after `max_recoveries`.",
        edits=(
            Edit(
                file=WORKERS,
                under="take_over",
                old="recoveries = least(t.recoveries, 2147483646) + 1",
                new="recoveries = t.recoveries",
            ),
        ),
        tests=(
            f"{_REAPER}test_what_a_dead_worker_held_is_claimed_by_others",
            "tests/integration/test_failing.py::test_a_crash_loop_is_blocked",
        ),
    ),
    Mutation(
        name="one-recovery-too-few",
        breaks="`max_recoveries` takeovers are allowed, not one less.",
        edits=(
            Edit(
                file="zart/_engine/holding.py",
                old="claim.recoveries > self._shared.max_recoveries",
                new="claim.recoveries >= self._shared.max_recoveries",
            ),
        ),
        tests=("tests/integration/test_failing.py::test_a_crash_loop_is_blocked",),
    ),
    Mutation(
        name="many-suspects",
        breaks="A worker holds one execution at a time whose workers have died again and again.",
        edits=(
            Edit(
                file="zart/_engine/holding.py",
                old="return self._suspect is None or not self._suspect.suspect",
                new="return True",
            ),
        ),
        tests=("tests/integration/test_zombies.py::test_a_worker_holds_one_suspect_at_a_time",),
    ),
    Mutation(
        name="cleared-by-what-is-under-way",
        breaks="A suspect stays one until something of it is committed.",
        edits=(
            Edit(
                file="zart/_engine/outgoing.py",
                old="self._task_id\n        if self._orders:",
                new="self._task_id\n        self.suspect = False\n        if self._orders:",
            ),
        ),
        tests=(
            "tests/integration/test_zombies.py::test_a_suspect_that_waits_with_nothing_committed_is_still_one",
        ),
    ),
    Mutation(
        name="stale-lease-starts-steps",
        breaks="A worker that does not know whether its lease still stands starts no step.",
        edits=(
            Edit(file="zart/_engine/step_calls.py", old="if not activation.host.fresh:", new="if False:"),
        ),
        tests=("tests/unit/test_replay.py::test_no_attempt_begins_while_the_lease_is_in_doubt",),
    ),
    Mutation(
        name="payloads-logged",
        breaks="Logs say nothing of what is stored.",
        edits=(
            Edit(
                file="zart/_engine/holding.py",
                old="        activation = self._activation(claim)\n",
                new='        _log.debug("took %s", claim)\n        activation = self._activation(claim)\n',
            ),
        ),
        tests=(
            "tests/integration/test_discretion.py::test_neither_payloads_nor_results_nor_events_are_logged",
        ),
    ),
    Mutation(
        name="one-statement-claim",
        breaks="A history is read by a later statement than the claim; the claim's own may be older than its lock.",
        edits=(
            Edit(
                # `steps` is what the claim's own snapshot has counted: what it would have read.
                file="zart/_engine/histories.py",
                old="entries=self.entries,\n            events=events",
                new="entries=self.entries[: self.steps],\n            events=events",
            ),
        ),
        tests=(f"{_CLAIMS}test_a_history_is_complete_though_another_worker_parked_in_between",),
    ),
    Mutation(
        name="claim-of-a-stale-row",
        breaks="What another worker has claimed a moment ago is not claimed once more.",
        edits=(
            Edit(
                file=CLAIM,
                under="claim",
                old="AND t.state = 'ready' AND t.recoveries <= 1",
                new="AND t.recoveries <= 1",
            ),
        ),
        tests=(f"{_ZOMBIES}test_what_another_claimed_a_moment_ago_is_not_claimed",),
    ),
    Mutation(
        name="claim-waits-for-locks",
        breaks="A claim waits for nobody.",
        edits=(
            Edit(
                file=CLAIM,
                under="claim",
                old="ORDER BY t.priority, t.id LIMIT (SELECT %(limit)s::int - count(*) FROM suspect)\n"
                "    FOR NO KEY UPDATE SKIP LOCKED",
                new="ORDER BY t.priority, t.id LIMIT (SELECT %(limit)s::int - count(*) FROM suspect)\n"
                "    FOR NO KEY UPDATE",
            ),
        ),
        tests=(f"{_CLAIMS}test_a_claim_passes_over_what_is_locked",),
    ),
    Mutation(
        name="epoch-not-bumped",
        breaks="What an earlier hold of an execution says is told from what the present one says.",
        edits=(
            Edit(file=CLAIM, under="claim", old="epoch = t.epoch %% 2147483647 + 1", new="epoch = t.epoch"),
        ),
        tests=(f"{_ZOMBIES}test_an_earlier_hold_of_the_same_worker_ends_nothing",),
        works=None,
    ),
    Mutation(
        name="ending-of-any-epoch",
        breaks="The ending of an earlier hold changes nothing.",
        edits=tuple(
            Edit(file=JOURNAL, under=statement, old=old, new="")
            for statement, old in (
                ("record_and_end", " AND (c.ending = 'none' OR h.epoch = c.epoch)"),
                ("finish", " AND h.epoch = c.epoch"),
                ("record_and_finish", " AND h.epoch = c.epoch"),
            )
        ),
        tests=("tests/integration/test_journal.py::test_an_ending_must_match_owner_epoch_and_run",),
    ),
    Mutation(
        name="pending-not-counted",
        breaks="What was claimed and still waits for its history counts against the limit.",
        edits=(
            Edit(
                file="zart/_engine/claimer.py",
                old="room = limit - len(self._histories)",
                new="room = limit",
            ),
        ),
        tests=(f"{_CLAIMS}test_a_load_that_fails_is_gone_on_with",),
    ),
    Mutation(
        name="lost-claims-kept",
        breaks="A claim whose answer was lost is given back; its executions do not wait for the end of the process.",
        edits=(
            Edit(
                file="zart/_engine/claimer.py",
                old="        if self._doubtful:\n            await self._give_back(direct, [], [])\n",
                new="",
            ),
        ),
        tests=(f"{_CLAIMS}test_a_claim_whose_answer_was_lost_is_given_back",),
    ),
)
