"""Late commits, set up one step at a time: the feed while transactions are open."""

from __future__ import annotations

from contextlib import suppress

import pytest
from django.db import connection, transaction

from eventlogs import ANY, ConcurrentAppend, Feed, IdempotentReplay
from tests.processes import until
from tests.races import COMMITS
from tests.races.events import batch
from tests.races.feeds_postgresql import Interrupted, LooksAtFencesFirst
from tests.races.jobs import ChangedMind
from tests.races.readers import FeedOf, NaiveReader, Reader
from tests.races.stores import races
from tests.races.test_interleavings import Session, blocked, other, wait_until_blocked

__all__ = ["blocked", "other"]  # fixtures

pytestmark = [pytest.mark.postgresql, pytest.mark.fence, COMMITS]

manager = races("postgresql")


def append(log_id, marker="late", of=1):
    return manager.append(log_id, *batch(marker, of), expected_version=ANY)


def markers(page):
    return [record.event.marker for record in page]


def fences(pid):
    return Session.sql(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = %s", pid
    )


def test_an_event_that_is_committed_late_is_not_skipped_and_the_naive_reader_skips_it(
    new_logs, other
):
    late, early = new_logs(2)
    ours, naive = Reader(), NaiveReader()
    other.begin()
    first = other.do(append, late)
    second = append(early, "early")
    assert first.position < second.position

    ours.read()
    naive.read()
    assert second.position not in ours.seen
    assert second.position in naive.seen
    assert Feed().settled() < first.position

    other.commit()
    ours.read()
    naive.read()
    assert ours.seen[-2:] == [first.position, second.position]
    assert first.position not in naive.seen
    assert Feed().settled() == second.position


@pytest.mark.parametrize("later", [0, 2], ids=["alone", "before others"])
def test_the_first_append_of_a_transaction_is_fenced_in_one_step(new_logs, other, later):
    """Migration 0005: the fence is taken at the start of the transaction, and keeps no setting."""
    late, early, warm = new_logs(3)
    table = Session.sql("SELECT 'eventlogs_event'::regclass::oid")
    setting = f"SELECT coalesce(current_setting('eventlogs.fence_{table}', true), '')"
    other.do(append, warm)  # prepares the statement
    ours, tries = Reader(), []

    def is_one_step():
        other.begin()
        tries.append(other.do(append, late))
        if other.do(Session.sql, setting) == "":
            return True
        other.rollback()  # it took more than a millisecond: the other branch was used
        other.do(transaction.set_autocommit, True)
        return False

    until(is_one_step, what="a transaction that appends at once")
    first = tries[-1]
    second = append(early, "early")
    for number in range(later):
        other.do(append, late, f"later {number}")
    assert first.position < second.position

    ours.read()
    assert first.position not in ours.seen
    assert second.position not in ours.seen
    assert Feed().settled() < first.position

    other.commit()
    ours.read()
    assert ours.seen == sorted(set(ours.seen))
    assert {first.position, second.position} <= set(ours.seen)
    assert len(ours.seen) == 3 + 1 + 2 + later


def test_an_append_that_rolls_back_no_longer_holds_the_feed_back(new_logs, other):
    gone, stays = new_logs(2)
    other.begin()
    other.do(append, gone)
    state = append(stays, "stays")

    other.rollback()

    reader = Reader()
    reader.read()
    assert reader.seen[-1] == state.position == Feed().settled()


def test_a_connection_that_is_lost_no_longer_holds_the_feed_back(new_logs, other):
    gone, stays = new_logs(2)
    other.begin()
    other.do(append, gone)
    state = append(stays, "stays")

    Session.sql("SELECT pg_terminate_backend(%s, 10000)", other.pid)

    assert Feed().settled() == state.position


def test_a_transaction_keeps_its_first_fence_and_holds_at_most_two(new_logs, other):
    many, early = new_logs(2)
    other.begin()
    first = other.do(append, many)
    for number in range(30):
        append(early, f"early {number}")
        other.do(append, many)

    assert fences(other.pid) in (1, 2)  # of the first append, and of those that keep their key
    assert Feed().settled() < first.position
    [holder] = Feed().holding_back()
    assert holder.position < first.position

    other.commit()
    reader = Reader()
    reader.read()
    assert len(reader.seen) == 2 + 61


