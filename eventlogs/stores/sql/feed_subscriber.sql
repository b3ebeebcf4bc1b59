-- Whether a subscription of logical replication fills the table, or a partition of it. Such rows
-- fire no statement trigger, and are at positions that another server has assigned
-- (https://www.postgresql.org/docs/current/logical-replication-architecture.html).
SELECT EXISTS (
    SELECT FROM pg_subscription_rel
    WHERE srrelid = 'eventlogs_event'::regclass
       OR srrelid IN (SELECT relid FROM pg_partition_tree('eventlogs_event')))
