-- A page of a log. The log's type is part of its id, so it has to be right as well.
SELECT index, position, type, schema_version, data::text, metadata::text, idempotency_key,
       recorded_at
FROM eventlogs_event
WHERE log_id = %(log)s::uuid
  AND index >= %(start)s::integer
  AND EXISTS (SELECT FROM eventlogs_eventlog WHERE id = %(log)s::uuid AND log_type = %(log_type)s::text)
ORDER BY index
LIMIT %(limit)s::integer
