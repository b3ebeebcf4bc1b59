-- The position of the first event above a bound; behind a gap, it may be far.
SELECT min(position) FROM eventlogs_event WHERE position > %(after)s::bigint
