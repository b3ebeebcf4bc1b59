from __future__ import annotations

from datetime import UTC, datetime

import pytest

from eventlogs.management import figures
from eventlogs.management.subcommands.stats import number, size
from tests.accounts import Account, Deposited, Opened


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
    assert found["by_day"] == {datetime.now(UTC).date().isoformat(): 21}
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
    ("value", "text"), [(0, "~0"), (999, "~999"), (20_002, "~20,000"), (1_967_210, "~1,970,000")]
)
def test_an_estimate_has_no_more_digits_than_it_is_worth(value, text):
    assert number(value, True) == text
    assert number(value, False) == f"{value:,}"


def test_an_empty_database_has_figures_too(run, run_json, db):
    assert "0 events" in run("stats")
    assert run_json("stats")["logs"] == {}


@pytest.mark.postgresql
def test_sizes_of_tables_and_indexes_are_told(account, run, run_json):
    event = run_json("stats")["tables"]["eventlogs_event"]

    assert event["table_bytes"] > 0
    assert event["indexes"]["eventlogs_event_pkey"] > 0
    assert sum(event["indexes"].values()) == event["index_bytes"]
    assert "eventlogs_event_one_per_log_and_index" in run("stats")


@pytest.mark.postgresql
def test_a_large_table_is_sampled_and_says_so(run, run_json, monkeypatch, db):
    fill(logs=400, events=20)
    monkeypatch.setattr(figures, "SAMPLED_PAGES", 20)

    found = run_json("stats")

    assert found["estimated"] == ["events"]
    assert 0 < found["events_counted"] < 8_000
    assert found["events"] == pytest.approx(8_000, rel=0.9)
    assert "~" in run("stats")
    assert "--exact" in run("stats")


def test_a_large_table_is_counted_in_part_on_other_databases(monkeypatch, db):
    fill(logs=10, events=10)
    monkeypatch.setattr(figures, "NEWEST", 30)

    found = figures._of_others("default", exact=False)

    assert found.estimated == {"events"}
    assert found.events_counted <= 30


def test_exact_counts_everything(run_json, monkeypatch, db):
    fill(logs=50, events=20)
    monkeypatch.setattr(figures, "SAMPLED_PAGES", 1)
    monkeypatch.setattr(figures, "NEWEST", 10)

    found = run_json("stats", "--exact")

    assert found["estimated"] == []
    assert found["events"] == found["events_counted"] == 1_000


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
def test_sizes_are_for_people(bytes_, text):
    assert size(bytes_) == text
