"""Other roles, schemas, snapshots and calls, while a table of events is replaced."""

from __future__ import annotations

from contextlib import contextmanager
from threading import Thread

import pytest
from django.core.management import call_command
from django.db import OperationalError, ProgrammingError, connections, transaction

from eventlogs import LogErased
from eventlogs.exceptions import CannotPartition
from eventlogs.operations import partitioning
from eventlogs.operations.partitioning import copying, obstacles, running, tables
from eventlogs.stores.retries import must_retry
from tests.accounts import Opened
from tests.operations.partitioning.logs import (
    accounts,
    check_whole,
    everything,
    fill,
    leftovers,
    partitions,
    sql,
)
from tests.projections.crashes import kill_this_process, killed_in
from tests.reliability.test_feed_schemas import alias_for

pytestmark = [pytest.mark.postgresql, pytest.mark.fence]


def once(doing, action):
    """Return a function for ``tell`` that calls ``action`` once, at a step."""
    open_actions = [action]

    def tell(done):
        if done.doing == doing and open_actions:
            open_actions.pop()()

    return tell


def die_when_mirrored(alias, wanted, monkeypatch, *, as_role=None):
    """Let a process partition until each change is made in both tables, and die."""

    def begin():
        if as_role is not None:
            sql(alias, f"SET ROLE {as_role}")
        partitioning.partition(wanted, using=alias)

    with monkeypatch.context() as dying:
        dying.setattr(running, "_swap_when_ready", kill_this_process)
        assert killed_in(begin)


@contextmanager
def roles(alias, *names):
    """Create roles; remove them, and what they were granted."""
    for name in names:
        sql(alias, f"CREATE ROLE {name}")
    try:
        yield
    finally:
        sql(alias, "RESET ROLE")
        for name in names:
            sql(alias, f"REASSIGN OWNED BY {name} TO CURRENT_USER; DROP OWNED BY {name}")
            sql(alias, f"DROP ROLE {name}")


ERASE = "SELECT eventlogs_erase_log(%s, %s, 1, 'digest', 'grace', 'order 7')"


def test_an_erasure_in_an_older_snapshot_is_refused_not_undone(alias):
    """It would find no row of the copy to delete: after the swap, the events would be back."""
    log_id = accounts(alias).create(Opened("ada")).log_id
    with alias_for(alias, "public") as other:

        def take_a_snapshot():
            sql(other, "BEGIN ISOLATION LEVEL REPEATABLE READ")
            sql(other, "SELECT count(*) FROM eventlogs_eventlog")

        def erase():
            with pytest.raises(OperationalError, match="this transaction began before") as caught:
                sql(other, ERASE, [log_id.uuid, str(log_id)])
            # eventlogs erase runs it again.
            assert must_retry(caught.value)
            sql(other, "ROLLBACK")
            sql(other, ERASE, [log_id.uuid, str(log_id)])

        first, second = once("copying", take_a_snapshot), once("waiting", erase)
        partitioning.partition(4, using=alias, tell=lambda done: (first(done), second(done)))

    with pytest.raises(LogErased):
        accounts(alias).reduce(log_id)
    check_whole(alias)


def test_a_copy_in_another_schema_of_the_search_path_is_another_one(alias, monkeypatch):
    sql(alias, "CREATE SCHEMA ann")
    with alias_for(alias, "ann") as ann:
        call_command("migrate", "eventlogs", database=ann, verbosity=0)
    with alias_for(alias, "ann,public") as ann:  # as django-tenants sets it
        fill(ann)
        there = everything(ann)
        partitioning.partition(2, using=ann)
        die_when_mirrored(alias, 3, monkeypatch)
        begun = leftovers(alias)

        assert not partitioning.abandon(using=ann)
        for wanted in (3, 0):
            partitioning.partition(wanted, using=ann)
            assert partitions(ann) == wanted
            assert everything(ann) == there
            assert leftovers(alias) == begun
            names = "SELECT pg_get_serial_sequence('ann.eventlogs_event', 'position')"
            assert sql(ann, names) == [("ann.eventlogs_event_position_seq",)]
        accounts(ann).create(Opened("grace"))
        check_whole(ann)

    partitioning.partition(3, using=alias)
    assert partitions(alias) == 3
    check_whole(alias)


CHANGES_OF_THE_COPY = (
    "UPDATE eventlogs_event_next SET metadata = '{\"a\": 1}' WHERE position = 1",
    "DELETE FROM eventlogs_event_next_p0",
    "DELETE FROM eventlogs_partitioning_note",
    "UPDATE eventlogs_partitioning SET compared = 1000",
    "CREATE TEMP TABLE mine (LIKE eventlogs_event);"
    "CREATE TRIGGER mine AFTER DELETE ON mine"
    " FOR EACH ROW EXECUTE FUNCTION eventlogs_partitioning_change()",
    "CREATE TEMP TABLE mine (LIKE eventlogs_event);"
    "CREATE TRIGGER mine AFTER INSERT ON mine REFERENCING NEW TABLE AS added"
    " FOR EACH STATEMENT EXECUTE FUNCTION eventlogs_partitioning_append()",
)


def test_the_role_of_the_application_cannot_change_the_copy(alias):
    """Also where default privileges grant it all that is made."""
    defaults = "ALTER DEFAULT PRIVILEGES {} ALL ON {} {} eventlogs_clerk"
    with roles(alias, "eventlogs_clerk"):
        sql(alias, "GRANT SELECT, INSERT ON eventlogs_event TO eventlogs_clerk")
        for each in ("TABLES", "FUNCTIONS"):
            sql(alias, defaults.format("GRANT", each, "TO"))

        def attack():
            for statement in CHANGES_OF_THE_COPY:
                with (
                    pytest.raises(ProgrammingError, match="permission denied"),
                    transaction.atomic(using=alias),
                ):
                    sql(alias, "SET LOCAL ROLE eventlogs_clerk")
                    sql(alias, statement)

        there = everything(alias)
        partitioning.partition(4, using=alias, tell=once("swapping", attack))
        assert everything(alias) == there
        for each in ("TABLES", "FUNCTIONS"):
            sql(alias, defaults.format("REVOKE", each, "FROM"))


