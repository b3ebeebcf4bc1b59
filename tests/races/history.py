"""
The checker: is what the database holds a history that could have happened?

It reads with SQL of its own, not with the code under test, and works on any contents of the tables.
The answers to callers are compared with them: an ``Outcome`` is one call and its answer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from eventlogs import (
    ConcurrentAppend,
    IdempotencyKeyReused,
    IdempotentReplay,
    LogId,
    LogNotFound,
    LogState,
)

REFUSALS = (ConcurrentAppend, IdempotencyKeyReused, LogNotFound)


class Outcome(NamedTuple):
    """One call of ``create`` or ``append``, and its answer."""

    log_id: LogId
    marker: str  # of the events of the append
    of: int  # their number
    expected: int | None  # the version, None for any
    answer: LogState | Exception

    @property
    def state(self) -> LogState | None:
        """The state that was acknowledged, at once or by a replay; None for a refusal."""
        if isinstance(self.answer, IdempotentReplay):
            return self.answer.state
        return self.answer if isinstance(self.answer, LogState) else None


class Violation(NamedTuple):
    """A broken promise, and its place."""

    kind: str
    where: str


# Each statement answers rows only where its promise is broken. They run on SQLite, too, and, in
# the words of ``spoken_by``, on MariaDB.
BROKEN = {
    "doubled index": """
        SELECT log_id, "index", count(*) FROM eventlogs_event
        GROUP BY log_id, "index" HAVING count(*) > 1
    """,
    "hole": """
        SELECT log_id, min("index"), max("index"), count(DISTINCT "index") FROM eventlogs_event
        GROUP BY log_id
        HAVING min("index") <> 0 OR max("index") + 1 <> count(DISTINCT "index")
    """,
    "wrong version": """
        SELECT log.id, log.version, count(event.position)
        FROM eventlogs_eventlog AS log
        LEFT JOIN eventlogs_event AS event ON event.log_id = log.id
        GROUP BY log.id, log.version
        HAVING log.version <> count(event.position) OR log.version = 0
    """,
    "event without its log": """
        SELECT log_id, "index" FROM eventlogs_event
        WHERE log_id NOT IN (SELECT id FROM eventlogs_eventlog)
    """,
    "orphan key": """
        SELECT claim.key, claim.log_id, claim.first_index, claim.count, count(event.position)
        FROM eventlogs_idempotencykey AS claim
        LEFT JOIN eventlogs_event AS event
               ON event.log_id = claim.log_id
              AND event.idempotency_key = claim.key
              AND event."index" BETWEEN claim.first_index AND claim.first_index + claim.count - 1
        GROUP BY claim.id, claim.key, claim.log_id, claim.first_index, claim.count
        HAVING count(event.position) <> claim.count
    """,
    "doubled key": """
        SELECT log_type, "key", count(*) FROM eventlogs_idempotencykey
        GROUP BY log_type, "key" HAVING count(*) > 1
    """,
    "positions run backwards": """
        SELECT log_id, "index", previous, position FROM (
            SELECT log_id, "index", position,
                   lag(position) OVER (PARTITION BY log_id ORDER BY "index") AS previous
            FROM eventlogs_event
        ) AS pair
        WHERE position <= previous
    """,
    "time runs backwards": """
        SELECT log_id, "index", previous, recorded_at FROM (
            SELECT log_id, "index", recorded_at,
                   lag(recorded_at) OVER (PARTITION BY log_id ORDER BY "index") AS previous
            FROM eventlogs_event
        ) AS pair
        WHERE recorded_at < previous
    """,
}

# An event carries a key without a claim: a retry would be stored again.
UNCLAIMED = """
    SELECT event.log_id, event."index", event.idempotency_key FROM eventlogs_event AS event
    WHERE event.idempotency_key IS NOT NULL AND NOT EXISTS (
        SELECT 1 FROM eventlogs_idempotencykey AS claim
        WHERE claim.key = event.idempotency_key AND claim.log_id = event.log_id
          AND event."index" BETWEEN claim.first_index AND claim.first_index + claim.count - 1
    )
