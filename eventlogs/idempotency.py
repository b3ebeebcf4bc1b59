"""
Idempotency keys: which ones can be stored, and what an append under a taken key means.

A store compares fingerprints of requests. They also differ if a class has changed since the key's
append; then the stored events are decoded with today's classes and compared, here.
"""

from __future__ import annotations

from collections.abc import Sequence

from eventlogs.conf import MAX_KEY_LENGTH
from eventlogs.events import validation
from eventlogs.events.codec import EncodedEvent, EventReader
from eventlogs.exceptions import (
    EventLogError,
    IdempotencyKeyReused,
    IdempotencyKeyUndecided,
    IdempotentReplay,
    InvalidIdempotencyKey,
    UndecodableEvent,
    UnknownEventType,
)
from eventlogs.ids import LogId
from eventlogs.stores import BaseStore
from eventlogs.values import LogState, StoredEvent


def checked_key(key: str) -> str:
    """Return a key as a plain str; raise InvalidIdempotencyKey for one that cannot be stored."""
    if not isinstance(key, str):
        raise InvalidIdempotencyKey(f"must be a str, not {type(key).__name__}")
    # A plain str of the same characters: a LogId does not equal its text, a SafeString is marked as
    # HTML, and str() of an enum's member may be its name.
    key = str.__str__(key)
    if not 1 <= len(key) <= MAX_KEY_LENGTH:
        raise InvalidIdempotencyKey(f"must have 1 to {MAX_KEY_LENGTH} characters")
    try:
        validation.inspect(key)
    except validation.Finding as finding:
        raise InvalidIdempotencyKey(f"cannot be stored: {finding.limit}") from None
    return key


def find_executed(store: BaseStore, log_id: LogId, idempotency_key: str | None) -> LogState | None:
    """
    Return the state after the call that stored the key, or None if no call has.

    Raise IdempotencyKeyReused for a key of another log.
    """
    if idempotency_key is None:
        return None
    claim = store.claim(log_id.log_type, idempotency_key)
    if claim is None:
        return None
    if claim.log_id != log_id:
        raise claim.reuse(idempotency_key, reason="log")
    return claim.state


def has_events(reused: IdempotencyKeyReused, stored: Sequence[StoredEvent]) -> bool:
    """Return whether ``stored`` are the events of the key's append: they may have been erased."""
    key, count = reused.idempotency_key, reused.count
    return count is not None and [each.idempotency_key for each in stored] == [key] * count


def compare(
    reused: IdempotencyKeyReused,
    stored: Sequence[StoredEvent],
    events: Sequence[EncodedEvent],
    reader: EventReader,
) -> EventLogError:
    """
    Return the error for ``events`` under a taken key, by the events that its append stored.

    There is no race with the store's own comparison: neither the key's append nor its events ever
    change.
    """
    key, log_id, first = reused.idempotency_key, reused.log_id, reused.index
    try:
        is_retry = reader.reads_as(stored, events)
    except (UnknownEventType, UndecodableEvent) as error:
        undecided = IdempotencyKeyUndecided(
            key, log_id=log_id, index=first, event_type=error.event_type
        )
        undecided.__cause__ = error
        return undecided
    if not is_retry:
        return reused
    state = LogState(log_id, first + len(stored), stored[-1].position)
    return IdempotentReplay(key, log_id=log_id, index=first, state=state)
