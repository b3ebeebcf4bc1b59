"""Keys in another database than the events: no rollback there takes a key from stored events."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import connections, transaction

from eventlogs import ANY, LogId
from eventlogs.exceptions import KeyUnavailable
from eventlogs.models import SubjectKey
from eventlogs.privacy import forget, key_store, memory
from tests.people import Admitted, Patient


@pytest.fixture
def keys_at(second_database: str, settings: Any) -> str:
    """The alias of the database of the keys; the events are in the default one."""
    store = {
        "BACKEND": "eventlogs.privacy.DatabaseKeyStore",
        "OPTIONS": {"using": second_database},
    }
    settings.EVENTLOGS = {**settings.EVENTLOGS, "KEY_STORE": store}
    return second_database


def admit_and_roll_the_keys_back(keys_at: str, log_id: LogId) -> None:
    with pytest.raises(ZeroDivisionError), transaction.atomic(using=keys_at):
        Patient.logs.create(Admitted(1, "Ada"), log_id=log_id)
        _ = 1 / 0


def test_events_that_are_stored_can_be_read(keys_at):
    log_id = LogId.new("patient")
    if connections[keys_at].vendor == "sqlite":  # it has one writer: the append is refused
        refused = pytest.raises(KeyUnavailable, match="not committed")
        with refused, transaction.atomic(using=keys_at):
            Patient.logs.create(Admitted(1, "Ada"), log_id=log_id)
        assert not Patient.logs.exists(log_id)
        return
    admit_and_roll_the_keys_back(keys_at, log_id)

    [record] = Patient.logs.load(log_id)
    assert record.event.name == "Ada"
    memory.clear()
    with transaction.atomic(using=keys_at):
        Patient.logs.append(log_id, Admitted(1, "Bea"), expected_version=ANY)
    assert SubjectKey.objects.using(keys_at).count() == 1


def test_a_committed_key_is_used_in_a_transaction(keys_at):
    log_id = Patient.logs.create(Admitted(1, "Ada")).log_id
    memory.clear()

    with pytest.raises(ZeroDivisionError), transaction.atomic(using=keys_at):
        Patient.logs.append(log_id, Admitted(1, "Bea"), expected_version=ANY)
        _ = 1 / 0

    assert [each.event.name for each in Patient.logs.load(log_id)] == ["Ada", "Bea"]


def test_a_key_of_the_open_transaction_is_refused_and_not_waited_for(keys_at):
    log_id = LogId.new("patient")
    with transaction.atomic(using=keys_at):
        key_store().for_subjects(["patient:1"])

        with pytest.raises(KeyUnavailable, match="not committed"):
            Patient.logs.create(Admitted(1, "Ada"), log_id=log_id)

    Patient.logs.create(Admitted(1, "Ada"), log_id=log_id)


def test_a_broken_version_loses_the_name(keys_at, monkeypatch):
    monkeypatch.setattr(memory, "_may_part", lambda store, using: False)
    log_id = LogId.new("patient")
    admit_and_roll_the_keys_back(keys_at, log_id)

    assert Patient.logs.exists(log_id)
    with pytest.raises(KeyUnavailable):
        Patient.logs.load(log_id)


def test_nobody_is_forgotten_in_a_transaction_of_the_keys(keys_at):
    Patient.logs.create(Admitted(1, "Ada"))

    with pytest.raises(RuntimeError), transaction.atomic(using=keys_at):
        forget("patient:1", using="default")

    assert SubjectKey.objects.using(keys_at).get().wrapped is not None


@pytest.mark.django_db(transaction=True, available_apps=["eventlogs"])
def test_in_one_database_the_key_is_rolled_back_with_the_events():
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        Patient.logs.create(Admitted(1, "Ada"))
        _ = 1 / 0

    assert not SubjectKey.objects.exists()
