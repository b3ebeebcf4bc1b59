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

- the log's row is locked, or inserted at version 0, before anything else; a racing append waits
  there, and reads the row's newest version then (READ COMMITTED). So an index is a version that was
  held under the lock;
- the key is inserted unless it is there; ON CONFLICT waits for a transaction that has inserted it;
- what cannot be stored leaves nothing: a log's row at version 0 is deleted again, and before it, or
  before the key, nothing was written;
- the counter is raised last, and held until the transaction ends: see ``buckets.py``;
- all of this is on one node, in one transaction of PostgreSQL there: its locks and unique
  constraints hold as on any server, and others see all of it at once.

A schema is moved to another node (``citus_schema_move``) under locks that writers take as well.
"""

from __future__ import annotations

import json
from typing import Any, Final

from django.db.backends.base.base import BaseDatabaseWrapper

from eventlogs import conf
from eventlogs.conf import MAX_VERSION
from eventlogs.events.codec import request_fingerprints
from eventlogs.exceptions import EventLogError
from eventlogs.stores.base import AppendRequest
from eventlogs.stores.buckets import BUCKETS, EPOCH, TICK, note_held
from eventlogs.stores.portable import PortableStore
from eventlogs.values import LogState

HAS_CITUS: Final = "SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'citus')"

SIGNATURE: Final = (
    "eventlogs_append(uuid, text, integer, bigint, jsonb, jsonb, text, bytea)"
)
# Names are not qualified: its search_path is that of the schema which it is made for, also on the
# node to which it is sent. No function in an UPDATE may be volatile there.
FUNCTION: Final = f"""
CREATE OR REPLACE FUNCTION eventlogs_append(
    log uuid, log_type_of_log text, expected integer, expected_position bigint,
    events jsonb, metadata_of_events jsonb, key_of_append text, fingerprint_of_append bytea,
    OUT last_position bigint, OUT new_version integer
) RETURNS SETOF record LANGUAGE plpgsql VOLATILE SET search_path = {{schema}}, pg_temp AS $$
#variable_conflict use_column
DECLARE
    total integer := jsonb_array_length(events);
    own integer := get_byte(uuid_send(log), 15) & {BUCKETS - 1};
    moment timestamptz := clock_timestamp();
    is_new boolean := false;
    has_key boolean;
    item jsonb;
    shown record;
BEGIN
    IF key_of_append IS NOT NULL THEN
        PERFORM FROM eventlogs_idempotencykey
        WHERE log_type = log_type_of_log AND key = key_of_append;
        IF FOUND THEN
            RETURN;
        END IF;
    END IF;
    IF expected = 0 THEN
        INSERT INTO eventlogs_eventlog (id, log_type, version, created_at, updated_at)
        VALUES (log, log_type_of_log, 0, moment, moment)
        ON CONFLICT (id) DO NOTHING;
        IF NOT FOUND THEN
            RETURN;
        END IF;
        is_new := true;
    END IF;
    SELECT log_type, version, head, updated_at INTO shown
    FROM eventlogs_eventlog
    WHERE id = log
    FOR NO KEY UPDATE;
    IF NOT FOUND OR shown.log_type <> log_type_of_log OR shown.head IS NOT NULL
       OR shown.version <> coalesce(expected, shown.version)
       OR (shown.version = 0) <> is_new
       OR shown.version > {MAX_VERSION} - total THEN
        RETURN;
    END IF;
    IF expected_position IS NOT NULL THEN
        PERFORM FROM eventlogs_event
        WHERE log_id = log AND index = shown.version - 1 AND position = expected_position;
        IF NOT FOUND THEN
            RETURN;
        END IF;
    END IF;
    moment := greatest(moment, shown.updated_at);
    IF key_of_append IS NOT NULL THEN
        INSERT INTO eventlogs_idempotencykey
            (log_type, key, log_id, first_index, count, fingerprint, created_at)
        VALUES (log_type_of_log, key_of_append, log, shown.version, total,
                fingerprint_of_append, moment)
        ON CONFLICT (log_type, key) DO NOTHING;
        IF NOT FOUND THEN
            IF is_new THEN
                DELETE FROM eventlogs_eventlog WHERE id = log;
            END IF;
            RETURN;
        END IF;
    END IF;
    new_version := shown.version + total;
    UPDATE eventlogs_eventlog SET version = new_version, updated_at = moment WHERE id = log;
    SELECT max(number) INTO last_position FROM eventlogs_bucket;
    UPDATE eventlogs_bucket
    SET number = greatest(
            number, last_position,
            ((date_part('epoch', moment) - {EPOCH.timestamp():.0f})
             * {round(1 / TICK.total_seconds())})::bigint - 1
        ) + total
    WHERE bucket = own
    RETURNING number INTO last_position;
    IF last_position IS NULL THEN
        RAISE EXCEPTION 'this database has no counters of buckets' USING ERRCODE = 'EV001',
            HINT = 'Run manage.py eventlogs layout buckets.';
    END IF;
    FOR number IN 1 .. total LOOP
        item := events -> (number - 1);
        INSERT INTO eventlogs_event
            (position, log_type, log_id, index, type, schema_version, data, metadata,
             idempotency_key, recorded_at)
        VALUES ((last_position - total + number) * {BUCKETS} + own, log_type_of_log, log,
                shown.version + number - 1, item ->> 0, (item ->> 1)::integer, item -> 2,
                metadata_of_events, key_of_append, moment);
    END LOOP;
    last_position := last_position * {BUCKETS} + own;
    RETURN NEXT;
END
$$
"""

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
        note_held(connection, [log_id.uuid.int % BUCKETS])
        return LogState(log_id, version=row[1], position=row[0])
