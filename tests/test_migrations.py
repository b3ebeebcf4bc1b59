"""The migrations: the objects that they create and drop."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest
from django.core.management import call_command
from django.db import (
    DatabaseError,
    IntegrityError,
    connection,
    connections,
    migrations,
    transaction,
)
from django.db.migrations.exceptions import IrreversibleError
from django.db.migrations.loader import MigrationLoader

from eventlogs import LogManager, stores
from eventlogs.models import Event, EventLog
from eventlogs.operations.chaining import ChainVerifier
from eventlogs.operations.verification import Scope
from tests.accounts import Account, Deposited, Opened

TABLES = {
    "eventlogs_appliedversion",
    "eventlogs_checkpoint",
    "eventlogs_event",
    "eventlogs_eventlog",
    "eventlogs_idempotencykey",
    "eventlogs_parkedevent",
    "eventlogs_projectionaction",
    "eventlogs_projectionstate",
    "eventlogs_projectionworker",
    "eventlogs_skippedevent",
    "eventlogs_uniquevalue",
    "eventlogs_storedtype",
    "eventlogs_subjectkey",
    "eventlogs_subjectlog",
    "eventlogs_erasedlog",
    "eventlogs_archivedlog",
    "eventlogs_logmove",
    "eventlogs_archivefile",
    "eventlogs_bucket",
    "eventlogs_returnedlog",
}


def triggers(alias: str) -> dict[str, str]:
    with connections[alias].cursor() as cursor:
        cursor.execute(
            "SELECT tgname, tgenabled FROM pg_trigger"
            " WHERE tgrelid = 'eventlogs_event'::regclass AND NOT tgisinternal"
        )
        return dict(cursor.fetchall())


def tables(alias: str) -> set[str]:
    return {name for name in connections[alias].introspection.table_names() if "eventlogs" in name}


def test_migrations_go_forwards_backwards_and_forwards_again(second_database):
    assert tables(second_database) == TABLES

    call_command("migrate", "eventlogs", "0001", database=second_database, verbosity=0)
    call_command("migrate", "eventlogs", "zero", database=second_database, verbosity=0)
    assert tables(second_database) == set()

    call_command("migrate", "eventlogs", database=second_database, verbosity=0)
    assert tables(second_database) == TABLES
    assert LogManager(Account, using=second_database).create(Opened("ada")).version == 1


def test_chains_are_not_left_to_a_release_that_would_break_them(second_database, settings):
    settings.EVENTLOGS = {"CHAIN": True}
    logs = LogManager(Account, using=second_database)
    log = logs.create(Opened("ada"))

    with pytest.raises(IrreversibleError, match="chained logs"):
        call_command("migrate", "eventlogs", "0009", database=second_database, verbosity=0)

    call_command("migrate", "eventlogs", database=second_database, verbosity=0)
    assert logs.append(log, Deposited(1)).version == 2
    assert list(ChainVerifier().verify(Scope(second_database))) == []

    page = (Path(__file__).parent.parent / "docs" / "proof.md").read_text(encoding="utf-8")
    [sql] = re.findall(r"```sql\n(.*?)```", page, re.DOTALL)
    with connections[second_database].cursor() as cursor:
        for statement in sql.strip().split(";\n"):
            if connection.vendor == "postgresql" or "TRIGGER" not in statement:
                cursor.execute(statement)
    call_command("migrate", "eventlogs", "0009", database=second_database, verbosity=0)


class OnlyByModel:
    """A router that decides by model, and keeps eventlogs out of all databases but one."""

    database = "default"

    def allow_migrate(self, db, app_label, model_name=None, **hints):
        return db == self.database if app_label == "eventlogs" and model_name else None


def test_every_operation_names_its_model():
    loader = MigrationLoader(None)
    operations = [
        operation
        for (app, _), migration in loader.disk_migrations.items()
        if app == "eventlogs"
        for operation in migration.operations
        if isinstance(operation, migrations.RunPython | migrations.RunSQL)
    ]

    assert len(operations) >= 3
    assert [each for each in operations if not each.hints.get("model_name")] == []


def test_a_router_that_decides_by_model_keeps_the_tables_and_the_sql_out(second_database, settings):
    call_command("migrate", "eventlogs", "zero", database=second_database, verbosity=0)
    settings.DATABASE_ROUTERS = ["tests.test_migrations.OnlyByModel"]

    call_command("migrate", "eventlogs", database=second_database, verbosity=0)
    assert tables(second_database) == set()

    call_command("migrate", "eventlogs", "zero", database=second_database, verbosity=0)
    settings.DATABASE_ROUTERS = []
    call_command("migrate", "eventlogs", database=second_database, verbosity=0)
    assert tables(second_database) == TABLES


def test_migrations_are_named_for_what_they_do(second_database, capsys):
    call_command("showmigrations", "eventlogs", database=second_database, no_color=True)

    names = [line.split()[-1] for line in capsys.readouterr().out.splitlines() if "[" in line]
    assert names
    assert not [name for name in names if "auto" in name]


@pytest.mark.one_table
def test_constraints_are_named_for_what_they_do(db):
    with connection.cursor() as cursor:
        names = {
            name
            for table in TABLES
            for name, each in connection.introspection.get_constraints(cursor, table).items()
            if each["unique"] and not each["primary_key"]
        }

    assert names == {
        "eventlogs_appliedversion_one_per_log",
        "eventlogs_checkpoint_one_per_partition",
        "eventlogs_event_one_per_log_and_index",
        "eventlogs_idempotencykey_used_once_per_log_type",
        "eventlogs_parkedevent_one_per_log",
        "eventlogs_skippedevent_skipped_once",
        "eventlogs_uniquevalue_one_log_per_value",
        "eventlogs_archivefile_one_per_name",
        "eventlogs_logmove_one_per_token",
        "eventlogs_storedtype_noted_once",
        "eventlogs_subjectkey_one_per_subject",
        "eventlogs_subjectlog_one_per_key_and_log",
    }


# PostgreSQL's triggers

CHANGES = {
    "update": "UPDATE eventlogs_event SET type = 'account.lied'",
    "update to the same": "UPDATE eventlogs_event SET type = type",
    "delete": "DELETE FROM eventlogs_event",
    "delete one": "DELETE FROM eventlogs_event WHERE index = 1",
    "upsert": (
        "INSERT INTO eventlogs_event SELECT * FROM eventlogs_event"
        " ON CONFLICT (position) DO UPDATE SET type = 'account.lied'"
    ),
    "merge": (
        "MERGE INTO eventlogs_event AS event USING (SELECT 1) AS one ON true"
        " WHEN MATCHED THEN DELETE"
    ),
}
TRUNCATES = {
    "truncate": "TRUNCATE eventlogs_event",
    "truncate all": (
        "TRUNCATE eventlogs_event, eventlogs_eventlog, eventlogs_idempotencykey RESTART IDENTITY"
    ),
    "truncate with cascade": "TRUNCATE eventlogs_event CASCADE",
}


@pytest.mark.one_table
@pytest.mark.postgresql
@pytest.mark.parametrize("role", ["origin", "replica", "local"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_postgresql_refuses_to_change_events(transactional_db, change, role):
    state = Account.logs.create(Opened("ada"), Deposited(5))

    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"SET LOCAL session_replication_role = {role}")
        with (
            pytest.raises(IntegrityError, match=r"append-only: (UPDATE|DELETE) is refused"),
            transaction.atomic(),
        ):
            cursor.execute(change)

    assert [record.event for record in Account.logs.load(state.log_id)] == [
        Opened("ada"),
        Deposited(5),
    ]


@pytest.mark.postgresql
@pytest.mark.parametrize(("state", "role"), [("DISABLE", "origin"), ("ENABLE", "replica")])
def test_a_broken_version_whose_trigger_does_not_always_fire_changes_events(
    transactional_db, state, role
):
    table, trigger = "ALTER TABLE eventlogs_event", "TRIGGER eventlogs_event_refuse_change"
    with connection.cursor() as cursor:
        cursor.execute(f"{table} {state} {trigger}")
        try:
            with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
                test_postgresql_refuses_to_change_events(transactional_db, CHANGES["update"], role)
        finally:
            cursor.execute(f"{table} ENABLE ALWAYS {trigger}")


@pytest.mark.postgresql
@pytest.mark.parametrize("role", ["origin", "replica", "local"])
@pytest.mark.parametrize("truncate", TRUNCATES.values(), ids=TRUNCATES)
def test_postgresql_refuses_to_empty_the_table_of_events(second_database, truncate, role):
    state = LogManager(Account, using=second_database).create(Opened("ada"))

    with (
        transaction.atomic(using=second_database),
        connections[second_database].cursor() as cursor,
    ):
        cursor.execute(f"SET LOCAL session_replication_role = {role}")
        with (
            pytest.raises(IntegrityError, match="append-only: TRUNCATE is refused"),
            transaction.atomic(using=second_database),
        ):
            cursor.execute(truncate)

    assert LogManager(Account, using=second_database).version(state.log_id) == 1


@pytest.mark.postgresql
def test_the_triggers_fire_always(second_database):
    assert triggers(second_database) == {
        "eventlogs_event_fence": "A",
        "eventlogs_event_refuse_change": "A",
        "eventlogs_event_refuse_truncate": "A",
    }


@pytest.mark.postgresql
@pytest.mark.parametrize(
    "oid", [1, 16384, 65532, 65533, 65534, 65535, 65536, 131067, 131068, 2**31, 2**32 - 1]
)
def test_the_trigger_and_the_readers_give_a_table_the_same_number(db, oid):
    function = import_module("eventlogs.migrations.0005_lighter_appends").function(
        oid, 7, "'seven'"
    )
    keys = re.findall(
        r"pg_advisory_xact_lock_shared\(\s*(\(.*?)\) IS (?:NOT )?NULL", function, re.DOTALL
    )
    statements = Path(stores.__file__).parent / "sql"
    readers = [
        re.findall(r"classid::bigint >> 16 = (?:\(\s*SELECT )?(.* 65534\))", path.read_text())
        for path in (statements / "feed_fence.sql", statements / "feed_holders.sql")
    ]

    assert len(keys) == 2  # for the first append of a transaction, and for the others
    for key in keys:
        key = key.replace("TG_RELID", f"{oid}::oid").replace("fence", "5::bigint")
        key = re.sub(r"least\(.*", "5::bigint", key, flags=re.DOTALL)
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT {key}")
            (taken,) = cursor.fetchone()
            for [number] in readers:
                number = re.sub(r"'eventlogs_event'(::text)?::regclass", str(oid), number)
                cursor.execute(f"SELECT {number}")
                assert cursor.fetchone() == (taken % 2**64 >> 48,)
        assert taken % 2**48 == 5
        assert 0 < taken % 2**64 >> 48 < 65535  # small keys, negative or not, have these


@pytest.mark.postgresql
def test_truncate_stays_allowed_in_a_test_database_made_by_django(transactional_db):
    Account.logs.create(Opened("ada"))

    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE eventlogs_event")

    assert triggers("default") == {
        "eventlogs_event_fence": "A",
        "eventlogs_event_refuse_change": "A",
    }
    assert not Event.objects.exists()
    assert EventLog.objects.exists()


@pytest.mark.postgresql
def test_the_refusal_names_the_next_action_and_shows_no_data(second_database):
    LogManager(Account, using=second_database).create(Opened("4111-1111"))

    with pytest.raises(DatabaseError) as caught, connections[second_database].cursor() as cursor:
        cursor.execute("DELETE FROM eventlogs_event")

    assert "Append an event that corrects it" in str(caught.value)
    assert "4111" not in str(caught.value)


@pytest.mark.postgresql
def test_a_statement_that_touches_no_event_passes(db):
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM eventlogs_event WHERE false")
        assert cursor.rowcount == 0


@pytest.mark.postgresql
def test_migrating_backwards_removes_the_triggers(second_database):
    call_command("migrate", "eventlogs", "0001", database=second_database, verbosity=0)

    assert triggers(second_database) == {}
    with connections[second_database].cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_proc"
            " WHERE proname IN ('eventlogs_refuse_change', 'eventlogs_fence')"
        )
        assert cursor.fetchone() == (0,)


@pytest.mark.postgresql
def test_sqlmigrate_shows_the_sql_of_a_migration(second_database, capsys):
    call_command("sqlmigrate", "eventlogs", "0001", database=second_database)

    assert "eventlogs_event_one_per_log_and_index" in capsys.readouterr().out
