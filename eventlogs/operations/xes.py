"""
Logs as XES, for process mining (ProM, PM4Py, Disco, Celonis).

XES is IEEE Std 1849-2016 (https://www.xes-standard.org). A log is a trace, an event an event:
``concept:name`` is its type, ``time:timestamp`` its recorded_at or the value of a chosen field,
``lifecycle:transition`` always ``complete``, ``org:resource`` the actor in its metadata, if any.
The fields of its data are attributes with XES types; nested ones get dotted names
(``address.city``), arrays are JSON text. XES has no decimals, so an amount that is stored as a
string stays a string.

An incomplete document has no ``</log>``, so XML parsers refuse it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple
from xml.sax.saxutils import quoteattr

from django.utils import timezone
from django.utils.dateparse import parse_datetime

from eventlogs.events.codec import JSON
from eventlogs.events.metadata import actor_of
from eventlogs.feed import scans
from eventlogs.feed.scans import LogRow
from eventlogs.ids import LogId
from eventlogs.models import EventLog
from eventlogs.values import StoredEvent

# In the order of the standard's schema: extensions, globals, classifiers, attributes, traces.
START: Final = """\
<?xml version="1.0" encoding="UTF-8"?>
<log xes.version="1849.2016" xes.features="" xmlns="http://www.xes-standard.org/">
  <extension name="Concept" prefix="concept" uri="http://www.xes-standard.org/concept.xesext"/>
  <extension name="Time" prefix="time" uri="http://www.xes-standard.org/time.xesext"/>
  <extension name="Lifecycle" prefix="lifecycle" uri="http://www.xes-standard.org/lifecycle.xesext"/>
  <extension name="Organizational" prefix="org" uri="http://www.xes-standard.org/org.xesext"/>
  <global scope="trace">
    <string key="concept:name" value=""/>
  </global>
  <global scope="event">
    <string key="concept:name" value=""/>
    <date key="time:timestamp" value="1970-01-01T00:00:00.000000+00:00"/>
    <string key="lifecycle:transition" value="complete"/>
  </global>
  <classifier name="Activity" scope="event" keys="concept:name"/>
  <string key="lifecycle:model" value="standard"/>
