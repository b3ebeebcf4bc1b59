"""Unique fields: how they are found, and when two values are equal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, make_dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum, StrEnum
from typing import Annotated, Any, Optional
from uuid import UUID

import pytest

from eventlogs import InvalidEvent, RegistrationError, Unique
from eventlogs.events.unique import Unfit, unique_fields, unique_value, values_of

EMAIL = Unique("member.email", normalize=str.casefold)
PLAIN = Unique("member.plain")


def fields_of(hint: Any) -> list[tuple[str, Unique]]:
    found = unique_fields(make_dataclass("Event", [("field", hint)]))
    return [(name, unique) for name, unique, _ in found]


@pytest.mark.parametrize(
    "hint",
    [
        Annotated[str, EMAIL],
        Annotated[str | None, EMAIL],
        Annotated[str, EMAIL] | None,
        Optional[Annotated[str, "a comment", EMAIL]],  # noqa: UP045 (it is another class)
        Annotated[Annotated[str, EMAIL], "a comment"],
    ],
)
def test_a_field_is_unique_wherever_its_own_type_says_so(hint):
    assert fields_of(hint) == [("field", EMAIL)]


def test_other_fields_are_not_unique():
    assert fields_of(str) == fields_of(Annotated[str, "a comment"]) == fields_of(list[int]) == []


@dataclass
class Inner:
    email: Annotated[str, EMAIL]


@pytest.mark.parametrize(
    "hint", [list[Annotated[str, EMAIL]], Inner, list[Inner], dict[str, Annotated[int, PLAIN]]]
)
def test_a_unique_that_would_claim_nothing_is_refused(hint):
    with pytest.raises(RegistrationError, match="Annotate the field itself"):
        fields_of(hint)


def test_a_unique_without_a_scope_is_refused():
    with pytest.raises(RegistrationError, match="needs a scope"):
        fields_of(Annotated[str, Unique])


def test_two_fields_of_one_scope_are_refused():
    fields = [("one", Annotated[str, EMAIL]), ("two", Annotated[str, EMAIL])]

    with pytest.raises(RegistrationError, match="Give one of them another scope"):
        unique_fields(make_dataclass("Event", fields))


@pytest.mark.parametrize("scope", ["", "1st", "with blank", "ä", "x" * 101, None])
def test_a_scope_that_cannot_be_is_refused(scope):
    with pytest.raises(RegistrationError, match="cannot be the scope"):
        Unique(scope)


def test_a_normalize_that_cannot_be_called_is_refused():
    with pytest.raises(RegistrationError, match=r"e\.g\. str\.casefold"):
        Unique("member.email", normalize="casefold")  # type: ignore[arg-type]


class Colour(Enum):
    RED = "red"


class Plan(StrEnum):
    FREE = "red"


CEST = timezone(timedelta(hours=2))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("red", Colour.RED),
        ("red", Plan.FREE),
        (("blue", 1), ["blue", 1]),
        (datetime(2030, 1, 1, tzinfo=UTC), datetime(2030, 1, 1, 2, tzinfo=CEST)),
    ],
)
def test_values_that_are_equal(one, other):
    assert unique_value(PLAIN, one) == unique_value(PLAIN, other)


def test_values_that_are_different():
    values = [
        *("a", "A", "a ", "ä", "a\u0308", "", "1", "i1", "None", "\ud800"),
        *(1, -1, 2**70, date(2030, 1, 1), "2030-01-01", datetime(2030, 1, 1, tzinfo=UTC)),
        *(UUID(int=1), str(UUID(int=1)), ("a", "b"), ("ab",), ("a", ("b",)), (("a",), "b"), ()),
        *(("1:sa",), ("s", "a"), ("b", "a")),
    ]

    assert len({unique_value(PLAIN, each) for each in values}) == len(values)


def test_one_value_differs_between_scopes():
    assert unique_value(PLAIN, "a").digest != unique_value(Unique("member.other"), "a").digest


def test_none_is_no_value_also_from_normalize():
    empty = Unique("member.email", normalize=lambda text: text.strip() or None)

    assert unique_value(PLAIN, None).digest is None
    assert unique_value(empty, "  ").digest is None


def test_a_digest_is_the_same_in_every_release():
    digest = UUID("ff9261c8324f58b68a5032e3b6330d6c")  # claims of years ago are compared with it

    assert unique_value(EMAIL, "Ann@Example.com") == ("member.email", digest)


@pytest.mark.parametrize(
    "value", [1.5, Decimal("1.0"), True, b"a", {"a": 1}, datetime(2030, 1, 1), (None,), (1.5,)]
)
def test_a_value_that_cannot_be_unique_is_refused_without_being_shown(value):
    with pytest.raises(Unfit) as caught:
        unique_value(PLAIN, value)

    assert str(value) not in str(caught.value)


def fails(value: str) -> str:
    raise ValueError(f"{value} is secret")


@pytest.mark.parametrize("normalize", [fails, len, lambda text: 1.5])
def test_an_event_whose_value_cannot_be_unique_is_invalid(normalize: Callable[[Any], Any]):
    unique = Unique("member.card", normalize=normalize)
    value = 7 if normalize is len else "secret"
    event = make_dataclass("Event", [("card", Annotated[Any, unique])])(card=value)

    with pytest.raises(InvalidEvent) as caught:
        list(values_of(unique_fields(type(event)), event, "member.joined"))

    assert (caught.value.event_type, caught.value.path) == ("member.joined", "$.card")
    assert "secret" not in f"{caught.value!r} {caught.value} {caught.value.__cause__!r}"
