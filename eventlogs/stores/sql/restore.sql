-- Insert restored events, in the order given; the caller holds the locks of their logs.
--
-- Right because: positions are taken in the order of the SELECT, which is the order of the
-- export. Times are the export's: they were given by a database once, under the log's lock.
WITH inserted AS (
    INSERT INTO eventlogs_event
        (log_id, index, type, schema_version, data, metadata, idempotency_key, recorded_at)
    SELECT (item ->> 0)::uuid, (item -> 1)::integer, item ->> 2, (item -> 3)::integer,
           item -> 4, item -> 5, item ->> 6, (item ->> 7)::timestamptz
    FROM jsonb_array_elements(%(events)s::jsonb) WITH ORDINALITY AS batch (item, number)
    ORDER BY number
    RETURNING position
)
SELECT count(*) FROM inserted
