-- Rules that hold executions back: how people make and end them, how workers know them, and what becomes of what is held.
--
-- A rule is never changed, and its id is never used again: once it is gone it is gone for good. Whoever pauses a task for
-- a rule locks the rule's row first, so the one who deletes it waits for that, and a later statement, `free`, sees all
-- that was paused for it.

-- Makes a rule, and holds the execution that it names back at once where no worker has it. Returns the execution's status
-- (null: there is none), whether it lives, whether the rule's time is still to come, and whether the rule stands: also when
-- an earlier try has made it whose answer was lost.
-- name: pause
WITH execution AS MATERIALIZED (
    SELECT e.id, e.status, e.task_id FROM {schema}.zart_executions e WHERE e.id = %(execution)s::text
), task AS MATERIALIZED (
    SELECT t.id, t.execution_id, t.run_id FROM {schema}.zart_tasks t
    WHERE t.id = (SELECT x.task_id FROM execution x)
    FOR NO KEY UPDATE
), due AS MATERIALIZED (
    SELECT d.at, d.at IS NULL OR d.at > {schema}.zart_now() AS comes
    FROM (SELECT coalesce(%(until)s::timestamptz, {schema}.zart_now() + %(lasts)s::interval) AS at) d
), rule AS (
    INSERT INTO {schema}.zart_pause_rules AS r (id, execution_id, name, step, reason, author, expires_at)
    SELECT %(rule)s::text, %(execution)s::text, %(name)s::text, %(step)s::text, %(reason)s::text, %(author)s::text, d.at
    FROM due d
    WHERE d.comes AND (%(execution)s::text IS NULL OR EXISTS (SELECT FROM task))
    ON CONFLICT (id) DO NOTHING
    RETURNING r.id, r.step
), held AS (
    UPDATE {schema}.zart_tasks t SET state = 'paused', paused_by = r.id, waiting_for = NULL
    FROM task k, rule r
    WHERE t.id = k.id AND r.step IS NULL AND t.state IN ('ready', 'waiting') AND t.cancel_at IS NULL
), noted AS (
    INSERT INTO {schema}.zart_history (execution_id, run_id, what, author, note)
    SELECT k.execution_id, k.run_id, 'paused', %(author)s, %(reason)s FROM task k, rule
)
SELECT (SELECT x.status FROM execution x), EXISTS (SELECT FROM task), (SELECT d.comes FROM due d),
    EXISTS (SELECT FROM rule) OR EXISTS (SELECT FROM {schema}.zart_pause_rules r WHERE r.id = %(rule)s::text);

-- Ends a rule; whether it stood until now. Workers let go what it held.
-- name: unpause
WITH gone AS (
    DELETE FROM {schema}.zart_pause_rules r WHERE r.id = %(rule)s::text
    RETURNING r.execution_id, r.expires_at IS NULL OR r.expires_at > {schema}.zart_now() AS stood
), noted AS (
    INSERT INTO {schema}.zart_history (execution_id, run_id, what, author, note)
    SELECT e.id, e.run_id, 'unpaused', %(author)s, %(reason)s
    FROM gone g JOIN {schema}.zart_executions e ON e.id = g.execution_id
    WHERE g.stood
)
SELECT coalesce((SELECT g.stood FROM gone g), false);

-- name: pauses
SELECT r.id, r.execution_id, r.name, r.step, r.reason, r.author, {time:r.expires_at}
FROM {schema}.zart_v_pause_rules r ORDER BY r.created_at, r.id;

-- The rules, as one snapshot with the number of their changes. Those whose time is over come too, until they are deleted.
-- name: rules
SELECT (SELECT c.number FROM {schema}.zart_pause_changes c), {schema}.zart_now(), r.id, r.execution_id, r.name, r.step,
    {time:r.expires_at}
FROM (SELECT) AS always LEFT JOIN {schema}.zart_pause_rules r ON true
ORDER BY r.created_at, r.id;

-- Deletes the rules whose time is over. One that somebody else has in his hands is left for the next time.
-- name: end_expired
WITH over AS MATERIALIZED (
    SELECT r.id FROM {schema}.zart_pause_rules r
    WHERE r.expires_at <= {schema}.zart_now()
    ORDER BY r.id
    FOR UPDATE SKIP LOCKED
), ended AS (
    DELETE FROM {schema}.zart_pause_rules r USING over o WHERE r.id = o.id RETURNING r.id, r.execution_id
), noted AS (
    INSERT INTO {schema}.zart_history (execution_id, run_id, what, note)
    SELECT e.id, e.run_id, 'unpaused', 'its rule has expired'
    FROM ended x
        CROSS JOIN LATERAL (SELECT * FROM {schema}.zart_executions e WHERE e.id = x.execution_id OFFSET 0) e
)
SELECT count(*) FROM ended;

