"""Closed logs go to archives, byte by byte, and can be read there and brought back."""

from __future__ import annotations

import gzip
import io
import threading
from datetime import timedelta

import pytest
from django.db import connection, transaction
from django.utils import timezone

from eventlogs import (
    ANY,
    ArchiveUnavailable,
    Feed,
    LogAlreadyExists,
    LogArchived,
    LogManager,
    LogState,
    NotArchived,
)
from eventlogs.archives import Retention, storage
from eventlogs.feed import scans
from eventlogs.feed.reader import HEARTBEAT
from eventlogs.feed.sources import feed_source_for
from eventlogs.models import (
    ArchivedLog,
    ArchiveFile,
    Checkpoint,
    Event,
    EventLog,
    IdempotencyKey,
    ParkedEvent,
    ProjectionState,
    ReturnedLog,
)
from eventlogs.operations import archiving
from eventlogs.operations.archiving import Limit, files, manifests, running, tables
from eventlogs.operations.archiving.tables import plain
from eventlogs.operations.erasure import erase
from eventlogs.stores import erasing, store_for
from tests.accounts import Account, Deposited, Noted, Opened, Withdrawn
from tests.operations.archiving.closed import closed_accounts

pytestmark = pytest.mark.django_db(transaction=True)

accounts = LogManager(Account)


def filled():
    """Create two closed accounts and an open one; return their ids."""
    closed = accounts.create(Opened("Ada"), Noted({"é": [1.50, None]}), idempotency_key="open-1")
    other = accounts.create(Opened("Grace"), metadata={"user": "7"})
    accounts.append(other, Deposited(5), idempotency_key="in")
    accounts.append(other.log_id, Withdrawn(5), expected_version=ANY)
    still_open = accounts.create(Opened("Mary"), Deposited(1))
    return closed.log_id, other.log_id, still_open.log_id


def reduced(log_id, **options):
    """Return what a reduction says, whenever it was made."""
    found = accounts.reduce(log_id, **options)
    return found.version, found.position, found.aggregate


def history(log_id):
    """Return all that the tables hold of a log's events."""
    events = scans.read(Event.objects.filter(log=log_id.uuid).order_by("index"))
    digests = Event.objects.filter(log=log_id.uuid).order_by("index").values_list("digest")
    row = EventLog.objects.filter(pk=log_id.uuid).values().first()
    return events, [tuple(each) for each in digests], row


@pytest.mark.parametrize("chained", [False, True])
def test_closed_logs_are_taken_out_read_from_the_archive_and_brought_back(
    directory, settings, chained
):
    settings.EVENTLOGS = {**settings.EVENTLOGS, "CHAIN": chained}
    closed, other, still_open = filled()
    before = {each: history(each) for each in (closed, other, still_open)}
    loaded = [list(accounts.load(each)) for each in (closed, other)]
    states = [reduced(each) for each in (closed, other)]
    keys = list(IdempotencyKey.objects.order_by("pk").values())

    done = archiving.archive(by="grace")

    assert (done.logs, done.events, len(done.files), done.waiting) == (2, 5, 1, 0)
    assert not Event.objects.exclude(log=still_open.uuid).exists()
    assert [each.log_id for each in EventLog.objects.all()] == [still_open]
    assert history(still_open) == before[still_open]
    assert list(IdempotencyKey.objects.order_by("pk").values()) == keys
    assert [list(accounts.load(each)) for each in (closed, other)] == loaded
    assert [list(accounts.stream(each)) for each in (closed, other)] == loaded
    assert [reduced(each) for each in (closed, other)] == states
    assert [accounts.version(each) for each in (closed, other)] == [2, 3]
    assert all(map(accounts.exists, (closed, other)))
    assert all(each.problem == "" for each in archiving.check())

    for each in (closed, other):
        assert archiving.restore(each) == before[each][2]["version"]
        assert history(each) == before[each]

    assert not ArchivedLog.objects.exists()
    assert archiving.tidy(grace=timedelta()).deleted == 2
    assert list(directory.rglob("*.*")) == []
    assert not ArchiveFile.objects.exists()


@pytest.mark.feed
def test_a_checkpoint_of_the_feed_stays_valid(directory):
    closed = [accounts.create(Opened(name)).log_id for name in ("Ada", "Grace", "Mary")]
    checkpoint = Feed().read().checkpoint

    assert archiving.archive(by="grace").logs == 3

    assert list(Feed().read(after=checkpoint)) == []
    accounts.create(Opened("Eve"), Deposited(1))
    later = Feed().read(after=checkpoint)
    assert [record.event for record in later] == [Opened("Eve"), Deposited(1)]
    for each in closed:
        archiving.restore(each)
    assert list(Feed().read(after=checkpoint)) == list(later)
    assert list(Feed().read(after=later.checkpoint)) == []


