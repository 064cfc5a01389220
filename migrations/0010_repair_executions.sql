-- A person has an execution go on after its end, or begin again.
--
-- `restart` and `rerun` give an execution another run; the one before is kept as it was, with what came of it. `retry_step`
-- keeps the run and asks the worker for it: the request stands on the task's row, and whoever holds it next replays what
-- is recorded, sets aside what is to be done again, and runs the body afresh.

ALTER TABLE {schema}.zart_tasks
    ADD COLUMN repair jsonb;         -- the keys of records that a person wants done again; null: nobody asked

ALTER TABLE {schema}.zart_executions
    ADD COLUMN attempt int;          -- of the body in this run, once it has been retried; null: the first one

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
