-- Taking work, and hearing what is new about work that is held.
--
-- Every statement that locks something is sent alone, in autocommit. In a pipeline the statements up to its end are
-- one transaction, which a process that is stopped in the middle would keep open, with its locks.

-- The claim. It says whether the fence stood, how many candidates it saw, and the rows that it took: the fence is
-- locked before anything else, so a worker that is being reaped takes nothing. Candidates come from each lane's own
-- end of the index, unlocked; what is then locked is checked again in its newest version. A suspect, which was taken
-- over more than once without having recorded anything since, is asked for by `suspects` = 1; the one taken over least often comes
-- first, since it is the least likely to be the culprit.
-- A short input comes along when this is the first claim: nothing that a holder writes can have changed it. It must be
-- short, since the rows are locked until the answer has been sent. The input of a scheduled step stands in the journal of
-- its run, of which nothing else concerns it.
-- The weight only decides how much is loaded at once, so this older snapshot will do for it; the history itself is
-- read by later statements.
-- Parameters stand in subqueries, where the planner does not look at their values: a plan for these values alone would
-- seem cheaper than the general one, and the statement be planned anew each time, which takes longer than to run it.
-- Of a limit that it does not look at, the planner thinks a tenth of the backlog. Above a hundred thousand rows it would
-- take this for so long a statement that it has it compiled (jit) each time, for twenty times as long as it runs; hence
-- the plain number beside it.
-- The commit waits for the disk: a claim that a crash of the server undid would leave two living workers, each of which
-- holds the execution, and of which either could write the next record.
-- Counters wrap instead of overflowing: a number that somebody has written into one row must not stop the rest.
-- Lanes that a rule holds back are not among `lanes` but in `passing`: of these only what is to be cancelled is taken. The
-- number of changes to the rules tells a worker whether it knows them all.
-- name: claim
WITH fence AS MATERIALIZED (
    SELECT w.worker_id FROM {schema}.zart_workers w
    WHERE w.worker_id = %(worker)s AND w.writer = 0
    FOR KEY SHARE
), suspect AS MATERIALIZED (
    SELECT t.id FROM {schema}.zart_tasks t
    WHERE EXISTS (SELECT FROM fence) AND t.state = 'ready' AND t.recoveries > 1
        AND t.id = ANY (ARRAY(
            SELECT c.id
            FROM (
                SELECT l.lane, false AS passing FROM unnest((SELECT %(lanes)s::bigint[])) AS l (lane)
                UNION ALL SELECT l.lane, true FROM unnest((SELECT %(passing)s::bigint[])) AS l (lane)
            ) wanted CROSS JOIN LATERAL (
                SELECT s.id, s.recoveries, s.priority FROM {schema}.zart_tasks s
                WHERE s.lane = wanted.lane AND s.recoveries > 1 AND s.state = 'ready'
                    AND (s.cancel_at IS NOT NULL OR NOT wanted.passing)
                ORDER BY s.recoveries, s.priority, s.id LIMIT (SELECT %(suspects)s::int * 8)
            ) c
            ORDER BY c.recoveries, c.priority, c.id LIMIT (SELECT %(suspects)s::int * 8)))
    ORDER BY t.recoveries, t.priority, t.id LIMIT (SELECT %(suspects)s::int)
    FOR NO KEY UPDATE SKIP LOCKED
), candidate AS MATERIALIZED (
    SELECT c.id
    FROM (
        SELECT open.id, open.priority
        FROM unnest((SELECT %(lanes)s::bigint[])) AS wanted CROSS JOIN unnest(ARRAY[0, 1]) AS times CROSS JOIN LATERAL (
            SELECT f.id, f.priority FROM (
                SELECT s.id, s.priority FROM {schema}.zart_tasks s
                WHERE s.lane = wanted AND s.recoveries = times AND s.state = 'ready'
                ORDER BY s.priority, s.id LIMIT 10000
            ) f
            ORDER BY f.priority, f.id LIMIT (SELECT %(limit)s::int * 2)
        ) open
        UNION ALL
        SELECT cancelled.id, cancelled.priority
        FROM unnest((SELECT %(passing)s::bigint[])) AS wanted CROSS JOIN LATERAL (
            SELECT s.id, s.priority FROM {schema}.zart_tasks s
            WHERE s.lane = wanted AND s.cancel_at IS NOT NULL AND s.state = 'ready'
            ORDER BY s.priority, s.id LIMIT (SELECT %(limit)s::int * 2)
        ) cancelled
    ) c
    ORDER BY c.priority, c.id LIMIT (SELECT %(limit)s::int * 2)
), fit AS MATERIALIZED (
    SELECT t.id FROM {schema}.zart_tasks t
    WHERE EXISTS (SELECT FROM fence) AND t.state = 'ready' AND t.recoveries <= 1
        AND t.id = ANY (ARRAY(SELECT c.id FROM candidate c))
    ORDER BY t.priority, t.id LIMIT (SELECT %(limit)s::int - count(*) FROM suspect)
    FOR NO KEY UPDATE SKIP LOCKED
), claimed AS (
    UPDATE {schema}.zart_tasks t
    SET state = 'running', owner = %(worker)s, epoch = t.epoch %% 2147483647 + 1, batch = %(batch)s,
        started_at = coalesce(t.started_at, {schema}.zart_now()), waiting_for = NULL
    WHERE t.id = ANY (ARRAY(SELECT f.id FROM fit f UNION ALL SELECT s.id FROM suspect s))
    RETURNING t.id, t.execution_id, t.run_id, t.lane, t.priority, t.epoch, t.signal, t.attempt, t.floor, t.recoveries,
        t.due_at, t.started_at, t.not_before, t.cancel_at, t.cancel_reason, t.cancel_author, t.accept_arguments,
        t.time_limit, t.parent_task, t.done, t.step_path, t.step_name, t.step_occurrence, t.repair::text AS repair,
        CASE WHEN t.step_name IS NULL
            THEN (SELECT e.payload::text FROM {schema}.zart_executions e
                WHERE e.id = t.execution_id AND t.epoch = 1 AND pg_column_size(e.payload) <= %(short)s)
            ELSE (SELECT s.input::text FROM {schema}.zart_steps s
                WHERE s.run_id = t.run_id AND s.path = t.step_path AND s.name = t.step_name
                    AND s.occurrence = t.step_occurrence AND s.kind = 'step' AND t.epoch = 1
                    AND pg_column_size(s.input) <= %(short)s)
            END AS input,
        CASE WHEN t.step_name IS NULL
            THEN (SELECT pg_column_size(e.payload) FROM {schema}.zart_executions e WHERE e.id = t.execution_id)
            ELSE (SELECT pg_column_size(s.input) FROM {schema}.zart_steps s
                WHERE s.run_id = t.run_id AND s.path = t.step_path AND s.name = t.step_name
                    AND s.occurrence = t.step_occurrence AND s.kind = 'step')
            END AS payload,
        CASE WHEN t.step_name IS NULL
            THEN (SELECT count(*) FROM {schema}.zart_steps s WHERE s.run_id = t.run_id) ELSE 0 END AS steps,
        CASE WHEN t.step_name IS NULL
            THEN (SELECT sum(coalesce(pg_column_size(s.result), 0) + coalesce(pg_column_size(s.failure), 0))
                FROM {schema}.zart_steps s WHERE s.run_id = t.run_id) END AS results,
        (SELECT e.trace_context FROM {schema}.zart_executions e WHERE e.id = t.execution_id) AS trace_context
)
SELECT EXISTS (SELECT FROM fence) AS fenced, (SELECT count(*) FROM candidate) AS candidates, {schema}.zart_now() AS now,
    (SELECT p.number FROM {schema}.zart_pause_changes p) AS rules,
    c.id, c.execution_id, c.run_id, c.lane, c.epoch, c.signal, c.attempt, c.floor, c.recoveries,
    {time:c.due_at}, {time:c.started_at}, {time:c.not_before}, c.cancel_at IS NOT NULL, c.cancel_reason, c.cancel_author,
    c.accept_arguments, {interval:c.time_limit}, c.priority, c.parent_task, c.done, c.step_path, c.step_name,
    c.step_occurrence, c.input, c.steps, coalesce(c.payload, 0) + coalesce(c.results, 0), c.repair, c.trace_context
