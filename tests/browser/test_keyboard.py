"""Use of the pages by keyboard alone."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import pytest
from playwright.sync_api import Page, expect

from tests.accounts import Account, Deposited, Opened
from tests.admin.test_logs import LIST, of
from tests.admin.test_projections import address
from tests.browser.test_logs import expect_event

pytestmark = pytest.mark.browser

FOCUSED = """
() => {
    const each = document.activeElement;
    const name = each.ariaLabel || each.labels?.[0]?.innerText || each.innerText || "";
    // Without the arrows of links, and in one line.
    const text = name.replace(/[\\u2039\\u203a]/g, "").replace(/\\s+/g, " ").trim();
    return document.querySelector("#content").contains(each) ? text : null;
}
"""


def stops(page: Page) -> Iterator[str]:
    """Yield the name of each element of the page's content that gets the focus by Tab."""
    for _ in range(80):
        page.keyboard.press("Tab")
        name = page.evaluate(FOCUSED)
        if name is not None:
            yield name


def reach(page: Page, name: str) -> None:
    """Press Tab until an element with this name has the focus."""
    seen = []
    for stop in stops(page):
        if stop.startswith(name):
            return
        seen.append(stop)
    raise AssertionError(f"Tab does not reach {name!r}, but {seen}")


def test_tab_goes_through_a_log_in_the_order_in_which_it_is_read(page):
    log_id = Account.logs.create(Opened("ada"), Deposited(5), Deposited(7)).log_id
    page.goto(of(log_id, "?event=1"))
    wanted = ["Copy", "Show in all events", "Causation tree of event 1", "Export as JSON lines"]
    wanted += ["« first", "previous", "as of event 1", "next", "» last"]
    wanted += ["2", "payload", "1", "payload", "Copy", "0", "payload"]

    seen = list(islice(stops(page), len(wanted)))
    assert [each.split(" schema")[0] for each in seen] == wanted


def test_links_are_opened_by_enter_and_the_focus_is_seen(page):
    log_id = Account.logs.create(Opened("ada"), Deposited(5)).log_id
    page.goto(LIST)
    reach(page, str(log_id))
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_contain_text(str(log_id))
    reach(page, "previous")
    page.keyboard.press("Enter")
    expect_event(page, 0, balance=0)


def test_the_slider_has_a_name_and_keeps_the_focus_while_it_is_moved_step_by_step(page):
    log_id = Account.logs.create(Opened("ada"), *[Deposited(1)] * 9).log_id
    page.goto(of(log_id, "?event=9"))
    reach(page, "as of event")
    for index in (8, 7, 6):
        page.keyboard.press("ArrowLeft")
        expect_event(page, index, balance=index)
        expect(page.get_by_role("slider", name="as of event")).to_be_focused()


def test_a_payload_is_opened_and_closed_by_the_keyboard(page):
    log_id = Account.logs.create(Opened("ada"), Deposited(5)).log_id
    page.goto(of(log_id, "?event=1"))
    page.locator("#event-0 summary").focus()
    for key, is_open in (("Enter", True), ("Space", False)):
        page.keyboard.press(key)
        expect(page.locator("#event-0 pre").first).to_be_visible(visible=is_open)


def test_a_parked_event_is_tried_again_by_the_keyboard(visit, operator, parked):
    page = visit(operator)
    page.goto(address("change"))
    reach(page, "Retry")
    page.keyboard.press("Enter")

    expect(page.locator(".messagelist")).to_contain_text("A worker will retry 1 event.")
