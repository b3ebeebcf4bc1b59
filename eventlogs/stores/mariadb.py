"""What only MariaDB refuses: JSON that is nested deeper than it reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, Final, Protocol

from django.db.backends.base.base import BaseDatabaseWrapper

from eventlogs.exceptions import InvalidEvent

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
    connection: BaseDatabaseWrapper, events: Iterable[Typed], metadata: str
) -> InvalidEvent | None:
    """Return why MariaDB cannot keep events or their metadata; None where it can."""
    if not getattr(connection, "mysql_is_mariadb", False):
        return None
    for event in events:
        path = too_deep(event.data, "$")
        if path is not None:
            return InvalidEvent(LIMIT, event_type=event.type, path=path)
    path = too_deep(metadata, "$metadata")
    return None if path is None else InvalidEvent(LIMIT, path=path)


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
