-- Append several events, without an idempotency key.
--
-- Right because: see append_one.sql, also on the position; the version is raised by the length of
-- the batch. Events are numbered by their place in the array, and inserted in that order, so that
-- their positions increase.
WITH bumped AS (
    UPDATE eventlogs_eventlog
    SET version = version + %(count)s::integer, updated_at = greatest(clock_timestamp(), updated_at)
    WHERE id = %(log)s::uuid
      AND log_type = %(log_type)s::text
      AND version = coalesce(%(expected)s::integer, version)
      AND version <= 2147483647 - %(count)s::integer
      AND head IS NULL
      AND (%(position)s::bigint IS NULL OR EXISTS (
          SELECT FROM eventlogs_event
          WHERE log_id = %(log)s::uuid AND index = %(expected)s::integer - 1
            AND position = %(position)s::bigint))
    RETURNING version - %(count)s::integer AS first_index, updated_at
    --buckets: , eventlogs_take_positions(%(log)s::uuid, %(count)s::integer) AS taken
), inserted AS (
    INSERT INTO eventlogs_event ({inserted})
    SELECT
           --buckets: taken + (number - 1) * 64,
           %(log_type)s::text, %(log)s::uuid, first_index + number - 1, item ->> 0,
           (item -> 1)::integer, item -> 2, %(metadata)s::jsonb, NULL, updated_at
    FROM bumped, jsonb_array_elements(%(events)s::jsonb) WITH ORDINALITY AS batch (item, number)
    ORDER BY number
    RETURNING position, index
)
SELECT max(position)::bigint, (max(index) + 1)::integer FROM inserted HAVING count(*) > 0
