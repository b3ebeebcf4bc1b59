"""The table of events is replaced again and again: no event is lost, doubled or passed over."""

from __future__ import annotations

import time
from collections import Counter

import pytest
from django.db import connection, connections, transaction

from eventlogs import ANY, Feed, LogErased, LogId, LogManager
from eventlogs.exceptions import CannotPartition
from eventlogs.operations import partitioning
from eventlogs.operations.partitioning import copying, running, sessions
from eventlogs.stores import erasing
from tests.accounts import Account, Noted, Opened
from tests.operations.partitioning.logs import check_whole, partitions
from tests.processes.forks import Place, Processes

pytestmark = [pytest.mark.postgresql, pytest.mark.fence]

SECONDS = 4.0
LOGS = 40

accounts = LogManager(Account)


def append(place: Place, log_ids: list[LogId]) -> Counter[str]:
    """Append to logs at random, some in transactions that last; count what was stored."""
    stored: Counter[str] = Counter()
    while not place.is_set():
        log_id = place.random.choice(log_ids)
        if place.random.randrange(20):
            accounts.append(log_id, Noted(place.number), expected_version=ANY)
        else:
            with transaction.atomic():
                accounts.append(log_id, Noted(place.number), expected_version=ANY)
                place.wait(0.02)
        stored[str(log_id)] += 1
    return stored


def erase(place: Place) -> list[str]:
    """Create logs and erase them soon; return them."""
    erased: list[str] = []
    while not place.is_set():
        log_id = accounts.create(*[Opened("erased soon")] * 3).log_id
        place.wait(0.005)
        erasing.erase("default", log_id, by="grace", reason="order 7")
        erased.append(str(log_id))
    return erased


Seen = list[tuple[str, int]]


def follow(place: Place) -> tuple[Seen, int]:
    """Read the feed until the test ends; return what it gave, in its order, and how far it is."""
    seen: Seen = []
    after = 0
    while not place.is_set():
        after = read_on(Feed(), seen, after)
    return seen, after


def read_on(feed: Feed, seen: Seen, after: int) -> int:
    """Read all that is settled behind a position, page by page; return how far that is."""
    while page := feed.read(after=after, limit=100, decode=False):
        seen += [(str(each.log_id), each.index) for each in page]
        after = page.next_after
    return after


def read_in_one_snapshot(place: Place, log_ids: list[LogId]) -> list[str]:
    """Compare rows of logs with events, in one snapshot; return what differs."""
    wrong: list[str] = []
    while not place.is_set():
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            cursor.execute("SELECT count(*) FROM eventlogs_eventlog")  # takes the snapshot
            place.wait(place.random.random() / 10)
            some = [each.uuid for each in place.random.sample(log_ids, 10)]
            cursor.execute("SELECT id, version FROM eventlogs_eventlog WHERE id = ANY (%s)", [some])
            versions = dict(cursor.fetchall())
            cursor.execute(
                "SELECT log_id, count(*) FROM eventlogs_event WHERE log_id = ANY (%s)"
                " GROUP BY log_id",
                [some],
            )
            if dict(cursor.fetchall()) != versions:
                wrong.append(str(versions))
    return wrong


@pytest.fixture
def alias(second_database: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(copying, "BATCH", 300)
    monkeypatch.setattr(sessions, "PAUSE", 0.05)
    monkeypatch.setattr(running, "POLL", 0.01)
    return second_database


def race(alias: str) -> tuple[int, list[str]]:
    """Replace the table while others work; return how often, and what readers found wrong."""
    log_ids = [LogManager(Account, using=alias).create(Opened("Ada")).log_id for _ in range(LOGS)]
    replaced = 0
    with Processes(database=connections[alias].settings_dict) as team:
        team.line_up(3, append, log_ids)
        team.line_up(1, erase)
        team.line_up(1, follow)
        team.line_up(2, read_in_one_snapshot, log_ids)
        team.go()
        until = time.monotonic() + SECONDS
        # On a busy machine the first copy may take longer than all of that.
        while time.monotonic() < until or replaced < 2:
            try:
                partitioning.partition((4, 0, 3)[replaced % 3], using=alias)
                replaced += 1
            except CannotPartition as error:
                if "nobody could" not in error.reason:
                    raise
                # A lock was not granted in time: the next call goes on.
        *appended, erased, (followed, after), one, other = team.end()

    # Others may have appended when the follower had ended.
    read_on(Feed(using=alias), followed, after)
    check_whole(alias)
    assert partitions(alias) == (4, 0, 3)[(replaced - 1) % 3]
    manager = LogManager(Account, using=alias)
    stored: Counter[str] = sum(appended, Counter())
    for each in log_ids:
        assert manager.version(each) - 1 == stored[str(each)]
    for each in erased:
        with pytest.raises(LogErased):
            manager.reduce(each)
    # The feed gave each event once, and those of a log in their order.
    assert len(set(followed)) == len(followed)
    last: dict[str, int] = {}
    for log_id, index in followed:
        assert index == last.get(log_id, -1) + 1
        last[log_id] = index
    assert {each: last[str(each)] + 1 for each in log_ids} == {
        each: manager.version(each) for each in log_ids
    }
    return replaced, one + other


def test_no_event_is_lost_while_the_table_is_replaced(alias: str) -> None:
    replaced, wrong = race(alias)

    assert wrong == []
    assert replaced >= 2


def test_without_waiting_a_reader_finds_too_little(
    alias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broken version: the race above finds it."""
    monkeypatch.setattr(running, "_wait_for_older", lambda *_: None)

    _, wrong = race(alias)

    assert wrong
