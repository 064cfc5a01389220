-- What a client asks and does. Each statement is sent alone, in autocommit, unless its comment says otherwise.

-- Starts one execution in one round trip; also inside a transaction of the caller's, since it only inserts, and nothing
-- that others would insert as well but the id. Returns the id, or nothing if it exists already.
-- A client's own statements give way here and below: where a key stands in a transaction that somebody holds open, they
-- fail after `gives_way`, and are sent again later, so that they do not take all of its connections from the others.
-- name: start
WITH made AS (
    INSERT INTO {schema}.zart_executions AS e (id, name, version, queue, priority, run_id, payload, digest, awaited,
        trace_context)
    SELECT %(id)s::text, %(name)s::text, %(version)s::text, %(queue)s::text, %(priority)s::int, %(run_id)s::uuid,
        %(payload)s::text::json, %(digest)s::bytea, %(awaited)s::bool, %(trace_context)s::text
    FROM (SELECT CASE WHEN %(gives_way)s::text IS NOT NULL
        THEN set_config('lock_timeout', %(gives_way)s::text, true) END) AS always
    ON CONFLICT (id) DO NOTHING
    RETURNING e.id, e.task_id, e.run_id, e.priority
), due AS (
    SELECT {schema}.zart_now() AS present,
        greatest({schema}.zart_now(), %(at)s::timestamptz, {schema}.zart_now() + %(delay)s::interval) AS at
)
INSERT INTO {schema}.zart_tasks AS t (id, execution_id, run_id, lane, priority, state, wake_at, due_at, time_limit)
SELECT m.task_id, m.id, m.run_id,
    {schema}.zart_lane(%(queue)s::text, %(name)s::text, %(version)s::text), m.priority,
    CASE WHEN d.at > d.present THEN 'waiting' ELSE 'ready' END,
    CASE WHEN d.at > d.present THEN d.at END,
    d.at, %(time_limit)s::interval
FROM made m CROSS JOIN due d
RETURNING t.execution_id;

-- Starts many executions of one function, in the order of their ids so that two of these cannot deadlock.
-- Returns the ids that were new.
-- name: start_many
WITH item AS MATERIALIZED (
    SELECT u.id, u.run_id, u.payload, u.digest, u.awaited, u.trace_context
    FROM unnest(%(ids)s::text[], %(run_ids)s::uuid[], %(payloads)s::text[], %(digests)s::bytea[],
        %(awaited)s::bool[], %(trace_contexts)s::text[]) AS u (id, run_id, payload, digest, awaited, trace_context)
    ORDER BY u.id COLLATE "C"
), made AS (
    INSERT INTO {schema}.zart_executions AS e (id, name, version, queue, priority, run_id, payload, digest, awaited,
        trace_context)
    SELECT i.id, %(name)s, %(version)s, %(queue)s, %(priority)s, i.run_id, i.payload::json, i.digest, i.awaited,
        i.trace_context
    FROM (SELECT set_config('lock_timeout', %(gives_way)s::text, true)) AS always CROSS JOIN item i
    ON CONFLICT (id) DO NOTHING
    RETURNING e.id, e.task_id, e.run_id, e.priority
), lane AS MATERIALIZED (
    SELECT {schema}.zart_lane(%(queue)s::text, %(name)s::text, %(version)s::text) AS id
)
INSERT INTO {schema}.zart_tasks AS t (id, execution_id, run_id, lane, priority, state, due_at, time_limit)
SELECT m.task_id, m.id, m.run_id, l.id, m.priority, 'ready', {schema}.zart_now(), %(time_limit)s::interval
FROM made m CROSS JOIN lane l
RETURNING t.execution_id;

-- Here and below, LATERAL has each row looked up by its key. A statement that a new database has planned is kept for up to a
-- minute, and to the planner a table that it knows nothing of is smaller than the shortest way through its index.