def test_a_transaction_may_have_more_appends_than_the_server_has_locks(new_logs, other):
    room = Session.sql(
        "SELECT current_setting('max_locks_per_transaction')::int"
        " * current_setting('max_connections')::int"
    )
    (log_id,) = new_logs(1)
    # As many inserting statements, each with a position of its own behind it.
    with transaction.atomic(), connection.cursor() as cursor:
        append(log_id)
        cursor.execute(
            f"DO $$ BEGIN FOR n IN 1..{2 * room} LOOP"
            f" PERFORM nextval(pg_get_serial_sequence('eventlogs_event', 'position'));"
            f" INSERT INTO eventlogs_event (position) SELECT NULL WHERE false;"
            f" END LOOP; END $$"
        )
        pid = Session.sql("SELECT pg_backend_pid()")
        assert other.do(fences, pid) in (1, 2)


@pytest.mark.parametrize("key", ["k", None], ids=["a replay", "a conflict"])
def test_a_transaction_of_refused_appends_holds_few_locks(new_logs, other, key):
    mine, theirs = new_logs(2)
    manager.append(mine, *batch("once"), expected_version=ANY, idempotency_key="k")
    other.begin()

    def refused():
        with pytest.raises((IdempotentReplay, ConcurrentAppend)):
            manager.append(mine, *batch("once"), expected_version=99, idempotency_key=key)

    for _ in range(50):
        other.do(refused)
        append(theirs)

    assert fences(other.pid) < 10  # those of its first millisecond, and one


def test_appends_in_one_statement_hold_two_locks_at_most(new_logs, other):
    (log_id,) = new_logs(1)
    insert = (
        "INSERT INTO eventlogs_event (log_type, log_id, index, type, schema_version, data,"
        f" metadata, recorded_at) VALUES ('race', '{log_id.uuid}', n, 'race.noted', 1, '{{}}',"
        " '{}', now())"
    )
    Session.sql("CREATE TABLE seen (locks integer)")
    try:
        Session.sql(
            f"DO $$ BEGIN FOR n IN 1..50 LOOP {insert}; END LOOP; INSERT INTO seen"
            f" SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid ="
            f" pg_backend_pid(); END $$"
        )
        seen = Session.sql("SELECT locks FROM seen")
    finally:
        Session.sql("DROP TABLE seen")

    assert seen == 2


def undo_appends(log_id):
    with suppress(ChangedMind), transaction.atomic():
        append(log_id, "undone")
        append(log_id, "undone")
        raise ChangedMind


@pytest.mark.parametrize("before", [0, 1], ids=["first of all", "after another append"])
def test_rolling_back_a_savepoint_removes_its_fence(new_logs, other, before):
    log_id, early = new_logs(2)
    other.begin()
    if before:
        other.do(append, log_id, "before")
    other.do(undo_appends, log_id)
    assert fences(other.pid) == before

    early_state = append(early, "early")  # its position is above the rolled back ones
    assert (Feed().settled() == early_state.position) == (before == 0)

    late = other.do(append, log_id, "after")
    append(early, "behind")
    assert fences(other.pid) in (1, 2)
    assert Feed().settled() < late.position

    other.commit()
    reader = Reader()
    reader.read()
    assert reader.seen == sorted(reader.seen)
    assert len(reader.seen) == 2 + 3 + before


def test_releasing_a_savepoint_keeps_its_fence(new_logs, other):
    log_id, early = new_logs(2)
    other.begin()

    def keep():
        with transaction.atomic():
            append(log_id, "kept")

    other.do(keep)
    state = append(early, "early")

    assert Feed().settled() < state.position
    other.commit()
    assert Feed().settled() == state.position


@pytest.mark.parametrize(
    "forged",
    [
        "SET eventlogs.fence_{table} = '9000000000000000000'",
        "SET eventlogs.fence_{table} = '0'",
        "SET eventlogs.fence_{table} = '-1'",
        "SET eventlogs.fence_{table} = ''",
        "SET session_replication_role = replica",
        "SET search_path = pg_temp, public",
    ],
)
def test_no_setting_of_a_session_removes_the_fence(new_logs, other, forged):
    late, early = new_logs(2)
    table = Session.sql("SELECT 'eventlogs_event'::regclass::oid")
    other.do(Session.sql, forged.format(table=table))
    other.begin()
    other.do(append, late)
    state = append(early, "early")

    assert Feed().settled() < state.position
    reader = Reader()
    reader.read()
    assert state.position not in reader.seen

    other.commit()
    reader.read()
    assert reader.seen[-1] == state.position
    assert len(reader.seen) == len(set(reader.seen)) == 4


