-- Leases. They live by clock_timestamp(), never by durable time: a test that moves that clock reaps nobody.

-- The last digits are drawn: a standby that takes over may give out numbers of the sequence that its primary had given out.
-- name: next_worker_id
SELECT nextval(%(sequence)s::regclass) * 10000 + floor(random() * 10000)::bigint;

-- One fence row for each writer connection, and one (3) for all steps in transactions.
-- name: register
INSERT INTO {schema}.zart_workers (worker_id, writer, host, pid, lanes, expires_at)
SELECT %(worker)s, writer, %(host)s, %(pid)s, %(lanes)s, clock_timestamp() + %(lease)s
FROM generate_series(0, %(writers)s - 1) AS writer
RETURNING pg_postmaster_start_time();

-- Which server answers: the standby of another was started at another time, and so was this one before its last restart.
-- And whether the registration stands there.
-- name: server
SELECT pg_postmaster_start_time(), EXISTS (SELECT FROM {schema}.zart_workers w WHERE w.worker_id = %(worker)s);

-- What this server lacks of what a server before it has confirmed to a worker, for people. See zart/_engine/continuity.py.
-- A record's token may be newer, of the same writer: that was written later. One without a token was written on a
-- connection of its own, and what is known of it is its key. Of what this worker has given back others may have made an
-- end since; of what it has ended itself there is no task.
-- name: forgotten
SELECT 'the record of step ' || k.path || k.name || '#' || k.occurrence || ' of run ' || k.run_id
FROM unnest(%(runs)s::uuid[], %(paths)s::text[], %(names)s::text[], %(occurrences)s::int[], %(kinds)s::text[],
    %(tokens)s::bigint[]) AS k (run_id, path, name, occurrence, kind, token)
WHERE NOT EXISTS (
        SELECT FROM {schema}.zart_steps s
        WHERE s.run_id = k.run_id AND s.path = k.path AND s.name = k.name AND s.occurrence = k.occurrence
            AND s.kind = k.kind
            AND CASE WHEN k.token IS NOT NULL THEN s.token >> 24 = k.token >> 24 AND s.token >= k.token
                ELSE s.state IN ('completed', 'failed', 'cancelled') OR s.kind = 'child' END)
    AND NOT EXISTS (
        SELECT FROM {schema}.zart_recorded_steps r
        WHERE k.token IS NULL AND r.run_id = k.run_id AND r.path = k.path AND r.name = k.name
            AND r.occurrence = k.occurrence AND r.kind = k.kind AND r.result IS NOT NULL)
UNION ALL
SELECT 'the end of a hold on execution ' || c.execution_id
FROM unnest(%(ended)s::bigint[], %(ended_epochs)s::int[], %(ended_executions)s::text[], %(ended_for_good)s::bool[])
    AS c (task_id, epoch, execution_id, for_good)
WHERE CASE WHEN EXISTS (SELECT FROM {schema}.zart_tasks t WHERE t.id = c.task_id)
    THEN EXISTS (
        SELECT FROM {schema}.zart_tasks t
        WHERE t.id = c.task_id AND (t.execution_id <> c.execution_id OR t.epoch < c.epoch
            OR t.epoch = c.epoch AND t.owner IS NOT NULL))
    ELSE NOT EXISTS (
        SELECT FROM {schema}.zart_executions e
        WHERE e.id = c.execution_id AND (e.status <> 'scheduled' OR NOT c.for_good)) END
UNION ALL
SELECT 'the claim of task ' || h.task_id
FROM unnest(%(tasks)s::bigint[], %(epochs)s::int[]) AS h (task_id, epoch)
WHERE NOT EXISTS (
        SELECT FROM {schema}.zart_tasks t
        WHERE t.id = h.task_id AND t.epoch = h.epoch AND t.owner = %(worker)s::bigint);

-- Writes down which functions the lanes of a worker stand for; sorted, so that workers that start together do not
-- deadlock. Only workers write here, in transactions of this one statement: nobody waits for longer.
-- name: note_lanes
INSERT INTO {schema}.zart_lanes (id, queue, name, version)
SELECT {schema}.zart_lane(f.queue, f.name, f.version), f.queue, f.name, f.version
FROM unnest(%(queues)s::text[], %(names)s::text[], %(versions)s::text[]) AS f (queue, name, version)
ORDER BY 1
ON CONFLICT (id) DO NOTHING;

