"""Verifiers: right data has no findings, and each kind of damage is found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from uuid import UUID

import pytest
from django.core.cache import caches
from django.db import connection
from django.db.models import F, QuerySet
from django.utils import timezone

from eventlogs import LogId, LogManager, Reduction, event
from eventlogs.caches.backends import GuardedCache, cache_for
from eventlogs.caches.entries import EntryCodec
from eventlogs.events.codec import EncodedEvent
from eventlogs.events.registry import upcaster
from eventlogs.feed import scans
from eventlogs.models import Event, EventLog, IdempotencyKey
from eventlogs.operations import verification
from eventlogs.operations.verification import (
    VERIFIERS,
    CacheVerifier,
    Finding,
    ProjectionVerifier,
    Scope,
    verify,
)
from eventlogs.stores import AppendRequest, erasing, store_for
from eventlogs.testing import RecordingCache
from example_project.payments.events import Payment, Requested
from example_project.payments.models import PaymentSummary
from example_project.payments.projections import PaymentSummaries
from tests.accounts import Account, Deposited, Opened
from tests.management.histories import fill

TRIGGER = "eventlogs_event_refuse_change"


def found(**options) -> list[Finding]:
    return list(verify(Scope("default", **options)))


def checks(**options) -> list[tuple[str, int | None]]:
    return [(each.check, each.index) for each in found(**options)]


@pytest.fixture
def spoil(transactional_db, request) -> Iterator[None]:
    """Disable the triggers that prevent changes of events."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER TABLE eventlogs_event DISABLE TRIGGER {TRIGGER}")
    yield
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER TABLE eventlogs_event ENABLE ALWAYS TRIGGER {TRIGGER}")


def raw(model) -> QuerySet:
    return QuerySet(model)


def make_log(events: int = 5) -> LogId:
    return Account.logs.create(Opened(owner="Ada"), *[Deposited(amount=1)] * (events - 1)).log_id


def test_a_sound_database_has_no_findings(db):
    fill()

    assert found(decode=False) == []


def test_an_empty_database_has_no_findings(db):
    assert found() == []


@pytest.mark.parametrize("page", [1, 2, 3, 7])
def test_pages_of_any_size_find_nothing_and_see_everything(db, monkeypatch, page):
    fill()
    monkeypatch.setattr(scans, "PAGE", page)
    told: list[int] = []

    assert found(decode=False, tell=told.append) == []
    assert sum(told) == Event.objects.count()


@pytest.mark.parametrize("page", [2, 2_000])
def test_a_hole_is_found(spoil, monkeypatch, page):
    monkeypatch.setattr(scans, "PAGE", page)
    make_log()
    broken = make_log()
    make_log()
    raw(Event).filter(log_id=broken.uuid, index=2)._raw_delete("default")

    assert [(each.check, each.subject, each.index) for each in found()] == [
        ("indexes", str(broken), 3)
    ]


@pytest.mark.parametrize("index", [0, 4])
def test_a_missing_first_or_last_event_is_found(spoil, index):
    log_id = make_log()
    raw(Event).filter(log_id=log_id.uuid, index=index)._raw_delete("default")

    assert {each.check for each in found()} >= {"indexes" if index == 0 else "versions"}


def test_a_log_whose_events_are_gone_is_found(spoil):
    make_log()
    broken = make_log()
    make_log()
    raw(Event).filter(log_id=broken.uuid)._raw_delete("default")

    (finding,) = found()
    assert (finding.check, finding.subject) == ("versions", str(broken))
    assert "is at version 5 and holds 0 events" in finding.message


def test_a_log_that_no_id_can_name_is_found(spoil):
    log_id = make_log()
    raw(EventLog).filter(pk=log_id.uuid).update(log_type="Account 7")
    raw(Event).filter(log_id=log_id.uuid).update(log_type="Account 7")

    assert checks(decode=False) == [("ids", None)]


