-- Remove the key that this transaction claimed for a log that turned out to exist.
DELETE FROM eventlogs_idempotencykey
WHERE log_type = %(log_type)s::text AND key = %(key)s::text AND log_id = %(log)s::uuid
RETURNING id
