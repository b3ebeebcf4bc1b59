"""Forgetting a person: afterwards no table, cache, log record or error has their data."""

from __future__ import annotations

import io
import json
import logging
from threading import Event as ThreadEvent
from threading import Thread
from uuid import UUID

import pytest
from django.core.cache import caches as django_caches
from django.core.management import call_command
from django.db import connections, transaction
from msgspec import structs

from eventlogs import LogManager, event_context
from eventlogs.caches import backends
from eventlogs.exceptions import (
    KeyUnavailable,
    NameTaken,
    SubjectForgotten,
    SubjectUnknown,
    UndecodableEvent,
)
from eventlogs.feed.sources import feed_source_for
from eventlogs.models import Event, ParkedEvent, SubjectKey, SubjectLog, UniqueValue
from eventlogs.operations import forgetting, receipts
from eventlogs.operations.forgetting import NotRemade, forget, forget_again
from eventlogs.operations.subject_exports import export_subject
from eventlogs.privacy import key_store, memory
from eventlogs.projections import rebuild
from eventlogs.reductions import snapshots
from eventlogs.reductions.snapshots import Snapshots
from eventlogs.stores import store_for
from tests.feeds import has_feed
from tests.guests import SETTINGS, Complained, Guest, Joined, Moved, Paid
from tests.operations import guest_rows
from tests.operations.everywhere import places
from tests.operations.guest_rows import (
    EACH,
    KNOWN,
    MODELS,
    AsyncNames,
    ByName,
    InlineNames,
    Named,
    ReducedNames,
    SharedNames,
)
from tests.projections.tables import made

pytestmark = pytest.mark.django_db(transaction=True)

NAME, STREET, TEXT, IP = "Countess Lovelace", "St. James Square", "Too few cards", "192.0.2.77"
SECRETS = (NAME, STREET, TEXT, IP)
FRIEND = "Charles Babbage"
ADA, CHARLES = "member:1", "member:2"


@pytest.fixture(autouse=True)
def _tables(transactional_db, settings, monkeypatch):
    settings.EVENTLOGS = SETTINGS
    monkeypatch.setattr(snapshots, "INTERVAL", 10)
    for alias in django_caches.settings:
        django_caches[alias].clear()
    memory.clear()
    with made(*MODELS), KNOWN.declared(*names()):
        yield
    memory.clear()
    for alias in django_caches.settings:
        django_caches[alias].clear()


@pytest.fixture(params=["default", pytest.param("redis", marks=pytest.mark.postgresql)])
def guests(request, settings):
    """The logs of guests, with reductions in a cache."""
    settings.EVENTLOGS = {**SETTINGS, "CACHE": request.param}
    return LogManager(Guest, cache=request.param)


def fill(guests):
    """Create a log whose person's data is in every place that can have it, and another one."""
    state = guests.create(
        Joined(ADA, NAME, CHARLES, FRIEND),
        Moved(ADA, [STREET]),
        metadata={"ip": IP, "person": ADA, "agent": "a browser"},
        idempotency_key="join-1",
    )
    other = guests.create(Joined(CHARLES, FRIEND))
    catch_up()
    state = guests.append(state, Complained(ADA, TEXT))
    if has_feed():
        AsyncNames.catch_up()  # fails with an error whose text shows the name
    state = guests.append(state, *[Paid(1)] * 20)
    catch_up()
    guests.reduce(state.log_id)
    guests.reduce(other.log_id)
    start = Guest.without_events(state.log_id)
    _, writes = Snapshots(Guest, "default", cache=guests._cache).fold(
        start, store_for("default"), version=20
    )
    assert all(write() for write in writes)
    assert len(writes) == 2
    return state.log_id, other.log_id


def names():
    """Return the projections that can run; none stands for all."""
    return () if has_feed() else ("guests-inline",)


def expected(each):
    """Return what is expected of each projection that makes a row of one log."""
    return dict.fromkeys(names() or [one.name for one in EACH], each)


def shared():
    return ["guests-shared"] if has_feed() else []


def rebuild_shared():
    if has_feed():
        SharedNames.rebuild(restart=True)


def catch_up():
    for each in (*EACH, SharedNames):
        if has_feed():
            each.catch_up()


def found():
    return {text: where for text in SECRETS if (where := places(text))}


@pytest.mark.feed
def test_before_the_events_hold_no_plain_text_and_all_copies_do(guests, settings):
    fill(guests)

    everywhere = {each for where in found().values() for each in where}
    assert Event._meta.db_table not in everywhere
    assert f"cache {settings.EVENTLOGS['CACHE']}" in everywhere
    assert {model._meta.db_table for model in MODELS} <= everywhere
    assert ParkedEvent._meta.db_table in everywhere
    lines = io.StringIO()
    call_command("eventlogs", "export", stdout=lines)
    assert not [text for text in SECRETS if text in lines.getvalue()]


