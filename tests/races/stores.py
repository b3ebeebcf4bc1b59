"""The stores that are raced, by a name that can be sent to another process."""

from __future__ import annotations

import os

from django.db import DEFAULT_DB_ALIAS
from django.utils.module_loading import import_string

from eventlogs import LogManager
from tests.races.events import Race

POSTGRESQL = (
    "eventlogs.stores.citus.CitusStore"
    if "CITUS_URL" in os.environ
    else "eventlogs.stores.postgresql.PostgreSQLStore"
)
STORES = {
    "postgresql": (POSTGRESQL,),
    "group": ("tests.stores.grouped.GroupStore",),
    "group and single": (
        "tests.stores.grouped.GroupStore",
        POSTGRESQL,
    ),
    # By processes whose settings chain new logs, and by others.
    "chained": (
        "tests.races.chained_postgresql.ChainingStore",
        POSTGRESQL,
        "tests.races.chained_postgresql.ChainingGroupStore",
        "tests.races.chained.ChainingPortableStore",
    ),
    "chained portable": (
        "tests.races.chained.ChainingPortableStore",
        "eventlogs.stores.portable.PortableStore",
    ),
    "portable": ("eventlogs.stores.portable.PortableStore",),
    "citus": ("eventlogs.stores.citus.CitusStore",),  # its function, on any PostgreSQL
    "mixed": (
        POSTGRESQL,
        "eventlogs.stores.portable.PortableStore",
    ),
}


def races(store: str, number: int = 0) -> LogManager[Race]:
    """
    Return the manager of process ``number`` in a race on ``store``.

    That is a name in STORES, or the dotted path of a class. With "mixed", every other
    process uses the other one of two stores, on the same logs.
    """
    paths = STORES.get(store, (store,))
    cls = import_string(paths[number % len(paths)])
    return LogManager(Race, store=cls(DEFAULT_DB_ALIAS))
