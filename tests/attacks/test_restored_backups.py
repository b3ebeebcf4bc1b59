"""
An operator restores last week's backup.

That forgotten people stay forgotten if the keys are elsewhere is in
tests/reliability/test_restored_backups.py; here, the keys are in the backup.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eventlogs import LogErased, LogManager, SealUnavailable
from eventlogs.models import ErasedLog
from eventlogs.operations.chaining import ChainVerifier
from eventlogs.operations.erasure import erase
from eventlogs.operations.triggers import TriggerVerifier
from eventlogs.operations.verification import Scope, verify
from eventlogs.privacy import DatabaseKeyStore, forget, memory
from eventlogs.seals import Seal, attest, make_seal
from eventlogs.seals.attesting import DIFFERS, PROVED
from eventlogs.seals.keys import Trusted
from eventlogs.seals.sources import DatabaseSource
from tests.accounts import Account, Deposited, Opened
from tests.guests import SETTINGS, Guest, Joined
from tests.reliability.test_restored_backups import dump, needs_programs, restore
from tests.seals.histories import SECRET

pytestmark = [pytest.mark.postgresql, needs_programs]

ADA, NAME = "member:1", "Countess Lovelace"
OPTIONS: dict[str, str] = {}


class KeysBesideEvents(DatabaseKeyStore):
    """Keys in the database of the events."""

    def __init__(self) -> None:
        super().__init__(using=OPTIONS["using"])


@pytest.fixture
def database(second_database: str, settings: Any) -> Iterator[str]:
    OPTIONS["using"] = second_database
    settings.EVENTLOGS = {
        **SETTINGS,
        "CHAIN": True,
        "SEAL_KEY": SECRET,
        "KEY_STORE": {"BACKEND": f"{__name__}.KeysBesideEvents"},
    }
    memory.clear()
    yield second_database
    memory.clear()


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    return tmp_path / "backup.sql"


def seen(database: str) -> set[str]:
    verifiers = (TriggerVerifier(), ChainVerifier())
    return {each.check for each in verify(Scope(database), verifiers)}


def verdicts(database: str, *seals: Seal) -> list[str]:
    found = attest(seals, DatabaseSource(database), Trusted())
    return [each.state for each in found.verdicts]


def test_an_older_backup_is_whole_and_a_seal_shows_that_it_is_older(database, backup):
    accounts = LogManager(Account, using=database)
    state = accounts.create(Opened(owner="Ann"), Deposited(amount=5))
    before = make_seal(using=database)
    dump(database, backup)
    accounts.append(state, Deposited(amount=7))
    after = make_seal(using=database, previous=before)

    restore(database, backup)

    assert seen(database) == set()
    assert verdicts(database, before, after) == [PROVED, DIFFERS]
    with pytest.raises(SealUnavailable, match="an older backup was restored"):
        make_seal(using=database, previous=after)
    # History goes on: the place of the lost event is taken by another one.
    accounts.append(state, Deposited(amount=70))
    assert seen(database) == set()
    assert verdicts(database, before, after) == [PROVED, DIFFERS]


def test_an_erased_log_comes_back_and_can_be_erased_again(database, backup):
    accounts = LogManager(Account, using=database)
    accounts.create(Opened(owner="Bob"))
    log_id = accounts.create(Opened(owner="Ann")).log_id
    dump(database, backup)
    erase(log_id, reason="a test", by="grace", using=database)

    restore(database, backup)

    assert accounts.reduce(log_id).aggregate.owner == "Ann"
    assert not ErasedLog.objects.using(database).exists()
    assert seen(database) == set()
    erase(log_id, reason="again, after a restore", by="grace", using=database)
    with pytest.raises(LogErased):
        accounts.reduce(log_id)


def test_a_forgotten_person_comes_back_with_keys_that_are_in_the_backup(database, backup):
    guests = LogManager(Guest, using=database)
    log_id = guests.create(Joined(ADA, NAME)).log_id
    dump(database, backup)
    forget(ADA, by="grace")
    assert guests.load(log_id)[0].event.name == "erased"

    restore(database, backup)
    memory.clear()

    assert guests.load(log_id)[0].event.name == NAME
    assert seen(database) == set()
    forget(ADA, by="grace")
    assert guests.load(log_id)[0].event.name == "erased"
