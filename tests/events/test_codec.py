"""Encoding and decoding of events: exact values, types, versions and names."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Any, Literal
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from eventlogs import (
    Aggregate,
    EventRecord,
    InvalidEvent,
    LogManager,
    RegistrationError,
    UndecodableEvent,
    UnknownEventType,
    event,
    upcaster,
)
from eventlogs.events.codec import (
    EncodedEvent,
    EventReader,
    codec_for,
    request_fingerprints,
    same_request,
)
from eventlogs.events.registry import EventType, registry
from eventlogs.ids import LogId
from eventlogs.stores import AppendRequest
from eventlogs.testing import MemoryStore
from eventlogs.values import StoredEvent
from tests.accounts import Deposited, Noted, Opened, encoded


class Status(Enum):
    OPEN = "open"
    SHUT = "shut"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


@dataclass(frozen=True)
class Address:
    street: str
    zip_code: str | None = None


@dataclass(frozen=True)
class Item:
    sku: str
    price: Decimal
    shipped_to: Address | None = None
    parts: tuple[Item, ...] = ()


@event("order.valued")
@dataclass(frozen=True)
class Valued:
    number: int | None = None
    weight: float | None = None
    price: Decimal | None = None
    status: Status | None = None
    level: Level | None = None
    at: datetime | None = None
    on: date | None = None
    daily_at: time | None = None
    every: timedelta | None = None
    reference: UUID | None = None
    kind: Literal["a", "b"] | None = None
    item: Item | None = None
    items: list[Item] = field(default_factory=list)
    by_sku: dict[str, Item] = field(default_factory=dict)
    pair: tuple[int, str] | None = None
    scalar: int | str | bool | list[int] | None = None
    ratio: int | float | None = None
    anything: Any = None


@event("order.priced", version=3, aliases=["order.valuated"])
@dataclass(frozen=True)
class Priced:
    """Version 1 had a number of the currency's main unit, version 2 no currency."""

    price: Decimal
    currency: str


@upcaster("order.priced", from_version=1)
def name_it_price(data: dict[str, Any]) -> dict[str, Any]:
    assert not isinstance(data["amount"], float)
    return {"price": data["amount"]}


@upcaster("order.priced", from_version=2)
def add_currency(data: dict[str, Any]) -> dict[str, Any]:
    return {**data, "currency": "EUR"}


@event("order.gapped", version=3)
@dataclass(frozen=True)
class Gapped:
    """In these tests, the upcaster from version 2 to version 3 is missing."""

    amount: int


@upcaster("order.gapped", from_version=1)
@upcaster("order.gapped", from_version=2)
def keep(data: dict[str, Any]) -> dict[str, Any]:
    return data


@pytest.fixture(autouse=True)
def _gap(monkeypatch):
    """Remove an upcaster within a test only, because the system checks of other tests need it."""
    monkeypatch.delitem(registry._upcasters, ("order.gapped", 2))


@dataclass
class Order(Aggregate, log_type="order", events=[Valued, Priced, Gapped]):
    price: Decimal = Decimal(0)

    def apply(self, record: EventRecord) -> None:
        if isinstance(record.event, Priced):
            self.price = record.event.price


@pytest.fixture
def orders(store, db):
    return LogManager(Order, store=store)


def put(store, *stored: tuple[str, int, str]) -> LogId:
    """Create an order with events as some other version of the code has written them."""
    log_id = LogId.new("order")
    events = [EncodedEvent(*each) for each in stored]
    store.append(AppendRequest(log_id, events, 0, None, "{}"))
    return log_id


TWO_HOURS_EAST = timezone(timedelta(hours=2))
ROME = ZoneInfo("Europe/Rome")