def test_a_batch_and_rows_of_plain_sql_are_fenced_as_well(new_logs, other):
    late, early = new_logs(2)
    other.begin()
    other.do(
        Session.sql,
        "INSERT INTO eventlogs_event (log_type, log_id, index, type, schema_version, data,"
        " metadata, recorded_at)"
        " SELECT 'race', %s, n, 'race.noted', 1, '{\"marker\": \"sql\"}', '{}', now()"
        " FROM generate_series(1, 5) AS n",
        late.uuid,
    )
    append(early, "early", of=3)

    reader = Reader()
    reader.read()
    assert len(reader.seen) == 2

    other.commit()
    reader.read()
    assert len(reader.seen) == 2 + 5 + 3


def test_a_sequence_that_was_never_called_is_fenced_from_its_first_position(other):
    Session.sql("TRUNCATE eventlogs_event, eventlogs_eventlog RESTART IDENTITY")
    assert (Feed().settled(), list(Feed().read())) == (0, [])
    other.begin()
    first = other.do(manager.create, *batch("late"))
    second = manager.create(*batch("early"))
    assert (first.position, second.position) == (1, 2)

    assert (Feed().settled(), list(Feed().read())) == (0, [])

    other.commit()
    assert markers(Feed().read()) == ["late", "early"]


@pytest.mark.parametrize("last", [2**32 - 2, 2**32 + 5, 2**40, 2**48 - 3, 2**62])
def test_positions_that_need_more_than_32_or_48_bits_are_fenced(new_logs, other, last):
    late, early = new_logs(2)
    Session.sql("SELECT setval(pg_get_serial_sequence('eventlogs_event', 'position'), %s)", last)
    other.begin()
    first = other.do(append, late)
    second = append(early, "early")

    assert Feed().settled() < first.position == last + 1
    [holder] = Feed().holding_back()
    assert holder.position == min(last, 2**48 - 1)

    other.commit()
    reader = Reader()
    reader.read()
    assert reader.seen[-2:] == [first.position, second.position]
    Session.sql("TRUNCATE eventlogs_event RESTART IDENTITY")


def test_locks_of_others_are_not_taken_for_fences(new_logs, other):
    (log_id,) = new_logs(1)
    state = append(log_id)
    namespace = Session.sql("SELECT 1 + mod('eventlogs_event'::regclass::oid::bigint, 65534)")
    for lock in (
        "SELECT pg_advisory_lock_shared(1)",
        f"SELECT pg_advisory_lock_shared(({namespace}::bigint << 48 >> 32)::integer, 1)",
        f"SELECT pg_advisory_lock({namespace}::bigint << 48 | 1)",
        f"SELECT pg_advisory_lock_shared(({namespace}::bigint + 1) << 48 | 1)",
    ):
        other.do(Session.sql, lock)

    assert Feed().settled() == state.position


# Between the statements of a reader.


@pytest.mark.parametrize("before", ["feed_last", "feed_fence", "feed_last_event", "feed_page"])
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_appends_between_the_statements_of_a_read_are_not_skipped(new_logs, other, before, end):
    for moment in ("begins", "ends"):
        late, early = new_logs(2)
        if moment == "ends":
            other.begin()
            other.do(append, late, "late")
            append(early, "early")

        def happens(moment=moment, late=late, early=early):
            if moment == "begins":
                other.begin()
                other.do(append, late, "late")
                append(early, "early")
            else:
                getattr(other, end)()

        reader = Reader(FeedOf(Interrupted(before, happens)))
        reader.read()
        if moment == "begins":
            getattr(other, end)()
        reader.read()

        with connection.cursor() as cursor:
            cursor.execute("SELECT position FROM eventlogs_event ORDER BY position")
            assert reader.seen == [position for (position,) in cursor.fetchall()]
        other.do(transaction.set_autocommit, True)


def test_a_reader_that_reads_the_fences_first_is_found(new_logs, other):
    late, early = new_logs(2)

    def happens():
        other.begin()
        other.do(append, late)
        append(early, "early")

    variant = Reader(FeedOf(LooksAtFencesFirst("feed_last", happens)))
    variant.read()
    other.commit()
    variant.read()

    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM eventlogs_event")
        assert cursor.fetchone() == (len(variant.seen) + 1,)


# In the reader's own transaction.


