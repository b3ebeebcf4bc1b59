-- Lock the log of an append, and the other logs that it expects something of, in the order of their
-- ids: see append_under_rules.sql.
WITH lower AS MATERIALIZED (
    SELECT id
    FROM eventlogs_eventlog
    WHERE id = ANY (%(others)s::uuid[]) AND id < %(log)s::uuid
    ORDER BY id
    FOR SHARE
), own AS MATERIALIZED (
    SELECT id
    FROM eventlogs_eventlog
    WHERE id = %(log)s::uuid AND (SELECT count(*) FROM lower) >= 0
    FOR NO KEY UPDATE
), higher AS MATERIALIZED (
    SELECT id
    FROM eventlogs_eventlog
    WHERE id = ANY (%(others)s::uuid[]) AND id > %(log)s::uuid
      AND (SELECT count(*) FROM own) >= 0
    ORDER BY id
    FOR SHARE
)
SELECT (SELECT count(*) FROM own), (SELECT count(*) FROM higher)
