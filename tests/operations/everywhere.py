"""Search all that the tests' services store for a text: each column, each value of a cache."""

from __future__ import annotations

from typing import Any

from django.core.cache import caches
from django.db import connections


def places(text: str, *, using: str = "default") -> list[str]:
    """Return the tables and caches in which a text is."""
    return sorted({*_tables(text, using), *_caches(text)})


def _tables(text: str, using: str) -> set[str]:
    connection, found = connections[using], set()
    with connection.cursor() as cursor:
        for table in connection.introspection.table_names(cursor):
            cursor.execute(f"SELECT * FROM {connection.ops.quote_name(table)}")
            if any(text in text_of(value) for row in cursor.fetchall() for value in row):
                found.add(table)
    return found


def _caches(text: str) -> set[str]:
    found = set()
    for alias in caches.settings:
        backend: Any = caches[alias]
        if hasattr(backend, "_cache") and isinstance(backend._cache, dict):
            values: list[Any] = [*backend._cache, *backend._cache.values()]
        else:
            client = (
                backend.client.get_client(write=False)
                if hasattr(backend, "client")
                else backend._cache.get_client(None)
            )
            keys = list(client.scan_iter(match="*"))
            strings = [key for key in keys if client.type(key) == b"string"]
            values = [*keys, *client.mget([*strings, "x"])]
        if any(text in text_of(value) for value in values):
            found.add(f"cache {alias}")
    return found


def text_of(value: Any) -> str:
    """Return any value as text."""
    if isinstance(value, memoryview):
        value = bytes(value)
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
