"""The system checks of PostgreSQL, each by its id."""

from __future__ import annotations

from io import StringIO

import pytest
from django.core.checks import run_checks
from django.core.management import call_command
from django.db import connection, connections


def database_messages(alias):
    """Return the findings of ``check --database`` about eventlogs."""
    messages = run_checks(databases=[alias])
    return [message for message in messages if message.id.startswith("eventlogs")]


@pytest.mark.postgresql
@pytest.mark.parametrize(
    "tampering",
    [
        "DROP TRIGGER eventlogs_event_refuse_change ON eventlogs_event",
        "ALTER TABLE eventlogs_event DISABLE TRIGGER eventlogs_event_refuse_truncate",
        "ALTER TABLE eventlogs_event ENABLE TRIGGER eventlogs_event_refuse_change",
    ],
)
def test_w008_a_trigger_is_missing_or_can_be_switched_off(second_database, tampering):
    assert database_messages(second_database) == []

    with connections[second_database].cursor() as cursor:
        cursor.execute(tampering)

    [message] = database_messages(second_database)
    assert message.id == "eventlogs.W008"
    assert tampering.split("eventlogs_event_")[1].split()[0] in message.msg


@pytest.mark.postgresql
def test_the_command_in_the_hint_of_w008_restores_the_triggers(second_database):
    with connections[second_database].cursor() as cursor:
        cursor.execute("DROP TRIGGER eventlogs_event_refuse_change ON eventlogs_event")

    call_command("eventlogs", "triggers", database=second_database, stdout=StringIO())

    assert database_messages(second_database) == []


@pytest.mark.postgresql
@pytest.mark.parametrize(
    "tampering",
    [
        "DROP TRIGGER eventlogs_event_fence ON eventlogs_event",
        "ALTER TABLE eventlogs_event DISABLE TRIGGER eventlogs_event_fence",
        "ALTER TABLE eventlogs_event ENABLE TRIGGER eventlogs_event_fence",
        "ALTER TABLE eventlogs_event ENABLE REPLICA TRIGGER eventlogs_event_fence",
    ],
)
@pytest.mark.fence
def test_w011_the_fence_is_missing_or_can_be_switched_off(second_database, tampering):
    with connections[second_database].cursor() as cursor:
        cursor.execute(tampering)

    [message] = database_messages(second_database)
    assert message.id == "eventlogs.W011"
    assert "eventlogs_event_fence" in message.msg

    call_command("eventlogs", "triggers", database=second_database, stdout=StringIO())
    assert database_messages(second_database) == []


@pytest.mark.postgresql
@pytest.mark.fence
def test_w012_the_sequence_gives_positions_out_in_blocks(second_database):
    with connections[second_database].cursor() as cursor:
        cursor.execute("ALTER TABLE eventlogs_event ALTER position SET CACHE 20")

    [message] = database_messages(second_database)
    assert message.id == "eventlogs.W012"
    assert "CACHE 20" in message.msg

    with connections[second_database].cursor() as cursor:
        cursor.execute("ALTER TABLE eventlogs_event ALTER position SET CACHE 1")
    assert database_messages(second_database) == []


@pytest.mark.postgresql
@pytest.mark.fence
def test_w012_the_sequence_runs_backwards_or_is_missing(second_database):
    for change, said in (
        ("SET INCREMENT -1 SET MINVALUE 1", "INCREMENT -1"),
        ("SET INCREMENT 1 SET CYCLE", "CYCLE"),
        ("DROP IDENTITY", "is missing"),
    ):
        with connections[second_database].cursor() as cursor:
            cursor.execute(f"ALTER TABLE eventlogs_event ALTER position {change}")

        [message] = database_messages(second_database)
        assert message.id == "eventlogs.W012"
        assert said in message.msg


@pytest.mark.postgresql
@pytest.mark.fence
def test_w013_the_events_are_distributed(second_database):
    with connections[second_database].cursor() as cursor:
        cursor.execute(
            "CREATE TABLE pg_dist_partition AS SELECT 'eventlogs_event'::regclass AS logicalrelid"
        )

    [message] = database_messages(second_database)

    assert message.id == "eventlogs.W013"


@pytest.mark.postgresql
def test_a_test_database_made_by_django_has_no_findings(db):
    assert database_messages("default") == []


@pytest.mark.postgresql
def test_w008_in_a_test_database_only_the_trigger_on_truncate_may_be_missing(db):
    with connection.cursor() as cursor:
        cursor.execute("DROP TRIGGER eventlogs_event_refuse_change ON eventlogs_event")

    [message] = database_messages("default")

    assert message.id == "eventlogs.W008"
    assert "truncate" not in message.msg


@pytest.mark.postgresql
def test_a_database_without_the_tables_is_not_checked(second_database):
    call_command("migrate", "eventlogs", "zero", database=second_database, verbosity=0)

    assert database_messages(second_database) == []


@pytest.mark.sqlite
def test_sqlite_has_no_triggers_to_check(second_database):
    assert database_messages(second_database) == []
