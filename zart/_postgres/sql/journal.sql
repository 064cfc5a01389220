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
        failure, attempts, started_at, finished_at, until, token)
    SELECT u.run_id, u.path, u.name, u.occurrence, u.kind, u.seq, u.state, u.digest, u.arguments, u.result,
        u.failure, u.attempts, u.started_at, u.finished_at, u.until, u.token
    FROM fence, unnest(%(run_ids)s::uuid[], %(paths)s::text[], %(names)s::text[], %(occurrences)s::int[],
        %(kinds)s::text[], %(seqs)s::int[], %(states)s::text[], %(digests)s::bytea[], %(arguments)s::text[],
        %(results)s::json[], %(failures)s::json[], %(attempts)s::int[], %(started)s::timestamptz[],
        %(finished)s::timestamptz[], %(untils)s::timestamptz[], %(tokens)s::bigint[])
        AS u(run_id, path, name, occurrence, kind, seq, state, digest, arguments, result, failure, attempts,
            started_at, finished_at, until, token)
    ORDER BY u.run_id, u.path, u.name, u.occurrence, u.kind
    ON CONFLICT (run_id, path, name, occurrence, kind) DO UPDATE SET
        seq = excluded.seq, state = excluded.state, digest = coalesce(excluded.digest, s.digest),
        arguments = coalesce(excluded.arguments, s.arguments), result = excluded.result, failure = excluded.failure,
        attempts = excluded.attempts, started_at = coalesce(excluded.started_at, s.started_at),
        finished_at = excluded.finished_at, until = excluded.until, token = excluded.token
    WHERE s.state IN ('running', 'waiting')
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
        failure, attempts, started_at, finished_at, until, token)
    SELECT %(run_id)s::uuid, %(path)s::text, %(name)s::text, %(occurrence)s::int, %(kind)s::text, %(seq)s::int,
        %(state)s::text, %(digest)s::bytea, %(arguments)s::text, %(result)s::json, %(failure)s::json,
        %(attempts)s::int, %(started)s::timestamptz, %(finished)s::timestamptz, %(until)s::timestamptz,
        %(token)s::bigint
    FROM fence
    ON CONFLICT (run_id, path, name, occurrence, kind) DO UPDATE SET
        seq = excluded.seq, state = excluded.state, digest = coalesce(excluded.digest, s.digest),
        arguments = coalesce(excluded.arguments, s.arguments), result = excluded.result, failure = excluded.failure,
        attempts = excluded.attempts, started_at = coalesce(excluded.started_at, s.started_at),
        finished_at = excluded.finished_at, until = excluded.until, token = excluded.token
    WHERE s.state IN ('running', 'waiting')
        AND ((s.token >> 24) IS DISTINCT FROM (excluded.token >> 24) OR s.token < excluded.token)
    RETURNING s.token
)
SELECT EXISTS (SELECT FROM fence), {schema}.zart_now(), (SELECT array_agg(token) FROM written),
    NULL::bigint[], NULL::text[], 0::bigint;

