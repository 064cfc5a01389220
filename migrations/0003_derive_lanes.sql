-- A lane's number is derived from the function's name instead of being given out by zart_lanes.
--
-- The first start of a function had to insert a row there. In a transaction that stayed open, that row's unique key made
-- everybody wait who started or registered the same function. Nobody has to agree on a number that all can compute.

-- The lane of a function: 62 bits of a hash of queue, name and version, with the next higher bit set, so that none is
-- taken for a number that was given out earlier. Names have no control characters, so the joined text is unambiguous.
DROP FUNCTION {schema}.zart_lane(text, text, text);
CREATE FUNCTION {schema}.zart_lane(queue text, name text, version text) RETURNS bigint
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
    RETURN ('x' || pg_catalog.encode(substr(pg_catalog.sha256(pg_catalog.convert_to(
        $1 || E'\x1f' || $2 || E'\x1f' || coalesce($3, ''), 'UTF8')), 1, 8), 'hex'))::bit(64)::bigint
        & 4611686018427387903 | 4611686018427387904;
END $$;

-- The view stands on zart_workers.lanes, and views of others may stand on the view: for a moment it does without.
CREATE OR REPLACE VIEW {schema}.zart_v_executions AS
SELECT
    e.id, e.name, e.version, e.queue,
    CASE
        WHEN e.status <> 'scheduled' OR t.id IS NULL THEN e.status
        WHEN t.state = 'blocked' THEN 'blocked'
        WHEN t.started_at IS NULL AND t.state <> 'running' THEN 'scheduled'
        WHEN t.state = 'waiting' THEN 'waiting'
        ELSE 'running'
    END AS status,
    e.status = 'scheduled' AND t.cancel_at IS NOT NULL AS cancelling,
    e.run_id,
    CASE WHEN t.state = 'waiting' AND t.started_at IS NOT NULL THEN t.waiting_for END AS waiting_for,
    e.payload::jsonb AS payload,
    e.result::jsonb AS result,
    e.failure::jsonb AS failure,
    e.created_at,
    coalesce(e.started_at, t.started_at) AS started_at,
    e.finished_at,
    e.priority,
    false AS served
FROM {schema}.zart_executions e LEFT JOIN {schema}.zart_tasks t ON t.id = e.task_id;

-- Numbers that were given out stay valid: executions have them, and clients of the version before remember them.
-- From now on workers alone write here, when they register: which function a number stands for.
ALTER TABLE {schema}.zart_lanes ALTER COLUMN id DROP IDENTITY, ALTER COLUMN id TYPE bigint;
DROP INDEX {schema}.zart_lanes_key;
ALTER TABLE {schema}.zart_tasks ALTER COLUMN lane TYPE bigint;
ALTER TABLE {schema}.zart_workers ALTER COLUMN lanes DROP DEFAULT, ALTER COLUMN lanes TYPE bigint[],
    ALTER COLUMN lanes SET DEFAULT '{{}}';

CREATE OR REPLACE VIEW {schema}.zart_v_executions AS
SELECT
    e.id, e.name, e.version, e.queue,
    CASE
        WHEN e.status <> 'scheduled' OR t.id IS NULL THEN e.status
        WHEN t.state = 'blocked' THEN 'blocked'
        WHEN t.started_at IS NULL AND t.state <> 'running' THEN 'scheduled'   -- never claimed: queued, or not due
        WHEN t.state = 'waiting' THEN 'waiting'
        ELSE 'running'
    END AS status,
    e.status = 'scheduled' AND t.cancel_at IS NOT NULL AS cancelling,
    e.run_id,
    CASE WHEN t.state = 'waiting' AND t.started_at IS NOT NULL THEN t.waiting_for END AS waiting_for,
    e.payload::jsonb AS payload,
    e.result::jsonb AS result,
    e.failure::jsonb AS failure,
    e.created_at,
    coalesce(e.started_at, t.started_at) AS started_at,
    e.finished_at,
    e.priority,
    EXISTS (
        SELECT FROM {schema}.zart_workers w
        WHERE w.writer = 0 AND w.expires_at > clock_timestamp()
            AND coalesce(t.lane, {schema}.zart_lane(e.queue, e.name, e.version)) = ANY (w.lanes)
    ) AS served   -- by a live worker
FROM {schema}.zart_executions e LEFT JOIN {schema}.zart_tasks t ON t.id = e.task_id;
