-- The journal writer's statements. Each is sent alone, in autocommit: one round trip and one commit for a batch.
--
-- Both writing statements take the fence first (the writer's row in zart_workers, KEY SHARE) and write nothing once it
-- is gone. Then they lock in the order in which everybody locks: tasks by id, their executions, events, steps by key; a
-- sub-statement that must come later reads the count of the one before it. They decide from columns of rows that
-- they lock or change themselves, never from others, since a snapshot is older than any lock that was waited for.
--
-- A token is a writer's prefix (39 bits) and its counter (24 bits): a row is not changed by a token that is not newer
-- than its own of the same writer. So a batch may be sent again after a connection was lost, even when the first try
-- is still running, and a token that is not returned is looked for by `read_back`.

-- name: record
-- Writes journal entries that concern nothing but their own rows.
WITH fence AS MATERIALIZED (
    SELECT 1 AS stands FROM {schema}.zart_workers w
    WHERE w.worker_id = %(worker)s::bigint AND w.writer = %(writer)s::smallint
    FOR KEY SHARE
), written AS (
    INSERT INTO {schema}.zart_steps AS s (run_id, path, name, occurrence, kind, seq, state, digest, arguments, result,
        failure, attempts, started_at, finished_at, until, progress, token)
    SELECT u.run_id, u.path, u.name, u.occurrence, u.kind, u.seq, u.state, u.digest, u.arguments, u.result,
        u.failure, u.attempts, u.started_at, u.finished_at, u.until, u.progress,
        u.token
    FROM fence, unnest(%(runs)s::uuid[], %(paths)s::text[], %(names)s::text[], %(occurrences)s::int[],
        %(kinds)s::text[], %(seqs)s::int[], %(states)s::text[], %(digests)s::bytea[], %(arguments)s::text[],
        %(results)s::json[], %(failures)s::json[], %(attempts)s::int[], %(started)s::timestamptz[],
        %(finished)s::timestamptz[], %(untils)s::timestamptz[], %(progresses)s::json[],
        %(tokens)s::bigint[])
        AS u(run_id, path, name, occurrence, kind, seq, state, digest, arguments, result, failure, attempts,
            started_at, finished_at, until, progress, token)
    ORDER BY u.run_id, u.path, u.name, u.occurrence, u.kind
    ON CONFLICT (run_id, path, name, occurrence, kind) DO UPDATE SET
        seq = excluded.seq, state = excluded.state, digest = coalesce(excluded.digest, s.digest),
        arguments = coalesce(excluded.arguments, s.arguments), result = excluded.result, failure = excluded.failure,
        attempts = excluded.attempts, started_at = coalesce(excluded.started_at, s.started_at),
        finished_at = excluded.finished_at, until = excluded.until,
        progress = coalesce(excluded.progress, s.progress), token = excluded.token
    WHERE s.state IN ('started', 'running', 'waiting') AND excluded.task_id IS NULL
        AND ((s.token >> 24) IS DISTINCT FROM (excluded.token >> 24) OR s.token < excluded.token)
    RETURNING s.token
)
SELECT EXISTS (SELECT FROM fence), {schema}.zart_now(), (SELECT array_agg(token) FROM written),
    NULL::bigint[], NULL::text[], 0::bigint;

-- name: record_one
-- One entry and nothing else: the same as above, with a plan that starts in two thirds of the time.
WITH fence AS MATERIALIZED (
    SELECT 1 AS stands FROM {schema}.zart_workers w
    WHERE w.worker_id = %(worker)s::bigint AND w.writer = %(writer)s::smallint
    FOR KEY SHARE
), written AS (
    INSERT INTO {schema}.zart_steps AS s (run_id, path, name, occurrence, kind, seq, state, digest, arguments, result,
        failure, attempts, started_at, finished_at, until, progress, token)
    SELECT %(run_id)s::uuid, %(path)s::text, %(name)s::text, %(occurrence)s::int, %(kind)s::text, %(seq)s::int,
        %(state)s::text, %(digest)s::bytea, %(arguments)s::text, %(result)s::json, %(failure)s::json,
        %(attempts)s::int, %(started)s::timestamptz, %(finished)s::timestamptz, %(until)s::timestamptz,
        %(progress)s::json, %(token)s::bigint
    FROM fence
    ON CONFLICT (run_id, path, name, occurrence, kind) DO UPDATE SET
        seq = excluded.seq, state = excluded.state, digest = coalesce(excluded.digest, s.digest),
        arguments = coalesce(excluded.arguments, s.arguments), result = excluded.result, failure = excluded.failure,
        attempts = excluded.attempts, started_at = coalesce(excluded.started_at, s.started_at),
        finished_at = excluded.finished_at, until = excluded.until,
        progress = coalesce(excluded.progress, s.progress), token = excluded.token
    WHERE s.state IN ('started', 'running', 'waiting') AND excluded.task_id IS NULL
        AND ((s.token >> 24) IS DISTINCT FROM (excluded.token >> 24) OR s.token < excluded.token)
    RETURNING s.token
)
SELECT EXISTS (SELECT FROM fence), {schema}.zart_now(), (SELECT array_agg(token) FROM written),
    NULL::bigint[], NULL::text[], 0::bigint;

-- name: record_and_end
-- Writes journal entries of every sort, and the endings of activations. An ending must match the task's owner, epoch
-- and run. The array of tasks has one row for each task, so that no row is changed twice. An execution that was to be
-- cancelled before its end is cancelled, however the body ended; so is one that would be blocked, unless an undo failed.
-- One of which somebody wants some done again does not end: it is given back, and the next activation does that.
WITH fence AS MATERIALIZED (
    SELECT 1 AS stands FROM {schema}.zart_workers w
    WHERE w.worker_id = %(worker)s::bigint AND w.writer = %(writer)s::smallint
    FOR KEY SHARE
), held AS MATERIALIZED (
    SELECT t.id, t.owner, t.epoch, t.run_id, t.started_at, t.cancel_at IS NOT NULL AS cancelling, t.parent_task,
        t.step_path, t.step_name, t.step_occurrence, t.repair IS NOT NULL AND t.cancel_at IS NULL AS repaired
    FROM fence, {schema}.zart_tasks t
    WHERE t.id = ANY (%(task_ids)s::bigint[] || %(parent_ids)s::bigint[])
    ORDER BY t.id
    FOR NO KEY UPDATE OF t
), mine AS MATERIALIZED (
    SELECT c.task_id, c.execution_id, c.run_id, c.token, c.clears, c.result, c.failure, c.seen, c.wake_at, c.waiting_for,
        c.wake_at_done, c.attempt, c.floor, c.not_before, c.begun, h.started_at AS claimed_at, h.cancelling,
        h.parent_task, h.step_path, h.step_name, h.step_occurrence,
        CASE WHEN c.ending = 'blocked' AND h.cancelling THEN 'cancelled' WHEN c.ending = 'undo-failed' THEN 'blocked'
            WHEN c.ending IN ('completed', 'failed') AND h.repaired THEN 'released'
            ELSE c.ending END AS ending,
        c.ending IN ('completed', 'failed') AND NOT h.repaired
            OR c.ending IN ('cancelled', 'step-completed', 'step-failed', 'step-cancelled')
            OR c.ending = 'blocked' AND h.cancelling AS ends
    FROM held h JOIN unnest(%(task_ids)s::bigint[], %(task_executions)s::text[], %(task_runs)s::uuid[],
        %(epochs)s::int[], %(endings)s::text[], %(task_tokens)s::bigint[], %(clears)s::bool[],
        %(task_results)s::json[], %(task_failures)s::json[], %(seen)s::int[], %(wake_ats)s::timestamptz[],
        %(wake_at_dones)s::int[], %(waiting_for)s::text[], %(task_attempts)s::int[], %(floors)s::int[],
        %(not_befores)s::timestamptz[], %(begun)s::timestamptz[])
        AS c(task_id, execution_id, run_id, epoch, ending, token, clears, result, failure, seen, wake_at,
            wake_at_done, waiting_for, attempt, floor, not_before, begun)
        ON c.task_id = h.id
    WHERE h.owner = %(worker)s::bigint AND h.run_id = c.run_id AND (c.ending = 'none' OR h.epoch = c.epoch)
), refused AS MATERIALIZED (
    -- An ending that is not ours any more takes its run's entries with it: sent once more after a lost answer, when
    -- others went on meanwhile, they would come back where those have had them tried afresh.
    -- A scheduled step's own are left out: its run is another's.
    SELECT c.run_id
    FROM unnest(%(task_ids)s::bigint[], %(task_runs)s::uuid[], %(endings)s::text[], %(task_is_step)s::bool[])
        AS c(task_id, run_id, ending, is_step)
    WHERE c.ending <> 'none' AND NOT c.is_step AND c.task_id NOT IN (SELECT m.task_id FROM mine m)
), gone AS (
    DELETE FROM {schema}.zart_tasks t USING mine m
    WHERE t.id = m.task_id AND m.ends
    RETURNING m.token
), touched AS MATERIALIZED (
    -- One row for each task that stays: its own ending, how much of what it gave away ends here, or both.
    SELECT coalesce(m.task_id, a.parent_task) AS task_id, coalesce(m.ending, 'none') AS ending, m.token, m.seen, m.wake_at,
        m.wake_at_done, m.waiting_for, m.attempt, m.floor, m.not_before, m.cancelling, coalesce(m.clears, false) AS clears,
        coalesce(a.arrivals, 0) AS arrivals
    FROM (SELECT * FROM mine WHERE NOT ends) m FULL JOIN (
        SELECT parent_task, count(*)::int AS arrivals FROM mine WHERE ends AND parent_task IS NOT NULL GROUP BY parent_task
    ) a ON a.parent_task = m.task_id
), kept AS (
    UPDATE {schema}.zart_tasks t SET
        recoveries = CASE WHEN m.clears THEN 0 ELSE t.recoveries END,
        done = t.done + m.arrivals,
        state = CASE m.ending
            WHEN 'suspended' THEN CASE
                WHEN t.not_before > {schema}.zart_now() AND NOT m.cancelling THEN 'waiting'
                WHEN t.signal = m.seen AND (m.wake_at IS NULL OR m.wake_at > {schema}.zart_now())
                    AND (m.wake_at_done IS NULL OR t.done + m.arrivals < m.wake_at_done) THEN 'waiting'
                ELSE 'ready' END
            WHEN 'body-retry' THEN CASE
                WHEN m.not_before > {schema}.zart_now() AND NOT m.cancelling THEN 'waiting' ELSE 'ready' END
            WHEN 'blocked' THEN 'blocked'
            WHEN 'released' THEN 'ready'
            ELSE CASE
                WHEN t.state = 'waiting' AND m.arrivals > 0 AND t.done + m.arrivals >= t.wake_at_done
                    AND (t.not_before IS NULL OR t.not_before <= {schema}.zart_now()) THEN 'ready'
                ELSE t.state END
            END,
        owner = CASE WHEN m.ending = 'none' THEN t.owner END,
        batch = CASE WHEN m.ending = 'none' THEN t.batch END,
        wake_at = CASE m.ending
            WHEN 'suspended' THEN CASE
                WHEN t.not_before > {schema}.zart_now() AND NOT m.cancelling THEN t.not_before ELSE m.wake_at END
            WHEN 'body-retry' THEN m.not_before
            WHEN 'none' THEN t.wake_at END,
        wake_at_done = CASE WHEN m.ending = 'none' THEN t.wake_at_done ELSE m.wake_at_done END,
        waiting_for = CASE WHEN m.ending = 'none' THEN t.waiting_for ELSE m.waiting_for END,
        attempt = CASE WHEN m.ending = 'body-retry' THEN m.attempt ELSE t.attempt END,
        floor = CASE WHEN m.ending = 'body-retry' THEN m.floor ELSE t.floor END,
        not_before = CASE WHEN m.ending = 'body-retry' THEN m.not_before ELSE t.not_before END,
        repair = CASE WHEN m.ending = 'body-retry' AND m.seen = t.signal THEN NULL ELSE t.repair END,
        token = coalesce(m.token, t.token)
    FROM touched m
    WHERE t.id = m.task_id AND (m.ending <> 'none' OR m.arrivals > 0 OR (m.clears AND t.recoveries > 0))
    RETURNING m.token, m.ending <> 'none' AND t.state = 'ready'
        -- To whoever holds it, or may claim it now. Its worker asks for itself when the tick comes.
        OR m.arrivals > 0 AND t.state IN ('ready', 'running') AS claimable
), finished AS (
    UPDATE {schema}.zart_executions e SET
        status = CASE WHEN m.ending = 'blocked' THEN e.status WHEN m.cancelling THEN 'cancelled' ELSE m.ending END,
        result = CASE WHEN NOT m.cancelling THEN m.result END,
        failure = m.failure,
        started_at = m.claimed_at,
        finished_at = CASE WHEN m.ending <> 'blocked' THEN {schema}.zart_now() END,
        token = CASE WHEN m.ending = 'blocked' THEN e.token ELSE m.token END
    FROM mine m
    WHERE e.id = m.execution_id AND m.ending IN ('completed', 'failed', 'cancelled', 'blocked')
        AND (SELECT count(*) FROM gone) + (SELECT count(*) FROM kept) > 0
    RETURNING e.id, e.awaited, m.ends, e.status, e.result, e.failure, e.parent_run, e.parent_path, e.parent_name,
        e.parent_occurrence
), counted AS (
    -- The row of live work goes with the end, and a run that is repaired after that counts on.
    UPDATE {schema}.zart_executions e SET attempt = m.attempt
    FROM mine m
    WHERE m.ending = 'body-retry' AND e.id = m.execution_id AND (SELECT count(*) FROM kept) > 0
), consumed AS (
    UPDATE {schema}.zart_events v SET consumed_at = {schema}.zart_now()
    FROM unnest(%(event_ids)s::bigint[], %(event_tasks)s::bigint[], %(event_runs)s::uuid[]) AS u(id, task_id, run_id)
        JOIN held h ON h.id = u.task_id AND h.run_id = u.run_id
    WHERE v.id = u.id AND v.consumed_at IS NULL AND h.owner = %(worker)s::bigint
        AND (SELECT count(*) FROM finished) >= 0
    RETURNING v.id, v.payload
), swept AS (
    -- What the body left under way has ended with it; a detached child has not. No entry of these runs is in the same
    -- batch.
    UPDATE {schema}.zart_steps s SET state = 'cancelled', finished_at = {schema}.zart_now()
    FROM mine m
    WHERE s.run_id = m.run_id AND s.state IN ('started', 'running', 'waiting') AND s.kind <> 'child'
        AND m.ends AND m.step_name IS NULL AND (SELECT count(*) FROM finished) >= 0
    RETURNING 1
), answered AS (
    -- What a scheduled step came to, in the journal of the run that gave it away. No entry of its key is in the batch.
    UPDATE {schema}.zart_steps s SET
        state = substr(m.ending, 6), result = m.result, failure = m.failure, attempts = m.attempt,
        started_at = coalesce(s.started_at, m.begun), finished_at = {schema}.zart_now(), until = NULL, token = m.token
    FROM mine m
    WHERE m.step_name IS NOT NULL AND m.ends AND s.run_id = m.run_id AND s.path = m.step_path AND s.name = m.step_name
        AND s.occurrence = m.step_occurrence AND s.kind = 'step' AND s.state IN ('started', 'running', 'waiting')
        AND (SELECT count(*) FROM finished) >= 0
    RETURNING s.run_id, s.input -> 'then' AS successor
), let_go AS (
    -- The step of a limited map that was held back until this one has ended. It was written before, and nobody else
    -- moves it but a cancel, which takes its row away.
    UPDATE {schema}.zart_tasks t SET state = 'ready'
    FROM answered a JOIN {schema}.zart_steps n ON n.run_id = a.run_id AND n.path = a.successor ->> 0
        AND n.name = a.successor ->> 1 AND n.occurrence = (a.successor ->> 2)::int AND n.kind = 'step'
    WHERE t.id = n.task_id AND t.state = 'waiting' AND t.started_at IS NULL
    RETURNING 1
), reported AS (
    -- And what a child came to.
    UPDATE {schema}.zart_steps s SET
        state = f.status, result = f.result, failure = f.failure, finished_at = {schema}.zart_now()
    FROM finished f
    WHERE f.ends AND s.run_id = f.parent_run AND s.path = f.parent_path AND s.name = f.parent_name
        AND s.occurrence = f.parent_occurrence AND s.kind = 'child' AND s.state IN ('started', 'running', 'waiting')
    RETURNING 1
), numbered AS (
    -- What has arrived is delivered next: the row is there, and gets its place in the log.
    UPDATE {schema}.zart_steps s SET seq = u.seq, token = u.token
    FROM fence, unnest(%(number_runs)s::uuid[], %(number_paths)s::text[], %(number_names)s::text[],
        %(number_occurrences)s::int[], %(number_kinds)s::text[], %(number_tokens)s::bigint[], %(number_seqs)s::int[])
        AS u(run_id, path, name, occurrence, kind, token, seq)
    WHERE s.run_id = u.run_id AND s.path = u.path AND s.name = u.name AND s.occurrence = u.occurrence
        AND s.kind = u.kind AND s.seq IS NULL AND s.state IN ('completed', 'failed', 'cancelled')
        AND (SELECT count(*) FROM finished) >= 0 AND u.run_id NOT IN (SELECT r.run_id FROM refused r)
    RETURNING s.token
), written AS (
    INSERT INTO {schema}.zart_steps AS s (run_id, path, name, occurrence, kind, seq, state, digest, arguments, result,
        failure, attempts, started_at, finished_at, until, progress, token, input, task_id)
    SELECT u.run_id, u.path, u.name, u.occurrence, u.kind, u.seq, u.state, u.digest, u.arguments,
        coalesce(u.result, v.payload), u.failure, u.attempts, u.started_at, u.finished_at, u.until, u.progress,
        u.token, u.input,
        CASE WHEN u.given_away THEN nextval($zart${schema}.zart_task_ids$zart$) END
    FROM fence, unnest(%(runs)s::uuid[], %(paths)s::text[], %(names)s::text[], %(occurrences)s::int[],
        %(kinds)s::text[], %(seqs)s::int[], %(states)s::text[], %(digests)s::bytea[], %(arguments)s::text[],
        %(results)s::json[], %(failures)s::json[], %(attempts)s::int[], %(started)s::timestamptz[],
        %(finished)s::timestamptz[], %(untils)s::timestamptz[], %(progresses)s::json[], %(tokens)s::bigint[],
        %(step_events)s::bigint[], %(inputs)s::json[], %(given_away)s::bool[], %(givers)s::bigint[])
        AS u(run_id, path, name, occurrence, kind, seq, state, digest, arguments, result, failure, attempts,
            started_at, finished_at, until, progress, token, event_id, input, given_away, giver)
        LEFT JOIN consumed v ON v.id = u.event_id
    WHERE (u.event_id IS NULL OR v.id IS NOT NULL) AND (SELECT count(*) FROM held) >= 0
        -- Nobody gives work away for an execution that has been ended by force.
        AND (NOT u.given_away OR u.giver IN (
            SELECT h.id FROM held h WHERE h.owner = %(worker)s::bigint AND h.run_id = u.run_id))
        AND (SELECT count(*) FROM finished) >= 0 AND u.run_id NOT IN (SELECT r.run_id FROM refused r)
    ORDER BY u.run_id, u.path, u.name, u.occurrence, u.kind
    ON CONFLICT (run_id, path, name, occurrence, kind) DO UPDATE SET
        seq = excluded.seq, state = excluded.state, digest = coalesce(excluded.digest, s.digest),
        arguments = coalesce(excluded.arguments, s.arguments), result = excluded.result, failure = excluded.failure,
        attempts = excluded.attempts, started_at = coalesce(excluded.started_at, s.started_at),
        finished_at = excluded.finished_at, until = excluded.until,
        progress = coalesce(excluded.progress, s.progress), token = excluded.token
    WHERE s.state IN ('started', 'running', 'waiting') AND excluded.task_id IS NULL
        AND ((s.token >> 24) IS DISTINCT FROM (excluded.token >> 24) OR s.token < excluded.token)
    RETURNING s.token, s.run_id, s.path, s.name, s.occurrence, s.kind, s.task_id
), given_steps AS (
    INSERT INTO {schema}.zart_tasks (id, execution_id, run_id, lane, priority, state, due_at, parent_task, step_path,
        step_name, step_occurrence, step_function)
    SELECT w.task_id, k.execution_id, w.run_id, k.lane, k.priority, CASE WHEN k.held_back THEN 'waiting' ELSE 'ready' END,
        {schema}.zart_now(), k.parent_task, w.path, w.name, w.occurrence, k.function
    FROM written w JOIN unnest(%(work_tokens)s::bigint[], %(work_executions)s::text[], %(work_lanes)s::bigint[],
        %(work_priorities)s::int[], %(work_parents)s::bigint[], %(work_functions)s::text[], %(work_held_back)s::bool[])
        AS k(token, execution_id, lane, priority, parent_task, function, held_back) ON k.token = w.token
), child AS MATERIALIZED (
    SELECT w.task_id, w.run_id AS parent_run, w.path, w.name AS call, w.occurrence, k.*
    FROM written w JOIN unnest(%(child_tokens)s::bigint[], %(child_ids)s::text[], %(child_names)s::text[],
        %(child_versions)s::text[], %(child_queues)s::text[], %(child_priorities)s::int[], %(child_lanes)s::bigint[],
        %(child_runs)s::uuid[], %(child_payloads)s::json[], %(child_digests)s::bytea[], %(child_limits)s::text[],
        %(child_parents)s::bigint[], %(child_parent_ids)s::text[], %(child_detached)s::bool[],
        %(child_traces)s::text[])
        AS k(token, id, name, version, queue, priority, lane, run_id, payload, digest, time_limit, parent_task,
            parent_id, detached, trace_context) ON k.token = w.token
), given_children AS (
    -- Their ids are derived from the call, so nobody else inserts them.
    INSERT INTO {schema}.zart_executions (id, name, version, queue, priority, run_id, task_id, payload, digest, parent_id,
        parent_run, parent_path, parent_name, parent_occurrence, trace_context)
    SELECT c.id, c.name, c.version, c.queue, c.priority, c.run_id, c.task_id, c.payload, c.digest, c.parent_id,
        c.parent_run, c.path, c.call, c.occurrence, c.trace_context
    FROM child c ORDER BY c.id
), child_tasks AS (
    INSERT INTO {schema}.zart_tasks (id, execution_id, run_id, lane, priority, state, due_at, time_limit, parent_task,
        detached)
    SELECT c.task_id, c.id, c.run_id, c.lane, c.priority, 'ready', {schema}.zart_now(), c.time_limit::interval,
        c.parent_task, c.detached
    FROM child c
), ordered AS (
    -- Work that was given away is to be cancelled: it is told like anybody else.
    INSERT INTO {schema}.zart_wakeups (task_id, kind, reason, author)
    SELECT w.task_id, 'cancel', o.reason, o.author
    FROM unnest(%(order_tokens)s::bigint[], %(order_runs)s::uuid[], %(order_paths)s::text[], %(order_names)s::text[],
        %(order_occurrences)s::int[], %(order_kinds)s::text[], %(order_reasons)s::text[], %(order_authors)s::text[])
        AS o(token, run_id, path, name, occurrence, kind, reason, author)
        CROSS JOIN LATERAL (
            SELECT s.task_id FROM {schema}.zart_steps s
            WHERE s.run_id = o.run_id AND s.path = o.path AND s.name = o.name AND s.occurrence = o.occurrence
                AND s.kind = o.kind AND s.state IN ('started', 'running', 'waiting')
            UNION
            SELECT n.task_id FROM written n
            WHERE n.run_id = o.run_id AND n.path = o.path AND n.name = o.name AND n.occurrence = o.occurrence
                AND n.kind = o.kind
        ) w
    WHERE w.task_id IS NOT NULL
        AND o.token IN (SELECT token FROM written UNION ALL SELECT token FROM mine UNION ALL SELECT token FROM numbered)
), failed_attempts AS (
    SELECT a.*
    FROM unnest(%(attempt_tokens)s::bigint[], %(attempt_runs)s::uuid[], %(attempt_paths)s::text[],
        %(attempt_names)s::text[], %(attempt_occurrences)s::int[], %(attempt_kinds)s::text[],
        %(attempt_numbers)s::int[], %(attempt_bodies)s::int[], %(attempt_failures)s::json[],
        %(attempt_started)s::timestamptz[], %(attempt_finished)s::timestamptz[], %(attempt_next)s::timestamptz[])
        AS a(token, run_id, path, name, occurrence, kind, attempt, body_attempt, failure, started_at, finished_at,
            next_at)
), kept_attempts AS (
    INSERT INTO {schema}.zart_step_attempts (run_id, path, name, occurrence, kind, attempt, body_attempt, failure,
        started_at, finished_at, next_at)
    SELECT a.run_id, a.path, a.name, a.occurrence, a.kind, a.attempt, a.body_attempt, a.failure, a.started_at,
        a.finished_at, a.next_at
    FROM failed_attempts a
    WHERE a.token IN (SELECT token FROM written UNION ALL SELECT token FROM mine WHERE token IS NOT NULL)
), tried_afresh AS (
    DELETE FROM {schema}.zart_steps s USING failed_attempts a, mine m
    WHERE m.token = a.token AND s.run_id = a.run_id AND s.path = a.path AND s.name = a.name
        AND s.occurrence = a.occurrence AND s.kind = a.kind
), noted AS (
    INSERT INTO {schema}.zart_history (execution_id, run_id, what, note)
    SELECT m.execution_id, m.run_id, n.what, n.note
    FROM unnest(%(note_tokens)s::bigint[], %(note_whats)s::text[], %(note_texts)s::text[]) WITH ORDINALITY
        AS n(token, what, note, place) JOIN mine m ON m.token = n.token
    ORDER BY n.place
)
SELECT EXISTS (SELECT FROM fence), {schema}.zart_now(),
    (SELECT array_agg(token) FROM (SELECT token FROM written UNION ALL SELECT token FROM numbered) told),
    (SELECT array_agg(token) FROM (SELECT token FROM gone UNION ALL SELECT token FROM kept) ended
        WHERE token IS NOT NULL),
    (SELECT array_agg(f.id) FROM finished f WHERE f.awaited),
    (SELECT count(*) FROM kept WHERE claimable) + (SELECT count(*) FROM let_go);

-- name: finish
-- Final endings and nothing else: the same as above, with a plan that starts in a fraction of the time.
WITH fence AS MATERIALIZED (
    SELECT 1 AS stands FROM {schema}.zart_workers w
    WHERE w.worker_id = %(worker)s::bigint AND w.writer = %(writer)s::smallint
    FOR KEY SHARE
), held AS MATERIALIZED (
    SELECT t.id, t.owner, t.epoch, t.run_id, t.started_at, t.cancel_at IS NOT NULL AS cancelling,
        t.repair IS NOT NULL AND t.cancel_at IS NULL AS repaired
    FROM fence, {schema}.zart_tasks t
    WHERE t.id = ANY (%(task_ids)s::bigint[])
    ORDER BY t.id
    FOR NO KEY UPDATE OF t
), mine AS MATERIALIZED (
    SELECT c.*, h.started_at AS claimed_at, h.cancelling, h.repaired AND c.ending <> 'cancelled' AS goes_on
    FROM held h JOIN unnest(%(task_ids)s::bigint[], %(task_executions)s::text[], %(task_runs)s::uuid[],
        %(epochs)s::int[], %(endings)s::text[], %(task_tokens)s::bigint[], %(task_results)s::json[],
        %(task_failures)s::json[]) AS c(task_id, execution_id, run_id, epoch, ending, token, result, failure)
        ON c.task_id = h.id
    WHERE h.owner = %(worker)s::bigint AND h.run_id = c.run_id AND h.epoch = c.epoch
), gone AS (
    DELETE FROM {schema}.zart_tasks t USING mine m WHERE t.id = m.task_id AND NOT m.goes_on RETURNING m.token
), kept AS (
    UPDATE {schema}.zart_tasks t SET state = 'ready', owner = NULL, batch = NULL, wake_at = NULL, wake_at_done = NULL,
        waiting_for = NULL, token = m.token
    FROM mine m WHERE t.id = m.task_id AND m.goes_on
    RETURNING m.token
), finished AS (
    UPDATE {schema}.zart_executions e SET
        status = CASE WHEN m.cancelling THEN 'cancelled' ELSE m.ending END,
        result = CASE WHEN NOT m.cancelling THEN m.result END,
        failure = m.failure,
        started_at = m.claimed_at,
        finished_at = {schema}.zart_now(),
        token = m.token
    FROM mine m
    WHERE e.id = m.execution_id AND NOT m.goes_on AND (SELECT count(*) FROM gone) > 0
    RETURNING e.id, e.awaited
), swept AS (
    UPDATE {schema}.zart_steps s SET state = 'cancelled', finished_at = {schema}.zart_now()
    FROM mine m
    WHERE s.run_id = m.run_id AND s.state IN ('started', 'running', 'waiting') AND s.kind <> 'child'
        AND NOT m.goes_on AND (SELECT count(*) FROM finished) >= 0
    RETURNING 1
)
SELECT EXISTS (SELECT FROM fence), {schema}.zart_now(), NULL::bigint[],
    (SELECT array_agg(token) FROM (SELECT token FROM gone UNION ALL SELECT token FROM kept) ended),
    (SELECT array_agg(f.id) FROM finished f WHERE f.awaited AND NOT (
        -- A lone ending tells its client at its commit. In larger batches that would hold up those who commit beside it.
        %(announce)s::bool AND pg_notification_queue_usage() < 0.5
            AND pg_notify(%(done_channel)s::text, f.id) IS NOT NULL)),
    (SELECT count(*) FROM kept);

-- name: record_and_finish
-- Entries that concern nothing but their own rows, and final endings of other runs: what most batches of a busy worker
-- hold. The same as `record` and `finish` together, with a plan that starts in a fraction of the time of `record_and_end`.
WITH fence AS MATERIALIZED (
    SELECT 1 AS stands FROM {schema}.zart_workers w
    WHERE w.worker_id = %(worker)s::bigint AND w.writer = %(writer)s::smallint
    FOR KEY SHARE
), held AS MATERIALIZED (
    SELECT t.id, t.owner, t.epoch, t.run_id, t.started_at, t.cancel_at IS NOT NULL AS cancelling,
        t.repair IS NOT NULL AND t.cancel_at IS NULL AS repaired
    FROM fence, {schema}.zart_tasks t
    WHERE t.id = ANY (%(task_ids)s::bigint[])
    ORDER BY t.id
    FOR NO KEY UPDATE OF t
), mine AS MATERIALIZED (
    SELECT c.*, h.started_at AS claimed_at, h.cancelling, h.repaired AND c.ending <> 'cancelled' AS goes_on
    FROM held h JOIN unnest(%(task_ids)s::bigint[], %(task_executions)s::text[], %(task_runs)s::uuid[],
        %(epochs)s::int[], %(endings)s::text[], %(task_tokens)s::bigint[], %(task_results)s::json[],
        %(task_failures)s::json[]) AS c(task_id, execution_id, run_id, epoch, ending, token, result, failure)
        ON c.task_id = h.id
    WHERE h.owner = %(worker)s::bigint AND h.run_id = c.run_id AND h.epoch = c.epoch
), gone AS (
    DELETE FROM {schema}.zart_tasks t USING mine m WHERE t.id = m.task_id AND NOT m.goes_on RETURNING m.token
), kept AS (
    UPDATE {schema}.zart_tasks t SET state = 'ready', owner = NULL, batch = NULL, wake_at = NULL, wake_at_done = NULL,
        waiting_for = NULL, token = m.token
    FROM mine m WHERE t.id = m.task_id AND m.goes_on
    RETURNING m.token
), finished AS (
    UPDATE {schema}.zart_executions e SET
        status = CASE WHEN m.cancelling THEN 'cancelled' ELSE m.ending END,
        result = CASE WHEN NOT m.cancelling THEN m.result END,
        failure = m.failure,
        started_at = m.claimed_at,
        finished_at = {schema}.zart_now(),
        token = m.token
    FROM mine m
    WHERE e.id = m.execution_id AND NOT m.goes_on AND (SELECT count(*) FROM gone) > 0
    RETURNING e.id, e.awaited
), swept AS (
    UPDATE {schema}.zart_steps s SET state = 'cancelled', finished_at = {schema}.zart_now()
    FROM mine m
    WHERE s.run_id = m.run_id AND s.state IN ('started', 'running', 'waiting') AND s.kind <> 'child'
        AND NOT m.goes_on AND (SELECT count(*) FROM finished) >= 0
    RETURNING 1
), written AS (
    INSERT INTO {schema}.zart_steps AS s (run_id, path, name, occurrence, kind, seq, state, digest, arguments, result,
        failure, attempts, started_at, finished_at, until, progress, token)
    SELECT u.run_id, u.path, u.name, u.occurrence, u.kind, u.seq, u.state, u.digest, u.arguments, u.result,
        u.failure, u.attempts, u.started_at, u.finished_at, u.until, u.progress,
        u.token
    FROM fence, unnest(%(runs)s::uuid[], %(paths)s::text[], %(names)s::text[], %(occurrences)s::int[],
        %(kinds)s::text[], %(seqs)s::int[], %(states)s::text[], %(digests)s::bytea[], %(arguments)s::text[],
        %(results)s::json[], %(failures)s::json[], %(attempts)s::int[], %(started)s::timestamptz[],
        %(finished)s::timestamptz[], %(untils)s::timestamptz[], %(progresses)s::json[],
        %(tokens)s::bigint[])
        AS u(run_id, path, name, occurrence, kind, seq, state, digest, arguments, result, failure, attempts,
            started_at, finished_at, until, progress, token)
    WHERE (SELECT count(*) FROM finished) >= 0
    ORDER BY u.run_id, u.path, u.name, u.occurrence, u.kind
    ON CONFLICT (run_id, path, name, occurrence, kind) DO UPDATE SET
        seq = excluded.seq, state = excluded.state, digest = coalesce(excluded.digest, s.digest),
        arguments = coalesce(excluded.arguments, s.arguments), result = excluded.result, failure = excluded.failure,
        attempts = excluded.attempts, started_at = coalesce(excluded.started_at, s.started_at),
        finished_at = excluded.finished_at, until = excluded.until,
        progress = coalesce(excluded.progress, s.progress), token = excluded.token
    WHERE s.state IN ('started', 'running', 'waiting') AND excluded.task_id IS NULL
        AND ((s.token >> 24) IS DISTINCT FROM (excluded.token >> 24) OR s.token < excluded.token)
    RETURNING s.token
)
SELECT EXISTS (SELECT FROM fence), {schema}.zart_now(), (SELECT array_agg(token) FROM written),
    (SELECT array_agg(token) FROM (SELECT token FROM gone UNION ALL SELECT token FROM kept) ended),
    (SELECT array_agg(f.id) FROM finished f WHERE f.awaited), (SELECT count(*) FROM kept);

-- name: start_child
-- A child whose id its parent has chosen. Somebody else may have the same id in a transaction that stays open, so it is
-- not a part of a batch: it is sent alone, gives way after `gives_way`, and is sent again. Says whether the fence stood
-- and its parent goes on under this worker, and whether the id was free.
WITH fence AS MATERIALIZED (
    SELECT 1 AS stands, set_config('lock_timeout', %(gives_way)s::text, true) FROM {schema}.zart_workers w
    WHERE w.worker_id = %(worker)s::bigint AND w.writer = 0
        AND EXISTS (SELECT FROM {schema}.zart_tasks t WHERE t.id = %(parent_task)s::bigint
            AND t.owner = %(worker)s::bigint AND t.run_id = %(run_id)s::uuid)
    FOR KEY SHARE
), made AS (
    INSERT INTO {schema}.zart_executions AS e (id, name, version, queue, priority, run_id, payload, digest, parent_id,
        parent_run, parent_path, parent_name, parent_occurrence, trace_context)
    SELECT %(id)s::text, %(name)s::text, %(version)s::text, %(queue)s::text, %(priority)s::int, %(child_run)s::uuid,
        %(payload)s::text::json, %(digest)s::bytea, %(parent_id)s::text, %(run_id)s::uuid, %(path)s::text,
        %(call)s::text, %(occurrence)s::int, %(trace_context)s::text
    FROM fence
    ON CONFLICT (id) DO NOTHING
    RETURNING e.task_id
), task AS (
    INSERT INTO {schema}.zart_tasks (id, execution_id, run_id, lane, priority, state, due_at, time_limit, parent_task,
        detached)
    SELECT m.task_id, %(id)s::text, %(child_run)s::uuid, %(lane)s::bigint, %(priority)s::int, 'ready',
        {schema}.zart_now(), %(time_limit)s::text::interval, %(parent_task)s::bigint, %(detached)s::bool
    FROM made m
), call AS (
    INSERT INTO {schema}.zart_steps (run_id, path, name, occurrence, kind, state, digest, arguments, token, task_id, input)
    SELECT %(run_id)s::uuid, %(path)s::text, %(call)s::text, %(occurrence)s::int, 'child', 'waiting', %(call_digest)s::bytea,
        %(arguments)s::text, %(token)s::bigint, m.task_id, %(input)s::text::json
    FROM made m
), giver AS MATERIALIZED (
    -- While the id was waited for its parent may have been ended by force, by somebody who could not see this child.
    SELECT t.id FROM {schema}.zart_tasks t
    WHERE t.id = %(parent_task)s::bigint AND (SELECT count(*) FROM made) > 0
    FOR KEY SHARE
), orphaned AS (
    INSERT INTO {schema}.zart_wakeups (task_id, kind, reason)
    SELECT m.task_id, 'cancel', 'its parent was cancelled by force' FROM made m
    WHERE NOT %(detached)s::bool AND NOT EXISTS (SELECT FROM giver)
)
SELECT EXISTS (SELECT FROM fence), EXISTS (SELECT FROM made);

-- name: find_child
-- Whether an execution of this id is the child of this very call.
SELECT e.parent_run = %(run_id)s::uuid AND e.parent_path = %(path)s::text AND e.parent_name = %(call)s::text
    AND e.parent_occurrence = %(occurrence)s::int
    AND EXISTS (SELECT FROM {schema}.zart_steps s WHERE s.run_id = %(run_id)s::uuid AND s.path = %(path)s::text
        AND s.name = %(call)s::text AND s.occurrence = %(occurrence)s::int AND s.kind = 'child' AND s.task_id = e.task_id)
FROM {schema}.zart_executions e WHERE e.id = %(id)s::text;

-- Executions that begin anew, and nothing else. The row in zart_tasks stays what it is, the execution's mutex, so what
-- is offered or asked for meanwhile is for the next run. The run that ends is kept, the one before it is forgotten: its
-- records, its attempts, what was noted of it, and the events that were consumed until its end. Beside the holder only
-- those touch rows of these runs who do what they have given away: such a run stays until all of that has ended.
-- name: begin_anew
WITH fence AS MATERIALIZED (
    SELECT 1 AS stands FROM {schema}.zart_workers w
    WHERE w.worker_id = %(worker)s::bigint AND w.writer = %(writer)s::smallint
    FOR KEY SHARE
), held AS MATERIALIZED (
    SELECT t.id, t.owner, t.epoch, t.run_id, t.started_at, t.repair IS NOT NULL AS repaired
    FROM fence, {schema}.zart_tasks t
    WHERE t.id = ANY (%(task_ids)s::bigint[])
    ORDER BY t.id
    FOR NO KEY UPDATE OF t
), own AS MATERIALIZED (
    SELECT c.*, h.started_at AS claimed_at, h.repaired, {schema}.zart_uuid7() AS next_run
    FROM held h JOIN unnest(%(task_ids)s::bigint[], %(task_executions)s::text[], %(task_runs)s::uuid[],
        %(epochs)s::int[], %(task_tokens)s::bigint[], %(task_results)s::json[])
        AS c(task_id, execution_id, run_id, epoch, token, payload)
        ON c.task_id = h.id
    WHERE h.owner = %(worker)s::bigint AND h.run_id = c.run_id AND h.epoch = c.epoch
), put_back AS (
    -- Somebody wants some of this run done again: that comes first.
    UPDATE {schema}.zart_tasks t SET
        state = 'ready', owner = NULL, batch = NULL, wake_at = NULL, wake_at_done = NULL, waiting_for = NULL,
        token = m.token
    FROM own m
    WHERE t.id = m.task_id AND m.repaired
    RETURNING m.token
), mine AS MATERIALIZED (
    SELECT * FROM own WHERE NOT repaired
), kept AS (
    UPDATE {schema}.zart_tasks t SET
        run_id = m.next_run, state = 'ready', owner = NULL, batch = NULL, wake_at = NULL, wake_at_done = NULL,
        not_before = NULL, waiting_for = NULL, attempt = 1, floor = 0, recoveries = 0, accept_arguments = false,
        due_at = {schema}.zart_now(), started_at = {schema}.zart_now(), token = m.token
    FROM mine m
    WHERE t.id = m.task_id
    RETURNING m.token
), begun AS (
    UPDATE {schema}.zart_executions e SET run_id = m.next_run, failure = NULL, attempt = NULL
    FROM mine m
    WHERE e.id = m.execution_id AND (SELECT count(*) FROM kept) > 0
    RETURNING e.id
), outdated AS MATERIALIZED (
    SELECT r.run_id, r.execution_id, r.ended_at
    FROM mine m JOIN {schema}.zart_execution_runs r ON r.execution_id = m.execution_id
    WHERE r.ended_at IS NOT NULL AND (SELECT count(*) FROM begun) > 0
        AND NOT EXISTS (
            SELECT FROM {schema}.zart_steps s
            WHERE s.run_id = r.run_id AND s.task_id IS NOT NULL AND s.state IN ('started', 'running', 'waiting'))
), forgotten AS (
    DELETE FROM {schema}.zart_execution_runs r USING outdated o WHERE r.run_id = o.run_id RETURNING 1
), archived AS (
    INSERT INTO {schema}.zart_execution_runs AS r (run_id, execution_id, payload, started_at, ended_at)
    SELECT m.run_id, m.execution_id, NULL::json, coalesce(m.claimed_at, {schema}.zart_now()), {schema}.zart_now()
    FROM mine m WHERE (SELECT count(*) FROM forgotten) >= 0
    UNION ALL
    SELECT m.next_run, m.execution_id, m.payload, {schema}.zart_now(), NULL
    FROM mine m
    ON CONFLICT (run_id) DO UPDATE SET ended_at = excluded.ended_at
    RETURNING 1
), swept AS (
    UPDATE {schema}.zart_steps s SET state = 'cancelled', finished_at = {schema}.zart_now()
    FROM mine m
    WHERE s.run_id = m.run_id AND s.state IN ('started', 'running', 'waiting') AND s.task_id IS NULL
        AND (SELECT count(*) FROM archived) >= 0
    RETURNING 1
), without_records AS (
    DELETE FROM {schema}.zart_steps s USING outdated o
    WHERE s.run_id = o.run_id AND (SELECT count(*) FROM archived) >= 0
    RETURNING 1
), without_attempts AS (
    DELETE FROM {schema}.zart_step_attempts a USING outdated o WHERE a.run_id = o.run_id
), without_events AS (
    DELETE FROM {schema}.zart_events v USING outdated o
    WHERE v.execution_id = o.execution_id AND v.consumed_at <= o.ended_at
        AND (SELECT count(*) FROM without_records) >= 0
), without_notes AS (
    DELETE FROM {schema}.zart_history h USING outdated o WHERE h.execution_id = o.execution_id AND h.run_id = o.run_id
), noted AS (
    INSERT INTO {schema}.zart_history (execution_id, run_id, what, note)
    SELECT m.execution_id, m.run_id, n.what, n.note
    FROM unnest(%(note_tokens)s::bigint[], %(note_whats)s::text[], %(note_texts)s::text[]) WITH ORDINALITY
        AS n(token, what, note, place) JOIN mine m ON m.token = n.token
    ORDER BY n.place
)
SELECT EXISTS (SELECT FROM fence), {schema}.zart_now(), NULL::bigint[],
    (SELECT array_agg(token) FROM (SELECT token FROM kept UNION ALL SELECT token FROM put_back) ended),
    NULL::text[], (SELECT count(*) FROM own);

-- name: read_back
-- The tokens among these writes that stand in the database, for those that the statement before did not return.
SELECT s.token
FROM unnest(%(runs)s::uuid[], %(paths)s::text[], %(names)s::text[], %(occurrences)s::int[], %(kinds)s::text[],
    %(tokens)s::bigint[]) AS u(run_id, path, name, occurrence, kind, token)
    JOIN {schema}.zart_steps s ON s.run_id = u.run_id AND s.path = u.path AND s.name = u.name
        AND s.occurrence = u.occurrence AND s.kind = u.kind AND s.token = u.token
UNION ALL
SELECT t.token
FROM unnest(%(task_ids)s::bigint[], %(task_tokens)s::bigint[]) AS u(id, token)
    JOIN {schema}.zart_tasks t ON t.id = u.id AND t.token = u.token
UNION ALL
SELECT e.token
FROM unnest(%(task_executions)s::text[], %(task_tokens)s::bigint[]) AS u(id, token)
    JOIN {schema}.zart_executions e ON e.id = u.id AND e.token = u.token;

-- name: announce
-- Tells clients of executions that have ended, and idle workers of work that was given back. It is a hint, sent after
-- the commit, and does not wait for the disk itself.
SELECT set_config('synchronous_commit', 'off', true),
    (SELECT count(pg_notify(%(done_channel)s::text, x.id))
        FROM unnest(%(ended)s::text[]) AS x(id)),
    (SELECT pg_notify(%(work_channel)s::text, '')
        WHERE %(claimable)s::bool AND EXISTS (SELECT FROM {schema}.zart_workers WHERE idle))
WHERE pg_notification_queue_usage() < 0.5;

-- name: now
SELECT {schema}.zart_now();
