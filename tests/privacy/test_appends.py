"""Appends with personal data are encrypted for their place, whatever version they expect."""

from __future__ import annotations

import json
from threading import Barrier, Thread
from typing import Any
from uuid import UUID

import pytest
from django.db import connection, connections, transaction
from django.db.models import QuerySet
from django.test.utils import CaptureQueriesContext

from eventlogs import (
    ANY,
    ConcurrentAppend,
    IdempotencyKeyReused,
    IdempotencyKeyUndecided,
    IdempotentReplay,
    InvalidEvent,
    LogManager,
    LogNotFound,
    NameTaken,
    SubjectForgotten,
    UndecodableEvent,
    Unique,
    event_context,
)
from eventlogs.events.unique import unique_value
from eventlogs.models import Event, IdempotencyKey, SubjectKey, SubjectLog, UniqueValue
from eventlogs.operations.unique_values import claim
from eventlogs.privacy import key_store, memory
from eventlogs.privacy.sealing import Sealing
from eventlogs.stores import BaseStore
from tests.people import Address, Admitted, Guest, Moved, Noted, Patient, Registered

ALICE = Admitted(
    7, "Alice Secret", phone="555-1234", address=Address("Secret Street 5", "Ulm"), notes=["cough"]
)
SECRETS = ["Alice Secret", "555-1234", "Secret Street", "cough"]


@pytest.fixture
def patients(database_store: BaseStore, transactional_db: None) -> LogManager[Patient]:
    return LogManager(Patient, store=database_store)


def stored_text() -> str:
    """Return all that the tables hold, as text."""
    rows = [*Event.objects.values_list("data", "metadata"), *IdempotencyKey.objects.values()]
    return repr(rows) + repr(list(SubjectLog.objects.values()))


def test_personal_values_are_stored_encrypted_and_read_as_they_were(patients):
    state = patients.create(ALICE)

    [record] = patients.load(state.log_id)
    text = stored_text()

    assert record.event == ALICE
    assert [each for each in SECRETS if each in text] == []
    assert "Ulm" in text
    assert patients.reduce(state.log_id).aggregate.name == "Alice Secret"


def test_a_forgotten_subject_leaves_the_stand_ins(patients):
    state = patients.create(ALICE)
    key_store().destroy("patient:7")

    [record] = patients.load(state.log_id)
    [raw] = patients.load(state.log_id, decode=False)

    assert record.event == Admitted(7, "erased", address=Address("erased", "Ulm"), notes=[""])
    assert raw.event["name"] == "erased"
    assert raw.event["phone"] is None


def test_each_subject_has_one_key_and_a_row_for_each_log(patients):
    one = patients.create(ALICE, Moved("B"))
    two = patients.create(ALICE)
    patients.append(one, ALICE)

    key_id = SubjectKey.objects.get().id

    assert key_store().find("patient:7") == key_id
    assert sorted(SubjectLog.objects.values_list("key_id", "log_id")) == sorted(
        [(key_id, one.log_id), (key_id, two.log_id)]
    )


def test_an_append_with_any_is_encrypted_for_the_index_that_it_gets(patients):
    state = patients.create(Moved("A"))
    patients.append(state, Moved("B"))

    patients.append(state.log_id, ALICE, ALICE, expected_version=ANY)

    assert [each.event for each in patients.load(state.log_id)[2:]] == [ALICE, ALICE]


def test_any_does_not_create_a_log(patients):
    log_id = patients.new_id()

    with pytest.raises(LogNotFound):
        patients.append(log_id, ALICE, expected_version=ANY)

    assert not Event.objects.exists()


def test_a_ciphertext_that_was_moved_is_refused(patients):
    state = patients.create(ALICE, Admitted(7, "Bob"))
    stored = patients._writing_store().events(state.log_id, start=0, limit=2)
    first, second = (json.loads(each.data) for each in stored)
    second["name"] = first["name"]

    with pytest.raises(UndecodableEvent, match=r"at \$\.name, its personal data were changed"):
        list(
            patients._reader.records(
                [type(stored[1])(**{**fields_of(stored[1]), "data": json.dumps(second)})]
            )
        )


