-- The position of an event that is {examined} events after a bound, NULL if there are fewer: a
-- statement that searches up to there ends soon also where few of them match.
SELECT (
    SELECT position
    FROM eventlogs_event
    WHERE position > %(after)s::bigint AND position <= %(upto)s::bigint
    ORDER BY position
    LIMIT 1 OFFSET %(examined)s::integer - 1)
