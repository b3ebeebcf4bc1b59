-- A page of a log. The log's type is part of its id, so it has to be right as well.
--
-- The page is bounded from above, not by LIMIT alone: on a table without fresh statistics the
-- planner would sort the rest of the log for every page, which makes a long log quadratic.
-- Indexes have no holes, so the bound is start + limit. If the page's last event is missing
-- nevertheless, there is no bound, and the index of the event after the hole shows the hole.
--
-- The log is named by the parameter everywhere: of a partitioned table, one partition is planned.
SELECT {stored}
FROM eventlogs_event
WHERE log_id = %(log)s::uuid
  AND index >= %(start)s::integer
  AND index < (
      SELECT CASE
          WHEN EXISTS (
              SELECT FROM eventlogs_event AS last
              WHERE last.log_id = %(log)s::uuid
                AND last.index = least(%(start)s::bigint + %(limit)s::bigint, log.version) - 1)
          THEN %(start)s::bigint + %(limit)s::bigint
          ELSE 2147483648
      END
      FROM eventlogs_eventlog AS log
      WHERE log.id = %(log)s::uuid AND log.log_type = %(log_type)s::text)
ORDER BY index
LIMIT %(limit)s::integer