-- What exists under ids that could not be started: whether it is of the same function, and whether its input is equal
-- by digest (null: one of them has none, or by other rules), and as jsonb; of what was pruned, by the hash that is left. What
-- is encrypted is compared by the client.
-- name: compare
SELECT e.id, e.name, e.run_id::text,
    CASE WHEN substr(e.digest, 1, 1) = substr(u.digest, 1, 1) THEN e.digest = u.digest END AS same_digest,
    CASE WHEN e.pruned_at IS NULL THEN coalesce(e.payload::jsonb, 'null') = coalesce(u.payload::jsonb, 'null')
        ELSE e.payload_hash = {schema}.zart_payload_hash(u.payload::json) END AS same_json,
    e.payload::text AS payload, e.digest, e.pruned_at IS NOT NULL AS pruned
FROM unnest(%(ids)s::text[], %(payloads)s::text[], %(digests)s::bytea[]) AS u (id, payload, digest)
    CROSS JOIN LATERAL (SELECT * FROM {schema}.zart_executions e WHERE e.id = u.id OFFSET 0) e;

-- Marks executions as awaited, and reads how they stand and whether they are marked. One whose row somebody changes at
-- this moment is left for the next look: this waits for no lock, so it can be part of no deadlock.
-- name: await_ends
WITH free AS MATERIALIZED (
    SELECT e.id FROM unnest(%(ids)s::text[]) AS wanted (id) CROSS JOIN LATERAL (
        SELECT x.id FROM {schema}.zart_executions x
        WHERE x.id = wanted.id AND x.status = 'scheduled' AND NOT x.awaited
        FOR NO KEY UPDATE SKIP LOCKED
    ) e
), marked AS (
    UPDATE {schema}.zart_executions e SET awaited = true FROM free f WHERE e.id = f.id RETURNING e.id
)
SELECT e.id, CASE WHEN t.state = 'blocked' THEN 'blocked' ELSE e.status END, e.result::text, e.failure::text,
    e.pruned_at IS NOT NULL, e.awaited OR EXISTS (SELECT FROM marked m WHERE m.id = e.id)
FROM unnest(%(ids)s::text[]) AS wanted (id)
    CROSS JOIN LATERAL (SELECT * FROM {schema}.zart_executions x WHERE x.id = wanted.id OFFSET 0) e
    LEFT JOIN LATERAL (SELECT * FROM {schema}.zart_tasks x WHERE x.id = e.task_id OFFSET 0) t ON true;

-- Those of the ids that have ended or are blocked. The ids stand in a subquery, where the planner does not look at their
-- values: else it would make a plan for these values alone each time, which takes longer than to run it.
-- name: ended
SELECT e.id, CASE WHEN t.state = 'blocked' THEN 'blocked' ELSE e.status END, e.result::text, e.failure::text,
    e.pruned_at IS NOT NULL
FROM unnest((SELECT %(ids)s::text[])) AS wanted (id)
    CROSS JOIN LATERAL (SELECT * FROM {schema}.zart_executions x WHERE x.id = wanted.id OFFSET 0) e
    LEFT JOIN LATERAL (SELECT * FROM {schema}.zart_tasks x WHERE x.id = e.task_id OFFSET 0) t ON true
WHERE e.status <> 'scheduled' OR t.state = 'blocked';

-- Offers an event and wakes the execution at once: for connections whose transaction ends with the statement.
-- The event comes first: where its key stands in a transaction that somebody holds open, this waits for that, and must
-- hold no lock on live work meanwhile. One that is inserted while the execution ends is kept, and nobody waits for it.
-- Returns the status (null: no such execution), whether the event was inserted, whether one of this dedup key was
-- there before, and whether a worker has something to do now: to claim it, or to tell the body that it holds.
-- name: offer_event
WITH target AS MATERIALIZED (
    SELECT e.id, e.status, e.task_id FROM {schema}.zart_executions e WHERE e.id = %(id)s
), offered AS (
    INSERT INTO {schema}.zart_events AS v (execution_id, name, payload, dedup)
    SELECT g.id, %(event)s, %(payload)s::text::json, %(dedup)s
    FROM (SELECT set_config('lock_timeout', %(gives_way)s::text, true)) AS always CROSS JOIN target g
    WHERE g.status = 'scheduled'
    ON CONFLICT (execution_id, dedup) WHERE dedup IS NOT NULL DO NOTHING
    RETURNING v.id
), woken AS (
    UPDATE {schema}.zart_tasks t
    SET signal = t.signal %% 2147483647 + 1,
        state = CASE WHEN t.state = 'waiting' AND t.started_at IS NOT NULL
                AND (t.not_before IS NULL OR t.not_before <= {schema}.zart_now())
            THEN 'ready' ELSE t.state END
    FROM target g
    WHERE t.id = g.task_id AND EXISTS (SELECT FROM offered)
    RETURNING t.state
), missed AS (
    -- It has ended while this waited for the key, and may have been repaired: a worker finds that out.
    INSERT INTO {schema}.zart_wakeups (task_id, kind, execution_id)
    SELECT g.task_id, 'event', g.id FROM target g WHERE EXISTS (SELECT FROM offered) AND NOT EXISTS (SELECT FROM woken)
)
SELECT (SELECT g.status FROM target g), EXISTS (SELECT FROM offered),
    EXISTS (SELECT FROM {schema}.zart_events v WHERE v.execution_id = %(id)s AND v.dedup = %(dedup)s),
    coalesce((SELECT w.state IN ('ready', 'running') FROM woken w), false);

