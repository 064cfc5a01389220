-- What `zart doctor` asks of the server itself. Each is a look of its own: a role that may not take one is told so, and
-- the others are taken.

-- As a session of this role in this database begins with them, whatever this one has set since.
-- name: settings
SELECT s.name, CASE WHEN s.reset_val = '0' THEN '0' ELSE s.reset_val || coalesce(' ' || s.unit, '') END
FROM pg_settings s WHERE s.name = ANY (%(names)s::text[]);

-- name: standing
SELECT current_setting('server_version'), current_setting('server_version_num')::int, pg_is_in_recovery(),
    current_database(), current_user::text;

-- The server's real clock, and by how much durable time differs from it.
-- name: clocks
SELECT {time:c.now}, {schema}.zart_now() - statement_timestamp() FROM (SELECT clock_timestamp() AS now) c;

-- name: indexes
SELECT c.relname, i.indisvalid
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s::text AND starts_with(c.relname, 'zart_');

-- name: disabled_triggers
SELECT t.tgname, c.relname
FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s::text AND starts_with(t.tgname, 'zart_') AND t.tgenabled NOT IN ('O', 'A');

-- What this role may do with each table.
-- name: privileges
SELECT c.relname, has_schema_privilege(n.oid, 'USAGE'), has_table_privilege(c.oid, 'SELECT'),
    has_table_privilege(c.oid, 'INSERT') AND has_table_privilege(c.oid, 'UPDATE') AND has_table_privilege(c.oid, 'DELETE')
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s::text AND c.relkind = 'r' AND starts_with(c.relname, 'zart_')
    AND c.relname <> 'zart_migrations'
ORDER BY c.relname;

-- name: connections
SELECT count(*), current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
FROM pg_stat_activity a WHERE a.backend_type = 'client backend';

-- Sessions of this database that are in a transaction, the longest first. Of other roles' sessions an unprivileged role
-- sees no times.
-- name: transactions
SELECT a.pid, a.application_name, a.usename::text, a.state, clock_timestamp() - a.xact_start,
    a.backend_xmin IS NOT NULL OR a.backend_xid IS NOT NULL
FROM pg_stat_activity a
WHERE a.datname = current_database() AND a.pid <> pg_backend_pid() AND a.backend_type = 'client backend'
    AND a.xact_start IS NOT NULL
ORDER BY a.xact_start LIMIT 10;

-- name: prepared
SELECT p.gid, p.owner::text, clock_timestamp() - p.prepared
FROM pg_prepared_xacts p WHERE p.database = current_database() ORDER BY p.prepared;

-- Who else keeps old rows: replication slots, and standbys that feed back what they look at; by transactions since.
-- name: horizons
SELECT 'replication slot ' || s.slot_name, s.active, greatest(age(s.xmin), age(s.catalog_xmin))
FROM pg_replication_slots s WHERE s.xmin IS NOT NULL OR s.catalog_xmin IS NOT NULL
UNION ALL
SELECT 'standby ' || r.application_name, true, age(r.backend_xmin)
FROM pg_stat_replication r WHERE r.backend_xmin IS NOT NULL;

-- name: tables
SELECT t.relname, t.n_live_tup, t.n_dead_tup, pg_relation_size(t.relid),
    clock_timestamp() - greatest(t.last_autovacuum, t.last_vacuum)
FROM pg_stat_all_tables t WHERE t.schemaname = %(schema)s::text AND starts_with(t.relname, 'zart_')
ORDER BY t.n_dead_tup DESC;

-- How far the oldest row is from the present, in transactions and in groups of transactions that lock one row.
-- name: ages
SELECT age(d.datfrozenxid), mxid_age(d.datminmxid) FROM pg_database d WHERE d.datname = current_database();

-- name: notification_queue
SELECT pg_notification_queue_usage();

-- News that no worker has applied so far: 2,001 stands for more. The oldest by index: see `look`.
-- name: wakeups
SELECT (SELECT count(*) FROM (SELECT FROM {schema}.zart_wakeups w ORDER BY w.id LIMIT 2001) part),
    (SELECT {schema}.zart_now() - w.created_at FROM {schema}.zart_wakeups w ORDER BY w.id LIMIT 1);

-- Work whose holder has no row any more.
-- name: orphans
SELECT t.owner, count(*) FROM {schema}.zart_tasks t
WHERE t.owner IS NOT NULL AND NOT EXISTS (SELECT FROM {schema}.zart_workers w WHERE w.worker_id = t.owner)
GROUP BY t.owner ORDER BY t.owner;

-- The largest payloads and results of executions, from 400 pages of them; sizes as they are stored decide which are read
-- in whole. The limit is of what was given, and what is encrypted takes a third more.
-- name: large_executions
SELECT e.id, e.name, greatest(
    octet_length(e.payload::text) * CASE WHEN starts_with(e.payload::text, ' {"zart":') THEN 0.75 ELSE 1 END,
    octet_length(e.result::text) * CASE WHEN starts_with(e.result::text, ' {"zart":') THEN 0.75 ELSE 1 END)::int
FROM (
    SELECT s.id FROM {schema}.zart_executions s TABLESAMPLE SYSTEM (
        least(100, 400 * 819200.0 / greatest(pg_relation_size($zart${schema}.zart_executions$zart$), 1)))
    WHERE greatest(pg_column_size(s.payload), pg_column_size(s.result)) > 65536
    ORDER BY greatest(pg_column_size(s.payload), pg_column_size(s.result)) DESC LIMIT 10
) large CROSS JOIN LATERAL (SELECT * FROM {schema}.zart_executions e WHERE e.id = large.id OFFSET 0) e
ORDER BY 3 DESC;

-- The same of steps.
-- name: large_steps
SELECT large.name,
    (octet_length(large.result::text) * CASE WHEN starts_with(large.result::text, ' {"zart":') THEN 0.75 ELSE 1 END)::int
FROM (
    SELECT s.name, s.result FROM {schema}.zart_steps s TABLESAMPLE SYSTEM (
        least(100, 400 * 819200.0 / greatest(pg_relation_size($zart${schema}.zart_steps$zart$), 1)))
    WHERE pg_column_size(s.result) > 65536
    ORDER BY pg_column_size(s.result) DESC LIMIT 10
) large
ORDER BY 2 DESC;
