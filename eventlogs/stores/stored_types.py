"""
The event types and versions that a database has: a small table, noted as new ones are stored.

``manage.py check --deploy`` reads it, to know what this release cannot decode without a scan of all
events. A row is written once for each log type, event type and version, after the commit of the
first event of it, so a rollback leaves none. Each process remembers which ones it knows to be
there, so an append compares names in memory and asks the database nothing.

A note may be missing. A process that is killed between a commit and its note leaves the note to
the next process that appends such an event. Where a transaction is not Django's (autocommit is
off, or SQL has begun one), nothing is noted, since its end is not known; nor in a TestCase, which
never commits. ``manage.py eventlogs events --exact`` reads all events and corrects the table, also
after events were erased.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

from django.apps import apps
from django.db import Error, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import QuerySet

from eventlogs.stores.claims import insert_missing

logger = logging.getLogger("eventlogs.stores")

# An alias, the tenant's schema where a backend switches it (as django-tenants does), a log type.
Place = tuple[str, str | None, str]
Pair = tuple[str, int]  # an event type and its schema version


class StoredName(NamedTuple):
    """An event type and version of which the logs of a type have, or had, events."""

    log_type: str
    type: str
    schema_version: int


PATIENCE: Final = 60.0  # seconds until a note that failed is tried again
IDLE: Final = 0  # libpq's PQTRANS_IDLE

known_types: dict[Place, set[Pair]] = {}
_nothing: Final[frozenset[Pair]] = frozenset()
_failed: dict[Place, float] = {}  # when a note failed last


def note(connection: BaseDatabaseWrapper, log_type: str, events: Sequence[Any]) -> None:
    """
    Note the types and versions of events that were just stored over a connection.

    ``events`` begin with both: EncodedEvents. It never raises an error of the database.
    """
    place = (connection.alias, getattr(connection, "schema_name", None), log_type)
    new = {each[:2] for each in events} - known_types.get(place, _nothing)
    if new:
        _note_new(connection, place, new)


def forget() -> None:
    """Forget what this process knows to be noted: for tests, which empty tables."""
    known_types.clear()
    _failed.clear()


def stored_types(using: str) -> set[StoredName]:
    """Return the log types, event types and versions that were noted in a database."""
    rows = _rows(using).values_list("log_type", "type", "schema_version")
    return {StoredName(*row) for row in rows}


def correct(
    using: str,
    *,
    found: Iterable[StoredName],
    gone: Iterable[StoredName],
) -> None:
    """
    Note what was found among the events, and remove what is gone.

    Remove only types that no process appends any more: a process that has noted one does not note
    it again.
    """
    with transaction.atomic(using=using):
        for log_type, name, version in gone:
            rows = _rows(using).filter(log_type=log_type, type=name, schema_version=version)
            rows.delete()
        _insert(using, set(found) - stored_types(using))


def _insert(using: str, missing: Iterable[StoredName]) -> None:
    model = apps.get_model("eventlogs", "StoredType")
    rows = [
        model(log_type=log_type, type=name, schema_version=version)
        for log_type, name, version in sorted(missing)
    ]
    insert_missing(using, rows)


def _note_new(connection: BaseDatabaseWrapper, place: Place, new: set[Pair]) -> None:
    if time.monotonic() - _failed.get(place, -PATIENCE) < PATIENCE:
        return
    if connection.in_atomic_block:
        if not getattr(connection.atomic_blocks[0], "_from_testcase", False):
            _note_on_commit(connection, place, new)
    elif connection.get_autocommit() and _is_idle(connection):
        _store(place, new)


def _is_idle(connection: BaseDatabaseWrapper) -> bool:
    """Return whether no transaction is open that Django does not know of."""
    pgconn = getattr(connection.connection, "pgconn", None)
    return pgconn is None or pgconn.transaction_status == IDLE


def _note_on_commit(connection: BaseDatabaseWrapper, place: Place, new: set[Pair]) -> None:
    # One hook for each set of open savepoints, however many events follow: a savepoint that is
    # rolled back takes its hooks with it, and no later one has its name.
    block: Any = connection.atomic_blocks[0]
    waiting: dict[Any, set[Pair]] = vars(block).setdefault("_eventlogs_types", {})
    key = (place, tuple(connection.savepoint_ids))
    fresh = new - waiting.get(key, _nothing)
    if not fresh:
        return
    waiting.setdefault(key, set()).update(fresh)
    transaction.on_commit(_noting(place, fresh), using=connection.alias, robust=True)


def _noting(place: Place, new: set[Pair]) -> Callable[[], None]:
    def note_stored_types() -> None:
        _store(place, new)

    return note_stored_types


def _store(place: Place, new: set[Pair]) -> None:
    using, _, log_type = place
    try:
        rows = _rows(using).filter(log_type=log_type, type__in={name for name, _ in new})
        missing = new - set(rows.values_list("type", "schema_version"))
        if missing:
            with transaction.atomic(using=using):
                _insert(using, {StoredName(log_type, *each) for each in missing})
    except Error as error:
        _failed[place] = time.monotonic()
        logger.warning(
            "New event types of %s logs could not be noted (%s): `check --deploy` does not know "
            "them. `manage.py eventlogs events --exact` notes them.",
            log_type,
            type(error).__qualname__,
        )
        return
    # Another thread may read the old set meanwhile, and note the same once more.
    known_types[place] = known_types.get(place, set()) | new


def _rows(using: str) -> QuerySet[Any]:
    return QuerySet(apps.get_model("eventlogs", "StoredType"), using=using)
