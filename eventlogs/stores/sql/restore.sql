-- Insert restored events, in the order given, and count them into their logs.
--
-- Right because: the caller holds the locks of the logs, and has compared their versions with
-- the events' indexes. Positions are taken in the order of the SELECT, which is the order of the
-- export. Times are the export's: the first database set them, under the log's lock. Digests are
-- the caller's, computed under the locks.
WITH batch AS MATERIALIZED (
    SELECT number, item ->> 0 AS log_type, (item ->> 1)::uuid AS log, (item -> 2)::integer AS index,
           item ->> 3 AS type, (item -> 4)::integer AS schema_version, item -> 5 AS data,
           item -> 6 AS metadata, item ->> 7 AS key, (item ->> 8)::timestamptz AS recorded_at,
           decode(item ->> 9, 'hex') AS digest
           --buckets: , (item -> 10)::bigint AS position
    FROM jsonb_array_elements(%(events)s::jsonb) WITH ORDINALITY AS batch (item, number)
), bumped AS (
    UPDATE eventlogs_eventlog AS log
    SET version = log.version + added.count,
        updated_at = greatest(added.last, log.updated_at),
        head = coalesce(added.head, log.head)
    FROM (SELECT log, count(*)::integer AS count, max(recorded_at) AS last,
                 (array_agg(digest ORDER BY number DESC))[1] AS head
          FROM batch GROUP BY log) AS added
    WHERE log.id = added.log
    RETURNING log.id
), inserted AS (
    INSERT INTO eventlogs_event ({inserted}, digest)
    SELECT
           --buckets: position,
           log_type, log, index, type, schema_version, data, metadata, key, recorded_at, digest
    FROM batch
    ORDER BY number
    RETURNING position
)
SELECT (SELECT count(*) FROM inserted), (SELECT count(*) FROM bumped)