@pytest.mark.feed
def test_a_log_that_comes_back_between_two_looks_refuses_no_checkpoint(directory, monkeypatch):
    closed = [accounts.create(Opened(name)).log_id for name in ("Ada", "Grace")]
    checkpoint = Feed().read().checkpoint
    archiving.archive(by="grace")
    source = feed_source_for("default")
    removed = source.removed

    def restore_first(logs):
        if ArchivedLog.objects.count() == 2:
            archiving.restore(closed[0])
        return removed(logs)

    monkeypatch.setattr(source, "removed", restore_first)

    assert list(Feed().read(after=checkpoint)) == []
    assert ArchivedLog.objects.count() == 1


def test_an_archived_log_takes_no_events_and_its_id_cannot_be_used_again(directory):
    closed, _, still_open = filled()
    archiving.archive(by="grace")
    expected = (
        f"{closed} was archived at {ArchivedLog.objects.get(pk=closed.uuid).archived_at}, and "
        f"takes no events. Bring it back first (manage.py eventlogs archive --restore), then "
        f"append to it."
    )

    for append in (
        lambda: accounts.append(closed, Deposited(1), expected_version=ANY),
        lambda: accounts.append(closed, Deposited(1), expected_version=2),
        lambda: accounts.append(accounts.reduce(closed), Deposited(1)),
        lambda: accounts.execute(closed, lambda account: [Deposited(1)]),
        lambda: accounts.create(Opened("Eve"), log_id=closed),
        lambda: accounts.append(
            still_open,
            Deposited(1),
            expected_version=ANY,
            also_expect=[accounts.reduce(closed)],
        ),
    ):
        with pytest.raises(LogArchived) as caught:
            append()
        assert str(caught.value) == expected

    assert not isinstance(caught.value, LogAlreadyExists)
    assert accounts.version(closed) == 2


@pytest.mark.postgresql
def test_an_append_to_a_log_that_comes_back_between_two_looks_is_stored(directory, monkeypatch):
    closed, other, still_open = filled()
    archiving.archive(by="grace")
    gone = erasing.gone

    def restore_first(using, log_id, **options):
        archiving.restore(log_id)
        return gone(using, log_id, **options)

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(erasing, "gone", restore_first)
        assert accounts.append(closed, Deposited(1), expected_version=ANY).version == 3
        state = LogState(other, 3, 0)
        done = accounts.append(still_open, Deposited(1), expected_version=ANY, also_expect=[state])
        assert done.version == 3

    assert accounts.version(other) == 3


def test_a_decision_about_a_log_that_comes_back_between_two_looks(directory, monkeypatch):
    closed, _, _ = filled()
    archiving.archive(by="grace")
    store, missing = store_for("default"), erasing.missing

    def restore_first(log_id):
        archiving.restore(log_id)
        return missing("default", log_id)

    monkeypatch.setattr(store, "missing", restore_first)

    assert accounts.execute(closed, lambda account: [Deposited(1)]).version == 3


def test_retries_of_the_requests_of_an_archived_log_are_replays(directory):
    closed, other, _ = filled()
    archiving.archive(by="grace")

    state, is_new = accounts.get_or_create(
        Opened("Ada"), Noted({"é": [1.50, None]}), idempotency_key="open-1"
    )
    assert (state.log_id, state.version, is_new) == (closed, 2, False)
    state, is_new = accounts.get_or_append(
        other, Deposited(5), expected_version=1, idempotency_key="in"
    )
    assert (state.version, is_new) == (2, False)


def test_pages_of_a_long_archived_log_are_those_it_had(directory, monkeypatch):
    monkeypatch.setattr("eventlogs.archives.frames.FRAME", 500)
    state = accounts.create(Opened("Ada"))
    for _ in range(4):
        state = accounts.append(state, *[Noted(number) for number in range(25)])

    def pages():
        return (
            [
                [
                    each.as_json()
                    for each in (
                        accounts.load(state.log_id, start=start, limit=limit, reverse=back),
                    )
                ]
                for start in (None, 0, 1, 7, 50, 99, 100, 101, 500)
                for limit in (1, 10, 101)
                for back in (False, True)
            ],
            [list(accounts.stream(state.log_id, start=start)) for start in (0, 1, 60, 101)],
            [reduced(state.log_id, version=version) for version in (1, 60, 101)],
        )

    before = pages()
    archiving.archive(by="grace")

    assert len(ArchivedLog.objects.get().frames) > 5
    assert pages() == before


