-- Append any number of events to a log, with or without an idempotency key, and chain them.
--
-- Right because: see append_with_key.sql. In addition, `locked` reads the log's head, the digest of
-- its last event. Every statement that appends takes the row's lock first and writes the head, so
-- under the lock the head is that of the newest version of the row: no other event comes between it
-- and the events of this batch. A log whose head is NULL is not chained: its events get no digest.
WITH locked AS MATERIALIZED (
    SELECT id, version, head, updated_at
    FROM eventlogs_eventlog
    WHERE id = %(log)s::uuid
      AND log_type = %(log_type)s::text
      AND version = coalesce(%(expected)s::integer, version)
      AND version <= 2147483647 - %(count)s::integer
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
    WHERE %(key)s::text IS NOT NULL
    ON CONFLICT (log_type, key) DO NOTHING
    RETURNING first_index
), allowed AS MATERIALIZED (
    SELECT version AS first_index, head, greatest(clock_timestamp(), updated_at) AS recorded_at
    FROM locked
    WHERE %(key)s::text IS NULL OR EXISTS (SELECT FROM claimed)
), chained AS MATERIALIZED (
    {digests_of_batch}
), bumped AS (
    UPDATE eventlogs_eventlog AS log
    SET version = log.version + %(count)s::integer,
        updated_at = chained.recorded_at,
        head = digests[%(count)s::integer]
    FROM chained
    WHERE log.id = %(log)s::uuid
    RETURNING first_index, recorded_at, digests
    --buckets: , eventlogs_take_positions(%(log)s::uuid, %(count)s::integer) AS taken
), inserted AS (
    INSERT INTO eventlogs_event ({inserted})
    SELECT
           --buckets: taken + (number - 1) * 64,
           %(log_type)s::text, %(log)s::uuid, first_index + number - 1, item ->> 0,
           (item -> 1)::integer, item -> 2, %(metadata)s::jsonb, %(key)s::text, recorded_at, digest
    FROM bumped, ROWS FROM (
        jsonb_array_elements(%(events)s::jsonb), unnest(digests)
    ) WITH ORDINALITY AS batch (item, digest, number)
    ORDER BY number
    RETURNING position, index
)
SELECT max(position)::bigint, (max(index) + 1)::integer FROM inserted HAVING count(*) > 0
