"""The feed on a streaming replica: a checkpoint of the primary says what is settled there."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from io import StringIO
from typing import NamedTuple

import pytest
from django.core.management import CommandError, call_command
from django.db import connections, transaction

from eventlogs import ANY, CheckpointDiffers, Feed, FeedUnavailable, LogId, LogManager, health
from eventlogs.checks.postgresql import check_feed
from eventlogs.feed.postgresql import PostgreSQLFeedSource
from eventlogs.feed.sources import Watermark, source_in
from eventlogs.feed.tokens import Token
from eventlogs.models import Checkpoint
from eventlogs.operations.erasure import erase
from eventlogs.stores import store_for
from tests.accounts import Account, Deposited, Opened
from tests.projections.readmodels import Letters
from tests.reliability.replicas import (
    Replica,
    Server,
    alias_of,
    migrated,
    sql,
    wait_for_replica,
)

pytestmark = pytest.mark.postgresql


class Pair(NamedTuple):
    """The aliases of a database on a primary, and of the same one on its replica."""

    primary: str
    replica: str

    def wait(self) -> None:
        wait_for_replica(self.primary, self.replica)

    def beat(self) -> int:
        """Let the replica's feed read up to the end."""
        position = Feed(using=self.primary).heartbeat()
        self.wait()
        return position


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Server, Server]]:
    with Server() as server, Replica(server) as standby:
        yield server, standby


@pytest.fixture
def pair(servers, django_db_setup: None, django_db_blocker) -> Iterator[Pair]:
    server, standby = servers
    with django_db_blocker.unblock(), migrated(server) as primary:
        name = connections[primary].settings_dict["NAME"]
        with alias_of(standby) as maintenance:
            wait_for_replica(primary, maintenance)
        with alias_of(standby, name) as replica:
            yield Pair(primary, replica)


class NaiveReader:
    """Reads what it sees above the last position that it has seen."""

    def __init__(self, using: str) -> None:
        self._using = using
        self._after = 0
        self.seen: set[int] = set()

    def read(self) -> None:
        found = sql(
            self._using,
            f"SELECT position FROM eventlogs_event WHERE position > {self._after}"
            f" ORDER BY position",
        )
        for (position,) in found:
            self.seen.add(position)
            self._after = position


