"""
In PostgreSQL, triggers refuse UPDATE, DELETE and TRUNCATE of events to everybody.

They are ENABLE ALWAYS: ``session_replication_role`` does not switch them off. Whoever has to
erase an event (a court's order, a right to erasure) disables the trigger by ALTER TABLE, which
takes the table's owner, a lock that everybody notices, and a line in the server's log.

In a database that Django made for tests, TRUNCATE stays allowed: ``TransactionTestCase`` and
``flush`` empty tables with it, and the suite of a project that installs this app must run.
"""

from typing import Any

from django.db import migrations
from django.db.backends.base.creation import TEST_DATABASE_PREFIX

REFUSE = """
CREATE OR REPLACE FUNCTION eventlogs_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'table % is append-only: % is refused', TG_TABLE_NAME, TG_OP
        USING ERRCODE = 'restrict_violation',
              HINT = 'Append an event that corrects it.';
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
DROP FUNCTION IF EXISTS eventlogs_refuse_change()
"""


def is_test_database(connection: Any) -> bool:
    """Return whether Django made this database for tests: it has the connection's test name."""
    name = str(connection.settings_dict["NAME"])
    test_name = connection.settings_dict["TEST"]["NAME"]
    # While tests run, NAME is the test name itself; by default that is NAME with the prefix.
    return name == str(test_name) if test_name else name.startswith(TEST_DATABASE_PREFIX)


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
