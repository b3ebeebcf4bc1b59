"""Events that are drawn from annotations can be stored, and keep to their constraints."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal, NamedTuple, TypedDict
from uuid import UUID

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eventlogs import Aggregate, event
from eventlogs.events.codec import codec_for
from eventlogs.events.registry import registry
from eventlogs.testing.strategies import event_of, events_of, histories_of
from tests.accounts import Account, Deposited, Noted, Opened, Withdrawn

# How long drawing takes depends on the machine, not on what is tested here.
drawing = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Point(NamedTuple):
    x: int
    y: float = 0.0


class Address(TypedDict, total=False):
    street: str


@dataclass
class Part:
    name: str
    parts: list[Part] = field(default_factory=list)


class Weight(msgspec.Struct):
    grams: Annotated[int, msgspec.Meta(ge=0)]


@event("strategies.everything")
@dataclass(frozen=True)
class Everything:
    whole: Annotated[int, msgspec.Meta(gt=0, le=10, multiple_of=5)]
    broken: Annotated[float, msgspec.Meta(ge=0, lt=1)]
    money: Decimal
    text: Annotated[str, msgspec.Meta(min_length=1, max_length=3)]
    code: Annotated[str, msgspec.Meta(pattern="^[A-Z]{2}[0-9]$")]
    at: datetime
    day: date
    hour: time
    length: timedelta
    key: UUID
    colour: Colour
    kind: Literal["a", "b"]
    point: Point
    address: Address
    part: Part
    weight: Weight
    pair: tuple[int, str]
    many: Annotated[tuple[bool, ...], msgspec.Meta(max_length=2)]
    by_name: dict[str, int | None]
    anything: Any
    counted: int = field(default=0, init=False)


@event("strategies.noticed")
@dataclass(frozen=True)
class Noticed:
    note: str = "none"


@event("strategies.picky")
@dataclass(frozen=True)
class Picky:
    low: int
    high: int

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError("upside down")


@drawing
@given(event_of(Everything))
def test_what_is_drawn_can_be_stored_and_keeps_to_its_constraints(drawn):
    codec_for(registry.by_class(Everything)).encode(drawn, 1_000_000)

    assert drawn.whole in (5, 10)
    assert 0 <= drawn.broken < 1
    assert 1 <= len(drawn.text) <= 3
    assert drawn.at.utcoffset() == timedelta()
    assert drawn.weight.grams >= 0
    assert len(drawn.many) <= 2


@drawing
@given(event_of(Picky))
def test_what_a_class_refuses_is_not_drawn(drawn):
    assert drawn.low <= drawn.high


def test_defaults_and_other_values_are_drawn():
    notes = set()

    @drawing
    @given(event_of(Noticed))
    def draw(drawn: Noticed) -> None:
        notes.add(drawn.note)

    draw()
    assert "none" in notes
    assert len(notes) > 1


@drawing
@given(events_of(Account, overrides={Deposited: event_of(Deposited, amount=st.integers(1, 9))}))
def test_events_are_those_of_the_aggregate_and_single_strategies_may_be_given(drawn):
    assert isinstance(drawn, Opened | Deposited | Withdrawn | Noted)
    assert not isinstance(drawn, Deposited) or 1 <= drawn.amount <= 9


@drawing
@given(histories_of(Account, starts_with=Opened, min_size=2, max_size=4))
def test_histories_begin_and_end_as_they_should(history):
    assert type(history[0]) is Opened
    assert 2 <= len(history) <= 4


@pytest.mark.usefixtures("scratch_registry")
def test_a_type_without_a_strategy_is_named():
    @event("strategies.binary")
    @dataclass
    class Binary:
        content: bytes

    @dataclass
    class Files(Aggregate, log_type="files", events=[Binary]):
        pass

    with pytest.raises(TypeError, match=r"Binary\.content, of type Bytes"):
        events_of(Files)
    with pytest.raises(TypeError, match="Deposited has no field amuont"):
        event_of(Deposited, amuont=st.integers())
    with pytest.raises(TypeError, match="not an event class"):
        event_of(Part)
