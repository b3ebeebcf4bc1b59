"""Shapes of events: whether data of an old one decodes with a new one."""

from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass
from datetime import datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal

import msgspec
import pytest

from eventlogs import RegistrationError
from eventlogs.events.registry import EventType
from eventlogs.events.schemas import (
    FITS,
    NOT,
    differences,
    fields_of,
    schema_of,
    shape_of,
    words_of,
)

Small = Enum("Small", {"A": "a", "B": "b"})
Large = Enum("Large", {"A": "a", "B": "b", "C": "c"})


@dataclass
class Line:
    sku: str


@dataclass
class LongLine:
    sku: str
    count: int


Short = Annotated[str, msgspec.Meta(max_length=5)]
Long = Annotated[str, msgspec.Meta(max_length=9)]


def shape(**fields: Any) -> dict[str, Any]:
    """Return the shape of an event; a tuple is a type and a default."""
    made = [
        (name, *each) if isinstance(each, tuple) else (name, each) for name, each in fields.items()
    ]
    specs = [
        (name, kind, field(default=default[0])) if default else (name, kind)
        for name, kind, *default in made
    ]
    return shape_of(EventType(make_dataclass("Event", specs), "tests.event", 1, ()))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (int, float),
        (int, int | None),
        (int, int | str),
        (str, Any),
        (Small, Large),
        (Small, str),
        (Literal["a"], Literal["a", "b"]),
        (Decimal, str),
        (datetime, str),
        (list[int], list[float]),
        (dict[str, int], dict[str, int | None]),
        (tuple[int, str], tuple[float, str]),
        (LongLine, Line),
        (Short, Long),
        (Long, str),
        (int | None, int | str | None),
        (Line | None, Line | str | None),
    ],
)
def test_a_wider_type_takes_old_data(old, new):
    found = differences(shape(x=old), shape(x=new))

    assert {each.kind for each in found} == {FITS}, found
    # The decoder agrees: this is what the verdict is about.
    assert [each.field for each in found] == ["x"] * len(found)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (float, int),
        (int, str),
        (str, int),
        (int | None, int),
        (Large, Small),
        (str, Small),
        (Literal["a", "b"], Literal["a"]),
        (str, datetime),
        (str | None, datetime | None),
        (str, Decimal),
        (list[int], list[str]),
        (list[int], int),
        (list[str], list[datetime]),
        (dict[str, int], dict[str, str]),
        (dict[str, int], Line),
        (tuple[int, str], tuple[int, str, str]),
        (tuple[int, ...], tuple[int, int]),
        (Line, LongLine),
        (list[Line], list[LongLine]),
        (Long, Short),
        (str, Short),
        (Any, int),
        (int | str, int),
    ],
)
def test_a_narrower_type_does_not(old, new):
    found = differences(shape(x=old), shape(x=new))

    assert NOT in {each.kind for each in found}, found
    assert all(each.path.startswith("$.x") for each in found)


def test_fields_may_be_added_with_a_default_and_removed():
    [added] = differences(shape(x=int), shape(x=int, y=(int, 0)))
    [removed] = differences(shape(x=int, y=int), shape(x=int))
    [needed] = differences(shape(x=int), shape(x=int, y=int))
    [lacking] = differences(shape(x=(int, 0)), shape(x=int))
    [default] = differences(shape(x=(int, 0)), shape(x=(int, 1)))

    assert (added.kind, added.field, added.what) == (FITS, "y", "added")
    assert (removed.kind, removed.field, removed.what) == (FITS, "y", "removed")
    assert (needed.kind, needed.path) == (NOT, "$.y")
    assert lacking.kind == NOT
    assert (default.kind, default.what) == (FITS, "default")


def test_words_change_nothing():
    one, other = (
        EventType(make_dataclass("Event", [("x", int)], namespace={"__doc__": doc}), "e", 1, ())
        for doc in ("One.", "Another.")
    )

    assert schema_of(one) != schema_of(other)
    assert shape_of(one) == shape_of(other)
    assert differences(shape_of(one), shape_of(other)) == []


def test_recursive_types_are_compared():
    old, new = shape(x=Tree), shape(x=Forest)

    assert differences(old, old) == []
    assert {each.kind for each in differences(old, new)} == {NOT}


Tree = make_dataclass("Tree", [("name", str), ("children", "list[Tree]")])
Forest = make_dataclass("Forest", [("name", int), ("children", "list[Forest]")])
for each in (Tree, Forest):
    each.__module__ = __name__


def test_a_shape_in_words():
    whole = shape(a=int, b=list[str], c=str | None, d=Small, e=datetime, f=Any, g=Literal["x"])

    assert {name: words_of(each, whole) for name, each in fields_of(whole).items()} == {
        "a": "integer",
        "b": "array of string",
        "c": "string or null",
        "d": "one of 'a', 'b'",
        "e": "date-time",
        "f": "anything",
        "g": "one of 'x'",
    }


def test_a_type_without_a_schema_is_refused():
    cls = make_dataclass("Event", [("x", object)])

    with pytest.raises(RegistrationError, match="JSON Schema"):
        schema_of(EventType(cls, "tests.event", 1, ()))
