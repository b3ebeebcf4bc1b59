"""Projections: actions by users with the permission."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.urls import reverse
from playwright.sync_api import Page, expect

from eventlogs.models import ParkedEvent, ProjectionState, SkippedEvent
from example_project.payments.models import PaymentSummary
from example_project.payments.projections import PaymentSummaries
from tests.admin.test_projections import ALL, CAUSE, address, user
from tests.browser.looks import picture, unreadable
from tests.problems import LONG_NAME, create_problems

pytestmark = pytest.mark.browser


LOOKS: dict[str, dict[str, Any]] = {
    "light": {"viewport": {"width": 1440, "height": 900}},
    "dark": {"viewport": {"width": 1440, "height": 900}, "color_scheme": "dark"},
    "narrow": {"viewport": {"width": 390, "height": 844}, "has_touch": True},
    "narrow dark": {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"},
}


@pytest.fixture
def page(visit: Any, operator: Any) -> Page:
    """A page for a user who operates projections."""
    return visit(operator)


def test_an_event_is_retried_by_a_button(page, parked):
    page.goto(ALL)
    page.locator(".el-projections").get_by_role("link", name="payment-summary").click()
    expect(page.locator(".el-parked-event")).to_contain_text("payment.captured")
    page.get_by_role("button", name="Retry", exact=True).click()
    expect(page.locator(".messagelist")).to_contain_text("A worker will retry 1 event.")
    PaymentSummaries.catch_up()
    page.reload()

    expect(page.locator(".el-parked-event")).to_have_count(0)
    assert PaymentSummary.objects.get().captured == 3
    entry = LogEntry.objects.get()
    assert (entry.user.username, entry.object_id) == ("grace", "payment-summary")
    assert entry.change_message == f"Retried {parked.log_id} (1)."


def test_an_event_is_skipped_after_a_confirmation(page, parked):
    page.goto(address("change"))
    page.get_by_role("link", name="Skip permanently").click()
    expect(page.get_by_role("heading", name="Skip this event permanently?")).to_be_visible()
    page.get_by_role("link", name="Cancel").click()
    expect(page.locator(".el-parked-event")).to_have_count(1)
    assert not SkippedEvent.objects.exists()

    page.get_by_role("link", name="Skip permanently").click()
    page.get_by_role("button", name="Skip permanently").click()
    expect(page.locator(".messagelist")).to_contain_text("The event is skipped.")
    assert SkippedEvent.objects.get().index == 1
    assert "Skipped event 1" in LogEntry.objects.get().change_message


def test_with_thousand_separators_the_confirmed_event_is_skipped(page, parked, settings):
    settings.USE_THOUSAND_SEPARATOR = True
    ParkedEvent.objects.update(index=1_234)
    page.goto(f"{address('skip')}?log_id={parked.log_id}")

    expect(page.locator("input[name=index]")).to_have_value("1234")


def test_a_rebuild_is_requested(page, parked):
    page.goto(address("change"))
    page.get_by_role("link", name="Rebuild the rows").click()
    expect(page.get_by_role("heading", name="Rebuild all rows?")).to_be_visible()
    assert ProjectionState.objects.get().rebuild_requested_at is None
    page.get_by_role("button", name="Rebuild all rows").click()

    expect(page.get_by_text("A rebuild was requested")).to_be_visible()
    assert ProjectionState.objects.get().rebuild_requested_at is not None
    assert LogEntry.objects.get().change_message == "Requested a rebuild."


def test_actions_appear_in_the_history_of_the_admin(page, parked):
    page.goto(address("change"))
    page.get_by_role("button", name="Retry all").click()
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


@pytest.mark.parametrize("look", LOOKS)
def test_pages_that_report_problems_are_readable_and_fit_the_window(
    visit, admin_user, parked, monkeypatch, look
):
    create_problems(monkeypatch)
    page = visit(admin_user, **LOOKS[look])
    wrong = []
    for name, where in {
        "trouble, all": ALL,
        "trouble, one": address("change"),
        "trouble, a long name": address("change", LONG_NAME),
        "trouble, a rebuild": address("change", "fine-balance"),
        "trouble, held": address("held"),
        "trouble, held by one cause": f"{address('held')}?{CAUSE}",
        "trouble, actions": address("history"),
        "trouble, all actions": reverse("admin:eventlogs_projectionstate_all_actions"),
    }.items():
        assert page.goto(where).status == 200
        for each in page.locator("#content-main details").all():
            each.evaluate("(each) => { each.open = true; }")
        picture(page, f"{name} ({look})")
        wrong += [f"{name}: {each}" for each in unreadable(page)]
        width = page.evaluate("document.documentElement.scrollWidth")
        if width > page.evaluate("window.innerWidth"):
            wrong.append(f"{name}: {width} pixels wide")
        levels = [
            int(each.evaluate("(each) => each.tagName[1]"))
            for each in page.locator("#content :is(h1, h2, h3, h4)").all()
        ]
        if any(after > before + 1 for before, after in pairwise(levels)):
            wrong.append(f"{name}: headings {levels}")

    assert wrong == []


def test_events_of_one_bug_are_retried_at_once(page, parked, monkeypatch):
    create_problems(monkeypatch)
    page.goto(address("change"))
    expect(page.get_by_role("heading", name="1,804 parked: ZeroDivisionError")).to_have_count(1)
    cause = page.locator(".el-cause").filter(has_text="1,804 parked")
    cause.get_by_role("link", name="Show these events").click()
    expect(page.locator(".el-parked-event")).to_have_count(50)
    page.get_by_role("link", name="Older").first.click()
    expect(page.locator(".el-parked-event")).to_have_count(50)
    page.get_by_role("button", name="Retry these events").click()

    expect(page.locator(".messagelist")).to_contain_text("A worker will retry 1,804 events.")
    assert ParkedEvent.objects.filter(retry_at=None, awaits="").count() == 3 + 12 + 1
