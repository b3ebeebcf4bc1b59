"""What a process remembers for appends with personal data is committed, and not for long."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from eventlogs import LogId, LogManager
from eventlogs.models import SubjectKey, SubjectLog
from eventlogs.privacy import key_store, memory
from eventlogs.privacy.memory import keys_for_writing
from eventlogs.privacy.subject_logs import note_logs
from tests.people import Admitted, Patient

pytestmark = pytest.mark.django_db(transaction=True, available_apps=["eventlogs"])


def queries_of(subject: str) -> int:
    with CaptureQueriesContext(connection) as queries:
        keys_for_writing([subject])
    return len(queries)


def test_a_key_is_remembered_for_a_minute(monkeypatch):
    now = 1_000.0
    monkeypatch.setattr("eventlogs.privacy.memory.time.monotonic", lambda: now)
    keys_for_writing(["a"])

    assert queries_of("a") == 0
    now += 61
    assert queries_of("a") == 1


def test_a_destroyed_key_is_dropped_at_once():
    keys_for_writing(["a", "b"])
    memory.drop_key("a")

    assert queries_of("a") == 1
    assert queries_of("b") == 0


def test_not_more_keys_than_a_limit_are_remembered(monkeypatch):
    monkeypatch.setattr("eventlogs.privacy.memory.MOST", 3)
    for number in range(10):
        keys_for_writing([f"s{number}"])

    assert len(memory._keys) <= 3


def test_a_key_of_an_open_transaction_is_read_each_time():
    with transaction.atomic():
        first = keys_for_writing(["a"])
        assert queries_of("a") == 1
        assert keys_for_writing(["a"]) == first

    assert queries_of("a") == 0


def test_a_savepoint_that_is_rolled_back_by_hand_takes_the_key_with_it():
    with transaction.atomic():
        savepoint = connection.savepoint()
        first = keys_for_writing(["a"])
        transaction.savepoint_rollback(savepoint)

    second = keys_for_writing(["a"])

    assert second != first
    assert SubjectKey.objects.get().id == second["a"].id


@pytest.mark.parametrize("is_nested", [True, False])
def test_a_key_that_was_rolled_back_is_not_remembered(is_nested):
    with transaction.atomic():
        with pytest.raises(ZeroDivisionError), transaction.atomic(savepoint=is_nested):
            keys_for_writing(["a"])
            _ = 1 / 0
        if not is_nested:
            transaction.set_rollback(True)

    found = keys_for_writing(["a"])["a"]

    assert key_store().secrets([found.id]) == {found.id: found.secret}


def test_a_log_is_noted_once_for_each_key():
    log_id, keys = LogId.new("patient"), [uuid4(), uuid4()]

    for _ in range(2):
        note_logs("default", keys, log_id)
        memory.clear()

    assert sorted(SubjectLog.objects.values_list("key_id", flat=True)) == sorted(keys)


def test_a_log_is_noted_again_after_a_minute(monkeypatch):
    """A backup may be restored under a process that goes on."""
    now = 1_000.0
    monkeypatch.setattr("eventlogs.privacy.memory.time.monotonic", lambda: now)
    log_id, key_id = LogId.new("patient"), uuid4()
    note_logs("default", [key_id], log_id)
    SubjectLog.objects.all().delete()

    note_logs("default", [key_id], log_id)
    assert not SubjectLog.objects.exists()
    now += 61
    note_logs("default", [key_id], log_id)

    assert SubjectLog.objects.count() == 1


def test_a_log_that_was_noted_in_a_rolled_back_transaction_is_noted_again():
    log_id, keys = LogId.new("patient"), [uuid4()]
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        note_logs("default", keys, log_id)
        _ = 1 / 0
    with transaction.atomic():
        savepoint = connection.savepoint()
        note_logs("default", keys, log_id)
        transaction.savepoint_rollback(savepoint)
    note_logs("default", keys, log_id)

    assert SubjectLog.objects.count() == 1


@pytest.fixture
def remembering_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken version, which takes every statement for committed."""
    for module in ("memory", "subject_logs"):
        monkeypatch.setattr(f"eventlogs.privacy.{module}.is_autocommit", lambda using: True)


def test_a_broken_version_loses_a_key(remembering_too_early):
    with pytest.raises(AssertionError):
        test_a_savepoint_that_is_rolled_back_by_hand_takes_the_key_with_it()


def test_a_broken_version_loses_a_row(remembering_too_early):
    with pytest.raises(AssertionError):
        test_a_log_that_was_noted_in_a_rolled_back_transaction_is_noted_again()


def test_every_event_with_personal_data_has_its_row() -> None:
    """However appends and rollbacks follow one another, by one process."""
    logs: LogManager[Patient] = Patient.logs
    state: Any = logs.create(Admitted(0, "x"))
    for number in range(1, 12):
        try:
            with transaction.atomic():
                moved = logs.append(state, Admitted(number % 4, "x"))
                if number % 3 == 0:
                    raise ZeroDivisionError
                state = moved
        except ZeroDivisionError:
            pass
    wanted = {key_store().find(f"patient:{each.event.patient}") for each in logs.load(state.log_id)}

    assert set(SubjectLog.objects.values_list("key_id", flat=True)) >= wanted
    assert all(each.event.name == "x" for each in logs.load(state.log_id))
