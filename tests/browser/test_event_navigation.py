"""Selecting another event of a log keeps the event and its state in view."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import connection
from playwright.sync_api import Page, expect

from eventlogs import LogId
from tests.accounts import Account, Deposited, Opened
from tests.admin.test_logs import of

pytestmark = pytest.mark.browser

WINDOWS: dict[str, dict[str, Any]] = {
    "wide": {"viewport": {"width": 1440, "height": 900}},
    "narrow": {"viewport": {"width": 390, "height": 844}, "has_touch": True},
}
SCRIPTS: dict[str, dict[str, Any]] = {
    "with scripts": {},
    "without scripts": {"java_script_enabled": False},
}


@pytest.fixture(params=WINDOWS)
def window(request: pytest.FixtureRequest) -> dict[str, Any]:
    return WINDOWS[request.param]


@pytest.fixture(params=SCRIPTS)
def options(request: pytest.FixtureRequest, window: dict[str, Any]) -> dict[str, Any]:
    return window | SCRIPTS[request.param]


@pytest.fixture
def wild(visit: Any) -> LogId:
    from tests.browser.wild import wild_log  # the test registers an aggregate

    return wild_log()


@pytest.fixture
def page(visit: Any, reader: Any, options: dict[str, Any]) -> Page:
    return visit(reader, **options)


@pytest.fixture
def log_id(visit: Any) -> Any:
    """An account of sixty events, so of three pages."""
    return Account.logs.create(Opened("ada"), *[Deposited(1)] * 59).log_id


def expect_in_view(page: Page, index: int) -> None:
    """Expect an event and its state in the window, and not below the sticky bar."""
    event, state = page.locator(f"#event-{index} > header"), page.locator(".el-state")
    expect(page.locator("[aria-current=true]")).to_have_attribute("id", f"event-{index}")
    expect(state.get_by_role("heading")).to_have_text(f"State as of event {index}")
    expect(event).to_be_in_viewport(ratio=1)
    expect(state.get_by_role("heading")).to_be_in_viewport(ratio=1)
    expect(state.locator("dl > div").first).to_be_in_viewport()
    bar, box = page.locator(".el-travel").bounding_box(), event.bounding_box()
    assert bar is not None
    assert box is not None
    assert box["y"] >= bar["y"] + bar["height"] or box["y"] + box["height"] <= bar["y"]


def test_a_click_on_an_event_shows_it_and_its_state(page, log_id):
    page.goto(of(log_id, "?event=40"))
    for index in (30, 45, 25, 49):
        page.locator(f"#event-{index} a.el-index").click()
        expect_in_view(page, index)


def test_the_links_show_the_event_and_its_state(page, log_id):
    travel = page.locator("[data-travel]")
    page.goto(of(log_id, "?event=26#event-26"))
    for name, index in (
        ("previous", 25),
        ("previous", 24),  # on the page before
        ("next", 25),
        ("next", 26),
        ("«", 0),
        ("»", 59),
    ):
        travel.get_by_role("link", name=name).click()
        expect_in_view(page, index)
    page.get_by_role("link", name="older events").click()
    expect_in_view(page, 49)
    page.get_by_role("link", name="newer events").click()
    expect_in_view(page, 50)


def test_the_slider_shows_the_event_and_its_state(page, log_id, options):
    page.goto(of(log_id, "?event=40#event-40"))
    for index in (39, 38):
        page.get_by_role("slider").press("ArrowLeft")
        if "java_script_enabled" in options:
            page.get_by_role("button", name="Go").click()
        expect_in_view(page, index)


def test_the_arrow_keys_show_the_event_and_its_state(visit, reader, window, log_id):
    page = visit(reader, **window)
    page.goto(of(log_id, "?event=36"))
    for key, index in (("ArrowLeft", 35), ("ArrowLeft", 34), ("ArrowRight", 35)):
        page.keyboard.press(key)
        expect_in_view(page, index)


def test_a_url_without_a_fragment_shows_the_event(visit, reader, window, log_id):
    page = visit(reader, **window)
    page.goto(of(log_id, "?event=30"))

    expect_in_view(page, 30)


def test_going_back_shows_the_previous_event(page, log_id):
    page.goto(of(log_id, "?event=40#event-40"))
    page.locator("#event-39 a.el-index").click()
    expect_in_view(page, 39)
    page.locator("#event-38 a.el-index").click()
    expect_in_view(page, 38)
    page.go_back()
    expect_in_view(page, 39)


def test_event_and_state_are_in_view_with_long_names_and_large_states(page, wild):
    page.goto(of(wild, "?event=5#event-5"))
    expect_in_view(page, 5)
    for index in range(4, -1, -1):
        page.locator("[data-travel]").get_by_role("link", name="previous").click()
        expect_in_view(page, index)


def test_a_long_state_scrolls_by_itself_and_by_the_keyboard(page, wild):
    page.goto(of(wild, "?event=4#event-4"))
    state = page.get_by_role("region", name="State as of event 4").last
    window = page.viewport_size
    box = state.bounding_box()
    assert box is not None
    assert box["height"] < window["height"]
    expect(state).to_have_attribute("tabindex", "0")
    last = state.locator("dl > div").last
    expect(last).not_to_be_in_viewport()
    state.focus()
    page.keyboard.press("End")

    expect(last).to_be_in_viewport()


def test_a_log_with_a_hole_has_a_page(page):
    """If rows of the log are missing, the state is shown above the list."""
    log_id = Account.logs.create(Opened("ada"), *[Deposited(1)] * 3).log_id
    with connection.cursor() as cursor:
        cursor.execute("UPDATE eventlogs_eventlog SET version = 6")
    page.goto(of(log_id, "?event=5"))

    expect(page.get_by_role("heading", name="State as of event 5")).to_be_visible()
    expect(page.locator(".el-event")).to_have_count(4)