@pytest.mark.django_db
@pytest.mark.parametrize(
    "uuid", [UUID(int=1), UUID(int=7 << 120), LogId.from_key("account", 42).uuid]
)
def test_a_log_with_a_uuid_of_any_version_is_right(uuid):
    Account.logs.create(Opened("ada"), Deposited(5), log_id=LogId.from_uuid("account", uuid))

    assert found() == []


def test_an_event_with_another_log_type_than_its_log_is_found(spoil):
    log_id = make_log()
    raw(Event).filter(log_id=log_id.uuid, index=2).update(log_type="parcel")

    finding, *of_keys = found()
    assert (finding.check, finding.subject, finding.index) == ("ids", str(log_id), 2)
    assert {each.check for each in of_keys} <= {"keys"}
    assert "stored with the log type parcel" in finding.message


def test_a_wrong_version_is_found(spoil):
    broken = make_log()
    raw(EventLog).filter(pk=broken.uuid).update(version=7)

    (finding,) = found()
    assert (finding.check, finding.subject) == ("versions", str(broken))
    assert "is at version 7 and holds 5 events" in finding.message


def test_events_without_a_log_are_found(spoil):
    broken = make_log()
    make_log()
    raw(EventLog).filter(pk=broken.uuid)._raw_delete("default")

    (finding,) = found()
    assert (finding.check, finding.subject) == ("versions", str(broken.uuid))
    assert "5 events have no log" in finding.message


def test_time_that_runs_backwards_is_found(spoil):
    broken = make_log()
    earlier = F("recorded_at") - timedelta(seconds=1)
    raw(Event).filter(log_id=broken.uuid, index=3).update(recorded_at=earlier)

    assert checks() == [("times", 3)]


def test_a_log_that_is_younger_than_its_events_is_found(spoil):
    broken = make_log()
    later = F("created_at") + timedelta(days=1)
    raw(EventLog).filter(pk=broken.uuid).update(created_at=later, updated_at=later)

    assert checks() == [("times", 0), ("times", None)]


def test_positions_that_run_backwards_are_found(spoil):
    broken = make_log()
    first = raw(Event).get(log_id=broken.uuid, index=0).position
    raw(Event).filter(log_id=broken.uuid, index=3).update(position=first - 1)

    assert ("positions", 3) in checks()


def test_an_unknown_type_is_one_finding(db):
    log_id = make_log()
    unknown = [EncodedEvent("account.teleported", 1, "{}")] * 3
    store_for("default").append(AppendRequest(log_id, unknown, 5, None, "{}"))

    (finding,) = found()
    assert (finding.check, finding.index) == ("decoding", 5)
    assert "'account.teleported'" in finding.message
    assert found(decode=False) == []


def test_each_event_that_cannot_be_decoded_is_found(db):
    log_id = make_log()
    bad = [EncodedEvent("account.deposited", 1, '{"amount":"secret"}')] * 2
    store_for("default").append(AppendRequest(log_id, bad, 5, None, "{}"))

    assert checks() == [("decoding", 5), ("decoding", 6)]
    assert "secret" not in str(found())


def test_an_upcaster_that_fails_is_found(db, scratch_registry):
    @event("account.moved", version=2)
    @dataclass(frozen=True)
    class Moved:
        to: str

    @upcaster("account.moved", from_version=1)
    def fail(data):
        raise KeyError(data["secret"])

    log_id = make_log()
    old = [EncodedEvent("account.moved", 1, '{"secret":"7"}')]
    store_for("default").append(AppendRequest(log_id, old, 5, None, "{}"))

    (finding,) = found()
    assert finding.message == "account.moved: its upcaster from version 1 failed with KeyError"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"first_index": 50}, "there is no event"),
        ({"count": 9}, "there is no event"),
        ({"first_index": 0, "count": 1}, "not this event's"),
        ({"key": "another"}, "not this event's"),
        ({"log_id": UUID(int=1)}, "there is no event"),
    ],
    ids=str,
)
def test_a_key_that_points_elsewhere_is_found(spoil, change, message):
    state = Account.logs.create(Opened(owner="Ada"))
    Account.logs.append(state, Deposited(amount=1), Deposited(amount=2), idempotency_key="k")
    raw(IdempotencyKey).update(**change)

    assert {each.check for each in found()} == {"keys"}
    assert message in found()[0].message


