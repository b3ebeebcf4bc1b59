-- The events at some positions: their positions, logs, indexes and times.
SELECT position, log_id, index, recorded_at
FROM eventlogs_event
WHERE position = ANY (%(positions)s::bigint[])
