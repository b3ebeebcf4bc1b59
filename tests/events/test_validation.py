"""
Validation: the table of bad inputs.

Each is refused with an error that names the JSON path and the limit, and never the value; then
nothing is stored, and the caller's transaction can be used.
"""

from __future__ import annotations

import math
import pickle
import re
import traceback
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, StrEnum
from fractions import Fraction
from pathlib import PurePath
from typing import Any
from uuid import UUID

import pytest
from django.db import transaction
from django.utils.safestring import SafeString

from eventlogs import Aggregate, EventRecord, InvalidEvent, LogManager, event
from eventlogs.events import validation
from tests.accounts import Deposited, Noted, Opened, Sent, Withdrawn

SECRET = "4111-1111-1111-1111"


class Colour(Enum):
    RED = "red"


class Odd(Enum):
    NAN = math.nan


class Currency(StrEnum):
    EUR = "EUR"


@dataclass(frozen=True)
class Line:
    price: Decimal
    count: int = 1


@event("basket.filled")
@dataclass(frozen=True)
class Filled:
    """Fields of every kind that has a limit, one of which a test fills badly."""

    amount: int = 0
    rate: float = 0.0
    price: Decimal = Decimal(0)
    at: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    colour: Colour = Colour.RED
    text: str = ""
    tags: list[str] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    by_name: dict[str, Line] = field(default_factory=dict)
    by_number: dict[int, str] = field(default_factory=dict)
    pair: tuple[int, int] | None = None


@event("basket.sealed")
@dataclass(frozen=True)
class Sealed:
    raw: bytes


@event("basket.grouped")
@dataclass(frozen=True)
class Grouped:
    ids: set[int]


@event("basket.emptied")
@dataclass(frozen=True)
class Emptied:
    """A value that passes the fast check."""

    text: str = ""
    amount: int = 0
    tags: list[str] = field(default_factory=list)


@event("basket.packed")
@dataclass(frozen=True)
class Packed:
    items: list[Any]


@event("basket.weighed")
@dataclass(frozen=True)
class Weighed:
    weight: float


@event("basket.compared")
@dataclass(frozen=True)
class NeverEqual:
    amount: int

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = None


@event("basket.incomparable")
@dataclass(frozen=True)
class Incomparable:
    amount: int

    def __eq__(self, other: object) -> bool:
        raise RuntimeError(SECRET)

    __hash__ = None


@dataclass
class Basket(
    Aggregate,
    log_type="basket",
    events=[Filled, Emptied, Packed, Sealed, Grouped, Weighed, NeverEqual, Incomparable, Noted],
):
    def apply(self, record: EventRecord) -> None:
        pass


def nested(depth: int, *, of: type = list) -> Any:
    """Return objects or arrays nested to a depth."""
    value: Any = SECRET
    for _ in range(depth):
        value = [value] if of is list else {"a": value}
    return value


def cyclic() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


NAIVE = datetime(2026, 1, 1)
NOT_FINITE = "NaN and the infinities cannot be stored"
NUL = "text may not hold NUL (U+0000)"
SURROGATE = "text may not hold lone surrogates"
KEYS = "keys must be str"
TIME_ZONE = "a datetime needs a time zone"
DEPTH = "nested at most 64 deep"
OTHER = "would be read back as another value"
NO_FORM = "has no JSON form"
MISFIT = "Expected `"

# Untyped for type checkers: the values have wrong types on purpose.
any_filled: Any = Filled
any_emptied: Any = Emptied

