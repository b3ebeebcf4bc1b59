"""
Personal data in the admin: decrypted for users who see payloads, a badge where they were erased.

The pages show what is stored, so a value whose key is destroyed is shown as ``ERASED``, not as
its stand-in. What cannot be decrypted for another reason is ``UNREADABLE``: a page never shows
ciphertext, and is never an error because of one value. The keys of a page are looked up once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final
from uuid import UUID

from eventlogs.events.codec import JSON
from eventlogs.events.personal import NAME, step
from eventlogs.events.sealed import METADATA, place_of
from eventlogs.exceptions import KeyUnavailable
from eventlogs.ids import LogId
from eventlogs.models import Event
from eventlogs.privacy.encryption import CannotOpen, open_sealed, parsed
from eventlogs.privacy.keys import key_store
from eventlogs.values import StoredEvent


class Hidden(Enum):
    """What stands for a personal value that cannot be shown."""

    ERASED = "erased"
    UNREADABLE = "unreadable"
    ENCRYPTED = "encrypted"


ERASED: Final = Hidden.ERASED
UNREADABLE: Final = Hidden.UNREADABLE
ENCRYPTED: Final = Hidden.ENCRYPTED

Secrets = Mapping[UUID, bytes | Hidden]


@dataclass(frozen=True, slots=True)
class Payload:
    """The data and metadata of an event, and where it is."""

    log_id: LogId
    index: int
    data: Any
    metadata: Any


def of_row(event: Event) -> Payload:
    """Return the payload of a row."""
    log_id = LogId.stored(event.log_type, event.log_id)
    return Payload(log_id, event.index, event.data, event.metadata)


def of_stored(event: StoredEvent) -> Payload:
    """Return the payload of a stored event."""
    return Payload(event.log_id, event.index, JSON.decode(event.data), JSON.decode(event.metadata))


def opened(payloads: Sequence[Payload], *, sees: bool) -> list[Payload]:
    """
    Return payloads with their personal values decrypted, for a user who sees payloads.

    Values that cannot be shown, and all for other users, are members of ``Hidden``.
    """
    found = {key for each in payloads for key in _keys_in([each.data, each.metadata])}
    if not found and not any(map(_has_sealed, payloads)):
        return list(payloads)
    if not sees:
        return [_opened(each, {}, ENCRYPTED) for each in payloads]
    secrets = _secrets_of(found)
    return [_opened(each, secrets, ERASED) for each in payloads]


def without_hidden(value: Any) -> Any:
    """Return a value of JSON with None in the place of values that cannot be shown."""
    if isinstance(value, dict):
        return {name: without_hidden(each) for name, each in value.items()}
    if isinstance(value, list):
        return [without_hidden(each) for each in value]
    return None if isinstance(value, Hidden) else value


def _secrets_of(key_ids: Collection[UUID]) -> Secrets:
    """Return keys by id; UNREADABLE for one that cannot be had, nothing for a destroyed one."""
    try:
        return key_store().secrets(key_ids)
    except KeyUnavailable:
        if len(key_ids) == 1:
            return dict.fromkeys(key_ids, UNREADABLE)
    secrets: dict[UUID, bytes | Hidden] = {}
    for each in key_ids:  # one of them must not hide the values of all others
        secrets.update(_secrets_of([each]))
    return secrets


def _opened(payload: Payload, secrets: Secrets, missing: Hidden) -> Payload:
    log_id, index = payload.log_id, payload.index
    return Payload(
        log_id,
        index,
        _open(payload.data, "$", place_of(log_id, index, ""), secrets, missing),
        _open(payload.metadata, METADATA, place_of(log_id, None, ""), secrets, missing),
    )


def _open(value: Any, path: str, place: str, secrets: Secrets, missing: Hidden) -> Any:
    if isinstance(value, dict):
        if (text := _sealed(value)) is not None:
            try:
                sealed = parsed(text)
                secret = secrets.get(sealed.key_id, missing)
                if isinstance(secret, Hidden):
                    return secret
                return JSON.decode(open_sealed(sealed, secret, place + path))
            except CannotOpen:
                return UNREADABLE
        return {
            name: _open(each, step(path, name), place, secrets, missing)
            for name, each in value.items()
        }
    if isinstance(value, list):
        return [
            _open(each, f"{path}[{at}]", place, secrets, missing) for at, each in enumerate(value)
        ]
    return value


def _has_sealed(payload: Payload) -> bool:
    return any(True for _ in _texts([payload.data, payload.metadata]))


def _keys_in(value: Any) -> Iterator[UUID]:
    for text in _texts(value):
        try:
            yield parsed(text).key_id
        except CannotOpen:
            continue


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if (text := _sealed(value)) is not None:
            yield text
            return
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _texts(each)


def _sealed(value: dict[str, Any]) -> str | None:
    found = value.get(NAME) if len(value) == 1 else None
    return found if isinstance(found, str) else None
