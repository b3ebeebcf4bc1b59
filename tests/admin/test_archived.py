"""Archived logs in the admin: found, listed, shown from their archives, and missing."""

from __future__ import annotations

import re

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from eventlogs import LogId, LogManager
from eventlogs.models import ArchivedLog, ArchiveFile, Event
from eventlogs.operations import archiving
from tests.accounts import Account, Deposited, Opened, Withdrawn
from tests.operations.archiving.conftest import use

pytestmark = pytest.mark.django_db(transaction=True)
LIST = reverse("admin:eventlogs_eventlog_changelist")

accounts = LogManager(Account)


@pytest.fixture
def directory(tmp_path, settings):
    use(settings, tmp_path / "archives")
    return tmp_path / "archives"


@pytest.fixture
def closed(directory) -> LogId:
    """An archived account of three events, beside an open one that has caused its last event."""
    still_open = accounts.create(Opened("Mary"), Deposited(1))
    state = accounts.create(Opened("Ada"), Deposited(50), idempotency_key="open-1")
    accounts.append(state, Withdrawn(50), metadata={"causation_id": f"{still_open.log_id}:1"})
    archiving.archive(by="grace")
    return state.log_id


def page(log_id) -> str:
    return reverse("admin:eventlogs_eventlog_change", args=[log_id])


def test_the_page_of_an_archived_log_shows_its_timeline(admin_client, closed):
    answer = admin_client.get(page(closed), {"event": "1"})
    text = re.sub(r"\s+", " ", re.sub("<[^>]*>", "", answer.content.decode()))

    assert answer.status_code == 200
    assert [each.record.index for each in answer.context["timeline"].steps] == [0, 1, 2]
    assert answer.context["timeline"].state["balance"] == 50
    assert re.search(r"Archived on .* by grace\. This log was closed", text)
    assert "takes no more events until it is brought back" in text
    assert "Show in all events" not in text


def test_an_archived_log_is_exported(admin_client, closed):
    address = reverse("admin:eventlogs_eventlog_export", args=[closed])

    lines = b"".join(admin_client.get(address).streaming_content).splitlines()

    assert len(lines) == 5
    assert b'"end":true,"events":3' in lines[-1].replace(b" ", b"")


@pytest.mark.parametrize("how", ["id", "uuid", "beginning", "end", "key"])
def test_the_search_finds_an_archived_log(admin_client, closed, how):
    asked = {
        "id": str(closed),
        "uuid": str(closed.uuid).upper(),
        "beginning": str(closed)[:-2],
        "end": str(closed)[-8:],
        "key": "open-1",
    }[how]

    answer = admin_client.get(LIST, {"q": asked}, follow=True)

    # A beginning may be that of logs in the tables, too: then the list links to archived ones.
    if answer.context["also"]:
        answer = admin_client.get(LIST + answer.context["also"])
    assert [each["log_id"] for each in answer.context["logs"]] == [closed]


def test_the_id_of_an_event_leads_to_it(admin_client, closed):
    answer = admin_client.get(reverse("admin:eventlogs_event_changelist") + f"{closed}:1/")

    assert answer.status_code == 302
    assert answer["Location"] == f"{page(closed)}?event=1#event-1"


def test_the_tree_of_an_archived_event_has_its_cause(admin_client, closed):
    answer = admin_client.get(reverse("admin:eventlogs_event_tree", args=[f"{closed}:2"]))

    assert answer.status_code == 200
    [request] = answer.context["requests"]
    assert [each["event"].type for each in request["nodes"]] == ["account.deposited"]
    assert "account.withdrawn" in answer.content.decode()


def test_a_position_without_an_event_says_that_it_may_be_archived(admin_client, closed, settings):
    settings.DEBUG = True
    address = reverse("admin:eventlogs_event_changelist") + "999999/"

    answer = admin_client.get(address)

    assert answer.status_code == 404
    assert "or its log is archived" in answer.content.decode()


def test_archived_logs_are_listed_by_keys(admin_client, directory, monkeypatch):
    made = [accounts.create(Opened("Ada")).log_id for _ in range(5)]
    archiving.archive(by="grace")
    monkeypatch.setattr("eventlogs.admin.logs.LOGS", 2)
    found, address = [], "?archived=1&type=account"

    while address is not None:
        with CaptureQueriesContext(
            connection,
        ) as queries:
            answer = admin_client.get(LIST + address)
        found.append([each["log_id"] for each in answer.context["logs"]])
        address = answer.context["page"].older
        of_logs = [each["sql"] for each in queries if "archivedlog" in each["sql"]]
        assert len(of_logs) == 1
        assert "ORDER BY" in of_logs[0]
        assert "COUNT(" not in of_logs[0]
        assert len(queries) <= 3

    assert found == [made[:2:-1], made[2:0:-1], made[:1]]
    last = admin_client.get(LIST + "?archived=1&end=1")
    assert [each["log_id"] for each in last.context["logs"]] == made[1::-1]


def test_days_are_no_filter_of_archived_logs(admin_client, closed):
    answer = admin_client.get(LIST, {"archived": "1", "from": "2000-01-01"})

    assert answer.context["problems"] == ["Archived logs are not searched by day."]
    assert len(answer.context["logs"]) == 1


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_a_file_that_cannot_be_used_is_a_notice(admin_client, closed, directory, damage):
    name = ArchiveFile.objects.get().name
    file = directory / name
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-100])

    for address in (page(closed), reverse("admin:eventlogs_eventlog_export", args=[closed])):
        answer = admin_client.get(address)

        assert answer.status_code == 503
        assert "Its archive cannot be used now:" in answer.content.decode()
        assert name in answer.content.decode()
    assert admin_client.get(LIST, {"archived": "1"}).status_code == 200
    tree = reverse("admin:eventlogs_event_tree", args=[f"{closed}:2"])
    assert admin_client.get(tree).status_code == 404


def test_a_log_that_is_brought_back_is_shown_as_before(admin_client, closed):
    archiving.restore(closed)

    answer = admin_client.get(page(closed))

    assert answer.context["archived"] is None
    assert Event.objects.filter(log_id=closed.uuid).count() == 3
    assert not ArchivedLog.objects.exists()


def test_without_a_storage_of_archives_the_list_does_not_offer_them(admin_client, settings):
    settings.EVENTLOGS = {**settings.EVENTLOGS, "ARCHIVE_STORAGE": None}
    text = admin_client.get(LIST).content.decode()

    assert 'name="archived"' not in text
