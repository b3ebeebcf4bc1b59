-- Append one event with an idempotency key.
--
-- Right because: see append_with_key.sql, of which this is the case of one event. Each part takes
-- its row from the part before, so that with one of them missing nothing further is written.
WITH locked AS MATERIALIZED (
    SELECT id, version
    FROM eventlogs_eventlog
    WHERE id = %(log)s::uuid
      AND log_type = %(log_type)s::text
      AND version = coalesce(%(expected)s::integer, version)
      AND version < 2147483647
      AND head IS NULL  --unchained
      AND (%(position)s::bigint IS NULL OR EXISTS (
          SELECT FROM eventlogs_event
          WHERE log_id = %(log)s::uuid AND index = %(expected)s::integer - 1
            AND position = %(position)s::bigint))
    FOR NO KEY UPDATE
), claimed AS (
    INSERT INTO eventlogs_idempotencykey
        (log_type, key, log_id, first_index, count, fingerprint, created_at)
    SELECT %(log_type)s::text, %(key)s::text, id, version, 1, %(fingerprint)s::bytea, clock_timestamp()
    FROM locked
    ON CONFLICT (log_type, key) DO NOTHING
    RETURNING first_index
), bumped AS (
    UPDATE eventlogs_eventlog
    SET version = first_index + 1,
        updated_at = greatest(clock_timestamp(), updated_at)  --unchained
        --chained: (updated_at, head) = (
        --chained:     SELECT recorded_at, CASE WHEN head IS NOT NULL THEN {digest} END
        --chained:     FROM (SELECT head, greatest(clock_timestamp(), updated_at) AS recorded_at,
        --chained:                  first_index AS index, %(key)s::text AS key, {one_event}) AS link)
    FROM claimed
    WHERE id = %(log)s::uuid
    RETURNING first_index, updated_at
    --chained: , head
    --buckets: , eventlogs_take_positions(%(log)s::uuid, 1) AS taken
)
INSERT INTO eventlogs_event ({inserted})
SELECT
       --buckets: taken,
       %(log_type)s::text, %(log)s::uuid, first_index, %(type)s::text, %(schema_version)s::integer,
       %(data)s::jsonb, %(metadata)s::jsonb, %(key)s::text, updated_at
       --chained: , head
FROM bumped
RETURNING position::bigint, (index + 1)::integer
