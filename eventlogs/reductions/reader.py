"""
Reduce a log with the cache: take the cached entry, prove it by the log, fold what is newer.

The steps: get the entry, read the log from the last event that the entry has folded, compare
that event with the entry's proof, fold the rest. Two round trips, one to the cache and one to
the database. Without an entry that can be used, the log is replayed from its start, by one
reader at a time (``eventlogs.reductions.single_flight``).

Nothing here writes the cache. ``read`` returns the reduction and, where there is something to
write, the job that writes it; the caller submits that to a refresher.

docs/caching.md says why a cached reduction cannot be wrong.
"""

from __future__ import annotations

import logging
import re
import signal
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain
from typing import Any, Final, Generic, NamedTuple, TypeVar
from uuid import UUID

from asgiref.sync import SyncToAsync
from django.db import connections

from eventlogs import conf
from eventlogs.aggregates import Aggregate, fold
from eventlogs.caches.backends import (
    BaseReductionCache,
    GuardedCache,
    NoReductionCache,
    cache_for,
)
from eventlogs.caches.counters import (
    ABSENT,
    BEHIND,
    FAILED,
    FOREIGN_HISTORY,
    UNREACHABLE,
    UNSTORABLE,
    UNWRITABLE,
    counters,
)
from eventlogs.caches.entries import Entry, EntryCodec, Unstorable, Untrusted
from eventlogs.events import used_keys
from eventlogs.events.codec import EventReader
from eventlogs.exceptions import LogNotFound, Unreachable
from eventlogs.ids import LogId
from eventlogs.observers import NOT_FOUND, UNCACHED, Reduce, RefreshRun, observed, observers
from eventlogs.policies import CachingPolicy, NeverCache, policy_from
from eventlogs.reductions import key_proofs
from eventlogs.reductions.single_flight import Replay, ReplayLock, replays
from eventlogs.reductions.writes import CacheWrite
from eventlogs.stores import store_for
from eventlogs.stores.base import BaseStore
from eventlogs.stores.retries import in_transaction
from eventlogs.utils.names import dotted
from eventlogs.values import Reduction, StoredEvent

logger = logging.getLogger("eventlogs.reductions")

A = TypeVar("A", bound=Aggregate)
Page = Sequence[StoredEvent]

LONG: Final = 500  # events; a log of this length is replayed by one process for all
LONGEST_WAIT: Final = 60.0  # seconds to wait for another's replay; then this reader replays too
SHORT_WAIT: Final = 0.5  # seconds, if others wait for this reader, e.g. for its transaction

DECLINED_TIMEOUT: Final = 2 * 86_400.0  # seconds, or EVENTLOGS["CACHE_TIMEOUT"] if shorter
ADDRESS: Final = re.compile(r" at 0x[0-9a-fA-F]+")

IN_FOLD, IN_POLICY = 1, 2
_nesting: ContextVar[int] = ContextVar("eventlogs_nesting", default=0)
"""Whether the running code is called by a fold (1), or by a caching policy (2, also in a fold)."""


class RefreshMessage(NamedTuple):
    """A refresh by names alone, for a worker in another process."""

    aggregate: str  # its module and qualified name
    log_id: str
    using: str
    cache: str | None  # an alias in CACHES; None: that of the EVENTLOGS setting


class Refresh(NamedTuple):
    """Bring one cached reduction up to date by reading its log: calling the job does it."""

    reader: ReductionReader[Any]
    log_id: LogId

    @property
    def aggregate(self) -> type[Aggregate]:
        """The aggregate class of the reduction."""
        return self.reader.aggregate

    @property
    def token(self) -> tuple[Any, ...]:
        """The jobs of one token stand for one another: the latest is enough."""
        return self

    @property
    def message(self) -> RefreshMessage | None:
        """The same job for another process, or None where names do not say all of it."""
        return self.reader.message(self.log_id)

    def __call__(self) -> bool:
        """Refresh, and return whether that took writing. Nothing is raised, but all is counted."""
        try:
            return self.reader.refresh(self.log_id)
        except Unreachable:
            counters.count("error", UNWRITABLE, aggregate=self.aggregate)
        except (Exception, SystemExit) as error:  # a project's apply() may raise either
            failed(self.aggregate, error)
        return False


class Reading(NamedTuple, Generic[A]):
    """A reduction, and the job that the cache needs because of it, if any."""

    reduction: Reduction[A]
    job: CacheWrite | Refresh | None = None
    is_declined: bool = False  # this version is not to be cached, however often one asks
    events: int = 0  # how many were folded
    reason: str = ""  # why it did not come from the cache alone