def fields_of(stored: Any) -> dict[str, Any]:
    return {name: getattr(stored, name) for name in stored.__struct_fields__}


def test_a_known_subject_and_log_costs_no_further_query(patients):
    state = patients.create(ALICE)
    state = patients.append(state, Moved("B"))
    with CaptureQueriesContext(connection) as plain:
        state = patients.append(state, Moved("B"))

    with CaptureQueriesContext(connection) as personal:
        patients.append(state, ALICE)

    assert len(personal) == len(plain)


def test_a_page_looks_its_keys_up_once(patients):
    state = patients.create(*[Admitted(n % 5, "x") for n in range(50)])
    with CaptureQueriesContext(connection) as queries:
        patients.load(state.log_id)

    assert len(queries) == 2


def test_a_retry_is_a_replay_although_it_is_encrypted_anew(patients):
    state = patients.create(ALICE, idempotency_key="k")
    done = patients.append(state, ALICE, idempotency_key="l")

    with pytest.raises(IdempotentReplay) as created:
        patients.create(ALICE, idempotency_key="k")
    with pytest.raises(IdempotentReplay) as appended:
        patients.append(state, ALICE, idempotency_key="l")
    with pytest.raises(IdempotentReplay):
        patients.append(state.log_id, ALICE, expected_version=ANY, idempotency_key="l")
    with pytest.raises(IdempotencyKeyReused):
        patients.append(state, Admitted(7, "Another"), idempotency_key="l")

    assert created.value.state == state
    assert appended.value.state == done


def test_a_retry_of_a_forgotten_subject_is_undecided(patients):
    state = patients.create(ALICE, idempotency_key="k")
    key_store().destroy("patient:7")

    with transaction.atomic():
        with pytest.raises(IdempotencyKeyUndecided) as caught:
            patients.create(ALICE, idempotency_key="k")
        with pytest.raises(SubjectForgotten):
            patients.create(ALICE, idempotency_key="other")
        patients.append(state, Moved("B"))

    assert caught.value.reason == "forgotten"
    assert caught.value.log_id == state.log_id
    assert patients.version(state.log_id) == 2


def test_a_key_of_a_rolled_back_transaction_is_not_used_again(patients):
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        patients.create(ALICE)
        _ = 1 / 0
    state = patients.create(ALICE)

    [record] = patients.load(state.log_id)

    assert record.event == ALICE
    assert SubjectLog.objects.count() == 1


def test_a_key_is_remembered_after_the_commit(patients):
    with transaction.atomic():
        state = patients.create(ALICE)
    state = patients.append(state, Moved("A"))  # which notes its type, if it is the first one
    with CaptureQueriesContext(connection) as plain:
        state = patients.append(state, Moved("B"))

    with CaptureQueriesContext(connection) as personal:
        patients.append(state, ALICE)

    assert len(personal) == len(plain)