VALUES = [
    Valued(number=0),
    Valued(number=-1),
    Valued(number=2**53 + 1),
    Valued(number=2**63 - 1),
    Valued(number=-(2**63)),
    Valued(number=2**64),
    Valued(number=2**70),
    Valued(number=-(10**400)),
    Valued(weight=0.1),
    Valued(weight=-0.0),
    Valued(weight=1e300),
    Valued(weight=1e23),
    Valued(weight=5e-324),
    Valued(weight=2.2250738585072014e-308),
    Valued(weight=1.7976931348623157e308),
    Valued(weight=9007199254740993.0),
    Valued(price=Decimal("1.10")),
    Valued(price=Decimal("0.1")),
    Valued(price=Decimal("-0.00")),
    Valued(price=Decimal("1E+5")),
    Valued(price=Decimal("1E-400")),
    Valued(price=Decimal("9.99E+500")),
    Valued(price=Decimal("12345678901234567890.123456789012345678901234567890")),
    Valued(status=Status.SHUT),
    Valued(level=Level.HIGH),
    Valued(at=datetime(1, 1, 1, tzinfo=UTC)),
    Valued(at=datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)),
    Valued(at=datetime(2026, 3, 29, 3, 0, 0, 1, tzinfo=TWO_HOURS_EAST)),
    Valued(on=date(2024, 2, 29)),
    Valued(daily_at=time(23, 59, 59, 999_999)),
    Valued(every=timedelta(days=400, microseconds=1)),
    Valued(every=timedelta(seconds=-1)),
    Valued(reference=UUID(int=2**128 - 1)),
    Valued(kind="b"),
    Valued(item=Item("a", Decimal("1.50"), Address("high street", None))),
    Valued(item=Item("a", Decimal(1), parts=(Item("b", Decimal("2.00")),))),
    Valued(items=[Item("a", Decimal("0.10")), Item("b", Decimal("0.20"))]),
    Valued(by_sku={"": Item("", Decimal(0)), "é☃\U0001f600": Item("\x01\u2028", Decimal(1))}),
    Valued(pair=(1, "a")),
    Valued(scalar=1),
    Valued(scalar="1"),
    Valued(scalar=True),
    Valued(scalar=[1, 2]),
    Valued(ratio=2**70),
    Valued(ratio=0.5),
    Valued(anything={"b": [1, 2.5, None, True, "x", {}], "a": {"": []}}),
    Valued(anything=2**70),
    Valued(anything=0.1),
    Valued(),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: str(value)[:60])
def test_an_event_comes_back_equal_and_of_the_same_types(orders, value):
    state = orders.create(value)

    [record] = orders.load(state.log_id)

    assert record.event == value
    for name in Valued.__dataclass_fields__:
        assert type(getattr(record.event, name)) is type(getattr(value, name))


class ReadsEveryNumberAsAFloat(MemoryStore):
    """Read numbers as a driver with the JSON of JavaScript does."""

    def _events(self, log_id: LogId) -> list[StoredEvent]:
        return [
            replace(row, data=json.dumps(json.loads(row.data, parse_int=float)))
            for row in super()._events(log_id)
        ]


def test_a_broken_store_that_reads_every_number_as_a_float_is_found_out():
    orders = LogManager(Order, store=ReadsEveryNumberAsAFloat())

    with pytest.raises((AssertionError, UndecodableEvent)):
        test_an_event_comes_back_equal_and_of_the_same_types(orders, Valued(anything=2**70))


@pytest.mark.parametrize("number", [1e16, -1e22, 1e-300])
def test_a_large_float_comes_back_equal_where_no_float_is_declared(orders, number):
    ratio = orders.create(Valued(ratio=number))
    anything = orders.create(Valued(anything=[number]), metadata={"seen": number})

    assert orders.load(ratio.log_id)[0].event == Valued(ratio=number)
    [record] = orders.load(anything.log_id)
    assert record.event == Valued(anything=[number])
    assert record.metadata == {"seen": number}


@pytest.mark.parametrize("number", [1e23, 1e300, 1.1805916207174113e21])
def test_a_float_that_jsonb_would_make_another_int_is_refused(orders, number):
    with pytest.raises(InvalidEvent) as anything:
        orders.create(Valued(anything=[number]))
    with pytest.raises(InvalidEvent) as metadata:
        orders.create(Valued(), metadata={"seen": number})

    assert anything.value.path == "$.anything[0]"
    assert metadata.value.path == "$metadata.seen"


@pytest.mark.parametrize(
    "text", ["1.10", "0.00", "-0", "1E+5", "1E-7", "100", "0.1000000000000000055511151231257827"]
)
def test_a_decimal_keeps_its_digits_and_its_exponent(orders, text):
    state = orders.create(Valued(price=Decimal(text)))

    price = orders.load(state.log_id)[0].event.price

    assert price.as_tuple() == Decimal(text).as_tuple()


def test_a_decimal_is_a_string_in_the_store(orders):
    state = orders.create(Valued(price=Decimal("0.10")))

    assert orders.load(state.log_id, decode=False)[0].event["price"] == "0.10"


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**80), 2**80)
    | st.floats(allow_nan=False, allow_infinity=False, min_value=-1e15, max_value=1e15)
    | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=10),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=5),
            inner,
            max_size=4,
        )
    ),
    max_leaves=15,
)


