"""The system checks, each by its id."""

from __future__ import annotations

from dataclasses import dataclass, make_dataclass
from datetime import timedelta
from decimal import Decimal
from functools import partial

import pytest
from django.core.checks import run_checks
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import connection, connections

from eventlogs import event, upcaster
from eventlogs.checks import check_events, check_settings, check_sqlite_transactions


def found(*checks, **kwargs):
    """Return the ids of what the checks find."""
    return [message.id for check in checks for message in check(app_configs=None, **kwargs)]


def test_nothing_is_wrong_with_the_tests_themselves():
    assert [message for message in run_checks() if message.id.startswith("eventlogs")] == []


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "PAGE_SIZE",
        {"MAX_EVENT_BYTES": 0},
        {"MAX_EVENT_BYTES": 2**28 + 1},
        {"MAX_EVENT_BYTES": 10.0},
        {"MAX_EVENT_BYTES": True},
        {"IDEMPOTENCY_KEY_RETENTION": 30},
        {"IDEMPOTENCY_KEY_RETENTION": timedelta()},
        {"PREPARED_STATEMENTS": 1},
        {"PAGE_SIZE": 0},
        {"PAGE_SIZE": 10_001},
        {"PAGE_SIZE": "100"},
    ],
)
def test_e001_a_setting_has_a_value_that_cannot_be(settings, value):
    settings.EVENTLOGS = value

    [message] = check_settings()

    assert message.id == "eventlogs.E001"
    assert message.is_serious()
    assert message.hint.startswith("Set ")


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"MAX_EVENT_BYTES": 1, "PAGE_SIZE": 1, "PREPARED_STATEMENTS": False},
        {"MAX_EVENT_BYTES": 2**28, "PAGE_SIZE": 10_000},
        {"IDEMPOTENCY_KEY_RETENTION": None},
        {"IDEMPOTENCY_KEY_RETENTION": timedelta(days=30)},
    ],
)
def test_a_setting_within_its_bounds_is_fine(settings, value):
    settings.EVENTLOGS = value

    assert found(check_settings) == []


def test_settings_that_are_not_there_are_fine(settings):
    if hasattr(settings, "EVENTLOGS"):
        del settings.EVENTLOGS

    assert found(check_settings) == []


def test_w002_a_setting_has_an_unknown_key(settings):
    settings.EVENTLOGS = {"PAGESIZE": 7}

    [message] = check_settings()

    assert message.id == "eventlogs.W002"
    assert not message.is_serious()
    assert "PAGE_SIZE" in message.hint


@pytest.mark.sqlite
@pytest.mark.parametrize(
    ("options", "ids"),
    [
        ({}, ["eventlogs.E004"]),
        ({"transaction_mode": None}, ["eventlogs.E004"]),
        ({"transaction_mode": "DEFERRED"}, ["eventlogs.E004"]),
        ({"transaction_mode": "IMMEDIATE"}, []),
        ({"transaction_mode": "immediate"}, []),
        ({"transaction_mode": "EXCLUSIVE"}, []),
    ],
)
def test_e004_sqlite_transactions_are_not_immediate(monkeypatch, options, ids):
    monkeypatch.setitem(connection.settings_dict, "OPTIONS", options)

    assert found(check_sqlite_transactions) == ids


@pytest.mark.sqlite
def test_a_database_that_holds_no_logs_is_not_checked(monkeypatch, settings):
    class Elsewhere:
        def allow_migrate(self, *args, **kwargs):
            return False

    monkeypatch.setitem(connection.settings_dict, "OPTIONS", {})
    settings.DATABASE_ROUTERS = [Elsewhere()]

    assert found(check_sqlite_transactions) == []


def test_e005_use_tz_is_off(settings):
    settings.USE_TZ = False

    [message] = check_settings()

    assert (message.id, message.hint) == ("eventlogs.E005", "Set USE_TZ = True.")


@pytest.mark.usefixtures("scratch_registry")
def test_e006_two_classes_claim_one_name():
    event("account.deposited")(make_dataclass("Claimant", [("amount", int)]))

    [message] = check_events()

    assert message.id == "eventlogs.E006"
    assert "tests.accounts.Deposited" in message.msg


@pytest.mark.usefixtures("scratch_registry")
def test_e006_an_upcaster_is_missing():
    event("tests.reshaped", version=2)(make_dataclass("Reshaped", [("amount", int)]))

    assert found(check_events) == ["eventlogs.E006"]

    upcaster("tests.reshaped", from_version=1)(lambda data: data)

    assert found(check_events) == []


@pytest.mark.usefixtures("scratch_registry")
def test_e006_an_upcaster_is_too_many():
    upcaster("account.deposited", from_version=1)(lambda data: data)

    assert found(check_events) == ["eventlogs.E006"]


@pytest.mark.usefixtures("scratch_registry")
def test_e007_fields_cannot_be_encoded():
    @event("tests.ambiguous")
    @dataclass(frozen=True)
    class Ambiguous:
        money: Decimal | str

    [message] = check_events()

    assert message.id == "eventlogs.E007"
    assert "Ambiguous" in message.msg


@pytest.mark.usefixtures("scratch_registry")
def test_manage_py_check_stops_at_an_error():
    event("tests.reshaped", version=2)(make_dataclass("Reshaped", [("amount", int)]))

    with pytest.raises(SystemCheckError, match=r"eventlogs\.E006"):
        call_command("check")


def database_messages(alias):
    """Return what ``check --database`` finds about eventlogs."""
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
def test_what_the_hint_of_w008_says_puts_the_triggers_back(second_database):
    with connections[second_database].cursor() as cursor:
        cursor.execute("DROP TRIGGER eventlogs_event_refuse_change ON eventlogs_event")

    migrate = partial(call_command, "migrate", "eventlogs", database=second_database, verbosity=0)
    migrate("0001", fake=True)
    migrate("0003")
    migrate(fake=True)

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
def test_w011_the_fence_is_missing_or_can_be_switched_off(second_database, tampering):
    with connections[second_database].cursor() as cursor:
        cursor.execute(tampering)

    [message] = database_messages(second_database)
    assert message.id == "eventlogs.W011"
    assert "eventlogs_event_fence" in message.msg

    migrate = partial(call_command, "migrate", "eventlogs", database=second_database, verbosity=0)
    migrate("0002", fake=True)
    migrate("0003")
    migrate(fake=True)
    assert database_messages(second_database) == []


@pytest.mark.postgresql
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
def test_a_database_without_the_tables_is_not_checked(second_database):
    call_command("migrate", "eventlogs", "zero", database=second_database, verbosity=0)

    assert database_messages(second_database) == []


@pytest.mark.sqlite
def test_sqlite_has_no_triggers_to_check(second_database):
    assert database_messages(second_database) == []
