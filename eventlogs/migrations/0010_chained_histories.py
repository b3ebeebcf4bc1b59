"""
In PostgreSQL, functions and a trigger for chained histories; see ``eventlogs/events/chain.py``.

- ``eventlogs_chain`` gives the digests of the events of a batch: each is the SHA-256 of the one
  before it and of the event's own bytes. A loop, because an aggregate or a recursive query takes
  half as long again. An append of one event does not use it.
- A trigger refuses an append to a chained log (its ``head`` is not NULL) that does not write its
  head, and the removal of a head. A process of the release before this one would leave events
  without a digest behind, and the events after them would be chained to the wrong one. It is AFTER
  UPDATE, because its WHEN is then evaluated without a lock of the row, and costs an append to a
  log that is not chained nothing that can be measured.
- The trigger that refuses changes of events lets one change pass: a digest that is NULL gets a
  value, and no other byte of the row changes. So ``manage.py eventlogs chain`` can chain the logs
  that exist, while the trigger stays on. It opens nothing to somebody who wants to change history:
  a digest that is there cannot be replaced, and one that does not fit is found by `verify --chain`.
"""

from importlib import import_module
from typing import Any

from django.db import migrations
from django.db.migrations.exceptions import IrreversibleError
from django.db.models import QuerySet

before = import_module("eventlogs.migrations.0002_append_only_events")

CHAIN = """
CREATE OR REPLACE FUNCTION eventlogs_chain(head bytea, bodies bytea[]) RETURNS bytea[]
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    body bytea;
    digest bytea := head;
    digests bytea[] := '{}';
BEGIN
    FOREACH body IN ARRAY bodies LOOP
        digest := pg_catalog.sha256(digest OPERATOR(pg_catalog.||) body);
        digests := digests OPERATOR(pg_catalog.||) digest;
    END LOOP;
    RETURN digests;
END
$$
"""

KEEP = """
CREATE OR REPLACE FUNCTION eventlogs_keep_chain() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the log % is chained, and this change would break its chain', OLD.id
        USING ERRCODE = 'restrict_violation',
              HINT = 'Append with the release of eventlogs that this database was migrated to.';
END
$$
"""

KEEP_TRIGGER = """
CREATE OR REPLACE TRIGGER eventlogs_eventlog_keep_chain
    AFTER UPDATE ON eventlogs_eventlog
    FOR EACH ROW
    WHEN (OLD.head IS NOT NULL AND (
        NEW.head IS NULL OR (NEW.version <> OLD.version AND NEW.head = OLD.head)))
    EXECUTE FUNCTION eventlogs_keep_chain();
ALTER TABLE eventlogs_eventlog ENABLE ALWAYS TRIGGER eventlogs_eventlog_keep_chain
"""

# *= compares the bytes of two rows: 1.0 and 1.00 are equal as jsonb, and not the same.
REFUSE = """
CREATE OR REPLACE FUNCTION eventlogs_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    chained record;
BEGIN
    IF TG_OP = 'UPDATE' AND OLD.digest IS NULL AND NEW.digest IS NOT NULL THEN
        chained := OLD;
        chained.digest := NEW.digest;
        IF chained OPERATOR(pg_catalog.*=) NEW THEN
            RETURN NEW;
        END IF;
    END IF;
    RAISE EXCEPTION 'table % is append-only: % is refused', TG_TABLE_NAME, TG_OP
        USING ERRCODE = 'restrict_violation',
              HINT = CASE TG_OP
                  WHEN 'INSERT' THEN 'Insert into the partitioned table, whose trigger fences it.'
                  ELSE 'Append an event that corrects it.' END;
END
$$
"""

REMOVE = """
DROP TRIGGER IF EXISTS eventlogs_eventlog_keep_chain ON eventlogs_eventlog;
DROP FUNCTION IF EXISTS eventlogs_keep_chain();
DROP FUNCTION IF EXISTS eventlogs_chain(bytea, bytea[])
"""


def install(apps: Any, schema_editor: Any) -> None:
    if schema_editor.connection.vendor == "postgresql":
        for each in (CHAIN, KEEP, KEEP_TRIGGER, REFUSE):
            schema_editor.execute(each, params=None)


def remove(apps: Any, schema_editor: Any) -> None:
    """
    Raise IrreversibleError while there are chained logs.

    The release before would append to them without digests, and after the next upgrade their chains
    would go on from the old heads: damaged for good.
    """
    model: Any = apps.get_model("eventlogs", "EventLog")
    logs: QuerySet[Any] = QuerySet(model, using=schema_editor.connection.alias)
    if logs.filter(head__isnull=False).exclude(log_type="").exists():
        raise IrreversibleError(
            "There are chained logs, and the release before would break their chains. Keep this "
            "migration, or remove all chains first: see 'To an older release' in docs/proof.md."
        )
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute(REMOVE, params=None)
        schema_editor.execute(before.REFUSE, params=None)


class Migration(migrations.Migration):
    dependencies = [("eventlogs", "0009_privacy_and_proof")]

    operations = [migrations.RunPython(install, remove, hints={"model_name": "event"})]
