-- Under REPEATABLE READ and SERIALIZABLE: fail with serialization_failure if a value that another log
-- has in the snapshot was released since.
SELECT value.id
FROM eventlogs_uniquevalue AS value
WHERE (value.scope, value.digest) IN (
    SELECT * FROM unnest(%(scopes)s::text[], %(digests)s::uuid[]))
FOR KEY SHARE
