"""The feed on servers of its own: prepared transactions, replicas, subscribers, restored dumps."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from uuid import uuid4

import pytest
from django.core.management import call_command
from django.db import connections, transaction

from eventlogs import CheckpointDiffers, Feed, FeedUnavailable, LogManager
from eventlogs.checks.postgresql import check_feed
from tests.accounts import Account, Deposited, Opened
from tests.processes import until
from tests.reliability.replicas import Server, alias_of, sql
from tests.servers import run_as

pytestmark = pytest.mark.postgresql


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def primary(server: Server, django_db_setup: None, django_db_blocker) -> Iterator[str]:
    """The alias of a migrated database on a server of its own."""
    name = f"feed_{uuid4().hex[:8]}"
    with django_db_blocker.unblock(), alias_of(server) as maintenance:
        sql(maintenance, f"CREATE DATABASE {name}")
        with alias_of(server, name) as alias:
            call_command("migrate", "eventlogs", database=alias, verbosity=0)
            yield alias
        sql(maintenance, f"DROP DATABASE {name} WITH (FORCE)")


def read(alias: str, after: int = 0) -> list[object]:
    return [record.event for record in Feed(using=alias).read(after=after)]


def program(server: Server, name: str) -> str:
    path = server.programs / name
    if not path.exists():
        pytest.skip(f"{path} is not installed")
    return str(path)


def dump_of(server: Server, name: str, *options: str) -> bytes:
    """Return the SQL of a database."""
    return subprocess.run(
        [
            program(server, "pg_dump"),
            f"--host={server.directory}",
            "--username=postgres",
            *options,
            name,
        ],
        capture_output=True,
        check=True,
        cwd="/",
        **run_as(server.user),
    ).stdout


def restore(server: Server, name: str, dump: bytes) -> None:
    """Run the SQL of a dump in a database."""
    subprocess.run(
        [
            program(server, "psql"),
            f"--host={server.directory}",
            "--username=postgres",
            "--set=ON_ERROR_STOP=1",
            "--quiet",
            name,
        ],
        input=dump,
        stdout=subprocess.DEVNULL,
        check=True,
        cwd="/",
        **run_as(server.user),
    )


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
def test_a_prepared_transaction_holds_the_feed_back_until_it_is_decided(primary, end):
    accounts = LogManager(Account, using=primary)
    accounts.create(Opened("before"))
    transaction.set_autocommit(False, using=primary)
    late = accounts.create(Opened("prepared"))
    sql(primary, "PREPARE TRANSACTION 'undecided'")
    connections[primary].rollback()
    transaction.set_autocommit(True, using=primary)
    connections[primary].close()  # its connection does not hold it back
    accounts.create(Opened("after"))

    assert read(primary) == [Opened("before")]
    assert Feed(using=primary).settled() < late.position
    [holder] = Feed(using=primary).holding_back()
    assert (holder.pid, holder.state, holder.prepared_as) == (None, "prepared", "undecided")
    assert holder.user == "postgres"
    assert holder.age is not None

    sql(primary, f"{end} PREPARED 'undecided'")
    decided = [Opened("prepared")] if end == "COMMIT" else []
    assert read(primary) == [Opened("before"), *decided, Opened("after")]
    assert Feed(using=primary).holding_back() == []


def test_a_transaction_in_another_database_does_not_hold_the_feed_back(primary, server):
    [(number,)] = sql(primary, "SELECT 1 + mod('eventlogs_event'::regclass::oid::bigint, 65534)")
    with alias_of(server) as elsewhere, transaction.atomic(using=elsewhere):
        sql(elsewhere, "CREATE TABLE IF NOT EXISTS unrelated AS SELECT txid_current()")
        # Even one that holds what looks like a fence there.
        sql(elsewhere, f"SELECT pg_advisory_xact_lock_shared({number}::bigint << 48)")

        LogManager(Account, using=primary).create(Opened("ada"))

        assert read(primary) == [Opened("ada")]
        transaction.set_rollback(True, using=elsewhere)


def test_the_feed_of_a_dump_restored_into_a_younger_cluster_continues(primary, server):
    accounts = LogManager(Account, using=primary)
    state = accounts.create(Opened("ada"), Deposited(1))
    for _ in range(200):  # transactions, so that this cluster is the older one
        sql(primary, "SELECT txid_current()")
    [(old_xid,)] = sql(primary, "SELECT txid_current()")
    name = connections[primary].settings_dict["NAME"]
    dump = dump_of(server, name)

    with Server() as younger, alias_of(younger) as restored:
        restore(younger, "postgres", dump)
        [(young_xid,)] = sql(restored, "SELECT txid_current()")
        assert young_xid < old_xid

        assert read(restored) == [Opened("ada"), Deposited(1)]
        LogManager(Account, using=restored).append(state, Deposited(2))
        assert read(restored, after=state.position) == [Deposited(2)]

        # The fence was copied, and works.
        with alias_of(younger) as late:
            with transaction.atomic(using=late):
                first = LogManager(Account, using=late).create(Opened("late"))
                LogManager(Account, using=restored).create(Opened("early"))
                assert Feed(using=restored).settled() < first.position
            assert read(restored, after=first.position - 1) == [Opened("late"), Opened("early")]


def test_a_copy_of_a_schema_under_another_name_has_its_own_feed(primary, server):
    name = connections[primary].settings_dict["NAME"]
    LogManager(Account, using=primary).create(Opened("ada"), *[Deposited(n) for n in range(9)])
    # A common way to copy a tenant: names before a dot are replaced.
    dump = dump_of(server, name, "--schema=public").decode()
    dump = dump.replace("public.", "clone.").replace("SCHEMA public", "SCHEMA clone")
    sql(primary, "CREATE SCHEMA IF NOT EXISTS clone")
    restore(server, name, dump.replace("CREATE SCHEMA clone;", "").encode())

    path = "-c search_path=clone"
    with (
        alias_of(server, name, options=path) as clone,
        alias_of(server, name, options=path) as late,
    ):
        # Ours is ahead of the clone: a fence made from our sequence would be too high there.
        LogManager(Account, using=primary).create(*[Deposited(n) for n in range(9)])
        with transaction.atomic(using=late):
            first = LogManager(Account, using=late).create(Opened("late"))
            LogManager(Account, using=clone).create(Opened("early"))
            assert Feed(using=clone).settled() < first.position
            assert len(read(primary)) == 19

        assert read(clone, after=first.position - 1) == [Opened("late"), Opened("early")]


def test_a_subscriber_of_logical_replication_is_refused(primary, server):
    name = connections[primary].settings_dict["NAME"]
    copy = f"{name}_copy"
    accounts = LogManager(Account, using=primary)
    state = accounts.create(Opened("ada"))
    with alias_of(server) as maintenance, alias_of(server, copy) as subscriber:
        sql(maintenance, f"CREATE DATABASE {copy}")
        call_command("migrate", "eventlogs", database=subscriber, verbosity=0)
        sql(primary, "CREATE PUBLICATION events FOR TABLE eventlogs_event, eventlogs_eventlog")
        sql(primary, f"SELECT pg_create_logical_replication_slot('{copy}', 'pgoutput')")
        sql(
            subscriber,
            f"CREATE SUBSCRIPTION events CONNECTION 'host={server.directory} dbname={name}"
            f" user=postgres' PUBLICATION events WITH (create_slot = false, slot_name = '{copy}')",
        )
        try:
            state = accounts.append(state, Deposited(1))
            copied = (
                "SELECT (SELECT count(*) FROM eventlogs_event),"
                " (SELECT max(version) FROM eventlogs_eventlog)"
            )
            until(lambda: sql(subscriber, copied) == [(2, 2)])
            feed = Feed(using=subscriber)
            for ask in (feed.read, feed.settled, feed.holding_back):
                with pytest.raises(FeedUnavailable) as caught:
                    ask()
                assert caught.value.reason == "subscriber"
            assert [each.id for each in check_feed(databases=[subscriber])] == ["eventlogs.W014"]

            # It takes the publisher's place.
            sql(subscriber, "DROP SUBSCRIPTION events")
            sql(
                subscriber,
                "SELECT setval(pg_get_serial_sequence('eventlogs_event', 'position'),"
                " (SELECT max(position) FROM eventlogs_event))",
            )
            LogManager(Account, using=subscriber).append(state, Deposited(2))
            assert read(subscriber) == [Opened("ada"), Deposited(1), Deposited(2)]
        finally:
            if sql(subscriber, "SELECT FROM pg_subscription"):
                sql(subscriber, "DROP SUBSCRIPTION events")
            sql(maintenance, f"DROP DATABASE {copy} WITH (FORCE)")


@pytest.mark.buckets
def test_a_reader_of_a_subscriber_does_not_raise_its_counters(primary, server):
    """No transaction of the publisher holds them there: it would pass the open ones."""
    name = connections[primary].settings_dict["NAME"]
    copy = f"{name}_copy"
    accounts = LogManager(Account, using=primary)
    with alias_of(server) as maintenance, alias_of(server, copy) as subscriber:
        sql(maintenance, f"CREATE DATABASE {copy}")
        call_command("migrate", "eventlogs", database=subscriber, verbosity=0)
        tables = "eventlogs_event, eventlogs_eventlog, eventlogs_bucket"
        sql(primary, f"CREATE PUBLICATION events FOR TABLE {tables}")
        sql(primary, f"SELECT pg_create_logical_replication_slot('{copy}', 'pgoutput')")
        sql(
            subscriber,
            f"CREATE SUBSCRIPTION events CONNECTION 'host={server.directory} dbname={name}"
            f" user=postgres' PUBLICATION events"
            f" WITH (create_slot = false, slot_name = '{copy}', copy_data = false)",
        )
        try:
            accounts.create(Opened("ada"))
            until(lambda: sql(subscriber, "SELECT count(*) FROM eventlogs_event") == [(1,)])
            counters = "SELECT bucket, number FROM eventlogs_bucket ORDER BY bucket"
            before = sql(subscriber, counters)
            feed = Feed(using=subscriber)
            for ask in (feed.read, feed.settled, feed.holding_back):
                with pytest.raises(FeedUnavailable) as caught:
                    ask()
                assert caught.value.reason == "subscriber"
            assert sql(subscriber, counters) == before
        finally:
            sql(subscriber, "DROP SUBSCRIPTION events")
            sql(maintenance, f"DROP DATABASE {copy} WITH (FORCE)")


def test_a_database_that_was_restored_to_an_earlier_moment_is_noticed(primary):
    accounts = LogManager(Account, using=primary)
    state = accounts.create(Opened("ada"))
    checkpoint = accounts.append(state, Deposited(1)).position
    # As after a restore: the last position is given out again.
    sql(
        primary,
        f"ALTER TABLE eventlogs_event DISABLE TRIGGER ALL; DELETE FROM eventlogs_event"
        f" WHERE position = {checkpoint}; ALTER TABLE eventlogs_event ENABLE TRIGGER ALL;"
        f"ALTER TABLE eventlogs_event ENABLE ALWAYS TRIGGER eventlogs_event_fence;"
        f" SELECT setval(pg_get_serial_sequence('eventlogs_event', 'position'),"
        f" {state.position})",
    )

    with pytest.raises(FeedUnavailable) as caught:
        read(primary, after=checkpoint)

    assert caught.value.reason == "ahead"


def test_a_reader_with_a_checkpoint_is_told_that_a_dump_was_restored(primary, server):
    """One with a position misses what is appended in the place of the lost events."""
    accounts = LogManager(Account, using=primary)
    state = accounts.create(Opened("ada"))
    name = connections[primary].settings_dict["NAME"]
    dump = dump_of(server, name)
    accounts.append(state, *[Deposited(n) for n in range(5)])
    feed = Feed(using=primary)
    position, checkpoint = feed.settled(), feed.read().checkpoint

    connections[primary].close()
    with alias_of(server) as maintenance:
        sql(maintenance, f"DROP DATABASE {name} WITH (FORCE)")
        sql(maintenance, f"CREATE DATABASE {name}")
    restore(server, name, dump)

    with pytest.raises(CheckpointDiffers) as at_once:
        feed.read(after=checkpoint)
    assert at_once.value.reason == "its position was never assigned"
    accounts.append(state, *[Deposited(n) for n in range(10, 18)])
    assert read(primary, after=position) == [Deposited(n) for n in (15, 16, 17)]
    with pytest.raises(CheckpointDiffers) as caught:
        feed.read(after=checkpoint)
    assert caught.value.reason == "another event has the position of one that it names"
