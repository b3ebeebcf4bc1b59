"""
Broken twins of the reduction cache: each lacks one thing that keeps its answers right or cheap.

The campaigns must find what is wrong with each; a test that cannot fail proves nothing.
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
from eventlogs.events.codec import EventReader
from eventlogs.reductions.reader import Reduced, Reducer
from eventlogs.refreshers import (
    MessageRefresher,
    RefreshRequest,
    label,
    take_down,
    told_key,
)
from eventlogs.stores import BaseStore, store_for
from eventlogs.values import StoredEvent


class Believed(Entry[Any]):
    """An entry that no event has to prove."""

    def is_proven_by(self, row: StoredEvent | None) -> bool:
        return True


class WithoutProof(Reducer[Any]):
    """It believes every entry with a good signature."""

    def _fold_onto(self, entry: Entry[Any], log_id: LogId, store: BaseStore) -> Reduced[Any] | None:
        return super()._fold_onto(Believed(*entry), log_id, store)


class ProofByPosition(Reducer[Any]):
    """It compares no more than the position of the last event."""

    def _fold_onto(self, entry: Entry[Any], log_id: LogId, store: BaseStore) -> Reduced[Any] | None:
        rows = store.since(log_id, start=entry.head.version - 1, limit=1)
        if not rows or rows[0].position != entry.head.position:
            return None
        return super()._fold_onto(Believed(*entry), log_id, store)


class UnsignedCodec(EntryCodec[Any]):
    """It looks at what an entry says, and not at who has signed it."""

    def decode(self, raw: bytes, log_id: LogId) -> Entry[Any]:
        head, _, body = raw[HEADER_BYTES:-SIGNATURE_BYTES].partition(b"\n")
        try:
            return Entry(raw, _HEAD.decode(head), self._decode(body))
        except Exception:
            raise Untrusted(UNDECODABLE) from None


class WithoutSignature(Reducer[Any]):
    """Its entries could be anybody's."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._codec = UnsignedCodec(self._codec.aggregate, self._codec.using)


class CodecOfAnyCode(EntryCodec[Any]):
    """Neither its keys nor its entries say which code has made them."""

    @property
    def is_possible(self) -> bool:
        return True  # also where the code is not known

    @property
    def fingerprint(self) -> str:
        return "any"


class WithoutFingerprint(Reducer[Any]):
    """It meets what other code has folded."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._codec = CodecOfAnyCode(self._codec.aggregate, self._codec.using)


class CodecWithOneKey(EntryCodec[Any]):
    """Its keys do not say which code has made the entry; its entries do."""

    def key(self, log_id: LogId) -> str:
        return f"eventlogs.reduction.{log_id}.{hashlib.sha256(self.using.encode()).hexdigest()}"


class FingerprintNotInKey(Reducer[Any]):
    """Its answers are right, and two releases throw out each other's entries."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._codec = CodecWithOneKey(self._codec.aggregate, self._codec.using)


class WithoutFlights(Reducer[Any]):
    """Whoever misses replays."""

    def _replay_once(
        self,
        key: str,
        log_id: LogId,
        store: BaseStore,
        write: Any,
        wrong: bytes | None,
        wait: float,
    ) -> Reduced[Any]:
        return super()._replay_once(key, log_id, store, write, wrong, 0.0)


class WithoutClaims(Reducer[Any]):
    """Its threads wait for one another, its processes do not."""

    def _claim(self, key: str, wrong: bytes | None, wait: float) -> tuple[bool, bytes | None]:
        return False, None


class WaitsForEver(Reducer[Any]):
    """Its claim does not run out when its holder dies."""

    def _claim(self, key: str, wrong: bytes | None, wait: float) -> tuple[bool, bytes | None]:
        if self.cache.add(f"{key}.claim", b"for ever", timeout=86_400):
            return True, None
        return super()._claim(key, wrong, wait)


class SaysNothingOfItsFailure(Reducer[Any]):
    """Others wait until its claim runs out, also where there is nothing to wait for."""

    def give_up_claim(self, key: str, *, kept: bool) -> None:
        return None


class Overwrites(RedisReductionCache):
    """It keeps whatever comes last."""

    def set(
        self, key: str, entry: bytes, *, replaces: bytes | None = None, timeout: float | None
    ) -> bool:
        client, name = self._client(key, write=True)
        client.set(name, entry)
        return True


class LooksThenSets(RedisReductionCache):
    """It compares versions, and somebody else may come between that and the write."""

    def set(
        self, key: str, entry: bytes, *, replaces: bytes | None = None, timeout: float | None
    ) -> bool:
        there = self.get(key)
        if there is not None and there[:7] >= entry[:7]:
            return False
        time.sleep(0.001)
        client, name = self._client(key, write=True)
        client.set(name, entry)
        return True


class Pickles(BaseReductionCache):
    """It goes through the serializer of the Django cache, which is pickle."""

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
    """It sends a message for each append: no flag, and nothing is gathered."""

    def is_about_to(self, token: tuple[Any, ...]) -> bool:
        return False

    def refresh(self, request: RefreshRequest) -> None:
        self.send(label(request.aggregate), str(request.log_id), request.using, request.cache_alias)


def clears_after_reading(
    aggregate: type[Any],
    log_id: LogId,
    using: str,
    cache: str | None,
    meanwhile: Callable[[], None],
) -> None:
    """Refresh, and take the flag down afterwards: who appended meanwhile told nobody."""
    reducer: Reducer[Any] = Reducer(
        aggregate, EventReader(aggregate.event_types), using, cache=cache
    )
    reducer.refresh(log_id, store_for(using))
    meanwhile()
    take_down(reducer.cache, told_key(reducer.key(log_id)))