"""
END: Final = "</log>\n"
INCOMPLETE: Final = "\n<!-- INCOMPLETE: the export was interrupted here. -->\n"

NAME_START: Final = re.compile(r"[A-Za-z_]")
NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9_.-]")
MOMENT: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?(Z|[+-][0-9]{2}:[0-9]{2})\Z"
)
# Characters that XML 1.0 cannot hold, escaped or not (https://www.w3.org/TR/xml/#charsets).
NOT_IN_XML: Final = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


Path = tuple[str, ...]
"""The path of a value in an event: ``data`` or ``metadata``, then field names."""


class Piece(NamedTuple):
    """
    A piece of a document, and the numbers of traces and events that it completes.

    ``fallbacks`` counts the events without a time in the chosen field.
    """

    text: str
    traces: int = 0
    events: int = 0
    fallbacks: int = 0


def document(
    using: str,
    *,
    log_types: Collection[str] = (),
    logs: Collection[LogId] = (),
    timestamp: Path | None = None,
) -> Iterator[Piece]:
    """
    Yield an XES document in pieces, in constant memory; by default of all logs.

    Each log is as it was when its row was read: events appended later are left out.
    ``timestamp`` names the field with the time of an event, e.g. ``("data", "at")``. Its
    recorded_at is used for an event without that field, and if it holds no moment and no day.
    """
    yield Piece(START)
    for log, events in scans.logs_with_events(using, _logs(using, log_types, logs)):
        yield Piece(
            "  <trace>\n"
            + attribute("string", "concept:name", str(log.log_id), 4)
            + attribute("string", "log_type", log.log_id.log_type, 4)
            + attribute("date", "created_at", _date(log.created_at), 4)
        )
        for each in events:
            if each.index < log.version:
                yield event(each, timestamp)
        yield Piece("  </trace>\n", traces=1)
    yield Piece(END)


def _logs(using: str, log_types: Collection[str], logs: Collection[LogId]) -> Iterator[LogRow]:
    if not logs:
        for page in scans.logs_by_id(using, log_types=log_types):
            yield from page
        return
    for log_id in logs:
        if log_types and log_id.log_type not in log_types:
            continue
        row = EventLog.objects.using(using).filter(pk=log_id.uuid, log_type=log_id.log_type).first()
        if row is not None:
            yield LogRow.of(row)


def event(stored: StoredEvent, timestamp: Path | None = None) -> Piece:
    """Return one event; ``timestamp`` is that of ``document``."""
    metadata, fields = JSON.decode(stored.metadata), JSON.decode(stored.data)
    actor, rest = actor_of(metadata)
    happened_at = None
    if timestamp is not None:
        happened_at = _moment_at({"data": fields, "metadata": metadata}, timestamp)
    parts = [
        "    <event>\n",
        attribute("string", "concept:name", stored.type),
        attribute("date", "time:timestamp", _date(happened_at or stored.recorded_at)),
        attribute("string", "lifecycle:transition", "complete"),
    ]
    if actor is not None:
        parts.append(attribute("string", "org:resource", actor))
    parts.append(attribute("int", "index", str(stored.index)))
    parts.append(attribute("int", "position", str(stored.position)))
    parts.append(attribute("int", "schema_version", str(stored.schema_version)))
    taken = {"index", "position", "schema_version"}
    if timestamp is not None:
        parts.append(attribute("date", "recorded_at", _date(stored.recorded_at)))
        taken.add("recorded_at")
    for key, value in (*_flat("", fields), *_flat("metadata", rest)):
        key = _name(key)
        while key in taken:  # an event has a key once
            key += "_"
        taken.add(key)
        parts.append(typed(key, value))
    parts.append("    </event>\n")
    is_fallback = timestamp is not None and happened_at is None
    return Piece("".join(parts), events=1, fallbacks=int(is_fallback))


def _moment_at(value: Any, path: Path) -> datetime | None:
    """Return the moment in a field; a day, and a time without an offset, are local."""
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    if not isinstance(value, str):
        return None
    try:
        moment = parse_datetime(value)  # it takes a day as well: its midnight
        if moment is None:
            return None
        if timezone.is_naive(moment):
            moment = timezone.make_aware(moment)
        return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def typed(key: str, value: Any) -> str:
    """Return an attribute with the XES type of a JSON value."""
    if isinstance(value, bool):
        return attribute("boolean", key, "true" if value else "false")
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return attribute("int", key, str(value))
    if isinstance(value, float):
        return attribute("float", key, repr(value))
    if isinstance(value, str):
        return attribute("date" if _is_moment(value) else "string", key, value)
    return attribute("string", key, json.dumps(value, ensure_ascii=False))


def attribute(kind: str, key: str, value: str, indent: int = 6) -> str:
    """Return one attribute; characters that XML cannot hold are replaced."""
    escaped = quoteattr(NOT_IN_XML.sub("\ufffd", value))
    return f'{" " * indent}<{kind} key="{key}" value={escaped}/>\n'


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the values of an object under dotted names, without nulls."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield from _flat(f"{prefix}.{name}" if prefix else name, each)
    elif value is not None:
        yield prefix or "data", value


def _name(key: str) -> str:
    """Return a key as an xs:Name without a colon, which would be an extension's prefix."""
    key = NOT_IN_NAMES.sub("_", key)
    return key if NAME_START.match(key) else f"_{key}"


def _is_moment(value: str) -> bool:
    if not MOMENT.match(value):
        return False
    try:
        datetime.fromisoformat(value)
    except ValueError:
        return False
    return True


def _date(value: datetime) -> str:
    return value.astimezone(UTC).isoformat(timespec="microseconds")
