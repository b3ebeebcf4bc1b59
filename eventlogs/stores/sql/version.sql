-- The number of events in a log; no row where it does not exist.
SELECT version FROM eventlogs_eventlog WHERE id = %(log)s::uuid AND log_type = %(log_type)s::text
