"""Pages of a log's events, and the links between them."""

from __future__ import annotations

import re
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.test import RequestFactory

from eventlogs import LogErased, LogNotFound, LogState, retired_event
from eventlogs.contrib.http import Problem, aevents_page, event_as_json, events_page
from eventlogs.events.codec import EncodedEvent
from eventlogs.models import EventLog
from eventlogs.stores import erasing
from example_project.payments.events import Payment, Requested
from tests.accounts import Account, Deposited, Noted, Opened

pytestmark = pytest.mark.django_db
factory = RequestFactory()
accounts = Account.logs


@pytest.fixture
def account() -> LogState:
    """An account with the events 0 to 6."""
    return accounts.create(Opened("ada"), *(Deposited(n) for n in range(1, 7)))


def page(address: str, account: LogState):
    return events_page(factory.get(address), accounts, account.log_id)


def walk(address: str | None, account: LogState, direction: str) -> list[list[int]]:
    pages = []
    while address is not None:
        found = page(address, account)
        pages.append([each.index for each in found.events])
        address = getattr(found, direction)
    return pages


def test_pages_add_up_in_both_directions(account):
    assert walk("/e/?limit=3", account, "next") == [[0, 1, 2], [3, 4, 5], [6]]
    assert walk("/e/?limit=3&start=6", account, "previous") == [[6], [3, 4, 5], [0, 1, 2]]
    assert walk("/e/?limit=3&start=4", account, "previous") == [[4, 5, 6], [1, 2, 3], [0]]


def test_pages_add_up_from_the_newest_event(account):
    assert walk("/e/?limit=3&reverse=true", account, "next") == [[6, 5, 4], [3, 2, 1], [0]]
    assert walk("/e/?limit=3&start=0&reverse=true", account, "previous")[:3] == [
        [0],
        [3, 2, 1],
        [6, 5, 4],
    ]


def test_links_are_in_the_header_and_keep_other_parameters(account):
    found = page("/e/?start=3&limit=2&lang=d%C3%A9", account)

    assert found.headers == {
        "Cache-Control": "private, no-cache",
        "Link": '</e/?start=5&limit=2&lang=d%C3%A9>; rel="next", '
        '</e/?start=1&limit=2&lang=d%C3%A9>; rel="prev"',
    }
    assert page("/e/", account).headers == {"Cache-Control": "private, no-cache"}


def test_a_link_cannot_leave_its_brackets(account):
    request = factory.get("/e/", {"limit": "2", "x": '>; rel="next", <http://evil/>'})
    request.path = '/é"<>\r\nX: y/'

    found = events_page(request, accounts, account.log_id)

    link = found.headers["Link"]
    assert re.fullmatch(r'<[!-;=?-~]+>; rel="next"', link)


def test_a_page_is_bounded(account):
    found = events_page(factory.get("/"), accounts, account.log_id, max_limit=4)

    assert len(found.events) == 4
    with pytest.raises(Problem, match="from 1 to 4"):
        events_page(factory.get("/?limit=5"), accounts, account.log_id, max_limit=4)


@pytest.mark.parametrize(
    "query",
    ["start=-1", "start=x", "start=", "start=%D9%A1", "start=" + "9" * 5_000, "start=2147483648",
     "limit=0", "limit=101", "limit=1.5", "reverse=yes"],
)  # fmt: skip
def test_a_malformed_parameter_is_400(account, query):
    with pytest.raises(Problem) as caught:
        page(f"/?{query}", account)

    assert caught.value.status == 400


def test_a_log_without_events_is_404_and_a_page_past_the_end_is_empty(account):
    with pytest.raises(LogNotFound):
        events_page(factory.get("/"), accounts, accounts.new_id())
    assert len(page("/?start=99", account).events) == 0


def test_an_erased_log_is_log_erased():
    state = accounts.create(Opened("ada"))
    erasing.erase("default", state.log_id, by="grace", reason="order 7")
    with pytest.raises(LogErased):
        events_page(factory.get("/"), accounts, state.log_id)


def test_an_event_is_shown_without_metadata_and_keys():
    state = accounts.create(Noted({"a": [1]}), idempotency_key="k", metadata={"user": "7"})

    found = events_page(factory.get("/"), accounts, state.log_id).as_json()

    assert found == {
        "events": [
            {
                "index": 0,
                "type": "account.noted",
                "data": {"note": {"a": [1]}},
                "recorded_at": found["events"][0]["recorded_at"],
            }
        ],
        "next": None,
        "previous": None,
    }


def test_an_old_event_is_shown_as_it_is_today():
    state = Payment.logs.create(Requested(amount=100))
    old = EncodedEvent("payment.approved", 1, '{"amount":100}')
    EventLog.objects.append(state.log_id, [old], expected_version=1)

    found = event_as_json(Payment.logs.load(state.log_id)[1])

    assert found["type"] == "payment.authorized"
    assert found["data"] == {"amount": 100, "approval_code": None}


def test_a_retired_and_a_raw_event_are_shown_as_they_are_stored(scratch_registry):
    retired_event("account.frozen")
    state = accounts.create(Opened("ada"))
    frozen = EncodedEvent("account.frozen", 1, '{"by":"eve"}')
    EventLog.objects.append(state.log_id, [frozen], expected_version=1)

    decoded = event_as_json(accounts.load(state.log_id)[1])
    raw = event_as_json(accounts.load(state.log_id, decode=False)[1])

    assert decoded == raw
    assert (decoded["type"], decoded["data"]) == ("account.frozen", {"by": "eve"})


@pytest.mark.django_db(transaction=True)
def test_a_page_in_async_code(account):
    found: Any = async_to_sync(aevents_page)(factory.get("/?limit=2"), accounts, account.log_id)

    assert [each.index for each in found.events] == [0, 1]
