-- News for live work: inserted by transactions that a user may hold open, applied by workers once it is committed.

-- Cancels of executions that have not run so far, or are blocked: nothing needs to be unwound, so whoever applies the
-- cancel ends them; not what is blocked in the middle of a cancel, since an undo is missing there. Their failures are made
-- by the caller.
-- name: read_cancels
SELECT w.id, t.execution_id, t.step_path || t.step_name, w.reason
FROM {schema}.zart_wakeups w
    CROSS JOIN LATERAL (SELECT * FROM {schema}.zart_tasks t WHERE t.id = w.task_id OFFSET 0) t
WHERE w.kind = 'cancel' AND (t.started_at IS NULL OR (t.state = 'blocked' AND t.cancel_at IS NULL))
ORDER BY w.id LIMIT %(batch)s;

-- Applies what nobody else is applying. Locks: wake-ups, then tasks by id, none waited for; what is locked by another
-- is left for the next time. A cancel reaches a waiting body even before its retry is due, and one that is paused; an event
-- does not, and neither does it shorten a delayed start.
-- A cancel that would end its execution, for which the caller brought no failure, is left too.
-- A wake-up whose task is gone is dropped, since a task id is never used again; of an event, unless the execution has
-- other live work by now.
-- Returns the number of wake-ups that are gone now, of tasks that became ready, of those left, and the executions
-- whose end somebody awaits.
-- name: apply_wakeups
WITH found AS MATERIALIZED (
    SELECT w.id, w.task_id, w.kind, w.reason, w.author, w.created_at, w.execution_id, p.failure
    FROM {schema}.zart_wakeups w
        LEFT JOIN unnest(%(cancels)s::bigint[], %(failures)s::text[]) AS p (wakeup, failure) ON p.wakeup = w.id
    ORDER BY w.id LIMIT %(batch)s
    FOR UPDATE OF w SKIP LOCKED
), renewed AS MATERIALIZED (
    -- It ended while the event was not committed, and was repaired: its live work has another number.
    -- The number is more than a batch: it lets the planner think of no more.
    SELECT f.id, e.task_id
    FROM (SELECT * FROM found f WHERE f.execution_id IS NOT NULL LIMIT 1000) f CROSS JOIN LATERAL (
        SELECT * FROM {schema}.zart_executions e WHERE e.id = f.execution_id OFFSET 0
    ) e
    WHERE e.status = 'scheduled' AND e.task_id <> f.task_id
), taken AS MATERIALIZED (
    SELECT f.id, coalesce(r.task_id, f.task_id) AS task_id, f.kind, f.reason, f.author, f.created_at, f.failure
    FROM found f LEFT JOIN renewed r ON r.id = f.id
), locked AS MATERIALIZED (
    SELECT t.id, t.started_at, t.started_at IS NULL OR (t.state = 'blocked' AND t.cancel_at IS NULL) AS unstarted, t.cancel_at IS NULL AS uncancelled
    FROM {schema}.zart_tasks t
    WHERE t.id = ANY (ARRAY(SELECT DISTINCT k.task_id FROM taken k))
    ORDER BY t.id
    FOR UPDATE SKIP LOCKED
), news AS MATERIALIZED (
    SELECT l.id, l.started_at, l.unstarted, bool_or(k.kind = 'cancel') AS cancels,
        bool_or(k.kind = 'cancel') AND l.uncancelled AS cancels_first,
        count(*) FILTER (WHERE k.kind = 'done')::int AS dones,
        (array_agg(k.reason ORDER BY k.id) FILTER (WHERE k.kind = 'cancel'))[1] AS reason,
        (array_agg(k.author ORDER BY k.id) FILTER (WHERE k.kind = 'cancel'))[1] AS author,
        (array_agg(k.failure ORDER BY k.id) FILTER (WHERE k.kind = 'cancel'))[1] AS failure
    FROM locked l JOIN taken k ON k.task_id = l.id
    GROUP BY l.id, l.started_at, l.unstarted, l.uncancelled
), ended AS (
    DELETE FROM {schema}.zart_tasks t USING news n
    WHERE t.id = n.id AND n.cancels AND n.unstarted AND n.failure IS NOT NULL
    RETURNING t.id, t.execution_id, t.run_id, n.started_at, n.reason, n.author, n.failure, t.parent_task, t.step_path,
        t.step_name, t.step_occurrence
), told AS (
    UPDATE {schema}.zart_tasks t
    SET signal = t.signal %% 2147483647 + 1,
        done = t.done + n.dones,
        state = CASE
            WHEN t.state = 'waiting'
                AND (n.cancels OR greatest(t.due_at, t.not_before) <= {schema}.zart_now()) THEN 'ready'
            WHEN t.state = 'paused' AND n.cancels THEN 'ready'
            ELSE t.state END,
        cancel_reason = CASE WHEN n.cancels AND t.cancel_at IS NULL THEN n.reason ELSE t.cancel_reason END,
        cancel_author = CASE WHEN n.cancels AND t.cancel_at IS NULL THEN n.author ELSE t.cancel_author END,
        cancel_at = CASE WHEN n.cancels AND t.cancel_at IS NULL THEN {schema}.zart_now() ELSE t.cancel_at END
    FROM news n
    WHERE t.id = n.id AND NOT (n.cancels AND n.unstarted)
    RETURNING t.id, t.state, t.run_id, n.cancels_first AND t.step_name IS NULL AS cancels_others, n.reason, n.author
), closed AS (
    UPDATE {schema}.zart_executions e
    SET status = 'cancelled', failure = x.failure::json, started_at = x.started_at, finished_at = {schema}.zart_now()
    FROM ended x
    WHERE e.id = x.execution_id AND e.task_id = x.id
    RETURNING e.id, e.awaited, e.failure, e.parent_run, e.parent_path, e.parent_name, e.parent_occurrence
), swept AS (
    UPDATE {schema}.zart_steps s SET state = 'cancelled', finished_at = {schema}.zart_now()
    FROM ended x
    WHERE s.run_id = x.run_id AND x.step_name IS NULL AND s.state IN ('started', 'running', 'waiting')
        AND s.kind <> 'child'
        AND (SELECT count(*) FROM closed) >= 0
), answered AS (
    -- What a scheduled step or a child came to, in the journal of whoever gave it away.
    UPDATE {schema}.zart_steps s SET state = 'cancelled', failure = a.failure, finished_at = {schema}.zart_now()
    FROM (
        SELECT x.run_id, x.step_path AS path, x.step_name AS name, x.step_occurrence AS occurrence, 'step' AS kind,
            x.failure::json AS failure
        FROM ended x WHERE x.step_name IS NOT NULL
        UNION ALL
        SELECT c.parent_run, c.parent_path, c.parent_name, c.parent_occurrence, 'child', c.failure FROM closed c
    ) a
    WHERE s.run_id = a.run_id AND s.path = a.path AND s.name = a.name AND s.occurrence = a.occurrence
        AND s.kind = a.kind AND s.state IN ('started', 'running', 'waiting')
    RETURNING s.run_id, s.input -> 'then' AS successor
), successor AS MATERIALIZED (
    -- Of a limited map. Whoever has the row of one locked is about to end it.
    SELECT t.id
    FROM answered a JOIN {schema}.zart_steps n ON n.run_id = a.run_id AND n.path = a.successor ->> 0
        AND n.name = a.successor ->> 1 AND n.occurrence = (a.successor ->> 2)::int AND n.kind = 'step'
        JOIN {schema}.zart_tasks t ON t.id = n.task_id
    WHERE t.state = 'waiting' AND t.started_at IS NULL AND t.id NOT IN (SELECT n.id FROM news n)
    ORDER BY t.id
    FOR UPDATE OF t SKIP LOCKED
), let_go AS (
    UPDATE {schema}.zart_tasks t SET state = 'ready' FROM successor c WHERE t.id = c.id
), passed_on AS (
    -- To the one above, and to those below. It is applied by a later look, in the order in which everybody locks.
    INSERT INTO {schema}.zart_wakeups (task_id, kind, reason, author)
    SELECT x.parent_task, 'done', NULL, NULL FROM ended x WHERE x.parent_task IS NOT NULL
    UNION ALL
    SELECT * FROM (SELECT s.task_id, 'cancel', x.reason, x.author
    FROM (
        SELECT x.run_id, x.reason, x.author FROM ended x WHERE x.step_name IS NULL
        UNION ALL
        -- At once: what an execution has given away may hold the very slots that it would need to hear of its cancel.
        SELECT t.run_id, t.reason, t.author FROM told t WHERE t.cancels_others
    ) x JOIN {schema}.zart_steps s ON s.run_id = x.run_id JOIN {schema}.zart_tasks t ON t.id = s.task_id
    WHERE s.state IN ('started', 'running', 'waiting') AND NOT t.detached
    ORDER BY s.path DESC, s.name DESC, s.occurrence DESC) below
), noted AS (
    INSERT INTO {schema}.zart_history (execution_id, run_id, what, author, note)
    SELECT x.execution_id, x.run_id,
        CASE WHEN x.step_name IS NULL THEN 'cancelled' ELSE format('step %%s cancelled', x.step_path || x.step_name) END,
        x.author, x.reason
    FROM ended x
), applied AS (
    DELETE FROM {schema}.zart_wakeups w
    WHERE w.id = ANY (ARRAY(
        SELECT k.id FROM taken k
        WHERE k.task_id IN (SELECT x.id FROM ended x UNION ALL SELECT t.id FROM told t)
            OR NOT EXISTS (SELECT FROM {schema}.zart_tasks t WHERE t.id = k.task_id)))
    RETURNING w.id
)
SELECT (SELECT count(*) FROM applied), (SELECT count(*) FROM told t WHERE t.state = 'ready'),
    (SELECT count(*) FROM taken) - (SELECT count(*) FROM applied),
    coalesce((SELECT array_agg(c.id) FROM closed c WHERE c.awaited), '{}');

-- Sleepers that are due become ready. Returns how many.
-- name: promote
WITH due AS MATERIALIZED (
    SELECT t.id FROM {schema}.zart_tasks t
    WHERE t.state = 'waiting' AND t.wake_at <= {schema}.zart_now()
    ORDER BY t.wake_at LIMIT %(batch)s
    FOR NO KEY UPDATE SKIP LOCKED
), promoted AS (
    UPDATE {schema}.zart_tasks t SET state = 'ready' FROM due WHERE t.id = due.id RETURNING t.id
)
SELECT count(*) FROM promoted;

-- Tells one channel. It is a hint: when it fails, nothing else does.
-- name: notify
SELECT pg_notify(%(channel)s, note) FROM unnest(%(notes)s::text[]) AS note;

-- Whether another worker waits for a notification.
-- name: notify_idle
SELECT pg_notify(%(channel)s, '')
WHERE EXISTS (SELECT FROM {schema}.zart_workers w WHERE w.idle AND w.worker_id <> %(worker)s);
