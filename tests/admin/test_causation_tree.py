"""The causation tree of an event in the admin: causes, effects, and the rest of the flow."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from eventlogs import LogState, event_context
from eventlogs.admin import causation_tree
from eventlogs.admin import events as page_of_events
from eventlogs.context import caused_by
from eventlogs.models import Event
from tests.accounts import Account, Deposited, Opened, Parcel, Sent
from tests.admin import test_logs
from tests.admin.test_events import links
from tests.admin.test_logs import EVIL, of, shown
from tests.test_context import TRACE

pytestmark = pytest.mark.django_db
reader, viewer = test_logs.reader, test_logs.viewer  # fixtures

INDEX = """
CREATE INDEX eventlogs_event_by_correlation
ON eventlogs_event ((metadata ->> 'correlation_id'), position)
WHERE metadata ->> 'correlation_id' IS NOT NULL
"""


def id_of(state: LogState) -> str:
    return f"{state.log_id}:{state.version - 1}"


def tree_of(state: LogState) -> str:
    return reverse("admin:eventlogs_event_tree", args=[id_of(state)])


def outline(page: str) -> list[str]:
    """Return the lists of a page as lines, indented by how deep they are."""
    found, level = [], 0
    for tag, request, name, index in re.findall(
        r"<(ul|/ul)>|<h2>Request <bdi><code>([^<]*)|<strong><bdi>([^<]*)</bdi>.*?</code> (\d+)</a>",
        page,
        re.S,
    ):
        level += {"ul": 1, "/ul": -1}.get(tag, 0)
        if request or name:
            found.append(f"{'  ' * level}{request or f'{name} {index}'}".removeprefix("  "))
    return found


def reacted(state: LogState, *events: Any, manager: Any = Account.logs) -> LogState:
    """Append as a reactor does that reacts to the last event of an append."""
    cause = Event.objects.for_log(state.log_id).get(index=state.version - 1)
    with caused_by(id_of(state), cause.metadata):
        made: LogState = manager.create(*events)
    return made


@pytest.fixture
def request_of_ada() -> list[LogState]:
    """Two appends of one request, what reactors did after it, and other events around."""
    Account.logs.create(Opened("before"))
    with event_context(user="ada", request_id="r-1", correlation_id="c-1", traceparent=TRACE):
        first = Account.logs.create(Opened("ada"), Deposited(1))
        second = Parcel.logs.create(Sent("ada"))
    Account.logs.create(Opened("between"))
    third = reacted(first, Opened("eve"))
    fourth = reacted(third, Sent("eve"), manager=Parcel.logs)
    with event_context(request_id="r-2", correlation_id="c-1"):
        fifth = Account.logs.append(third, Deposited(2))
    Account.logs.create(Opened("after"))
    return [first, second, third, fourth, fifth]


OUTLINE = [
    "r-1",
    "account.opened 0",
    "account.deposited 1",
    "  account.opened 0",
    "    parcel.sent 0",
    "parcel.sent 0",
    "r-2",
    "account.deposited 1",
]


@pytest.mark.parametrize("number", range(5))
def test_the_tree_is_the_same_from_each_of_its_events(reader, request_of_ada, number):
    page = shown(reader, tree_of(request_of_ada[number]))

    assert outline(page) == OUTLINE
    assert len(re.findall('class="el-node el-selected" aria-current="true"', page)) == 1
    assert TRACE in page
    assert "by <bdi>ada</bdi>" in re.sub(r"\s+", " ", page)
    assert links(page) == {}


@pytest.mark.postgresql
@pytest.mark.parametrize("number", range(5))
def test_with_the_documented_index_no_windows_are_searched(
    reader, request_of_ada, number, monkeypatch
):
    with connection.cursor() as cursor:
        cursor.execute(INDEX)
    monkeypatch.setattr(page_of_events, "SPAN", 1)
    monkeypatch.setattr(page_of_events, "SECONDS", 0.0)

    assert outline(shown(reader, tree_of(request_of_ada[number]))) == OUTLINE


def test_the_first_event_of_a_flow_is_the_top_of_its_tree(reader):
    cause = Account.logs.create(Opened("ada"))
    effect = reacted(cause, Opened("eve"))
    last = reacted(effect, Opened("bob"))

    for each in (cause, effect, last):
        assert outline(shown(reader, tree_of(each))) == [
            "account.opened 0",
            "  account.opened 0",
            "    account.opened 0",
        ]


def test_the_search_for_a_distant_event_has_a_time_limit_and_can_be_continued(reader, monkeypatch):
    monkeypatch.setattr(page_of_events, "SPAN", 3)
    monkeypatch.setattr(page_of_events, "SECONDS", 0.0)
    cause = Account.logs.create(Opened("ada"))
    for _ in range(9):
        Account.logs.create(Opened("between"))
    effect = reacted(cause, Opened("eve"))
    for _ in range(9):
        Account.logs.create(Opened("after"))

    # From the effect, the cause is found by its id.
    page = shown(reader, tree_of(effect))
    assert outline(page) == ["account.opened 0", "  account.opened 0"]
    # From the cause, the search goes on where it has ended.
    page = shown(reader, tree_of(cause))
    assert outline(page) == ["account.opened 0"]
    assert "these events match so far." in page
    address, pages = links(page)["Continue the search"], 1
    while len(outline(page)) == 1 and pages < 9:
        page, pages = shown(reader, tree_of(cause) + address), pages + 1
        address = links(page).get("Continue the search", "")
    assert outline(page) == ["account.opened 0", "  account.opened 0"]


def test_a_flow_of_many_events_has_pages(reader, monkeypatch):
    monkeypatch.setattr(causation_tree, "EVENTS", 4)
    with event_context(correlation_id="c"):
        states = [Account.logs.create(Opened(f"{n}")) for n in range(9)]

    page = shown(reader, tree_of(states[4]))

    assert len(outline(page)) == 4
    older = shown(reader, tree_of(states[4]) + links(page)["Older"])
    assert id_of(states[1]) in older.replace("</code> ", ":")


def test_statements_do_not_grow_with_the_events(reader, request_of_ada):
    def count(state: LogState) -> int:
        with CaptureQueriesContext(connection) as queries:
            shown(reader, tree_of(state))
        return len(queries)

    before = count(request_of_ada[0])
    for _ in range(30):
        reacted(request_of_ada[0], Opened("eve"))

    assert count(request_of_ada[0]) == before


def test_wrong_metadata_do_no_harm(reader):
    state = Account.logs.create(Opened("ada"), metadata={"correlation_id": 7})
    log_id = state.log_id
    ids = [f"{log_id}:{index}" for index in (2, 1, 3, 99)]
    causes: list[Any] = [*ids, EVIL, [1], {}, None]
    for cause in causes:
        metadata = {
            "correlation_id": 7,
            "causation_id": cause,
            "request_id": EVIL,
            "traceparent": {EVIL: EVIL},
            "user": EVIL,
        }
        state = Account.logs.append(state, Deposited(1), metadata=metadata)

    for index in range(state.version):
        page = shown(reader, reverse("admin:eventlogs_event_tree", args=[f"{log_id}:{index}"]))

        assert sorted(each.split()[-1] for each in outline(page) if "account." in each) == list(
            "012345678"
        )
        assert "<script" not in page


def test_a_long_chain_of_effects_has_a_limited_depth(reader):
    state = Account.logs.create(Opened("ada"))
    for _ in range(40):
        state = reacted(state, Opened("eve"))

    page = shown(reader, tree_of(state))

    assert len(outline(page)) == 41
    assert max(each.count("  ") for each in outline(page)) == causation_tree.LEVELS - 1
    assert "caused by" in page
    # Also where the causes come after their effects.
    state = Account.logs.create(Opened("ada"), *[Deposited(1)] * 1)
    metadata: dict[str, Any] = {"correlation_id": "c"}
    for index in range(2, 60):
        metadata["causation_id"] = f"{state.log_id}:{index + 1}"
        state = Account.logs.append(state, Deposited(1), metadata=metadata)
    page = shown(reader, tree_of(state))
    assert len(outline(page)) == 58


def test_the_page_of_a_log_links_to_the_trees_of_its_events(reader, request_of_ada):
    [first, *_] = request_of_ada

    page = shown(reader, of(first.log_id, "?event=0"))

    address = reverse("admin:eventlogs_event_tree", args=[f"{first.log_id}:0"])
    assert f'<a href="{address}">Causation tree of event 0</a>' in page
    assert f'<a href="{tree_of(first)}">causation tree</a>' in page


def test_without_the_permission_there_is_no_tree(viewer, request_of_ada):
    [first, *_] = request_of_ada

    assert viewer.get(tree_of(first)).status_code == 403
    assert "ausation tree" not in shown(viewer, of(first.log_id))


@pytest.mark.parametrize("record", ["nonsense", "account_01h455vb4pex5vsknk084sn02q:0", "7"])
def test_a_missing_event_is_404(reader, record):
    address = reverse("admin:eventlogs_event_tree", args=[record])

    assert reader.get(address).status_code == 404
