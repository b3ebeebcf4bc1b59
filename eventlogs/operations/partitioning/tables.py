"""The tables of partitioning: the copy, the notes, and the swap of the names."""

from __future__ import annotations

import json
from typing import Any, Final, NamedTuple

from django.db import connections

from eventlogs.exceptions import CannotPartition
from eventlogs.operations.triggers import guard_events, make_fence
from eventlogs.projections.shadow_tables import take_over

TABLE: Final = "eventlogs_event"
COPY: Final = "eventlogs_event_next"  # until it takes the table's name
OLD: Final = "eventlogs_event_before"  # what was the table, until it is dropped
STATE: Final = "eventlogs_partitioning"
NOTES: Final = "eventlogs_partitioning_note"

# Names of indexes in the table, and those while it is a copy.
OURS: Final = {
    "eventlogs_event_pkey": "eventlogs_event_next_pkey",
    "eventlogs_event_one_per_log_and_index": "eventlogs_event_next_one_per_log_and_index",
    "eventlogs_event_by_position": "eventlogs_event_next_by_position",
    "eventlogs_event_by_time": "eventlogs_event_next_by_time",
}

LAST_POSITION: Final = """
SELECT coalesce(pg_sequence_last_value(
    pg_get_serial_sequence('eventlogs_event', 'position')::regclass), 0)
"""
SEQUENCE: Final = """
SELECT relname::text FROM pg_class
WHERE oid = pg_get_serial_sequence('eventlogs_event', 'position')::regclass
"""
COLUMNS: Final = """
SELECT attname::text FROM pg_attribute
WHERE attrelid = 'eventlogs_event'::regclass AND attnum > 0 AND NOT attisdropped
ORDER BY attnum
"""
# The indexes of the table that are not ours, each with its definition behind the table's name.
OTHER_INDEXES: Final = """
SELECT relname::text, indisunique, regexp_replace(pg_get_indexdef(indexrelid), '^.*? USING ', '')
FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
WHERE indrelid = 'eventlogs_event'::regclass AND relname <> ALL (%s)
ORDER BY 1
"""
INDEXES: Final = "SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = %s::regclass"
PARTS: Final = """
SELECT relid::regclass::text FROM pg_partition_tree(%s) WHERE isleaf AND level > 0 ORDER BY 1
"""
# Everybody may execute a function that has no list of grants.
GRANTEES: Final = """
SELECT DISTINCT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END
FROM (SELECT relowner AS owner, relacl AS grants
      FROM pg_class WHERE %(kind)s = 'TABLE' AND oid = to_regclass(%(name)s)
      UNION ALL
      SELECT proowner, coalesce(proacl, acldefault('f', proowner))
      FROM pg_proc WHERE %(kind)s = 'FUNCTION' AND oid = to_regproc(%(name)s)) AS made,
     aclexplode(grants)
WHERE grantee <> owner
"""
# The storage of rows: parameters, e.g. of autovacuum, and tablespace. Those of the first partition.
STORAGE: Final = """
SELECT reloptions, spcname::text
FROM pg_class LEFT JOIN pg_tablespace ON pg_tablespace.oid = reltablespace
WHERE pg_class.oid = coalesce(
    (SELECT min(relid::oid::bigint)::oid FROM pg_partition_tree('eventlogs_event')
     WHERE isleaf AND level > 0),
    'eventlogs_event'::regclass)
"""


class State(NamedTuple):
    """How far a copy is; ``columns`` are those of the table when it began."""

    partitions: int  # 0: one table
    copied: int  # all events up to this position are in the copy, or their log is noted
    mirrored: bool  # all events are in the copy, and every change goes to both tables
    compared: int
    swapped: bool
    columns: list[str]
    indexes: Any  # dict[str, str]: of others: names while it is a copy, and in the table

    @property
    def names(self) -> str:
        """The columns, for a statement."""
        return ", ".join(f'"{name}"' for name in self.columns)


def state(cursor: Any) -> State | None:
    """
    Return how far the copy is, or None if there is none; lock it for this transaction.

    That it was looked at is noted: somebody goes on with it (progress.py).
    """
    cursor.execute("SELECT to_regclass(%s) IS NOT NULL", [STATE])
    if cursor.fetchone() != (True,):
        return None
    cursor.execute(
        f"UPDATE {STATE} SET seen_at = clock_timestamp() RETURNING {', '.join(State._fields)}"
    )
    row = cursor.fetchone()
    if row is None:
        return None
    found = State(*row)
    # Django's connections give JSON as text.
    return found._replace(indexes=json.loads(found.indexes))


