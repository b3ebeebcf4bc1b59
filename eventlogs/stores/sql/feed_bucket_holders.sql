-- The transactions that hold a counter, which the feed waits for: the one that has changed the row
-- (its xmax) is open. It, or its savepoint, has a lock on its own id. A prepared transaction has no
-- process; its locks, also those of its savepoints, share a virtual id.
-- A query that this user may not see is shown as NULL.
SELECT holder.number, holder.pid,
       clock_timestamp() - coalesce(activity.xact_start, prepared.prepared),
       coalesce(activity.usename, prepared.owner)::text, activity.application_name,
       CASE WHEN holder.pid IS NULL THEN 'prepared' ELSE activity.state END,
       nullif(activity.query, '<insufficient privilege>'), prepared.gid
FROM (
    SELECT min(number) AS number, pid, virtualtransaction
    FROM eventlogs_bucket
    JOIN pg_locks
      ON locktype = 'transactionid' AND granted AND mode = 'ExclusiveLock'
     AND transactionid = eventlogs_bucket.xmax
    WHERE pid IS DISTINCT FROM pg_backend_pid()
      AND number < (SELECT max(number) FROM eventlogs_bucket)
    GROUP BY pid, virtualtransaction
) AS holder
LEFT JOIN pg_stat_activity AS activity ON activity.pid = holder.pid
LEFT JOIN pg_prepared_xacts AS prepared
       ON holder.pid IS NULL
      AND EXISTS (
          SELECT FROM pg_locks AS own
          WHERE own.locktype = 'transactionid' AND own.pid IS NULL
            AND own.transactionid = prepared.transaction
            AND own.virtualtransaction = holder.virtualtransaction)
ORDER BY holder.number, holder.pid
