-- The last event between two bounds, the upper one included: its position, log, index and time.
--
-- Two bounds in sub-queries: whatever the statistics say, the planner then expects a narrow range
-- (0.5 % of the table), so it reads the index backwards, one row of each partition, and sorts
-- nothing. With one bound, and statistics of an empty table, it would sort the whole table. See
-- HotRead in statements.py.
SELECT position, log_id, index, recorded_at
FROM eventlogs_event
WHERE position > (SELECT %(after)s::bigint) AND position <= (SELECT %(upto)s::bigint)
ORDER BY position DESC
LIMIT 1
