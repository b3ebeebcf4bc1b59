"""
In PostgreSQL, a fence before every append, so that readers of the feed skip nothing.

The trigger runs before the statement's first row, and so before the sequence gives it a
position (a default is evaluated for a row). It takes a shared advisory lock, for which no
session ever waits, until the transaction ends. The lock's key is below all positions that this
transaction can still be given. ``feed/postgresql.py`` says why that is enough.

- The key is one bigint. Its highest 16 bits are the table's: 1 + (its oid modulo 65,534). So the
  schemas of a database have fences of their own. Two tables may share a number. A reader then
  sees fences of both and takes the lowest: it may wait without need, and skips nothing. The
  numbers 0 and 65,535 are left out, because small keys of other applications have them.
- The position is in the 48 bits below. Beyond 2^48 positions it stays there: still a lower bound,
  only less sharp.
- The table is the one that the statement names (TG_RELID), for a partitioned table the parent, and
  the sequence is that of its position. Looking it up costs as much as the rest of the fence, so
  what was found when the function was made is written into it: the oids of both, and the sequence's
  name. It is used where all three are so still, and in any other case the sequence is looked up.
  In the database where the function was made, these oids are the table and the sequence
  themselves, and PostgreSQL drops an identity's sequence with the identity. In a copy of the
  database an oid may by chance be that of something else. But names are the same in a copy, so a
  sequence that has this name and this oid there is the right one. A copy of a schema under another
  name, renamed tables, schemas and sequences, and any search_path are right by looking up.
- ``pg_sequence_last_value`` reads the tuple that ``SELECT last_value`` reads, and takes the lock
  that ``nextval`` takes next. It is NULL for a sequence that was never called. The fence is 0 then,
  below all positions.
- One transaction may append a hundred thousand times, and the server's table of locks is
  small. So a transaction of several statements keeps its key in a setting of its own for each
  table, and takes the same lock again, which costs no room. (In the only statement of a
  transaction the two clocks agree, and nothing is written yet.) A client that forges that setting
  can make a fence lower, never higher: the key is at most last_value.
- ROLLBACK TO SAVEPOINT releases the fences that were taken since, and resets the setting with
  them; the events behind those fences are rolled back as well. The next append begins anew.
- It runs as the function's owner, since a role that may insert need not be able to read the
  sequence. So all names in it are qualified, whatever the search_path.
- In PL/pgSQL an expression without a FROM is evaluated at once, where a query starts the
  executor. The function is marked STABLE, so no snapshot is taken for each expression. It writes no
  table, and nothing that it reads depends on a snapshot: a sequence, the catalog (which has
  snapshots of its own), the transaction's own state, the table of locks. For a trigger, PostgreSQL
  asks for no volatility (https://www.postgresql.org/docs/current/plpgsql-trigger.html).
- It is ENABLE ALWAYS: ``session_replication_role`` does not switch it off.

CREATE TRIGGER waits for the transactions that have inserted and are still open
(https://www.postgresql.org/docs/current/explicit-locking.html#LOCKING-TABLES): once this
migration is committed, no append without a fence is on its way.

SQLite needs nothing: one writer at a time makes the order of positions that of commits.
"""

from typing import Any

from django.db import migrations

FUNCTION = """
CREATE OR REPLACE FUNCTION eventlogs_fence() RETURNS trigger
LANGUAGE plpgsql STABLE SECURITY DEFINER AS $$
DECLARE
    setting pg_catalog.text := 'eventlogs.fence_' OPERATOR(pg_catalog.||) TG_RELID::pg_catalog.text;
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
    ELSIF pg_catalog.pg_current_xact_id_if_assigned() IS NOT NULL
        OR pg_catalog.statement_timestamp()
           OPERATOR(pg_catalog.<>) pg_catalog.transaction_timestamp()
    THEN
        PERFORM pg_catalog.set_config(setting, fence::pg_catalog.text, true);
    END IF;
    -- In an IF, because an expression is cheaper than a query; the lock's answer is void.
    IF pg_catalog.pg_advisory_xact_lock_shared(
        ((1 OPERATOR(pg_catalog.+) pg_catalog.mod(TG_RELID::bigint, 65534))
         OPERATOR(pg_catalog.<<) 48) OPERATOR(pg_catalog.|) fence) IS NULL
    THEN
        RETURN NULL;
    END IF;
    RETURN NULL;
END
$$
"""

TRIGGER = """
CREATE OR REPLACE TRIGGER eventlogs_event_fence
    BEFORE INSERT ON eventlogs_event
    FOR EACH STATEMENT EXECUTE FUNCTION eventlogs_fence();
ALTER TABLE eventlogs_event ENABLE ALWAYS TRIGGER eventlogs_event_fence
"""

REMOVE = """
DROP TRIGGER IF EXISTS eventlogs_event_fence ON eventlogs_event;
DROP FUNCTION IF EXISTS eventlogs_fence()
"""


FACTS = """
SELECT 'eventlogs_event'::regclass::oid, sequence::regclass::oid, quote_literal(sequence)
FROM pg_get_serial_sequence('eventlogs_event', 'position') AS sequence
"""


def function(table: int, sequence: int, name: str) -> str:
    """Return the function, for the oids of a table and its sequence, and the sequence's name."""
    facts = {"{table}": str(table), "{sequence}": str(sequence), "{name}": name}
    made = FUNCTION
    for placeholder, fact in facts.items():
        made = made.replace(placeholder, fact)
    return made


def install(apps: Any, schema_editor: Any) -> None:
    connection = schema_editor.connection
    if connection.vendor != "postgresql":
        return
    with connection.cursor() as cursor:
        cursor.execute(FACTS)
        table, sequence, name = cursor.fetchone()
    schema_editor.execute(function(table, sequence or 0, name or "''"), params=None)
    schema_editor.execute(TRIGGER, params=None)


def remove(apps: Any, schema_editor: Any) -> None:
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute(REMOVE, params=None)


class Migration(migrations.Migration):
    dependencies = [("eventlogs", "0002_append_only_events")]

    operations = [migrations.RunPython(install, remove, hints={"model_name": "event"})]