-- The same inside a transaction of the caller's: it only inserts, and a worker applies the wake-up after the commit.
-- name: offer_event_in_transaction
WITH target AS MATERIALIZED (
    SELECT e.id, e.status, e.task_id FROM {schema}.zart_executions e WHERE e.id = %(id)s
), offered AS (
    INSERT INTO {schema}.zart_events AS v (execution_id, name, payload, dedup)
    SELECT g.id, %(event)s, %(payload)s::text::json, %(dedup)s FROM target g WHERE g.status = 'scheduled'
    ON CONFLICT (execution_id, dedup) WHERE dedup IS NOT NULL DO NOTHING
    RETURNING v.id
), news AS (
    INSERT INTO {schema}.zart_wakeups (task_id, kind, execution_id)
    SELECT g.task_id, 'event', g.id FROM target g WHERE EXISTS (SELECT FROM offered)
)
SELECT (SELECT g.status FROM target g) AS status, EXISTS (SELECT FROM offered) AS added,
    EXISTS (SELECT FROM {schema}.zart_events v WHERE v.execution_id = %(id)s AND v.dedup = %(dedup)s) AS known,
    false AS urgent;

-- Tells idle workers that there is work. It is a hint: whoever sends it does not care if it fails, and nobody waits for
-- the disk, so that it is heard at once.
-- name: announce
SELECT set_config('synchronous_commit', 'off', true), pg_notify(%(channel)s, '')
WHERE EXISTS (SELECT FROM {schema}.zart_workers w WHERE w.idle) AND pg_notification_queue_usage() < 0.5;

-- Tells clients that an execution has ended; a hint, as above.
-- name: announce_end
SELECT set_config('synchronous_commit', 'off', true), pg_notify(%(channel)s, %(id)s)
WHERE pg_notification_queue_usage() < 0.5;

-- Where an execution's live work is.
-- name: find
SELECT e.task_id, e.status FROM {schema}.zart_executions e WHERE e.id = %(id)s;

