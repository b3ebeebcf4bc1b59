"""
The history of a PostgreSQL database: the server sends the bytes that digests are made of.

No function of this package in the database is called, and no digest is computed there: a person who
owns the tables may have replaced those functions. ``sources.py`` loads this module by name, because
only projects that use PostgreSQL have psycopg.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final
from uuid import UUID

from eventlogs.ids import LogId
from eventlogs.seals.history import Part
from eventlogs.stores.retries import run_again
from eventlogs.stores.statements import Row, Statement

PAGE: Final = Statement("history_page")
SIZE: Final = 5_000  # events of a page
FIRST: Final = bytes(16)  # in front of all logs


def parts(using: str, tell: Callable[[int], None]) -> Iterator[Part]:
    """Yield all events, log by log in the order of UUIDs, each log in the order of indexes."""
    log_type, raw, last = "", b"", 0
    log_id: LogId | None = None
    page = _read(using, FIRST, -1)
    while page:
        for name, log, index, position, body, digest in page:
            if log != raw or name != log_type:
                log_type, raw = name, log
                log_id = LogId.stored(name, UUID(bytes=log))
            yield log_id, index, position, body, digest
            last = index
        tell(len(page))
        page = _read(using, raw, last) if len(page) == SIZE else []


def _read(using: str, log: bytes, index: int) -> list[Row]:
    parameters: dict[str, Any] = {"log": UUID(bytes=log), "index": index, "limit": SIZE}
    return run_again(using, lambda connection: PAGE.read(connection, parameters, _as_they_are))


def _as_they_are(rows: list[Row]) -> list[Row]:
    return rows
