-- The feed, third: events that are settled. Under READ COMMITTED this statement's snapshot is
-- newer than the look at the locks, so it sees all that was committed by then.
-- With "known", types that the reader does not know are returned in addition to "types".
--
-- The page is bounded by positions, not by LIMIT alone: without fresh statistics the planner would
-- sort the whole table.
SELECT {log}, {stored}
FROM eventlogs_event
WHERE position > %(after)s::bigint
  AND position <= %(upto)s::bigint
  AND (%(types)s::text[] IS NULL OR type = ANY (%(types)s::text[])
       OR (type <> ALL (%(known)s::text[]) AND log_type = ANY (%(unknown_in)s::text[])))
  AND (%(log_types)s::text[] IS NULL OR log_type = ANY (%(log_types)s::text[]))
  AND (%(of)s::integer IS NULL
       OR mod(get_byte(uuid_send(log_id), 14) * 256 + get_byte(uuid_send(log_id), 15),
              %(of)s::integer) = %(number)s::integer)
ORDER BY position
LIMIT %(limit)s::integer
