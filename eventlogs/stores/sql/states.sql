-- The versions of logs, and the positions of their last events.
SELECT log_type, id, version,
       (SELECT position FROM eventlogs_event AS event
        WHERE event.log_id = log.id AND event.index = log.version - 1)
FROM eventlogs_eventlog AS log
WHERE id = ANY (%(logs)s::uuid[])
