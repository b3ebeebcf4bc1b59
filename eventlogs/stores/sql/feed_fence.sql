-- The feed, second: m, the lowest fence that another transaction holds for this table.
--
-- The trigger eventlogs_event_fence takes a shared lock on (1 + mod(oid, 65534)) << 48 | position,
-- where oid is the table's. pg_locks shows the high half of such a key as classid, the low one as
-- objid, and 1 as objsubid; a key of two integers has 2 there
-- (https://www.postgresql.org/docs/current/view-pg-locks.html). Fences of another table with the
-- same number count as well: they can make m lower, never higher. A transaction that is prepared
-- has no pid and counts. Our own fence does not count: we see our own events.
--
-- The oid is looked up each time that this statement is run (a text is cast to regclass then, a
-- literal only when it is parsed): it is prepared, and another table may take the table's name.
SELECT min((classid::bigint & 65535) << 32 | objid::bigint)
FROM pg_locks
WHERE locktype = 'advisory'
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND classid::bigint >> 16 = (
      SELECT 1 + mod('eventlogs_event'::text::regclass::oid::bigint, 65534))
  AND objsubid = 1
  AND mode = 'ShareLock'
  AND pid IS DISTINCT FROM pg_backend_pid()