def test_a_forgotten_person_is_in_no_table_cache_log_record_or_export(guests, caplog):
    caplog.set_level(logging.DEBUG)
    log_id, other = fill(guests)
    caplog.clear()

    done = forget(ADA, by="grace")
    rebuild_shared()

    assert found() == {}
    assert done.logs == 1
    assert done.rows == expected(1)
    assert done.to_rebuild == shared()
    assert done.entries >= 2
    assert (done.failed, done.open_appends, done.new_receipts) == (0, 0, 1)
    assert guests.reduce(log_id).aggregate == Guest("erased", ["erased"], 20)
    assert [guests.load(log_id, limit=1)[0].metadata.get(key) for key in ("ip", "agent")] == [
        None,
        "a browser",
    ]
    # Another person's data stays, in the same event as well.
    assert guests.load(log_id, limit=1)[0].event.friend_name == FRIEND
    assert guests.reduce(other).aggregate.name == FRIEND
    assert places(FRIEND) != []
    # Nothing comes back by itself.
    catch_up()
    lines = io.StringIO()
    call_command("eventlogs", "export", stdout=lines)
    call_command("eventlogs", "show", str(log_id), stdout=lines)
    call_command("eventlogs", "reduce", str(log_id), stdout=lines)
    call_command("eventlogs", "verify", stdout=lines)
    assert not [text for text in SECRETS if text in lines.getvalue() + caplog.text]
    assert found() == {}


def test_a_copy_that_is_left_is_found_by_the_search(guests, monkeypatch):
    """The search above can fail: without the removal of copies, every place has the name."""
    fill(guests)
    monkeypatch.setattr(forgetting, "_forget_page", lambda *args: None)

    forget(ADA)

    assert found()[NAME] != []


def test_the_receipt_says_who_when_and_where_and_nobody_is_named(guests):
    log_id, _ = fill(guests)

    done = forget(ADA, by="grace")

    [key_id] = done.key_ids
    [receipt] = LogManager(receipts.Forgetting).load(receipts.log_of(key_id))
    assert receipt.event.by == "grace"
    assert receipt.event.key_ids == (str(key_id),)
    assert receipt.event.logs == (str(log_id),)
    assert set(receipt.event.projections) == set(expected(1))
    assert receipt.event.to_rebuild == tuple(shared())
    stored = Event.objects.get(type="eventlogs_forgetting.forgotten")
    assert ADA not in json.dumps([stored.data, stored.metadata])
    assert done.receipts == [receipts.log_of(key_id)]


def test_a_request_of_the_person_itself_can_forget_and_leaves_no_trace_in_the_receipt(guests):
    guests.create(Joined(ADA, NAME))

    with event_context(ip=IP, person=ADA, agent=NAME):
        done = forget(ADA, by="themselves")

    assert done.new_receipts == 1
    assert Event.objects.get(type="eventlogs_forgetting.forgotten").metadata == {}
    assert places(NAME) == places(IP) == []


def test_forgetting_again_writes_no_second_receipt(guests):
    fill(guests)
    first = forget(ADA, by="grace")

    again = forget(ADA, by="somebody else")

    assert (first.new_receipts, again.new_receipts) == (1, 0)
    assert Event.objects.filter(type="eventlogs_forgetting.forgotten").count() == 1
    assert again.key_ids == first.key_ids


def test_data_of_a_forgotten_person_are_refused_and_the_person_is_not_known(guests):
    fill(guests)
    forget(ADA)

    with pytest.raises(SubjectForgotten):
        guests.create(Joined(ADA, NAME))
    with pytest.raises(SubjectForgotten):
        export_subject(ADA)
    with pytest.raises(SubjectUnknown) as caught:
        forget("member:3")
    assert "member:3" not in str(caught.value)


def test_a_unique_value_is_released_and_the_key_of_digests_is_nobodys(guests):
    email = "ada@example.org"
    guests.create(Joined(ADA, NAME, email=email))
    guests.create(Joined("member:4", "Mary", email="mary@example.org"))
    assert UniqueValue.objects.count() == 2
    with pytest.raises(NameTaken):
        guests.create(Joined(CHARLES, FRIEND, email=email))
    for subject in SubjectKey.objects.filter(subject__startswith="$").values_list("subject"):
        with pytest.raises(SubjectUnknown):
            forget(*subject)

    forget(ADA)

    assert UniqueValue.objects.count() == 1
    guests.create(Joined(CHARLES, FRIEND, email=email))


