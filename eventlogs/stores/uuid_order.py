"""
The order in which a database sorts UUIDs, for code that goes through several queries side by side.

PostgreSQL, SQLite and MySQL sort them by their bytes. MariaDB (from 10.11.5 on) does so with those
of version 7, which ``LogId.new()`` makes; those of versions 1 to 5, which ``from_key()`` makes, it
sorts by their last six bytes first, as it stores them
(https://mariadb.com/kb/en/uuid-data-type/).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final
from uuid import UUID

from django.db import connections

SWAPPED: Final = range(1, 6)  # the versions that MariaDB stores with the last bytes first


def order_of(using: str) -> Callable[[UUID], bytes]:
    """Return by what a database sorts a UUID in the column of a model."""
    connection = connections[using]
    if connection.vendor == "mysql" and connection.features.has_native_uuid_field:
        return _mariadb
    return _bytes


def _bytes(uuid: UUID) -> bytes:
    return uuid.bytes


def _mariadb(uuid: UUID) -> bytes:
    if uuid.version not in SWAPPED:
        return uuid.bytes
    stored = uuid.bytes
    return stored[10:] + stored[8:10] + stored[6:8] + stored[4:6] + stored[:4]
