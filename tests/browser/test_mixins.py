"""Links from a row of a read model to the events of its log."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.urls import reverse
from playwright.sync_api import expect

from example_project.payments.events import Captured, Payment, Requested
from example_project.payments.models import PaymentSummary
from example_project.payments.projections import PaymentSummaries
from tests.admin.test_logs import of, user
from tests.browser.conftest import READS

pytestmark = pytest.mark.browser


@pytest.fixture
def row(visit: Any) -> PaymentSummary:
    Payment.logs.create(Requested(amount=5), Captured(amount=3))
    PaymentSummaries.catch_up()
    return PaymentSummary.objects.get()


def test_a_row_links_to_its_latest_events_and_its_history(visit, row):
    page = visit(user("view_paymentsummary", *READS))
    page.goto(reverse("admin:payments_paymentsummary_change", args=[row.pk]))
    last = page.locator(".el-latest-events")
    expect(last.get_by_role("listitem")).to_have_count(2)
    expect(last).to_contain_text("payment.captured")
    last.get_by_role("link", name="0", exact=True).click()
    expect(page.get_by_role("heading", name="State as of event 0")).to_be_visible()
    page.go_back()
    last.get_by_role("link", name="Show all events of this log").click()

    expect(page).to_have_url(re.compile(re.escape(of(row.log_id)) + "$"))
    expect(page.get_by_role("heading", name="State as of event 1")).to_be_visible()


def test_a_list_of_rows_links_to_their_histories(visit, row):
    page = visit(user("view_paymentsummary", *READS))
    page.goto(reverse("admin:payments_paymentsummary_changelist"))
    page.locator("#result_list").get_by_role("link", name="Show events").click()

    expect(page.get_by_role("heading", level=1)).to_contain_text(str(row.log_id))


def test_a_user_without_the_event_permission_sees_only_the_row(visit, row):
    page = visit(user("view_paymentsummary"))
    page.goto(reverse("admin:payments_paymentsummary_change", args=[row.pk]))

    expect(page.locator(".field-status")).to_be_visible()
    expect(page.locator(".el-latest-events")).to_have_count(0)
