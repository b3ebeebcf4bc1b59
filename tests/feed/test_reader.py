"""The feed: all events in the order of positions, and only what is settled."""

from __future__ import annotations

import inspect
import threading
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any
from uuid import UUID

import pytest
from asgiref.sync import async_to_sync
from django.core.management import call_command
from django.db import connection, connections, transaction

from eventlogs import (
    ANY,
    CheckpointDiffers,
    Feed,
    FeedPage,
    FeedUnavailable,
    HistoryDiffers,
    LogId,
    LogManager,
    UndecodableEvent,
    UnknownEventType,
    conf,
    event,
)
from eventlogs.events.registry import registry
from eventlogs.feed.reader import HEARTBEAT, LONGEST_PAUSE, SHORTEST_PAUSE, Pace
from eventlogs.feed.sources import partition_of, source_in
from eventlogs.feed.stored_pages import StoredPage
from eventlogs.feed.tokens import Place, Token, Witness
from eventlogs.models import Checkpoint, Event
from eventlogs.operations.erasure import erase
from tests.accounts import Account, Deposited, Opened, Parcel, Sent, Withdrawn

COMMITS = pytest.mark.django_db(transaction=True, available_apps=["eventlogs"])


def read_all(feed, **options):
    """Return the events of all pages."""
    found, after, more = [], 0, True
    while more:
        page = feed.read(after=after, **options)
        found += page
        after, more = page.next_after, page.more
    return found


def events(records):
    return [record.event for record in records]


@pytest.fixture
def deposits(db):
    """The records of 20 deposits to each of three accounts, in turns."""
    states = [Account.logs.create(Opened(name)) for name in ("ada", "bob", "cid")]
    for amount in range(20):
        states = [Account.logs.append(state, Deposited(amount)) for state in states]
    return list(Feed().read(limit=63))


# Reading.


def test_the_feed_holds_the_events_of_all_logs_in_the_order_of_positions(db):
    ada = Account.logs.create(Opened("ada"), Deposited(5), metadata={"till": 7})
    parcel = Parcel.logs.create(Sent("bob"), idempotency_key="k")
    Account.logs.append(ada, Deposited(7))

    page = Feed().read()

    assert isinstance(page, FeedPage)
    assert events(page) == [Opened("ada"), Deposited(5), Sent("bob"), Deposited(7)]
    assert [record.log_id for record in page] == [
        ada.log_id,
        ada.log_id,
        parcel.log_id,
        ada.log_id,
    ]
    assert all(one.position < other.position for one, other in pairwise(page))
    assert list(page)[:2] + list(page)[3:] == list(Account.logs.load(ada.log_id))
    assert (page.next_after, page.more) == (page[-1].position, False)
    assert page[1:3] == (page[1], page[2])
    assert repr(page) == f"<FeedPage: 4 events, next_after={page.next_after}, more=False>"
    assert Feed().settled() == page.settled == page[-1].position
    assert Feed().holding_back() == []


def test_a_feed_without_events_is_an_empty_page(db):
    page = Feed().read()

    assert (list(page), page.next_after, page.more, page.settled) == ([], 0, False, 0)
    assert Feed().settled() == 0


@pytest.mark.parametrize("limit", [1, 7, 62, 63, 64, 10_000])
def test_pages_of_any_size_add_up(deposits, limit):
    assert read_all(Feed(), limit=limit) == deposits


def test_a_page_says_whether_there_is_more(deposits):
    first = Feed().read(limit=62)
    second = Feed().read(after=first.next_after, limit=1)

    assert (first.more, first.settled) == (True, deposits[-1].position)
    assert second.more is False


def test_a_page_is_as_long_as_the_setting_says(deposits, settings):
    settings.EVENTLOGS = {"PAGE_SIZE": 5}

    assert len(Feed().read()) == 5


@pytest.fixture
def same_sequence_afterwards(db):
    """Reset the sequence of positions; a rollback does not reset it."""
    if connection.vendor != "postgresql":
        yield
        return
    with connection.cursor() as cursor:
        cursor.execute("SELECT last_value FROM eventlogs_event_position_seq")
        (before,) = cursor.fetchone()
        yield
        cursor.execute("SELECT setval('eventlogs_event_position_seq', %s)", [before])


