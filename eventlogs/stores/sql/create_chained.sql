-- Create a log with its first events, with or without an idempotency key, and chain them.
--
-- Right because: see create.sql. The digests depend on nothing but the events and the time, so they
-- are computed before it is known whether the log exists already.
WITH claimed AS (
    INSERT INTO eventlogs_idempotencykey
        (log_type, key, log_id, first_index, count, fingerprint, created_at)
    SELECT %(log_type)s::text, %(key)s::text, %(log)s::uuid, 0, %(count)s::integer, %(fingerprint)s::bytea, clock_timestamp()
    WHERE %(key)s::text IS NOT NULL
    ON CONFLICT (log_type, key) DO NOTHING
    RETURNING first_index
), allowed AS MATERIALIZED (
    SELECT 0 AS first_index, {no_head} AS head, clock_timestamp() AS recorded_at
    WHERE %(key)s::text IS NULL OR EXISTS (SELECT FROM claimed)
), chained AS MATERIALIZED (
    {digests_of_batch}
), created AS (
    INSERT INTO eventlogs_eventlog (id, log_type, version, created_at, updated_at, head)
    SELECT %(log)s::uuid, %(log_type)s::text, %(count)s::integer, recorded_at, recorded_at,
           digests[%(count)s::integer]
    FROM chained
    ON CONFLICT (id) DO NOTHING
    RETURNING id
    --buckets: , eventlogs_take_positions(%(log)s::uuid, %(count)s::integer) AS taken
), inserted AS (
    INSERT INTO eventlogs_event ({inserted})
    SELECT
           --buckets: taken + (number - 1) * 64,
           %(log_type)s::text, %(log)s::uuid, first_index + number - 1, item ->> 0,
           (item -> 1)::integer, item -> 2, %(metadata)s::jsonb, %(key)s::text, recorded_at, digest
    FROM created, chained, ROWS FROM (
        jsonb_array_elements(%(events)s::jsonb), unnest(digests)
    ) WITH ORDINALITY AS batch (item, digest, number)
    ORDER BY number
    RETURNING position
)
SELECT (SELECT max(position)::bigint FROM inserted),
       CASE
           WHEN EXISTS (SELECT FROM claimed) AND NOT EXISTS (SELECT FROM created)
           THEN CASE WHEN %(alone)s::boolean THEN 1 / (SELECT count(*) FROM created) ELSE 1 END
           ELSE 0
       END
