"""
Retries with an idempotency key after the events' classes have changed.

``tests/reliability/test_retries_across_releases.py`` tries the same with two processes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import connection, transaction
from django.utils import timezone

from eventlogs import (
    ANY,
    Aggregate,
    EventLogError,
    IdempotencyKeyReused,
    IdempotencyKeyUndecided,
    IdempotentReplay,
    LogManager,
    LogState,
    UndecodableEvent,
    UnknownEventType,
    event,
    upcaster,
)
from eventlogs.events import registry as events
from eventlogs.events.registry import registry
from eventlogs.models import Event
from eventlogs.stores import BaseStore
from tests.accounts import Account, Deposited, Noted

pytestmark = pytest.mark.usefixtures("scratch_registry", "db")


def release(store: BaseStore, *classes: type) -> LogManager[Any]:
    """Return the logs as a process sees them whose code has these classes and no others."""
    for known in vars(registry)["_by_name"].values():
        known[:] = [each for each in known if each.cls in classes or "Taken" not in str(each.cls)]

    class Till(Aggregate, log_type="till", events=[*classes]):
        count = 0

        def apply(self, record):
            self.count += 1

    return LogManager(Till, store=store)


def event_class(name: str, *fields: Any, **options: Any) -> type:
    """Return an event class called ``Taken``, which stands which replaces the previous one."""
    return event(name, **options)(dataclasses.make_dataclass("Taken", fields, frozen=True))


def first_release() -> type:
    return event_class("till.taken", ("amount", int))


def with_a_new_field() -> tuple[type, Any]:
    cls = event_class("till.taken", ("amount", int), ("currency", str, field(default="EUR")))
    return cls, cls(5)


def with_a_field_less() -> tuple[type, Any]:
    cls = event_class("till.taken")
    return cls, cls()


def with_a_new_name() -> tuple[type, Any]:
    cls = event_class("till.received", ("amount", int), aliases=["till.taken"])
    return cls, cls(5)


def with_a_new_version() -> tuple[type, Any]:
    cls = event_class("till.taken", ("cents", int), version=2)
    upcaster("till.taken", from_version=1)(lambda data: {"cents": data["amount"] * 100})
    return cls, cls(500)


def with_all_of_it() -> tuple[type, Any]:
    cls = event_class(
        "till.received",
        ("euros", Decimal),
        ("currency", str, field(default="EUR")),
        version=2,
        aliases=["till.taken"],
    )
    upcaster("till.received", from_version=1)(lambda data: {"euros": f"{data['amount']}.00"})
    return cls, cls(Decimal(5))


RELEASES: list[Callable[[], tuple[type, Any]]] = [
    with_a_new_field,
    with_a_field_less,
    with_a_new_name,
    with_a_new_version,
    with_all_of_it,
]


@pytest.mark.parametrize("next_release", RELEASES)
def test_a_retry_after_a_deployment_is_a_replay(store, next_release):
    taken = first_release()
    logs = release(store, taken)
    created = logs.create(taken(5), idempotency_key="c")
    appended = logs.append(created, taken(5), taken(5), idempotency_key="a")

    cls, same = next_release()
    logs = release(store, cls)

    with pytest.raises(IdempotentReplay) as caught:
        logs.create(same, log_id=logs.new_id(), idempotency_key="c")
    assert (caught.value.log_id, caught.value.index) == (created.log_id, 0)
    assert caught.value.state == created
    for expected in (1, 3, ANY):
        with pytest.raises(IdempotentReplay) as caught:
            logs.append(created.log_id, same, same, expected_version=expected, idempotency_key="a")
        assert (caught.value.index, caught.value.state) == (1, appended)
    assert logs.get_or_create(same, idempotency_key="c") == (created, False)
    assert logs.get_or_append(appended, same, same, idempotency_key="a") == (appended, False)
    assert logs.execute(created.log_id, lambda _: [same], idempotency_key="a") == appended
    assert async_to_sync(logs.aget_or_create)(same, idempotency_key="c") == (created, False)
    assert logs.version(created.log_id) == 3


@pytest.mark.parametrize("next_release", [with_a_new_field, with_a_new_name, with_a_new_version])
def test_another_request_after_a_deployment_is_still_refused(store, next_release):
    taken = first_release()
    logs = release(store, taken)
    created = logs.create(taken(5), idempotency_key="c")
    other = logs.create(taken(5))

    cls, same = next_release()
    logs = release(store, cls)
    different = cls(7)
    calls: list[Callable[[], LogState]] = [
        lambda: logs.create(different, idempotency_key="c"),
        lambda: logs.create(same, same, idempotency_key="c"),
        lambda: logs.append(created, different, idempotency_key="c"),
        lambda: logs.append(other, same, idempotency_key="c"),
    ]

    for call in calls:
        with pytest.raises(IdempotencyKeyReused) as caught:
            call()
        assert (caught.value.log_id, caught.value.index) == (created.log_id, 0)
        assert caught.value.count == 1
    assert caught.value.reason == "log"
    assert (logs.version(created.log_id), logs.version(other.log_id)) == (1, 1)


def test_equal_data_of_another_version_is_another_request(store):
    """5 euros are not 5 cents: only the upcaster converts them to the current version."""
    taken = first_release()
    logs = release(store, taken)
    created = logs.create(taken(5), idempotency_key="c")

    cls = event_class("till.taken", ("amount", int), version=2)
    upcaster("till.taken", from_version=1)(lambda data: {"amount": data["amount"] * 100})
    logs = release(store, cls)

    with pytest.raises(IdempotencyKeyReused):
        logs.create(cls(5), idempotency_key="c")
    assert logs.get_or_create(cls(500), idempotency_key="c") == (created, False)


def newer_version(store: BaseStore) -> tuple[LogManager[Any], LogState]:
    cls, same = with_a_new_version()
    return (logs := release(store, cls)), logs.create(same, idempotency_key="c")


def newer_name(store: BaseStore) -> tuple[LogManager[Any], LogState]:
    cls, same = with_a_new_name()
    return (logs := release(store, cls)), logs.create(same, idempotency_key="c")


def deleted_class(store: BaseStore) -> tuple[LogManager[Any], LogState]:
    cls = event_class("till.forgotten", ("amount", int))
    return (logs := release(store, cls)), logs.create(cls(5), idempotency_key="c")


@pytest.mark.parametrize(
    ("newer", "cause", "event_type"),
    [
        (newer_version, UndecodableEvent, "till.taken"),
        (newer_name, UnknownEventType, "till.received"),
        (deleted_class, UnknownEventType, "till.forgotten"),
    ],
)
@pytest.mark.parametrize("amount", [5, 7])
def test_a_retry_of_events_that_cannot_be_decoded_is_undecided(
    store, newer, cause, event_type, amount
):
    _, state = newer(store)

    taken = first_release()
    logs = release(store, taken)

    for call in (
        lambda: logs.create(taken(amount), idempotency_key="c"),
        lambda: logs.get_or_create(taken(amount), idempotency_key="c"),
        lambda: logs.append(state, taken(amount), idempotency_key="c"),
    ):
        with pytest.raises(IdempotencyKeyUndecided, match="deployment") as caught:
            call()
        assert not isinstance(caught.value, IdempotencyKeyReused)
        assert (caught.value.log_id, caught.value.index) == (state.log_id, 0)
        assert caught.value.event_type == event_type
        assert type(caught.value.__cause__) is cause
    assert logs.version(state.log_id) == 1


@pytest.mark.skipif(not hasattr(events, "retired_event"), reason="no type can be retired here")
def test_a_retry_of_events_of_a_retired_type_is_undecided(store):
    _, state = deleted_class(store)
    taken = first_release()
    logs = release(store, taken)
    events.retired_event("till.forgotten")

    with pytest.raises(IdempotencyKeyUndecided) as caught:
        logs.create(taken(5), idempotency_key="c")

    assert caught.value.event_type == "till.forgotten"
    assert logs.version(state.log_id) == 1


def test_a_key_of_execute_is_found_even_if_its_events_cannot_be_decoded(store):
    _, state = newer_name(store)

    logs = release(store, first_release())

    assert logs.execute(state.log_id, lambda _: [], idempotency_key="c") == state
    with pytest.raises(UnknownEventType):
        logs.execute(state.log_id, lambda _: [], idempotency_key="another")


@pytest.mark.parametrize(
    "next_release", [with_a_new_field, with_a_new_name, with_a_new_version, None]
)
def test_the_callers_transaction_stays_usable(database_store, next_release):
    taken = first_release()
    logs = release(database_store, taken)
    created = logs.create(taken(5), idempotency_key="c")
    if next_release is None:
        cls, same = event_class("till.new", ("amount", int)), None
        expected: type[EventLogError] = IdempotencyKeyUndecided
    else:
        cls, same = next_release()
        expected = IdempotentReplay
    logs = release(database_store, cls)

    with transaction.atomic():
        before = Event.objects.count()
        with pytest.raises(expected):
            logs.create(same or cls(5), idempotency_key="c")
        assert not connection.needs_rollback
        logs.create(same or cls(5))
        assert Event.objects.count() == before + 1
    assert Event.objects.filter(log=created.log_id.uuid).count() == 1


def test_metadata_is_not_compared_after_a_deployment_either(store):
    taken = first_release()
    release(store, taken).create(taken(5), idempotency_key="c", metadata={"attempt": 1})

    cls, same = with_a_new_name()

    with pytest.raises(IdempotentReplay):
        release(store, cls).create(same, idempotency_key="c", metadata={"attempt": 2})


def test_a_field_with_compare_false_is_not_compared(store):
    @event("till.noted")
    @dataclass(frozen=True)
    class NotedNow:
        amount: int
        at: datetime = field(default_factory=timezone.now, compare=False)

    logs = release(store, NotedNow)
    first = NotedNow(5)
    created = logs.create(first, idempotency_key="c")

    assert logs.get_or_create(NotedNow(5), idempotency_key="c") == (created, False)
    with pytest.raises(IdempotencyKeyReused):
        logs.create(NotedNow(6), idempotency_key="c")
    (stored,) = logs.load(created.log_id)
    assert stored.event.at == first.at  # only the comparison leaves it out


def test_a_different_time_in_a_compared_field_is_another_request(store):
    @event("till.noted")
    @dataclass(frozen=True)
    class NotedNow:
        amount: int
        at: datetime = field(default_factory=timezone.now)

    logs = release(store, NotedNow)
    logs.create(NotedNow(5), idempotency_key="c")

    with pytest.raises(IdempotencyKeyReused):
        logs.create(NotedNow(5), idempotency_key="c")


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        (1, True, False),
        (1, 1.5, False),
        ("1", 1, False),
        ([1, {"a": None}], [1, {"a": None}], True),
        ([1], [1, 1], False),
        ({"a": 1}, {"b": 1}, False),
        (None, False, False),
        (1e22, 1e22, True),
    ],
)
def test_events_are_compared_with_their_types(store, settings, one, other, alike):
    accounts = LogManager(Account, store=store)
    created = accounts.create(Noted(one), idempotency_key="c")
    settings.SECRET_KEY = "another"  # no fingerprint helps: the events decide

    if alike:
        assert accounts.get_or_create(Noted(other), idempotency_key="c") == (created, False)
    else:
        with pytest.raises(IdempotencyKeyReused):
            accounts.create(Noted(other), idempotency_key="c")


@dataclass(frozen=True)
class Line:
    text: str
    amount: Decimal


@event("till.billed")
@dataclass(frozen=True)
class Billed:
    lines: list[Line]
    at: datetime


def test_events_are_compared_by_their_values_not_by_how_they_are_written(store):
    logs = release(store, Billed)
    first = Billed([Line("a", Decimal("2.50"))], datetime.fromisoformat("2026-03-02T09:30Z"))
    created = logs.create(first, idempotency_key="c")
    again = Billed([Line("a", Decimal("2.5"))], datetime.fromisoformat("2026-03-02T10:30+01:00"))
    other = Billed([Line("a", Decimal("2.51"))], first.at)

    assert logs.get_or_create(again, idempotency_key="c") == (created, False)
    with pytest.raises(IdempotencyKeyReused):
        logs.create(other, idempotency_key="c")


def test_a_key_whose_events_were_erased_is_reused(store):
    accounts = LogManager(Account, store=store)

    class Erased(type(store)):  # type: ignore[misc]
        def events(self, *args, **kwargs):
            return []

    accounts.create(Deposited(5), idempotency_key="c")
    store.__class__, kept = Erased, store.__class__
    try:
        with pytest.raises(IdempotencyKeyReused):
            accounts.create(Deposited(6), idempotency_key="c")
    finally:
        store.__class__ = kept
