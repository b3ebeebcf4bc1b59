-- A page of all events with their digests, log by log, behind an event (or from the first one on).
SELECT {log}, {stored}, digest
FROM eventlogs_event
WHERE (log_id, index) > (%(log)s::uuid, %(index)s::integer)
  AND log_id <= %(until)s::uuid
  AND (%(log_types)s::text[] IS NULL OR log_type = ANY (%(log_types)s::text[]))
ORDER BY log_id, index
LIMIT %(limit)s::integer
