-- Rules by which people hold executions back, and the state of work that a rule holds.
--
-- A rule by a function's name changes no row of what it covers: a worker that knows the rule does not ask for that
-- function's lanes, and whoever looks sees it in the view. So it costs the same over ten executions and over a million.
-- Only what is held one by one is `paused`: the execution that a rule names by its id, and what a worker had in its hands
-- when a rule stopped it. What is paused is woken by nothing but the end of its rule, and by a cancel.

CREATE TABLE {schema}.zart_pause_rules (
    id text PRIMARY KEY,
    execution_id text,               -- all of these that are given must be so of what is held back
    name text,                       -- of the durable function, in every queue and version
    step text,                       -- a pattern over the names of steps: * ? [abc]
    reason text,
    author text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT {schema}.zart_now(),
    expires_at timestamptz,
    CONSTRAINT zart_pause_rules_says_what CHECK (num_nonnulls(execution_id, name, step) > 0)
);

-- How often the rules have changed. Workers hear this number with what they ask anyway, and read the rules when it is
-- another one than before.
CREATE TABLE {schema}.zart_pause_changes (
    id int PRIMARY KEY CHECK (id = 1),
    number bigint NOT NULL
);
INSERT INTO {schema}.zart_pause_changes VALUES (1, 0);
CREATE FUNCTION {schema}.zart_note_pause_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE {schema}.zart_pause_changes SET number = number + 1;
    RETURN NULL;
END $$;
CREATE TRIGGER zart_pause_rules_changed AFTER INSERT OR UPDATE OR DELETE ON {schema}.zart_pause_rules
    FOR EACH ROW EXECUTE FUNCTION {schema}.zart_note_pause_change();

ALTER TABLE {schema}.zart_tasks ADD COLUMN paused_by text;   -- when paused: the rule
ALTER TABLE {schema}.zart_tasks DROP CONSTRAINT zart_tasks_state_check;
ALTER TABLE {schema}.zart_tasks ADD CONSTRAINT zart_tasks_state_check
    CHECK (state IN ('ready', 'running', 'waiting', 'blocked', 'paused')) NOT VALID;
-- Both hold little: what is paused, by its rule; and what is to be cancelled and may be claimed, also where a rule holds
-- all others of its function back.
CREATE INDEX zart_tasks_paused ON {schema}.zart_tasks (paused_by, id) WHERE state = 'paused';
CREATE INDEX zart_tasks_cancelling ON {schema}.zart_tasks (lane, priority, id)
    WHERE state = 'ready' AND cancel_at IS NOT NULL;

-- The rules that hold now.
CREATE VIEW {schema}.zart_v_pause_rules AS
SELECT r.id, r.execution_id, r.name, r.step, r.reason, r.author, r.created_at, r.expires_at
FROM {schema}.zart_pause_rules r
WHERE r.expires_at IS NULL OR r.expires_at > {schema}.zart_now();

-- The arrays of what is covered are made once for each query, not for each row. What is held by a worker runs until it
-- comes to a step; what is being cancelled goes on to its end.
CREATE OR REPLACE VIEW {schema}.zart_v_executions AS
SELECT
    e.id, e.name, e.version, e.queue,
    CASE
        WHEN e.status <> 'scheduled' OR t.id IS NULL THEN e.status
        WHEN t.state = 'blocked' THEN 'blocked'
        WHEN t.state <> 'running' AND t.cancel_at IS NULL AND (
            t.state = 'paused' AND t.paused_by = ANY (ARRAY(SELECT r.id FROM {schema}.zart_v_pause_rules r))
            OR e.name = ANY (ARRAY(
                SELECT r.name FROM {schema}.zart_v_pause_rules r WHERE r.step IS NULL AND r.execution_id IS NULL))
            OR e.id = ANY (ARRAY(
                SELECT r.execution_id FROM {schema}.zart_v_pause_rules r WHERE r.step IS NULL AND r.name IS NULL))
        ) THEN 'paused'
        WHEN t.started_at IS NULL AND t.state <> 'running' THEN 'scheduled'   -- never claimed: queued, or not due
        WHEN t.state = 'waiting' THEN 'waiting'
        ELSE 'running'
    END AS status,
    e.status = 'scheduled' AND t.cancel_at IS NOT NULL AS cancelling,
    e.run_id,
    CASE
        WHEN e.status <> 'scheduled' OR t.state IN ('running', 'blocked') THEN NULL
        ELSE coalesce(
            CASE WHEN t.cancel_at IS NULL THEN (
                SELECT concat_ws(', ', CASE WHEN t.state = 'paused' THEN t.waiting_for END,
                    concat_ws(': ', format('pause rule %s of %s', r.id, r.author), r.reason))
                FROM {schema}.zart_v_pause_rules r
                WHERE t.state = 'paused' AND r.id = t.paused_by
                    OR r.step IS NULL AND coalesce(r.name = e.name, true) AND coalesce(r.execution_id = e.id, true)
                ORDER BY t.state = 'paused' AND r.id = t.paused_by DESC, r.created_at, r.id LIMIT 1
            ) END,
            CASE WHEN t.state = 'waiting' AND t.started_at IS NOT NULL THEN t.waiting_for END)
    END AS waiting_for,
    e.payload::jsonb AS payload,
    e.result::jsonb AS result,
    e.failure::jsonb AS failure,
    e.created_at,
    coalesce(e.started_at, t.started_at) AS started_at,
    e.finished_at,
    e.priority,
    EXISTS (
        SELECT FROM {schema}.zart_workers w
        WHERE w.writer = 0 AND w.expires_at > statement_timestamp()
            AND coalesce(t.lane, {schema}.zart_lane(e.queue, e.name, e.version)) = ANY (w.lanes)
    ) AS served   -- by a live worker
FROM {schema}.zart_executions e LEFT JOIN {schema}.zart_tasks t ON t.id = e.task_id;