def test_writers_with_any_store_all_that_they_append(patients):
    state = patients.create(Moved("A"))
    barrier = Barrier(4)
    failed: list[Exception] = []

    def write(number: int) -> None:
        barrier.wait()
        try:
            for _ in range(10):
                patients.append(state.log_id, Admitted(number, f"n{number}"), expected_version=ANY)
        except Exception as error:
            failed.append(error)
        finally:
            connections.close_all()

    threads = [Thread(target=write, args=(number,)) for number in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()

    assert failed == []
    names = [each.event.name for each in patients.load(state.log_id, start=1)]
    assert sorted(names) == sorted(f"n{number}" for number in range(4) for _ in range(10))


def test_a_broken_version_that_encrypts_once_stores_what_cannot_be_read(patients, monkeypatch):
    """A conflict that another writer causes between the look at the version and the append."""
    state = patients.create(Moved("A"))
    sealed = Sealing.sealed
    interfering = [True]

    def interrupted(self: Sealing, index: int, *, compares: bool) -> Any:
        found = sealed(self, index, compares=compares)
        if interfering and interfering.pop():
            patients.append(state.log_id, Moved("B"), expected_version=ANY)
        return found

    monkeypatch.setattr(Sealing, "sealed", interrupted)
    patients.append(state.log_id, ALICE, expected_version=ANY)
    assert patients.load(state.log_id)[2].event == ALICE

    def once(self: Sealing, index: int, *, compares: bool) -> Any:
        return sealed(self, 1, compares=compares)

    monkeypatch.setattr(Sealing, "sealed", once)
    patients.append(state.log_id, ALICE, expected_version=ANY)
    with pytest.raises(UndecodableEvent, match="belong to another event"):
        patients.load(state.log_id)


def test_metadata_are_encrypted_for_their_subject(patients, settings):
    settings.EVENTLOGS = {
        **settings.EVENTLOGS,
        "PERSONAL_METADATA": {"ip": "user", "session": None},
    }
    with event_context(ip="10.9.8.7"):
        state = patients.create(Moved("B"), metadata={"user": 12, "session": "xyzzy", "via": "web"})

    [record] = patients.load(state.log_id)
    text = stored_text()
    log_key = key_store().find(str(state.log_id))
    key_store().destroy("12")
    [erased] = patients.load(state.log_id)

    assert record.metadata == {"user": 12, "session": "xyzzy", "via": "web", "ip": "10.9.8.7"}
    assert "10.9.8.7" not in text
    assert "xyzzy" not in text
    assert isinstance(log_key, UUID)
    assert erased.metadata == {**record.metadata, "ip": None}


@pytest.mark.parametrize("note", [{"$personal": "1.x"}, [{"$personal": 1, "b": 2}]])
def test_a_key_of_the_users_own_like_ours_is_refused(patients, note):
    with pytest.raises(InvalidEvent, match="reserved"):
        patients.create(Noted(note))
    with pytest.raises(InvalidEvent, match="reserved"):
        patients.create(Noted("x"), metadata={"note": note})


def test_a_stale_state_is_a_conflict(patients):
    state = patients.create(ALICE)
    patients.append(state, ALICE)

    with pytest.raises(ConcurrentAppend):
        patients.append(state, ALICE)


@pytest.fixture
def guests(database_store: BaseStore, transactional_db: None) -> LogManager[Guest]:
    return LogManager(Guest, store=database_store)


def test_a_personal_value_can_be_unique_and_is_found(guests):
    state = guests.create(Registered("g1", "Ann@example.com"))

    with pytest.raises(NameTaken):
        guests.create(Registered("g2", "ann@example.com"))

    assert guests.find("guest.email", "ANN@example.com") == state.log_id
    assert guests.find("guest.email", "bob@example.com") is None


def test_the_digest_of_a_personal_value_is_keyed(guests):
    guests.create(Registered("g1", "ann@example.com"))
    unique = Unique("guest.email", normalize=str.casefold)

    assert UniqueValue.objects.get().digest != unique_value(unique, "ann@example.com").digest


def test_claims_are_computed_from_encrypted_events(guests):
    state = guests.create(Registered("g1", "ann@example.com"))
    guests.create(Registered("g2", "bob@example.com"))
    QuerySet(UniqueValue).delete()
    key_store().destroy("g2")

    claimed = claim()

    assert claimed.changed == 1
    assert guests.find("guest.email", "ann@example.com") == state.log_id
    assert guests.find("guest.email", "bob@example.com") is None
    assert claim().changed == 0


def test_to_find_a_personal_value_makes_no_key(guests):
    assert guests.find("guest.email", "ann@example.com") is None
    assert guests.find("guest.email", None) is None
    with pytest.raises(TypeError):
        guests.find("guest.email", ["a list"])

    assert not SubjectKey.objects.exists()


def test_a_personal_value_that_is_none_needs_no_index_key(guests):
    guests.create(Registered("ann"))

    assert not SubjectKey.objects.filter(subject=memory.INDEX).exists()


def test_an_append_asks_once_for_the_index_key(guests, monkeypatch):
    asked: list[object] = []
    index_key = memory.index_key

    def counting(using: str | None = None) -> bytes:
        asked.append(using)
        return index_key(using)

    monkeypatch.setattr(memory, "index_key", counting)
    guests.create(*(Registered("ann", f"{number}@example.com") for number in range(5)))

    assert len(asked) == 1
