"""The timeline of a log: states, changes by each event, and missing states."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventlogs import Aggregate, EventRecord, LogId, Reduction
from eventlogs.reductions.timeline import (
    ELLIPSIS,
    MAX_SUMMARY,
    MAX_VALUES,
    MISSING,
    Change,
    Unavailable,
    beginning,
    diff,
    path_text,
    plain_value,
    replay,
    steps,
    summarize,
)
from eventlogs.values import StoredEvent
from tests.accounts import Account, Deposited, Noted, Opened

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


LOG_ID = LogId.new("account")


def row(index: int, name: str, data: str) -> StoredEvent:
    return StoredEvent(LOG_ID, index, 100 + index, name, 1, data, '{"user":"ada"}', None, NOW)


OPENED = row(0, "account.opened", '{"owner":"Ada"}')
DEPOSITED = row(1, "account.deposited", '{"amount":40}')
UNKNOWN = row(2, "account.closed_long_ago", '{"secret":"4711"}')
AFTER = row(3, "account.deposited", '{"amount":2}')


@pytest.fixture
def account_id() -> LogId:
    return LOG_ID


def test_each_step_has_the_state_after_its_event_and_the_changes_by_it(account_id):
    first, second = steps(Account.without_events(account_id), [OPENED, DEPOSITED])

    assert first.state == {"owner": "Ada", "balance": 0, "notes": 0}
    assert first.changes == (Change(("owner",), "", "Ada"),)
    assert first.event == Opened("Ada")
    assert first.record.event == {"owner": "Ada"}
    assert first.record.metadata == {"user": "ada"}
    assert second.version == 2
    assert second.state == {"owner": "Ada", "balance": 40, "notes": 0}
    assert second.changes == (Change(("balance",), 0, 40),)


def test_a_page_in_the_middle_starts_from_the_reduction_before_it(account_id):
    before = replay(Account.without_events(account_id), [OPENED])
    assert isinstance(before, Reduction)

    (step,) = steps(before, [DEPOSITED])

    assert step.changes == (Change(("balance",), 0, 40),)
    assert step.state["owner"] == "Ada"


def test_only_the_requested_events_are_read(account_id):
    def endless():
        yield OPENED
        for index in range(1, 10**9):
            yield row(index, "account.deposited", '{"amount":1}')

    page = list(islice(steps(Account.without_events(account_id), endless()), 5))

    assert [step.state["balance"] for step in page] == [0, 1, 2, 3, 4]


def test_from_an_unknown_type_on_raw_events_are_shown_without_a_state(account_id):
    rows = [OPENED, DEPOSITED, UNKNOWN, AFTER]

    found = list(steps(Account.without_events(account_id), rows))

    why = Unavailable("UnknownEventType", 2)
    assert [step.state for step in found[2:]] == [why, why]
    assert [step.changes for step in found[2:]] == [None, None]
    assert [step.event for step in found[2:]] == [None, Deposited(2)]
    assert found[2].record.event == {"secret": "4711"}
    assert replay(Account.without_events(account_id), rows) == why


def test_the_reason_shows_no_payload(account_id):
    (step,) = steps(
        Account.without_events(account_id),
        [row(0, "account.deposited", '{"amount":"secret 4711"}')],
    )

    assert step.state == Unavailable("UndecodableEvent", 0)
    assert step.event is None


@pytest.mark.usefixtures("scratch_registry")
def test_an_apply_that_raises_ends_the_states_but_not_the_events():
    @dataclass
    class Fussy(Aggregate, log_type="fussy", events=[Deposited]):
        total: int = 0

        def apply(self, record: EventRecord) -> None:
            if record.event.amount == 13:
                raise ZeroDivisionError(f"secret {record.event.amount}")
            self.total += record.event.amount

    log_id = LogId.new("fussy")
    rows = [row(at, "account.deposited", f'{{"amount":{n}}}') for at, n in enumerate([1, 13, 2])]

    found = list(steps(Fussy.without_events(log_id), rows))

    assert found[0].state == {"total": 1}
    assert [step.state for step in found[1:]] == [Unavailable("ZeroDivisionError", 1)] * 2
    assert found[2].event == Deposited(2)
    assert replay(Fussy.without_events(log_id), rows) == Unavailable("ZeroDivisionError", 1)


@pytest.mark.usefixtures("scratch_registry")
def test_a_class_that_cannot_be_made_is_a_reason_too():
    @dataclass
    class Needy(Aggregate, log_type="needy", events=[Deposited]):
        owner: str

    log_id = LogId.new("needy")
    start = beginning(Needy, log_id)

    assert start == Unavailable("TypeError")
    (step,) = steps(start, [row(0, "account.deposited", '{"amount":1}')])
    assert step.event == Deposited(1)
    assert step.state == start


def test_a_hole_in_a_log_is_seen(account_id):
    _, after = steps(Account.without_events(account_id), [OPENED, AFTER])

    assert after.state == Unavailable("LogCorrupted", 3)


def test_an_event_that_changes_nothing_says_so(account_id):
    again = row(1, "account.opened", '{"owner":"Ada"}')

    _, step = steps(Account.without_events(account_id), [OPENED, again])

    assert step.changes == ()


# Snapshots


class Colour(Enum):
    RED = "red"


@dataclass(slots=True)
class Line:
    amount: Decimal
    at: datetime | None = None


class Plain:
    def __init__(self) -> None:
        self.shown = 1
        self._hidden = 2


@dataclass
class Basket(Aggregate):
    lines: list[Line] = field(default_factory=list)
    tags: set[str] = field(default_factory=set)
    by_colour: dict[Any, int] = field(default_factory=dict)
    anything: Any = None

    @property
    def total(self) -> Decimal:
        return sum((line.amount for line in self.lines), Decimal(0))

    @property
    def broken(self) -> int:
        raise KeyError("secret")


def test_a_plain_value_is_json():
    basket = Basket([Line(Decimal("1.50"), NOW)], {"b", "a"}, {Colour.RED: 1, 7: 2}, Plain())

    assert plain_value(basket) == {
        "lines": [{"amount": "1.50", "at": "2026-01-31 12:00:00+00:00"}],
        "tags": ["a", "b"],
        "by_colour": {"Colour.RED": 1, "7": 2},
        "anything": {"shown": 1},
    }


def test_properties_are_shown_when_asked_for_and_one_that_raises_shows_its_error_only():
    found = plain_value(Basket([Line(Decimal(2))]), properties=True)

    assert found["total"] == "2"
    assert found["broken"] == "<KeyError>"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.5, 10**30, True, None, "x"])
def test_scalars_are_themselves_or_text(value):
    assert plain_value(value) in (value, str(value))


def test_a_plain_value_is_bounded():
    circle: list[Any] = []
    circle.append(circle)

    assert len(plain_value(list(range(10 * MAX_VALUES)))) <= MAX_VALUES + 1
    assert ELLIPSIS in repr(plain_value(circle))


def test_a_value_without_text_shows_its_class():
    class Mute:
        def __str__(self) -> str:
            raise RuntimeError

    assert plain_value([Mute()]) == ["<Mute>"]


# Differences


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": 1}, {"a": 2}, [("a", 1, 2)]),
        ({"a": 1}, {"a": True}, [("a", 1, True)]),
        ({"a": 1}, {}, [("a", 1, MISSING)]),
        ({}, {"a": None}, [("a", MISSING, None)]),
        ({"a": {"b": [1, 2]}}, {"a": {"b": [1, 3]}}, [("a.b[1]", 2, 3)]),
        ({"a": [1, 2, 3]}, {"a": [0, 1, 2, 3]}, [("a[0]", MISSING, 0)]),
        ({"a": [1, 2, 3]}, {"a": [1, 3]}, [("a[1]", 2, MISSING)]),
        ({"a": [{"n": 1}, 2]}, {"a": [{"n": 5}, 2]}, [("a[0].n", 1, 5)]),
        ({"a": {"x": 1}}, {"a": [1]}, [("a", {"x": 1}, [1])]),
    ],
)
def test_a_difference_has_its_path_and_both_values(old, new, expected):
    assert [(change.where, change.old, change.new) for change in diff(old, new)] == expected


def test_paths_are_written_as_in_code():
    assert path_text(("rates", "EUR/USD", 0, "at")) == 'rates["EUR/USD"][0].at'


json = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("ab"), inner, max_size=3),
    max_leaves=12,
)


@given(json, json)
def test_differences_are_found_exactly_between_unequal_values(old, new):
    same = repr(_sorted(old)) == repr(_sorted(new))

    assert (list(diff(old, new)) == []) is same


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _sorted(value[name]) for name in sorted(value)}
    if isinstance(value, list):
        return [_sorted(each) for each in value]
    return value


# Summaries


def test_a_summary_is_the_fields_unless_the_project_says_otherwise():
    class Short(Account):
        def summary(self) -> str:
            return f"{self.owner}\n has {self.balance}"

    assert summarize(Account("Ada", 40)) == "owner: Ada, balance: 40, notes: 0"
    assert summarize(Short("Ada", 40)) == "Ada has 40"


def test_a_summary_is_short_and_never_an_error():
    class Broken(Account):
        def summary(self) -> str:
            raise ValueError("secret")

    class Field(Account):
        summary = "a field of that name"  # type: ignore[assignment]

    assert summarize(Broken()) == "<ValueError>"
    assert summarize(Field()) == "a field of that name"
    assert len(summarize(Account("A" * 1_000))) == MAX_SUMMARY


def test_a_note_of_any_shape_is_shown(account_id):
    noted = row(1, "account.noted", '{"note":{"deep":[1,{"er":null}]}}')

    *_, step = steps(Account.without_events(account_id), [OPENED, noted])

    assert step.event == Noted({"deep": [1, {"er": None}]})
    assert step.changes == (Change(("notes",), 0, 1),)
