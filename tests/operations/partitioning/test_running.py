"""A table of events becomes partitions, and one table again, beside everything that goes on."""

from __future__ import annotations

import re
from contextlib import contextmanager
from threading import Event as Flag

import pytest
from django.core.checks import run_checks
from django.core.management import call_command
from django.db import connections, transaction

from eventlogs import ANY, Feed, LogErased, LogId
from eventlogs.exceptions import CannotErase, CannotPartition
from eventlogs.operations import archiving, partitioning
from eventlogs.operations.chaining import Chained, chain_logs
from eventlogs.operations.partitioning import copying, running, sessions
from eventlogs.operations.triggers import TriggerVerifier
from eventlogs.operations.verification import Scope
from eventlogs.stores import erasing
from tests.accounts import Deposited, Opened, Withdrawn
from tests.operations.archiving.conftest import use
from tests.operations.partitioning.logs import (
    accounts,
    check_whole,
    everything,
    fill,
    leftovers,
    partitions,
    sql,
)
from tests.reliability.test_feed_schemas import alias_for

pytestmark = [pytest.mark.postgresql, pytest.mark.fence]


@contextmanager
def another(alias):
    """Give another connection to the same database."""
    with alias_for(alias, "public") as other:
        yield other


def findings(alias):
    """Return what the checks and the verifier of triggers say."""
    said = [each.msg for each in run_checks(databases=[alias]) if "eventlogs" in each.id]
    return said + list(TriggerVerifier().verify(Scope(using=alias)))


def test_to_partitions_and_back(alias):
    there = everything(alias)
    position = Feed(using=alias).settled()

    for wanted in (16, 3, 0, 16, 0):
        done = partitioning.partition(wanted, using=alias)

        assert (done.swapped, done.copied) == (True, len(there))
        assert partitions(alias) == wanted
        assert everything(alias) == there
        assert findings(alias) == []
        assert leftovers(alias) == []
        check_whole(alias)

        # A position that a rollback has used is not used again.
        with transaction.atomic(using=alias):
            accounts(alias).create(Opened("nobody"))
            transaction.set_rollback(True, using=alias)
        state = accounts(alias).create(Opened("somebody"))
        assert state.position == position + 2
        assert Feed(using=alias).read(after=position)[0].position == state.position
        position = state.position
        there = everything(alias)

        assert not partitioning.partition(wanted, using=alias).swapped


def while_copying(alias, action, *, at=3):
    """Return a function for ``tell`` that does something once, when some batches are copied."""
    calls = []

    def tell(done):
        calls.append(done.doing)
        if len(calls) == at:
            assert done.doing == "copying"
            action()

    return tell


def while_comparing(alias, action):
    """Return a function for ``tell`` that does something once, when appends are mirrored."""
    done_once = Flag()

    def tell(done):
        if done.doing == "comparing" and not done_once.is_set():
            done_once.set()
            action()

    return tell


@pytest.fixture(params=[while_copying, while_comparing])
def meanwhile(request):
    """When something happens: before appends go to both tables, and afterwards."""
    return request.param


@pytest.mark.parametrize("wanted", [4, 0])
def test_logs_are_appended_to_meanwhile(alias, meanwhile, wanted):
    if not wanted:
        partitioning.partition(2, using=alias)
    logs = accounts(alias)

    def append():
        logs.create(*[Deposited(n) for n in range(7)], idempotency_key="k")
        with transaction.atomic(using=alias):
            logs.create(Opened("rolled back"))
            transaction.set_rollback(True, using=alias)
        with transaction.atomic(using=alias):
            logs.create(Opened("one"))
            logs.append(known, Deposited(1), expected_version=ANY)

    known = logs.create(Opened("known")).log_id
    partitioning.partition(wanted, using=alias, tell=meanwhile(alias, append))

    assert partitions(alias) == wanted
    assert len(everything(alias)) == 24 + 1 + 7 + 1 + 1
    check_whole(alias)


