"""Rows of archived logs stay, are verified, and are made anew from the archives."""

from __future__ import annotations

from contextlib import suppress

import pytest
from django.utils import timezone

from eventlogs import ANY, LogManager, ProjectionUnavailable
from eventlogs.archives import storage
from eventlogs.models import (
    AppliedVersion,
    ArchivedLog,
    ArchiveFile,
    Checkpoint,
    SkippedEvent,
)
from eventlogs.operations import archiving
from eventlogs.operations.archiving import Limit
from eventlogs.operations.verification import ProjectionVerifier, Scope
from eventlogs.projections import rebuild, shadow_tables, verify
from eventlogs.stores import participants
from tests.accounts import Account, Deposited, Noted, Opened, Withdrawn
from tests.projections import readmodels
from tests.projections.readmodels import (
    Balance,
    Balances,
    Day,
    DepositsByOwner,
    Inlined,
    InlinedBalances,
    Reduced,
    ReducedBalances,
)
from tests.projections.tables import made

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.feed]

accounts = LogManager(Account)
OWN_ROWS = (Balances, ReducedBalances, InlinedBalances)


@pytest.fixture(autouse=True)
def _read_models(transactional_db, directory, monkeypatch):
    readmodels.reset()
    monkeypatch.setitem(participants.registered, "inlined-balances", readmodels.PARTICIPANT)
    with made(*readmodels.MODELS), readmodels.declaring(readmodels.DECLARED):
        yield
    readmodels.reset()


def filled(count=2):
    """Archive some accounts, beside one that is open; return their ids."""
    logs = []
    for number in range(count):
        state = accounts.create(Opened("Ada"), Deposited(number + 1), metadata={"owner": "Ada"})
        accounts.append(state, Withdrawn(number + 1))
        logs.append(state.log_id)
    accounts.create(Opened("Mary"), Deposited(1), metadata={"owner": "Mary"})
    for each in (Balances, ReducedBalances, DepositsByOwner, InlinedBalances):
        each.catch_up(strict=True)
    for reactor in readmodels.DECLARED.values():
        if reactor not in OWN_ROWS:
            reactor.catch_up(strict=True)
    assert archiving.archive(by="grace").logs == count
    return logs


def rows(*models):
    """Return all rows of read models, as they are stored."""
    return {each: list(each.objects.order_by("pk").values()) for each in models}


def stored():
    """Return all rows of the read models with a row for each log."""
    return rows(Balance, Reduced, Inlined)


def test_rows_of_archived_logs_are_right_and_are_not_repaired_away():
    filled()
    before = stored()

    for each in OWN_ROWS:
        found = each.verify(sample=None, repair=True)
        assert (found.checked, found.differences, found.failed) == (3, (), ())

    assert stored() == before
    assert list(ProjectionVerifier().verify(Scope("default"))) == []


def test_a_row_that_differs_from_its_archive_is_found_and_repaired():
    log, _ = filled()
    before = stored()
    for model in before:
        model.objects.filter(pk=log).update(balance=77)
    Reduced.objects.filter(pk=log).delete()

    for each in OWN_ROWS:
        [difference] = each.verify(sample=None, repair=True).differences
        assert (difference.log_id, difference.is_repaired) == (log, True)

    assert stored() == before


def test_a_rebuild_makes_the_rows_of_archived_logs_from_their_archives():
    log, other = filled()
    before = stored()
    for model in before:
        model.objects.filter(pk__in=[log, other]).update(balance=77)

    for each in OWN_ROWS:
        each.rebuild()

    assert stored() == before
    for each in OWN_ROWS:
        assert each.verify(sample=None)


def test_the_row_of_one_archived_log_is_made_anew():
    log, _ = filled()
    before = stored()
    for model in before:
        model.objects.filter(pk=log).delete()
    AppliedVersion.objects.filter(log_id=log).delete()

    assert [each.rebuild(log) for each in OWN_ROWS] == [3, 3, 2]

    assert stored() == before
    rebuild.remove_strays(InlinedBalances, "default")
    assert stored() == before


def test_the_inline_row_of_an_archived_log_is_no_stray_even_without_its_version():
    filled()
    before = rows(Inlined)
    archived = [each.log_id for each in ArchivedLog.objects.all()]
    AppliedVersion.objects.filter(log_id__in=archived).delete()

    rebuild.remove_strays(InlinedBalances, "default")

    assert rows(Inlined) == before


def test_logs_that_a_new_projection_has_still_to_read_stay():
    state = accounts.create(Opened("Ada"))
    for each in (Balances, ReducedBalances):
        each.catch_up()

    done = archiving.archive(by="grace")

    assert (done.logs, done.waiting, done.limit) == (0, 1, Limit(0, "deposits-by-owner"))
    assert accounts.version(state.log_id) == 1


