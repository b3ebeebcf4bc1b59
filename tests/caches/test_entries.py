"""Cache entries: bytes that prove themselves, and aggregates that come back as they are."""

from __future__ import annotations

import pickle
from collections import OrderedDict, defaultdict
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from functools import cached_property
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import msgspec
import pytest

from eventlogs import Aggregate, LogId
from eventlogs.caches.counters import (
    BAD_SIGNATURE,
    FOREIGN_FINGERPRINT,
    FOREIGN_LOG,
    UNDECODABLE,
)
from eventlogs.caches.entries import (
    EntryCodec,
    Unstorable,
    Untrusted,
    opened,
    proof_of,
    version_in,
    why_not,
)
from eventlogs.values import Reduction, StoredEvent
from tests.accounts import Account, Noted, Opened

NOW = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
LOG_ID = LogId.new("account")
ROW = StoredEvent(LOG_ID, 2, 17, "account.deposited", 1, '{"amount": 5}', "{}", None, NOW)


@pytest.fixture
def codec():
    return EntryCodec(Account, "default")


def reduction(aggregate=None, **changes):
    made = Reduction(LOG_ID, 3, aggregate or Account("Ada", 5, 1), NOW, 17)
    return Reduction(**{name: getattr(made, name) for name in made.__struct_fields__} | changes)


class Colour(Enum):
    RED = "red"


@dataclass
class Line:
    sku: str
    price: Decimal


@dataclass(frozen=True)
class Money:
    amount: Decimal


@dataclass
class Basket(Aggregate, log_type="basket", events=[Opened]):
    """An aggregate with a field of each type that can be cached."""

    anything: Any = None
    lines: list[Line] = field(default_factory=list)
    by_sku: dict[str, Line] = field(default_factory=dict)
    by_number: dict[int, str] = field(default_factory=dict)
    tags: set[str] = field(default_factory=set)
    fixed: frozenset[int] = frozenset()
    pair: tuple[int, str] = (0, "")
    total: Decimal = Decimal(0)
    money: Money | None = None
    other_money: Money | None = None
    colour: Colour | None = None
    at: datetime | None = None
    day: date | None = None
    took: timedelta | None = None
    uuid: UUID | None = None
    raw: bytes = b""
    ratio: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)
    more: list[Line] = field(default_factory=list)
    _hidden: int = 0
    derived: int = field(default=0, init=False)


MONEY = Money(Decimal("1.50"))


def fields_of(values: object) -> str:
    """Name a case by its fields: the text of its values differs between processes."""
    return " ".join(values) if isinstance(values, dict) else str(values)


@pytest.mark.parametrize(
    "values",
    [
        {"anything": {"a": [1, None, True, "x", 1.5]}},
        {"lines": [Line("a", Decimal("1.50")), Line("b", Decimal("1.5"))]},
        {"by_sku": {"z": Line("z", Decimal(1)), "a": Line("a", Decimal(2))}},
        {"by_number": {2: "two", 1: "one"}},
        {"tags": {"x", "y"}, "fixed": frozenset({1, 2}), "pair": (3, "three")},
        {"total": Decimal("1E+3")},
        {"total": 10**30 + Decimal("0.10")},
        {"money": MONEY, "other_money": MONEY},
        {"colour": Colour.RED, "uuid": uuid4(), "raw": b"\x00\xff"},
        {"at": NOW, "day": date(2026, 2, 28), "took": timedelta(days=1, microseconds=1)},
        {"at": NOW.astimezone(timezone(timedelta(hours=2)))},
        {"at": NOW.astimezone(ZoneInfo("UTC"))},
        {"at": NOW.replace(tzinfo=None)},
        {"ratio": -0.0},
        {"ratio": 0.1 + 0.2},
        {"_hidden": 3},
        {"anything": 2**70},
        {"anything": "\x00 \U0001f600"},
    ],
    ids=fields_of,
)
def test_an_aggregate_survives_encoding_and_decoding(values):
    codec = EntryCodec(Basket, "default")
    basket = Basket(**values)
    basket.derived = 7
    log_id = LogId.new("basket")

    raw = codec.encode(reduction(basket, log_id=log_id), ROW)

    assert codec.decode(raw, log_id).aggregate == basket
    assert list(codec.decode(raw, log_id).aggregate.by_sku) == list(basket.by_sku)


SHARED = [Line("a", Decimal(1))]


