-- Whether Citus has the events: distributed, as a reference table, or as a table of its own kind
-- (https://docs.citusdata.com/en/stable/develop/api_metadata.html).
-- Run only where Citus is installed.
SELECT EXISTS (
    SELECT FROM pg_dist_partition WHERE logicalrelid = 'eventlogs_event'::regclass)
