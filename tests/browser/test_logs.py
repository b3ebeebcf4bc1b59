"""Logs: the search, paging, and the timeline."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from django.core.cache import cache
from django.urls import reverse
from playwright.sync_api import Locator, Page, expect

from eventlogs import Aggregate
from eventlogs.admin import logs as page_of_logs
from eventlogs.admin import timelines
from eventlogs.models import EventLog
from tests.accounts import Account, Deposited, Opened, Parcel, Sent, Withdrawn
from tests.admin.test_logs import LIST, of, user
from tests.browser.conftest import READS

pytestmark = pytest.mark.browser


@pytest.fixture
def state(visit: Any) -> Any:
    """An account of five events, whose balances are 0, 5, 12, 9 and 10."""
    return Account.logs.create(
        Opened("grace"),
        Deposited(5),
        Deposited(7),
        Withdrawn(3),
        Deposited(1),
        metadata={"till": 7},
    )


def ids(page: Page) -> Locator:
    return page.locator("table.el-logs tbody th")


def slider(page: Page) -> Locator:
    return page.get_by_role("slider")


def expect_event(page: Page, index: int, *, balance: int) -> None:
    """Expect a log's page to show an event: in the address, the slider, the list and the state."""
    expect(page).to_have_url(re.compile(rf"[?&]event={index}\b"))
    expect(slider(page)).to_have_value(str(index))
    expect(page.locator("output")).to_have_text(str(index))
    expect(page.locator("[aria-current=true]")).to_have_attribute("id", f"event-{index}")
    expect(page.get_by_role("heading", name=f"State as of event {index}")).to_be_visible()
    expect(value_of(page, "balance")).to_have_text(str(balance))


def value_of(page: Page, name: str) -> Locator:
    """Return the element that shows a value of the state."""
    row = page.locator("aside dl > div").filter(has=page.locator("dt", has_text=name))
    return row.locator("dd")


def test_login_redirects_to_the_requested_page(visit, state):
    user(*READS, name="ada")
    page = visit()
    page.goto(of(state.log_id, "?event=1"))
    page.get_by_label("Username").fill("ada")
    page.get_by_label("Password").fill("x")
    page.get_by_role("button", name="Log in").click()

    expect_event(page, 1, balance=5)


def test_links_lead_from_the_index_to_a_log_and_its_events(page, state):
    page.goto(reverse("admin:index"))
    page.get_by_role("rowheader", name="Event logs").get_by_role("link").click()
    expect(page).to_have_title(re.compile("Event logs"))
    page.get_by_role("link", name=str(state.log_id)).click()
    expect(page.get_by_role("heading", level=1)).to_contain_text(str(state.log_id))
    expect(page.locator(".el-event strong")).to_have_text(
        ["account.deposited", "account.withdrawn", *["account.deposited"] * 2, "account.opened"]
    )
    page.locator("#event-2 a.el-index").click()
    expect_event(page, 2, balance=12)
    page.get_by_role("link", name="Show in all events").click()
    expect(page.locator("table.el-events tbody tr")).to_have_count(5)
    page.get_by_role("navigation", name="Breadcrumbs").get_by_role("link", name="Home").click()
    expect(page).to_have_url(re.compile(r"/admin/$"))


def test_logs_are_found_by_type_id_end_of_id_and_key(page, state):
    parcel = Parcel.logs.create(Sent("here"), idempotency_key="order 7").log_id
    account = state.log_id
    page.goto(LIST)
    expect(ids(page)).to_have_text([str(parcel), str(account)])

    page.get_by_label("Type").select_option("account")
    page.get_by_role("button", name="Show").click()
    expect(ids(page)).to_have_text([str(account)])
    expect(page.get_by_label("Type")).to_have_value("account")
    page.get_by_role("link", name="Reset").click()
    expect(ids(page)).to_have_count(2)
    for asked, found in (
        (f" {account} ", account),
        (str(parcel.uuid), parcel),
        (str(account)[-8:], account),
        ("order 7", parcel),
    ):
        page.get_by_label("Log id, part of an id").fill(asked)
        page.get_by_label("Log id, part of an id").press("Enter")
        expect(ids(page), asked).to_have_text([str(found)])
    page.get_by_label("Log id, part of an id").fill("nothing of the kind")
    page.get_by_role("button", name="Show").click()
    expect(page.get_by_text("No log has this id")).to_be_visible()


