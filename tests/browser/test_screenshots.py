"""
The pictures of the documentation: `make screenshots` writes them to docs/images/.

They are the same each time: events are imported with fixed ids and times, and the clock of the
process stands still. Without EVENTLOGS_SCREENSHOTS the pages are only opened.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from django.contrib.auth.models import User
from django.urls import reverse
from django.utils import timezone
from PIL import Image

from eventlogs import LogId
from eventlogs.models import ParkedEvent
from eventlogs.operations.jsonl import import_lines
from eventlogs.stores import store_for
from example_project.fines.projections import FineBalances
from example_project.payments.projections import PaymentSummaries
from tests.admin.test_logs import LIST
from tests.admin.test_projections import ALL

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

NOW = datetime(2026, 11, 27, 9, 30, tzinfo=UTC)
WIDTH = 1200  # CSS pixels
SCALE = 1.5  # pixels of a picture for each of them
COLOURS = 96

ONLY_PAYMENTS = """
document.querySelectorAll("#content tbody tr").forEach((row) => {
    if (!row.textContent.includes("payments.events.Payment")) row.remove();
});
"""


def log_id(name: str, made: datetime) -> LogId:
    """Return the id of the log with a name: a UUIDv7, the same each time."""
    digest = hashlib.sha256(name.encode()).digest()
    number = int(made.timestamp() * 1000) << 80 | int.from_bytes(digest[:10])
    number = number & ~(0xF << 76) | 7 << 76
    return LogId("payment", UUID(int=number & ~(3 << 62) | 2 << 62))


def refunded(*_: object) -> None:
    """Fail as a handler with a mistake does."""
    raise ZeroDivisionError


class History:
    """Events with fixed ids and times, and the export that has them."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.versions: dict[LogId, int] = {}

    def add(self, log: LogId, kind: str, at: datetime, data: Any, **metadata: Any) -> str:
        """Add an event; return its id."""
        index = self.versions.get(log, 0)
        self.versions[log] = index + 1
        line = {
            "log_id": str(log),
            "index": index,
            "position": len(self.lines) + 1,
            "type": f"payment.{kind}",
            "schema_version": 2 if kind == "authorized" else 1,
            "data": data,
            "metadata": metadata,
            "recorded_at": at.isoformat(),
        }
        if index == 0:
            line["log_created_at"] = at.isoformat()
        self.lines.append(line)
        return f"{log}:{index}"

    def store(self) -> None:
        """Import the events."""
        count = len(self.lines)
        export = [
            {"format": "eventlogs", "version": 1},
            *self.lines,
            {"end": True, "events": count},
        ]
        import_lines(store_for("default"), (json.dumps(line).encode() for line in export))


# How long a fold took is another figure each time.
SAME_DURATION = r"""
document.querySelectorAll(".el-cost").forEach((each) => {
    each.textContent = each.textContent.replace(/[\d.]+ s/, "0.001 s");
});
"""


