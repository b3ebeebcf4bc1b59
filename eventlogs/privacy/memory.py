"""
What a process remembers for the next append with personal data of a subject.

Only what is committed is remembered: otherwise data could be encrypted under a key that a rollback
takes away, and would be lost. The memory is for writing. Reading never uses it, so that a destroyed
key has its effect at once, everywhere.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from typing import Final
from uuid import UUID

from django.db import connections

from eventlogs.exceptions import KeyUnavailable
from eventlogs.privacy.encryption import SubjectCipherKey
from eventlogs.privacy.keys import BaseKeyStore, key_store
from eventlogs.utils.commits import (
    after_commit,
    is_autocommit,
    is_in_testcase,
    over_another_connection,
)

SECONDS: Final = 60.0  # that a key, or a pair, is remembered
MOST: Final = 10_000  # keys, and pairs of a key and a log
INDEX: Final = "$unique"  # the subject of the key that digests of personal unique values have

Place = tuple[str | None, str | None]  # an alias, and the tenant's schema where there is one
Pair = tuple[UUID, UUID]  # the ids of a key and of a log

_keys: Final[dict[tuple[Place, str], tuple[BaseKeyStore, SubjectCipherKey, float]]] = {}
_pairs: Final[dict[tuple[Place, Pair], float]] = {}  # until when, as for keys


def drop_key(subject: str) -> None:
    """Forget the key of a subject in this process: it was destroyed."""
    for each in [each for each in list(_keys) if subject in each]:
        _keys.pop(each, None)


def clear() -> None:
    """Forget all: for tests, which empty tables."""
    _keys.clear()
    _pairs.clear()


def keys_for_writing(
    subjects: Collection[str], using: str | None = None
) -> dict[str, SubjectCipherKey]:
    """
    Return the keys of subjects, created if they are missing; raise what ``for_subjects`` raises.

    A key is at most 60 seconds old here. ``using`` is the database of what they will encrypt: if
    that is another one than the keys', its transaction may commit where that of the keys is rolled
    back. So there the keys are committed first. KeyUnavailable is raised where that cannot be.
    """
    store = key_store()
    place = place_of_connection(store.using)
    now = time.monotonic()
    found: dict[str, SubjectCipherKey] = {}
    for subject in subjects:
        if (key := _remembered(store, place, subject, now)) is not None:
            found[subject] = key
    if len(found) < len(subjects) and (missing := sorted(set(subjects) - found.keys())):
        is_committed = is_autocommit(store.using)
        if is_committed or not _may_part(store, using):
            found.update(store.for_subjects(missing))
        else:
            found.update(_committed_keys(store, missing))
            is_committed = True
        if is_committed:
            _keep(store, place, {each: found[each] for each in missing})
        else:

            def read_again() -> None:
                _keep(store, place, store.for_subjects(missing))

            after_commit(store.using, ("keys", tuple(missing)), read_again)
    return found


def index_key(using: str | None = None) -> bytes:
    """
    Return the secret for digests of personal values that are unique; it is made if missing.

    ``using`` is the database of the digests. Raise what ``keys_for_writing`` raises.
    """
    return keys_for_writing([INDEX], using)[INDEX].secret


def existing_index_key() -> bytes | None:
    """Return that secret for reading: None, and nothing is written, where it was never made."""
    store = key_store()
    place = place_of_connection(store.using)
    known = _remembered(store, place, INDEX, time.monotonic())
    if known is None and store.find(INDEX) is None:
        return None
    return index_key() if known is None else known.secret


def _remembered(
    store: BaseKeyStore, place: Place, subject: str, now: float
) -> SubjectCipherKey | None:
    owner, key, until = _keys.get((place, subject), (None, None, 0.0))
    return key if owner is store and until > now else None


def _may_part(store: BaseKeyStore, using: str | None) -> bool:
    """Return whether a rollback could take keys away, and not what they have encrypted."""
    if using is None or store.using is None or using == store.using:
        return False
    return not is_in_testcase(store.using)


def _committed_keys(store: BaseKeyStore, subjects: list[str]) -> dict[str, SubjectCipherKey]:
    """Return keys that no rollback of the caller's transaction can take away."""
    using = store.using
    assert using is not None
    here = {each for each in subjects if store.find(each) is not None}

    def create() -> dict[str, SubjectCipherKey]:
        # Made in the caller's transaction: another connection would wait for its end.
        if any(store.find(each) is None for each in here):
            raise KeyUnavailable(_not_committed(using))
        return store.for_subjects(subjects)

    # SQLite has one writer, which may be the caller's transaction: its keys must be there.
    if connections[using].vendor == "sqlite" and len(here) < len(subjects):
        raise KeyUnavailable(_not_committed(using))
    return over_another_connection(using, create)


def _not_committed(using: str) -> str:
    return (
        f"The key of a subject is not committed, since a transaction of the database {using!r} of "
        f"the keys is open here, and the events are in another database: a rollback would take the "
        f"key away, and the events' personal data with it. Append outside of that transaction "
        f"(ATOMIC_REQUESTS of {using!r} opens one for each request)"
    )


def _keep(store: BaseKeyStore, place: Place, keys: dict[str, SubjectCipherKey]) -> None:
    if len(_keys) + len(keys) > MOST:
        _keys.clear()
    until = time.monotonic() + SECONDS
    for subject, key in list(keys.items())[:MOST]:
        _keys[place, subject] = store, key, until


def unknown_pairs(place: Place, pairs: Iterable[Pair]) -> list[Pair]:
    """
    Return the pairs that this process does not know to be committed, in order.

    What it knows is at most 60 seconds old: a backup may be restored under a running process.
    """
    now = time.monotonic()
    return sorted(pair for pair in pairs if _pairs.get((place, pair), 0.0) <= now)


def know_pairs(place: Place, pairs: Collection[Pair]) -> None:
    """Remember pairs that are committed."""
    if len(_pairs) + len(pairs) > MOST:
        _pairs.clear()
    until = time.monotonic() + SECONDS
    for pair in list(pairs)[:MOST]:
        _pairs[place, pair] = until


def place_of_connection(using: str | None) -> Place:
    """Return what tells databases apart, tenants included."""
    if using is None:
        return None, None
    return using, getattr(connections[using], "schema_name", None)