BAD_EVENTS: dict[str, tuple[Any, str, str]] = {
    # name: event, path, limit
    "NaN": (Weighed(math.nan), "$.weight", NOT_FINITE),
    "infinity": (Weighed(math.inf), "$.weight", NOT_FINITE),
    "minus infinity": (Weighed(-math.inf), "$.weight", NOT_FINITE),
    "NaN in anything": (Noted(math.nan), "$.note", NOT_FINITE),
    "NaN deep inside": (Noted({"a": [1, {"b": math.nan}]}), "$.note.a[1].b", NOT_FINITE),
    "NaN as Decimal": (Filled(price=Decimal("NaN")), "$.price", NOT_FINITE),
    "signalling NaN": (Filled(price=Decimal("sNaN")), "$.price", NOT_FINITE),
    "infinity as Decimal": (Filled(price=Decimal("-Infinity")), "$.price", NOT_FINITE),
    "NaN in a nested dataclass": (
        Filled(lines=[Line(Decimal(1)), Line(Decimal("NaN"))]),
        "$.lines[1].price",
        NOT_FINITE,
    ),
    "NaN in an enum": (Noted(Odd.NAN), "$.note", NOT_FINITE),
    "NUL": (Emptied(f"{SECRET}\0"), "$.text", NUL),
    "NUL in anything": (Noted([f"{SECRET}\0"]), "$.note[0]", NUL),
    "NUL in a list": (Emptied(tags=["", f"\0{SECRET}"]), "$.tags[1]", NUL),
    "NUL in a key": (Noted({f"{SECRET}\0": 1}), r"$.note (a key)", NUL),
    "lone surrogate": (Emptied(f"{SECRET}\ud800"), "$.text", SURROGATE),
    "lone surrogate in anything": (Noted([f"{SECRET}\udfff"]), "$.note[0]", SURROGATE),
    "lone surrogate in a key": (Noted({f"{SECRET}\ud800": 1}), "$.note (a key)", SURROGATE),
    "int as key": (Noted({4111: SECRET}), "$.note", KEYS),
    "None as key": (Noted({None: SECRET}), "$.note", KEYS),
    "bool as key": (Noted({True: SECRET}), "$.note", KEYS),
    "tuple as key": (Noted({(1, 2): SECRET}), "$.note", KEYS),
    "declared int as key": (Filled(by_number={4111: SECRET}), "$.by_number", KEYS),
    "naive datetime": (Filled(at=NAIVE), "$.at", TIME_ZONE),
    "naive datetime in anything": (Noted([NAIVE]), "$.note[0]", TIME_ZONE),
    "aware datetime in anything": (Noted(NAIVE.replace(tzinfo=UTC)), "$.note", OTHER),
    "date in anything": (Noted(date(2026, 1, 1)), "$.note", NO_FORM),
    "time in anything": (Noted(time(12)), "$.note", NO_FORM),
    "timedelta in anything": (Noted(timedelta(1)), "$.note", NO_FORM),
    "UUID in anything": (Noted(UUID(int=4111)), "$.note", NO_FORM),
    "Decimal in anything": (Noted(Decimal("4111.1")), "$.note", OTHER),
    "enum in anything": (Noted(Colour.RED), "$.note", OTHER),
    "dataclass in anything": (Noted(Line(Decimal(1))), "$.note", OTHER),
    "int too long": (
        any_filled(amount=2**14_001),
        "$.amount",
        "an int may have at most 14,000 bits",
    ),
    "int too long in a plain event": (
        any_emptied(amount=-(10**5_000)),
        "$.amount",
        "at most 14,000",
    ),
    "int too long in anything": (Noted([2**20_000]), "$.note[0]", "at most 14,000 bits"),
    "Decimal too long": (any_filled(price=Decimal("1" * 4_301)), "$.price", "at most 4,300 digits"),
    "int that a float cannot hold": (Weighed(2**53 + 1), "$.weight", OTHER),
    "int beyond floats": (Weighed(10**400), "$.weight", "it does not fit"),
    "float for Decimal": (any_filled(price=4111.1), "$.price", "pass a Decimal"),
    "float for a nested Decimal": (
        any_filled(by_name={"a": Line(4111.1)}),  # type: ignore[arg-type]
        "$.by_name.a.price",
        "pass a Decimal",
    ),
    "str for Decimal": (any_filled(price="4111.1"), "$.price", OTHER),
    "list too deep": (Noted(nested(64)), "$.note" + "[0]" * 63, DEPTH),
    "dict too deep": (Noted(nested(64, of=dict)), "$.note" + ".a" * 63, DEPTH),
    "list much too deep": (Noted(nested(900)), "$.note" + "[0]" * 63, DEPTH),
    "list too deep in a list": (Packed(nested(64)), "$.items" + "[0]" * 63, DEPTH),
    "a list that holds itself": (Noted(cyclic()), "$.note" + "[0]" * 63, DEPTH),
    "too many bytes": (any_emptied(SECRET * 20_000), "$", "EVENTLOGS['MAX_EVENT_BYTES'] is 262144"),
    "too many bytes in anything": (Noted([SECRET] * 20_000), "$", "'MAX_EVENT_BYTES'"),
    "bytes": (Sealed(SECRET.encode()), "$.raw", "bytes has no JSON form"),
    "bytes in anything": (Noted(SECRET.encode()), "$.note", "bytes has no JSON form"),
    "bytearray": (Noted(bytearray(b"x")), "$.note", "bytearray has no JSON form"),
    "memoryview": (Noted([memoryview(b"x")]), "$.note[0]", "memoryview has no JSON form"),
    "set": (Noted({SECRET}), "$.note", "set has no JSON form"),
    "declared set": (Grouped({4111}), "$.ids", "set has no JSON form"),
    "frozenset": (Noted(frozenset([SECRET])), "$.note", "frozenset has no JSON form"),
    "tuple in anything": (Noted((1, SECRET)), "$.note", "a tuple would be read back as a list"),
    "tuple for a list": (
        any_emptied(tags=(SECRET,)),
        "$.tags",
        "a tuple would be read back as a list",
    ),
    "deque": (Noted(deque([SECRET])), "$.note", NO_FORM),
    "complex": (Noted(1j), "$.note", NO_FORM),
    "Fraction": (Noted(Fraction(1, 3)), "$.note", NO_FORM),
    "object": (Noted(object()), "$.note", NO_FORM),
    "class": (Noted(Line), "$.note", NO_FORM),
    "path": (Noted(PurePath(SECRET)), "$.note", NO_FORM),
    "generator": (Noted(each for each in SECRET), "$.note", NO_FORM),
    "str for int": (any_emptied(amount=SECRET), "$.amount", MISFIT),
    "subclass of str": (any_emptied(SafeString(SECRET)), "$.text", "Nothing was stored"),
    "subclass of str in anything": (Noted([SafeString(SECRET)]), "$.note[0]", "Nothing was stored"),
    "bool for int": (any_emptied(amount=True), "$.amount", MISFIT),
    "float for int": (any_emptied(amount=1.5), "$.amount", MISFIT),
    "whole float for int": (any_emptied(amount=1.0), "$.amount", MISFIT),
    "None for int": (any_emptied(amount=None), "$.amount", MISFIT),
    "int for str": (any_emptied(text=4111), "$.text", MISFIT),
    "int in a list of str": (any_emptied(tags=["", 4111]), "$.tags[1]", MISFIT),
    "list for str": (any_emptied(text=[SECRET]), "$.text", MISFIT),
    "str for enum": (any_filled(colour=SECRET), "$.colour", "does not fit its declared type"),
    "str for datetime": (any_filled(at=SECRET), "$.at", "does not fit its declared type"),
    "dict for a dataclass": (
        any_filled(lines=[{"price": SECRET}]),
        "$.lines[0].price",
        "it does not fit",
    ),
    "fitting dict for a dataclass": (
        any_filled(lines=[{"price": Decimal(1)}]),
        "$.lines[0]",
        OTHER,
    ),
    "enum for str": (any_filled(text=Colour.RED), "$.text", OTHER),
    "enum for str in a plain event": (any_emptied(text=Colour.RED), "$.text", OTHER),
    "list for a tuple": (any_filled(pair=[1, 2]), "$.pair", OTHER),
    "pair of three": (any_filled(pair=(1, 2, 3)), "$.pair", "it does not fit"),
    "never equal": (NeverEqual(4111), "$", "it would not come back equal"),
    "not comparable": (Incomparable(4111), "$", "it does not fit"),
}