def parts(cursor: Any, table: str) -> list[str]:
    """Return the partitions of a table; none if it is one table."""
    cursor.execute("SELECT to_regclass(%s) IS NOT NULL", [table])
    if cursor.fetchone() != (True,):
        return []
    cursor.execute(PARTS, [table])
    return [name for (name,) in cursor.fetchall()]


def columns(cursor: Any) -> list[str]:
    """Return the columns of the table, in their order."""
    cursor.execute(COLUMNS)
    return [name for (name,) in cursor.fetchall()]


def last_position(cursor: Any) -> int:
    """Return the last position that was assigned."""
    cursor.execute(LAST_POSITION)
    [position] = cursor.fetchone()
    return int(position)


def make_copy(cursor: Any, partitions: int) -> dict[str, str]:
    """Make the empty copy; return the names of the indexes of others, as in State."""
    cursor.execute(STORAGE)
    options, tablespace = cursor.fetchone()
    storage = f" WITH ({', '.join(options)})" if options else ""
    storage += f' TABLESPACE "{tablespace}"' if tablespace else ""
    like = (
        f"CREATE TABLE {COPY} (LIKE {TABLE} INCLUDING COMMENTS INCLUDING COMPRESSION"
        " INCLUDING CONSTRAINTS INCLUDING DEFAULTS INCLUDING STATISTICS INCLUDING STORAGE)"
    )
    one_per_log = (
        f"ALTER TABLE {COPY} ADD CONSTRAINT {OURS['eventlogs_event_one_per_log_and_index']}"
    )
    if partitions:
        cursor.execute(f"{like} PARTITION BY HASH (log_id)")
        for number in range(partitions):
            cursor.execute(
                f"CREATE TABLE {COPY}_p{number} PARTITION OF {COPY} "
                f"FOR VALUES WITH (MODULUS {partitions}, REMAINDER {number}){storage}"
            )
        # PostgreSQL wants the partition key in every unique constraint.
        cursor.execute(f"{one_per_log} PRIMARY KEY (log_id, index)")
        # The feed, tail and the admin read in the order of positions.
        cursor.execute(f"CREATE INDEX {OURS['eventlogs_event_by_position']} ON {COPY} (position)")
    else:
        cursor.execute(f"{like}{storage}")
        key = OURS["eventlogs_event_pkey"]
        cursor.execute(f"ALTER TABLE {COPY} ADD CONSTRAINT {key} PRIMARY KEY (position)")
        cursor.execute(f"{one_per_log} UNIQUE (log_id, index)")
    cursor.execute(
        f"CREATE INDEX {OURS['eventlogs_event_by_time']} ON {COPY} (recorded_at, position)"
    )
    cursor.execute(OTHER_INDEXES, [list(OURS)])
    names = {}
    for number, (name, is_unique, definition) in enumerate(cursor.fetchall()):
        unique = "UNIQUE " if is_unique else ""
        names[f"{COPY}_{number}"] = name
        cursor.execute(f"CREATE {unique}INDEX {COPY}_{number} ON {COPY} USING {definition}")
    for each in (COPY, *parts(cursor, COPY)):
        revoke_all(cursor, "TABLE", each)
    return names


def make_state(cursor: Any, partitions: int, indexes: dict[str, str]) -> None:
    """Make the tables that say how far the copy is, and which logs are to be copied anew."""
    cursor.execute(
        f"CREATE TABLE {STATE} (partitions integer NOT NULL, copied bigint NOT NULL,"
        " mirrored boolean NOT NULL, compared bigint NOT NULL, swapped boolean NOT NULL,"
        " columns text[] NOT NULL, indexes jsonb NOT NULL,"
        " begun_at timestamptz NOT NULL DEFAULT now(), begun_by name NOT NULL DEFAULT session_user,"
        " seen_at timestamptz NOT NULL DEFAULT now())"
    )
    cursor.execute(f"CREATE TABLE {NOTES} (log_id uuid NOT NULL)")
    for each in (STATE, NOTES):
        revoke_all(cursor, "TABLE", each)
    cursor.execute(f"GRANT SELECT ON {STATE} TO PUBLIC")  # a monitor need not own it
    cursor.execute(
        f"INSERT INTO {STATE} VALUES (%s, 0, false, 0, false, %s, %s::jsonb)",
        [partitions, columns(cursor), json.dumps(indexes)],
    )