-- name: record_and_end
-- Writes journal entries of every sort, and the endings of activations. An ending must match the task's owner, epoch
-- and run. The array of tasks has one row for each task, so that no row is changed twice. An execution that was to be
-- cancelled before its end is cancelled, however the body ended; so is one that would be blocked.
WITH fence AS MATERIALIZED (
    SELECT 1 AS stands FROM {schema}.zart_workers w
    WHERE w.worker_id = %(worker)s::bigint AND w.writer = %(writer)s::smallint
    FOR KEY SHARE
), held AS MATERIALIZED (
    SELECT t.id, t.owner, t.epoch, t.run_id, t.started_at, t.cancel_at IS NOT NULL AS cancelling
    FROM fence, {schema}.zart_tasks t
    WHERE t.id = ANY (%(task_ids)s::bigint[])
    ORDER BY t.id
    FOR NO KEY UPDATE OF t
), mine AS MATERIALIZED (
    SELECT c.task_id, c.execution_id, c.run_id, c.token, c.clears, c.result, c.failure, c.seen, c.wake_at, c.waiting_for,
        c.attempt, c.floor, c.not_before, h.started_at AS claimed_at, h.cancelling,
        CASE WHEN c.ending = 'blocked' AND h.cancelling THEN 'cancelled' ELSE c.ending END AS ending
    FROM held h JOIN unnest(%(task_ids)s::bigint[], %(task_executions)s::text[], %(task_runs)s::uuid[],
        %(epochs)s::int[], %(endings)s::text[], %(task_tokens)s::bigint[], %(clears)s::bool[],
        %(task_results)s::json[], %(task_failures)s::json[], %(seen)s::int[], %(wake_ats)s::timestamptz[],
        %(waiting_for)s::text[], %(body_attempts)s::int[], %(floors)s::int[], %(not_befores)s::timestamptz[])
        AS c(task_id, execution_id, run_id, epoch, ending, token, clears, result, failure, seen, wake_at,
            waiting_for, attempt, floor, not_before)
        ON c.task_id = h.id
    WHERE h.owner = %(worker)s::bigint AND h.run_id = c.run_id AND (c.ending = 'none' OR h.epoch = c.epoch)
), refused AS MATERIALIZED (
    -- An ending that is not ours any more takes its run's entries with it: sent once more after a lost answer, when
    -- others went on meanwhile, they would come back where those have had them tried afresh.
    SELECT c.run_id
    FROM unnest(%(task_ids)s::bigint[], %(task_runs)s::uuid[], %(endings)s::text[]) AS c(task_id, run_id, ending)
    WHERE c.ending <> 'none' AND c.task_id NOT IN (SELECT m.task_id FROM mine m)
), gone AS (
    DELETE FROM {schema}.zart_tasks t USING mine m
    WHERE t.id = m.task_id AND m.ending IN ('completed', 'failed', 'cancelled')
    RETURNING m.token
), kept AS (
    UPDATE {schema}.zart_tasks t SET
        recoveries = CASE WHEN m.clears THEN 0 ELSE t.recoveries END,
        state = CASE m.ending
            WHEN 'suspended' THEN CASE
                WHEN t.not_before > {schema}.zart_now() AND NOT m.cancelling THEN 'waiting'
                WHEN t.signal = m.seen AND (m.wake_at IS NULL OR m.wake_at > {schema}.zart_now()) THEN 'waiting'
                ELSE 'ready' END
            WHEN 'body-retry' THEN CASE
                WHEN m.not_before > {schema}.zart_now() AND NOT m.cancelling THEN 'waiting' ELSE 'ready' END
            WHEN 'blocked' THEN 'blocked'
            WHEN 'released' THEN 'ready'
            ELSE t.state END,
        owner = CASE WHEN m.ending = 'none' THEN t.owner END,
        batch = CASE WHEN m.ending = 'none' THEN t.batch END,
        wake_at = CASE m.ending
            WHEN 'suspended' THEN CASE
                WHEN t.not_before > {schema}.zart_now() AND NOT m.cancelling THEN t.not_before ELSE m.wake_at END
            WHEN 'body-retry' THEN m.not_before
            WHEN 'none' THEN t.wake_at END,
        waiting_for = CASE WHEN m.ending = 'none' THEN t.waiting_for ELSE m.waiting_for END,
        attempt = CASE WHEN m.ending = 'body-retry' THEN m.attempt ELSE t.attempt END,
        floor = CASE WHEN m.ending = 'body-retry' THEN m.floor ELSE t.floor END,
        not_before = CASE WHEN m.ending = 'body-retry' THEN m.not_before ELSE t.not_before END,
        token = coalesce(m.token, t.token)
    FROM mine m
    WHERE t.id = m.task_id AND m.ending NOT IN ('completed', 'failed', 'cancelled')
        AND (m.ending <> 'none' OR (m.clears AND t.recoveries > 0))
    RETURNING m.token, m.ending <> 'none' AND t.state = 'ready' AS claimable
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
    RETURNING e.id, e.awaited
), consumed AS (
    UPDATE {schema}.zart_events v SET consumed_at = {schema}.zart_now()
    FROM unnest(%(event_ids)s::bigint[], %(event_tasks)s::bigint[], %(event_runs)s::uuid[]) AS u(id, task_id, run_id)
        JOIN held h ON h.id = u.task_id AND h.run_id = u.run_id
    WHERE v.id = u.id AND v.consumed_at IS NULL AND h.owner = %(worker)s::bigint
        AND (SELECT count(*) FROM finished) >= 0
    RETURNING v.id, v.payload
), swept AS (
    -- What the body left under way has ended with it. No entry of these runs is in the same batch.
    UPDATE {schema}.zart_steps s SET state = 'cancelled', finished_at = {schema}.zart_now()
    FROM mine m
    WHERE s.run_id = m.run_id AND s.state IN ('running', 'waiting')
        AND m.ending IN ('completed', 'failed', 'cancelled') AND (SELECT count(*) FROM finished) >= 0
    RETURNING 1
), written AS (
    INSERT INTO {schema}.zart_steps AS s (run_id, path, name, occurrence, kind, seq, state, digest, arguments, result,
        failure, attempts, started_at, finished_at, until, token)
    SELECT u.run_id, u.path, u.name, u.occurrence, u.kind, u.seq, u.state, u.digest, u.arguments,
        coalesce(u.result, v.payload), u.failure, u.attempts, u.started_at, u.finished_at, u.until, u.token
    FROM fence, unnest(%(run_ids)s::uuid[], %(paths)s::text[], %(names)s::text[], %(occurrences)s::int[],
        %(kinds)s::text[], %(seqs)s::int[], %(states)s::text[], %(digests)s::bytea[], %(arguments)s::text[],
        %(results)s::json[], %(failures)s::json[], %(attempts)s::int[], %(started)s::timestamptz[],
        %(finished)s::timestamptz[], %(untils)s::timestamptz[], %(tokens)s::bigint[], %(step_events)s::bigint[])
        AS u(run_id, path, name, occurrence, kind, seq, state, digest, arguments, result, failure, attempts,
            started_at, finished_at, until, token, event_id)
        LEFT JOIN consumed v ON v.id = u.event_id
    WHERE (u.event_id IS NULL OR v.id IS NOT NULL) AND (SELECT count(*) FROM held) >= 0
        AND (SELECT count(*) FROM finished) >= 0 AND u.run_id NOT IN (SELECT r.run_id FROM refused r)
    ORDER BY u.run_id, u.path, u.name, u.occurrence, u.kind
    ON CONFLICT (run_id, path, name, occurrence, kind) DO UPDATE SET
        seq = excluded.seq, state = excluded.state, digest = coalesce(excluded.digest, s.digest),
        arguments = coalesce(excluded.arguments, s.arguments), result = excluded.result, failure = excluded.failure,
        attempts = excluded.attempts, started_at = coalesce(excluded.started_at, s.started_at),
        finished_at = excluded.finished_at, until = excluded.until, token = excluded.token
    WHERE s.state IN ('running', 'waiting')
        AND ((s.token >> 24) IS DISTINCT FROM (excluded.token >> 24) OR s.token < excluded.token)
    RETURNING s.token
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
SELECT EXISTS (SELECT FROM fence), {schema}.zart_now(), (SELECT array_agg(token) FROM written),
    (SELECT array_agg(token) FROM (SELECT token FROM gone UNION ALL SELECT token FROM kept) ended
        WHERE token IS NOT NULL),
    (SELECT array_agg(f.id) FROM finished f WHERE f.awaited),
    (SELECT count(*) FROM kept WHERE claimable);

-- name: finish
-- Final endings and nothing else: the same as above, with a plan that starts in a fraction of the time.
WITH fence AS MATERIALIZED (
    SELECT 1 AS stands FROM {schema}.zart_workers w
    WHERE w.worker_id = %(worker)s::bigint AND w.writer = %(writer)s::smallint
    FOR KEY SHARE
), held AS MATERIALIZED (
    SELECT t.id, t.owner, t.epoch, t.run_id, t.started_at, t.cancel_at IS NOT NULL AS cancelling
    FROM fence, {schema}.zart_tasks t
    WHERE t.id = ANY (%(task_ids)s::bigint[])
    ORDER BY t.id
    FOR NO KEY UPDATE OF t
), mine AS MATERIALIZED (
    SELECT c.*, h.started_at AS claimed_at, h.cancelling
    FROM held h JOIN unnest(%(task_ids)s::bigint[], %(task_executions)s::text[], %(task_runs)s::uuid[],
        %(epochs)s::int[], %(endings)s::text[], %(task_tokens)s::bigint[], %(task_results)s::json[],
        %(task_failures)s::json[]) AS c(task_id, execution_id, run_id, epoch, ending, token, result, failure)
        ON c.task_id = h.id
    WHERE h.owner = %(worker)s::bigint AND h.run_id = c.run_id AND h.epoch = c.epoch
), gone AS (
    DELETE FROM {schema}.zart_tasks t USING mine m WHERE t.id = m.task_id RETURNING m.token
), finished AS (
    UPDATE {schema}.zart_executions e SET
        status = CASE WHEN m.cancelling THEN 'cancelled' ELSE m.ending END,
        result = CASE WHEN NOT m.cancelling THEN m.result END,
        failure = m.failure,
        started_at = m.claimed_at,
        finished_at = {schema}.zart_now(),
        token = m.token
    FROM mine m
    WHERE e.id = m.execution_id AND (SELECT count(*) FROM gone) > 0
    RETURNING e.id, e.awaited
), swept AS (
    UPDATE {schema}.zart_steps s SET state = 'cancelled', finished_at = {schema}.zart_now()
    FROM mine m
    WHERE s.run_id = m.run_id AND s.state IN ('running', 'waiting') AND (SELECT count(*) FROM finished) >= 0
    RETURNING 1
)
SELECT EXISTS (SELECT FROM fence), {schema}.zart_now(), NULL::bigint[], (SELECT array_agg(token) FROM gone),
    (SELECT array_agg(f.id) FROM finished f WHERE f.awaited AND NOT (
        -- A lone ending tells its client at its commit. In larger batches that would hold up those who commit beside it.
        %(announce)s::bool AND pg_notification_queue_usage() < 0.5
            AND pg_notify(%(done_channel)s::text, f.id) IS NOT NULL)),
    0::bigint;

-- name: read_back
-- The tokens among these writes that stand in the database, for those that the statement before did not return.
SELECT s.token
FROM unnest(%(run_ids)s::uuid[], %(paths)s::text[], %(names)s::text[], %(occurrences)s::int[], %(kinds)s::text[],
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
