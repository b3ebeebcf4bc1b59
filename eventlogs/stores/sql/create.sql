-- Create a log with its first events, with or without an idempotency key.
--
-- Right because: the key is claimed first, then the log's row; ON CONFLICT waits for a racing
-- transaction that claims the same, and finds no row once that has committed. The events come
-- from the log's row, so that without it none is written.
--
-- The key may be claimed and the log turn out to exist. The claim is then to be undone: alone
-- (autocommit), the statement fails as a whole, on a division by zero, which takes it back;
-- in a caller's transaction it must not fail, and the caller removes the claim.
WITH claimed AS (
    INSERT INTO eventlogs_idempotencykey
        (log_type, key, log_id, first_index, count, fingerprint, created_at)
    SELECT %(log_type)s::text, %(key)s::text, %(log)s::uuid, 0, %(count)s::integer, %(fingerprint)s::bytea, clock_timestamp()
    WHERE %(key)s::text IS NOT NULL
    ON CONFLICT (log_type, key) DO NOTHING
    RETURNING first_index
), created AS (
    INSERT INTO eventlogs_eventlog (id, log_type, version, created_at, updated_at)
    SELECT %(log)s::uuid, %(log_type)s::text, %(count)s::integer, now, now
    FROM (SELECT clock_timestamp() AS now) AS clock
    WHERE %(key)s::text IS NULL OR EXISTS (SELECT FROM claimed)
    ON CONFLICT (id) DO NOTHING
    RETURNING updated_at
    --buckets: , eventlogs_take_positions(%(log)s::uuid, %(count)s::integer) AS taken
), inserted AS (
    INSERT INTO eventlogs_event ({inserted})
    SELECT
           --buckets: taken + (number - 1) * 64,
           %(log_type)s::text, %(log)s::uuid, number - 1, item ->> 0, (item -> 1)::integer,
           item -> 2, %(metadata)s::jsonb, %(key)s::text, updated_at
    FROM created, jsonb_array_elements(%(events)s::jsonb) WITH ORDINALITY AS batch (item, number)
    ORDER BY number
    RETURNING position
)
SELECT (SELECT max(position)::bigint FROM inserted),
       CASE
           WHEN EXISTS (SELECT FROM claimed) AND NOT EXISTS (SELECT FROM created)
           THEN CASE WHEN %(alone)s::boolean THEN 1 / (SELECT count(*) FROM created) ELSE 1 END
           ELSE 0
       END