def revoke_all(cursor: Any, kind: str, name: str) -> None:
    """
    Revoke from all but the owner what they may do with a table or function (``kind``).

    Default privileges may have granted it. A copy that was compared must not be changed.
    """
    cursor.execute(GRANTEES, {"kind": kind, "name": name})
    for (role,) in cursor.fetchall():
        cursor.execute(f"REVOKE ALL ON {kind} {name} FROM {role}")


def check_unchanged(cursor: Any, using: str, found: State) -> None:
    """Raise CannotPartition if columns or indexes are not those that the copy was made with."""
    cursor.execute(OTHER_INDEXES, [list(OURS)])
    names = [name for name, _, _ in cursor.fetchall()]
    if columns(cursor) != found.columns or names != sorted(found.indexes.values()):
        raise CannotPartition(
            using=using,
            reason="columns or indexes of the table were changed since the copy began",
            action="Give the copy up with --abandon, and begin again",
        )


def swap(using: str, cursor: Any, found: State) -> None:
    """
    Let the copy take the table's name; the caller's transaction holds the exclusive lock.

    No other lock is taken that somebody may hold who waits for the table: not of the table of logs,
    which appends lock first, nor an exclusive one of the sequence, which readers of the feed lock.
    """
    cursor.execute(f"SELECT pg_get_serial_sequence('{TABLE}', 'position')")
    [sequence] = cursor.fetchone()
    cursor.execute(f"SELECT last_value, is_called FROM {sequence}")
    last, is_called = cursor.fetchone()
    _rename(cursor, TABLE, OLD)
    cursor.execute(INDEXES, [OLD])
    for number, (name,) in enumerate(cursor.fetchall()):
        cursor.execute(f"ALTER INDEX {name} RENAME TO {OLD}_{number}")
    _rename(cursor, COPY, TABLE)
    for name, copied in OURS.items():
        cursor.execute(f"ALTER INDEX IF EXISTS {copied} RENAME TO {name}")
    for copied, name in found.indexes.items():
        cursor.execute(f'ALTER INDEX {copied} RENAME TO "{name}"')
    cursor.execute(f"ALTER TABLE {TABLE} ALTER position ADD GENERATED BY DEFAULT AS IDENTITY")
    # The next position is above all that were ever assigned, those of rollbacks included.
    cursor.execute(
        f"SELECT setval(pg_get_serial_sequence('{TABLE}', 'position'), %s, %s)", [last, is_called]
    )
    cursor.execute(SEQUENCE)
    [new] = cursor.fetchone()
    take_over(cursor, old=sequence, new=new, kind="SEQUENCE")
    take_over(cursor, old=OLD, new=TABLE)
    guard_events(connections[using])
    cursor.execute(f"UPDATE {STATE} SET swapped = true")


def _rename(cursor: Any, old: str, new: str) -> None:
    """Rename a table and its partitions, and the indexes of those, which PostgreSQL has named."""
    for each in parts(cursor, old):
        number = each.rpartition("_p")[2]
        cursor.execute(INDEXES, [each])
        for (name,) in cursor.fetchall():
            if name.startswith(each):
                part = name.removeprefix(each)
                cursor.execute(f"ALTER INDEX {name} RENAME TO {new}_p{number}{part}")
        cursor.execute(f"ALTER TABLE {each} RENAME TO {new}_p{number}")
    cursor.execute(f"ALTER TABLE {old} RENAME TO {new}")


def name_sequence(cursor: Any, using: str) -> None:
    """
    Give the sequence the name that the old one had, if that is free.

    The fence knows it by its name, so the function is made anew in the same transaction.
    """
    cursor.execute(SEQUENCE)
    [name] = cursor.fetchone()
    cursor.execute("SELECT to_regclass(%s) IS NULL", [f"{TABLE}_position_seq"])
    if cursor.fetchone() == (True,):
        cursor.execute(f'ALTER SEQUENCE "{name}" RENAME TO {TABLE}_position_seq')
        make_fence(connections[using])


def drop(cursor: Any, table: str) -> None:
    """Drop a table that nobody uses any more, and all that partitioning has made beside it."""
    cursor.execute(f"DROP TABLE {table}")
    for name in ("change", "append"):
        cursor.execute(f"DROP FUNCTION IF EXISTS eventlogs_partitioning_{name}()")
    cursor.execute(f"DROP TABLE {NOTES}, {STATE}")
