-- The position of the last event at or below a bound.
SELECT max(position) FROM eventlogs_event WHERE position <= %(upto)s::bigint
