-- Under REPEATABLE READ and SERIALIZABLE: fail with serialization_failure if the log is newer than
-- the snapshot in which the conflict was found.
SELECT version FROM eventlogs_eventlog WHERE id = %(log)s::uuid FOR NO KEY UPDATE