class Folded(NamedTuple, Generic[A]):
    """A reduction, and what a cache entry of it needs."""

    reduction: Reduction[A]
    last: StoredEvent | None  # the last event folded; None: nothing was, all came from the cache
    is_covered: bool = True  # the code fingerprint includes all code that decoded its events
    events: int = 0  # how many were folded
    keys: Collection[UUID] = ()  # of subjects, that decrypted personal data in it


class Miss(NamedTuple):
    """A read for which the cache had no entry that can be used."""

    key: str
    log_id: LogId
    store: BaseStore
    wrong: bytes | None  # the entry that was there


class ReductionReader(Generic[A]):
    """
    Reads the reductions of one aggregate class, whose logs are in one database, with one cache.

    ``using`` is the alias of the database that is written to. ``store`` is the
    caller's own store, used instead of that of the database.
    """

    lock_class = ReplayLock

    def __init__(
        self,
        aggregate: type[A],
        *,
        using: str,
        events: EventReader | None = None,
        store: BaseStore | None = None,
        cache: str | BaseReductionCache | None = None,
        policy: CachingPolicy | None = None,
    ) -> None:
        self.aggregate = aggregate
        self.using = using
        self.codec = EntryCodec(aggregate, using if store is None else f"in {dotted(type(store))}")
        self._events = EventReader(aggregate.event_types) if events is None else events
        self._store = store
        self._cache = cache
        self._policy = policy
        self._has_warned = False

    @property
    def store(self) -> BaseStore:
        """The store that is written to, which shows all that is committed."""
        return store_for(self.using) if self._store is None else self._store

    @property
    def cache(self) -> GuardedCache:
        """The cache: the one given, or that of the EVENTLOGS setting."""
        return cache_for(self._cache)

    @property
    def policy(self) -> CachingPolicy:
        """The caching policy: the one given, or that of the EVENTLOGS setting."""
        return policy_from(conf.caching_policy()) if self._policy is None else self._policy

    @property
    def is_caching(self) -> bool:
        """Return whether reductions can be in the cache at all."""
        if isinstance(self.cache.cache, NoReductionCache) or isinstance(self.policy, NeverCache):
            return False
        if not self.codec.is_possible:
            if why := self.codec.why_unknown:
                self._warn(why)
            return False
        return True

    @property
    def is_in_transaction(self) -> bool:
        """Return whether a transaction is open in the database that is written to."""
        return self._store is None and in_transaction(connections[self.using])

    def key(self, log_id: LogId) -> str:
        """Return the key of a log's entry."""
        return self.codec.key(log_id)

    def message(self, log_id: LogId) -> RefreshMessage | None:
        """
        Return a refresh of a log by names, for another process.

        Return None with a store, a policy or a cache object of the caller's own: another
        process could not know of them.
        """
        cache = self._cache
        if self._store or self._policy or not (cache is None or isinstance(cache, str)):
            return None
        return RefreshMessage(dotted(self.aggregate), str(log_id), self.using, cache)

    # Reading

    def replay(self, log_id: LogId, store: BaseStore) -> Reduction[A]:
        """Fold all of a log's events; the cache is not asked. Raise LogNotFound."""
        if not observers:
            return self._replay(log_id, store).reduction
        with self._observed(log_id) as reduce:
            folded = self._replay(log_id, store)
            reduce.outcome, reduce.events = UNCACHED, folded.events
        return folded.reduction

    def read(self, log_id: LogId, store: BaseStore) -> Reading[A]:
        """
        Return a log's reduction, and the job to submit to a refresher, where there is one.

        ``store`` is where to read: a replica's, or the one that is written to.

        Another reader's replay of the same log is waited for: a minute at most, or half a
        second inside of a transaction or before a deadline; not at all inside of a transaction
        on SQLite, which keeps other transactions from beginning.

        Raise LogNotFound, and what decoding and ``apply`` raise; nothing because of the cache.
        """
        if not observers:
            return self._read(log_id, store)
        with self._observed(log_id) as reduce:
            reading = self._read(log_id, store)
            reduce.outcome = "miss" if reading.reason else "hit"
            reduce.reason, reduce.events = reading.reason, reading.events
        return reading

    @contextmanager
    def _observed(self, log_id: LogId) -> Iterator[Reduce]:
        with observed(Reduce(aggregate=self.aggregate, log_id=log_id, using=self.using)) as reduce:
            try:
                yield reduce
            except LogNotFound:
                reduce.outcome = NOT_FOUND
                raise

    def _read(self, log_id: LogId, store: BaseStore) -> Reading[A]:
        key = self.key(log_id)
        try:
            raw = self.cache.get(key)
        except Unreachable:
            self._count("miss", UNREACHABLE)
            folded = self._replay(log_id, store)
            return Reading(folded.reduction, events=folded.events, reason=UNREACHABLE)
        found, reason = self._prove(raw, log_id, store)
        if found is not None:
            if found.last is None:
                self._count("hit")
                return Reading(found.reduction)
            self._count("miss", BEHIND)
            return self._reading(key, found)._replace(reason=BEHIND)
        self._count("miss", reason)
        inside = self.is_in_transaction
        wait = 0.0 if inside and connections[self.using].vendor == "sqlite" else _longest_wait()
        reading = self._replay_once(Miss(key, log_id, store, raw), wait)._replace(reason=reason)
        if reason == FOREIGN_HISTORY and (inside or store is not self.store):
            # This transaction or replica may see fewer events than the entry has, so the entry
            # may be right. A refresh after the commit reads all that is committed, and decides.
            # Without it, an entry that a rollback or a restored backup has made wrong would
            # stay in a project with ATOMIC_REQUESTS, whose readers are all in transactions.
            return reading._replace(job=Refresh(self, log_id))
        return reading

    def refresh(self, log_id: LogId) -> bool:
        """
        Bring the cached reduction of a log up to date; return whether that took writing.

        Raise Unreachable where the cache cannot be read, and what decoding and ``apply`` raise.
        """
        if not observers:
            return self._refresh(log_id) != "unneeded"
        job = RefreshRun(aggregate=self.aggregate, log_id=log_id, using=self.using)
        with observed(job):
            job.outcome = self._refresh(log_id)
        return job.outcome != "unneeded"

    def _refresh(self, log_id: LogId) -> str:
        """Return "written", "removed" (the log was erased) or "unneeded"."""
        if not self.is_caching:
            return "unneeded"
        key, store = self.key(log_id), self.store
        raw = self.cache.get(key)
        found, _ = self._prove(raw, log_id, store)
        if found is not None and found.last is None:
            return "unneeded"
        try:
            if found is not None:
                reading = self._reading(key, found)
            else:
                reading = self._replay_once(Miss(key, log_id, store, raw), SHORT_WAIT)
        except LogNotFound:
            if raw is None:
                return "unneeded"
            self.cache.delete(key)
            return "removed"
        if reading.is_declined:
            mark = self._declined_mark(reading.reduction.version)
            timeout = min(DECLINED_TIMEOUT, conf.cache_timeout() or DECLINED_TIMEOUT)
            self.cache.replace(_declined_key(key), mark, timeout=timeout)
        return "written" if reading.job is not None and reading.job() else "unneeded"

    def cached(self, log_id: LogId, store: BaseStore, *, upto: int) -> Reduction[A] | None:
        """
        Return the cached reduction of a log, as of the version that it was cached at.

        None where there is none, where it is newer than ``upto``, or where the log does not
        prove it. Nothing is folded, and nothing that happens to the cache is an error.
        """
        raw = self._cached(self.key(log_id)) if self.is_caching else None
        return None if raw is None else self.proven(raw, log_id, store, upto=upto)

    def proven(
        self, raw: bytes, log_id: LogId, store: BaseStore, *, upto: int
    ) -> Reduction[A] | None:
        """Return the reduction of an entry of at most version ``upto``, if the log proves it."""
        try:
            entry = self.codec.decode(raw, log_id)
        except Untrusted:
            return None
        if entry.head.version > upto:
            return None
        first = store.since(log_id, start=entry.head.version - 1, limit=1)
        if not entry.is_proven_by(first[0] if first else None):
            return None
        return entry.reduction(log_id) if key_proofs.use(entry.head.keys) else None

    def versions(self, log_ids: Iterable[LogId]) -> dict[LogId, int]:
        """
        Return the cached version of each of these logs that has an entry.

        The versions are signed by us, but not proven by the logs. Raise Unreachable.
        """
        keys = {self.key(log_id): log_id for log_id in log_ids}
        versions = {}
        for key, raw in self.cache.get_many(keys).items():
            try:
                versions[keys[key]] = self.codec.decode(raw, keys[key]).head.version
            except Untrusted:
                continue
        return versions

    def declined(self, versions: dict[LogId, int]) -> set[LogId]:
        """
        Return the logs whose reduction a refresh did not cache, at the versions given.

        Only what the caching policy in use has declined counts. Raise Unreachable.
        """
        keys = {_declined_key(self.key(log_id)): log_id for log_id in versions}
        return {
            keys[key]
            for key, mark in self.cache.get_many(keys).items()
            if mark == self._declined_mark(versions[keys[key]])
        }

    # Entries

    def entry_of(self, folded: Folded[A]) -> bytes | None:
        """
        Return the entry to cache of a reduction, or None where none is to be cached.

        None also inside of a caching policy: a policy that reduces logs would otherwise be asked
        about its own reductions without end.
        """
        return self._decide(folded)[0]

    def _decide(self, folded: Folded[A]) -> tuple[bytes | None, bool]:
        """Return the entry to cache, if any; and without one, whether a retry is useless."""
        if folded.last is None or _nesting.get() == IN_POLICY:
            return None, False
        policy = self.policy
        try:
            if not folded.is_covered:
                raise Unstorable(
                    "a log holds an event whose class or upcaster is in a module that the "
                    "aggregate's modules do not import"
                )
            with _Nested(IN_POLICY):
                if not policy.should_cache(folded.reduction):
                    return None, not policy.depends_on_time
            return self.codec.encode(folded.reduction, folded.last, folded.keys), False
        except Unstorable as error:
            self._count("error", UNSTORABLE)
            self._warn(str(error))
            return None, True
        except (Exception, SystemExit) as error:  # a project's policy may raise either
            self._count("error", FAILED)
            logger.error(
                "The caching policy of %s failed: %s",
                self.aggregate.__qualname__,
                type(error).__name__,
            )
            return None, False

    # Helpers

    def _prove(
        self, raw: bytes | None, log_id: LogId, store: BaseStore
    ) -> tuple[Folded[A] | None, str]:
        """Return what is folded onto an entry; or None, and why the entry cannot be used."""
        if raw is None:
            return None, ABSENT
        try:
            entry = self.codec.decode(raw, log_id)
        except Untrusted as error:
            return None, error.reason
        return self._fold_onto(entry, log_id, store), FOREIGN_HISTORY

    def _fold_onto(self, entry: Entry[A], log_id: LogId, store: BaseStore) -> Folded[A] | None:
        """Fold what is newer onto an entry, or return None where the log does not prove it."""
        head = entry.head
        # Read from the last event of the entry on: that event proves the entry.
        pages = store.pages_since(log_id, start=head.version - 1)
        first = next(pages, ())
        if not entry.is_proven_by(first[0] if first else None):
            return None
        if head.keys and not key_proofs.use(head.keys):
            return None
        if len(first) == 1:
            return Folded(entry.reduction(log_id), None)
        found = self._fold(entry.reduction(log_id), chain((first[1:],), pages), head.keys)
        # The fold may have imported a module for the first time, and that may be newer code.
        return found if self.codec.fingerprint == head.fingerprint else None

    def _replay(self, log_id: LogId, store: BaseStore) -> Folded[A]:
        return self._fold_all(log_id, store, store.pages(log_id))

    def _fold_all(self, log_id: LogId, store: BaseStore, pages: Iterable[Page]) -> Folded[A]:
        folded = self._fold(self.aggregate.without_events(log_id), pages)
        if not folded.reduction.version:
            raise store.missing(log_id)
        return folded

    def _fold(
        self, start: Reduction[A], pages: Iterable[Page], keys: Collection[UUID] = ()
    ) -> Folded[A]:
        """Fold ``pages`` onto a reduction, which was made with ``keys``."""
        reduction, last, is_covered = start, None, True
        start_version = start.version
        with _Nested(IN_FOLD), used_keys.Noting() as used:
            for page in pages:
                reduction = fold(reduction, self._events.records(page))
                last = page[-1]
                is_covered = is_covered and self.codec.covers(page)
        return Folded(
            reduction,
            last,
            is_covered,
            reduction.version - start_version,
            used.union(keys) if keys else used,
        )

    def _reading(
        self,
        key: str,
        folded: Folded[A],
        *,
        replaces: bytes | None = None,
        replay: Replay | None = None,
    ) -> Reading[A]:
        """Return a reading, with the job that writes its entry where there is one to write."""
        entry, is_declined = self._decide(folded)
        if entry is None:
            return Reading(folded.reduction, is_declined=is_declined, events=folded.events)
        write = CacheWrite(
            self.aggregate, self.cache, key, entry, replaces, replay=replay, keys=folded.keys
        )
        return Reading(folded.reduction, write, events=folded.events)

    def _replay_once(self, miss: Miss, wait: float) -> Reading[A]:
        """Replay a log, or wait for another reader's replay, for ``wait`` seconds at most."""
        key, log_id, store, wrong = miss
        # Code that a fold or a policy calls must not wait for a replay: it may be its caller's
        # own replay, or one that waits for its caller's.
        if not wait or _nesting.get():
            return self._reading(key, self._replay(log_id, store), replaces=wrong)
        replay, is_leader = replays.join(key)
        if is_leader:
            try:
                return self._lead(replay, miss, wait)
            finally:
                if replay.entry is None:
                    replays.remove(key, replay)
                replay.done.set()
        is_done = replay.done.wait(wait)
        found, _ = self._prove(replay.entry, log_id, store)
        if found is None:
            if is_done:
                replays.remove(key, replay)
            return self._reading(key, self._replay(log_id, store), replaces=wrong)
        return self._reading(key, found)

    def _lead(self, replay: Replay, miss: Miss, wait: float) -> Reading[A]:
        """Replay a log for the waiters, unless another leader's entry is there by now."""
        key, log_id, store, wrong = miss
        lock = self.lock_class(self.cache, key)
        pages: Iterator[Page] = store.pages(log_id)
        entry = self._cached(key)  # it may have been written since this reader looked
        if entry is None or entry == wrong:
            first = next(pages, ())
            pages = chain((first,) if first else (), pages)
            entry = None
            if len(first) >= LONG and self.cache.shared:
                entry = lock.acquire(wrong=wrong, timeout=wait)
        found, _ = self._prove(entry, log_id, store)
        if found is not None:
            replay.entry = entry
            return self._reading(key, found)
        try:
            if lock.is_held:
                pages = lock.renewing(pages)
            folded = self._fold_all(log_id, store, pages)
            reading = self._reading(key, folded, replaces=wrong, replay=replay)
            if isinstance(reading.job, CacheWrite):
                replay.entry = reading.job.entry
        finally:
            if lock.is_held and replay.entry is not None:
                replay.lock = lock
                lock.expect_write()
            elif lock.is_held:
                lock.decline()
        return reading

    def _cached(self, key: str) -> bytes | None:
        try:
            return self.cache.get(key)
        except Unreachable:
            return None

    def _declined_mark(self, version: int) -> bytes:
        return f"{version} {ADDRESS.sub('', repr(self.policy))}".encode()

    def _warn(self, why: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "Reductions of %s cannot be cached: %s.", self.aggregate.__qualname__, why
            )

    def _count(self, outcome: str, reason: str = "") -> None:
        counters.count(outcome, reason, aggregate=self.aggregate)


