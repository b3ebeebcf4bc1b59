-- The position of the first event above a bound; after a gap, it may be far above.
SELECT min(position) FROM eventlogs_event WHERE position > %(after)s::bigint
