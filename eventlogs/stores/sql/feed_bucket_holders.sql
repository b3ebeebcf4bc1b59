-- The transactions that have appended and are open: they have a lock on the table of counters until
-- they end. The position is that of a counter which they hold, if they have changed it (its xmax)
-- themselves; the id of a savepoint that was released leads to none, and then it is the lowest.
-- A prepared transaction has no process; its locks share the virtual id with the lock on its own id.
-- A query that this user may not see is shown as NULL.
-- Functions, not the views of the same content: beside a distributed table Citus asks the user, not
-- the view's owner, for the right to read pg_authid. And users in a subquery: it is run here, where
-- the users' numbers are known.
SELECT coalesce(own.number, lowest.number), holder.pid,
       clock_timestamp() - coalesce(activity.xact_start, prepared.prepared),
       coalesce(activity.owner, prepared.owner), activity.application_name,
       CASE WHEN holder.pid IS NULL THEN 'prepared' ELSE activity.state END,
       nullif(activity.query, '<insufficient privilege>'), prepared.gid, holder.virtualtransaction
FROM (
    SELECT DISTINCT pid, virtualtransaction
    FROM pg_locks
    WHERE locktype = 'relation'
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND relation = 'eventlogs_bucket'::regclass
      AND mode = 'RowExclusiveLock' AND granted
      AND pid IS DISTINCT FROM pg_backend_pid()
) AS holder
CROSS JOIN (SELECT min(number) AS number FROM eventlogs_bucket) AS lowest
CROSS JOIN LATERAL (
    SELECT min(counter.number) AS number
    FROM eventlogs_bucket AS counter
    JOIN pg_locks
      ON locktype = 'transactionid' AND granted AND mode = 'ExclusiveLock'
     AND transactionid = counter.xmax AND virtualtransaction = holder.virtualtransaction
) AS own
LEFT JOIN (
    SELECT pid, xact_start, application_name, state, query, pg_get_userbyid(usesysid)::text AS owner
    FROM pg_stat_get_activity(NULL)
) AS activity ON activity.pid = holder.pid
LEFT JOIN (
    SELECT transaction, gid, prepared, pg_get_userbyid(ownerid)::text AS owner
    FROM pg_prepared_xact()
) AS prepared
       ON holder.pid IS NULL
      AND EXISTS (
          SELECT FROM pg_locks AS id
          WHERE id.locktype = 'transactionid' AND id.pid IS NULL
            AND id.transactionid = prepared.transaction
            AND id.virtualtransaction = holder.virtualtransaction)
ORDER BY 1, holder.pid