def test_logs_are_found_by_the_day_they_were_made_on(page, state):
    page.goto(LIST)
    page.get_by_label("Created from").fill("2020-01-01")
    page.get_by_role("button", name="Show").click()
    expect(ids(page)).to_have_count(1)
    page.get_by_label("to", exact=True).fill("2020-01-02")
    page.get_by_role("button", name="Show").click()
    expect(page.get_by_text("No log matches these filters.")).to_be_visible()
    expect(page.get_by_label("Created from")).to_have_value("2020-01-01")


def test_pages_of_logs_go_both_ways_and_do_not_shift_while_logs_are_created(page, monkeypatch):
    monkeypatch.setattr(page_of_logs, "LOGS", 3)
    made = [str(Account.logs.create(Opened("ada")).log_id) for _ in range(8)][::-1]

    def turn(link: str) -> None:
        page.get_by_role("navigation", name="Pages").first.get_by_role("link", name=link).click()

    page.goto(LIST)
    expect(ids(page)).to_have_text(made[:3])
    expect(page.get_by_role("link", name="Newer")).to_have_count(0)
    new = str(Account.logs.create(Opened("new")).log_id)
    turn("Older")
    expect(ids(page)).to_have_text(made[3:6])
    page.keyboard.press("ArrowRight")
    expect(ids(page)).to_have_text(made[6:])
    expect(page.get_by_role("link", name="Older")).to_have_count(0)
    turn("Newer")
    expect(ids(page)).to_have_text(made[3:6])
    page.keyboard.press("ArrowLeft")
    expect(ids(page)).to_have_text(made[:3])
    turn("Newest")
    expect(ids(page)).to_have_text([new, *made[:2]])
    turn("Oldest")
    expect(ids(page)).to_have_text(made[5:])


def test_pages_of_a_log_go_both_ways_and_do_not_shift_while_events_are_appended(page):
    state = Account.logs.create(Opened("ada"), *[Deposited(1)] * 59)
    indexes = page.locator("a.el-index")

    page.goto(of(state.log_id))
    expect(indexes).to_have_text([str(each) for each in range(59, 49, -1)])
    page.get_by_role("link", name="older events").click()
    expect_event(page, 49, balance=49)
    expect(indexes).to_have_text([str(each) for each in range(49, 24, -1)])
    Account.logs.append(state, *[Deposited(1)] * 30)
    page.reload()
    expect(indexes).to_have_text([str(each) for each in range(49, 24, -1)])
    page.get_by_role("link", name="newer events").click()
    expect_event(page, 50, balance=50)
    expect(indexes).to_have_text([str(each) for each in range(74, 49, -1)])


def test_links_go_to_the_previous_next_first_and_last_event(page, state):
    page.goto(of(state.log_id))
    for link, index, balance in (
        ("previous", 3, 9),
        ("«", 0, 0),
        ("next", 1, 5),
        ("next", 2, 12),
        ("»", 4, 10),
    ):
        page.locator("[data-travel]").get_by_role("link", name=link).click()
        expect_event(page, index, balance=balance)
    expect(page.locator("[data-travel]").get_by_role("link", name="next")).to_have_count(0)


def test_the_arrow_keys_go_to_the_previous_and_the_next_event(page, state):
    page.goto(of(state.log_id, "?event=3"))
    page.keyboard.press("ArrowLeft")
    expect_event(page, 2, balance=12)
    page.keyboard.press("ArrowRight")
    expect_event(page, 3, balance=9)


def test_the_arrow_keys_are_ignored_in_fields_and_with_modifiers(page, state, monkeypatch):
    monkeypatch.setattr(page_of_logs, "LOGS", 1)
    Account.logs.create(Opened("ada"))
    page.goto(LIST)
    page.evaluate("document.addEventListener('click', () => { window.clicked = true; }, true)")
    for keys in ("Shift+ArrowRight", "Control+ArrowRight", "Alt+ArrowUp"):
        page.keyboard.press(keys)
    page.get_by_label("Log id, part of an id").fill("text")
    page.get_by_label("Log id, part of an id").press("ArrowRight")
    page.get_by_label("Type").press("ArrowRight")

    assert page.evaluate("window.clicked") is None