@pytest.mark.parametrize("wanted", [4, 0])
def test_events_are_erased_chained_archived_and_brought_back_meanwhile(
    alias, meanwhile, wanted, settings, tmp_path
):
    if not wanted:
        partitioning.partition(2, using=alias)
    use(settings, tmp_path / "archives", CHAIN=True)
    logs = accounts(alias)
    erased, closed, back, older, *_ = fill(alias)
    for each, amount in ((closed, 2), (back, 3), (older, 4)):
        logs.append(each, Withdrawn(amount), expected_version=ANY)
    archiving.archive(by="grace", using=alias, limit=1)
    [(archived,)] = sql(alias, "SELECT id FROM eventlogs_archivedlog")
    archived = next(each for each in (closed, back, older) if each.uuid == archived)
    others = [each for each in (closed, back, older) if each != archived]

    def change():
        erasing.erase(alias, erased, by="grace", reason="order 7")
        for _ in chain_logs(alias, log_types=[], done=Chained()):
            pass
        archiving.restore(archived, using=alias)
        archiving.archive(by="grace", using=alias)
        archiving.restore(others[0], using=alias)

    partitioning.partition(wanted, using=alias, tell=meanwhile(alias, change))

    assert partitions(alias) == wanted
    check_whole(alias)
    with pytest.raises(LogErased):
        logs.reduce(erased)
    assert sql(alias, "SELECT 1 FROM eventlogs_event WHERE log_id = %s", [erased.uuid]) == []
    assert len(sql(alias, "SELECT 1 FROM eventlogs_event WHERE log_id = %s", [others[0].uuid])) == 3
    assert sql(alias, "SELECT 1 FROM eventlogs_event WHERE digest IS NULL") == []
    assert findings(alias) == []


