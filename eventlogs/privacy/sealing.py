"""
Personal data of an append: found in what is encoded, and encrypted right before it is stored.

``Sealing`` is made once for an append. ``sealed`` encrypts for an index, and may be called again
for another one: the place of each value (log, index, path) is authenticated with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from eventlogs import conf
from eventlogs.events.codec import EncodedEvent, SealedEvent
from eventlogs.events.personal import (
    GAP,
    GAP_RAW,
    NAME,
    OBJECT,
    TEXT,
    WRITER,
    Members,
    PersonalValue,
    Template,
    checked_subject,
    step,
    template_of,
)
from eventlogs.events.sealed import METADATA, place_of
from eventlogs.exceptions import InvalidEvent
from eventlogs.ids import LogId
from eventlogs.privacy.encryption import SubjectCipherKey, compared, seal
from eventlogs.privacy.memory import keys_for_writing
from eventlogs.privacy.subject_logs import note_logs

OPENING: Final = f'{{"{NAME}":"'
CLOSING: Final = '"}'


class Sealing:
    """
    The personal data of one append.

    ``personal`` are the personal places of each event's class, None for a class without any.
    Raise InvalidEvent for a value whose subject cannot be one.
    """

    def __init__(
        self,
        log_id: LogId,
        events: Sequence[EncodedEvent],
        personal: Sequence[Members | None],
        metadata: str,
    ) -> None:
        self._log_id = log_id
        self._events = events
        self._templates = [
            None if node is None else _template(node, event)
            for event, node in zip(events, personal, strict=True)
        ]
        self._metadata = _template_of_metadata(log_id, metadata)
        self._text = metadata
        self._keys: Mapping[str, SubjectCipherKey] = {}

    @property
    def is_needed(self) -> bool:
        """Whether the append has personal data."""
        return any(self._templates) or self._metadata is not None

    def find_keys(self, using: str) -> None:
        """
        Look up the keys, and note in the log's database that the log has data of their subjects.

        Raise SubjectForgotten where a subject was forgotten, and KeyUnavailable. The caller's
        transaction stays usable.
        """
        templates = [each for each in (*self._templates, self._metadata) if each is not None]
        subjects = {value.subject for each in templates for value in each.values}
        self._keys = keys_for_writing(subjects, using)
        note_logs(using, [key.id for key in self._keys.values()], self._log_id)

    def sealed(self, first_index: int, *, compares: bool) -> list[EncodedEvent]:
        """
        Return the events with their personal data encrypted, for this index of the first.

        ``compares`` says that the request has an idempotency key, and will be compared.
        """
        found: list[EncodedEvent] = []
        for at, (event, template) in enumerate(zip(self._events, self._templates, strict=True)):
            if template is None:
                found.append(event)
                continue
            data = self._filled(template, first_index + at)
            sealed_event = SealedEvent(event.type, event.schema_version, data)
            if compares:
                sealed_event.compared = template.filled(self._compared)
            found.append(sealed_event)
        return found

    def sealed_metadata(self) -> str:
        """Return the metadata with the personal values encrypted."""
        return self._text if self._metadata is None else self._filled(self._metadata, None)

    def _filled(self, template: Template, index: int | None) -> str:
        def text_of(value: PersonalValue) -> str:
            place = place_of(self._log_id, index, value.path)
            return f"{OPENING}{seal(self._keys[value.subject], value.plain, place)}{CLOSING}"

        return template.filled(text_of)

    def _compared(self, value: PersonalValue) -> str:
        key = self._keys[value.subject]
        return f"{OPENING}{compared(key.secret, value.plain)}{CLOSING}"


def _template(node: Members, event: EncodedEvent) -> Template | None:
    try:
        template = template_of(node, event.data)
    except InvalidEvent as error:
        raise InvalidEvent(error.limit, event_type=event.type, path=error.path) from None
    return template if template.values else None


def _template_of_metadata(log_id: LogId, metadata: str) -> Template | None:
    personal = conf.personal_metadata()
    if not personal or metadata == "{}":
        return None
    members = OBJECT.decode(metadata)
    values = []
    for name, raw in list(members.items()):
        if name in personal and bytes(raw) != b"null":
            path = step(METADATA, name)
            subject = _subject(members, personal[name], log_id, path)
            values.append((name, PersonalValue(subject, path, bytes(raw))))
    if not values:
        return None
    for name, _ in values:
        members[name] = GAP_RAW
    pieces = WRITER.encode(members).decode().split(GAP)
    return Template(pieces, [value for _, value in values])


def _subject(members: Mapping[str, Any], name: str | None, log_id: LogId, path: str) -> str:
    raw = bytes(members.get(name, b"null")) if name is not None else b"null"
    if raw.startswith(b'"'):
        return checked_subject(TEXT.decode(raw), path)
    if raw.removeprefix(b"-").isdigit():
        return raw.decode()
    return str(log_id)
