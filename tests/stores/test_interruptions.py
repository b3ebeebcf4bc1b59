"""Statements that signals interrupt, and prepared statements that are lost."""

from __future__ import annotations

import gc
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from random import Random
from threading import Event
from types import FrameType
from typing import Any

import psycopg
import pytest
from django.db import DataError, connection, connections, transaction
from django.db.backends.postgresql.base import DatabaseWrapper

from eventlogs import LogId, conf
from eventlogs.models import EventLog
from eventlogs.stores import BaseStore, psycopg_connections, store_for
from eventlogs.stores.append_statements import VARIANTS
from eventlogs.stores.postgresql import EVENTS_FORWARDS
from eventlogs.testing.contracts.stores import amounts, append, create, new_key
from tests.stores.test_statements import alarm, locked

APPEND_ONE = VARIANTS[False, conf.has_buckets()].append_one

pytestmark = [
    pytest.mark.postgresql,
    pytest.mark.django_db(transaction=True, available_apps=["eventlogs"]),
]


@pytest.fixture
def store() -> BaseStore:
    return store_for("default")


@pytest.fixture(autouse=True)
def _prepared() -> Iterator[None]:
    """Prepare statements again after a test that switched it off."""
    yield
    psycopg_connections.unprepared.clear()


# Signals


@contextmanager
def without_table() -> Iterator[None]:
    """Have another connection lock the table of events against readers, too."""
    with psycopg.connect(**conninfo()) as other:
        other.execute("LOCK TABLE eventlogs_event")
        yield


def conninfo() -> dict[str, Any]:
    """Return how to connect to the test database without Django."""
    parameters = connection.get_connection_params()
    return {
        key: parameters[key]
        for key in ("dbname", "host", "port", "user", "password")
        if key in parameters
    }


class Interrupted(Exception):
    """As Celery's SoftTimeLimitExceeded: raised by a signal handler, and no BaseException."""


class ThroughDjango(DatabaseWrapper):
    """Has statements go through Django's cursor."""

    def cursor(self) -> Any:
        return super().cursor()


@contextmanager
def interruption(after: float, *, again: float = 0.0) -> Iterator[None]:
    """Raise Interrupted inside of the block, some seconds from now, unless it has ended by then."""
    is_inside = True

    def interrupt(number: int, frame: FrameType | None) -> None:
        if is_inside:
            raise Interrupted

    def report(unraisable: sys.UnraisableHookArgs) -> None:
        # A signal may come inside of a destructor. Python ignores what is raised there.
        if not isinstance(unraisable.exc_value, Interrupted):
            hook(unraisable)

    before, hook = signal.signal(signal.SIGALRM, interrupt), sys.unraisablehook
    sys.unraisablehook = report
    try:
        signal.setitimer(signal.ITIMER_REAL, after, again)
        yield
    finally:
        # Another signal at this point raises Interrupted as well.
        is_inside = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        # The last signal may have reached another thread, and is handled a moment later.
        time.sleep(0.002)
        signal.signal(signal.SIGALRM, before)
        sys.unraisablehook = hook


@pytest.mark.parametrize("way", ["directly", "through Django"])
@pytest.mark.parametrize("key", [False, True], ids=["no key", "keys"])
def test_an_append_that_a_signal_interrupts_is_stored_or_not(connect, store, way, key):
    if way == "through Django":
        connect(ThroughDjango)
    random, log_id, version = Random(11), create(store, 0).log_id, 1
    broken = stored = 0

    for number in range(1, 300):
        try:
            with interruption(random.uniform(0.00001, 0.0015)):
                append(store, log_id, number, expected=version, key=new_key() if key else None)
                version += 1
        except Interrupted:
            broken += 1
            found = store.version(log_id)  # on the same connection
            assert found in (version, version + 1)
            stored += found - version
            version = found

    assert len(amounts(store, log_id)) == version
    assert broken > 10