-- Cancels: with nothing to unwind (never claimed, or blocked), or by force, the execution ends here; else its worker
-- hears of it. One that is blocked in the middle of a cancel stays so, since an undo is missing. All is decided from the task's own row, which is locked first.
-- Returns whether it ended, whether its worker is to unwind it, whether that is ready to be claimed, and whether
-- somebody awaits the end.
-- name: cancel
WITH task AS MATERIALIZED (
    SELECT t.id, t.execution_id, t.run_id, t.started_at, t.cancel_at,
        %(force)s::bool OR (t.state <> 'running' AND (t.started_at IS NULL OR (t.state = 'blocked' AND t.cancel_at IS NULL))) AS ends
    FROM {schema}.zart_tasks t WHERE t.id = %(task)s
    FOR UPDATE
), ended AS (
    DELETE FROM {schema}.zart_tasks t USING task k WHERE t.id = k.id AND k.ends
    RETURNING t.id, t.execution_id, t.run_id, k.started_at, t.parent_task
), told AS (
    UPDATE {schema}.zart_tasks t
    SET signal = t.signal %% 2147483647 + 1, cancel_reason = %(reason)s, cancel_author = %(author)s, cancel_at = {schema}.zart_now(),
        state = CASE WHEN t.state IN ('waiting', 'paused') THEN 'ready' ELSE t.state END
    FROM task k WHERE t.id = k.id AND NOT k.ends AND k.cancel_at IS NULL
    RETURNING t.execution_id, t.run_id, t.state
), closed AS (
    UPDATE {schema}.zart_executions e
    SET status = 'cancelled', failure = %(failure)s::text::json, started_at = x.started_at,
        finished_at = {schema}.zart_now()
    FROM ended x WHERE e.id = x.execution_id AND e.task_id = x.id
    RETURNING e.id, e.awaited, e.failure, e.parent_run, e.parent_path, e.parent_name, e.parent_occurrence
), swept AS (
    UPDATE {schema}.zart_steps s SET state = 'cancelled', finished_at = {schema}.zart_now()
    FROM ended x
    WHERE s.run_id = x.run_id AND s.state IN ('started', 'running', 'waiting') AND s.kind <> 'child'
        AND (SELECT count(*) FROM closed) >= 0
), answered AS (
    UPDATE {schema}.zart_steps s SET state = 'cancelled', failure = c.failure, finished_at = {schema}.zart_now()
    FROM closed c
    WHERE s.run_id = c.parent_run AND s.path = c.parent_path AND s.name = c.parent_name
        AND s.occurrence = c.parent_occurrence AND s.kind = 'child' AND s.state IN ('started', 'running', 'waiting')
), passed_on AS (
    -- The parent's row comes before this one in the order of locks, so a worker tells it; and those below, too.
    INSERT INTO {schema}.zart_wakeups (task_id, kind, reason, author)
    SELECT x.parent_task, 'done', NULL, NULL FROM ended x WHERE x.parent_task IS NOT NULL
    UNION ALL
    SELECT * FROM (SELECT s.task_id, 'cancel', %(reason)s::text, %(author)s::text
    FROM (SELECT run_id FROM ended UNION ALL SELECT run_id FROM told) x
        JOIN {schema}.zart_steps s ON s.run_id = x.run_id JOIN {schema}.zart_tasks t ON t.id = s.task_id
    WHERE s.state IN ('started', 'running', 'waiting') AND NOT t.detached
    ORDER BY s.path DESC, s.name DESC, s.occurrence DESC) below
), noted AS (
    INSERT INTO {schema}.zart_history (execution_id, run_id, what, author, note)
    SELECT x.execution_id, x.run_id, %(what)s, %(author)s, %(reason)s FROM ended x
    UNION ALL
    SELECT d.execution_id, d.run_id, 'cancel requested', %(author)s, %(reason)s FROM told d
)
SELECT EXISTS (SELECT FROM ended), EXISTS (SELECT FROM told),
    coalesce((SELECT d.state IN ('ready', 'running') FROM told d), false),
    coalesce((SELECT c.awaited FROM closed c), false);

-- Cancels what was given away for an execution while its forced cancel waited for the lock of whoever gave it away: that
-- cancel could not see it. Sent after it.
-- name: cancel_below
INSERT INTO {schema}.zart_wakeups (task_id, kind, reason, author)
SELECT s.task_id, 'cancel', %(reason)s, %(author)s
FROM {schema}.zart_executions e JOIN {schema}.zart_steps s ON s.run_id = e.run_id
    JOIN {schema}.zart_tasks t ON t.id = s.task_id
WHERE e.id = %(id)s AND e.status = 'cancelled' AND s.state IN ('started', 'running', 'waiting')
    AND NOT t.detached AND t.cancel_at IS NULL
    AND NOT EXISTS (SELECT FROM {schema}.zart_wakeups w WHERE w.task_id = t.id AND w.kind = 'cancel')
ORDER BY s.path DESC, s.name DESC, s.occurrence DESC
RETURNING task_id;

