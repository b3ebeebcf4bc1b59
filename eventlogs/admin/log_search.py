"""
The search for logs by text: an id, a part of an id, or an idempotency key.

Ids are found in many spellings (see ``operations/pasted_ids.py``). The beginning of an id is a
range of UUIDs, which the primary key finds; on MariaDB, which sorts UUIDs in another way, the
database reads all logs. The end of an id, as printed on a receipt, is the end of the UUID's
hexadecimal digits. On PostgreSQL an index of the reversed digits finds it; on SQLite and MariaDB
the database reads all logs. Archived logs are found in the same ways: the marks that stay of them
in the table of logs have their ids.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final
from uuid import UUID

from django.db import connections
from django.db.models import CharField, Q, QuerySet
from django.db.models.expressions import RawSQL
from django.db.models.functions import Cast

from eventlogs.aggregates import aggregates
from eventlogs.ids import LogId
from eventlogs.models import ArchivedLog, EventLog, IdempotencyKey
from eventlogs.operations import pasted_ids
from eventlogs.operations.pasted_ids import Beginning, End, Named
from eventlogs.stores.erasing import NO_LOG_TYPE

FOUND: Final = 50  # logs of one key, or of one part of an id, among other results
# The expression of the index: the hexadecimal digits of the id, reversed.
REVERSED: Final = "reverse(replace(eventlogs_eventlog.id::text, '-', ''))"


def search(text: str, using: str) -> QuerySet[EventLog]:
    """
    Return the logs that a text names, by id, part of an id, or idempotency key.

    If the text is only the beginning of ids, all logs with that beginning are found; otherwise
    50 of them, those with the highest ids, and the other results.
    """
    text = text.strip()
    return _by_any(text, using, _by_key(text, using))


def search_archived(text: str, using: str) -> QuerySet[ArchivedLog]:
    """Return the archived logs that a text names, in the same ways as ``search``."""
    text = text.strip()
    logs: QuerySet[ArchivedLog] = ArchivedLog.objects.using(using)
    found = _by_key(text, using)
    names = pasted_ids.names_in(text)
    if names:
        return logs.filter(pk__in=found | _by_names(logs, names))
    marks: QuerySet[Any] = QuerySet(EventLog, using=using).filter(log_type=NO_LOG_TYPE)
    for end in pasted_ids.ends(text):
        tails = list(_with_end(marks, end.digits, using).values_list("pk", flat=True)[:FOUND])
        rows = logs.filter(pk__in=tails)
        rows = rows.filter(log_type=end.log_type) if end.log_type else rows
        found |= {each.pk for each in rows if str(each.log_id).endswith(end.text)}
    for each in pasted_ids.beginnings(text):
        keys = _between(logs, each, using).order_by("-pk").values_list("pk", flat=True)
        found |= set(keys[:FOUND])
    return logs.filter(pk__in=found)


def search_ids(text: str, using: str) -> QuerySet[EventLog]:
    """Return the logs that a text names by an id or a part of one."""
    return _by_any(text, using, set())


def event_in(text: str, using: str) -> tuple[LogId, int] | None:
    """Return the event that a text names, by its id or an address of the admin; or None."""
    names = pasted_ids.names_in(text)
    events = [each for each in names if each.index is not None]
    if len(events) != 1 or len({each.uuid for each in names}) != 1:
        return None
    [event] = events
    index = event.index
    log: Any = EventLog.objects.using(using).filter(_of_name(event)).first()
    log = log or ArchivedLog.objects.using(using).filter(_of_name(event)).first()
    if log is None or index is None or index >= log.version:
        return None
    return log.log_id, index


def _by_any(text: str, using: str, found: set[UUID]) -> QuerySet[EventLog]:
    logs: QuerySet[EventLog] = EventLog.objects.using(using)
    names = pasted_ids.names_in(text)
    if names:
        found |= _by_names(logs, names)
    else:
        found |= _by_ends(logs, pasted_ids.ends(text), using)
        ranges = [
            (each, some)
            for each in pasted_ids.beginnings(text)
            if (some := list(_between(logs, each, using).order_by("-pk").values_list("pk")[:FOUND]))
        ]
        if len(ranges) == 1 and not found:
            [(only, _)] = ranges
            return _between(logs, only, using)
        found |= {pk for _range, some in ranges for (pk,) in some}
    return logs.filter(pk__in=found)


def _by_key(key: str, using: str) -> set[UUID]:
    """Return the logs on which a key was used; the index begins with the log type."""
    if not key or "\0" in key:
        return set()
    log_types = {each.log_type for each in aggregates}
    keys = IdempotencyKey.objects.using(using).filter(log_type__in=log_types, key=key)
    return set(keys.values_list("log_id", flat=True)[:FOUND])


def _by_names(logs: QuerySet[Any], names: Iterable[Named]) -> set[UUID]:
    wanted = Q(pk__in=[])
    for each in names:
        wanted |= _of_name(each)
    return set(logs.filter(wanted).values_list("pk", flat=True))


def _of_name(name: Named) -> Q:
    return Q(pk=name.uuid) if name.log_type is None else Q(pk=name.uuid, log_type=name.log_type)


def _between(logs: QuerySet[Any], beginning: Beginning, using: str) -> QuerySet[Any]:
    lowest, highest = beginning.lowest, beginning.highest
    found: QuerySet[Any]
    if _is_mariadb(using):
        # It sorts UUIDs of the versions 1 to 5 by their last digits first, whether or not they are
        # ids of logs: one of the bounds can be such a UUID, too. So the text is compared.
        as_text = logs.alias(as_text=Cast("pk", CharField(max_length=36)))
        found = as_text.filter(as_text__range=(str(lowest), str(highest)))
    else:
        found = logs.filter(pk__range=(lowest, highest))
    return found.filter(log_type=beginning.log_type) if beginning.log_type else found


def _by_ends(logs: QuerySet[Any], ends: Iterable[End], using: str) -> set[UUID]:
    found: set[UUID] = set()
    for end in ends:
        rows = logs.filter(log_type=end.log_type) if end.log_type else logs
        keys = _with_end(rows, end.digits, using).values_list("log_type", "pk")[:FOUND]
        # A character of base32 has 5 bits and a digit 4: the first character of the text can
        # have bits that ``digits`` does not have, so the text itself is compared.
        found |= {pk for name, pk in keys if str(LogId.stored(name, pk)).endswith(end.text)}
    return found


def _with_end(logs: QuerySet[Any], digits: str, using: str) -> QuerySet[Any]:
    if connections[using].vendor == "postgresql":
        reverse: QuerySet[Any] = logs.annotate(reversed=RawSQL(REVERSED, ()))
        return reverse.filter(reversed__startswith=digits[::-1])
    if _is_mariadb(using):  # its text has hyphens
        return logs.filter(pk__endswith=_with_hyphens(digits))
    return logs.filter(pk__endswith=digits)


def _is_mariadb(using: str) -> bool:
    """Return whether ids are in MariaDB's own type of UUIDs."""
    connection = connections[using]
    return connection.vendor == "mysql" and bool(connection.features.has_native_uuid_field)


def _with_hyphens(tail: str) -> str:
    """Return the last hexadecimal digits of a UUID with the hyphens of the UUID's text."""
    whole = UUID(tail.rjust(32, "0"))
    hyphens = sum(len(tail) > digits for digits in (12, 16, 20, 24))
    return str(whole)[-len(tail) - hyphens :]