def test_a_file_is_an_export_that_every_reader_of_gzip_can_read(directory):
    closed, other, _ = filled()
    archiving.archive(by="grace")
    [file] = directory.rglob("*.gz")

    lines = gzip.decompress(file.read_bytes()).splitlines()

    assert lines[0].startswith(b'{"format":"eventlogs","version":1,')
    assert [
        str(each).encode() in line
        for each, line in zip([closed] * 2 + [other] * 3, lines[1:6], strict=True)
    ] == [True] * 5
    assert lines[6:] == [b'{"end":true,"events":5,"until":0}']


def test_what_somebody_appends_to_meanwhile_stays(directory, monkeypatch):
    closed, other, _ = filled()
    compare = files.compare

    def compare_and_append(made, source):
        found = compare(made, source)
        if accounts.version(closed) == 2:
            accounts.append(closed, Deposited(7), expected_version=2)
        return found

    monkeypatch.setattr(files, "compare", compare_and_append)

    done = archiving.archive(by="grace")

    assert (done.logs, done.events) == (1, 3)
    assert accounts.reduce(closed).aggregate.balance == 7
    assert [each.log_id for each in ArchivedLog.objects.all()] == [other]
    assert len(list(directory.rglob("*.gz"))) == ArchiveFile.objects.count() == 1


def test_only_closed_logs_that_are_old_enough_are_chosen(directory):
    filled()
    found = archiving.waiting(retention=[Retention("account", timedelta(hours=1))])
    assert list(found) == [("account", 0, 0)]
    found = archiving.waiting(retention=[Retention("account", timedelta(microseconds=1))])
    assert list(found) == [("account", 3, 7)]
    assert list(archiving.waiting()) == [("account", 2, 5)]
    assert archiving.archive(by="grace", limit=1).logs == 1
    assert list(archiving.waiting()) == [("account", 1, 3)]


def test_a_log_that_is_not_archived_cannot_be_brought_back(directory):
    closed, _, still_open = filled()
    for each in (closed, still_open, accounts.new_id()):
        with pytest.raises(NotArchived) as caught:
            archiving.restore(each)
        assert str(caught.value) == (
            f"{each} is in no archive of this database. Check the id and the database: it may be "
            f"back already."
        )


def test_nothing_is_done_inside_of_a_transaction(directory):
    closed, _, _ = filled()
    with transaction.atomic(), pytest.raises(RuntimeError):
        archiving.archive(by="grace")
    archiving.archive(by="grace")
    with transaction.atomic(), pytest.raises(RuntimeError):
        archiving.restore(closed)


def test_a_file_that_is_missing_keeps_no_other_log_from_being_erased(directory):
    first, _, _ = filled()
    archiving.archive(by="grace")
    [missing] = directory.rglob("*.gz")
    second = accounts.create(Opened("Eve")).log_id
    archiving.archive(by="grace")
    missing.unlink()

    for log_id in (first, second):
        with pytest.raises(ArchiveUnavailable) as caught:
            erase(log_id, reason="an order", by="grace")
        assert caught.value.archive.endswith(missing.name)

    assert not list(directory.rglob("*.gz"))


def test_tidying_is_refused_inside_of_a_transaction_whose_rollback_brings_no_file_back(directory):
    filled()
    made = files.make("default", "account", [])
    with pytest.raises(RuntimeError), transaction.atomic():
        archiving.tidy(older_than=timedelta())

    assert len(list(directory.rglob("*.gz"))) == 1
    assert ArchiveFile.objects.get().state == ArchiveFile.WRITING
    assert archiving.tidy(older_than=timedelta()).deleted == 1
    assert made.file.name


def test_a_projection_that_begins_while_a_file_is_written_keeps_its_logs_in_the_tables(
    directory, monkeypatch
):
    closed, _, _ = filled()
    compare = files.compare

    def compare_and_begin(made, source):
        ProjectionState.objects.get_or_create(
            name="new", defaults={"version": 1, "mode": "async", "partitions": 1}
        )
        Checkpoint.objects.get_or_create(
            projection="new", partition=0, defaults={"partitions": 1, "position": 1}
        )
        return compare(made, source)

    monkeypatch.setattr(files, "compare", compare_and_begin)

    assert archiving.archive(by="grace").logs == 0
    assert len(Event.objects.filter(log=closed.uuid)) == 2
    assert list(directory.rglob("*.gz")) == []