@pytest.mark.fence
def test_gaps_between_positions_are_skipped(deposits, same_sequence_afterwards):
    gap = 3 * 10**9
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            cursor.execute("UPDATE sqlite_sequence SET seq = %s", [gap])
        else:
            cursor.execute("SELECT setval('eventlogs_event_position_seq', %s)", [gap])
    state = Account.logs.create(Opened("dan"))

    assert events(read_all(Feed(), limit=10)[-2:]) == [Deposited(19), Opened("dan")]
    assert events(Feed().read(after=deposits[-1].position)) == [Opened("dan")]
    assert Feed().read_stored(0, limit=100, types=[Opened]).next_after == state.position


def test_types_are_given_by_name_or_class(deposits):
    state = Account.logs.append(deposits[-1].log_id, Withdrawn(1), expected_version=ANY)

    assert events(read_all(Feed(), types=[Withdrawn])) == [Withdrawn(1)]
    assert events(read_all(Feed(), types=Withdrawn)) == [Withdrawn(1)]
    assert events(read_all(Feed(), types="account.withdrawn")) == [Withdrawn(1)]
    both = read_all(Feed(), types=["account.withdrawn", Opened], limit=2)
    assert events(both) == [Opened("ada"), Opened("bob"), Opened("cid"), Withdrawn(1)]
    assert Feed().read(types=["account.lost"]).next_after == state.position
    assert list(Feed().read(types=[])) == []
    with pytest.raises(TypeError, match="not an event class"):
        Feed().read(types=[Account])


@pytest.mark.usefixtures("scratch_registry")
def test_a_class_includes_its_older_names(deposits):
    @event("account.paid_in", aliases=["account.deposited"])
    @dataclass(frozen=True)
    class PaidIn:
        amount: int

    found = Feed().read_stored(0, limit=100, types=[PaidIn])

    assert len(found.events) == 60


def test_log_types_are_given_by_name(deposits):
    parcel = Parcel.logs.create(Sent("bob"))
    Account.logs.create(Opened("dan"))

    page = Feed().read(log_types=["parcel"])

    assert [record.log_id for record in page] == [parcel.log_id]
    assert page.next_after == Feed().settled() > page[0].position
    assert list(Feed().read(log_types="parcel")) == list(page)
    assert list(Feed().read(log_types=["parcel"], types=[Opened])) == []
    assert len(read_all(Feed(), log_types=["parcel", "account"])) == 65


def test_raw_events_are_read_without_their_classes(deposits):
    records = Feed().read(types=[Deposited], limit=1, decode=False)

    assert (records[0].event, records[0].log_id) == ({"amount": 0}, deposits[3].log_id)


@pytest.mark.usefixtures("scratch_registry")
def test_an_event_that_cannot_be_decoded_is_named(deposits):
    del registry._by_name["account.deposited"]

    @event("account.deposited")
    @dataclass(frozen=True)
    class Misread:
        amount: str

    with pytest.raises(UndecodableEvent) as caught:
        Feed().read()
    assert (caught.value.log_id, caught.value.index) == (deposits[3].log_id, 1)

    del registry._by_name["account.deposited"]
    with pytest.raises(UnknownEventType) as unknown:
        Feed().read()
    assert (unknown.value.log_id, unknown.value.index) == (deposits[3].log_id, 1)
    assert len(Feed().read(decode=False, limit=63)) == 63


@pytest.mark.parametrize(
    "arguments", [{"after": -1}, {"limit": 0}, {"limit": 10_001}, {"after": -1, "limit": 5}]
)
def test_arguments_out_of_bounds_are_refused(arguments):
    with pytest.raises(ValueError, match=r"after|limit"):
        Feed().read(**arguments)


@pytest.mark.fence
def test_reading_takes_four_statements_however_many_events(deposits, django_assert_num_queries):
    Feed().read()  # looks up the name of the sequence
    statements = statements_of_a_read()

    with django_assert_num_queries(statements):
        Feed().read(after=deposits[0].position, limit=10)


def test_another_database_has_its_own_feed(second_database):
    state = LogManager(Account, using=second_database).create(Opened("ada"))

    assert events(Feed(using=second_database).read()) == [Opened("ada")]
    assert Feed(using=second_database).settled() == state.position
    assert Feed(using=second_database).using == second_database
    assert Feed().using == "default"


