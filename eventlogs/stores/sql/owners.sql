-- The logs that unique values belong to.
SELECT value.scope, value.digest, value.log_type, value.log_id
FROM unnest(%(scopes)s::text[], %(digests)s::uuid[]) AS wanted (scope, digest)
JOIN eventlogs_uniquevalue AS value USING (scope, digest)
