-- The tables of the engine: live work apart from history and payloads, one fence row per writer connection.
--
-- `{schema}` is the quoted schema. Identifiers in functions are qualified, so that no search_path of a caller matters.
-- There are no foreign keys: each would take another KEY SHARE lock on the hot path.

-- Durable time: sleeps, limits, retention. A test may replace this function; leases never use it.
CREATE FUNCTION {schema}.zart_now() RETURNS timestamptz
    LANGUAGE sql STABLE AS 'SELECT pg_catalog.statement_timestamp()';

-- A lane is what a worker subscribes to. A claim asks its own lanes only, so others' backlog costs nothing.
CREATE TABLE {schema}.zart_lanes (
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    queue text NOT NULL,
    name text NOT NULL,
    version text
);
CREATE UNIQUE INDEX zart_lanes_key ON {schema}.zart_lanes (queue, name, coalesce(version, ''));

-- One row per execution id, kept after the end. While it lives, its state is in zart_tasks; `status` is written
-- at the start and at the end.
CREATE TABLE {schema}.zart_executions (
    id text PRIMARY KEY,
    name text NOT NULL,
    version text,
    queue text NOT NULL,
    priority int NOT NULL,
    status text NOT NULL DEFAULT 'scheduled'
        CHECK (status IN ('scheduled', 'completed', 'failed', 'cancelled')),
    run_id uuid NOT NULL,
    task_id bigint NOT NULL,
    payload json,                    -- bytes kept as written: jsonb would reorder keys and turn 1e16 into an int
    digest bytea,                    -- of the canonical payload; null when it was started from SQL
    result json,
    failure json,                    -- of a failed execution, or why a live one is blocked
    awaited boolean NOT NULL DEFAULT false,   -- a client listens for the end
    token bigint,                    -- of the write that ended it: tells an ambiguous commit from a lost lease
    created_at timestamptz NOT NULL DEFAULT {schema}.zart_now(),
    started_at timestamptz,
    finished_at timestamptz
);
CREATE INDEX zart_executions_created ON {schema}.zart_executions (created_at, id);

-- Live work: exactly one body row per execution that has not ended. It is the execution's mutex.
CREATE SEQUENCE {schema}.zart_task_ids AS bigint CACHE 20;
CREATE TABLE {schema}.zart_tasks (
    id bigint PRIMARY KEY,
    execution_id text NOT NULL,
    run_id uuid NOT NULL,
    lane int NOT NULL,
    priority int NOT NULL,           -- lower runs first
    state text NOT NULL CHECK (state IN ('ready', 'running', 'waiting', 'blocked')),
    wake_at timestamptz,             -- when waiting: the earliest time at which something is due
    not_before timestamptz,          -- a body's retry waits until then, whatever wakes it
    due_at timestamptz NOT NULL,     -- its start, or the end of its delay: time limits count from here
    started_at timestamptz,          -- the first claim
    owner bigint,                    -- zart_workers.worker_id of the holder
    epoch int NOT NULL DEFAULT 0,    -- claims so far; what ends a claim must match it
    batch bigint,                    -- the claim that holds it
    signal int NOT NULL DEFAULT 0,   -- bumped by whoever has news; a suspension that missed one is refused
    attempt int NOT NULL DEFAULT 1,  -- of the body
    floor int NOT NULL DEFAULT 0,    -- log entries up to here were made by earlier attempts of the body
    recoveries int NOT NULL DEFAULT 0,        -- takeovers since its last new record
    accept_arguments boolean NOT NULL DEFAULT false,   -- changed arguments of recorded steps are taken as they are
    cancel_reason text,
    cancel_author text,
    cancel_at timestamptz,
    waiting_for text,                -- for people
    token bigint
);
CREATE INDEX zart_tasks_ready ON {schema}.zart_tasks (lane, (recoveries > 0), priority, id) WHERE state = 'ready';
CREATE INDEX zart_tasks_sleeping ON {schema}.zart_tasks (wake_at) WHERE state = 'waiting' AND wake_at IS NOT NULL;
CREATE INDEX zart_tasks_held ON {schema}.zart_tasks (owner, batch) WHERE owner IS NOT NULL;
ALTER TABLE {schema}.zart_tasks SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000,
    autovacuum_analyze_scale_factor = 0.1, autovacuum_vacuum_cost_delay = 0);

-- The journal: one ordered log per run. An entry with `seq` was delivered to the body in that order;
-- one without is under way (running, waiting until a time).
CREATE TABLE {schema}.zart_steps (
    run_id uuid NOT NULL,
    path text NOT NULL,              -- the branch that asked: '' is the body itself
    name text NOT NULL,
    occurrence int NOT NULL,
    kind text NOT NULL CHECK (kind IN ('step', 'capture', 'wait', 'timer', 'cancel')),
    seq int,
    state text NOT NULL CHECK (state IN ('running', 'waiting', 'completed', 'failed', 'cancelled')),
    digest bytea,                    -- of the canonical arguments, algorithm number first
    arguments text,                  -- their first 500 bytes, for the message when they differ
    result json,
    failure json,
    attempts int NOT NULL DEFAULT 1,
    started_at timestamptz,
    finished_at timestamptz,
    until timestamptz,
    token bigint,
    PRIMARY KEY (run_id, path, name, occurrence, kind)
);

