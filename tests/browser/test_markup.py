"""Stored text is shown as text, never as markup."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.urls import reverse
from playwright.sync_api import expect

from eventlogs.events.codec import EncodedEvent
from eventlogs.models import EventLog
from example_project.payments.events import Captured, Payment, Requested
from example_project.payments.projections import PaymentSummaries
from tests.accounts import Account, Noted, Opened
from tests.admin.test_logs import LIST, of
from tests.admin.test_projections import address

pytestmark = pytest.mark.browser

MARK = "mark-of-the-test"
EVIL = (
    f"</pre></code></td></dd><script id={MARK}>alert(1)</script>"
    f"<img id={MARK} src=x onerror=alert(2)><svg id={MARK} onload=alert(3)>"
    f"\"'><a id={MARK} href='javascript:alert(4)'>go</a>javascript:alert(5)"
    f"<style id={MARK}>*{{display:none}}</style>{{{{7*7}}}}&lt;b&gt;"
    "\u2028\u2029\u202eright to left\u202c"
)
EVENTS = reverse("admin:eventlogs_event_changelist")


@pytest.fixture
def log_id(visit: Any) -> Any:
    """A log with markup in every place that can hold text."""
    return Account.logs.create(
        Opened(EVIL),
        Noted({EVIL: [EVIL, {EVIL: EVIL}]}),
        metadata={"user": EVIL, "correlation_id": EVIL, EVIL: EVIL},
        idempotency_key=EVIL[:200],
    ).log_id


def expect_text_alone(page: Any, where: str) -> None:
    expect(page.locator("#content-main"), where).to_be_visible()
    expect(page.locator(f"#{MARK}"), where).to_have_count(0)
    expect(page.locator("a[href^='javascript:' i]"), where).to_have_count(0)
    assert page.evaluate(
        "[...document.querySelectorAll('#content-main *')].every((each) =>"
        " [...each.attributes].every(({ name }) => !name.startsWith('on') && name !== 'style'))"
    )


def test_markup_in_a_log_is_text_on_every_page(page, log_id):
    for where in (
        LIST,
        of(log_id, "?event=0"),
        of(log_id, "?event=1"),
        EVENTS,
        f"{EVENTS}?log={log_id}",
    ):
        page.goto(where)
        expect_text_alone(page, where)
        expect(page.locator("#content-main")).to_contain_text(f"<script id={MARK}>alert(1)")


def test_markup_is_shown_whole_in_the_payload_the_state_and_the_change(page, log_id):
    page.goto(of(log_id, "?event=0"))
    event = page.locator("#event-0")
    shown = page.locator("aside dd").first

    assert shown.evaluate("(each) => each.textContent") == EVIL
    assert event.locator("pre").first.evaluate("(each) => JSON.parse(each.textContent).owner") == (
        EVIL
    )
    assert event.locator("ins").evaluate("(each) => each.textContent").startswith('"</pre>')


def test_markup_in_metadata_leads_to_the_events_that_have_it(page, log_id):
    page.goto(of(log_id, "?event=1"))
    page.locator("#event-1").get_by_role("link", name="correlation_id").click()

    expect(page.locator("table.el-events tbody tr")).to_have_count(2)
    expect(page.get_by_label("Metadata")).to_have_value(f"correlation_id={EVIL}")
    expect_text_alone(page, page.url)


def test_markup_in_a_query_is_text_in_fields_and_links(page, log_id):
    page.goto(LIST)
    page.get_by_label("Log id, part of an id").fill(EVIL)
    page.get_by_role("button", name="Show").click()
    expect_text_alone(page, page.url)
    expect(page.get_by_label("Log id, part of an id")).to_have_value(EVIL.strip())
    page.goto(EVENTS)
    for label in ("Idempotency key", "Metadata"):
        page.get_by_label(label).fill(EVIL)
    page.get_by_role("textbox", name="Log", exact=True).fill(EVIL)
    page.get_by_role("button", name="Show").click()
    expect_text_alone(page, page.url)


def test_copying_markup_copies_it_as_it_is(visit, reader, log_id):
    page = visit(reader, permissions=["clipboard-read", "clipboard-write"])
    page.goto(of(log_id, "?event=0"))
    page.locator("#event-0 .el-copy").click()
    expect(page.locator("#event-0 .el-copy")).to_have_text("✓")

    assert page.evaluate("navigator.clipboard.readText().then(JSON.parse)") == {"owner": EVIL}


def test_markup_in_an_error_text_is_text(visit, operator, monkeypatch):
    def fail(*_: object) -> None:
        raise ValueError(EVIL)

    log_id = Payment.logs.create(Requested(amount=5), Captured(amount=3)).log_id
    with monkeypatch.context() as patch:
        patch.setattr(PaymentSummaries, "captured", fail)
        patch.setattr(PaymentSummaries, "max_attempts", 1)
        PaymentSummaries.catch_up()
    page = visit(operator)
    for where in (address("change"), f"{address('skip')}?log_id={log_id}"):
        page.goto(where)
        expect_text_alone(page, where)
    page.goto(address("change"))
    page.get_by_text("Error and traceback").click()
    expect(page.locator(".el-parked-event pre")).to_contain_text("alert(1)")


def test_markup_in_a_log_that_has_no_class_is_text(page):
    log_id = Account.logs.create(Opened("ada")).log_id
    text = json.dumps({"x": f"<img id={MARK} src=x onerror=alert(1)>"})
    EventLog.objects.append(log_id, [EncodedEvent(f"<b id={MARK}>", 1, text)], expected_version=1)
    for where in (of(log_id), LIST, EVENTS):
        page.goto(where)
        expect_text_alone(page, where)
