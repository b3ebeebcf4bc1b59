-- The transactions that hold the feed back: their fence is below the last assigned position.
-- A prepared transaction is found by the lock on its own id, which it also keeps.
-- A query that this user may not see is shown as "<insufficient privilege>".
SELECT fence.position, fence.pid,
       clock_timestamp() - coalesce(activity.xact_start, prepared.prepared),
       coalesce(activity.usename, prepared.owner)::text, activity.application_name,
       CASE WHEN fence.pid IS NULL THEN 'prepared' ELSE activity.state END,
       activity.query, prepared.gid
FROM (
    SELECT min((classid::bigint & 65535) << 32 | objid::bigint) AS position,
           pid, virtualtransaction
    FROM pg_locks
    WHERE locktype = 'advisory'
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND classid::bigint >> 16 = 1 + mod('eventlogs_event'::regclass::oid::bigint, 65534)
      AND objsubid = 1
      AND mode = 'ShareLock'
      AND pid IS DISTINCT FROM pg_backend_pid()
    GROUP BY pid, virtualtransaction
) AS fence
LEFT JOIN pg_stat_activity AS activity ON activity.pid = fence.pid
LEFT JOIN pg_prepared_xacts AS prepared
       ON fence.pid IS NULL
      AND EXISTS (
          SELECT FROM pg_locks AS own
          WHERE own.locktype = 'transactionid' AND own.pid IS NULL
            AND own.transactionid = prepared.transaction
            AND own.virtualtransaction = fence.virtualtransaction)
WHERE fence.position < pg_sequence_last_value(
    pg_get_serial_sequence('eventlogs_event', 'position')::regclass)
ORDER BY fence.position, fence.pid