@settings(
    max_examples=50,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(value=json_values, metadata=st.dictionaries(st.sampled_from("ab"), json_values))
def test_any_json_value_comes_back_equal(orders, value, metadata):
    state = orders.create(Valued(anything=value), metadata=metadata)

    [record] = orders.load(state.log_id)

    assert record.event.anything == value
    assert record.metadata == metadata


# Versions and names


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (("order.priced", 3, '{"price":"1.10","currency":"USD"}'), Priced(Decimal("1.10"), "USD")),
        (("order.priced", 2, '{"price":"1.10"}'), Priced(Decimal("1.10"), "EUR")),
        (("order.priced", 1, '{"amount":"1.10"}'), Priced(Decimal("1.10"), "EUR")),
        (("order.valuated", 1, '{"amount":"2"}'), Priced(Decimal(2), "EUR")),
        (("order.valuated", 3, '{"price":"2","currency":"X"}'), Priced(Decimal(2), "X")),
    ],
)
def test_an_older_version_or_name_is_upcast(orders, store, stored, expected):
    log_id = put(store, stored)

    [record] = orders.load(log_id)

    assert record.event == expected
    assert (record.type, record.schema_version) == stored[:2]


@pytest.mark.parametrize(
    "number", ["1.10", "0.1", "123456789012345678901234567890.12", "100.00", "0.3"]
)
def test_a_number_stays_exact_through_upcasters(orders, store, number):
    log_id = put(store, ("order.priced", 1, f'{{"amount":{number}}}'))

    price = orders.load(log_id)[0].event.price

    assert price.as_tuple() == Decimal(number).as_tuple()
    assert orders.reduce(log_id).aggregate.price == Decimal(number)


def test_an_upcaster_whose_result_does_not_fit_makes_an_event_undecodable(orders, store):
    log_id = put(store, ("order.priced", 2, '{"price":"4111","currencies":[]}'))
    bad = put(store, ("order.priced", 2, '{"prices":4111}'))

    assert orders.load(log_id)[0].event == Priced(Decimal(4111), "EUR")
    with pytest.raises(UndecodableEvent, match="missing required field `price`") as caught:
        orders.load(bad)
    assert "4111" not in str(caught.value)


def test_the_error_of_a_failing_upcaster_names_it_and_shows_no_data(orders, store):
    log_id = put(store, ("order.priced", 1, '{"sum":4111}'))

    with pytest.raises(UndecodableEvent, match="from version 1 failed with KeyError") as caught:
        orders.load(log_id)

    assert (caught.value.log_id, caught.value.index) == (log_id, 0)
    assert isinstance(caught.value.__cause__, KeyError)
    assert "4111" not in str(caught.value)


UNREADABLE = [
    (("order.gapped", 1, '{"amount":4111}'), UndecodableEvent, "version 2 to 3"),
    (("order.gapped", 2, '{"amount":4111}'), UndecodableEvent, "version 2 to 3"),
    (("order.gapped", 4, '{"amount":4111}'), UndecodableEvent, "written by newer code"),
    (("order.priced", 9, '{"price":"4111"}'), UndecodableEvent, "written by newer code"),
    (("order.forgotten", 1, '{"amount":4111}'), UnknownEventType, "order.forgotten"),
    (("order.gapped", 3, '{"amount":"4111"}'), UndecodableEvent, "Expected `int`, got `str`"),
    (("order.gapped", 3, '{"sum":4111}'), UndecodableEvent, "missing required field `amount`"),
    (("order.gapped", 3, "[4111]"), UndecodableEvent, "Expected `object`, got `array`"),
    (("order.priced", 3, '{"price":"a4111","currency":""}'), UndecodableEvent, "does not fit"),
]


@pytest.mark.parametrize(("stored", "error", "text"), UNREADABLE)
def test_the_error_of_an_undecodable_event_names_it_and_the_cause(
    orders, store, stored, error, text
):
    log_id = put(store, ("order.valued", 1, "{}"), stored)

    for read in (
        lambda: orders.load(log_id),
        lambda: list(orders.stream(log_id)),
        lambda: orders.reduce(log_id),
    ):
        with pytest.raises(error, match=text) as caught:
            read()
        assert (caught.value.log_id, caught.value.index) == (log_id, 1)
        assert caught.value.event_type == stored[0]
        assert "4111" not in f"{caught.value}{vars(caught.value)}"
        assert caught.value.__cause__ is None


@pytest.mark.parametrize(("stored", "error", "text"), UNREADABLE)
def test_an_event_that_cannot_be_decoded_can_be_browsed(orders, store, stored, error, text):
    log_id = put(store, ("order.valued", 1, "{}"), stored)
    raw = json.loads(stored[2])

    page = orders.load(log_id, decode=False)
    streamed = list(orders.stream(log_id, decode=False))

    assert [record.event for record in page] == [{}, raw]
    assert [record.event for record in streamed] == [{}, raw]
    assert (page[1].type, page[1].schema_version) == stored[:2]
    assert json.loads(page.as_json())["events"][1]["data"] == raw
    assert orders.version(log_id) == 2


def test_events_before_one_that_cannot_be_decoded_are_streamed(orders, store):
    log_id = put(store, ("order.valued", 1, "{}"), ("order.forgotten", 1, "{}"))
    stream = orders.stream(log_id)

    assert next(stream).event == Valued()
    with pytest.raises(UnknownEventType):
        next(stream)