class Reader:
    """Reads a feed, from checkpoint to checkpoint."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._after: int | str = 0
        self.seen: list[int] = []

    def read(self) -> None:
        more = True
        while more:
            page = self._feed.read(after=self._after, limit=100)
            self.seen += [record.position for record in page]
            self._after, more = page.checkpoint, page.more


class ReadsAll(PostgreSQLFeedSource):
    """A broken version: it takes the newest event that the replica shows for settled."""

    def _reached(self) -> int:
        newest: int | None = sql(self.using, "SELECT max(position) FROM eventlogs_event")[0][0]
        return newest or 0


class IgnoresFences(PostgreSQLFeedSource):
    """A broken version, for a heartbeat: it takes the last assigned position for settled."""

    def watermark(self) -> Watermark:
        assigned = super().watermark().assigned
        return Watermark(assigned, assigned)


class FeedOf(Feed):
    def __init__(self, source: PostgreSQLFeedSource) -> None:
        super().__init__(using=source.using)
        self._given = source

    def _source(self) -> PostgreSQLFeedSource:
        return self._given


def broken(using: str) -> Reader:
    return Reader(FeedOf(ReadsAll(using)))


def positions(using: str) -> set[int]:
    return {position for (position,) in sql(using, "SELECT position FROM eventlogs_event")}


def refused(*asks: Callable[[], object]) -> list[str]:
    """Return the reasons for which calls are refused."""
    reasons = []
    for ask in asks:
        with pytest.raises(FeedUnavailable) as caught:
            ask()
        reasons.append(caught.value.reason)
    return reasons


def test_without_a_checkpoint_of_the_primary_a_replica_is_refused(pair):
    feed = Feed(using=pair.replica)
    assert list(feed.read()) == []  # no events, so none are skipped
    LogManager(Account, using=pair.primary).create(Opened("ada"))
    Checkpoint.objects.using(pair.primary).create(projection="new", partition=0, partitions=1)
    pair.wait()

    assert sql(pair.replica, "SELECT pg_is_in_recovery()") == [(True,)]
    asks = (feed.read, feed.settled, feed.checkpoint, feed.follow().__next__)
    assert set(refused(*asks)) == {"replica"}
    with pytest.raises(FeedUnavailable) as caught:
        feed.read()
    assert str(caught.value) == (
        f"The feed of database {pair.replica!r} cannot be read: it is a replica, which does not "
        f"see the open transactions of its primary. Ask the primary; or, to read events here, run "
        f"projections or manage.py eventlogs heartbeat on the primary."
    )
    assert list(check_feed(databases=[pair.replica])) == []


def test_health_reports_a_replica_that_cannot_be_read(pair):
    LogManager(Account, using=pair.primary).create(Opened("ada"))
    pair.wait()

    before = health(using=pair.replica)
    settled = pair.beat()
    after = health(using=pair.replica)

    assert "feed" in {each.code for each in before.findings}
    assert "settled_position" not in before.figures
    assert "feed" not in {each.code for each in after.findings}
    assert after.figures["settled_position"] == settled


def test_what_only_the_primary_knows_is_refused_on_its_replica(pair):
    LogManager(Account, using=pair.primary).create(Opened("ada"))
    pair.beat()
    feed = Feed(using=pair.replica)

    assert [record.event for record in feed.read()] == [Opened("ada")]
    # Its own locks would say that nothing holds the feed back.
    assert refused(feed.holding_back, feed.heartbeat) == ["replica", "replica"]


def test_an_event_that_is_committed_late_is_not_skipped_on_a_replica(pair):
    """The naive reader and a broken version, which read the newest event there, skip it."""
    accounts = LogManager(Account, using=pair.primary)
    accounts.create(Opened("before"))
    pair.beat()
    ours, naive = Reader(Feed(using=pair.replica)), NaiveReader(pair.replica)
    worse = broken(pair.replica)
    with alias_of_another_session(pair.primary) as other, transaction.atomic(using=other):
        late = LogManager(Account, using=other).create(Opened("late"))
        early = accounts.create(Opened("early"))
        assert late.position < early.position
        assert pair.beat() < late.position

        for reader in (ours, naive, worse):
            reader.read()
        assert early.position not in ours.seen
        assert early.position in naive.seen
        assert early.position in worse.seen

    assert pair.beat() == early.position
    for reader in (ours, naive, worse):
        reader.read()
    assert ours.seen == sorted(positions(pair.primary))
    assert ours.seen[-2:] == [late.position, early.position]
    assert late.position not in naive.seen
    assert late.position not in worse.seen


def test_a_heartbeat_that_ignores_open_transactions_is_found(pair):
    accounts = LogManager(Account, using=pair.primary)
    worse = FeedOf(IgnoresFences(pair.primary))
    reader = Reader(Feed(using=pair.replica))
    with alias_of_another_session(pair.primary) as other, transaction.atomic(using=other):
        late = LogManager(Account, using=other).create(Opened("late"))
        early = accounts.create(Opened("early"))
        assert worse.heartbeat() == early.position
        pair.wait()
        reader.read()
    pair.beat()
    reader.read()

    assert reader.seen == [early.position]
    assert late.position in positions(pair.primary)


@contextmanager
def alias_of_another_session(alias: str) -> Iterator[str]:
    connections.databases["another"] = connections.databases[alias]
    try:
        yield "another"
    finally:
        connections["another"].close()
        del connections["another"]
        del connections.databases["another"]
        source_in.cache_clear()
        store_for.cache_clear()


WRITERS = 6
LONGEST = 0.01  # seconds that a transaction stays open after an append


def write(using: str, logs: list[LogId], number: int, count: int) -> None:
    """Append in transactions that do something else between two appends; some are rolled back."""
    choose = random.Random(number)
    accounts = LogManager(Account, using=using)
    try:
        for _ in range(count):
            with transaction.atomic(using=using):
                # In one order, so that they do not lock each other out.
                for log_id in sorted(choose.sample(logs, choose.randint(1, 3))):
                    accounts.append(log_id, Deposited(number), expected_version=ANY)
                    sql(using, f"SELECT pg_sleep({choose.uniform(0, LONGEST)})")
                if choose.random() < 0.2:
                    transaction.set_rollback(True, using=using)
    finally:
        connections[using].close()


def move_while(move: Callable[[], object], using: str, writers: list[Future[None]]) -> None:
    try:
        while not all(each.done() for each in writers):
            move()
    finally:
        connections[using].close()


@pytest.mark.parametrize(
    "count", [40, pytest.param(2_000, marks=pytest.mark.long)], ids=["short", "long"]
)
@pytest.mark.parametrize("by", ["heartbeat", "projection"])
def test_a_reader_on_a_replica_beside_racing_writers_misses_nothing(pair, by, count):
    """The naive reader and the broken version run in the same race, and miss events."""
    accounts = LogManager(Account, using=pair.primary)
    logs = [accounts.create(Opened(f"owner {n}")).log_id for n in range(40)]
    pair.beat()
    if by == "heartbeat":
        move: Callable[[], object] = Feed(using=pair.primary).heartbeat
    else:
        move = partial(Letters.catch_up, using=pair.primary)
    ours, naive = Reader(Feed(using=pair.replica)), NaiveReader(pair.replica)
    worse = broken(pair.replica)

    with ThreadPoolExecutor(WRITERS + 1) as threads:
        writers = [threads.submit(write, pair.primary, logs, n, count) for n in range(WRITERS)]
        moving = threads.submit(move_while, move, pair.primary, writers)
        while not moving.done():
            for reader in (ours, naive, worse):
                reader.read()
        for each in (*writers, moving):
            each.result()
    move()
    pair.wait()
    for reader in (ours, naive, worse):
        reader.read()

    stored = positions(pair.primary)
    assert ours.seen == sorted(stored)
    assert naive.seen < stored
    assert set(worse.seen) < stored


def test_the_checkpoint_of_a_projection_is_as_good_as_a_heartbeat(pair):
    state = LogManager(Account, using=pair.primary).create(Opened("ada"), Deposited(5))
    Letters.catch_up(using=pair.primary)
    pair.wait()

    assert Feed(using=pair.replica).settled() == state.position
    assert len(Feed(using=pair.replica).read()) == 2


@pytest.mark.parametrize("is_rebuild", [False, True], ids=["ahead of all events", "of a rebuild"])
def test_a_checkpoint_that_proves_nothing_is_left_out(pair, is_rebuild):
    accounts = LogManager(Account, using=pair.primary)
    reached = accounts.create(Opened("ada")).position
    pair.beat()
    state = accounts.create(Opened("bob"))
    Checkpoint.objects.using(pair.primary).create(
        projection="other",
        partition=0,
        partitions=1,
        is_rebuild=is_rebuild,
        position=state.position if is_rebuild else state.position + 1,
    )
    pair.wait()

    assert Feed(using=pair.replica).settled() == reached


def test_a_checkpoint_of_the_primary_waits_on_a_replica_that_is_behind(pair):
    accounts = LogManager(Account, using=pair.primary)
    accounts.create(Opened("ada"))
    pair.beat()
    accounts.create(Opened("bob"))
    page = Feed(using=pair.primary).read()
    sql(pair.replica, "SELECT pg_wal_replay_pause()")
    try:
        state = accounts.create(Opened("cid"))
        ahead = Feed(using=pair.primary).checkpoint()
        Feed(using=pair.primary).heartbeat()
        feed = Feed(using=pair.replica)
        for checkpoint in (page.checkpoint, ahead, state.position):
            behind = feed.read(after=checkpoint)
            assert list(behind) == []
            assert behind.next_after == Token.parse(behind.checkpoint).position
        assert behind.next_after == state.position
    finally:
        sql(pair.replica, "SELECT pg_wal_replay_resume()")
    pair.wait()

    assert [record.event for record in feed.read(after=page.checkpoint)] == [Opened("cid")]
    assert list(feed.read(after=ahead)) == []


def test_a_checkpoint_of_another_history_is_refused_on_a_replica(pair):
    LogManager(Account, using=pair.primary).create(Opened("ada"), Deposited(5))
    pair.beat()
    feed = Feed(using=pair.replica)
    token = Token.parse(feed.read(limit=1).checkpoint)
    [witness] = token.witnesses
    for position in (witness.position + 1, 0):
        other = token._replace(witnesses=(witness._replace(position=position),))
        with pytest.raises(CheckpointDiffers):
            feed.read(after=str(other))


def test_a_replica_reads_on_after_the_newest_log_was_erased(pair):
    accounts = LogManager(Account, using=pair.primary)
    accounts.create(Opened("ada"))
    erased = accounts.create(Opened("bob")).log_id
    Letters.catch_up(using=pair.primary)
    checkpoint = Feed(using=pair.primary).checkpoint()
    erase(erased, reason="a test", by="grace", using=pair.primary)
    pair.wait()
    feed = Feed(using=pair.replica)
    # The checkpoint is above all events now, as after a wrong restore.
    assert refused(feed.read) == ["replica"]

    pair.beat()

    assert [record.event for record in feed.read()] == [Opened("ada")]
    assert list(feed.read(after=checkpoint)) == []
    accounts.create(Opened("cid"))
    Letters.catch_up(using=pair.primary)
    pair.wait()
    assert [record.event for record in feed.read(after=checkpoint)] == [Opened("cid")]


def test_a_replica_is_read_in_one_snapshot(pair, monkeypatch):
    """A pooler may send each transaction to another replica; two of them could be of two."""
    LogManager(Account, using=pair.primary).create(Opened("ada"))
    pair.beat()
    isolations = []
    events = PostgreSQLFeedSource.events

    def look(self, query):
        isolations.append(sql(self.using, "SELECT current_setting('transaction_isolation')"))
        assert connections[self.using].in_atomic_block
        return events(self, query)

    monkeypatch.setattr(PostgreSQLFeedSource, "events", look)
    feed = Feed(using=pair.replica)

    assert len(feed.read()) == 1
    assert isolations == [[("repeatable read",)]]
    # A caller's own transaction will do, under any level.
    with transaction.atomic(using=pair.replica):
        sql(pair.replica, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        assert len(feed.read()) == 1
    with transaction.atomic(using=pair.replica):
        assert len(feed.read()) == 1
    assert isolations[2:] == [[("read committed",)]]


def test_commands_read_a_replica(pair, tmp_path):
    accounts = LogManager(Account, using=pair.primary)
    accounts.create(Opened("ada"), Deposited(5))
    call_command("eventlogs", "heartbeat", "--once", database=pair.primary, stdout=StringIO())
    accounts.create(Opened("bob"))  # committed, and not settled as far as the replica knows
    pair.wait()
    shown = StringIO()

    call_command("eventlogs", "tail", "--json", database=pair.replica, stdout=shown)
    call_command(
        "eventlogs", "export", str(tmp_path / "all"), database=pair.replica, stdout=StringIO()
    )

    assert [json.loads(line)["index"] for line in shown.getvalue().splitlines()] == [0, 1]
    lines = (tmp_path / "all").read_text().splitlines()
    assert [json.loads(line)["index"] for line in lines[1:-1]] == [0, 1]
    with pytest.raises(CommandError, match="does not see the open transactions of its primary"):
        call_command("eventlogs", "heartbeat", "--once", database=pair.replica)
