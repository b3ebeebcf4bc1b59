"""A recent answer of the health check, or none in time."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest
from django.db import connections
from prometheus_client import CollectorRegistry, generate_latest

from eventlogs.contrib.prometheus.collector import HealthCollector
from eventlogs.operations.recent_health import RecentHealth
from tests.processes import exit_of_fork


def break_down(alias: str, **options: object) -> None:
    """Let a database not answer: its server is gone."""
    connections[alias].close()
    place: dict[str, object] = {"NAME": "/dev/null/db.sqlite3"}
    if connections[alias].vendor != "sqlite":
        place = {"HOST": "127.0.0.1", "PORT": "1"}
    connections.databases[alias] |= {**place, **options}
    del connections[alias]


@pytest.fixture
def hanging() -> Iterator[dict[str, object]]:
    """The place of a server that accepts connections and never says anything."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield {
            "PORT": str(server.getsockname()[1]),
            "OPTIONS": {"connect_timeout": 4},  # seconds
        }


def test_an_answer_is_kept_for_a_while(second_database):
    recent = RecentHealth(using=second_database, max_age=60.0)
    first = recent.get()
    break_down(second_database)

    assert first.is_up
    assert recent.get() is first


def test_an_answer_of_the_past_does_not_hide_that_the_database_is_gone(second_database):
    recent = RecentHealth(using=second_database, max_age=0.0)
    assert recent.get().is_up
    break_down(second_database)

    seen = recent.get()

    assert not seen.is_up
    assert [each.code for each in seen.health.findings if each.must_act] == ["database"]


def test_a_database_that_is_gone_has_no_gauges(second_database):
    break_down(second_database)
    registry = CollectorRegistry(auto_describe=True)
    registry.register(HealthCollector(using=second_database))

    text = generate_latest(registry).decode()

    assert f'eventlogs_up{{database="{second_database}"}} 0.0' in text
    assert f'code="database",database="{second_database}",level="act"}} 1.0' in text
    assert "position" not in text
    assert "projection" not in text


@pytest.mark.postgresql
def test_a_server_that_hangs_is_waited_for_as_long_as_agreed(second_database, hanging):
    recent = RecentHealth(using=second_database, max_age=0.0, patience=0.2)
    break_down(second_database, **hanging)
    begun = time.monotonic()

    answers = [recent.get() for _ in range(3)]

    assert answers == [None] * 3
    assert time.monotonic() - begun < 2
    registry = CollectorRegistry(auto_describe=True)
    registry.register(HealthCollector(using=second_database, patience=0.2))
    assert generate_latest(registry).decode().splitlines()[2:] == [
        f'eventlogs_up{{database="{second_database}"}} 0.0'
    ]


@pytest.mark.postgresql
def test_a_look_that_does_not_end_is_replaced(second_database, hanging, monkeypatch):
    settings = dict(connections.databases[second_database])
    recent = RecentHealth(using=second_database, max_age=0.0, patience=0.2)
    break_down(second_database, **hanging)
    assert recent.get() is None
    connections.databases[second_database] = settings

    assert recent.get() is None  # it waits for the look that is under way
    monkeypatch.setattr("eventlogs.operations.recent_health.LONGEST_LOOK", 0.0)
    vars(recent)["_patience"] = 20.0

    assert recent.get().is_up


@pytest.mark.postgresql
def test_a_fork_in_the_middle_of_a_look_looks_for_itself(second_database, hanging):
    settings = dict(connections.databases[second_database])
    recent = RecentHealth(using=second_database, patience=5.0)
    break_down(second_database, **hanging)
    impatient = RecentHealth(using=second_database, patience=0.1)
    assert impatient.get() is None
    assert recent.using == second_database

    def look() -> None:
        connections.databases[second_database] = settings
        vars(impatient)["_patience"] = 5.0
        assert impatient.get().is_up

    assert exit_of_fork(look) == 0
