-- A person has an execution go on after its end, or begin again.
--
-- `restart` and `rerun` give an execution another run; the one before is kept as it was, with what came of it. `retry_step`
-- keeps the run and asks the worker for it: the request stands on the task's row, and whoever holds it next replays what
-- is recorded, sets aside what is to be done again, and runs the body afresh.

ALTER TABLE {schema}.zart_tasks
    ADD COLUMN repair jsonb;         -- the keys of records that a person wants done again; null: nobody asked

ALTER TABLE {schema}.zart_executions
    ADD COLUMN attempt int;          -- of the body in this run, once it has been retried; null: the first one

-- A child's id stands in its parent's record, which may be of an earlier run of the parent: nobody looks the other way.
DROP INDEX {schema}.zart_executions_parent;

ALTER TABLE {schema}.zart_execution_runs
    ADD COLUMN status text,          -- how the run stood when a person had another one begun; null: it began anew by itself
    ADD COLUMN result json,
    ADD COLUMN failure json;

-- What has ended stays as it ended, unless it is repaired: that gives it other live work, and a restart another run.
CREATE OR REPLACE FUNCTION {schema}.zart_refuse_transition() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = '23514',
        MESSAGE = format('execution %L has ended (%s) and cannot become %s', OLD.id, OLD.status, NEW.status),
        HINT = 'What ended stays as it ended: restart it, have a step retried, or start another one under another id.';
END $$;
DROP TRIGGER zart_executions_transition ON {schema}.zart_executions;
CREATE TRIGGER zart_executions_transition AFTER UPDATE OF status ON {schema}.zart_executions
    FOR EACH ROW WHEN (OLD.status <> NEW.status AND OLD.status <> 'scheduled'
        AND (NEW.status <> 'scheduled' OR NEW.task_id = OLD.task_id))
    EXECUTE FUNCTION {schema}.zart_refuse_transition();

-- What wakes an execution was for one number of its live work; after a repair there is another one. An event may have been
-- inserted before that by a transaction that commits after it: then its wake-up is for whatever work there is.
ALTER TABLE {schema}.zart_wakeups
    ADD COLUMN execution_id text;    -- of an event: whose it is; null: nothing but this live work is meant

-- As before, but that the wake-up says whose event it is.
CREATE OR REPLACE FUNCTION {schema}.zart_offer_event(
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
    INSERT INTO {schema}.zart_wakeups (task_id, kind, execution_id)
    VALUES (target.task_id, 'event', zart_offer_event.execution_id);
    RETURN true;
END $$;