FROM (SELECT) AS always LEFT JOIN claimed c ON true
ORDER BY c.priority, c.id;

-- The input of executions that this worker holds; one that it has lost in the meantime is missing. Here and below,
-- LATERAL with OFFSET 0 has each row looked up by its key, whatever the planner thinks of the length of an array or of the number of owners.
-- A run that has begun anew has an input of its own.
-- name: load_payloads
SELECT held.task, CASE WHEN r.run_id IS NULL THEN e.payload ELSE r.payload END::text
FROM unnest(%(tasks)s::bigint[], %(epochs)s::int[]) AS held (task, epoch)
    CROSS JOIN LATERAL (SELECT * FROM {schema}.zart_tasks t WHERE t.id = held.task OFFSET 0) t
    CROSS JOIN LATERAL (SELECT * FROM {schema}.zart_executions e WHERE e.id = t.execution_id OFFSET 0) e
    LEFT JOIN LATERAL (SELECT * FROM {schema}.zart_execution_runs r WHERE r.run_id = t.run_id OFFSET 0) r ON true
WHERE t.epoch = held.epoch AND t.owner = %(worker)s;

-- Their histories: in log order, what is under way last.
-- name: load_steps
SELECT held.task, s.path, s.name, s.occurrence, s.kind, s.seq, s.state, s.digest, s.arguments, s.result::text,
    s.failure::text, s.attempts, {time:s.started_at}, {time:s.finished_at}, {time:s.until}, s.task_id IS NOT NULL,
    CASE WHEN s.kind = 'child' THEN s.input::text END, s.progress::text, s.data::text
