"""Verifying: wrong rows are found, and rows that are only behind are not."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import Any
from uuid import UUID

import pytest
from django.db import connection, connections, transaction
from django.test.utils import CaptureQueriesContext

from eventlogs import LogId, ProjectionUnavailable
from eventlogs.events.codec import EncodedEvent
from eventlogs.feed import scans
from eventlogs.models import AppliedVersion, Checkpoint, EventLog
from eventlogs.projections import verify as verifying
from eventlogs.projections.releases import reading_of_rows
from eventlogs.projections.rows import differences
from eventlogs.projections.starting import begin
from eventlogs.projections.verify import Difference, Failure, Run, Verification
from eventlogs.stores import bulk_reads
from tests.accounts import Account, Deposited, Noted, Opened, Parcel, Sent, Withdrawn
from tests.locks import is_waited_for
from tests.projections import readmodels
from tests.projections.readmodels import (
    Balance,
    Balances,
    DepositsByOwner,
    Inlined,
    InlinedBalances,
    Reduced,
    ReducedBalances,
    balances,
    fail_on,
    replayed,
    until,
)

pytestmark = pytest.mark.usefixtures("tables")

EACH = pytest.mark.parametrize("each", [Balances, ReducedBalances])


def some(count=5):
    return [Account.logs.create(Opened("ada"), Deposited(number)) for number in range(count)]


def found(verification):
    return {each.log_id: each.fields for each in verification.differences}


@EACH
@pytest.mark.feed
def test_rows_that_are_right_are_found_to_be(each):
    some()
    Parcel.logs.create(Sent("here"))
    each.catch_up()

    verification = each.verify(sample=None)

    assert verification == Verification(5, ())
    assert verification


@EACH
@pytest.mark.feed
def test_rows_that_are_wrong_missing_or_surplus_are_found(each):
    states = some()
    each.catch_up()
    stray = LogId.new("account")
    rows = each.model.objects
    rows.filter(pk=states[0].log_id).update(balance=99, owner="eve")
    rows.filter(pk=states[1].log_id).delete()
    rows.create(pk=stray)

    verification = each.verify(sample=None)

    assert not verification
    assert found(verification) == {
        states[0].log_id: ("owner", "balance"),
        states[1].log_id: ("the row",),
        stray: ("the row",),
    }
    assert not any(each.is_repaired for each in verification.differences)
    assert stray in balances(each.model)


@EACH
@pytest.mark.feed
def test_differences_can_be_repaired(each):
    states = some()
    each.catch_up()
    rows = each.model.objects
    rows.filter(pk=states[0].log_id).update(balance=99)
    rows.filter(pk=states[1].log_id).delete()
    rows.create(pk=LogId.new("account"))

    verification = each.verify(sample=None, repair=True)

    assert verification
    assert len(verification.differences) == 3
    assert balances(each.model) == replayed(*states)
    assert each.verify(sample=None) == Verification(5, ())
    states[0] = Account.logs.append(states[0], Deposited(5))
    each.catch_up()
    assert balances(each.model) == replayed(*states)


@EACH
@pytest.mark.feed
def test_events_that_are_not_applied_yet_are_no_difference(each):
    states = some()
    each.catch_up()
    states[0] = Account.logs.append(states[0], Deposited(5))
    some(2)

    assert each.verify(sample=None, repair=True) == Verification(7, ())
    each.catch_up()
    assert balances(each.model)[states[0].log_id] == 5


@pytest.mark.feed
def test_events_behind_one_that_failed_are_no_difference():
    ada = Account.logs.create(Opened("ada"), Deposited(5), Withdrawn(1), Deposited(2))
    fail_on(Withdrawn)
    Balances.catch_up()
    readmodels.reset()

    assert Balances.verify(sample=None, repair=True) == Verification(1, (), held=1)
    assert balances() == {ada.log_id: 5}


def test_before_the_first_run_there_are_no_differences():
    some()
    assert Balances.verify(sample=None) == Verification(5, ())
    assert Balances.verify() == Verification(5, ())


@pytest.mark.feed
def test_a_sample_has_at_most_the_given_number_of_logs_and_finds_their_differences():
    states = some(30)
    Balances.catch_up()
    Balance.objects.update(balance=-1)

    verification = Balances.verify(sample=10)

    assert 1 <= verification.checked <= 10
    assert len(verification.differences) == verification.checked
    assert set(found(verification)) <= {state.log_id for state in states}
    assert Balances.verify(sample=30).checked == 30
    assert Balances.verify(sample=0) == Verification(0, ())


def test_rows_that_several_logs_share_cannot_be_compared():
    with pytest.raises(ProjectionUnavailable) as caught:
        DepositsByOwner.verify()
    assert caught.value.reason == "shared rows"


@EACH
@pytest.mark.feed
def test_an_error_of_a_handler_is_listed_and_the_other_logs_are_compared(each, monkeypatch):
    states = some()
    bad = Account.logs.create(Opened("eve"), Noted("broken"), Deposited(1))
    each.catch_up()
    each.model.objects.filter(pk=states[3].log_id).update(balance=99)
    monkeypatch.setattr(Account, "apply", apply_or_fail)
    fail_on(Noted)

    verification = each.verify(sample=None, repair=True)

    assert not verification
    assert verification.checked == 6
    noted = list(Account.logs.stream(bad.log_id))[1]
    assert verification.failed == (Failure(bad.log_id, "ValueError", noted.position),)
    assert found(verification) == {states[3].log_id: ("balance",)}
    assert balances(each.model)[states[3].log_id] == 3
    assert "4111" not in repr(verification)
    monkeypatch.undo()
    readmodels.reset()
    assert each.verify(sample=None) == Verification(6, ())


def apply_or_fail(self, record):
    if isinstance(record.event, Noted):
        raise ValueError("4111-1111")
    apply(self, record)


apply = Account.apply


def test_an_event_that_cannot_be_decoded_is_listed():
    ada = Account.logs.create(Opened("ada"), Deposited(5))
    bad = EncodedEvent("account.deposited", 1, '{"amount": "secret"}')
    state = EventLog.objects.append(ada.log_id, [bad], expected_version=2)
    some(2)
    Checkpoint.objects.all().delete()
    begin(Balances, "default")
    Checkpoint.objects.update(position=state.position)  # as if older code had applied it

    [failure] = Balances.verify(sample=None).failed

    assert failure == Failure(ada.log_id, "UndecodableEvent", state.position)


@pytest.mark.feed
def test_an_inline_row_is_compared_at_the_version_that_it_is_at(request):
    states = some()
    request.getfixturevalue("inlined")
    states[0] = Account.logs.append(states[0], Deposited(10))
    assert InlinedBalances.verify(sample=None)
    assert balances(Inlined) == {states[0].log_id: 10}

    InlinedBalances.catch_up()
    assert InlinedBalances.verify(sample=None)
    Inlined.objects.filter(pk=states[0].log_id).update(balance=99)
    Inlined.objects.filter(pk=states[1].log_id).delete()
    assert len(InlinedBalances.verify(sample=None).differences) == 2
    assert InlinedBalances.verify(sample=None, repair=True)
    assert balances(Inlined) == replayed(*states)
    states[1] = Account.logs.append(states[1], Deposited(1))
    assert balances(Inlined) == replayed(*states)
    assert set(AppliedVersion.objects.values_list("version", flat=True)) == {2, 3}


@pytest.mark.postgresql
def test_a_row_that_changes_during_the_comparison_is_compared_again(monkeypatch, elsewhere):
    monkeypatch.setattr(scans, "PAGE", 1)  # all logs are long ones
    states = some(3)
    Balances.catch_up()
    states = [Account.logs.append(state, Deposited(7)) for state in states]
    replay = verifying.replay
    replays: list[Any] = []

    def replay_late(*args, **options):
        answer = replay(*args, **options)
        if not replays:
            replays.append(1)
            elsewhere(Balances.catch_up)
        return answer

    compared = []

    def compare_again(model, stored, wanted, using):
        compared.append(1)
        return differences(model, Balance.objects.filter(pk=stored.pk).first(), wanted, using)

    monkeypatch.setattr(verifying, "replay", replay_late)
    monkeypatch.setattr(verifying, "differences", compare_again)
    assert Balances.verify(sample=None, repair=True) == Verification(3, ())
    assert len(compared) == 4
    assert balances() == replayed(*states)


@pytest.mark.feed
@pytest.mark.parametrize("page", [1, 2_000])
def test_a_broken_version_that_compares_with_the_whole_log_reports_rows_that_are_behind(
    monkeypatch, page
):
    monkeypatch.setattr(scans, "PAGE", page)
    records = verifying.records

    def all_records(projection, log_id, using, *, upto):
        return records(projection, log_id, using, upto=verifying.EVERYTHING)

    monkeypatch.setattr(verifying, "records", all_records)
    monkeypatch.setattr(verifying.Moment, "in_row", lambda self, log: (self.events[log], False))
    with pytest.raises(AssertionError):
        test_events_that_are_not_applied_yet_are_no_difference(Balances)


@pytest.mark.feed
def test_a_difference_shows_names_and_no_values():
    states = some(1)
    Balances.catch_up()
    Balance.objects.update(balance=4111)

    [difference] = Balances.verify(sample=None).differences
    assert difference == Difference(states[0].log_id, ("balance",), is_repaired=False)
    assert "4111" not in repr(difference)
    assert balances(Reduced) == {}


@pytest.mark.feed
def test_a_sample_of_logs_that_were_created_at_once_has_the_requested_size():
    # A moment at random is behind the ids of nearly all.
    clump = LogId.new("account").uuid.int >> 20 << 20
    for number in range(300):
        log_id = LogId("account", UUID(int=clump + number))
        Account.logs.create(Opened("ada"), log_id=log_id)
    Account.logs.create(Opened("much later"), log_id=LogId("account", UUID(int=clump + (1 << 90))))
    Balances.catch_up()

    checked = [Balances.verify(sample=20).checked for _ in range(3)]

    assert checked == [20, 20, 20]


# Many logs at once

ALL = pytest.mark.parametrize("each", [Balances, ReducedBalances, InlinedBalances])


@ALL
@pytest.mark.feed
@pytest.mark.parametrize("page", [1, 2_000])
def test_each_kind_of_wrong_row_is_found_one_by_one_and_at_once(each, page, monkeypatch):
    log_ids = [
        Account.logs.create(Opened("ada"), *[Deposited(number)] * 3).log_id for number in range(9)
    ]
    each.catch_up()
    monkeypatch.setattr(scans, "PAGE", page)
    assert each.verify(sample=None) == Verification(9, ())
    stray = LogId.new("account")
    rows = each.model.objects
    rows.filter(pk=log_ids[1]).delete()
    rows.filter(pk=log_ids[2]).update(balance=-1)
    rows.filter(pk=log_ids[4]).update(balance=4 * 2)  # too old: as of the event before the last
    rows.filter(pk=log_ids[5]).update(balance=5 * 4)  # too new: of an event that is not there
    rows.create(pk=stray)
    wrong = {log_ids[number]: ("balance",) for number in (2, 4, 5)}
    wrong |= {log_ids[1]: ("the row",), stray: ("the row",)}

    assert found(each.verify(sample=None)) == wrong
    assert found(each.verify(sample=None, repair=True)) == wrong

    assert each.verify(sample=None) == Verification(9, ())
    assert balances(each.model) == replayed_of(log_ids)


def replayed_of(log_ids):
    return {each: Account.logs.reduce(each).aggregate.balance for each in log_ids}


@ALL
@pytest.mark.feed
def test_statements_grow_with_chunks_and_not_with_logs(each):
    counts = []
    for number in (10, 190):
        some(number)
        each.catch_up()
        with CaptureQueriesContext(connection) as queries:
            assert each.verify(sample=None)
        counts.append(len(queries))

    assert counts[0] == counts[1]


@ALL
@pytest.mark.feed
def test_chunks_of_any_size_compare_all_logs(each, monkeypatch):
    for number in range(7):
        Account.logs.create(Opened("ada"), *[Deposited(1)] * number)
    each.catch_up()
    log_id = EventLog.objects.order_by("pk")[3].log_id
    each.model.objects.filter(pk=log_id).update(balance=99)

    for logs in (1, 2, 3):
        for events in (1, 4, 9):
            monkeypatch.setattr(verifying, "LOGS_AT_ONCE", logs)
            monkeypatch.setattr(verifying, "EVENTS_AT_ONCE", events)
            verification = each.verify(sample=None)
            assert (verification.checked, list(found(verification))) == (7, [log_id])


@pytest.mark.parametrize("each", [Balances, InlinedBalances])
@pytest.mark.feed
def test_logs_that_do_not_fit_into_memory_are_compared_in_smaller_steps(each, request, monkeypatch):
    if each is InlinedBalances:
        request.getfixturevalue("inlined")
    monkeypatch.setattr(bulk_reads, "EVENTS", 2)
    monkeypatch.setattr(bulk_reads, "MEMORY", 200)
    states = [Account.logs.create(*[Deposited(1)] * events) for events in (1, 30, 2, 3, 40, 1)]
    each.catch_up()
    each.rebuild()
    assert each.verify(sample=None) == Verification(6, ())
    wrong = {states[number].log_id for number in (1, 3, 5)}
    each.model.objects.filter(pk__in=wrong).update(balance=-1)

    verification = each.verify(sample=None)

    assert verification.checked == 6
    assert found(verification) == dict.fromkeys(wrong, ("balance",))
    each.rebuild()
    assert each.verify(sample=None)


@pytest.mark.feed
def test_single_logs_can_be_compared():
    first, second = sorted(state.log_id for state in some(2))
    Balances.catch_up()
    Balance.objects.update(balance=99)

    def differing(**options):
        return [each.log_id for each in Run(Balances, **options).findings()]

    assert differing() == [first, second]
    assert differing(after=first) == [second]
    assert differing(after=first, sample=5) == [second]
    assert differing(log_types=["account"], sample=5) == [first, second]
    assert differing(log_types=["parcel"]) == differing(log_types=["parcel"], sample=5) == []


@pytest.mark.feed
@pytest.mark.parametrize("each", [Balances, ReducedBalances])
def test_logs_behind_an_event_that_waits_are_counted_and_compared_up_to_there(each, monkeypatch):
    ada = Account.logs.create(Opened("ada"), Deposited(5), Noted("broken"), Deposited(2))
    bob = Account.logs.create(Opened("bob"), Deposited(5))
    eve = Account.logs.create(Opened("eve"), Deposited(5), Noted("broken"))
    monkeypatch.setattr(Account, "apply", apply_or_fail)
    fail_on(Noted)
    each.catch_up()
    each.catch_up()
    monkeypatch.undo()
    readmodels.reset()
    stored = balances(each.model)

    assert each.verify(sample=None) == Verification(3, (), held=2)
    each.model.objects.filter(pk__in=stored).update(balance=7)
    wrong = found(each.verify(sample=None))

    assert set(wrong) == set(stored) >= {bob.log_id}
    assert {ada.log_id, eve.log_id} >= set(stored) - {bob.log_id}


# Beside others


def between_the_reads(monkeypatch, work):
    """Call a function once, after the checkpoints and before the events and rows are read."""
    calls: list[int] = []

    def with_work(*args):
        calls.append(1)
        if len(calls) == 1:
            work()
        return reading_of_rows(*args)

    monkeypatch.setattr(verifying, "reading_of_rows", with_work)


@contextmanager
def no_snapshot(projection, using):
    yield


@pytest.mark.postgresql
@EACH
@pytest.mark.feed
def test_a_batch_of_a_worker_between_two_reads_makes_no_right_row_wrong(
    each, monkeypatch, elsewhere
):
    states = some(3)
    each.catch_up()

    def work():
        for state in states:
            Account.logs.append(state, Deposited(7))
        each.catch_up()

    between_the_reads(monkeypatch, lambda: elsewhere(work))

    assert each.verify(sample=None) == Verification(3, ())
    assert set(balances(each.model).values()) == {7, 8, 9}


@pytest.mark.postgresql
def test_a_broken_version_without_a_snapshot_reports_right_rows(monkeypatch, elsewhere):
    monkeypatch.setattr(verifying, "snapshot", no_snapshot)

    with pytest.raises(AssertionError):
        test_a_batch_of_a_worker_between_two_reads_makes_no_right_row_wrong(
            Balances, monkeypatch, elsewhere
        )


@pytest.mark.locks
def test_an_append_between_two_reads_makes_no_inline_row_wrong(request, monkeypatch, elsewhere):
    request.getfixturevalue("inlined")
    states = some(3)
    InlinedBalances.rebuild()

    def work():
        for state in states:
            Account.logs.append(state, Deposited(7))

    between_the_reads(monkeypatch, lambda: elsewhere(work))

    assert InlinedBalances.verify(sample=None) == Verification(3, ())
    assert balances(Inlined) == replayed(*states)


@pytest.mark.locks
def test_a_broken_version_without_a_snapshot_reports_right_inline_rows(
    request, monkeypatch, elsewhere
):
    monkeypatch.setattr(verifying, "snapshot", no_snapshot)

    with pytest.raises(AssertionError):
        test_an_append_between_two_reads_makes_no_inline_row_wrong(request, monkeypatch, elsewhere)


@pytest.mark.postgresql
def test_a_rebuild_that_ends_between_two_reads_makes_no_right_row_wrong(monkeypatch):
    states = some(3)
    Balances.catch_up()
    Account.logs.append(states[0], Deposited(7))
    with ThreadPoolExecutor(1) as pool:
        rebuilt = []

        def work():
            rebuilt.append(pool.submit(in_a_thread, Balances.rebuild))
            # Until it waits for the table, or has let another one take its place.
            until(lambda: rebuilt[0].done() or is_waited_for(Balance._meta.db_table))

        between_the_reads(monkeypatch, work)

        assert Balances.verify(sample=None) == Verification(3, ())
        assert rebuilt[0].result() == 7
    assert Balances.verify(sample=None) == Verification(3, ())


@pytest.mark.postgresql
def test_a_broken_version_that_does_not_lock_the_table_loses_its_rows(monkeypatch):
    monkeypatch.setattr(verifying, "snapshot", lambda projection, using: scans.a_moment(using))

    with pytest.raises(AssertionError):
        test_a_rebuild_that_ends_between_two_reads_makes_no_right_row_wrong(monkeypatch)


def in_a_thread(work):
    try:
        return work()
    finally:
        connections.close_all()


@pytest.mark.feed
@ALL
def test_verification_is_right_beside_a_writer_and_a_worker(each, request, race):
    if each is InlinedBalances:
        request.getfixturevalue("inlined")
    states = some(8)
    each.catch_up()
    wrong = some(3)
    each.catch_up()
    wrong_ids = {state.log_id for state in wrong}
    each.model.objects.filter(pk__in=wrong_ids).update(balance=-1)
    ended = Event()

    def append():
        try:
            for amount in range(10):
                for number, state in enumerate(states):
                    states[number] = Account.logs.append(state, Deposited(amount))
                some(1)
        finally:
            ended.set()

    def work():
        while not ended.is_set():
            each.catch_up()

    def verify():
        found_each_time = []
        while not ended.is_set():
            verification = each.verify(sample=None)
            assert verification.failed == ()
            found_each_time.append(set(found(verification)))
        return found_each_time

    answers = race(append, work, verify)

    assert answers[:2] == [None, None]
    assert answers[2]
    assert all(each == wrong_ids for each in answers[2])
    each.catch_up()
    assert set(found(each.verify(sample=None))) == wrong_ids


@pytest.mark.postgresql
def test_inside_a_callers_transaction_a_difference_is_compared_again(monkeypatch, elsewhere):
    states = some(3)
    Balances.catch_up()

    def work():
        Account.logs.append(states[0], Deposited(7))
        Balances.catch_up()

    between_the_reads(monkeypatch, lambda: elsewhere(work))
    with transaction.atomic():
        assert Balances.verify(sample=None) == Verification(3, ())
