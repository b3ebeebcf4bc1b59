"""The list of all events: filters and paging."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone
from playwright.sync_api import Locator, Page, expect

from eventlogs.admin import events as page_of_events
from eventlogs.events.codec import EncodedEvent
from eventlogs.models import Event, EventLog
from tests.accounts import Account, Deposited, Opened, Parcel, Sent
from tests.admin.test_events import LIST
from tests.admin.test_logs import of, user

pytestmark = pytest.mark.browser


@pytest.fixture
def state(visit: Any) -> Any:
    """An account with two events, by two keys, and a parcel."""
    state = Account.logs.create(
        Opened("grace"), idempotency_key="first", metadata={"user": "bob", "till": 7}
    )
    state = Account.logs.append(state, Deposited(5), idempotency_key="second")
    Parcel.logs.create(Sent("here"))
    return state


def types(page: Page) -> Locator:
    return page.locator("table.el-events tbody strong")


def positions(page: Page) -> Locator:
    return page.locator("table.el-events tbody tr td:first-child")


def show(page: Page) -> None:
    page.get_by_role("button", name="Show").click()


def test_events_are_filtered_by_type_log_key_and_metadata(page, state):
    page.goto(LIST)
    expect(types(page)).to_have_text(["parcel.sent", "account.deposited", "account.opened"])
    page.get_by_label("Event type").select_option("account.deposited")
    show(page)
    expect(types(page)).to_have_text(["account.deposited"])
    expect(page.get_by_label("Event type")).to_have_value("account.deposited")
    page.get_by_role("link", name="Reset").click()
    page.get_by_label("Log type").select_option("parcel")
    show(page)
    expect(types(page)).to_have_text(["parcel.sent"])
    page.get_by_role("link", name="Reset").click()
    for label, asked, found in (
        ("Idempotency key", "first", ["account.opened"]),
        ("Log", str(state.log_id), ["account.deposited", "account.opened"]),
        ("Metadata", "till=7", ["account.opened"]),
    ):
        field = page.get_by_role("textbox", name=label, exact=label == "Log")
        field.fill(asked)
        field.press("Enter")
        expect(types(page)).to_have_text(found)
        page.get_by_role("link", name="Reset").click()
        expect(types(page)).to_have_count(3)


def test_events_are_filtered_by_days(page, state):
    times = Event.objects.order_by("recorded_at").values_list("recorded_at", flat=True)
    first, *_, last = [timezone.localtime(each).date() for each in times]
    page.goto(LIST)
    page.get_by_label("Recorded from").fill(first.isoformat())
    page.get_by_label("to", exact=True).fill(last.isoformat())
    show(page)
    expect(types(page)).to_have_count(3)
    page.get_by_label("Recorded from").fill((last + timedelta(days=1)).isoformat())
    page.get_by_label("to", exact=True).fill("")
    show(page)
    expect(page.get_by_text("No event matches these filters.")).to_be_visible()


def test_an_invalid_metadata_filter_is_reported(page, state):
    page.goto(LIST)
    page.get_by_label("Metadata").fill("till")
    show(page)

    expect(page.get_by_text("Write the metadata filter as name=value")).to_be_visible()


def test_pages_of_events_go_both_ways_and_do_not_shift_while_events_are_appended(
    page, state, monkeypatch
):
    monkeypatch.setattr(page_of_events, "EVENTS", 2)
    state = Account.logs.append(state, *[Deposited(1)] * 3)

    def turn(link: str) -> None:
        page.get_by_role("navigation", name="Pages").first.get_by_role("link", name=link).click()

    page.goto(LIST)
    newest = positions(page).all_text_contents()
    turn("Older")
    expect(positions(page)).not_to_have_text(newest)
    older = positions(page).all_text_contents()
    state = Account.logs.append(state, Deposited(1), Deposited(2))
    page.reload()
    expect(positions(page)).to_have_text(older)
    turn("Newer")
    expect(positions(page)).to_have_text(newest)
    turn("Newest")
    expect(positions(page)).not_to_have_text(newest)
    expect(types(page)).to_have_count(2)
    turn("Oldest")
    expect(types(page).last).to_have_text("account.opened")
    assert int(older[0]) < int(newest[-1])


def test_a_search_for_rare_events_stops_at_its_time_limit_and_can_be_continued(
    page, state, monkeypatch
):
    monkeypatch.setattr(page_of_events, "SPAN", 1)
    monkeypatch.setattr(page_of_events, "SECONDS", 0.0)
    page.goto(f"{LIST}?type=account.opened")
    expect(page.get_by_text("no event matches so far.")).to_be_visible()
    for _ in range(2):
        expect(page.get_by_text("Searched positions")).to_be_visible()
        page.get_by_role("link", name="Continue the search").click()
        page.wait_for_url("**/*before=*")

    expect(types(page)).to_have_text(["account.opened"])


def test_a_type_without_a_class_stays_selected_in_the_form(page, state):
    page.goto(f"{LIST}?type=old.type&log_type=old_type")
    expect(page.get_by_label("Event type")).to_have_value("old.type")
    show(page)

    expect(page.get_by_label("Event type")).to_have_value("old.type")
    expect(page.get_by_label("Log type")).to_have_value("old_type")
    expect(page.get_by_text("no event matches these filters.")).to_be_visible()


def test_an_effect_links_to_its_cause_and_a_cause_to_its_effects(page, state):
    log_id = Parcel.logs.create(
        Sent("there"), metadata={"causation_id": f"{state.log_id}:1", "correlation_id": "c"}
    ).log_id
    page.goto(of(log_id))
    page.get_by_role("link", name="correlation_id").click()
    expect(types(page)).to_have_text(["parcel.sent"])
    page.go_back()
    page.get_by_role("link", name="causation_id").click()
    expect(page.get_by_role("heading", name="State as of event 1")).to_be_visible()
    page.go_back()
    page.get_by_role("link", name="other effects of this cause").click()

    expect(types(page)).to_have_text(["parcel.sent", "account.deposited"])
    expect(page.locator(".el-badge")).to_have_text(["cause"])


def test_on_a_phone_an_event_is_a_card_with_its_type_log_and_payload(visit, reader, state):
    page = visit(reader, viewport={"width": 390, "height": 844})
    name = "account." + "a_very_long_name_" * 6 + "x"
    EventLog.objects.append(
        state.log_id, [EncodedEvent(name, 1, '{"text": "%s"}' % ("x" * 300))], expected_version=2
    )
    page.goto(f"{LIST}?log={state.log_id}:1")

    card = page.locator("table.el-events tbody tr").first
    assert card.bounding_box()["width"] <= 390
    for text in (name, str(state.log_id), '"text"'):
        box = card.get_by_text(text).first.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    expect(page.locator("tr.el-selected strong")).to_have_text("account.deposited")


def test_an_event_links_to_its_place_in_its_log(page, state):
    page.goto(f"{LIST}?type=account.opened")
    page.get_by_role("link", name=str(state.log_id)).click()

    expect(page.get_by_role("heading", name="State as of event 0")).to_be_visible()
    expect(page.locator("#event-0 details pre").first).to_contain_text('"owner": "grace"')


def test_without_view_payload_only_the_shape_of_payloads_is_shown(visit, state):
    page = visit(user("view_eventlog", "view_event", name="viewer"))
    page.goto(LIST)

    expect(page.get_by_role("columnheader", name="shape")).to_be_visible()
    expect(page.locator("table.el-events")).to_contain_text('{"owner": "string"}')
    expect(page.locator("table.el-events")).not_to_contain_text("grace")
    expect(page.locator("table.el-events")).not_to_contain_text("bob")
    expect(page.get_by_label("Metadata")).to_have_count(0)
