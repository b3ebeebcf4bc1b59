-- Append any number of events with an idempotency key.
--
-- Right because: `locked` takes the log's row lock, and finds no row where the version is not
-- the expected one, or the position is not (see append_one.sql). Only then is the key claimed;
-- ON CONFLICT waits for a racing transaction that claims the same key, and finds no row once that
-- has committed.
-- Everything further comes from those rows, so that with either missing nothing is written.
-- The parts share one snapshot and hand rows to one another only by RETURNING
-- (https://www.postgresql.org/docs/current/queries-with.html#QUERIES-WITH-MODIFYING).
WITH locked AS MATERIALIZED (
    SELECT id, version
    FROM eventlogs_eventlog
    WHERE id = %(log)s::uuid
      AND log_type = %(log_type)s::text
      AND version = coalesce(%(expected)s::integer, version)
      AND version <= 2147483647 - %(count)s::integer
      AND head IS NULL
      AND (%(position)s::bigint IS NULL OR EXISTS (
          SELECT FROM eventlogs_event
          WHERE log_id = %(log)s::uuid AND index = %(expected)s::integer - 1
            AND position = %(position)s::bigint))
    FOR NO KEY UPDATE
), claimed AS (
    INSERT INTO eventlogs_idempotencykey
        (log_type, key, log_id, first_index, count, fingerprint, created_at)
    SELECT %(log_type)s::text, %(key)s::text, id, version, %(count)s::integer, %(fingerprint)s::bytea, clock_timestamp()
    FROM locked
    ON CONFLICT (log_type, key) DO NOTHING
    RETURNING first_index
), bumped AS (
    UPDATE eventlogs_eventlog AS log
    SET version = log.version + %(count)s::integer, updated_at = greatest(clock_timestamp(), updated_at)
    FROM locked
    WHERE log.id = locked.id
      AND EXISTS (SELECT FROM claimed)
    RETURNING locked.version AS first_index, log.updated_at
    --buckets: , eventlogs_take_positions(%(log)s::uuid, %(count)s::integer) AS taken
), inserted AS (
    INSERT INTO eventlogs_event ({inserted})
    SELECT
           --buckets: taken + (number - 1) * 64,
           %(log_type)s::text, %(log)s::uuid, first_index + number - 1, item ->> 0,
           (item -> 1)::integer, item -> 2, %(metadata)s::jsonb, %(key)s::text, updated_at
    FROM bumped, jsonb_array_elements(%(events)s::jsonb) WITH ORDINALITY AS batch (item, number)
    ORDER BY number
    RETURNING position, index
)
SELECT max(position)::bigint, (max(index) + 1)::integer FROM inserted HAVING count(*) > 0
