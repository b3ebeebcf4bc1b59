"""Copying events, noting and mirroring their changes, and comparing both tables."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from eventlogs.exceptions import CannotPartition
from eventlogs.operations.partitioning.tables import COPY, NOTES, STATE, TABLE, State, revoke_all

BATCH: Final = 20_000  # events that one transaction copies or compares
LAST: Final = 5_000  # events that are copied at most while appends wait
NOTED: Final = 200  # logs that one transaction copies anew
LAST_NOTED: Final = 20  # while appends wait

# They run as the owner: the application's role has no rights in what they write to. So nobody else
# may make triggers of them, e.g. on a temporary table. All names are qualified; the schema is that
# of the table.
NOTE_CHANGE: Final = """
CREATE OR REPLACE FUNCTION eventlogs_partitioning_change() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO {schema}.eventlogs_partitioning_note (log_id)
    VALUES (CASE TG_OP WHEN 'INSERT' THEN NEW.log_id ELSE OLD.log_id END);
    RETURN NULL;
END
$$
"""
# An event that is put back has an old position (archive --restore).
NOTE: Final = """
CREATE TRIGGER eventlogs_partitioning_change
    AFTER UPDATE OR DELETE ON eventlogs_event
    FOR EACH ROW EXECUTE FUNCTION eventlogs_partitioning_change();
ALTER TABLE eventlogs_event ENABLE ALWAYS TRIGGER eventlogs_partitioning_change;
CREATE TRIGGER eventlogs_partitioning_return
    AFTER INSERT ON eventlogs_event
    FOR EACH ROW WHEN (NEW.position <= {first})
    EXECUTE FUNCTION eventlogs_partitioning_change();
ALTER TABLE eventlogs_event ENABLE ALWAYS TRIGGER eventlogs_partitioning_return
"""
# It replaces what the triggers above call: to drop them would take an exclusive lock. Inserts have
# a trigger for each statement. In REPEATABLE READ, a snapshot that is older than the copy's row
# finds nothing to delete: the change must not be in one table only, so the transaction is refused.
MIRROR_CHANGE: Final = """
CREATE OR REPLACE FUNCTION eventlogs_partitioning_change() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    IF TG_OP OPERATOR(pg_catalog.=) 'INSERT' THEN
        RETURN NULL;
    END IF;
    DELETE FROM {schema}.eventlogs_event_next
    WHERE log_id OPERATOR(pg_catalog.=) OLD.log_id AND index OPERATOR(pg_catalog.=) OLD.index;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the table of events is copied, and this transaction began before'
            USING ERRCODE = 'serialization_failure', HINT = 'Run the transaction again.';
    END IF;
    IF TG_OP OPERATOR(pg_catalog.=) 'UPDATE' THEN
        INSERT INTO {schema}.eventlogs_event_next ({columns})
        SELECT {columns} FROM (SELECT NEW.*) AS changed;
    END IF;
    RETURN NULL;
END
$$
"""
# A statement that names a partition has no transition table. It inserts nothing: a trigger of the
# partition refuses it.
MIRROR: Final = """
CREATE OR REPLACE FUNCTION eventlogs_partitioning_append() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO {schema}.eventlogs_event_next ({columns})
    SELECT {columns} FROM added
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END
$$;
CREATE TRIGGER eventlogs_partitioning_append
    AFTER INSERT ON eventlogs_event REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION eventlogs_partitioning_append();
ALTER TABLE eventlogs_event ENABLE ALWAYS TRIGGER eventlogs_partitioning_append
"""
REMOVE: Final = """
DROP TRIGGER IF EXISTS eventlogs_partitioning_change ON eventlogs_event;
DROP TRIGGER IF EXISTS eventlogs_partitioning_return ON eventlogs_event;
DROP TRIGGER IF EXISTS eventlogs_partitioning_append ON eventlogs_event
"""

# A sum of hashes does not depend on the order; numeric does not overflow.
DIGEST: Final = """
SELECT count(*), coalesce(sum(hashtextextended(ROW({columns})::text, 0)::numeric), 0)
FROM {table} WHERE position > %s AND position <= %s
"""
EVERYTHING: Final = 2**63 - 1  # above all positions

# Transactions that may have a snapshot of before. Those of other roles show no state to a role that
# may not see it: they are waited for, whatever they do.
OTHER_TRANSACTIONS: Final = """
SELECT pid, virtualtransaction
FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE locktype = 'virtualxid' AND mode = 'ExclusiveLock' AND pid <> pg_backend_pid()
  AND datid = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND (state IS NULL OR backend_xmin IS NOT NULL)
