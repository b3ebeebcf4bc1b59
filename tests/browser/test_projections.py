"""Projections: operated by who may do that."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from playwright.sync_api import Page, expect

from eventlogs.models import ParkedEvent, ProjectionState, SkippedEvent
from example_project.payments.models import PaymentSummary
from example_project.payments.projections import PaymentSummaries
from tests.admin.test_projections import ALL, address, user

pytestmark = pytest.mark.browser


@pytest.fixture
def page(visit: Any, operator: Any) -> Page:
    """A page for who operates projections."""
    return visit(operator)


def test_an_event_is_tried_again_by_a_button(page, parked):
    page.goto(ALL)
    page.get_by_role("link", name="payment-summary").click()
    expect(page.locator(".el-parked-event")).to_contain_text("payment.captured")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".messagelist")).to_contain_text("1 event is tried again")
    PaymentSummaries.catch_up()
    page.reload()

    expect(page.locator(".el-parked-event")).to_have_count(0)
    assert PaymentSummary.objects.get().captured == 3
    entry = LogEntry.objects.get()
    assert (entry.user.username, entry.object_id) == ("grace", "payment-summary")
    assert entry.change_message == f"Retried {parked.log_id} (1)."


def test_an_event_is_skipped_after_a_confirmation(page, parked):
    page.goto(address("change"))
    page.get_by_role("link", name="Skip for good").click()
    expect(page.get_by_role("heading", name="Skip an event for good?")).to_be_visible()
    page.get_by_role("link", name="No, go back").click()
    expect(page.locator(".el-parked-event")).to_have_count(1)
    assert not SkippedEvent.objects.exists()

    page.get_by_role("link", name="Skip for good").click()
    page.get_by_role("button", name="Skip it for good").click()
    expect(page.locator(".messagelist")).to_contain_text("The event is skipped.")
    assert SkippedEvent.objects.get().index == 1
    assert "Skipped event 1" in LogEntry.objects.get().change_message


def test_the_event_that_is_confirmed_is_skipped_where_numbers_have_separators(
    page, parked, settings
):
    settings.USE_THOUSAND_SEPARATOR = True
    ParkedEvent.objects.update(index=1_234)
    page.goto(f"{address('skip')}?log_id={parked.log_id}")

    expect(page.locator("input[name=index]")).to_have_value("1234")


def test_a_rebuild_is_asked_for(page, parked):
    page.goto(address("change"))
    page.get_by_role("link", name="Rebuild the rows").click()
    expect(page.get_by_role("heading", name="Rebuild all rows?")).to_be_visible()
    assert ProjectionState.objects.get().rebuild_requested_at is None
    page.get_by_role("button", name="Rebuild all rows").click()

    expect(page.get_by_text("A rebuild was asked for")).to_be_visible()
    assert ProjectionState.objects.get().rebuild_requested_at is not None
    assert LogEntry.objects.get().change_message == "Asked for a rebuild."


def test_deeds_are_found_in_the_history_of_the_admin(page, parked):
    page.goto(address("change"))
    page.get_by_role("button", name="Try all of them again").click()
    expect(page.locator(".messagelist")).to_be_visible()
    page.goto("/admin/")

    expect(page.locator("#recent-actions-module")).to_contain_text("payment-summary")


def test_without_the_permission_there_are_no_buttons_and_posting_is_refused(
    visit, parked, complaints
):
    complaints.expected.append("status of 403")
    page = visit(user("view_projectionstate", "view_payload", name="viewer"))
    page.goto(address("change"))
    expect(page.locator(".el-parked-event")).to_have_count(1)
    expect(page.locator("#content-main").get_by_role("button")).to_have_count(0)
    for link in ("Skip", "Rebuild"):
        expect(page.locator("#content-main").get_by_role("link", name=link)).to_have_count(0)

    post = """
        async ([address, id]) => {
            const body = new FormData();
            body.set("log_id", id);
            body.set("index", "1");
            const token = document.cookie.match(/csrftoken=(\\w+)/)[1];
            const headers = { "X-CSRFToken": token };
            return (await fetch(address, { method: "POST", body, headers })).status;
        }
    """
    for what in ("retry", "skip", "rebuild"):
        assert page.evaluate(post, [address(what), str(parked.log_id)]) == 403, what
    for what in ("skip", "rebuild"):
        assert page.goto(f"{address(what)}?log_id={parked.log_id}").status == 403
    assert ParkedEvent.objects.get().retry_at is None
    assert not SkippedEvent.objects.exists()
    assert not LogEntry.objects.exists()
