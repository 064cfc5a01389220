-- Work that an execution gives away: scheduled steps and child executions, done by any worker.
--
-- A journal row with a `task_id` is done by that task. Whoever does it writes what came of it into the row, without a
-- number: `seq` is given when the body's own worker delivers it. With the row, in one statement, the `done` of the body
-- that gave it away is counted up; a body that waits names the count at which it is to be woken.

ALTER TABLE {schema}.zart_steps
    ADD COLUMN task_id bigint,       -- does this call: a scheduled step's own task, or a child's
    ADD COLUMN input json;           -- of a scheduled step: its arguments and options
ALTER TABLE {schema}.zart_steps DROP CONSTRAINT zart_steps_kind_check;
ALTER TABLE {schema}.zart_steps ADD CONSTRAINT zart_steps_kind_check
    CHECK (kind IN ('step', 'capture', 'wait', 'timer', 'cancel', 'child')) NOT VALID;
-- What has arrived and was not delivered so far. No row of a call that a body runs itself is ever in it.
CREATE INDEX zart_steps_arrived ON {schema}.zart_steps (run_id)
    WHERE task_id IS NOT NULL AND seq IS NULL AND state IN ('completed', 'failed', 'cancelled');

ALTER TABLE {schema}.zart_tasks
    ADD COLUMN parent_task bigint,   -- counts up when this one ends
    ADD COLUMN detached boolean NOT NULL DEFAULT false,   -- a child that goes on without its parent
    ADD COLUMN done int NOT NULL DEFAULT 0,   -- how much of what it gave away has ended
    ADD COLUMN wake_at_done int,     -- when waiting: the count at which it goes on
    ADD COLUMN step_path text,       -- of a scheduled step: its place in the journal of run_id, null for a body
    ADD COLUMN step_name text,
    ADD COLUMN step_occurrence int,
    ADD COLUMN step_function text;   -- and the step that a worker must have registered

ALTER TABLE {schema}.zart_executions
    ADD COLUMN parent_id text,       -- the execution that started it as its child
    ADD COLUMN parent_run uuid,      -- the call of the parent that waits for its end; null when it is detached
    ADD COLUMN parent_path text,
    ADD COLUMN parent_name text,
    ADD COLUMN parent_occurrence int;
CREATE INDEX zart_executions_parent ON {schema}.zart_executions (parent_id, created_at, id)
    WHERE parent_id IS NOT NULL;

ALTER TABLE {schema}.zart_wakeups DROP CONSTRAINT zart_wakeups_kind_check;
ALTER TABLE {schema}.zart_wakeups ADD CONSTRAINT zart_wakeups_kind_check
    CHECK (kind IN ('event', 'cancel', 'done')) NOT VALID;