def test_a_dry_run_lists_all_and_changes_nothing(guests):
    log_id, _ = fill(guests)
    before = {text: places(text) for text in SECRETS}

    done = forget(ADA, dry_run=True)

    assert {text: places(text) for text in SECRETS} == before
    assert (done.logs, done.new_receipts, done.receipts) == (1, 0, [])
    assert done.rows == expected(1)
    assert done.to_rebuild == shared()
    assert done.entries == backends.count([log_id]) >= 2
    assert guests.reduce(log_id).aggregate.name == NAME
    assert SubjectKey.objects.get(subject=ADA).wrapped is not None


@pytest.mark.feed
def test_a_row_that_cannot_be_made_is_named_and_a_second_call_finishes(guests, monkeypatch):
    log_id, _ = fill(guests)
    monkeypatch.setattr(InlineNames, "refuses", {"erased"})

    done = forget(ADA)

    assert done.not_remade == [NotRemade("guests-inline", log_id, "ProjectionFailed")]
    assert (done.failed, done.new_receipts, done.is_complete) == (1, 0, False)
    assert SubjectKey.objects.get(subject=ADA).wrapped is None
    left = (guest_rows.InlineNamed, ByName)
    assert places(NAME) == sorted(model._meta.db_table for model in left)

    monkeypatch.setattr(InlineNames, "refuses", set())
    done = forget(ADA)
    rebuild_shared()
    assert (done.failed, done.new_receipts) == (0, 1)
    assert found() == {}


def test_forgetting_is_refused_in_a_transaction_which_could_be_rolled_back(guests):
    fill(guests)

    with pytest.raises(RuntimeError), transaction.atomic():
        forget(ADA)

    assert SubjectKey.objects.get(subject=ADA).wrapped is not None


def test_a_person_with_many_logs_is_forgotten_page_by_page(guests, monkeypatch):
    monkeypatch.setattr(forgetting, "LOGS", 2)
    logs = [guests.create(Joined(ADA, NAME)).log_id for _ in range(5)]
    for each in logs:
        guests.reduce(each)

    done = forget(ADA)
    again = forget(ADA)

    assert (done.logs, done.new_receipts, again.new_receipts) == (5, 3, 0)
    named = [
        each
        for record in LogManager(receipts.Forgetting).load(done.receipts[0])
        for each in record.event.logs
    ]
    assert sorted(named) == sorted(map(str, logs))
    assert places(NAME) == []


def test_a_person_without_logs_has_a_receipt_too(guests):
    guests.create(Joined(ADA, NAME))
    SubjectLog.objects.all().delete()

    assert forget(ADA).new_receipts == 1


def test_a_log_that_came_later_has_a_receipt_of_the_second_call(guests):
    guests.create(Joined(ADA, NAME))
    [key_id] = forget(ADA).key_ids
    # An append that had begun before the key was destroyed, and committed after the first call.
    late = guests.create(Joined(CHARLES, FRIEND)).log_id
    SubjectLog(key_id=key_id, log_id=late).save()

    done = forget(ADA)

    assert (done.logs, done.new_receipts) == (2, 1)


@pytest.mark.feed
def test_all_who_were_forgotten_can_be_forgotten_again(guests):
    """As after a restored backup: rows have the name again, the key is destroyed elsewhere."""
    log_id, _ = fill(guests)
    forget(ADA)
    Named.objects.filter(pk=log_id).update(name=NAME)
    ByName.objects.all().delete()
    assert places(NAME) != []

    done = forget_again(by="grace")

    assert (done.logs, done.new_receipts) == (1, 0)
    assert places(NAME) == []
    assert guests.reduce(log_id).aggregate.name == "erased"


def test_a_key_that_the_store_does_not_know_stops_no_other(guests):
    """A row of a log may be left of a transaction whose key was rolled back."""
    log_id = guests.create(Joined(ADA, NAME)).log_id
    SubjectLog(key_id=UUID(int=1), log_id=log_id).save()
    key_store().destroy(ADA)

    with pytest.raises(KeyUnavailable):
        forget_again()

    assert places(NAME) == []


def test_a_changed_value_is_an_error_of_the_export(guests):
    log_id = guests.create(Joined(ADA, NAME)).log_id
    other = guests.create(Joined(ADA, NAME)).log_id
    [first] = store_for("default").events(log_id, start=0, limit=1)

    def moved(self, log, **options):
        for page in pages(self, log, **options):
            yield [structs.replace(first, log_id=other) if log == other else each for each in page]

    store = type(store_for("default"))
    pages = store.pages
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "pages", moved)
        with pytest.raises(UndecodableEvent) as caught:
            list(export_subject(ADA))

    assert (caught.value.log_id, caught.value.index) == (other, 0)


