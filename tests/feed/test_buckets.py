"""The feed where positions come from counters: one step at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from django.db import connection, transaction
from django.db.models import Max, Min

from eventlogs import ANY, Feed, FeedUnavailable, LogId, TransactionMustRetry
from eventlogs.feed import buckets as feed_of_buckets
from eventlogs.feed.sources import feed_source_for
from eventlogs.models import Bucket, Event
from eventlogs.stores.buckets import BUCKETS, bucket_of, last_position_at, number_at
from tests.accounts import Account, Deposited, Opened
from tests.races.readers import NaiveReader, Reader

pytestmark = [
    pytest.mark.buckets,
    pytest.mark.django_db(transaction=True, available_apps=["eventlogs"]),
]

accounts = Account.logs


class Session:
    """Another connection to the database, in a thread of its own."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)

    def do(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        return self._thread.submit(call, *arguments, **options).result(20)

    def begin(self) -> None:
        self.do(transaction.set_autocommit, False)

    def commit(self) -> None:
        self.do(lambda: connection.commit())

    def rollback(self) -> None:
        self.do(lambda: connection.rollback())

    def close(self) -> None:
        self._thread.submit(lambda: connection.close()).result(20)
        self._thread.shutdown()


@pytest.fixture
def other() -> Iterator[Session]:
    session = Session()
    yield session
    session.close()


def log_in(bucket: int) -> LogId:
    """Return the id of a new log in a bucket."""
    while True:
        log_id = LogId.new("account")
        if bucket_of(log_id.uuid) == bucket:
            return log_id


def numbers() -> tuple[int, int]:
    found = Bucket.objects.aggregate(lowest=Min("number"), highest=Max("number"))
    return found["lowest"], found["highest"]


def test_positions_are_made_of_the_number_and_the_bucket(db):
    state = accounts.create(Opened("ada"), Deposited(1), log_id=log_in(5))

    first, last = Event.objects.order_by("position").values_list("position", flat=True)
    assert last == state.position
    assert first % BUCKETS == last % BUCKETS == 5
    assert number_at(last) == number_at(first) + 1 == Bucket.objects.get(pk=5).number


def test_an_append_has_higher_positions_than_all_that_were_committed_before(db):
    states = [accounts.create(Opened("ada"), log_id=log_in(bucket)) for bucket in (60, 3, 60, 0)]

    positions = [each.position for each in states]
    assert positions == sorted(positions)


def test_a_clock_that_is_set_back_changes_nothing(db):
    ahead = numbers()[1] + 10**10  # some days
    Bucket.objects.filter(pk=7).update(number=ahead)

    state = accounts.create(Opened("ada"), log_id=log_in(9))

    assert state.position > last_position_at(ahead)
    assert Feed().settled() == state.position


@pytest.mark.locks
def test_an_event_that_is_committed_late_is_not_skipped_and_the_naive_reader_skips_it(other):
    ours, naive = Reader(), NaiveReader()
    other.begin()
    late = other.do(accounts.create, Opened("late"), log_id=log_in(1))
    early = accounts.create(Opened("early"), log_id=log_in(2))

    ours.read()
    naive.read()

    assert ours.seen == []
    assert naive.seen == [early.position]
    assert Feed().settled() == 0

    other.commit()
    ours.read()
    naive.read()
    assert ours.seen == sorted([late.position, early.position])
    if late.position < early.position:
        assert late.position not in naive.seen


@pytest.mark.locks
def test_an_append_after_a_look_is_above_what_was_settled(other):
    accounts.create(Opened("ada"), log_id=log_in(1))
    settled = Feed().settled()

    lowest, highest = numbers()
    assert lowest == highest, "a reader raises the counters of buckets that rest"

    late = other.do(accounts.create, Opened("late"), log_id=log_in(2))
    assert late.position > settled


@pytest.mark.locks
def test_a_transaction_that_rolls_back_ends_the_wait(other):
    other.begin()
    other.do(accounts.create, Opened("gone"), log_id=log_in(1))
    state = accounts.create(Opened("ada"), log_id=log_in(2))
    assert Feed().settled() == 0
    other.rollback()

    assert Feed().settled() == state.position


@pytest.mark.locks
def test_a_held_bucket_holds_back_the_feed_and_no_other_append(other):
    other.begin()
    held = other.do(accounts.create, Opened("open"), log_id=log_in(1))
    state = accounts.create(Opened("ada"), log_id=log_in(2))

    for number in range(5):
        Feed().read()
        state = accounts.append(state, Deposited(number))

    [holder] = Feed().holding_back()
    assert holder.position < held.position
    if connection.vendor == "postgresql":
        assert holder.pid is not None
        assert holder.pid != connection.connection.info.backend_pid
        assert holder.state == "idle in transaction"
        assert holder.age is not None
    other.commit()
    assert Feed().holding_back() == []
    assert len(Feed().read()) == 7


@pytest.mark.locks
def test_a_transaction_reads_its_own_events_and_holds_no_other_counter(other):
    other.do(accounts.create, Opened("theirs"), log_id=log_in(40))
    with transaction.atomic():
        mine = accounts.create(Opened("mine"), log_id=log_in(1))
        again = accounts.create(Opened("mine"), log_id=log_in(2))
        page = Feed().read()

        assert [each.position for each in page][1:] == [mine.position, again.position]
        # Another session is not held up, and appends above what was read here.
        late = other.do(accounts.create, Opened("late"), log_id=log_in(50))
        assert late.position > page.settled
        last = accounts.append(mine, Deposited(1))
        assert last.position > page.settled

    assert [each.position for each in Feed().read(after=page.next_after)] == sorted(
        [late.position, last.position]
    )


@pytest.mark.locks
def test_a_savepoint_that_is_rolled_back_leaves_nothing_to_wait_for(other):
    with transaction.atomic():
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            accounts.create(Opened("gone"), log_id=log_in(1))
            raise ZeroDivisionError
        state = accounts.create(Opened("mine"), log_id=log_in(2))
        assert [each.position for each in Feed().read()] == [state.position]


@pytest.mark.locks
def test_readers_wait_for_nobody(other):
    """All counters are held, and a reader reads what there was before."""
    state = accounts.create(Opened("ada"), log_id=log_in(1))
    assert Feed().settled() == state.position
    other.begin()
    for bucket in range(BUCKETS):
        other.do(accounts.create, Opened("open"), log_id=log_in(bucket))

    assert [each.position for each in Feed().read()] == [state.position]
    with transaction.atomic():
        assert [each.position for each in Feed().read()] == [state.position]


@pytest.mark.locks
def test_a_session_that_may_not_write_reads_up_to_what_others_have_raised():
    first = accounts.create(Opened("ada"), log_id=log_in(1))
    Feed().settled()
    second = accounts.create(Opened("eve"), log_id=log_in(2))
    set_to = {"postgresql": "SET default_transaction_read_only = {}", "mysql": READ_ONLY}
    with sessions_say(set_to[connection.vendor]):
        assert [each.position for each in Feed().read()] == [first.position]

    assert [each.position for each in Feed().read()] == [first.position, second.position]


READ_ONLY = "SET SESSION TRANSACTION READ {}"


@contextmanager
def sessions_say(statement: str) -> Iterator[None]:
    on, off = ("ON", "OFF") if connection.vendor == "postgresql" else ("ONLY", "WRITE")
    with connection.cursor() as cursor:
        cursor.execute(statement.format(on))
        try:
            yield
        finally:
            cursor.execute(statement.format(off))


@contextmanager
def transactions_are(level: str) -> Iterator[None]:
    """Have the transactions of this session be of an isolation level."""
    whose = "CHARACTERISTICS AS " if connection.vendor == "postgresql" else ""
    with connection.cursor() as cursor:
        cursor.execute(f"SET SESSION {whose}TRANSACTION ISOLATION LEVEL {level}")
        try:
            yield
        finally:
            cursor.execute(f"SET SESSION {whose}TRANSACTION ISOLATION LEVEL READ COMMITTED")


def wait_briefly() -> None:
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SET lock_timeout = '300ms'")
        else:
            cursor.execute("SET SESSION innodb_lock_wait_timeout = 1")


@pytest.fixture
def without_autocommit(db) -> Iterator[None]:
    transaction.set_autocommit(False)
    yield
    transaction.rollback()
    transaction.set_autocommit(True)


@pytest.mark.locks
def test_without_autocommit_a_transaction_reads_its_own_events(without_autocommit):
    states = [accounts.create(Opened("mine"), log_id=log_in(bucket)) for bucket in (1, 2)]

    assert [each.position for each in Feed().read()] == [each.position for each in states]


@pytest.mark.locks
def test_without_autocommit_a_reader_holds_no_counter_of_an_earlier_transaction(
    other, without_autocommit
):
    with transaction.atomic():
        accounts.create(Opened("ada"), log_id=log_in(1))
    transaction.commit()
    other.do(accounts.create, Opened("eve"), log_id=log_in(2))
    assert len(Feed().read()) == 2

    other.do(wait_briefly)
    other.do(accounts.create, Opened("not held up"), log_id=log_in(1))


@pytest.mark.locks
def test_after_a_savepoint_was_rolled_back_a_transaction_reads_what_it_had_appended_before(other):
    with transaction.atomic():
        states = [accounts.create(Opened("mine"), log_id=log_in(1))]
        with suppress(ZeroDivisionError), transaction.atomic():
            accounts.create(Opened("gone"), log_id=log_in(3))
            raise ZeroDivisionError
        states.append(accounts.create(Opened("mine"), log_id=log_in(2)))

        assert [each.position for each in Feed().read()] == [each.position for each in states]
        if connection.vendor == "postgresql":  # InnoDB keeps the locks of the savepoint
            other.do(wait_briefly)
            other.do(accounts.create, Opened("not held up"), log_id=log_in(3))


@pytest.mark.locks
def test_a_transaction_whose_snapshot_is_older_than_an_append_to_the_bucket_must_retry(other):
    """It would see its own number, and not the events below it: its reader would skip them."""
    log = accounts.create(Opened("ada"), log_id=log_in(1))
    Feed().settled()
    other.begin()
    late = other.do(accounts.append, log, Deposited(1))
    accounts.create(Opened("eve"), log_id=log_in(2))
    assert Feed().settled() == log.position  # all other buckets are above the late event

    after = 0
    with (
        transactions_are("REPEATABLE READ"),
        suppress(TransactionMustRetry),
        transaction.atomic(),
    ):
        assert Event.objects.count() == 2
        other.commit()
        accounts.create(Opened("mine"), log_id=log_in(1))
        after = Feed().read().next_after

    seen = [each.position for each in Feed().read(after=after)]
    assert late.position in seen
    assert after == 0


@pytest.mark.locks
def test_a_reader_waits_for_nobody_where_transactions_are_repeatable_read(other):
    wait_briefly()
    try:
        for held in (1, 63):
            other.begin()
            other.do(accounts.create, Opened("open"), log_id=log_in(held))
            state = accounts.create(Opened("ada"), log_id=log_in(2))
            with transactions_are("REPEATABLE READ"):
                assert Feed().settled() < state.position
            other.rollback()
            assert Feed().settled() == state.position
    finally:
        connection.close()


@pytest.mark.locks
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_checkpoint_that_is_newer_than_a_snapshot_is_of_the_same_history(other, level):
    accounts.create(Opened("ada"), log_id=log_in(1))
    Feed().settled()
    if connection.vendor == "mysql" and level == "SERIALIZABLE":
        refused = pytest.raises(FeedUnavailable, match="READ COMMITTED")
        with transactions_are(level), refused, transaction.atomic():
            Feed().read()
        return
    with transactions_are(level), transaction.atomic():
        assert Event.objects.count() == 1
        newer = other.do(accounts.create, Opened("eve"), log_id=log_in(2)).position
        token = other.do(Feed().checkpoint)

        for after in (token, newer):
            page = Feed().read(after=after)
            assert (list(page), page.next_after) == ([], newer)
    assert list(Feed().read(after=token)) == []


@pytest.mark.locks
def test_dirty_reads_are_refused():
    with transactions_are("READ UNCOMMITTED"):
        if connection.vendor == "postgresql":  # it has no such level
            assert Feed().settled() == 0
        else:
            with pytest.raises(FeedUnavailable, match="READ COMMITTED"):
                Feed().read()


@pytest.mark.locks
def test_buckets_that_rest_are_not_held():
    """Nor does a session say so that may not find out."""
    accounts.create(Opened("ada"), log_id=log_in(1))
    accounts.create(Opened("eve"), log_id=log_in(2))
    set_to = {"postgresql": "SET default_transaction_read_only = {}", "mysql": READ_ONLY}
    with sessions_say(set_to[connection.vendor]):
        assert Feed().holding_back() == []
        with transaction.atomic():
            assert Feed().holding_back() == []
    with transaction.atomic():
        accounts.create(Opened("mine"), log_id=log_in(3))
        assert Feed().holding_back() == []


def test_filters_partitions_and_pages_add_up(db):
    states = [
        accounts.create(Opened("ada"), *map(Deposited, range(3)), log_id=log_in(bucket))
        for bucket in (1, 30, 31, 63)
    ]
    everything = Feed().read(limit=1000)
    assert len(everything) == 16
    for limit in (1, 3, 16):
        for filters in ({}, {"types": [Deposited]}, {"log_types": "account"}):
            found: list[Any] = []
            after, more = 0, True
            while more:
                page = Feed().read(after=after, limit=limit, **filters)
                found += page
                after, more = page.next_after, page.more
            assert found == [
                each
                for each in everything
                if "types" not in filters or isinstance(each.event, Deposited)
            ]
    of_partitions = [
        each.position
        for number in range(3)
        for each in Feed().read_stored(0, limit=100, partition=(number, 3)).events
    ]
    assert sorted(of_partitions) == [each.position for each in everything]
    assert everything.settled == states[-1].position


def test_the_search_for_rare_events_ends_soon(db, monkeypatch):
    if connection.vendor == "postgresql":
        from eventlogs.feed import postgresql

        monkeypatch.setattr(postgresql, "EXAMINED", 5)
    state = accounts.create(*map(Deposited, range(20)), log_id=log_in(1))
    accounts.append(state, Opened("rare"))

    pages, after = 0, 0
    while True:
        found = Feed().read_stored(after, limit=10, types=[Opened])
        pages += 1
        assert found.next_after > after
        after = found.next_after
        if not found.more:
            break

    assert [each.type for each in found.events] == ["account.opened"]
    if connection.vendor == "postgresql":
        assert pages > 3


def test_without_counters_the_feed_is_refused(db):
    numbers_before = list(Bucket.objects.all())
    Bucket.objects.all().delete()
    try:
        with pytest.raises(FeedUnavailable, match="eventlogs layout") as caught:
            Feed().read()
        assert caught.value.reason == "layout"
        assert feed_source_for("default").refusals() == ["layout"]
    finally:
        Bucket.objects.bulk_create(numbers_before)


@pytest.mark.locks
def test_the_lock_of_a_raise_ends_with_it(other):
    accounts.create(Opened("ada"), log_id=log_in(1))
    with transaction.atomic():
        Feed().read()
        other.do(accounts.create, Opened("not held up"), log_id=log_in(2))


@pytest.mark.locks
@pytest.mark.one_server
def test_a_broken_version_that_raises_in_the_callers_transaction_holds_up_appends(
    other, monkeypatch
):
    monkeypatch.setattr(
        feed_of_buckets,
        "_raise_apart",
        lambda connection, number: Bucket.objects.filter(number__lt=number).update(number=number),
    )
    accounts.create(Opened("ada"), log_id=log_in(1))

    other.do(wait_briefly)
    with transaction.atomic():
        Feed().read()
        with pytest.raises(Exception, match=r"lock|retry|again"):
            other.do(accounts.create, Opened("held up"), log_id=log_in(2))


@pytest.mark.postgresql
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_snapshot_shows_all_that_is_settled_in_it(other, level):
    first = accounts.create(Opened("ada"), log_id=log_in(1))
    Feed().settled()
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute(f"SET TRANSACTION ISOLATION LEVEL {level}")
        assert [each.position for each in Feed().read()] == [first.position]
        second = other.do(accounts.create, Opened("eve"), log_id=log_in(2))
        assert [each.position for each in Feed().read()] == [first.position]
    assert [each.position for each in Feed().read()] == [first.position, second.position]


def test_appends_at_any_version_and_with_keys_take_positions(db):
    state = accounts.create(Opened("ada"), idempotency_key="create")
    state = accounts.append(state, Deposited(1), idempotency_key="one")
    state = accounts.append(state, Deposited(1), Deposited(2), idempotency_key="many")
    state = accounts.append(state.log_id, Deposited(3), expected_version=ANY)
    other = accounts.create(Opened("eve"), Deposited(1), Deposited(2), idempotency_key="creates")
    accounts.append(other, Deposited(3), also_expect=[state])

    found = list(Feed().read())
    assert len(found) == 9
    assert all(each.position % BUCKETS == bucket_of(each.log_id.uuid) for each in found)
