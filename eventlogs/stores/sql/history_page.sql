-- A page of all events, log by log, behind an event: of each, the bytes that its digest is made of
-- behind that of its predecessor (see events/chain.py), or NULL where there are none. To send the
-- columns and to decode them takes three times as long.
SELECT log_type, uuid_send(log_id), index, position,
       CASE WHEN strpos(concat(log_type, type), E'\n') = 0
            THEN timestamptz_send(recorded_at) || convert_to(
                concat_ws(E'\n', log_id, log_type, metadata, type, schema_version, index, data,
                          idempotency_key), 'UTF8')
       END,
       digest
FROM eventlogs_event
WHERE (log_id, index) > (%(log)s::uuid, %(index)s::integer)
ORDER BY log_id, index
LIMIT %(limit)s::integer
