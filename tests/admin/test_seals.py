"""The seal on the page of a log."""

from __future__ import annotations

import html
import re

import pytest
from django.test import Client
from django.urls import reverse

from eventlogs import LogId
from eventlogs.seals.appended import SealLog
from eventlogs.seals.documents import replace
from eventlogs.seals.lookups import SEALS
from eventlogs.seals.running import seal
from eventlogs.utils.times import time_text
from tests.accounts import Account, Deposited, Opened
from tests.admin.test_logs import user
from tests.seals.conftest import owner as owner
from tests.seals.histories import SECRET, events

pytest.importorskip("cryptography")
pytestmark = [pytest.mark.django_db, pytest.mark.feed]


@pytest.fixture
def state(settings):
    settings.EVENTLOGS = {"CHAIN": True, "SEAL_KEY": SECRET}
    return Account.logs.create(Opened(owner="Ada"), Deposited(amount=50))


def shown(log_id: LogId) -> str:
    """Return what the page of a log says of its seal, or the empty text."""
    client = Client()
    client.force_login(user("view_eventlog", "view_event", name=f"user of {log_id}"))
    page = client.get(reverse("admin:eventlogs_eventlog_change", args=[log_id])).content.decode()
    found = re.search(r"<dt>sealed</dt><dd>(.*?)</dd>", page)
    return " ".join(html.unescape(re.sub("<[^>]*>", "", found[1])).split()) if found else ""


def test_the_page_names_the_seal_over_all_events(state):
    made = seal(append=True)

    assert shown(state.log_id) == f"all events, by the seal of {time_text(made.moment)}"


def test_the_first_seal_over_all_events_is_named(state):
    made = seal(append=True)
    seal(append=True)

    assert time_text(made.moment) in shown(state.log_id)


def test_the_page_tells_how_many_events_are_sealed(state):
    seal(append=True)
    Account.logs.append(state, Deposited(amount=1))

    assert shown(state.log_id).startswith("the first 2 events of 3, ")


@pytest.mark.parametrize("has_seals", [False, True])
def test_a_log_under_no_seal_is_not_sealed_yet(state, has_seals):
    if has_seals:
        seal(append=True)
    newer = Account.logs.create(Opened(owner="Bob"))

    assert shown(newer.log_id) == "not yet"


def test_a_log_without_a_chain_has_no_such_line(state, settings):
    settings.EVENTLOGS = {}
    other = Account.logs.create(Opened(owner="Bob"))

    assert shown(other.log_id) == ""


def test_a_log_may_have_had_no_chain_then(state, settings):
    settings.EVENTLOGS = {**settings.EVENTLOGS, "CHAIN": False}
    Account.logs.create(Opened(owner="Bob"))
    seal(append=True)

    assert shown(state.log_id).endswith("(if it had a chain then)")


def test_a_forged_seal_is_shown_as_one(state):
    made = seal(append=True)
    newer = Account.logs.create(Opened(owner="Bob"))
    forged = replace(made, position=newer.position, previous=made.digest)
    SealLog("default").append(forged, version=1)

    assert "its signature is wrong" in shown(newer.log_id)
    assert "its signature is wrong" not in shown(state.log_id)


def test_a_machine_without_keys_shows_seals_too(state, settings):
    seal(append=True)
    settings.EVENTLOGS = {"CHAIN": True}

    assert shown(state.log_id).startswith("all events, ")


def test_the_log_of_seals_has_a_page(state):
    seal(append=True)

    assert shown(SEALS) == "not yet"


def test_a_seal_that_cannot_be_read_is_not_shown(state, owner):
    seal(append=True)
    events().filter(log_id=SEALS.uuid).update(data={"position": 1_000})

    assert shown(state.log_id) == "not yet"
