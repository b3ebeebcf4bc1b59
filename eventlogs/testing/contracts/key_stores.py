"""The contract of key stores, which keep the keys of subjects."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from uuid import uuid4

import pytest
from django.db import connections, transaction

from eventlogs.exceptions import KeyUnavailable, SubjectForgotten
from eventlogs.privacy.keys import BaseKeyStore

CALLERS = 4


def new_subject() -> str:
    """Return a subject that no other test has."""
    return f"eventlogs-contract:{uuid4()}"


class KeyStoreContract:
    """
    What every key store must do.

    Define the fixture ``key_store``. Where the store is in a database, its tests must commit: mark
    the class with ``pytest.mark.django_db(transaction=True)``.
    """

    def test_a_key_is_created_once(self, key_store: BaseKeyStore) -> None:
        subject = new_subject()

        first = key_store.for_subjects([subject])
        second = key_store.for_subjects([subject, subject])

        assert first == second
        assert list(first) == [subject]
        assert len(first[subject].secret) == 32

    def test_subjects_have_keys_of_their_own(self, key_store: BaseKeyStore) -> None:
        subjects = [new_subject() for _ in range(3)]

        keys = key_store.for_subjects(subjects)

        assert set(keys) == set(subjects)
        assert len({key.secret for key in keys.values()}) == 3
        assert len({key.id for key in keys.values()}) == 3

    def test_subjects_are_compared_byte_for_byte(self, key_store: BaseKeyStore) -> None:
        name = new_subject()
        subjects = [f"{name}é", f"{name}e", f"{name}E", f"{name}e "]

        keys = key_store.for_subjects(subjects)

        assert len({key.id for key in keys.values()}) == 4
        assert [key_store.find(each) for each in subjects] == [keys[each].id for each in subjects]

    def test_many_subjects_can_be_asked_for(self, key_store: BaseKeyStore) -> None:
        subjects = [new_subject() for _ in range(450)]

        keys = key_store.for_subjects(subjects)
        secrets = key_store.secrets([key.id for key in keys.values()])

        assert secrets == {key.id: key.secret for key in keys.values()}

    def test_no_subjects_and_no_ids_are_nothing(self, key_store: BaseKeyStore) -> None:
        assert key_store.for_subjects([]) == {}
        assert key_store.secrets([]) == {}

    def test_secrets_are_found_by_their_ids(self, key_store: BaseKeyStore) -> None:
        subject = new_subject()
        key = key_store.for_subjects([subject])[subject]

        assert key_store.secrets([key.id]) == {key.id: key.secret}
        assert key_store.find(subject) == key.id

    def test_it_says_which_keys_exist(self, key_store: BaseKeyStore) -> None:
        kept, gone = new_subject(), new_subject()
        keys = key_store.for_subjects([kept, gone])
        key_store.destroy(gone)

        assert key_store.existing([each.id for each in keys.values()]) == {keys[kept].id}
        with pytest.raises(KeyUnavailable):
            key_store.existing([uuid4()])

    def test_an_unknown_subject_has_no_key(self, key_store: BaseKeyStore) -> None:
        subject = new_subject()

        assert key_store.find(subject) is None
        assert key_store.destroy(subject) is None

    def test_an_unknown_id_is_an_error_and_not_a_destroyed_key(
        self, key_store: BaseKeyStore
    ) -> None:
        with pytest.raises(KeyUnavailable):
            key_store.secrets([uuid4()])

    def test_a_destroyed_key_is_gone_for_good(self, key_store: BaseKeyStore) -> None:
        subject, other = new_subject(), new_subject()
        keys = key_store.for_subjects([subject, other])

        destroyed = key_store.destroy(subject)

        assert destroyed == keys[subject].id
        assert key_store.secrets([key.id for key in keys.values()]) == {
            keys[other].id: keys[other].secret
        }
        assert key_store.find(subject) == destroyed
        with pytest.raises(SubjectForgotten) as caught:
            key_store.for_subjects([subject, other])
        assert caught.value.subject == subject
        assert caught.value.key_id == destroyed

    def test_a_key_can_be_destroyed_again(self, key_store: BaseKeyStore) -> None:
        subject = new_subject()
        key_store.for_subjects([subject])

        first = key_store.destroy(subject)

        assert first is not None
        assert key_store.destroy(subject) == first

    def test_a_rotation_changes_no_key(self, key_store: BaseKeyStore) -> None:
        kept, forgotten = new_subject(), new_subject()
        keys = key_store.for_subjects([kept, forgotten])
        key_store.destroy(forgotten)

        key_store.rotate()

        assert key_store.for_subjects([kept])[kept] == keys[kept]
        assert key_store.secrets([keys[forgotten].id]) == {}
        assert key_store.rotate() == 0

    def test_a_forgotten_subject_leaves_the_transaction_usable(
        self, key_store: BaseKeyStore
    ) -> None:
        if key_store.using is None:
            pytest.skip("The store takes part in no transaction.")
        subject = new_subject()
        key_store.for_subjects([subject])
        key_store.destroy(subject)

        with transaction.atomic(using=key_store.using):
            with pytest.raises(SubjectForgotten):
                key_store.for_subjects([subject])
            other = new_subject()
            key_store.for_subjects([other])

        assert key_store.find(other) is not None

    def test_callers_at_the_same_time_get_the_same_key(self, key_store: BaseKeyStore) -> None:
        subject = new_subject()
        barrier = Barrier(CALLERS)

        def create() -> object:
            barrier.wait()
            try:
                return key_store.for_subjects([subject])[subject]
            finally:
                connections.close_all()

        with ThreadPoolExecutor(CALLERS) as pool:
            found = {each.result() for each in [pool.submit(create) for _ in range(CALLERS)]}

        assert len(found) == 1
