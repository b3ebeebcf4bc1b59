"""
The store for Citus, where the tables lie in a distributed schema: on one node, as one shard each.

An append of events without rules, to a log that is not chained, is a call of the function
``eventlogs_append``. Citus sends it to the node that has the tables, as a whole, so it is one round
trip, and its statements do not leave that node. (Inside of a caller's transaction Citus runs it on
the coordinator, which sends each of its statements.) All other appends take the portable store's
steps, and so does one that the function does not store: that one is then refused with its reason.

Not the statements of ``postgresql.py``: Citus takes a statement with several parts apart, and runs
them one after the other, each with a snapshot of its own.

Right because the function does what ``portable.py`` does, under the same locks:

- the log's row is locked, or inserted at version 0, before anything else but the key of a new log;
  a racing append waits there, and reads the row's newest version then (READ COMMITTED). So an index
  is a version that was held under the lock;
- the key is inserted unless it is there; ON CONFLICT waits for a transaction that has inserted it;
- what cannot be stored leaves nothing: the key of a log that is there already is deleted again, and
  before it nothing was written. (The key of a new log comes before the log's row, since a role with
  the printed grants may delete keys, and never the row of a log.)
- the counter is raised last, and held until the transaction ends: see ``buckets.py``;
- all of this is on one node, in one transaction of PostgreSQL there: its locks and unique
  constraints hold as on any server, and others see all of it at once.

A schema is moved to another node (``citus_schema_move``) while nobody writes to it. But a lock of
``SELECT FOR UPDATE`` is not moved with it: a transaction that takes one, and writes after the move,
would overwrite what others have written in between. So each begins with a write: see STAY.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

from django.db import transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from eventlogs import conf
from eventlogs.events.codec import request_fingerprints
from eventlogs.exceptions import EventLogError
from eventlogs.ids import LogId
from eventlogs.stores.base import AppendRequest
from eventlogs.stores.buckets import bucket_of, note_held
from eventlogs.stores.portable import Locked, PortableStore
from eventlogs.values import LogState

HAS_CITUS: Final = "SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'citus')"

# A statement that writes, though nothing: Citus then holds the lock for which a move of the schema
# waits. SELECT FOR UPDATE does not take it, so what it locks could be left behind on the old node.
STAY: Final = "UPDATE eventlogs_bucket SET number = number WHERE bucket < -9"

CALL: Final = """
SELECT last_position, new_version FROM eventlogs_append(
    %s::uuid, %s::text, %s::integer, %s::bigint, %s::jsonb, %s::jsonb, %s::text, %s::bytea)
"""


def is_citus(connection: BaseDatabaseWrapper) -> bool:
    """Return whether a database is one of Citus; only PostgreSQL can be."""
    with connection.cursor() as cursor:
        cursor.execute(HAS_CITUS)
        [found] = cursor.fetchone()
    return bool(found)


def stay(connection: BaseDatabaseWrapper) -> None:
    """Have a move of the schema wait for the end of the open transaction."""
    with connection.cursor() as cursor:
        cursor.execute(STAY)


class CitusStore(PortableStore):
    """Logs in a distributed schema of Citus."""

    def _attempt(
        self, connection: BaseDatabaseWrapper, request: AppendRequest
    ) -> LogState | EventLogError:
        if request.rules is None and not (conf.chain() and request.expected_version == 0):
            state = self._append(connection, request)
            if state is not None:
                return state
        return super()._attempt(connection, request)

    def _claim_and_insert(
        self, connection: BaseDatabaseWrapper, request: AppendRequest
    ) -> LogState | EventLogError:
        if request.expected_version != 0:
            return super()._claim_and_insert(connection, request)
        # A create that is refused may have claimed the log: see _give_log_back().
        savepoint = transaction.savepoint(using=self.using)
        answer = super()._claim_and_insert(connection, request)
        if isinstance(answer, EventLogError):
            transaction.savepoint_rollback(savepoint, using=self.using)
        else:
            transaction.savepoint_commit(savepoint, using=self.using)
        return answer

    def _lock_all(self, connection: BaseDatabaseWrapper, ids: Sequence[UUID]) -> dict[UUID, Locked]:
        stay(connection)
        return super()._lock_all(connection, ids)

    def _give_log_back(self, log_id: LogId) -> None:
        """Leave it to the savepoint: a role with the printed grants may not delete a log's row."""

    def _append(self, connection: BaseDatabaseWrapper, request: AppendRequest) -> LogState | None:
        """Append by the function; return None where it has not stored anything."""
        log_id, key = request.log_id, request.idempotency_key
        fingerprint = None if key is None else next(request_fingerprints(request.events))
        events = ",".join(
            f"[{json.dumps(each.type)},{each.schema_version},{each.data}]"
            for each in request.events
        )
        parameters: list[Any] = [
            log_id.uuid,
            log_id.log_type,
            request.expected_version,
            request.expected_position,
            f"[{events}]",
            request.metadata,
            key,
            fingerprint,
        ]
        with connection.cursor() as cursor:
            cursor.execute(CALL, parameters)
            row = cursor.fetchone()
        if row is None:
            return None
        position, version = row
        note_held(connection, [bucket_of(log_id.uuid)])
        return LogState(log_id, version, position)
