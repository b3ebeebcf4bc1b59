-- Parts of many logs. The log's type is known to the caller, and comes back with each row.
--
-- LATERAL with an ORDER BY of its own: the planner cannot turn it into a join, for which it would
-- read the whole table where statistics are missing. Each part is one look into the index.
SELECT part.log_type, event.*
FROM unnest(%(types)s::text[], %(logs)s::uuid[], %(starts)s::integer[], %(ends)s::integer[])
         AS part (log_type, log, first, past)
CROSS JOIN LATERAL (
    SELECT log_id, index, position, type, schema_version, data::text, metadata::text,
           idempotency_key, recorded_at
    FROM eventlogs_event
    WHERE log_id = part.log AND index >= part.first AND index < part.past
    ORDER BY index
) AS event
