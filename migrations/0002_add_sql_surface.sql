-- What SQL may use: two views, and three functions for any transaction of the caller's own.
--
-- The functions only insert. A transaction that stays open holds no lock on live work, so it delays nobody: workers
-- apply what it inserted once it has committed.

-- Refuses what may not be a name, with the rules of the library: 1 to 200 bytes of UTF-8, no control characters.
CREATE FUNCTION {schema}.zart_check_name(value text, what text) RETURNS void LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    size int := pg_catalog.octet_length(pg_catalog.convert_to(value, 'UTF8'));
BEGIN
    IF value IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = format('%s is null', what),
            HINT = 'Give text of 1 to 200 bytes.';
    ELSIF size NOT BETWEEN 1 AND 200 THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = format('%s is %s bytes long', what, size),
            HINT = 'Use 1 to 200 bytes of UTF-8.';
    ELSIF value ~ E'[\\u0001-\\u001f\\u007f-\\u009f]' THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = format('%s contains a control character', what),
            HINT = 'Use any other sign.';
    END IF;
END $$;

-- Refuses a payload over 1 MiB.
CREATE FUNCTION {schema}.zart_check_payload(payload jsonb, what text) RETURNS void LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    size int := pg_catalog.octet_length(payload::text);
BEGIN
    IF size > 1048576 THEN
        RAISE EXCEPTION USING ERRCODE = '22023',
            MESSAGE = format('%s is %s bytes long, over the limit of 1048576', what, size),
            HINT = 'Store large data elsewhere and send a reference to it.';
    END IF;
END $$;

-- Starts an execution and returns its id. Idempotent by id: the same function with an equal payload is the execution
-- that exists, in whatever state; anything else is refused (23505). It becomes due at run_at, or at once.
CREATE FUNCTION {schema}.zart_start(
    name text,
    id text DEFAULT NULL,
    payload jsonb DEFAULT NULL,
    queue text DEFAULT 'default',
    version text DEFAULT NULL,
    priority int DEFAULT 0,
    run_at timestamptz DEFAULT NULL
) RETURNS text LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    new_id text := coalesce(zart_start.id, {schema}.zart_uuid7()::text);
    this_run uuid := {schema}.zart_uuid7();
    this_task bigint;
    present timestamptz := {schema}.zart_now();
    due timestamptz := greatest(zart_start.run_at, present);
    existing record;
BEGIN
    PERFORM {schema}.zart_check_name(zart_start.name, 'the name of the durable function');
    PERFORM {schema}.zart_check_name(new_id, 'the execution id');
    PERFORM {schema}.zart_check_name(zart_start.queue, 'the name of the queue');
    IF zart_start.version IS NOT NULL THEN
        PERFORM {schema}.zart_check_name(zart_start.version, 'the version');
    END IF;
    IF position('~' IN new_id) > 0 THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = format('the execution id %L contains ''~''', new_id),
            HINT = 'The sign ~ is kept for ids that Zart derives.';
    END IF;
    PERFORM {schema}.zart_check_payload(zart_start.payload, format('the payload of %s', zart_start.name));
    IF zart_start.priority IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = 'the priority is null',
            HINT = 'Give a number; lower runs first, the default is 0.';
    END IF;
    IF due >= timestamptz '9999-01-01 00:00:00+00' THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = format('run_at %s is out of reach', zart_start.run_at),
            HINT = 'Give a time before the year 9999.';
    END IF;

    INSERT INTO {schema}.zart_executions AS e (id, name, version, queue, priority, run_id, payload, created_at)
    VALUES (new_id, zart_start.name, zart_start.version, zart_start.queue, zart_start.priority, this_run,
            zart_start.payload::text::json, present)
    ON CONFLICT (id) DO NOTHING
    RETURNING task_id INTO this_task;
    IF FOUND THEN
        INSERT INTO {schema}.zart_tasks (id, execution_id, run_id, lane, priority, state, wake_at, due_at)
        VALUES (this_task, new_id, this_run,
                {schema}.zart_lane(zart_start.queue, zart_start.name, zart_start.version), zart_start.priority,
                CASE WHEN due > present THEN 'waiting' ELSE 'ready' END,
                CASE WHEN due > present THEN due END, due);
        RETURN new_id;
    END IF;

    SELECT e.name, e.payload INTO existing FROM {schema}.zart_executions e WHERE e.id = new_id;
    IF existing.name IS DISTINCT FROM zart_start.name THEN
        RAISE EXCEPTION USING ERRCODE = '23505',
            MESSAGE = format('execution %L exists already, of the function %L', new_id, existing.name),
            HINT = 'Choose another id for this one.';
    ELSIF coalesce(existing.payload::jsonb, 'null') <> coalesce(zart_start.payload, 'null') THEN
        RAISE EXCEPTION USING ERRCODE = '23505',
            MESSAGE = format('execution %L of %L exists already with another payload', new_id, existing.name),
            HINT = 'An id stands for one input: choose another id for this one.';
    END IF;
    RETURN new_id;