-- Lets a blocked execution go on.
-- name: resume
WITH task AS (
    UPDATE {schema}.zart_tasks t
    SET state = 'ready', recoveries = 0, signal = t.signal %% 2147483647 + 1,
        accept_arguments = t.accept_arguments OR %(accept_arguments)s::bool
    WHERE t.id = %(task)s AND t.state = 'blocked'
    RETURNING t.id, t.execution_id, t.run_id
), execution AS (
    UPDATE {schema}.zart_executions e SET failure = NULL FROM task k WHERE e.id = k.execution_id
), noted AS (
    INSERT INTO {schema}.zart_history (execution_id, run_id, what, author, note)
    SELECT k.execution_id, k.run_id, 'resume', %(author)s, %(reason)s FROM task k
)
SELECT EXISTS (SELECT FROM task);

-- Here and in the pages the failure is taken as it is stored: the view's jsonb refuses some of what a hand may have
-- written, and with it all other rows.
-- name: status
SELECT v.id, v.name, v.status, v.run_id::text, v.waiting_for, v.cancelling, v.served, v.queue, v.priority, v.version,
    (SELECT e.failure::text FROM {schema}.zart_executions e WHERE e.id = v.id), {time:v.created_at},
    {time:v.finished_at}
FROM {schema}.zart_v_executions v WHERE v.id = %(id)s;

-- A page of executions, the newest first, after the one with the id `after`.
-- name: page
SELECT v.id, v.name, v.status, v.run_id::text, v.waiting_for, v.cancelling, v.served, v.queue, v.priority, v.version,
    (SELECT e.failure::text FROM {schema}.zart_executions e WHERE e.id = v.id), {time:v.created_at},
    {time:v.finished_at}
FROM {schema}.zart_v_executions v
WHERE (%(name)s::text IS NULL OR v.name = %(name)s)
    AND (%(status)s::text IS NULL OR v.status = %(status)s)
    AND (%(id_prefix)s::text IS NULL OR starts_with(v.id, %(id_prefix)s))
    AND (%(since)s::timestamptz IS NULL OR v.created_at >= %(since)s)
    AND (%(until)s::timestamptz IS NULL OR v.created_at < %(until)s)
    AND (%(after)s::text IS NULL OR (v.created_at, v.id) <
        ((SELECT a.created_at FROM {schema}.zart_executions a WHERE a.id = %(after)s), %(after)s))
ORDER BY v.created_at DESC, v.id DESC
LIMIT %(limit)s;

-- The same for a status of live work, whatever the number of those that have ended.
-- name: live_page
SELECT v.id, v.name, v.status, v.run_id::text, v.waiting_for, v.cancelling, v.served, v.queue, v.priority, v.version,
    (SELECT e.failure::text FROM {schema}.zart_executions e WHERE e.id = v.id), {time:v.created_at},
    {time:v.finished_at}
FROM {schema}.zart_tasks t JOIN {schema}.zart_v_executions v ON v.id = t.execution_id
WHERE v.status = %(status)s AND t.step_name IS NULL
    AND (%(name)s::text IS NULL OR v.name = %(name)s)
    AND (%(id_prefix)s::text IS NULL OR starts_with(v.id, %(id_prefix)s))
    AND (%(since)s::timestamptz IS NULL OR v.created_at >= %(since)s)
    AND (%(until)s::timestamptz IS NULL OR v.created_at < %(until)s)
    AND (%(after)s::text IS NULL OR (v.created_at, v.id) <
        ((SELECT a.created_at FROM {schema}.zart_executions a WHERE a.id = %(after)s), %(after)s))
ORDER BY v.created_at DESC, v.id DESC
LIMIT %(limit)s;

-- The journal of a run: what was delivered in its order, then what is under way.
-- name: records
SELECT s.path, s.name, s.occurrence, s.kind, s.state, s.attempts, {time:s.started_at}, {time:s.finished_at},
    {time:s.until}, s.failure::text, c.id, {time:c.created_at}, s.progress::text,
    CASE WHEN s.kind = 'child' AND s.task_id IS NOT NULL THEN s.input ->> 0 END
FROM {schema}.zart_steps s LEFT JOIN {schema}.zart_executions c ON s.kind = 'child' AND c.id = s.input ->> 0
WHERE s.run_id = %(run_id)s
ORDER BY s.seq NULLS LAST, s.started_at NULLS LAST, s.path, s.name, s.occurrence;

-- name: attempts
SELECT a.path, a.name, a.occurrence, a.attempt, a.body_attempt, {time:a.finished_at}, {time:a.next_at},
    a.failure::text, a.kind