FROM unnest(%(tasks)s::bigint[], %(runs)s::uuid[]) AS held (task, run)
    CROSS JOIN LATERAL (SELECT * FROM {schema}.zart_steps s WHERE s.run_id = held.run OFFSET 0) s
ORDER BY held.task, s.seq NULLS LAST;

-- The rows of scheduled steps, with their inputs.
-- name: load_scheduled
SELECT held.task, s.input::text, s.state, s.digest, s.attempts, {time:s.started_at}, {time:s.until}, s.progress::text
FROM unnest(%(tasks)s::bigint[], %(epochs)s::int[]) AS held (task, epoch)
    CROSS JOIN LATERAL (SELECT * FROM {schema}.zart_tasks t WHERE t.id = held.task OFFSET 0) t
    CROSS JOIN LATERAL (
        SELECT * FROM {schema}.zart_steps s
        WHERE s.run_id = t.run_id AND s.path = t.step_path AND s.name = t.step_name
            AND s.occurrence = t.step_occurrence AND s.kind = 'step'
        OFFSET 0
    ) s
WHERE t.epoch = held.epoch AND t.owner = %(worker)s;

-- What has arrived of the work that executions gave away, and was not numbered so far, with the count of it: both of one
-- snapshot, and not older than the signal that is read before.
-- name: load_arrived
SELECT held.task, t.done, s.path, s.name, s.occurrence, s.kind, s.state, s.digest, s.arguments, s.result::text,
    s.failure::text, s.attempts, {time:s.started_at}, {time:s.finished_at}, CASE WHEN s.kind = 'child' THEN s.input::text END
FROM unnest(%(tasks)s::bigint[]) AS held (task)
    CROSS JOIN LATERAL (SELECT * FROM {schema}.zart_tasks t WHERE t.id = held.task OFFSET 0) t
    CROSS JOIN LATERAL (
        SELECT * FROM {schema}.zart_steps s
        WHERE s.run_id = t.run_id AND s.task_id IS NOT NULL AND s.seq IS NULL
            AND s.state IN ('completed', 'failed', 'cancelled')
        OFFSET 0
    ) s
ORDER BY s.finished_at, s.path, s.name, s.occurrence;

-- A page of one long history, in the order of its key.
-- name: load_page
SELECT %(task)s::bigint, s.path, s.name, s.occurrence, s.kind, s.seq, s.state, s.digest, s.arguments, s.result::text,
    s.failure::text, s.attempts, {time:s.started_at}, {time:s.finished_at}, {time:s.until}, s.task_id IS NOT NULL,
    CASE WHEN s.kind = 'child' THEN s.input::text END, s.progress::text, s.data::text
FROM {schema}.zart_steps s
WHERE s.run_id = %(run)s
    AND (s.path, s.name, s.occurrence, s.kind) > (%(path)s::text, %(name)s::text, %(occurrence)s::int, %(kind)s::text)
ORDER BY s.path, s.name, s.occurrence, s.kind LIMIT %(rows)s;

-- Events that no wait has consumed, first in first out.
-- name: load_events
SELECT held.task, v.id, v.name, v.payload::text
FROM unnest(%(tasks)s::bigint[], %(executions)s::text[]) AS held (task, execution)
    CROSS JOIN LATERAL (
        SELECT * FROM {schema}.zart_events v
        WHERE v.execution_id = held.execution AND v.consumed_at IS NULL
        OFFSET 0
    ) v