OURS = (
    "SELECT format('ALTER %%s %%s OWNER TO eventlogs_owners', kind, name) FROM"
    " (SELECT 'TABLE' AS kind, oid::regclass::text AS name FROM pg_class"
    "  WHERE relname ^@ 'eventlogs_' AND relkind IN ('r', 'p') UNION ALL"
    "  SELECT 'FUNCTION', oid::regprocedure::text FROM pg_proc WHERE proname ^@ 'eventlogs_')"
    " AS ours"
)


def test_another_member_of_the_owning_role_goes_on(alias, monkeypatch):
    with roles(alias, "eventlogs_owners", "eventlogs_ann", "eventlogs_bob"):
        sql(alias, "GRANT eventlogs_owners TO eventlogs_ann, eventlogs_bob")
        sql(alias, "GRANT ALL ON SCHEMA public TO eventlogs_owners")
        for (statement,) in sql(alias, OURS, ()):
            sql(alias, statement)
        die_when_mirrored(alias, 3, monkeypatch, as_role="eventlogs_ann")

        sql(alias, "SET ROLE eventlogs_bob")
        assert partitioning.abandon(using=alias)
        sql(alias, "RESET ROLE")
        die_when_mirrored(alias, 3, monkeypatch, as_role="eventlogs_ann")
        sql(alias, "SET ROLE eventlogs_bob")
        partitioning.partition(3, using=alias)

        owners = "SELECT DISTINCT relowner::regrole::text FROM pg_class WHERE relname ~ 's_event_'"
        assert sql(alias, owners) == [("eventlogs_owners",)]
        assert partitions(alias) == 3
        check_whole(alias)


def test_a_view_made_meanwhile_is_found_before_the_swap(alias):
    """It would go on to read the old table."""

    def make_a_view():
        sql(alias, "CREATE VIEW seen AS SELECT * FROM eventlogs_event")

    with pytest.raises(CannotPartition, match="the view or rule seen reads it"):
        partitioning.partition(3, using=alias, tell=once("swapping", make_a_view))

    assert partitions(alias) == 0
    sql(alias, "DROP VIEW seen")
    partitioning.partition(3, using=alias)
    check_whole(alias)


def test_a_fence_of_another_owner_is_found_before_anything_is_done(alias):
    with roles(alias, "eventlogs_owners"):
        sql(alias, "GRANT ALL ON SCHEMA public TO eventlogs_owners")
        sql(alias, "ALTER TABLE eventlogs_event OWNER TO eventlogs_owners")

        with pytest.raises(CannotPartition, match=r"eventlogs_fence\(\) belongs to another role"):
            partitioning.partition(3, using=alias)

        assert leftovers(alias) == []


def test_several_calls_at_once_take_turns(alias):
    said: list[str] = []

    def call(connection):
        try:
            partitioning.partition(8, using=connection)
        except CannotPartition as error:
            said.append(error.reason)
        except BaseException as error:
            said.append(repr(error))
        finally:
            connections[connection].close()

    with (
        alias_for(alias, "public") as one,
        alias_for(alias, "public") as two,
        alias_for(alias, "public") as three,
    ):
        threads = [Thread(target=call, args=(each,)) for each in (one, two, three)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()

    assert set(said) <= {"another call has finished it, or has given it up"}
    assert partitions(alias) == 8
    assert leftovers(alias) == []
    check_whole(alias)


def test_what_is_appended_while_it_waits_is_compared_before_the_lock(alias, monkeypatch):
    """Under the lock, few events are compared."""
    compared: list[int] = []
    compare = copying.compare

    def note(cursor, using, found, *, upto):
        if upto == copying.EVERYTHING:
            [(count,)] = sql(
                alias, "SELECT count(*) FROM eventlogs_event WHERE position > %s", [found.compared]
            )
            compared.append(count)
        compare(cursor, using, found, upto=upto)

    monkeypatch.setattr(copying, "compare", note)
    with alias_for(alias, "public") as other:

        def hold_up():
            sql(other, "BEGIN ISOLATION LEVEL REPEATABLE READ")
            sql(other, "SELECT count(*) FROM eventlogs_eventlog")

        def append():
            accounts(alias).create(*[Opened("grace")] * 50)
            sql(other, "COMMIT")

        first, second = once("comparing", hold_up), once("waiting", append)
        partitioning.partition(4, using=alias, tell=lambda done: (first(done), second(done)))

    assert len(compared) == 1
    assert compared[0] < 5


def test_more_locks_than_the_server_has_are_refused(alias, monkeypatch):
    """Without room in the table of locks, appends of others fail."""
    swap, locks = tables.swap, []

    def count(using, cursor, found):
        swap(using, cursor, found)
        cursor.execute("SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid()")
        locks.append(cursor.fetchone()[0])

    with monkeypatch.context() as counting:
        counting.setattr(tables, "swap", count)
        for wanted in (40, 39):
            partitioning.partition(wanted, using=alias)
    assert locks[0] < obstacles.LOCKS * (40 + 1)
    assert locks[1] < obstacles.LOCKS * (40 + 39)

    monkeypatch.setattr(obstacles, "LOCKS", 1_000)
    with pytest.raises(CannotPartition, match="the server's table of locks"):
        partitioning.partition(40, using=alias)