def test_the_slider_shows_its_event_and_loads_it_on_release(page, state):
    page.goto(of(state.log_id, "?event=4"))
    box = slider(page).bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] - 6, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, middle, steps=4)
    expect(page.locator("output")).to_have_text("2")
    expect(page).to_have_url(re.compile("event=4"))  # not yet
    page.mouse.up()

    expect_event(page, 2, balance=12)
    expect(page.get_by_role("button", name="Go")).to_be_hidden()


def test_the_slider_works_with_the_keyboard(page, state):
    page.goto(of(state.log_id, "?event=2"))
    for key, index, balance in (("ArrowRight", 3, 9), ("Home", 0, 0), ("End", 4, 10)):
        slider(page).press(key)
        expect_event(page, index, balance=balance)


def test_the_url_shows_the_same_state_to_another_user(page, visit, state):
    page.goto(of(state.log_id))
    page.locator("[data-travel]").get_by_role("link", name="previous").click()
    expect_event(page, 3, balance=9)
    Account.logs.append(state, Deposited(100))

    other = visit(user(*READS, name="somebody-else"))
    other.goto(page.url)
    expect_event(other, 3, balance=9)


def test_going_back_shows_the_previous_event_with_the_slider_at_it(page, state):
    page.goto(of(state.log_id, "?event=4"))
    slider(page).press("Home")
    expect_event(page, 0, balance=0)
    page.go_back()

    expect_event(page, 4, balance=10)


def test_the_state_of_another_aggregate_class_can_be_browsed(page, state, scratch_registry):
    @dataclass
    class Movements(Aggregate, log_type="account", events=[Opened, Deposited, Withdrawn]):
        moved: int = 0

        def apply(self, record):
            self.moved += getattr(record.event, "amount", 0)

    page.goto(of(state.log_id))
    page.get_by_role("link", name="Movements").click()
    expect(value_of(page, "moved")).to_have_text("16")
    page.locator("[data-travel]").get_by_role("link", name="previous").click()
    expect(value_of(page, "moved")).to_have_text("15")
    slider(page).press("Home")
    expect(value_of(page, "moved")).to_have_text("0")
    page.locator("#event-2 a.el-index").click()
    expect(value_of(page, "moved")).to_have_text("12")


def test_a_long_log_is_folded_by_a_link(page, monkeypatch):
    monkeypatch.setattr(timelines, "AT_ONCE", 10)
    cache.clear()
    log_id = Account.logs.create(Opened("ada"), *[Deposited(1)] * 99).log_id
    page.goto(of(log_id))
    expect(page.get_by_text("The state was not computed.")).to_be_visible()
    expect(page.locator("table.el-changes")).to_have_count(0)
    page.get_by_role("link", name="Fold them now").click()

    expect_event(page, 99, balance=99)
    expect(page.locator("table.el-changes")).to_have_count(25)


def test_an_event_shows_the_old_and_new_values_that_it_changed(page, state):
    page.goto(of(state.log_id))
    changes = page.locator("#event-3 table.el-changes tr")

    expect(changes).to_have_count(1)
    expect(changes.get_by_role("rowheader")).to_have_text("balance")
    expect(changes.locator("del")).to_have_text("12")
    expect(changes.locator("ins")).to_have_text("9")
    expect(changes.locator("del")).to_be_visible()
    expect(changes.locator("ins")).to_be_visible()


def test_copy_buttons_copy_the_id_and_the_payload(visit, reader, state):
    page = visit(reader, permissions=["clipboard-read", "clipboard-write"])
    page.goto(of(state.log_id))
    copied = "navigator.clipboard.readText()"

    page.get_by_role("heading", level=1).get_by_role("button").click()
    expect(page.get_by_role("heading", level=1).get_by_role("button")).to_have_text("✓")
    assert page.evaluate(copied) == str(state.log_id)
    expect(page.get_by_role("heading", level=1).get_by_role("button")).to_have_text("Copy")
    page.locator("#event-1 summary").click()
    page.locator("#event-1 .el-copy").click()
    expect(page.locator("#event-1 .el-copy")).to_have_text("✓")
    assert json.loads(page.evaluate(copied)) == {"amount": 5}


