"""The key store of this package against the contract of key stores."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from eventlogs.exceptions import KeyUnavailable
from eventlogs.models import SubjectKey
from eventlogs.privacy import BaseKeyStore, DatabaseKeyStore, SubjectCipherKey
from eventlogs.testing.contracts.key_stores import KeyStoreContract
from tests.privacy.conftest import NEW, OLD

autocommit = pytest.mark.django_db(transaction=True, available_apps=["eventlogs"])


@pytest.fixture(autouse=True)
def encryption_keys(settings: Any) -> None:
    settings.EVENTLOGS = {"ENCRYPTION_KEYS": [OLD]}


@autocommit
class TestDatabaseKeyStore(KeyStoreContract):
    @pytest.fixture
    def key_store(self) -> BaseKeyStore:
        return DatabaseKeyStore()


class NeverReadAgain(DatabaseKeyStore):
    """A key store that does not read a row again which another process has inserted first."""

    def for_subjects(self, subjects: Collection[str]) -> dict[str, SubjectCipherKey]:
        rows = {each: self._of_subjects([each]).get(each) or self._new(each) for each in subjects}
        self._insert([row for row in rows.values() if row._state.adding])
        return {each: SubjectCipherKey(row.id, self._secret(row)) for each, row in rows.items()}


@autocommit
@pytest.mark.parametrize("attempt", range(3))
def test_a_broken_version_is_caught(attempt: int) -> None:
    contract = KeyStoreContract()

    with pytest.raises(AssertionError):
        for _ in range(50):
            contract.test_callers_at_the_same_time_get_the_same_key(NeverReadAgain())


@autocommit
def test_a_rotation_goes_on_where_it_was_interrupted(settings, monkeypatch):
    store = DatabaseKeyStore()
    keys = store.for_subjects([f"s{number}" for number in range(450)])
    settings.EVENTLOGS = {"ENCRYPTION_KEYS": [NEW, OLD]}
    wrapped: list[UUID] = []

    class Interrupted(DatabaseKeyStore):
        def wrap(self, secret: bytes, key_id: UUID) -> tuple[bytes, str]:
            wrapped.append(key_id)
            if len(wrapped) == 300:
                raise KeyboardInterrupt
            return super().wrap(secret, key_id)

    with pytest.raises(KeyboardInterrupt):
        Interrupted().rotate()
    assert store.rotate() == 250
    settings.EVENTLOGS = {"ENCRYPTION_KEYS": [NEW]}

    assert store.for_subjects(list(keys)) == keys


@autocommit
def test_a_missing_wrapping_key_is_an_error_and_not_erased(settings):
    store = DatabaseKeyStore()
    keys = store.for_subjects(["s"])
    settings.EVENTLOGS = {"ENCRYPTION_KEYS": [NEW]}

    with pytest.raises(KeyUnavailable, match="lacks the key"):
        store.secrets([keys["s"].id])
    with pytest.raises(KeyUnavailable, match="lacks the key"):
        store.for_subjects(["s"])


@autocommit
def test_a_wrapped_key_belongs_to_its_row(settings):
    store = DatabaseKeyStore()
    keys = store.for_subjects(["s", "t"])
    SubjectKey.objects.filter(subject="s").update(
        wrapped=SubjectKey.objects.get(subject="t").wrapped
    )

    with pytest.raises(KeyUnavailable, match="was changed"):
        store.secrets([keys["s"].id])


@autocommit
def test_a_look_up_is_one_query_and_no_key_is_kept():
    store = DatabaseKeyStore()
    keys = store.for_subjects(["s", "t"])

    for _ in range(2):
        with CaptureQueriesContext(connection) as queries:
            store.secrets([each.id for each in keys.values()])
        assert len(queries) == 1


@autocommit
def test_a_key_that_is_rolled_back_is_not_there():
    store = DatabaseKeyStore()
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        store.for_subjects(["s"])
        _ = 1 / 0

    assert store.find("s") is None


@autocommit
def test_a_rotation_leaves_out_what_it_cannot_unwrap_and_names_it(settings):
    store = DatabaseKeyStore()
    keys = store.for_subjects([f"s{number}" for number in range(5)])
    bad = keys["s2"].id
    SubjectKey.objects.filter(pk=bad).update(wrapped=bytes(60))
    settings.EVENTLOGS = {"ENCRYPTION_KEYS": [NEW, OLD]}

    with pytest.raises(KeyUnavailable, match=f"{bad}.*4 others were wrapped anew"):
        store.rotate()

    settings.EVENTLOGS = {"ENCRYPTION_KEYS": [NEW]}
    others = keys.keys() - {"s2"}
    assert store.for_subjects(others) == {each: keys[each] for each in others}


@autocommit
def test_a_lost_key_can_be_given_up_and_no_other():
    store, lost = DatabaseKeyStore(), uuid4()
    kept = store.for_subjects(["s"])["s"]
    for ask in (store.secrets, store.existing):
        with pytest.raises(KeyUnavailable, match=f"--lost-key {lost}"):
            ask([lost])

    assert store.give_up(lost)
    assert not store.give_up(lost)
    assert not store.give_up(kept.id)

    assert store.secrets([lost, kept.id]) == {kept.id: kept.secret}
    assert store.existing([lost, kept.id]) == {kept.id}


@autocommit
def test_whether_keys_are_there_is_one_query_that_unwraps_nothing(settings):
    store = DatabaseKeyStore()
    keys = store.for_subjects(["s", "t"])
    store.destroy("t")
    settings.EVENTLOGS = {"ENCRYPTION_KEYS": [NEW]}

    with CaptureQueriesContext(connection) as queries:
        found = store.existing([each.id for each in keys.values()])

    assert found == {keys["s"].id}
    assert len(queries) == 1


@autocommit
def test_a_rotation_whose_locks_are_lost_does_not_bring_a_destroyed_key_back(settings):
    """Citus forgets the locks of a transaction that has not written, where it moves a schema."""
    store = DatabaseKeyStore()
    store.for_subjects(["ada"])
    settings.EVENTLOGS = {"ENCRYPTION_KEYS": [NEW, OLD]}

    class Late(DatabaseKeyStore):
        def wrap(self, secret: bytes, key_id: UUID) -> tuple[bytes, str]:
            self.destroy("ada")
            return super().wrap(secret, key_id)

    Late().rotate()

    key = SubjectKey.objects.get(subject="ada")
    assert key.destroyed_at is not None
    assert (key.wrapped, key.wrapped_by) == (None, "")
