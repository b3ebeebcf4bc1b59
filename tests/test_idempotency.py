"""Idempotency keys, on every store."""

from __future__ import annotations

from datetime import timedelta
from enum import Enum

import pytest
from django.utils.safestring import mark_safe

from eventlogs import (
    ANY,
    ConcurrentAppend,
    IdempotencyKeyReused,
    IdempotentReplay,
    InvalidIdempotencyKey,
    LogAlreadyExists,
    LogId,
    LogManager,
    LogState,
)
from eventlogs.models import IdempotencyKey
from tests.accounts import (
    Account,
    Deposited,
    Opened,
    Parcel,
    Sent,
    Withdrawn,
    withdraw,
)


def test_the_retry_of_a_lost_acknowledgement_is_a_replay_not_a_conflict(accounts):
    state = accounts.create(Opened("ada"))
    answer = accounts.append(state, Deposited(5), idempotency_key="k")

    with pytest.raises(IdempotentReplay) as caught:
        accounts.append(state, Deposited(5), idempotency_key="k")

    assert caught.value.idempotency_key == "k"
    assert (caught.value.log_id, caught.value.index) == (state.log_id, 1)
    assert caught.value.state == answer
    assert accounts.version(state.log_id) == 2


def test_a_replay_carries_the_original_state_also_after_later_appends(accounts):
    created = accounts.create(Opened("ada"), Deposited(1), idempotency_key="created")
    appended = accounts.append(created, Deposited(5), Deposited(6), idempotency_key="appended")
    accounts.append(appended, Deposited(7))
    accounts.append(created.log_id, Deposited(8), expected_version=ANY, idempotency_key="later")

    with pytest.raises(IdempotentReplay) as created_again:
        accounts.create(Opened("ada"), Deposited(1), idempotency_key="created")
    with pytest.raises(IdempotentReplay) as appended_again:
        accounts.append(created, Deposited(5), Deposited(6), idempotency_key="appended")

    assert (created_again.value.index, created_again.value.state) == (0, created)
    assert (appended_again.value.index, appended_again.value.state) == (2, appended)


def test_a_create_that_is_retried_with_another_new_id_is_a_replay(accounts, log_id):
    created = accounts.create(Opened("ada"), idempotency_key="k")

    for again in (log_id, None, created.log_id):
        with pytest.raises(IdempotentReplay) as caught:
            accounts.create(Opened("ada"), log_id=again, idempotency_key="k")
        assert caught.value.state == created

    assert not accounts.exists(log_id)


def test_a_key_with_other_events_is_reused(accounts):
    state = accounts.create(Opened("ada"))
    accounts.append(state, Deposited(5), idempotency_key="k")

    for events in ([Deposited(6)], [Deposited(5), Deposited(5)], [Withdrawn(5)]):
        with pytest.raises(IdempotencyKeyReused) as caught:
            accounts.append(state, *events, idempotency_key="k")
        assert caught.value.idempotency_key == "k"
        assert (caught.value.log_id, caught.value.index) == (state.log_id, 1)
    with pytest.raises(IdempotencyKeyReused):
        accounts.create(Opened("ada"), idempotency_key="k")

    assert accounts.version(state.log_id) == 2


def test_the_key_of_another_log_is_reused(accounts):
    one, other = accounts.create(Opened("ada")), accounts.create(Opened("ada"))
    accounts.append(one, Deposited(5), idempotency_key="k")

    with pytest.raises(IdempotencyKeyReused) as caught:
        accounts.append(other, Deposited(5), idempotency_key="k")

    assert caught.value.log_id == one.log_id
    assert accounts.version(other.log_id) == 1


def test_an_append_that_begins_a_log_is_no_retry_of_another_logs_create(accounts):
    """The call names its log: the state of the other one as an answer would hide lost events."""
    created = accounts.create(Opened("ada"), idempotency_key="k")
    other = accounts.new_id()

    for to in (other, LogState(other, 0, 0)):
        for append in (accounts.append, accounts.get_or_append):
            expected = {} if isinstance(to, LogState) else {"expected_version": 0}
            with pytest.raises(IdempotencyKeyReused) as caught:
                append(to, Opened("ada"), idempotency_key="k", **expected)
            assert (caught.value.log_id, caught.value.reason) == (created.log_id, "log")
    assert not accounts.exists(other)

    again = accounts.get_or_append(
        created.log_id, Opened("ada"), idempotency_key="k", expected_version=0
    )
    assert again == (created, False)
    assert accounts.get_or_create(Opened("ada"), log_id=other, idempotency_key="k") == (
        created,
        False,
    )


def test_a_log_type_has_its_own_keys(accounts, store):
    accounts.create(Opened("ada"), idempotency_key="k")

    state = LogManager(Parcel, store=store).create(Sent("ada"), idempotency_key="k")

    assert state.version == 1


