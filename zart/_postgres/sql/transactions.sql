-- Steps whose writes and whose record are one commit. All of it runs on connections of their own, never the journal's.
--
-- Their fence row is the worker's row with number 3, shared by all of them and by zart_record_step. It is locked by the
-- last statement alone. A heartbeat changes no key of it, so a transaction in `repeatable read` whose snapshot is older
-- may lock it all the same.

-- The record of a step, as the last statement of the step's own transaction, sent together with its COMMIT. So it must
-- fail where the journal's statement would return a verdict: ZR001 the fence is gone, ZR002 the call has a record that
-- counts.
-- name: record
WITH fence AS MATERIALIZED (
    SELECT 1 AS stands FROM {schema}.zart_workers w
    WHERE w.worker_id = %(worker)s::bigint AND w.writer = 3
    FOR KEY SHARE
), written AS (
    INSERT INTO {schema}.zart_steps AS s (run_id, path, name, occurrence, kind, seq, state, digest, arguments, result,
        data, progress, attempts, started_at, finished_at, token)
    SELECT %(run_id)s::uuid, %(path)s::text, %(name)s::text, %(occurrence)s::int, %(kind)s::text, %(seq)s::int,
        'completed', %(digest)s::bytea, %(arguments)s::text, %(result)s::text::json, %(data)s::text::json,
        %(progress)s::text::json, %(attempts)s::int, %(started)s::timestamptz, %(finished)s::timestamptz,
        %(token)s::bigint
    FROM fence
    ON CONFLICT (run_id, path, name, occurrence, kind) DO UPDATE SET
        seq = excluded.seq, state = excluded.state, digest = coalesce(excluded.digest, s.digest),
        arguments = coalesce(excluded.arguments, s.arguments), result = excluded.result, failure = NULL,
        data = excluded.data, progress = coalesce(excluded.progress, s.progress), attempts = excluded.attempts,
        started_at = coalesce(excluded.started_at, s.started_at), finished_at = excluded.finished_at, until = NULL,
        token = excluded.token
    WHERE s.state IN ('started', 'running', 'waiting')
        AND ((s.token >> 24) IS DISTINCT FROM (excluded.token >> 24) OR s.token < excluded.token)
    RETURNING s.token
)
SELECT CASE
    WHEN NOT EXISTS (SELECT FROM fence) THEN {schema}.zart_refuse_record('ZR001')
    WHEN NOT EXISTS (SELECT FROM written) THEN {schema}.zart_refuse_record('ZR002')
END;

-- The record of a scheduled step: beside the journal, in which the end of its own task writes what came of it.
-- name: record_beside
WITH fence AS MATERIALIZED (
    SELECT 1 AS stands FROM {schema}.zart_workers w
    WHERE w.worker_id = %(worker)s::bigint AND w.writer = 3
    FOR KEY SHARE
), written AS (
    INSERT INTO {schema}.zart_recorded_steps AS r (run_id, path, name, occurrence, kind, epoch, attempt, result)
    SELECT %(run_id)s::uuid, %(path)s::text, %(name)s::text, %(occurrence)s::int, %(kind)s::text, %(epoch)s::int,
        %(attempt)s::int, %(result)s::text::json
    FROM fence
    ON CONFLICT (run_id, path, name, occurrence, kind) DO UPDATE
        SET epoch = excluded.epoch, attempt = excluded.attempt, result = excluded.result
        WHERE r.result IS NULL AND (r.epoch, r.attempt) < (excluded.epoch, excluded.attempt)
    RETURNING r.attempt
)
SELECT CASE
    WHEN NOT EXISTS (SELECT FROM fence) THEN {schema}.zart_refuse_record('ZR001')
    WHEN NOT EXISTS (SELECT FROM written) THEN {schema}.zart_refuse_record('ZR002')
END;

