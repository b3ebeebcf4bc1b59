-- Lock a log for a retry of execute: first the place in the queue, then the row.
--
-- Right because of the row's lock alone, which every append takes as well. The queue, an advisory
-- lock, makes it fair: those who wait for an advisory lock get it in the order in which they came.
-- Those who wait for a row that is updated each time do not: they wait for its old version, follow
-- it to the newest one, and may find there others who came later.
--
-- The queue causes no deadlock: this is the first statement of its transaction, so a transaction
-- that waits in the queue holds no lock that another one could wait for. Hence inside of a caller's
-- transaction, which may hold the row already, lock_log.sql is used. Two logs whose ids have one
-- hash share a queue, as does a project's own lock on the same two numbers. The feed's fences are
-- locks on one number.
WITH queue AS MATERIALIZED (
    SELECT pg_advisory_xact_lock(
        'eventlogs_eventlog'::regclass::oid::integer, hashtext(%(log)s::uuid::text))
)
SELECT version
FROM eventlogs_eventlog AS log, queue
WHERE id = %(log)s::uuid
FOR NO KEY UPDATE OF log
