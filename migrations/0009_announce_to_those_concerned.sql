-- Work is announced to those who could do it, and no commit waits for another one's announcement.
--
-- PostgreSQL lets one transaction at a time commit with a notification: the others wait until the disk has taken it, one
-- after the other, instead of sharing that. So there is one on its way at a time, and who commits meanwhile sends none:
-- workers look again some milliseconds after a notification. The mark of one that is on its way is a lock that nobody
-- waits for. It is another one every 50 ms: a transaction that has its constraints checked early and then stays open
-- keeps the mark of one such moment, not the others' from being notified.

-- Of new work only workers hear who have registered its function. News for work that is there (zart_wakeups) are applied
-- by whichever worker comes first.
CREATE OR REPLACE FUNCTION {schema}.zart_announce() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    moment bigint;
BEGIN
    IF TG_TABLE_NAME = 'zart_tasks' THEN
        PERFORM FROM {schema}.zart_workers w WHERE w.idle AND NEW.lane = ANY (w.lanes);
    ELSE
        PERFORM FROM {schema}.zart_workers w WHERE w.idle;
    END IF;
    IF FOUND AND pg_catalog.pg_notification_queue_usage() < 0.5 THEN
        moment := extract(epoch FROM pg_catalog.clock_timestamp()) * 20;
        IF pg_catalog.pg_try_advisory_xact_lock(
            ('x' || substr(md5('zart_work_' || TG_TABLE_SCHEMA), 1, 8))::bit(32)::int, (moment & 2147483647)::int) THEN
            PERFORM pg_catalog.pg_notify('zart_work_' || substr(md5(TG_TABLE_SCHEMA), 1, 12), '');
        END IF;
    END IF;
    RETURN NULL;
END $$;
