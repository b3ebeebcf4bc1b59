"""The log of seals."""

from __future__ import annotations

import pytest

from eventlogs import event_context
from eventlogs.seals import make_seal
from eventlogs.seals.appended import SealLog, Seals
from eventlogs.seals.documents import replace, seal_of
from eventlogs.seals.lookups import SEALS
from tests.seals.test_documents import SEAL

pytestmark = pytest.mark.feed


@pytest.fixture
def seals(db):
    """Three seals, at the positions 10, 20 and 30."""
    made = [replace(SEAL, position=position) for position in (10, 20, 30)]
    for version, each in enumerate(made):
        SealLog("default").append(each, version=version)
    return made


def test_a_seal_is_read_as_it_was_appended(accounts_of_three):
    made = make_seal()
    log = SealLog("default")

    log.append(made, version=0)

    assert log.last() == (made, 1)
    [record] = Seals.logs.load(SEALS)
    assert seal_of(record.event.line.encode()) == made


def test_a_seal_has_nothing_of_the_context_of_its_caller(db):
    with event_context(user=7):
        SealLog("default").append(SEAL, version=0)
        SealLog("default").append(replace(SEAL, position=SEAL.position + 1), version=1)

    assert [record.metadata for record in Seals.logs.load(SEALS)] == [{}, {}]


def test_an_empty_log_has_no_last_seal(db):
    assert SealLog("default").last() == (None, 0)
    assert list(SealLog("default").newest_first()) == []


def test_seals_are_read_backwards(seals, settings):
    settings.EVENTLOGS = {"PAGE_SIZE": 2}

    assert list(SealLog("default").newest_first()) == seals[::-1]
