"""
Appends with personal data: encrypt for an index, append with the version that it belongs to.

A value is encrypted for its place, so the index of the event must be known before. An append that
expects a version knows it. One with ANY reads the version and expects it. If another writer is
faster, it is encrypted anew for the version that the store has found under its lock; after that it
takes its turn with the log locked. So ANY does not end in a conflict.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from eventlogs.aggregates import Anything
from eventlogs.events.codec import EncodedEvent
from eventlogs.exceptions import (
    ConcurrentAppend,
    IdempotencyKeyUndecided,
    SubjectForgotten,
)
from eventlogs.ids import LogId
from eventlogs.privacy.sealing import Sealing
from eventlogs.privacy.subject_logs import written_to
from eventlogs.stores.base import BaseStore
from eventlogs.stores.turns import Contended, take_turns
from eventlogs.values import LogState

TURNS: Final = 1_000  # with a store that cannot lock; with the others the second one succeeds
AT_ONCE: Final = 2  # attempts of one turn: the first conflict tells the version under the lock

Append = Callable[[Sequence[EncodedEvent], int, str], LogState]


def find_keys(sealing: Sealing, log_id: LogId, key: str | None, store: BaseStore) -> None:
    """
    Look up the keys of an append's subjects.

    Raise SubjectForgotten where one was forgotten; or IdempotencyKeyUndecided if the idempotency
    key is taken as well: what was stored cannot be compared with the request any more.
    """
    try:
        # A store in no database has its logs noted where those of the others are.
        sealing.find_keys(store.using or written_to("SubjectLog"))
    except SubjectForgotten as forgotten:
        claim = None if key is None else store.claim(log_id.log_type, key)
        if claim is None or key is None:
            raise
        raise IdempotencyKeyUndecided(
            key, log_id=claim.log_id, index=claim.first_index, reason="forgotten"
        ) from forgotten


def append_sealed(
    sealing: Sealing,
    append: Append,
    log_id: LogId,
    expected_version: int | Anything,
    *,
    is_keyed: bool,
    store: BaseStore,
    contended: Contended,
    is_inside: Callable[[], bool],
) -> LogState:
    """
    Encrypt the personal data of an append, and store it with ``append``.

    Raise what that raises; ConcurrentAppend only with an expected version, or of another log.
    """
    if not isinstance(expected_version, Anything):
        sealed = sealing.sealed(expected_version, compares=is_keyed)
        return append(sealed, expected_version, sealing.sealed_metadata())

    seen: list[int] = []

    def attempt() -> LogState | ConcurrentAppend:
        # A log without events is expected at version 1, so that it is not found, nor created.
        version = seen.pop() if seen else max(store.version(log_id), 1)
        for _ in range(AT_ONCE):
            try:
                sealed = sealing.sealed(version, compares=is_keyed)
                return append(sealed, version, sealing.sealed_metadata())
            except ConcurrentAppend as conflict:
                if conflict.log_id != log_id:
                    raise
                last, version = conflict, conflict.actual_version
        if is_inside():  # a snapshot may be older than what the lock has shown
            seen[:] = [version]
        return last

    return take_turns(
        attempt,
        log_id,
        store=store,
        others=(),
        retries=TURNS,
        contended=contended,
        is_inside=is_inside,
    )
