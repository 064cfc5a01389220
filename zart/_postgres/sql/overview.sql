-- What `zart top` and `zart doctor` ask about work. All of it only reads, and all but one look costs the same with a
-- million executions as with a thousand: counts end at two thousand, and what has no index is told from a sample.

-- Lanes with work that is ready, with its count (2,001 stands for more), whether a worker that lives serves them, and
-- since when its oldest is ready: of the hundred that come next those of which it is known, which are those that were
-- never claimed or have slept. It goes from lane to lane by the index.
-- name: ready
WITH RECURSIVE lane AS (
    (SELECT t.lane AS id FROM {schema}.zart_tasks t WHERE t.state = 'ready' ORDER BY t.lane LIMIT 1)
    UNION ALL
    SELECT (SELECT t.lane FROM {schema}.zart_tasks t WHERE t.state = 'ready' AND t.lane > l.id ORDER BY t.lane LIMIT 1)
    FROM lane l WHERE l.id IS NOT NULL
)
SELECT e.queue, coalesce(t.step_function, e.name), CASE WHEN t.step_name IS NULL THEN e.version END,
    t.step_name IS NOT NULL, counted.tasks, {schema}.zart_now() - next.since,
    EXISTS (SELECT FROM {schema}.zart_workers w WHERE l.id = ANY (w.lanes) AND w.expires_at > clock_timestamp())
FROM (SELECT id FROM lane WHERE id IS NOT NULL LIMIT 500) l
    CROSS JOIN LATERAL (
        SELECT count(*) AS tasks
        FROM (SELECT FROM {schema}.zart_tasks t WHERE t.lane = l.id AND t.state = 'ready' LIMIT 2001) part
    ) counted
    CROSS JOIN LATERAL (
        SELECT min(part.id) AS example, min(CASE WHEN part.started_at IS NULL THEN part.due_at
            WHEN part.wake_at <= {schema}.zart_now() THEN part.wake_at END) AS since
        FROM (
            SELECT t.id, t.started_at, t.due_at, t.wake_at FROM {schema}.zart_tasks t
            WHERE t.lane = l.id AND t.state = 'ready'
            ORDER BY t.recoveries, t.priority, t.id LIMIT 100
        ) part
    ) next
    CROSS JOIN LATERAL (SELECT * FROM {schema}.zart_tasks t WHERE t.id = next.example OFFSET 0) t
    CROSS JOIN LATERAL (SELECT * FROM {schema}.zart_executions e WHERE e.id = t.execution_id OFFSET 0) e
ORDER BY counted.tasks DESC, 1, 2, 3;

-- All live work by function, from 400 pages of it: as it is when that is all, else multiplied. Says of how many percent of
-- the table it tells; then what runs, waits for something, sleeps until a time at most, and is blocked.
-- name: live
SELECT e.queue, coalesce(t.step_function, e.name), CASE WHEN t.step_name IS NULL THEN e.version END,
    t.step_name IS NOT NULL, found.percent, found.running, found.waiting, found.sleeping, found.blocked
FROM (
    SELECT s.lane, min(s.id) AS example,
        least(100, 400 * 819200.0 / greatest(pg_relation_size($zart${schema}.zart_tasks$zart$), 1))::float8 AS percent,
        count(*) FILTER (WHERE s.state = 'running') AS running,
        count(*) FILTER (WHERE s.state = 'waiting' AND s.wake_at IS NULL) AS waiting,
        count(*) FILTER (WHERE s.state = 'waiting' AND s.wake_at IS NOT NULL) AS sleeping,
        count(*) FILTER (WHERE s.state = 'blocked') AS blocked
    FROM {schema}.zart_tasks s TABLESAMPLE SYSTEM (
        least(100, 400 * 819200.0 / greatest(pg_relation_size($zart${schema}.zart_tasks$zart$), 1)))
    GROUP BY s.lane
) found
    CROSS JOIN LATERAL (SELECT * FROM {schema}.zart_tasks t WHERE t.id = found.example OFFSET 0) t
    CROSS JOIN LATERAL (SELECT * FROM {schema}.zart_executions e WHERE e.id = t.execution_id OFFSET 0) e
ORDER BY 1, 2, 3;

-- What is blocked, the first of it, and how much there is: the one look that reads all live work, since nothing else
-- asks for it and an index would be kept by every claim.
-- name: blocked
SELECT t.execution_id, e.name, e.failure::text, count(*) OVER ()
FROM {schema}.zart_tasks t
    CROSS JOIN LATERAL (SELECT * FROM {schema}.zart_executions e WHERE e.id = t.execution_id OFFSET 0) e
WHERE t.state = 'blocked'
ORDER BY t.id LIMIT (SELECT %(limit)s::int);

-- Steps that have failed three times or more and are tried again: of what workers hold, and of what is due next. Those
-- that have failed for longest come first.
-- name: retrying
WITH live AS MATERIALIZED (
    (SELECT t.execution_id, t.run_id FROM {schema}.zart_tasks t WHERE t.owner IS NOT NULL
    ORDER BY t.owner, t.batch LIMIT 500)
    UNION ALL
    (SELECT t.execution_id, t.run_id FROM {schema}.zart_tasks t WHERE t.state = 'waiting' AND t.wake_at IS NOT NULL
    ORDER BY t.wake_at LIMIT 500)
)
SELECT l.execution_id, a.path || a.name || CASE WHEN a.occurrence > 1 THEN '#' || a.occurrence ELSE '' END, a.attempts,
    {schema}.zart_now() - a.since
FROM live l
    CROSS JOIN LATERAL (
        SELECT a.path, a.name, a.occurrence, a.kind, max(a.attempt) AS attempts, min(a.finished_at) AS since
        FROM {schema}.zart_step_attempts a WHERE a.run_id = l.run_id
        GROUP BY a.path, a.name, a.occurrence, a.kind HAVING max(a.attempt) >= 3
    ) a
    CROSS JOIN LATERAL (
        SELECT FROM {schema}.zart_steps s
        WHERE s.run_id = l.run_id AND s.path = a.path AND s.name = a.name AND s.occurrence = a.occurrence
            AND s.kind = a.kind AND s.state IN ('started', 'running', 'waiting') OFFSET 0
    ) s
ORDER BY a.since LIMIT (SELECT %(limit)s::int);

-- What the server has counted so far: executions started and steps recorded, work that has ended, and how often live work was
-- changed. It counts late, by a second or so.
-- name: counters
SELECT clock_timestamp(),
    max(c.n_tup_ins) FILTER (WHERE c.relname = 'zart_executions'), max(c.n_tup_ins) FILTER (WHERE c.relname = 'zart_steps'),
    max(c.n_tup_del) FILTER (WHERE c.relname = 'zart_tasks'), max(c.n_tup_upd) FILTER (WHERE c.relname = 'zart_tasks')
FROM pg_stat_all_tables c WHERE c.schemaname = %(schema)s::text;
