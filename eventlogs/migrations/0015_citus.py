"""
Functions that also run where the tables lie in a distributed schema of Citus.

``eventlogs_append`` appends events without rules to a log that is not chained; only
``eventlogs/stores/citus.py`` calls it, and says why it is right. On other servers nobody does.

``eventlogs_erase_log`` is that of migration 0011, but for the mark that lets its DELETE pass: it is
set by a statement that reads the log's row, and so on the node that has the tables. On one server
that makes no difference.
"""

from importlib import import_module
from typing import Any

from django.db import migrations

before = import_module("eventlogs.migrations.0011_erasing_logs")

APPEND = """
CREATE OR REPLACE FUNCTION eventlogs_append(
    log uuid, log_type_of_log text, expected integer, expected_position bigint,
    events jsonb, metadata_of_events jsonb, key_of_append text, fingerprint_of_append bytea,
    OUT last_position bigint, OUT new_version integer
) RETURNS SETOF record LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    total integer := jsonb_array_length(events);
    own integer := get_byte(uuid_send(log), 15) & 63;
    moment timestamptz := clock_timestamp();
    is_new boolean := false;
    item jsonb;
    shown record;
BEGIN
    UPDATE eventlogs_bucket SET number = number WHERE bucket < -9;
    IF key_of_append IS NOT NULL THEN
        PERFORM FROM eventlogs_idempotencykey
        WHERE log_type = log_type_of_log AND key = key_of_append;
        IF FOUND THEN
            RETURN;
        END IF;
    END IF;
    IF expected = 0 THEN
        IF expected_position IS NOT NULL THEN
            RETURN;
        END IF;
        IF key_of_append IS NOT NULL THEN
            INSERT INTO eventlogs_idempotencykey
                (log_type, key, log_id, first_index, count, fingerprint, created_at)
            VALUES (log_type_of_log, key_of_append, log, 0, total, fingerprint_of_append, moment)
            ON CONFLICT (log_type, key) DO NOTHING;
            IF NOT FOUND THEN
                RETURN;
            END IF;
        END IF;
        INSERT INTO eventlogs_eventlog (id, log_type, version, created_at, updated_at)
        VALUES (log, log_type_of_log, 0, moment, moment)
        ON CONFLICT (id) DO NOTHING;
        IF NOT FOUND THEN
            IF key_of_append IS NOT NULL THEN
                DELETE FROM eventlogs_idempotencykey
                WHERE log_type = log_type_of_log AND key = key_of_append;
            END IF;
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
       OR shown.version > 2147483647 - total THEN
        RETURN;
    END IF;
    IF expected_position IS NOT NULL THEN
        PERFORM FROM eventlogs_event
        WHERE log_id = log AND index = shown.version - 1 AND position = expected_position;
        IF NOT FOUND THEN
            RETURN;
        END IF;
    END IF;
    moment := greatest(clock_timestamp(), shown.updated_at);
    IF key_of_append IS NOT NULL AND NOT is_new THEN
        INSERT INTO eventlogs_idempotencykey
            (log_type, key, log_id, first_index, count, fingerprint, created_at)
        VALUES (log_type_of_log, key_of_append, log, shown.version, total,
                fingerprint_of_append, moment)
        ON CONFLICT (log_type, key) DO NOTHING;
        IF NOT FOUND THEN
            RETURN;
        END IF;
    END IF;
    new_version := shown.version + total;
    UPDATE eventlogs_eventlog SET version = new_version, updated_at = moment WHERE id = log;
    SELECT max(number) INTO last_position FROM eventlogs_bucket;
    UPDATE eventlogs_bucket
    SET number = greatest(
            number, last_position,
            ((date_part('epoch', moment) - 1735689600)
             * 8000)::bigint - 1
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
        VALUES ((last_position - total + number) * 64 + own, log_type_of_log, log,
                shown.version + number - 1, item ->> 0, (item ->> 1)::integer, item -> 2,
                metadata_of_events, key_of_append, moment);
    END LOOP;
    last_position := last_position * 64 + own;
    RETURN NEXT;
END
$$
"""

ERASE = """
CREATE OR REPLACE FUNCTION eventlogs_erase_log(
    erased uuid, erased_id text, seen_version integer, seen_digest bytea, eraser text, why text
) RETURNS timestamptz LANGUAGE plpgsql AS $$
DECLARE
    found_type pg_catalog.text;
    found_version integer;
    deleted integer;
    now timestamptz;
BEGIN
    IF NOT (SELECT pg_catalog.pg_has_role(current_user, relowner, 'USAGE')
            FROM pg_catalog.pg_class
            WHERE oid OPERATOR(pg_catalog.=) 'eventlogs_event'::pg_catalog.regclass)
    THEN
        RAISE EXCEPTION 'only the owner of eventlogs_event may erase a log'
            USING ERRCODE = 'insufficient_privilege', HINT = 'Connect as the owner.';
    END IF;
    SELECT log_type, version INTO found_type, found_version
    FROM eventlogs_eventlog
    WHERE id OPERATOR(pg_catalog.=) erased
    FOR UPDATE;
    IF found_version IS NULL OR found_type OPERATOR(pg_catalog.=) '' THEN
        RAISE EXCEPTION 'there is no such log'
            USING ERRCODE = 'no_data_found', HINT = 'Check the id: it may be erased already.';
    END IF;
    IF found_version OPERATOR(pg_catalog.<>) seen_version THEN
        RAISE EXCEPTION 'the log is at version %, and the digest is that of version %',
                found_version, seen_version
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Read it again, and retry.';
    END IF;
    now := pg_catalog.clock_timestamp();
    PERFORM pg_catalog.set_config(
        'eventlogs.erasing',
        pg_catalog.concat(erased, ' ', pg_catalog.pg_current_xact_id()),
        true)
    FROM eventlogs_eventlog WHERE id OPERATOR(pg_catalog.=) erased;
    DELETE FROM eventlogs_event WHERE log_id OPERATOR(pg_catalog.=) erased;
    GET DIAGNOSTICS deleted = ROW_COUNT;
    PERFORM pg_catalog.set_config('eventlogs.erasing', '', true)
    FROM eventlogs_eventlog WHERE id OPERATOR(pg_catalog.=) erased;
    DELETE FROM eventlogs_idempotencykey WHERE log_id OPERATOR(pg_catalog.=) erased;
    DELETE FROM eventlogs_uniquevalue WHERE log_id OPERATOR(pg_catalog.=) erased;
    DELETE FROM eventlogs_subjectlog WHERE log_id OPERATOR(pg_catalog.=) erased_id;
    UPDATE eventlogs_eventlog SET log_type = '', updated_at = now
    WHERE id OPERATOR(pg_catalog.=) erased;
    INSERT INTO eventlogs_erasedlog (id, log_type, count, digest, erased_by, reason, erased_at)
    VALUES (erased, found_type, deleted, seen_digest, eraser, why, now);
    RETURN now;
END
$$
"""

SIGNATURE = "eventlogs_append(uuid, text, integer, bigint, jsonb, jsonb, text, bytea)"


def install(apps: Any, schema_editor: Any) -> None:
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute(APPEND, params=None)
        schema_editor.execute(ERASE, params=None)


def remove(apps: Any, schema_editor: Any) -> None:
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute(f"DROP FUNCTION IF EXISTS {SIGNATURE}", params=None)
        schema_editor.execute(before.ERASE, params=None)


class Migration(migrations.Migration):
    dependencies = [("eventlogs", "0014_moved_logs")]

    operations = [migrations.RunPython(install, remove, hints={"model_name": "event"})]
