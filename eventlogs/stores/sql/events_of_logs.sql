-- Parts of many logs.
--
-- LATERAL with an ORDER BY of its own: the planner cannot turn it into a join, for which it would
-- read the whole table where statistics are missing. Each part is one look into the index.
SELECT event.*
FROM unnest(%(logs)s::uuid[], %(starts)s::integer[], %(ends)s::integer[])
         AS part (log, first, past)
CROSS JOIN LATERAL (
    SELECT log_type, log_id, {stored}
    FROM eventlogs_event
    WHERE log_id = part.log AND index >= part.first AND index < part.past
    ORDER BY index
) AS event
