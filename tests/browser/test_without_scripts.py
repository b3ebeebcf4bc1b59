"""All pages work in a browser that runs no scripts."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.urls import reverse
from playwright.sync_api import Page, expect

from eventlogs.admin import logs as page_of_logs
from tests.accounts import Account, Deposited, Opened, Parcel, Sent
from tests.admin.test_logs import of
from tests.admin.test_projections import address
from tests.browser.test_logs import expect_event, ids

pytestmark = pytest.mark.browser


@pytest.fixture
def page(visit: Any, reader: Any) -> Page:
    return visit(reader, java_script_enabled=False)


def test_links_filters_and_pages_work(page, monkeypatch):
    monkeypatch.setattr(page_of_logs, "LOGS", 2)
    made = [str(Account.logs.create(Opened("ada")).log_id) for _ in range(3)][::-1]
    parcel = str(Parcel.logs.create(Sent("here")).log_id)
    page.goto(reverse("admin:index"))
    page.get_by_role("rowheader", name="Event logs").get_by_role("link").click()
    expect(ids(page)).to_have_text([parcel, made[0]])
    page.get_by_role("link", name="Older").first.click()
    expect(ids(page)).to_have_text(made[1:])
    page.get_by_label("Type").select_option("parcel")
    page.get_by_role("button", name="Show").click()
    expect(ids(page)).to_have_text([parcel])


def test_links_and_the_slider_with_its_button_go_to_events(page):
    log_id = Account.logs.create(Opened("ada"), Deposited(5), Deposited(7)).log_id
    page.goto(of(log_id))
    page.get_by_role("link", name="previous").click()
    expect_event(page, 1, balance=5)
    page.get_by_role("slider").press("ArrowRight")
    page.get_by_role("button", name="Go").click()
    expect_event(page, 2, balance=12)


def test_payloads_open_and_buttons_that_need_scripts_are_absent(page):
    log_id = Account.logs.create(Opened("ada"), Deposited(5)).log_id
    page.goto(of(log_id))
    page.locator("#event-0 summary").click()

    expect(page.locator("#event-0 pre").first).to_be_visible()
    expect(page.locator("#content").get_by_role("button")).to_have_text(["Go"])


def test_parked_events_are_retried(visit, operator, parked):
    page = visit(operator, java_script_enabled=False)
    page.goto(address("change"))
    page.get_by_role("button", name="Retry", exact=True).click()

    expect(page.locator(".messagelist")).to_contain_text("A worker will retry 1 event.")
    assert LogEntry.objects.count() == 1
