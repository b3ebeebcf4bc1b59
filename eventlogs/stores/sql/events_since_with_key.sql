-- The newest events of a log, and the append that holds an idempotency key: see events_since.sql
-- and why_refused.sql. There is one row at least, without an event where there is none.
--
-- Right because: both are of one snapshot. If it has the events of the key's append, it has the key.
SELECT key.log_id, key.first_index, key.count, key.fingerprint,
       (SELECT position FROM eventlogs_event AS last
        WHERE last.log_id = key.log_id AND last.index = key.first_index + key.count - 1),
       event.*
FROM (SELECT) AS nothing
LEFT JOIN eventlogs_idempotencykey AS key
       ON key.log_type = %(log_type)s::text AND key.key = %(key)s::text
LEFT JOIN (
    SELECT {stored}
    FROM eventlogs_event
    WHERE log_id = %(log)s::uuid
      AND index >= %(start)s::integer
      AND index < %(end)s::integer) AS event
       ON TRUE
ORDER BY event.index
