-- The newest events of a log, for a reader with an entry of the reduction cache. It takes half the
-- time of events_forwards.sql to plan.
--
-- The log's type is not compared: the entry is signed for the log's whole id, and the
-- first of these events confirms it. A hole shows as a wrong index, unless it is longer than a
-- page.
SELECT {stored}
FROM eventlogs_event
WHERE log_id = %(log)s::uuid
  AND index >= %(start)s::integer
  AND index < %(end)s::integer
ORDER BY index
