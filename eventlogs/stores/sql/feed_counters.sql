-- The counters of the buckets, in one snapshot: how many there are, and their lowest and highest
-- number; and what kind of a database and transaction reads them.
-- If there ever was a subscription, another statement finds out whether that matters.
SELECT count(*), min(number), max(number), pg_is_in_recovery(),
       current_setting('transaction_isolation') IN ('repeatable read', 'serializable'),
       pg_relation_size('pg_subscription_rel') > 0
FROM eventlogs_bucket
