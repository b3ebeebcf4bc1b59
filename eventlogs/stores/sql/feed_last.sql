-- The feed, first: L, the last position that was assigned, and whether reading here could
-- skip events.
--
-- The sequence is looked up from the table each time, because one alias may go through several
-- schemas (tenants). No row: the table has none. pg_sequence_last_value is NULL for a sequence that
-- was never called and, in PostgreSQL 17 and newer, for a role that may not read it: so the
-- privilege is looked up as well.
--
-- It is run for each look at the feed, so rare cases get a cheap test here: if there ever was a
-- subscription, or if Citus is installed, another statement finds out whether that matters. It is
-- prepared, so the table is looked up when it is run (a text is cast to regclass then, a literal
-- only when it is parsed).
SELECT CASE WHEN has_sequence_privilege(seqrelid, 'SELECT')
            THEN coalesce(pg_sequence_last_value(seqrelid), 0) END,
       pg_is_in_recovery(),
       current_setting('transaction_isolation'),
       seqcache = 1 AND seqincrement > 0 AND seqmin > 0 AND NOT seqcycle,
       EXISTS (
           SELECT FROM pg_trigger
           WHERE tgrelid = 'eventlogs_event'::text::regclass
             AND tgname = 'eventlogs_event_fence' AND tgenabled = 'A'),
       pg_relation_size('pg_subscription_rel') > 0,
       to_regclass('pg_dist_partition') IS NOT NULL
FROM pg_sequence
WHERE seqrelid = (SELECT pg_get_serial_sequence('eventlogs_event', 'position')::regclass)