ORDER BY v.id;

-- The inbox: of the executions that this worker holds, those with news and those that are no longer its own.
-- Their events are read by a later statement, so none is older than the signal that is returned here.
-- name: read_inbox
SELECT held.task, t.id IS NULL, t.signal, t.execution_id, t.cancel_at IS NOT NULL, t.cancel_reason, t.cancel_author,
    t.done, t.repair IS NOT NULL
FROM unnest((SELECT %(tasks)s::bigint[]), (SELECT %(epochs)s::int[]), (SELECT %(signals)s::int[]),
        (SELECT %(dones)s::int[])) AS held (task, epoch, signal, done)
    LEFT JOIN LATERAL (SELECT * FROM {schema}.zart_tasks t WHERE t.id = held.task OFFSET 0) t
        ON t.epoch = held.epoch AND t.owner = %(worker)s
WHERE t.id IS NULL OR t.signal <> held.signal OR t.done <> held.done;

-- What a tick has still to do, and when the next sleeper is due. The first by index: an empty table that was busy
-- a moment ago is full of dead rows.
-- name: look
SELECT EXISTS (SELECT FROM {schema}.zart_workers w WHERE w.worker_id = %(worker)s AND w.writer = 0),
    (SELECT w.id FROM {schema}.zart_wakeups w ORDER BY w.id LIMIT 1) IS NOT NULL,
    (SELECT {time:next.due}
        FROM (SELECT min(t.wake_at) AS due FROM {schema}.zart_tasks t
            WHERE t.state = 'waiting' AND t.wake_at IS NOT NULL) next),
    {schema}.zart_now(), (SELECT p.number FROM {schema}.zart_pause_changes p);

-- What an idle worker asks: is there anything to claim in its lanes, and the same as above. The order is that of the
-- index: without one, where a third of the table is ready, the planner thinks that reading the table will soon meet a
-- row that fits, and reads all of it where no lane of this worker's has any.
-- name: peek
SELECT EXISTS (
        SELECT FROM unnest((SELECT %(lanes)s::bigint[])) AS wanted CROSS JOIN LATERAL (
            SELECT FROM {schema}.zart_tasks t
            WHERE t.lane = wanted AND t.recoveries <= 1 AND t.state = 'ready'
            ORDER BY t.recoveries, t.priority, t.id LIMIT 1
        ) t)
        OR EXISTS (
        SELECT FROM unnest((SELECT %(passing)s::bigint[])) AS wanted CROSS JOIN LATERAL (
            SELECT FROM {schema}.zart_tasks t
            WHERE t.lane = wanted AND t.cancel_at IS NOT NULL AND t.state = 'ready' AND (%(suspect)s OR t.recoveries <= 1)
            ORDER BY t.priority, t.id LIMIT 1
        ) t),
    %(suspect)s AND EXISTS (
        SELECT FROM unnest((SELECT %(lanes)s::bigint[])) AS wanted CROSS JOIN LATERAL (
            SELECT FROM {schema}.zart_tasks t
            WHERE t.lane = wanted AND t.recoveries > 1 AND t.state = 'ready'
            ORDER BY t.recoveries, t.priority, t.id LIMIT 1
        ) t),
    (SELECT w.id FROM {schema}.zart_wakeups w ORDER BY w.id LIMIT 1) IS NOT NULL,
    (SELECT {time:next.due}
        FROM (SELECT min(t.wake_at) AS due FROM {schema}.zart_tasks t
            WHERE t.state = 'waiting' AND t.wake_at IS NOT NULL) next),
    {schema}.zart_now(), (SELECT p.number FROM {schema}.zart_pause_changes p);

-- Gives back what claims took and nobody was told of: the answer was lost on its way, or the worker stops.
-- name: give_back
WITH held AS MATERIALIZED (
    SELECT t.id FROM {schema}.zart_tasks t
    WHERE t.owner = %(worker)s AND t.state = 'running'
        AND (t.batch = ANY (%(batches)s::bigint[])
            OR (t.id, t.epoch) IN (SELECT * FROM unnest(%(tasks)s::bigint[], %(epochs)s::int[])))
    ORDER BY t.id FOR NO KEY UPDATE
)
UPDATE {schema}.zart_tasks t SET state = 'ready', owner = NULL, batch = NULL
FROM held WHERE t.id = held.id;