def test_a_pruned_key_is_no_finding(db):
    Account.logs.create(Opened(owner="Ada"), idempotency_key="k")
    raw(IdempotencyKey)._raw_delete("default")

    assert found() == []


def test_logs_up_to_a_given_one_can_be_left_out(spoil):
    first, second = sorted([make_log(), make_log()])
    raw(EventLog).update(version=7)

    assert [each.subject for each in found()] == [str(first), str(second)]
    assert [each.subject for each in found(after=first)] == [str(second)]
    assert found(after=second) == []
    assert found(log_types=["parcel"]) == []
    assert [each.subject for each in found(log_types=["account"])] == [str(first), str(second)]


def test_the_scope_knows_the_last_log_that_was_verified(db):
    logs = sorted(make_log() for _ in range(3))
    scope = Scope("default")

    list(verify(scope))

    assert scope.reached == logs[-1]


def test_appends_during_a_verification_are_no_findings(transactional_db, monkeypatch):
    """Each page of logs is older than its events: logs were appended to and created meanwhile."""
    log_ids = [make_log() for _ in range(4)]
    logs_by_id = scans.logs_by_id

    def with_appends(*args, **kwargs):
        for page in logs_by_id(*args, **kwargs):
            for log_id in log_ids:
                LogManager(Account).append(log_id, Deposited(amount=1), expected_version=5)
            make_log()
            yield page

    monkeypatch.setattr(scans, "logs_by_id", with_appends)

    assert found() == []


def test_a_broken_version_that_does_not_check_twice_reports_concurrent_appends(
    transactional_db, monkeypatch
):
    log_ids = [make_log() for _ in range(4)]
    logs_by_id = scans.logs_by_id

    def with_appends(*args, **kwargs):
        for page in logs_by_id(*args, **kwargs):
            for log_id in log_ids:
                LogManager(Account).append(log_id, Deposited(amount=1), expected_version=5)
            yield page

    def believe(self, scope, log):
        yield Finding("versions", str(log.log_id), "wrong")

    monkeypatch.setattr(scans, "logs_by_id", with_appends)
    monkeypatch.setattr(verification.LogVerifier, "_check_again", believe)

    assert len(found()) == 4


@pytest.fixture
def reduction_cache(settings):
    """A cache that keeps every reduction at once."""
    settings.EVENTLOGS = {
        "CACHE": "default",
        "CACHING_POLICY": "eventlogs.AlwaysCache",
        "REFRESHER": "eventlogs.refreshers.ImmediateRefresher",
    }
    yield cache_for()
    caches["default"].clear()


def of_caches() -> list[Finding]:
    return list(verify(Scope("default"), [CacheVerifier()]))


def keep(cache, aggregate: Account, log_id: LogId, version: int) -> None:
    """Put an entry into the cache, signed and proven."""
    codec = EntryCodec(Account, "default")
    row = store_for("default").events(log_id, start=version - 1, limit=1)[0]
    entry = codec.encode(Reduction(log_id, version, aggregate, timezone.now(), row.position), row)
    cache.replace(codec.key(log_id), entry, timeout=60)


def test_reductions_that_are_cached_are_compared_with_a_replay(reduction_cache, transactional_db):
    log_ids = [make_log() for _ in range(3)]
    for log_id in log_ids:
        Account.logs.reduce(log_id)
    keep(reduction_cache, Account(owner="Ada", balance=3), log_ids[0], 4)
    assert of_caches() == []

    keep(reduction_cache, Account(owner="Ada", balance=99), log_ids[1], 4)

    (finding,) = of_caches()
    assert (finding.check, finding.subject) == ("caches", str(log_ids[1]))
    assert "cached at version 4 differs from a replay" in finding.message
    assert "99" not in finding.message


