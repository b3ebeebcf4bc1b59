-- The feed, first: L, the last position that was given out, and whether reading is right here.
--
-- The sequence is looked up from the table each time, because one alias may go through several
-- schemas (tenants). pg_sequence_last_value is NULL for a sequence that was never called and, in
-- PostgreSQL 17 and newer, for a role that may not read it: hence the question.
--
-- A table that a subscription fills gets rows that fire no statement trigger, at positions that
-- another server has given out (https://www.postgresql.org/docs/current/logical-replication.html).
SELECT CASE WHEN has_sequence_privilege(sequence, 'SELECT')
            THEN coalesce(pg_sequence_last_value(sequence), 0) END,
       pg_is_in_recovery(),
       current_setting('transaction_isolation'),
       (SELECT seqcache = 1 AND seqincrement > 0 AND seqmin > 0 AND NOT seqcycle
        FROM pg_sequence WHERE seqrelid = sequence),
       EXISTS (
           SELECT FROM pg_trigger
           WHERE tgrelid = 'eventlogs_event'::regclass
             AND tgname = 'eventlogs_event_fence' AND tgenabled = 'A'),
       EXISTS (
           SELECT FROM pg_subscription_rel
           WHERE srrelid = 'eventlogs_event'::regclass
              OR srrelid IN (SELECT relid FROM pg_partition_tree('eventlogs_event'))),
       to_regclass('pg_dist_partition') IS NOT NULL
FROM (
    SELECT pg_get_serial_sequence('eventlogs_event', 'position')::regclass AS sequence OFFSET 0
) AS events