def test_a_copy_button_that_is_clicked_twice_gets_its_label_back(visit, reader, state):
    page = visit(reader, permissions=["clipboard-read", "clipboard-write"])
    page.clock.install()
    page.goto(of(state.log_id))
    button = page.get_by_role("heading", level=1).get_by_role("button")
    button.click()
    expect(button).to_have_text("✓")
    button.click()
    page.evaluate("navigator.clipboard.readText()")  # after the text that the second click writes
    page.clock.fast_forward(5_000)

    expect(button).to_have_text("Copy")


def test_export_downloads_json_lines(page, state):
    page.goto(of(state.log_id))
    with page.expect_download() as download:
        page.get_by_role("link", name="Export as JSON lines").click()
    text = Path(download.value.path()).read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]

    assert download.value.suggested_filename == f"{state.log_id}.jsonl"
    assert [each["data"] for each in lines[1:3]] == [{"owner": "grace"}, {"amount": 5}]
    assert lines[-1]["events"] == 5


def test_links_of_a_long_log_work_with_thousand_separators(page, settings):
    settings.USE_THOUSAND_SEPARATOR = True
    log_id = Account.logs.create(Opened("ada"), *[Deposited(1)] * 1_200).log_id
    page.goto(of(log_id, "?event=1100"))

    expect_event(page, 1_100, balance=1_100)
    page.locator("[data-travel]").get_by_role("link", name="previous").click()
    expect_event(page, 1_099, balance=1_099)
    page.get_by_role("link", name="newer events").click()
    expect_event(page, 1_100, balance=1_100)


def test_without_view_payload_only_the_shape_of_payloads_is_shown(visit, state):
    page = visit(user("view_eventlog", "view_event", name="viewer"))
    page.goto(LIST)
    expect(page.get_by_role("columnheader", name="state")).to_have_count(0)
    page.goto(of(state.log_id))
    page.locator("#event-0 summary").click()

    expect(page.locator("#event-0 pre").first).to_have_text('{ "owner": "string" }')
    expect(value_of(page, "owner")).to_have_text("string")
    expect(page.locator("body")).not_to_contain_text("grace")
    expect(page.get_by_role("link", name="export")).to_have_count(0)
    expect(page.get_by_role("button", name="Copy")).to_have_count(1)  # the id's


def test_a_user_without_the_view_permission_gets_403_for_each_page(
    visit, state, parked, complaints
):
    complaints.expected.append("status of 403")
    page = visit(user("view_payload", name="stranger"))
    export = reverse("admin:eventlogs_eventlog_export", args=[state.log_id])
    events = reverse("admin:eventlogs_event_changelist")
    projections = reverse("admin:eventlogs_projectionstate_changelist")
    one = reverse("admin:eventlogs_projectionstate_change", args=["payment-summary"])

    for address in (LIST, of(state.log_id), export, events, projections, one):
        assert page.goto(address).status == 403, address
        expect(page.locator("body")).not_to_contain_text(str(state.log_id))
    page.goto(reverse("admin:index"))
    expect(page.get_by_role("link", name="Logs")).to_have_count(0)


def test_no_page_offers_to_add_change_or_delete(visit, state, parked, admin_user):
    page = visit(admin_user)
    detail = reverse("admin:eventlogs_projectionstate_change", args=["payment-summary"])
    for address in (
        reverse("admin:app_list", args=["eventlogs"]),
        LIST,
        of(state.log_id),
        reverse("admin:eventlogs_event_changelist"),
        reverse("admin:eventlogs_projectionstate_changelist"),
        detail,
    ):
        page.goto(address)
        main = page.locator("#content")
        expect(main).to_be_visible()
        for role in ("link", "button"):
            named = main.get_by_role(role, name=re.compile(r"\b(add|delete|change|save)\b", re.I))
            expect(named).to_have_count(0)
    assert EventLog.objects.count() == 2
