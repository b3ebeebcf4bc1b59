"""Where logs are kept: the store of each database, chosen by its vendor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial

from django.db import connections
from django.utils.module_loading import import_string

from eventlogs.stores.base import AppendRequest, BaseStore, Claim, Outcome
from eventlogs.stores.restore import ExportedClaim, ExportedEvent, Restored
from eventlogs.values import LogState, StoredEvent

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

GroupAppend = Callable[[Sequence[AppendRequest]], Sequence[LogState | Outcome | BaseException]]
GROUP_APPENDS = {"postgresql": "eventlogs.stores.group_commit.append_group"}


@cache
def store_for(using: str) -> BaseStore:
    """Return the store of the database alias ``using``."""
    path = BY_VENDOR.get(connections[using].vendor, PORTABLE)
    store: BaseStore = import_string(path)(using)
    return store


@cache
def group_append_for(using: str) -> GroupAppend | None:
    """
    Return the function that appends requests of several callers at once, or None for none.

    Its answers are described in ``group_commit.py``.
    """
    path = GROUP_APPENDS.get(connections[using].vendor)
    return None if path is None else partial(import_string(path), using)
