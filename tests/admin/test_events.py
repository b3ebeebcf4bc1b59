"""All events in the admin: filtered, and paged by positions."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from eventlogs import LogId
from eventlogs.admin import events as page_of_events
from eventlogs.admin.events import place_of
from eventlogs.models import Event
from tests.accounts import Account, Deposited, Opened, Parcel, Sent
from tests.admin import test_logs
from tests.admin.test_logs import EVIL, shown

pytestmark = pytest.mark.django_db
LIST = reverse("admin:eventlogs_event_changelist")
reader, viewer = test_logs.reader, test_logs.viewer  # fixtures


def positions(client, query: str = "") -> list[int]:
    cells = re.findall(
        r'<td class="el-number"><a href="[^"]*">(\d+)</a>', shown(client, LIST + query)
    )
    return [int(each) for each in cells]


@pytest.fixture
def state():
    """An account with two events, by two keys, and a parcel."""
    state = Account.logs.create(
        Opened("ada"),
        idempotency_key="first",
        metadata={"correlation_id": "c 1", "user": "bob", "till": 7},
    )
    state = Account.logs.append(state, Deposited(5), idempotency_key="second")
    Parcel.logs.create(Sent("here"))
    return state


def test_events_are_listed_the_newest_first(reader, state):
    assert positions(reader) == list(
        Event.objects.order_by("-position").values_list("position", flat=True)
    )


@pytest.mark.parametrize(
    ("query", "types"),
    [
        ("?type=account.deposited", ["account.deposited"]),
        ("?log_type=parcel", ["parcel.sent"]),
        ("?key=first", ["account.opened"]),
        ("?key=unused", []),
        ("?metadata=correlation_id%3Dc+1", ["account.opened"]),
        ("?metadata=till%3D7", ["account.opened"]),
        ("?metadata=user%3Dbob&type=account.opened", ["account.opened"]),
        ("?log=LOG", ["account.deposited", "account.opened"]),
        ("?log=LOG&type=account.opened", ["account.opened"]),
        ("?from=TODAY&to=TODAY", ["parcel.sent", "account.deposited", "account.opened"]),
        ("?from=TOMORROW", []),
        ("?to=YESTERDAY", []),
    ],
)
def test_events_are_found(reader, state, query, types):
    today = timezone.localdate()
    query = query.replace("LOG", str(state.log_id)).replace("TODAY", str(today))
    query = query.replace("TOMORROW", str(today + timedelta(days=1)))
    query = query.replace("YESTERDAY", str(today - timedelta(days=1)))

    found = dict(Event.objects.values_list("position", "type"))
    assert [found[each] for each in positions(reader, query)] == types


@pytest.mark.parametrize(
    "query",
    [
        *("?log=x", "?from=x", "?metadata=x", "?metadata=%00%3Dx", "?before=x", "?after=-1"),
        *(
            "?type=%00",
            "?log_type=%00",
            "?log=%00",
            "?key=%00",
            "?before=99999999999999999999",
            "?metadata=a'b%3D1",
        ),
    ],
)
def test_what_makes_no_sense_is_no_error(reader, state, query):
    assert reader.get(LIST + query).status_code == 200


def test_what_is_no_date_is_told_and_forgotten(reader, state):
    for address in (LIST, test_logs.LIST):
        page = shown(reader, f"{address}?from=1.4.2026&to=2026-02-30")
        assert "This is no date: 1.4.2026" in page
        assert "This is no date: 2026-02-30" in page
        assert 'name="from" value=""' in page
        assert 'name="to" value=""' in page


def test_a_page_stays_at_its_place_while_events_come(reader, state, monkeypatch):
    monkeypatch.setattr(page_of_events, "EVENTS", 2)
    newest = positions(reader)
    older = f"?before={newest[-1]}"
    before = positions(reader, older)
    Account.logs.append(state, Deposited(1), Deposited(2))

    assert positions(reader, older) == before
    assert positions(reader, f"?after={before[0]}") == newest
    assert positions(reader, "?end=1")[-1] == min(newest + before)


@pytest.mark.parametrize(("up", "wanted"), [(False, "account.opened"), (True, "parcel.sent")])
def test_a_rare_type_is_looked_for_a_stretch_at_a_time(reader, state, monkeypatch, up, wanted):
    monkeypatch.setattr(page_of_events, "SPAN", 1)
    # Not from position 0 on: other tests have used up thousands of positions.
    first = Event.objects.order_by("position").values_list("position", flat=True)[0]
    start = f"&after={max(first - 3, 0)}" if up else ""
    address, found, pages = f"?type={wanted}{start}", [], 0
    while not found:
        page = shown(reader, LIST + address)
        assert "were looked through" in page
        address = re.search(r'href="([^"]*)">Look on', page)[1].replace("&amp;", "&")
        found, pages = positions(reader, address), pages + 1

    assert pages > 1
    assert found == [Event.objects.get(type=wanted).position]


def test_days_bound_the_stretch_that_is_looked_through(reader, state, monkeypatch):
    tomorrow = timezone.localdate() + timedelta(days=1)
    monkeypatch.setattr(page_of_events, "SPAN", 1)

    assert "were looked through" not in shown(
        reader, f"{LIST}?type=account.opened&from={tomorrow}&end=1"
    )


def links(page: str) -> dict[str, str]:
    found = re.findall(r'href="(\?[^"]*)"[^>]*>([^<]+)</a>', page)
    return {text.strip(): address.replace("&amp;", "&") for address, text in found}


def test_the_events_of_a_log_are_paged_by_its_index(reader, monkeypatch):
    """By positions, a page would look through all that came between them."""
    monkeypatch.setattr(page_of_events, "EVENTS", 2)
    ids = [Account.logs.create(Opened("ada")).log_id for _ in range(2)]
    for version in range(1, 5):
        for log_id in ids:
            Account.logs.append(log_id, Deposited(version), expected_version=version)
    own = list(Event.objects.for_log(ids[0]).order_by("-index").values_list("position", flat=True))

    first = shown(reader, LIST + f"?log={ids[0]}")
    assert positions(reader, f"?log={ids[0]}") == own[:2]
    [older] = [address for address in links(first).values() if "before=" in address]
    assert "before=3" in older
    assert positions(reader, older) == own[2:4]
    assert positions(reader, f"?log={ids[0]}&end=1") == own[3:]
    with CaptureQueriesContext(connection) as context:
        shown(reader, LIST + older)
    orders = [each["sql"].partition("ORDER BY")[2] for each in context]
    orders = [order.replace("`", '"') for order in orders]  # as MariaDB quotes names
    assert any('"eventlogs_event"."index" DESC' in order for order in orders)
    assert not any('"eventlogs_event"."position"' in order for order in orders)


def test_a_rare_type_in_a_long_log_is_looked_for_a_stretch_at_a_time(reader, monkeypatch):
    monkeypatch.setattr(page_of_events, "SPAN", 2)
    state = Account.logs.create(Opened("ada"), *(Deposited(1) for _ in range(4)))
    query = f"?log={state.log_id}&type=account.opened"

    page = shown(reader, LIST + query)
    assert "Events 3 to 4 of the log were looked through" in page
    look_on = links(page)["Look on"]
    assert "Events 1 to 2 of the log were looked through" in shown(reader, LIST + look_on)
    look_on = links(shown(reader, LIST + look_on))["Look on"]
    assert positions(reader, look_on) == [Event.objects.for_log(state.log_id)[0].position]
    assert "Look on" not in shown(reader, LIST + look_on)
    assert positions(reader, query + "&end=1") == positions(reader, look_on)


def test_a_log_of_another_type_with_the_same_uuid_has_no_events(reader, state):
    other = f"parcel_{str(state.log_id).rpartition('_')[2]}"

    assert positions(reader, f"?log={other}") == []


def test_from_a_position_one_comes_to_the_event_in_its_log(reader, client, state):
    event = Event.objects.for_log(state.log_id)[1]
    answer = reader.get(reverse("admin:eventlogs_event_change", args=[event.position]))

    assert answer["Location"].endswith(f"/{state.log_id}/change/?event=1#event-1")
    assert reader.get(answer["Location"]).status_code == 200
    for position in (0, event.position + 1_000, 2**63, 10**30):
        assert reader.get(f"{LIST}{position}/change/").status_code == 404


def test_from_a_records_id_one_comes_to_the_event_in_its_log(reader, state):
    record = Account.logs.load(state.log_id)[1]

    answer = reader.get(f"{LIST}{record.id}/")

    assert answer["Location"].endswith(f"/{state.log_id}/change/?event=1#event-1")
    wrong = ["x", f"{state.log_id}", f"{state.log_id}:", f"{state.log_id}:-1", "account_x:1"]
    wrong += [f"{state.log_id}:{index}" for index in (99, 2**31, 9_999_999_999, 10**30, "1x", "²")]
    wrong += [f"{LogId('parcel', state.log_id.uuid)}:1", ":1"]
    for each in wrong:
        assert reader.get(f"{LIST}{each}/").status_code == 404, each


def test_a_moment_is_found_by_halving(state):
    first, *_, last = Event.objects.order_by("position")

    with CaptureQueriesContext(connection) as queries:
        assert place_of(first.recorded_at - timedelta(days=1), "default") <= first.position
        assert place_of(last.recorded_at + timedelta(days=1), "default") == last.position + 1
        assert place_of(last.recorded_at, "default") <= last.position
    assert len(queries) == 3


def test_without_the_permission_only_shapes_are_seen(viewer):
    Account.logs.create(Opened("4111"), metadata={"user": "4111", "card": "4111"})

    assert "4111" not in shown(viewer, LIST)
    assert "by who may see them" in shown(viewer, f"{LIST}?metadata=card%3D4111")


def test_markup_is_text_and_few_queries_are_asked(reader):
    Account.logs.create(Opened(EVIL), metadata={"user": EVIL}, idempotency_key=EVIL)
    with CaptureQueriesContext(connection) as queries:
        page = shown(reader, LIST)

    assert "<script" not in page
    assert "<img" not in page
    assert len(queries) <= 12


def test_who_may_not_look_sees_nothing(client):
    client.force_login(test_logs.user("view_payload"))

    assert client.get(LIST).status_code == 403
