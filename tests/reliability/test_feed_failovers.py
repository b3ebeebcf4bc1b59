"""
A failover to a replica that was behind: readers outside of the database, with and without tokens.

The primary is killed, as by a failure of its machine. What it had committed last is gone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest
from django.db import connections

from eventlogs import CheckpointDiffers, Feed, HistoryDiffers, LogManager
from eventlogs.feed import stored_pages
from tests.accounts import Account, Deposited, Opened
from tests.reliability.replicas import (
    Replica,
    Server,
    alias_of,
    cut_off,
    migrated,
    promote,
    wait_for_replica,
)

pytestmark = pytest.mark.postgresql

LOST = 150  # events; PostgreSQL moves a promoted replica's sequence on by up to 32


class Failover(NamedTuple):
    """A promoted replica, and what readers of the primary had read before it failed."""

    promoted: str
    kept: list[str]  # ids of events that both servers have
    lost: list[str]  # ids of those that only the primary had
    before: str  # a checkpoint at the end of the first ones
    position: int
    checkpoint: str
    at_once: Exception  # what reading after it raised, before the next append


def deposits(using: str, logs: int) -> None:
    accounts = LogManager(Account, using=using)
    for number in range(logs):
        accounts.create(Opened(f"owner {number}"), *[Deposited(n) for n in range(9)])


@pytest.fixture(scope="module")
def failover(django_db_setup: None, django_db_blocker) -> Iterator[Failover]:
    with django_db_blocker.unblock(), Server() as server, migrated(server) as primary:
        name = connections[primary].settings_dict["NAME"]
        deposits(primary, 5)
        with Replica(server) as standby, alias_of(standby, name) as replica:
            wait_for_replica(primary, replica)
            cut_off(replica)
            first = Feed(using=primary).read(limit=1_000)
            deposits(primary, LOST // 10)
            page = Feed(using=primary).read(after=first.checkpoint, limit=1_000)
            assert len(page) == LOST
            server.process.kill()
            server.process.wait()
            connections[primary].close()
            promote(replica)
            with pytest.raises(CheckpointDiffers) as at_once:
                Feed(using=replica).read(after=page.checkpoint)
            deposits(replica, 20)
            yield Failover(
                replica,
                [record.id for record in first],
                [record.id for record in page],
                first.checkpoint,
                page.next_after,
                page.checkpoint,
                at_once.value,
            )


def test_a_token_is_refused_where_a_position_misses_events_in_silence(failover):
    feed = Feed(using=failover.promoted)
    differs = (
        f"The checkpoint at position {failover.position} is not of the history of the database "
        f"{failover.promoted!r}: {{}}. An older backup was restored, a failover has lost events, "
        f"or it is another database. Read again from an older checkpoint that is accepted, or from "
        f"the beginning, and correct what was made of the lost events."
    )
    assert feed.settled() > failover.position
    naive = [record.id for record in feed.read(after=failover.position, limit=1_000)]
    new = [record.id for record in feed.read(after=failover.before, limit=1_000)]
    assert len(new) == 200
    missed = set(new) - set(naive)
    assert 100 < len(missed) < 200
    with pytest.raises(HistoryDiffers) as caught:
        feed.read(after=failover.checkpoint)
    assert str(failover.at_once) == differs.format("its position was never assigned")
    assert str(caught.value) == differs.format(
        "another event has the position of one that it names"
    )

    # From the older checkpoint, nothing is missed, and what was lost is known.
    assert not set(new) & set(failover.lost)
    everything = [record.id for record in feed.read(limit=1_000)]
    assert everything == failover.kept + new


def test_a_broken_version_that_proves_nothing_misses_events(failover, monkeypatch):
    """It believes each token whose position was assigned."""
    feed = Feed(using=failover.promoted)
    new = {record.id for record in feed.read(after=failover.before, limit=1_000)}
    monkeypatch.setattr(stored_pages, "_prove", lambda *_: None)

    found = feed.read(after=failover.checkpoint, limit=1_000)

    assert new - {record.id for record in found}


@pytest.mark.parametrize("what", ["token", "position"])
def test_a_follower_of_the_lost_history(failover, what):
    """It began again after the connection was lost: with a token it is told so."""
    after = failover.checkpoint if what == "token" else failover.position
    following = Feed(using=failover.promoted).follow(after=after)

    if what == "token":
        with pytest.raises(HistoryDiffers):
            next(following)
    else:
        assert next(following).position > failover.position
