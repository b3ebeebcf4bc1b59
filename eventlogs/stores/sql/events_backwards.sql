-- A page of a log, newest first; bounded from below as events_forwards.sql is from above.
SELECT {stored}
FROM eventlogs_event
WHERE log_id = %(log)s::uuid
  AND index <= %(start)s::integer
  AND index >= (
      SELECT CASE
          WHEN EXISTS (
              SELECT FROM eventlogs_event AS first
              WHERE first.log_id = %(log)s::uuid
                AND first.index = greatest(
                    least(%(start)s::bigint, log.version - 1) - %(limit)s::bigint + 1, 0))
          THEN least(%(start)s::bigint, log.version - 1) - %(limit)s::bigint + 1
          ELSE 0
      END
      FROM eventlogs_eventlog AS log
      WHERE log.id = %(log)s::uuid AND log.log_type = %(log_type)s::text)
ORDER BY index DESC
LIMIT %(limit)s::integer
