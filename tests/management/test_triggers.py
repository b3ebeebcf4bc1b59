"""``eventlogs triggers``: the triggers are restored, and nothing else has changed."""

from __future__ import annotations

import pytest
from django.core.management import CommandError
from django.db import connection, connections
from django.db.migrations.recorder import MigrationRecorder

TRIGGERS = """
SELECT tgname, tgenabled FROM pg_trigger
WHERE tgrelid = 'eventlogs_event'::regclass AND NOT tgisinternal ORDER BY tgname
"""


def triggers(alias: str) -> list[tuple[str, str]]:
    with connections[alias].cursor() as cursor:
        cursor.execute(TRIGGERS)
        return cursor.fetchall()


FENCE = pytest.mark.fence


@pytest.mark.postgresql
@pytest.mark.parametrize(
    "tampering",
    [
        "DROP TRIGGER eventlogs_event_refuse_change ON eventlogs_event",
        pytest.param("DROP TRIGGER eventlogs_event_fence ON eventlogs_event", marks=FENCE),
        "ALTER TABLE eventlogs_event DISABLE TRIGGER USER",
        pytest.param(
            "ALTER TABLE eventlogs_event ENABLE TRIGGER eventlogs_event_fence", marks=FENCE
        ),
    ],
)
def test_triggers_are_restored_and_no_migration_is_unapplied(
    second_database, run, run_json, tampering
):
    before = triggers(second_database)
    applied = MigrationRecorder(connections[second_database]).applied_migrations()
    with connections[second_database].cursor() as cursor:
        cursor.execute(tampering)
    assert triggers(second_database) != before

    assert "were created" in run("triggers", "--database", second_database)

    assert triggers(second_database) == before
    assert MigrationRecorder(connections[second_database]).applied_migrations() == applied
    told = run_json("triggers", "--database", second_database)
    assert told == {"database": second_database, "triggers": "created"}


@pytest.mark.skipif(connection.vendor == "postgresql", reason="there are triggers")
def test_other_databases_have_no_triggers(run, db):
    with pytest.raises(CommandError, match="is not PostgreSQL"):
        run("triggers")
