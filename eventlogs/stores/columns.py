"""
The columns of a stored event, in one order, and functions that make events of rows.

Both lists, that for the ORM and that for SQL, are made of the fields of StoredEvent. In ``sql/``,
``{stored}`` stands for the columns that are read and ``{inserted}`` for those that are written.
``{log}`` stands for those of a log, with its id as 16 bytes: they cost a reader less than a UUID.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from itertools import starmap
from typing import Any, Final
from uuid import UUID

from django.db.models import TextField
from django.db.models.functions import Cast

from eventlogs.ids import LogId
from eventlogs.values import StoredEvent

LOG: Final = ("log_type", "log_id")  # the columns that a LogId is made of
FIELDS: Final = StoredEvent.__struct_fields__[1:]  # those behind it
JSON: Final = {"data", "metadata"}  # as text, which is decoded once: see docs/performance.md

STORED: Final = tuple(Cast(name, TextField()) if name in JSON else name for name in FIELDS)
"""For ``values_list()``: the events of a log that is known."""

STORED_WITH_LOG: Final = (*LOG, *STORED)
"""For ``values_list()``: the events of any logs."""

SQL: Final = {
    "{log}": "log_type, uuid_send(log_id)",
    "{stored}": ", ".join(f"{name}::text" if name in JSON else name for name in FIELDS),
    "{inserted}": ", ".join((*LOG, *(name for name in FIELDS if name != "position"))),
}


MAX_LOG_IDS: Final = 10_000  # in memory: 250 bytes each, 2.5 MB at most

_log_ids: dict[bytes, LogId] = {}  # of events that were read lately


def events_of_log(log_id: LogId, rows: Iterable[tuple[Any, ...]]) -> list[StoredEvent]:
    """Return the events of one log; ``rows`` have the columns STORED."""
    return list(starmap(partial(StoredEvent, log_id), rows))


def events_of_rows(rows: Iterable[tuple[Any, ...]]) -> list[StoredEvent]:
    """Return the events of any logs; ``rows`` have the columns STORED_WITH_LOG."""
    log_ids: dict[UUID, LogId] = {}  # a page has few logs, as a rule
    events = []
    for log_type, log, *fields in rows:
        log_id = log_ids.get(log)
        if log_id is None or log_id.log_type != log_type:  # verify finds rows that contradict
            log_id = log_ids[log] = LogId.stored(log_type, log)
        events.append(StoredEvent(log_id, *fields))
    return events


def events_of_bytes(rows: Iterable[tuple[Any, ...]]) -> list[StoredEvent]:
    """
    Return the events of any logs; ``rows`` have the columns ``{log}, {stored}``.

    Log ids are kept: the events of a log are often near each other. An id depends on nothing but
    its type and bytes, so it stays right whatever happens to the log.
    """
    known = _log_ids
    events = []
    for log_type, raw, index, position, name, version, data, metadata, key, recorded_at in rows:
        log_id = known.get(raw)
        if log_id is None or log_id.log_type != log_type:  # verify finds rows that contradict
            if len(known) >= MAX_LOG_IDS:
                known.clear()
            log_id = known[raw] = LogId.stored_as(log_type, raw)
        events.append(
            StoredEvent(log_id, index, position, name, version, data, metadata, key, recorded_at)
        )
    return events
