"""The list of all events in the admin: filters and paging."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from random import Random
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from eventlogs import LogId
from eventlogs.admin import events as page_of_events
from eventlogs.models import Event
from eventlogs.stores import store_for
from eventlogs.stores.restore import ExportedEvent
from eventlogs.values import StoredEvent
from tests.accounts import Account, Deposited, Opened, Parcel, Sent
from tests.admin import test_logs
from tests.admin.test_logs import EVIL, shown

pytestmark = pytest.mark.django_db
LIST = reverse("admin:eventlogs_event_changelist")
ARROWS = (
    " \N{SINGLE LEFT-POINTING ANGLE QUOTATION MARK}\N{SINGLE RIGHT-POINTING ANGLE QUOTATION MARK}"
)
reader, viewer = test_logs.reader, test_logs.viewer  # fixtures


def positions(client, query: str = "") -> list[int]:
    cells = re.findall(
        r'<td [^>]*class="el-number"[^>]*><a href="[^"]*">(\d+)</a>', shown(client, LIST + query)
    )
    return [int(each) for each in cells]


def days_of_events() -> list[date]:
    """Return the days of events: one, or two if the test runs across midnight."""
    times = Event.objects.order_by("recorded_at").values_list("recorded_at", flat=True)
    return [timezone.localtime(each).date() for each in times]


@pytest.fixture
def one_window(monkeypatch):
    """A page searches one window only."""
    monkeypatch.setattr(page_of_events, "SECONDS", 0.0)


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
        ("?from=FIRST&to=LAST", ["parcel.sent", "account.deposited", "account.opened"]),
        ("?from=TOMORROW", []),
        ("?to=YESTERDAY", []),
    ],
)
def test_events_are_found(reader, state, query, types):
    first, *_, last = days_of_events()  # there are two if the test runs across midnight
    query = query.replace("LOG", str(state.log_id))
    query = query.replace("FIRST", str(first)).replace("LAST", str(last))
    query = query.replace("TOMORROW", str(last + timedelta(days=1)))
    query = query.replace("YESTERDAY", str(first - timedelta(days=1)))

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
def test_an_invalid_query_parameter_is_no_error(reader, state, query):
    assert reader.get(LIST + query).status_code == 200


def test_an_invalid_date_is_reported_and_not_kept_in_the_form(reader, state):
    for address in (LIST, test_logs.LIST):
        page = shown(reader, f"{address}?from=1.4.2026&to=2026-02-30")
        assert "The date 1.4.2026 cannot be read." in page
        assert "The date 2026-02-30 cannot be read." in page
        assert 'name="from" value=""' in page
        assert 'name="to" value=""' in page


def test_a_page_shows_the_same_events_while_others_are_appended(reader, state, monkeypatch):
    monkeypatch.setattr(page_of_events, "EVENTS", 2)
    newest = positions(reader)
    older = f"?before={newest[-1]}"
    before = positions(reader, older)
    Account.logs.append(state, Deposited(1), Deposited(2))

    assert positions(reader, older) == before
    assert positions(reader, f"?after={before[0]}") == newest
    assert positions(reader, "?end=1")[-1] == min(newest + before)


@pytest.mark.parametrize(("up", "wanted"), [(False, "account.opened"), (True, "parcel.sent")])
def test_a_search_for_a_rare_type_stops_at_its_time_limit_and_can_be_continued(
    reader, state, monkeypatch, one_window, up, wanted
):
    monkeypatch.setattr(page_of_events, "SPAN", 1)
    address, pages = f"?type={wanted}" + ("&end=1" if up else ""), 0
    found: list[Any] = []
    while not found:
        page = shown(reader, LIST + address)
        assert re.search(r"Searched positions [\d,]+ to [\d,]+, of [\d,]+ to [\d,]+: ", page)
        assert "no event matches so far." in page
        address = links(page)["Continue the search"]
        found, pages = positions(reader, address), pages + 1

    assert pages > 1
    assert found == [Event.objects.get(type=wanted).position]


def test_one_request_searches_many_windows_until_its_page_is_full(reader, state, monkeypatch):
    """The event is many windows away, and found by one request."""
    monkeypatch.setattr(page_of_events, "SPAN", 1)
    monkeypatch.setattr(page_of_events, "SECONDS", 3600.0)
    for _ in range(10):
        Parcel.logs.create(Sent("there"))

    assert positions(reader, "?type=account.opened") == [
        Event.objects.get(type="account.opened").position
    ]
    page = shown(reader, LIST + "?metadata=till%3D8")
    first, *_, last = Event.objects.order_by("position").values_list("position", flat=True)
    where = f"{first:,} to {last:,}"
    assert f"Searched positions {where}, of {where}: no event matches these filters." in page
    assert "Continue the search" not in page


def test_an_empty_result_says_why_it_is_empty(reader):
    assert "There are no events yet." in shown(reader, LIST)
    last = Account.logs.create(Opened("ada")).position

    for query, text in (
        ("?key=unused", "All events were searched."),
        ("?from=2020-01-01&to=2020-01-01", "All events were searched."),
        ("?from=2020-01-02&to=2020-01-01", "The first day is later than the last day."),
        ("?before=1", "There are no older events."),
        (f"?after={last}", "There are no newer events."),
        ("?log=x", "No log has this id."),
        ("?type=account.noted", "no event matches these filters."),
        ("?type=account.noted&from=2020-01-01", "no event matches these filters."),
        ("?log=account_01h455vb4pex5vsknk084sn02q", "No log has this id."),
    ):
        assert text in shown(reader, LIST + query), query
        assert "No event.<" not in shown(reader, LIST + query), query


def test_a_date_filter_limits_the_positions_searched(reader, state, monkeypatch, one_window):
    monkeypatch.setattr(page_of_events, "SPAN", 1)
    tomorrow = days_of_events()[-1] + timedelta(days=1)

    page = shown(reader, f"{LIST}?type=account.opened&from={tomorrow}&end=1")

    assert "All events were searched." in page
    assert "Continue the search" not in page


# Days, where positions and times do not grow together


def restore(times: list[datetime], kind: str = "account.opened") -> None:
    """Store events of these times in this order, each in a log of its own, as an import does."""
    store_for("default").restore(
        [
            ExportedEvent(
                StoredEvent(
                    LogId.new("account"), 0, 0, kind, 1, '{"owner":"ada"}', "{}", None, each
                )
            )
            for each in times
        ]
    )


def all_pages(client, query: str) -> list[int]:
    """Return the positions of all pages, from the newest on."""
    found, address = [], query
    while address:
        found += positions(client, address)
        address = links(shown(client, LIST + address)).get("Older")
    return found


def test_an_imported_day_has_all_of_its_events_and_no_other(reader, monkeypatch):
    monkeypatch.setattr(page_of_events, "EVENTS", 4)
    random = Random(11)
    begin = datetime(2026, 2, 26, 12, tzinfo=UTC)
    for _ in range(3):  # three imports, one of them between other events
        restore([begin + timedelta(minutes=random.randrange(5 * 24 * 60)) for _ in range(9)])
        Parcel.logs.create(Sent("now"))
    restore([datetime(2026, 3, 1, tzinfo=UTC)] * 6)  # several events of the first moment of a day
    restore([datetime(2026, 2, 28, 23, 59, 59, 999_999, tzinfo=UTC)] * 2)

    for first, last in (
        ("2026-02-28", "2026-02-28"),
        ("2026-03-01", "2026-03-02"),
        ("", "2026-02-27"),
        ("2026-03-01", ""),
    ):
        rows = Event.objects.order_by("-recorded_at", "-position")
        if first:
            rows = rows.filter(recorded_at__date__gte=first)
        if last:
            rows = rows.filter(recorded_at__date__lte=last)
        truth = list(rows.values_list("position", flat=True))
        query = f"?from={first}&to={last}"

        assert len(truth) > 1
        assert all_pages(reader, query) == truth
        # And back: from the oldest page to the newest.
        back: list[Any] = []
        address = f"{query}&end=1"
        while address:
            back = positions(reader, address) + back if back else positions(reader, address)
            address = links(shown(reader, LIST + address)).get("Newer")
        assert sorted(back) == sorted(truth)


def test_a_rare_type_is_found_on_an_imported_day(reader, monkeypatch):
    monkeypatch.setattr(page_of_events, "SPAN", 2)
    monkeypatch.setattr(page_of_events, "SECONDS", 3600.0)
    day = datetime(2026, 2, 26, 12, tzinfo=UTC)
    restore([day + timedelta(minutes=each) for each in range(9)])
    restore([day], "account.noted")
    restore([day + timedelta(days=2)], "account.noted")

    found = positions(reader, "?type=account.noted&from=2026-02-26&to=2026-02-26")

    assert found == [Event.objects.filter(type="account.noted").order_by("position")[0].position]


@pytest.mark.one_table
@pytest.mark.postgresql
@pytest.mark.parametrize("query", ["", "&type=account.noted", "&after=1772190000000000.1"])
def test_a_date_filter_uses_an_index(reader, query):
    restore([datetime(2026, 2, 26, 12, tzinfo=UTC) + timedelta(hours=each) for each in range(99)])
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE eventlogs_event")
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute("SET LOCAL enable_sort = off")
    with CaptureQueriesContext(connection) as queries:
        shown(reader, f"{LIST}?from=2026-02-27&to=2026-02-27{query}")
    asked = [each["sql"] for each in queries if '"recorded_at" DESC' in each["sql"]]
    asked += [each["sql"] for each in queries if '"recorded_at" ASC' in each["sql"]]

    assert asked
    for statement in asked:
        with connection.cursor() as cursor:
            cursor.execute(f"EXPLAIN {statement}")
            plan = "\n".join(line for (line,) in cursor.fetchall())
        assert "using eventlogs_event_by_time" in plan
        assert "Sort" not in plan


def links(page: str) -> dict[str, str]:
    found = re.findall(r'href="(\?[^"]*)"[^>]*>([^<]+)</a>', page)
    return {text.strip(ARROWS): address.replace("&amp;", "&") for address, text in found}


def test_the_events_of_a_log_are_paged_by_its_index(reader, monkeypatch):
    """By positions, a page would search all events between them."""
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


def test_a_rare_type_in_a_long_log_is_searched_by_event_index(reader, monkeypatch, one_window):
    monkeypatch.setattr(page_of_events, "SPAN", 2)
    state = Account.logs.create(Opened("ada"), *(Deposited(1) for _ in range(4)))
    query = f"?log={state.log_id}&type=account.opened"

    page = shown(reader, LIST + query)
    assert "Searched events 3 to 4 of the log, of 0 to 4: no event matches so far." in page
    look_on = links(page)["Continue the search"]
    assert "events 1 to 2 of the log" in shown(reader, LIST + look_on)
    look_on = links(shown(reader, LIST + look_on))["Continue the search"]
    assert positions(reader, look_on) == [Event.objects.for_log(state.log_id)[0].position]
    assert "Continue the search" not in shown(reader, LIST + look_on)
    assert "Continue the search" in shown(reader, LIST + query + "&end=1")
    assert positions(reader, query + "&end=1") == positions(reader, look_on)


# Ids in the filter of the log


def test_the_log_filter_accepts_an_id_in_any_notation(reader, state):
    text = str(state.log_id)
    own = positions(reader, f"?log={text}")

    assert len(own) == 2
    for asked in (text.upper(), text[8:], text[-8:], text[:30], str(state.log_id.uuid)):
        assert positions(reader, f"?log={asked}") == own, asked


def test_an_event_id_shows_the_event_among_those_of_its_log(reader, monkeypatch):
    monkeypatch.setattr(page_of_events, "EVENTS", 4)
    log_id = Account.logs.create(Opened("ada"), *[Deposited(1)] * 20).log_id
    own = list(Event.objects.for_log(log_id).values_list("position", flat=True))

    page = shown(reader, f"{LIST}?log={log_id}:9")

    assert positions(reader, f"?log={log_id}:9") == own[8:12][::-1]
    [selected] = re.findall(r'<tr [^>]*class="el-selected".*?</tr>', page, re.S)
    assert "?event=9#" in selected
    assert "before=8" in links(page)["Older"]
    assert positions(reader, f"?log={log_id}:99") == own[17:][::-1]  # there is none


def test_a_partial_id_that_matches_several_logs_is_reported(reader):
    for _ in range(2):
        state = Account.logs.create(Opened("ada"))

    page = shown(reader, f"{LIST}?log={str(state.log_id)[:12]}")
    assert "Several logs match this part of an id" in page


# Filters without a registered class


def test_a_type_without_a_class_stays_selected(reader, state):
    for query in ("?type=old.type", "?log_type=old_type"):
        page = shown(reader, LIST + query)
        [chosen] = re.findall(r'<option value="([^"]+)" selected>', page)
        assert chosen == query.partition("=")[2]
        assert positions(reader, query) == []
    page = shown(reader, LIST + "?type=account.opened")
    assert re.findall(r'<option value="([^"]+)" selected>', page) == ["account.opened"]


def test_a_log_of_another_type_with_the_same_uuid_has_no_events(reader, state):
    other = f"parcel_{str(state.log_id).rpartition('_')[2]}"

    assert positions(reader, f"?log={other}") == []


def test_a_position_redirects_to_the_event_in_its_log(reader, client, state):
    event = Event.objects.for_log(state.log_id)[1]
    answer = reader.get(reverse("admin:eventlogs_event_change", args=[event.position]))

    assert answer["Location"].endswith(f"/{state.log_id}/change/?event=1#event-1")
    assert reader.get(answer["Location"]).status_code == 200
    for position in (0, event.position + 1_000, 2**63, 10**30):
        assert reader.get(f"{LIST}{position}/change/").status_code == 404


def test_a_record_id_redirects_to_the_event_in_its_log(reader, state):
    record = Account.logs.load(state.log_id)[1]

    for writing in (record.id, record.id.upper(), record.id[8:]):
        answer = reader.get(f"{LIST}{writing}/")
        assert answer["Location"].endswith(f"/{state.log_id}/change/?event=1#event-1")
    wrong = ["x", f"{state.log_id}", f"{state.log_id}:", f"{state.log_id}:-1", "account_x:1"]
    wrong += [f"{state.log_id}:{index}" for index in (99, 2**31, 9_999_999_999, 10**30, "1x", "²")]
    wrong += [f"{LogId('parcel', state.log_id.uuid)}:1", ":1"]
    for each in wrong:
        assert reader.get(f"{LIST}{each}/").status_code == 404, each


def test_without_view_payload_only_the_shape_of_payloads_is_shown(viewer):
    Account.logs.create(Opened("4111"), metadata={"user": "4111", "card": "4111"})

    assert "4111" not in shown(viewer, LIST)
    assert "permission to view payloads" in shown(viewer, f"{LIST}?metadata=card%3D4111")


def test_markup_is_escaped_and_few_queries_are_sent(reader):
    Account.logs.create(Opened(EVIL), metadata={"user": EVIL}, idempotency_key=EVIL)
    with CaptureQueriesContext(connection) as queries:
        page = shown(reader, LIST)

    assert "<script" not in page
    assert "<img" not in page
    assert len(queries) <= 12


def test_a_user_without_the_view_permission_gets_403(client):
    client.force_login(test_logs.user("view_payload"))

    assert client.get(LIST).status_code == 403
