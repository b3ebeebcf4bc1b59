"""
Databases in which a projection can keep rows: those that have the read model's table.

Logs can be in several databases (``LogManager(using=…)``). Rows are in the database of their
events, so that both are committed together: a projection runs on each of these databases for
itself, with checkpoints of its own.
"""

from __future__ import annotations

import logging
import time
from typing import Final

from django.db import connections, models, router

logger = logging.getLogger("eventlogs.projections")

LOOK_AGAIN: Final = 60.0  # seconds until a table that was missing is looked for again

Place = tuple[str, object, str]  # a database, the schema that its backend is in, and a table

_found: set[Place] = set()
_missing: dict[Place, float] = {}  # no second look before that time, by the monotonic clock


def may_have_rows(model: type[models.Model], using: str) -> bool:
    """Return whether routers let a read model be in a database."""
    return bool(router.allow_migrate_model(using, model))


def has_table(model: type[models.Model], using: str) -> bool:
    """
    Return whether a read model has its table in a database; ask at most once a minute.

    Behind one alias, a backend may go through several schemas (tenants). One that is not Django's
    own is asked each time until the table is there.
    """
    if not may_have_rows(model, using):
        return False
    connection = connections[using]
    place = (using, getattr(connection, "schema_name", None), model._meta.db_table)
    if place in _found:
        return True
    if time.monotonic() < _missing.get(place, 0.0):
        return False
    with connection.cursor() as cursor:
        if model._meta.db_table in connection.introspection.table_names(cursor):
            _found.add(place)
            return True
    if type(connection).__module__.startswith("django.db.backends."):
        _missing[place] = time.monotonic() + LOOK_AGAIN
    logger.warning(
        "The database %r has logs, and no table %s, so the rows of %s are not kept there. Run: "
        "manage.py migrate --database %s, and then: manage.py eventlogs project --database %s",
        using,
        model._meta.db_table,
        model._meta.label,
        using,
        using,
    )
    return False
