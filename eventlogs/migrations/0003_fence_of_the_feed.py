"""
In PostgreSQL, a fence before every append, so that readers of the feed skip nothing.

The trigger runs before the statement's first row, and so before the sequence gives it a
position (a default is evaluated for a row). It takes a shared advisory lock, which nobody ever
waits for, until the transaction ends. The lock's key says: this transaction will not be given a
position at or below … Why that is enough stands in ``stores/postgresql_feed.py``.

- The key is one bigint: 25974 ("ev") in its highest 16 bits, the position in the 48 below.
  Beyond 2^48 positions it stays there: still a lower bound, only less sharp.
- A sequence that was never called has ``is_called = false``, and its last_value is still free.
- One transaction may append a hundred thousand times, and the server's table of locks is
  small. So a transaction of several statements keeps its key in a setting of its own, and takes
  the same lock again, which costs no room. (In the only statement of a transaction the two
  clocks agree, and nothing is written yet.) Whoever forges that setting can put a fence lower,
  never higher: the key is at most last_value.
- ROLLBACK TO SAVEPOINT takes down the fences that were put up since, and resets the setting
  with them; the positions behind those fences are void as well. The next append begins anew.
- It runs as the function's owner, since a role that may insert need not be able to read the
  sequence. So all names in it are qualified, whatever the search_path.
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
LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    fence bigint;
    first_fence pg_catalog.text := pg_catalog.current_setting('eventlogs.fence', true);
BEGIN
    SELECT CASE WHEN is_called THEN last_value ELSE last_value OPERATOR(pg_catalog.-) 1 END
    INTO fence FROM {sequence};
    fence := least(fence, 281474976710655);
    IF first_fence OPERATOR(pg_catalog.<>) '' THEN
        fence := greatest(least(fence, first_fence::bigint), 0);
    ELSIF pg_catalog.pg_current_xact_id_if_assigned() IS NOT NULL
        OR pg_catalog.statement_timestamp()
           OPERATOR(pg_catalog.<>) pg_catalog.transaction_timestamp()
    THEN
        PERFORM pg_catalog.set_config('eventlogs.fence', fence::pg_catalog.text, true);
    END IF;
    -- In an IF, because an expression is cheaper than a query; the lock's answer is void.
    IF pg_catalog.pg_advisory_xact_lock_shared(
        7311031045082578944 OPERATOR(pg_catalog.|) fence) IS NULL
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


def install(apps: Any, schema_editor: Any) -> None:
    connection = schema_editor.connection
    if connection.vendor != "postgresql":
        return
    with connection.cursor() as cursor:
        # By its real name, quoted and with its schema: tables get renamed, sequences do not.
        cursor.execute("SELECT pg_get_serial_sequence('eventlogs_event', 'position')")
        (sequence,) = cursor.fetchone()
    schema_editor.execute(FUNCTION.replace("{sequence}", sequence), params=None)
    schema_editor.execute(TRIGGER, params=None)


def remove(apps: Any, schema_editor: Any) -> None:
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute(REMOVE, params=None)


class Migration(migrations.Migration):
    dependencies = [("eventlogs", "0002_append_only_events")]

    operations = [migrations.RunPython(install, remove, hints={"model_name": "event"})]
