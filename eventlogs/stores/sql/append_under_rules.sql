-- Append any number of events, or create a log with them, with rules about other logs: unique
-- values that are claimed or released, and states of other logs that must be the current ones.
--
-- {values} has an array for each unique value: its scope and its digest, NULL to release what the
-- log has. {others} has an array for each other log: its id, type, version and position (or NULL).
-- An expected version of 0 creates the log.
--
-- Right because: see append_with_key.sql and create.sql; each part takes its row from the part
-- before, so that with one of them missing nothing further is written. What is new here:
-- - `lower`, `own` and `higher` lock the logs one after the other, in the order of their ids: each
--   begins with a test that needs the whole part before. So two appends that expect something of
--   each other's logs do not deadlock. FOR SHARE makes appends to another log wait, but not
--   appends that only expect something of it. A row that was changed since the snapshot is returned in its
--   newest version.
-- - All further parts read the snapshot. So `ready` is empty if the log's row was written since the
--   snapshot (its place in the table, ctid, is another one): its values may have changed. They
--   change only with the row of their log, under its lock. The caller then looks again.
-- - A value is refused if another log has it in the snapshot. Otherwise it is inserted: ON CONFLICT
--   waits for a transaction that claims, or releases, the same value, and finds no row once another
--   log has it. Values are inserted in the order given, which is that of all appends, and before the
--   key, and that before a new log.
-- - A log's old values are deleted only if its events are stored. Those that it keeps are not
--   touched.
--
-- Something may be claimed and the append still be refused. The claims are then to be undone: alone
-- (autocommit), the statement fails as a whole, on a division by zero; in a caller's transaction it
-- must not fail, and the caller undoes them by give_claims_back.sql. The third column is the first
-- id of the values then, the fourth whether the key was claimed.
WITH other AS MATERIALIZED (
    SELECT (item ->> 0)::uuid AS id, item ->> 1 AS log_type, (item ->> 2)::integer AS version,
           (item ->> 3)::bigint AS position
    FROM jsonb_array_elements(%(others)s::jsonb) AS batch (item)
), wanted AS MATERIALIZED (
    SELECT number, item ->> 0 AS scope, (item ->> 1)::uuid AS digest
    FROM jsonb_array_elements(%(values)s::jsonb) WITH ORDINALITY AS batch (item, number)
), lower AS MATERIALIZED (
    SELECT id, log_type, version
    FROM eventlogs_eventlog
    WHERE id = ANY (ARRAY(SELECT id FROM other)) AND id < %(log)s::uuid
    ORDER BY id
    FOR SHARE
), own AS MATERIALIZED (
    SELECT version, ctid AS place
    --chained: , head, updated_at
    FROM eventlogs_eventlog
    WHERE id = %(log)s::uuid
      AND (SELECT count(*) FROM lower) >= 0
      AND log_type = %(log_type)s::text
      AND version = coalesce(%(expected)s::integer, version)
      AND version <= 2147483647 - %(count)s::integer
      AND head IS NULL  --unchained
      AND (%(position)s::bigint IS NULL OR EXISTS (
          SELECT FROM eventlogs_event
          WHERE log_id = %(log)s::uuid AND index = %(expected)s::integer - 1
            AND position = %(position)s::bigint))
    FOR NO KEY UPDATE
), higher AS MATERIALIZED (
    SELECT id, log_type, version
    FROM eventlogs_eventlog
    WHERE id = ANY (ARRAY(SELECT id FROM other)) AND id > %(log)s::uuid
      AND (SELECT count(*) FROM lower) >= 0
      AND (SELECT count(*) FROM own) >= CASE WHEN %(expected)s::integer = 0 THEN 0 ELSE 1 END
    ORDER BY id
    FOR SHARE
), unmoved AS MATERIALIZED (
    SELECT count(*) AS number
    FROM other
    JOIN (SELECT * FROM lower UNION ALL SELECT * FROM higher) AS log USING (id, log_type, version)
    WHERE other.position IS NULL OR EXISTS (
        SELECT FROM eventlogs_event AS event
        WHERE event.log_id = other.id AND event.index = other.version - 1
          AND event.position = other.position)
), ready AS MATERIALIZED (
    SELECT first_index
    --chained: , head, updated_at
    FROM (
        SELECT own.version AS first_index
        --chained: , own.head, own.updated_at
        FROM own
        JOIN eventlogs_eventlog AS seen ON seen.id = %(log)s::uuid AND seen.ctid = own.place
        UNION ALL
        SELECT 0
        --chained: , {no_head}, NULL
        WHERE %(expected)s::integer = 0
          AND NOT EXISTS (SELECT FROM eventlogs_eventlog WHERE id = %(log)s::uuid)
    ) AS place
    WHERE (SELECT number FROM unmoved) = (SELECT count(*) FROM other)
      AND (%(key)s::text IS NULL OR NOT EXISTS (
          SELECT FROM eventlogs_idempotencykey
          WHERE log_type = %(log_type)s::text AND key = %(key)s::text))
      AND NOT EXISTS (
          SELECT FROM wanted
          JOIN eventlogs_uniquevalue AS value USING (scope, digest)
          WHERE value.log_id <> %(log)s::uuid)
), missing AS MATERIALIZED (
    SELECT number, scope, digest
    FROM ready, wanted
    WHERE digest IS NOT NULL AND NOT EXISTS (
        SELECT FROM eventlogs_uniquevalue AS value
        WHERE value.scope = wanted.scope AND value.digest = wanted.digest)
), claimed AS (
    INSERT INTO eventlogs_uniquevalue (scope, digest, log_type, log_id)
    SELECT scope, digest, %(log_type)s::text, %(log)s::uuid
    FROM missing
    ORDER BY number
    ON CONFLICT (scope, digest) DO NOTHING
    RETURNING id
), complete AS MATERIALIZED (
    SELECT first_index
    --chained: , head, updated_at
    FROM ready
    WHERE (SELECT count(*) FROM claimed) = (SELECT count(*) FROM missing)
), keyed AS (
    INSERT INTO eventlogs_idempotencykey
        (log_type, key, log_id, first_index, count, fingerprint, created_at)
    SELECT %(log_type)s::text, %(key)s::text, %(log)s::uuid, first_index, %(count)s::integer, %(fingerprint)s::bytea, clock_timestamp()
    FROM complete
    WHERE %(key)s::text IS NOT NULL
    ON CONFLICT (log_type, key) DO NOTHING
    RETURNING id
), allowed AS MATERIALIZED (
    SELECT first_index
    --chained: , head, greatest(clock_timestamp(), updated_at) AS recorded_at
    FROM complete
    WHERE %(key)s::text IS NULL OR EXISTS (SELECT FROM keyed)
), created AS (  --unchained
--chained: ), chained AS MATERIALIZED (
    --chained: SELECT first_index, recorded_at, CASE WHEN head IS NOT NULL THEN eventlogs_chain(head, (
        --chained: SELECT array_agg(
            --chained: start || convert_to(concat_ws(E'\n', item ->> 0, item ->> 1, first_index + number - 1,
                                            --chained: item -> 2, %(key)s::text), 'UTF8')
            --chained: ORDER BY number)
        --chained: FROM jsonb_array_elements(%(events)s::jsonb) WITH ORDINALITY AS batch (item, number)
    --chained: )) END AS digests
    --chained: FROM (
        --chained: SELECT *, {common} AS start
        --chained: FROM allowed
        --chained: OFFSET 0
    --chained: ) AS allowed
--chained: ), created AS (
    INSERT INTO eventlogs_eventlog (id, log_type, version, created_at, updated_at)  --unchained
    SELECT %(log)s::uuid, %(log_type)s::text, %(count)s::integer, now, now  --unchained
    FROM allowed, (SELECT clock_timestamp() AS now) AS clock  --unchained
    --chained: INSERT INTO eventlogs_eventlog (id, log_type, version, created_at, updated_at, head)
    --chained: SELECT %(log)s::uuid, %(log_type)s::text, %(count)s::integer, recorded_at, recorded_at,
           --chained: digests[%(count)s::integer]
    --chained: FROM chained
    WHERE %(expected)s::integer = 0
    ON CONFLICT (id) DO NOTHING
    RETURNING updated_at
    --buckets: , eventlogs_take_positions(%(log)s::uuid, %(count)s::integer) AS taken
), bumped AS (
    UPDATE eventlogs_eventlog AS log
    SET version = log.version + %(count)s::integer,
        updated_at = greatest(clock_timestamp(), log.updated_at)  --unchained
    FROM allowed  --unchained
        --chained: updated_at = chained.recorded_at,
        --chained: head = digests[%(count)s::integer]
    --chained: FROM chained
    WHERE log.id = %(log)s::uuid AND %(expected)s::integer IS DISTINCT FROM 0
    RETURNING log.updated_at
    --buckets: , eventlogs_take_positions(%(log)s::uuid, %(count)s::integer) AS taken
), stored AS MATERIALIZED (
    SELECT first_index, log.*
    FROM allowed, (SELECT * FROM created UNION ALL SELECT * FROM bumped) AS log
), released AS (
    DELETE FROM eventlogs_uniquevalue AS value
    USING stored, wanted
    WHERE value.log_id = %(log)s::uuid
      AND value.scope = wanted.scope
      AND value.digest IS DISTINCT FROM wanted.digest
    RETURNING value.id
), inserted AS (
    INSERT INTO eventlogs_event ({inserted})
    SELECT  --unchained
           --buckets: taken + (number - 1) * 64,  --unchained
           %(log_type)s::text, %(log)s::uuid, first_index + number - 1, item ->> 0,  --unchained
           (item -> 1)::integer, item -> 2, %(metadata)s::jsonb, %(key)s::text, updated_at  --unchained
    FROM stored, jsonb_array_elements(%(events)s::jsonb) WITH ORDINALITY AS batch (item, number)  --unchained
    --chained: SELECT
           --chained: --buckets: taken + (number - 1) * 64,
           --chained: %(log_type)s::text, %(log)s::uuid, chained.first_index + number - 1, item ->> 0,
           --chained: (item -> 1)::integer, item -> 2, %(metadata)s::jsonb, %(key)s::text, recorded_at, digest
    --chained: FROM stored, chained, ROWS FROM (
        --chained: jsonb_array_elements(%(events)s::jsonb), unnest(digests)
    --chained: ) WITH ORDINALITY AS batch (item, digest, number)
    ORDER BY number
    RETURNING position, index
), answer AS MATERIALIZED (
    SELECT max(position)::bigint AS position, (max(index) + 1)::integer AS version
    FROM inserted
)
SELECT position, version,
       CASE
           WHEN position IS NOT NULL THEN NULL
           WHEN %(alone)s::boolean
               AND (SELECT count(*) FROM claimed) + (SELECT count(*) FROM keyed) > 0
               THEN 1 / (SELECT count(*) FROM inserted)
           ELSE (SELECT min(id) FROM claimed)
       END,
       CASE WHEN position IS NULL THEN (SELECT count(*) FROM keyed) ELSE 0 END
FROM answer
