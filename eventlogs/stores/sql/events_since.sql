-- The newest events of a log, for a reader who has an entry of the reduction cache: half the
-- time to plan of events_forwards.sql.
--
-- The log's type is not compared: the entry is signed for the log's whole id, and proves itself
-- by the first of these events. A hole shows as a wrong index, unless it is longer than a page.
SELECT {stored}
FROM eventlogs_event
WHERE log_id = %(log)s::uuid
  AND index >= %(start)s::integer
  AND index < %(end)s::integer
ORDER BY index
