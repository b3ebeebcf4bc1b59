"""
In PostgreSQL, triggers refuse UPDATE, DELETE and TRUNCATE of events to everybody.

They are ENABLE ALWAYS: ``session_replication_role`` does not switch them off. To erase an event (a
court's order, a right to erasure), disable the trigger by ALTER TABLE. Only the table's owner may
do that, and all appends wait meanwhile.

In a database that Django made for tests, TRUNCATE stays allowed: ``TransactionTestCase`` and
``flush`` empty tables with it, and the suite of a project that installs this app must run.
"""

from typing import Any

from django.db import migrations

from eventlogs.stores.made_for_tests import is_test_database

REFUSE = """
CREATE OR REPLACE FUNCTION eventlogs_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'table % is append-only: % is refused', TG_TABLE_NAME, TG_OP
        USING ERRCODE = 'restrict_violation',
              HINT = CASE TG_OP
                  WHEN 'INSERT' THEN 'Insert into the partitioned table, whose trigger fences it.'
                  ELSE 'Append an event that corrects it.' END;
END
$$
"""

# For each row: a statement that touches no row has changed nothing, and passes.
NO_CHANGE = """
CREATE OR REPLACE TRIGGER eventlogs_event_refuse_change
    BEFORE UPDATE OR DELETE ON eventlogs_event
    FOR EACH ROW EXECUTE FUNCTION eventlogs_refuse_change();
ALTER TABLE eventlogs_event ENABLE ALWAYS TRIGGER eventlogs_event_refuse_change
"""

NO_TRUNCATE = """
CREATE OR REPLACE TRIGGER eventlogs_event_refuse_truncate
    BEFORE TRUNCATE ON eventlogs_event
    FOR EACH STATEMENT EXECUTE FUNCTION eventlogs_refuse_change();
ALTER TABLE eventlogs_event ENABLE ALWAYS TRIGGER eventlogs_event_refuse_truncate
"""

REMOVE = """
DROP TRIGGER IF EXISTS eventlogs_event_refuse_truncate ON eventlogs_event;
DROP TRIGGER IF EXISTS eventlogs_event_refuse_change ON eventlogs_event;
-- CASCADE: triggers of partitions call it, too.
DROP FUNCTION IF EXISTS eventlogs_refuse_change() CASCADE
"""


def install(apps: Any, schema_editor: Any) -> None:
    connection = schema_editor.connection
    if connection.vendor != "postgresql":
        return
    schema_editor.execute(REFUSE, params=None)
    schema_editor.execute(NO_CHANGE, params=None)
    if not is_test_database(connection):
        schema_editor.execute(NO_TRUNCATE, params=None)


def remove(apps: Any, schema_editor: Any) -> None:
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute(REMOVE, params=None)


class Migration(migrations.Migration):
    dependencies = [("eventlogs", "0001_logs_and_events")]

    operations = [migrations.RunPython(install, remove, hints={"model_name": "event"})]
