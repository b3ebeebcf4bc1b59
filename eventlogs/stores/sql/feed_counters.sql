-- The counters of the buckets, in one snapshot: how many there are, and their lowest and highest
-- number.
SELECT count(*), min(number), max(number), pg_is_in_recovery() FROM eventlogs_bucket