def catch_up_all_but(*others):
    """Let all projections and reactors, without some, come to the last event."""
    for each in {*readmodels.DECLARED.values(), *OWN_ROWS, DepositsByOwner} - {*others}:
        each.catch_up(strict=True)


def without_the_inline_projection(monkeypatch, append):
    """Append as a process of an older release, or an import, does."""
    with monkeypatch.context() as older:
        older.delitem(participants.registered, "inlined-balances")
        return append()


@pytest.mark.parametrize("is_new", [True, False])
def test_logs_whose_inline_rows_lack_events_stay(monkeypatch, is_new):
    state = None if is_new else accounts.create(Opened("Ada"), Deposited(1))

    def append():
        if state is None:
            return accounts.create(Opened("Ada"), Deposited(1), Withdrawn(1))
        return accounts.append(state, Withdrawn(1))

    log = without_the_inline_projection(monkeypatch, append).log_id
    right = accounts.create(Opened("Mary"), Deposited(2), Withdrawn(2)).log_id
    catch_up_all_but(InlinedBalances)

    done = archiving.archive(by="grace")

    assert (done.logs, done.waiting, done.limit) == (1, 1, Limit(0, "inlined-balances"))
    assert [each.log_id for each in ArchivedLog.objects.all()] == [right]
    InlinedBalances.catch_up(strict=True)
    assert archiving.archive(by="grace").logs == 1
    assert {each["log_id"] for each in rows(Inlined)[Inlined]} == {log, right}
    assert InlinedBalances.verify()


def test_events_that_an_inline_projection_does_not_read_keep_no_log():
    log = accounts.create(Opened("Ada"), Deposited(1), Withdrawn(1)).log_id
    accounts.append(log, Noted("a text"), expected_version=ANY)
    catch_up_all_but(InlinedBalances)

    assert archiving.archive(by="grace").logs == 1


def test_events_that_a_person_has_skipped_keep_no_log(monkeypatch):
    state = accounts.create(Opened("Ada"), Deposited(1))
    log = without_the_inline_projection(
        monkeypatch, lambda: accounts.append(state, Withdrawn(1))
    ).log_id
    SkippedEvent.objects.create(
        projection="inlined-balances", log_id=log, index=2, position=3, skipped_at=timezone.now()
    )
    catch_up_all_but(InlinedBalances)

    assert archiving.archive(by="grace").logs == 1


@pytest.mark.parametrize("has_row", [True, False])
def test_a_log_does_not_come_back_before_a_projection_has_come_to_its_end(has_row):
    log, _ = filled()
    before = rows(Balance)
    if not has_row:
        Balance.objects.filter(pk=log).delete()
    last = ArchivedLog.objects.get(pk=log.uuid).last_position
    Checkpoint.objects.filter(projection="balances").update(position=last - 1)

    with pytest.raises(ProjectionUnavailable) as caught:
        archiving.restore(log)

    assert str(caught.value) == (
        "Projection 'balances' cannot do this: it has not come to the last event of the log, and "
        "could apply a part of its events, or apply them twice. Let it catch up, or rebuild it, "
        "then bring the log back."
    )
    assert ArchivedLog.objects.count() == 2
    Balances.rebuild()
    archiving.restore(log)
    Balances.catch_up(strict=True)
    assert rows(Balance) == before


def test_a_projection_that_has_passed_an_archived_log_has_its_row_when_the_log_comes_back():
    log, _ = filled()
    Balance.objects.filter(pk=log).delete()  # it was not in the feed of a new projection
    Inlined.objects.filter(pk=log).delete()
    AppliedVersion.objects.filter(log_id=log).delete()

    archiving.restore(log)
    accounts.append(log, Deposited(9), expected_version=ANY)
    Balances.catch_up(strict=True)

    assert Balance.objects.get(pk=log).balance == Inlined.objects.get(pk=log).balance == 9
    for each in (Balances, InlinedBalances):
        assert each.verify(sample=None).differences == ()


def test_a_log_does_not_come_back_while_a_projection_is_rebuilt_inline():
    log, _ = filled()
    steps = rebuild.rebuild_steps(InlinedBalances, restart=True)
    next(steps)

    with pytest.raises(ProjectionUnavailable) as caught:
        archiving.restore(log)

    assert (caught.value.reason, caught.value.projection) == ("busy", "inlined-balances")
    rebuild.finish(steps, rebuild.ignore)
    archiving.restore(log)


def test_a_repair_that_meets_a_return_and_an_append_applies_no_event_twice(monkeypatch):
    log, _ = filled()
    upto_of = verify.upto_of

    def restore_and_append(log_id, upto, using):
        found = upto_of(log_id, upto, using)
        monkeypatch.setattr(verify, "upto_of", upto_of)
        archiving.restore(log)
        accounts.append(log, Deposited(9), expected_version=ANY)
        return found

    [row] = ArchivedLog.objects.filter(pk=log.uuid)
    upto = restore_and_append(log, row.last_position, "default")
    _, count = verify.replay(Balances(), log, "default", upto=upto)

    assert count == row.version


