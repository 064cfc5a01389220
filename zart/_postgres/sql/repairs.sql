-- Repairs: what a person has done to an execution whatever its state. Each is one transaction of several statements, in the
-- order of locks: the task, then the execution, then the rest. Whoever holds the execution meanwhile writes nothing more
-- for it: its endings match a run and a holder that are no longer there.

-- Ends the transaction if the client that sent it is stopped in its middle: others wait for these locks.
-- name: limit_idling
SELECT set_config('idle_in_transaction_session_timeout', %(limit)s::text, true);

-- name: find
SELECT e.task_id FROM {schema}.zart_executions e WHERE e.id = %(id)s::text;

-- Nothing when it has ended.
-- name: lock_task
SELECT t.state, t.cancel_at IS NOT NULL FROM {schema}.zart_tasks t WHERE t.id = %(task)s::bigint FOR UPDATE;

-- name: lock_execution
SELECT e.task_id, e.run_id, e.status, e.pruned_at IS NOT NULL
FROM {schema}.zart_executions e WHERE e.id = %(id)s::text FOR UPDATE;

-- ------------------------------------------------------------ another run

-- Live work gets the run, and no holder. The epoch moves, so that the claim does not take it for the first one.
-- name: renew_task
UPDATE {schema}.zart_tasks t SET
    run_id = %(next_run)s::uuid, state = 'ready', owner = NULL, batch = NULL, epoch = t.epoch %% 2147483647 + 1,
    signal = t.signal %% 2147483647 + 1, wake_at = NULL, wake_at_done = NULL, not_before = NULL, waiting_for = NULL,
    attempt = 1, floor = 0, recoveries = 0, accept_arguments = %(accept_arguments)s::bool, cancel_at = NULL,
    cancel_reason = NULL, cancel_author = NULL, due_at = {schema}.zart_now(), started_at = NULL,
    repair = %(repair)s::jsonb
WHERE t.id = %(task)s::bigint;

-- A wish to cancel it that no worker has applied so far was about the run before.
-- name: drop_cancels
DELETE FROM {schema}.zart_wakeups w WHERE w.task_id = %(task)s::bigint AND w.kind = 'cancel';

-- What has ended gets live work again, under another number: nothing that was about the old one can meet it. It was
-- claimed before, so the epoch is not that of a first claim. `run` is the next run, or the same one.
-- name: revive
WITH task AS (
    SELECT nextval($zart${schema}.zart_task_ids$zart$) AS id
), execution AS (
    UPDATE {schema}.zart_executions e SET
        status = 'scheduled', task_id = k.id, run_id = %(run)s::uuid, result = NULL, failure = NULL, token = NULL,
        finished_at = NULL, started_at = NULL, attempt = CASE WHEN e.run_id = %(run)s::uuid THEN e.attempt END
    FROM task k WHERE e.id = %(id)s::text
    RETURNING e.task_id, e.id, e.queue, e.name, e.version, e.priority, coalesce(e.attempt, 1) AS attempt
)
INSERT INTO {schema}.zart_tasks AS t (id, execution_id, run_id, lane, priority, state, due_at, epoch, attempt,
    accept_arguments, repair)
SELECT e.task_id, e.id, %(run)s::uuid, {schema}.zart_lane(e.queue, e.name, e.version), e.priority, 'ready',
    {schema}.zart_now(), 1, e.attempt, %(accept_arguments)s::bool, %(repair)s::jsonb
FROM execution e
RETURNING t.id;

-- What was under way when the run ended has no place in its log.
-- name: clear_ended
DELETE FROM {schema}.zart_steps s WHERE s.run_id = %(run)s::uuid AND s.state = 'cancelled' AND s.seq IS NULL;

-- name: renew_execution
UPDATE {schema}.zart_executions e SET run_id = %(next_run)s::uuid, failure = NULL, started_at = NULL, attempt = NULL
WHERE e.id = %(id)s::text;

-- The run that comes next, with its input: a new one, or the one that the run before was given.
-- name: begin_run
INSERT INTO {schema}.zart_execution_runs (run_id, execution_id, payload, started_at)
SELECT %(next_run)s::uuid, e.id,
    CASE WHEN %(given)s::bool THEN %(payload)s::text::json WHEN r.run_id IS NULL THEN e.payload ELSE r.payload END,
    {schema}.zart_now()
FROM {schema}.zart_executions e LEFT JOIN {schema}.zart_execution_runs r ON r.run_id = e.run_id
WHERE e.id = %(id)s::text;

-- The run that gives way, as it stands. Sent after that, since the first run of an execution has no row before, and before
-- the execution is changed.
-- name: archive_run
INSERT INTO {schema}.zart_execution_runs AS r (run_id, execution_id, payload, started_at, ended_at, status, result, failure)
SELECT e.run_id, e.id, NULL, coalesce(e.started_at, t.started_at, e.created_at), {schema}.zart_now(), v.status, e.result,
    e.failure
FROM {schema}.zart_executions e JOIN {schema}.zart_v_executions v ON v.id = e.id
    LEFT JOIN {schema}.zart_tasks t ON t.id = e.task_id
WHERE e.id = %(id)s::text
ON CONFLICT (run_id) DO UPDATE SET
    ended_at = excluded.ended_at, status = excluded.status, result = excluded.result, failure = excluded.failure;