@pytest.mark.parametrize("way", ["directly", "through Django"])
@pytest.mark.parametrize("caught", ["inside", "outside"])
def test_a_transaction_that_a_signal_interrupts_ends_as_django_expects(connect, store, way, caught):
    if way == "through Django":
        connect(ThroughDjango)
    random, log_id, version = Random(12), create(store, 0).log_id, 1
    broken = 0

    for number in range(1, 200):
        with suppress(Interrupted), transaction.atomic():
            try:
                with interruption(random.uniform(0.00001, 0.002)):
                    append(store, log_id, number, expected=version)
                    append(store, log_id, -number, expected=version + 1)
            except Interrupted:
                broken += 1
                if caught == "outside":
                    raise
        found = store.version(log_id)
        assert found in (
            (version, version + 2) if caught == "outside" else range(version, version + 3)
        )
        version = found

    assert len(amounts(store, log_id)) == version
    assert broken > 10


@pytest.mark.parametrize("inside", [nullcontext, transaction.atomic])
def test_a_page_that_a_signal_interrupts_can_be_read_again(store, inside):
    """The rest of its rows is under way then, and the exception keeps the reading frame alive."""
    random = Random(17)
    log_id = create(store, *range(5_000)).log_id
    errors: list[Interrupted] = []

    for _ in range(150):
        try:
            with inside(), interruption(random.uniform(0.0005, 0.012)):
                assert len(store.events(log_id, start=0, limit=6_000)) == 5_000
        except Interrupted as error:
            errors.append(error)
        assert store.version(log_id) == 5_000

    assert len(errors) > 10


@pytest.mark.parametrize("inside", [nullcontext, transaction.atomic])
def test_a_value_that_cannot_be_loaded_leaves_the_connection_usable(store, inside):
    """psycopg raises it while further rows are to come. Only SQL can store such a time."""
    log_id, other = create(store, *range(5_000)).log_id, LogId.new("account")
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO eventlogs_event (position, log_type, log_id, index, type, schema_version,"
            " data, metadata, recorded_at) SELECT position + 1000000, log_type, %s, index, type,"
            " schema_version, data, metadata,"
            " CASE WHEN index = 10 THEN 'infinity' ELSE recorded_at END"
            " FROM eventlogs_event WHERE log_id = %s",
            [other.uuid, log_id.uuid],
        )

    for _ in range(2):
        with pytest.raises(DataError), inside():
            store.since(other, start=0, limit=6_000)
        assert store.version(log_id) == 5_000
        assert len(store.events(log_id, start=0, limit=6_000)) == 5_000


class Kept:
    """Something in a cycle of references: only the garbage collector frees it."""

    def __init__(self) -> None:
        self.itself = self
        self.rows = EventLog.objects.iterator()  # a cursor of the server, which is left open
        next(self.rows)


def test_a_cursor_that_is_collected_while_a_page_is_read_stops_nobody(store):
    """psycopg closes it under the connection's lock, in the thread that reads."""
    log_id = create(store, *range(1_000)).log_id

    def make(rows: list[Any]) -> list[Any]:
        gc.collect()
        return rows

    parameters = {"log": log_id.uuid, "log_type": "account", "start": 0, "limit": 1_000}
    with transaction.atomic():
        Kept()
        found = EVENTS_FORWARDS.read(connections["default"], parameters, make)

    assert len(found) == 1_000


def test_threads_that_share_a_connection_wait_for_a_page(store):
    log_id = create(store, *range(1_000)).log_id
    reads = Event()
    versions: list[int] = []

    def look() -> None:
        connections["default"] = shared
        versions.append(store.version(log_id))

    def make(rows: list[Any]) -> list[Any]:
        if not thread.is_alive() and not reads.is_set():
            reads.set()
            thread.start()
        return rows

    shared = connections["default"]
    shared.inc_thread_sharing()
    thread = threading.Thread(target=look)
    parameters = {"log": log_id.uuid, "log_type": "account", "start": 0, "limit": 1_000}
    try:
        found = EVENTS_FORWARDS.read(shared, parameters, make)
        thread.join(20)
    finally:
        shared.dec_thread_sharing()

    assert len(found) == 1_000
    assert versions == [1_000]


def test_the_statement_of_another_thread_is_not_cancelled(store):
    """If threads share a connection, one may check it while another one waits for its answer."""
    log_id = create(store, 1).log_id

    with transaction.atomic():
        append(store, log_id, 2, expected=1)
        raw = connections["default"].connection
        session, lock = psycopg_connections.session_of(raw), raw.lock

        class AnswerComesFirst:
            def acquire(self, *args: Any, **named: Any) -> bool:
                session.is_under_way = False
                return lock.acquire(*args, **named)

            def release(self) -> None:
                lock.release()

        session.is_under_way = True
        raw.lock = AnswerComesFirst()
        try:
            psycopg_connections.settled_connection(connections["default"])
        finally:
            raw.lock = lock
        assert not transaction.get_rollback()
        append(store, log_id, 3, expected=2)

    assert amounts(store, log_id) == [1, 2, 3]


