-- Pruning: what ended long ago is taken away in small transactions, each of this one statement.
--
-- The walk goes through the executions in the order of their creation, a page at a time, and passes what it does not
-- want. What ended before a time was created before it, so it needs no index that the ends of executions would have to
-- write. Each page begins behind the last one's end, so nobody reads twice what was passed, or what is gone and was not
-- vacuumed so far.
--
-- An execution goes with all that belongs to it or stays as it is: whoever is interrupted leaves nothing half done, and
-- the next one goes on.

-- The times that a walk keeps to from its beginning to its end.
-- name: cutoffs
SELECT {schema}.zart_now() - %(older_than)s::interval, {schema}.zart_now() - %(keep_ids)s::interval;

-- Prunes the next page. Locks: executions, none waited for, then runs, steps, events; another pruner takes what it finds
-- free. What it decides from is read again in the newest version of the row that it locks; the rest can only have come
-- nearer to its end: no execution that has ended gives work away, and what a parent has heard it does not forget.
-- A scheduled step that is still done needs the journal of its run. A child's end stands in its parent's journal, by the
-- very statement that ended it; one that does not stand there is kept, whatever the reason.
-- Records are counted, so that a page of long histories is cut short. The disk is not waited for: what a crash of the
-- server undoes is done again. Parameters stand beside plain numbers, and looks at other tables in subqueries of their own,
-- so that the plan looks each row up by its key, whatever the planner thinks of their number.
-- Returns how many are gone, of how many the id alone is left, their records, and the end of the page: null at the end of
-- the walk.
-- name: prune
WITH page AS MATERIALIZED (
    SELECT p.id, p.created_at, p.run_id, p.wanted
    FROM (
        SELECT e.id, e.created_at, e.run_id,
            e.status = ANY (%(statuses)s::text[]) AND e.finished_at < %(before)s::timestamptz
                AND (e.pruned_at IS NULL OR e.finished_at < %(ids_before)s::timestamptz) AS wanted
        FROM {schema}.zart_executions e
        WHERE e.created_at < %(before)s::timestamptz
            AND (e.created_at, e.id) > (coalesce(%(after_at)s::timestamptz, '-infinity'), %(after_id)s::text)
        ORDER BY e.created_at, e.id LIMIT 1000
    ) p
    ORDER BY p.created_at, p.id LIMIT (SELECT %(batch)s::int)
), weighed AS MATERIALIZED (
    SELECT p.id, p.created_at, p.wanted,
        sum(CASE WHEN p.wanted
            THEN (SELECT count(*) FROM {schema}.zart_steps s WHERE s.run_id = p.run_id) ELSE 0 END)
            OVER (ORDER BY p.created_at, p.id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before_it
    FROM page p
), taken AS MATERIALIZED (
    SELECT w.id, w.created_at, w.wanted FROM weighed w WHERE coalesce(w.before_it, 0) < %(records)s::int
), locked AS MATERIALIZED (
    SELECT e.id, e.run_id, e.pruned_at IS NULL AS whole, e.finished_at < %(ids_before)s::timestamptz AS goes
    FROM {schema}.zart_executions e
    WHERE e.id = ANY (ARRAY(SELECT k.id FROM taken k WHERE k.wanted))
        AND e.status = ANY (%(statuses)s::text[]) AND e.finished_at < %(before)s::timestamptz
        AND (e.pruned_at IS NULL OR e.finished_at < %(ids_before)s::timestamptz)
        AND (
            SELECT true
            FROM (SELECT e.run_id AS id UNION ALL
                    SELECT r.run_id FROM {schema}.zart_execution_runs r WHERE r.execution_id = e.id) run
                CROSS JOIN LATERAL (
                    SELECT s.task_id FROM {schema}.zart_steps s
                    WHERE s.run_id = run.id AND s.kind = 'step' AND s.task_id IS NOT NULL OFFSET 0
                ) s
            WHERE (SELECT t.id FROM {schema}.zart_tasks t WHERE t.id = s.task_id) IS NOT NULL
            LIMIT 1
        ) IS NULL
        AND (
            SELECT true FROM {schema}.zart_steps s
            WHERE s.run_id = e.parent_run AND s.path = e.parent_path AND s.name = e.parent_name
                AND s.occurrence = e.parent_occurrence AND s.kind = 'child'
                AND s.state IN ('started', 'running', 'waiting')
        ) IS NULL
    ORDER BY e.id
    FOR UPDATE OF e SKIP LOCKED
), run AS MATERIALIZED (
    SELECT l.run_id AS id FROM locked l WHERE l.whole
    UNION
    SELECT r.run_id FROM {schema}.zart_execution_runs r
    WHERE r.execution_id = ANY (ARRAY(SELECT l.id FROM locked l WHERE l.whole))
), gone AS (
    DELETE FROM {schema}.zart_executions e
    WHERE e.id = ANY (ARRAY(SELECT l.id FROM locked l WHERE l.goes))
    RETURNING 1
), emptied AS (
    UPDATE {schema}.zart_executions e
    SET pruned_at = {schema}.zart_now(), payload_hash = {schema}.zart_payload_hash(e.payload), payload = NULL,
        result = NULL, failure = NULL
    WHERE e.id = ANY (ARRAY(SELECT l.id FROM locked l WHERE NOT l.goes))
    RETURNING 1
), runs AS (
    DELETE FROM {schema}.zart_execution_runs r
    WHERE r.execution_id = ANY (ARRAY(SELECT l.id FROM locked l WHERE l.whole))
        AND (SELECT count(*) FROM gone) + (SELECT count(*) FROM emptied) > 0
    RETURNING 1
), records AS (
    DELETE FROM {schema}.zart_steps s
    WHERE s.run_id = ANY (ARRAY(SELECT r.id FROM run r)) AND (SELECT count(*) FROM runs) >= 0
    RETURNING 1
), attempts AS (
    DELETE FROM {schema}.zart_step_attempts a
    WHERE a.run_id = ANY (ARRAY(SELECT r.id FROM run r)) AND (SELECT count(*) FROM records) >= 0
    RETURNING 1
), own_records AS (
    DELETE FROM {schema}.zart_recorded_steps o
    WHERE o.run_id = ANY (ARRAY(SELECT r.id FROM run r)) AND (SELECT count(*) FROM attempts) >= 0
    RETURNING 1
), consumed AS (
    DELETE FROM {schema}.zart_events v
    WHERE v.execution_id = ANY (ARRAY(SELECT l.id FROM locked l WHERE l.whole)) AND v.consumed_at IS NOT NULL
        AND (SELECT count(*) FROM own_records) >= 0
    RETURNING 1
), unconsumed AS (
    DELETE FROM {schema}.zart_events v
    WHERE v.execution_id = ANY (ARRAY(SELECT l.id FROM locked l WHERE l.whole)) AND v.consumed_at IS NULL
        AND (SELECT count(*) FROM consumed) >= 0
    RETURNING 1
), notes AS (
    DELETE FROM {schema}.zart_history h
    WHERE h.execution_id = ANY (ARRAY(SELECT l.id FROM locked l WHERE l.whole))
        AND (SELECT count(*) FROM unconsumed) >= 0
    RETURNING 1
)
SELECT (SELECT count(*) FROM gone), (SELECT count(*) FROM emptied), (SELECT count(*) FROM records),
    {time:last.created_at}, last.id
FROM (SELECT set_config('synchronous_commit', 'off', true)) AS always LEFT JOIN (
    SELECT k.created_at, k.id FROM taken k ORDER BY k.created_at DESC, k.id DESC LIMIT 1
) last ON true;

-- What the statement above would do with a page, and how many records stand in the way of a larger one: nothing is
-- locked or changed.
-- name: count_prunable
WITH page AS MATERIALIZED (
    SELECT p.* FROM (
        SELECT e.id, e.created_at, e.run_id, e.finished_at, e.parent_run, e.parent_path, e.parent_name, e.parent_occurrence,
            e.status = ANY (%(statuses)s::text[]) AND e.finished_at < %(before)s::timestamptz
                AND (e.pruned_at IS NULL OR e.finished_at < %(ids_before)s::timestamptz) AS wanted
        FROM {schema}.zart_executions e
        WHERE e.created_at < %(before)s::timestamptz
            AND (e.created_at, e.id) > (coalesce(%(after_at)s::timestamptz, '-infinity'), %(after_id)s::text)
        ORDER BY e.created_at, e.id LIMIT 250
    ) p
), found AS MATERIALIZED (
    SELECT e.finished_at < %(ids_before)s::timestamptz AS goes,
        (SELECT count(*) FROM {schema}.zart_steps s WHERE s.run_id = e.run_id) AS records
    FROM page e
    WHERE e.wanted
        AND (
            SELECT true
            FROM (SELECT e.run_id AS id UNION ALL
                    SELECT r.run_id FROM {schema}.zart_execution_runs r WHERE r.execution_id = e.id) run
                CROSS JOIN LATERAL (
                    SELECT s.task_id FROM {schema}.zart_steps s
                    WHERE s.run_id = run.id AND s.kind = 'step' AND s.task_id IS NOT NULL OFFSET 0
                ) s
            WHERE (SELECT t.id FROM {schema}.zart_tasks t WHERE t.id = s.task_id) IS NOT NULL
            LIMIT 1
        ) IS NULL
        AND (
            SELECT true FROM {schema}.zart_steps s
            WHERE s.run_id = e.parent_run AND s.path = e.parent_path AND s.name = e.parent_name
                AND s.occurrence = e.parent_occurrence AND s.kind = 'child'
                AND s.state IN ('started', 'running', 'waiting')
        ) IS NULL
)
SELECT (SELECT count(*) FROM found WHERE goes), (SELECT count(*) FROM found WHERE NOT goes),
    (SELECT coalesce(sum(records), 0)::bigint FROM found), {time:last.created_at}, last.id
FROM (SELECT) AS always LEFT JOIN (
    SELECT p.created_at, p.id FROM page p ORDER BY p.created_at DESC, p.id DESC LIMIT 1
) last ON true;

-- Whether a duty is this worker's now: then nobody else's for as long as `every`. By the real clock.
-- name: take_turn
INSERT INTO {schema}.zart_duties AS d (name, due_at) VALUES (%(duty)s::text, clock_timestamp() + %(every)s::interval)
ON CONFLICT (name) DO UPDATE SET due_at = excluded.due_at WHERE d.due_at <= clock_timestamp()
RETURNING d.name;