def test_a_transaction_sees_its_own_events_and_open_ones_hold_the_feed_back(new_logs, other):
    own, late = new_logs(2)
    other.begin()

    with transaction.atomic():
        mine = append(own, "mine")
        reader = Reader()
        reader.read()
        assert reader.seen[-1] == mine.position

        theirs = other.do(append, late)
        mine = append(own, "mine, behind a late one")
        reader.read()
        assert reader.seen[-1] < theirs.position < mine.position

    other.commit()
    reader.read()
    assert reader.seen[-2:] == [theirs.position, mine.position]


# An append of several events.


@pytest.fixture
def pause(transactional_db):
    """The event with the index 2 of every log waits for the advisory lock 42."""
    Session.sql(
        "CREATE FUNCTION pause() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF NEW.index = 2 THEN PERFORM pg_advisory_xact_lock(42); END IF; RETURN NEW; END $$;"
        "CREATE TRIGGER pause BEFORE INSERT ON eventlogs_event"
        " FOR EACH ROW EXECUTE FUNCTION pause()"
    )
    yield
    Session.sql("DROP FUNCTION pause CASCADE")


def test_a_part_of_an_append_can_be_seen_before_the_rest_and_in_order(
    pause, new_logs, other, blocked
):
    many, late = new_logs(2)
    Session.sql("SELECT pg_advisory_lock(42)")
    appended = blocked.start(append, many, "many", 4)
    wait_until_blocked(blocked)
    other.begin()
    between = other.do(append, late, "late")
    Session.sql("SELECT pg_advisory_unlock(42)")
    assert appended.result(10).position > between.position

    reader = Reader()
    reader.read()
    assert reader.places[2:] == [(many, 1), (many, 2)]

    other.commit()
    reader.read()
    assert reader.places[4:] == [(late, 1), (many, 3), (many, 4)]
    assert reader.seen == sorted(reader.seen)


# Unrelated transactions.


def test_an_unrelated_transaction_does_not_hold_the_feed_back(new_logs, other):
    (log_id,) = new_logs(1)
    other.begin()
    other.do(Session.sql, "CREATE TABLE unrelated AS SELECT txid_current()")

    state = append(log_id)

    assert Feed().settled() == state.position
    assert Feed().holding_back() == []
    other.rollback()


# Sessions that hold the feed back.


def test_holding_back_lists_the_sessions_that_hold_the_feed_back(new_logs, other):
    late, early = new_logs(2)
    other.begin()
    first = other.do(append, late)
    assert [holder.pid for holder in Feed().holding_back()] == [other.pid]
    append(early)

    [holder] = Feed().holding_back()

    assert holder.pid == other.pid
    assert holder.position < first.position
    assert holder.age.total_seconds() > 0
    assert holder.state == "idle in transaction"
    assert "INSERT INTO eventlogs_event" in holder.query
    assert holder.prepared_as is None


def test_the_query_of_another_user_is_shown_only_where_it_is_permitted(new_logs, other):
    late, early = new_logs(2)
    other.begin()
    other.do(append, late)
    append(early)
    sequence = Session.sql("SELECT pg_get_serial_sequence('eventlogs_event', 'position')")

    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("CREATE ROLE eventlogs_stranger")
        cursor.execute(f"GRANT SELECT ON SEQUENCE {sequence} TO eventlogs_stranger")
        cursor.execute("SET LOCAL ROLE eventlogs_stranger")
        [holder] = Feed().holding_back()
        transaction.set_rollback(True)

    assert (holder.pid, holder.query) == (other.pid, None)


def test_a_role_that_may_only_insert_is_fenced_too(new_logs, other):
    late, early = new_logs(2)
    Session.sql("DROP ROLE IF EXISTS eventlogs_clerk")
    Session.sql("CREATE ROLE eventlogs_clerk")
    try:
        Session.sql("GRANT SELECT, INSERT, UPDATE ON eventlogs_eventlog TO eventlogs_clerk")
        Session.sql("GRANT SELECT, INSERT ON eventlogs_event TO eventlogs_clerk")
        other.begin()
        other.do(Session.sql, "SET LOCAL ROLE eventlogs_clerk")
        first = other.do(append, late)
        append(early)

        assert Feed().settled() < first.position
        other.commit()
    finally:
        Session.sql("DROP OWNED BY eventlogs_clerk")
        Session.sql("DROP ROLE eventlogs_clerk")
