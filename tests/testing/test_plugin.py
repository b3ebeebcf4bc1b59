"""The plugin for pytest: light where it is not used, and fixtures where it is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from eventlogs.testing import given
from tests.accounts import Account, Deposited, Opened
from tests.processes import ROOT, output_of

MONDAY = datetime(2026, 3, 2, 9, tzinfo=UTC)


def test_without_django_it_imports_nothing_heavy(tmp_path: Path):
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    (tmp_path / "test_nothing.py").write_text(
        "import sys\n"
        "def test_nothing():\n"
        "    loaded = {name.split('.')[0] for name in sys.modules}\n"
        "    assert 'eventlogs' in loaded\n"
        "    assert not loaded & {'django', 'msgspec', 'hypothesis', 'psycopg'}\n"
    )

    printed = output_of(
        *("-m", "pytest", "-p", "eventlogs.testing.plugin", "-p", "no:cacheprovider"),
        *("-c", str(tmp_path / "pytest.ini"), "--rootdir", str(tmp_path), str(tmp_path)),
        environ={
            "DJANGO_SETTINGS_MODULE": None,
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTEST_ADDOPTS": None,
            "PYTHONPATH": str(ROOT),
        },
    )

    assert "1 passed" in printed


def test_code_that_uses_the_logs_of_a_class_needs_no_database(memory_logs):
    accounts = memory_logs(Account)

    state = Account.logs.create(Opened("ada"), Deposited(5))

    assert accounts is Account.logs
    assert accounts.reduce(state.log_id).aggregate.balance == 5


def test_logs_in_memory_end_with_the_test():
    assert "MemoryStore" not in repr(vars(Account.logs))


@pytest.mark.django_db
def test_the_clock_stands_still_until_the_test_ends(freeze_recorded_at):
    clock = freeze_recorded_at(MONDAY)
    state = Account.logs.create(Opened("ada"))
    clock.forward(timedelta(days=1))
    state = Account.logs.append(state, Deposited(1))
    freeze_recorded_at(MONDAY + timedelta(days=2))
    Account.logs.append(state, Deposited(1))

    days = [record.recorded_at.day for record in Account.logs.stream(state.log_id)]
    assert days == [2, 3, 4]


def test_the_clock_runs_again_after_it():
    assert given(Account, Opened("ada")).records[0].recorded_at > MONDAY


@pytest.mark.feed
@pytest.mark.usefixtures("tables", "declared")
def test_projections_catch_up(catch_up_projections):
    Account.logs.create(Opened("ada"))

    assert catch_up_projections()["balances"] == 1
