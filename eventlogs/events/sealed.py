"""
Personal data in stored events: finding what is encrypted there, and reading it.

What is encrypted is found in the JSON itself, not by a class: an event is read as well if its class
does not declare the value any more, or if there is no class. Only the stand-in of an erased value
comes from the class.

Keys are looked up once for all events of a page, and never kept: a destroyed key has its effect at
once.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, Final
from uuid import UUID

import msgspec

from eventlogs.events import used_keys
from eventlogs.events.personal import (
    ARRAY,
    MARKER,
    MARKER_BYTES,
    NAME,
    OBJECT,
    TEXT,
    WRITER,
    Here,
    Node,
    child_of,
    step,
)
from eventlogs.privacy.encryption import CannotOpen, key_ids_in, open_sealed, parsed
from eventlogs.privacy.keys import key_store
from eventlogs.values import StoredEvent

NULL: Final = b"null"
METADATA: Final = "$metadata"
NOTHING: Final[Mapping[str, Any]] = {}
NUMBER: Final = re.compile(r"\[\d+\]")
MOST_KEPT: Final = 1_000  # keys that a stream of single events keeps at most
KEPT_FOR: Final = 1.0  # seconds that it keeps them


def place_of(log_id: str, index: int | None, path: str) -> str:
    """Return what is authenticated with a value; metadata have no index."""
    return f"{log_id}:{'' if index is None else index}:{path}"


def has_personal(event: StoredEvent) -> bool:
    """Return whether something in an event, or its metadata, may be encrypted."""
    return MARKER in event.data or MARKER in event.metadata


def erased_paths(event: StoredEvent) -> list[str]:
    """
    Return the paths of the erased values of a stored event: of its data, then of its metadata.

    Raise KeyUnavailable where the keys cannot be looked up with the settings here.
    """
    if not has_personal(event):
        return []
    opener = Opener([event])
    found: list[str] = []
    for read in (opener.unnamed, opener.metadata):
        with suppress(CannotOpen):  # what was changed is another matter
            read(event)
        found += opener.erased
    return found


class Opener:
    """
    Reads the personal data of some events.

    ``events`` are all that will be read, where that is known: their keys are looked up at once.
    For a stream, keys are looked up as they are met, and kept for at most a second.
    """

    def __init__(self, events: Iterable[StoredEvent]) -> None:
        self._events = events if isinstance(events, list | tuple) else None
        self._secrets: dict[UUID, bytes | None] = {}
        self._until = 0.0
        self._event: StoredEvent
        self._redacted: Mapping[str, Any] = NOTHING
        self.erased: list[str] = []  # paths, of the value that was opened last
        self.erased_keys: set[UUID] = set()  # those of these paths

    def data(
        self, event: StoredEvent, node: Node | None, redacted: Mapping[str, Any] = NOTHING
    ) -> str:
        """
        Return the data of an event as plain JSON.

        ``node`` declares the stand-ins, and ``redacted`` those of an older version by their paths.
        Raise CannotOpen for what is not a value of its place.
        """
        self._begin(event)
        self._redacted = redacted
        return self._opened(event.data, node, "$", f"{event.log_id}:{event.index}:")

    def unnamed(self, event: StoredEvent) -> str:
        """Return the data of an event as plain JSON, with null for erased values."""
        return self.data(event, None)

    def metadata(self, event: StoredEvent) -> str:
        """Return the metadata of an event as plain JSON; erased values are null."""
        self._begin(event)
        self._redacted = NOTHING
        return self._opened(event.metadata, None, METADATA, f"{event.log_id}::")

    def _begin(self, event: StoredEvent) -> None:
        self.erased, self.erased_keys = [], set()
        self._event = event
        if self._events is not None:
            texts = [text for each in self._events for text in (each.data, each.metadata)]
            self._events = None
            self._secrets.update(self.secrets_of(texts))
            self._until = math.inf
        elif self._until < math.inf and (now := time.monotonic()) > self._until:
            self._secrets.clear()
            self._until = now + KEPT_FOR

    def _secret(self, key_id: UUID) -> bytes | None:
        """Return a key, or None for a destroyed one; look up all of the event where it is new."""
        if key_id not in self._secrets:
            if len(self._secrets) > MOST_KEPT:
                self._secrets.clear()
            self._secrets.update(self.secrets_of([self._event.data, self._event.metadata]))
        return self._secrets.get(key_id)

    def secrets_of(self, texts: Iterable[str]) -> Mapping[UUID, bytes | None]:
        """Return the keys named in texts; those that were destroyed as None."""
        wanted = set[UUID]().union(*(key_ids_in(each) for each in texts if MARKER in each))
        if not wanted:
            return {}
        return {**dict.fromkeys(wanted), **key_store().secrets(wanted)}

    def _opened(self, data: str, node: Node | None, path: str, place: str) -> str:
        return bytes(self._walk(data.encode(), node, path, place)).decode()

    def _walk(self, text: bytes, node: Node | None, path: str, place: str) -> bytes:
        if MARKER_BYTES not in text:
            return text
        if text[:1] == b"{":
            members = OBJECT.decode(text)
            if len(members) == 1 and NAME in members:
                return self._value(bytes(members[NAME]), node, path, place)
            for name, raw in members.items():
                inside = bytes(raw)
                if MARKER_BYTES in inside:
                    child = child_of(node, name, members)
                    members[name] = msgspec.Raw(self._walk(inside, child, step(path, name), place))
            return WRITER.encode(members)
        if text[:1] == b"[":
            items = ARRAY.decode(text)
            for at, raw in enumerate(items):
                child = child_of(node, at)
                items[at] = msgspec.Raw(self._walk(bytes(raw), child, f"{path}[{at}]", place))
            return WRITER.encode(items)
        return text

    def _value(self, raw: bytes, node: Node | None, path: str, place: str) -> bytes:
        if raw[:1] != b'"':
            raise CannotOpen(f"at {path}, its personal data have an unknown form")
        text = TEXT.decode(raw)
        try:
            sealed = parsed(text)
            secret = self._secret(sealed.key_id)
            if secret is None:
                self.erased.append(path)
                self.erased_keys.add(sealed.key_id)
                if self._redacted and (short := _short(path)) in self._redacted:
                    return WRITER.encode(self._redacted[short])
                return node.stand_in if isinstance(node, Here) else NULL
            used_keys.note([sealed.key_id])
            return open_sealed(sealed, secret, place + path)
        except CannotOpen as error:
            raise CannotOpen(f"at {path}, {error}") from None


def _short(path: str) -> str:
    """Return a path as upcasters name it: $.phones[3] is phones[]."""
    return NUMBER.sub("[]", path).removeprefix("$").removeprefix(".")