@pytest.mark.parametrize(
    ("key", "limit"),
    [
        ("", "must have 1 to 255 characters"),
        ("k" * 256, "must have 1 to 255 characters"),
        ("a\0b", "NUL"),
        ("a\ud800b", "lone surrogates"),
        (7, "must be a str, not int"),
        (b"k", "must be a str, not bytes"),
    ],
)
def test_an_invalid_key_is_refused(accounts, key, limit):
    state = accounts.create(Opened("ada"))

    for call in (
        lambda: accounts.create(Opened("ada"), idempotency_key=key),
        lambda: accounts.append(state, Deposited(1), idempotency_key=key),
        lambda: accounts.get_or_create(Opened("ada"), idempotency_key=key),
        lambda: accounts.get_or_append(state, Deposited(1), idempotency_key=key),
        lambda: accounts.execute(state.log_id, withdraw, 0, idempotency_key=key),
    ):
        with pytest.raises(InvalidIdempotencyKey, match=limit):
            call()

    assert accounts.version(state.log_id) == 1


@pytest.mark.parametrize("key", ["k" * 255, "é☃\U0001f600" * 85, " ", "k ", "a'b\"c\\d%s%(x)s\n"])
def test_a_key_of_any_characters_is_found_again(accounts, key):
    created = accounts.create(Opened("ada"), idempotency_key=key)

    assert accounts.get_or_create(Opened("ada"), idempotency_key=key) == (created, False)
    assert accounts.load(created.log_id)[0].idempotency_key == key


class Button(str, Enum):  # noqa: UP042 - str() of a StrEnum is its value
    """Its ``str()`` is "Button.PAY", its characters are "pay"."""

    PAY = "pay"


@pytest.mark.parametrize("kind", [LogId.parse, mark_safe, lambda _: Button.PAY])
def test_a_key_of_a_str_subclass_is_stored_as_its_characters(accounts, kind):
    """A key of another module's class with the same name would be taken for the same otherwise."""
    key = kind("account_01h455vb4pex5vsknk084sn02q")
    created = accounts.create(Opened("ada"), idempotency_key=key)

    plain = "pay" if key is Button.PAY else "account_01h455vb4pex5vsknk084sn02q"
    assert accounts.load(created.log_id)[0].idempotency_key == plain
    for again in (key, plain):
        assert accounts.get_or_create(Opened("ada"), idempotency_key=again) == (created, False)


def test_a_key_is_known_after_a_rotation_of_the_secret_key(accounts, settings):
    settings.SECRET_KEY = "old"
    state = accounts.create(Opened("ada"), idempotency_key="k")

    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = "new", ["old"]

    with pytest.raises(IdempotentReplay) as caught:
        accounts.create(Opened("ada"), idempotency_key="k")
    assert caught.value.state == state
    with pytest.raises(IdempotencyKeyReused):
        accounts.create(Opened("bob"), idempotency_key="k")


def test_after_its_secret_key_is_gone_a_key_is_known_by_the_events_that_are_stored(
    accounts, settings
):
    settings.SECRET_KEY = "old"
    created = accounts.create(Opened("ada"), idempotency_key="k")

    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = "new", []

    assert accounts.get_or_create(Opened("ada"), idempotency_key="k") == (created, False)
    with pytest.raises(IdempotencyKeyReused):
        accounts.create(Opened("bob"), idempotency_key="k")


def test_a_pruned_key_is_a_free_one(database_store, db):
    accounts = LogManager(Account, store=database_store)
    first = accounts.create(Opened("ada"), idempotency_key="k")

    assert IdempotencyKey.objects.prune(older_than=timedelta()) == 1
    second = accounts.create(Opened("ada"), idempotency_key="k")

    assert second.log_id != first.log_id
    assert accounts.load(first.log_id)[0].idempotency_key == "k"


def test_get_or_create_answers_the_original_state(accounts, log_id):
    created, was_created = accounts.get_or_create(
        Opened("ada"), Deposited(1), idempotency_key="k", metadata={"a": 1}
    )
    accounts.append(created, Deposited(2))

    again = accounts.get_or_create(Opened("ada"), Deposited(1), idempotency_key="k", log_id=log_id)

    assert was_created
    assert again == (created, False)
    assert accounts.load(created.log_id)[0].metadata == {"a": 1}
    with pytest.raises(IdempotencyKeyReused):
        accounts.get_or_create(Opened("bob"), idempotency_key="k")
    with pytest.raises(LogAlreadyExists):
        accounts.get_or_create(Opened("ada"), idempotency_key="l", log_id=created.log_id)


def test_get_or_append_answers_the_original_state(accounts):
    state = accounts.create(Opened("ada"))
    appended, was_appended = accounts.get_or_append(state, Deposited(2), idempotency_key="k")
    accounts.append(appended, Deposited(3))

    again = accounts.get_or_append(state, Deposited(2), idempotency_key="k")
    by_id = accounts.get_or_append(
        state.log_id, Deposited(2), idempotency_key="k", expected_version=ANY
    )

    assert was_appended
    assert again == by_id == (appended, False)
    with pytest.raises(IdempotencyKeyReused):
        accounts.get_or_append(state, Deposited(3), idempotency_key="k")
    with pytest.raises(ConcurrentAppend):
        accounts.get_or_append(state, Deposited(2), idempotency_key="l")