"""

APPENDS = """
    SELECT log_id, marker, max("of"), count(*), min("index"), max("index"), max(position),
           min("index" - part), max("index" - part)
    FROM (
        SELECT log_id, "index", position, data ->> 'marker' AS marker,
               CAST(data ->> 'part' AS integer) AS part, CAST(data ->> 'of' AS integer) AS "of"
        FROM eventlogs_event
    ) AS noted
    GROUP BY log_id, marker
"""


class Stored(NamedTuple):
    """The events of one marker in one log, as they are stored."""

    of: int
    rows: int
    first: int
    last: int
    position: int  # of the last
    in_order: bool  # consecutive, the parts in their order

    @property
    def is_whole(self) -> bool:
        return self.rows == self.of and self.in_order


def violations(
    cursor: Any, outcomes: Iterable[Outcome] = (), *, keys_were_pruned: bool = False
) -> list[Violation]:
    """
    Return every promise that the database breaks, or that an answer to a caller breaks.

    Outcomes that are neither an answer nor a refusal (a lost connection, say) promise
    nothing: their events may be stored or not, but whole.
    """
    found = []
    broken = BROKEN if keys_were_pruned else {**BROKEN, "unclaimed key": UNCLAIMED}
    for kind, statement in broken.items():
        cursor.execute(spoken_by(cursor, statement))
        found += [Violation(kind, ", ".join(map(str, row))) for row in cursor.fetchall()]
    appends = _appends(cursor)
    found += _of_appends(appends)
    found += _of_answers(appends, list(outcomes))
    return found


def kinds(found: Sequence[Violation]) -> Counter[str]:
    """Return how often each kind of violation was found."""
    return Counter(violation.kind for violation in found)


def spoken_by(cursor: Any, statement: str) -> str:
    """Return a statement in the SQL of the cursor's database."""
    if not hasattr(cursor, "db") or cursor.db.vendor != "mysql":  # psycopg's own has no db
        return statement
    as_function = re.sub(r"data ->> '(\w+)'", r"JSON_VALUE(data, '$.\1')", statement)
    return as_function.replace('"', "`")


def _appends(cursor: Any) -> dict[tuple[UUID, str], Stored]:
    cursor.execute(spoken_by(cursor, APPENDS))
    return {
        (UUID(str(log)), marker): Stored(of, rows, first, last, position, low == high)
        for log, marker, of, rows, first, last, position, low, high in cursor.fetchall()
    }


def _of_appends(appends: dict[tuple[UUID, str], Stored]) -> Iterable[Violation]:
    for (log, marker), stored in appends.items():
        where = f"{marker} in {log}: {stored}"
        if stored.rows > stored.of:
            yield Violation("doubled", where)
        elif not stored.is_whole:
            yield Violation("torn batch", where)
    for marker, count in Counter(marker for _, marker in appends).items():
        if count > 1:
            yield Violation("doubled", f"{marker} is in {count} logs")


def _of_answers(
    appends: dict[tuple[UUID, str], Stored], outcomes: list[Outcome]
) -> Iterable[Violation]:
    acknowledged = set()
    for outcome in outcomes:
        state = outcome.state
        if state is None:
            continue
        where = f"{outcome.marker} in {state.log_id}: {state}"
        acknowledged.add((state.log_id.uuid, outcome.marker))
        stored = appends.get((state.log_id.uuid, outcome.marker))
        if stored is None:
            yield Violation("lost", where)
        elif (stored.first + stored.of, stored.position) != (state.version, state.position):
            yield Violation("wrong answer", f"{where} but {stored}")
        if (
            isinstance(outcome.answer, LogState)
            and outcome.expected is not None
            and state.version - outcome.of != outcome.expected
        ):
            yield Violation("expectation ignored", f"{where}, expected {outcome.expected}")
    for outcome in outcomes:
        place = (outcome.log_id.uuid, outcome.marker)
        if isinstance(outcome.answer, REFUSALS) and place in appends and place not in acknowledged:
            yield Violation("refused but stored", f"{outcome}")
        if (
            isinstance(outcome.answer, ConcurrentAppend)
            and outcome.answer.expected_version == outcome.answer.actual_version
        ):
            yield Violation("wrong answer", f"{outcome}")