"""


def _schema(cursor: Any) -> str:
    cursor.execute(
        f"SELECT relnamespace::regnamespace::text FROM pg_class WHERE oid = '{TABLE}'::regclass"
    )
    [schema] = cursor.fetchone()
    return str(schema)


def note_changes(cursor: Any, *, first: int) -> None:
    """
    Note from now on each log whose events are changed, deleted or put back.

    ``first`` is the last position that was assigned so far.
    """
    cursor.execute(NOTE_CHANGE.format(schema=_schema(cursor)))
    revoke_all(cursor, "FUNCTION", "eventlogs_partitioning_change")
    cursor.execute(NOTE.format(first=first))


def mirror(cursor: Any, found: State) -> None:
    """Make every change in both tables from now on."""
    names = {"schema": _schema(cursor), "columns": found.names}
    cursor.execute(MIRROR_CHANGE.format(**names))
    cursor.execute(MIRROR.format(**names))
    revoke_all(cursor, "FUNCTION", "eventlogs_partitioning_append")
    cursor.execute(f"UPDATE {STATE} SET mirrored = true")


def copy_batch(cursor: Any, found: State, *, upto: int) -> int:
    """
    Copy the next events, at most to a position at which all are settled; return their number.

    The state is locked, so two calls at once take turns.
    """
    cursor.execute(
        f"SELECT count(*), max(position) FROM (SELECT position FROM {TABLE}"
        " WHERE position > %s AND position <= %s ORDER BY position LIMIT %s) AS batch",
        [found.copied, upto, BATCH],
    )
    count, last = cursor.fetchone()
    if count < BATCH:
        last = max(upto, found.copied)
    copy_range(cursor, found, upto=last)
    return int(count)


def copy_range(cursor: Any, found: State, *, upto: int) -> int:
    """Copy all events behind those that were copied, up to a position; return their number."""
    cursor.execute(
        f"INSERT INTO {COPY} ({found.names}) SELECT {found.names} FROM {TABLE}"
        " WHERE position > %s AND position <= %s ORDER BY position",
        [found.copied, upto],
    )
    copied = int(cursor.rowcount)
    cursor.execute(f"UPDATE {STATE} SET copied = %s", [upto])
    return copied


def copy_noted(cursor: Any, found: State) -> bool:
    """Copy some of the noted logs anew; return whether there were any."""
    cursor.execute(
        f"WITH noted AS (SELECT log_id FROM {NOTES} LIMIT %s),"
        " logs AS (SELECT DISTINCT log_id FROM noted),"
        f" gone AS (DELETE FROM {NOTES} USING logs WHERE {NOTES}.log_id = logs.log_id)"
        " SELECT log_id FROM logs",
        [NOTED],
    )
    logs = [log for (log,) in cursor.fetchall()]
    cursor.execute(f"DELETE FROM {COPY} WHERE log_id = ANY (%s)", [logs])
    cursor.execute(
        f"INSERT INTO {COPY} ({found.names}) SELECT {found.names} FROM {TABLE}"
        " WHERE log_id = ANY (%s) AND position <= %s",
        [logs, found.copied],
    )
    return bool(logs)


def is_nearly_done(cursor: Any, found: State) -> bool:
    """Return whether so little is left that appends can wait for it."""
    cursor.execute(
        f"SELECT (SELECT count(*) FROM (SELECT FROM {TABLE} WHERE position > %s LIMIT %s) AS rest),"
        f" (SELECT count(DISTINCT log_id) FROM {NOTES})",
        [found.copied, LAST + 1],
    )
    events, logs = cursor.fetchone()
    return bool(events <= LAST and logs <= LAST_NOTED)


class _Digest(NamedTuple):
    """The number of events, and the sum of their hashes."""

    events: int
    hashes: Any


def _digest(cursor: Any, table: str, found: State, upto: int) -> _Digest:
    cursor.execute(DIGEST.format(columns=found.names, table=table), [found.compared, upto])
    return _Digest(*cursor.fetchone())


def compare(cursor: Any, using: str, found: State, *, upto: int) -> None:
    """
    Compare the events behind those that were compared, up to a position.

    Raise CannotPartition if the copy has others. Every change goes to both tables already, so they
    are alike in every snapshot.
    """
    there, copied = (_digest(cursor, table, found, upto) for table in (TABLE, COPY))
    if there != copied:
        raise CannotPartition(
            using=using,
            reason=f"the copy has other events than the table, between the positions "
            f"{found.compared} and {upto}: {copied.events} instead of {there.events}, or others",
            action="Nothing was swapped. Give the copy up with --abandon, and begin again. If it "
            "differs once more, find out who writes to it",
        )


def next_bound(cursor: Any, found: State) -> int | None:
    """Return the position up to which to compare next, or None if few events are left."""
    cursor.execute(
        f"SELECT position FROM {TABLE} WHERE position > %s ORDER BY position OFFSET %s LIMIT 1",
        [found.compared, BATCH - 1],
    )
    position: int | None
    [position] = cursor.fetchone() or [None]
    return position


def other_transactions(cursor: Any) -> dict[str, int]:
    """Return the transactions that may have an older snapshot, with their process ids."""
    cursor.execute(OTHER_TRANSACTIONS)
    return {transaction: pid for pid, transaction in cursor.fetchall()}
