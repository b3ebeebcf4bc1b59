"""
In PostgreSQL, a function that erases a log, and a trigger that lets only this function delete.

``eventlogs_erase_log`` deletes a log's events and the rows beside them, and leaves a tombstone, in
one statement; ``stores/erasing.py`` calls it and says what stays of the log. The trigger of
migration 0002 refused all deletes of events. To disable it for an erasure takes a lock under which
all appends wait, and a mistake in between is refused by nothing. So now it passes a DELETE if
both hold:

- The current role is the owner of the table, or has all of its rights (a member that inherits
  them, a superuser). Such a role can disable the trigger anyway, so nobody gains a right. The
  function runs as its caller: it is not SECURITY DEFINER, which would lend the owner's rights. An
  application's role can set every setting of its session, but it cannot become the owner.
  EXECUTE is revoked from PUBLIC as well; that only gives an earlier and clearer error.
- The transaction has a mark, set by the function: the setting ``eventlogs.erasing`` is the log's
  UUID and this transaction's id. It keeps the owner from deleting by mistake: a DELETE without a
  WHERE, or for another log, is refused as before. A mark of another transaction, left in a
  connection that a pooler gives to the next client, is worth nothing.

Do not let the owner of the table own a SECURITY DEFINER function that deletes the events that its
caller names: its caller can set the mark.

UPDATE and TRUNCATE are refused as before; migration 0010 says which change of an event passes. A
chained log keeps its head, which migration 0010 protects. With a partitioned table the trigger runs
for each partition, and asks for the owner of that partition.

All functions and operators are qualified, whatever the search_path. The tables are not: they are
those of the caller's schema, as in every other statement of this app, so that a copy of a schema
under another name erases its own logs.
"""

from importlib import import_module
from typing import Any

from django.db import migrations

before = import_module("eventlogs.migrations.0010_chained_histories")

REFUSE = """
CREATE OR REPLACE FUNCTION eventlogs_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    chained record;
BEGIN
    IF TG_OP OPERATOR(pg_catalog.=) 'UPDATE' THEN
        IF OLD.digest IS NULL AND NEW.digest IS NOT NULL THEN
            chained := OLD;
            chained.digest := NEW.digest;
            IF chained OPERATOR(pg_catalog.*=) NEW THEN
                RETURN NEW;
            END IF;
        END IF;
    ELSIF TG_OP OPERATOR(pg_catalog.=) 'DELETE' THEN
        IF pg_catalog.current_setting('eventlogs.erasing', true) OPERATOR(pg_catalog.=)
               pg_catalog.concat(OLD.log_id, ' ', pg_catalog.pg_current_xact_id())
           AND (SELECT pg_catalog.pg_has_role(current_user, relowner, 'USAGE')
                FROM pg_catalog.pg_class WHERE oid OPERATOR(pg_catalog.=) TG_RELID)
        THEN
            RETURN OLD;
        END IF;
    END IF;
    RAISE EXCEPTION 'table % is append-only: % is refused', TG_TABLE_NAME, TG_OP
        USING ERRCODE = 'restrict_violation',
              HINT = CASE TG_OP
                  WHEN 'INSERT' THEN 'Insert into the partitioned table, whose trigger fences it.'
                  WHEN 'DELETE' THEN 'Append an event that corrects it, or erase the whole log: '
                      'manage.py eventlogs erase.'
                  ELSE 'Append an event that corrects it.' END;
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
        true);
    DELETE FROM eventlogs_event WHERE log_id OPERATOR(pg_catalog.=) erased;
    GET DIAGNOSTICS deleted = ROW_COUNT;
    PERFORM pg_catalog.set_config('eventlogs.erasing', '', true);
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

SIGNATURE = "eventlogs_erase_log(uuid, text, integer, bytea, text, text)"


def install(apps: Any, schema_editor: Any) -> None:
    if schema_editor.connection.vendor != "postgresql":
        return
    schema_editor.execute(REFUSE, params=None)
    schema_editor.execute(ERASE, params=None)
    schema_editor.execute(f"REVOKE EXECUTE ON FUNCTION {SIGNATURE} FROM PUBLIC", params=None)


def remove(apps: Any, schema_editor: Any) -> None:
    if schema_editor.connection.vendor != "postgresql":
        return
    schema_editor.execute(f"DROP FUNCTION IF EXISTS {SIGNATURE}", params=None)
    schema_editor.execute(before.REFUSE, params=None)


class Migration(migrations.Migration):
    dependencies = [("eventlogs", "0010_chained_histories")]

    operations = [migrations.RunPython(install, remove, hints={"model_name": "event"})]
