"""Races on chained logs: every chain is whole, whoever appended."""

from __future__ import annotations

import pytest

from eventlogs import LogId
from eventlogs.models import EventLog
from eventlogs.operations.chaining import ChainVerifier
from eventlogs.operations.verification import Scope
from tests.races import COMMITS, jobs

pytestmark = COMMITS

on_every_store = pytest.mark.parametrize(
    "store", [pytest.param("chained", marks=pytest.mark.postgresql), "chained portable"]
)


def broken_chains() -> list[str]:
    return [each.message for each in ChainVerifier().verify(Scope("default"))]


def chained() -> int:
    return EventLog.objects.filter(head__isnull=False).count()


@pytest.fixture
def new_chained_logs(new_logs, settings):
    """Create chained logs, and return their ids."""

    def create(count: int, **options: int) -> list[LogId]:
        settings.EVENTLOGS = {"CHAIN": True}
        created = new_logs(count, **options)
        settings.EVENTLOGS = {}
        return created

    return create


@on_every_store
def test_batches_of_many_writers(crew, violations, new_chained_logs, writers, store):
    log_ids = new_chained_logs(3)

    outcomes = crew.race(writers, jobs.append_anywhere, store, log_ids, 10)

    assert violations(outcomes) == []
    assert broken_chains() == []
    assert EventLog.objects.filter(pk__in=[each.uuid for each in log_ids], head=None).count() == 0


@on_every_store
def test_one_version(crew, violations, new_chained_logs, writers, store):
    (log_id,) = new_chained_logs(1)

    outcomes = crew.race(writers, jobs.append_at_one_version, store, log_id, 15, True)

    assert violations(outcomes) == []
    assert broken_chains() == []


@on_every_store
def test_one_key(crew, violations, new_chained_logs, writers, store):
    log_ids = new_chained_logs(5, version=3)

    outcomes = crew.race(writers, jobs.append_with_one_key, store, log_ids, "any", "same")

    assert violations(outcomes) == []
    assert broken_chains() == []


@on_every_store
@pytest.mark.parametrize("keyed", [False, True], ids=["without-key", "with-key"])
def test_one_new_log(crew, violations, writers, store, keyed):
    """Whether it is chained depends on who creates it; its chain is whole in any case."""
    # Many, because a process that chains takes longer and seldom is the first.
    log_ids = [LogId.new("race") for _ in range(40)]

    outcomes = crew.race(writers, jobs.create_one_log, store, log_ids, keyed, False)

    assert violations(outcomes) == []
    assert broken_chains() == []
    assert chained() > 0


@pytest.mark.postgresql
def test_a_store_that_reads_the_head_before_the_lock_is_found(crew, new_chained_logs, writers):
    log_ids = new_chained_logs(1)

    crew.race(writers, jobs.append_anywhere, "tests.races.chained.StaleHead", log_ids, 10)

    assert any("does not fit" in message for message in broken_chains())
