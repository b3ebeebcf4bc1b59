"""
Which connections may be used directly, without Django's cursor.

``connection.cursor()`` is where a database backend acts on statements: django-tenants sets
``search_path`` there, django-prometheus counts. A statement that goes around it is stored in
the wrong schema or is not counted. So a connection is used directly only where Django's cursor
would do nothing else with the statement:

- nobody watches: no query logging, no ``execute_wrappers``;
- the wrapper's class is Django's own, or adds only what HARMLESS lists. Any other attribute sends
  statements through Django, also one whose meaning nobody here knows;
- no method on the way was replaced at run time, on the wrapper (a debug toolbar), on its class
  (pytest-django) or on Django's cursors (Sentry);
- the psycopg connection and its cursors are of psycopg's or Django's own classes. Pools and
  tracers put proxies and subclasses there;
- the caller has no pipeline open (``connection.connection.pipeline()``), in which only psycopg
  knows when the server has to be asked for its answers.

A connection does not pass a fork either: see ``_leave_parents_connections``.
"""

from __future__ import annotations

import os

# Documented for event loops to use; the public get_running_loop() raises an error for each append
# of sync code, which costs more than the rest of the check.
from asyncio import _get_running_loop as get_running_loop
from collections.abc import Callable
from operator import attrgetter
from threading import get_ident
from typing import Any, Final, NamedTuple, NoReturn, cast

import psycopg
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.postgresql.base import Cursor as DjangoCursor
from django.db.backends.postgresql.base import DatabaseWrapper
from django.db.backends.postgresql.base import ServerBindingCursor as DjangoServerCursor
from django.db.backends.utils import CursorWrapper

Row = tuple[Any, ...]
RawConnection = psycopg.Connection[Row]

# The methods that a statement goes through: those of the wrapper, of Django's cursor, of psycopg.
METHODS: Final = (
    *("cursor", "_cursor", "_prepare_cursor", "create_cursor", "make_cursor"),
    "ensure_connection",
)
SHADOWS: Final = frozenset(METHODS)
methods_of: Final[Callable[[Any], tuple[Any, ...]]] = attrgetter(*METHODS)
executes_of: Final[Callable[[Any], tuple[Any, ...]]] = attrgetter(
    "execute", "_execute_with_wrappers", "_execute"
)

DJANGOS_WRAPPERS: Final = frozenset(
    {
        "builtins.object",
        "django.db.backends.base.base.BaseDatabaseWrapper",
        "django.db.backends.postgresql.base.DatabaseWrapper",
        # It registers with each new connection how geometries are read and written. Statements
        # here have none. By name: importing it loads the libraries GEOS and GDAL.
        "django.contrib.gis.db.backends.postgis.base.DatabaseWrapper",
    }
)
# What a subclass may define without any effect on a statement: how the schema is described and
# changed, and how to log in. (A cursor class among the parameters is seen on the connection.)
HARMLESS: Final = frozenset(
    {
        *("__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__init__"),
        *("__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__"),
        *("__firstlineno__", "__static_attributes__", "__str__", "__repr__"),
        *("display_name", "data_types", "data_types_suffix", "data_type_check_constraints"),
        *("operators", "pattern_esc", "pattern_ops"),
        *("SchemaEditorClass", "client_class", "creation_class", "features_class"),
        *("introspection_class", "ops_class", "validation_class"),
        *("prepare_database", "get_database_version", "get_connection_params"),
    }
)
PLAIN_CURSORS: Final = frozenset(
    {DjangoCursor, DjangoServerCursor, psycopg.Cursor, psycopg.ClientCursor}
)


class Way(NamedTuple):
    """The methods that statements of a wrapper class go through."""

    methods: tuple[Any, ...]  # of the class
    executes: tuple[Any, ...]  # of Django's cursor
    make_cursor: Any  # of psycopg, as is the next
    execute: Any
    is_plain: bool  # whether all of it is code of Django and psycopg


_ways: dict[type, Way] = {}  # by wrapper class


