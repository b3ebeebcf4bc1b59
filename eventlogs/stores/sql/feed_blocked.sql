-- Who waits for other transactions to end, by the transaction: for each, how many sessions, and
-- since when the first of them. A prepared transaction has no process; its locks share the virtual
-- id with the lock on its own id, also those of its savepoints.
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
