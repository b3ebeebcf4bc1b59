"""Where logs are kept: the store of each database, chosen by its vendor."""

from __future__ import annotations

from functools import cache

from django.db import connections
from django.utils.module_loading import import_string

from eventlogs.stores.base import AppendRequest, BaseStore, Claim
from eventlogs.stores.restore import ExportedClaim, ExportedEvent, Restored
from eventlogs.values import StoredEvent

__all__ = [
    "AppendRequest",
    "BaseStore",
    "Claim",
    "ExportedClaim",
    "ExportedEvent",
    "Restored",
    "StoredEvent",
    "store_for",
]

PORTABLE = "eventlogs.stores.portable.PortableStore"
# By dotted path: psycopg is imported in projects that use PostgreSQL, and nowhere else.
BY_VENDOR = {"postgresql": "eventlogs.stores.postgresql.PostgreSQLStore"}


@cache
def store_for(using: str) -> BaseStore:
    """Return the store of the database alias ``using``."""
    path = BY_VENDOR.get(connections[using].vendor, PORTABLE)
    store: BaseStore = import_string(path)(using)
    return store
