from __future__ import annotations

import re
from collections import Counter

import pytest
from django.core.cache import caches
from django.db import connection
from django.test.utils import CaptureQueriesContext

from eventlogs import LogManager
from eventlogs.management.subcommands.stats import number, size
from eventlogs.models import Event
from eventlogs.operations import cache_figures as caching
from eventlogs.operations import figures
from tests.accounts import Account, Deposited, Opened
from tests.admin.test_projection_status import status_of

FROM_OURS = re.compile(r" FROM [\"`]eventlogs_")


def fill(logs: int, events: int) -> None:
    for _ in range(logs):
        Account.logs.create(Opened(owner="Ada"), *[Deposited(amount=1)] * (events - 1))


def test_a_small_database_is_counted_exactly(account, run_json):
    fill(logs=9, events=2)

    found = run_json("stats")

    assert found["estimated"] == []
    assert found["events"] == 3 + 9 * 2
    assert found["by_type"] == {
        "account.opened": 10,
        "account.deposited": 10,
        "account.withdrawn": 1,
    }
    times = Event.objects.values_list(
        "recorded_at", flat=True
    )  # perhaps on either side of midnight
    assert found["by_day"] == Counter(each.date().isoformat() for each in times)
    assert found["logs"] == {
        "account": {
            "logs": 10,
            "events": 21,
            "length": {"p50": 2, "p90": 2, "p99": 3, "longest": 3},
        }
    }
    assert found["tables"]["eventlogs_event"]["rows"] == 21
    assert found["tables"]["eventlogs_idempotencykey"]["rows"] == 1


@pytest.mark.parametrize(
    ("rows", "mark", "text"),
    [
        (20_002, "", "20,002"),
        (20_002, "~", "~20,000"),
        (1_967_210, "~", "~1,970,000"),
        (100_000, "≥", "≥100,000"),
    ],
)
def test_an_estimate_is_rounded(rows, mark, text):
    assert number(figures.TableFigures("eventlogs_event", 1, rows, mark)) == text


def test_the_lag_of_a_projection_shows_if_it_is_a_lower_bound():
    assert status_of(positions_behind=None).behind == "?"
    assert status_of(positions_behind=0, at_least=True).behind == "?"
    assert status_of(positions_behind=1_200).behind == "1,200"
    assert status_of(positions_behind=10_000, at_least=True).behind == "10,000+"


def test_an_empty_database_has_figures_too(run, run_json, db):
    assert "0 events" in run("stats")
    assert run_json("stats")["logs"] == {}


@pytest.mark.one_table
@pytest.mark.postgresql
def test_sizes_of_tables_and_indexes_are_reported(account, run, run_json):
    event = run_json("stats")["tables"]["eventlogs_event"]

    assert event["table_bytes"] > 0
    assert event["indexes"]["eventlogs_event_pkey"] > 0
    assert sum(event["indexes"].values()) == event["index_bytes"]
    assert "eventlogs_event_one_per_log_and_index" in run("stats")


def test_only_the_newest_rows_of_large_tables_are_read(run, run_json, monkeypatch, db):
    Account.logs.create(Opened(owner="Ada"))
    fill(logs=5, events=10)
    monkeypatch.setattr(figures, "NEWEST", 30)

    found = run_json("stats")

    assert found["estimated"] == ["events"]
    assert found["events_counted"] == 30
    assert found["events"] >= 30
    assert found["by_type"] == {"account.deposited": 27, "account.opened": 3}
    assert sum(found["by_day"].values()) == 30
    assert found["logs"]["account"]["length"] == {"p50": 10, "p90": 10, "p99": 10, "longest": 10}
    shown = run("stats")
    assert re.match("[~≥][0-9,]+ events; of the newest 30\n", shown)
    assert "--exact counts" in shown


@pytest.mark.postgresql
@pytest.mark.django_db(transaction=True)
def test_all_rows_of_a_large_table_are_estimated_by_the_planner(run, run_json, monkeypatch):
    fill(logs=40, events=20)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE eventlogs_event")
    monkeypatch.setattr(figures, "NEWEST", 100)

    assert run_json("stats")["events"] == 800
    assert run("stats").startswith("~800 events; of the newest 100\n")


def test_without_an_estimate_the_rows_read_are_a_lower_bound(run, monkeypatch, db):
    fill(logs=5, events=10)
    monkeypatch.setattr(figures, "NEWEST", 30)
    monkeypatch.setattr(figures, "_add_sizes", lambda *_: None)

    assert run("stats").startswith("≥30 events; of the newest 30\n")


