"""Windowed search misses no event, and reports the events that it searched."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from django.db import transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eventlogs import LogId
from eventlogs.admin.sort_orders import ByNumber, ByTime, Key
from eventlogs.admin.windowed_search import SearchStart, search_windows
from eventlogs.models import Event
from eventlogs.stores import store_for
from eventlogs.stores.restore import ExportedEvent
from eventlogs.values import StoredEvent

pytestmark = pytest.mark.django_db
BEGIN = datetime(2026, 2, 27, 23, 59, tzinfo=UTC)
HOUR = timedelta(hours=1)
NEWEST = SearchStart()
RARE, COMMON = "account.noted", "account.deposited"
FOREVER, ONE_WINDOW = 3600.0, 0.0  # seconds


def store(times: list[int], types: list[str]) -> None:
    """Store an event of a log of its own for each, as an import does: in any order of times."""
    events = [
        ExportedEvent(
            StoredEvent(
                LogId.new("account"), 0, 0, each, 1, "{}", "{}", None, BEGIN + timedelta(hours=at)
            )
        )
        for at, each in zip(times, types, strict=True)
    ]
    store_for("default").restore(events)


def by_position(events: list[Event]) -> list[Event]:
    return sorted(events, key=lambda each: each.position)[::-1]


def by_time(events: list[Event]) -> list[Event]:
    return sorted(events, key=lambda each: (each.recorded_at, each.position))[::-1]


ORDERS = {"position": (ByNumber("position"), by_position), "time": (ByTime(), by_time)}


def walk(order, start: SearchStart, *, rare: bool, size: int, span: int, seconds: float):
    """Yield pages from ``start`` on, in both directions, as a user follows the links."""
    every = Event.objects.all()
    wanted = every.filter(type=RARE) if rare else None

    def page(where: SearchStart):
        return search_windows(every, wanted, order, where, size=size, span=span, seconds=seconds)

    found = page(start)
    yield "start", found
    older = found
    while older.older is not None:
        older = page(SearchStart(before=older.older))
        yield "older", older
    newer = found
    while newer.newer is not None:
        newer = page(SearchStart(after=newer.newer))
        yield "newer", newer


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    data=st.data(),
    times=st.lists(st.integers(0, 5), max_size=12),
    name=st.sampled_from(sorted(ORDERS)),
    rare=st.booleans(),
    size=st.integers(1, 4),
    span=st.integers(1, 5),
    seconds=st.sampled_from([FOREVER, ONE_WINDOW]),
)
def test_all_pages_together_have_each_event_once(data, times, name, rare, size, span, seconds):
    order, arranged = ORDERS[name]
    with transaction.atomic():
        store(times, [data.draw(st.sampled_from([RARE, COMMON])) for _ in times])
        events = list(Event.objects.all())
        wanted = arranged([each for each in events if not rare or each.type == RARE])
        places = [SearchStart(), SearchStart(oldest=True)]
        places += [SearchStart(around=order.key_of(each)) for each in events]
        start = data.draw(st.sampled_from(places))

        parts: dict[str, list[Any]] = {"start": [], "older": [], "newer": []}
        for part, found in walk(order, start, rare=rare, size=size, span=span, seconds=seconds):
            assert len(found.events) <= size
            if part == "newer":
                parts[part] = found.events + parts[part]
            else:
                parts[part] += found.events
            if found.stopped_older or found.stopped_newer:
                assert len(found.events) < size or part == "start"
        assert parts["newer"] + parts["start"] + parts["older"] == wanted
        transaction.set_rollback(True)


def test_windows_follow_each_other_until_a_page_is_full():
    store([0] * 20, [RARE if at in (1, 3, 18) else COMMON for at in range(20)])
    positions = list(Event.objects.order_by("position").values_list("position", flat=True))
    every, order = Event.objects.all(), ORDERS["position"][0]

    def page(seconds: float, start: SearchStart = NEWEST):
        return search_windows(
            every, every.filter(type=RARE), order, start, size=2, span=3, seconds=seconds
        )

    found = page(FOREVER)
    assert [each.position for each in found.events] == [positions[18], positions[3]]
    assert not found.stopped_older
    found = page(ONE_WINDOW)
    assert [each.position for each in found.events] == [positions[18]]
    assert found.stopped_older
    assert (found.high, found.low) == (None, Key(positions[17]))
    found = page(ONE_WINDOW, SearchStart(before=found.older))
    assert found.events == []
    assert (found.high, found.low) == (Key(positions[17]).next(up=False), Key(positions[14]))


def test_a_search_around_an_event_shows_it_and_searches_both_directions():
    store(list(range(20)), [RARE if at in (0, 10, 19) else COMMON for at in range(20)])
    every = Event.objects.all()
    positions = list(Event.objects.order_by("position").values_list("position", flat=True))
    middle = Event.objects.filter(type=RARE).order_by("position")[1]
    for order, _arranged in ORDERS.values():
        start = SearchStart(around=order.key_of(middle))
        found = search_windows(
            every, every.filter(type=RARE), order, start, size=9, span=3, seconds=0.0
        )

        assert found.events == [middle]
        assert found.stopped_older
        assert found.stopped_newer
        assert found.low.number == positions[8]
        assert found.high.number == positions[13]


def test_unused_positions_cost_no_search_window(django_assert_max_num_queries):
    store([0, 1], [RARE, COMMON])
    first, last = Event.objects.order_by("position")
    every, order = Event.objects.all(), ORDERS["position"][0]
    far = SearchStart(before=Key(last.position + 10**12))

    with django_assert_max_num_queries(9):
        found = search_windows(
            every, every.filter(type=RARE), order, far, size=9, span=1, seconds=FOREVER
        )
    assert found.events == [first]


@given(st.integers(0, 10**18 - 1), st.datetimes(datetime(1970, 1, 1), datetime(9000, 1, 1)))
def test_keys_survive_being_written_and_read(number, time):
    for order, key in (
        (ByNumber("index"), Key(number)),
        (ByTime(), Key(number, time.replace(tzinfo=UTC))),
    ):
        assert order.read(order.text(key)) == key


@pytest.mark.parametrize("text", [None, "", "x", "-1", "1.x", "1.2.3", "²", "9" * 19, ".", "1."])
def test_invalid_text_is_not_read_as_a_key(text):
    for order in (ByNumber("position"), ByTime()):
        assert order.read(text) is None
    assert ByTime().read("999999999999999999.1") is None


def test_a_key_and_its_next_are_adjacent():
    keys = [Key(3), Key(3).next(up=True), Key(3).next(up=True).next(up=True)]

    assert [above.next(up=False) for _below, above in pairwise(keys)] == keys[:-1]
