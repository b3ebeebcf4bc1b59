"""The appearance of the pages: light, dark, and on a phone."""

from __future__ import annotations

from typing import Any

import pytest
from django.urls import reverse
from playwright.sync_api import expect

from eventlogs import event_context
from eventlogs.events.codec import EncodedEvent
from eventlogs.models import EventLog
from example_project.payments.events import Authorized, Captured, Payment, Requested
from example_project.payments.models import PaymentSummary
from tests.accounts import Account, Deposited, Noted, Opened, Parcel, Sent, Withdrawn
from tests.admin.test_logs import LIST, of
from tests.admin.test_projections import ALL, address
from tests.browser.looks import picture, texts, unreadable
from tests.test_context import TRACE

pytestmark = pytest.mark.browser

LOOKS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "narrow": {"viewport": {"width": 390, "height": 844}, "has_touch": True},
    "narrow dark": {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"},
}


@pytest.fixture
def pages(visit: Any, parked: Any, admin_user: Any) -> dict[str, str]:
    """The addresses of all pages, each with every kind of content."""
    account = Account.logs.create(
        Opened("Ada Lovelace"), idempotency_key="order-2026-00017", metadata={"user": "bob"}
    )
    account = Account.logs.append(
        account,
        *[Deposited(1_250)] * 26,
        Withdrawn(700),
        Noted({"reason": "a text of some length, " * 12, "lines": [{"a": 1}, {"b": [2, 3]}]}),
        Withdrawn(20),
        metadata={"user": "grace@example.com", "correlation_id": "c-17", "till": 7},
    )
    unknown = Parcel.logs.create(Sent("here")).log_id
    EventLog.objects.append(
        unknown, [EncodedEvent("parcel.forgotten", 1, '{"what":7}')], expected_version=1
    )
    Payment.logs.create(Requested(amount=5_000), Authorized(5_000, "A 1"), Captured(amount=3_000))
    for _ in range(60):
        Account.logs.create(Opened("Charles"))
    cause = f"{account.log_id}:27"
    for number in range(12):
        with event_context(
            user=str(admin_user.pk),
            request_id="r-1",
            correlation_id="c-17",
            traceparent=TRACE,
            causation_id=cause if number % 6 else None,
        ):
            cause = f"{Account.logs.create(Opened('Ada Lovelace')).log_id}:0"
    row = PaymentSummary.objects.get(log_id=parked.log_id)
    skip = f"{address('skip')}?log_id={parked.log_id}"
    return {
        "index": reverse("admin:app_list", args=["eventlogs"]),
        "logs": LIST,
        "logs, none": f"{LIST}?q=nothing",
        "log": of(account.log_id, "?event=27"),
        "log, first page": of(account.log_id, "?event=0"),
        "log without a state": of(unknown),
        "causation tree": reverse("admin:eventlogs_event_tree", args=[f"{account.log_id}:27"]),
        "events": reverse("admin:eventlogs_event_changelist"),
        "events, none": f"{reverse('admin:eventlogs_event_changelist')}?metadata=x&key=y",
        "events of a log": f"{reverse('admin:eventlogs_event_changelist')}?log={account.log_id}",
        "projections": ALL,
        "projection": address("change"),
        "skip": skip,
        "rebuild": address("rebuild"),
        "row": reverse("admin:payments_paymentsummary_change", args=[row.pk]),
        "rows": reverse("admin:payments_paymentsummary_changelist"),
    }


@pytest.mark.parametrize("look", LOOKS)
def test_all_text_can_be_read_and_no_page_is_wider_than_the_window(visit, pages, admin_user, look):
    page = visit(admin_user, **LOOKS[look])
    wrong = []
    for name, where in pages.items():
        page.goto(where)
        for each in page.locator("#content-main details").all():
            each.evaluate("(each) => { each.open = true; }")
        picture(page, f"{name} ({look})")
        wrong += [f"{name}: {each}" for each in unreadable(page)]
        width = page.evaluate("document.documentElement.scrollWidth")
        if width > page.evaluate("window.innerWidth"):
            wrong.append(f"{name}: {width} pixels wide")

    assert wrong == []


def test_in_dark_mode_pages_are_dark_and_their_text_is_light(visit, pages, admin_user):
    page = visit(admin_user, color_scheme="dark")
    for name in ("logs", "log", "events", "projections", "projection", "skip"):
        page.goto(pages[name])
        expect(page.locator("body")).to_have_css("background-color", "rgb(18, 18, 18)")
        seen = texts(page, "#content-main :not(button, .el-button, .el-selected .el-index)")
        assert len(seen) > 1, name
        for each in seen:
            assert max(each["paper"]) < 80, (name, each)
            assert max(each["ink"]) > 150, (name, each)


def test_a_chosen_dark_theme_overrides_a_light_system(visit, pages, admin_user):
    page = visit(admin_user, color_scheme="light")
    page.goto(pages["log"])
    expect(page.locator("body")).to_have_css("background-color", "rgb(255, 255, 255)")
    page.get_by_role("button", name="Toggle theme").click()  # from auto to its opposite

    expect(page.locator("body")).to_have_css("background-color", "rgb(18, 18, 18)")
    assert unreadable(page) == []


def test_the_sticky_bar_does_not_cover_the_selected_event(visit, pages, admin_user):
    page = visit(admin_user, viewport={"width": 1280, "height": 500})
    page.goto(pages["log"].replace("event=27", "event=5") + "#event-5")

    expect(page.locator("#event-5 header")).to_be_in_viewport(ratio=1)
    travel, event = (
        page.locator(each).bounding_box() for each in (".el-travel", "#event-5 header")
    )
    assert event["y"] >= travel["y"] + travel["height"]  # not below the sticky bar


@pytest.mark.parametrize("name", ["log", "row"])
def test_buttons_of_the_header_the_sidebar_and_other_admins_keep_djangos_style(
    visit, pages, admin_user, name
):
    page = visit(admin_user)
    looks = """
        () => [...document.querySelectorAll("#container button:not(#content button)")].map((each) =>
            ["backgroundColor", "padding", "borderRadius", "color", "width"].map((name) =>
                getComputedStyle(each)[name]))
    """
    page.goto(reverse("admin:auth_user_changelist"))
    usual = page.evaluate(looks)
    page.goto(pages[name])

    assert len(usual) > 2
    assert page.evaluate(looks) == usual
