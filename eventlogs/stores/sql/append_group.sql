-- Append the requests of several callers at once: each of them is stored whole, or not at all.
--
-- {requests} has an array for each request: its number, log, log type, expected version (0 creates
-- the log, NULL is any), expected position, number of events, key, fingerprint in hex, and metadata.
-- {events} has an array for each event: the number of its request, its place there, and the event.
-- The caller passes no log and no key twice. It runs alone, in a transaction of its own.
--
-- Right because, for each request, the steps are those of append_with_key.sql and create.sql:
-- - `locked` takes the row lock of a log only if version and position are the expected ones. That
--   is evaluated again on the newest version of a row that was changed since the snapshot.
-- - A key is claimed only for a log that is locked, or that does not exist in the snapshot. If such
--   a log turns out to exist, the claim has to be undone: the statement fails as a whole, by a
--   division by zero, and stores nothing.
-- - Versions are raised, and events inserted, for logs that are locked or created, and whose key, if
--   there is one, was claimed. They come from those rows: no row, no event.
-- - Events are inserted by request and place, so that positions increase within each log.
--
-- No caller waits for what another one needs:
-- - SKIP LOCKED: the lock of a log's row is never waited for.
-- - ON CONFLICT waits for a transaction that claims the same key or creates the same log and has
--   not ended. It waits for {patience}, then the statement fails and stores nothing. The setting is
--   local to the transaction, is made before the first of those steps, because all of them read
--   `request`, and applies to waits that begin after it.
-- So a deadlock ends by itself: this statement waits for nothing else, and gives up. Keys are
-- claimed in their order, as are ids, so that two such statements do not wait for each other.
--
-- No plan reads more of the tables than the rows of these requests, whatever the statistics say: the
-- plan of a prepared statement may be older than the rows, and a hash join or a hashed EXISTS would
-- read the whole table each time. A LATERAL query that locks rows, and a scalar query in the place
-- of EXISTS, are always run for each request. `id = ANY (ARRAY (...))` lets the UPDATE use the index.
--
-- The fourth column is 1 if a request was not stored although all of its conditions held in the
-- snapshot: another transaction holds the log's row, or has changed it since.
WITH patience AS MATERIALIZED (
    SELECT set_config('lock_timeout', %(patience)s::text, true)
), request AS MATERIALIZED (
    SELECT (item ->> 0)::integer AS number, (item ->> 1)::uuid AS log_id, item ->> 2 AS log_type,
           (item ->> 3)::integer AS expected, (item ->> 4)::bigint AS position,
           (item ->> 5)::integer AS count, item ->> 6 AS key,
           decode(item ->> 7, 'hex') AS fingerprint, item -> 8 AS metadata
    FROM patience, jsonb_array_elements(%(requests)s::jsonb) AS batch (item)
), locked AS MATERIALIZED (
    SELECT request.number, log.version
    --chained: , log.head, log.updated_at
    FROM request
    CROSS JOIN LATERAL (
        SELECT version
        --chained: , head, updated_at
        FROM eventlogs_eventlog
        WHERE id = request.log_id
          AND log_type = request.log_type
          AND version = coalesce(request.expected, version)
          AND version <= 2147483647 - request.count
          AND head IS NULL  --unchained
          AND (request.position IS NULL OR request.position = (
              SELECT event.position
              FROM eventlogs_event AS event
              WHERE event.log_id = request.log_id AND event.index = request.expected - 1))
        FOR NO KEY UPDATE SKIP LOCKED
    ) AS log
    WHERE request.expected IS DISTINCT FROM 0
), ready AS MATERIALIZED (
    SELECT request.*, locked.version AS first_index
    --chained: , locked.head, locked.updated_at
    FROM locked
    JOIN request USING (number)
    UNION ALL
    SELECT request.*, 0
    --chained: , {no_head}, NULL
    FROM request
    WHERE request.expected = 0
      AND (SELECT log.id FROM eventlogs_eventlog AS log WHERE log.id = request.log_id) IS NULL
), claimed AS (
    INSERT INTO eventlogs_idempotencykey
        (log_type, key, log_id, first_index, count, fingerprint, created_at)
    SELECT log_type, key, log_id, first_index, count, fingerprint, clock_timestamp()
    FROM ready
    WHERE key IS NOT NULL
    ORDER BY log_type, key
    ON CONFLICT (log_type, key) DO NOTHING
    RETURNING log_id
), allowed AS MATERIALIZED (
    SELECT ready.*
    --chained: , greatest(clock_timestamp(), updated_at) AS recorded_at
    FROM ready
    LEFT JOIN claimed USING (log_id)
    WHERE ready.key IS NULL OR claimed.log_id IS NOT NULL
), created AS (  --unchained
    INSERT INTO eventlogs_eventlog (id, log_type, version, created_at, updated_at)  --unchained
    SELECT log_id, log_type, count, now, now  --unchained
    FROM allowed, (SELECT clock_timestamp() AS now) AS clock  --unchained
--chained: ), chained AS MATERIALIZED (
    --chained: SELECT number, recorded_at, CASE WHEN head IS NOT NULL THEN eventlogs_chain(head, array_agg(
        --chained: start || convert_to(concat_ws(E'\n', item ->> 2, item ->> 3,
                                      --chained: first_index + (item ->> 1)::integer, item -> 4, key), 'UTF8')
        --chained: ORDER BY (item ->> 1)::integer)) END AS digests
    --chained: FROM jsonb_array_elements(%(events)s::jsonb) AS batch (item)
    --chained: JOIN (SELECT *, {common_of_request} AS start FROM allowed OFFSET 0) AS allowed
      --chained: ON allowed.number = (item ->> 0)::integer
    --chained: GROUP BY number, recorded_at, head
--chained: ), created AS (
    --chained: INSERT INTO eventlogs_eventlog (id, log_type, version, created_at, updated_at, head)
    --chained: SELECT log_id, log_type, count, chained.recorded_at, chained.recorded_at, digests[count]
    --chained: FROM allowed
    --chained: JOIN chained USING (number)
    WHERE expected = 0
    ORDER BY log_id
    ON CONFLICT (id) DO NOTHING
    RETURNING id, updated_at
), bumped AS (
    UPDATE eventlogs_eventlog AS log
    SET version = log.version + allowed.count,
        updated_at = greatest(clock_timestamp(), log.updated_at)  --unchained
    FROM allowed  --unchained
        --chained: updated_at = chained.recorded_at, head = digests[allowed.count]
    --chained: FROM allowed
    --chained: JOIN chained USING (number)
    WHERE log.id = allowed.log_id AND allowed.expected IS DISTINCT FROM 0
      AND log.id = ANY (ARRAY (SELECT log_id FROM allowed))
    RETURNING log.id, log.updated_at
), stored AS MATERIALIZED (
    SELECT id AS log_id, updated_at FROM created
    UNION ALL
    SELECT id AS log_id, updated_at FROM bumped
), inserted AS (
    INSERT INTO eventlogs_event ({inserted})
    SELECT allowed.log_type, allowed.log_id, allowed.first_index + (item ->> 1)::integer,  --unchained
           item ->> 2, (item ->> 3)::integer, item -> 4, allowed.metadata, allowed.key,  --unchained
           stored.updated_at  --unchained
    FROM jsonb_array_elements(%(events)s::jsonb) AS batch (item)  --unchained
    JOIN allowed ON allowed.number = (item ->> 0)::integer  --unchained
    JOIN stored USING (log_id)  --unchained
    ORDER BY allowed.number, (item ->> 1)::integer  --unchained
    --chained: SELECT allowed.log_type, allowed.log_id, allowed.first_index + (item ->> 1)::integer,
           --chained: item ->> 2, (item ->> 3)::integer, item -> 4, allowed.metadata, allowed.key,
           --chained: stored.updated_at, digests[(item ->> 1)::integer + 1]
    --chained: FROM jsonb_array_elements(%(events)s::jsonb) AS batch (item)
    --chained: JOIN allowed ON allowed.number = (item ->> 0)::integer
    --chained: JOIN chained ON chained.number = allowed.number
    --chained: JOIN stored USING (log_id)
    --chained: ORDER BY allowed.number, (item ->> 1)::integer
    RETURNING log_id, position, index
), answer AS (
    SELECT log_id, max(position) AS position, max(index) + 1 AS version
    FROM inserted
    GROUP BY log_id
)
SELECT request.number, answer.position, answer.version::bigint,
       CASE
           WHEN answer.version IS NOT NULL OR request.expected = 0 THEN 0
           WHEN NOT EXISTS (SELECT FROM locked WHERE locked.number = request.number)
               AND (
                   SELECT log.log_type = request.log_type
                      AND log.version = coalesce(request.expected, log.version)
                      AND log.version <= 2147483647 - request.count
                      AND log.head IS NULL  --unchained
                      AND (request.position IS NULL OR request.position = (
                          SELECT event.position
                          FROM eventlogs_event AS event
                          WHERE event.log_id = request.log_id
                            AND event.index = request.expected - 1))
                   FROM eventlogs_eventlog AS log
                   WHERE log.id = request.log_id) THEN 1
           ELSE 0
       END,
       (SELECT 1 / (count(*) = 0)::integer
        FROM allowed
        WHERE expected = 0 AND key IS NOT NULL AND log_id NOT IN (SELECT id FROM created))
FROM request
LEFT JOIN answer USING (log_id)
