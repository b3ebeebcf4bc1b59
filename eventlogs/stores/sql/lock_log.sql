-- Under REPEATABLE READ and SERIALIZABLE: fail with serialization_failure where the log is
-- newer than the snapshot that a conflict was seen in.
SELECT version FROM eventlogs_eventlog WHERE id = %(log)s::uuid FOR NO KEY UPDATE
