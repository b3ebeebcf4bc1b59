"""Links and searches from an event to its cause, its effects and its correlation."""

from __future__ import annotations

import re
from html import unescape

import pytest

from eventlogs.admin import events as page_of_events
from eventlogs.models import Event
from tests.accounts import Account, Deposited, Opened, Parcel, Sent
from tests.admin import test_logs
from tests.admin.test_events import LIST, links, positions
from tests.admin.test_logs import of, shown

pytestmark = pytest.mark.django_db
reader, viewer = test_logs.reader, test_logs.viewer  # fixtures


def follow(client, log_id, index: int, name: str) -> str:
    """Return the address of a link of an event's metadata."""
    page = shown(client, of(log_id, f"?event={index}"))
    [event] = re.findall(rf'<li id="event-{index}".*?</li>', page, re.S)
    found = dict(re.findall(r'<a href="([^"]*)">([^<]+)</a>', event))
    return {text: unescape(address) for address, text in found.items()}[name]


def at(log_id, index: int) -> int:
    """Return the position of an event."""
    return Event.objects.get(log_id=log_id.uuid, index=index).position


def roles(page: str) -> list[str]:
    return re.findall(r'<span class="el-badge">([^<]*)</span>', page)


@pytest.fixture
def far(monkeypatch):
    """An event may be many windows away, while one page searches one window."""
    monkeypatch.setattr(page_of_events, "SPAN", 3)
    monkeypatch.setattr(page_of_events, "SECONDS", 0.0)


@pytest.mark.parametrize("name", ["correlation_id", "causation_id"])
def test_the_metadata_link_of_an_event_finds_at_least_that_event(reader, far, name):
    for _ in range(9):
        Parcel.logs.create(Sent("before"))
    log_id = Account.logs.create(Opened("ada"), metadata={name: "c 1/ä&", "x": 1}).log_id
    for _ in range(9):
        Parcel.logs.create(Sent("after"))
    address = follow(reader, log_id, 0, name)
    page = shown(reader, address)

    assert positions(reader, address.partition("?")[2].join(["?", ""])) == [at(log_id, 0)]
    assert "these events match so far." in page
    assert {"Search older events", "Search newer events"} <= set(links(page))


def test_a_record_id_links_to_the_cause(reader, far):
    cause = Account.logs.create(Opened("ada"), Deposited(1)).log_id
    for _ in range(9):
        Parcel.logs.create(Sent("between"))
    effect = Account.logs.create(Opened("bob"), metadata={"causation_id": f"{cause}:1"}).log_id

    answer = reader.get(follow(reader, effect, 0, "causation_id"))
    assert answer["Location"] == f"{of(cause)}?event=1#event-1"
    # Also in the list of events, when the search starts at the cause.
    query = f"?metadata=causation_id%3D{cause}%3A1"
    assert positions(reader, query) == [at(cause, 1)]
    assert roles(shown(reader, LIST + query)) == ["cause"]


def test_the_effects_of_an_event_are_found_from_it(reader):
    cause = Account.logs.create(Opened("ada"), metadata={"x": 1}).log_id
    effects = [
        Account.logs.create(Opened("bob"), metadata={"causation_id": f"{cause}:0"}).log_id
        for _ in range(2)
    ]
    Account.logs.create(Opened("eve"), metadata={"causation_id": f"{cause}:1"})

    address = follow(reader, cause, 0, "effects")
    assert positions(reader, "?" + address.partition("?")[2]) == [
        *[at(each, 0) for each in reversed(effects)],
        at(cause, 0),
    ]
    address = follow(reader, effects[0], 0, "other effects of this cause")
    assert roles(shown(reader, address)) == ["cause"]
    assert at(effects[1], 0) in positions(reader, "?" + address.partition("?")[2])


@pytest.mark.parametrize("own_id", ["e4", 4, "4"])
def test_an_event_id_of_another_system_leads_to_the_cause_and_its_effects(reader, own_id):
    state = Account.logs.create(Opened("ada"), metadata={"event_id": own_id})
    state = Account.logs.append(state, Deposited(1), metadata={"causation_id": own_id})
    Account.logs.append(state, Deposited(2), metadata={"causation_id": f"{own_id}0"})

    address = follow(reader, state.log_id, 1, "causation_id")

    query = "?" + address.partition("?")[2]
    assert positions(reader, query) == [at(state.log_id, 1), at(state.log_id, 0)]
    assert roles(shown(reader, address)) == ["cause"]
    assert "effects" in shown(reader, of(state.log_id))


def test_the_event_that_a_correlation_is_named_after_is_shown_with_it(reader):
    first = Account.logs.create(Opened("ada"), metadata={"user": "bob"}).log_id
    second = Account.logs.create(Opened("bob"), metadata={"correlation_id": f"{first}:0"}).log_id

    query = f"?metadata=correlation_id%3D{first}%3A0"
    assert positions(reader, query) == [at(second, 0), at(first, 0)]
    assert roles(shown(reader, LIST + query)) == ["first event"]


def test_a_missing_cause_is_no_error(reader):
    other = f"account_01h455vb4pex5vsknk084sn02q:{7}"
    log_id = Account.logs.create(Opened("ada"), metadata={"causation_id": other}).log_id

    assert reader.get(follow(reader, log_id, 0, "causation_id")).status_code == 404
    assert positions(reader, f"?metadata=causation_id%3D{other}") == [at(log_id, 0)]
    for value in (None, True, 1.5, [1], {"a": 1}, ""):
        log_id = Account.logs.create(
            Opened("ada"), metadata={"causation_id": value, "event_id": value}
        ).log_id
        assert f"causation_id%3D{log_id}%3A0" in shown(reader, of(log_id))


def test_without_the_permission_there_are_no_links(viewer):
    log_id = Account.logs.create(
        Opened("ada"), metadata={"correlation_id": "4111", "causation_id": "4112"}
    ).log_id

    page = shown(viewer, of(log_id))
    assert "4111" not in page
    assert "effects" not in page
    for query in ("?metadata=correlation_id%3D4111", "?metadata=causation_id%3D4112"):
        assert "permission to view payloads" in shown(viewer, LIST + query)
        assert roles(shown(viewer, LIST + query)) == []


def test_the_around_parameter_combines_with_a_date_filter(reader, far):
    log_id = Account.logs.create(Opened("ada"), metadata={"correlation_id": "c"}).log_id
    position = at(log_id, 0)
    day = Event.objects.get(position=position).recorded_at.date()
    for _ in range(9):
        Parcel.logs.create(Sent("after"))

    query = f"?metadata=correlation_id%3Dc&around={position}&from={day}"
    assert positions(reader, query) == [position]
    assert positions(reader, f"?around={position}")[:-1] == list(
        Event.objects.filter(position__gt=position)
        .order_by("-position")
        .values_list("pk", flat=True)
    )
