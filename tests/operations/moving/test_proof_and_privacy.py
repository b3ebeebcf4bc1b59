"""Seals, and personal data, of logs that are moved."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from eventlogs import ANY, LogManager
from eventlogs.exceptions import CannotMove, SealUnavailable
from eventlogs.operations import moving
from eventlogs.operations.forgetting import forget
from eventlogs.operations.moving import steps
from eventlogs.privacy import memory
from eventlogs.seals import attest, make_seal
from eventlogs.seals.attesting import PROVED
from eventlogs.seals.keys import Trusted
from eventlogs.seals.leaves import Counts, leaves_at
from eventlogs.seals.sources import DatabaseSource
from tests.accounts import Deposited, Opened
from tests.guests import SETTINGS, Guest, Joined
from tests.operations.moving.logs import (
    account,
    accounts,
    at,
    is_live,
    marks,
    moved,
    subjects_in,
)
from tests.people import Admitted, Patient
from tests.projections.crashes import after, killed_in
from tests.seals.histories import PUBLIC, SECRET

NAME = "Countess Lovelace"


@pytest.fixture
def personal(settings: Any) -> Iterator[None]:
    """Keys of persons, without a cache."""
    settings.EVENTLOGS = {**SETTINGS, "CACHE": None}
    memory.clear()
    yield
    memory.clear()


def test_a_person_is_forgotten_in_the_new_database(shards, personal):
    first, second = shards.aliases
    patients = LogManager(Patient)
    log_id = next(each for each in iter(patients.new_id, None) if shards.of(each) == first)
    patients.create(Admitted(1, NAME), log_id=log_id)

    moved(log_id, shards)

    assert (subjects_in(log_id, first), subjects_in(log_id, second)) == (0, 1)
    assert patients.reduce(log_id).aggregate.name == NAME
    forget("patient:1")
    assert patients.reduce(log_id).aggregate.name == "erased"


def test_a_log_with_a_unique_value_stays(shards, personal):
    first, second = shards.aliases
    log_id = (
        LogManager(Guest, using=first)
        .create(Joined("member:1", NAME, email="ada@example.com"))
        .log_id
    )

    with pytest.raises(CannotMove) as caught:
        moved(log_id, shards)

    assert caught.value.reason == "unique"
    assert (is_live(log_id, first), marks(log_id, second)) == (True, 0)


@pytest.mark.feed
def test_seals_of_both_databases_are_proved(shards, settings, monkeypatch):
    pytest.importorskip("cryptography")
    settings.EVENTLOGS = {"CHAIN": True, "SEAL_KEY": SECRET}
    first, second = shards.aliases
    log_id, _ = account(shards), account(shards, events=1)
    at(second).create(Opened("bob"), log_id=shards.new_id(second))
    seals = {alias: [make_seal(using=alias)] for alias in shards.aliases}

    with monkeypatch.context() as dying:
        after(dying, steps, "leave")
        assert killed_in(lambda: moved(log_id, shards))
    with pytest.raises(SealUnavailable) as caught:
        make_seal(using=first)
    assert str(log_id) in str(caught.value)
    moving.abandon(log_id, source=first, target=second)
    moved(log_id, shards)
    accounts.append(log_id, Deposited(1), expected_version=ANY)

    for alias in shards.aliases:
        seals[alias].append(make_seal(using=alias, previous=seals[alias][0]))
        found = attest(seals[alias], DatabaseSource(alias), Trusted([PUBLIC]))
        assert [each.state for each in found.verdicts] == [PROVED, PROVED], alias
    counts = Counts()
    leaves = {each.log_id: each.version for each in leaves_at(first, 1_000_000, counts)}
    assert (leaves[log_id], counts.erased) == (4, 1)