FIRST = "SELECT log_id FROM eventlogs_event WHERE index = 0 ORDER BY position"
BROKEN = {
    "no note of a change": (copying, "note_changes", lambda cursor, **_: None),
    "no mirror": (
        copying,
        "mirror",
        lambda cursor, found: cursor.execute("UPDATE eventlogs_partitioning SET mirrored = true"),
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_version_is_found_by_comparing(alias, monkeypatch, name):
    monkeypatch.setattr(*BROKEN[name])
    logs = accounts(alias)
    ids = [LogId.stored("account", log) for (log,) in sql(alias, FIRST)]
    log_id = logs.create(Opened("ada")).log_id

    def change():
        logs.create(Opened("late"))
        erasing.erase(alias, ids.pop(0), by="grace", reason="order 7")
        logs.append(log_id, Deposited(1), expected_version=ANY)

    meanwhile = while_copying if name == "no note of a change" else while_comparing
    with pytest.raises(CannotPartition, match="other events than the table"):
        partitioning.partition(4, using=alias, tell=meanwhile(alias, change))

    assert partitions(alias) == 0
    check_whole(alias)
    assert partitioning.abandon(using=alias)

    # Without the comparison, events would be lost, or come back.
    monkeypatch.setattr(copying, "compare", lambda *args, **kwargs: None)
    partitioning.partition(4, using=alias, tell=while_copying(alias, change))
    partitioning.partition(0, using=alias, tell=while_swapping(change))
    with pytest.raises(AssertionError):
        check_whole(alias)


def while_swapping(action):
    """Return a function for ``tell`` that does something once, before the tables are swapped."""
    done_once = Flag()

    def tell(done):
        if done.doing == "swapping" and not done_once.is_set():
            done_once.set()
            action()

    return tell


def test_an_open_transaction_is_waited_for(alias, monkeypatch):
    """What it has appended is neither copied early nor passed over."""
    monkeypatch.setattr(sessions, "LOCK_TIMEOUT", 50)
    monkeypatch.setattr(sessions, "ATTEMPTS", 3)
    with another(alias) as other, transaction.atomic(using=other):
        late = accounts(other).create(Opened("late")).log_id
        accounts(alias).create(Opened("early"))
        for _ in range(2):
            with pytest.raises(CannotPartition, match="nobody could begin the copy"):
                partitioning.partition(4, using=alias)
    partitioning.partition(4, using=alias)
    assert accounts(alias).version(late) == 1

    with another(alias) as other:

        def append(done):
            if connections[other].get_autocommit() and done.doing == "copying":
                connections[other].set_autocommit(False)
                accounts(other).append(late, Deposited(1), expected_version=ANY)
                accounts(alias).create(Opened("early"))

        with pytest.raises(CannotPartition, match="nobody could copy the last events"):
            partitioning.partition(0, using=alias, tell=append)
        connections[other].rollback()
        connections[other].set_autocommit(True)
    assert partitions(alias) == 4
    partitioning.partition(0, using=alias)
    check_whole(alias)


REPEATABLE = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"


def read_in_an_old_snapshot(alias, monkeypatch):
    """Partition while a snapshot is older; return how many events it reads, and who waited."""
    waited: list[object] = []
    with another(alias) as other:

        def tell(done):
            if done.doing == "copying" and not waited:
                sql(other, "BEGIN")
                sql(other, REPEATABLE)
                waited.append(sql(other, "SELECT count(*) FROM eventlogs_eventlog"))
            if done.waiting_for:
                # It has not read events so far, so it holds no lock of their table.
                waited.append(done.waiting_for)
                sql(other, "COMMIT")

        partitioning.partition(4, using=alias, tell=tell)
        found = sql(other, "SELECT count(*) FROM eventlogs_event")
        sql(other, "COMMIT")
        return found, waited[1:]


def test_a_transaction_with_an_older_snapshot_is_waited_for(alias, monkeypatch):
    [(stored,)] = sql(alias, "SELECT count(*) FROM eventlogs_event")

    found, waited = read_in_an_old_snapshot(alias, monkeypatch)

    assert (found, len(waited)) == ([(stored,)], 1)

    # Without waiting it would find a table without events.
    partitioning.partition(0, using=alias)
    monkeypatch.setattr(running, "_wait_for_older", lambda *_: None)
    found, waited = read_in_an_old_snapshot(alias, monkeypatch)
    assert waited == []
    assert found[0][0] < stored


def test_what_belongs_to_the_table_stays(alias):
    sql(alias, "CREATE ROLE eventlogs_clerk; CREATE ROLE eventlogs_reader")
    try:
        sql(
            alias,
            "GRANT SELECT, INSERT ON eventlogs_event TO eventlogs_clerk;"
            "GRANT SELECT ON eventlogs_event TO eventlogs_reader WITH GRANT OPTION;"
            "GRANT SELECT ON SEQUENCE eventlogs_event_position_seq TO eventlogs_clerk;"
            "COMMENT ON TABLE eventlogs_event IS 'our history';"
            "COMMENT ON COLUMN eventlogs_event.data IS 'no secrets';"
            'CREATE INDEX "by Type" ON eventlogs_event (type, position) WHERE index = 0;'
            "ALTER TABLE eventlogs_event SET (autovacuum_vacuum_scale_factor = 0.02);",
        )
        own = (
            "SELECT relacl::text, obj_description('eventlogs_event'::regclass),"
            " col_description('eventlogs_event'::regclass, attnum), relowner,"
            " (SELECT relacl::text FROM pg_class WHERE relname = 'eventlogs_event_position_seq'),"
            " (SELECT regexp_replace(pg_get_indexdef('\"by Type\"'::regclass), ' ONLY ', ' '))"
            " FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid AND attname = 'data'"
            " WHERE pg_class.oid = 'eventlogs_event'::regclass"
        )
        options = (
            "SELECT DISTINCT reloptions FROM pg_class WHERE oid IN ("
            " SELECT relid FROM pg_partition_tree('eventlogs_event') WHERE isleaf"
            " UNION SELECT 'eventlogs_event'::regclass WHERE NOT EXISTS ("
            "  SELECT FROM pg_partition_tree('eventlogs_event')))"
        )
        before = sql(alias, own), sql(alias, options)

        for wanted in (4, 0):
            partitioning.partition(wanted, using=alias)
            assert (sql(alias, own), sql(alias, options)) == before
    finally:
        sql(alias, "DROP OWNED BY eventlogs_clerk, eventlogs_reader")
        sql(alias, "DROP ROLE eventlogs_clerk, eventlogs_reader")


OBSTACLES = {
    "CREATE VIEW seen AS SELECT * FROM eventlogs_event": "the view or rule seen reads it",
    "CREATE TABLE mine (of bigint REFERENCES eventlogs_event)": "the foreign key .* of mine",
    "CREATE TRIGGER mine AFTER INSERT ON eventlogs_event"
    " EXECUTE FUNCTION eventlogs_refuse_change()": "the trigger mine",
    "CREATE PUBLICATION mine FOR TABLE eventlogs_event": "the publication mine publishes it",
    "CREATE PUBLICATION everything FOR ALL TABLES": "the publication everything publishes all",
    "CREATE POLICY mine ON eventlogs_event": "the policy mine",
    "GRANT SELECT (type) ON eventlogs_event TO PUBLIC": "the column type has grants",
    "ALTER TABLE eventlogs_event ADD amount text GENERATED ALWAYS AS (data ->> 'amount') STORED": (
        "the column amount is generated"
    ),
    "ALTER TABLE eventlogs_event ADD number bigint GENERATED ALWAYS AS IDENTITY": (
        "the column number is an identity column"
    ),
    "ALTER TABLE eventlogs_event ADD number bigserial": (
        "the sequence eventlogs_event_number_seq belongs to its column number"
    ),
    "CREATE UNIQUE INDEX mine ON eventlogs_event (recorded_at, position)": "the unique index mine",
    "CREATE TABLE child () INHERITS (eventlogs_event)": "inherited by child",
    "ALTER TABLE eventlogs_event ENABLE ROW LEVEL SECURITY": "row security",
}


@pytest.mark.parametrize("statement", OBSTACLES)
def test_what_would_be_lost_is_named_before_anything_is_done(alias, statement):
    sql(alias, statement)

    with pytest.raises(CannotPartition, match=OBSTACLES[statement]) as caught:
        partitioning.partition(4, using=alias)

    assert re.search(r"was not replaced: .*\. [A-Z].*\.$", str(caught.value))
    assert leftovers(alias) == []


def test_a_column_with_a_sequence_of_its_own_comes_along(alias):
    sql(alias, "ALTER TABLE eventlogs_event ADD number bigserial")
    sql(alias, "ALTER SEQUENCE eventlogs_event_number_seq OWNED BY NONE")
    numbers = "SELECT position, number FROM eventlogs_event ORDER BY position"
    there = sql(alias, numbers)

    for wanted in (4, 0):
        partitioning.partition(wanted, using=alias)
        assert sql(alias, numbers) == there
        accounts(alias).create(Opened("ada"))
        there.append(sql(alias, numbers)[-1])
        assert there[-1][1] == len(there)
    assert leftovers(alias) == []


def test_a_generated_column_that_is_added_meanwhile_is_found_before_the_swap(alias):
    def add():
        sql(alias, "ALTER TABLE eventlogs_event ADD n int GENERATED ALWAYS AS (index + 1) STORED")

    with pytest.raises(CannotPartition, match="the column n is generated"):
        partitioning.partition(4, using=alias, tell=while_comparing(alias, add))

    assert partitions(alias) == 0
    check_whole(alias)


def test_a_table_that_changed_meanwhile_is_not_replaced(alias):
    def change():
        sql(alias, "CREATE INDEX mine ON eventlogs_event (type)")

    with pytest.raises(CannotPartition, match="were changed since the copy began"):
        partitioning.partition(4, using=alias, tell=while_comparing(alias, change))
    with pytest.raises(CannotPartition, match="a copy into 4 partitions was begun"):
        partitioning.partition(5, using=alias)

    assert partitioning.abandon(using=alias)
    assert not partitioning.abandon(using=alias)
    assert leftovers(alias) == []
    partitioning.partition(4, using=alias)
    assert partitions(alias) == 4


def test_another_role_may_not(alias):
    sql(alias, "CREATE ROLE eventlogs_clerk")
    try:
        sql(alias, "GRANT ALL ON ALL TABLES IN SCHEMA public TO eventlogs_clerk")
        sql(alias, "SET ROLE eventlogs_clerk")
        with pytest.raises(CannotErase):
            partitioning.partition(4, using=alias)
        with pytest.raises(CannotErase):
            partitioning.abandon(using=alias)
    finally:
        sql(alias, "RESET ROLE")
        sql(alias, "DROP OWNED BY eventlogs_clerk")
        sql(alias, "DROP ROLE eventlogs_clerk")


def test_not_inside_of_a_transaction(alias):
    with transaction.atomic(using=alias), pytest.raises(RuntimeError):
        partitioning.partition(4, using=alias)


@pytest.mark.parametrize("wanted", [-1, 1, 257])
def test_a_number_that_makes_no_sense(alias, wanted):
    with pytest.raises(ValueError, match="2 to 256"):
        partitioning.partition(wanted, using=alias)


def test_a_schema_of_its_own(alias):
    """As with django-tenants: the tables are those of the schema that comes first."""
    sql(alias, 'CREATE SCHEMA "Ann"')
    with alias_for(alias, '"Ann"') as ann:
        call_command("migrate", "eventlogs", database=ann, verbosity=0)
        fill(ann)
        there = everything(ann)

        partitioning.partition(4, using=ann)

        assert (partitions(ann), partitions(alias)) == (4, 0)
        assert everything(ann) == there
        assert findings(ann) == []
        check_whole(ann)
        check_whole(alias)
        partitioning.partition(0, using=ann)
        assert leftovers(ann) == []