@pytest.mark.parametrize(
    ("values", "place"),
    [
        ({"anything": Decimal("1.5")}, "$.anything"),
        ({"anything": (1, 2)}, "$.anything"),
        ({"anything": [{"a": NOW}]}, "$.anything[0]"),
        ({"anything": {1: 2}}, "$.anything"),
        ({"anything": Colour.RED}, "$.anything"),
        ({"anything": Line("a", Decimal(1))}, "$.anything"),
        ({"counts": defaultdict(int, a=1)}, "$.counts"),
        ({"counts": OrderedDict(a=1)}, "$.counts"),
        ({"lines": SHARED, "more": SHARED}, "$.more"),
        ({"lines": [SHARED[0], SHARED[0]]}, "$.lines[1]"),
        ({"at": NOW.astimezone(ZoneInfo("Europe/Berlin"))}, "$.at"),
        ({"ratio": float("nan")}, "cannot be encoded"),
        ({"ratio": float("inf")}, "cannot be encoded"),
        ({"total": 1}, "$.total"),
        ({"tags": ["x"]}, "$.tags"),
        ({"tags": "x"}, ""),
        ({"anything": object()}, "cannot be encoded"),
        ({"anything": b"x"}, "$.anything"),
        ({"by_sku": {1: Line("a", Decimal(1))}}, "$.by_sku"),
    ],
    ids=fields_of,
)
def test_a_value_that_would_change_in_the_cache_is_refused(values, place):
    codec = EntryCodec(Basket, "default")

    with pytest.raises(Unstorable) as caught:
        codec.encode(reduction(Basket(**values)), ROW)

    assert place in str(caught.value)


def test_an_attribute_that_is_no_field_is_refused():
    basket = Basket()
    basket.seen = {1}  # type: ignore[attr-defined]

    with pytest.raises(Unstorable, match="not fields"):
        EntryCodec(Basket, "default").encode(reduction(basket), ROW)


def test_a_field_without_a_value_is_refused():
    basket = Basket()
    del basket.lines

    with pytest.raises(Unstorable):
        EntryCodec(Basket, "default").encode(reduction(basket), ROW)


def test_endless_nesting_is_refused():
    basket = Basket()
    basket.anything = [basket.counts]
    basket.anything.append(basket.anything)

    with pytest.raises(Unstorable):
        EntryCodec(Basket, "default").encode(reduction(basket), ROW)


def test_an_entry_names_its_log_and_code(codec):
    entry = codec.decode(codec.encode(reduction(), ROW), LOG_ID)

    assert entry.aggregate == Account("Ada", 5, 1)
    assert (entry.head.version, entry.head.position) == (3, 17)
    assert entry.head.reduced_at == NOW
    assert version_in(entry.raw) == 3


def test_an_entry_is_no_pickle(codec):
    raw = codec.encode(reduction(), ROW)

    with pytest.raises(pickle.UnpicklingError):
        pickle.loads(raw)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda raw: b"",
        lambda raw: b"garbage",
        lambda raw: raw[:-1],
        lambda raw: raw[1:],
        lambda raw: raw + b"\0",
        lambda raw: raw[:10],
        lambda raw: raw[:39],
        lambda raw: raw[:3] + b"\x7f\xff\xff\xff" + raw[7:],
        lambda raw: raw.replace(b"Ada", b"Eve"),
        lambda raw: raw[:-32] + b"\0" * 32,
        lambda raw: b"EL2" + raw[3:],
        lambda raw: pickle.dumps("bomb"),
    ],
)
def test_modified_bytes_are_rejected(codec, spoil):
    with pytest.raises(Untrusted) as caught:
        codec.decode(spoil(codec.encode(reduction(), ROW)), LOG_ID)

    assert caught.value.reason == BAD_SIGNATURE


def test_a_change_of_any_single_byte_is_rejected(codec):
    raw = codec.encode(reduction(), ROW)

    for at in range(len(raw)):
        with pytest.raises(Untrusted):
            codec.decode(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :], LOG_ID)


def test_an_entry_of_another_log_is_rejected(codec):
    raw = codec.encode(reduction(), ROW)

    with pytest.raises(Untrusted) as caught:
        codec.decode(raw, LogId.new("account"))

    assert caught.value.reason == FOREIGN_LOG


def test_an_entry_of_another_database_is_rejected(codec):
    with pytest.raises(Untrusted) as caught:
        EntryCodec(Account, "other").decode(codec.encode(reduction(), ROW), LOG_ID)

    assert caught.value.reason == FOREIGN_LOG


@pytest.fixture
def other_code(scratch_registry):
    @dataclass
    class Account(Aggregate, log_type="account", events=[Opened, Noted]):
        owner: str = ""
        balance: int = 0
        notes: int = 0

        def apply(self, record):
            self.notes += 2

    return Account


