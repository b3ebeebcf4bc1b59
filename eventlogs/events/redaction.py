"""
Reading events without their personal data, for what leaves the project.

Encrypted values are replaced by their stand-ins as if their subjects were forgotten; no key is
looked up, so a process without keys can read like this. Values at places that a class declares to
be personal are replaced, too, where they are stored in plain text: their events are older than the
declaration.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any
from uuid import UUID

from msgspec import structs

from eventlogs import conf
from eventlogs.events.codec import ENCODER, EventReader, codec_for
from eventlogs.events.personal import without_personal
from eventlogs.events.registry import registry
from eventlogs.events.sealed import Opener
from eventlogs.values import EventRecord, StoredEvent


class Redactor(Opener):
    """Puts the stand-in into the place of each encrypted value."""

    def secrets_of(self, texts: Iterable[str]) -> dict[UUID, bytes | None]:
        return {}


class RedactingReader(EventReader):
    """Decodes stored events, with stand-ins for all personal data. It needs no key."""

    opener_of = Redactor

    def records(
        self, events: Iterable[StoredEvent], *, decode: bool = True
    ) -> Iterator[EventRecord]:
        personal_names = [*conf.personal_metadata()]
        for record in super().records(events, decode=decode):
            changed: dict[str, Any] = {}
            event_type = registry.by_class(type(record.event))
            codec = None if event_type is None else codec_for(event_type)
            if codec is not None and codec.personal is not None:
                plain = ENCODER.encode(record.event)
                redacted = without_personal(codec.personal, plain)
                if redacted != plain:
                    decode_plain = codec.decoder(codec.event_type.version, is_plain=True)
                    changed["event"] = decode_plain(redacted.decode())
            if any(record.metadata.get(name) is not None for name in personal_names):
                erased = {name: None for name in personal_names if name in record.metadata}
                changed["metadata"] = {**record.metadata, **erased}
            yield structs.replace(record, **changed, is_erased=True) if changed else record
