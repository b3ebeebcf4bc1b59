"""Erased personal values: a quiet badge that can be read, in the list and in the timeline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import Page, expect

from eventlogs import LogManager
from eventlogs.privacy import key_store, memory
from tests.admin.test_logs import of
from tests.admin.test_personal_values import ADA, CHARLES, EVENTS, FRIEND, IP, NAME, STREET
from tests.browser.looks import picture, unreadable
from tests.guests import SETTINGS, Guest, Joined, Moved, Paid

if TYPE_CHECKING:
    from eventlogs import LogState

pytestmark = pytest.mark.browser


@pytest.fixture
def state(visit: Any, settings: Any) -> LogState:
    settings.EVENTLOGS = {**SETTINGS, "CACHE": None}
    memory.clear()
    return LogManager(Guest).create(
        Joined(ADA, NAME, CHARLES, FRIEND),
        Moved(ADA, [STREET, "Ockham Park"]),
        Paid(1_200),
        metadata={"ip": IP, "person": ADA},
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_erased_values_are_badges_that_can_be_read(
    visit: Any, reader: Any, state: LogState, scheme: str
) -> None:
    page: Page = visit(reader, color_scheme=scheme)
    page.goto(of(state.log_id, "?event=0"))
    expect(page.locator("body")).to_contain_text(NAME)
    key_store().destroy(ADA)

    page.goto(of(state.log_id, "?event=0"))

    badges = page.locator(".el-selected pre .el-badge", has_text="erased")
    expect(badges.first).to_be_visible()
    expect(page.locator("body")).not_to_contain_text("$personal")
    expect(page.locator("body")).not_to_contain_text(NAME)
    expect(page.locator("body")).to_contain_text(FRIEND)
    assert unreadable(page) == []
    picture(page, f"erased-log-{scheme}")

    page.goto(EVENTS)
    expect(page.locator(".el-badge", has_text="erased").first).to_be_visible()
    expect(page.locator("body")).not_to_contain_text("$personal")
    picture(page, f"erased-events-{scheme}")
