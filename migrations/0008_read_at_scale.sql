-- What is asked of the tables stays quick when there are millions of rows.

-- The view asked clock_timestamp(). That is volatile, so the planner took the view for a thing apart: to show the newest
-- hundred executions it first computed every column of all of them, `served` with a look at the workers for each, and sorted.
-- statement_timestamp() is the same real time, and the view is merged into the query: a page is read from its index.
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
        WHERE w.writer = 0 AND w.expires_at > statement_timestamp()
            AND coalesce(t.lane, {schema}.zart_lane(e.queue, e.name, e.version)) = ANY (w.lanes)
    ) AS served   -- by a live worker
FROM {schema}.zart_executions e LEFT JOIN {schema}.zart_tasks t ON t.id = e.task_id;

-- Cancels among the news. Every look at a backlog of events asked all of it for them; only cancels pay for this index.
CREATE INDEX zart_wakeups_cancels ON {schema}.zart_wakeups (task_id, id) WHERE kind = 'cancel';
