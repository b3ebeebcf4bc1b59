"""Sealed histories, and an owner of the tables who changes them."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
from django.db import connection

from eventlogs import LogState
from eventlogs.seals import Attestation, Seal, attest
from eventlogs.seals.keys import Trusted
from eventlogs.seals.sources import DatabaseSource
from tests.accounts import Account, Deposited, Opened, Withdrawn
from tests.seals.histories import PUBLIC, SECRET

TRIGGERS = [
    ("eventlogs_event", "eventlogs_event_refuse_change"),
    ("eventlogs_eventlog", "eventlogs_eventlog_keep_chain"),
]

collect_ignore_glob = [] if find_spec("cryptography") else ["test_*.py"]


@pytest.fixture
def sealing(settings: Any) -> None:
    """New logs are chained, and the project has a key."""
    settings.EVENTLOGS = {"CHAIN": True, "SEAL_KEY": SECRET}


@pytest.fixture
def accounts_of_three(sealing: None, db: None) -> list[LogState]:
    """Three accounts of 2, 3 and 2 events; the log of the second one ends last."""
    states = [Account.logs.create(Opened(owner=name), Deposited(amount=50)) for name in "ABC"]
    states[1] = Account.logs.append(states[1], Withdrawn(amount=5))
    return states


@pytest.fixture
def owner(db: None) -> None:
    """Disable the triggers that keep events and heads; the test's transaction is rolled back."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            for table, trigger in TRIGGERS:
                cursor.execute(f"ALTER TABLE {table} DISABLE TRIGGER {trigger}")


@pytest.fixture
def attested() -> Callable[..., Attestation]:
    """A function that attests seals on this database."""

    def run(*seals: Seal, **options: Any) -> Attestation:
        return attest(seals, DatabaseSource("default"), Trusted([PUBLIC]), **options)

    return run
