-- The feed, first: L, the last position that was given out, and whether reading is right here.
--
-- A sequence that was never called has is_called = false, and its last_value is still free.
SELECT last_value - CASE WHEN is_called THEN 0 ELSE 1 END,
       pg_is_in_recovery(),
       current_setting('transaction_isolation'),
       (SELECT seqcache FROM pg_sequence
        WHERE seqrelid = 'eventlogs_event_position_seq'::regclass),
       EXISTS (
           SELECT FROM pg_trigger
           WHERE tgrelid = 'eventlogs_event'::regclass
             AND tgname = 'eventlogs_event_fence' AND tgenabled = 'A')
FROM eventlogs_event_position_seq
