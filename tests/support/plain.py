"""What of a user's stands in plain in the database of a test: nothing may, in the mode `encrypted`.

Left out is what is plain by design (docs/decisions/0042): what SQL functions were given, and the reasons of people.
SQL gives no digest for an input and no dedup key of its own for an event; a cancel that ends an execution by itself
writes a failure that says who and why.
"""

import psycopg

_ENVELOPE = """ LIKE ' {"zart":1,%%'"""
_CANCELLED = "'zart.errors.ExecutionCancelled'"

LOOK = f"""
    WITH by_sql AS (SELECT e.id, e.payload::text FROM zart_executions e WHERE e.digest IS NULL),
    stored AS (
        SELECT 'the input of execution ' || e.id AS what, e.payload::text AS value
        FROM zart_executions e WHERE e.digest IS NOT NULL
        UNION ALL SELECT 'the result of execution ' || e.id, e.result::text FROM zart_executions e
        UNION ALL SELECT 'the failure of execution ' || e.id, e.failure::text FROM zart_executions e
        UNION ALL SELECT 'the input of a run of ' || r.execution_id, r.payload::text FROM zart_execution_runs r
            WHERE NOT EXISTS (SELECT FROM by_sql b WHERE b.id = r.execution_id AND b.payload = r.payload::text)
        UNION ALL SELECT 'the result of a run of ' || r.execution_id, r.result::text FROM zart_execution_runs r
        UNION ALL SELECT 'the failure of a run of ' || r.execution_id, r.failure::text FROM zart_execution_runs r
        UNION ALL SELECT 'the result of ' || s.kind || ' ' || s.name, s.result::text FROM zart_steps s
        UNION ALL SELECT 'the failure of ' || s.kind || ' ' || s.name, s.failure::text FROM zart_steps s
        UNION ALL SELECT 'the progress of ' || s.kind || ' ' || s.name, s.progress::text FROM zart_steps s
        UNION ALL SELECT 'the data of ' || s.kind || ' ' || s.name, s.data::text FROM zart_steps s
        UNION ALL SELECT 'the arguments of ' || s.kind || ' ' || s.name, s.arguments FROM zart_steps s
        UNION ALL SELECT 'the input of ' || s.kind || ' ' || s.name, s.input::text FROM zart_steps s
            WHERE s.kind <> 'child'
        UNION ALL SELECT 'the failure of an attempt of ' || a.kind || ' ' || a.name, a.failure::text
            FROM zart_step_attempts a
        UNION ALL SELECT 'the event ' || v.name, v.payload::text FROM zart_events v WHERE v.dedup LIKE '~%%'
        UNION ALL SELECT 'the note ' || h.what, h.note FROM zart_history h
            WHERE h.author IS NULL AND h.what NOT IN ('takeover', 'unpaused', 'blocked')
    )
    SELECT what, value FROM stored
    WHERE NOT value {_ENVELOPE}
        AND NOT (what LIKE 'the failure of %%' AND value LIKE '{{"type":{_CANCELLED.replace("'", '"')},%%')
    UNION ALL
    SELECT 'the digest of the input of ' || e.id, encode(e.digest, 'hex') FROM zart_executions e
    WHERE get_byte(e.digest, 0) <> 2
    UNION ALL
    SELECT 'the digest of ' || s.kind || ' ' || s.name, encode(s.digest, 'hex') FROM zart_steps s
    WHERE get_byte(s.digest, 0) <> 2
    LIMIT %s
"""


def plain_values(dsn: str, most: int = 10) -> list[str]:
    """What stands there in plain, and what it is: `most` of it; nothing in a database that was not migrated."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        ((there,),) = connection.execute("SELECT to_regclass('zart_step_attempts') IS NOT NULL").fetchall()
        if not there:
            return []
        found = connection.execute(LOOK.encode(), (most,)).fetchall()
        return [f"{what}: {value[:120]}" for what, value in found]
