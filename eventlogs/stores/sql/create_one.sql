-- Create a log with its first event, without an idempotency key.
--
-- Right because: see create.sql. Without a key there is one claim only, the log's row, and so
-- nothing to undo.
WITH created AS (
    INSERT INTO eventlogs_eventlog (id, log_type, version, created_at, updated_at)  --unchained
    --chained: INSERT INTO eventlogs_eventlog (id, log_type, version, created_at, updated_at, head)
    SELECT %(log)s::uuid, %(log_type)s::text, 1, now, now
    --chained: , (SELECT {digest}
    --chained:    FROM (SELECT {no_head} AS head, now AS recorded_at, 0 AS index,
    --chained:                 NULL::text AS key, {one_event}) AS link)
    FROM (SELECT clock_timestamp() AS now) AS clock
    ON CONFLICT (id) DO NOTHING
    RETURNING updated_at
    --chained: , head
    --buckets: , eventlogs_take_positions(%(log)s::uuid, 1) AS taken
)
INSERT INTO eventlogs_event ({inserted})
SELECT
       --buckets: taken,
       %(log_type)s::text, %(log)s::uuid, 0, %(type)s::text, %(schema_version)s::integer,
       %(data)s::jsonb, %(metadata)s::jsonb, NULL, updated_at
       --chained: , head
FROM created
RETURNING position::bigint, 0
