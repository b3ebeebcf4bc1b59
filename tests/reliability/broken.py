"""
Deliberately broken versions of the reduction cache: each lacks one part that keeps its answers
right or cheap.

The campaigns must find the defect of each; a test that cannot fail proves nothing.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import Any

from django.core.cache import caches

from eventlogs import LogId
from eventlogs.caches.backends import BaseReductionCache, RedisReductionCache
from eventlogs.caches.counters import UNDECODABLE
from eventlogs.caches.entries import (
    _HEAD,
    HEADER_BYTES,
    SIGNATURE_BYTES,
    Entry,
    EntryCodec,
    Untrusted,
)
from eventlogs.reductions.reader import Folded, Miss, Reading, ReductionReader
from eventlogs.reductions.single_flight import ReplayLock
from eventlogs.reductions.writes import CacheWrite
from eventlogs.refreshers import MessageRefresher, Refresh, sent_key
from eventlogs.stores import BaseStore
from eventlogs.values import StoredEvent


class Believed(Entry[Any]):
    """An entry that is accepted without a proof."""

    def is_proven_by(self, row: StoredEvent | None) -> bool:
        return True


class WithoutProof(ReductionReader[Any]):
    """Accepts every entry with a good signature."""

    def _fold_onto(self, entry: Entry[Any], log_id: LogId, store: BaseStore) -> Folded[Any] | None:
        return super()._fold_onto(Believed(*entry), log_id, store)


class ProofByPosition(ReductionReader[Any]):
    """Compares only the position of the last event."""

    def _fold_onto(self, entry: Entry[Any], log_id: LogId, store: BaseStore) -> Folded[Any] | None:
        rows = store.since(log_id, start=entry.head.version - 1, limit=1)
        if not rows or rows[0].position != entry.head.position:
            return None
        return super()._fold_onto(Believed(*entry), log_id, store)


class UnsignedCodec(EntryCodec[Any]):
    """Decodes an entry without checking its signature."""

    def decode(self, raw: bytes, log_id: LogId) -> Entry[Any]:
        head, _, body = raw[HEADER_BYTES:-SIGNATURE_BYTES].partition(b"\n")
        try:
            return Entry(raw, _HEAD.decode(head), self._decode(body))
        except Exception:
            raise Untrusted(UNDECODABLE) from None


class WithoutSignature(ReductionReader[Any]):
    """Accepts the entries of any log."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.codec = UnsignedCodec(self.codec.aggregate, self.codec.using)


class CodecOfAnyCode(EntryCodec[Any]):
    """Neither its keys nor its entries contain the fingerprint of the code."""

    @property
    def is_possible(self) -> bool:
        return True  # also where the code is not known

    @property
    def fingerprint(self) -> str:
        return "any"


class WithoutFingerprint(ReductionReader[Any]):
    """Uses reductions that other code has folded."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.codec = CodecOfAnyCode(self.codec.aggregate, self.codec.using)


class CodecWithOneKey(EntryCodec[Any]):
    """Its entries contain the fingerprint of the code, its keys do not."""

    def key(self, log_id: LogId) -> str:
        return f"eventlogs.reduction.{log_id}.{hashlib.sha256(self.using.encode()).hexdigest()}"


class FingerprintNotInKey(ReductionReader[Any]):
    """Its answers are right, but two releases evict each other's entries."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.codec = CodecWithOneKey(self.codec.aggregate, self.codec.using)


class WithoutWaiting(ReductionReader[Any]):
    """Every reader with a miss replays."""

    def _replay_once(self, miss: Miss, wait: float) -> Reading[Any]:
        return super()._replay_once(miss, 0.0)


class NeverLocks(ReplayLock):
    def acquire(self, *, wrong: bytes | None, timeout: float) -> bytes | None:
        return None


class WithoutLocks(ReductionReader[Any]):
    """Threads wait for each other, processes do not."""

    lock_class = NeverLocks


class LocksForEver(ReplayLock):
    limit = 86_400.0


class WaitsForEver(ReductionReader[Any]):
    """Its lock does not expire when its holder dies."""

    lock_class = LocksForEver


class KeepsQuiet(ReplayLock):
    def decline(self) -> None:
        return None


class SaysNothingOfItsFailure(ReductionReader[Any]):
    """Readers wait until the lock expires, even if no entry will be stored."""

    lock_class = KeepsQuiet


class Overwrites(RedisReductionCache):
    """Keeps the entry that is written last."""

    def set(
        self, key: str, entry: bytes, *, replaces: bytes | None = None, timeout: float | None
    ) -> bool:
        client, name = self.client_for(key, write=True)
        client.set(name, entry)
        return True


class LooksThenSets(RedisReductionCache):
    """Compares versions, but another writer may come between the comparison and the write."""

    def set(
        self, key: str, entry: bytes, *, replaces: bytes | None = None, timeout: float | None
    ) -> bool:
        there = self.get(key)
        if there is not None and there[:7] >= entry[:7]:
            return False
        time.sleep(0.001)
        client, name = self.client_for(key, write=True)
        client.set(name, entry)
        return True


class Pickles(BaseReductionCache):
    """Uses the serializer of the Django cache, which is pickle."""

    def __init__(self, alias: str) -> None:
        self.alias = alias

    def get(self, key: str) -> bytes | None:
        found: bytes | None = caches[self.alias].get(key)
        return found

    def set(
        self, key: str, entry: bytes, *, replaces: bytes | None = None, timeout: float | None
    ) -> bool:
        caches[self.alias].set(key, entry, timeout)
        return True

    def add(self, key: str, value: bytes, *, timeout: float) -> bool:
        return bool(caches[self.alias].add(key, value, timeout))

    def replace(self, key: str, value: bytes, *, timeout: float) -> None:
        caches[self.alias].set(key, value, timeout)

    def delete(self, key: str) -> None:
        caches[self.alias].delete(key)


class SendsEachTime(MessageRefresher):
    """Sends a message for each append: there is no flag."""

    def submit(self, job: CacheWrite | Refresh) -> None:
        if isinstance(job, Refresh) and (message := job.message) is not None:
            self.send(message)


def clears_after_reading(
    aggregate: type[Any],
    log_id: LogId,
    using: str,
    cache: str | None,
    meanwhile: Callable[[], None],
) -> None:
    """Refresh, and clear the flag afterwards: an append in between sends no message."""
    reader: ReductionReader[Any] = ReductionReader(aggregate, using=using, cache=cache)
    reader.refresh(log_id)
    meanwhile()
    reader.cache.delete(sent_key(reader.key(log_id)))
