-- The position of an event that is {examined} events after a bound, NULL if there are fewer: a
-- statement that searches up to there ends soon also where few of them match. Two bounds in
-- sub-queries: see feed_last_event.sql.
SELECT (
    SELECT position
    FROM eventlogs_event
    WHERE position > (SELECT %(after)s::bigint) AND position <= (SELECT %(upto)s::bigint)
    ORDER BY position
    LIMIT 1 OFFSET (SELECT %(examined)s::integer - 1))
