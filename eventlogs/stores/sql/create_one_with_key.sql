-- Create a log with its first event and an idempotency key.
--
-- Right because: see create.sql, also on the key that is claimed for a log which turns out to
-- exist. Without the key there is no row.
WITH claimed AS (
    INSERT INTO eventlogs_idempotencykey
        (log_type, key, log_id, first_index, count, fingerprint, created_at)
    VALUES (%(log_type)s::text, %(key)s::text, %(log)s::uuid, 0, 1, %(fingerprint)s::bytea, clock_timestamp())
    ON CONFLICT (log_type, key) DO NOTHING
    RETURNING created_at AS now
), created AS (
    INSERT INTO eventlogs_eventlog (id, log_type, version, created_at, updated_at)  --unchained
    --chained: INSERT INTO eventlogs_eventlog (id, log_type, version, created_at, updated_at, head)
    SELECT %(log)s::uuid, %(log_type)s::text, 1, now, now
    --chained: , (SELECT {digest}
    --chained:    FROM (SELECT {no_head} AS head, now AS recorded_at, 0 AS index,
    --chained:                 %(key)s::text AS key, {one_event}) AS link)
    FROM claimed
    ON CONFLICT (id) DO NOTHING
    RETURNING updated_at
    --chained: , head
    --buckets: , eventlogs_take_positions(%(log)s::uuid, 1) AS taken
), inserted AS (
    INSERT INTO eventlogs_event ({inserted})
    SELECT
           --buckets: taken,
           %(log_type)s::text, %(log)s::uuid, 0, %(type)s::text, %(schema_version)s::integer,
           %(data)s::jsonb, %(metadata)s::jsonb, %(key)s::text, updated_at
           --chained: , head
    FROM created
    RETURNING position::bigint
)
SELECT inserted.position,
       CASE WHEN inserted.position IS NOT NULL THEN 0
            WHEN %(alone)s::boolean THEN 1 / (SELECT count(*) FROM inserted)
            ELSE 1
       END
FROM claimed LEFT JOIN inserted ON true
