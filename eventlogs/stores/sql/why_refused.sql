-- The facts behind a refused append: the append that holds its key, the version of its log, and the
-- position of the log's last event. The last column is whether the log is chained.
SELECT key.log_id, key.first_index, key.count, key.fingerprint,
       (SELECT position FROM eventlogs_event AS event
        WHERE event.log_id = key.log_id AND event.index = key.first_index + key.count - 1),
       log.log_type, log.version,
       (SELECT position FROM eventlogs_event AS event
        WHERE event.log_id = log.id AND event.index = log.version - 1),
       current_setting('transaction_isolation'), log.head IS NOT NULL
FROM (SELECT) AS nothing
LEFT JOIN eventlogs_idempotencykey AS key
       ON key.log_type = %(log_type)s::text AND key.key = %(key)s::text
LEFT JOIN eventlogs_eventlog AS log
       ON log.id = %(log)s::uuid
