"""The statements of the PostgreSQL store, as text."""

from __future__ import annotations

import re
import select
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from threading import Event, Thread
from typing import Any

import psycopg
import pytest
from django.db import DatabaseError, connection, connections, transaction
from django.test.utils import CaptureQueriesContext

from eventlogs import LogId
from eventlogs.stores import statements, store_for
from eventlogs.stores.psycopg_connections import direct_connection
from eventlogs.stores.statements import ENCODERS, HotStatement, Statement
from eventlogs.testing.contracts.stores import amounts, append, create

pytestmark = pytest.mark.postgresql

NAMES = sorted(
    path.name.removesuffix(".sql")
    for path in (files(statements.__package__) / "sql").iterdir()
    if path.name.endswith(".sql")
)


def text_of(name: str) -> str:
    return (files(statements.__package__) / "sql" / f"{name}.sql").read_text()


# Each in its variants: see variants.py.
VARIANTS = [
    *[(name, False) for name in NAMES if not name.endswith("_chained")],
    *[(name, True) for name in NAMES if name.endswith("_chained") or "--chained:" in text_of(name)],
]


@pytest.mark.parametrize(("name", "chained"), VARIANTS)
def test_a_statement_says_why_it_is_right(name, chained):
    statement = Statement(name, chained=chained)

    assert text_of(name).startswith("-- ")
    assert statement.sql.strip()
    assert "--" not in statement.sql


@pytest.mark.parametrize(("name", "chained"), VARIANTS)
def test_every_parameter_is_bound_and_has_a_type(name, chained):
    untyped = re.findall(r"%\(\w+\)s(?!::)", Statement(name, chained=chained).sql)

    assert untyped == []


@pytest.mark.django_db
@pytest.mark.parametrize(("name", "chained"), VARIANTS)
def test_postgresql_accepts_a_statement_as_it_stands(name, chained):
    numbered = Statement(name, chained=chained)._numbered.decode()

    with connection.cursor() as cursor:
        if name == "feed_distributed":  # this statement runs only if Citus' catalog exists
            cursor.execute("CREATE TEMPORARY TABLE pg_dist_partition (logicalrelid regclass)")
        prepared = f"{name}_{chained}_as_it_stands"
        cursor.execute(f"PREPARE {prepared} AS {numbered.replace('%', '%%')}", ())


def test_only_the_statements_that_append_have_two_variants():
    both = {name for name, chained in VARIANTS if chained} & {name for name, _ in VARIANTS}

    assert {name for name in both if not name.endswith("_chained")} == {
        "append_one",
        "append_one_with_key",
        "append_under_rules",
        "append_group",
        "create_one",
        "create_one_with_key",
    }


@pytest.mark.django_db
def test_a_statement_answers_its_rows_with_their_types():
    rows = Statement("version").rows(connections["default"], {"log": None, "log_type": "account"})

    assert rows == []


@pytest.mark.django_db
def test_a_watched_connection_is_not_used_directly():
    wrapper = connections["default"]
    assert direct_connection(wrapper) is wrapper.connection

    with wrapper.execute_wrapper(lambda execute, *arguments: execute(*arguments)):
        assert direct_connection(wrapper) is None
    with CaptureQueriesContext(wrapper):
        assert direct_connection(wrapper) is None

    assert direct_connection(wrapper) is wrapper.connection


# The hot path


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith(("append", "create"))])
def test_a_parameter_of_the_hot_path_has_one_type(name):
    typed = set(re.findall(r"%\((\w+)\)s::(\w+)", HotStatement(name).sql))

    assert len(dict(typed)) == len(typed)
    assert {each for _, each in typed} <= set(ENCODERS)


@contextmanager
def locked(log_id: LogId, release: Event) -> Iterator[None]:
    """Have another connection hold the log's row until ``release`` is set."""
    held = Event()

    def hold() -> None:
        try:
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute(
                    "SELECT FROM eventlogs_eventlog WHERE id = %s FOR UPDATE", [log_id.uuid]
                )
                held.set()
                release.wait(20)
        finally:
            connection.close()

    thread = Thread(target=hold)
    thread.start()
    assert held.wait(20)
    try:
        yield
    finally:
        release.set()
        thread.join()


@contextmanager
def alarm(handler: Callable[[], Any], seconds: float = 0.2) -> Iterator[None]:
    """Have a signal handler called, once, that many seconds from now."""
    before = signal.signal(signal.SIGALRM, lambda *_: handler())
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def interrupt() -> None:
    raise KeyboardInterrupt


# On systems without poll(). That psycopg 3.1 is not interrupted by signals there is its own.
AS_PSYCOPG_WAITS = pytest.param(
    "as psycopg waits",
    marks=pytest.mark.skipif(psycopg.__version__ < "3.2", reason="its own wait is interrupted"),
)


@pytest.fixture(params=["polling", AS_PSYCOPG_WAITS])
def _waiting(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new connection, with both ways to wait."""
    if request.param == "as psycopg waits":
        monkeypatch.delattr(select, "poll")
    connection.close()


@pytest.mark.django_db(transaction=True, available_apps=["eventlogs"])
@pytest.mark.usefixtures("_waiting")
class TestWaiting:
    def test_signal_handlers_run_while_an_append_waits_for_its_log(self):
        store, release, begun = store_for("default"), Event(), Event()
        log_id = create(store, 1).log_id

        def handler() -> None:
            begun.set()
            release.set()  # otherwise the append would not return

        with locked(log_id, release), alarm(handler):
            append(store, log_id, 2, expected=1)
            assert begun.is_set()

        assert amounts(store, log_id) == [1, 2]

    def test_an_append_that_is_interrupted_is_rolled_back(self):
        store = store_for("default")
        log_id = create(store, 1).log_id

        with locked(log_id, Event()):
            with alarm(interrupt), pytest.raises(KeyboardInterrupt):
                append(store, log_id, 2, expected=1)
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")  # on the same connection, while the log is locked

        assert amounts(store, log_id) == [1]
        append(store, log_id, 2, expected=1)
        assert amounts(store, log_id) == [1, 2]

    def test_a_statement_that_the_socket_does_not_take_at_once_is_sent(self):
        store = store_for("default")
        log_id = create(store, 1).log_id

        append(store, log_id, 2, expected=1, metadata=f'{{"note": "{"x" * 2**24}"}}')

        assert amounts(store, log_id) == [1, 2]

    def test_errors_of_the_database_are_djangos(self):
        store = store_for("default")
        log_id = create(store, 1).log_id

        with pytest.raises(DatabaseError):
            append(store, log_id, 2, expected=1, metadata="no JSON")

        append(store, log_id, 2, expected=1)
        assert amounts(store, log_id) == [1, 2]