@pytest.mark.postgresql
def test_a_log_that_a_worker_holds_between_two_looks_stays(directory, monkeypatch):
    closed, _, _ = filled()
    last = Event.objects.latest("position").position
    Checkpoint.objects.create(projection="other", partition=0, partitions=1, position=1)
    monkeypatch.setattr(running, "limit_of", lambda *_: Limit(last))
    commits: list[threading.Thread] = []

    def hold():
        now = timezone.now()
        with transaction.atomic():
            Checkpoint.objects.update(position=last)
            ParkedEvent.objects.create(
                projection="other",
                log_id=closed,
                index=1,
                position=last,
                type="account.noted",
                first_failed_at=now,
                failed_at=now,
            )
        connection.close()

    def and_then_hold(look):
        def call(*args):
            found = look(*args)
            if not commits:
                commits.append(threading.Thread(target=hold))
                commits[0].start()
                commits[0].join(30)
            return found

        return call

    for name in ("held_logs", "last_reader"):
        monkeypatch.setattr(tables, name, and_then_hold(getattr(tables, name)))

    archiving.archive(by="grace")

    assert ParkedEvent.objects.exists()
    assert EventLog.objects.filter(pk=closed.uuid).exists()


def test_what_logs_wait_for_is_that_of_their_own_rule(directory, monkeypatch):
    filled()
    limits = {"account": Limit(0, "slow"), "parcel": Limit(1)}
    monkeypatch.setattr(running, "limit_of", lambda using, log_type: limits[log_type])

    rules = [closed_accounts, Retention("parcel", timedelta(microseconds=1))]
    done = archiving.archive(by="grace", retention=rules)

    assert (done.logs, done.waiting, done.limit) == (0, 2, Limit(0, "slow"))


def test_a_heartbeat_that_has_stopped_keeps_no_log_in_the_tables(directory):
    filled()
    Checkpoint.objects.create(projection=HEARTBEAT, partition=0, partitions=1, position=1)

    assert archiving.archive(by="grace").logs == 2


def test_a_file_that_is_replaced_while_all_are_checked_is_no_finding(directory, monkeypatch):
    closed, other, _ = filled()
    archiving.archive(by="grace")
    read = manifests.read

    def restore_and_read(name):
        if ArchivedLog.objects.filter(pk=closed.uuid).exists():
            archiving.restore(closed)
        return read(name)

    monkeypatch.setattr(manifests, "read", restore_and_read)

    [found] = archiving.check()
    assert (found.problem, found.logs) == ("", 1)
    assert accounts.version(other) == 3


def test_a_log_that_was_brought_back_stays_for_a_week(directory):
    month = Retention("account", timedelta(days=30))
    hour = Retention("account", timedelta(hours=1))
    closed, _, _ = filled()
    plain(EventLog, "default").update(updated_at=timezone.now() - timedelta(days=40))
    archiving.archive(by="grace", retention=[month])
    archiving.restore(closed)

    def chosen(rule):
        return sum(each.logs for each in archiving.waiting(retention=[rule]))

    assert [chosen(month), chosen(hour)] == [0, 0]
    ReturnedLog.objects.update(returned_at=timezone.now() - timedelta(hours=2))
    assert [chosen(month), chosen(hour)] == [0, 1]
    ReturnedLog.objects.update(returned_at=timezone.now() - timedelta(days=8))
    assert [chosen(month), chosen(hour)] == [1, 1]

    assert archiving.archive(by="grace", retention=[month]).logs == 1
    assert not ReturnedLog.objects.exists()
    archiving.restore(closed)
    archiving.archive(by="grace", retention=[Retention("account", timedelta(microseconds=1))])
    archiving.restore(closed)  # although it has a row of the last time
    assert ReturnedLog.objects.count() == 1


def test_a_disk_that_does_not_confirm_a_file_is_an_error_of_archives(directory, monkeypatch):
    closed, _, _ = filled()

    def broken(handle):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as disk:
        disk.setattr("os.fsync", broken)
        with pytest.raises(ArchiveUnavailable) as caught:
            archiving.archive(by="grace")

    assert caught.value.reason == "the disk does not confirm it"
    assert Event.objects.filter(log=closed.uuid).count() == 2
    assert archiving.tidy(older_than=timedelta()).deleted == 1
    assert archiving.archive(by="grace").logs == 2


def test_an_error_of_a_storage_while_it_is_read_is_one_of_archives(directory, monkeypatch):
    class Broken(io.BytesIO):
        def read(self, size=-1):
            raise LookupError("connection reset")

    closed, _, _ = filled()
    archiving.archive(by="grace")
    monkeypatch.setattr(storage, "open_file", lambda name: Broken())

    with pytest.raises(ArchiveUnavailable) as caught:
        accounts.reduce(closed)
    assert caught.value.reason == "it cannot be read"
