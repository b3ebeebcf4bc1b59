-- Remove what a refused append has claimed in this transaction: its unique values, and its key if
-- {keyed}.
--
-- Right because: no other row has the scope and digest of a value that was inserted. The log may
-- have had one of the wanted values before; that row's id is lower than {first}.
WITH value AS (
    DELETE FROM eventlogs_uniquevalue AS value
    USING jsonb_array_elements(%(values)s::jsonb) AS batch (item)
    WHERE value.scope = item ->> 0
      AND value.digest = (item ->> 1)::uuid
      AND value.log_id = %(log)s::uuid
      AND value.id >= %(first)s::bigint
    RETURNING value.id
), key AS (
    DELETE FROM eventlogs_idempotencykey
    WHERE %(keyed)s::boolean
      AND log_type = %(log_type)s::text AND key = %(key)s::text AND log_id = %(log)s::uuid
    RETURNING id
)
SELECT (SELECT count(*) FROM value), (SELECT count(*) FROM key)
