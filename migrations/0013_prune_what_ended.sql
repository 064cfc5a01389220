-- What ended long ago can be pruned: taken away with all that belongs to it, or down to the row of its id.
--
-- The id may be kept for longer than what the execution was given and what it gave, so that a start which is sent again
-- still finds it. Such a row says since when, and has a hash of its payload to compare that start with.
-- There is no index by the time of completion. It would get an entry at each end of an execution, and no end could be
-- written in place any more. What ended before some time was created before it: pruning goes by zart_executions_created.

ALTER TABLE {schema}.zart_executions
    ADD COLUMN pruned_at timestamptz,    -- only the id is kept since then
    ADD COLUMN payload_hash bytea;       -- of the payload that is gone
ALTER TABLE {schema}.zart_executions ADD CONSTRAINT zart_executions_pruned
    CHECK (pruned_at IS NULL OR (status <> 'scheduled' AND payload IS NULL AND result IS NULL AND failure IS NULL)) NOT VALID;

-- When the next round of what one worker does for all is due, by the real clock.
CREATE TABLE {schema}.zart_duties (
    name text PRIMARY KEY,
    due_at timestamptz NOT NULL
);

-- A hash of a payload, the same for all ways to write the same JSON but for zeros at the end of a fraction.
CREATE FUNCTION {schema}.zart_payload_hash(payload json) RETURNS bytea LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    RETURN pg_catalog.sha256(pg_catalog.convert_to(coalesce(payload::jsonb, 'null')::text, 'UTF8'));
EXCEPTION WHEN data_exception OR program_limit_exceeded THEN
    -- A hand has written what jsonb does not hold: it equals itself alone.
    RETURN pg_catalog.sha256(pg_catalog.convert_to(payload::text, 'UTF8'));
END $$;

-- As before, but for the comparison with an execution of which only the id is kept.
CREATE OR REPLACE FUNCTION {schema}.zart_start(
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

    SELECT e.name, e.payload, e.pruned_at, e.payload_hash INTO existing FROM {schema}.zart_executions e WHERE e.id = new_id;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = '40001',
            MESSAGE = format('execution %L existed a moment ago and is gone now', new_id),
            HINT = 'It was pruned or deleted at this moment: start it again.';
    ELSIF existing.name IS DISTINCT FROM zart_start.name THEN
        RAISE EXCEPTION USING ERRCODE = '23505',
            MESSAGE = format('execution %L exists already, of the function %L', new_id, existing.name),
            HINT = 'Choose another id for this one.';
    ELSIF (existing.pruned_at IS NULL AND coalesce(existing.payload::jsonb, 'null') <> coalesce(zart_start.payload, 'null'))
        OR (existing.pruned_at IS NOT NULL
            AND existing.payload_hash IS DISTINCT FROM {schema}.zart_payload_hash(zart_start.payload::text::json)) THEN
        RAISE EXCEPTION USING ERRCODE = '23505',
            MESSAGE = format('execution %L of %L exists already with another payload', new_id, existing.name),
            HINT = 'An id stands for one input: choose another id for this one.';
    END IF;
    RETURN new_id;
END $$;