def test_a_rebuild_that_was_stopped_among_the_archived_logs_is_resumed(monkeypatch):
    logs = filled()
    before = stored()
    monkeypatch.setattr(rebuild, "ARCHIVED_AT_ONCE", 1)
    steps = rebuild.rebuild_steps(Balances)
    shadow = shadow_tables.shadow_of(Balance)
    while next(steps) is not None and not shadow._base_manager.filter(pk=min(logs)).exists():
        pass
    steps.close()
    assert shadow._base_manager.count() == 2  # with the row from the feed

    Balances.rebuild()

    assert rows(Balance) == {Balance: before[Balance]}


def test_a_log_that_is_brought_back_during_a_rebuild_keeps_its_row():
    logs = filled()
    before = stored()
    steps = rebuild.rebuild_steps(Balances)
    next(steps)
    assert Checkpoint.objects.get(projection="balances", is_rebuild=True).position > 0

    for each in logs:
        archiving.restore(each)
    rebuild.finish(steps, rebuild.ignore)

    assert rows(Balance) == {Balance: before[Balance]}


def test_rows_that_logs_share_are_not_rebuilt_without_the_archived_events():
    filled()
    before = rows(Day)
    assert [each["owner"] for each in before[Day]] == ["Ada", "Mary"]

    with pytest.raises(ProjectionUnavailable) as caught:
        DepositsByOwner.rebuild()

    assert (caught.value.reason, caught.value.logs) == ("archived", 2)
    assert str(caught.value) == (
        "Projection 'deposits-by-owner' cannot do this: 2 of the logs that it reads are archived, "
        "and rows that several logs share are made of all events in their order. Bring these logs "
        "back with manage.py eventlogs archive --restore LOG, or rebuild it from the others: "
        "manage.py eventlogs rebuild deposits-by-owner --without-archived."
    )
    assert rows(Day) == before
    assert not Checkpoint.objects.filter(is_rebuild=True).exists()

    DepositsByOwner.rebuild(without_archived=True)

    assert rows(Day) == {Day: [{"owner": "Mary", "deposits": 1}]}


def test_a_rebuild_without_archived_logs_reads_no_archive():
    filled()
    for name in ArchiveFile.objects.values_list("name", flat=True):
        storage.delete(name)

    for each in (Balances, ReducedBalances, InlinedBalances):
        each.rebuild(without_archived=True)

    assert [each.objects.count() for each in (Balance, Reduced, Inlined)] == [1, 1, 3]


def test_a_lost_archive_is_a_failure_of_a_verification_and_loses_no_row():
    logs = filled()
    before = stored()
    for name in ArchiveFile.objects.values_list("name", flat=True):
        storage.delete(name)

    for each in OWN_ROWS:
        found = each.verify(sample=None, repair=True)
        assert {(failed.log_id, failed.error) for failed in found.failed} == {
            (log, "ArchiveUnavailable") for log in logs
        }
        assert found.differences == ()
        with suppress(Exception):
            each.rebuild()
        with suppress(Exception):
            each.rebuild(logs[0])

    assert stored() == before
    assert ArchivedLog.objects.count() == 2


def test_a_projection_that_begins_after_the_archiving_lacks_the_rows_until_it_is_rebuilt():
    logs = filled()
    Balance.objects.all().delete()
    Checkpoint.objects.filter(projection="balances").update(position=0)
    Balances.catch_up()

    missing = Balances.verify(sample=None).differences
    assert {each.log_id for each in missing} == set(logs)

    Balances.rebuild()

    assert Balances.verify(sample=None)


def test_rows_are_right_where_the_last_events_of_all_are_archived():
    last = accounts.create(Opened("Grace"))
    for each in readmodels.DECLARED.values():
        each.catch_up(strict=True)
    assert archiving.archive(by="grace").logs == 1
    before = stored()

    for each in OWN_ROWS:
        each.rebuild()
        each.rebuild(last.log_id)
        assert each.verify(sample=None, repair=True).differences == ()
    assert stored() == before

    Balance.objects.all().delete()
    Checkpoint.objects.filter(projection="balances").update(position=0)
    Balances.catch_up(strict=True)
    assert [each.log_id for each in Balances.verify(sample=None).differences] == [last.log_id]
    Balances.rebuild()
    assert stored() == before

    archiving.restore(last.log_id)
    for each in OWN_ROWS:
        each.catch_up(strict=True)
        assert each.verify(sample=None)
    assert stored() == before


def test_a_log_that_was_brought_back_goes_on():
    log, _ = filled()
    archiving.restore(log)

    accounts.append(log, Deposited(9), expected_version=ANY)
    Balances.catch_up()

    assert Balance.objects.get(pk=log).balance == Inlined.objects.get(pk=log).balance == 9
    for each in (Balances, InlinedBalances):
        assert each.verify(sample=None)