def test_without_exact_a_range_of_the_primary_key_is_read(db, monkeypatch):
    for each in range(5):
        Account.logs.create(Opened(owner="Ada"), idempotency_key=f"key {each}")
    monkeypatch.setattr(figures, "NEWEST", 4)

    with CaptureQueriesContext(connection) as captured:
        figures.figures("default", exact=False)

    of_tables = [each["sql"] for each in captured if re.search(FROM_OURS, each["sql"])]
    assert len(of_tables) == 6
    for statement in of_tables:
        assert "LIMIT 1 OFFSET 3" in statement or " >= " in statement


def test_exact_reads_everything(run_json, monkeypatch, db):
    fill(logs=50, events=20)
    monkeypatch.setattr(figures, "NEWEST", 10)

    found = run_json("stats", "--exact")

    assert found["estimated"] == []
    assert found["events"] == found["events_counted"] == 1_000
    assert found["logs"]["account"]["logs"] == 50


@pytest.mark.parametrize(
    ("bytes_", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (3 * 2**19, "1.5 MiB"),
        (2**50, "1024.0 TiB"),
    ],
)
def test_sizes_have_readable_units(bytes_, text):
    assert size(bytes_) == text


def test_a_cache_in_the_memory_of_each_process_is_named(account, run, run_json):
    found = run_json("stats")["cache"]

    assert (found["alias"], found["is_shared"], found["aggregates"]) == ("default", False, [])
    shown = run("stats")
    assert "LocMemCache is in the memory of each process" in shown
    assert "newest logs" not in shown


def test_without_a_cache_the_cache_is_not_reported(account, run, run_json, settings):
    settings.EVENTLOGS = {"CACHE": None}

    assert run_json("stats")["cache"]["alias"] is None
    assert "Cache" not in run("stats")


@pytest.mark.parametrize(
    "setting", [{"CACHE": "nowhere"}, {"CACHING_POLICY": "no.such.Policy"}, {"CACHING_POLICY": 7}]
)
def test_a_misconfigured_cache_is_reported_and_the_rest_is_counted(
    account, run, run_json, settings, setting
):
    settings.EVENTLOGS = setting

    assert run_json("stats")["cache"]["policy"] == "misconfigured"
    assert "It cannot be reached" in run("stats")


@pytest.fixture
def shared(settings):
    settings.EVENTLOGS = {"CACHE": "redis"}
    yield
    caches["redis"].clear()


def of_accounts(found):
    [caching] = [each for each in found["aggregates"] if each["aggregate"].endswith("Account")]
    return {name: caching[name] for name in ("logs", "current", "behind", "absent")}


@pytest.mark.redis
def test_the_cache_is_compared_with_the_newest_logs(shared, run, run_json, transactional_db):
    logs = LogManager(Account, using="default", refresher="eventlogs.refreshers.ImmediateRefresher")
    current, behind, _ = (logs.create(Opened("Ada"), Deposited(1)).log_id for _ in range(3))
    for log_id in (current, behind):
        logs.reduce(log_id)
    logs.append(behind, Deposited(1), expected_version=2)

    found = run_json("stats")["cache"]
    assert of_accounts(found) == {"logs": 3, "current": 1, "behind": 1, "absent": 1}
    assert re.search(r"accounts\.Account +3 +33% +33% +33% +\d+ B", run("stats"))


@pytest.mark.redis
def test_only_the_newest_logs_are_compared(shared, run_json, transactional_db, monkeypatch):
    fill(logs=9, events=2)
    monkeypatch.setattr(caching, "LOGS", 4)
    assert of_accounts(run_json("stats")["cache"])["logs"] == 4
    monkeypatch.setattr(caching, "NEWEST", 2)
    assert of_accounts(run_json("stats")["cache"])["logs"] == 1


@pytest.mark.redis
def test_an_unreachable_cache_is_reported(account, run, run_json, settings):
    away = {**settings.CACHES["redis"], "LOCATION": "redis://127.0.0.1:1/0"}
    settings.CACHES = {**settings.CACHES, "away": away}
    settings.EVENTLOGS = {"CACHE": "away"}

    assert run_json("stats")["cache"]["is_reachable"] is False
    assert "It cannot be reached" in run("stats")
