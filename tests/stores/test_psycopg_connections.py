"""Which connections are used directly, and which statements go through Django's cursor."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import psycopg
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import ProgrammingError, connection, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.postgresql.base import Cursor, DatabaseWrapper
from django.db.backends.postgresql.features import DatabaseFeatures
from django.db.backends.utils import CursorWrapper

from eventlogs.stores import psycopg_connections, store_for
from eventlogs.stores.psycopg_connections import HARMLESS, direct_connection
from eventlogs.testing.contracts.stores import amounts, append, create, new_key

pytestmark = [
    pytest.mark.postgresql,
    pytest.mark.django_db(transaction=True, available_apps=["eventlogs"]),
]


def is_direct() -> bool:
    return direct_connection(connections["default"]) is not None


def history() -> list[int]:
    """Use each statement of a store once; return what the log holds."""
    store = store_for("default")
    log_id = create(store, 1).log_id
    append(store, log_id, 2, expected=1)
    append(store, log_id, 3, 4, expected=2)
    append(store, log_id, 5, expected=4, key=new_key())
    return amounts(store, log_id)


class SeesCursors(DatabaseWrapper):
    seen: list[str] = []

    def _cursor(self, name: str | None = None) -> Any:
        self.seen.append("cursor")
        return super()._cursor(name)  # type: ignore[misc]


def overriding(name: str) -> type[DatabaseWrapper]:
    """Return a class of wrappers that overrides one method, to no effect."""
    real = getattr(DatabaseWrapper, name, lambda self: None)
    return type("Other", (DatabaseWrapper,), {name: lambda self, *given: real(self, *given)})


def test_djangos_own_wrapper_is_used_directly(connect):
    assert is_direct()
    connect(DatabaseWrapper)
    assert is_direct()
    options = {**connection.settings_dict["OPTIONS"], "server_side_binding": True}
    connect(DatabaseWrapper, OPTIONS=options)
    assert is_direct()


@pytest.mark.parametrize(
    "method",
    [
        *("cursor", "_cursor", "_prepare_cursor", "create_cursor", "chunked_cursor"),
        *("make_cursor", "make_debug_cursor", "get_new_connection", "connect"),
        *("ensure_connection", "init_connection_state", "set_tenant", "commit", "_set_autocommit"),
    ],
)
def test_statements_pass_a_wrapper_that_overrides_a_method(connect, method):
    connect(overriding(method))

    assert not is_direct()
    assert history() == [1, 2, 3, 4, 5]


def test_a_wrapper_that_sees_cursors_sees_those_of_each_statement(connect):
    connect(SeesCursors)
    store = store_for("default")
    log_id = create(store, 1).log_id

    SeesCursors.seen.clear()
    append(store, log_id, 2, expected=1)
    append(store, log_id, 3, 4, expected=2, key=new_key())
    store.version(log_id)
    store.events(log_id, start=0, limit=10)

    assert SeesCursors.seen == ["cursor"] * 4


def test_a_broken_version_that_knows_every_method_goes_around_the_wrapper(connect, monkeypatch):
    monkeypatch.setattr(psycopg_connections, "_ways", {})
    monkeypatch.setattr(psycopg_connections, "_is_known", lambda function: True)
    monkeypatch.setattr(psycopg_connections, "HARMLESS", frozenset(vars(SeesCursors)) | HARMLESS)
    connect(SeesCursors)
    store = store_for("default")
    log_id = create(store, 1).log_id

    SeesCursors.seen.clear()
    append(store, log_id, 2, expected=1)

    assert SeesCursors.seen == []


def test_statements_pass_a_subclass_of_a_wrapper_that_sees_cursors(connect):
    class Further(SeesCursors):
        """Adds nothing."""

    connect(Further)
    assert not is_direct()


def test_a_wrapper_that_only_sets_attributes_is_used_directly(connect):
    class Described(DatabaseWrapper):
        """Documented."""

        features_class = type("Features", (DatabaseFeatures,), {})
        display_name = "our PostgreSQL"

    connect(Described)
    assert is_direct()


def test_the_wrapper_of_postgis_is_used_directly(connect):
    base = "django.contrib.gis.db.backends.postgis.base"
    try:
        postgis = __import__(base, fromlist=["DatabaseWrapper"]).DatabaseWrapper
    except (ImportError, ImproperlyConfigured) as error:
        pytest.skip(f"no libraries for geography: {type(error).__name__}")

    class AsPostGIS(postgis):  # type: ignore[misc, valid-type]
        """Only the class of PostGIS in the MRO; the extension is not needed."""

    connect(AsPostGIS)
    assert is_direct()
    assert history() == [1, 2, 3, 4, 5]


# Replaced at run time


@contextmanager
def replaced(owner: Any, name: str) -> Iterator[list[str]]:
    """Wrap a method as tracers do, which take over its name, module and docstring."""
    original, seen = getattr(owner, name), []

    @functools.wraps(original)
    def traced(*arguments: Any, **named: Any) -> Any:
        seen.append(name)
        return original(*arguments, **named)

    setattr(owner, name, traced)
    try:
        yield seen
    finally:
        setattr(owner, name, original)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (CursorWrapper, "execute"),  # Sentry
        (CursorWrapper, "_execute"),
        (CursorWrapper, "_execute_with_wrappers"),
        (BaseDatabaseWrapper, "ensure_connection"),  # pytest-django
        (BaseDatabaseWrapper, "cursor"),
        (DatabaseWrapper, "create_cursor"),
        (psycopg.Cursor, "execute"),
        (psycopg.Connection, "cursor"),
    ],
)
def test_a_method_that_is_replaced_temporarily_is_called(owner, name):
    store = store_for("default")
    log_id = create(store, 1).log_id
    assert is_direct()

    with replaced(owner, name) as seen:
        assert not is_direct()
        append(store, log_id, 2, expected=1)

    assert seen
    assert is_direct()
    assert amounts(store, log_id) == [1, 2]


@pytest.mark.parametrize("name", ["cursor", "_cursor", "create_cursor", "make_cursor"])
def test_a_method_that_is_replaced_on_one_wrapper_is_called(connect, name):
    wrapper = connect(DatabaseWrapper)
    assert is_direct()

    with replaced(wrapper, name) as seen:
        create(store_for("default"), 1)

    assert seen


def test_a_test_that_may_not_use_the_database_cannot_append(django_db_blocker):
    log_id = create(store_for("default"), 1).log_id

    with django_db_blocker.block(), pytest.raises(RuntimeError, match="Database access not"):
        append(store_for("default"), log_id, 2, expected=1)

    assert amounts(store_for("default"), log_id) == [1]


# Connections and cursors of psycopg


class OwnConnection(psycopg.Connection[Any]):
    """A connection class as of a tracer or a pool."""


class OwnCursor(Cursor):
    seen: list[Any] = []

    def execute(self, query: Any, *given: Any, **named: Any) -> Any:
        self.seen.append(query)
        return super().execute(query, *given, **named)  # type: ignore[misc]


class Proxy:
    """A proxy as made by wrapt: it forwards everything."""

    def __init__(self, raw: Any) -> None:
        vars(self)["raw"] = raw

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["raw"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(vars(self)["raw"], name, value)


def test_cursors_of_an_own_class_see_statements(connect):
    options = {**connection.settings_dict["OPTIONS"], "cursor_factory": OwnCursor}
    connect(DatabaseWrapper, OPTIONS=options)

    OwnCursor.seen.clear()
    assert history() == [1, 2, 3, 4, 5]

    assert sum("INSERT INTO eventlogs_event" in str(each) for each in OwnCursor.seen) == 4


@pytest.mark.parametrize(
    "swap",
    [lambda raw: setattr(raw, "__class__", OwnConnection) or raw, Proxy],  # type: ignore[func-returns-value]
)
def test_statements_pass_a_connection_of_another_class(connect, swap: Callable[[Any], Any]):
    wrapper = connect(DatabaseWrapper)
    wrapper.ensure_connection()
    wrapper.connection = swap(wrapper.connection)

    assert not is_direct()
    assert history() == [1, 2, 3, 4, 5]


def test_an_assumed_role_is_that_of_appends(connect):
    options = {**connection.settings_dict["OPTIONS"], "assume_role": "pg_read_all_data"}
    connect(DatabaseWrapper, OPTIONS=options)
    assert is_direct()

    with pytest.raises(ProgrammingError, match="permission denied"):
        create(store_for("default"), 1)


# Real backends


def test_django_prometheus_counts_statements(connect):
    base = pytest.importorskip("django_prometheus.db.backends.postgresql.base")
    metrics = sys.modules["django_prometheus.db"]
    connect(base.DatabaseWrapper)
    store = store_for("default")

    def counted() -> float:
        return metrics.execute_total.labels("default", "postgresql")._value.get()

    log_id = create(store, 1).log_id
    before = counted()
    append(store, log_id, 2, expected=1)
    append(store, log_id, 3, expected=2, key=new_key())
    store.version(log_id)

    assert counted() - before == 3
    assert amounts(store, log_id) == [1, 2, 3]


# Pipelines


@pytest.mark.parametrize("inside", [False, True], ids=["alone", "in a transaction"])
def test_statements_pass_a_pipeline_of_the_caller(inside):
    """The server answers nothing before psycopg asks it to: waiting without a sync would hang."""
    store = store_for("default")
    log_id = create(store, 1).log_id

    with transaction.atomic() if inside else nullcontext(), connection.connection.pipeline():
        append(store, log_id, 2, expected=1)
        append(store, log_id, 3, expected=2, key=new_key())
        assert amounts(store, log_id) == [1, 2, 3]

    assert is_direct()
    assert amounts(store, log_id) == [1, 2, 3]
