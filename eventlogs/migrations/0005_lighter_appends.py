"""
In PostgreSQL, a fence that costs half as much, and room for updates beside the rows of logs.

**The fence** is that of migration 0003, which says why it is right. What is new here is a first
step for the first append of a transaction, one expression, which takes the lock and no more:

- It takes what the rest of the function takes: a shared lock whose key is below all positions that
  can still be assigned. So readers are right with either step. A transaction that has taken both
  holds two locks, and readers use the lower one.
- It keeps no key in a setting. That key only saves room in the server's table of locks, where one
  transaction appends very often. An append that has stored something has a transaction id, so the
  next one does not come here. One that was refused has none. Therefore the step is also limited
  to the first millisecond of a transaction, in which no more than some dozen round trips fit. (A
  comparison of the clocks for equality never holds in PostgreSQL's extended protocol: the server
  sets the statement's clock again when it executes what was bound.)
- The oids and the name that were found when the function was made are used where all three are so
  still. In any other case the rest of the function looks the sequence up.
- CASE has PostgreSQL evaluate the conditions before the lock
  (https://www.postgresql.org/docs/current/sql-expressions.html#SYNTAX-EXPRESS-EVAL).

PL/pgSQL prepares each expression once in each transaction, so their number and their size is what
a fence costs: the setting, whose name is put together for each append, was most of it.

**The room**: an update that finds room for the new version of a row in its page touches no index
and leaves nothing for VACUUM (HOT, https://www.postgresql.org/docs/current/storage-hot.html).
Every append updates the row of its log. In pages that are full, the first update of a row has to
write to another page. Pages that are full already get the room when they are written anew.
"""

from importlib import import_module
from typing import Any

from django.db import migrations

before = import_module("eventlogs.migrations.0003_fence_of_the_feed")

FUNCTION = """
CREATE OR REPLACE FUNCTION eventlogs_fence() RETURNS trigger
LANGUAGE plpgsql STABLE SECURITY DEFINER AS $$
BEGIN
    IF (CASE
        WHEN pg_catalog.pg_current_xact_id_if_assigned() IS NULL
            AND pg_catalog.statement_timestamp() OPERATOR(pg_catalog.<)
                (pg_catalog.transaction_timestamp()
                 OPERATOR(pg_catalog.+) '1 ms'::pg_catalog.interval)
            AND TG_RELID OPERATOR(pg_catalog.=) {table}::pg_catalog.oid
            AND pg_catalog.to_regclass({name})::pg_catalog.oid
                OPERATOR(pg_catalog.=) {sequence}::pg_catalog.oid
        THEN pg_catalog.pg_advisory_xact_lock_shared(
            ({number}::bigint OPERATOR(pg_catalog.<<) 48) OPERATOR(pg_catalog.|) least(
                coalesce(
                    pg_catalog.pg_sequence_last_value(
                        {sequence}::pg_catalog.oid::pg_catalog.regclass),
                    0),
                281474976710655)) IS NOT NULL
        ELSE false END)
    THEN
        RETURN NULL;
    END IF;
    DECLARE
        setting pg_catalog.text :=
            'eventlogs.fence_' OPERATOR(pg_catalog.||) TG_RELID::pg_catalog.text;
        first_fence pg_catalog.text := pg_catalog.current_setting(setting, true);
        fence bigint := least(
            coalesce(
                pg_catalog.pg_sequence_last_value(
                    CASE
                        WHEN TG_RELID OPERATOR(pg_catalog.=) {table}::pg_catalog.oid
                            AND pg_catalog.to_regclass({name})::pg_catalog.oid
                                OPERATOR(pg_catalog.=) {sequence}::pg_catalog.oid
                        THEN {sequence}::pg_catalog.oid::pg_catalog.regclass
                        ELSE pg_catalog.pg_get_serial_sequence(
                            TG_RELID::pg_catalog.regclass::pg_catalog.text, 'position'
                        )::pg_catalog.regclass
                    END),
                0),
            281474976710655);
    BEGIN
        IF first_fence OPERATOR(pg_catalog.<>) '' THEN
            fence := greatest(least(fence, first_fence::bigint), 0);
        ELSE
            first_fence := pg_catalog.set_config(setting, fence::pg_catalog.text, true);
        END IF;
        -- In an IF, because an expression is cheaper than a query; the lock's answer is void.
        IF pg_catalog.pg_advisory_xact_lock_shared(
            ((1 OPERATOR(pg_catalog.+) pg_catalog.mod(TG_RELID::bigint, 65534))
             OPERATOR(pg_catalog.<<) 48) OPERATOR(pg_catalog.|) fence) IS NULL
        THEN
            RETURN NULL;
        END IF;
    END;
    RETURN NULL;
END
$$
"""

ROOM = 90  # percent of a page of logs that INSERTs fill


def function(table: int, sequence: int, name: str) -> str:
    """Return the function, for the oids of a table and its sequence, and the sequence's name."""
    facts = {
        "{table}": str(table),
        "{number}": str(1 + table % 65_534),
        "{sequence}": str(sequence),
        "{name}": name,
    }
    made = FUNCTION
    for placeholder, fact in facts.items():
        made = made.replace(placeholder, fact)
    return made


def install(apps: Any, schema_editor: Any) -> None:
    connection = schema_editor.connection
    if connection.vendor != "postgresql":
        return
    with connection.cursor() as cursor:
        cursor.execute(before.FACTS)
        table, sequence, name = cursor.fetchone()
    schema_editor.execute(function(table, sequence or 0, name or "''"), params=None)
    schema_editor.execute(f"ALTER TABLE eventlogs_eventlog SET (fillfactor = {ROOM})", params=None)


def remove(apps: Any, schema_editor: Any) -> None:
    if schema_editor.connection.vendor == "postgresql":
        before.install(apps, schema_editor)
        schema_editor.execute("ALTER TABLE eventlogs_eventlog RESET (fillfactor)", params=None)


class Migration(migrations.Migration):
    dependencies = [("eventlogs", "0004_projections")]

    operations = [migrations.RunPython(install, remove, hints={"model_name": "event"})]
