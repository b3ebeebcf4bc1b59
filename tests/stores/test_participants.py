"""Appends with participants: all of it is stored, or nothing."""

from __future__ import annotations

import pytest
from django.db import IntegrityError, OperationalError, connection, connections, transaction

from eventlogs import ANY, ConcurrentAppend, TransactionMustRetry
from eventlogs.models import Event
from eventlogs.stores import participants
from eventlogs.stores.participants import Participant
from tests.accounts import Account, Deposited, Parcel, Sent

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def follow(monkeypatch):
    """A function that registers another one as a participant in appends."""

    def add(function, log_types=("account",)):
        monkeypatch.setitem(
            participants.registered, function.__name__, Participant(log_types, function)
        )

    return add


def test_a_participant_is_called_in_the_appends_transaction_with_its_state(follow):
    calls = []

    def note(using, state, request):
        calls.append((using, state, len(request.events), connection.in_atomic_block))

    follow(note)
    state = Account.logs.create(Deposited(1), Deposited(2))
    Parcel.logs.create(Sent("here"))

    assert calls == [("default", state, 2, True)]


def test_a_participant_of_no_types_takes_part_in_all_appends(follow):
    calls = []

    def note(using, state, request):
        calls.append(state.log_id.log_type)

    follow(note, None)
    Account.logs.create(Deposited(1))
    Parcel.logs.create(Sent("here"))

    assert calls == ["account", "parcel"]


@pytest.mark.parametrize("error", [ValueError, IntegrityError, KeyboardInterrupt])
def test_an_error_of_a_participant_undoes_only_its_append(follow, error):
    def refuse(using, state, request):
        raise error

    first = Account.logs.create(Deposited(1))
    follow(refuse)
    with transaction.atomic():
        with pytest.raises(error):
            Account.logs.append(first, Deposited(2))
        participants.registered.pop("refuse")
        Account.logs.append(first, Deposited(3))

    assert [event.data["amount"] for event in Event.objects.order_by("position")] == [1, 3]


@pytest.mark.postgresql
def test_an_append_that_the_database_aborts_is_retried_with_its_participants(follow):
    calls = []

    def give_up(using, state, request):
        calls.append(state.version)
        if len(calls) < 3:
            with connection.cursor() as cursor:
                cursor.execute("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '40001'; END $$")

    follow(give_up)
    state = Account.logs.create(Deposited(1))

    assert (calls, state.version) == ([1, 1, 1], 1)
    assert Event.objects.count() == 1


@pytest.mark.postgresql
def test_an_append_that_is_aborted_in_the_store_is_retried(follow, race):
    connections.close_all()
    options = connection.settings_dict["OPTIONS"]
    options["options"] = r"-c default_transaction_isolation=repeatable\ read"
    try:
        follow(do_nothing)
        state = Account.logs.create(Deposited(1))

        def append():
            for _ in range(5):
                Account.logs.append(state.log_id, Deposited(1), expected_version=ANY)

        answers = race(*[append] * 2)
        assert {type(each) for each in answers} <= {type(None), TransactionMustRetry}
        assert answers != [None] * 2 or Account.logs.version(state.log_id) == 11
    finally:
        del options["options"]
        connections.close_all()


def do_nothing(using, state, request):
    pass


@pytest.mark.postgresql
def test_inside_of_a_callers_transaction_only_the_caller_can_retry(follow):
    def give_up(using, state, request):
        with connection.cursor() as cursor:
            cursor.execute("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '40P01'; END $$")

    follow(give_up)
    with pytest.raises(TransactionMustRetry) as caught, transaction.atomic():
        Account.logs.create(Deposited(1))

    assert caught.value.sqlstate == "40P01"
    assert isinstance(caught.value.__cause__, OperationalError)
    assert Event.objects.count() == 0


def append_and_take_part_afterwards(taking_part, store, using, request):
    state = store.append(request)
    for each in taking_part:
        each.take_part(using, state, request)
    return state


def test_a_broken_version_outside_of_the_transaction_keeps_refused_appends(follow, monkeypatch):
    monkeypatch.setattr(participants, "append_with", append_and_take_part_afterwards)

    with pytest.raises(ConcurrentAppend):
        test_an_error_of_a_participant_undoes_only_its_append(follow, ValueError)
