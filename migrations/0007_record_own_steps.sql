-- What a step writes from within: its own record in its own transaction, that it was started, and how far it is.
--
-- A step with `transaction="own"` records its result on a connection that is not Zart's. It does so in a table beside
-- the journal: the journal's writer would otherwise wait for a transaction that a user holds open, and every execution
-- of the process with it. The result is committed with the step's own writes; the engine takes it over into the journal.

ALTER TABLE {schema}.zart_steps
    ADD COLUMN progress json,        -- what the step has told of itself last
    ADD COLUMN data json;            -- what the step has set with set_data, in its own transaction
ALTER TABLE {schema}.zart_steps DROP CONSTRAINT zart_steps_state_check;
ALTER TABLE {schema}.zart_steps ADD CONSTRAINT zart_steps_state_check
    CHECK (state IN ('started', 'running', 'waiting', 'completed', 'failed', 'cancelled')) NOT VALID;

-- One row per call of such a step, from the end of its first attempt, or its record, until the journal has what came of
-- it. Without a result it says that this attempt, and every one before it, is over: it may record nothing any more.
CREATE TABLE {schema}.zart_recorded_steps (
    run_id uuid NOT NULL,
    path text NOT NULL,
    name text NOT NULL,
    occurrence int NOT NULL,
    kind text NOT NULL,
    epoch int NOT NULL,              -- of the claim under which the attempt ran
    attempt int NOT NULL,
    result json,
    PRIMARY KEY (run_id, path, name, occurrence, kind)
);

-- Fails the transaction of a step whose record must not be written; `what` is a SQLSTATE of Zart's own.
CREATE FUNCTION {schema}.zart_refuse_record(what text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = what, MESSAGE = 'the record of a step in its transaction was refused';
END $$;

-- Records the result of a step with transaction="own", as the last statement of the transaction in which it has done its
-- writes: both are committed, or neither. `token` is what zart.step_context().token gives there. Refused (55000) when the
-- attempt is not this execution's any more, and (23505) when the step is recorded already.
CREATE FUNCTION {schema}.zart_record_step(token text, result jsonb) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    part text[] := string_to_array(zart_record_step.token, '.');
    key text[];
    worker bigint;
    task bigint;
    this_epoch int;
    this_run uuid;
    this_attempt int;
    this_occurrence int;
    holds boolean;
BEGIN
    BEGIN
        IF cardinality(part) IS DISTINCT FROM 8 THEN
            RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = 'not a token';
        END IF;
        worker := part[1];
        task := part[2];
        this_epoch := part[3];
        this_run := part[4];
        this_attempt := part[5];
        this_occurrence := part[6];
        key := string_to_array(convert_from(decode(part[8], 'base64'), 'UTF8'), E'\x1f');
        -- The transaction is not ours, and its row here keeps others from taking the worker's work over.
        PERFORM set_config('idle_in_transaction_session_timeout', part[7]::bigint::text, true);
    EXCEPTION WHEN data_exception THEN
        key := NULL;
    END;
    IF cardinality(key) IS DISTINCT FROM 3 THEN
        RAISE EXCEPTION USING ERRCODE = '22023',
            MESSAGE = 'zart_record_step was given no token of a step that runs with transaction="own"',
            HINT = 'Give it zart.step_context().token, as it is in the step itself.';
    END IF;
    PERFORM {schema}.zart_check_payload(zart_record_step.result, format('the result of step %s', key[2]));

    PERFORM FROM {schema}.zart_workers w WHERE w.worker_id = worker AND w.writer = 3 FOR KEY SHARE;
    holds := FOUND;
    IF holds THEN
        SELECT t.owner = worker AND t.epoch = this_epoch AND t.run_id = this_run INTO holds
        FROM {schema}.zart_tasks t WHERE t.id = task;
    END IF;
    IF holds IS NOT TRUE THEN
        RAISE EXCEPTION USING ERRCODE = '55000',
            MESSAGE = format('attempt %s of step %s is not its worker''s any more: its execution was taken over, or has '
                'ended', this_attempt, key[2]),
            HINT = 'Roll back: nothing of this attempt counts, and another one does the work if it is still wanted.';
    END IF;

    IF EXISTS (SELECT FROM {schema}.zart_steps s
               WHERE s.run_id = this_run AND s.path = key[1] AND s.name = key[2] AND s.occurrence = this_occurrence
                   AND s.kind = key[3] AND s.state IN ('completed', 'failed', 'cancelled')) THEN
        RAISE EXCEPTION USING ERRCODE = '23505', MESSAGE = format('step %s has ended already', key[2]),
            HINT = 'Roll back: what is recorded counts.';
    END IF;
    INSERT INTO {schema}.zart_recorded_steps AS r (run_id, path, name, occurrence, kind, epoch, attempt, result)
    VALUES (this_run, key[1], key[2], this_occurrence, key[3], this_epoch, this_attempt,
            coalesce(zart_record_step.result, 'null')::text::json)
    ON CONFLICT (run_id, path, name, occurrence, kind) DO UPDATE
        SET epoch = excluded.epoch, attempt = excluded.attempt, result = excluded.result
        WHERE r.result IS NULL AND (r.epoch, r.attempt) < (excluded.epoch, excluded.attempt);
    IF NOT FOUND THEN
        SELECT r.result IS NOT NULL INTO holds FROM {schema}.zart_recorded_steps r
        WHERE r.run_id = this_run AND r.path = key[1] AND r.name = key[2] AND r.occurrence = this_occurrence
            AND r.kind = key[3];
        IF holds THEN
            RAISE EXCEPTION USING ERRCODE = '23505', MESSAGE = format('step %s is recorded already', key[2]),
                HINT = 'Call zart_record_step once, as the last statement of the step''s one transaction.';
        END IF;
        RAISE EXCEPTION USING ERRCODE = '55000',
            MESSAGE = format('attempt %s of step %s is over, and records nothing any more', this_attempt, key[2]),
            HINT = 'Roll back. The token is that of the attempt in which zart.step_context() was asked for it.';
    END IF;
END $$;

CREATE OR REPLACE VIEW {schema}.zart_v_steps AS
SELECT
    e.id AS execution_id, s.run_id, s.seq,
    s.path || s.name || CASE WHEN s.occurrence > 1 THEN '#' || s.occurrence ELSE '' END AS key,
    s.name, s.kind, s.state, s.attempts,
    s.result::jsonb AS result,
    s.failure::jsonb AS failure,
    s.started_at, s.finished_at,
    s.progress::jsonb AS progress
FROM {schema}.zart_executions e JOIN {schema}.zart_steps s ON s.run_id = e.run_id;
