"""What keeps a table of events from being copied and replaced, found before it is."""

from __future__ import annotations

from typing import Any, Final

from eventlogs.exceptions import CannotPartition

# Each row is a thing that the swap would lose, or that the copy cannot have, and what to do.
OBSTACLES: Final = """
WITH events AS (SELECT 'eventlogs_event'::regclass AS oid),
     parts AS (SELECT oid FROM events
               UNION SELECT relid::oid FROM events, pg_partition_tree(events.oid))
SELECT format('the view or rule %%s reads it', rewritten.ev_class::regclass),
       'Drop it, and create it again afterwards'
FROM pg_depend JOIN pg_rewrite AS rewritten ON rewritten.oid = objid
WHERE classid = 'pg_rewrite'::regclass AND refobjid IN (SELECT oid FROM parts)
UNION
SELECT format('the function %%s depends on it', objid::regprocedure),
       'Drop it, and create it again afterwards'
FROM pg_depend
WHERE classid = 'pg_proc'::regclass AND refclassid = 'pg_class'::regclass
  AND refobjid IN (SELECT oid FROM parts)
UNION
SELECT format('the foreign key %%I of %%s points to it', conname, conrelid::regclass),
       'Drop the constraint: events are never deleted'
FROM pg_constraint
WHERE contype = 'f' AND conparentid = 0 AND confrelid IN (SELECT oid FROM parts)
UNION
SELECT format('it has the constraint %%I', conname), 'Drop it, and create it again afterwards'
FROM pg_constraint
WHERE contype IN ('f', 'x') AND conrelid IN (SELECT oid FROM parts)
UNION
SELECT format('it has the trigger %%I', tgname), 'Drop it, and create it again afterwards'
FROM pg_trigger
WHERE NOT tgisinternal AND tgrelid IN (SELECT oid FROM parts) AND tgname <> ALL (%(triggers)s)
UNION
SELECT format('it has the policy %%I', polname), 'Drop it, and create it again afterwards'
FROM pg_policy WHERE polrelid IN (SELECT oid FROM parts)
UNION
SELECT format('the publication %%I publishes it', pubname),
       'A subscriber would get no more events, or those of the copy: drop the publication, '
       'partition, and copy the subscriber anew'
FROM pg_publication_tables JOIN pg_class ON relname = tablename
JOIN pg_namespace ON pg_namespace.oid = relnamespace AND nspname = schemaname
WHERE pg_class.oid IN (SELECT oid FROM parts)
UNION
SELECT format('the publication %%I publishes all tables', pubname),
       'A subscriber would get the rows of the copy: drop the publication, partition, and copy '
       'the subscriber anew'
FROM pg_publication WHERE puballtables
UNION
SELECT format('it inherits from %%s, or is inherited by %%s', inhparent::regclass,
              inhrelid::regclass),
       'Detach it'
FROM pg_inherits JOIN events ON events.oid IN (inhrelid, inhparent)
JOIN pg_class AS child ON child.oid = inhrelid WHERE NOT child.relispartition
UNION
SELECT format('the column %%I has grants of its own', attname),
       'Revoke them, and grant them again afterwards'
FROM pg_attribute
WHERE attrelid IN (SELECT oid FROM parts) AND attacl IS NOT NULL AND NOT attisdropped
UNION
SELECT format('the column %%I is generated', attname), 'Drop it, and add it again afterwards'
FROM pg_attribute JOIN events ON attrelid = oid
WHERE attgenerated <> '' AND NOT attisdropped
UNION
SELECT format('the column %%I is an identity column', attname),
       'Drop the identity, and add it again afterwards'
FROM pg_attribute JOIN events ON attrelid = oid
WHERE attidentity <> '' AND attname <> 'position' AND NOT attisdropped
UNION
SELECT format('the sequence %%s belongs to its column %%I', objid::regclass, attname),
       'Detach it by ALTER SEQUENCE … OWNED BY NONE: it would be dropped with the old table'
FROM pg_depend JOIN events ON refobjid = events.oid
JOIN pg_attribute ON attrelid = refobjid AND attnum = refobjsubid
JOIN pg_class AS sequence ON sequence.oid = objid AND relkind = 'S'
WHERE classid = 'pg_class'::regclass AND refclassid = 'pg_class'::regclass AND deptype = 'a'
UNION
SELECT format('the function %%s belongs to another role', pg_proc.oid::regprocedure),
       'Give it to the owner of the table by ALTER FUNCTION … OWNER TO'
FROM pg_proc JOIN pg_class ON pg_class.oid = 'eventlogs_event'::regclass
WHERE pg_proc.oid = to_regprocedure('eventlogs_fence()')
  AND NOT pg_has_role(relowner, proowner, 'USAGE')
UNION
SELECT format('the index %%s is not valid', indexrelid::regclass), 'Drop it, or REINDEX it'
FROM pg_index WHERE indrelid IN (SELECT oid FROM parts) AND NOT indisvalid
UNION
SELECT format('the unique index %%s does not name log_id', indexrelid::regclass),
       'PostgreSQL wants the partition key in it: drop it'
FROM pg_index
WHERE %(partitions)s > 0 AND indrelid = (SELECT oid FROM events) AND indisunique
  AND indexrelid::regclass::text NOT LIKE '%%eventlogs_event_pkey'
  AND NOT EXISTS (SELECT FROM pg_attribute
                  WHERE attrelid = indrelid AND attname = 'log_id' AND attnum = ANY (indkey))
UNION
SELECT format('the swap takes some %%s locks, which is more than half of the server''s table of '
              'locks', wanted),
       'Choose fewer partitions, or raise max_locks_per_transaction: appends would get none'
FROM (SELECT %(locks)s * (%(partitions)s + count(*)) AS wanted FROM parts) AS locks
WHERE wanted > current_setting('max_locks_per_transaction')::integer
             * (current_setting('max_connections')::integer
                + current_setting('max_prepared_transactions')::integer) / 2
UNION
SELECT format('the table %%s has row security, another replica identity, or is unlogged',
              pg_class.oid::regclass),
       'Change that, and change it back afterwards'
FROM pg_class
WHERE oid IN (SELECT oid FROM parts)
  AND (relrowsecurity OR relreplident <> 'd' OR relpersistence <> 'p')
ORDER BY 1
LIMIT 1
"""

LOCKS: Final = 12  # that the swap takes for a partition of either table, with its indexes

# The triggers that eventlogs makes; see operations/triggers.py, and copying.py in this package.
OURS: Final = (
    "eventlogs_event_refuse_change",
    "eventlogs_event_refuse_truncate",
    "eventlogs_event_refuse_insert",
    "eventlogs_event_fence",
    "eventlogs_partitioning_change",
    "eventlogs_partitioning_return",
    "eventlogs_partitioning_append",
)


def check(cursor: Any, using: str, *, partitions: int) -> None:
    """Raise CannotPartition if there is an obstacle, with what to do about it."""
    cursor.execute(OBSTACLES, {"triggers": list(OURS), "partitions": partitions, "locks": LOCKS})
    found = cursor.fetchone()
    if found is not None:
        reason, action = found
        raise CannotPartition(using=using, reason=reason, action=action)
