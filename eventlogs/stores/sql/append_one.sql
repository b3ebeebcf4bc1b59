-- Append one event, without an idempotency key.
--
-- Right because: the UPDATE takes the log's row lock. Under READ COMMITTED a statement that
-- waited for it re-evaluates its WHERE on the newest version of the row
-- (https://www.postgresql.org/docs/current/transaction-iso.html#XACT-READ-COMMITTED), so of
-- two that expect version 3, one finds 4 and updates nothing, and inserts nothing. An index
-- is a version that was held under the lock: no two are the same, and none is left out.
-- updated_at is the last event's recorded_at: time does not run backwards within a log.
--
-- An expected position says which event the log's last one is: after a restore that lost events,
-- the log may be at the expected version with others. It is looked up in the statement's
-- snapshot, which is right under the lock as well: an event never changes, and if the snapshot is
-- too old to show the event, no row is updated and the caller looks again.
-- EXISTS, because the planner then reckons with one row: on a partitioned table, a comparison with
-- a sub-select would look so expensive that PostgreSQL planned the statement anew for each append.
WITH bumped AS (
    UPDATE eventlogs_eventlog
    SET version = version + 1,
        updated_at = greatest(clock_timestamp(), updated_at)  --unchained
        --chained: (updated_at, head) = (
        --chained:     SELECT recorded_at, CASE WHEN head IS NOT NULL THEN {digest} END
        --chained:     FROM (SELECT head, greatest(clock_timestamp(), updated_at) AS recorded_at,
        --chained:                  version AS index, NULL::text AS key, {one_event}) AS link)
    WHERE id = %(log)s::uuid
      AND log_type = %(log_type)s::text
      AND version = coalesce(%(expected)s::integer, version)
      AND version < 2147483647
      AND head IS NULL  --unchained
      AND (%(position)s::bigint IS NULL OR EXISTS (
          SELECT FROM eventlogs_event
          WHERE log_id = %(log)s::uuid AND index = %(expected)s::integer - 1
            AND position = %(position)s::bigint))
    RETURNING version, updated_at
    --chained: , head
    --buckets: , eventlogs_take_positions(%(log)s::uuid, 1) AS taken
)
INSERT INTO eventlogs_event ({inserted})
SELECT
       --buckets: taken,
       %(log_type)s::text, %(log)s::uuid, version - 1, %(type)s::text,
       %(schema_version)s::integer, %(data)s::jsonb, %(metadata)s::jsonb, NULL, updated_at
       --chained: , head
FROM bumped
RETURNING position::bigint, (index + 1)::integer