-- The lanes of functions: the number that is derived from each, and one that was given out to it before numbers were
-- derived. If another function has the derived number, that one is found.
-- name: lanes
SELECT f.queue, f.name, f.version, l.id, l.queue, l.name, l.version
FROM unnest(%(queues)s::text[], %(names)s::text[], %(versions)s::text[]) AS f (queue, name, version)
    JOIN {schema}.zart_lanes l ON l.id = {schema}.zart_lane(f.queue, f.name, f.version)
        OR (l.queue = f.queue AND l.name = f.name AND l.version IS NOT DISTINCT FROM f.version);

-- Rows in the order in which the reaper takes them; none back means that the worker was reaped. It also says whether
-- another worker's lease has ended, a hint for whoever then looks by a later statement, and which server answers.
-- name: heartbeat
WITH own AS MATERIALIZED (
    SELECT w.worker_id, w.writer FROM {schema}.zart_workers w
    WHERE w.worker_id = %(worker)s ORDER BY w.writer FOR NO KEY UPDATE
)
UPDATE {schema}.zart_workers w
SET heartbeat_at = clock_timestamp(), expires_at = clock_timestamp() + %(lease)s
FROM own WHERE w.worker_id = own.worker_id AND w.writer = own.writer
RETURNING w.writer, EXISTS (
    SELECT FROM {schema}.zart_workers x WHERE x.worker_id <> %(worker)s AND x.expires_at < clock_timestamp()),
    pg_postmaster_start_time();

-- name: set_idle
UPDATE {schema}.zart_workers SET idle = %(idle)s WHERE worker_id = %(worker)s AND writer = 0;

-- name: leave
DELETE FROM {schema}.zart_workers WHERE worker_id = %(worker)s;

-- The lock is the fence: it is had only when no statement of this worker is in flight, and those that come later find
-- no row. A worker goes as a whole or not at all; a row that is in use is tried again the next time, never waited for.
-- name: reap
WITH expired AS MATERIALIZED (
    SELECT w.worker_id, w.writer FROM {schema}.zart_workers w
    WHERE w.expires_at < clock_timestamp()
    ORDER BY w.worker_id, w.writer
    FOR UPDATE SKIP LOCKED
), dead AS (
    SELECT x.worker_id FROM expired x
    GROUP BY x.worker_id
    HAVING count(*) = (SELECT count(*) FROM {schema}.zart_workers w WHERE w.worker_id = x.worker_id)
)
DELETE FROM {schema}.zart_workers w USING dead WHERE w.worker_id = dead.worker_id
RETURNING w.worker_id, w.host, w.pid;

-- Owners without a row: reaped just now, or by somebody who then died himself. They never come back.
-- name: orphaned
SELECT DISTINCT t.owner FROM {schema}.zart_tasks t
WHERE t.owner IS NOT NULL
    AND NOT EXISTS (SELECT FROM {schema}.zart_workers w WHERE w.worker_id = t.owner);

-- Frees what they held. A later statement than those above: only so does it see what a claim in flight took.
-- name: take_over
WITH held AS MATERIALIZED (
    SELECT t.id, t.owner FROM {schema}.zart_tasks t
    WHERE t.owner = ANY (%(owners)s::bigint[])
    ORDER BY t.id FOR NO KEY UPDATE
), freed AS (
    UPDATE {schema}.zart_tasks t
    SET state = CASE WHEN t.state = 'running' THEN 'ready' ELSE t.state END,
        owner = NULL, batch = NULL, recoveries = least(t.recoveries, 2147483646) + 1
    FROM held WHERE t.id = held.id
    RETURNING t.execution_id, t.run_id, held.owner
)
INSERT INTO {schema}.zart_history (execution_id, run_id, what, note)
SELECT f.execution_id, f.run_id, 'takeover', 'worker ' || f.owner || ' stopped answering' FROM freed f
RETURNING execution_id;

-- Expired workers that could not be reaped, and the session that holds their rows where it can be told.
-- name: stuck
SELECT w.worker_id, w.host, w.pid, min(a.pid), min(a.state), min(a.application_name), min(a.xact_start)
FROM {schema}.zart_workers w LEFT JOIN pg_stat_activity a ON a.backend_xid = w.xmax
WHERE w.expires_at < clock_timestamp()
GROUP BY w.worker_id, w.host, w.pid;