def test_an_entry_that_readers_reject_is_no_finding(reduction_cache, transactional_db):
    log_id, other = make_log(), make_log()
    keep(reduction_cache, Account(owner="Ada", balance=99), other, 4)
    codec = EntryCodec(Account, "default")
    entry = reduction_cache.get(codec.key(other))
    reduction_cache.replace(codec.key(other), b"garbage", timeout=60)
    reduction_cache.replace(codec.key(log_id), entry, timeout=60)

    assert of_caches() == []


def test_a_cache_that_cannot_be_read_is_reported(db, settings, monkeypatch):
    make_log()
    settings.EVENTLOGS = {"CACHE": None}
    assert of_caches() == []

    class Away(RecordingCache):
        def get(self, key: str) -> bytes | None:
            raise ConnectionError

    monkeypatch.setattr(verification, "cache_for", lambda: GuardedCache(Away()))
    assert [each.message for each in of_caches()] == [
        "the cache cannot be read, so its entries were not checked"
    ]


@pytest.mark.feed
def test_rows_of_read_models_are_compared_with_a_replay(db):
    state = Payment.logs.create(Requested(amount=5))
    PaymentSummaries.catch_up()
    scope = Scope("default")
    assert list(verify(scope, [ProjectionVerifier()])) == []

    PaymentSummary.objects.update(requested=6)
    message = "its row in payment-summary differs in requested"
    [finding] = verify(scope, [ProjectionVerifier(repair=True)])
    assert (finding.check, finding.subject) == ("projections", str(state.log_id))
    assert finding.message == f"{message}, and was repaired"
    assert list(verify(scope, [ProjectionVerifier(sample=5)])) == []


def test_a_project_adds_its_own_verifier(db, monkeypatch):
    class Balances:
        name = "balances"

        def verify(self, scope: Scope) -> Iterator[Finding]:
            yield Finding("balances", "all", "they do not add up")

    monkeypatch.setattr(verification, "VERIFIERS", [*VERIFIERS, Balances()])

    assert [each.check for each in found()] == ["balances"]


@pytest.mark.django_db
def test_a_log_that_disappeared_without_a_tombstone_is_found():
    one, two = (Account.logs.create(Opened(name)).log_id for name in ("ada", "bob"))
    for each in (one, two):
        erasing.erase("default", each, by="grace", reason="order 7")
    assert found() == []

    with connection.cursor() as cursor:
        for statement, uuid in (
            ("DELETE FROM eventlogs_erasedlog WHERE id = %s", one.uuid),
            ("DELETE FROM eventlogs_eventlog WHERE id = %s", two.uuid),
        ):
            value = EventLog._meta.pk.get_db_prep_value(uuid, connection)
            cursor.execute(statement, [value])

    subjects = {(each.check, each.subject) for each in found()}
    assert subjects == {("erased", str(one.uuid)), ("erased", str(two))}


def test_a_log_without_events_keeps_no_other_from_being_checked(spoil):
    # In MariaDB, the ids of keys are in another order than that of their bytes.
    ids = [LogId.from_key("account", number) for number in range(30)]
    for each in ids:
        Account.logs.create(Opened(owner="Ada"), Deposited(amount=1), log_id=each)
    in_order = list(EventLog.objects.order_by("pk").values_list("pk", flat=True))
    # The first of them has the higher bytes, if there are such pairs.
    empty, spoilt = max(pairwise(in_order), key=lambda pair: pair[0].int - pair[1].int)
    raw(Event).filter(log=empty)._raw_delete("default")
    raw(Event).filter(log=spoilt, index=1).update(recorded_at=F("recorded_at") - timedelta(days=1))

    assert {(each.check, each.subject) for each in found()} >= {
        ("versions", str(LogId("account", empty))),
        ("times", str(LogId("account", spoilt))),
    }
