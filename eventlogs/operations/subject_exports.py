"""
A person's data: what the events of all logs hold of one subject, decrypted.

It reads the logs that a subject's key was used in, a page at a time. Values of other subjects in
the same events are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from eventlogs.archives.read_through import pages_through
from eventlogs.events.codec import JSON
from eventlogs.events.personal import NAME, step
from eventlogs.events.sealed import METADATA, has_personal, place_of
from eventlogs.exceptions import SubjectForgotten, SubjectUnknown, UndecodableEvent
from eventlogs.ids import LogId
from eventlogs.operations.forgetting import databases, pages_of
from eventlogs.privacy.encryption import CannotOpen, open_sealed, parsed
from eventlogs.privacy.keys import key_store
from eventlogs.stores import store_for
from eventlogs.values import StoredEvent


@dataclass(frozen=True, slots=True)
class SubjectEvent:
    """
    The personal data of one subject in one event.

    ``data`` and ``metadata`` are the decrypted values by their paths, e.g. ``{"$.name": "Ada"}``,
    as they were stored: no upcaster has changed them. ``database`` is the alias of the log's.
    """

    log: LogId
    index: int
    recorded_at: datetime
    type: str
    schema_version: int
    data: dict[str, Any]
    metadata: dict[str, Any]
    database: str


def export_subject(subject: str, *, using: str | None = None) -> Iterator[SubjectEvent]:
    """
    Yield the events that hold personal data of a subject, log by log, in the order of each log.

    Archived logs are read from their archives. ``using`` is a database alias; by default all
    databases with the tables are read. Memory is that of one page of events. The subject's own
    values are decrypted; those of others, and fields that are not declared personal, are not in the
    answer.

    Raise SubjectUnknown where the subject never had a key, SubjectForgotten where it is destroyed,
    KeyUnavailable where the settings lack the key that wraps it, and UndecodableEvent where a
    stored value was changed. Raise ArchiveUnavailable where an archive cannot be read. Nothing is
    written.
    """
    store = key_store()
    key_id = store.find(subject)
    if key_id is None:
        raise SubjectUnknown()
    secret = store.secrets([key_id]).get(key_id)
    if secret is None:
        raise SubjectForgotten(subject, key_id=key_id)
    return _events(key_id, secret, databases(using))


def _events(key_id: UUID, secret: bytes, aliases: list[str]) -> Iterator[SubjectEvent]:
    for alias in aliases:
        for page in pages_of(key_id, alias):
            for log_id in page:
                for event in _stored(alias, log_id):
                    if not has_personal(event):
                        continue
                    found = _event(event, key_id, secret, alias)
                    if found.data or found.metadata:
                        yield found


def _stored(using: str, log_id: LogId) -> Iterator[StoredEvent]:
    for page in pages_through(store_for(using), log_id, start=0):
        yield from page


def _event(event: StoredEvent, key_id: UUID, secret: bytes, alias: str) -> SubjectEvent:
    try:
        data = dict(_data_of(event, key_id, secret))
        metadata = dict(_metadata_of(event, key_id, secret))
    except CannotOpen as error:
        raise UndecodableEvent(
            str(error),
            event_type=event.type,
            schema_version=event.schema_version,
            log_id=event.log_id,
            index=event.index,
        ) from None
    return SubjectEvent(
        event.log_id,
        event.index,
        event.recorded_at,
        event.type,
        event.schema_version,
        data,
        metadata,
        alias,
    )


def _data_of(event: StoredEvent, key_id: UUID, secret: bytes) -> Iterator[tuple[str, Any]]:
    place = place_of(event.log_id, event.index, "")
    yield from _values(JSON.decode(event.data), "$", place, key_id, secret)


def _metadata_of(event: StoredEvent, key_id: UUID, secret: bytes) -> Iterator[tuple[str, Any]]:
    place = place_of(event.log_id, None, "")
    yield from _values(JSON.decode(event.metadata), METADATA, place, key_id, secret)


def _values(
    value: Any, path: str, place: str, key_id: UUID, secret: bytes
) -> Iterator[tuple[str, Any]]:
    """Yield the decrypted values of one key in a JSON value, with their paths."""
    if isinstance(value, dict):
        text = value.get(NAME) if len(value) == 1 else None
        if isinstance(text, str):
            sealed = parsed(text)
            if sealed.key_id == key_id:
                yield path, JSON.decode(open_sealed(sealed, secret, place + path))
            return
        for name, each in value.items():
            yield from _values(each, step(path, name), place, key_id, secret)
    elif isinstance(value, list):
        for at, each in enumerate(value):
            yield from _values(each, f"{path}[{at}]", place, key_id, secret)
