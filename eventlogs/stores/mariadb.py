"""What only MariaDB refuses: JSON that is nested deeper than it reads, and some UUIDs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, Final, Protocol
from uuid import UUID

from django.db.backends.base.base import BaseDatabaseWrapper

from eventlogs.exceptions import EventLogError, InvalidEvent, InvalidLogId
from eventlogs.ids import LogId

# 32 levels, a value inside of the innermost one included: JSON_VALID() of more is 0, which the
# column's own CHECK refuses. https://mariadb.com/kb/en/json-functions/
MAX_DEPTH: Final = 31


class Typed(Protocol):
    """An event that is to be stored."""

    @property
    def type(self) -> str: ...
    @property
    def data(self) -> str: ...


def refusal(
    connection: BaseDatabaseWrapper, log_id: LogId, events: Iterable[Typed], metadata: str
) -> EventLogError | None:
    """Return why MariaDB cannot keep events, their metadata or their log; None where it can."""
    if not getattr(connection, "mysql_is_mariadb", False):
        return None
    if not takes_uuid(log_id.uuid):
        return InvalidLogId(
            f"MariaDB does not keep the UUID of {log_id}, which is of version 8 or above. Derive "
            f"an id from its text: LogId.from_key({log_id.log_type!r}, str(uuid))."
        )
    for event in events:
        path = too_deep(event.data, "$")
        if path is not None:
            return InvalidEvent(LIMIT, event_type=event.type, path=path)
    path = too_deep(metadata, "$metadata")
    return None if path is None else InvalidEvent(LIMIT, path=path)


def takes_uuid(uuid: UUID) -> bool:
    """
    Return whether MariaDB's type ``uuid`` takes a value.

    It takes versions 1 to 7 of RFC 9562, and calls most values of version 8 and above an
    "Incorrect uuid value" if their ninth byte is at most 0x80, as one in 64 of version 8 has. Found
    by trying on 10.11; a test tries the server that it has.
    """
    seventh, ninth = uuid.int >> 72 & 0xFF, uuid.int >> 56 & 0xFF
    return seventh < 0x80 or ninth > 0x80


LIMIT: Final = f"MariaDB takes objects and arrays that are nested {MAX_DEPTH} deep at most"


def too_deep(text: str, root: str) -> str | None:
    """Return the JSON path of the first object or array that is nested too deep."""
    # Nothing is nested deeper than there are brackets; most events end here.
    if text.count("{") + text.count("[") <= MAX_DEPTH:
        return None
    return next(_paths(json.loads(text), root, 1), None)


def _paths(value: Any, path: str, depth: int) -> Iterator[str]:
    if isinstance(value, dict):
        children: Iterable[tuple[str, Any]] = ((f".{key}", each) for key, each in value.items())
    elif isinstance(value, list):
        children = ((f"[{at}]", each) for at, each in enumerate(value))
    else:
        return
    if depth > MAX_DEPTH:
        yield path
        return
    for step, child in children:
        yield from _paths(child, path + step, depth + 1)
