"""
Finding logs by what a person has in hand: an id, the end of one, or an idempotency key.

The end of an id is what stands on a receipt or at the edge of a screen. Its characters are five
bits each of the UUID's low end, so it becomes the end of the UUID's hexadecimal digits, which an
index of them backwards finds (migration 0005; on SQLite, logs are looked through).
"""

from __future__ import annotations

import re
from typing import Any, Final
from uuid import UUID

from django.db import connections
from django.db.models import QuerySet
from django.db.models.expressions import RawSQL

from eventlogs.aggregates import aggregates
from eventlogs.exceptions import InvalidLogId
from eventlogs.ids import LogId
from eventlogs.models import EventLog, IdempotencyKey

ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's, as TypeIDs have it
SHORTEST: Final = 6  # characters of an end: 30 bits
LONGEST: Final = 25  # of 26, whose first one has 3 bits
END: Final = re.compile(rf"[{ALPHABET}]{{{SHORTEST},{LONGEST}}}\Z")
FOUND: Final = 50  # logs of one key at most: one for each log type
BACKWARDS: Final = "reverse(replace(eventlogs_eventlog.id::text, '-', ''))"


def search(text: str, using: str) -> QuerySet[EventLog]:
    """Return the logs that a text names, none for a text that names nothing."""
    logs: QuerySet[EventLog] = EventLog.objects.using(using)
    text = text.strip()
    try:
        log_id = LogId.parse(text)
    except InvalidLogId:
        pass
    else:
        return logs.filter(pk=log_id.uuid, log_type=log_id.log_type)
    try:
        return logs.filter(pk=UUID(text))
    except ValueError:
        pass
    found = _by_key(text, using)
    end = text.rpartition("_")[2].lower()
    if END.match(end):
        found |= _by_end(logs, end, using)
    return logs.filter(pk__in=found)


def _by_key(key: str, using: str) -> set[UUID]:
    """Return the logs that a key was used on; the index wants the log types named."""
    if not key or "\0" in key:
        return set()
    log_types = {each.log_type for each in aggregates}
    keys = IdempotencyKey.objects.using(using).filter(log_type__in=log_types, key=key)
    return set(keys.values_list("log_id", flat=True)[:FOUND])


def _by_end(logs: QuerySet[Any], end: str, using: str) -> set[UUID]:
    value = 0
    for character in end:
        value = value << 5 | ALPHABET.index(character)
    digits = len(end) * 5 // 4  # whole ones
    tail = f"{value & (1 << 4 * digits) - 1:0{digits}x}"
    if connections[using].vendor == "postgresql":
        found = logs.annotate(backwards=RawSQL(BACKWARDS, ())).filter(
            backwards__startswith=tail[::-1]
        )
    elif connections[using].features.has_native_uuid_field:  # MariaDB's, whose text has hyphens
        found = logs.filter(pk__endswith=_with_hyphens(tail))
    else:
        found = logs.filter(pk__endswith=tail)
    keys = found.values_list("log_type", "pk")[:FOUND]
    # Of the last character not all bits are in a whole digit.
    return {pk for log_type, pk in keys if str(LogId.stored(log_type, pk)).endswith(end)}


def _with_hyphens(tail: str) -> str:
    """Return the end of a UUID's hexadecimal digits as it is in the UUID's text."""
    whole = UUID(tail.rjust(32, "0"))
    hyphens = sum(len(tail) > digits for digits in (12, 16, 20, 24))
    return str(whole)[-len(tail) - hyphens :]
