"""How far a copy is that was begun, for a role that need not own it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from eventlogs.operations.partitioning.sessions import HOLDS_TURN
from eventlogs.operations.partitioning.tables import STATE

# The state is that of the table's schema: another schema in the path may have a copy of its own.
WHERE_IT_IS: Final = f"""
SELECT quote_ident(nspname), {HOLDS_TURN.format(schema="events.relnamespace")}
FROM pg_class AS events
JOIN pg_class AS state USING (relnamespace)
JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE events.oid = 'eventlogs_event'::regclass AND state.relname = '{STATE}'
  AND NOT pg_is_in_recovery()
"""


class Unfinished(NamedTuple):
    """A copy that was begun, and is neither finished nor given up."""

    partitions: int  # 0: one table
    mirrored: bool  # each append is stored in both tables
    swapped: bool  # only the old table is to be removed
    begun_at: datetime
    begun_by: str  # a role
    seen_at: datetime  # when the command did its last step, or waited
    silent: timedelta  # since then, by the database's clock
    is_in_a_step: bool  # a session does one now


def unfinished(cursor: Any) -> Unfinished | None:
    """
    Return the copy of the table of events that is not finished, or None if there is none.

    On a replica None is returned: it does not see whether the command runs on its primary.
    """
    cursor.execute(WHERE_IT_IS)
    found = cursor.fetchone()
    if found is None:
        return None
    schema, is_in_a_step = found
    cursor.execute(
        "SELECT partitions, mirrored, swapped, begun_at, begun_by, seen_at,"
        f" clock_timestamp() - seen_at FROM {schema}.{STATE}"
    )
    row = cursor.fetchone()
    return None if row is None else Unfinished(*[*row, is_in_a_step])