def failed(aggregate: type, error: BaseException) -> None:
    """Count and log a refresh that failed; not the error's text, which may quote data."""
    counters.count("error", FAILED, aggregate=aggregate)
    logger.error("A refresh of %s failed: %s", aggregate.__qualname__, type(error).__name__)


class _Nested:
    """A context manager that marks the code inside of it. Not a generator: see Noting."""

    __slots__ = ("_level", "_token")

    def __init__(self, level: int) -> None:
        self._level = level

    def __enter__(self) -> None:
        self._token = _nesting.set(max(self._level, _nesting.get()))

    def __exit__(self, *exc_info: object) -> None:
        _nesting.reset(self._token)


def _longest_wait() -> float:
    """
    Return for how many seconds the caller may wait for another reader's replay.

    A transaction that waits keeps its locks, so that others wait for it. A handler of a
    projection, or any other code with a timer, would spend its time here, and count as failed.
    And the thread in which asgiref runs the synchronous code of all coroutines (outside of
    requests, which have one each) would keep all of them waiting.
    """
    in_transaction = any(
        each.in_atomic_block or (each.connection is not None and not each.autocommit)
        for each in connections.all(initialized_only=True)
    )
    has_deadline = hasattr(signal, "getitimer") and any(signal.getitimer(signal.ITIMER_REAL))
    is_shared = (
        hasattr(SyncToAsync.threadlocal, "main_event_loop")
        and SyncToAsync.thread_sensitive_context.get(None) is None
    )
    return SHORT_WAIT if in_transaction or has_deadline or is_shared else LONGEST_WAIT


def _declined_key(key: str) -> str:
    return f"{key}.declined"
