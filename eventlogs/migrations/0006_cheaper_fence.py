"""
The fence of migration 0003, at two thirds of its price; what it does is the same.

- The sequence is read by a function, and not by a query: in PL/pgSQL an expression without a FROM
  is evaluated at once, where a query starts the executor. ``pg_sequence_last_value`` reads the
  very tuple that ``SELECT last_value`` reads, and takes the lock that ``nextval`` takes next.
- It is NULL for a sequence that was never called. The fence is 0 then, below all positions.
- The function is marked STABLE, so no snapshot is taken for each expression. It writes no table,
  and nothing that it reads depends on a snapshot: a sequence, the transaction's own state, the
  table of locks. For a trigger, PostgreSQL asks for no volatility
  (https://www.postgresql.org/docs/current/plpgsql-trigger.html).

A transaction that is under way meanwhile has a fence from either function; both are below all
positions that it can still be given.
"""

from importlib import import_module
from typing import Any

from django.db import migrations

FUNCTION = """
CREATE OR REPLACE FUNCTION eventlogs_fence() RETURNS trigger
LANGUAGE plpgsql STABLE SECURITY DEFINER AS $$
DECLARE
    first_fence pg_catalog.text := pg_catalog.current_setting('eventlogs.fence', true);
    fence bigint := least(
        coalesce(pg_catalog.pg_sequence_last_value('{sequence}'::pg_catalog.regclass), 0),
        281474976710655);
BEGIN
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


def install(apps: Any, schema_editor: Any) -> None:
    connection = schema_editor.connection
    if connection.vendor != "postgresql":
        return
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_get_serial_sequence('eventlogs_event', 'position')")
        (sequence,) = cursor.fetchone()
    function = FUNCTION.replace("{sequence}", sequence.replace("'", "''"))
    schema_editor.execute(function, params=None)


def remove(apps: Any, schema_editor: Any) -> None:
    import_module("eventlogs.migrations.0003_fence_of_the_feed").install(apps, schema_editor)


class Migration(migrations.Migration):
    dependencies = [("eventlogs", "0005_logs_for_lists")]

    operations = [migrations.RunPython(install, remove, hints={"model_name": "event"})]
