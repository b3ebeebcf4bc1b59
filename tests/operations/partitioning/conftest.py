"""A database whose events are replaced."""

from __future__ import annotations

import pytest

from eventlogs.operations import partitioning
from eventlogs.operations.partitioning import copying, sessions
from tests.operations.partitioning.logs import fill


@pytest.fixture
def alias(second_database, monkeypatch):
    """A database with some logs, of which each transaction copies few events."""
    partitioning.partition(0, using=second_database)
    monkeypatch.setattr(copying, "BATCH", 5)
    monkeypatch.setattr(copying, "LAST", 5)
    monkeypatch.setattr(sessions, "PAUSE", 0.05)
    fill(second_database)
    return second_database
