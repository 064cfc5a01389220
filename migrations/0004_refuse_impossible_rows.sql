-- The tables refuse what cannot be, whoever writes it: a hand at psql, or a mistake in a later version.
--
-- Work is held exactly while somebody holds it, what has ended says when, and what ended stays as it ended. The condition
-- of the trigger stands in WHEN, so its function runs only to refuse, and after the update, so the row is not locked a
-- second time. There is no such trigger on zart_tasks, where it would be felt with each suspension.

CREATE FUNCTION {schema}.zart_refuse_transition() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = '23514',
        MESSAGE = format('execution %L has ended (%s) and cannot become %s', OLD.id, OLD.status, NEW.status),
        HINT = 'What ended stays as it ended: start another execution, under another id.';
END $$;
CREATE TRIGGER zart_executions_transition AFTER UPDATE OF status ON {schema}.zart_executions
    FOR EACH ROW WHEN (OLD.status <> NEW.status AND OLD.status <> 'scheduled')
    EXECUTE FUNCTION {schema}.zart_refuse_transition();

-- Rows that are there already are taken as they are: looking them all over would lock the tables for as long.
ALTER TABLE {schema}.zart_tasks
    ADD CONSTRAINT zart_tasks_held CHECK ((state = 'running') = (owner IS NOT NULL)) NOT VALID;
ALTER TABLE {schema}.zart_executions
    ADD CONSTRAINT zart_executions_ended CHECK ((status = 'scheduled') = (finished_at IS NULL)) NOT VALID;
