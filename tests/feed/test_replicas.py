"""A worker that reads its events on a replica: what it may take from there, and what it may not."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from io import StringIO
from typing import Any
from uuid import uuid4

import pytest
from django.core.management import call_command
from django.db import OperationalError, connections
from django.utils import timezone

from eventlogs import EventRecord, Feed, LogId, LogManager, Publisher, projection
from eventlogs.feed import replicas
from eventlogs.feed.postgresql import PostgreSQLBucketFeedSource, PostgreSQLFeedSource
from eventlogs.feed.replicas import FeedOnReplica
from eventlogs.feed.sources import FeedQuery, feed_source_for
from eventlogs.models import LogMove, ReturnedLog
from eventlogs.operations import archiving
from eventlogs.operations.erasure import erase
from eventlogs.projections.base import projections
from eventlogs.projections.workers import Worker
from tests.accounts import Account, Deposited, Noted, Opened, Withdrawn
from tests.operations.archiving.conftest import use
from tests.processes import until
from tests.projections.readmodels import Balance, Balances, declaring
from tests.reliability.replicas import alias_of, migrated, sql, wait_for_replica
from tests.reliability.test_feed_replicas import WRITERS, Pair, pair, servers, write  # noqa: F401

pytestmark = [pytest.mark.postgresql, pytest.mark.one_server]

NOWHERE = {"HOST": "127.0.0.1", "PORT": "1"}

published: list[EventRecord] = []


@projection("from-a-replica")
class FromReplica(Publisher):
    def publish(self, records: Sequence[EventRecord]) -> None:
        published.extend(records)


del projections[FromReplica.name]  # other tests do not know it


def ids() -> list[str]:
    return [each.id for each in published]


@pytest.fixture
def read_on(monkeypatch) -> list[str]:
    """The aliases on which pages of the feed were read."""
    found: list[str] = []

    def note(source: type[PostgreSQLFeedSource]) -> None:
        events = source.events

        def noted(self: PostgreSQLFeedSource, query: FeedQuery) -> Any:
            found.append(self.using)
            return events(self, query)

        monkeypatch.setattr(source, "events", noted)

    for each in (PostgreSQLFeedSource, PostgreSQLBucketFeedSource):
        note(each)
    return found


@pytest.fixture
def publisher(pair: Pair, monkeypatch, read_on) -> Iterator[Callable[..., int]]:  # noqa: F811
    """Catch up with a publisher that has published the event before those of the test."""
    logs(pair).create(Opened("before"))
    with declaring({"from-a-replica": FromReplica}):
        reads_from(monkeypatch, pair, pair.replica)
        pair.beat()
        assert FromReplica.catch_up(using=pair.primary) == 1
        read_on.clear()
        published.clear()
        yield lambda: FromReplica.catch_up(using=pair.primary)


def reads_from(monkeypatch: pytest.MonkeyPatch, pair: Pair, alias: str) -> None:  # noqa: F811
    monkeypatch.setattr(FromReplica, "reads_from", {pair.primary: alias})


def logs(pair: Pair) -> LogManager[Account]:  # noqa: F811
    return LogManager(Account, using=pair.primary)


def written(pair: Pair, count: int = 3) -> list[LogId]:  # noqa: F811
    """Return the ids of new logs that the replica has, and that its feed reads."""
    created = [logs(pair).create(Opened("ada"), Deposited(1)).log_id for _ in range(count)]
    pair.beat()
    return created


def first_events(log_ids: Sequence[LogId]) -> list[str]:
    return [f"{log_id}:{index}" for log_id in log_ids for index in (0, 1)]


@contextmanager
def paused(pair: Pair) -> Iterator[None]:  # noqa: F811
    """Let the replica stay as it is."""
    sql(pair.replica, "SELECT pg_wal_replay_pause()")
    try:
        yield
    finally:
        sql(pair.replica, "SELECT pg_wal_replay_resume()")


def test_a_publisher_reads_on_the_replica(pair, publisher, read_on):  # noqa: F811
    log_ids = written(pair)

    assert publisher() == 6
    assert ids() == first_events(log_ids)
    assert set(read_on) == {pair.replica}


def test_it_needs_no_other_process_that_moves_the_feed_there(pair, publisher):  # noqa: F811
    log_id = logs(pair).create(Opened("ada")).log_id

    until(publisher)

    assert ids() == [f"{log_id}:0"]


@pytest.mark.fence  # with counters, transactions over several logs deadlock: see docs/buckets.md
def test_a_worker_publishes_all_events_once_and_in_order_beside_writers(
    pair,  # noqa: F811
    publisher,
    read_on,
):
    log_ids = [logs(pair).create(Opened(f"owner {n}")).log_id for n in range(40)]
    stop = threading.Event()

    def work() -> None:
        try:
            Worker(["from-a-replica"], stop=stop, using=pair.primary).run()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(WRITERS + 1) as threads:
        working = threads.submit(work)
        try:
            writers = [
                threads.submit(write, pair.primary, log_ids, number, 20)
                for number in range(WRITERS)
            ]
            for each in writers:
                each.result()
            stored = sql(pair.primary, "SELECT count(*) - 1 FROM eventlogs_event")
            until(lambda: len(published) >= stored[0][0])
        finally:
            stop.set()
        working.result()

    found = [each.position for each in published]
    rows = sql(pair.primary, "SELECT position FROM eventlogs_event ORDER BY position OFFSET 1")
    assert found == [position for (position,) in rows]
    assert set(read_on) == {pair.replica}


# What has left the database.


def test_what_was_erased_is_not_published_from_a_replica_that_is_behind(
    pair,  # noqa: F811
    publisher,
    read_on,
):
    log_ids = written(pair)
    with paused(pair):
        erase(log_ids[1], by="hal", reason="asked for", using=pair.primary)
        assert publisher() == 4

    assert ids() == first_events([log_ids[0], log_ids[2]])
    assert read_on == [pair.replica]


def test_a_broken_version_that_does_not_look_publishes_it(
    pair,  # noqa: F811
    publisher,
    monkeypatch,
):
    monkeypatch.setattr(replicas, "_still_here", lambda found, here: found)

    with pytest.raises(AssertionError):
        test_what_was_erased_is_not_published_from_a_replica_that_is_behind(pair, publisher, [])
    assert len(published) == 6


def test_a_page_whose_last_event_is_gone_is_read_here(
    pair,  # noqa: F811
    publisher,
    read_on,
    caplog,
):
    """Nothing there shows that the page is of this history up to its end."""
    log_ids = written(pair)
    with paused(pair):
        erase(log_ids.pop(), by="hal", reason="asked for", using=pair.primary)
        assert publisher() == 4
    assert ids() == first_events(log_ids)
    assert read_on == [pair.replica, pair.primary]
    assert warnings(caplog) == []


def test_a_page_of_erased_logs_alone_is_passed(pair, publisher):  # noqa: F811
    log_ids = written(pair, 1)
    with paused(pair):
        erase(log_ids[0], by="hal", reason="asked for", using=pair.primary)
        assert publisher() == 0
    log_ids = written(pair, 1)

    assert publisher() == 2
    assert ids() == first_events(log_ids)


def test_a_log_that_leaves_between_two_looks_is_left_out(
    pair,  # noqa: F811
    publisher,
    monkeypatch,
):
    log_ids, places = written(pair), PostgreSQLFeedSource.places

    def late(self: PostgreSQLFeedSource, positions: Sequence[int]) -> Any:
        if self.using == pair.primary and len(log_ids) == 3:
            erase(log_ids.pop(), by="hal", reason="asked for", using=pair.primary)
        return places(self, positions)

    monkeypatch.setattr(PostgreSQLFeedSource, "places", late)

    assert publisher() == 4
    assert ids() == first_events(log_ids)


def test_a_log_that_came_back_from_another_database_is_read_here(
    pair,  # noqa: F811
    publisher,
    read_on,
):
    """Its events may have other positions on a replica that is behind."""
    log_ids = written(pair)
    LogMove.objects.using(pair.primary).create(
        token=uuid4(),
        uuid=log_ids[1].uuid,
        log_type="account",
        state=LogMove.LEFT,
        other="elsewhere",
        begun_at=timezone.now(),
        moved_by="hal",
    )

    assert publisher() == 6
    assert ids() == first_events(log_ids)
    assert read_on == [pair.replica, pair.primary]


@pytest.fixture
def returned(pair, publisher, tmp_path, settings) -> Iterator[LogId]:  # noqa: F811
    """A log that has come back from an archive, beside a replica that does not know it yet."""
    use(settings, tmp_path)
    log_id = logs(pair).create(Opened("ada"), Deposited(1), Withdrawn(1)).log_id
    written(pair)
    publisher()
    assert archiving.archive(by="grace", using=pair.primary).logs == 2  # "before" is one, too
    pair.beat()
    with paused(pair):
        archiving.restore(log_id, using=pair.primary)
        yield log_id


def test_a_log_that_came_back_from_an_archive_is_not_passed(pair, returned):  # noqa: F811
    """Its events have their old positions, at which the replica has none."""
    found = FeedOnReplica(pair.replica, using=pair.primary).read_stored(0, limit=100)

    assert returned in {each.log_id for each in found.events}
    assert found == Feed(using=pair.primary).read_stored(0, limit=100)


def test_returns_are_told_apart_by_more_than_their_number_and_the_newest(pair):  # noqa: F811
    returned = ReturnedLog.objects.using(pair.primary)
    old, late, early = (LogId.new("account").uuid for _ in range(3))
    now, day = timezone.now(), timedelta(days=1)
    returned.bulk_create(
        [ReturnedLog(id=old, returned_at=now - day), ReturnedLog(id=late, returned_at=now)]
    )
    pair.wait()
    here, there = feed_source_for(pair.primary), feed_source_for(pair.replica)
    assert replicas._came_back(here) == replicas._came_back(there)

    with paused(pair):
        returned.filter(pk=old).delete()
        returned.bulk_create([ReturnedLog(id=early, returned_at=now - day / 2)])
        assert replicas._came_back(here) != replicas._came_back(there)


def test_with_many_returns_the_primary_is_read(pair, read_on, monkeypatch):  # noqa: F811
    monkeypatch.setattr(replicas, "RETURNS", 1)
    returned = ReturnedLog.objects.using(pair.primary)
    feed = FeedOnReplica(pair.replica, using=pair.primary)
    for _ in range(3):
        returned.bulk_create(
            [ReturnedLog(id=LogId.new("account").uuid, returned_at=timezone.now())]
        )
        written(pair, 1)
        feed.read_stored(0, limit=9)

    assert read_on == [pair.replica, *[pair.replica, pair.primary] * 2]


def test_a_broken_version_that_does_not_look_for_returns_passes_it(
    pair,  # noqa: F811
    returned,
    monkeypatch,
):
    monkeypatch.setattr(replicas, "_came_back", lambda source: set())

    with pytest.raises(AssertionError):
        test_a_log_that_came_back_from_an_archive_is_not_passed(pair, returned)


# A replica that is of no use.


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]


@contextmanager
def nowhere(pair: Pair) -> Iterator[str]:  # noqa: F811
    """Give an alias at whose address nothing answers."""
    connections.databases["nowhere"] = {**connections.databases[pair.replica], **NOWHERE}
    try:
        yield "nowhere"
    finally:
        connections["nowhere"].close()
        del connections.databases["nowhere"], connections["nowhere"]


def test_while_it_does_not_answer_its_primary_is_read(
    pair,  # noqa: F811
    publisher,
    read_on,
    monkeypatch,
    caplog,
):
    with nowhere(pair) as alias:
        reads_from(monkeypatch, pair, alias)
        log_ids = written(pair)

        assert publisher() == 6

    assert ids() == first_events(log_ids)
    assert set(read_on) == {pair.primary}
    [warning] = warnings(caplog)
    assert warning.endswith("and not on 'nowhere': OperationalError")


def test_it_is_read_again_when_it_answers(pair, publisher, read_on, monkeypatch, caplog):  # noqa: F811
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(replicas, "LOOK_AGAIN", 0.0)
    monkeypatch.setattr(replicas, "TIMES_AS_LONG", 0)
    written(pair)
    with nowhere(pair) as alias:
        feed = FeedOnReplica(alias, using=pair.primary)
        for _ in range(2):
            assert len(feed.read_stored(0, limit=100).events) == 7
        connections.databases["nowhere"] |= {
            each: connections.databases[pair.replica][each] for each in NOWHERE
        }
        del connections["nowhere"]

        assert len(feed.read_stored(0, limit=100).events) == 7

    assert read_on == [pair.primary, pair.primary, "nowhere"]
    assert len(warnings(caplog)) == 1
    assert caplog.messages[-1].endswith("is read on 'nowhere' again.")


def test_one_that_stays_behind_is_not_waited_for(
    pair,  # noqa: F811
    publisher,
    read_on,
    monkeypatch,
    caplog,
):
    feed, before = FeedOnReplica(pair.replica, using=pair.primary), pair.beat()
    with paused(pair):
        late = logs(pair).create(Opened("late")).position
        assert feed.read_stored(before, limit=9).events == []
        assert read_on == []

        monkeypatch.setattr(replicas, "BEHIND", 0.0)
        monkeypatch.setattr(replicas, "LOOK_AGAIN", 0.0)
        monkeypatch.setattr(replicas, "TIMES_AS_LONG", 0)
        for _ in range(2):
            assert [each.position for each in feed.read_stored(before, limit=9).events] == [late]
    assert read_on == [pair.primary] * 2
    [warning] = warnings(caplog)
    assert warning.endswith("it is more than 0 seconds behind")

    pair.beat()
    assert [each.position for each in feed.read_stored(before, limit=9).events] == [late]
    assert read_on[2:] == [pair.replica]


def test_catching_up_ends_on_the_primary(pair, publisher, read_on):  # noqa: F811
    log_ids = written(pair)
    with paused(pair):
        late = logs(pair).create(Opened("late")).log_id
        assert publisher() == 7

    assert ids() == [*first_events(log_ids), f"{late}:0"]
    assert read_on == [pair.replica, pair.primary]


@pytest.mark.parametrize(("takes", "rests"), [(0.0, 10.0), (0.5, 10.0), (130.0, 1_300.0)])
def test_a_replica_that_keeps_its_clients_waiting_is_asked_rarely(
    pair,  # noqa: F811
    publisher,
    monkeypatch,
    takes,
    rests,
):
    now, asked = 1_000.0, 0

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return now

    def unreachable(self: FeedOnReplica, *arguments: Any) -> None:
        nonlocal now, asked
        asked += 1
        now += takes
        self._give_up(OperationalError())

    monkeypatch.setattr(replicas, "time", Clock)
    monkeypatch.setattr(FeedOnReplica, "_read_there", unreachable)
    feed = FeedOnReplica(pair.replica, using=pair.primary)

    for seconds, times in ((0.0, 1), (rests - 1, 1), (1, 2)):
        now += seconds
        feed.read_stored(0, limit=1)
        assert asked == times


@pytest.mark.parametrize("alias", ["unknown", "the primary"])
def test_an_alias_that_is_no_replica_is_not_read(
    pair,  # noqa: F811
    publisher,
    read_on,
    monkeypatch,
    caplog,
    alias,
):
    reads_from(monkeypatch, pair, pair.primary if alias == "the primary" else alias)
    log_ids = written(pair)

    assert publisher() == 6
    assert ids() == first_events(log_ids)
    assert set(read_on) == {pair.primary}
    [warning] = warnings(caplog)
    assert warning.endswith("doesn't exist." if alias == "unknown" else "it is no replica")


@pytest.fixture(params=[0, 1, 3, 9])
def replica_of_another(pair, servers, request) -> Iterator[str]:  # noqa: F811
    """A replica of another database, with fewer or more events, at the same positions."""
    server, standby = servers
    with migrated(server) as another:
        other = Pair(another, "")
        for _ in range(request.param):
            logs(other).create(Opened("eve"), Deposited(9))
        with alias_of(standby) as maintenance:
            wait_for_replica(another, maintenance)
        with alias_of(standby, connections[another].settings_dict["NAME"]) as replica:
            Pair(another, replica).beat()
            yield replica


def test_events_of_another_database_are_not_published(
    pair,  # noqa: F811
    publisher,
    replica_of_another,
    monkeypatch,
    caplog,
):
    reads_from(monkeypatch, pair, replica_of_another)
    log_ids = written(pair)

    assert publisher() == 6
    assert ids() == first_events(log_ids)
    assert len(warnings(caplog)) == 1


@pytest.mark.parametrize("types", [None, [Deposited], [Noted]])
def test_no_reader_is_moved_on_by_the_feed_of_another_database(
    pair,  # noqa: F811
    publisher,
    replica_of_another,
    types,
):
    """A page without events moves its reader as well."""
    written(pair)
    feed, here = FeedOnReplica(replica_of_another, using=pair.primary), Feed(using=pair.primary)

    found = feed.read_stored(1, limit=100, types=types)

    assert found == here.read_stored(1, limit=100, types=types)


def test_events_of_another_history_are_not_taken(pair, publisher, servers):  # noqa: F811
    """The same logs, of a copy of the database that went on by itself, as after a restore."""
    server, standby = servers
    [log_id] = written(pair, 1)
    name = connections[pair.primary].settings_dict["NAME"]
    connections[pair.primary].close()
    with alias_of(server) as maintenance, alias_of(server, f"{name}_copy") as copy:
        sql(maintenance, f"CREATE DATABASE {name}_copy TEMPLATE {name}")
        for using in (pair.primary, copy):
            LogManager(Account, using=using).append(log_id, Deposited(2), expected_version=2)
        with alias_of(standby) as there:
            wait_for_replica(maintenance, there)
        with alias_of(standby, f"{name}_copy") as replica:
            Pair(copy, replica).beat()
            feed = FeedOnReplica(replica, using=pair.primary)
            before = feed.read_stored(0, limit=2)  # of both
            found = feed.read_stored(2, limit=100)

    here = Feed(using=pair.primary)
    assert before == here.read_stored(0, limit=2)._replace(settled=before.settled)
    assert found == here.read_stored(2, limit=100)


# Rebuilds.


@pytest.fixture
def balances(pair) -> Iterator[None]:  # noqa: F811
    with connections[pair.primary].schema_editor() as editor:
        editor.create_model(Balance)
    with declaring({"balances": Balances}):
        yield
    with connections[pair.primary].schema_editor() as editor:
        editor.delete_model(Balance)


def rows(pair: Pair) -> dict[LogId, int]:  # noqa: F811
    return dict(Balance.objects.using(pair.primary).values_list("log_id", "balance"))


def test_a_rebuild_reads_there_and_its_last_events_here(pair, balances, read_on):  # noqa: F811
    log_ids = written(pair)
    with paused(pair):
        logs(pair).append(log_ids[0], Deposited(5), expected_version=2)
        late = logs(pair).create(Opened("late"), Deposited(7)).log_id
        erase(log_ids[1], by="hal", reason="asked for", using=pair.primary)

        applied = Balances.rebuild(using=pair.primary, replica=pair.replica)

    assert applied == 7
    assert rows(pair) == {log_ids[0]: 6, log_ids[2]: 1, late: 7}
    assert read_on[0] == pair.replica
    assert set(read_on[1:]) == {pair.primary}
    assert Balances.verify(using=pair.primary, sample=None)


def test_the_command_rebuilds_with_a_replica(pair, balances, read_on):  # noqa: F811
    log_ids, out = written(pair), StringIO()

    call_command(
        "eventlogs",
        "rebuild",
        "balances",
        database=pair.primary,
        replica=pair.replica,
        stdout=out,
    )

    assert "balances: rebuilt from 6 events" in out.getvalue()
    assert rows(pair) == dict.fromkeys(log_ids, 1)
    assert read_on[0] == pair.replica


def test_a_rebuild_without_its_replica_reads_here(pair, balances, read_on, caplog):  # noqa: F811
    log_ids = written(pair)
    with nowhere(pair) as alias:
        assert Balances.rebuild(using=pair.primary, replica=alias) == 6

    assert rows(pair) == dict.fromkeys(log_ids, 1)
    assert set(read_on) == {pair.primary}