-- Puts an end to a doubt: nobody knows whether a record was committed, since the answer was lost. This waits for a
-- transaction that is still under way, and then the row is the record's, or it is ours with a newer token, over which
-- the lost statement can never write. Returns whether the fence stands, and whether the row is ours.
-- name: seal
WITH fence AS MATERIALIZED (
    SELECT 1 AS stands FROM {schema}.zart_workers w
    WHERE w.worker_id = %(worker)s::bigint AND w.writer = 3
    FOR KEY SHARE
), sealed AS (
    INSERT INTO {schema}.zart_steps AS s (run_id, path, name, occurrence, kind, state, attempts, started_at, token)
    SELECT %(run_id)s::uuid, %(path)s::text, %(name)s::text, %(occurrence)s::int, %(kind)s::text, 'running',
        %(attempts)s::int, %(started)s::timestamptz, %(token)s::bigint
    FROM fence
    ON CONFLICT (run_id, path, name, occurrence, kind) DO UPDATE SET
        state = excluded.state, attempts = excluded.attempts, until = NULL, token = excluded.token
    WHERE s.state IN ('started', 'running', 'waiting')
        AND ((s.token >> 24) IS DISTINCT FROM (excluded.token >> 24) OR s.token < excluded.token)
    RETURNING s.token
)
SELECT EXISTS (SELECT FROM fence), EXISTS (SELECT FROM sealed);

-- Whose record it is, read by a later statement than the one above.
-- name: written_token
SELECT s.token FROM {schema}.zart_steps s
WHERE s.run_id = %(run_id)s::uuid AND s.path = %(path)s::text AND s.name = %(name)s::text
    AND s.occurrence = %(occurrence)s::int AND s.kind = %(kind)s::text
    AND s.state IN ('completed', 'failed', 'cancelled');

-- An attempt of a step with transaction="own" is over: from here on it can record nothing any more, unless it has. Fails
-- with 55P03 when its transaction is still open after `patience`. Returns whether the fence stands.
-- name: end_own
WITH fence AS MATERIALIZED (
    SELECT set_config('lock_timeout', %(patience)s::text, true) AS patience FROM {schema}.zart_workers w
    WHERE w.worker_id = %(worker)s::bigint AND w.writer = 3
    FOR KEY SHARE
), over AS (
    INSERT INTO {schema}.zart_recorded_steps AS r (run_id, path, name, occurrence, kind, epoch, attempt)
    SELECT %(run_id)s::uuid, %(path)s::text, %(name)s::text, %(occurrence)s::int, %(kind)s::text, %(epoch)s::int,
        %(attempt)s::int
    FROM fence
    ON CONFLICT (run_id, path, name, occurrence, kind) DO UPDATE
        SET epoch = excluded.epoch, attempt = excluded.attempt
        WHERE r.result IS NULL AND (r.epoch, r.attempt) < (excluded.epoch, excluded.attempt)
)
SELECT EXISTS (SELECT FROM fence);

-- What such a step has recorded, in whatever attempt.
-- name: read_own
SELECT r.result::text, r.attempt FROM {schema}.zart_recorded_steps r
WHERE r.run_id = %(run_id)s::uuid AND r.path = %(path)s::text AND r.name = %(name)s::text
    AND r.occurrence = %(occurrence)s::int AND r.kind = %(kind)s::text AND r.result IS NOT NULL;

-- The journal has what came of it.
-- name: forget_own
DELETE FROM {schema}.zart_recorded_steps r
WHERE r.run_id = %(run_id)s::uuid AND r.path = %(path)s::text AND r.name = %(name)s::text
    AND r.occurrence = %(occurrence)s::int AND r.kind = %(kind)s::text
RETURNING r.attempt;

-- After a takeover: something new is recorded, so the count of recoveries starts again.
-- name: clear_recoveries
UPDATE {schema}.zart_tasks t SET recoveries = 0
WHERE t.id = %(task)s::bigint AND t.owner = %(worker)s::bigint AND t.run_id = %(run_id)s::uuid
RETURNING t.id;
