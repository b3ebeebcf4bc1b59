-- The last event at or below a bound: its position, log, index and time.
--
-- By max() and not by LIMIT 1: without fresh statistics the planner would sort the whole table.
SELECT position, log_id, index, recorded_at
FROM eventlogs_event
WHERE position = (SELECT max(position) FROM eventlogs_event WHERE position <= %(upto)s::bigint)