def direct_connection(connection: BaseDatabaseWrapper) -> RawConnection | None:
    """
    Return the psycopg connection, ready as Django's own ``cursor()`` makes it.

    None where statements have to go through Django's cursor.
    """
    if (
        connection.queries_logged
        or connection.execute_wrappers
        or not vars(connection).keys().isdisjoint(SHADOWS)
    ):
        return None
    wrapper = type(connection)
    way = _ways.get(wrapper)
    # Compared each time: methods of classes are replaced, and put back, while a process runs.
    if (
        way is None
        or way.methods != methods_of(wrapper)
        or way.executes != executes_of(CursorWrapper)
        or way.make_cursor is not psycopg.Connection.cursor
        or way.execute is not psycopg.Cursor.execute
    ):
        way = _ways[wrapper] = _way_of(wrapper)
    if not way.is_plain:
        return None
    raw = raw_connection(connection)
    if (
        type(raw) is psycopg.Connection
        and raw.cursor_factory in PLAIN_CURSORS
        and "cursor" not in vars(raw)
        and not raw.pgconn.pipeline_status
    ):
        return raw
    return None


def _way_of(wrapper: type) -> Way:
    methods, executes = methods_of(wrapper), executes_of(CursorWrapper)
    below = psycopg.Connection.cursor, psycopg.Cursor.execute
    is_plain = all(
        f"{each.__module__}.{each.__qualname__}" in DJANGOS_WRAPPERS
        or vars(each).keys() <= HARMLESS
        for each in wrapper.__mro__
    )
    are_known = all(map(_is_known, (*methods, *executes, *below)))
    return Way(methods, executes, *below, is_plain and are_known)


def _is_known(function: Any) -> bool:
    """Return whether a function, and all that it wraps, is code of Django or psycopg."""
    while function is not None:
        # Not __module__: whatever wraps a function takes that over from it.
        module = getattr(function, "__globals__", {}).get("__name__", "")
        if module.split(".")[0] not in ("django", "psycopg"):
            return False
        function = getattr(function, "__wrapped__", None)
    return True


def raw_connection(connection: BaseDatabaseWrapper) -> RawConnection:
    """Return the psycopg connection, made ready as Django's own ``cursor()`` does."""
    if connection.health_check_enabled:  # type: ignore[attr-defined]
        connection.close_if_health_check_failed()
    # Django's check for async code, which ensure_connection() has, costs an exception each time.
    if connection.connection is None or get_running_loop() is not None:
        connection.ensure_connection()
    # The public validate_thread_sharing() takes a lock each time: it is called only where it could
    # refuse. (The stubs of Django lack the attribute.)
    if connection._thread_ident != get_ident():  # type: ignore[attr-defined]
        connection.validate_thread_sharing()
    if connection.needs_rollback:
        connection.validate_no_broken_transaction()
    return cast("RawConnection", connection.connection)


# Connections and pools of the process that this one was forked from. They are kept: closing them
# here, or letting go of them, could end the parent's sessions.
_of_parent: list[Any] = []


class _OfParent:
    """Stands in for a connection that is not ours to use, and not ours to close."""

    @property
    def _pool(self) -> _OfParent:
        return self

    def putconn(self, connection: Any) -> None:
        """Keep it from a pool."""

    def close(self) -> None:
        """Do nothing."""

    def cursor(self, *arguments: Any, **named: Any) -> NoReturn:
        raise psycopg.OperationalError("this connection is of the process that was forked")


def _leave_parents_connections() -> None:
    """
    In a forked process, have Django connect anew: no connection and no pool passes the fork.

    Two processes that use one connection read each other's answers, and the threads of a pool are
    in the parent alone. A transaction that the parent is in counts as broken here: statements in
    it raise TransactionManagementError.
    """
    pools: dict[str, Any] = vars(DatabaseWrapper).get("_connection_pools", {})
    _of_parent.extend(pools.values())
    pools.clear()
    for each in connections.all(initialized_only=True):
        if each.connection is not None and each.vendor == DatabaseWrapper.vendor:
            _of_parent.append(each.connection)
            each.connection = _OfParent()
            each.close()  # wrappers forget here what they know of their connection


os.register_at_fork(after_in_child=_leave_parents_connections)
