"""The triggers of PostgreSQL: missing, disabled and replaced ones are found."""

from __future__ import annotations

from io import StringIO

import pytest
from django.core.management import call_command
from django.db import connection, connections

from eventlogs.operations.triggers import TriggerVerifier
from eventlogs.operations.verification import Finding, Scope

NOTHING = "LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$"
CHAIN = "eventlogs_chain(head bytea, bodies bytea[]) RETURNS bytea[]"

ERASE = "eventlogs_erase_log(uuid, text, integer, bytea, text, text)"


def found(alias: str) -> list[Finding]:
    return list(TriggerVerifier().verify(Scope(alias)))


def execute(alias: str, sql: str) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute(sql)


@pytest.mark.postgresql
def test_those_of_the_migrations_have_no_findings(second_database):
    assert found(second_database) == []


@pytest.mark.skipif(connection.vendor == "postgresql", reason="there are triggers")
def test_other_databases_have_none(db):
    assert found("default") == []


@pytest.mark.postgresql
@pytest.mark.parametrize(
    ("attack", "subject", "problem"),
    [
        (
            "DROP TRIGGER eventlogs_event_refuse_change ON eventlogs_event",
            "eventlogs_event",
            "is missing",
        ),
        (
            "ALTER TABLE eventlogs_event DISABLE TRIGGER eventlogs_event_refuse_change",
            "eventlogs_event",
            "is disabled",
        ),
        (
            "ALTER TABLE eventlogs_eventlog ENABLE TRIGGER eventlogs_eventlog_keep_chain",
            "eventlogs_eventlog",
            "not ENABLE ALWAYS",
        ),
        (
            f"CREATE OR REPLACE FUNCTION eventlogs_refuse_change() RETURNS trigger {NOTHING}",
            "eventlogs_event",
            "another function",
        ),
        pytest.param(
            f"CREATE OR REPLACE FUNCTION eventlogs_fence() RETURNS trigger {NOTHING}",
            "eventlogs_event",
            "another function",
            marks=pytest.mark.fence,
        ),
        (
            "CREATE OR REPLACE FUNCTION eventlogs_take_positions(log uuid, count integer)"
            " RETURNS bigint LANGUAGE sql AS 'SELECT 1::bigint'",
            "eventlogs_take_positions",
            "was replaced",
        ),
        (
            f"CREATE FUNCTION nothing() RETURNS trigger {NOTHING};"
            "CREATE OR REPLACE TRIGGER eventlogs_event_refuse_change "
            "BEFORE UPDATE OR DELETE ON eventlogs_event "
            "FOR EACH ROW EXECUTE FUNCTION nothing();"
            "ALTER TABLE eventlogs_event ENABLE ALWAYS TRIGGER eventlogs_event_refuse_change",
            "eventlogs_event",
            "another function",
        ),
        (
            "CREATE OR REPLACE TRIGGER eventlogs_event_refuse_change "
            "BEFORE UPDATE OR DELETE ON eventlogs_event "
            "FOR EACH ROW WHEN (false) EXECUTE FUNCTION eventlogs_refuse_change();"
            "ALTER TABLE eventlogs_event ENABLE ALWAYS TRIGGER eventlogs_event_refuse_change",
            "eventlogs_event",
            "was replaced",
        ),
        (
            "CREATE OR REPLACE TRIGGER eventlogs_event_refuse_change "
            "BEFORE UPDATE OF metadata OR DELETE ON eventlogs_event "
            "FOR EACH ROW EXECUTE FUNCTION eventlogs_refuse_change();"
            "ALTER TABLE eventlogs_event ENABLE ALWAYS TRIGGER eventlogs_event_refuse_change",
            "eventlogs_event",
            "was replaced",
        ),
        (
            "CREATE OR REPLACE TRIGGER eventlogs_eventlog_keep_chain "
            "AFTER UPDATE ON eventlogs_eventlog "
            "FOR EACH ROW WHEN (OLD.version < 0) EXECUTE FUNCTION eventlogs_keep_chain();"
            "ALTER TABLE eventlogs_eventlog ENABLE ALWAYS TRIGGER eventlogs_eventlog_keep_chain",
            "eventlogs_eventlog",
            "was replaced",
        ),
        (
            "DROP FUNCTION eventlogs_chain(bytea, bytea[])",
            "eventlogs_chain",
            "is missing",
        ),
        (
            f"CREATE OR REPLACE FUNCTION {CHAIN} LANGUAGE sql AS 'SELECT bodies'",
            "eventlogs_chain",
            "was replaced",
        ),
        (
            "ALTER FUNCTION eventlogs_refuse_change() SECURITY DEFINER",
            "eventlogs_event",
            "other rights",
        ),
        (
            "ALTER FUNCTION eventlogs_keep_chain() SET search_path = public",
            "eventlogs_eventlog",
            "other rights",
        ),
        (
            "ALTER FUNCTION eventlogs_chain(bytea, bytea[]) SET search_path = public",
            "eventlogs_chain",
            "other rights",
        ),
        (
            f"ALTER FUNCTION {ERASE} SECURITY DEFINER",
            "eventlogs_erase_log",
            "other rights",
        ),
        (
            f"GRANT EXECUTE ON FUNCTION {ERASE} TO PUBLIC",
            "eventlogs_erase_log",
            "by everybody",
        ),
        (
            f"DROP FUNCTION {ERASE}; CREATE FUNCTION {ERASE} RETURNS timestamptz"
            " LANGUAGE sql AS 'SELECT now()'",
            "eventlogs_erase_log",
            "was replaced",
        ),
        (
            f"DROP FUNCTION {ERASE}",
            "eventlogs_erase_log",
            "is missing",
        ),
    ],
    ids=str,
)
def test_an_attack_is_found_and_repaired(second_database, attack, subject, problem):
    execute(second_database, attack)

    findings = found(second_database)
    assert {each.subject for each in findings} == {subject}
    assert all(problem in each.message for each in findings)

    call_command("eventlogs", "triggers", "--database", second_database, stdout=StringIO())
    assert found(second_database) == []


@pytest.mark.postgresql
def test_a_fence_that_was_made_for_another_table_is_right(second_database):
    """A dump that is restored keeps the oids of its first database in the function."""
    with connections[second_database].cursor() as cursor:
        cursor.execute("SELECT pg_get_functiondef('eventlogs_fence'::regproc)")
        (definition,) = cursor.fetchone()
        cursor.execute("SELECT 'eventlogs_event'::regclass::oid::text")
        (table,) = cursor.fetchone()
        cursor.execute(definition.replace(f" {table}::", " 4711::"))

    assert found(second_database) == []