@pytest.mark.feed
def test_the_shadow_table_of_an_interrupted_rebuild_is_dropped(guests):
    fill(guests)
    steps = rebuild.rebuild_steps(ReducedNames)
    next(steps)
    steps.close()

    forget(ADA)
    rebuild_shared()

    assert found() == {}


def test_a_persons_data_can_be_exported(guests):
    log_id, other = fill(guests)

    events = list(export_subject(ADA))

    assert [(each.log, each.index, each.type) for each in events] == [
        (log_id, 0, "visitor.joined"),
        (log_id, 1, "visitor.moved"),
        (log_id, 2, "visitor.complained"),
    ]
    assert [each.data for each in events] == [
        {"$.name": NAME},
        {"$.streets[0]": STREET},
        {"$.text": TEXT},
    ]
    assert [each.metadata for each in events] == [{"$metadata.ip": IP}] * 2 + [{}]
    assert [(each.log, each.data) for each in export_subject(CHARLES)] == [
        (log_id, {"$.friend_name": FRIEND}),
        (other, {"$.name": FRIEND}),
    ]
    with pytest.raises(SubjectUnknown):
        export_subject("member:3")


class Appending(Thread):
    """A transaction that has appended, and ends when it is told to."""

    def __init__(self, guests):
        super().__init__()
        self.has_appended, self.may_end = ThreadEvent(), ThreadEvent()
        self._guests = guests

    def run(self):
        try:
            with transaction.atomic():
                self._guests.create(Joined(ADA, NAME))  # a log that no other transaction sees
                self.has_appended.set()
                assert self.may_end.wait(10)
        finally:
            connections.close_all()


@pytest.fixture
def appending(guests):
    guests.create(Joined(ADA, "Ada"))  # so that the key is committed
    thread = Appending(guests)
    thread.start()
    assert thread.has_appended.wait(10)
    yield thread
    thread.may_end.set()
    thread.join(10)


@pytest.mark.postgresql
def test_an_append_that_had_begun_before_is_waited_for(guests, appending, monkeypatch):
    source = type(feed_source_for("default"))
    holding_back = source.holding_back

    def look_and_end(self):
        found = holding_back(self)
        appending.may_end.set()  # the first look has found it, and the wait begins
        return found

    monkeypatch.setattr(source, "holding_back", look_and_end)

    done = forget(ADA)

    assert (done.logs, done.open_appends, done.new_receipts) == (2, 0, 1)
    rebuild_shared()
    assert places(NAME) == []


@pytest.mark.postgresql
def test_an_append_that_does_not_end_is_counted_and_found_by_the_next_call(
    guests, appending, monkeypatch
):
    monkeypatch.setattr(forgetting, "LONGEST_WAIT", 0.1)

    done = forget(ADA)

    assert (done.logs, done.open_appends, done.is_complete) == (1, 1, False)
    appending.may_end.set()
    appending.join(10)
    # Its row was folded while the key was there: this is the copy that the wait is for.
    assert places(NAME) == [guest_rows.InlineNamed._meta.db_table]
    done = forget(ADA)
    assert (done.logs, done.open_appends) == (2, 0)
    assert places(NAME) == []


@pytest.mark.postgresql
def test_without_the_wait_the_row_of_such_an_append_stays(guests, appending, monkeypatch):
    """The broken version: the call says that it is done, and the name comes back."""
    monkeypatch.setattr(forgetting, "_wait_for_open_appends", lambda using: 0)

    done = forget(ADA)
    appending.may_end.set()
    appending.join(10)

    assert done.open_appends == 0
    assert places(NAME) == [guest_rows.InlineNamed._meta.db_table]


def test_a_row_that_is_folded_after_the_key_was_destroyed_has_the_stand_in(guests, monkeypatch):
    """An append whose data were encrypted before, and that folds and commits after."""
    guests.create(Joined(ADA, "Ada"))
    append = type(store_for("default")).append

    def append_late(self, request):
        monkeypatch.undo()
        with transaction.atomic():  # the key is destroyed between encryption and the append
            key_store().destroy(ADA)
        return append(self, request)

    monkeypatch.setattr(type(store_for("default")), "append", append_late)

    late = guests.create(Joined(ADA, NAME))

    assert guests.reduce(late.log_id).aggregate.name == "erased"
    assert guest_rows.InlineNamed._default_manager.get(pk=late.log_id).name == "erased"
    assert places(NAME) == []
