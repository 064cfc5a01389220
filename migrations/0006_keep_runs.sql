-- The runs of executions that began anew, and what each run was given.
--
-- An execution that was never begun anew has no row here. One that was has two: the run that is on, or was its last, and
-- the one before it, which is kept as it ended. Older runs are forgotten with all that belongs to them, so a loop without
-- end takes no more room than its last two rounds. What the execution was started with stays in zart_executions: a start
-- that is sent again is compared with that.

CREATE TABLE {schema}.zart_execution_runs (
    run_id uuid PRIMARY KEY,
    execution_id text NOT NULL,
    payload json,                    -- what it was given; for the first run of an execution it is not kept here
    started_at timestamptz NOT NULL,
    ended_at timestamptz             -- when it gave way to the next one
);
CREATE INDEX zart_execution_runs_execution ON {schema}.zart_execution_runs (execution_id);

-- Events that the runs which are forgotten have consumed go with them.
CREATE INDEX zart_events_consumed ON {schema}.zart_events (execution_id, consumed_at) WHERE consumed_at IS NOT NULL;