# Checkpoints.


def missing_or_other(position, using="default"):
    return (
        f"The checkpoint at position {position} is not of the history of the database {using!r}: "
        f"{{}}. An older backup was restored, a failover has lost events, or it is another "
        f"database. Read again from an older checkpoint that is accepted, or from the beginning, "
        f"and correct what was made of the lost events."
    )


ANOTHER_EVENT = "another event has the position of one that it names"
NO_EVENT = "an event that it names is missing, and its log was neither erased nor archived"
NEVER_ASSIGNED = "its position was never assigned"


def lose(after):
    """Take the database back to a position, as a restore does."""
    Event.objects.filter(position__gt=after)._raw_delete("default")
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            cursor.execute("UPDATE sqlite_sequence SET seq = %s", [after])
        else:
            cursor.execute("SELECT setval('eventlogs_event_position_seq', %s)", [after])


@pytest.fixture
def losing(deposits, same_sequence_afterwards):
    """Events that may be deleted: the trigger is off until the test is rolled back."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(
                "ALTER TABLE eventlogs_event DISABLE TRIGGER eventlogs_event_refuse_change"
            )
    return deposits


@pytest.mark.parametrize("limit", [1, 7, 62, 63, 64])
def test_checkpoints_lead_through_the_feed_as_positions_do(deposits, limit):
    found: list[Any] = []
    after: int | str = 0
    more = True
    while more:
        page = Feed().read(after=after, limit=limit)
        assert Token.parse(page.checkpoint).position == page.next_after
        found += page
        after, more = page.checkpoint, page.more

    assert found == deposits
    assert list(Feed().read(after=after)) == []
    assert Feed().checkpoint() == Feed.checkpoint_of(deposits[-1])
    assert list(Feed().read(after=Feed().checkpoint())) == []
    later = Account.logs.create(Opened("dan"))
    assert [record.position for record in Feed().read(after=after)] == [later.position]


def test_a_checkpoint_names_the_last_events_of_several_logs(deposits):
    page = Feed().read(limit=10)

    named = Token.parse(page.checkpoint).witnesses
    assert [each.position for each in named] == [each.position for each in page[:-4:-1]]
    assert len({each.log for each in named}) == 3
    # A page with one event has the rest from the checkpoint before it.
    following = Feed().read(after=page.checkpoint, limit=1)
    assert Token.parse(following.checkpoint).witnesses[1:] == tuple(
        each for each in named if each.log != following[0].log_id.uuid
    )


def test_a_checkpoint_of_a_filtered_page_names_the_last_event_that_was_examined(deposits):
    page = Feed().read(types=[Opened], limit=10)

    token = Token.parse(page.checkpoint)

    assert token.position == page.next_after == deposits[-1].position
    assert token.witnesses[0] == Witness.of(Place.of(deposits[-1]))
    assert list(Feed().read(after=page.checkpoint, types=[Opened])) == []


def statements_of_a_read() -> int:
    """Return how many statements a read takes: MariaDB is asked what kind of a session it is."""
    with_fence = connection.vendor == "postgresql" and not conf.has_buckets()
    return 4 if with_fence or connection.vendor == "mysql" else 3


def test_a_checkpoint_costs_no_query_and_its_proof_one(deposits, django_assert_num_queries):
    Feed().read()  # looks up the name of the sequence
    statements = statements_of_a_read()

    with django_assert_num_queries(statements):
        page = Feed().read(after=deposits[0].position, limit=10)
        checkpoint = page.checkpoint
    with django_assert_num_queries(statements + 1):
        Feed().read(after=checkpoint, limit=10)


def test_the_beginning_has_a_checkpoint_in_every_history(db):
    page = Feed().read()
    assert page.checkpoint == Feed().checkpoint() == str(Token(0))

    Account.logs.create(Opened("ada"))

    assert events(Feed().read(after=page.checkpoint)) == [Opened("ada")]


def test_a_position_is_a_checkpoint_that_proves_nothing(deposits):
    assert list(Feed().read(after=str(Token(deposits[0].position)))) == deposits[1:]
    with pytest.raises(FeedUnavailable) as caught:
        Feed().read(after=str(Token(deposits[-1].position + 100)))
    assert caught.value.reason == "ahead"


def test_other_text_than_a_checkpoint_is_refused(db):
    for ask in (Feed().read, Feed().follow):
        with pytest.raises(ValueError, match="not a checkpoint") as caught:
            ask(after="41")
        assert str(caught.value) == (
            "after is not a checkpoint of a page. Pass a position, or page.checkpoint as it was "
            "returned."
        )


@pytest.mark.fence
def test_a_checkpoint_ahead_of_a_restored_database_is_refused(losing):
    page = Feed().read(limit=63)
    lose(after=page[40].position)

    with pytest.raises(CheckpointDiffers) as caught:
        Feed().read(after=page.checkpoint)

    assert (caught.value.position, caught.value.using) == (page.next_after, "default")
    assert str(caught.value) == missing_or_other(page.next_after).format(NEVER_ASSIGNED)


@pytest.mark.fence
def test_a_checkpoint_is_refused_once_its_position_was_given_to_another_event(losing):
    page = Feed().read(limit=63)
    lose(after=page[40].position)
    state = Account.logs.create(Opened("dan"), *[Deposited(n) for n in range(30)])
    assert state.position > page.next_after

    with pytest.raises(HistoryDiffers) as caught:
        Feed().read(after=page.checkpoint)
    with pytest.raises(HistoryDiffers):
        next(Feed().follow(after=page.checkpoint))

    assert str(caught.value) == missing_or_other(page.next_after).format(ANOTHER_EVENT)
    # A plain position misses the new events up to it, in silence.
    naive = [*page, *Feed().read(after=page.next_after)]
    stored = {record.id for record in Feed().read(limit=200)}
    assert stored - {record.id for record in naive}
    # A checkpoint from before is accepted: what comes after it has to be read again.
    before = Feed.checkpoint_of(page[40])
    assert len(Feed().read(after=before)) == 31


@pytest.mark.fence
def test_a_checkpoint_is_refused_if_its_position_is_a_gap_now(losing):
    page = Feed().read(limit=63)
    lose(after=page[40].position)
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            cursor.execute("UPDATE sqlite_sequence SET seq = seq + 1000")
        else:
            cursor.execute(
                "SELECT setval('eventlogs_event_position_seq',"
                " nextval('eventlogs_event_position_seq') + 1000)"
            )
    Account.logs.create(Opened("dan"))

    with pytest.raises(HistoryDiffers) as caught:
        Feed().read(after=page.checkpoint)

    assert str(caught.value) == missing_or_other(page.next_after).format(NO_EVENT)


@pytest.mark.fence
def test_the_same_event_that_was_recorded_again_is_another_one(losing):
    """The client of a lost append tries again: same log, index and position, another time."""
    state = Account.logs.append(losing[-1].log_id, Deposited(7), expected_version=ANY)
    page = Feed().read(after=losing[-1].position)
    lose(after=losing[-1].position)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE eventlogs_eventlog SET version = version - 1 WHERE version = 22")
    again = Account.logs.append(losing[-1].log_id, Deposited(7), expected_version=ANY)
    assert (again.position, again.version) == (state.position, state.version)

    with pytest.raises(HistoryDiffers):
        Feed().read(after=page.checkpoint)


@pytest.mark.postgresql
@pytest.mark.fence
def test_a_history_that_changes_during_the_read_is_noticed(losing):
    """As with a pooler, which goes on with another server after a failover."""
    from tests.races.feeds_postgresql import Interrupted
    from tests.races.readers import FeedOf

    page = Feed().read(limit=50)

    def fail_over():
        lose(after=page[40].position)
        Account.logs.create(Opened("dan"), *[Deposited(n) for n in range(30)])

    with pytest.raises(HistoryDiffers):
        FeedOf(Interrupted("feed_page", fail_over)).read(after=page.checkpoint)


@pytest.mark.fence
def test_an_earlier_event_that_was_lost_is_noticed(losing):
    page = Feed().read(limit=63)
    Event.objects.filter(position=page[-2].position)._raw_delete("default")

    with pytest.raises(HistoryDiffers) as caught:
        Feed().read(after=page.checkpoint)

    assert str(caught.value) == missing_or_other(page.next_after).format(NO_EVENT)


@COMMITS
@pytest.mark.parametrize("erased", [1, 2, 3])
def test_a_checkpoint_stays_valid_when_logs_are_erased(erased):
    logs = [Account.logs.create(Opened(name)).log_id for name in ("ada", "bob", "cid")]
    page = Feed().read()
    assert len(Token.parse(page.checkpoint).witnesses) == 3

    for log_id in logs[-erased:]:
        erase(log_id, reason="a test", by="grace")

    assert list(Feed().read(after=page.checkpoint)) == []
    later = Account.logs.create(Opened("dan"))
    following = Feed().read(after=page.checkpoint)
    assert [record.position for record in following] == [later.position]
    assert list(Feed().read(after=following.checkpoint)) == []


@COMMITS
def test_an_erased_log_excuses_no_event_of_another_log():
    first = Account.logs.create(Opened("ada")).log_id
    Account.logs.create(Opened("bob"))
    page = Feed().read()
    erase(first, reason="a test", by="grace")
    named = Token.parse(page.checkpoint).witnesses
    foreign = Token(page.next_after, (named[0]._replace(position=named[1].position), named[1]))

    with pytest.raises(HistoryDiffers) as caught:
        Feed().read(after=str(foreign))

    assert str(caught.value) == missing_or_other(page.next_after).format(NO_EVENT)


def test_a_checkpoint_of_another_database_is_refused(second_database):
    here, there = Feed(), Feed(using=second_database)
    LogManager(Account, using=second_database).create(Opened("ada"), Deposited(1))
    Account.logs.create(*[Deposited(n) for n in range(200)])
    checkpoint = there.read().checkpoint
    position = there.settled()

    with pytest.raises(HistoryDiffers):
        here.read(after=checkpoint)
    with pytest.raises(CheckpointDiffers) as caught:
        there.read(after=here.checkpoint())

    assert str(caught.value) == missing_or_other(here.settled(), second_database).format(
        NEVER_ASSIGNED
    )
    assert list(there.read(after=checkpoint)) == []
    assert there.settled() == position


@pytest.mark.parametrize("begins", ["at the beginning", "later"])
@pytest.mark.fence
def test_a_follower_proves_its_checkpoint_at_every_read(losing, begins):
    after = str(Token(0)) if begins == "at the beginning" else Feed().read(limit=62).checkpoint
    following = Feed().follow(after=after)
    assert list(islice(following, len(Feed().read(after=after))))[-1] == losing[-1]
    lose(after=losing[40].position)
    Account.logs.create(Opened("dan"), *[Deposited(n) for n in range(30)])

    with pytest.raises(HistoryDiffers):
        next(following)


# Partitions.


def test_partitions_share_the_feed_among_them(deposits):
    parts = [Feed().read_stored(0, limit=100, partition=(number, 4)) for number in range(4)]

    rows = sorted((row for part in parts for row in part.events), key=lambda row: row.position)
    assert list(Feed().records(rows)) == deposits
    assert {part.next_after for part in parts} == {deposits[-1].position}
    for number, part in enumerate(parts):
        assert all(partition_of(row.log_id.uuid, 4) == number for row in part.events)


@pytest.mark.parametrize("of", [1, 2, 3, 7, 256, 1000, 65_536])
def test_a_log_is_in_the_same_partition_on_every_database(db, of):
    for _ in range(5):
        log_id = Account.logs.create(Opened("ada")).log_id
        mine = partition_of(log_id.uuid, of)

        rows = Feed().read_stored(0, limit=100, partition=(mine, of)).events

        assert log_id.uuid in {row.log_id.uuid for row in rows}
        if of > 1:
            others = Feed().read_stored(0, limit=100, partition=((mine + 1) % of, of)).events
            assert log_id.uuid not in {row.log_id.uuid for row in others}


def test_the_partition_of_a_log_never_changes():
    assert partition_of(UUID("01890a5d-ac96-774b-bcce-b302099a8057"), 16) == 0x8057 % 16
    assert partition_of(UUID("01890a5d-ac96-774b-bcce-b302099a8057"), 1000) == 0x8057 % 1000


def test_partitions_are_about_as_large_as_each_other():
    sizes = [0] * 8
    for _ in range(4_000):
        sizes[partition_of(LogId.new("account").uuid, 8)] += 1

    assert min(sizes) > 350


@pytest.mark.parametrize("partition", [(1, 1), (-1, 2), (0, 0), (0, 65_537)])
def test_an_invalid_partition_is_refused(partition):
    with pytest.raises(ValueError, match="partition"):
        Feed().read_stored(0, limit=1, partition=partition)


@pytest.mark.fence
def test_the_search_for_rare_events_is_split_into_several_calls(deposits, monkeypatch):
    if connection.vendor == "postgresql":
        monkeypatch.setattr("eventlogs.feed.postgresql.MAX_SPAN", 5)
        monkeypatch.setattr("eventlogs.feed.postgresql.SPANS", 2)
    Account.logs.append(deposits[-1].log_id, Withdrawn(1), expected_version=ANY)

    calls, after, more = 0, 0, True
    rows: list[Any] = []
    while more:
        found = Feed().read_stored(after, limit=1, types=[Withdrawn])
        assert found.next_after > after
        rows, after, more, calls = rows + found.events, found.next_after, found.more, calls + 1

    assert len(rows) == 1
    assert calls > 3 or connection.vendor == "sqlite"
    assert events(Feed().read(types=[Withdrawn], limit=1)) == [Withdrawn(1)]


# Following.


@COMMITS
def test_following_continues_with_events_appended_later():
    stop, seen = threading.Event(), threading.Semaphore(0)
    records = []

    def follow():
        try:
            for record in Feed().follow(stop=stop):
                records.append(record)
                seen.release()
        finally:
            connections.close_all()

    Account.logs.create(Opened("ada"))
    follower = threading.Thread(target=follow)
    follower.start()
    assert seen.acquire(timeout=20)
    Account.logs.create(Opened("bob"), Deposited(5))
    assert seen.acquire(timeout=20)
    assert seen.acquire(timeout=20)
    stop.set()
    follower.join(20)

    assert not follower.is_alive()
    assert events(records) == [Opened("ada"), Opened("bob"), Deposited(5)]


def test_following_starts_anywhere_and_filters(deposits):
    after = deposits[10].position
    following = Feed().follow(after=after, types=[Deposited], log_types=["account"])

    assert [next(following) for _ in range(52)] == deposits[11:]
    following.close()


def test_stop_is_checked_between_two_events(deposits):
    stop = threading.Event()
    following = Feed().follow(stop=stop)
    next(following)

    stop.set()

    assert list(following) == []
    assert list(Feed().follow(stop=lambda: True)) == []


def test_a_function_stops_a_follower_that_waits(db):
    answers = iter([False, False, False, True, True])

    assert list(Feed().follow(stop=lambda: next(answers))) == []


def test_following_refuses_invalid_arguments_at_once():
    with pytest.raises(ValueError, match="after"):
        Feed().follow(after=-1)
    with pytest.raises(TypeError, match="not an event class"):
        Feed().follow(types=[Account])


def test_polling_slows_down_while_no_event_comes_and_speeds_up_at_once():
    nothing, something, rest = (
        StoredPage([], 5, False, 5),
        StoredPage([], 9, False, 9),
        StoredPage([], 7, True, 9),
    )
    pace = Pace()

    pauses = [pace.pause(nothing, 5) for _ in range(30)]

    assert pauses[0] == SHORTEST_PAUSE
    assert all(one <= other for one, other in pairwise(pauses))
    assert pauses[-1] == LONGEST_PAUSE
    assert pace.pause(rest, 5) == 0
    assert pace.pause(something, 7) == SHORTEST_PAUSE


# The heartbeat.


def test_a_heartbeat_stores_the_settled_position(db, django_assert_num_queries):
    assert Feed().heartbeat() == 0
    state = Account.logs.create(Opened("ada"), Deposited(5))

    assert Feed().heartbeat() == state.position

    [row] = Checkpoint.objects.all()
    assert (row.projection, row.position, row.is_rebuild) == (HEARTBEAT, state.position, False)
    looks = statements_of_a_read()
    with django_assert_num_queries(looks):  # nothing has come: nothing is written
        Feed().heartbeat()


@pytest.mark.fence
def test_a_heartbeat_after_a_restore_goes_back(losing):
    assert Feed().heartbeat() == losing[-1].position
    lose(after=losing[40].position)

    assert Feed().heartbeat() == losing[40].position

    assert Checkpoint.objects.get().position == losing[40].position


# Async twins.


@COMMITS
def test_the_async_twins_answer_the_same():
    Account.logs.create(Opened("ada"), Deposited(5))

    async def ask():
        feed = Feed()
        page = await feed.aread(limit=1)
        rest: list[Any] = []
        async for record in feed.afollow(after=page.next_after, stop=lambda: len(rest) == 1):
            rest.append(record)
        assert list(await feed.aread(after=page.checkpoint)) == rest
        assert await feed.acheckpoint() == feed.checkpoint_of(rest[-1])
        assert await feed.aheartbeat() == rest[-1].position
        return [*page, *rest], await feed.asettled(), await feed.aholding_back()

    records, settled, holders = async_to_sync(ask)()

    assert records == list(Feed().read())
    assert (settled, holders) == (Feed().settled(), [])


@COMMITS
def test_an_async_follower_proves_its_checkpoint():
    state = Account.logs.create(Opened("ada"), Deposited(5))
    page = Feed().read(limit=1)
    foreign = Token(state.position, tuple(Token.parse(page.checkpoint).witnesses))
    foreign = foreign._replace(witnesses=(foreign.witnesses[0]._replace(position=state.position),))

    async def ask(after):
        async for record in Feed().afollow(after=after):
            return record

    assert async_to_sync(ask)(page.checkpoint).event == Deposited(5)
    with pytest.raises(HistoryDiffers):
        async_to_sync(ask)(str(foreign))


@pytest.mark.parametrize(
    "name", ["read", "settled", "checkpoint", "heartbeat", "follow", "holding_back"]
)
def test_an_async_twin_has_the_same_parameters(name):
    twin = inspect.signature(getattr(Feed, f"a{name}"))

    assert twin.parameters == inspect.signature(getattr(Feed, name)).parameters


# Refusals.


@pytest.mark.postgresql
@COMMITS
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
@pytest.mark.fence
def test_a_transaction_on_a_snapshot_is_refused_and_stays_usable(level):
    Account.logs.create(Opened("ada"))

    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"SET TRANSACTION ISOLATION LEVEL {level}")
        for ask in (Feed().read, Feed().settled, Feed().follow().__next__):
            with pytest.raises(FeedUnavailable) as caught:
                ask()
            assert (caught.value.reason, caught.value.using) == ("isolation", "default")
        assert Event.objects.count() == 1


@pytest.mark.postgresql
@COMMITS
@pytest.mark.fence
def test_a_transaction_unknown_to_django_is_refused_as_well():
    with connection.cursor() as cursor:
        cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        try:
            with pytest.raises(FeedUnavailable, match="READ COMMITTED"):
                Feed().read()
        finally:
            cursor.execute("ROLLBACK")


@pytest.mark.postgresql
@COMMITS
@pytest.mark.fence
def test_reads_outside_of_transactions_work_if_snapshots_are_the_default():
    Account.logs.create(Opened("ada"))
    with connection.cursor() as cursor:
        cursor.execute("SET default_transaction_isolation = 'repeatable read'")
        try:
            assert events(Feed().read()) == [Opened("ada")]
            with transaction.atomic(), pytest.raises(FeedUnavailable):
                Feed().read()
        finally:
            cursor.execute("RESET default_transaction_isolation")


@pytest.mark.postgresql
@pytest.mark.parametrize(
    ("tampering", "reason"),
    [
        ("ALTER TABLE eventlogs_event ALTER position SET CACHE 10", "sequence"),
        ("ALTER TABLE eventlogs_event ALTER position SET CYCLE", "sequence"),
        ("ALTER TABLE eventlogs_event ALTER position SET MINVALUE 0", "sequence"),
        ("ALTER TABLE eventlogs_event ALTER position SET INCREMENT -1 SET MINVALUE 1", "sequence"),
        ("ALTER TABLE eventlogs_event ALTER position DROP IDENTITY", "sequence"),
        (
            "CREATE TABLE pg_dist_partition AS SELECT 'eventlogs_event'::regclass AS logicalrelid",
            "distributed",
        ),
        ("CREATE FUNCTION yb_servers() RETURNS integer LANGUAGE sql AS 'SELECT 3'", "distributed"),
        ("ALTER TABLE eventlogs_event DISABLE TRIGGER eventlogs_event_fence", "fence"),
        ("ALTER TABLE eventlogs_event ENABLE TRIGGER eventlogs_event_fence", "fence"),
        ("DROP TRIGGER eventlogs_event_fence ON eventlogs_event", "fence"),
    ],
)
@pytest.mark.fence
def test_a_feed_that_could_skip_events_is_refused(db, tampering, reason):
    Account.logs.create(Opened("ada"))
    source_in.cache_clear()  # a server is asked for its version once
    with connection.cursor() as cursor:
        cursor.execute(tampering)

    with pytest.raises(FeedUnavailable) as caught:
        Feed().read()

    assert caught.value.reason == reason
    assert Event.objects.count() == 1  # the caller's transaction is usable


@pytest.mark.postgresql
@pytest.mark.parametrize(
    ("version", "is_refused"),
    [
        ("PostgreSQL 11.2-YB-2.20.1.0-b0 on x86_64-pc-linux-gnu", True),
        ("CockroachDB CCL v23.2.4 (x86_64-pc-linux-gnu, built 2024/04/08)", True),
        ("PostgreSQL 12.12 (Greenplum Database 7.1.0 build commit:e7c2b1f)", True),
        ("EnterpriseDB 15.4 on x86_64-pc-linux-gnu", False),
    ],
)
@pytest.mark.fence
def test_a_server_whose_version_names_a_distributed_database_is_refused(db, version, is_refused):
    Account.logs.create(Opened("ada"))
    source_in.cache_clear()
    with connection.cursor() as cursor:
        cursor.execute(
            f"CREATE SCHEMA lookalike; CREATE FUNCTION lookalike.version() RETURNS text"
            f" LANGUAGE sql AS $$ SELECT '{version}' $$;"
            f" SET LOCAL search_path = lookalike, public, pg_catalog"
        )

    if is_refused:
        for ask in (Feed().read, Feed().settled, Feed().holding_back):
            with pytest.raises(FeedUnavailable) as caught:
                ask()
            assert caught.value.reason == "distributed"
    else:
        assert events(Feed().read()) == [Opened("ada")]


@pytest.mark.postgresql
def test_citus_is_accepted_if_only_other_tables_are_distributed(db):
    Account.logs.create(Opened("ada"))
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE other (n integer)")
        cursor.execute("CREATE TABLE pg_dist_partition AS SELECT 'other'::regclass AS logicalrelid")

    assert events(Feed().read()) == [Opened("ada")]


@pytest.mark.postgresql
@pytest.mark.fence
def test_a_sequence_with_a_larger_increment_is_accepted(db):
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE eventlogs_event ALTER position SET INCREMENT 10")
    Account.logs.create(Opened("ada"), Deposited(1))

    assert events(Feed().read()) == [Opened("ada"), Deposited(1)]


def test_a_position_that_was_never_given_out_is_refused(deposits):
    with pytest.raises(FeedUnavailable) as caught:
        Feed().read(after=deposits[-1].position + 100)

    assert caught.value.reason == "ahead"


@pytest.mark.fence
def test_a_database_of_another_vendor_is_refused(monkeypatch):
    monkeypatch.setattr(connection, "vendor", "mysql")
    source_in.cache_clear()  # a refusal is not cached

    with pytest.raises(FeedUnavailable) as caught:
        Feed().settled()

    assert caught.value.reason == "database"


@pytest.mark.postgresql
@pytest.mark.fence
def test_a_sequence_with_another_name_is_found(second_database):
    with connections[second_database].cursor() as cursor:
        cursor.execute('ALTER SEQUENCE eventlogs_event_position_seq RENAME TO "the positions"')
        cursor.execute("DROP TRIGGER eventlogs_event_fence ON eventlogs_event")
    for arguments in (("0002", True), ("0003", False)):
        call_command(
            "migrate",
            "eventlogs",
            arguments[0],
            fake=arguments[1],
            database=second_database,
            verbosity=0,
        )
    LogManager(Account, using=second_database).create(Opened("ada"))

    assert events(Feed(using=second_database).read()) == [Opened("ada")]
    assert Feed(using=second_database).holding_back() == []