-- Attempts that failed: their error, and when the next one was due.
CREATE TABLE {schema}.zart_step_attempts (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id uuid NOT NULL,
    path text NOT NULL,
    name text NOT NULL,
    occurrence int NOT NULL,
    kind text NOT NULL,
    attempt int NOT NULL,
    body_attempt int NOT NULL,
    failure json,
    started_at timestamptz,
    finished_at timestamptz,
    next_at timestamptz
);
CREATE INDEX zart_step_attempts_run ON {schema}.zart_step_attempts (run_id);

-- Events wait here from the start of their execution until a wait consumes them: first in, first out, each once.
CREATE TABLE {schema}.zart_events (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    execution_id text NOT NULL,
    name text NOT NULL,
    payload json,
    dedup text,
    created_at timestamptz NOT NULL DEFAULT {schema}.zart_now(),
    consumed_at timestamptz
);
CREATE INDEX zart_events_buffered ON {schema}.zart_events (execution_id, name, id) WHERE consumed_at IS NULL;
CREATE UNIQUE INDEX zart_events_dedup ON {schema}.zart_events (execution_id, dedup) WHERE dedup IS NOT NULL;

-- News for live work, inserted by whoever has it and applied by workers: a transaction that a user holds open
-- must never hold a lock on zart_tasks.
CREATE TABLE {schema}.zart_wakeups (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    task_id bigint NOT NULL,
    kind text NOT NULL CHECK (kind IN ('event', 'cancel')),
    reason text,
    author text,
    created_at timestamptz NOT NULL DEFAULT {schema}.zart_now()
);

-- Workers: one fence row per writer connection. To take a worker's work, delete its rows: the delete waits for the
-- statements in flight and refuses the later ones. Ids are never used again.
CREATE SEQUENCE {schema}.zart_worker_ids AS bigint;
CREATE TABLE {schema}.zart_workers (
    worker_id bigint NOT NULL,
    writer smallint NOT NULL,        -- 0: the claimer
    host text NOT NULL,
    pid int NOT NULL,
    lanes int[] NOT NULL DEFAULT '{{}}',
    idle boolean NOT NULL DEFAULT false,      -- it listens and has free slots: worth a notification
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    heartbeat_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (worker_id, writer)
);

-- Who did what to an execution and why: takeovers, blocks, warnings, cancels, resumes.
CREATE TABLE {schema}.zart_history (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    execution_id text NOT NULL,
    run_id uuid,
    at timestamptz NOT NULL DEFAULT {schema}.zart_now(),
    what text NOT NULL,
    author text,
    note text
);
CREATE INDEX zart_history_execution ON {schema}.zart_history (execution_id, id);

-- Tells idle workers that there is work, when the transaction commits, and only if one listens. It is a hint: a full
-- notification queue must not fail the caller's commit.
CREATE FUNCTION {schema}.zart_announce() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM {schema}.zart_workers WHERE idle) AND pg_catalog.pg_notification_queue_usage() < 0.5 THEN
        PERFORM pg_catalog.pg_notify('zart_work_' || substr(md5(TG_TABLE_SCHEMA), 1, 12), '');
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER zart_tasks_announce AFTER INSERT ON {schema}.zart_tasks
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.state = 'ready') EXECUTE FUNCTION {schema}.zart_announce();
CREATE CONSTRAINT TRIGGER zart_wakeups_announce AFTER INSERT ON {schema}.zart_wakeups
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION {schema}.zart_announce();

-- The lane of a function; made when it is new.
CREATE FUNCTION {schema}.zart_lane(queue text, name text, version text) RETURNS int LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    found_id int;
BEGIN
    SELECT l.id INTO found_id FROM {schema}.zart_lanes l
    WHERE l.queue = $1 AND l.name = $2 AND coalesce(l.version, '') = coalesce($3, '');
    IF found_id IS NULL THEN
        INSERT INTO {schema}.zart_lanes AS l (queue, name, version) VALUES ($1, $2, $3)
        ON CONFLICT (queue, name, coalesce(version, '')) DO NOTHING;
        SELECT l.id INTO found_id FROM {schema}.zart_lanes l
        WHERE l.queue = $1 AND l.name = $2 AND coalesce(l.version, '') = coalesce($3, '');
    END IF;
    RETURN found_id;
END $$;

-- A UUID of version 7: they sort by time.
CREATE FUNCTION {schema}.zart_uuid7() RETURNS uuid LANGUAGE sql VOLATILE AS $$
    SELECT encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid())
        PLACING substring(int8send((extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3) FROM 1 FOR 6),
        52, 1), 53, 1), 'hex')::uuid
$$;