def test_history_may_hold_registered_events_that_the_aggregate_no_longer_names(orders, store):
    log_id = put(store, ("account.deposited", 1, '{"amount":3}'))

    assert orders.load(log_id)[0].event == Deposited(3)


def test_fields_that_the_class_does_not_have_any_more_are_ignored(orders, store):
    log_id = put(store, ("order.valued", 1, '{"number":1,"gone":[true]}'))

    assert orders.load(log_id)[0].event == Valued(number=1)


# Values that cannot be encoded


def test_fields_that_json_cannot_tell_apart_are_refused_when_a_manager_is_made():
    @dataclass(frozen=True)
    class Ambiguous:
        money: Decimal | str

    with pytest.raises(RegistrationError, match="Ambiguous cannot be encoded"):
        codec_for(EventType(Ambiguous, "tests.ambiguous", 1, ()))


def test_a_field_whose_type_cannot_be_found_is_refused():
    @dataclass(frozen=True)
    class Lost:
        thing: NoSuchType  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(RegistrationError, match="Lost cannot be encoded"):
        codec_for(EventType(Lost, "tests.lost", 1, ()))


# Encoding and fingerprints


def encode(event: Any) -> EncodedEvent:
    event_type = registry.by_class(type(event))
    assert event_type is not None
    return codec_for(event_type).encode(event, 10_000)


def test_an_encoded_event_has_its_type_version_and_json():
    assert encode(Opened("é")) == EncodedEvent("account.opened", 1, '{"owner":"é"}')
    assert encode(Priced(Decimal("1.10"), "EUR"))[:2] == ("order.priced", 3)


def test_equal_data_has_equal_json_in_any_order_of_its_keys():
    one, other = Noted({"a": 1, "b": {"c": 1, "d": 2}}), Noted({"b": {"d": 2, "c": 1}, "a": 1})

    assert encode(one) == encode(other)


def test_a_fingerprint_is_of_types_and_data_in_order():
    different = [
        encoded(1),
        encoded(2),
        encoded(1, 2),
        encoded(2, 1),
        encoded(12),
        [EncodedEvent("account.withdrawn", 1, '{"amount":1}')],
        [EncodedEvent("account.deposite", 1, 'd{"amount":1}')],
        [],
    ]

    assert len({next(request_fingerprints(events)) for events in different}) == len(different)
    assert next(request_fingerprints(encoded(1, 2))) == next(request_fingerprints(encoded(1, 2)))


def test_a_fingerprint_is_keyed(settings):
    settings.SECRET_KEY = "one"
    one = next(request_fingerprints(encoded(1)))
    settings.SECRET_KEY = "other"
    other = next(request_fingerprints(encoded(1)))

    assert one != other
    assert len(one) == hashlib.sha256().digest_size


def test_a_fingerprint_of_a_fallback_key_is_known(settings):
    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = "old", []
    stored = next(request_fingerprints(encoded(1)))
    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = "new", ["older", "old"]

    assert same_request(stored, encoded(1))
    assert not same_request(stored, encoded(2))
    assert next(request_fingerprints(encoded(1))) != stored


def test_a_reader_knows_its_own_events_without_the_registry():
    store = MemoryStore()
    log_id = put(store, ("tests.unregistered", 1, '{"amount":1}'))
    reader = EventReader([EventType(Deposited, "tests.unregistered", 1, ())])

    [record] = reader.records(store.events(log_id, start=0, limit=1))

    assert record.event == Deposited(1)


@pytest.mark.parametrize(
    ("local", "stored"),
    [
        (datetime(2026, 10, 25, 2, 30, tzinfo=ROME), "2026-10-25T02:30:00+02:00"),
        (datetime(2026, 10, 25, 2, 30, tzinfo=ROME, fold=1), "2026-10-25T02:30:00+01:00"),
        (datetime(2026, 3, 29, 2, 30, tzinfo=ROME), "2026-03-29T02:30:00+01:00"),
    ],
    ids=["repeated, first", "repeated, second", "skipped"],
)
def test_a_time_in_a_repeated_or_skipped_hour_comes_back_as_its_instant(orders, local, stored):
    """Such a time is unequal to any time of another zone, so ``==`` cannot be used."""
    state, created = orders.get_or_create(Valued(at=local), idempotency_key="k")
    again, created_again = orders.get_or_create(Valued(at=local), idempotency_key="k")

    [record] = orders.load(state.log_id)
    assert record.event.at.isoformat() == stored
    assert record.event.at.astimezone(UTC) == local.astimezone(UTC)
    assert record.event.at != local
    assert (created, created_again, again) == (True, False, state)