BAD_METADATA: dict[str, tuple[Any, str, str]] = {
    "list": ([SECRET], "$metadata", "metadata must be a dict"),
    "str": (SECRET, "$metadata", "metadata must be a dict"),
    "NaN": ({"a": [math.nan]}, "$metadata.a[0]", NOT_FINITE),
    "NUL": ({"a": f"{SECRET}\0"}, "$metadata.a", NUL),
    "NUL in a key": ({f"{SECRET}\0": 1}, "$metadata (a key)", NUL),
    "lone surrogate": ({"a": f"{SECRET}\ud800"}, "$metadata.a", SURROGATE),
    "int as key": ({4111: SECRET}, "$metadata", KEYS),
    "int as key deep inside": ({"a": {4111: SECRET}}, "$metadata.a", KEYS),
    "naive datetime": ({"a": NAIVE}, "$metadata.a", TIME_ZONE),
    "aware datetime": ({"a": NAIVE.replace(tzinfo=UTC)}, "$metadata.a", OTHER),
    "Decimal": ({"a": Decimal("4111.1")}, "$metadata.a", OTHER),
    "UUID": ({"a": UUID(int=4111)}, "$metadata.a", NO_FORM),
    "set": ({"a": {SECRET}}, "$metadata.a", "set has no JSON form"),
    "bytes": ({"a": SECRET.encode()}, "$metadata.a", "bytes has no JSON form"),
    "tuple": ({"a": (SECRET,)}, "$metadata.a", "a tuple would be read back as a list"),
    "object": ({"a": object()}, "$metadata.a", NO_FORM),
    "int too long": ({"a": 2**14_001}, "$metadata.a", "at most 14,000 bits"),
    "too deep": (nested(65, of=dict), "$metadata" + ".a" * 64, DEPTH),
    "too many bytes": ({"a": SECRET * 20_000}, "$metadata", "'MAX_EVENT_BYTES'"),
    "itself": ({"a": cyclic()}, "$metadata.a" + "[0]" * 63, DEPTH),
}


@pytest.fixture
def baskets(store, db):
    return LogManager(Basket, store=store)


def assert_shows_nothing(error: InvalidEvent) -> None:
    """Assert that neither the error nor its traceback shows a value of the tables above."""
    shown = "".join(
        [
            *traceback.format_exception(error),
            repr(error),
            repr(error.args),
            repr(vars(error)),
            repr(pickle.dumps(error)),
        ]
    )
    assert "4111" not in shown