@pytest.fixture
def shop(visit: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The payments of a small shop, and the addresses of the pages that are pictured."""
    ada = User.objects.create_superuser("ada")
    history = History()
    for number in range(9):
        made = NOW - timedelta(days=3, hours=-7 * number, minutes=13 * number)
        log = log_id(f"payment {number}", made)
        amount = 1_250 * (number % 4 + 2)
        history.add(log, "requested", made, {"amount": amount}, user="web")
        if number % 4 != 3:
            at = made + timedelta(seconds=4)
            code = {"amount": amount, "approval_code": f"A{number}7"}
            history.add(log, "authorized", at, code, user="bank")
        if number % 3 != 2 and number % 4 != 3:
            at = made + timedelta(hours=2)
            history.add(log, "captured", at, {"amount": amount}, user=str(ada.pk))
    at = NOW - timedelta(minutes=41)
    payment, deposit = log_id("the payment", at), log_id("its deposit", at)
    flow = {"correlation_id": "checkout-2026-1127", "request_id": "r-5f3a"}
    first = history.add(payment, "requested", at, {"amount": 10_000}, user=str(ada.pk), **flow)
    reaction = {**flow, "request_id": "r-5f3b", "causation_id": first}
    at += timedelta(seconds=2)
    code = {"amount": 10_000, "approval_code": "xyz123"}
    second = history.add(payment, "authorized", at, code, **reaction)
    reaction = {**flow, "request_id": "r-5f3c", "causation_id": second}
    at += timedelta(seconds=1)
    third = history.add(deposit, "requested", at, {"amount": 500}, **reaction)
    history.add(payment, "captured", at, {"amount": 4_000}, **reaction)
    reaction = {**flow, "request_id": "r-5f3d", "causation_id": third}
    code = {"amount": 500, "approval_code": "dep-1"}
    history.add(deposit, "authorized", at + timedelta(seconds=1), code, **reaction)
    at += timedelta(minutes=9)
    history.add(payment, "captured", at, {"amount": 6_000}, user=str(ada.pk), request_id="r-61b0")
    at += timedelta(minutes=22)
    history.add(
        payment,
        "refunded",
        at,
        {"amount": 2_500},
        user=str(ada.pk),
        request_id="r-64c2",
        reason="one of four was damaged",
    )
    history.store()
    monkeypatch.setattr(timezone, "now", lambda: NOW)
    monkeypatch.setattr(PaymentSummaries, "refunded", refunded)
    monkeypatch.setattr(PaymentSummaries, "max_attempts", 1)
    PaymentSummaries.catch_up()
    FineBalances.catch_up()
    failed = NOW - timedelta(minutes=9)  # in place of the database's clock
    ParkedEvent.objects.update(first_failed_at=failed, failed_at=failed)
    page = reverse("admin:eventlogs_eventlog_change", args=[payment])
    return {
        "logs": LIST,
        "time-travel": f"{page}?event=3",
        "causation-tree": reverse("admin:eventlogs_event_tree", args=[first]),
        "projections": ALL,
        "event-types": reverse("admin:eventlogs_event_types"),
    }


def save(page: Page, name: str, height: int) -> None:
    """Save a picture of the upper part of a page in EVENTLOGS_SCREENSHOTS, if that is set."""
    # As high as all of it: what is sticky stays where it is, and nothing scrolls.
    whole = page.evaluate("document.documentElement.scrollHeight")
    page.set_viewport_size({"width": WIDTH, "height": whole})
    page.evaluate("scrollTo(0, 0); document.activeElement.blur()")
    clip = {"x": 0, "y": 0, "width": WIDTH, "height": min(height, whole)}
    taken = Image.open(io.BytesIO(page.screenshot(clip=clip)))  # type: ignore[arg-type]
    page.set_viewport_size({"width": WIDTH, "height": 500})
    if directory := os.environ.get("EVENTLOGS_SCREENSHOTS"):
        few = taken.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
        few.save(Path(directory, f"{name}.png"), optimize=True)


# How much of each page is pictured, in CSS pixels.
HEIGHTS = {
    "logs": 706,
    "time-travel": 914,
    "causation-tree": 520,
    "projections": 760,
    "event-types": 620,
}


def test_pictures_of_the_admin(visit: Any, shop: dict[str, str]):
    ada = User.objects.get(username="ada")
    for look in ("light", "dark"):
        page = visit(
            ada,
            color_scheme=look,
            viewport={"width": WIDTH, "height": 500},
            device_scale_factor=SCALE,
        )
        for name, where in shop.items():
            page.goto(where)
            if page.locator("#main").get_attribute("class") == "main shifted":
                page.get_by_role("button", name="Toggle navigation").click()  # it stays so
            if name == "event-types":  # not those of the tests, nor the many of fines
                page.evaluate(ONLY_PAYMENTS)
            page.evaluate(SAME_DURATION)

            assert page.locator("#content h1, #content h2").first.is_visible()
            if look == "light":
                save(page, name, HEIGHTS[name])
            elif name == "time-travel":
                save(page, f"{name}-dark", HEIGHTS[name])