END $$;

-- Offers an event to an execution. It is kept until a wait consumes it. False: an event of this dedup key was there
-- before, and nothing was added.
CREATE FUNCTION {schema}.zart_offer_event(
    execution_id text,
    event text,
    payload jsonb DEFAULT NULL,
    dedup text DEFAULT NULL
) RETURNS boolean LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    target record;
BEGIN
    PERFORM {schema}.zart_check_name(zart_offer_event.event, 'the name of the event');
    IF zart_offer_event.dedup IS NOT NULL THEN
        PERFORM {schema}.zart_check_name(zart_offer_event.dedup, 'the dedup key');
    END IF;
    PERFORM {schema}.zart_check_payload(zart_offer_event.payload,
                                        format('the payload of event %s', zart_offer_event.event));
    SELECT e.status, e.task_id INTO target FROM {schema}.zart_executions e WHERE e.id = zart_offer_event.execution_id;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'P0002',
            MESSAGE = format('there is no execution %L', zart_offer_event.execution_id),
            HINT = 'Check the id; an execution is there once the transaction that starts it has committed.';
    END IF;
    IF target.status <> 'scheduled' THEN
        IF EXISTS (SELECT FROM {schema}.zart_events v WHERE v.execution_id = zart_offer_event.execution_id
                   AND v.dedup = zart_offer_event.dedup) THEN
            RETURN false;
        END IF;
        RAISE EXCEPTION USING ERRCODE = '55000',
            MESSAGE = format('execution %L has ended (%s): it takes no more events',
                             zart_offer_event.execution_id, target.status),
            HINT = 'Nothing can wait for this event any more.';
    END IF;
    INSERT INTO {schema}.zart_events AS v (execution_id, name, payload, dedup)
    VALUES (zart_offer_event.execution_id, zart_offer_event.event,
            coalesce(zart_offer_event.payload, 'null')::text::json, zart_offer_event.dedup)
    ON CONFLICT (execution_id, dedup) WHERE dedup IS NOT NULL DO NOTHING;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    INSERT INTO {schema}.zart_wakeups (task_id, kind) VALUES (target.task_id, 'event');
    RETURN true;
END $$;

-- Asks an execution to end as cancelled; its cleanup may still run. False: it has ended, or was asked before.
CREATE FUNCTION {schema}.zart_cancel(execution_id text, reason text DEFAULT NULL) RETURNS boolean LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    target record;
BEGIN
    IF pg_catalog.octet_length(zart_cancel.reason) > 10000 THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = 'the reason is over 10000 bytes long',
            HINT = 'Give a sentence.';
    END IF;
    SELECT e.status, e.task_id, e.run_id INTO target
    FROM {schema}.zart_executions e WHERE e.id = zart_cancel.execution_id;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'P0002',
            MESSAGE = format('there is no execution %L', zart_cancel.execution_id),
            HINT = 'Check the id; an execution is there once the transaction that starts it has committed.';
    END IF;
    IF target.status <> 'scheduled'
       OR EXISTS (SELECT FROM {schema}.zart_tasks t WHERE t.id = target.task_id AND t.cancel_at IS NOT NULL)
       OR EXISTS (SELECT FROM {schema}.zart_wakeups w WHERE w.task_id = target.task_id AND w.kind = 'cancel') THEN
        RETURN false;
    END IF;
    INSERT INTO {schema}.zart_wakeups (task_id, kind, reason, author)
    VALUES (target.task_id, 'cancel', zart_cancel.reason, session_user);
    INSERT INTO {schema}.zart_history (execution_id, run_id, what, author, note)
    VALUES (zart_cancel.execution_id, target.run_id, 'cancel requested', session_user, zart_cancel.reason);
    RETURN true;
END $$;

-- Every execution, one row each. While it lives, its state is in zart_tasks.
CREATE VIEW {schema}.zart_v_executions AS
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
        SELECT FROM {schema}.zart_lanes l JOIN {schema}.zart_workers w ON w.writer = 0 AND l.id = ANY (w.lanes)
        WHERE l.queue = e.queue AND l.name = e.name AND coalesce(l.version, '') = coalesce(e.version, '')
            AND w.expires_at > clock_timestamp()
    ) AS served   -- by a live worker
FROM {schema}.zart_executions e LEFT JOIN {schema}.zart_tasks t ON t.id = e.task_id;

-- The journal of every execution's run: finished calls in the order of `seq`, then what is under way.
CREATE VIEW {schema}.zart_v_steps AS
SELECT
    e.id AS execution_id, s.run_id, s.seq,
    s.path || s.name || CASE WHEN s.occurrence > 1 THEN '#' || s.occurrence ELSE '' END AS key,
    s.name, s.kind, s.state, s.attempts,
    s.result::jsonb AS result,
    s.failure::jsonb AS failure,
    s.started_at, s.finished_at
FROM {schema}.zart_executions e JOIN {schema}.zart_steps s ON s.run_id = e.run_id;