-- Lets go what was paused for rules that are gone: it is ready, or waits for its beginning or the next attempt of its body.
-- Whether something else holds it back now is found out by whoever claims it. It goes from rule to rule by the index, so
-- what other rules hold costs nothing. Returns how many it found, how many of them it has let go (others do the same
-- at this moment), and how many can be claimed.
-- name: free
WITH RECURSIVE rule AS (
    (SELECT t.paused_by AS id FROM {schema}.zart_tasks t WHERE t.state = 'paused' ORDER BY t.paused_by LIMIT 1)
    UNION ALL
    SELECT (SELECT t.paused_by FROM {schema}.zart_tasks t WHERE t.state = 'paused' AND t.paused_by > r.id
            ORDER BY t.paused_by LIMIT 1)
    FROM rule r WHERE r.id IS NOT NULL
), found AS MATERIALIZED (
    SELECT held.id
    FROM rule r CROSS JOIN LATERAL (
        SELECT t.id FROM {schema}.zart_tasks t
        WHERE t.state = 'paused' AND t.paused_by = r.id ORDER BY t.paused_by, t.id LIMIT %(batch)s
    ) held
    WHERE r.id IS NOT NULL AND NOT EXISTS (SELECT FROM {schema}.zart_pause_rules s WHERE s.id = r.id)
    LIMIT %(batch)s
), locked AS MATERIALIZED (
    SELECT t.id FROM {schema}.zart_tasks t
    WHERE t.id = ANY (ARRAY(SELECT f.id FROM found f)) AND t.state = 'paused'
    ORDER BY t.id
    FOR NO KEY UPDATE SKIP LOCKED
), freed AS (
    UPDATE {schema}.zart_tasks t
    SET state = CASE WHEN greatest(t.due_at, t.not_before) > {schema}.zart_now() THEN 'waiting' ELSE 'ready' END,
        wake_at = CASE WHEN greatest(t.due_at, t.not_before) > {schema}.zart_now() THEN greatest(t.due_at, t.not_before) END,
        wake_at_done = NULL, waiting_for = NULL, paused_by = NULL
    FROM locked l WHERE t.id = l.id
    RETURNING t.state
)
SELECT (SELECT count(*) FROM found), (SELECT count(*) FROM freed), (SELECT count(*) FROM freed f WHERE f.state = 'ready');

-- Endings of holds on what a rule stops, and nothing else. A statement of the journal: see there for the fence, and for
-- what an ending must match. A rule that is gone, or goes at this moment, stops nothing any more, and neither does any
-- rule stop what is being cancelled: that is ready again.
-- name: park
WITH fence AS MATERIALIZED (
    SELECT 1 AS stands FROM {schema}.zart_workers w
    WHERE w.worker_id = %(worker)s::bigint AND w.writer = %(writer)s::smallint
    FOR KEY SHARE
), held AS MATERIALIZED (
    SELECT t.id, t.owner, t.epoch, t.run_id
    FROM fence, {schema}.zart_tasks t
    WHERE t.id = ANY (%(task_ids)s::bigint[])
    ORDER BY t.id
    FOR NO KEY UPDATE OF t
), mine AS MATERIALIZED (
    SELECT c.*
    FROM held h JOIN unnest(%(task_ids)s::bigint[], %(task_executions)s::text[], %(task_runs)s::uuid[],
        %(epochs)s::int[], %(task_tokens)s::bigint[], %(waiting_for)s::text[], %(rules)s::text[])
        AS c(task_id, execution_id, run_id, epoch, token, waiting_for, rule)
        ON c.task_id = h.id
    WHERE h.owner = %(worker)s::bigint AND h.run_id = c.run_id AND h.epoch = c.epoch
), rule AS MATERIALIZED (
    SELECT r.id FROM {schema}.zart_pause_rules r
    WHERE r.id = ANY (ARRAY(SELECT m.rule FROM mine m))
        AND (r.expires_at IS NULL OR r.expires_at > {schema}.zart_now())
    ORDER BY r.id
    FOR KEY SHARE SKIP LOCKED
), parked AS (
    UPDATE {schema}.zart_tasks t SET
        state = CASE WHEN t.cancel_at IS NULL AND m.rule IN (SELECT r.id FROM rule r) THEN 'paused' ELSE 'ready' END,
        paused_by = m.rule, owner = NULL, batch = NULL, wake_at = NULL, wake_at_done = NULL,
        waiting_for = m.waiting_for, token = m.token
    FROM mine m
    WHERE t.id = m.task_id
    RETURNING m.token, t.state
), ordered AS (
    -- Work that was given away is to be cancelled.
    INSERT INTO {schema}.zart_wakeups (task_id, kind, reason, author)
    SELECT s.task_id, 'cancel', o.reason, o.author
    FROM unnest(%(order_tokens)s::bigint[], %(order_runs)s::uuid[], %(order_paths)s::text[], %(order_names)s::text[],
        %(order_occurrences)s::int[], %(order_kinds)s::text[], %(order_reasons)s::text[], %(order_authors)s::text[])
        AS o(token, run_id, path, name, occurrence, kind, reason, author)
        CROSS JOIN LATERAL (
            SELECT x.task_id FROM {schema}.zart_steps x
            WHERE x.run_id = o.run_id AND x.path = o.path AND x.name = o.name AND x.occurrence = o.occurrence
                AND x.kind = o.kind AND x.state IN ('started', 'running', 'waiting')
            OFFSET 0
        ) s
    WHERE s.task_id IS NOT NULL AND o.token IN (SELECT m.token FROM mine m)
), noted AS (
    INSERT INTO {schema}.zart_history (execution_id, run_id, what, note)
    SELECT m.execution_id, m.run_id, n.what, n.note
    FROM unnest(%(note_tokens)s::bigint[], %(note_whats)s::text[], %(note_texts)s::text[]) WITH ORDINALITY
        AS n(token, what, note, place) JOIN mine m ON m.token = n.token
    ORDER BY n.place
)
SELECT EXISTS (SELECT FROM fence), {schema}.zart_now(), NULL::bigint[], (SELECT array_agg(p.token) FROM parked p),
    NULL::text[], (SELECT count(*) FROM parked p WHERE p.state = 'ready');
