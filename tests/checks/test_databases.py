"""The system checks of DATABASES, each by its id."""

from __future__ import annotations

import pytest
from django.db import connection

from eventlogs.checks.databases import check_sqlite_transactions, check_time_zones
from tests.checks.messages import found


@pytest.mark.sqlite
@pytest.mark.parametrize(
    ("options", "ids"),
    [
        ({}, ["eventlogs.E004"]),
        ({"transaction_mode": None}, ["eventlogs.E004"]),
        ({"transaction_mode": "DEFERRED"}, ["eventlogs.E004"]),
        ({"transaction_mode": "IMMEDIATE"}, []),
        ({"transaction_mode": "immediate"}, []),
        ({"transaction_mode": "EXCLUSIVE"}, []),
    ],
)
def test_e004_sqlite_transactions_are_not_immediate(monkeypatch, options, ids):
    monkeypatch.setitem(connection.settings_dict, "OPTIONS", options)

    assert found(check_sqlite_transactions) == ids


@pytest.mark.sqlite
def test_a_database_that_holds_no_logs_is_not_checked(monkeypatch, settings):
    class Elsewhere:
        def allow_migrate(self, *args, **kwargs):
            return False

    monkeypatch.setitem(connection.settings_dict, "OPTIONS", {})
    settings.DATABASE_ROUTERS = [Elsewhere()]

    assert found(check_sqlite_transactions) == []


@pytest.mark.parametrize("vendor", ["sqlite", "mysql"])
def test_e040_a_database_has_a_time_zone(monkeypatch, vendor):
    monkeypatch.setattr(connection, "vendor", vendor)
    assert found(check_time_zones) == []

    monkeypatch.setitem(connection.settings_dict, "TIME_ZONE", "Europe/Berlin")

    assert found(check_time_zones) == ["eventlogs.E040"]


@pytest.mark.postgresql
def test_e040_does_not_apply_to_postgresql(monkeypatch):
    monkeypatch.setitem(connection.settings_dict, "TIME_ZONE", "Europe/Berlin")

    assert found(check_time_zones) == []