FROM {schema}.zart_step_attempts a WHERE a.run_id = %(run_id)s ORDER BY a.id;

-- name: notes
(SELECT {time:h.at}, h.what, h.author, h.note FROM {schema}.zart_history h WHERE h.execution_id = %(id)s ORDER BY h.id)
UNION ALL
SELECT {time:e.pruned_at}, 'pruned', NULL, 'only its id is kept' FROM {schema}.zart_executions e
WHERE e.id = %(id)s AND e.pruned_at IS NOT NULL;

-- The runs of an execution that are kept, in their order.
-- name: runs
SELECT r.run_id::text FROM {schema}.zart_execution_runs r WHERE r.execution_id = %(id)s
ORDER BY r.ended_at NULLS LAST;

-- The same with what came of each, and the run that is on, or was the last, behind them.
-- name: each_run
SELECT r.run_id::text, coalesce(r.status, 'continued'), {time:r.started_at}, {time:r.ended_at} AS ended, r.failure::text
FROM {schema}.zart_execution_runs r JOIN {schema}.zart_executions e ON e.id = r.execution_id AND e.run_id <> r.run_id
WHERE r.execution_id = %(id)s
UNION ALL
SELECT v.run_id::text, v.status, coalesce({time:v.started_at}, {time:v.created_at}), NULL,
    (SELECT e.failure::text FROM {schema}.zart_executions e WHERE e.id = v.id)
FROM {schema}.zart_v_executions v WHERE v.id = %(id)s
ORDER BY ended NULLS LAST;

-- name: count_by_status
SELECT v.status, count(*) FROM {schema}.zart_v_executions v GROUP BY v.status;

-- Ready work that no worker which runs now has registered. One execution of each lane says what its function is. It goes
-- from lane to lane by the index, since every worker asks this again and again: only the work that is counted is read.
-- name: unserved
WITH RECURSIVE lane AS (
    (SELECT t.lane AS id FROM {schema}.zart_tasks t WHERE t.state = 'ready' ORDER BY t.lane LIMIT 1)
    UNION ALL
    SELECT (SELECT t.lane FROM {schema}.zart_tasks t WHERE t.state = 'ready' AND t.lane > l.id ORDER BY t.lane LIMIT 1)
    FROM lane l WHERE l.id IS NOT NULL
), waiting AS (
    SELECT found.tasks, found.example
    FROM lane l CROSS JOIN LATERAL (
        SELECT count(*) AS tasks, min(t.id) AS example FROM {schema}.zart_tasks t
        WHERE t.lane = l.id AND t.state = 'ready'
    ) found
    WHERE l.id IS NOT NULL AND NOT EXISTS (
        SELECT FROM {schema}.zart_workers w WHERE l.id = ANY (w.lanes) AND w.expires_at > clock_timestamp())
)
SELECT e.queue, coalesce(t.step_function, e.name), CASE WHEN t.step_name IS NULL THEN e.version END,
    sum(w.tasks)::bigint
FROM waiting w JOIN {schema}.zart_tasks t ON t.id = w.example JOIN {schema}.zart_executions e ON e.id = t.execution_id
GROUP BY 1, 2, 3
ORDER BY 1, 2, 3;

-- name: count_workers
SELECT count(DISTINCT w.worker_id) FROM {schema}.zart_workers w WHERE w.expires_at > clock_timestamp();

-- Workers that have a row: those whose lease stands, and those that have died and were not taken over so far.
-- name: workers
SELECT w.worker_id, w.host, w.pid, w.expires_at > clock_timestamp(), w.idle, {time:w.started_at}, {time:w.heartbeat_at},
    (SELECT count(*) FROM {schema}.zart_tasks t WHERE t.owner = w.worker_id), w.lanes
FROM {schema}.zart_workers w WHERE w.writer = 0
ORDER BY w.started_at, w.worker_id;

-- Which functions the lanes of workers stand for.
-- name: lane_names
SELECT l.id, l.queue, l.name, l.version FROM {schema}.zart_lanes l WHERE l.id = ANY (%(lanes)s::bigint[])
ORDER BY l.queue, l.name, l.version NULLS FIRST;
