"""
Distributing a schema over a cluster of Citus: all of its tables on one node, which may change.

``stores/citus.py`` says how events are appended there. Only whole schemas are distributed, never
the rows of a table: an append writes the log, its events, its key and the counter of its bucket,
and a read model's rows perhaps. On several nodes their commits would not be seen all at once, so a
reader that sees the counter could miss the event.
"""

from __future__ import annotations

from typing import Any, Final

from django.db import connections, transaction

from eventlogs.exceptions import CannotChangeLayout
from eventlogs.stores.citus import is_citus
from eventlogs.stores.layouts import layout_of

SCHEMA: Final = """
SELECT nspname, quote_ident(nspname)
FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE pg_class.oid = to_regclass('eventlogs_event')
"""
IS_DISTRIBUTED: Final = """
SELECT EXISTS (
    SELECT FROM pg_dist_schema WHERE schemaid::regnamespace = quote_ident(%s)::regnamespace)
"""
IS_COORDINATOR: Final = "SELECT citus_is_coordinator()"
# Its triggers refuse changes, and keep chains; they look at nothing but the row.
TRIGGERS: Final = "SET LOCAL citus.enable_unsafe_triggers = on"
DISTRIBUTE: Final = "SELECT citus_schema_distribute(%s::regnamespace)"
# The function is called on the node that has the tables, where the session has another search_path.
FUNCTION: Final = "eventlogs_append(uuid, text, integer, bigint, jsonb, jsonb, text, bytea)"
SET_PATH: Final = f"ALTER FUNCTION {FUNCTION} SET search_path = {{schema}}, pg_temp"
DELEGATE: Final = (
    f"SELECT create_distributed_function('{FUNCTION}', colocate_with := 'eventlogs_event')"
)


def distribute(*, using: str) -> str:
    """
    Distribute the schema that has the tables, with all that is in it, and return its name.

    It needs the role that owns the schema, on the coordinator. It may be called again, e.g. after
    ``migrate``. Writers wait while the tables are copied. Raise CannotChangeLayout where it cannot
    be done; the tables are as they were then.
    """
    connection = connections[using]
    if connection.in_atomic_block:
        raise RuntimeError("Distribute the schema outside of a transaction.")
    if connection.vendor != "postgresql" or not is_citus(connection):
        raise CannotChangeLayout(
            using=using,
            reason="it is no database of Citus",
            action="Create the extension citus in it, on all nodes",
        )
    if layout_of(connection) != "buckets":
        raise CannotChangeLayout(
            using=using,
            reason="its positions come from a sequence, which Citus has on each node",
            action='Set EVENTLOGS["LAYOUT"] = "buckets", run manage.py eventlogs layout buckets',
        )
    with transaction.atomic(using=using), connection.cursor() as cursor:

        def ask(statement: str, *parameters: str) -> Any:
            cursor.execute(statement, parameters)
            return cursor.fetchone()

        schema, quoted = ask(SCHEMA)
        if schema == "public":
            raise CannotChangeLayout(
                using=using,
                reason="they are in the schema public, which Citus does not distribute",
                action="Move them to a schema of their own, which search_path names",
            )
        if ask(IS_COORDINATOR) != (True,):
            raise CannotChangeLayout(
                using=using,
                reason="the node is not the coordinator",
                action="Connect to the coordinator",
            )
        cursor.execute(SET_PATH.format(schema=quoted))
        if ask(IS_DISTRIBUTED, schema) != (True,):
            cursor.execute(TRIGGERS)
            ask(DISTRIBUTE, quoted)
        ask(DELEGATE)
    return str(schema)