@pytest.mark.parametrize(("bad", "path", "limit"), BAD_EVENTS.values(), ids=BAD_EVENTS)
def test_a_bad_event_is_refused(baskets, bad, path, limit):
    log_id = baskets.new_id()

    with transaction.atomic():
        with pytest.raises(InvalidEvent, match=re.escape(limit)) as caught:
            baskets.create(Emptied(), bad, log_id=log_id, idempotency_key=f"bad {log_id}")
        state = baskets.create(Emptied())

    error = caught.value
    assert error.path == path
    assert error.event_type is not None
    assert error.event_type in str(error)
    assert error.path in str(error)
    assert_shows_nothing(error)
    assert not baskets.exists(log_id)
    assert baskets.version(state.log_id) == 1


@pytest.mark.parametrize(("bad", "path", "limit"), BAD_METADATA.values(), ids=BAD_METADATA)
def test_bad_metadata_is_refused(baskets, bad, path, limit):
    state = baskets.create(Emptied())

    with transaction.atomic():
        with pytest.raises(InvalidEvent, match=re.escape(limit)) as caught:
            baskets.append(state, Emptied(), metadata=bad, idempotency_key=f"bad {state.log_id}")
        appended = baskets.append(state, Emptied(), idempotency_key=f"bad {state.log_id}")

    assert caught.value.path == path
    assert caught.value.event_type is None
    assert_shows_nothing(caught.value)
    assert appended.version == 2


@pytest.mark.parametrize(
    ("events", "limit"),
    [
        ((), "1 to 10,000 events, not 0"),
        ((Deposited(1),) * 10_001, "1 to 10,000 events, not 10,001"),
        ((None,), "None is given where an event of Account is wanted"),
        (({"amount": 4111},), "a dict is given where an event of Account is wanted"),
        ((Deposited,), "the class Deposited is given where an event of Account"),
        ((Sent("4111"),), "a Sent is not an event of Account"),
        ((Deposited(1), [Withdrawn(4111)]), "a list is given where an event of Account is wanted"),
    ],
)
def test_an_object_that_is_no_event_of_the_aggregate_is_refused(accounts, events, limit):
    state = accounts.create(Opened("ada"))

    with transaction.atomic():
        with pytest.raises(InvalidEvent, match=re.escape(limit)) as caught:
            accounts.append(state, *events)
        accounts.append(state, Deposited(1))

    assert_shows_nothing(caught.value)
    assert accounts.version(state.log_id) == 2


def test_a_subclass_of_an_event_is_not_that_event(accounts):
    @dataclass(frozen=True)
    class Bonus(Deposited):
        reason: str = ""

    with pytest.raises(InvalidEvent, match="Bonus is not an event of Account"):
        accounts.create(Bonus(1))


@pytest.mark.parametrize(
    "good",
    [
        Noted(nested(63)),
        Noted(nested(63, of=dict)),
        Emptied(amount=2**13_999),
        Emptied(amount=-(2**13_999)),
        Filled(price=Decimal("9" * 4_300)),
        Weighed(2**53),
        Weighed(1.7976931348623157e308),
        Weighed(5e-324),
        Emptied("\\u0000 is no NUL when it is spelled out"),
        Emptied("\x01\x7f\u2028\U0010ffff\ud7ff"),
        Noted({"": "", "a b.c[0]": [[], {}]}),
        Noted(OrderedDict(a=1)),
        Noted(Currency.EUR),
    ],
    ids=lambda event: str(event)[:40],
)
def test_an_event_within_the_limits_is_stored(baskets, good):
    state = baskets.create(good)

    assert baskets.load(state.log_id)[0].event == good


def test_the_size_limit_is_read_from_the_setting_and_counts_bytes(baskets, settings):
    settings.EVENTLOGS = {"MAX_EVENT_BYTES": 40}
    fits, too_long = Noted("é" * 14), Noted("é" * 15)

    baskets.create(fits, metadata={"a": "b" * 32})
    with pytest.raises(InvalidEvent, match=r"has 41 bytes.*\['MAX_EVENT_BYTES'\] is 40"):
        baskets.create(too_long)
    with pytest.raises(InvalidEvent, match=r"\$metadata: its JSON has 41 bytes"):
        baskets.create(fits, metadata={"a": "b" * 33})


def test_inspect_checks_a_value_without_its_encoded_form():
    validation.inspect({"a": [1, "b", None, True, 1.5, Decimal(1)]})

    with pytest.raises(validation.Finding) as caught:
        validation.inspect({"a": [math.inf]}, root="$x")

    assert (caught.value.path, caught.value.limit) == ("$x.a[0]", NOT_FINITE)
