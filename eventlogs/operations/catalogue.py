"""
The catalogue of event types: their fields and versions, who handles them, how many are stored.

Numbers are those of the newest events, at most NEWEST, read by primary key. They show shares, and
need no scan of all events.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from django.db import router
from django.db.models import Count

from eventlogs.aggregates import aggregates
from eventlogs.archives import listing
from eventlogs.events.registry import EventType, registry
from eventlogs.events.schemas import Schema, event_in, fields_of, schema_of, shape_of, words_of
from eventlogs.models import Event
from eventlogs.operations.figures import NEWEST, newest
from eventlogs.projections.base import BaseProjection, declared
from eventlogs.projections.kinds import Reactor
from eventlogs.stores import stored_types
from eventlogs.stores.stored_types import StoredName
from eventlogs.utils.names import dotted

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
ASYNCAPI: Final = "3.0.0"


@dataclass(frozen=True, slots=True)
class Field:
    """A field of an event class: its type in words, and whether data may lack it."""

    name: str
    type: str
    is_required: bool


@dataclass(frozen=True, slots=True)
class Entry:
    """
    One event type.

    ``cls`` is "" for a stored type without a class; ``is_retired`` says that it was declared
    retired.
    ``stored`` are the versions that the database has, as far as they were noted. ``count`` is the
    number of events among those that were read.
    """

    name: str
    cls: str
    version: int
    aliases: tuple[str, ...]
    doc: str
    fields: tuple[Field, ...]
    log_types: tuple[str, ...]
    aggregates: tuple[str, ...]
    projections: tuple[str, ...]
    reactors: tuple[str, ...]
    stored: tuple[int, ...]
    is_retired: bool
    count: int


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All event types, by name, and how many of the newest events were counted."""

    entries: tuple[Entry, ...]
    counted: int
    is_exact: bool  # all events were counted


def catalogue(*, using: str | None = None, exact: bool = False) -> Catalogue:
    """
    Return the event types that are declared here, and those that are stored without a class.

    ``exact`` reads all events, and corrects the table of stored types. It removes erased types
    that this release does not know, so processes that append such events must have ended.
    """
    alias = using or router.db_for_write(Event)
    counts: dict[StoredName, int] = {}
    noted = stored_types.stored_types(alias)  # before events are counted: others may come later
    events = newest(Event.objects.using(alias), None if exact else NEWEST, "pk")
    names = events.values_list("log_type", "type", "schema_version")
    for log_type, name, version, count in names.annotate(Count("pk")):
        counts[StoredName(log_type, name, version)] = count
    known = {name for each in registry for name in each.names}
    if exact:
        archived = set(listing.archived_logs(alias).values_list("log_type", flat=True).distinct())
        gone = {
            each
            for each in noted - counts.keys()
            if each.type not in known and each.log_type not in archived
        }
        stored_types.correct(alias, found=counts, gone=gone)
        noted -= gone
    stored = noted | counts.keys()
    entries = [_entry(each, stored, counts) for each in set(registry)]
    for name in {each.type for each in stored} - known:
        entries.append(_without_class(name, stored, counts))
    total = sum(counts.values())
    return Catalogue(
        tuple(sorted(entries, key=lambda each: each.name)), total, exact or total < NEWEST
    )


def _entry(
    event_type: EventType,
    stored: set[StoredName],
    counts: dict[StoredName, int],
) -> Entry:
    folding = [each for each in aggregates if event_type in each.event_types]
    shape = shape_of(event_type)
    required = event_in(shape).get("required", ())
    names = set(event_type.names)
    ours = [each for each in stored if each.type in names]
    handlers = list(_handlers(event_type, {each.log_type for each in folding}))
    return Entry(
        name=event_type.name,
        cls=dotted(event_type.cls),
        version=event_type.version,
        aliases=event_type.aliases,
        doc=str(event_in(schema_of(event_type)).get("description", "")),
        fields=tuple(
            Field(name, words_of(each, shape), name in required)
            for name, each in fields_of(shape).items()
        ),
        log_types=tuple(
            sorted({each.log_type for each in folding} | {each.log_type for each in ours})
        ),
        aggregates=tuple(sorted(dotted(each) for each in folding)),
        projections=tuple(each.name for each in handlers if not issubclass(each, Reactor)),
        reactors=tuple(each.name for each in handlers if issubclass(each, Reactor)),
        stored=tuple(sorted({each.schema_version for each in ours})),
        is_retired=False,
        count=sum(count for each, count in counts.items() if each.type in names),
    )


def _handlers(event_type: EventType, log_types: set[str]) -> Iterator[type[BaseProjection]]:
    for each in sorted(declared(BaseProjection), key=lambda each: each.name):
        read, types = each.log_types_read(), each.event_types_read()
        if read is not None and log_types and not log_types & set(read):
            continue
        if types is None or set(event_type.names) & set(types):
            yield each


def _without_class(name: str, stored: set[StoredName], counts: dict[StoredName, int]) -> Entry:
    ours = [each for each in stored if each.type == name]
    return Entry(
        name=name,
        cls="",
        version=max(each.schema_version for each in ours),
        aliases=(),
        doc="",
        fields=(),
        log_types=tuple(sorted({each.log_type for each in ours})),
        aggregates=(),
        projections=(),
        reactors=(),
        stored=tuple(sorted({each.schema_version for each in ours})),
        is_retired=registry.is_retired(name),
        count=sum(count for each, count in counts.items() if each.type == name),
    )


def json_schemas() -> dict[str, Any]:
    """Return the JSON Schemas of all event classes, as one document with a definition each."""
    definitions: dict[str, Schema] = {}
    for event_type in sorted(set(registry), key=lambda each: each.name):
        definitions[event_type.name] = _schema(event_type)
    return {"$schema": DIALECT, "$defs": definitions}


def asyncapi_document() -> dict[str, Any]:
    """Return the events as an AsyncAPI document: a channel for each log type, a message each."""
    messages = {
        each.name: {
            "name": each.name,
            "contentType": "application/json",
            "payload": {
                "schemaFormat": f"application/schema+json;version={DIALECT.split('/')[-2]}",
                "schema": {"$schema": DIALECT, **_schema(each)},
            },
        }
        for each in sorted(set(registry), key=lambda each: each.name)
    }
    channels = {
        log_type: {
            "address": log_type,
            "messages": {
                event_type.name: {"$ref": f"#/components/messages/{event_type.name}"}
                for aggregate in aggregates.of(log_type)
                for event_type in aggregate.event_types
            },
        }
        for log_type in sorted({each.log_type for each in aggregates})
    }
    return {
        "asyncapi": ASYNCAPI,
        "info": {"title": "Events", "version": "1"},
        "channels": channels,
        "components": {"messages": messages},
    }


def _schema(event_type: EventType) -> Schema:
    """Return a schema of its own: definitions inside of it are its own, too."""
    schema = schema_of(event_type)
    root = schema["$ref"].rpartition("/")[2]
    definitions = schema["$defs"]
    own = {**definitions.pop(root), "x-version": event_type.version}
    if definitions or f"#/$defs/{root}" in str(own):
        own["$defs"] = {**definitions}
        if f"#/$defs/{root}" in str(own):  # a recursive event
            own["$defs"][root] = {key: each for key, each in own.items() if key != "$defs"}
        own["$id"] = f"urn:eventlogs:{event_type.name}:{event_type.version}"
    return own
