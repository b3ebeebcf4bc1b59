-- The feed, third: events that are settled. Under READ COMMITTED this statement's snapshot is
-- newer than the look at the locks, so it sees all that was committed by then.
-- A line that begins with the name of a filter is there where a reader asks for it: PostgreSQL
-- prepares it for each partition of the table, each time. With "unknown", types that the reader does
-- not know are returned in addition to "types".
--
-- The page is bounded by positions, not by LIMIT alone: without fresh statistics the planner would
-- sort the whole table. The parameters are in sub-queries, so that its plan is the same whatever
-- their values are: see HotRead in statements.py. Of a huge table it expects long ranges, and would
-- start parallel workers for each page: lastval(), which is never called, forbids that.
SELECT {log}, {stored}
FROM eventlogs_event
WHERE position > (SELECT %(after)s::bigint)
  AND position <= (SELECT %(upto)s::bigint)
--types:   AND (type = ANY ((SELECT %(types)s::text[])::text[])
--unknown:        OR (type <> ALL ((SELECT %(known)s::text[])::text[])
--unknown:            AND log_type = ANY ((SELECT %(unknown_in)s::text[])::text[]))
--types:       )
--log_types:   AND log_type = ANY ((SELECT %(log_types)s::text[])::text[])
--partition:   AND mod(get_byte(uuid_send(log_id), 14) * 256 + get_byte(uuid_send(log_id), 15),
--partition:           (SELECT %(of)s::integer)) = (SELECT %(number)s::integer)
ORDER BY position
LIMIT coalesce((SELECT %(limit)s::integer), lastval()::integer)