def test_signals_that_interrupt_the_cancellation_leave_the_connection_usable(store):
    random, log_id = Random(13), create(store, 0).log_id
    broken = 0

    for number in range(1, 150):
        try:
            with interruption(random.uniform(0.00001, 0.0015), again=0.0002):
                append(store, log_id, number, expected=None)
        except Interrupted:
            broken += 1
        assert store.version(log_id) >= 1

    assert len(amounts(store, log_id)) >= 150 - broken
    assert broken > 10


@pytest.mark.parametrize("error", [Interrupted, SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("way", ["directly", "through Django"])
class TestWhileItWaits:
    """The append waits for its log, which another connection holds."""

    @pytest.fixture(autouse=True)
    def _way(self, connect: Callable[..., Any], way: str) -> None:
        if way == "through Django":
            connect(ThroughDjango)

    def raising(self, error: type[BaseException]) -> Callable[[], None]:
        def handler() -> None:
            raise error

        return handler

    def test_the_connection_stays_usable(self, store, error, way):
        log_id = create(store, 1).log_id
        connection.ensure_connection()
        raw = connection.connection

        with locked(log_id, Event()):
            with alarm(self.raising(error)), pytest.raises(error):
                append(store, log_id, 2, expected=1)
            assert store.version(log_id) == 1
            assert connection.connection is raw

        assert amounts(store, log_id) == [1]

    def test_a_transaction_whose_caller_continues_stores_nothing(self, store, error, way):
        log_id, other = create(store, 1).log_id, create(store, 1).log_id

        with locked(log_id, Event()), transaction.atomic():
            append(store, other, 2, expected=1)
            with alarm(self.raising(error)), pytest.raises(error):
                append(store, log_id, 2, expected=1)
            with pytest.raises(transaction.TransactionManagementError):
                append(store, other, 3, expected=2)

        assert amounts(store, log_id) == amounts(store, other) == [1]

    def test_a_savepoint_rolls_back_only_the_interrupted_append(self, store, error, way):
        log_id, other = create(store, 1).log_id, create(store, 1).log_id

        with locked(log_id, Event()), transaction.atomic():
            append(store, other, 2, expected=1)
            with alarm(self.raising(error)), pytest.raises(error), transaction.atomic():
                append(store, log_id, 2, expected=1)
            append(store, other, 3, expected=2)

        assert (amounts(store, log_id), amounts(store, other)) == ([1], [1, 2, 3])

    def test_a_read_is_cancelled_as_well(self, store, error, way):
        log_id = create(store, 1).log_id

        with without_table():
            with alarm(self.raising(error)), pytest.raises(error):
                store.events(log_id, start=0, limit=1)
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")

        assert amounts(store, log_id) == [1]


def test_celerys_soft_time_limit_is_handled_as_an_interruption(store):
    exceptions = pytest.importorskip("celery.exceptions")
    log_id = create(store, 1).log_id

    def limit() -> None:
        raise exceptions.SoftTimeLimitExceeded

    with locked(log_id, Event()):
        with alarm(limit), pytest.raises(exceptions.SoftTimeLimitExceeded):
            append(store, log_id, 2, expected=1)
        assert store.version(log_id) == 1


def test_a_server_that_does_not_cancel_costs_the_connection(store, monkeypatch):
    """The connection is closed, and the next use opens a new one."""
    log_id = create(store, 1).log_id
    raw = connection.connection
    monkeypatch.setattr(psycopg_connections, "PATIENCE", 0.2)
    monkeypatch.setattr(psycopg_connections, "_cancel", lambda pgconn: None)
    release = Event()

    with locked(log_id, release):
        with alarm(interrupt), pytest.raises(Interrupted):
            append(store, log_id, 2, expected=1)
        assert raw.closed
        assert store.version(log_id) == 1


def interrupt() -> None:
    raise Interrupted


# Prepared statements


def alter(column_type: str) -> None:
    """Change what appends return, over another connection."""
    with psycopg.connect(**conninfo(), autocommit=True) as other:
        other.execute(f"ALTER TABLE eventlogs_event ALTER index TYPE {column_type}")


@pytest.mark.parametrize("inside", ["autocommit", "a transaction"])
def test_a_column_of_another_type_does_not_poison_a_connection(store, inside):
    log_id = create(store, 1, key=new_key()).log_id
    append(store, log_id, 2, expected=1)
    append(store, log_id, 3, 4, expected=2)
    append(store, log_id, 5, expected=4, key=new_key())
    version = 5
    try:
        for column_type in ("bigint", "integer", "bigint"):
            alter(column_type)
            for _ in range(2):
                if inside == "autocommit":
                    history(store, log_id, version)
                else:
                    with transaction.atomic():
                        history(store, log_id, version)
                version += 4
                assert len(amounts(store, log_id)) == version
    finally:
        alter("integer")
    assert "default" not in psycopg_connections.unprepared


def history(store: BaseStore, log_id: LogId, version: int) -> None:
    assert append(store, log_id, 1, expected=version).version == version + 1
    assert append(store, log_id, 2, 3, expected=version + 1).version == version + 3
    assert append(store, log_id, 4, expected=version + 3, key=new_key()).version == version + 4
    assert create(store, 1).version == 1


def test_the_name_of_a_prepared_statement_has_a_prefix_and_a_limited_length():
    assert len(APPEND_ONE._name) <= 63  # bytes: PostgreSQL cuts longer ones
    assert APPEND_ONE._name.startswith(b"eventlogs_append_one_")


def test_a_statement_of_that_name_sends_the_alias_unprepared_and_says_so_once(store, caplog):
    log_id = create(store, 1).log_id
    connection.close()
    with connection.cursor() as cursor:
        cursor.execute(f"PREPARE {APPEND_ONE._name.decode()} AS SELECT 1")

    with caplog.at_level(logging.WARNING, "eventlogs.stores"):
        for version in (1, 2, 3):
            assert append(store, log_id, 2, expected=version).version == version + 1
        append(store, log_id, 3, 4, expected=4)

    assert amounts(store, log_id) == [1, 2, 2, 2, 3, 4]
    [record] = caplog.records
    assert "'default'" in record.getMessage()
    assert "EVENTLOGS['PREPARED_STATEMENTS'] = False" in record.getMessage()


def test_statements_that_get_lost_each_time_send_the_alias_unprepared(store, caplog, monkeypatch):
    """As behind a pooler that uses another session for each transaction."""
    log_id = create(store, 1).log_id
    prepare = psycopg_connections.Session.prepare

    def prepare_in_vain(session: Any, raw: Any, name: bytes, statement: bytes) -> bool:
        is_ours = prepare(session, raw, name, statement)
        raw.pgconn.exec_(b"DEALLOCATE ALL")
        return is_ours

    connection.close()
    monkeypatch.setattr(psycopg_connections.Session, "prepare", prepare_in_vain)
    assert append(store, log_id, 2, expected=1).version == 2

    assert "default" in psycopg_connections.unprepared
    assert len(caplog.records) == 1


def test_an_interrupted_preparation_is_used(store):
    log_id = create(store, 1).log_id
    connection.close()
    connection.ensure_connection()
    raw = connections["default"].connection
    session = psycopg_connections.session_of(raw)
    raw.pgconn.prepare(APPEND_ONE._name, APPEND_ONE._numbered)
    session._doubtful.add(APPEND_ONE._name)  # its answer was not read

    assert append(store, log_id, 2, expected=1).version == 2

    assert "default" not in psycopg_connections.unprepared
    assert APPEND_ONE._name in session.prepared


def test_an_error_that_only_looks_like_a_changed_plan_is_raised(store):
    log_id = create(store, 1).log_id
    append(store, log_id, 2, expected=1)
    refuse = """
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE feature_not_supported; END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON eventlogs_event
        FOR EACH ROW EXECUTE FUNCTION refuse()"""
    with connection.cursor() as cursor:
        cursor.execute(refuse)
    try:
        with pytest.raises(Exception, match="feature_not_supported"):
            append(store, log_id, 3, expected=2)
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP FUNCTION refuse() CASCADE")

    assert "default" not in psycopg_connections.unprepared
    append(store, log_id, 3, expected=2)
    assert amounts(store, log_id) == [1, 2, 3]
