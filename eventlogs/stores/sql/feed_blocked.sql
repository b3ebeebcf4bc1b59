-- The transactions that other sessions wait for: for each, the number of those sessions, and the
-- time since which the first of them waits. A prepared transaction has no process; its locks, also
-- those of its savepoints, share the virtual id with the lock on its own id.
SELECT holder.pid, prepared.gid, count(DISTINCT waiter.pid), min(waiter.waitstart)
FROM pg_locks AS waiter
JOIN pg_locks AS holder
  ON holder.locktype = 'transactionid' AND holder.granted
 AND holder.transactionid = waiter.transactionid
LEFT JOIN pg_prepared_xacts AS prepared
       ON holder.pid IS NULL
      AND EXISTS (
          SELECT FROM pg_locks AS own
          WHERE own.locktype = 'transactionid' AND own.pid IS NULL
            AND own.transactionid = prepared.transaction
            AND own.virtualtransaction = holder.virtualtransaction)
WHERE waiter.locktype = 'transactionid' AND NOT waiter.granted AND waiter.waitstart IS NOT NULL
GROUP BY holder.pid, prepared.gid