-- What the run has given away is cancelled, but for children that are detached: it is told like anybody else.
-- name: cancel_given
INSERT INTO {schema}.zart_wakeups (task_id, kind, reason, author)
SELECT s.task_id, 'cancel', %(reason)s::text, %(author)s::text
FROM {schema}.zart_steps s JOIN {schema}.zart_tasks t ON t.id = s.task_id
WHERE s.run_id = %(run)s::uuid AND s.state IN ('started', 'running', 'waiting') AND NOT t.detached
    AND t.cancel_at IS NULL
ORDER BY s.path DESC, s.name DESC, s.occurrence DESC;

-- What the body itself had under way has ended with the run.
-- name: sweep
UPDATE {schema}.zart_steps s SET state = 'cancelled', finished_at = {schema}.zart_now()
WHERE s.run_id = %(run)s::uuid AND s.state IN ('started', 'running', 'waiting') AND s.task_id IS NULL;

-- Events that nobody has consumed.
-- name: drop_events
DELETE FROM {schema}.zart_events v WHERE v.execution_id = %(id)s::text AND v.consumed_at IS NULL;

-- What has ended goes along into the next run; what is under way, or was when the run ended, is done there again.
-- name: copy_records
INSERT INTO {schema}.zart_steps (run_id, path, name, occurrence, kind, seq, state, digest, arguments, result, failure,
    attempts, started_at, finished_at, until, progress, input, task_id, data)
SELECT %(next_run)s::uuid, s.path, s.name, s.occurrence, s.kind, s.seq, s.state, s.digest, s.arguments, s.result, s.failure,
    s.attempts, s.started_at, s.finished_at, s.until, s.progress, s.input, s.task_id, s.data
FROM {schema}.zart_steps s
WHERE s.run_id = %(run)s::uuid AND s.state IN ('completed', 'failed', 'cancelled')
    AND NOT (s.state = 'cancelled' AND s.seq IS NULL)
ORDER BY s.path, s.name, s.occurrence, s.kind;

-- ------------------------------------------------------------ the same run

-- Asks whoever holds the execution, now or next, to have these records done again.
-- name: request
UPDATE {schema}.zart_tasks t SET
    repair = coalesce(t.repair, '[]') || CASE WHEN t.repair @> %(repair)s::jsonb THEN '[]' ELSE %(repair)s::jsonb END,
    signal = t.signal %% 2147483647 + 1, not_before = NULL,
    recoveries = CASE WHEN t.state = 'blocked' THEN 0 ELSE t.recoveries END,
    state = CASE WHEN t.state IN ('waiting', 'blocked') THEN 'ready' ELSE t.state END
WHERE t.id = %(task)s::bigint AND (t.state = 'blocked' OR NOT coalesce(t.repair, '[]') @> %(repair)s::jsonb);

-- A blocked execution that goes on has no failure.
-- name: unblock
UPDATE {schema}.zart_executions e SET failure = NULL WHERE e.id = %(id)s::text AND e.status = 'scheduled';

-- ------------------------------------------------------------ records

-- The records of a run, with their keys in the form for people, in the order in which the execution first had them: what
-- was done again in a later run stands at that run's end.
-- name: records
SELECT s.path, s.name, s.occurrence, s.kind, s.state, least(s.seq, first.seq) AS place,
    s.path || s.name || CASE WHEN s.occurrence > 1 THEN '#' || s.occurrence ELSE '' END
FROM {schema}.zart_steps s LEFT JOIN LATERAL (
    SELECT min(o.seq) AS seq
    FROM {schema}.zart_execution_runs r JOIN {schema}.zart_steps o ON o.run_id = r.run_id
    WHERE r.execution_id = %(id)s::text AND o.path = s.path AND o.name = s.name AND o.occurrence = s.occurrence
        AND o.kind = s.kind
) first ON true
WHERE s.run_id = %(run)s::uuid
ORDER BY place NULLS LAST, s.path, s.name, s.occurrence;

-- name: note
INSERT INTO {schema}.zart_history (execution_id, run_id, what, author, note)
VALUES (%(id)s::text, %(run)s::uuid, %(what)s::text, %(author)s::text, %(reason)s::text);

-- ------------------------------------------------------------ deletion

-- The rules that name it: they would hold back another one that is started under its id. First, since whoever ends such a
-- rule at this moment tells so in the history.
-- name: delete_rules
DELETE FROM {schema}.zart_pause_rules r WHERE r.execution_id = %(id)s::text;

-- All runs of an execution: the kept ones and its own.
-- name: delete_records
DELETE FROM {schema}.zart_steps s
WHERE s.run_id IN (SELECT r.run_id FROM {schema}.zart_execution_runs r WHERE r.execution_id = %(id)s::text
    UNION ALL SELECT e.run_id FROM {schema}.zart_executions e WHERE e.id = %(id)s::text);

-- name: delete_attempts
DELETE FROM {schema}.zart_step_attempts a
WHERE a.run_id IN (SELECT r.run_id FROM {schema}.zart_execution_runs r WHERE r.execution_id = %(id)s::text
    UNION ALL SELECT e.run_id FROM {schema}.zart_executions e WHERE e.id = %(id)s::text);

-- Beside those that nobody has consumed, which `drop_events` takes: each of the two has an index of its own.
-- name: delete_events
DELETE FROM {schema}.zart_events v WHERE v.execution_id = %(id)s::text AND v.consumed_at IS NOT NULL;

-- name: delete_history
DELETE FROM {schema}.zart_history h WHERE h.execution_id = %(id)s::text;

-- name: delete_runs
DELETE FROM {schema}.zart_execution_runs r WHERE r.execution_id = %(id)s::text;

-- name: delete_execution
DELETE FROM {schema}.zart_executions e WHERE e.id = %(id)s::text;