def test_an_entry_of_other_code_is_rejected(codec, other_code):
    with pytest.raises(Untrusted) as caught:
        EntryCodec(other_code, "default").decode(codec.encode(reduction(), ROW), LOG_ID)

    assert caught.value.reason == FOREIGN_FINGERPRINT


def test_keys_differ_by_log_database_and_code(codec, other_code):
    keys = {
        codec.key(LOG_ID),
        codec.key(LogId.new("account")),
        EntryCodec(Account, "other").key(LOG_ID),
        EntryCodec(other_code, "default").key(LOG_ID),
    }

    assert len(keys) == 4
    assert all(str(LOG_ID) in key or "account_" in key for key in keys)
    assert all(key.isascii() and " " not in key and len(key) <= 200 for key in keys)


REFUSING: list[Any] = []


@dataclass
class Fragile(Aggregate, log_type="fragile", events=[Opened]):
    n: int = 0

    def __post_init__(self):
        if REFUSING:
            raise RuntimeError


def test_an_entry_that_we_signed_and_cannot_read_is_a_miss(monkeypatch):
    codec = EntryCodec(Fragile, "default")
    raw = codec.encode(reduction(Fragile()), ROW)
    monkeypatch.setattr(f"{__name__}.REFUSING", [True])

    with pytest.raises(Untrusted) as caught:
        codec.decode(raw, LOG_ID)

    assert caught.value.reason == UNDECODABLE


def test_secret_keys_may_be_rotated(codec, settings):
    settings.SECRET_KEY = "old"
    raw = codec.encode(reduction(), ROW)

    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = "new", ["old"]
    assert codec.decode(raw, LOG_ID).head.version == 3

    settings.SECRET_KEY_FALLBACKS = []
    with pytest.raises(Untrusted):
        codec.decode(raw, LOG_ID)


def test_the_signature_is_not_made_with_the_secret_key_itself(codec, settings):
    import hmac

    raw = codec.encode(reduction(), ROW)

    plain = hmac.digest(settings.SECRET_KEY.encode(), raw[:-32], "sha256")
    assert raw[-32:] != plain
    assert opened(raw)[0].version == 3


CHANGES = [
    ("index", 3),
    ("position", 18),
    ("type", "account.withdrawn"),
    ("schema_version", 2),
    ("data", '{"amount": 6}'),
    ("metadata", '{"by": "x"}'),
    ("idempotency_key", "key"),
    ("idempotency_key", ""),
    ("recorded_at", NOW + timedelta(microseconds=1)),
]


@pytest.mark.parametrize(("field", "value"), CHANGES)
def test_the_proof_covers_every_field_of_an_event(codec, field, value):
    entry = codec.decode(codec.encode(reduction(), ROW), LOG_ID)
    row = msgspec.structs.replace(ROW, **{field: value})

    assert entry.is_proven_by(ROW)
    assert not entry.is_proven_by(row)
    assert proof_of(row) != proof_of(ROW)


def test_the_proof_does_not_depend_on_the_notation_of_a_time_zone():
    row = msgspec.structs.replace(ROW, recorded_at=NOW.astimezone(ZoneInfo("Europe/Berlin")))

    assert proof_of(row) == proof_of(ROW)


def test_a_missing_event_proves_no_entry(codec):
    assert not codec.decode(codec.encode(reduction(), ROW), LOG_ID).is_proven_by(None)


def test_the_proof_separates_the_fields_that_it_covers():
    one = msgspec.structs.replace(ROW, type="ab", data="c")

    assert proof_of(one) != proof_of(msgspec.structs.replace(one, type="a", data="bc"))


def test_why_not_explains_why_a_class_cannot_be_cached(scratch_registry):
    class Plain(Aggregate, log_type="plain", events=[Opened]):
        pass

    @dataclass
    class Odd(Aggregate, log_type="odd", events=[Opened]):
        either: set[str] | list[str] | None = None

    @dataclass
    class Cached(Aggregate, log_type="cached", events=[Opened]):
        n: int = 0

        @cached_property
        def twice(self) -> int:
            return self.n * 2

    assert why_not(Account) is None
    assert why_not(Plain) == "it is not a dataclass"
    assert "cannot be encoded" in (why_not(Odd) or "")

    warm = Cached(2)
    assert warm.twice == 4
    with pytest.raises(Unstorable):
        EntryCodec(Cached, "default").encode(reduction(warm), ROW)
    assert replace(warm) == Cached(2)


@pytest.mark.parametrize("raw", [b"", b"EL1", b"EL1\0\0\0\1", b"XX1\0\0\0\1" + b"s" * 40])
def test_bytes_that_are_no_entry_have_no_version(raw):
    assert version_in(raw) == -1
