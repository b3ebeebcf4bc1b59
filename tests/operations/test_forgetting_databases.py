"""Forgetting a person where a project has several databases, and one takes no changes."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import DatabaseError, connection, connections

from eventlogs import LogManager
from eventlogs.models import SubjectKey
from eventlogs.operations import forgetting, receipts
from eventlogs.operations.forgetting import forget
from eventlogs.privacy import memory
from tests.guests import SETTINGS, Guest, Joined
from tests.operations.everywhere import places

ADA, NAME = "member:1", "Countess Lovelace"


@pytest.fixture
def replica(second_database, settings):
    """A database that takes no changes, and stands before "default" in the settings."""
    settings.EVENTLOGS = {**SETTINGS, "CACHE": None}
    memory.clear()
    found = connections.databases
    own = found[second_database]
    if connection.vendor == "sqlite":
        only_read: dict[str, Any] = {"NAME": f"file:{own['NAME']}?mode=ro", "OPTIONS": {}}
    elif connection.vendor == "postgresql":
        options = "-c default_transaction_read_only=on"
        only_read = {"OPTIONS": {**own["OPTIONS"], "options": options}}
    else:
        pytest.skip("no session of MariaDB can be one that takes no changes")
    connections[second_database].close()
    del connections[second_database]
    found[second_database] = {**own, **only_read}
    found["default"] = found.pop("default")  # now it is the last one
    yield second_database
    connections[second_database].close()
    del connections[second_database]
    found[second_database] = own
    memory.clear()


def test_a_replica_is_passed_over(replica):
    log_id = LogManager(Guest).create(Joined(ADA, NAME)).log_id
    assert list(connections)[-1] == "default"

    assert forgetting.databases() == ["default"]
    assert forget(ADA).new_receipts == 1
    assert LogManager(Guest).reduce(log_id).aggregate.name == "erased"


def test_the_database_of_the_logs_is_the_first(second_database):
    connections.databases["default"] = connections.databases.pop("default")

    assert list(connections)[-1] == "default"
    assert forgetting.databases() == ["default", second_database]


def test_an_error_of_one_database_keeps_no_copy_in_another(replica, monkeypatch):
    LogManager(Guest).create(Joined(ADA, NAME))
    monkeypatch.setattr(forgetting, "databases", lambda using: [replica, "default"])

    with pytest.raises(DatabaseError, match=r"read-?only"):
        forget(ADA)

    assert places(NAME) == []
    key_id = SubjectKey.objects.values_list("pk", flat=True).get(subject=ADA)
    [receipt] = LogManager(receipts.Forgetting).load(receipts.log_of(key_id))
    assert len(receipt.event.logs) == 1
