"""Where logs are kept: the store of each database, chosen by its vendor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import NamedTuple

from django.db import connections
from django.utils.module_loading import import_string

from eventlogs import conf
from eventlogs.stores import citus
from eventlogs.stores.base import AppendRequest, BaseStore, Claim, Outcome, Rules
from eventlogs.stores.restore import ExportedClaim, ExportedEvent, Restored
from eventlogs.values import LogState, StoredEvent

__all__ = [
    "AppendRequest",
    "BaseStore",
    "Claim",
    "ExportedClaim",
    "ExportedEvent",
    "Restored",
    "Rules",
    "StoredEvent",
    "store_for",
]

PORTABLE = "eventlogs.stores.portable.PortableStore"
CITUS = "eventlogs.stores.citus.CitusStore"
# By dotted path: psycopg is imported in projects that use PostgreSQL, and nowhere else.
BY_VENDOR = {"postgresql": "eventlogs.stores.postgresql.PostgreSQLStore"}

GroupAppend = Callable[[Sequence[AppendRequest]], Sequence[LogState | Outcome | BaseException]]
GROUP_COMMITS = {"postgresql": "eventlogs.stores.group_commit."}


@cache
def store_for(using: str) -> BaseStore:
    """Return the store of the database alias ``using``."""
    connection = connections[using]
    path = BY_VENDOR.get(connection.vendor, PORTABLE)
    # Citus has the layout with buckets only; with the other one, its feed says so.
    if connection.vendor == "postgresql" and conf.has_buckets() and citus.is_citus(connection):
        path = CITUS
    store: BaseStore = import_string(path)(using)
    return store


class GroupCommit(NamedTuple):
    """Functions of ``group_commit.py``, for one database."""

    append: GroupAppend
    append_apart: GroupAppend
    has_no_transaction: Callable[[], bool]


@cache
def group_commit_for(using: str) -> GroupCommit | None:
    """Return how appends of several callers are stored together, or None if they cannot be."""
    module = GROUP_COMMITS.get(connections[using].vendor)
    if module is None:
        return None
    names = ("append_group", "append_group_apart", "has_no_transaction")
    return GroupCommit(*(partial(import_string(module + name), using) for name in names))
